package inventory

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"
)

// PutMachine registers a machine (rev 0) or changes one (rev as it was read;
// ErrConflict if it moved). Registration orders the first install and, when no
// address is given, allocates one from the machine's subnet. A name, MAC or
// address that is taken is a *FieldError wrapping ErrExists. m is not kept; the
// stored machine is returned.
func (k *Keeper) PutMachine(ctx context.Context, m *Machine, rev uint64) (*Machine, error) {
	now := time.Now().UTC()
	k.placing.RLock()
	defer k.placing.RUnlock()
	err := k.update(ctx, func() (Commit, error) { return k.registration(ctx, m, rev, now) })
	if err != nil {
		return nil, err
	}
	stored, err := getJSON[Machine](ctx, k.store, Key{BucketMachines, m.Name})
	return &stored, err
}

// CheckMachine returns the error that PutMachine would return for m at m.Rev
// now, and writes nothing. It promises nothing: others may write in between,
// and of two machines that pass, one may take what the other needs.
func (k *Keeper) CheckMachine(ctx context.Context, m *Machine) error {
	_, err := k.registration(ctx, m, m.Rev, time.Now().UTC())
	return err
}

// registration is the commit that registers or changes m at rev, with all the
// checks before it. It leaves m as it is, and is empty if there is nothing left
// to do.
func (k *Keeper) registration(ctx context.Context, m *Machine, rev uint64, now time.Time) (Commit, error) {
	m = m.Clone()
	if err := m.Normalize(); err != nil {
		return Commit{}, err
	}
	if err := m.Validate(); err != nil {
		return Commit{}, err
	}
	old, err := getJSON[Machine](ctx, k.store, Key{BucketMachines, m.Name})
	switch {
	case errors.Is(err, ErrNotFound):
		if rev != 0 {
			return Commit{}, fmt.Errorf("machine %q: %w", m.Name, ErrNotFound)
		}
		m.Created = now
	case err != nil:
		return Commit{}, err
	case rev == 0 && old.Created.Equal(now):
		return Commit{}, nil // our own commit, whose answer was lost
	case rev == 0:
		return Commit{}, &FieldError{Field: "name", Problem: fmt.Sprintf("machine %s is already registered", m.Name), Fix: "change it instead, or choose another name", Err: ErrExists}
	case rev != old.Rev:
		return Commit{}, fmt.Errorf("machine %s was changed: %w", m.Name, ErrConflict)
	default:
		m.Created = old.Created
		if !m.Address.IsValid() {
			m.Address = old.Address
		}
	}
	return k.register(ctx, m, old, rev == 0)
}

// register is the commit that makes m the stored machine and moves its indexes.
func (k *Keeper) register(ctx context.Context, m *Machine, old Machine, create bool) (Commit, error) {
	var c Commit
	if m.Cluster != "" {
		rec, err := k.store.Get(ctx, Key{BucketClusters, m.Cluster})
		if errors.Is(err, ErrNotFound) {
			return c, &FieldError{Field: "cluster", Problem: fmt.Sprintf("cluster %s does not exist", m.Cluster), Fix: "provisiond cluster create " + m.Cluster, Err: err}
		} else if err != nil {
			return c, err
		}
		c.Checks = append(c.Checks, Check{Key{BucketClusters, m.Cluster}, rec.Rev})
	}
	if m.Cluster != old.Cluster || m.Role != old.Role {
		if old.Cluster != "" && old.Cluster != m.Cluster {
			c.Writes = append(c.Writes, Write{Key: memberKey(old.Cluster, m.Name)})
		}
		if m.Cluster != "" {
			c.Writes = append(c.Writes, Write{memberKey(m.Cluster, m.Name), []byte(m.Role)})
		}
	}
	var seenOn string
	for i, mac := range m.MACs {
		if slices.Contains(old.MACs, mac) {
			continue
		}
		if err := k.claim(ctx, &c, Key{BucketMACs, string(mac)}, m.Name, fmt.Sprintf("macs[%d]", i)); err != nil {
			return c, err
		}
		if s, err := getJSON[Stranger](ctx, k.store, Key{BucketStrangers, string(mac)}); err == nil {
			seenOn = s.Subnet
			c.Writes = append(c.Writes, Write{Key: Key{BucketStrangers, string(mac)}})
		}
	}
	for _, mac := range old.MACs {
		if !slices.Contains(m.MACs, mac) {
			c.Writes = append(c.Writes, Write{Key: Key{BucketMACs, string(mac)}})
		}
	}
	if err := k.place(ctx, m, old.Address, seenOn); err != nil {
		return c, err
	}
	if m.Address != old.Address {
		if err := k.claim(ctx, &c, Key{BucketAddresses, m.Address.String()}, m.Name, "address"); err != nil {
			return c, err
		}
		key, rev := Key{BucketLeases, m.Address.String()}, uint64(0)
		if l := k.leases.of(m.Address); l != nil {
			rev = l.Rev
			c.Writes = append(c.Writes, Write{Key: key})
		}
		c.Checks = append(c.Checks, Check{key, rev})
		if old.Address.IsValid() {
			if err := k.leave(&c, &old); err != nil {
				return c, err
			}
		}
	}
	if err := c.put(Key{BucketMachines, m.Name}, m, old.Rev); err != nil {
		return c, err
	}
	e := Event{Time: time.Now().UTC(), Kind: Changed, Machine: m.Name, MAC: m.BootMAC(), Message: "changed"}
	if m.Cluster != old.Cluster {
		e.Left = old.Cluster
	}
	if create {
		e.Kind, e.Message = Registered, fmt.Sprintf("registered as %s with address %s", m.Role, m.Address)
		facts := Facts{Machine: m.Name, Install: Order{Ordered: 1, OrderedAt: e.Time}}
		if err := c.put(Key{BucketFacts, m.Name}, facts, 0); err != nil {
			return c, err
		}
	}
	c.log(e)
	return c, nil
}

// claim takes a unique key for a machine, or names who has it.
func (k *Keeper) claim(ctx context.Context, c *Commit, key Key, name, field string) error {
	rec, err := k.store.Get(ctx, key)
	if err == nil && string(rec.Value) != name {
		return &FieldError{Field: field, Problem: fmt.Sprintf("%s belongs to machine %s", key.ID, rec.Value), Fix: "remove it there first", Err: ErrExists}
	}
	if err != nil && !errors.Is(err, ErrNotFound) {
		return err
	}
	c.Checks = append(c.Checks, Check{key, rec.Rev})
	c.Writes = append(c.Writes, Write{key, []byte(name)})
	return nil
}

// leave gives up a machine's stable address. It may be in use, even if the machine
// was not seen: nobody is given it unasked for as long as a lease would last.
func (k *Keeper) leave(c *Commit, m *Machine) error {
	c.Writes = append(c.Writes, Write{Key: Key{BucketAddresses, m.Address.String()}})
	s := k.SubnetOf(m.Address)
	if s == nil {
		return nil
	}
	left := Lease{Address: m.Address, MAC: m.BootMAC(), Machine: m.Name, Expires: time.Now().UTC().Add(s.Valid), Left: true}
	rev := uint64(0)
	if l := k.leases.of(m.Address); l != nil {
		rev = l.Rev
	}
	return c.put(Key{BucketLeases, m.Address.String()}, left, rev)
}

// inUse reports whether a client other than m may hold an address.
func (k *Keeper) inUse(m *Machine, a netip.Addr) *Lease {
	if l := k.leases.of(a); l != nil && l.live(time.Now()) && !m.has(l.MAC) {
		return l
	}
	return nil
}

// place checks the address that was given, or allocates one.
func (k *Keeper) place(ctx context.Context, m *Machine, old netip.Addr, seenOn string) error {
	if m.Address.IsValid() {
		if m.Address == old {
			return nil
		}
		s := k.SubnetOf(m.Address)
		switch {
		case s == nil:
			return fieldErr("address", "one of the subnets: "+k.prefixes(), "%s lies in no subnet", m.Address)
		case m.Subnet != "" && m.Subnet != s.Name:
			return fieldErr("address", "", "%s lies in subnet %s, not in %s", m.Address, s.Name, m.Subnet)
		case s.Reserves(m.Address):
			return fieldErr("address", "choose another", "%s is reserved in subnet %s", m.Address, s.Name)
		case s.Pool.Contains(m.Address):
			return fieldErr("address", "choose one outside "+s.Pool.First.String()+"-"+s.Pool.Last.String(), "%s lies in the pool for strangers of subnet %s", m.Address, s.Name)
		}
		// What a machine left may be given to its successor.
		if l := k.inUse(m, m.Address); l != nil && !l.Left {
			return &FieldError{
				Field: "address", Problem: fmt.Sprintf("%s is leased to %s until %s", m.Address, l.client(), l.Expires.Format(time.RFC3339)),
				Fix: "choose another, or wait", Err: ErrExists,
			}
		}
		return nil
	}
	s, err := k.subnetFor(m, seenOn)
	if err != nil {
		return err
	}
	if m.Address, err = k.allocate(ctx, s, m, nil); err != nil {
		return &FieldError{Field: "address", Problem: fmt.Sprintf("subnet %s: %v", s.Name, err), Fix: "give an address, or enlarge the subnet's machines range; those of removed machines are free when a lease would have ended", Err: ErrFull}
	}
	return nil
}

// allocate finds an address for m in a subnet that is free, and not among others that
// are spoken for.
func (k *Keeper) allocate(ctx context.Context, s *Subnet, m *Machine, others map[netip.Addr]bool) (netip.Addr, error) {
	return Allocate(s.Machines, m.Name, func(a netip.Addr) (bool, error) {
		if others[a] || s.Reserves(a) || k.inUse(m, a) != nil {
			return true, nil
		}
		_, err := k.store.Get(ctx, Key{BucketAddresses, a.String()})
		if errors.Is(err, ErrNotFound) {
			return false, nil
		}
		return true, err
	})
}

// subnetFor chooses where a machine without an address gets one.
func (k *Keeper) subnetFor(m *Machine, seenOn string) (*Subnet, error) {
	var fit []*Subnet
	subnets := k.Subnets()
	for i := range subnets {
		s := &subnets[i]
		if m.Subnet == s.Name || m.Subnet == "" && seenOn == s.Name {
			fit = []*Subnet{s}
			break
		}
		if m.Subnet == "" && !s.Machines.IsZero() {
			fit = append(fit, s)
		}
	}
	switch {
	case len(fit) == 1 && !fit[0].Machines.IsZero():
		return fit[0], nil
	case len(fit) == 1:
		return nil, fieldErr("address", "give an address, or set the subnet's machines range", "subnet %s has no range to allocate from", fit[0].Name)
	case m.Subnet != "":
		return nil, fieldErr("subnet", "one of the subnets: "+k.prefixes(), "%s is not a subnet", m.Subnet)
	case len(fit) == 0:
		return nil, fieldErr("address", "give an address, or set a subnet's machines range", "no subnet has a range to allocate from")
	}
	return nil, fieldErr("subnet", "name the subnet or give an address", "the machine was not seen yet and there are several subnets")
}

func (k *Keeper) prefixes() string {
	var list []string
	for _, s := range k.Subnets() {
		list = append(list, s.Name+" "+s.Prefix.String())
	}
	return strings.Join(list, ", ")
}

// DeleteMachine removes a machine and everything learnt from it. rev 0 skips
// the comparison.
func (k *Keeper) DeleteMachine(ctx context.Context, name string, rev uint64) error {
	return k.update(ctx, func() (Commit, error) {
		m, err := getJSON[Machine](ctx, k.store, Key{BucketMachines, name})
		if err != nil {
			return Commit{}, fmt.Errorf("machine %q: %w", name, err)
		}
		if rev != 0 && rev != m.Rev {
			return Commit{}, fmt.Errorf("machine %s was changed: %w", name, ErrConflict)
		}
		f, err := getJSON[Facts](ctx, k.store, Key{BucketFacts, name})
		if err != nil && !errors.Is(err, ErrNotFound) {
			return Commit{}, err
		}
		c := Commit{
			Checks: []Check{{Key{BucketMachines, name}, m.Rev}, {Key{BucketFacts, name}, f.Rev}},
			Writes: []Write{
				{Key: Key{BucketMachines, name}}, {Key: Key{BucketFacts, name}}, {Key: Key{BucketRendered, name}},
			},
		}
		if err := k.leave(&c, &m); err != nil {
			return Commit{}, err
		}
		for _, mac := range m.MACs {
			c.Writes = append(c.Writes, Write{Key: Key{BucketMACs, string(mac)}})
		}
		for _, d := range f.DUIDs {
			if err := forget(ctx, k.store, &c, d, &m); err != nil {
				return Commit{}, err
			}
		}
		if m.Cluster != "" {
			c.Writes = append(c.Writes, Write{Key: memberKey(m.Cluster, name)})
		}
		c.log(Event{Time: time.Now().UTC(), Kind: Removed, Machine: name, Left: m.Cluster, MAC: m.BootMAC(), Message: "removed from the inventory"})
		return c, nil
	})
}

func memberKey(cluster, machine string) Key { return Key{BucketMembers, cluster + "/" + machine} }
