package images

import (
	"encoding/binary"
	"errors"
	"strings"
	"testing"

	"github.com/provisiond/provisiond/internal/inventory"
)

// with returns 1 KB of zeros with a string at an offset.
func with(at int, s string) []byte {
	b := make([]byte, 1024)
	copy(b[at:], s)
	return b
}

func peFile(machine uint16) []byte {
	b := with(0, "MZ")
	binary.LittleEndian.PutUint32(b[0x3c:], 0x80)
	copy(b[0x80:], "PE\x00\x00")
	binary.LittleEndian.PutUint16(b[0x84:], machine)
	return b
}

func TestCheckKinds(t *testing.T) {
	far := peFile(0x8664)
	binary.LittleEndian.PutUint32(far[0x3c:], 0xffffffff)
	for _, c := range []struct {
		name                 string
		head                 []byte
		amd64, arm64, initrd string // part of the problem; "" for fine
	}{
		{"bzImage", with(0x202, "HdrS"), "", "for amd64, not for arm64", "is a kernel"},
		{"arm64 Image", with(0x38, "ARM\x64"), "for arm64, not for amd64", "", "is a kernel"},
		{"UKI", peFile(0x8664), "", "for amd64, not for arm64", "is a kernel"},
		{"arm64 zboot", peFile(0xaa64), "for arm64, not for amd64", "", "is a kernel"},
		{"ia32 program", peFile(0x14c), "not a Linux kernel", "not a Linux kernel", "not an initramfs"},
		{"PE header outside", far, "not a Linux kernel", "not a Linux kernel", "not an initramfs"},
		{"MZ only", []byte("MZ"), "not a Linux kernel", "not a Linux kernel", "not an initramfs"},
		{"zstd", []byte("\x28\xb5\x2f\xfd...."), "archive", "archive", ""},
		{"xz", []byte("\xfd7zXZ\x00...."), "archive", "archive", ""},
		{"gzip", []byte("\x1f\x8b\x08...."), "archive", "archive", ""},
		{"cpio", []byte("070701000"), "archive", "archive", ""},
		{"web page", []byte("\n<!DOCTYPE html>"), "web page", "web page", "web page"},
		{"JSON", []byte(`{"error":404}`), "web page", "web page", "web page"},
		{"one byte", []byte("x"), "not a Linux kernel", "not a Linux kernel", "not an initramfs"},
	} {
		t.Run(c.name, func(t *testing.T) {
			s, _ := open(t)
			blob := put(t, s, c.head)
			for _, check := range []struct {
				field string
				err   error
				want  string
			}{
				{"kernel", s.CheckKernel(blob, inventory.AMD64), c.amd64},
				{"kernel", s.CheckKernel(blob, inventory.ARM64), c.arm64},
				{"initramfs", s.CheckInitramfs(blob), c.initrd},
			} {
				var fe *inventory.FieldError
				switch {
				case check.want == "" && check.err != nil:
					t.Errorf("%s refused: %v", check.field, check.err)
				case check.want != "" && (!errors.As(check.err, &fe) || fe.Field != check.field || !strings.Contains(fe.Problem, check.want)):
					t.Errorf("%s: error is %v, want %q", check.field, check.err, check.want)
				}
			}
		})
	}
}

func FuzzKinds(f *testing.F) {
	f.Add(peFile(0x8664))
	f.Add(with(0x202, "HdrS"))
	f.Add([]byte("MZ"))
	f.Fuzz(func(t *testing.T, head []byte) {
		if kernelProblem(head, inventory.AMD64) == "" && (initramfsProblem(head) == "" && !has(head, 0x202, "HdrS")) {
			t.Error("both a kernel and an initramfs")
		}
	})
}
