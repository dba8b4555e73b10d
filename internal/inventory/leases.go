package inventory

import (
	"context"
	"errors"
	"fmt"
	"hash/maphash"
	"net/netip"
	"slices"
	"sync"
	"time"
)

const (
	// slotsPerClient bounds the addresses one NIC can hold beside its stable one.
	// Firmware takes a fresh random IAID each boot and forgets to release it; the
	// fifth takes the place of the one that ends first.
	slotsPerClient = 4
	// maxStrangerLeases bounds the records that strangers can make us keep, in one
	// subnet; they also get no more than three quarters of a pool, for registered
	// machines take second addresses from it.
	maxStrangerLeases = 1 << 16
	// declinedFor is how long an address that somebody else uses is left alone.
	declinedFor = time.Hour
)

// leases is every lease in memory, so that choosing an address costs no read, and
// the addresses that are being promised at this moment. Only what was committed
// gets in (see reread).
type leases struct {
	mu        sync.Mutex
	by        map[netip.Addr]*Lease              // entries are replaced, never changed
	client    map[string]map[netip.Addr]struct{} // Lease.client → its addresses
	pending   map[netip.Addr]struct{}
	strangers map[string]int // subnet → records of strangers, ended ones included

	// turn serializes what one client does, by the hash of its identity: a
	// repeated message waits for the first, and finds its lease.
	turn [256]sync.Mutex
	seed maphash.Seed
}

func (t *leases) load(list []Lease, subnetOf func(netip.Addr) *Subnet) {
	t.by, t.client, t.pending = map[netip.Addr]*Lease{}, map[string]map[netip.Addr]struct{}{}, map[netip.Addr]struct{}{}
	t.strangers, t.seed = map[string]int{}, maphash.MakeSeed()
	for i := range list {
		t.set(list[i].Address, &list[i], subnetOf)
	}
}

// set puts a committed lease, or removes the one of an address. t.mu is held.
func (t *leases) set(a netip.Addr, l *Lease, subnetOf func(netip.Addr) *Subnet) {
	count := func(l *Lease, by int) {
		if s := subnetOf(l.Address); s != nil && l.Machine == "" && !l.Left {
			t.strangers[s.Name] += by
		}
	}
	if old := t.by[a]; old != nil {
		count(old, -1)
		of := t.client[old.client()]
		if delete(of, a); len(of) == 0 {
			delete(t.client, old.client())
		}
		delete(t.by, a)
	}
	if l == nil {
		return
	}
	count(l, 1)
	t.by[a] = l
	if t.client[l.client()] == nil {
		t.client[l.client()] = map[netip.Addr]struct{}{}
	}
	t.client[l.client()][a] = struct{}{}
}

// recount counts the strangers of each subnet anew.
func (t *leases) recount(subnetOf func(netip.Addr) *Subnet) {
	t.mu.Lock()
	defer t.mu.Unlock()
	clear(t.strangers)
	for a, l := range t.by {
		if s := subnetOf(a); s != nil && l.Machine == "" && !l.Left {
			t.strangers[s.Name]++
		}
	}
}

// reread takes over what is stored of leases that were, or may have been, written.
// Commits come back in any order, so that what they wrote is not taken at its word.
// What cannot be read fails again when it is committed.
func (t *leases) reread(store Store, keys []Key, subnetOf func(netip.Addr) *Subnet) {
	for _, key := range keys {
		a, err := netip.ParseAddr(key.ID)
		if key.Bucket != BucketLeases || err != nil {
			continue
		}
		t.mu.Lock()
		l, err := getJSON[Lease](context.Background(), store, key) // the commit is done, whoever waits for it
		switch {
		case err == nil:
			t.set(a, &l, subnetOf)
		case errors.Is(err, ErrNotFound):
			t.set(a, nil, subnetOf)
		}
		t.mu.Unlock()
	}
}

// ofNICs lists the addresses that NICs hold, in order.
func (t *leases) ofNICs(macs []MAC, now time.Time) (out []netip.Addr) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for a, l := range t.by {
		if slices.Contains(macs, l.MAC) && l.live(now) && !l.Declined && !l.Left {
			out = append(out, a)
		}
	}
	slices.SortFunc(out, netip.Addr.Compare)
	return out
}

// of returns the lease of an address, nil if there is none.
func (t *leases) of(a netip.Addr) *Lease {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.by[a]
}

// held returns the live lease of an IA in a subnet, nil if there is none.
func (t *leases) held(want *Lease, s *Subnet, now time.Time) *Lease {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.heldLocked(want, s, now)
}

func (t *leases) heldLocked(want *Lease, s *Subnet, now time.Time) *Lease {
	for a := range t.client[want.client()] {
		if l := t.by[a]; l.sameIA(want) && l.live(now) && s.Prefix.Contains(a) {
			return l
		}
	}
	return nil
}

// choose finds the address for an IA: the one it holds, else a free one of the
// pool, else that of the client's lease that ends first. With reserve nobody
// else is given it until done. taken is asked of a free one last.
//
// The address follows from the client's identity, so that it is the same again
// after the database was lost, unless somebody else has it by then.
func (t *leases) choose(b *Binding, want *Lease, now time.Time, reserve bool, taken func(netip.Addr) (bool, error)) (addr netip.Addr, old *Lease, err error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	defer func() {
		if err == nil && reserve {
			t.pending[addr] = struct{}{}
		}
	}()
	if l := t.heldLocked(want, b.Subnet, now); l != nil && !b.not(l.Address) {
		return l.Address, l, nil
	}
	var first *Lease // that may be taken over
	slots := 0
	for a := range t.client[want.client()] {
		l := t.by[a]
		if !l.live(now) || l.Left || !b.Subnet.Prefix.Contains(a) {
			continue
		}
		slots++
		if !l.Declined && !b.not(a) && (first == nil || l.Expires.Before(first.Expires)) {
			first = l
		}
	}
	switch {
	case slots < slotsPerClient:
	case first != nil:
		return first.Address, first, nil
	default:
		return addr, nil, fmt.Errorf("it holds or declined %d addresses of subnet %s: %w", slots, b.Subnet.Name, ErrRefused)
	}
	if b.Machine == "" && !t.room(b.Subnet, now) {
		return addr, nil, fmt.Errorf("subnet %s has no free address in its pool for strangers: %w", b.Subnet.Name, ErrFull)
	}
	addr, err = Allocate(b.Subnet.Pool, fmt.Sprintf("%s/%d", want.client(), slots), func(a netip.Addr) (bool, error) {
		if _, busy := t.pending[a]; busy || b.Subnet.Reserves(a) || b.not(a) {
			return true, nil
		}
		if l := t.by[a]; l != nil && l.live(now) {
			return true, nil
		}
		return taken(a)
	})
	if errors.Is(err, ErrFull) {
		err = fmt.Errorf("subnet %s has no free address in its pool: %w", b.Subnet.Name, ErrFull)
	}
	return addr, t.by[addr], err
}

// room reports whether strangers may have one more address of a subnet.
func (t *leases) room(s *Subnet, now time.Time) bool {
	size := s.Pool.Size()
	limit := int(min(size-size/4, maxStrangerLeases))
	if t.strangers[s.Name] < limit {
		return true
	}
	live := 0 // those that ended are in the way only until they are swept
	for a, l := range t.by {
		if l.Machine == "" && !l.Left && l.live(now) && s.Prefix.Contains(a) {
			live++
		}
	}
	return live < limit
}

// inPools counts, for each subnet, the addresses of its pool that are promised or kept
// out of use.
func (t *leases) inPools(subnets []Subnet, now time.Time) []uint64 {
	var live []netip.Addr // counted without the lock: clients wait for it
	t.mu.Lock()
	for a, l := range t.by {
		if l.live(now) {
			live = append(live, a)
		}
	}
	t.mu.Unlock()
	used := make([]uint64, len(subnets))
	for _, a := range live {
		for i := range subnets {
			if subnets[i].Pool.Contains(a) {
				used[i]++
			}
		}
	}
	return used
}

// done gives back what choose has reserved.
func (t *leases) done(a netip.Addr) {
	t.mu.Lock()
	defer t.mu.Unlock()
	delete(t.pending, a)
}

// ended lists leases that are over.
func (t *leases) ended(now time.Time) []*Lease {
	t.mu.Lock()
	defer t.mu.Unlock()
	var out []*Lease
	for _, l := range t.by {
		if !l.live(now) {
			out = append(out, l)
		}
	}
	return out
}

// turnOf is which of the locks a client takes: it shares it with others.
func (t *leases) turnOf(client string) uint64 {
	return maphash.String(t.seed, client) % uint64(len(t.turn))
}

// serially runs f while no other message of the client is worked on.
func (t *leases) serially(client string, f func() error) error {
	m := &t.turn[t.turnOf(client)]
	m.Lock()
	defer m.Unlock()
	return f()
}
