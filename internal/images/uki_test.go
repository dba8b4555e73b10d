package images

import (
	"bytes"
	"debug/pe"
	"errors"
	"io"
	"os"
	"strings"
	"testing"

	"github.com/provisiond/provisiond/internal/inventory"
	"github.com/provisiond/provisiond/internal/racktest"
)

// ukiImage stores the files of an image of an architecture, with a stub.
func ukiImage(t *testing.T, s *Store, arch string) *inventory.Image {
	t.Helper()
	put := func(b []byte) inventory.Blob {
		blob, err := s.Put(t.Context(), bytes.NewReader(b), "", 1<<30)
		if err != nil {
			t.Fatal(err)
		}
		return blob
	}
	return &inventory.Image{
		Version: "v1.13.6", Arch: inventory.Arch(arch),
		Kernel: put(racktest.Kernel(arch)), Initramfs: put(racktest.Initramfs()), Stub: put(racktest.Stub(arch)),
	}
}

// make1 returns the bytes of the UKI with a line.
func make1(t *testing.T, s *Store, i *inventory.Image, line string) []byte {
	t.Helper()
	template, err := s.UKI(i)
	if err != nil {
		t.Fatal(err)
	}
	m, err := template.Make(line, nil)
	if err != nil {
		t.Fatal(err)
	}
	var files []*os.File
	for _, b := range i.UKIFiles() {
		f, err := s.Open(b)
		if err != nil {
			t.Fatal(err)
		}
		files = append(files, f)
	}
	r, err := m.Open(files...)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	all, err := io.ReadAll(r)
	if err != nil {
		t.Fatal(err)
	}
	return all
}

// TestUKI makes UKIs of a stub, kernel and initramfs, and others of what came of that.
func TestUKI(t *testing.T) {
	for _, arch := range []string{racktest.AMD64, racktest.ARM64} {
		t.Run(arch, func(t *testing.T) {
			s, _ := open(t)
			i := ukiImage(t, s, arch)
			if err := s.CheckUKI(i); err != nil {
				t.Fatal(err)
			}
			first := make1(t, s, i, "one=1")
			blob, err := s.Put(t.Context(), bytes.NewReader(first), "", 1<<30)
			if err != nil {
				t.Fatal(err)
			}
			again := *i
			again.Stub, again.UKI = inventory.Blob{}, blob
			if err := s.CheckUKI(&again); err != nil {
				t.Fatal(err)
			}
			second := make1(t, s, &again, "two=2")
			f, err := pe.NewFile(bytes.NewReader(second))
			if err != nil {
				t.Fatal(err)
			}
			for name, want := range map[string][]byte{".linux": racktest.Kernel(arch), ".initrd": racktest.Initramfs(), ".cmdline": []byte("two=2")} {
				data, err := f.Section(name).Data()
				if err != nil || !bytes.HasPrefix(data, want) || len(bytes.TrimRight(data[len(want):], "\x00")) > 0 {
					t.Errorf("%s has %d bytes, want the %d that were put in: %v", name, len(data), len(want), err)
				}
			}
		})
	}
}

// TestUKIRefused has files that make no UKI, and expects the file and the section in the error.
func TestUKIRefused(t *testing.T) {
	s, _ := open(t)
	good := ukiImage(t, s, racktest.AMD64)
	put := func(b []byte) inventory.Blob {
		blob, err := s.Put(t.Context(), bytes.NewReader(b), "", 1<<30)
		if err != nil {
			t.Fatal(err)
		}
		return blob
	}
	unsigned := put(make1(t, s, good, "x"))
	lying := racktest.Stub(racktest.AMD64)
	lying[0x98+0xf0+40+18] = 0xff // the size of .sbat in the file
	for name, tc := range map[string]struct {
		set   func(*inventory.Image)
		field string
		says  string
	}{
		"a stub as UKI":           {func(i *inventory.Image) { i.UKI, i.Stub = i.Stub, inventory.Blob{} }, "uki", ".linux"},
		"a page as UKI":           {func(i *inventory.Image) { i.UKI = put([]byte(strings.Repeat("<html>", 100))) }, "uki", "not a PE file"},
		"a UKI as stub":           {func(i *inventory.Image) { i.Stub = unsigned }, "stub", "stub"},
		"a stub that lies":        {func(i *inventory.Image) { i.Stub = put(lying) }, "stub", ".sbat"},
		"of another architecture": {func(i *inventory.Image) { i.Stub = put(racktest.Stub(racktest.ARM64)) }, "stub", "arm64"},
		"the UKI too":             {func(i *inventory.Image) { i.UKI, i.Arch = unsigned, inventory.ARM64 }, "uki", "amd64"},
		"signed by nobody":        {func(i *inventory.Image) { i.Signed = unsigned }, "signed", "nobody signed it"},
		"signed, and no UKI":      {func(i *inventory.Image) { i.Signed = i.Stub }, "signed", ".linux"},
	} {
		i := *good
		tc.set(&i)
		err := s.CheckUKI(&i)
		bad, ok := errors.AsType[*inventory.FieldError](err)
		if !ok || bad.Field != tc.field || !strings.Contains(bad.Problem, tc.says) || bad.Fix == "" {
			t.Errorf("%s: %v, want a complaint of %s that says %q", name, err, tc.field, tc.says)
		}
	}
	if _, err := s.UKI(&inventory.Image{Kernel: good.Kernel, Initramfs: good.Initramfs}); !errors.Is(err, inventory.ErrNotFound) {
		t.Errorf("of an image with neither: %v", err)
	}
}
