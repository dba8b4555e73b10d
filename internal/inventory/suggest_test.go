package inventory_test

import (
	"context"
	"fmt"
	"net/netip"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/provisiond/provisiond/internal/boltstore"
	"github.com/provisiond/provisiond/internal/inventory"
)

func TestSuggestNames(t *testing.T) {
	for _, tc := range []struct {
		name         string
		there, ports []string
		want         string
	}{
		{"nobody yet", nil, []string{"", "", ""}, "[node-1 node-2 node-3]"},
		{"after the last", []string{"cp-1", "w-1", "w-6", "w-3"}, []string{"", ""}, "[w-7 w-8]"},
		{"as many of each", []string{"cp-1", "cp-2", "w-1", "w-2"}, []string{""}, "[w-3]"},
		{"more control planes than workers", []string{"cp-1", "cp-2", "cp-3", "w-1"}, []string{""}, "[w-2]"},
		{"control planes only", []string{"cp-1", "cp-2"}, []string{""}, "[node-1]"},
		{"as wide", []string{"w-08", "w-09"}, []string{"", ""}, "[w-10 w-11]"},
		{"as wide, and wider", []string{"w-099", "w-007"}, []string{"", ""}, "[w-100 w-101]"},
		{"names without numbers", []string{"alpha", "beta"}, []string{""}, "[node-1]"},
		{"a number is no series", []string{"12345678901", "7"}, []string{""}, "[node-1]"},
		{"one of ours", []string{"node-4", "x"}, []string{""}, "[node-5]"},
		{"by the port", []string{"w-1"}, []string{"rack3-u7", "", "rack3-u8"}, "[rack3-u7 w-2 rack3-u8]"},
		{"a port that several have", []string{"w-1"}, []string{"rack3-u7", "rack3-u7"}, "[w-2 w-3]"},
		{"a port that a machine is called by", []string{"rack3-u7", "w-1", "w-2"}, []string{"rack3-u7"}, "[w-3]"},
		{"a port that comes next", []string{"w-1", "w-2"}, []string{"w-3", ""}, "[w-3 w-4]"},
		{"ports that are none", []string{"w-1"}, []string{"eth0", "Gi1/0/7", "1-2-3", "vlan-a", "-u7", "0x1234"}, "[w-2 w-3 w-4 w-5 w-6 w-7]"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			k, _ := newKeeper(t)
			for i, name := range tc.there {
				m := machine(i)
				if m.Name = name; strings.HasPrefix(name, "cp-") {
					m.Role = inventory.ControlPlane
				}
				mustPut(t, k, m)
			}
			var list []inventory.Stranger
			for i, port := range tc.ports {
				list = append(list, inventory.Stranger{MAC: mac(1000 + i), Port: port})
			}
			got, err := k.Suggest(t.Context(), list)
			if err != nil {
				t.Fatal(err)
			}
			var names []string
			for _, s := range got {
				names = append(names, s.Name)
			}
			if fmt.Sprint(names) != tc.want {
				t.Errorf("got %v, want %s", names, tc.want)
			}
		})
	}
}

// TestSuggestAddresses: registering a stranger as suggested, one after the other, gives
// it the address that was suggested; and nothing was reserved before.
func TestSuggestAddresses(t *testing.T) {
	k, _ := newKeeper(t)
	small := k.Subnets()[0]
	small.Machines.Last = small.Machines.First.Next().Next() // three addresses
	if err := k.SetSubnets(t.Context(), []inventory.Subnet{small}); err != nil {
		t.Fatal(err)
	}
	var list []inventory.Stranger
	for i := range 4 {
		list = append(list, inventory.Stranger{MAC: mac(1000 + i), Subnet: small.Name})
	}
	list = append(list, inventory.Stranger{MAC: mac(2000), Subnet: "gone"})
	got, err := k.Suggest(t.Context(), list)
	if err != nil {
		t.Fatal(err)
	}
	if used, err := k.UsedAddresses(t.Context()); err != nil || len(used) != 0 {
		t.Errorf("%v, %v", used, err)
	}
	seen := map[netip.Addr]bool{}
	for i, s := range got[:3] {
		if s.Subnet != small.Name || !small.Machines.Contains(s.Address) || seen[s.Address] {
			t.Errorf("%d: %+v", i, s)
		}
		seen[s.Address] = true
		m := mustPut(t, k, &inventory.Machine{Name: s.Name, MACs: []inventory.MAC{list[i].MAC}, Role: inventory.Worker})
		if m.Address != s.Address {
			t.Errorf("%s was suggested %s and got %s", s.Name, s.Address, m.Address)
		}
	}
	if got[3].Address.IsValid() || got[3].Subnet != small.Name {
		t.Errorf("from a range that is full: %+v", got[3])
	}
	if got[4].Address.IsValid() || got[4].Subnet != "" || got[4].Name != "node-5" {
		t.Errorf("on no subnet: %+v", got[4])
	}
}

// counted is a store that counts how often it is asked.
type counted struct {
	inventory.Store
	gets atomic.Int64
}

func (c *counted) Get(ctx context.Context, key inventory.Key) (inventory.Record, error) {
	c.gets.Add(1)
	return c.Store.Get(ctx, key)
}

// TestSuggestCosts: neither a full subnet nor as many strangers as there can be make many
// looks at the store.
func TestSuggestCosts(t *testing.T) {
	db, err := boltstore.Open(filepath.Join(t.TempDir(), "db"), boltstore.Options{NoSync: true})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = db.Close() })
	store := &counted{Store: db}
	small := subnets()[0]
	small.Machines.Last = addr("2001:db8:1::11f") // 32 addresses
	k, err := inventory.NewKeeper(t.Context(), store, inventory.KeeperConfig{Subnets: []inventory.Subnet{small}})
	if err != nil {
		t.Fatal(err)
	}
	for i := range 32 {
		mustPut(t, k, &inventory.Machine{Name: fmt.Sprintf("w-%d", i), MACs: []inventory.MAC{mac(i)}, Role: inventory.Worker})
	}
	list := make([]inventory.Stranger, 1024)
	for i := range list {
		list[i] = inventory.Stranger{MAC: mac(1000 + i), Subnet: small.Name}
	}
	before := store.gets.Load()
	got, err := k.Suggest(t.Context(), list)
	if err != nil || len(got) != len(list) {
		t.Fatalf("%d, %v", len(got), err)
	}
	if gets := store.gets.Load() - before; gets > 50 { // 32 addresses once, and a machine for the series of names
		t.Errorf("a full subnet takes %d looks", gets)
	}
	if s := got[inventory.MaxSuggested-1]; s.Name != "w-95" || s.Subnet != small.Name || s.Address.IsValid() {
		t.Errorf("%+v", s)
	}
	if s := got[inventory.MaxSuggested]; s != (inventory.Suggestion{}) {
		t.Errorf("after those that there are suggestions for: %+v", s)
	}
	if err := k.SetSubnets(t.Context(), subnets()); err != nil { // 256 addresses
		t.Fatal(err)
	}
	if got, err = k.Suggest(t.Context(), list); err != nil || !got[inventory.MaxSuggested-1].Address.IsValid() || got[inventory.MaxSuggested].Address.IsValid() {
		t.Errorf("with room: %+v, %v", got[inventory.MaxSuggested-1:inventory.MaxSuggested+1], err)
	}
}
