package racktest

import (
	"encoding/binary"
	"math/rand/v2"
)

// Loader, Kernel and Initramfs are files that look like boot files to those who
// check their headers, and hold noise that is the same every time. Simulated
// machines read and hash them.

// Loader is a PE file of the architecture without sections, 96 KiB.
func Loader(arch string) []byte {
	b := noise(96<<10, 1)
	clear(b[:512])
	copy(b, "MZ")
	binary.LittleEndian.PutUint32(b[0x3c:], 0x80)
	copy(b[0x80:], "PE\x00\x00")
	binary.LittleEndian.PutUint16(b[0x84:], peMachine(arch))
	return b
}

// Stub is a UEFI application that says that it is systemd's stub, 8 KiB: a header, and a
// section of code and one of data.
func Stub(arch string) []byte {
	const headers, text, data = 0x400, 0x1000, 0xc00
	b := noise(headers+text+data, 4)
	clear(b[:headers])
	put16 := func(at int, v uint16) { binary.LittleEndian.PutUint16(b[at:], v) }
	put32 := func(at int, v uint32) { binary.LittleEndian.PutUint32(b[at:], v) }
	copy(b, "MZ")
	put32(0x3c, 0x80)
	copy(b[0x80:], "PE\x00\x00")
	put16(0x84, peMachine(arch))
	put16(0x86, 2)    // sections
	put16(0x94, 0xf0) // size of the optional header
	put16(0x96, 0x22) // executable, large addresses
	const optional = 0x98
	put16(optional, 0x20b) // PE32+
	put32(optional+16, 0x1000)
	put32(optional+20, 0x1000)
	put32(optional+32, 0x1000) // alignment in memory
	put32(optional+36, 0x200)  // and in the file
	put32(optional+56, 0x3000) // size of the image
	put32(optional+60, headers)
	put16(optional+68, 10)  // EFI application
	put32(optional+108, 16) // directories
	at := optional + 0xf0
	for _, s := range []struct {
		name                   string
		memory, file, size, is uint32
	}{{".text", 0x1000, headers, text, 0x60000020}, {".sbat", 0x2000, headers + text, data, 0x40000040}} {
		copy(b[at:], s.name)
		put32(at+8, s.size)
		put32(at+12, s.memory)
		put32(at+16, s.size)
		put32(at+20, s.file)
		put32(at+36, s.is)
		at += 40
	}
	copy(b[headers+0x800:], "#### LoaderInfo: systemd-stub 257 ####")
	return b
}

func peMachine(arch string) uint16 {
	if arch == ARM64 {
		return 0xaa64
	}
	return 0x8664
}

// Kernel is a bzImage or an arm64 Image by its header, 512 KiB.
func Kernel(arch string) []byte {
	b := noise(512<<10, 2)
	copy(b, "MZ") // it is a PE file too, for firmware
	binary.LittleEndian.PutUint32(b[0x3c:], 0x40)
	copy(b[0x40:], "PE\x00\x00")
	binary.LittleEndian.PutUint16(b[0x44:], peMachine(arch))
	if arch == ARM64 {
		copy(b[0x38:], "ARM\x64")
	} else {
		copy(b[0x202:], "HdrS")
	}
	return b
}

// Initramfs begins like a zstd frame, 1 MiB.
func Initramfs() []byte {
	b := noise(1<<20, 3)
	copy(b, "\x28\xb5\x2f\xfd")
	return b
}

func noise(n int, seed uint64) []byte {
	rng := rand.New(rand.NewPCG(seed, seed))
	b := make([]byte, n)
	for i := 0; i+8 <= n; i += 8 {
		binary.LittleEndian.PutUint64(b[i:], rng.Uint64())
	}
	return b
}
