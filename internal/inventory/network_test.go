package inventory_test

import (
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"testing"

	"github.com/provisiond/provisiond/internal/inventory"
)

// TestSetSubnets: what does not fit is named and changes nothing; what fits holds
// at once, and loses no lease.
func TestSetSubnets(t *testing.T) {
	k, store := newKeeper(t)
	for i := range 8 {
		m := machine(i)
		m.Address = addr(fmt.Sprintf("2001:db8:1::1%02x", i))
		mustPut(t, k, m)
	}
	lease := mustBind(t, k, stranger(k, 1))
	change := func(f func(*inventory.Subnet)) []inventory.Subnet {
		s := subnets()
		f(&s[0])
		return s
	}
	for name, tc := range map[string]struct {
		subnets []inventory.Subnet
		want    []string
	}{
		"gone": {change(func(s *inventory.Subnet) {
			*s = inventory.Subnet{Name: "other", Prefix: netip.MustParsePrefix("2001:db8:9::/64"), Preferred: s.Preferred, Valid: s.Valid}
		}), []string{"2001:db8:1::100 of machine m-0 lies in no subnet", "3 machines more"}},
		"pool over a machine": {change(func(s *inventory.Subnet) {
			s.Machines = inventory.Range{}
			s.Pool = inventory.Range{First: addr("2001:db8:1::107"), Last: addr("2001:db8:1::1ff")}
		}), []string{"2001:db8:1::107 of machine m-7 lies in the pool of subnet rack1"}},
		"reserved": {change(func(s *inventory.Subnet) {
			s.Reserved = append(s.Reserved, inventory.Range{First: addr("2001:db8:1::103"), Last: addr("2001:db8:1::103")})
		}), []string{"machine m-3 is reserved"}},
		"small pool": {change(func(s *inventory.Subnet) { s.Pool.Last = addr("2001:db8:1::f03") }), []string{"subnets[0].pool", "too small for the 8 machines"}},
		"invalid":    {change(func(s *inventory.Subnet) { s.Valid = 0 }), []string{"subnets[0].lease"}},
	} {
		err := k.SetSubnets(t.Context(), tc.subnets)
		var fe *inventory.FieldError
		if !errors.As(err, &fe) {
			t.Errorf("%s: %v", name, err)
			continue
		}
		for _, want := range tc.want {
			if !strings.Contains(err.Error(), want) {
				t.Errorf("%s: %q is not in %v", name, want, err)
			}
		}
		if s := k.SubnetOf(addr("2001:db8:1::100")); s == nil || s.Name != "rack1" || s.Pool != subnets()[0].Pool {
			t.Fatalf("%s: the subnet is %+v now", name, s)
		}
		// The same at start.
		if started, err := inventory.NewKeeper(t.Context(), store, inventory.KeeperConfig{Subnets: tc.subnets}); err != nil {
			t.Error(err)
		} else if name != "invalid" && started.CheckSubnets(t.Context()) == nil {
			t.Errorf("%s: accepted at start", name)
		}
	}
	moved := change(func(s *inventory.Subnet) {
		s.Pool = inventory.Range{First: addr("2001:db8:1::e00"), Last: addr("2001:db8:1::e3f")}
	})
	moved = append(moved, inventory.Subnet{Name: "rack2", Prefix: netip.MustParsePrefix("2001:db8:2::/64"), Preferred: moved[0].Preferred, Valid: moved[0].Valid})
	if err := k.SetSubnets(t.Context(), moved); err != nil {
		t.Fatal(err)
	}
	if again := mustBind(t, k, stranger(k, 1)); again.Address != lease.Address {
		t.Errorf("it held %s and was moved to %s", lease.Address, again.Address)
	}
	if other := mustBind(t, k, stranger(k, 2)); !moved[0].Pool.Contains(other.Address) {
		t.Errorf("a new one got %s", other.Address)
	}
	m := machine(9)
	m.Address = addr("2001:db8:2::9")
	mustPut(t, k, m)
}
