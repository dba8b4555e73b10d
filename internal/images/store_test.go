package images

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"testing/iotest"

	"github.com/provisiond/provisiond/internal/inventory"
)

func open(t *testing.T) (*Store, string) {
	t.Helper()
	dir := t.TempDir()
	s, err := Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	return s, filepath.Join(dir, "sha256")
}

func digest(b []byte) string {
	d := sha256.Sum256(b)
	return hex.EncodeToString(d[:])
}

func put(t *testing.T, s *Store, data []byte) inventory.Blob {
	t.Helper()
	blob, err := s.Put(t.Context(), bytes.NewReader(data), "", 1<<20)
	if err != nil {
		t.Fatal(err)
	}
	return blob
}

// files lists what is in the folder, imports included.
func files(t *testing.T, dir string) []string {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	names := []string{}
	for _, e := range entries {
		names = append(names, e.Name())
	}
	return names
}

func TestPutThenOpen(t *testing.T) {
	s, dir := open(t)
	data := bytes.Repeat([]byte("kernel"), 10_000)
	blob, err := s.Put(t.Context(), bytes.NewReader(data), strings.ToUpper(digest(data)), int64(len(data)))
	if err != nil {
		t.Fatal(err)
	}
	if want := (inventory.Blob{SHA256: digest(data), Size: int64(len(data))}); blob != want {
		t.Fatalf("blob is %v, want %v", blob, want)
	}
	if !s.Has(blob) {
		t.Error("Has says no after Put")
	}
	for range 2 { // verified, then remembered
		f, err := s.Open(blob)
		if err != nil {
			t.Fatal(err)
		}
		got, err := io.ReadAll(f)
		if err != nil || !bytes.Equal(got, data) {
			t.Errorf("read %d bytes (%v), want the %d that went in", len(got), err, len(data))
		}
		if err := f.Close(); err != nil {
			t.Error(err)
		}
	}
	again, err := s.Put(t.Context(), bytes.NewReader(data), "", 1<<20)
	if err != nil || again != blob {
		t.Errorf("putting it again gives %v, %v", again, err)
	}
	if got := files(t, dir); len(got) != 1 || got[0] != blob.SHA256 {
		t.Errorf("the folder holds %v", got)
	}
	if err := s.Delete(blob); err != nil {
		t.Fatal(err)
	}
	if s.Has(blob) {
		t.Error("Has says yes after Delete")
	}
	if _, err := s.Open(blob); !errors.Is(err, inventory.ErrNotFound) {
		t.Errorf("opening a deleted blob: %v", err)
	}
	if err := s.Delete(blob); !errors.Is(err, inventory.ErrNotFound) {
		t.Errorf("deleting it twice: %v", err)
	}
}

func TestPutRefuses(t *testing.T) {
	cancelled, cancel := context.WithCancel(t.Context())
	cancel()
	full := &os.PathError{Op: "write", Path: "x", Err: syscall.ENOSPC}
	for _, c := range []struct {
		name  string
		ctx   context.Context
		r     io.Reader
		want  string
		field string // of the FieldError
		is    error
	}{
		{"wrong hash", t.Context(), strings.NewReader("abc"), digest([]byte("abd")), "sha256", nil},
		{"no hash", t.Context(), strings.NewReader("abc"), "../../etc/passwd", "sha256", nil},
		{"too large", t.Context(), strings.NewReader("abcdefghi"), "", "body", nil},
		{"empty", t.Context(), strings.NewReader(""), "", "body", nil},
		{"broken off", t.Context(), io.MultiReader(strings.NewReader("abc"), iotest.ErrReader(io.ErrUnexpectedEOF)), "", "", io.ErrUnexpectedEOF},
		{"disk full", t.Context(), io.MultiReader(strings.NewReader("abc"), iotest.ErrReader(full)), "", "", inventory.ErrFull},
		{"cancelled", cancelled, strings.NewReader("abc"), "", "", context.Canceled},
	} {
		t.Run(c.name, func(t *testing.T) {
			s, dir := open(t)
			_, err := s.Put(c.ctx, c.r, c.want, 8)
			var fe *inventory.FieldError
			switch {
			case err == nil:
				t.Fatal("accepted")
			case c.field != "" && (!errors.As(err, &fe) || fe.Field != c.field):
				t.Errorf("error is %v, want one on field %s", err, c.field)
			case c.is != nil && !errors.Is(err, c.is):
				t.Errorf("error is %v, want %v", err, c.is)
			}
			if got := files(t, dir); len(got) != 0 {
				t.Errorf("left behind: %v", got)
			}
		})
	}
}

// TestDiskFull writes to a file that has no room, as far as one can have that
// without a small disk: a file size limit gives EFBIG, so the device /dev/full
// stands in for the temporary file.
func TestDiskFull(t *testing.T) {
	s, _ := open(t)
	dev, err := os.OpenFile("/dev/full", os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = dev.Close() }()
	_, err = s.receive(t.Context(), dev, strings.NewReader("abc"), "", 8)
	if !errors.Is(err, inventory.ErrFull) {
		t.Errorf("error is %v, want ErrFull", err)
	}
}

func TestOpenRefusesChangedFile(t *testing.T) {
	data := []byte("the content that was imported")
	for _, c := range []struct {
		name   string
		change func(path string) error
		is     error
	}{
		{"other content", func(p string) error { return os.WriteFile(p, bytes.Repeat([]byte("x"), len(data)), 0o600) }, ErrCorrupt},
		{"other content, time put back", func(p string) error {
			st, err := os.Stat(p)
			if err != nil {
				return err
			}
			if err := os.WriteFile(p, bytes.Repeat([]byte("x"), len(data)), 0o600); err != nil {
				return err
			}
			return os.Chtimes(p, st.ModTime(), st.ModTime())
		}, ErrCorrupt},
		{"shorter", func(p string) error { return os.Truncate(p, 3) }, ErrCorrupt},
		{"a directory", func(p string) error { return errors.Join(os.Remove(p), os.Mkdir(p, 0o700)) }, ErrCorrupt},
		{"gone", os.Remove, inventory.ErrNotFound},
	} {
		for _, opened := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s, opened before %v", c.name, opened), func(t *testing.T) {
				s, dir := open(t)
				blob := put(t, s, data)
				if opened {
					f, err := s.Open(blob)
					if err != nil {
						t.Fatal(err)
					}
					_ = f.Close()
				}
				if err := c.change(filepath.Join(dir, blob.SHA256)); err != nil {
					t.Fatal(err)
				}
				for range 2 {
					if _, err := s.Open(blob); !errors.Is(err, c.is) {
						t.Fatalf("error is %v, want %v", err, c.is)
					}
				}
				if c.name == "a directory" {
					return
				}
				if repaired := put(t, s, data); repaired != blob {
					t.Fatalf("importing again gives %v", repaired)
				}
				f, err := s.Open(blob)
				if err != nil {
					t.Fatalf("after importing again: %v", err)
				}
				_ = f.Close()
			})
		}
	}
}

func TestOpenRefusesNames(t *testing.T) {
	s, _ := open(t)
	for _, name := range []string{"", "..", "../sha256", strings.Repeat("a", 63) + "/", strings.Repeat("A", 64), strings.Repeat("g", 64)} {
		var fe *inventory.FieldError
		if _, err := s.Open(inventory.Blob{SHA256: name}); !errors.As(err, &fe) {
			t.Errorf("opening %q: %v", name, err)
		}
		if err := s.Delete(inventory.Blob{SHA256: name}); !errors.As(err, &fe) {
			t.Errorf("deleting %q: %v", name, err)
		}
		if s.Has(inventory.Blob{SHA256: name}) {
			t.Errorf("has %q", name)
		}
	}
}

func TestOpenConcurrently(t *testing.T) {
	s, _ := open(t)
	data := bytes.Repeat([]byte{7}, 1<<20)
	blob := put(t, s, data)
	var wg sync.WaitGroup
	for range 32 {
		wg.Go(func() {
			f, err := s.Open(blob)
			if err != nil {
				t.Error(err)
				return
			}
			defer func() { _ = f.Close() }()
			if got, err := io.ReadAll(f); err != nil || !bytes.Equal(got, data) {
				t.Errorf("read %d bytes, %v", len(got), err)
			}
		})
	}
	wg.Wait()
}

func TestOpenRemovesUnfinishedImports(t *testing.T) {
	s, dir := open(t)
	blob := put(t, s, []byte("whole"))
	if err := os.WriteFile(filepath.Join(dir, tempPrefix+"123"), []byte("half"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(filepath.Dir(dir)); err != nil {
		t.Fatal(err)
	}
	if got := files(t, dir); len(got) != 1 || got[0] != blob.SHA256 {
		t.Errorf("the folder holds %v", got)
	}
}
