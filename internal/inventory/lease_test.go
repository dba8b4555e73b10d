package inventory_test

import (
	"context"
	"errors"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/provisiond/provisiond/internal/inventory"
)

func stranger(k *inventory.Keeper, i int) inventory.Binding {
	return inventory.Binding{MAC: mac(1000 + i), DUID: []byte{0, 2, byte(i)}, IAID: 1, Client: inventory.OperatingSystem, Subnet: &k.Subnets()[0], Commit: true}
}

func mustBind(t *testing.T, k *inventory.Keeper, b inventory.Binding) inventory.Lease {
	t.Helper()
	l, err := k.Bind(t.Context(), b)
	if err != nil {
		t.Fatalf("%+v: %v", b, err)
	}
	return l
}

// TestAPromiseIsOnDisk: what a client is told never ends later than what is
// stored, which is written anew only when some of it has passed.
func TestAPromiseIsOnDisk(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k, _ := newKeeper(t)
		b := stranger(k, 1)
		first := mustBind(t, k, b)
		stored := func() inventory.Lease {
			t.Helper()
			list, err := k.Leases(t.Context())
			if err != nil || len(list) != 1 {
				t.Fatalf("%v, %v", list, err)
			}
			return list[0]
		}
		for range 200 {
			time.Sleep(90 * time.Second)
			before := stored()
			l := mustBind(t, k, b)
			if l.Address != first.Address || l.Expires.After(stored().Expires) {
				t.Fatalf("promised %s until %s, stored is %+v", l.Address, l.Expires, stored())
			}
			if left := time.Until(l.Expires); left < b.Subnet.Valid/16*15 {
				t.Fatalf("only %v are promised", left)
			}
			if rewritten := stored().Rev != before.Rev; rewritten && time.Until(before.Expires) > b.Subnet.Valid/16*15 {
				t.Fatal("written again although it was promised a moment ago")
			}
		}
		time.Sleep(time.Until(stored().Expires))
		if err := k.Sweep(t.Context()); err != nil {
			t.Fatal(err)
		}
		if list, err := k.Leases(t.Context()); err != nil || len(list) != 0 {
			t.Errorf("at its end it is still there: %v, %v", list, err)
		}
	})
}

// TestWhoDeclinesAllGetsNoMore: one NIC cannot put a whole pool into quarantine.
func TestWhoDeclinesAllGetsNoMore(t *testing.T) {
	k, _ := newKeeper(t)
	b := stranger(k, 1)
	declined := map[netip.Addr]bool{}
	for i := range uint32(100) {
		b.IAID = i
		l, err := k.Bind(t.Context(), b)
		if errors.Is(err, inventory.ErrRefused) {
			break
		} else if err != nil {
			t.Fatal(err)
		}
		if declined[l.Address] {
			t.Fatalf("%s was declined and is given again", l.Address)
		}
		declined[l.Address] = true
		if err := k.Decline(t.Context(), b, []netip.Addr{l.Address}); err != nil {
			t.Fatal(err)
		}
	}
	if n := len(declined); n == 0 || n > 8 {
		t.Errorf("it took %d addresses out of use", n)
	}
}

// TestNotTwiceInOneMessage: IAs of one message get addresses of their own, though
// an Advertise writes nothing.
func TestNotTwiceInOneMessage(t *testing.T) {
	k, _ := newKeeper(t)
	for _, commit := range []bool{false, true} {
		b := stranger(k, 1)
		b.Commit = commit
		for i := range uint32(8) {
			b.IAID = i
			l, err := k.Bind(t.Context(), b)
			if errors.Is(err, inventory.ErrRefused) && commit && i >= 4 {
				continue // no NIC gets more than four
			} else if err != nil {
				t.Fatal(err)
			}
			for _, a := range b.Not {
				if a == l.Address {
					t.Fatalf("commit %v: IA %d got %s, which another has", commit, i, a)
				}
			}
			b.Not = append(b.Not, l.Address)
		}
	}
}

// TestRegisteredWhileItRuns: a stranger that is registered moves from its lease
// to the machine's own address.
func TestRegisteredWhileItRuns(t *testing.T) {
	k, _ := newKeeper(t)
	b := stranger(k, 1)
	lease := mustBind(t, k, b)
	m := mustPut(t, k, &inventory.Machine{Name: "m", MACs: []inventory.MAC{b.MAC}, Role: inventory.Worker})
	b.Machine, b.Stable = m.Name, m.Address
	if got := mustBind(t, k, b); got.Address != m.Address {
		t.Errorf("it keeps %s (had %s), its own is %s", got.Address, lease.Address, m.Address)
	}
}

// TestAddressOfARemovedMachine: nobody gets it unasked while it may be in use;
// its successor may be given it.
func TestAddressOfARemovedMachine(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k, _ := newKeeper(t)
		old := mustPut(t, k, machine(1))
		if err := k.DeleteMachine(t.Context(), old.Name, 0); err != nil {
			t.Fatal(err)
		}
		again := machine(1) // the same name is placed at the same spot
		again.MACs = []inventory.MAC{mac(2)}
		if other := mustPut(t, k, again); other.Address == old.Address {
			t.Errorf("another machine got %s at once", old.Address)
		}
		if back := mustPut(t, k, &inventory.Machine{Name: "back", MACs: []inventory.MAC{mac(1)}, Role: inventory.Worker, Address: old.Address}); back.Address != old.Address {
			t.Errorf("it came back and got %s", back.Address)
		}
		if err := k.DeleteMachine(t.Context(), "back", 0); err != nil {
			t.Fatal(err)
		}
		mustPut(t, k, &inventory.Machine{Name: "successor", MACs: []inventory.MAC{mac(3)}, Role: inventory.Worker, Address: old.Address})
	})
}

// TestLeasedAddressIsNotRegistered: the pool was moved, and a stranger still
// holds what is now outside of it.
func TestLeasedAddressIsNotRegistered(t *testing.T) {
	k, store := newKeeper(t)
	lease := mustBind(t, k, stranger(k, 1))
	moved := subnets()
	moved[0].Pool = inventory.Range{First: addr("2001:db8:1::e00"), Last: addr("2001:db8:1::e3f")}
	k, err := inventory.NewKeeper(t.Context(), store, inventory.KeeperConfig{Subnets: moved})
	if err != nil {
		t.Fatal(err)
	}
	_, err = k.PutMachine(t.Context(), &inventory.Machine{Name: "m", MACs: []inventory.MAC{mac(1)}, Role: inventory.Worker, Address: lease.Address}, 0)
	var fe *inventory.FieldError
	if !errors.As(err, &fe) || fe.Field != "address" || !strings.Contains(err.Error(), "leased to") {
		t.Errorf("registering a leased address: %v", err)
	}
}

// lateDelete is a store whose deletions come back late: meanwhile runs after a
// deletion has happened, before anybody is told.
type lateDelete struct {
	inventory.Store
	meanwhile func()
}

func (s *lateDelete) Commit(ctx context.Context, c inventory.Commit) (uint64, uint64, error) {
	rev, id, err := s.Store.Commit(ctx, c)
	if f := s.meanwhile; f != nil && len(c.Writes) == 1 && c.Writes[0].Value == nil {
		s.meanwhile = nil
		f()
	}
	return rev, id, err
}

// TestSweepForgetsNoNewLease: an ended lease is swept away while somebody else
// gets its address, who keeps it.
func TestSweepForgetsNoNewLease(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		_, faulty := newKeeper(t)
		store := &lateDelete{Store: faulty}
		small := subnets()
		small[0].Pool.Last = small[0].Pool.First.Next()
		k, err := inventory.NewKeeper(t.Context(), store, inventory.KeeperConfig{Subnets: small})
		if err != nil {
			t.Fatal(err)
		}
		ended := mustBind(t, k, stranger(k, 1))
		time.Sleep(time.Hour)
		mustBind(t, k, stranger(k, 2)) // has the other one
		time.Sleep(small[0].Valid - 50*time.Minute)
		var next inventory.Lease
		third := 3
		for inventory.SameTurn(k, stranger(k, 1), stranger(k, third)) { // it would wait for the sweep
			third++
		}
		store.meanwhile = func() { next = mustBind(t, k, stranger(k, third)) }
		if err := k.Sweep(t.Context()); err != nil {
			t.Fatal(err)
		}
		if next.Address != ended.Address {
			t.Fatalf("the next one got %v", next)
		}
		if l, err := k.Bind(t.Context(), stranger(k, third+1)); !errors.Is(err, inventory.ErrFull) {
			t.Errorf("another one got %v, %v", l, err)
		}
	})
}

// TestPools: a pool is as full as what is promised of it.
func TestPools(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k, _ := newKeeper(t)
		used := func() uint64 {
			t.Helper()
			p := k.Pools()[0]
			if s := k.Subnets()[0]; p.Subnet != s.Name || p.Size != s.Pool.Size() {
				t.Errorf("%+v", p)
			}
			return p.Used
		}
		for i := range 3 {
			mustBind(t, k, stranger(k, i))
		}
		if n := used(); n != 3 {
			t.Errorf("%d are used", n)
		}
		time.Sleep(2 * k.Subnets()[0].Valid) // a lease is stored for somewhat longer than it is promised
		if n := used(); n != 0 {
			t.Errorf("%d are used after their end, swept or not", n)
		}
	})
}

// TestUsedAddresses: an address is in the list once, for what it is, until it is
// free.
func TestUsedAddresses(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k, _ := newKeeper(t)
		valid := k.Subnets()[0].Valid
		m := mustPut(t, k, machine(1))
		gone := mustPut(t, k, machine(2))
		if err := k.DeleteMachine(t.Context(), gone.Name, 0); err != nil {
			t.Fatal(err)
		}
		firmware := inventory.Binding{
			MAC: m.BootMAC(), DUID: []byte{1}, Client: inventory.FirmwareStack, Subnet: &k.Subnets()[0],
			Machine: m.Name, Stable: m.Address, Commit: true,
		}
		nameless := inventory.Binding{DUID: []byte{0xab, 0xcd}, Client: inventory.OperatingSystem, Subnet: &k.Subnets()[0], Commit: true}
		bad := mustBind(t, k, stranger(k, 2))
		if err := k.Decline(t.Context(), stranger(k, 2), []netip.Addr{bad.Address}); err != nil {
			t.Fatal(err)
		}
		now := time.Now().UTC()
		lease := now.Add(valid + time.Second)
		want := []inventory.UsedAddress{
			{Address: m.Address, Kind: inventory.AddressReserved, Machine: m.Name},
			{Address: gone.Address, Kind: inventory.AddressLeft, Machine: gone.Name, MAC: gone.BootMAC(), Until: now.Add(valid)},
			{Address: mustBind(t, k, firmware).Address, Kind: inventory.AddressSecond, Machine: m.Name, MAC: m.BootMAC(), DUID: "01", Until: lease},
			{Address: mustBind(t, k, stranger(k, 1)).Address, Kind: inventory.AddressLeased, MAC: mac(1001), DUID: "000201", Until: lease},
			{Address: mustBind(t, k, nameless).Address, Kind: inventory.AddressLeased, DUID: "abcd", Until: lease},
			{Address: bad.Address, Kind: inventory.AddressDeclined, MAC: mac(1002), DUID: "000202", Until: now.Add(time.Hour)},
		}
		slices.SortFunc(want, func(a, b inventory.UsedAddress) int { return a.Address.Compare(b.Address) })
		got, err := k.UsedAddresses(t.Context())
		if err != nil || !slices.Equal(got, want) {
			t.Errorf("%v\n%+v, want\n%+v", err, got, want)
		}
		time.Sleep(max(valid, time.Hour) + time.Minute) // swept or not
		got, err = k.UsedAddresses(t.Context())
		if err != nil || len(got) != 1 || got[0].Machine != m.Name {
			t.Errorf("later: %v %+v", err, got)
		}
	})
}
