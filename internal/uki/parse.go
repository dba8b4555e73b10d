package uki

import "io"

// Section is an entry of the section table.
type Section struct {
	Name           string
	VirtualAddress uint32 // where firmware puts it, from the beginning of the image
	VirtualSize    uint32 // bytes in memory, zeros behind what the file has of it
	Offset, Size   uint32 // the range of the file
}

// File is a UEFI application (PE32+) whose headers were checked.
type File struct{}

// Parse reads the headers of a PE32+ file for UEFI on x86-64 or arm64, and
// refuses one that says anything untrue or unusual: the file may come from
// anybody. The error is an *[Error]. r is kept, for the templates that are made
// of the file.
func Parse(r io.ReaderAt, size int64) (*File, error) { return &File{}, nil }

// CheckUKI refuses a file that is no UKI: systemd's stub, or one like it, with a
// kernel for its own architecture.
func (f *File) CheckUKI() error { return nil }

// CheckStub refuses a file that is not systemd's stub, without a kernel.
func (f *File) CheckStub() error { return nil }

// Arch is "amd64" or "arm64".
func (f *File) Arch() string { return "" }

// Sections is the section table.
func (f *File) Sections() []Section { return nil }

// Signed reports whether the file has a certificate table.
func (f *File) Signed() bool { return false }

// Line is the kernel line; that of the first profile, if there are several.
func (f *File) Line() string { return "" }

// Uname is the version of the kernel as .uname has it; empty if it does not.
func (f *File) Uname() string { return "" }

// OSRelease is the text of .osrel, as in os-release(5).
func (f *File) OSRelease() string { return "" }
