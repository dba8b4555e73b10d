package sealed

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"

	"filippo.io/age"

	"github.com/provisiond/provisiond/internal/inventory"
)

// keyring is the one record that is not sealed. It holds the key of all others,
// which the operator's key opens.
type keyring struct {
	Version int `json:"version"`
	// Recipient is whom it is sealed to, so that one who has no key, or another, can
	// be told which is needed. Nothing is decided by it alone.
	Recipient string `json:"recipient"`
	DataKey   []byte `json:"dataKey"` // encrypted by age
}

const keyringVersion = 1

var keyringKey = inventory.Key{Bucket: inventory.BucketKeyring, ID: "keyring"}

// ErrUnsealed: the store has no keyring, so its values are not sealed.
var ErrUnsealed = errors.New("not sealed")

// ErrDamaged: a value, or the keyring, is not what was written there.
var ErrDamaged = errors.New("damaged, or moved here from another place")

// WrongKeyError says that the store is sealed to another key than the one given.
type WrongKeyError struct{ SealedTo, Given string } // recipients

func (e *WrongKeyError) Error() string {
	return fmt.Sprintf("sealed to the key %s, and the one given is %s", e.SealedTo, e.Given)
}

// Recipient says which key a store is sealed to, or ErrUnsealed.
func Recipient(ctx context.Context, s inventory.Store) (string, error) {
	ring, err := readKeyring(ctx, s)
	return ring.Recipient, err
}

func readKeyring(ctx context.Context, s inventory.Store) (ring keyring, err error) {
	rec, err := s.Get(ctx, keyringKey)
	if errors.Is(err, inventory.ErrNotFound) {
		return ring, ErrUnsealed
	}
	if err != nil {
		return ring, err
	}
	return parseKeyring(rec.Value)
}

func parseKeyring(text []byte) (ring keyring, err error) {
	if err := json.Unmarshal(text, &ring); err != nil {
		return ring, fmt.Errorf("the keyring is %w", ErrDamaged)
	}
	if ring.Version != keyringVersion {
		return ring, fmt.Errorf("the keyring has version %d and this provisiond knows only %d: run the newer provisiond", ring.Version, keyringVersion)
	}
	return ring, nil
}

// newKeyring seals a new data key to an operator's key.
func newKeyring(to *Key) (keyring, dataKey, error) {
	secret := newSecret()
	var b bytes.Buffer
	w, err := age.Encrypt(&b, to.identity.Recipient())
	if err == nil {
		_, err = w.Write(secret)
	}
	if err == nil {
		err = w.Close()
	}
	if err != nil {
		return keyring{}, dataKey{}, fmt.Errorf("sealing the data key: %w", err)
	}
	return keyring{Version: keyringVersion, Recipient: to.Recipient(), DataKey: b.Bytes()}, newDataKey(secret), nil
}

// open unseals the data key.
func (r keyring) open(with *Key) (dataKey, error) {
	if given := with.Recipient(); given != r.Recipient {
		return dataKey{}, &WrongKeyError{SealedTo: r.Recipient, Given: given}
	}
	secret, err := age.Decrypt(bytes.NewReader(r.DataKey), with.identity)
	if err != nil {
		return dataKey{}, fmt.Errorf("the keyring is %w: %w", ErrDamaged, err)
	}
	text, err := io.ReadAll(io.LimitReader(secret, secretSize+1))
	if err != nil || len(text) != secretSize {
		return dataKey{}, fmt.Errorf("the keyring is %w", ErrDamaged)
	}
	return newDataKey(text), nil
}

// write puts the keyring into a store that has none.
func (r keyring) write(ctx context.Context, s inventory.Store) error {
	text, err := json.Marshal(r)
	if err != nil {
		return err
	}
	_, _, err = s.Commit(ctx, inventory.Commit{
		Checks: []inventory.Check{{Key: keyringKey}},
		Writes: []inventory.Write{{Key: keyringKey, Value: text}},
	})
	return err
}
