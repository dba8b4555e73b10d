package inventory

import (
	"maps"
	"math/big"
	"math/rand/v2"
	"net/netip"
	"testing"
)

func rangeOf(t testing.TB, text string) Range {
	t.Helper()
	r, err := ParseRange(text)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// TestSlices holds the slices of ranges of all sizes against what they say of
// themselves: every address is in the slice that has it, and slices are equal but
// for one address.
func TestSlices(t *testing.T) {
	for _, tc := range []struct {
		name, pool string
		most, n    int
	}{
		{"one address", "2001:db8::1", 256, 1},
		{"fewer than slices", "2001:db8::1-2001:db8::5", 256, 5},
		{"as many", "2001:db8::100-2001:db8::1ff", 256, 256},
		{"one more", "2001:db8::100-2001:db8::200", 256, 256},
		{"a thousand, in three", "2001:db8::-2001:db8::3e7", 3, 3},
		{"over a carry", "2001:db8::ffff:ffff:ffff:fff0-2001:db8:0:1::f", 4, 4},
		{"a /64", "2001:db8::-2001:db8::ffff:ffff:ffff:ffff", 256, 256},
		{"everything", "::-ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff", 256, 256},
	} {
		t.Run(tc.name, func(t *testing.T) {
			r := rangeOf(t, tc.pool)
			size := r.Count()
			var used []UsedAddress
			for range 500 {
				at := new(big.Int).SetUint64(rand.Uint64())
				at.Lsh(at, 64).Add(at, new(big.Int).SetUint64(rand.Uint64())).Mod(at, size)
				used = append(used, UsedAddress{Address: r.plus(at), Kind: AddressLeased})
			}
			used = append(used, UsedAddress{Address: r.First, Kind: AddressReserved}, UsedAddress{Address: r.Last, Kind: AddressDeclined})
			if before := r.First.Prev(); before.IsValid() {
				used = append(used, UsedAddress{Address: before, Kind: AddressLeft})
			}
			if after := r.Last.Next(); after.IsValid() {
				used = append(used, UsedAddress{Address: after, Kind: AddressLeft})
			}
			n, got := r.Slices(used, tc.most)
			if n != tc.n || got[0].Index != 0 || got[0].Range.First != r.First || got[len(got)-1].Index != n-1 || got[len(got)-1].Range.Last != r.Last {
				t.Fatalf("%d slices, first %+v, last %+v", n, got[0], got[len(got)-1])
			}
			least := new(big.Int).Quo(size, big.NewInt(int64(n)))
			most := new(big.Int).Add(least, big.NewInt(1))
			for i, s := range got {
				if c := s.Range.Count(); c.Cmp(least) < 0 || c.Cmp(most) > 0 {
					t.Errorf("slice %d has %s addresses, of %s in %d", s.Index, c, size, n)
				}
				if i > 0 && got[i-1].Index+1 == s.Index && got[i-1].Range.Last.Next() != s.Range.First {
					t.Errorf("between %v and %v is something else", got[i-1].Range, s.Range)
				}
				want := map[AddressKind]int{}
				for _, u := range used {
					if s.Range.Contains(u.Address) {
						want[u.Kind]++
					}
				}
				if !maps.Equal(s.Counts, want) {
					t.Errorf("slice %v has %v, want %v", s.Range, s.Counts, want)
				}
			}
		})
	}
	if n, got := (Range{}).Slices([]UsedAddress{{Address: netip.IPv6Loopback()}}, 256); n != 0 || got != nil {
		t.Errorf("no range has %d slices %v", n, got)
	}
}

func TestFree(t *testing.T) {
	s := Subnet{
		Prefix: netip.MustParsePrefix("2001:db8::/64"), Gateway: netip.MustParseAddr("2001:db8::1"),
		Reserved: []Range{rangeOf(t, "2001:db8::10-2001:db8::1f"), rangeOf(t, "2001:db8::18-2001:db8::27"), rangeOf(t, "2001:db8::1a")},
	}
	for _, tc := range []struct {
		name, of, want string
		used           []string
	}{
		{"none", "", "0", nil},
		{"all of it", "2001:db8::1:0-2001:db8::1:ff", "256", nil},
		{"two are used", "2001:db8::1:0-2001:db8::1:ff", "254", []string{"2001:db8::1:0", "2001:db8::1:ff", "2001:db8::2:0"}},
		{"the router's, the anycast address, and three ranges that overlap", "2001:db8::-2001:db8::ff", "230", nil}, // 256 - 2 - 24
		{"used and reserved", "2001:db8::-2001:db8::ff", "229", []string{"2001:db8::1", "2001:db8::19", "2001:db8::30"}},
		{"the end of a reserved range", "2001:db8::20-2001:db8::2f", "8", nil},
		{"nothing is left", "2001:db8::11-2001:db8::12", "0", nil},
		{"a /64", "2001:db8::-2001:db8::ffff:ffff:ffff:ffff", "18446744073709551590", nil},
	} {
		t.Run(tc.name, func(t *testing.T) {
			var r Range
			if tc.of != "" {
				r = rangeOf(t, tc.of)
			}
			var used []UsedAddress
			for _, a := range tc.used {
				used = append(used, UsedAddress{Address: netip.MustParseAddr(a)})
			}
			if got := s.Free(r, used).String(); got != tc.want {
				t.Errorf("%s are free, want %s", got, tc.want)
			}
		})
	}
}
