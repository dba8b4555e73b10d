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
}

func (h *healthy) Status(context.Context, *inventory.Cluster, *inventory.Secrets, netip.Addr) (Status, error) {
	return Status{Stage: inventory.StageRunning, Etcd: true}, nil
}

func (h *healthy) Members(context.Context, *inventory.Cluster, *inventory.Secrets, netip.Addr) ([]Member, error) {
	return h.members, nil
}

func (h *healthy) RemoveMember(context.Context, *inventory.Cluster, *inventory.Secrets, netip.Addr, uint64) error {
	return errors.New("nobody asked for it")
}

func (h *healthy) Reset(context.Context, *inventory.Cluster, *inventory.Secrets, netip.Addr, bool, bool) (Outcome, error) {
	h.resets++
	return Accepted, nil
}

// While it is another control plane's turn in a rollout, which may reboot it at any
// moment, none is wiped; and then it is.
func TestReimageWaitsForARollout(t *testing.T) {
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	ctx := t.Context()
	k, err := inventory.NewKeeper(ctx, storetest.NewMemory(), inventory.KeeperConfig{Subnets: []inventory.Subnet{{
		Name: "rack", Prefix: netip.MustParsePrefix("2001:db8::/64"),
		Machines:  inventory.Range{First: netip.MustParseAddr("2001:db8::100"), Last: netip.MustParseAddr("2001:db8::1ff")},
		Preferred: time.Hour, Valid: time.Hour,
	}}})
	must(err)
	_, err = k.CreateCluster(ctx, &inventory.Cluster{
		Name: "prod", Endpoint: "https://[2001:db8::1]:6443", TalosVersion: "v1.13.6", KubernetesVersion: "1.36.2",
		PodSubnets:     []netip.Prefix{netip.MustParsePrefix("fc00:db8:10::/56")},
		ServiceSubnets: []netip.Prefix{netip.MustParsePrefix("fc00:db8:20::/112")},
	}, []byte("bundle"))
	must(err)
	record := func(e inventory.Event) {
		t.Helper()
		_, err := k.Record(ctx, e)
		must(err)
	}
	rack := &healthy{}
	for i := range 3 {
		name := fmt.Sprintf("cp-%d", i+1)
		m, err := k.PutMachine(ctx, &inventory.Machine{Name: name, MACs: []inventory.MAC{inventory.MAC(fmt.Sprintf("52:54:00:00:00:%02x", i))}, Cluster: "prod", Role: inventory.ControlPlane}, 0)
		must(err)
		rack.members = append(rack.members, Member{ID: uint64(i + 1), Name: name, Addresses: []netip.Addr{m.Address}})
		record(inventory.Event{Kind: inventory.Solicited, Machine: name, Client: inventory.FirmwarePXE, XID: 1})
		record(inventory.Event{Kind: inventory.ScriptServed, Machine: name, Plan: inventory.Install})
		record(inventory.Event{Kind: inventory.ConfigServed, Machine: name, Hash: "old"})
		record(inventory.Event{Kind: inventory.APIAnswered, Machine: name, Stage: inventory.StageRunning, Ready: true, Asked: time.Now()})
	}
	for _, kind := range []inventory.Kind{inventory.BootstrapClaimed, inventory.BootstrapDone} {
		record(inventory.Event{Kind: kind, Cluster: "prod", Machine: "cp-1"})
	}
	r, err := k.StartRollout(ctx, "prod", inventory.ConfigAuto, false)
	must(err)
	turn := func(kind inventory.Kind) {
		t.Helper()
		_, err := k.RecordRollout(ctx, r.Number, inventory.Event{Kind: kind, Cluster: "prod", Machine: "cp-1", Hash: "new"})
		must(err)
	}
	turn(inventory.RolloutMachineClaimed)
	record(inventory.Event{Kind: inventory.ReimageOrdered, Machine: "cp-2", Graceful: true})

	a := New(k, rack, zerolog.Nop())
	must(a.Round(ctx, map[string]bool{"cp-2": true}))
	v, err := k.Machine(ctx, "cp-2")
	must(err)
	if rack.resets != 0 || !strings.Contains(v.Facts.Reimage.Reason, "cp-1, another control plane of its cluster whose turn it is in a rollout") {
		t.Fatalf("%d resets: %s", rack.resets, v.Facts.Reimage.Reason)
	}
	turn(inventory.RolloutMachineDone)
	must(a.Round(ctx, map[string]bool{"cp-2": true}))
	if rack.resets != 1 {
		v, err := k.Machine(ctx, "cp-2")
		t.Errorf("%d resets: %s, %v", rack.resets, v.Facts.Reimage.Reason, err)
	}
}
