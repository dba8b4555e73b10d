package inventory

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"net/netip"
	"time"
)

// slotsPerNIC bounds the addresses one NIC can hold beside its stable one.
// Firmware takes a fresh random IAID each boot and forgets to release it; the
// fifth takes the place of the oldest.
const slotsPerNIC = 4

// Bind gives the address of one IA.
//
// The boot IA, iPXE's and the operating system's get the machine's stable
// address, which needs no write: it was reserved at registration. The
// firmware's own stack, further IAs of one message, and strangers get a lease
// from the subnet's pool, durable before Bind returns if b.Commit is set.
// Errors: ErrFull when the pool is empty or there is none, ErrRefused for a
// stranger where strangers get no address.
func (k *Keeper) Bind(ctx context.Context, b Binding) (Lease, error) {
	now := time.Now().UTC()
	lease := Lease{MAC: b.MAC, DUID: hex.EncodeToString(b.DUID), IAID: b.IAID, Machine: b.Machine, Expires: now.Add(b.Subnet.Valid)}
	if b.Machine != "" && !b.Extra && b.Client != FirmwareStack && b.Subnet.Prefix.Contains(b.Stable) {
		// A Renew names no more than its IA: it may be the firmware's own stack
		// that holds a lease. Everybody else has the stable address.
		if b.Client == OperatingSystem {
			if held, err := k.slot(ctx, b, lease, now); err == nil && held.Rev != 0 && held.sameIA(lease) {
				return held, nil
			}
		}
		lease.Address = b.Stable
		return lease, nil
	}
	if b.Machine == "" && !b.Subnet.Strangers {
		return Lease{}, fmt.Errorf("subnet %s gives strangers no address: %w", b.Subnet.Name, ErrRefused)
	}
	err := k.update(ctx, func() (Commit, error) {
		held, err := k.slot(ctx, b, lease, now)
		if err != nil {
			return Commit{}, err
		}
		lease.Address, lease.Rev = held.Address, held.Rev
		// A renewal that moves the end by little is not worth a write; the
		// client is told the full lifetime, so keep a tenth in reserve.
		fresh := held.sameIA(lease) && held.Expires.Sub(now) > b.Subnet.Valid*9/10
		if !b.Commit || fresh {
			return Commit{}, nil
		}
		lease.Expires = now.Add(b.Subnet.Valid + b.Subnet.Valid/8)
		var c Commit
		err = c.put(Key{BucketLeases, lease.Address.String()}, lease, held.Rev)
		return c, err
	})
	return lease, err
}

// sameClient reports whether two leases are of one NIC, or of one DUID where
// the NIC is not known.
func (l Lease) sameClient(o Lease) bool {
	return l.MAC == o.MAC && (l.MAC != "" || l.DUID == o.DUID)
}

func (l Lease) sameIA(o Lease) bool {
	return l.MAC == o.MAC && l.DUID == o.DUID && l.IAID == o.IAID && !l.Declined
}

// slot finds the lease record to use: the one this IA holds, else a free slot
// of the NIC, else the NIC's slot that ends first. The result's Rev is what a
// commit has to compare with.
func (k *Keeper) slot(ctx context.Context, b Binding, want Lease, now time.Time) (Lease, error) {
	who := string(b.MAC)
	if who == "" {
		who = want.DUID
	}
	var free, oldest *Lease
	for i := range slotsPerNIC {
		l, err := k.slotAt(ctx, b.Subnet, fmt.Sprintf("%s/%d", who, i), want, now)
		if errors.Is(err, ErrFull) {
			break
		} else if err != nil {
			return Lease{}, err
		}
		switch {
		case l.Rev != 0 && l.sameIA(want):
			return l, nil
		case l.Rev == 0 || !l.Expires.After(now):
			if free == nil {
				free = &l
			}
		case oldest == nil || l.Expires.Before(oldest.Expires):
			oldest = &l
		}
	}
	switch {
	case free != nil:
		return *free, nil
	case oldest != nil:
		return *oldest, nil
	}
	return Lease{}, fmt.Errorf("subnet %s has no free address in its pool: %w", b.Subnet.Name, ErrFull)
}

// slotAt is one address of the pool that is free or this NIC's own.
func (k *Keeper) slotAt(ctx context.Context, s *Subnet, identity string, want Lease, now time.Time) (Lease, error) {
	var found Lease
	_, err := Allocate(s.Pool, identity, func(a netip.Addr) (bool, error) {
		if s.Reserves(a) {
			return true, nil
		}
		// The pool may have been moved over machines since they were registered.
		if _, err := k.store.Get(ctx, Key{BucketAddresses, a.String()}); !errors.Is(err, ErrNotFound) {
			return true, err
		}
		l, err := getJSON[Lease](ctx, k.store, Key{BucketLeases, a.String()})
		if errors.Is(err, ErrNotFound) {
			found = Lease{Address: a}
			return false, nil
		}
		if err != nil {
			return true, err
		}
		if l.Expires.After(now) && (l.Declined || !l.sameClient(want)) {
			return true, nil
		}
		found = l
		return false, nil
	})
	return found, err
}

// Release ends the lease of an IA. The stable address of a machine stays its
// own. It returns ErrNotFound for a stranger that holds none.
func (k *Keeper) Release(ctx context.Context, b Binding) error {
	now := time.Now().UTC()
	want := Lease{MAC: b.MAC, DUID: hex.EncodeToString(b.DUID), IAID: b.IAID}
	return k.update(ctx, func() (Commit, error) {
		l, err := k.slot(ctx, b, want, now)
		switch {
		case err != nil && !errors.Is(err, ErrFull):
			return Commit{}, err
		case err == nil && l.Rev != 0 && l.sameIA(want):
		case b.Machine != "":
			return Commit{}, nil
		default:
			return Commit{}, fmt.Errorf("lease of %s: %w", b.MAC, ErrNotFound)
		}
		key := Key{BucketLeases, l.Address.String()}
		return Commit{Checks: []Check{{key, l.Rev}}, Writes: []Write{{Key: key}}}, nil
	})
}

// declinedFor is how long an address that somebody else uses is left alone.
const declinedFor = time.Hour

// Decline records that the client found somebody else on its address (RFC 8415
// section 18.3.8). A leased one is kept out of use for an hour; for the stable
// address of a machine there is no other, so it is an event for a person.
func (k *Keeper) Decline(ctx context.Context, b Binding, a netip.Addr) error {
	now := time.Now().UTC()
	key := Key{BucketLeases, a.String()}
	return k.update(ctx, func() (Commit, error) {
		var c Commit
		l, err := getJSON[Lease](ctx, k.store, key)
		switch {
		case errors.Is(err, ErrNotFound):
			if a != b.Stable {
				return c, fmt.Errorf("lease of %s: %w", a, ErrNotFound)
			}
		case err != nil:
			return c, err
		case l.MAC != b.MAC:
			return c, fmt.Errorf("lease of %s by %s: %w", a, b.MAC, ErrNotFound)
		case l.Declined:
			return c, nil
		default:
			l.Declined, l.Expires = true, now.Add(declinedFor)
			if err := c.put(key, l, l.Rev); err != nil {
				return c, err
			}
		}
		c.log(Event{Time: now, Kind: Declined, MAC: b.MAC, Machine: b.Machine, Peer: a, Message: "found " + a.String() + " in use by somebody else"})
		return c, nil
	})
}

// Leases lists the leases in force or in quarantine, by address.
func (k *Keeper) Leases(ctx context.Context) ([]Lease, error) {
	return listAll[Lease](ctx, k.store, BucketLeases)
}

// Sweep deletes leases that ended. It is housekeeping: an ended lease is free
// for others at once, swept or not.
func (k *Keeper) Sweep(ctx context.Context) error {
	leases, err := k.Leases(ctx)
	if err != nil {
		return err
	}
	now := time.Now()
	for _, l := range leases {
		if l.Expires.After(now) {
			continue
		}
		key := Key{BucketLeases, l.Address.String()}
		_, _, err := k.store.Commit(ctx, Commit{Checks: []Check{{key, l.Rev}}, Writes: []Write{{Key: key}}})
		if err != nil && !errors.Is(err, ErrConflict) {
			return err
		}
	}
	return nil
}
