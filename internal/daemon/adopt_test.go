package daemon

import (
	"context"
	"errors"
	"testing"

	"github.com/provisiond/provisiond/internal/inventory"
	"github.com/provisiond/provisiond/internal/racktest"
)

// TestAdopt: a machine that nobody registered waits in its boot loader, is adopted by the
// code of its console, and joins the cluster in the same boot.
func TestAdopt(t *testing.T) {
	l := newLab(t)
	store := l.open(t)
	l.cfg.Subnets[0].Adopt = true
	r := l.rack(t, racktest.RackOptions{})
	proxied(t, func(ctx context.Context) error { return r.Fabric.ServeProxy(ctx, l.proxy) })
	k, _ := l.start(t, store)
	w2, err := k.Machine(t.Context(), "w-2")
	check(t, err)
	check(t, k.DeleteMachine(t.Context(), "w-2", w2.Machine.Rev))
	ctx, cancel := context.WithTimeout(context.Background(), within)
	t.Cleanup(cancel)
	ran := make(chan error, 1)
	go func() { ran <- r.Run(ctx) }()
	mac := w2.Machine.MACs[0]
	code, err := k.AdoptionCode(t.Context(), mac)
	check(t, err)
	var found inventory.Stranger
	await(t, k, func() string {
		if found, err = k.StrangerByCode(t.Context(), code); errors.Is(err, inventory.ErrNotFound) {
			return "nobody shows the code"
		}
		check(t, err)
		return ""
	})
	_, err = k.PutMachine(t.Context(), &inventory.Machine{Name: "w-2", MACs: []inventory.MAC{found.MAC}, Cluster: "lab", Role: inventory.Worker, Address: w2.Machine.Address}, 0)
	check(t, err)
	check(t, <-ran)
	verify(t, k, r)
	v, err := k.Machine(t.Context(), "w-2")
	check(t, err)
	if n := len(v.Facts.Boots); n != 1 {
		t.Errorf("it took %d boots", n)
	}
}
