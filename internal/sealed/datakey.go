package sealed

import (
	"crypto/cipher"
	"crypto/rand"
	"fmt"

	"golang.org/x/crypto/chacha20poly1305"

	"github.com/provisiond/provisiond/internal/inventory"
)

// A sealed value is one octet that names this format, a random nonce, and what
// XChaCha20-Poly1305 makes of the value. Its nonces are so long that chance alone
// keeps them apart, for as many values as there will ever be: nothing has to be
// counted, and no data key wears out, as those of AES-GCM do.
const (
	format     = 1
	headerSize = 1 + chacha20poly1305.NonceSizeX
	secretSize = chacha20poly1305.KeySize
)

// dataKey seals values.
type dataKey struct{ aead cipher.AEAD }

func newSecret() []byte {
	secret := make([]byte, secretSize)
	_, _ = rand.Read(secret) // never fails (crypto/rand)
	return secret
}

func newDataKey(secret []byte) dataKey {
	aead, err := chacha20poly1305.NewX(secret)
	if err != nil {
		panic(err) // a secret of another size, which callers rule out
	}
	return dataKey{aead}
}

// place is where a value belongs. It is sealed with the value, which therefore opens
// nowhere else. Entries of the log are numbered by the store only when they are
// written, so their place is the log as a whole.
func place(key inventory.Key) []byte {
	at := make([]byte, 0, 2+len(key.Bucket)+len(key.ID))
	at = append(at, format)
	at = append(at, key.Bucket...)
	at = append(at, 0)
	return append(at, key.ID...)
}

// inLog is the place of log entries. No record has it: each has a bucket.
var inLog = inventory.Key{}

func (k dataKey) seal(key inventory.Key, value []byte) []byte {
	out := make([]byte, headerSize, headerSize+len(value)+chacha20poly1305.Overhead)
	out[0] = format
	_, _ = rand.Read(out[1:]) // never fails (crypto/rand)
	return k.aead.Seal(out, out[1:], value, place(key))
}

// open opens a sealed value, and writes over it.
func (k dataKey) open(key inventory.Key, value []byte) ([]byte, error) {
	if len(value) < headerSize {
		return nil, ErrDamaged
	}
	if value[0] != format {
		return nil, fmt.Errorf("sealed in format %d, and this provisiond knows only %d: run the newer provisiond, if it is not %w", value[0], format, ErrDamaged)
	}
	text := value[headerSize:]
	out, err := k.aead.Open(text[:0], value[1:headerSize], text, place(key))
	if err != nil {
		return nil, ErrDamaged
	}
	return out, nil
}
