package inventory_test

import (
	"errors"
	"fmt"
	"net/netip"
	"testing"
	"time"

	"github.com/provisiond/provisiond/internal/inventory"
	"github.com/provisiond/provisiond/internal/inventory/storetest"
)

// TestCheckMachine: a check says what the write then says, changes neither its
// argument nor the store, and leaves a stranger a stranger.
func TestCheckMachine(t *testing.T) {
	for _, tt := range []struct {
		name  string
		m     inventory.Machine // MACs, if none: mac(9); of a stored one, its Rev is filled in
		field string            // of the error; empty: none is wanted, or no field error
		is    error
	}{
		{"new", inventory.Machine{Name: "new"}, "", nil},
		{"new with an address", inventory.Machine{Name: "new", Address: addr("2001:db8:1::11")}, "", nil},
		{"new in a cluster", inventory.Machine{Name: "new", Cluster: "prod"}, "", nil},
		{"of a stranger", inventory.Machine{Name: "new", MACs: []inventory.MAC{"52-54-00-00-00-05"}}, "", nil},
		{"changed", inventory.Machine{Name: "old", MACs: []inventory.MAC{mac(1), mac(9)}}, "", nil},
		{"moved", inventory.Machine{Name: "old", MACs: []inventory.MAC{mac(1)}, Address: addr("2001:db8:1::11")}, "", nil},
		{"not valid", inventory.Machine{Name: "N"}, "name", nil},
		{"no MAC address", inventory.Machine{Name: "new", MACs: []inventory.MAC{"x"}}, "macs[0]", nil},
		{"taken MAC", inventory.Machine{Name: "new", MACs: []inventory.MAC{mac(9), mac(1)}}, "macs[1]", inventory.ErrExists},
		{"taken address", inventory.Machine{Name: "new", Address: addr("2001:db8:1::10")}, "address", inventory.ErrExists},
		{"outside", inventory.Machine{Name: "new", Address: addr("2001:db8:9::1")}, "address", nil},
		{"reserved", inventory.Machine{Name: "new", Address: addr("2001:db8:1::2")}, "address", nil},
		{"of strangers", inventory.Machine{Name: "new", Address: addr("2001:db8:1::f01")}, "address", nil},
		{"moved outside", inventory.Machine{Name: "old", MACs: []inventory.MAC{mac(1)}, Address: addr("2001:db8:9::1")}, "address", nil},
		{"no such subnet", inventory.Machine{Name: "new", Subnet: "rack9"}, "subnet", nil},
		{"no such cluster", inventory.Machine{Name: "new", Cluster: "nowhere"}, "cluster", inventory.ErrNotFound},
		{"registered already", inventory.Machine{Name: "other", MACs: []inventory.MAC{mac(2)}, Rev: 0}, "name", inventory.ErrExists},
		{"changed meanwhile", inventory.Machine{Name: "old", MACs: []inventory.MAC{mac(1)}, Rev: 1 << 40}, "", inventory.ErrConflict},
		{"gone", inventory.Machine{Name: "new", Rev: 1 << 40}, "", inventory.ErrNotFound},
	} {
		t.Run(tt.name, func(t *testing.T) {
			k, store := newKeeper(t)
			mustCluster(t, k, "prod")
			old := mustPut(t, k, &inventory.Machine{Name: "old", MACs: []inventory.MAC{mac(1)}, Address: addr("2001:db8:1::10"), Role: inventory.Worker})
			mustPut(t, k, &inventory.Machine{Name: "other", MACs: []inventory.MAC{mac(2)}, Role: inventory.Worker})
			if _, err := k.Record(t.Context(), inventory.Event{Kind: inventory.Solicited, MAC: mac(5), Time: time.Now(), Subnet: "rack1"}); err != nil {
				t.Fatal(err)
			}
			m := &tt.m
			m.Role = inventory.Worker
			if len(m.MACs) == 0 {
				m.MACs = []inventory.MAC{mac(9)}
			}
			if m.Name == "old" && m.Rev == 0 {
				m.Rev = old.Rev
			}
			commits, before := 0, fmt.Sprintf("%+v", m)
			store.Each(func() storetest.Fault { commits++; return storetest.None })
			err := k.CheckMachine(t.Context(), m)
			if commits != 0 || fmt.Sprintf("%+v", m) != before {
				t.Errorf("%d commits; %s became %+v", commits, before, m)
			}
			if list, err := k.Strangers(t.Context()); err != nil || len(list) != 1 {
				t.Errorf("%d strangers are left, %v", len(list), err)
			}
			var fe *inventory.FieldError
			switch {
			case tt.field == "" && tt.is == nil:
				if err != nil {
					t.Errorf("refused: %v", err)
				}
			case tt.field != "" && (!errors.As(err, &fe) || fe.Field != tt.field), tt.is != nil && !errors.Is(err, tt.is):
				t.Errorf("%v, want an error of %q (%v)", err, tt.field, tt.is)
			}
			if _, put := k.PutMachine(t.Context(), m, m.Rev); fmt.Sprint(put) != fmt.Sprint(err) {
				t.Errorf("the check said %v, the write %v", err, put)
			}
		})
	}
}

func TestCheckMachineInAFullRange(t *testing.T) {
	k, _ := newKeeper(t)
	for i := range 256 {
		mustPut(t, k, machine(i))
	}
	m := machine(999)
	var fe *inventory.FieldError
	if err := k.CheckMachine(t.Context(), m); !errors.Is(err, inventory.ErrFull) || !errors.As(err, &fe) || fe.Field != "address" {
		t.Errorf("no address is left: %v", err)
	}
	m.Address = netip.MustParseAddr("2001:db8:1::10")
	if err := k.CheckMachine(t.Context(), m); err != nil {
		t.Errorf("with an address of its own: %v", err)
	}
}

// TestRegisteredStrangerMakesRoom: of 16 strangers, one that is registered
// leaves a place for another; one that is only checked does not.
func TestRegisteredStrangerMakesRoom(t *testing.T) {
	k, _ := newKeeper(t)
	see := func(i int) {
		t.Helper()
		e := inventory.Event{Kind: inventory.Solicited, MAC: mac(i), Time: time.Unix(int64(1000*i), 0), Subnet: "rack1"}
		if _, err := k.Record(t.Context(), e); err != nil {
			t.Fatal(err)
		}
	}
	want := func(oldest int) {
		t.Helper()
		list, err := k.Strangers(t.Context())
		if err != nil || len(list) != 16 || list[15].MAC != mac(oldest) {
			t.Errorf("%d strangers, %v, want 16 since %s", len(list), err, mac(oldest))
		}
	}
	for i := range 16 {
		see(1 + i)
	}
	if err := k.CheckMachine(t.Context(), machine(16)); err != nil {
		t.Fatal(err)
	}
	see(17)
	want(2)
	mustPut(t, k, machine(17))
	see(18)
	want(2)
}
