package uki_test

import (
	"fmt"
	"os"
	"os/exec"
	"strings"
	"testing"

	"github.com/provisiond/provisiond/internal/uki/ukitest"
)

// debianStub is of Debian's package systemd-boot-efi.
const debianStub = "/usr/lib/systemd/boot/efi/linuxx64.efi.stub"

// Of systemd's own stub a UKI is made that objdump reads as we do.
func TestDebianStub(t *testing.T) {
	stub, err := os.ReadFile(debianStub)
	if err != nil {
		if os.Getenv("CI") != "" {
			t.Fatalf("%v: CI leaves no stub out", err)
		}
		t.Skip("LEFT OUT: a UKI of systemd's stub (Debian's package systemd-boot-efi)")
	}
	kernel, initrd := ukitest.Kernel("amd64", 70001), ukitest.Noise("initrd", 100003)
	m := assemble(t, stub, kernel, initrd, "ID=talos\n", "6.18")
	image, b := m.make(t, line, signer{1480})
	f := m.check(t, image, b, line, signer{1480})

	was := mustParse(t, stub).Sections()
	var want []string
	for _, s := range was {
		want = append(want, s.Name)
	}
	want = append(want, ".osrel", ".uname", ".linux", ".initrd", ".cmdline")
	if got := names(f); strings.Join(got, " ") != strings.Join(want, " ") {
		t.Errorf("sections %v, want %v", got, want)
	}
	for i, s := range was {
		if is := f.Sections()[i]; is.VirtualAddress != s.VirtualAddress || is.VirtualSize != s.VirtualSize {
			t.Errorf("%s was %+v and is %+v", s.Name, s, is)
		}
	}
	// The stub, two texts, kernel, initramfs and line, with what fills them up.
	if n := len(image.Pieces()); n > 7 {
		t.Errorf("%d pieces, want at most 7", n)
	}

	objdump, err := exec.LookPath("objdump")
	if err != nil {
		if os.Getenv("CI") != "" {
			t.Fatalf("%v: CI leaves no reader out", err)
		}
		t.Skip("LEFT OUT: objdump reads what was made (Debian's package binutils)")
	}
	path := write(t, b)[0]
	out, err := exec.CommandContext(t.Context(), objdump, "-h", path).Output()
	if err != nil {
		t.Fatalf("objdump: %v", err)
	}
	var base uint64 // objdump adds it
	table := map[string][]string{}
	for l := range strings.Lines(string(out)) {
		if w := strings.Fields(l); len(w) == 7 && strings.HasPrefix(w[1], ".") {
			table[w[1]] = w
			if w[1] == f.Sections()[0].Name {
				fmt.Sscanf(w[3], "%x", &base)
				base -= uint64(f.Sections()[0].VirtualAddress)
			}
		}
	}
	for _, s := range f.Sections() {
		w := table[s.Name]
		if want := fmt.Sprintf("%08x %016x %08x", min(s.Size, s.VirtualSize), base+uint64(s.VirtualAddress), s.Offset); w == nil || w[2]+" "+w[3]+" "+w[5] != want {
			t.Errorf("objdump says %v of %s, want %s", w, s.Name, want)
		}
	}
	if len(table) != len(f.Sections()) {
		t.Errorf("objdump reads %d sections, want %d:\n%s", len(table), len(f.Sections()), out)
	}
}
