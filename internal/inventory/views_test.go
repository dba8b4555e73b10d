package inventory_test

import (
	"context"
	"testing"

	"github.com/provisiond/provisiond/internal/inventory"
)

type counting struct {
	inventory.Store
	gets int
}

func (c *counting) Get(ctx context.Context, key inventory.Key) (inventory.Record, error) {
	c.gets++
	return c.Store.Get(ctx, key)
}

// TestRepeatedLookupsReadNothing: once a machine has begun to boot, neither a
// second look at it nor one after an event reads the store.
func TestRepeatedLookupsReadNothing(t *testing.T) {
	_, faulty := newKeeper(t)
	store := &counting{Store: faulty}
	k, err := inventory.NewKeeper(t.Context(), store, inventory.KeeperConfig{Subnets: subnets()})
	if err != nil {
		t.Fatal(err)
	}
	mustCluster(t, k, "prod")
	m := machine(1)
	m.Cluster = "prod"
	mustPut(t, k, m)
	look := func() int {
		t.Helper()
		before := store.gets
		if v, err := k.View(t.Context(), mac(1), ""); err != nil || v.Machine == nil {
			t.Fatalf("%+v, %v", v, err)
		}
		return store.gets - before
	}
	for range 2 {
		if look() == 0 {
			t.Error("a machine that never booted takes up memory")
		}
	}
	for _, e := range []inventory.Event{
		{Kind: inventory.Solicited, Client: inventory.FirmwarePXE, Arch: inventory.AMD64, XID: 1},
		{Kind: inventory.ScriptServed, Plan: inventory.Install},
		{Kind: inventory.ConfigServed, Hash: "h"},
	} {
		e.MAC = mac(1)
		if _, err := k.Record(t.Context(), e); err != nil {
			t.Fatal(err)
		}
		look() // takes up what Record only noted
		if n := look(); n != 0 {
			t.Errorf("after %s a look read %d records", e.Kind, n)
		}
	}
}
