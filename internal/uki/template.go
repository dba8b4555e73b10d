package uki

import (
	"cmp"
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"hash"
	"io"
	"math"
	"slices"
)

// What templates have.
const (
	fileAlignment = 512
	pageSize      = 4096       // of UEFI, for what may be loaded where
	dataFlags     = 0x40000040 // IMAGE_SCN_CNT_INITIALIZED_DATA | IMAGE_SCN_MEM_READ
)

// Source is a file to take a section from.
type Source struct {
	R    io.ReaderAt
	Size int64 // bytes
}

// Template is a UKI with only its kernel line open. It does not change, and
// may be used by many at once.
type Template struct {
	arch    string
	sources []Source
	head    []byte            // the headers, without the place of a certificate table
	table   int               // where in head that place is said
	pieces  []Piece           // between the headers and .cmdline
	lineAt  int64             // where .cmdline begins
	digest  hash.Cloner       // of all before .cmdline, as Authenticode has it
	id      [sha256.Size]byte // of the same
}

// FromUKI makes a template of a UKI, of which the pieces are of one file: that
// one. It reads the whole file once, for the digest.
//
// What is left out: .cmdline, which becomes the machine's; .pcrsig, a signature
// of the TPM's PCR 11, into which systemd-stub measures .cmdline, so that it
// fits no other line; everything from the first .profile on, which are other
// kernel lines to choose from; and the signatures of the whole file. .pcrpkey
// stays: it is a public key, and says nothing of the line.
func FromUKI(f *File) (*Template, error) {
	if err := f.CheckUKI(); err != nil {
		return nil, err
	}
	l := newLayout(f)
	for _, s := range f.base() {
		if s.Name != sectionLine && s.Name != sectionPCRSig {
			l.keep(s)
		}
	}
	return l.template()
}

// Assemble makes a template of systemd's stub, a kernel and an initramfs, of
// which the pieces are of three files, in this order. It reads them once, for
// the digest. osRelease is a text as in os-release(5), uname the version of the
// kernel (uname -r); either may be empty.
func Assemble(stub *File, kernel, initrd Source, osRelease, uname string) (*Template, error) {
	if err := stub.CheckStub(); err != nil {
		return nil, err
	}
	if err := checkKernel(stub.arch, kernel); err != nil {
		return nil, err
	}
	if initrd.Size == 0 {
		return nil, bad(sectionInitrd, "the initramfs is empty")
	}
	if kernel.Size > math.MaxUint32 || initrd.Size > math.MaxUint32 {
		return nil, bad("", "kernel and initramfs have %d and %d bytes: a PE file has less than 4 GiB", kernel.Size, initrd.Size)
	}
	l := newLayout(stub)
	for _, s := range stub.sections {
		l.keep(s)
	}
	for _, text := range []struct{ section, text string }{{sectionOS, osRelease}, {sectionUname, uname}} {
		if len(text.text) > maxText {
			return nil, bad(text.section, "the text has %d bytes, want at most %d", len(text.text), maxText)
		}
		if text.text != "" {
			l.add(text.section, Piece{Bytes: []byte(text.text), Size: int64(len(text.text))})
		}
	}
	l.sources = append(l.sources, kernel, initrd)
	l.add(sectionKernel, Piece{File: 1, Size: kernel.Size})
	l.add(sectionInitrd, Piece{File: 2, Size: initrd.Size})
	return l.template()
}

// Arch is "amd64" or "arm64".
func (t *Template) Arch() string { return t.arch }

// Size is how many bytes each UKI of this template has: it does not depend on
// the line. signer is nil for one that is not signed.
func (t *Template) Size(signer Signer) int64 {
	size := t.lineAt + lineRoom
	if signer != nil {
		size += tableSize(signer.Size())
	}
	return size
}

// layout is a template while its sections are being put in.
type layout struct {
	base     *File
	sources  []Source
	sections []Section // places in memory; those in the file come last
	pieces   []Piece
	memory   uint64 // where the last section ends in memory
	size     uint64 // bytes of pieces
}

func newLayout(base *File) *layout {
	return &layout{base: base, sources: []Source{{R: base.r, Size: base.size}}}
}

// keep takes a section of the base as it is, at the same place in memory. What
// a larger file alignment put behind it is left out.
func (l *layout) keep(s Section) {
	size := min(uint64(s.Size), up(uint64(s.VirtualSize), fileAlignment))
	l.place(s, Piece{Offset: int64(s.Offset), Size: int64(size)})
}

// add puts a section behind the others.
func (l *layout) add(name string, content Piece) {
	at := up(l.memory, uint64(max(pageSize, l.base.sectionAlignment())))
	// Sizes that do not fit are refused by template, which looks at memory and size.
	l.place(Section{Name: name, VirtualAddress: uint32(at), VirtualSize: uint32(content.Size), flags: dataFlags}, content)
	l.memory = at + uint64(content.Size)
}

func (l *layout) place(s Section, content Piece) {
	l.memory = uint64(s.VirtualAddress) + uint64(s.VirtualSize)
	s.Offset = uint32(l.size) // from the end of the headers, so far
	l.append(content)
	if rest := up(l.size, fileAlignment) - l.size; rest > 0 {
		l.append(Piece{Bytes: make([]byte, rest), Size: int64(rest)})
	}
	s.Size = uint32(l.size) - s.Offset
	l.sections = append(l.sections, s)
}

// append adds a piece, to the one before it where they lie side by side: each
// piece is a system call for every machine.
func (l *layout) append(p Piece) {
	if p.Size == 0 {
		return
	}
	l.size += uint64(p.Size)
	if n := len(l.pieces); n > 0 {
		switch last := &l.pieces[n-1]; {
		case last.Bytes != nil && p.Bytes != nil:
			last.Bytes = append(last.Bytes, p.Bytes...)
			last.Size += p.Size
			return
		case last.Bytes == nil && p.Bytes == nil && last.File == p.File && last.Offset+last.Size == p.Offset:
			last.Size += p.Size
			return
		}
	}
	l.pieces = append(l.pieces, p)
}

// template ends the layout with .cmdline, writes the headers, and reads
// everything for the digest.
func (l *layout) template() (*Template, error) {
	kept := slices.Clone(l.pieces) // what follows may grow the last of them
	lineAt := int64(l.size)
	l.add(sectionLine, Piece{Bytes: make([]byte, lineRoom), Size: lineRoom})
	align := uint64(max(pageSize, l.base.sectionAlignment()))
	if image := up(l.memory, align); image > math.MaxUint32 || l.size > math.MaxUint32-maxHeaders {
		return nil, bad("", "kernel and initramfs are too large: the image would have %d bytes, and a PE file has less than 4 GiB", max(image, l.size))
	}
	t := &Template{arch: l.base.arch, sources: l.sources, pieces: kept}
	t.head, t.table = l.headers()
	if first := l.sections[0]; len(t.head) > int(first.VirtualAddress) {
		return nil, bad(first.Name, "in memory the section begins at %#x, and %d sections need headers of %d bytes", first.VirtualAddress, len(l.sections), len(t.head))
	}
	t.lineAt = int64(len(t.head)) + lineAt
	return t, t.hash()
}

// headers writes those of the image, and says where the entry of the
// certificate table is in them.
func (l *layout) headers() (head []byte, table int) {
	optional := dosSize + coffSize
	sections := optional + optionalSize + 8*directories
	size := up(uint64(sections+sectionSize*len(l.sections)), fileAlignment)
	head = make([]byte, size)
	u16, u32 := binary.LittleEndian.PutUint16, binary.LittleEndian.PutUint32

	copy(head, "MZ")
	u32(head[60:], dosSize) // where the COFF header is

	copy(head[dosSize:], l.base.coff[:])
	u16(head[dosSize+6:], uint16(len(l.sections)))
	u32(head[dosSize+12:], 0) // no symbols
	u32(head[dosSize+16:], 0)
	u16(head[dosSize+20:], optionalSize+8*directories)
	flags := binary.LittleEndian.Uint16(head[dosSize+22:])
	u16(head[dosSize+22:], flags|0x4|0x8) // IMAGE_FILE_LINE_NUMS_STRIPPED | IMAGE_FILE_LOCAL_SYMS_STRIPPED

	o := head[optional:]
	copy(o, l.base.optional[:optionalSize])
	var data uint32
	for _, s := range l.sections {
		if s.flags&0x40 != 0 {
			data += s.Size
		}
	}
	u32(o[8:], data) // SizeOfInitializedData
	u32(o[32:], max(fileAlignment, l.base.sectionAlignment()))
	u32(o[36:], fileAlignment)
	u32(o[56:], uint32(up(l.memory, uint64(max(pageSize, l.base.sectionAlignment()))))) // SizeOfImage
	u32(o[60:], uint32(size))                                                           // SizeOfHeaders
	u32(o[checksumAt:], 0)
	u32(o[108:], directories)
	// Firmware reads no other directory but that of debug data, which has places
	// in the file and would lie.
	copy(o[relocationAt:relocationAt+8], l.base.optional[relocationAt:])

	for i, s := range l.sections {
		e := head[sections+sectionSize*i:]
		copy(e, s.Name)
		u32(e[8:], s.VirtualSize)
		u32(e[12:], s.VirtualAddress)
		u32(e[16:], s.Size)
		if s.Size > 0 {
			u32(e[20:], s.Offset+uint32(size))
		}
		u32(e[36:], s.flags)
	}
	return head, optional + certificateAt
}

// hash reads all before .cmdline. What Authenticode hashes is all of the file
// in its order, since no byte of it is outside of headers and sections, but
// the checksum, the place of the certificate table, and that table.
func (t *Template) hash() error {
	h := sha256.New()
	h.Write(t.head[:t.table-(certificateAt-checksumAt)])
	h.Write(t.head[t.table-(certificateAt-checksumAt)+4 : t.table])
	h.Write(t.head[t.table+8:])
	for _, p := range t.pieces {
		if p.Bytes != nil {
			h.Write(p.Bytes)
			continue
		}
		n, err := io.Copy(h, io.NewSectionReader(t.sources[p.File].R, p.Offset, p.Size))
		if err != nil || n < p.Size {
			return fmt.Errorf("reading file %d of the UKI for its digest: %w", p.File, cmp.Or(err, io.ErrUnexpectedEOF))
		}
	}
	c, ok := h.(hash.Cloner)
	if !ok {
		return fmt.Errorf("this build's SHA-256 cannot be copied, which a digest for each boot needs")
	}
	t.digest = c
	t.id = [sha256.Size]byte(h.Sum(nil))
	return nil
}
