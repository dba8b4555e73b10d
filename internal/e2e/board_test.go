//go:build e2e

package e2e

import (
	"path/filepath"
	"testing"
)

// board is a kind of machine: what QEMU makes of it, and the firmware on it.
type board struct {
	arch     string // as provisiond calls it
	emulator string
	machine  []string // the emulator's arguments
	code     string   // the firmware
	vars     string   // its variables as the machine is delivered
	secure   bool     // it starts what Debian's key for tests signed, and nothing else

	console string // its serial port, as the kernel calls it
	loader  string // what firmware starts from a disk
	objcopy string // for its programs
}

// The boards. Firmware and variables are Debian's; the variables called snakeoil have
// its key for tests as the only one, and Secure Boot on.
var (
	pc = board{
		arch: "amd64", emulator: "qemu-system-x86_64",
		machine: []string{"-machine", "q35", "-cpu", "max", "-m", "768"},
		code:    "/usr/share/OVMF/OVMF_CODE_4M.fd", vars: "/usr/share/OVMF/OVMF_VARS_4M.fd",
		console: "ttyS0", loader: "BOOTX64.EFI", objcopy: "objcopy",
	}
	securePC = board{
		arch: "amd64", emulator: "qemu-system-x86_64",
		machine: []string{
			"-machine", "q35,smm=on", "-cpu", "max", "-m", "768",
			// This firmware wants its variables written in system management mode only,
			// and does not wake from sleep.
			"-global", "driver=cfi.pflash01,property=secure,value=on", "-global", "ICH9-LPC.disable_s3=1",
		},
		code: "/usr/share/OVMF/OVMF_CODE_4M.secboot.fd", vars: "/usr/share/OVMF/OVMF_VARS_4M.snakeoil.fd", secure: true,
		console: "ttyS0", loader: "BOOTX64.EFI", objcopy: "objcopy",
	}
	secureARM = board{
		arch: "arm64", emulator: "qemu-system-aarch64",
		machine: []string{"-machine", "virt", "-cpu", "cortex-a57", "-m", "768"},
		code:    "/usr/share/AAVMF/AAVMF_CODE.fd", vars: "/usr/share/AAVMF/AAVMF_VARS.snakeoil.fd", secure: true,
		console: "ttyAMA0", loader: "BOOTAA64.EFI", objcopy: "aarch64-linux-gnu-objcopy",
	}
)

// Debian's key for tests, which its packages ovmf and qemu-efi-aarch64 both have.
const (
	snakeoilCertificate = "/usr/share/ovmf/PkKek-1-snakeoil.pem"
	snakeoilLocked      = "/usr/share/ovmf/PkKek-1-snakeoil.key"
)

// snakeoilKey takes the passphrase off the key and returns its file, in dir.
func snakeoilKey(t *testing.T, dir string) string {
	t.Helper()
	key := filepath.Join(dir, "snakeoil.key")
	command(t, "openssl", "pkey", "-in", snakeoilLocked, "-passin", "pass:snakeoil", "-out", key)
	return key
}
