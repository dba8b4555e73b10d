// Package images keeps boot images by content: every kernel and initramfs is a
// file named by its SHA-256, so that a file can be served only while it is
// still what was imported.
package images

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sync/singleflight"

	"github.com/provisiond/provisiond/internal/inventory"
	"github.com/provisiond/provisiond/internal/uki"
)

// ErrCorrupt: a blob's file is no longer what its name says. Importing the
// image again repairs it.
var ErrCorrupt = errors.New("content does not match its SHA-256")

// tempPrefix marks files of imports that have not finished.
const tempPrefix = ".import-"

// Store is a folder of blobs: DIR/sha256/HEX. It is safe for concurrent use by
// one process.
type Store struct {
	dir string // DIR/sha256

	placing   sync.Mutex         // held while a file gets its name, and while Sweep looks at one and removes it
	verifying singleflight.Group // by hex digest
	mu        sync.Mutex
	verdicts  map[string]verdict // by hex digest

	laying    singleflight.Group       // by what a template is made of
	templates map[string]*uki.Template // at most maxTemplates; under mu
}

// verdict remembers the outcome of reading a whole file, for as long as the
// file is the same one.
type verdict struct {
	of   identity
	good bool
}

// identity tells whether a file may have changed since it was read. The change
// time is in it because a copy can preserve every other field.
type identity struct {
	size         int64
	dev, inode   uint64
	mtime, ctime syscall.Timespec
}

// Open opens the folder dir and creates it if need be. It removes what imports
// that did not finish have left there.
func Open(dir string) (*Store, error) {
	blobs := filepath.Join(dir, "sha256")
	if err := os.MkdirAll(blobs, 0o755); err != nil {
		return nil, fmt.Errorf("creating the image folder: %w", err)
	}
	entries, err := os.ReadDir(blobs)
	if err != nil {
		return nil, fmt.Errorf("reading the image folder: %w", err)
	}
	for _, e := range entries {
		if !strings.HasPrefix(e.Name(), tempPrefix) {
			continue
		}
		if err := os.Remove(filepath.Join(blobs, e.Name())); err != nil {
			return nil, fmt.Errorf("removing an unfinished import: %w", err)
		}
	}
	return &Store{dir: blobs, verdicts: map[string]verdict{}, templates: map[string]*uki.Template{}}, nil
}

// Put reads r to its end and keeps it. want is the SHA-256 it must have, 64
// hexadecimal digits, or "" for any. A stream of more than limit bytes, an empty
// one and one with another hash are refused with a [*inventory.FieldError]; a
// full disk gives an error that wraps [inventory.ErrFull]. After any error
// nothing is left behind. When it returns nil the blob survives a crash.
func (s *Store) Put(ctx context.Context, r io.Reader, want string, limit int64) (inventory.Blob, error) {
	want = strings.ToLower(want)
	if want != "" {
		if err := checkDigest(want); err != nil {
			return inventory.Blob{}, err
		}
	}
	temp, err := os.CreateTemp(s.dir, tempPrefix)
	if err != nil {
		return inventory.Blob{}, fmt.Errorf("importing an image: %w", full(err))
	}
	blob, err := s.receive(ctx, temp, r, want, limit)
	if err != nil {
		// Nothing can be done about a failing removal here; Open cleans up.
		_ = temp.Close()
		_ = os.Remove(temp.Name())
		return inventory.Blob{}, err
	}
	return blob, nil
}

// receive fills temp from r and moves it to its name.
func (s *Store) receive(ctx context.Context, temp *os.File, r io.Reader, want string, limit int64) (inventory.Blob, error) {
	digest := sha256.New()
	size, err := io.Copy(io.MultiWriter(temp, digest), &contextReader{ctx, io.LimitReader(r, limit+1)})
	switch {
	case err != nil:
		return inventory.Blob{}, fmt.Errorf("importing an image after %d bytes: %w", size, full(err))
	case size > limit:
		return inventory.Blob{}, &inventory.FieldError{Field: "body", Problem: fmt.Sprintf("the file is larger than %d bytes", limit), Fix: "is it a kernel or an initramfs?"}
	case size == 0:
		return inventory.Blob{}, &inventory.FieldError{Field: "body", Problem: "the file is empty", Fix: "send the file's bytes"}
	}
	got := sum(digest)
	if want != "" && got != want {
		return inventory.Blob{}, &inventory.FieldError{Field: "sha256", Problem: fmt.Sprintf("the file's SHA-256 is %s, not %s", got, want), Fix: "fetch the file again, or correct the hash"}
	}
	if err := errors.Join(temp.Chmod(0o644), temp.Sync(), temp.Close()); err != nil {
		return inventory.Blob{}, fmt.Errorf("importing image %s: %w", got, full(err))
	}
	// Renaming over a blob that is there already repairs one that was damaged.
	s.placing.Lock()
	err = os.Rename(temp.Name(), s.path(got))
	s.placing.Unlock()
	if err != nil {
		return inventory.Blob{}, fmt.Errorf("importing image %s: %w", got, full(err))
	}
	if err := syncDir(s.dir); err != nil {
		return inventory.Blob{}, fmt.Errorf("importing image %s: %w", got, full(err))
	}
	return inventory.Blob{SHA256: got, Size: size}, nil
}

// Open opens a blob for reading. The first time, and again after its file was
// touched, the whole content is read and compared with its name; callers that
// ask at the same time share one reading. A file that differs gives [ErrCorrupt], a
// missing one [inventory.ErrNotFound]. The caller closes the file.
func (s *Store) Open(blob inventory.Blob) (*os.File, error) {
	if err := checkDigest(blob.SHA256); err != nil {
		return nil, err
	}
	f, err := os.Open(s.path(blob.SHA256))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("opening image %s: %w", blob.SHA256, inventory.ErrNotFound)
	}
	if err != nil {
		return nil, fmt.Errorf("opening image %s: %w", blob.SHA256, err)
	}
	if err := s.check(f, blob); err != nil {
		_ = f.Close()
		return nil, fmt.Errorf("opening image %s: %w", blob.SHA256, err)
	}
	return f, nil
}

func (s *Store) check(f *os.File, blob inventory.Blob) error {
	is, err := identify(f)
	if err != nil {
		return err
	}
	if is.size != blob.Size {
		return fmt.Errorf("%w: the file has %d bytes and should have %d; import the image again", ErrCorrupt, is.size, blob.Size)
	}
	// Twice, since a shared reading may have been of a file that an import has
	// replaced in between.
	for range 2 {
		s.mu.Lock()
		v, known := s.verdicts[blob.SHA256]
		s.mu.Unlock()
		if known && v.of == is {
			if !v.good {
				return fmt.Errorf("%w: the file changed on disk; import the image again", ErrCorrupt)
			}
			return nil
		}
		_, err, _ := s.verifying.Do(blob.SHA256, func() (any, error) { return nil, s.verify(f, is, blob.SHA256) })
		if err != nil {
			return err
		}
	}
	return fmt.Errorf("%w: the file keeps changing", ErrCorrupt)
}

// verify reads f whole and remembers the verdict.
func (s *Store) verify(f *os.File, is identity, want string) error {
	digest := sha256.New()
	// A section leaves the file's own offset where it is, at the start.
	if _, err := io.Copy(digest, io.NewSectionReader(f, 0, is.size)); err != nil {
		return fmt.Errorf("verifying: %w", err)
	}
	after, err := identify(f)
	if err != nil {
		return err
	}
	if after != is {
		return fmt.Errorf("%w: the file changed while it was read", ErrCorrupt)
	}
	s.mu.Lock()
	s.verdicts[want] = verdict{of: is, good: sum(digest) == want}
	s.mu.Unlock()
	return nil
}

// Has reports whether the blob's file is there with the right size. It does not
// read it.
func (s *Store) Has(blob inventory.Blob) bool {
	if checkDigest(blob.SHA256) != nil {
		return false
	}
	info, err := os.Stat(s.path(blob.SHA256))
	return err == nil && info.Mode().IsRegular() && info.Size() == blob.Size
}

// Delete removes a blob. Downloads that have it open go on. A blob that is not
// there gives [inventory.ErrNotFound].
func (s *Store) Delete(blob inventory.Blob) error {
	if err := checkDigest(blob.SHA256); err != nil {
		return err
	}
	err := os.Remove(s.path(blob.SHA256))
	if errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("deleting image %s: %w", blob.SHA256, inventory.ErrNotFound)
	}
	if err == nil {
		err = syncDir(s.dir)
	}
	if err != nil {
		return fmt.Errorf("deleting image %s: %w", blob.SHA256, err)
	}
	s.forget(blob.SHA256)
	return nil
}

// Sweep deletes the blobs that keep says no to and that were written longer ago
// than olderThan, and returns how many. The age is for uploads whose image
// record is still to come: it must be longer than operators take between the
// two; sending the same file again makes it young. keep is asked with 64 hexadecimal
// digits, right before each removal, and must not call Put. Files that are no blobs
// stay. One that cannot be removed does not stop the others.
func (s *Store) Sweep(keep func(sha256 string) bool, olderThan time.Duration) (int, error) {
	entries, err := os.ReadDir(s.dir)
	if err != nil {
		return 0, fmt.Errorf("sweeping the image folder: %w", err)
	}
	deleted, errs := 0, []error(nil)
	before := time.Now().Add(-olderThan)
	for _, e := range entries {
		if checkDigest(e.Name()) != nil {
			continue
		}
		gone, err := s.sweep(e.Name(), keep, before)
		if err != nil {
			errs = append(errs, fmt.Errorf("sweeping image %s: %w", e.Name(), err))
		}
		if gone {
			deleted++
		}
	}
	if deleted > 0 {
		errs = append(errs, syncDir(s.dir))
	}
	return deleted, errors.Join(errs...)
}

// sweep looks at one file again, for an import may have renewed it.
func (s *Store) sweep(digest string, keep func(string) bool, before time.Time) (bool, error) {
	s.placing.Lock()
	defer s.placing.Unlock()
	info, err := os.Lstat(s.path(digest))
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	if !info.Mode().IsRegular() || !info.ModTime().Before(before) || keep(digest) {
		return false, nil
	}
	if err := os.Remove(s.path(digest)); err != nil {
		return false, err
	}
	s.forget(digest)
	return true, nil
}

func (s *Store) forget(digest string) {
	s.mu.Lock()
	delete(s.verdicts, digest)
	s.mu.Unlock()
}

func (s *Store) path(digest string) string { return filepath.Join(s.dir, digest) }

// checkDigest keeps anything but a digest out of file names.
func checkDigest(s string) error {
	ok := len(s) == 2*sha256.Size
	for i := 0; ok && i < len(s); i++ {
		ok = s[i] >= '0' && s[i] <= '9' || s[i] >= 'a' && s[i] <= 'f'
	}
	if !ok {
		return &inventory.FieldError{Field: "sha256", Problem: fmt.Sprintf("%.80q is not a SHA-256", s), Fix: "64 hexadecimal digits"}
	}
	return nil
}

func identify(f *os.File) (identity, error) {
	info, err := f.Stat()
	if err != nil {
		return identity{}, err
	}
	st, ok := info.Sys().(*syscall.Stat_t)
	if !ok || !info.Mode().IsRegular() {
		return identity{}, fmt.Errorf("%w: not a regular file", ErrCorrupt)
	}
	return identity{size: st.Size, dev: st.Dev, inode: st.Ino, mtime: st.Mtim, ctime: st.Ctim}, nil
}

func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

func sum(h hash.Hash) string { return hex.EncodeToString(h.Sum(nil)) }

// full marks errors that mean the disk has no room.
func full(err error) error {
	if errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT) {
		return fmt.Errorf("the disk of the image folder is %w: %w", inventory.ErrFull, err)
	}
	return err
}

// contextReader stops a long copy when ctx ends.
type contextReader struct {
	ctx context.Context
	r   io.Reader
}

func (c *contextReader) Read(p []byte) (int, error) {
	if err := c.ctx.Err(); err != nil {
		return 0, err
	}
	return c.r.Read(p)
}
