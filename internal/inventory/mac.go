package inventory

import (
	"encoding/hex"
	"fmt"
	"net/netip"
	"strings"
)

// MAC is an Ethernet hardware address in canonical form: six lower-case
// hexadecimal octets with colons, "52:54:00:12:34:56". The zero value is no
// address. It is the key of a machine: SMBIOS UUIDs are duplicated, zeroed and
// byte-swapped in the field, and a DUID belongs to a boot stage, not to a NIC.
type MAC string

// ParseMAC accepts the usual notations (aa:bb:cc:dd:ee:ff, AA-BB-CC-DD-EE-FF,
// aabb.ccdd.eeff, aabbccddeeff) and returns the canonical form. Multicast,
// broadcast and all-zero addresses cannot belong to a NIC and are refused.
func ParseMAC(s string) (MAC, error) {
	var digits strings.Builder
	for i := range len(s) {
		switch c := s[i]; {
		case c == ':' || c == '-' || c == '.':
		default:
			digits.WriteByte(c)
		}
	}
	if b := digits.String(); len(b) == 12 && knownSeparators(s) {
		if raw, err := hex.DecodeString(b); err == nil {
			return MACFromBytes(raw)
		}
	}
	return "", fmt.Errorf("%q is not a MAC address: write six octets such as 52:54:00:12:34:56", s)
}

// knownSeparators reports whether s is grouped as a person or a switch would
// write it, so that a slipped digit is an error and not another machine.
func knownSeparators(s string) bool {
	switch len(s) {
	case 12:
		return !strings.ContainsAny(s, ":-.")
	case 14:
		return s[4] == '.' && s[9] == '.' && strings.Count(s, ".") == 2 && !strings.ContainsAny(s, ":-")
	case 17:
		for i := 2; i < 17; i += 3 {
			if s[i] != s[2] || s[i] == '.' {
				return false
			}
		}
		return s[2] == ':' || s[2] == '-'
	}
	return false
}

// MACFromBytes makes a MAC of the six octets found in a packet, with the same
// refusals as [ParseMAC].
func MACFromBytes(b []byte) (MAC, error) {
	if len(b) != 6 {
		return "", fmt.Errorf("a MAC address has 6 octets, not %d", len(b))
	}
	if b[0]&1 != 0 {
		return "", fmt.Errorf("%x is a group address and cannot be the address of a NIC", b)
	}
	if [6]byte(b) == ([6]byte{}) {
		return "", fmt.Errorf("the all-zero address cannot be the address of a NIC")
	}
	const digits = "0123456789abcdef"
	out := make([]byte, 0, 17)
	for i, c := range b {
		if i > 0 {
			out = append(out, ':')
		}
		out = append(out, digits[c>>4], digits[c&15])
	}
	return MAC(out), nil
}

// Bytes returns the six octets. It returns nil for a MAC that is not canonical.
func (m MAC) Bytes() []byte {
	if len(m) != 17 {
		return nil
	}
	raw, err := hex.DecodeString(m.Plain())
	if err != nil {
		return nil
	}
	return raw
}

// Plain returns the twelve hexadecimal digits without separators, as they
// appear in the altname enx525400123456 that Talos' udev rules give a NIC.
func (m MAC) Plain() string { return strings.ReplaceAll(string(m), ":", "") }

// LinkLocal returns the EUI-64 link-local address of the NIC (RFC 4291,
// appendix A), which EDK2, iPXE and Talos all use.
func (m MAC) LinkLocal() netip.Addr {
	b := m.Bytes()
	if b == nil {
		return netip.Addr{}
	}
	return netip.AddrFrom16([16]byte{0xfe, 0x80, 8: b[0] ^ 2, b[1], b[2], 0xff, 0xfe, b[3], b[4], b[5]})
}

// EUI64 returns the address that the NIC makes for itself in a /64 prefix; invalid for a
// MAC that is not canonical.
func (m MAC) EUI64(prefix netip.Prefix) netip.Addr {
	id := m.LinkLocal()
	if !id.IsValid() {
		return id
	}
	a, low := prefix.Addr().As16(), id.As16()
	copy(a[8:], low[8:])
	return netip.AddrFrom16(a)
}

// MACFromEUI64 recovers the MAC from an address whose interface identifier was
// built from it. It reports false for any other address.
func MACFromEUI64(a netip.Addr) (MAC, bool) {
	if !a.Is6() || a.Is4In6() {
		return "", false
	}
	b := a.As16()
	if b[11] != 0xff || b[12] != 0xfe {
		return "", false
	}
	mac, err := MACFromBytes([]byte{b[8] ^ 2, b[9], b[10], b[13], b[14], b[15]})
	return mac, err == nil
}
