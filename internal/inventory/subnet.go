package inventory

import (
	"cmp"
	"encoding/binary"
	"fmt"
	"hash/fnv"
	"net/netip"
	"slices"
	"strings"
	"time"
)

// Subnet is one layer-2 segment machines boot on.
type Subnet struct {
	Name   string       // DNS label
	Prefix netip.Prefix // its on-link prefix, normally a /64
	// Interface is the local interface the segment is attached to; empty for a
	// segment that is reached through a relay whose link-address is in Prefix.
	Interface string
	// Relays are the addresses that may relay for the segment, the last one before us where
	// there are several in a row. None: any may, and who can send us a packet can say
	// that it is a relay and heard any machine.
	Relays []netip.Prefix
	// Machines is the range registered machines get their address from when
	// none is given. An address may be given anywhere in Prefix outside Pool.
	Machines Range
	// Pool is the range for strangers, and for the second address that firmware
	// asks for beside the machine's own.
	Pool Range
	// Strangers says whether an unregistered machine gets an address at all; Adopt, whether
	// it is to wait in its boot loader, with a code on its console, until it is registered.
	Strangers, Adopt bool
	Reserved         []Range    // never handed out: routers, the server
	Gateway          netip.Addr // the machines' default router; may be link-local; invalid: none
	DNS              []netip.Addr
	Domains          []string
	NTP              []netip.Addr  // of time servers, or multicast
	NTPNames         []string      // of time servers
	Options          []Option      // for clients of this subnet, beside the server's own
	Preferred        time.Duration // preferred lifetime of an address
	Valid            time.Duration // valid lifetime, at least Preferred
	// Renew and Rebind are T1 and T2 (RFC 8415 section 14.2): when a client turns to
	// us, and when to any server. 0: half, and four fifths, of Preferred.
	Renew, Rebind time.Duration
	// Preference is that of our Advertise (RFC 8415 section 18.3.9). At 255 a client
	// takes it at once; firmware then saves 4 to 5 s of waiting for others (EDK2).
	Preference uint8
}

// MayRelay reports whether a relay at an address may speak for the segment.
func (s *Subnet) MayRelay(a netip.Addr) bool {
	return len(s.Relays) == 0 || slices.ContainsFunc(s.Relays, func(p netip.Prefix) bool { return p.Contains(a.WithZone("")) })
}

// Range is an inclusive range of addresses. The zero value is empty.
type Range struct{ First, Last netip.Addr }

// String is the range as ParseRange reads it.
func (r Range) String() string {
	if r.First == r.Last {
		return r.First.String()
	}
	return r.First.String() + "-" + r.Last.String()
}

// ParseRange reads "2001:db8::100-2001:db8::1ff", or one address.
func ParseRange(s string) (Range, error) {
	a, b, ok := strings.Cut(s, "-")
	if !ok {
		b = a
	}
	first, err1 := netip.ParseAddr(strings.TrimSpace(a))
	last, err2 := netip.ParseAddr(strings.TrimSpace(b))
	if err1 == nil && err2 == nil && first.Is6() && last.Is6() && !last.Less(first) {
		return Range{first, last}, nil
	}
	return Range{}, fmt.Errorf("%q is not a range of IPv6 addresses such as 2001:db8::100-2001:db8::1ff", s)
}

// IsZero reports whether the range is empty.
func (r Range) IsZero() bool { return !r.First.IsValid() }

// Contains reports whether a lies in r.
func (r Range) Contains(a netip.Addr) bool {
	return !r.IsZero() && !a.Less(r.First) && !r.Last.Less(a)
}

// Overlaps reports whether r and o share an address.
func (r Range) Overlaps(o Range) bool {
	return !r.IsZero() && !o.IsZero() && !r.Last.Less(o.First) && !o.Last.Less(r.First)
}

// Size is the number of addresses, at most 2^63-1.
func (r Range) Size() uint64 {
	if r.IsZero() {
		return 0
	}
	f, l := r.First.As16(), r.Last.As16()
	hiF, hiL := binary.BigEndian.Uint64(f[:8]), binary.BigEndian.Uint64(l[:8])
	loF, loL := binary.BigEndian.Uint64(f[8:]), binary.BigEndian.Uint64(l[8:])
	const most = 1<<63 - 1
	if hiF != hiL || loL-loF >= most {
		return most
	}
	return loL - loF + 1
}

// at returns the n-th address of the range, n < Size.
func (r Range) at(n uint64) netip.Addr {
	b := r.First.As16()
	lo := binary.BigEndian.Uint64(b[8:])
	if lo+n < lo {
		binary.BigEndian.PutUint64(b[:8], binary.BigEndian.Uint64(b[:8])+1)
	}
	binary.BigEndian.PutUint64(b[8:], lo+n)
	return netip.AddrFrom16(b)
}

// maxProbes bounds a search for a free address in a crowded range.
const maxProbes = 4096

// Allocate finds a free address in r for an identity: the same identity gets
// the same address again, even from an empty database, unless somebody else
// took it. It starts at the identity's hash and probes from there, at most
// maxProbes addresses (all, if the range is smaller), and returns ErrFull when
// none of them is free.
func Allocate(r Range, identity string, taken func(netip.Addr) (bool, error)) (netip.Addr, error) {
	size := r.Size()
	if size == 0 {
		return netip.Addr{}, fmt.Errorf("the range has no addresses: %w", ErrFull)
	}
	h := fnv.New64a()
	_, _ = h.Write([]byte(identity)) // never fails (hash.Hash)
	start := h.Sum64() % size
	for i := range min(size, maxProbes) {
		a := r.at((start + i) % size)
		used, err := taken(a)
		if err != nil {
			return netip.Addr{}, err
		}
		if !used {
			return a, nil
		}
	}
	return netip.Addr{}, fmt.Errorf("no free address in %s-%s after %d tries: %w", r.First, r.Last, min(size, maxProbes), ErrFull)
}

// Validate checks one subnet by itself.
func (s *Subnet) Validate() error {
	if err := CheckName("name", s.Name); err != nil {
		return err
	}
	if !s.Prefix.IsValid() || !s.Prefix.Addr().Is6() || s.Prefix.Addr().Is4In6() || s.Prefix != s.Prefix.Masked() {
		return fieldErr("prefix", "a prefix such as 2001:db8::/64 without host bits", "%v is not an IPv6 network", s.Prefix)
	}
	for _, f := range []struct {
		name string
		r    Range
	}{{"machines", s.Machines}, {"pool", s.Pool}} {
		if !f.r.IsZero() && (!s.Prefix.Contains(f.r.First) || !s.Prefix.Contains(f.r.Last)) {
			return fieldErr(f.name, "a range inside "+s.Prefix.String(), "%s-%s lies outside the prefix", f.r.First, f.r.Last)
		}
	}
	for i, r := range s.Relays {
		if !r.IsValid() || !r.Addr().Is6() || r.Addr().Is4In6() || r != r.Masked() {
			return fieldErr(fmt.Sprintf("relays[%d]", i), "an address such as 2001:db8::1, or a prefix without host bits", "%v is not where an IPv6 relay is", r)
		}
	}
	if s.Machines.Overlaps(s.Pool) {
		return fieldErr("pool", "two ranges that do not overlap", "the pool overlaps the range of the machines")
	}
	if s.Strangers && s.Pool.IsZero() {
		return fieldErr("pool", "give a range, or set strangers to false", "strangers are to get an address and there is no pool")
	}
	if s.Adopt && !s.Strangers {
		return fieldErr("adopt", "set strangers, too", "an unregistered machine without an address cannot wait to be adopted")
	}
	if g := s.Gateway; g.IsValid() && (!g.Is6() || !g.IsLinkLocalUnicast() && !s.Prefix.Contains(g)) {
		return fieldErr("gateway", "an address of the subnet, or the router's link-local one", "%s is not on the link", g)
	}
	for i, d := range s.Domains {
		if !ValidDomain(d) {
			return fieldErr(fmt.Sprintf("domains[%d]", i), "a name such as rack1.example.net, without a dot at its end", "%q is not a domain", d)
		}
	}
	if s.Preferred < minLifetime || s.Valid < s.Preferred {
		return fieldErr("lease", "preferred and valid lifetimes of a minute or more, such as 12h and 24h", "lifetimes %v and %v make no lease", s.Preferred, s.Valid)
	}
	if t1, t2 := s.Timers(); t1 < 0 || t2 < t1 || s.Preferred < t2 {
		return fieldErr("renew", "renew not later than rebind, rebind not later than preferred", "%v and %v are no times to keep a lease of %v", t1, t2, s.Preferred)
	}
	for i, r := range s.Reserved {
		if !s.Prefix.Contains(r.First) || !s.Prefix.Contains(r.Last) {
			return fieldErr(fmt.Sprintf("reserved[%d]", i), "leave it out", "%s is not in %s", r, s.Prefix)
		}
	}
	return checkOptions(s.Options)
}

// Timers are T1 and T2.
func (s *Subnet) Timers() (renew, rebind time.Duration) {
	return cmp.Or(s.Renew, s.Preferred/2), cmp.Or(s.Rebind, s.Preferred/5*4)
}

// minLifetime is the shortest lease. The wire counts seconds, and a client that
// has to renew all the time does nothing else.
const minLifetime = time.Minute

// Reserves reports whether a must not be handed out in s.
func (s *Subnet) Reserves(a netip.Addr) bool {
	if a == s.Prefix.Addr() || a == s.Gateway { // the first is the subnet-router anycast address (RFC 4291 section 2.6.1)
		return true
	}
	return slices.ContainsFunc(s.Reserved, func(r Range) bool { return r.Contains(a) })
}

// ValidateSubnets checks each and that none overlaps another.
func ValidateSubnets(subnets []Subnet) error {
	for i := range subnets {
		at := fmt.Sprintf("subnets[%d]", i)
		if err := subnets[i].Validate(); err != nil {
			return fmt.Errorf("%s.%w", at, err)
		}
		for j := range i {
			if subnets[j].Name == subnets[i].Name {
				return fieldErr(at+".name", "", "%s is the name of subnets[%d] too", subnets[i].Name, j)
			}
			if name := subnets[i].Interface; name != "" && subnets[j].Interface == name {
				return fieldErr(at+".interface", "one subnet for each interface", "%s is the interface of subnet %s too", name, subnets[j].Name)
			}
			if subnets[j].Prefix.Overlaps(subnets[i].Prefix) {
				return fieldErr(at+".prefix", "", "%s overlaps %s of subnet %s", subnets[i].Prefix, subnets[j].Prefix, subnets[j].Name)
			}
		}
	}
	return nil
}
