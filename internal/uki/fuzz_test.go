package uki_test

import (
	"strings"
	"testing"

	"github.com/provisiond/provisiond/internal/uki"
	"github.com/provisiond/provisiond/internal/uki/ukitest"
)

// FuzzParse reads files that anybody may have made. A UKI among them is one
// that others can be made of.
func FuzzParse(f *testing.F) {
	for _, arch := range []string{"amd64", "arm64"} {
		kernel := ukitest.Kernel(arch, 10)
		for _, p := range []ukitest.PE{ukitest.UKI(arch, line, kernel, []byte("initrd")), ukitest.Stub(arch), {Arch: arch, Symbols: 2, Certificates: make([]byte, 24), FileAlignment: 32, SectionAlignment: 32, Sections: []ukitest.Section{
			{Name: ".text", Content: []byte("x"), Flags: ukitest.Code}, {Name: ".linux", Content: kernel}, {Name: ".cmdline", Content: []byte("a b\n")},
		}}} {
			f.Add(p.Bytes())
		}
		f.Add(kernel)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		file, err := parse(b)
		if err != nil {
			return
		}
		if _, err := file.Digest(); err != nil {
			t.Errorf("no digest of what was taken: %v", err)
		}
		if file.CheckStub() == nil {
			if file.CheckUKI() == nil {
				t.Error("the same file is stub and UKI")
			}
			tpl, err := uki.Assemble(file, source(ukitest.Kernel(file.Arch(), 10)), source([]byte("initrd")), "ID=x", "1")
			makeOf(t, tpl, err)
		}
		if file.CheckUKI() == nil {
			tpl, err := uki.FromUKI(file)
			makeOf(t, tpl, err)
		}
	})
}

// makeOf makes a UKI. Only its size in memory, or headers without room for one
// more section, may be in the way.
func makeOf(t *testing.T, tpl *uki.Template, err error) {
	t.Helper()
	if err != nil {
		if !strings.Contains(err.Error(), "4 GiB") && !strings.Contains(err.Error(), "headers") {
			t.Errorf("no template of what was taken: %v", err)
		}
		return
	}
	image, err := tpl.Make("quiet", signer{100})
	if err != nil {
		t.Fatal(err)
	}
	if image.Size() != tpl.Size(signer{100}) || image.Pieces()[0].Bytes == nil {
		t.Errorf("an image of %d bytes, want %d", image.Size(), tpl.Size(signer{100}))
	}
}

// FuzzMake makes UKIs with any line and any signature; a line that is taken
// comes out as it went in.
func FuzzMake(f *testing.F) {
	f.Add(line, 0)
	f.Add(strings.Repeat("x", uki.MaxLine), 1479)
	f.Add("a\x00b", 1)
	kernel, initrd := ukitest.Kernel("amd64", 10), []byte("initrd")
	content := ukitest.UKI("amd64", "old", kernel, initrd).Bytes()
	file, err := parse(content)
	if err != nil {
		f.Fatal(err)
	}
	tpl, err := uki.FromUKI(file)
	if err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, line string, size int) {
		var s uki.Signer
		if size >= 32 {
			s = signer{min(size, 1<<16)}
		}
		image, err := tpl.Make(line, s)
		if err != nil {
			wantError(t, err, ".cmdline", "")
			return
		}
		var b []byte
		for _, p := range image.Pieces() {
			if p.Bytes == nil {
				b = append(b, content[p.Offset:][:p.Size]...)
			} else {
				b = append(b, p.Bytes...)
			}
		}
		made{Template: tpl}.check(t, image, b, line, s)
	})
}
