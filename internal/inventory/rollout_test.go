package inventory_test

import (
	"context"
	"errors"
	"fmt"
	"testing"

	"github.com/provisiond/provisiond/internal/inventory"
)

// upCluster is a cluster of two control planes and a worker, not bootstrapped yet.
func upCluster(t *testing.T) *inventory.Keeper {
	t.Helper()
	k, _ := newKeeper(t)
	mustCluster(t, k, "prod")
	for i, name := range []string{"a-worker", "cp-1", "cp-2"} {
		m := &inventory.Machine{Name: name, MACs: []inventory.MAC{mac(i)}, Cluster: "prod", Role: inventory.ControlPlane}
		if i == 0 {
			m.Role = inventory.Worker
		}
		mustPut(t, k, m)
	}
	return k
}

func bootstrapped(t *testing.T, k *inventory.Keeper) {
	t.Helper()
	for _, kind := range []inventory.Kind{inventory.BootstrapClaimed, inventory.BootstrapSent, inventory.BootstrapAccepted, inventory.BootstrapDone} {
		if _, err := k.Record(t.Context(), inventory.Event{Kind: kind, Cluster: "prod", Machine: "cp-1"}); err != nil {
			t.Fatal(err)
		}
	}
}

// One rollout at a time, one machine at a time, and none after its end.
func TestRolloutRecord(t *testing.T) {
	k := upCluster(t)
	ctx := context.Background()
	if _, err := k.StartRollout(ctx, "prod", inventory.ConfigAuto, false); !errors.Is(err, inventory.ErrRefused) {
		t.Errorf("over a cluster that is not up: %v", err)
	}
	if _, err := k.StartRollout(ctx, "nope", inventory.ConfigAuto, false); !errors.Is(err, inventory.ErrNotFound) {
		t.Errorf("over no cluster: %v", err)
	}
	bootstrapped(t, k)
	r, err := k.StartRollout(ctx, "prod", inventory.ConfigNoReboot, true)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := k.StartRollout(ctx, "prod", inventory.ConfigAuto, false); !errors.Is(err, inventory.ErrRefused) {
		t.Errorf("a second one: %v", err)
	}
	expect := func(want string) {
		t.Helper()
		r, err := k.Rollout(ctx, "prod")
		if err != nil {
			t.Fatal(err)
		}
		got := fmt.Sprintf("%d %s going %t complete %t:", r.Number, r.Mode, r.Going(), r.Complete())
		for _, m := range r.Machines {
			got += " " + m.Name + " " + string(m.State) + " " + m.Hash
		}
		if got != want {
			t.Errorf("got %q, want %q", got, want)
		}
	}
	record := func(kind inventory.Kind, machine string, refused bool) {
		t.Helper()
		_, err := k.RecordRollout(ctx, r.Number, inventory.Event{Kind: kind, Cluster: "prod", Machine: machine, Hash: "h", Message: "because"})
		if errors.Is(err, inventory.ErrRefused) != refused || !refused && err != nil {
			t.Errorf("%s of %q: %v", kind, machine, err)
		}
	}
	record(inventory.RolloutMachineClaimed, "cp-1", false)
	record(inventory.RolloutMachineClaimed, "cp-1", true)
	record(inventory.RolloutMachineClaimed, "cp-2", true)
	record(inventory.RolloutMachineClaimed, "nobody", true)
	expect("1 no-reboot going true complete false: cp-1 claimed h cp-2 pending  a-worker pending ")
	record(inventory.RolloutMachineAgain, "cp-1", false)
	record(inventory.RolloutMachineClaimed, "cp-1", false)
	record(inventory.RolloutMachineDone, "cp-1", false)
	record(inventory.RolloutMachineClaimed, "cp-2", false)
	record(inventory.RolloutMachineFailed, "cp-2", false)
	expect("1 no-reboot going false complete false: cp-1 done h cp-2 failed h a-worker pending ")
	record(inventory.RolloutMachineClaimed, "a-worker", true)

	if r, err = k.StartRollout(ctx, "prod", inventory.ConfigAuto, false); err != nil {
		t.Fatal(err)
	}
	if _, err := k.RecordRollout(ctx, 1, inventory.Event{Kind: inventory.RolloutEnded, Cluster: "prod"}); !errors.Is(err, inventory.ErrRefused) {
		t.Errorf("an event of the one before: %v", err)
	}
	for range 2 {
		if stopped, err := k.StopRollout(ctx, "prod"); err != nil || stopped.Going() || stopped.Complete() {
			t.Errorf("stopped: %+v, %v", stopped, err)
		}
	}
	if r, err = k.StartRollout(ctx, "prod", inventory.ConfigAuto, false); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"cp-1", "cp-2", "a-worker"} {
		record(inventory.RolloutMachineDone, name, false)
	}
	record(inventory.RolloutEnded, "", false)
	expect("3 auto going false complete true: cp-1 done  cp-2 done  a-worker done ")
}

// A backup says nothing of what a rollout did since.
func TestRolloutIsStoppedByARestore(t *testing.T) {
	k := upCluster(t)
	bootstrapped(t, k)
	if _, err := k.StartRollout(t.Context(), "prod", inventory.ConfigAuto, false); err != nil {
		t.Fatal(err)
	}
	if err := k.Restored(t.Context()); err != nil {
		t.Fatal(err)
	}
	if r, err := k.Rollout(t.Context(), "prod"); err != nil || r.Going() {
		t.Errorf("it goes on: %+v, %v", r, err)
	}
}
