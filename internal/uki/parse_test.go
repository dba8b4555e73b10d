package uki_test

import (
	"bytes"
	"debug/pe"
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"strings"
	"testing"

	"github.com/provisiond/provisiond/internal/uki"
	"github.com/provisiond/provisiond/internal/uki/ukitest"
)

const officialLine = "talos.platform=metal console=ttyS0 slab_nomerge pti=on"

func official(arch string) ukitest.PE {
	return ukitest.UKI(arch, officialLine, ukitest.Kernel(arch, 9000), ukitest.Noise("initrd", 20001))
}

func parse(b []byte) (*uki.File, error) { return uki.Parse(bytes.NewReader(b), int64(len(b))) }

func mustParse(t *testing.T, b []byte) *uki.File {
	t.Helper()
	f, err := parse(b)
	if err != nil {
		t.Fatal(err)
	}
	return f
}

func TestParse(t *testing.T) {
	for _, arch := range []string{"amd64", "arm64"} {
		p := official(arch)
		p.Certificates = make([]byte, 64)
		b := p.Bytes()
		f := mustParse(t, b)
		if err := f.CheckUKI(); err != nil {
			t.Error(err)
		}
		if f.Arch() != arch || f.Line() != officialLine || f.Uname() != "6.18.5-talos" || f.OSRelease() != "ID=talos\nVERSION_ID=v1.13.6" {
			t.Errorf("%s, line %q, uname %q, osrel %q", f.Arch(), f.Line(), f.Uname(), f.OSRelease())
		}
		if at, size := f.Certificates(); at != int64(len(b)-64) || size != 64 {
			t.Errorf("certificates are %d bytes at %d, want 64 at %d", size, at, len(b)-64)
		}
		other, err := pe.NewFile(bytes.NewReader(b))
		if err != nil {
			t.Fatal(err)
		}
		if err := sameSections(f, other); err != nil {
			t.Error(err)
		}
	}
}

// sameSections compares with what debug/pe reads.
func sameSections(f *uki.File, other *pe.File) error {
	if len(f.Sections()) != len(other.Sections) {
		return fmt.Errorf("%d sections, and debug/pe reads %d", len(f.Sections()), len(other.Sections))
	}
	for i, s := range f.Sections() {
		o := other.Sections[i].SectionHeader
		if s.Name != o.Name || s.VirtualAddress != o.VirtualAddress || s.VirtualSize != o.VirtualSize || s.Offset != o.Offset || s.Size != o.Size {
			return fmt.Errorf("section %+v, and debug/pe reads %+v", s, o)
		}
	}
	return nil
}

// Where things are in ukitest's files.
const (
	coffAt     = 128
	optionalAt = coffAt + 24
	tableAt    = optionalAt + 240
)

func TestParseRefuses(t *testing.T) {
	valid := official("amd64")
	put16 := func(at int, v uint16) func([]byte) []byte {
		return func(b []byte) []byte { binary.LittleEndian.PutUint16(b[at:], v); return b }
	}
	put32 := func(at int, v uint32) func([]byte) []byte {
		return func(b []byte) []byte { binary.LittleEndian.PutUint32(b[at:], v); return b }
	}
	// A field of the entry of a section.
	field := func(name string, at int, v uint32) func([]byte) []byte {
		for i, s := range valid.Sections {
			if s.Name == name {
				return put32(tableAt+40*i+at, v)
			}
		}
		t.Fatalf("no section %s", name)
		return nil
	}
	for _, c := range []struct {
		name    string
		change  func([]byte) []byte
		section string
		says    string
	}{
		{"nothing", func(b []byte) []byte { return nil }, "", "not a PE file"},
		{"an initramfs", func(b []byte) []byte { return []byte(strings.Repeat("070701", 100)) }, "", "not a PE file"},
		{"a DOS program", put32(coffAt, 0), "", "no PE header"},
		{"a header beyond the end", put32(60, 1<<31), "", "not a PE file"},
		{"a header in the DOS header", func(b []byte) []byte {
			binary.LittleEndian.PutUint32(b[60:], 16)
			copy(b[16:], "PE\x00\x00\x64\x86")
			return b
		}, "", "within the DOS header"},
		{"for RISC-V", put16(coffAt+4, 0x5064), "", "machine 0x5064"},
		{"PE32", put16(optionalAt, 0x10b), "", "not a 64-bit image"},
		{"no application", put16(optionalAt+68, 12), "", "not a UEFI application"},
		{"not to be started", put16(coffAt+22, 0), "", "executable"},
		{"no sections", put16(coffAt+6, 0), "", "0 sections"},
		{"97 sections", put16(coffAt+6, 97), "", "97 sections"},
		{"a section table beyond the headers", put16(coffAt+6, 60), "", "beyond the headers"},
		{"an optional header that is short", put16(coffAt+20, 112), "", "112 bytes"},
		{"an optional header that is long", put16(coffAt+20, 500), "", "500 bytes"},
		{"other directories than there are", put32(optionalAt+108, 15), "", "15 data directories"},
		{"symbols beyond the end", put32(coffAt+16, 1<<20), "", "symbol table"},
		{"file alignment 500", put32(optionalAt+36, 500), "", "file alignment is 500"},
		{"file alignment 0", put32(optionalAt+36, 0), "", "file alignment is 0"},
		{"file alignment 1 MB", put32(optionalAt+36, 1<<20), "", "file alignment"},
		{"section alignment 0", put32(optionalAt+32, 0), "", "section alignment is 0"},
		{"section alignment below that of the file", put32(optionalAt+32, 256), "", "section alignment is 256"},
		{"headers beyond the file", put32(optionalAt+60, 0xfe00), "", "the headers have"},
		{"headers not aligned", put32(optionalAt+60, 1100), "", "the headers have"},
		{"headers that reach into the first section", put32(optionalAt+60, 2048), ".text", "before the end of what precedes it"},
		{"an image that is too small", put32(optionalAt+56, 0x5000), ".sbat", "beyond the end of the image"},
		{"a section beyond the end", func(b []byte) []byte { return b[:len(b)-512] }, ".pcrsig", "beyond the end of the file"},
		{"a kernel that begins beyond the end", field(".linux", 20, 0xfffffe00), ".linux", "beyond the end of the file"},
		{"an initramfs of 4 GiB", field(".initrd", 16, 0xfffffe00), ".initrd", "never be loaded"},
		{"an initramfs of 4 GiB in memory", field(".initrd", 8, 0xffffffff), ".initrd", "beyond the end of the image"},
		{"no size in memory", field(".uname", 8, 0), ".uname", "no size in memory"},
		{"more in the file than in memory", field(".splash", 8, 5), ".splash", "never be loaded"},
		{"overlapping in the file", field(".uname", 20, 4096), ".uname", "overlap"},
		{"overlapping in memory", field(".uname", 12, 0x2000), ".uname", "overlap"},
		{"overlapping in memory by what is behind the content", field(".osrel", 8, 0x3000), ".cmdline", "overlap"},
		{"not aligned in the file", field(".uname", 20, 5000), ".uname", "multiples of the file alignment"},
		{"a size that is not aligned", field(".uname", 16, 100), ".uname", "multiples of the file alignment"},
		{"relocations of a section", field(".uname", 24, 5000), ".uname", "relocations"},
		{"a name with a newline", func(b []byte) []byte { b[tableAt+3] = '\n'; return b }, "", "printable ASCII"},
		{"a name with a NUL inside", func(b []byte) []byte { b[tableAt+3] = 0; return b }, "", "printable ASCII"},
		{"no name", func(b []byte) []byte { copy(b[tableAt:], make([]byte, 8)); return b }, "", "no name"},
		{"an entry in the headers", put32(optionalAt+16, 0x10), "", "begins to run"},
		{"an entry in data", put32(optionalAt+16, 0x4000), "", "begins to run"},
		{"an entry behind the code", put32(optionalAt+16, 0x1000+3072), "", "begins to run"},
		{"relocations that reach beyond their section", put32(optionalAt+112+5*8+4, 4096), "", "relocations are"},
		{"certificates beyond the end", put32(optionalAt+112+4*8+4, 4096), "", "certificate table"},
		{"certificates in the sections", func(b []byte) []byte { return put32(optionalAt+112+4*8, 4096)(put32(optionalAt+112+4*8+4, 8)(b)) }, "", "certificate table"},
	} {
		t.Run(c.name, func(t *testing.T) {
			_, err := parse(c.change(valid.Bytes()))
			wantError(t, err, c.section, c.says)
		})
	}
	large := bytes.NewReader(valid.Bytes())
	_, err := uki.Parse(large, math.MaxUint32+1)
	wantError(t, err, "", "4 GiB")

	long := official("amd64")
	long.Sections[5].Content = ukitest.Noise("osrel", 1<<16+1)
	_, err = parse(long.Bytes())
	wantError(t, err, ".osrel", "want at most 65536")
}

func wantError(t *testing.T, err error, section, says string) {
	t.Helper()
	var e *uki.Error
	if !errors.As(err, &e) {
		t.Fatalf("error %v, want a *uki.Error", err)
	}
	if e.Section != section || !strings.Contains(e.Problem, says) {
		t.Errorf("error of %q: %v, want of %q with %q", e.Section, err, section, says)
	}
}

// A reader that fails is not a bad file.
func TestParseReadError(t *testing.T) {
	b := official("amd64").Bytes()
	for _, size := range []int{10, 200, 300, 1000, 5000} {
		_, err := uki.Parse(bytes.NewReader(b[:size]), int64(len(b)))
		var e *uki.Error
		if err == nil || errors.As(err, &e) {
			t.Errorf("a file that ends at %d, and was said to have %d bytes: %v", size, len(b), err)
		}
	}
}

func TestCheckUKI(t *testing.T) {
	without := func(name string) ukitest.PE {
		p := official("amd64")
		for i, s := range p.Sections {
			if s.Name == name {
				p.Sections = append(p.Sections[:i:i], p.Sections[i+1:]...)
				return p
			}
		}
		panic(name)
	}
	with := func(name string, content []byte) ukitest.PE {
		p := official("amd64")
		for i, s := range p.Sections {
			if s.Name == name {
				p.Sections[i].Content = content
			}
		}
		return p
	}
	twice := official("amd64")
	twice.Sections[5].Name = ".initrd"
	profiles := without(".linux")
	profiles.Sections = append(profiles.Sections, ukitest.Section{Name: ".linux", Content: ukitest.Kernel("amd64", 100)})
	noText := official("amd64")
	noText.Sections[0].Name = ".code"
	for _, c := range []struct {
		name, section, says string
		file                ukitest.PE
	}{
		{"the stub", ".linux", "no such section", ukitest.Stub("amd64")},
		{"no kernel", ".linux", "no such section", without(".linux")},
		{"a kernel in a profile only", ".linux", "no such section", profiles},
		{"no code", ".text", "no such section", noText},
		{"two initramfs", ".initrd", "two", twice},
		{"a kernel for arm64", ".linux", "the kernel is for arm64", with(".linux", ukitest.Kernel("arm64", 100))},
		{"a page of errors for a kernel", ".linux", "not a PE file", with(".linux", []byte("<html>"))},
	} {
		t.Run(c.name, func(t *testing.T) {
			f := mustParse(t, c.file.Bytes())
			wantError(t, f.CheckUKI(), c.section, c.says)
			_, err := uki.FromUKI(f)
			wantError(t, err, c.section, c.says)
		})
	}
}
