package uki

import "io"

// Source is a file to take a section from.
type Source struct {
	R    io.ReaderAt
	Size int64 // bytes
}

// Template is a UKI with only its kernel line open. It does not change, and
// may be used by many at once.
type Template struct{}

// FromUKI makes a template of a UKI, of which the pieces are of one file: that
// one. It reads the whole file once, for the digest.
//
// What is left out: .cmdline, which becomes the machine's; .pcrsig, a signature
// of the TPM's PCR 11, into which systemd-stub measures .cmdline, so that it
// fits no other line; everything from the first .profile on, which are other
// kernel lines to choose from; and the signatures of the whole file. .pcrpkey
// stays: it is a public key, and says nothing of the line.
func FromUKI(f *File) (*Template, error) { return &Template{}, nil }

// Assemble makes a template of systemd's stub, a kernel and an initramfs, of
// which the pieces are of three files, in this order. It reads them once, for
// the digest. osRelease is a text as in os-release(5), uname the version of the
// kernel (uname -r); either may be empty.
func Assemble(stub *File, kernel, initrd Source, osRelease, uname string) (*Template, error) {
	return &Template{}, nil
}

// Arch is "amd64" or "arm64".
func (t *Template) Arch() string { return "" }

// Size is how many bytes each UKI of this template has: it does not depend on
// the line. signer is nil for one that is not signed.
func (t *Template) Size(signer Signer) int64 { return 0 }
