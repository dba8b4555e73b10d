package inventory

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
)

// AdoptionCode is what the console of an unregistered machine shows, so that a person who
// stands before it can say which of many it is. It is made of the MAC: it is no secret,
// and proves nothing else.
func AdoptionCode(mac MAC) string {
	sum := sha256.Sum256([]byte("adopt " + string(mac)))
	return userCode(sum[:])
}

// Adopts reports whether an unregistered NIC is to wait in its boot loader until it is
// registered, because the subnet that it was seen on says so.
func (k *Keeper) Adopts(ctx context.Context, mac MAC) (bool, error) {
	st, err := getJSON[Stranger](ctx, k.store, Key{BucketStrangers, string(mac)})
	if errors.Is(err, ErrNotFound) {
		return false, nil
	} else if err != nil {
		return false, err
	}
	for _, s := range k.Subnets() {
		if s.Name == st.Subnet {
			return s.Adopt, nil
		}
	}
	return false, nil
}

// StrangerByCode finds the unregistered NIC that shows a code, however it was typed. It
// returns ErrNotFound when none does, and ErrConflict when two do.
func (k *Keeper) StrangerByCode(ctx context.Context, code string) (Stranger, error) {
	code = NormalUserCode(code)
	all, err := k.Strangers(ctx)
	if err != nil {
		return Stranger{}, err
	}
	var found []Stranger
	for _, st := range all {
		if AdoptionCode(st.MAC) == code {
			found = append(found, st)
		}
	}
	switch len(found) {
	case 0:
		return Stranger{}, fmt.Errorf("no unregistered machine shows the code %q: %w", code, ErrNotFound)
	case 1:
		return found[0], nil
	}
	return Stranger{}, fmt.Errorf("%s and %s show the code %q: register the one that is meant by its MAC: %w", found[0].MAC, found[1].MAC, code, ErrConflict)
}
