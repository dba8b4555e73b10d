// Package ukitest makes small PE files for tests: kernels, stubs and UKIs that
// say of themselves what the real ones do, and run nowhere.
package ukitest

import (
	"encoding/binary"
	"slices"
	"strings"
)

// Flags of sections (PE Format, "Section Flags").
const (
	Code = 0x60000020 // code, execute, read
	Data = 0x40000040 // initialized data, read
	BSS  = 0xc0000080 // uninitialized data, read, write
)

// Section is one of a PE file.
type Section struct {
	Name    string
	Content []byte
	Zeros   uint32 // bytes in memory behind the content
	Flags   uint32 // 0: Data
	Gap     uint32 // bytes left free in memory before it
}

// PE is a PE32+ file. What is 0 is as usual.
type PE struct {
	Arch             string // "amd64" (default) or "arm64"
	FileAlignment    uint32 // default 512
	SectionAlignment uint32 // default 4096
	DOS              uint32 // bytes before the PE header; default 128
	Sections         []Section
	Symbols          int    // entries of a COFF symbol table
	Certificates     []byte // a certificate table
}

func or(n, usual uint32) uint32 {
	if n == 0 {
		return usual
	}
	return n
}

func up(n, to uint32) uint32 { return (n + to - 1) / to * to }

// Bytes is the file. Its first section is where it begins to run.
func (p PE) Bytes() []byte {
	fileAlign, sectionAlign, dos := or(p.FileAlignment, 512), or(p.SectionAlignment, 4096), or(p.DOS, 128)
	const optional = 112 + 16*8
	table := dos + 24 + optional
	headers := up(table+40*uint32(len(p.Sections)), fileAlign)
	b := make([]byte, headers)
	u16 := func(at uint32, v uint16) { binary.LittleEndian.PutUint16(b[at:], v) }
	u32 := func(at, v uint32) { binary.LittleEndian.PutUint32(b[at:], v) }
	copy(b, "MZ")
	u32(60, dos)
	copy(b[dos:], "PE\x00\x00")
	u16(dos+4, map[string]uint16{"": 0x8664, "amd64": 0x8664, "arm64": 0xaa64}[p.Arch])
	u16(dos+6, uint16(len(p.Sections)))
	u16(dos+20, optional)
	u16(dos+22, 0x0202)
	o := dos + 24
	u16(o, 0x20b)
	u32(o+32, sectionAlign)
	u32(o+36, fileAlign)
	u32(o+60, headers)
	u32(o+64, 0xc0ffee) // a checksum, which nobody checks
	u16(o+68, 10)
	u32(o+108, 16)
	memory := up(headers, sectionAlign)
	for i, s := range p.Sections {
		at := table + 40*uint32(i)
		memory = up(memory+s.Gap, sectionAlign)
		raw := uint32(len(b))
		b = append(b, s.Content...)
		b = append(b, make([]byte, up(uint32(len(s.Content)), fileAlign)-uint32(len(s.Content)))...)
		copy(b[at:at+8], s.Name)
		u32(at+8, uint32(len(s.Content))+s.Zeros)
		u32(at+12, memory)
		u32(at+16, uint32(len(b))-raw)
		if len(s.Content) > 0 {
			u32(at+20, raw)
		}
		u32(at+36, or(s.Flags, Data))
		if i == 0 {
			u32(o+16, memory) // the entry
		}
		if s.Name == ".reloc" {
			u32(o+112+5*8, memory)
			u32(o+112+5*8+4, uint32(len(s.Content)))
		}
		memory += uint32(len(s.Content)) + s.Zeros
	}
	u32(o+56, up(memory, sectionAlign))
	if p.Symbols > 0 {
		u32(dos+12, uint32(len(b)))
		u32(dos+16, uint32(p.Symbols))
		b = append(b, make([]byte, 18*p.Symbols+4)...)
	}
	if len(p.Certificates) > 0 {
		b = append(b, make([]byte, up(uint32(len(b)), 8)-uint32(len(b)))...)
		u32(o+112+4*8, uint32(len(b)))
		u32(o+112+4*8+4, uint32(len(p.Certificates)))
		b = append(b, p.Certificates...)
	}
	return b
}

// Kernel is a file that looks like a kernel that UEFI starts, of about size
// bytes.
func Kernel(arch string, size int) []byte {
	return PE{Arch: arch, Sections: []Section{{Name: ".text", Content: Noise("kernel "+arch, size), Flags: Code}}}.Bytes()
}

// Stub looks like systemd's stub.
func Stub(arch string) PE {
	return PE{Arch: arch, Sections: []Section{
		{Name: ".text", Content: Noise("text", 3000), Flags: Code},
		{Name: ".bss", Zeros: 5000, Flags: BSS},
		{Name: ".reloc", Content: []byte{0, 16, 0, 0, 12, 0, 0, 0, 0, 0, 0, 0}},
		{Name: ".sbat", Content: []byte("sbat,1,SBAT Version,sbat,1,https://github.com/rhboot/shim/blob/main/SBAT.md\n")},
		{Name: ".sdmagic", Content: []byte("#### LoaderInfo: systemd-stub 257.9 ####\x00")},
	}}
}

// UKI looks like the official one of Talos: the stub, what it starts, a public
// key, and profiles with kernel lines and signatures of their own.
func UKI(arch, line string, kernel, initrd []byte) PE {
	p := Stub(arch)
	for _, s := range []struct{ name, content string }{
		{".osrel", "ID=talos\nVERSION_ID=v1.13.6\n"},
		{".cmdline", line},
		{".uname", "6.18.5-talos"},
		{".splash", "BM" + strings.Repeat("splash", 700)},
		{".pcrpkey", "-----BEGIN PUBLIC KEY-----\n"},
		{".linux", string(kernel)},
		{".initrd", string(initrd)},
		{".pcrsig", `{"sha256":[]}`},
		{".profile", "ID=main"},
		{".pcrsig", `{"sha256":[1]}`},
		{".profile", "ID=wipe\nTITLE=Wipe"},
		{".cmdline", line + " talos.experimental.wipe=system"},
		{".pcrsig", `{"sha256":[2]}`},
	} {
		p.Sections = append(p.Sections, Section{Name: s.name, Content: []byte(s.content)})
	}
	return p
}

// Noise is size bytes that are the same for the same name, and like no others.
func Noise(name string, size int) []byte {
	b := make([]byte, size)
	state := uint64(14695981039346656037)
	for _, c := range []byte(name) {
		state = (state ^ uint64(c)) * 1099511628211
	}
	for i := range b {
		state ^= state << 13
		state ^= state >> 7
		state ^= state << 17
		b[i] = byte(state >> 32)
	}
	return slices.Clip(b)
}
