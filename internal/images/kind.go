package images

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"io"

	"github.com/provisiond/provisiond/internal/inventory"
)

// headSize is how much of a file the checks look at: a PE header lies within.
const headSize = 4096

// CheckKernel refuses a blob that no firmware of the architecture could start:
// the usual slips are the other architecture's file, the initramfs in the
// kernel's place, and an error page that was saved as a file. The error is a
// [*inventory.FieldError] on "kernel".
func (s *Store) CheckKernel(blob inventory.Blob, arch inventory.Arch) error {
	head, err := s.head(blob)
	if err != nil {
		return err
	}
	if problem := kernelProblem(head, arch); problem != "" {
		return &inventory.FieldError{Field: "kernel", Problem: problem, Fix: fmt.Sprintf("the Image Factory's kernel-%s", arch)}
	}
	return nil
}

// CheckInitramfs refuses a blob that the kernel would not take for an
// initramfs: a cpio archive (newc), plain or packed with zstd, xz or gzip. The
// error is a [*inventory.FieldError] on "initramfs".
func (s *Store) CheckInitramfs(blob inventory.Blob) error {
	head, err := s.head(blob)
	if err != nil {
		return err
	}
	if problem := initramfsProblem(head); problem != "" {
		return &inventory.FieldError{Field: "initramfs", Problem: problem, Fix: "the Image Factory's initramfs-ARCH.xz"}
	}
	return nil
}

func (s *Store) head(blob inventory.Blob) ([]byte, error) {
	f, err := s.Open(blob)
	if err != nil {
		return nil, err
	}
	defer func() { _ = f.Close() }() // read only
	head, err := io.ReadAll(io.LimitReader(f, headSize))
	if err != nil {
		return nil, fmt.Errorf("reading image %s: %w", blob.SHA256, err)
	}
	return head, nil
}

// kernelProblem says what is wrong with the beginning of a kernel, or "".
func kernelProblem(head []byte, arch inventory.Arch) string {
	is := kernelArch(head)
	switch {
	case is == arch:
		return ""
	case is != "":
		return fmt.Sprintf("this is a kernel for %s, not for %s", is, arch)
	case initramfsProblem(head) == "":
		return "this is an archive such as an initramfs, not a kernel"
	}
	return "this is not a Linux kernel" + looksLike(head)
}

// kernelArch names the architecture of a bzImage (Documentation/arch/x86/boot.rst:
// "HdrS" at 0x202), an arm64 Image (Documentation/arch/arm64/booting.rst: "ARM\x64"
// at 0x38) or a PE file such as a UKI or a compressed arm64 kernel; else "".
func kernelArch(head []byte) inventory.Arch {
	switch {
	case has(head, 0x202, "HdrS"):
		return inventory.AMD64
	case has(head, 0x38, "ARM\x64"):
		return inventory.ARM64
	}
	return peArch(head)
}

// peArch reads the machine field of a PE file (Microsoft PE format, section
// "COFF File Header"); "" for anything else and for other machines.
func peArch(head []byte) inventory.Arch {
	if !has(head, 0, "MZ") || len(head) < 0x40 {
		return ""
	}
	at := int64(binary.LittleEndian.Uint32(head[0x3c:]))
	if at+6 > int64(len(head)) || !has(head, int(at), "PE\x00\x00") {
		return ""
	}
	switch binary.LittleEndian.Uint16(head[at+4:]) {
	case 0x8664:
		return inventory.AMD64
	case 0xaa64:
		return inventory.ARM64
	}
	return ""
}

// initramfsProblem says what is wrong with the beginning of an initramfs, or "".
func initramfsProblem(head []byte) string {
	for _, magic := range []string{
		"\x28\xb5\x2f\xfd", // zstd, RFC 8878 section 3.1.1
		"\xfd7zXZ\x00",     // xz
		"\x1f\x8b",         // gzip, RFC 1952
		"070701", "070702", // cpio newc, without and with checksums
	} {
		if has(head, 0, magic) {
			return ""
		}
	}
	if kernelArch(head) != "" {
		return "this is a kernel, not an initramfs"
	}
	return "this is not an initramfs (cpio, or cpio in zstd, xz or gzip)" + looksLike(head)
}

func looksLike(head []byte) string {
	if text := bytes.TrimSpace(head); len(text) > 0 && (text[0] == '<' || text[0] == '{') {
		return ": it looks like a web page, perhaps the error answer of a download"
	}
	return ""
}

func has(b []byte, at int, magic string) bool {
	return at >= 0 && len(b) >= at+len(magic) && string(b[at:at+len(magic)]) == magic
}
