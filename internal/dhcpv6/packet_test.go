package dhcpv6

import (
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/provisiond/provisiond/internal/inventory"
)

// Packets are built and read octet by octet here, without the library that the
// server uses.

const (
	solicit, advertise, request, confirm, renew, rebind    = 1, 2, 3, 4, 5, 6
	replied, release, decline, infoRequest, forw, relayRep = 7, 8, 9, 11, 12, 13
)

func opt(code uint16, parts ...[]byte) []byte {
	var v []byte
	for _, p := range parts {
		v = append(v, p...)
	}
	b := binary.BigEndian.AppendUint16(nil, code)
	b = binary.BigEndian.AppendUint16(b, uint16(len(v)))
	return append(b, v...)
}

func msg(kind byte, opts ...[]byte) []byte {
	b := []byte{kind, 0xab, 0xcd, 0xef}
	for _, o := range opts {
		b = append(b, o...)
	}
	return b
}

func relayed(hops byte, link, peer string, inner []byte, opts ...[]byte) []byte {
	b := []byte{forw, hops}
	b = append(b, netip.MustParseAddr(link).AsSlice()...)
	b = append(b, netip.MustParseAddr(peer).AsSlice()...)
	for _, o := range opts {
		b = append(b, o...)
	}
	return append(b, opt(9, inner)...)
}

func u16s(vs ...uint16) []byte {
	var b []byte
	for _, v := range vs {
		b = binary.BigEndian.AppendUint16(b, v)
	}
	return b
}

func u32(v uint32) []byte { return binary.BigEndian.AppendUint32(nil, v) }

func unhex(s string) []byte {
	b, err := hex.DecodeString(strings.ReplaceAll(s, " ", ""))
	if err != nil {
		panic(err)
	}
	return b
}

func iaAddr(a string) []byte {
	return opt(5, netip.MustParseAddr(a).AsSlice(), u32(0), u32(0))
}

func iaNA(id, t uint32, addrs ...string) []byte {
	parts := [][]byte{u32(id), u32(t), u32(t)}
	for _, a := range addrs {
		parts = append(parts, iaAddr(a))
	}
	return opt(3, parts...)
}

// client is a client program by the options it sends in every message.
type client struct {
	name    string
	duid    []byte
	ia      []byte // of the Solicit
	options [][]byte
	later   [][]byte // not in the first
	info    bool     // sends an Information-request instead of a Solicit
	rapid   bool
}

// The clients of the lab, option for option.
var (
	firmwareDUID = unhex("0004 33221100 5544 7766 8899aabbccddeeff") // raw SMBIOS order
	ipxeDUID     = unhex("0004 00112233 4455 6677 8899aabbccddeeff") // text order, same machine

	ovmfPXE = client{
		name: "ovmf-pxe", duid: firmwareDUID, ia: iaNA(0x1a2b3c4d, 0xffffffff),
		options: [][]byte{
			opt(6, u16s(59, 60, 23, 16)), opt(61, u16s(7)), opt(62, unhex("010300")),
			opt(16, u32(343), u16s(32), []byte("PXEClient:Arch:00007:UNDI:003000")),
		},
	}
	ovmfHTTP = client{
		name: "ovmf-http", duid: firmwareDUID, ia: iaNA(0x2b3c4d5e, 0xffffffff),
		options: [][]byte{
			opt(6, u16s(59, 60, 23, 16)), opt(61, u16s(16)), opt(62, unhex("010300")),
			opt(16, u32(343), u16s(33), []byte("HTTPClient:Arch:00016:UNDI:003000")),
		},
	}
	ovmfStack = client{
		name: "ovmf-stack", duid: firmwareDUID, ia: iaNA(0x3c4d5e6f, 0xffffffff),
		options: [][]byte{opt(6, u16s(23))},
	}
	ipxeSARR = client{
		name: "ipxe", duid: ipxeDUID, ia: iaNA(0x12345600, 0),
		options: [][]byte{
			opt(6, u16s(23, 24, 59, 60)), opt(15, u16s(4), []byte("iPXE")), opt(61, u16s(7)), opt(62, unhex("01030a")),
			opt(16, u32(343), u16s(32), []byte("PXEClient:Arch:00007:UNDI:003010")),
		},
	}
	ipxeInfo = client{name: "ipxe-info", duid: ipxeDUID, options: ipxeSARR.options, info: true}
	armPXE   = client{
		name: "arm64-pxe", duid: firmwareDUID, ia: iaNA(0x4d5e6f70, 0xffffffff),
		options: [][]byte{
			opt(6, u16s(59, 60, 23, 16)), opt(61, u16s(11)), opt(62, unhex("010300")),
			opt(16, u32(343), u16s(32), []byte("PXEClient:Arch:00011:UNDI:003000")),
		},
	}
	armHTTP = client{
		name: "arm64-http", duid: firmwareDUID, ia: iaNA(0x5e6f7081, 0xffffffff),
		options: [][]byte{
			opt(6, u16s(59, 60, 23, 16)), opt(61, u16s(19)),
			opt(16, u32(343), u16s(33), []byte("HTTPClient:Arch:00019:UNDI:003000")),
		},
	}
	talos = client{
		name: "talos", duid: unhex("0003 0001 525400123456"), ia: iaNA(0x00123456, 0),
		options: [][]byte{opt(6, u16s(23, 24)), opt(14)}, rapid: true,
	}
	// talosLegacy is Talos with dhcpOptions.ipv6: a DUID-LLT made anew each time.
	talosLegacy = client{
		name: "talos-legacy", duid: unhex("0001 0001 2f6b1c2d 525400123456"), ia: iaNA(0x00123456, 0),
		options: [][]byte{opt(6, u16s(23, 24)), opt(14)}, rapid: true,
	}
	// grub is net_bootp6 (grub-core/net/bootp.c): one NIC, the first, and an Option
	// Request in the Request only.
	grub = client{
		name: "grub", duid: unhex("0003 0001 525400123456"), ia: iaNA(0, 0),
		later: [][]byte{opt(6, u16s(59, 23))},
	}
	allClients = []client{ovmfPXE, ovmfHTTP, ovmfStack, ipxeSARR, ipxeInfo, armPXE, armHTTP, grub, talos, talosLegacy}
)

// first is the client's first message.
func (c client) first() []byte {
	kind := byte(solicit)
	if c.info {
		kind = infoRequest
	}
	opts := [][]byte{opt(8, u16s(0)), opt(1, c.duid)}
	if c.ia != nil {
		opts = append(opts, c.ia)
	}
	return msg(kind, append(opts, c.options...)...)
}

// with is a later message of a kind, to our server, with these IAs.
func (c client) with(kind byte, ias ...[]byte) []byte {
	opts := append([][]byte{opt(8, u16s(0)), opt(1, c.duid)}, ias...)
	if kind != confirm && kind != rebind {
		opts = append(opts, opt(2, serverDUID))
	}
	return msg(kind, slices.Concat(opts, c.options, c.later)...)
}

func (c client) iaid() uint32 { return binary.BigEndian.Uint32(c.ia[4:]) }

// direct is a datagram from a NIC on the link of rack-1, to ff02::1:2.
func direct(mac inventory.MAC, data []byte) packet {
	return packet{
		data: data, src: netip.AddrPortFrom(mac.LinkLocal(), 546),
		dst: netip.MustParseAddr("ff02::1:2"), ifindex: testIndex, ifname: "rack0",
	}
}

// viaRelay is a datagram from a relay elsewhere to the server's address.
func viaRelay(data []byte) packet {
	return packet{
		data: data, src: netip.MustParseAddrPort("[2001:db8:ffff::1]:547"),
		dst: netip.MustParseAddr("2001:db8:ffff::53"), ifindex: 3, ifname: "up0",
	}
}

// option is an option as read back.
type option struct {
	code  uint16
	value []byte
}

func splitOptions(t testing.TB, b []byte) []option {
	t.Helper()
	var out []option
	for len(b) > 0 {
		if len(b) < 4 || len(b) < 4+int(binary.BigEndian.Uint16(b[2:])) {
			t.Fatalf("options end in the middle of one: %x", b)
		}
		n := 4 + int(binary.BigEndian.Uint16(b[2:]))
		out = append(out, option{binary.BigEndian.Uint16(b), b[4:n]})
		b = b[n:]
	}
	return out
}

// inside takes Relay-replies off, and returns the message's type and options.
func inside(t testing.TB, b []byte) (byte, []option) {
	t.Helper()
	for b[0] == relayRep {
		next := []byte(nil)
		for _, o := range splitOptions(t, b[34:]) {
			if o.code == 9 {
				next = o.value
			}
		}
		if next == nil {
			t.Fatal("Relay-reply without a message")
		}
		b = next
	}
	if string(b[1:4]) != "\xab\xcd\xef" {
		t.Fatalf("transaction id %x is not the client's", b[1:4])
	}
	return b[0], splitOptions(t, b[4:])
}

func codes(opts []option) []uint16 {
	var c []uint16
	for _, o := range opts {
		c = append(c, o.code)
	}
	return c
}

func value(opts []option, code uint16) ([]byte, bool) {
	for _, o := range opts {
		if o.code == code {
			return o.value, true
		}
	}
	return nil, false
}

// dump writes an answer out for people.
func dump(t testing.TB, b []byte) string {
	t.Helper()
	var w strings.Builder
	dumpMessage(t, &w, b, "")
	return w.String()
}

func dumpMessage(t testing.TB, w *strings.Builder, b []byte, indent string) {
	names := map[byte]string{advertise: "Advertise", replied: "Reply", relayRep: "Relay-reply"}
	if b[0] == relayRep {
		fmt.Fprintf(w, "%s%s hops=%d link=%s peer=%s\n", indent, names[b[0]], b[1], netip.AddrFrom16([16]byte(b[2:18])), netip.AddrFrom16([16]byte(b[18:34])))
		dumpOptions(t, w, splitOptions(t, b[34:]), indent+"  ")
		return
	}
	fmt.Fprintf(w, "%s%s xid=%x\n", indent, names[b[0]], b[1:4])
	dumpOptions(t, w, splitOptions(t, b[4:]), indent+"  ")
}

func dumpOptions(t testing.TB, w *strings.Builder, opts []option, indent string) {
	for _, o := range opts {
		v := o.value
		switch o.code {
		case 3:
			fmt.Fprintf(w, "%s3 IA_NA iaid=%x t1=%d t2=%d\n", indent, v[:4], binary.BigEndian.Uint32(v[4:]), binary.BigEndian.Uint32(v[8:]))
			dumpOptions(t, w, splitOptions(t, v[12:]), indent+"  ")
		case 5:
			fmt.Fprintf(w, "%s5 address %s preferred=%d valid=%d\n", indent, netip.AddrFrom16([16]byte(v[:16])), binary.BigEndian.Uint32(v[16:]), binary.BigEndian.Uint32(v[20:]))
		case 7:
			fmt.Fprintf(w, "%s7 preference %d\n", indent, v[0])
		case 9:
			dumpMessage(t, w, v, indent)
		case 13:
			fmt.Fprintf(w, "%s13 status %d %q\n", indent, binary.BigEndian.Uint16(v), v[2:])
		case 14:
			fmt.Fprintf(w, "%s14 rapid commit\n", indent)
		case 16:
			fmt.Fprintf(w, "%s16 vendor class %d length=%d %q\n", indent, binary.BigEndian.Uint32(v), binary.BigEndian.Uint16(v[4:]), v[6:])
		case 23:
			fmt.Fprintf(w, "%s23 DNS %s\n", indent, netip.AddrFrom16([16]byte(v)))
		case 24:
			fmt.Fprintf(w, "%s24 domains %q\n", indent, v)
		case 56:
			fmt.Fprintf(w, "%s56 NTP suboption=%d %s\n", indent, binary.BigEndian.Uint16(v), netip.AddrFrom16([16]byte(v[4:])))
		case 59:
			fmt.Fprintf(w, "%s59 boot file URL %s\n", indent, v)
		default:
			fmt.Fprintf(w, "%s%d %x\n", indent, o.code, v)
		}
	}
}
