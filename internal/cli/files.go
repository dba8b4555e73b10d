package cli

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"unicode/utf8"

	"github.com/provisiond/provisiond/api"
)

// maxText bounds a patch and a file of secrets, in bytes: escaped as JSON they
// have to fit into a request.
const maxText = api.MaxBody / 2

// maxRack bounds a file of apply, in bytes. As JSON it is smaller, and the API
// has the last word.
const maxRack = 8 * api.MaxBody

// readText reads the file that a flag named, or standard input for -.
func readText(flag, name string, stdin io.Reader, limit int64) ([]byte, error) {
	in := stdin
	if name != "-" {
		f, err := os.Open(name)
		if err != nil {
			return nil, fmt.Errorf("--%s %s: %w", flag, name, cause(err))
		}
		defer func() { _ = f.Close() }() // it was only read
		in = f
	}
	b, err := io.ReadAll(io.LimitReader(in, limit+1))
	switch {
	case err != nil:
		return nil, fmt.Errorf("--%s %s: %w", flag, name, cause(err))
	case int64(len(b)) > limit:
		return nil, fmt.Errorf("--%s %s: larger than %d KiB: is it the right file?", flag, name, limit>>10)
	case bytes.IndexByte(b, 0) >= 0 || !utf8.Valid(b):
		return nil, fmt.Errorf("--%s %s: not text but binary: is it the right file?", flag, name)
	}
	return b, nil
}

// writeSecret makes a file of mode 0600 that is whole or not there: written
// beside its name, synced, renamed. An older file of that name is replaced. It
// returns the size in bytes.
func writeSecret(name string, content io.Reader) (size int64, err error) {
	f, err := os.CreateTemp(filepath.Dir(name), "."+filepath.Base(name)+".*") // mode 0600
	if err != nil {
		return 0, fmt.Errorf("writing %s: %w", name, cause(err))
	}
	size, err = io.Copy(f, content)
	err = errors.Join(err, f.Sync(), f.Close())
	if err == nil {
		err = os.Rename(f.Name(), name)
	}
	if err != nil {
		return 0, errors.Join(fmt.Errorf("writing %s: %w", name, cause(err)), os.Remove(f.Name()))
	}
	dir, err := os.Open(filepath.Dir(name))
	if err != nil {
		return 0, err
	}
	return size, errors.Join(dir.Sync(), dir.Close())
}

// cause is an error of a file without the file's name, which the caller says as
// the operator wrote it.
func cause(err error) error {
	var path *fs.PathError
	var link *os.LinkError
	switch {
	case errors.As(err, &path):
		return path.Err
	case errors.As(err, &link):
		return link.Err
	}
	return err
}
