package uki_test

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"runtime"
	"testing"
	"testing/iotest"

	"github.com/provisiond/provisiond/internal/uki"
	"github.com/provisiond/provisiond/internal/uki/ukitest"
)

// A reader reads the same bytes, however it is read.
func TestReader(t *testing.T) {
	kernel, initrd := ukitest.Kernel("amd64", 7001), ukitest.Noise("initrd", 10003)
	m := assemble(t, ukitest.Stub("amd64").Bytes(), kernel, initrd, "ID=talos\n", "6.18")
	image, b := m.make(t, line, signer{700})
	var together []byte
	for _, p := range image.Pieces() {
		content := p.Bytes
		if content == nil {
			file, err := os.ReadFile(m.paths[p.File])
			if err != nil {
				t.Fatal(err)
			}
			content = file[p.Offset:][:p.Size]
		}
		if int64(len(content)) != p.Size || p.Size == 0 {
			t.Errorf("a piece of %d bytes says %d", len(content), p.Size)
		}
		together = append(together, content...)
	}
	if !bytes.Equal(together, b) {
		t.Error("the pieces are not what was read")
	}
	if err := iotest.TestReader(m.open(t, image), b); err != nil {
		t.Error(err)
	}
	r, random := m.open(t, image), rand.New(rand.NewPCG(1, 2))
	for range 2000 {
		from := random.Int64N(int64(len(b)) + 1)
		size := random.Int64N(int64(len(b)) - from + 1)
		if at, err := r.Seek(from, io.SeekStart); at != from || err != nil {
			t.Fatalf("Seek: %d, %v", at, err)
		}
		var got []byte
		if random.IntN(2) == 0 {
			got = make([]byte, size)
			if _, err := io.ReadFull(r, got); err != nil {
				t.Fatal(err)
			}
		} else {
			for left := size; left > 0; {
				next, n, err := r.Next(min(left, 1+random.Int64N(5000)))
				if err != nil {
					t.Fatal(err)
				}
				part, err := io.ReadAll(next)
				if int64(len(part)) != n || err != nil {
					t.Fatalf("Next promised %d bytes and had %d (%v)", n, len(part), err)
				}
				got, left = append(got, part...), left-n
			}
		}
		if !bytes.Equal(got, b[from:from+size]) {
			t.Fatalf("bytes %d to %d are others", from, from+size)
		}
		if at, err := r.Seek(0, io.SeekCurrent); at != from+size || err != nil {
			t.Fatalf("after %d bytes from %d on the reader is at %d (%v)", size, from, at, err)
		}
	}
	if _, err := r.Seek(-1, io.SeekStart); err == nil {
		t.Error("a seek before the beginning is taken")
	}
	if at, err := r.Seek(5, io.SeekEnd); at != int64(len(b))+5 || err != nil {
		t.Errorf("a seek behind the end: %d, %v", at, err)
	}
	if n, err := r.Read(make([]byte, 1)); n != 0 || !errors.Is(err, io.EOF) {
		t.Errorf("behind the end: %d bytes, %v", n, err)
	}
	if _, _, err := r.Next(1); !errors.Is(err, io.EOF) {
		t.Errorf("behind the end: %v", err)
	}
}

// What is of a file is handed out as the kernel takes it: one limit around it.
func TestNextForSendfile(t *testing.T) {
	m := fromUKI(t, official("amd64").Bytes())
	image, b := m.make(t, line, nil)
	r := m.open(t, image)
	var files, own int64
	for {
		next, n, err := r.Next(1 << 40)
		if errors.Is(err, io.EOF) {
			break
		} else if err != nil {
			t.Fatal(err)
		}
		switch next := next.(type) {
		case *io.LimitedReader:
			if _, ok := next.R.(*os.File); !ok || next.N != n {
				t.Errorf("%d bytes are of a %T, limited to %d", n, next.R, next.N)
			}
			files += n
		case *bytes.Reader:
			own += n
		default:
			t.Errorf("%d bytes are of a %T", n, next)
		}
	}
	if files+own != int64(len(b)) || own > 4<<10 {
		t.Errorf("%d bytes are of files and %d are not, of %d", files, own, len(b))
	}
}

func TestOpenRefuses(t *testing.T) {
	m := fromUKI(t, official("amd64").Bytes())
	image, _ := m.make(t, line, nil)
	if _, err := image.Open(); err == nil {
		t.Error("without its file the UKI is read")
	}
	f, err := os.OpenFile(m.paths[0], os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	r := m.open(t, image)
	if err := f.Truncate(8000); err != nil {
		t.Fatal(err)
	}
	if _, err := image.Open(f); err == nil {
		t.Error("with a file of another size the UKI is read")
	}
	if _, err := io.ReadAll(r); !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Errorf("the file was cut while it was read: %v", err)
	}
}

// TestManyAtOnce has 1,000 UKIs open, each of its own machine: they cost little memory,
// and the files are closed with them.
func TestManyAtOnce(t *testing.T) {
	const machines, most = 1000, 16 << 10 // bytes of each; the line and a signature have 3.5 kB
	m := assemble(t, ukitest.Stub("amd64").Bytes(), ukitest.Kernel("amd64", 1<<20), ukitest.Noise("initrd", 8<<20), "ID=talos\n", "6.18")
	fdsBefore, heapBefore := openFiles(t), heap()
	readers := make([]*uki.Reader, machines)
	for i := range readers {
		image, err := m.Make(fmt.Sprint(line, i), signer{1480})
		if err != nil {
			t.Fatal(err)
		}
		files := make([]*os.File, len(m.paths))
		for j, path := range m.paths {
			if files[j], err = os.Open(path); err != nil {
				t.Fatal(err)
			}
		}
		if readers[i], err = image.Open(files...); err != nil {
			t.Fatal(err)
		}
		// As far as firmware has read when it hangs up.
		if _, err := readers[i].Read(make([]byte, 100)); err != nil {
			t.Fatal(err)
		}
	}
	if each := (heap() - heapBefore) / machines; each > most {
		t.Errorf("a UKI costs %d bytes of memory, want at most %d", each, most)
	}
	if n := openFiles(t) - fdsBefore; n != machines*len(m.paths) {
		t.Errorf("%d files are open for %d UKIs of %d files", n, machines, len(m.paths))
	}
	for _, r := range readers {
		if err := r.Close(); err != nil {
			t.Error(err)
		}
	}
	if n := openFiles(t) - fdsBefore; n != 0 {
		t.Errorf("%d files are open when all are closed", n)
	}
}

// heap is how many bytes are in use.
func heap() int64 {
	runtime.GC()
	var s runtime.MemStats
	runtime.ReadMemStats(&s)
	return int64(s.HeapAlloc)
}

func openFiles(t *testing.T) int {
	t.Helper()
	entries, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(entries)
}
