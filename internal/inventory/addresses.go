package inventory

import (
	"context"
	"fmt"
	"math/big"
	"net/netip"
	"slices"
	"time"
)

// AddressKind is why an address is not free.
type AddressKind string

// Kinds of addresses that are not free.
const (
	AddressReserved AddressKind = "reserved" // the stable one of a registered machine
	AddressSecond   AddressKind = "second"   // leased to a registered machine, beside its own
	AddressLeased   AddressKind = "leased"   // leased to a stranger
	AddressDeclined AddressKind = "declined" // a client found somebody else on it
	AddressLeft     AddressKind = "left"     // of a machine that was removed or got another, and may still use it
)

// UsedAddress is an address that nobody else is given.
type UsedAddress struct {
	Address netip.Addr
	Kind    AddressKind
	Machine string    // empty: a stranger's
	MAC     MAC       // of a lease, empty if nothing names the NIC
	DUID    string    // of a lease, in hexadecimal
	Until   time.Time // when it is free; zero: as long as the machine is registered
}

// UsedAddresses lists every address that is reserved, leased or kept out of use, in
// order.
func (k *Keeper) UsedAddresses(ctx context.Context) ([]UsedAddress, error) {
	used := k.leases.used(time.Now())
	for rec, err := range recordsAfter(ctx, k.store, BucketAddresses, "") {
		if err != nil {
			return nil, err
		}
		a, err := netip.ParseAddr(rec.Key.ID)
		if err != nil {
			return nil, fmt.Errorf("address of machine %s: %w", rec.Value, err)
		}
		used = append(used, UsedAddress{Address: a, Kind: AddressReserved, Machine: string(rec.Value)})
	}
	// An address that was reserved while its lease was being looked at is the machine's.
	slices.SortStableFunc(used, func(a, b UsedAddress) int { return a.Address.Compare(b.Address) })
	out := used[:0]
	for i, u := range used {
		if i+1 == len(used) || used[i+1].Address != u.Address {
			out = append(out, u)
		}
	}
	return out, nil
}

// used lists the leases that are live, in no order.
func (t *leases) used(now time.Time) []UsedAddress {
	t.mu.Lock()
	live := make([]*Lease, 0, len(t.by)) // entries never change: they are read without the lock
	for _, l := range t.by {
		if l.live(now) {
			live = append(live, l)
		}
	}
	t.mu.Unlock()
	out := make([]UsedAddress, len(live))
	for i, l := range live {
		u := UsedAddress{Address: l.Address, Kind: AddressLeased, Machine: l.Machine, MAC: l.MAC, DUID: l.DUID, Until: l.Expires}
		switch {
		case l.Declined:
			u.Kind = AddressDeclined
		case l.Left:
			u.Kind = AddressLeft
		case l.Machine != "":
			u.Kind = AddressSecond
		}
		out[i] = u
	}
	return out
}

// Slice is a part of a range of addresses, and how many of each kind are in it.
type Slice struct {
	Index  int // from 0
	Range  Range
	Counts map[AddressKind]int
}

// Slices divides r into n slices that are equal but for one address, n at most most
// and at most the addresses of r, and returns those that used has anything in, in
// order.
func (r Range) Slices(used []UsedAddress, most int) (n int, out []Slice) {
	size := r.Count()
	if size.Sign() == 0 || most < 1 {
		return 0, nil
	}
	n = most
	if size.IsInt64() {
		n = int(min(size.Int64(), int64(most)))
	}
	parts := big.NewInt(int64(n))
	begin := func(i int) netip.Addr { // of slice i: i*size/n addresses on
		at := new(big.Int).Mul(size, big.NewInt(int64(i)))
		return r.plus(at.Quo(at, parts))
	}
	byIndex := map[int]*Slice{}
	for _, u := range used {
		if !r.Contains(u.Address) {
			continue
		}
		at := r.offset(u.Address) // the last i whose begin is not after it: ((at+1)*n - 1) / size
		at.Add(at, big.NewInt(1)).Mul(at, parts).Sub(at, big.NewInt(1)).Quo(at, size)
		i := int(at.Int64())
		s := byIndex[i]
		if s == nil {
			s = &Slice{Index: i, Range: Range{begin(i), r.Last}, Counts: map[AddressKind]int{}}
			if i+1 < n {
				s.Range.Last = begin(i + 1).Prev()
			}
			byIndex[i] = s
		}
		s.Counts[u.Kind]++
	}
	for _, s := range byIndex {
		out = append(out, *s)
	}
	slices.SortFunc(out, func(a, b Slice) int { return a.Index - b.Index })
	return n, out
}

// Free is how many addresses of a range of s are neither used nor kept from being
// handed out.
func (s *Subnet) Free(r Range, used []UsedAddress) *big.Int {
	free := r.Count()
	if free.Sign() == 0 {
		return free
	}
	kept := append([]Range{{s.Prefix.Addr(), s.Prefix.Addr()}}, s.Reserved...)
	if s.Gateway.IsValid() {
		kept = append(kept, Range{s.Gateway, s.Gateway})
	}
	slices.SortFunc(kept, func(a, b Range) int { return a.First.Compare(b.First) })
	next := r.First // no address before it was taken off twice
	for _, k := range kept {
		if k.First.Less(next) {
			k.First = next
		}
		if r.Last.Less(k.Last) {
			k.Last = r.Last
		}
		if k.Last.Less(k.First) {
			continue
		}
		free.Sub(free, k.Count())
		if next = k.Last.Next(); !next.IsValid() {
			break
		}
	}
	for _, u := range used {
		if r.Contains(u.Address) && !s.Reserves(u.Address) {
			free.Sub(free, big.NewInt(1))
		}
	}
	return free
}

// Count is the number of addresses, which may be more than any integer holds.
func (r Range) Count() *big.Int {
	if r.IsZero() {
		return new(big.Int)
	}
	n := r.offset(r.Last)
	return n.Add(n, big.NewInt(1))
}

// offset is how far a lies after the first address of r.
func (r Range) offset(a netip.Addr) *big.Int {
	first, at := r.First.As16(), a.As16()
	n := new(big.Int).SetBytes(at[:])
	return n.Sub(n, new(big.Int).SetBytes(first[:]))
}

// plus is the address n after the first of r.
func (r Range) plus(n *big.Int) netip.Addr {
	b := r.First.As16()
	sum := new(big.Int).SetBytes(b[:])
	sum.Add(sum, n).FillBytes(b[:])
	return netip.AddrFrom16(b)
}
