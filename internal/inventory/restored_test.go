package inventory_test

import (
	"testing"

	"github.com/provisiond/provisiond/internal/inventory"
)

// TestRestored: what a backup says may have been overtaken since it was made.
func TestRestored(t *testing.T) {
	k, _ := newKeeper(t)
	mustCluster(t, k, "prod")
	for i := range 2 {
		m := machine(i)
		m.Cluster = "prod"
		mustPut(t, k, m)
	}
	mustRecord(t, k, inventory.Event{Kind: inventory.ReimageOrdered, Machine: "m-0", Message: "ordered"})
	mustRecord(t, k, inventory.Event{Kind: inventory.WipeClaimed, Machine: "m-0"})
	for range 2 { // as after a crash in the middle
		if err := k.Restored(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	v := view(t, k, mac(0))
	if r := v.Facts.Reimage; r.Outstanding() || r.Claimed() || v.Facts.Install.Ordered != 1 {
		t.Errorf("its reimage stands at %+v, its install at %+v", r, v.Facts.Install)
	}
	if cl, _, err := k.Cluster(t.Context(), "prod"); err != nil || !cl.Imported {
		t.Errorf("the cluster may be bootstrapped: %+v, %v", cl, err)
	}
	if h := view(t, k, mac(1)).Facts.Holds; h.Role != inventory.ControlPlane || !h.Guess {
		t.Errorf("a worker is taken for %+v", h)
	}
}

// TestRestoredInTheLoader: a machine that waits in its boot loader while a backup is put back
// is wiped once by an order given since: its script is the claim.
func TestRestoredInTheLoader(t *testing.T) {
	k, _ := newKeeper(t)
	mustCluster(t, k, "prod")
	m := machine(0)
	m.Cluster = "prod"
	mustPut(t, k, m)
	mustRecord(t, k, inventory.Event{Kind: inventory.Solicited, Machine: "m-0", MAC: mac(0), Client: inventory.FirmwarePXE, XID: 1})
	mustRecord(t, k, inventory.Event{Kind: inventory.ScriptServed, Machine: "m-0", MAC: mac(0), Plan: inventory.Hold})
	if err := k.Restored(t.Context()); err != nil {
		t.Fatal(err)
	}
	mustRecord(t, k, inventory.Event{Kind: inventory.ReimageOrdered, Machine: "m-0", Message: "ordered"})
	mustRecord(t, k, inventory.Event{Kind: inventory.ReimageCleared, Machine: "m-0", Message: "it is no member of etcd"})
	mustRecord(t, k, inventory.Event{Kind: inventory.ScriptServed, Machine: "m-0", MAC: mac(0), Boot: 1, Plan: inventory.Wipe})
	v := view(t, k, mac(0))
	if r, b := v.Facts.Reimage, v.Facts.Current(); !r.Claimed() || r.Via != inventory.ViaNetboot || r.Boot != 1 || b.Number != 1 || b.Plan != inventory.Wipe {
		t.Errorf("its reimage stands at %+v, in boot %+v", r, b)
	}
	if p := inventory.PlanBoot(v); p.Action == inventory.Wipe {
		t.Errorf("it is wiped again: %+v", p)
	}
}
