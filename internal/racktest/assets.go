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
	machine := uint16(0x8664)
	if arch == ARM64 {
		machine = 0xaa64
	}
	binary.LittleEndian.PutUint16(b[0x84:], machine)
	return b
}

// Kernel is a bzImage or an arm64 Image by its header, 512 KiB.
func Kernel(arch string) []byte {
	b := noise(512<<10, 2)
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
