package uki_test

import (
	"bytes"
	"crypto/sha256"
	"debug/pe"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/provisiond/provisiond/internal/uki"
	"github.com/provisiond/provisiond/internal/uki/ukitest"
)

const line = "talos.platform=metal talos.config=http://[2001:db8::1]/config?m=02:00:00:00:00:01"

// signer stands for one with a key.
type signer struct{ size int }

func (s signer) Size() int { return s.size }

func (s signer) Sign(digest [32]byte) ([]byte, error) {
	b := ukitest.Noise("signature", s.size)
	copy(b, digest[:])
	return b, nil
}

// made is a template with its files.
type made struct {
	*uki.Template
	paths []string
}

// fromUKI makes a template of a UKI.
func fromUKI(t *testing.T, content []byte) made {
	t.Helper()
	tpl, err := uki.FromUKI(mustParse(t, content))
	if err != nil {
		t.Fatal(err)
	}
	return made{tpl, write(t, content)}
}

func assemble(t *testing.T, stub, kernel, initrd []byte, osRelease, uname string) made {
	t.Helper()
	tpl, err := uki.Assemble(mustParse(t, stub), source(kernel), source(initrd), osRelease, uname)
	if err != nil {
		t.Fatal(err)
	}
	return made{tpl, write(t, stub, kernel, initrd)}
}

func source(b []byte) uki.Source { return uki.Source{R: bytes.NewReader(b), Size: int64(len(b))} }

func write(t *testing.T, contents ...[]byte) (paths []string) {
	t.Helper()
	dir := t.TempDir()
	for i, c := range contents {
		path := filepath.Join(dir, fmt.Sprint(i))
		if err := os.WriteFile(path, c, 0o600); err != nil {
			t.Fatal(err)
		}
		paths = append(paths, path)
	}
	return paths
}

func (m made) open(t *testing.T, image *uki.Image) *uki.Reader {
	t.Helper()
	var files []*os.File
	for _, path := range m.paths {
		f, err := os.Open(path)
		if err != nil {
			t.Fatal(err)
		}
		files = append(files, f)
	}
	r, err := image.Open(files...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = r.Close() })
	return r
}

// make makes a UKI and all its bytes.
func (m made) make(t *testing.T, line string, s uki.Signer) (*uki.Image, []byte) {
	t.Helper()
	image, err := m.Make(line, s)
	if err != nil {
		t.Fatal(err)
	}
	b, err := io.ReadAll(m.open(t, image))
	if err != nil {
		t.Fatal(err)
	}
	return image, b
}

// check is what is true of every UKI that is made.
func (m made) check(t *testing.T, image *uki.Image, b []byte, line string, s uki.Signer) *uki.File {
	t.Helper()
	if image.Size() != int64(len(b)) || m.Size(s) != int64(len(b)) {
		t.Errorf("%d bytes were read, Size says %d, and that of the template %d", len(b), image.Size(), m.Size(s))
	}
	f := mustParse(t, b)
	if err := f.CheckUKI(); err != nil {
		t.Error(err)
	}
	if f.Line() != strings.TrimRight(line, " ") || f.Arch() != m.Arch() {
		t.Errorf("line %q, want %q", f.Line(), line)
	}
	last := f.Sections()[len(f.Sections())-1]
	if want := append([]byte(line), make([]byte, 2048-len(line))...); last.Name != ".cmdline" || last.VirtualSize != 2048 || !bytes.Equal(b[last.Offset:last.Offset+last.Size], want) {
		t.Errorf("the last section is %+v, want .cmdline with the line and NUL", last)
	}
	other, err := pe.NewFile(bytes.NewReader(b))
	if err != nil {
		t.Fatal(err)
	}
	if err := sameSections(f, other); err != nil {
		t.Error(err)
	}
	if checksum := other.OptionalHeader.(*pe.OptionalHeader64).CheckSum; checksum != 0 {
		t.Errorf("checksum %#x, want none", checksum)
	}
	if d, err := f.Digest(); err != nil || d != image.Digest() || d != naive(b) {
		t.Errorf("digest %x, read from the file %x (%v), computed byte by byte %x", image.Digest(), d, err, naive(b))
	}
	// Nothing is outside of headers, sections and certificates.
	end := uint32(0)
	for _, s := range f.Sections() {
		if s.Size > 0 && end > 0 && s.Offset != end {
			t.Errorf("%s begins at %d, and what is before ends at %d", s.Name, s.Offset, end)
		}
		end = max(end, s.Offset+s.Size)
	}
	at, size := f.Certificates()
	if s == nil && (size != 0 || int(end) != len(b)) || s != nil && (at != int64(end) || at+size != int64(len(b))) {
		t.Errorf("the sections end at %d, %d bytes of certificates are at %d, and the file ends at %d", end, size, at, len(b))
	}
	if s != nil {
		signature, _ := s.Sign(image.Digest())
		head := binary.LittleEndian.AppendUint32(nil, uint32(8+len(signature)))
		if !bytes.HasPrefix(b[at:], append(append(head, 0, 2, 2, 0), signature...)) {
			t.Errorf("the certificate table is %x", b[at:])
		}
	}
	return f
}

// naive is the Authenticode digest of a file without gaps: all of it but three
// places.
func naive(b []byte) [32]byte {
	optional := binary.LittleEndian.Uint32(b[60:]) + 24
	directory := optional + 144
	table := binary.LittleEndian.Uint32(b[directory:])
	if table == 0 {
		table = uint32(len(b))
	}
	return sha256.Sum256(slices.Concat(b[:optional+64], b[optional+68:directory], b[directory+8:table]))
}

func names(f *uki.File) (all []string) {
	for _, s := range f.Sections() {
		all = append(all, s.Name)
	}
	return all
}

func TestFromUKI(t *testing.T) {
	for _, arch := range []string{"amd64", "arm64"} {
		p := official(arch)
		p.Symbols, p.Certificates = 3, make([]byte, 32)
		content := p.Bytes()
		m := fromUKI(t, content)
		for _, s := range []uki.Signer{nil, signer{1500}, signer{1507}} {
			image, b := m.make(t, line, s)
			f := m.check(t, image, b, line, s)
			want := []string{".text", ".bss", ".reloc", ".sbat", ".sdmagic", ".osrel", ".uname", ".splash", ".pcrpkey", ".linux", ".initrd", ".cmdline"}
			if !slices.Equal(names(f), want) {
				t.Errorf("sections %v, want %v", names(f), want)
			}
			// What is kept is the same bytes at the same place in memory.
			before := mustParse(t, content)
			for _, is := range f.Sections()[:len(want)-1] {
				i := slices.IndexFunc(before.Sections(), func(s uki.Section) bool { return s.Name == is.Name })
				was := before.Sections()[i]
				if is.VirtualAddress != was.VirtualAddress || is.VirtualSize != was.VirtualSize || !bytes.Equal(b[is.Offset:is.Offset+is.Size], content[was.Offset:was.Offset+was.Size]) {
					t.Errorf("%s was %+v and is %+v", is.Name, was, is)
				}
			}
			if was, is := headersOf(t, content), headersOf(t, b); is.DataDirectory[5] != was.DataDirectory[5] || is.DataDirectory[5].Size == 0 || is.AddressOfEntryPoint != was.AddressOfEntryPoint || is.Subsystem != was.Subsystem {
				t.Errorf("the headers were %+v and are %+v", was, is)
			}
			if f.Uname() != before.Uname() || f.OSRelease() != before.OSRelease() {
				t.Errorf("uname %q, os-release %q", f.Uname(), f.OSRelease())
			}
			// What is sent from the file lies side by side there, but for .cmdline.
			if n := len(image.Pieces()); n != 4 {
				t.Errorf("%d pieces, want headers, what was before .cmdline, what was behind, the new .cmdline", n)
			}
		}
	}
}

func headersOf(t *testing.T, b []byte) *pe.OptionalHeader64 {
	t.Helper()
	f, err := pe.NewFile(bytes.NewReader(b))
	if err != nil {
		t.Fatal(err)
	}
	return f.OptionalHeader.(*pe.OptionalHeader64)
}

func TestAssemble(t *testing.T) {
	for _, arch := range []string{"amd64", "arm64"} {
		kernel, initrd := ukitest.Kernel(arch, 7001), ukitest.Noise("initrd", 40003)
		m := assemble(t, ukitest.Stub(arch).Bytes(), kernel, initrd, "ID=talos\n", "6.18")
		image, b := m.make(t, line, signer{700})
		f := m.check(t, image, b, line, signer{700})
		want := []string{".text", ".bss", ".reloc", ".sbat", ".sdmagic", ".osrel", ".uname", ".linux", ".initrd", ".cmdline"}
		if !slices.Equal(names(f), want) || f.Uname() != "6.18" || f.OSRelease() != "ID=talos" {
			t.Errorf("sections %v, uname %q, os-release %q", names(f), f.Uname(), f.OSRelease())
		}
		for i, content := range [][]byte{kernel, initrd} {
			s := f.Sections()[7+i]
			if int(s.VirtualSize) != len(content) || !bytes.Equal(b[s.Offset:][:s.VirtualSize], content) {
				t.Errorf("%s is not what was given", s.Name)
			}
		}
		m = assemble(t, ukitest.Stub(arch).Bytes(), kernel, initrd, "", "")
		bare, b := m.make(t, "", nil)
		if f := m.check(t, bare, b, "", nil); slices.Contains(names(f), ".uname") || slices.Contains(names(f), ".osrel") {
			t.Errorf("sections %v, want neither .uname nor .osrel", names(f))
		}
	}
}

func TestAssembleRefuses(t *testing.T) {
	kernel, initrd := source(ukitest.Kernel("amd64", 5000)), source(ukitest.Noise("initrd", 100))
	huge := func(s uki.Source, size int64) uki.Source { s.Size = size; return s }
	boot := ukitest.Stub("amd64")
	boot.Sections[4].Content = []byte("#### LoaderInfo: systemd-boot 257.9 ####")
	noText := ukitest.Stub("amd64")
	noText.Sections[0].Name = ".code"
	large := ukitest.Stub("amd64")
	large.Sections[0].Content = ukitest.Noise("text", 5<<20)
	many := ukitest.Stub("amd64")
	for i := range 87 {
		many.Sections = append(many.Sections, ukitest.Section{Name: fmt.Sprintf(".s%d", i), Content: []byte("x")})
	}
	full := ukitest.Stub("amd64")
	full.Sections[1].Zeros = 0xffff0000
	for _, c := range []struct {
		name, section, says string
		stub                ukitest.PE
		kernel, initrd      uki.Source
		osRelease           string
	}{
		{"a UKI", ".linux", "UKI already", official("amd64"), kernel, initrd, ""},
		{"systemd-boot", "", "not systemd's stub", boot, kernel, initrd, ""},
		{"no code", ".text", "not systemd's stub", noText, kernel, initrd, ""},
		{"5 MB", "", "not systemd's stub", large, kernel, initrd, ""},
		{"a kernel for another", ".linux", "for arm64", ukitest.Stub("amd64"), source(ukitest.Kernel("arm64", 5000)), initrd, ""},
		{"a stub for another", ".linux", "for amd64", ukitest.Stub("arm64"), kernel, initrd, ""},
		{"no kernel", ".linux", "not a PE file", ukitest.Stub("amd64"), source(nil), initrd, ""},
		{"no initramfs", ".initrd", "empty", ukitest.Stub("amd64"), kernel, source(nil), ""},
		{"a kernel that is too large", "", "4 GiB", ukitest.Stub("amd64"), huge(kernel, math.MaxInt64), initrd, ""},
		{"both too large", "", "4 GiB", ukitest.Stub("amd64"), huge(kernel, 2<<30), huge(initrd, 2<<30), ""},
		{"no room in memory", "", "4 GiB", full, kernel, source(ukitest.Noise("initrd", 100000)), ""},
		{"a long os-release", ".osrel", "want at most", ukitest.Stub("amd64"), kernel, initrd, strings.Repeat("x", 1<<16+1)},
		{"more sections than headers have room for", ".text", "headers", many, kernel, initrd, ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			_, err := uki.Assemble(mustParse(t, c.stub.Bytes()), c.kernel, c.initrd, c.osRelease, "")
			wantError(t, err, c.section, c.says)
		})
	}
	_, err := uki.Assemble(mustParse(t, ukitest.Stub("amd64").Bytes()), kernel, huge(initrd, 200), "", "")
	if !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Errorf("an initramfs that is shorter than it should be: %v", err)
	}
}

// Everything before the line is the same for every machine.
func TestOneTemplateForAll(t *testing.T) {
	m := fromUKI(t, official("amd64").Bytes())
	first, a := m.make(t, "", signer{800})
	tags := map[string]bool{first.Tag(): true}
	for _, line := range []string{line, line + " ", "x", strings.Repeat("~", uki.MaxLine)} {
		image, b := m.make(t, line, signer{800})
		at := len(b) - 2048 - 808
		if !bytes.Equal(a[:at], b[:at]) || len(a) != len(b) {
			t.Errorf("with %q other bytes than those of the line are different", line)
		}
		if image.Digest() == first.Digest() || tags[image.Tag()] {
			t.Errorf("with %q digest %x and tag %s, as another has", line, image.Digest(), image.Tag())
		}
		tags[image.Tag()] = true
		again, c := m.make(t, line, signer{800})
		if again.Tag() != image.Tag() || !bytes.Equal(b, c) {
			t.Errorf("%q was made twice, and differently", line)
		}
		own := 0
		for _, p := range image.Pieces() {
			own += len(p.Bytes)
		}
		if own > 8<<10 {
			t.Errorf("an image keeps %d bytes, want a few kB", own)
		}
	}
	unsigned, b := m.make(t, "", nil)
	m.check(t, unsigned, b, "", nil)
	if unsigned.Tag() == first.Tag() || unsigned.Digest() != first.Digest() {
		t.Error("an unsigned UKI has the tag of a signed one, or another digest")
	}
	other, _ := fromUKI(t, ukitest.UKI("amd64", "x", ukitest.Kernel("amd64", 9001), []byte("x")).Bytes()).make(t, "", nil)
	if other.Tag() == unsigned.Tag() {
		t.Error("another image has the same tag")
	}
}

func TestMakeRefuses(t *testing.T) {
	m := fromUKI(t, official("amd64").Bytes())
	for line, says := range map[string]string{
		strings.Repeat("x", uki.MaxLine+1): "2048 bytes: want at most 2047",
		"a\x00b":                           `"\x00" at byte 1`,
		"a\n":                              `"\n" at byte 1`,
		"tab\t":                            `"\t" at byte 3`,
		"\x7f":                             `"\x7f" at byte 0`,
		"grün":                             `"\xc3" at byte 2`,
	} {
		_, err := m.Make(line, nil)
		wantError(t, err, ".cmdline", says)
	}
	if _, err := m.Make(line, broken{}); !errors.Is(err, errBroken) {
		t.Errorf("a signer that fails: %v", err)
	}
	if _, err := m.Make(line, lying{signer{100}}); err == nil || !strings.Contains(err.Error(), "100 bytes, and 99 were promised") {
		t.Errorf("a signer that says another size: %v", err)
	}
}

var errBroken = errors.New("no key")

type broken struct{}

func (broken) Size() int                     { return 5 }
func (broken) Sign([32]byte) ([]byte, error) { return nil, errBroken }

type lying struct{ signer }

func (l lying) Size() int { return l.size - 1 }

// Whatever a UKI or a stub looks like, what is made of it is one, with its
// sections.
func TestRandomLayouts(t *testing.T) {
	for seed := range uint64(200) {
		r := rand.New(rand.NewPCG(seed, 7))
		p := randomUKI(r)
		text := string(bytes.Repeat([]byte{byte('!' + r.IntN(90))}, r.IntN(uki.MaxLine+1)))
		var s uki.Signer
		if r.IntN(2) == 0 {
			s = signer{32 + r.IntN(3000)}
		}
		content := p.Bytes()
		m := fromUKI(t, content)
		image, b := m.make(t, text, s)
		f := m.check(t, image, b, text, s)
		var want []uki.Section
		for _, was := range mustParse(t, content).Sections() {
			if was.Name == ".profile" {
				break
			}
			if was.Name != ".cmdline" && was.Name != ".pcrsig" {
				want = append(want, was)
			}
		}
		for i, was := range want {
			is := f.Sections()[i]
			if is.Name != was.Name || is.VirtualAddress != was.VirtualAddress || is.VirtualSize != was.VirtualSize || !bytes.Equal(memory(b, is), memory(content, was)) {
				t.Errorf("seed %d: %s was %+v and is %+v", seed, was.Name, was, is)
			}
		}
		if len(f.Sections()) != len(want)+1 {
			t.Errorf("seed %d: %d sections, want %d", seed, len(f.Sections()), len(want)+1)
		}
		if t.Failed() {
			t.Fatalf("seed %d", seed)
		}
	}
}

// memory is what firmware makes of a section.
func memory(b []byte, s uki.Section) []byte {
	m := make([]byte, s.VirtualSize)
	copy(m, b[s.Offset:s.Offset+s.Size])
	return m
}

func randomUKI(r *rand.Rand) ukitest.PE {
	arch := []string{"amd64", "arm64"}[r.IntN(2)]
	p := ukitest.UKI(arch, officialLine, ukitest.Kernel(arch, r.IntN(5000)), ukitest.Noise("i", 1+r.IntN(9000)))
	p.FileAlignment = 32 << r.IntN(8)
	p.SectionAlignment = max(p.FileAlignment, 32<<r.IntN(10))
	p.DOS = uint32(64 + 8*r.IntN(30))
	p.Symbols = r.IntN(3)
	p.Certificates = make([]byte, r.IntN(3)*8)
	for range r.IntN(8) {
		s := ukitest.Section{Name: fmt.Sprintf(".x%d", r.IntN(1e6)), Content: ukitest.Noise("x", r.IntN(2000)), Zeros: uint32(1 + r.IntN(2000)), Flags: ukitest.Data}
		p.Sections = slices.Insert(p.Sections, 1+r.IntN(len(p.Sections)-1), s)
	}
	for i := range p.Sections {
		p.Sections[i].Gap = uint32(r.IntN(3) * r.IntN(10000))
	}
	p.Sections[0].Gap += 4096 // for the headers
	return p
}
