package reimage

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/rs/zerolog"

	"github.com/provisiond/provisiond/internal/inventory"
	"github.com/provisiond/provisiond/internal/inventory/storetest"
)

// healthy is three control planes whose etcd runs; it counts resets.
type healthy struct {
	members []Member
	resets  int
	off     bool // no API answers for its stage
	// look is called when a machine says who the members of etcd are.
	look func()
}

func (h *healthy) Status(context.Context, *inventory.Cluster, *inventory.Secrets, netip.Addr) (Status, error) {
	if h.off {
		return Status{}, errors.New("no answer")
	}
	return Status{Stage: inventory.StageRunning, Etcd: true}, nil
}

func (h *healthy) Members(ctx context.Context, _ *inventory.Cluster, _ *inventory.Secrets, _ netip.Addr) ([]Member, error) {
	if h.look != nil {
		h.look()
	}
	return h.members, ctx.Err()
}

func (h *healthy) RemoveMember(context.Context, *inventory.Cluster, *inventory.Secrets, netip.Addr, uint64) error {
	return errors.New("nobody asked for it")
}

func (h *healthy) Reset(context.Context, *inventory.Cluster, *inventory.Secrets, netip.Addr, bool, bool) (Outcome, error) {
	h.resets++
	return Accepted, nil
}

// newRack is three control planes whose cluster is up.
func newRack(t *testing.T) (*inventory.Keeper, *healthy) {
	t.Helper()
	ctx := t.Context()
	k, err := storetest.Prod(ctx)
	must(t, err)
	rack := &healthy{}
	for i := range 3 {
		name := fmt.Sprintf("cp-%d", i+1)
		m, err := k.PutMachine(ctx, &inventory.Machine{Name: name, MACs: []inventory.MAC{inventory.MAC(fmt.Sprintf("52:54:00:00:00:%02x", i))}, Cluster: "prod", Role: inventory.ControlPlane}, 0)
		must(t, err)
		rack.members = append(rack.members, Member{ID: uint64(i + 1), Name: name, Addresses: []netip.Addr{m.Address}})
		for _, e := range []inventory.Event{
			{Kind: inventory.Solicited, Machine: name, Client: inventory.FirmwarePXE, XID: 1},
			{Kind: inventory.ScriptServed, Machine: name, Plan: inventory.Install},
			{Kind: inventory.ConfigServed, Machine: name, Hash: "old"},
			{Kind: inventory.APIAnswered, Machine: name, Stage: inventory.StageRunning, Ready: true, Asked: time.Now()},
		} {
			record(t, k, e)
		}
	}
	for _, kind := range []inventory.Kind{inventory.BootstrapClaimed, inventory.BootstrapDone} {
		record(t, k, inventory.Event{Kind: kind, Cluster: "prod", Machine: "cp-1"})
	}
	return k, rack
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func record(t *testing.T, k *inventory.Keeper, e inventory.Event) {
	t.Helper()
	_, err := k.Record(t.Context(), e)
	must(t, err)
}

func order(t *testing.T, k *inventory.Keeper, name string) *inventory.Reimage {
	t.Helper()
	v, err := k.Machine(t.Context(), name)
	must(t, err)
	return &v.Facts.Reimage
}

// While it is another control plane's turn in a rollout, which may reboot it at any
// moment, none is wiped; and then it is.
func TestReimageWaitsForARollout(t *testing.T) {
	k, rack := newRack(t)
	ctx := t.Context()
	r, err := k.StartRollout(ctx, "prod", inventory.ConfigAuto, false)
	must(t, err)
	turn := func(kind inventory.Kind) {
		t.Helper()
		_, err := k.RecordRollout(ctx, r.Number, inventory.Event{Kind: kind, Cluster: "prod", Machine: "cp-1", Hash: "new"})
		must(t, err)
	}
	turn(inventory.RolloutMachineClaimed)
	record(t, k, inventory.Event{Kind: inventory.ReimageOrdered, Machine: "cp-2", Graceful: true})

	a := New(k, rack, zerolog.Nop())
	must(t, a.Round(ctx, map[string]bool{"cp-2": true}))
	if o := order(t, k, "cp-2"); rack.resets != 0 || !strings.Contains(o.Reason, "cp-1, another control plane of its cluster whose turn it is in a rollout") {
		t.Fatalf("%d resets: %s", rack.resets, o.Reason)
	}
	turn(inventory.RolloutMachineDone)
	must(t, a.Round(ctx, map[string]bool{"cp-2": true}))
	if o := order(t, k, "cp-2"); rack.resets != 1 {
		t.Errorf("%d resets: %s", rack.resets, o.Reason)
	}
}

// provisiond is stopped while it looks once more, after the claim: nothing was asked, so
// the claim is taken back.
func TestStoppedAfterTheClaim(t *testing.T) {
	k, rack := newRack(t)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	rack.look = func() {
		if order(t, k, "cp-2").Claimed() {
			cancel()
		}
	}
	record(t, k, inventory.Event{Kind: inventory.ReimageOrdered, Machine: "cp-2", Graceful: true})
	if err := New(k, rack, zerolog.Nop()).Round(ctx, map[string]bool{"cp-2": true}); err != nil && ctx.Err() == nil {
		t.Fatal(err)
	}
	if o := order(t, k, "cp-2"); ctx.Err() == nil || rack.resets != 0 || o.Claimed() || !o.Outstanding() {
		t.Errorf("%d resets, the order is %+v", rack.resets, o)
	}
}

// A learner of etcd has no vote: it makes no quorum, and none is needed of it.
func TestLearnersHaveNoVote(t *testing.T) {
	k, rack := newRack(t)
	rack.members[2].Learner = true
	v, err := k.Machine(t.Context(), "cp-1")
	must(t, err)
	s, err := NewGuard(k, rack).Look(t.Context(), v)
	must(t, err)
	if ok, says := s.MayRest(); ok || !strings.Contains(says, "1 of 2 members") {
		t.Errorf("%v, %s", ok, says)
	}
}

// TestForesee: what is said of an order in advance is what a round does with it.
func TestForesee(t *testing.T) {
	for _, tc := range []struct {
		name    string
		event   inventory.Event
		prepare func(*testing.T, *inventory.Keeper, *healthy)
		via     inventory.Via
		waits   string
	}{
		{"its API", inventory.Event{Graceful: true}, nil, inventory.ViaAPI, ""},
		{"all disks", inventory.Event{Graceful: true, AllDisks: true}, nil, inventory.ViaAPI, ""},
		{"the others are down", inventory.Event{}, off, "", "would be left with 0 of 2 members"},
		{"nothing to boot", inventory.Event{Destroy: true}, off, "", "boot image v1.13.6/default/amd64 is not imported"},
		{"the cluster may be lost", inventory.Event{Destroy: true}, func(t *testing.T, k *inventory.Keeper, h *healthy) {
			h.off = true
			blob := inventory.Blob{SHA256: strings.Repeat("ab", 32), Size: 1}
			must(t, k.PutImage(t.Context(), &inventory.Image{Version: "v1.13.6", Arch: inventory.AMD64, Kernel: blob, Initramfs: blob}))
		}, inventory.ViaNetboot, "when it next boots from the network"},
		{"all disks, and it is off", inventory.Event{Destroy: true, AllDisks: true}, off, inventory.ViaAPI, "which alone can wipe all disks"},
		{"another one's turn", inventory.Event{}, func(t *testing.T, k *inventory.Keeper, _ *healthy) {
			r, err := k.StartRollout(t.Context(), "prod", inventory.ConfigAuto, false)
			must(t, err)
			_, err = k.RecordRollout(t.Context(), r.Number, inventory.Event{Kind: inventory.RolloutMachineClaimed, Cluster: "prod", Machine: "cp-1", Hash: "new"})
			must(t, err)
		}, "", "waits for cp-1"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			k, rack := newRack(t)
			if tc.prepare != nil {
				tc.prepare(t, k, rack)
			}
			a := New(k, rack, zerolog.Nop())
			v, err := k.Machine(t.Context(), "cp-2")
			must(t, err)
			e := tc.event
			e.Kind, e.Machine, e.Time = inventory.ReimageOrdered, "cp-2", time.Now()
			after, err := inventory.Apply(v, e)
			must(t, err)
			via, waits, err := a.Foresee(t.Context(), after)
			must(t, err)
			if via != tc.via || !strings.Contains(waits, tc.waits) || tc.waits == "" && waits != "" {
				t.Errorf("by %q, waits %q", via, waits)
			}
			if order(t, k, "cp-2").Outstanding() || rack.resets > 0 {
				t.Error("foreseeing did something")
			}
			record(t, k, e)
			must(t, a.Round(t.Context(), map[string]bool{"cp-2": true}))
			if o := order(t, k, "cp-2"); (rack.resets == 1) != (waits == "") || waits != "" && tc.name != "nothing to boot" && o.Reason != waits {
				t.Errorf("foreseen was %q, and then: %d resets, %s", waits, rack.resets, o.Reason)
			}
		})
	}
}

// off is a rack without an API that answers, but for who the members of etcd are.
func off(_ *testing.T, _ *inventory.Keeper, h *healthy) { h.off = true }
