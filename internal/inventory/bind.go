package inventory

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"time"
)

// want is the lease that an IA asks for.
func (b *Binding) want() Lease {
	return Lease{MAC: b.MAC, DUID: hex.EncodeToString(b.DUID), IAID: b.IAID, Machine: b.Machine}
}

// until is the end of a promise made now. The wire knows whole seconds only, so
// that what is left of it may be cut to one.
func (b *Binding) until(now time.Time) time.Time { return now.Add(b.Subnet.Valid + time.Second) }

func (b *Binding) not(a netip.Addr) bool { return slices.Contains(b.Not, a) }

// Bind gives the address of one IA, and until when it is promised.
//
// The stable address of a machine (b.Stable) needs no write: it was reserved at
// registration. The firmware's own stack, further IAs of one message, further
// NICs, and strangers get a lease from the subnet's pool, durable before Bind
// returns if b.Commit is set. Errors: ErrFull when the pool is empty or there is
// none, ErrRefused for a stranger where strangers get no address, and for a
// client that declined all it may have.
func (k *Keeper) Bind(ctx context.Context, b Binding) (Lease, error) {
	now := time.Now().UTC()
	want := b.want()
	if b.Machine != "" && b.Client != FirmwareStack && b.Subnet.Prefix.Contains(b.Stable) && !b.not(b.Stable) {
		// A Renew names no more than its IA: it may be the firmware's own stack
		// that holds a lease of the pool. Everybody else has the stable address,
		// and moves there from one that it got as a stranger.
		held := k.leases.held(&want, b.Subnet, now)
		if held == nil || held.Machine == "" || b.Client != OperatingSystem {
			want.Address, want.Expires = b.Stable, b.until(now)
			return want, nil
		}
	}
	if b.Machine == "" && !b.Subnet.Strangers {
		return Lease{}, fmt.Errorf("subnet %s gives strangers no address: %w", b.Subnet.Name, ErrRefused)
	}
	if !b.Commit {
		lease, _, err := k.choose(ctx, &b, want, now)
		return lease, err
	}
	var lease Lease
	err := k.leases.serially(want.client(), func() (err error) {
		lease, err = k.promise(ctx, &b, want, now)
		return err
	})
	return lease, err
}

// choose returns the lease that the IA would get, and the record that lies there.
func (k *Keeper) choose(ctx context.Context, b *Binding, want Lease, now time.Time) (lease Lease, old *Lease, err error) {
	addr, old, err := k.leases.choose(b, &want, now, b.Commit, func(a netip.Addr) (bool, error) {
		// The pool may have been moved over machines since they were registered.
		_, err := k.store.Get(ctx, Key{BucketAddresses, a.String()})
		if errors.Is(err, ErrNotFound) {
			return false, nil
		}
		return true, err
	})
	want.Address, want.Expires = addr, b.until(now)
	return want, old, err
}

// promise is Bind with a durable lease. A lease that was promised again a moment
// ago is not written again: the client is told what is left of it.
func (k *Keeper) promise(ctx context.Context, b *Binding, want Lease, now time.Time) (lease Lease, err error) {
	for range maxTries {
		if lease, err = k.promiseOnce(ctx, b, want, now); !errors.Is(err, errTaken) {
			break
		}
	}
	return lease, err
}

// errTaken is for an address that was free when it was chosen, and is not any more.
var errTaken = errors.New("somebody else has the address by now")

func (k *Keeper) promiseOnce(ctx context.Context, b *Binding, want Lease, now time.Time) (lease Lease, err error) {
	lease, old, err := k.choose(ctx, b, want, now)
	if err != nil {
		return Lease{}, err
	}
	defer k.leases.done(lease.Address)
	if old != nil && old.sameIA(&want) && old.Machine == want.Machine && old.Expires.Sub(now) > b.Subnet.Valid/16*15 {
		return *old, nil
	}
	key := Key{BucketLeases, lease.Address.String()}
	err = k.update(ctx, func() (Commit, error) {
		rev := uint64(0)
		if l := k.leases.of(lease.Address); l != nil {
			if l.live(now) && (l.client() != want.client() || l.Declined || l.Left) {
				return Commit{}, errTaken
			}
			rev = l.Rev
		}
		var c Commit
		c.Checks = []Check{{Key: Key{BucketAddresses, key.ID}}} // nobody was registered there meanwhile
		err := c.put(key, lease, rev)
		return c, err
	})
	return lease, err
}

// Release ends the lease that an IA holds on any of some addresses (RFC 8415
// section 18.3.7). The stable address of a machine stays its own. It returns
// ErrNotFound if the IA has none of them.
func (k *Keeper) Release(ctx context.Context, b Binding, addrs []netip.Addr) error {
	return k.giveBack(ctx, b, addrs, func(c *Commit, l Lease) error {
		c.Checks = append(c.Checks, Check{Key{BucketLeases, l.Address.String()}, l.Rev})
		c.Writes = append(c.Writes, Write{Key: Key{BucketLeases, l.Address.String()}})
		return nil
	})
}

// Decline records that a client found somebody else on addresses of an IA
// (RFC 8415 section 18.3.8). A leased one is kept out of use for an hour; for the
// stable address of a machine there is no other, so it is an event for a person.
// It returns ErrNotFound if the IA has none of them.
func (k *Keeper) Decline(ctx context.Context, b Binding, addrs []netip.Addr) error {
	now := time.Now().UTC()
	if b.Machine != "" && slices.Contains(addrs, b.Stable) {
		if _, err := k.Record(ctx, Event{Time: now, Kind: Declined, MAC: b.MAC, Machine: b.Machine, Peer: b.Stable, Message: inUse(b.Stable)}); err != nil {
			return err
		}
	}
	return k.giveBack(ctx, b, addrs, func(c *Commit, l Lease) error {
		rev := l.Rev
		l.Declined, l.Expires = true, now.Add(declinedFor)
		c.log(Event{Time: now, Kind: Declined, MAC: b.MAC, Machine: b.Machine, Peer: l.Address, Message: inUse(l.Address)})
		return c.put(Key{BucketLeases, l.Address.String()}, l, rev)
	})
}

func inUse(a netip.Addr) string { return "found " + a.String() + " in use by somebody else" }

// giveBack commits a change of the leases that an IA holds on some addresses.
func (k *Keeper) giveBack(ctx context.Context, b Binding, addrs []netip.Addr, change func(*Commit, Lease) error) error {
	want := b.want()
	return k.leases.serially(want.client(), func() error {
		known := b.Machine != "" && slices.Contains(addrs, b.Stable)
		err := k.update(ctx, func() (c Commit, err error) {
			for i, a := range addrs {
				l := k.leases.of(a)
				if l == nil || !l.sameIA(&want) || slices.Contains(addrs[:i], a) {
					continue
				}
				known = true
				if err := change(&c, *l); err != nil {
					return c, err
				}
			}
			return c, nil
		})
		if err == nil && !known {
			return fmt.Errorf("lease of %s: %w", want.client(), ErrNotFound)
		}
		return err
	})
}

// Leases lists the leases in force or kept out of use, by address.
func (k *Keeper) Leases(ctx context.Context) ([]Lease, error) {
	return listAll[Lease](ctx, k.store, BucketLeases)
}

// PoolUse is how full the pool of a subnet is.
type PoolUse struct {
	Subnet     string
	Size, Used uint64
}

// Pools returns how full the pools of the subnets are.
func (k *Keeper) Pools() []PoolUse {
	subnets := k.Subnets()
	used := k.leases.inPools(subnets, time.Now())
	out := make([]PoolUse, len(subnets))
	for i := range subnets {
		out[i] = PoolUse{subnets[i].Name, subnets[i].Pool.Size(), used[i]}
	}
	return out
}

// Sweep deletes leases that ended. It is housekeeping: an ended lease is free
// for others at once, swept or not.
func (k *Keeper) Sweep(ctx context.Context) error {
	now := time.Now()
	for _, l := range k.leases.ended(now) {
		err := k.leases.serially(l.client(), func() error {
			if k.leases.of(l.Address) != l {
				return nil // somebody has it again
			}
			key := Key{BucketLeases, l.Address.String()}
			_, err := k.try(ctx, Commit{Checks: []Check{{key, l.Rev}}, Writes: []Write{{Key: key}}})
			return err
		})
		if err != nil && !errors.Is(err, errAgain) {
			return err
		}
	}
	return nil
}
