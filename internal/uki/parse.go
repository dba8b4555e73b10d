package uki

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math"
	"slices"
	"strings"
)

// What a file may have. Each bound is far above what is made, and keeps a file
// that lies from costing anything.
const (
	maxSections  = 96      // as Windows' loader
	maxHeaders   = 1 << 16 // bytes
	maxText      = 1 << 16 // bytes of .cmdline, .uname and .osrel
	maxAlignment = 1 << 16 // of FileAlignment: the format's own bound
	minAlignment = 32      // of FileAlignment: iPXE's; the format says 512
	maxStub      = 4 << 20 // bytes
)

const aStub = "systemd's stub, linuxx64.efi.stub or linuxaa64.efi.stub"

// Sizes and places in the headers.
const (
	dosSize       = 64
	coffSize      = 4 + 20 // with "PE\0\0"
	optionalSize  = 112    // of PE32+, without its data directories
	directories   = 16
	sectionSize   = 40
	checksumAt    = 64 // in the optional header
	certificateAt = optionalSize + 4*8
	relocationAt  = optionalSize + 5*8
	efiApp        = 10 // subsystem
)

// Section is an entry of the section table.
type Section struct {
	Name           string
	VirtualAddress uint32 // where firmware puts it, from the beginning of the image
	VirtualSize    uint32 // bytes in memory: zeros behind what the file has of it
	Offset, Size   uint32 // the range of the file
	flags          uint32
}

// File is a UEFI application (PE32+) whose headers were checked.
type File struct {
	r    io.ReaderAt
	size int64

	arch        string
	coff        [coffSize]byte
	optional    []byte // optionalSize and the directories
	optionalAt  int64  // in the file
	sections    []Section
	certificate struct{ offset, size uint32 }

	line, uname, osRelease string
}

// Parse reads the headers of a PE32+ file for UEFI on x86-64 or arm64, and
// refuses one that says anything untrue or unusual: the file may come from
// anybody. The error is an *[Error], unless r fails. r is kept, for the
// templates that are made of the file.
//
// A COFF symbol table is let pass, since Debian's stub has one; firmware never
// reads it, and it is not in what is made of the file. Virtual addresses need
// not be aligned for the same reason.
func Parse(r io.ReaderAt, size int64) (*File, error) {
	f := &File{r: r, size: size}
	for _, step := range []func() error{f.readHeaders, f.readSections, f.checkPlaces, f.readTexts} {
		if err := step(); err != nil {
			return nil, err
		}
	}
	return f, nil
}

// read returns size bytes of the file, which the caller knows to be few.
func (f *File) read(at, size int64, what string) ([]byte, error) {
	if at < 0 || size < 0 || at+size > f.size {
		return nil, bad("", "the file ends before %s does", what)
	}
	b := make([]byte, size)
	if n, err := f.r.ReadAt(b, at); n < len(b) {
		return nil, fmt.Errorf("reading %s: %w", what, noEOF(err))
	}
	return b, nil
}

// noEOF is for a read within what the size promised.
func noEOF(err error) error {
	if err == nil || errors.Is(err, io.EOF) {
		return io.ErrUnexpectedEOF
	}
	return err
}

func (f *File) readHeaders() error {
	if f.size > math.MaxUint32 {
		return bad("", "the file has %d bytes: a PE file has less than 4 GiB", f.size)
	}
	arch, at, err := peArch(f.r, f.size, "")
	if err != nil {
		return err
	}
	if at < dosSize || at%8 != 0 {
		return bad("", "the PE header is at byte %d: that is within the DOS header, or not aligned to 8", at)
	}
	f.arch = arch
	coff, err := f.read(at, coffSize, "the COFF header")
	if err != nil {
		return err
	}
	copy(f.coff[:], coff)
	f.optionalAt = at + coffSize
	if magic, err := f.read(f.optionalAt, 2, "the optional header"); err != nil {
		return err
	} else if m := binary.LittleEndian.Uint16(magic); m != 0x20b {
		return bad("", "this is not a 64-bit image: the optional header says %#x, and PE32+ is 0x20b", m)
	}
	optional := int64(binary.LittleEndian.Uint16(coff[20:]))
	if optional < relocationAt+8 || optional > optionalSize+8*directories {
		return bad("", "the optional header has %d bytes, want %d to %d", optional, relocationAt+8, optionalSize+8*directories)
	}
	if f.optional, err = f.read(f.optionalAt, optional, "the optional header"); err != nil {
		return err
	}
	if n := f.u32(108); int64(n) != (optional-optionalSize)/8 || optional%8 != 0 {
		return bad("", "the optional header says %d data directories, and has %d bytes of them", n, optional-optionalSize)
	}
	if is := binary.LittleEndian.Uint16(f.optional[68:]); is != efiApp {
		return bad("", "this is not a UEFI application: its subsystem is %d, want %d", is, efiApp)
	}
	if binary.LittleEndian.Uint16(coff[22:])&2 == 0 {
		return bad("", "this is not an image that can be started: the COFF header does not say executable")
	}
	if symbols, n := binary.LittleEndian.Uint32(coff[12:]), binary.LittleEndian.Uint32(coff[16:]); int64(symbols)+18*int64(n) > f.size {
		return bad("", "the file ends before its symbol table does")
	}
	return nil
}

// u32 is a field of the optional header.
func (f *File) u32(at int) uint32 { return binary.LittleEndian.Uint32(f.optional[at:]) }

func (f *File) entry() uint32            { return f.u32(16) }
func (f *File) sectionAlignment() uint32 { return f.u32(32) }
func (f *File) fileAlignment() uint32    { return f.u32(36) }
func (f *File) imageSize() uint32        { return f.u32(56) }
func (f *File) headersSize() uint32      { return f.u32(60) }

func (f *File) readSections() error {
	file, section := f.fileAlignment(), f.sectionAlignment()
	if file < minAlignment || file > maxAlignment || file&(file-1) != 0 {
		return bad("", "the file alignment is %d: want a power of two from %d to %d", file, minAlignment, maxAlignment)
	}
	if section < file || section > 1<<30 || section&(section-1) != 0 {
		return bad("", "the section alignment is %d: want a power of two not below the file alignment of %d", section, file)
	}
	count := int64(binary.LittleEndian.Uint16(f.coff[6:]))
	if count == 0 || count > maxSections {
		return bad("", "the file has %d sections, want 1 to %d", count, maxSections)
	}
	at := f.optionalAt + int64(len(f.optional))
	headers := int64(f.headersSize())
	if headers > maxHeaders || headers > f.size || headers%int64(file) != 0 {
		return bad("", "the headers have %d bytes: want at most %d, within the file, and a multiple of the file alignment of %d", headers, maxHeaders, file)
	}
	if at+count*sectionSize > headers {
		return bad("", "the section table ends at byte %d, beyond the headers, which end at %d", at+count*sectionSize, headers)
	}
	table, err := f.read(at, count*sectionSize, "the section table")
	if err != nil {
		return err
	}
	memory, raw := uint64(headers), uint64(headers) // where the former section ends
	for entry := range slices.Chunk(table, sectionSize) {
		s, err := sectionOf(entry)
		if err != nil {
			return err
		}
		if err := f.checkSection(s, memory, raw); err != nil {
			return err
		}
		memory = uint64(s.VirtualAddress) + uint64(s.VirtualSize)
		if s.Size > 0 {
			raw = uint64(s.Offset) + uint64(s.Size)
		}
		f.sections = append(f.sections, s)
	}
	return nil
}

func sectionOf(entry []byte) (Section, error) {
	name := strings.TrimRight(string(entry[:8]), "\x00")
	for _, c := range []byte(name) {
		if c <= ' ' || c > '~' {
			return Section{}, bad("", "a section is named %q: want printable ASCII", name)
		}
	}
	u32 := func(at int) uint32 { return binary.LittleEndian.Uint32(entry[at:]) }
	if name == "" || u32(24) != 0 || u32(28) != 0 || u32(32) != 0 {
		return Section{}, bad(name, "the section has no name, or relocations or line numbers of its own, which an image does not have")
	}
	s := Section{Name: name, VirtualSize: u32(8), VirtualAddress: u32(12), Size: u32(16), Offset: u32(20), flags: u32(36)}
	if s.Size == 0 {
		s.Offset = 0 // what some say here means nothing
	}
	return s, nil
}

// checkSection refuses a section that does not lie behind those before it, in
// memory and in the file, where these end.
func (f *File) checkSection(s Section, memory, raw uint64) error {
	file := uint64(f.fileAlignment())
	virtualEnd, rawEnd := uint64(s.VirtualAddress)+uint64(s.VirtualSize), uint64(s.Offset)+uint64(s.Size)
	switch {
	case s.VirtualSize == 0:
		return bad(s.Name, "the section has no size in memory")
	case uint64(s.VirtualAddress) < memory:
		return bad(s.Name, "in memory the section begins at %#x, before the end of what precedes it at %#x: sections overlap, or are not in order", s.VirtualAddress, memory)
	case virtualEnd > uint64(f.imageSize()):
		return bad(s.Name, "in memory the section ends at %#x, beyond the end of the image at %#x", virtualEnd, f.imageSize())
	case s.Size == 0:
		return nil
	case uint64(s.Offset)%file != 0 || uint64(s.Size)%file != 0:
		return bad(s.Name, "the section is %d bytes at byte %d of the file: want multiples of the file alignment of %d", s.Size, s.Offset, file)
	case uint64(s.Size) > up(uint64(s.VirtualSize), file):
		return bad(s.Name, "the section has %d bytes in the file and %d in memory: what is more would never be loaded", s.Size, s.VirtualSize)
	case uint64(s.Offset) < raw:
		return bad(s.Name, "in the file the section begins at byte %d, before the end of what precedes it at %d: sections overlap, or are not in order", s.Offset, raw)
	case rawEnd > uint64(f.size):
		return bad(s.Name, "the section ends at byte %d, beyond the end of the file at %d", rawEnd, f.size)
	}
	return nil
}

// checkPlaces refuses headers that point at nothing.
func (f *File) checkPlaces() error {
	entry := f.entry()
	if s := f.at(entry); s == nil || entry-s.VirtualAddress >= s.Size || s.flags&0x20000000 == 0 {
		return bad("", "the image begins to run at %#x, where no code is", entry)
	}
	if at, size := f.u32(relocationAt), f.u32(relocationAt+4); size > 0 {
		if s := f.at(at); s == nil || uint64(at)+uint64(size) > uint64(s.VirtualAddress)+uint64(s.VirtualSize) {
			return bad("", "the relocations are %d bytes at %#x, where no section is", size, at)
		}
	}
	// The table is the only directory that is a place in the file.
	f.certificate.offset, f.certificate.size = f.u32(certificateAt), f.u32(certificateAt+4)
	if c := f.certificate; c.size > 0 && (c.offset%8 != 0 || int64(c.offset) < f.rawEnd() || int64(c.offset)+int64(c.size) > f.size) {
		return bad("", "the certificate table is %d bytes at byte %d: want it aligned to 8, between the sections, which end at %d, and the end of the file at %d", c.size, c.offset, f.rawEnd(), f.size)
	}
	return nil
}

// at is the section at a virtual address.
func (f *File) at(address uint32) *Section {
	for i, s := range f.sections {
		if address >= s.VirtualAddress && address-s.VirtualAddress < s.VirtualSize {
			return &f.sections[i]
		}
	}
	return nil
}

// rawEnd is where the last section ends in the file.
func (f *File) rawEnd() (end int64) {
	end = int64(f.headersSize())
	for _, s := range f.sections {
		end = max(end, int64(s.Offset)+int64(s.Size))
	}
	return end
}

// base are the sections before the first profile.
func (f *File) base() []Section {
	for i, s := range f.sections {
		if s.Name == sectionProfile {
			return f.sections[:i]
		}
	}
	return f.sections
}

// find returns the section of this name before the first profile, or nil.
func (f *File) find(name string) *Section {
	base := f.base()
	for i := range base {
		if base[i].Name == name {
			return &base[i]
		}
	}
	return nil
}

func (f *File) readTexts() error {
	for _, text := range []struct {
		section string
		to      *string
	}{{sectionLine, &f.line}, {sectionUname, &f.uname}, {sectionOS, &f.osRelease}} {
		s := f.find(text.section)
		if s == nil {
			continue
		}
		size := min(s.Size, s.VirtualSize)
		if size > maxText {
			return bad(s.Name, "the section has %d bytes, want at most %d", size, maxText)
		}
		b, err := f.read(int64(s.Offset), int64(size), s.Name)
		if err != nil {
			return err
		}
		b, _, _ = bytes.Cut(b, []byte{0}) // as systemd-stub does
		*text.to = strings.TrimRight(string(b), " \n")
	}
	return nil
}

// CheckUKI refuses a file that is no UKI: code with a kernel of its own
// architecture, and with each section once.
func (f *File) CheckUKI() error {
	if f.find(sectionText) == nil {
		return bad(sectionText, "the file has no such section: it is not a UKI")
	}
	kernel := f.find(sectionKernel)
	if kernel == nil {
		return bad(sectionKernel, "the file has no such section: it is not a UKI")
	}
	// Of two, the stub of systemd 252 takes the last, and later ones the first.
	seen := map[string]bool{}
	for _, s := range f.base() {
		if seen[s.Name] && s.Name != ".dtbauto" && s.Name != ".efifw" {
			return bad(s.Name, "the file has two of them")
		}
		seen[s.Name] = true
	}
	return checkKernel(f.arch, Source{R: io.NewSectionReader(f.r, int64(kernel.Offset), int64(kernel.Size)), Size: int64(kernel.Size)})
}

// CheckStub refuses a file that is not systemd's stub, without a kernel.
func (f *File) CheckStub() error {
	if f.find(sectionText) == nil {
		return bad(sectionText, "the file has no such section: it is not %s", aStub)
	}
	if f.size > maxStub {
		return bad("", "the file has %d bytes: it is not %s", f.size, aStub)
	}
	all, err := f.read(0, f.size, "the stub")
	if err != nil {
		return err
	}
	// Most have it in a section, .sdmagic, and that of 252 for arm64 in its data.
	if !bytes.Contains(all, []byte("LoaderInfo: systemd-stub ")) {
		return bad("", "the file does not say that it is systemd-stub: it is not %s", aStub)
	}
	for _, name := range []string{sectionKernel, sectionInitrd, sectionLine, sectionOS, sectionUname, sectionProfile} {
		for _, s := range f.sections {
			if s.Name == name {
				return bad(name, "the stub has this section: it is a UKI already")
			}
		}
	}
	return nil
}

// checkKernel refuses a kernel that firmware of the architecture does not start.
func checkKernel(arch string, kernel Source) error {
	is, _, err := peArch(kernel.R, kernel.Size, sectionKernel)
	if err != nil {
		return err
	}
	if is != arch {
		return bad(sectionKernel, "the kernel is for %s, and the file for %s", is, arch)
	}
	return nil
}

// peArch reads which machine a PE file is for and where its PE header is. What
// is wrong is said of the section that the file is, or is to be.
func peArch(r io.ReaderAt, size int64, section string) (arch string, at int64, err error) {
	var head [dosSize]byte
	if size < dosSize {
		return "", 0, bad(section, "this is not a PE file: it has %d bytes", size)
	}
	if n, err := r.ReadAt(head[:], 0); n < len(head) {
		return "", 0, noEOF(err)
	}
	at = int64(binary.LittleEndian.Uint32(head[60:]))
	if string(head[:2]) != "MZ" || at+coffSize > size {
		return "", 0, bad(section, "this is not a PE file: it does not begin with MZ and the place of a PE header")
	}
	var pe [6]byte
	if n, err := r.ReadAt(pe[:], at); n < len(pe) {
		return "", 0, noEOF(err)
	}
	if string(pe[:4]) != "PE\x00\x00" {
		return "", 0, bad(section, "this is not a PE file: it has no PE header where it says")
	}
	switch machine := binary.LittleEndian.Uint16(pe[4:]); machine {
	case 0x8664:
		return "amd64", at, nil
	case 0xaa64:
		return "arm64", at, nil
	default:
		return "", 0, bad(section, "this is for machine %#x, not for x86-64 (0x8664) or arm64 (0xaa64)", machine)
	}
}

// Arch is "amd64" or "arm64".
func (f *File) Arch() string { return f.arch }

// Sections is the section table.
func (f *File) Sections() []Section { return f.sections }

// Certificates is where the certificate table is in the file; size is 0 for a
// file that nobody signed.
func (f *File) Certificates() (offset, size int64) {
	return int64(f.certificate.offset), int64(f.certificate.size)
}

// Line is the kernel line, without those of profiles.
func (f *File) Line() string { return f.line }

// Uname is the version of the kernel as .uname has it; empty if it does not.
func (f *File) Uname() string { return f.uname }

// OSRelease is the text of .osrel, as in os-release(5); empty if there is none.
func (f *File) OSRelease() string { return f.osRelease }

// Digest reads the whole file for its Authenticode digest (SHA-256), as EDK2
// computes it (HashPeImage in DxeImageVerificationLib): everything but the
// checksum, the certificate table and where that is, the sections in their order
// in the file. A file without such a table counts as padded with zeros to a
// multiple of 8 bytes, where its table would begin.
func (f *File) Digest() ([sha256.Size]byte, error) {
	h := sha256.New()
	end := f.size
	if c := f.certificate; c.size > 0 {
		end -= int64(c.size)
	}
	checksum, directory, headers := f.optionalAt+checksumAt, f.optionalAt+certificateAt, int64(f.headersSize())
	ranges := [][2]int64{{0, checksum}, {checksum + 4, directory}, {directory + 8, headers}}
	sum := headers
	for _, s := range f.sections {
		ranges = append(ranges, [2]int64{int64(s.Offset), int64(s.Offset) + int64(s.Size)})
		sum += int64(s.Size)
	}
	if end > sum {
		ranges = append(ranges, [2]int64{sum, end})
	}
	for _, r := range ranges {
		if n, err := io.Copy(h, io.NewSectionReader(f.r, r[0], r[1]-r[0])); err != nil || n < r[1]-r[0] {
			return [sha256.Size]byte{}, fmt.Errorf("reading the file for its digest: %w", noEOF(err))
		}
	}
	if f.certificate.size == 0 {
		h.Write(make([]byte, up(uint64(end), 8)-uint64(end)))
	}
	return [sha256.Size]byte(h.Sum(nil)), nil
}

// up rounds n up to a multiple of a power of two.
func up(n, to uint64) uint64 { return (n + to - 1) &^ (to - 1) }
