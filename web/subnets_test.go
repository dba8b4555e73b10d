package web

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/chromedp/chromedp"
	"github.com/chromedp/chromedp/kb"

	"github.com/provisiond/provisiond/api"
	"github.com/provisiond/provisiond/internal/browsertest"
	"github.com/provisiond/provisiond/internal/inventory"
)

// leased has strangers lease addresses, one of which is declined, beside a second subnet.
func (s *site) leased(n int) {
	s.t.Helper()
	subnets := slices.Clone(s.keeper.Subnets())
	subnets[0].Strangers, subnets[0].Gateway = true, netip.MustParseAddr("fe80::1")
	subnets[0].Pool = inventory.Range{First: netip.MustParseAddr("2001:db8::1:0:0:0"), Last: netip.MustParseAddr("2001:db8::ffff:ffff:ffff:ffff")}
	subnets = append(subnets, inventory.Subnet{Name: "far", Prefix: netip.MustParsePrefix("2001:db8:1::/64"), Relays: []netip.Prefix{netip.MustParsePrefix("2001:db8:9::1/128")}, Preferred: subnets[0].Preferred, Valid: subnets[0].Valid})
	if err := s.keeper.SetSubnets(s.t.Context(), subnets); err != nil {
		s.t.Fatal(err)
	}
	for i := range n {
		b := inventory.Binding{MAC: inventory.MAC(fmt.Sprintf("52:54:00:00:01:%02x", i)), Client: inventory.OperatingSystem, Subnet: &s.keeper.Subnets()[0], Commit: true, DUID: []byte{0, 1, byte(i)}}
		lease, err := s.keeper.Bind(s.t.Context(), b)
		if err == nil && i == 0 {
			err = s.keeper.Decline(s.t.Context(), b, []netip.Addr{lease.Address})
		}
		if err != nil {
			s.t.Fatal(err)
		}
	}
}

func TestSubnets(t *testing.T) {
	s := newSite(t, nil)
	s.leased(120)
	b := s.in(s.token("reads", inventory.AccessRead))
	got := b.get("/subnets")
	if got.code != 200 || !got.has("2001:db8::/64", "fe80::1", `href="/subnets/far"`, "2001:db8:9::1/128", "119 leased, 1 declined", "3 reserved", "4093 of 4096 addresses free", "about 1.8·10^19 addresses free", `<path class="declined"`, "No addresses are allocated") {
		t.Errorf("%d %s", got.code, got.text)
	}
	seen := map[string]bool{}
	pages := 0
	for path := "/subnets/rack"; path != ""; pages++ {
		got = b.get(path)
		if got.code != 200 || !got.has("fe80::1") {
			t.Fatalf("%s: %d %s", path, got.code, got.text)
		}
		for _, row := range strings.Split(got.text, `<th scope="row"><code>`)[1:] {
			address, _, _ := strings.Cut(row, "<")
			if seen[address] {
				t.Fatalf("%s is listed twice", address)
			}
			seen[address] = true
		}
		path = ""
		if _, next, ok := strings.Cut(got.text, `href="/subnets/rack?after=`); ok {
			next, _, _ = strings.Cut(next, `"`)
			path = "/subnets/rack?after=" + next
		}
	}
	if len(seen) != 123 || pages != 2 {
		t.Errorf("%d addresses on %d pages", len(seen), pages)
	}
	if got = b.get("/subnets/near"); got.code != 404 {
		t.Errorf("%d %s", got.code, got.text)
	}
	if got = s.in(s.token("limited", inventory.AccessRead, "web")).get("/subnets"); got.code != 403 {
		t.Errorf("%d %s", got.code, got.text)
	}
}

// TestStrip: what there is of a slice is seen, and never more than the slice.
func TestStrip(t *testing.T) {
	s := stripOf(api.AddressRange{For: "pool", Size: "18446744073709551616", Free: "18446744073709551500", Slices: 256, Picture: []api.AddressPart{
		{Slice: 0, Size: "72057594037927936", Used: api.AddressCounts{Reserved: 1, Left: 2}},
		{Slice: 255, Size: "4", Used: api.AddressCounts{Reserved: 2, Second: 1, Leased: 1}},
	}})
	want := []shape{{"reserved", "M0 34h1v6h-1zM255 20h1v20h-1z"}, {"second", "M255 10h1v10h-1z"}, {"leased", "M255 0h1v10h-1z"}, {"left", "M0 28h1v6h-1z"}}
	if !slices.Equal(s.Paths, want) {
		t.Errorf("%v", s.Paths)
	}
	if s.Said != "about 1.8·10^19 of about 1.8·10^19 addresses free; 3 reserved, 1 second, 1 leased, 2 left" {
		t.Errorf("%s", s.Said)
	}
	full := stripOf(api.AddressRange{Size: "5", Free: "0", Slices: 1, Picture: []api.AddressPart{{Size: "5", Used: api.AddressCounts{Reserved: 1, Second: 1, Leased: 1, Declined: 1, Left: 1}}}})
	if len(full.Paths) != 5 || full.Paths[4].D != "M0 0h1v8h-1z" {
		t.Errorf("%v", full.Paths)
	}
}

func TestChromiumSubnets(t *testing.T) {
	s := newSite(t, nil)
	s.leased(60)
	c := browsertest.New(t, s.addr, s.ca.Pool())
	logIn(c, s.token("ada", inventory.AccessRead))
	c.TabTo(`nav a[href="/subnets"]`)
	c.Press(kb.Enter)
	c.Sees("svg.strip path.leased")
	c.Shoot("subnets")
	c.TabTo(`main a[href="/subnets/rack"]`)
	c.Press(kb.Enter)
	c.Sees("#addresses")
	c.Do(chromedp.WaitVisible(chromedp.CSS("tbody th")))
	c.Shoot("subnet")
}
