package rollout

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/rs/zerolog"

	"github.com/provisiond/provisiond/internal/inventory"
	"github.com/provisiond/provisiond/internal/inventory/storetest"
)

// fakeRack is machines that do what they are told, and count it.
type fakeRack struct {
	k      *inventory.Keeper
	hashes map[string]string
	asked  []string
	// before is called when a machine is asked, and says how that ends.
	before func(name string) (Outcome, error)
	rest   error
	// look is called when it is asked whether the others go on.
	look func()
}

func (f *fakeRack) Look(_ context.Context, v inventory.View) (Probe, error) {
	return Probe{Answered: true, Ready: true, Running: f.hashes[v.Machine.Name], Wanted: "new"}, nil
}

func (f *fakeRack) Apply(ctx context.Context, v inventory.View, hash string, _ inventory.ConfigMode) (string, Outcome, error) {
	r, err := f.k.Rollout(ctx, "prod")
	if m := r.Claimed(); err != nil || m == nil || m.Name != v.Machine.Name || m.Hash != hash {
		return "", Refused, errors.New("the claim is not on disk")
	}
	f.asked = append(f.asked, v.Machine.Name)
	outcome, err := Accepted, error(nil)
	if f.before != nil {
		outcome, err = f.before(v.Machine.Name)
	}
	if outcome == Accepted {
		f.hashes[v.Machine.Name] = hash
	}
	return "Applied", outcome, err
}

func (f *fakeRack) Upgrade(context.Context, inventory.View, string) (string, Outcome, error) {
	return "", Refused, errors.New("nobody asked for an upgrade")
}

func (f *fakeRack) MayRest(ctx context.Context, _ inventory.View) (bool, string, error) {
	if f.look != nil {
		f.look()
	}
	if ctx.Err() != nil {
		return false, "", ctx.Err()
	}
	if f.rest != nil {
		return false, f.rest.Error(), nil
	}
	return true, "the others go on", nil
}

// newRack is two control planes and a worker with an old config, and a rollout.
func newRack(t *testing.T) (*fakeRack, *Actor) {
	t.Helper()
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	ctx := t.Context()
	k, err := storetest.Prod(ctx)
	must(err)
	f := &fakeRack{k: k, hashes: map[string]string{}}
	for i, name := range []string{"cp-1", "cp-2", "w-1"} {
		m := &inventory.Machine{Name: name, MACs: []inventory.MAC{inventory.MAC(fmt.Sprintf("52:54:00:00:00:%02x", i))}, Cluster: "prod", Role: inventory.ControlPlane}
		if name == "w-1" {
			m.Role = inventory.Worker
		}
		_, err := k.PutMachine(ctx, m, 0)
		must(err)
		f.hashes[name] = "old"
	}
	for _, kind := range []inventory.Kind{inventory.BootstrapClaimed, inventory.BootstrapSent, inventory.BootstrapAccepted, inventory.BootstrapDone} {
		_, err := k.Record(ctx, inventory.Event{Kind: kind, Cluster: "prod", Machine: "cp-1"})
		must(err)
	}
	_, err = k.StartRollout(ctx, "prod", inventory.ConfigAuto, false)
	must(err)
	return f, New(k, f, f, zerolog.Nop())
}

func (f *fakeRack) state(t *testing.T) *inventory.Rollout {
	t.Helper()
	r, err := f.k.Rollout(t.Context(), "prod")
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// settleDown runs the actor until nothing goes on any more.
func settleDown(t *testing.T, f *fakeRack, a *Actor) *inventory.Rollout {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	wake, stop := f.k.Watch()
	defer stop()
	ended := make(chan error, 1)
	go func() { ended <- a.Run(ctx) }()
	late := time.After(24 * time.Hour)
	for f.state(t).Going() {
		select {
		case <-wake:
		case <-late:
			t.Fatalf("it goes on and on: %+v", f.state(t))
		}
	}
	cancel()
	if err := <-ended; err != nil {
		t.Fatal(err)
	}
	return f.state(t)
}

func TestActorRollsOver(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f, a := newRack(t)
		r := settleDown(t, f, a)
		if !r.Complete() || !slices.Equal(f.asked, []string{"cp-1", "cp-2", "w-1"}) {
			t.Errorf("asked %v, ended %+v", f.asked, r)
		}
		v, err := f.k.Machine(t.Context(), "w-1")
		if err != nil || v.Facts.ConfigHash != "new" {
			t.Errorf("it is known to have %q, %v", v.Facts.ConfigHash, err)
		}
	})
}

func TestActorStopsAtTheFirstFailure(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f, a := newRack(t)
		f.before = func(name string) (Outcome, error) {
			if name == "cp-2" {
				return Refused, errors.New("no such disk")
			}
			return Accepted, nil
		}
		if r := settleDown(t, f, a); r.Complete() || r.Reason != "cp-2: no such disk" || !slices.Equal(f.asked, []string{"cp-1", "cp-2"}) {
			t.Errorf("asked %v, ended %+v", f.asked, r)
		}
	})
}

// An answer that was lost is looked for, and nobody is asked twice: whether the machine
// has the config or not.
func TestActorAsksOnce(t *testing.T) {
	for _, took := range []bool{true, false} {
		synctest.Test(t, func(t *testing.T) {
			f, a := newRack(t)
			f.before = func(name string) (Outcome, error) {
				if name != "cp-1" {
					return Accepted, nil
				}
				if took {
					f.hashes[name] = "new"
				}
				return Unknown, errors.New("the connection broke")
			}
			r := settleDown(t, f, a)
			want := []string{"cp-1"}
			if took {
				want = append(want, "cp-2", "w-1")
			}
			if r.Complete() != took || !slices.Equal(f.asked, want) || !took && !strings.Contains(r.Reason, "the connection broke") {
				t.Errorf("took %t: asked %v, ended %+v", took, f.asked, r)
			}
		})
	}
}

// A crash between the claim and the answer: the next process looks, and does not ask.
func TestActorAfterACrash(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f, a := newRack(t)
		r := f.state(t)
		if _, err := f.k.RecordRollout(t.Context(), r.Number, inventory.Event{Kind: inventory.RolloutMachineClaimed, Cluster: "prod", Machine: "cp-1", Hash: "new"}); err != nil {
			t.Fatal(err)
		}
		if r = settleDown(t, f, a); r.Complete() || len(f.asked) != 0 {
			t.Errorf("asked %v, ended %+v", f.asked, r)
		}
	})
}

// Without quorum nobody is asked, and it is not waited for without end.
func TestActorKeepsQuorum(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f, a := newRack(t)
		f.rest = errors.New("etcd would be lost")
		if r := settleDown(t, f, a); r.Complete() || len(f.asked) != 0 || !strings.Contains(r.Reason, "etcd would be lost") {
			t.Errorf("asked %v, ended %+v", f.asked, r)
		}
	})
}

// provisiond is stopped while it looks once more, after the claim: nothing was asked, so
// the claim is taken back.
func TestActorStoppedAfterTheClaim(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f, a := newRack(t)
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		f.look = func() {
			if f.state(t).Claimed() != nil {
				cancel()
			}
		}
		if err := a.Run(ctx); err != nil {
			t.Fatal(err)
		}
		if m := f.state(t).Claimed(); m != nil || len(f.asked) != 0 {
			t.Errorf("asked %v, claimed %+v", f.asked, m)
		}
	})
}

// What is stopped while a machine is asked goes no further.
func TestActorIsStopped(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f, a := newRack(t)
		f.before = func(string) (Outcome, error) {
			_, err := f.k.StopRollout(t.Context(), "prod")
			return Accepted, err
		}
		if r := settleDown(t, f, a); r.Complete() || !slices.Equal(f.asked, []string{"cp-1"}) || r.Reason != "it was stopped" {
			t.Errorf("asked %v, ended %+v", f.asked, r)
		}
	})
}

// While another control plane is wiped, none is asked.
func TestActorWaitsForAReimage(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f, a := newRack(t)
		for _, kind := range []inventory.Kind{inventory.ReimageOrdered, inventory.WipeClaimed} {
			if _, err := f.k.Record(t.Context(), inventory.Event{Kind: kind, Machine: "cp-2"}); err != nil {
				t.Fatal(err)
			}
		}
		if r := settleDown(t, f, a); r.Complete() || len(f.asked) != 0 || r.Reason != "cp-1: cp-2, another control plane, is being reimaged" {
			t.Errorf("asked %v, ended %+v", f.asked, r)
		}
	})
}
