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
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"testing/iotest"
	"time"

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

// age sets when a blob was written.
func age(t *testing.T, s *Store, blob inventory.Blob, d time.Duration) {
	t.Helper()
	at := time.Now().Add(-d)
	if err := os.Chtimes(s.path(blob.SHA256), at, at); err != nil {
		t.Fatal(err)
	}
}

func TestSweep(t *testing.T) {
	s, dir := open(t)
	named, old, young, future, again := put(t, s, []byte("named")), put(t, s, []byte("old")), put(t, s, []byte("young")), put(t, s, []byte("future")), put(t, s, []byte("again"))
	for blob, d := range map[inventory.Blob]time.Duration{named: 48 * time.Hour, old: 48 * time.Hour, young: time.Hour, future: -time.Hour, again: 48 * time.Hour} {
		age(t, s, blob, d)
	}
	put(t, s, []byte("again")) // a second upload makes it young
	for _, name := range []string{tempPrefix + "1", "README", strings.Repeat("A", 64)} {
		if err := os.WriteFile(filepath.Join(dir, name), nil, 0o600); err != nil {
			t.Fatal(err)
		}
		age(t, s, inventory.Blob{SHA256: name}, 48*time.Hour)
	}
	if err := os.Mkdir(filepath.Join(dir, strings.Repeat("b", 64)), 0o700); err != nil {
		t.Fatal(err)
	}
	age(t, s, inventory.Blob{SHA256: strings.Repeat("b", 64)}, 48*time.Hour)
	reader, err := s.Open(old)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = reader.Close() }()

	before := len(files(t, dir))
	var asked []string
	keep := func(d string) bool { asked = append(asked, d); return d == named.SHA256 }
	n, err := s.Sweep(keep, 24*time.Hour)
	if n != 1 || err != nil {
		t.Errorf("swept %d, %v", n, err)
	}
	if got := files(t, dir); len(got) != before-1 || slices.Contains(got, old.SHA256) {
		t.Errorf("the folder holds %q", got)
	}
	slices.Sort(asked)
	want := []string{named.SHA256, old.SHA256}
	if slices.Sort(want); !slices.Equal(asked, want) {
		t.Errorf("keep was asked for %q, want those that are old enough: %q", asked, want)
	}
	if got, err := io.ReadAll(reader); string(got) != "old" || err != nil {
		t.Errorf("a download that was under way got %q, %v", got, err)
	}
	if len(s.verdicts) != 0 {
		t.Error("the verdict on a blob that is gone is still there")
	}
	if n, err := s.Sweep(keep, 24*time.Hour); n != 0 || err != nil {
		t.Errorf("the second sweep: %d, %v", n, err)
	}
}

// An import that comes while a sweep decides must find its blob there.
func TestSweepDuringPut(t *testing.T) {
	s, _ := open(t)
	data := []byte("kernel")
	blob := put(t, s, data)
	age(t, s, blob, 48*time.Hour)
	imported := make(chan struct{})
	_, err := s.Sweep(func(string) bool {
		go func() {
			defer close(imported)
			if _, err := s.Put(t.Context(), bytes.NewReader(data), "", 1<<20); err != nil {
				t.Error(err)
			}
		}()
		select { // room for the mistake: the import is done before the file is removed
		case <-imported:
		case <-time.After(50 * time.Millisecond):
		}
		return false
	}, 24*time.Hour)
	if err != nil {
		t.Error(err)
	}
	<-imported
	if !s.Has(blob) {
		t.Error("the sweep removed what had just been imported")
	}
}

func TestSweepWithoutFolder(t *testing.T) {
	s, dir := open(t)
	if err := os.Remove(dir); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Sweep(func(string) bool { return true }, time.Hour); err == nil {
		t.Error("no error")
	}
}
