// Package uki makes unified kernel images (UKIs) for single machines from one
// official UKI, or from systemd's stub, a kernel and an initramfs, without a
// copy of any of them: all but the headers and the kernel line are sent from
// the files as they are.
//
//	f, err := uki.Parse(file, size)
//	t, err := uki.FromUKI(f)          // once for each image; reads all of it
//	m, err := t.Make(line, signer)    // once for each boot; reads nothing
//	r, err := m.Open(file)            // once for each request
//
// The kernel line lies last in the file, in a section of a fixed size. What is
// before it, headers included, is the same for every machine, so its part of
// the Authenticode digest is computed once.
//
// The format is that of "PE Format" by Microsoft, as EDK2 loads it
// (MdePkg/Library/BasePeCoffLib); what the sections are is in systemd-stub(7)
// and in the UAPI specification of UKIs.
package uki

import "fmt"

// MaxLine is how many bytes a kernel line may have: Linux takes 2,048 with the
// NUL that ends it (COMMAND_LINE_SIZE of x86 and arm64).
const MaxLine = lineRoom - 1

// lineRoom is the size of .cmdline. What the line leaves of it is NUL, where
// systemd-stub ends the line (xstrn8_to_16, in 252 as in later ones).
const lineRoom = 2048

// The sections of a UKI that this package knows (systemd-stub(7)).
const (
	sectionLine    = ".cmdline"
	sectionKernel  = ".linux"
	sectionInitrd  = ".initrd"
	sectionOS      = ".osrel"
	sectionUname   = ".uname"
	sectionProfile = ".profile"
	sectionPCRSig  = ".pcrsig"
	sectionText    = ".text"
)

// Error says what is wrong with a file, or with what was asked to be put in.
type Error struct {
	Section string // such as ".linux"; empty: the file as a whole, or its headers
	Problem string
}

// Error implements error.
func (e *Error) Error() string {
	if e.Section == "" {
		return e.Problem
	}
	return e.Section + ": " + e.Problem
}

func bad(section, format string, args ...any) error {
	return &Error{Section: section, Problem: fmt.Sprintf(format, args...)}
}
