package inventory

import (
	"context"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"errors"
	"fmt"
)

// AdoptionCode is what the console of an unregistered machine shows, so that a person who
// stands before it can say which of many it is. It is made of the MAC and a key of ours,
// or anyone could look for a MAC with the code of another.
func (k *Keeper) AdoptionCode(ctx context.Context, mac MAC) (string, error) {
	key, err := k.MetaOnce(ctx, "adoption-key", func() ([]byte, error) {
		key := make([]byte, sha256.Size)
		_, _ = rand.Read(key) // never fails (crypto/rand)
		return key, nil
	})
	if err != nil {
		return "", err
	}
	sum := hmac.New(sha256.New, key)
	_, _ = sum.Write([]byte(mac)) // never fails (hash.Hash)
	return userCode(sum.Sum(nil)), nil
}

// Adopts returns the code of an unregistered NIC that is to wait in its boot loader until
// it is registered, because the subnet that it was seen on says so; else nothing.
func (k *Keeper) Adopts(ctx context.Context, mac MAC) (code string, err error) {
	st, err := getJSON[Stranger](ctx, k.store, Key{BucketStrangers, string(mac)})
	if errors.Is(err, ErrNotFound) {
		return "", nil
	} else if err != nil {
		return "", err
	}
	for _, s := range k.Subnets() {
		if s.Name == st.Subnet && s.Adopt {
			return k.AdoptionCode(ctx, mac)
		}
	}
	return "", nil
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
		own, err := k.AdoptionCode(ctx, st.MAC)
		if err != nil {
			return Stranger{}, err
		}
		if own == code {
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
