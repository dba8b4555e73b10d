//go:build e2e

package e2e

import (
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"net"
	"path/filepath"
	"regexp"
	"strings"
	"unicode/utf16"
)

// bootOption is a way by which firmware tries the network.
type bootOption string

const (
	pxe6  bootOption = "PXEv6"
	http6 bootOption = "HTTPv6"
)

// httpFrom is HTTP boot from a URL that is set in the firmware. The address alone comes
// by DHCPv6 then.
func httpFrom(url string) bootOption { return bootOption(url) }

// The layout of OVMF's variable store: a firmware volume header, the header of
// the store, and variables up to the first that does not begin with variableStart
// (EDK2, MdeModulePkg/Include/Guid/VariableFormat.h).
const (
	storeHeader       = 28
	variableStart     = 0x55aa
	variableHeader    = 60
	variableAdded     = 0x3f
	variableDeleted   = 0xfd // a bit to clear
	nvBootRuntime     = 7    // EFI_VARIABLE_NON_VOLATILE, BOOTSERVICE_ACCESS, RUNTIME_ACCESS
	loadOptionActive  = 1
	volumeHeaderBytes = 48 // offset of EFI_FIRMWARE_VOLUME_HEADER.HeaderLength
)

// Two GUIDs in memory order: of the variables BootOrder and Boot####, and the
// mark of the options that EDK2's boot manager makes itself, which it takes to
// be this one then instead of adding another (UefiBootManagerLib).
var (
	globalVariable = unhex("61dfe48bca93d211aa0d00e098032b8c")
	autoCreated    = unhex("4eac0881119f594d850ee21a522c59b2")
)

// bootVariable is the name of a variable that has to do with what is booted.
var bootVariable = regexp.MustCompile(`^Boot(Order|[0-9A-F]{4})$`)

// nicSlot is the PCI slot of the network card, which the boot option names.
const nicSlot = 4

// withBootOptions returns a copy of the variables of EDK2 in which a network card has
// the only boot options, in this order. The boot manager adds all else it finds behind
// them, disks first, so a machine whose network boot ends goes on to its disk.
func withBootOptions(vars []byte, mac net.HardwareAddr, options ...bootOption) ([]byte, error) {
	le := binary.LittleEndian
	if len(vars) < 1024 || string(vars[40:44]) != "_FVH" {
		return nil, fmt.Errorf("not a firmware volume")
	}
	out := bytes.Clone(vars)
	at := int(le.Uint16(out[volumeHeaderBytes:])) + storeHeader
	for le.Uint16(out[at:]) == variableStart {
		name := int(le.Uint32(out[at+36:]))
		size := variableHeader + name + int(le.Uint32(out[at+40:]))
		if at+size+4096 > len(out) {
			return nil, fmt.Errorf("the variable store is full")
		}
		if bootVariable.MatchString(text(out[at+variableHeader:][:name])) {
			out[at+2] &= variableDeleted
		}
		at = (at + size + 3) &^ 3
	}
	var order []byte
	for i, o := range options {
		order = le.AppendUint16(order, uint16(i))
		at += copy(out[at:], variable(fmt.Sprintf("Boot%04X", i), loadOption(o, mac)))
	}
	copy(out[at:], variable("BootOrder", order))
	return out, nil
}

// variable is an AUTHENTICATED_VARIABLE_HEADER with name and data, aligned.
func variable(name string, data []byte) []byte {
	le := binary.LittleEndian
	wide := utf16z(name)
	b := le.AppendUint16(nil, variableStart)
	b = append(b, variableAdded, 0)
	b = le.AppendUint32(b, nvBootRuntime)
	b = append(b, make([]byte, 8+16+4)...) // monotonic count, time, public key: for authenticated ones
	b = le.AppendUint32(b, uint32(len(wide)))
	b = le.AppendUint32(b, uint32(len(data)))
	b = append(b, globalVariable...)
	b = append(b, wide...)
	b = append(b, data...)
	for len(b)%4 != 0 {
		b = append(b, 0xff)
	}
	return b
}

// loadOption is an EFI_LOAD_OPTION (UEFI 2.10 section 3.1.3) with the device
// path PciRoot(0x0)/Pci(nicSlot,0x0)/MAC(...)/IPv6(...), and /Uri(...) for HTTP.
func loadOption(option bootOption, mac net.HardwareAddr) []byte {
	le := binary.LittleEndian
	var path []byte
	node := func(kind, sub byte, data ...byte) {
		path = append(path, kind, sub)
		path = le.AppendUint16(path, uint16(4+len(data)))
		path = append(path, data...)
	}
	node(2, 1, unhex("d041030a00000000")...) // ACPI, PNP0A03, UID 0
	node(1, 1, 0, nicSlot)                   // PCI function, device
	macNode := make([]byte, 33)
	copy(macNode, mac)
	macNode[32] = 1 // Ethernet
	node(3, 11, macNode...)
	ip6 := make([]byte, 56)
	ip6[39] = 64 // prefix length
	node(3, 13, ip6...)
	switch option {
	case pxe6:
	case http6:
		node(3, 24) // URI, empty: it comes by DHCPv6
	default:
		node(3, 24, []byte(option)...)
	}
	node(0x7f, 0xff)

	b := le.AppendUint32(nil, loadOptionActive)
	b = le.AppendUint16(b, uint16(len(path)))
	if option != pxe6 && option != http6 {
		// Without the mark: the boot manager would take it for one of its own that is
		// gone. The name is short because firmware's messages are cut.
		b = append(b, utf16z(filepath.Base(string(option)))...)
		return append(b, path...)
	}
	b = append(b, utf16z(fmt.Sprintf("UEFI %s (MAC:%X)", option, []byte(mac)))...)
	b = append(b, path...)
	return append(b, autoCreated...)
}

func utf16z(s string) []byte {
	var b []byte
	for _, u := range utf16.Encode([]rune(s + "\x00")) {
		b = binary.LittleEndian.AppendUint16(b, u)
	}
	return b
}

func text(wide []byte) string {
	var u []uint16
	for ; len(wide) >= 2; wide = wide[2:] {
		u = append(u, binary.LittleEndian.Uint16(wide))
	}
	return strings.TrimRight(string(utf16.Decode(u)), "\x00")
}

func unhex(s string) []byte {
	b, err := hex.DecodeString(s)
	if err != nil {
		panic(err) // a constant of this file
	}
	return b
}
