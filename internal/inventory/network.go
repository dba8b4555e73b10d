package inventory

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
)

// SubnetOf returns the subnet an address lies in, or nil.
func (k *Keeper) SubnetOf(a netip.Addr) *Subnet { return subnetOf(k.Subnets(), a) }

func subnetOf(subnets []Subnet, a netip.Addr) *Subnet {
	for i := range subnets {
		if subnets[i].Prefix.Contains(a) {
			return &subnets[i]
		}
	}
	return nil
}

// Subnets returns the subnets as they are now. The caller must not change them.
func (k *Keeper) Subnets() []Subnet { return *k.subnets.Load() }

// SetSubnets puts other subnets in the place of those that were, while they are
// served. Nothing is lost: leases and addresses of machines stay what they are.
// Errors name what does not fit, a field or a registered machine, and leave
// everything as it was.
func (k *Keeper) SetSubnets(ctx context.Context, subnets []Subnet) error {
	if err := ValidateSubnets(subnets); err != nil {
		return err
	}
	k.placing.Lock() // nobody is registered on what is being replaced
	defer k.placing.Unlock()
	if err := k.fits(ctx, subnets); err != nil {
		return err
	}
	k.subnets.Store(&subnets)
	k.leases.recount(k.SubnetOf)
	k.watchers.wake(news{})
	return nil
}

// CheckSubnets holds the subnets against the machines that are registered, as
// SetSubnets does: at start the config file may have changed.
func (k *Keeper) CheckSubnets(ctx context.Context) error { return k.fits(ctx, k.Subnets()) }

// maxMisplaced is how many machines an error names.
const maxMisplaced = 5

// fits returns an error for registered machines that have no place in subnets, and
// for ranges that are too small for them.
func (k *Keeper) fits(ctx context.Context, subnets []Subnet) error {
	var errs []error
	misplaced := 0
	machines := map[string]uint64{} // by subnet
	for rec, err := range recordsAfter(ctx, k.store, BucketAddresses, "") {
		if err != nil {
			return err
		}
		a, err := netip.ParseAddr(rec.Key.ID)
		if err != nil {
			return fmt.Errorf("address of machine %s: %w", rec.Value, err)
		}
		s := subnetOf(subnets, a)
		problem := ""
		switch {
		case s == nil:
			problem = "lies in no subnet"
		case s.Pool.Contains(a):
			problem = "lies in the pool of subnet " + s.Name
		case s.Reserves(a):
			problem = "is reserved in subnet " + s.Name
		}
		if s != nil {
			machines[s.Name]++
		}
		if problem == "" {
			continue
		}
		if misplaced++; misplaced <= maxMisplaced {
			errs = append(errs, fieldErr("subnets", "change the subnets, or the machine first", "the address %s of machine %s %s", a, rec.Value, problem))
		}
	}
	if misplaced > maxMisplaced {
		errs = append(errs, fieldErr("subnets", "", "%d machines more have no place in them", misplaced-maxMisplaced))
	}
	for i := range subnets {
		s := &subnets[i]
		if n := machines[s.Name]; !s.Pool.IsZero() && s.Pool.Size() < n {
			errs = append(errs, fieldErr(fmt.Sprintf("subnets[%d].pool", i), "enlarge it: firmware takes a second address while it boots",
				"%s-%s is too small for the %d machines of subnet %s", s.Pool.First, s.Pool.Last, n, s.Name))
		}
	}
	return errors.Join(errs...)
}
