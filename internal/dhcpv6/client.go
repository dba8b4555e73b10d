package dhcpv6

import (
	"encoding/hex"
	"slices"
	"strings"

	"github.com/insomniacslk/dhcp/dhcpv6"
	"github.com/insomniacslk/dhcp/iana"

	"github.com/provisiond/provisiond/internal/inventory"
)

// clientOf says which program of the machine is speaking.
func clientOf(m *message) inventory.Client {
	switch {
	case slices.ContainsFunc(m.userClass, func(s string) bool { return strings.Contains(s, "iPXE") }):
		// Its architecture and vendor class are those of the firmware below it,
		// so this comes first, or iPXE would load itself for ever.
		return inventory.IPXE
	case m.isVendor("HTTPClient"):
		return inventory.FirmwareHTTP
	case m.isVendor("PXEClient"):
		return inventory.FirmwarePXE
	case len(m.archs) > 0 && slices.ContainsFunc(m.archs, bootsByHTTP):
		return inventory.FirmwareHTTP
	case len(m.archs) > 0:
		return inventory.FirmwarePXE
	case m.isFirmwareStack():
		return inventory.FirmwareStack
	}
	return inventory.OperatingSystem
}

// isVendor reports whether a vendor class has a word, as in
// "PXEClient:Arch:00007:UNDI:003000".
func (m *message) isVendor(word string) bool {
	return slices.ContainsFunc(m.vendorClass, func(s string) bool { return strings.Contains(s, word) })
}

// isFirmwareStack recognizes EDK2's own IPv6 stack: it asks for option 23 and
// nothing else, and its Solicit wants T1 and T2 without end (measured). An
// operating system that wants no more than DNS leaves them at 0.
func (m *message) isFirmwareStack() bool {
	if m.rapidCommit || isDUIDLL(m.clientID) || !slices.Equal(m.wants, []dhcpv6.OptionCode{dhcpv6.OptionDNSRecursiveNameServer}) {
		return false
	}
	return m.kind != dhcpv6.MessageTypeSolicit || !slices.ContainsFunc(m.ias, func(ia association) bool { return ia.t1 != 0xffffffff || ia.t2 != 0xffffffff })
}

// boots reports whether the client is one that is given a boot URL.
func boots(c inventory.Client) bool {
	return c == inventory.FirmwarePXE || c == inventory.FirmwareHTTP || c == inventory.IPXE
}

// bootsByHTTP reports whether an architecture type is one of HTTP boot
// (IANA, Processor Architecture Types).
func bootsByHTTP(arch uint16) bool {
	switch iana.Arch(arch) {
	case iana.EFI_X86_HTTP, iana.EFI_X86_64_HTTP, iana.EFI_BC_HTTP, iana.EFI_ARM32_HTTP, iana.EFI_ARM64_HTTP,
		iana.INTEL_X86PC_HTTP, iana.UBOOT_ARM32_HTTP, iana.UBOOT_ARM64_HTTP,
		iana.EFI_RISCV32_HTTP, iana.EFI_RISCV64_HTTP, iana.EFI_RISCV128_HTTP:
		return true
	}
	return false
}

// archOf returns the first architecture type that Talos runs on, which the
// client lists by preference, or "" if there is none.
func archOf(types []uint16) inventory.Arch {
	for _, t := range types {
		switch iana.Arch(t) {
		case iana.EFI_X86_64, iana.EFI_BC, iana.EFI_X86_64_HTTP: // firmware of before 2010 calls x86-64 EBC
			return inventory.AMD64
		case iana.EFI_ARM64, iana.EFI_ARM64_HTTP:
			return inventory.ARM64
		}
	}
	return ""
}

func isDUIDLL(d []byte) bool { return len(d) > 2 && d[0] == 0 && d[1] == 3 }

// uuidOf returns the SMBIOS UUID of a DUID-UUID (RFC 6355) as text, or "".
// EDK2 copies SMBIOS' raw bytes, whose first three fields are little-endian;
// everyone else sends text order. All-zero and all-one UUIDs mean none.
func uuidOf(d []byte, c inventory.Client) string {
	if len(d) != 18 || d[0] != 0 || d[1] != 4 || !inventory.LearnableDUID(d) {
		return ""
	}
	u := slices.Clone(d[2:])
	switch c {
	case inventory.FirmwarePXE, inventory.FirmwareHTTP, inventory.FirmwareStack:
		slices.Reverse(u[0:4])
		slices.Reverse(u[4:6])
		slices.Reverse(u[6:8])
	}
	h := hex.EncodeToString(u)
	return h[:8] + "-" + h[8:12] + "-" + h[12:16] + "-" + h[16:20] + "-" + h[20:]
}
