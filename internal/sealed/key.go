package sealed

import (
	"errors"
	"fmt"
	"strings"
	"time"

	"filippo.io/age"
)

// Key is an operator's key: an X25519 identity of age (age-encryption.org), so that
// age's own tools make it, show its public half, and open what is sealed to it.
type Key struct{ identity *age.X25519Identity }

// NewKey makes a key. It fails only without a source of randomness.
func NewKey() (*Key, error) {
	identity, err := age.GenerateX25519Identity()
	if err != nil {
		return nil, fmt.Errorf("making a key: %w", err)
	}
	return &Key{identity}, nil
}

// ParseKey reads a key as age-keygen writes it: one line AGE-SECRET-KEY-1…, among
// blank lines and remarks that begin with #. Its errors do not repeat the text.
func ParseKey(text string) (*Key, error) {
	var key *Key
	for line := range strings.Lines(text) {
		line = strings.TrimSpace(line)
		if line == "" || strings.HasPrefix(line, "#") {
			continue
		}
		if key != nil {
			return nil, errors.New("there is more than one key in it")
		}
		identity, err := age.ParseX25519Identity(line)
		if err != nil { // which may quote the line
			return nil, errors.New("it is no key of the form AGE-SECRET-KEY-1…, such as provisiond key new and age-keygen make")
		}
		key = &Key{identity}
	}
	if key == nil {
		return nil, errors.New("there is no key in it")
	}
	return key, nil
}

// Recipient is the public half, age1…: what is sealed to it, the key opens.
func (k *Key) Recipient() string { return k.identity.Recipient().String() }

// String is the public half, so that no key is printed by mistake.
func (k *Key) String() string { return k.Recipient() }

// Secret is the text of a key file: what ParseKey reads.
func (k *Key) Secret(made time.Time) string {
	return fmt.Sprintf("# created: %s\n# public key: %s\n%s\n", made.UTC().Format(time.RFC3339), k.Recipient(), k.identity)
}
