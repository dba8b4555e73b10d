package daemon

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"github.com/provisiond/provisiond/internal/sealed"
)

// Where the operator's key may be, beside the file of the setting `key`.
const (
	keyCredential = "provisiond.key" // a systemd credential
	keyVariable   = "PROVISIOND_KEY" // of the environment: the key itself
)

// givenKey is an operator's key and where it was found.
type givenKey struct {
	*sealed.Key
	from string
}

// findKey looks in all places where the operator's key may be. It returns nil when it
// is in none; two places with different keys are an error. The variable is taken out
// of the environment, so that no process we start inherits it.
func findKey(cfg *Config) (*givenKey, error) {
	var found *givenKey
	add := func(from, text string) error {
		key, err := sealed.ParseKey(text)
		switch {
		case err != nil:
			return fmt.Errorf("%s: %w", from, err)
		case found != nil && found.Recipient() != key.Recipient():
			return fmt.Errorf("there are two keys, and only one can be right: %s in %s, and %s in %s (remove one; provisiond key show says which the database needs)",
				found.Recipient(), found.from, key.Recipient(), from)
		case found == nil:
			found = &givenKey{key, from}
		}
		return nil
	}
	if dir := os.Getenv("CREDENTIALS_DIRECTORY"); dir != "" {
		// Systemd guards it; its mode may show a group that an ACL rules out.
		text, err := os.ReadFile(filepath.Join(dir, keyCredential))
		if err == nil {
			err = add("the credential "+keyCredential, string(text))
		}
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return nil, err
		}
	}
	if text, ok := os.LookupEnv(keyVariable); ok {
		if err := os.Unsetenv(keyVariable); err != nil {
			return nil, err
		}
		if err := add("the environment variable "+keyVariable, text); err != nil {
			return nil, err
		}
	}
	text, err := readPrivate(cfg.Key)
	if err == nil {
		err = add(cfg.Key, text)
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("key: %w", err)
	}
	return found, nil
}

// ReadKey reads a file that holds an operator's key. Nobody but its owner may be able
// to read it.
func ReadKey(path string) (*sealed.Key, error) {
	text, err := readPrivate(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("%w (make a key: provisiond key new %s)", err, path)
	}
	if err != nil {
		return nil, err
	}
	key, err := sealed.ParseKey(text)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return key, nil
}

// maxKeyFile is more than any key file has, remarks included.
const maxKeyFile = 64 << 10

func readPrivate(path string) (string, error) {
	info, err := os.Stat(path)
	if err != nil {
		return "", err
	}
	if !info.Mode().IsRegular() || info.Size() > maxKeyFile {
		return "", fmt.Errorf("%s is no key file", path)
	}
	if info.Mode().Perm()&0o077 != 0 {
		return "", fmt.Errorf("%s can be read by others than its owner (chmod 600 %s; if others may have read it, provisiond key rotate changes the key)", path, path)
	}
	text, err := os.ReadFile(path)
	return string(text), err
}

// NewKeyFile makes a key and a file for it, which only its owner can read. It is on the
// disk when NewKeyFile returns, whole or not at all. A file that exists is never
// replaced: a database may be sealed to what it holds.
func NewKeyFile(path string) (*sealed.Key, error) {
	key, err := sealed.NewKey()
	if err != nil {
		return nil, err
	}
	dir := filepath.Dir(path)
	tmp, err := os.CreateTemp(dir, ".provisiond-key-") // its mode is 0600
	if err != nil {
		return nil, err
	}
	_, err = tmp.WriteString(key.Secret(time.Now()))
	err = errors.Join(err, tmp.Sync(), tmp.Close())
	if err == nil {
		err = os.Link(tmp.Name(), path) // unlike a rename it replaces nothing
	}
	if err := errors.Join(err, os.Remove(tmp.Name())); err != nil {
		return nil, err
	}
	return key, syncFolder(dir)
}

func syncFolder(path string) error {
	dir, err := os.Open(path)
	if err != nil {
		return err
	}
	return errors.Join(dir.Sync(), dir.Close())
}
