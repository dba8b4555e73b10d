package sealed

import (
	"bytes"
	"context"
	"errors"
	"fmt"

	"github.com/provisiond/provisiond/internal/inventory"
)

// Resealing takes the values of a store, one by one, to another store under a key of
// its own.
type Resealing struct {
	from dataKey // its aead is nil: the values are not sealed yet
	to   dataKey
	ring keyring
}

// Reseal looks at a store, sealed to a key or not sealed at all, and makes a new data
// key for a copy of it that is sealed to another key, or to the same one. It fails as
// [Open] does when from does not open a store that is sealed. It writes nothing.
func Reseal(ctx context.Context, s inventory.Store, from, to *Key) (*Resealing, error) {
	var r Resealing
	old, err := readKeyring(ctx, s)
	switch {
	case errors.Is(err, ErrUnsealed):
	case err != nil:
		return nil, err
	default:
		if r.from, err = old.open(from); err != nil {
			return nil, err
		}
	}
	r.ring, r.to, err = newKeyring(to)
	return &r, err
}

// Record returns what the new store has in place of a record's value; nil: it does
// not have the record. value is left as it is.
func (r *Resealing) Record(key inventory.Key, value []byte) ([]byte, error) {
	if key == keyringKey {
		return nil, nil // Finish writes another
	}
	out, err := r.value(key, value)
	if err != nil {
		return nil, fmt.Errorf("record %s/%s is %w", key.Bucket, key.ID, err)
	}
	return out, nil
}

// Entry does the same for an entry of the log, which is always kept.
func (r *Resealing) Entry(value []byte) ([]byte, error) { return r.value(inLog, value) }

func (r *Resealing) value(key inventory.Key, value []byte) ([]byte, error) {
	if r.from.aead == nil {
		// Nothing that is stored begins like a sealed value. One that does was sealed
		// under a keyring that got lost, and sealing it again would hide that.
		if len(value) > 0 && value[0] == format {
			return nil, ErrDamaged
		}
	} else {
		var err error
		if value, err = r.from.open(key, bytes.Clone(value)); err != nil {
			return nil, err
		}
	}
	return r.to.seal(key, value), nil
}

// Finish writes the keyring to the new store, which is then sealed.
func (r *Resealing) Finish(ctx context.Context, s inventory.Store) error { return r.ring.write(ctx, s) }
