package inventory_test

import (
	"errors"
	"fmt"
	"testing"

	"github.com/provisiond/provisiond/internal/inventory"
)

// TestCheckReset: what a reset would take is what it takes, wherever the machines are
// registered by then.
func TestCheckReset(t *testing.T) {
	k, _ := newKeeper(t)
	mustCluster(t, k, "prod")
	for i, role := range []inventory.Role{inventory.ControlPlane, inventory.Worker, inventory.Worker, inventory.Worker} {
		m := machine(i)
		m.Cluster, m.Role = "prod", role
		mustPut(t, k, m)
		if i < 3 {
			mustRecord(t, k, inventory.Event{Kind: inventory.ScriptServed, Machine: m.Name, Plan: inventory.Install})
			mustRecord(t, k, inventory.Event{Kind: inventory.ConfigServed, Machine: m.Name, Hash: "h"})
		}
	}
	moved := view(t, k, mac(2)).Machine
	moved.Cluster = ""
	if _, err := k.PutMachine(t.Context(), moved, moved.Rev); err != nil {
		t.Fatal(err)
	}
	got, err := k.CheckReset(t.Context(), "prod", 1, nil)
	if err != nil || fmt.Sprint(got) != "[{m-0 controlplane true} {m-1 worker false} {m-2 worker false}]" {
		t.Errorf("%v, %v", got, err)
	}
	if got, err = k.CheckReset(t.Context(), "prod", 1, []string{"m-0"}); err != nil || len(got) != 3 || got[0].Awaited {
		t.Errorf("declared dead: %v, %v", got, err)
	}
	if _, err = k.CheckReset(t.Context(), "prod", 1, []string{"m-1"}); !errors.Is(err, inventory.ErrRefused) {
		t.Errorf("a worker is declared dead: %v", err)
	}
	if _, err = k.CheckReset(t.Context(), "prod", 3, nil); !errors.Is(err, inventory.ErrConflict) {
		t.Errorf("another life: %v", err)
	}
	if old, err := k.ResetCluster(t.Context(), "prod", 1, []byte("next"), nil); err != nil || fmt.Sprint(old) != "[m-0 m-1 m-2]" {
		t.Errorf("it took %v, %v", old, err)
	}
	if got, err = k.CheckReset(t.Context(), "prod", 2, nil); err != nil || len(got) != 3 {
		t.Errorf("of an earlier life: %v, %v", got, err)
	}
}

// TestResetImported: control planes that were never seen are waited for, however often
// the cluster is reset.
func TestResetImported(t *testing.T) {
	k, _ := newKeeper(t)
	c := cluster("prod")
	c.Imported = true
	if _, err := k.CreateCluster(t.Context(), c, []byte("secrets")); err != nil {
		t.Fatal(err)
	}
	mustPut(t, k, &inventory.Machine{Name: "cp-1", MACs: []inventory.MAC{mac(1)}, Cluster: "prod", Role: inventory.ControlPlane})
	for _, epoch := range []uint64{1, 1, 2} { // its answer was lost; another
		if got, err := k.CheckReset(t.Context(), "prod", epoch, nil); err != nil || fmt.Sprint(got) != "[{cp-1 controlplane true}]" {
			t.Errorf("life %d: %v, %v", epoch, got, err)
		}
		old, err := k.ResetCluster(t.Context(), "prod", epoch, []byte("next"), nil)
		if _, b, _ := k.Cluster(t.Context(), "prod"); err != nil || fmt.Sprint(old) != "[cp-1]" || fmt.Sprint(b.Old) != "[cp-1]" {
			t.Errorf("life %d: it took %v and waits for %v, %v", epoch, old, b.Old, err)
		}
	}
}
