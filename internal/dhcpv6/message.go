package dhcpv6

import (
	"bytes"
	"encoding/binary"
	"net/netip"
	"slices"
	"strings"

	"github.com/insomniacslk/dhcp/dhcpv6"

	"github.com/provisiond/provisiond/internal/inventory"
)

const (
	// maxMessage bounds a datagram in octets. Real ones stay under 1500: the
	// largest relayed firmware Solicit seen has 300, and nine relays with long
	// interface ids add less than 2000. Anything larger is not a boot.
	maxMessage = 4096
	// maxHops is HOP_COUNT_LIMIT (RFC 8415 section 7.6). Hop counts begin at 0,
	// so that nine relays are the most a conforming chain can have.
	maxHops = 8
	// maxDUID is the longest DUID with its type (RFC 8415 section 11.1).
	maxDUID = 130
	// maxIAs bounds how many IAs of one message are given an address. The others
	// are told that there is none; all fit into maxMessage.
	maxIAs = 8
)

// message is what a client said, reduced to what answers depend on.
type message struct {
	kind        dhcpv6.MessageType
	xid         dhcpv6.TransactionID
	clientID    []byte // DUID as sent; nil: none
	serverID    []byte // nil: none
	ias         []association
	unserved    []unserved
	wants       []dhcpv6.OptionCode // Option Request option
	rapidCommit bool
	archs       []uint16 // client system architecture types (RFC 5970 section 3.3)
	vendorClass []string // the data fields of all options 16
	userClass   []string // the items of option 15
	fqdn        []byte   // option 39 as sent, at least its flags; nil: none
}

// association is an IA_NA (RFC 8415 section 21.4).
type association struct {
	id     uint32
	t1, t2 uint32 // seconds, as sent
	addrs  []netip.Addr
}

// unserved is an IA_TA or IA_PD: answered with a status, never with a lease.
type unserved struct {
	code dhcpv6.OptionCode
	id   uint32
}

// relay is one Relay-forward header with the options that matter.
type relay struct {
	hops        uint8
	link        netip.Addr
	peer        netip.Addr
	interfaceID []byte // option 18 as sent; nil: none
	remoteID    []byte // option 37 as sent (RFC 4649); nil: none
	linkLayer   inventory.MAC
	echo        options // what its Echo Request option (43) names, as sent (RFC 4994)
	supplied    options // of its option 66: what it asks to have passed on (RFC 6422)
	port        []byte  // option 135 as sent (RFC 8357); nil: none
}

// where is the port that the relay heard the client on, in its own words.
func (r *relay) where() string {
	return strings.TrimSpace(printable(r.interfaceID) + " " + printable(r.remoteID))
}

// unwrap takes Relay-forward headers off a packet, outermost first, and returns
// them with the client's message. It does not recurse.
func unwrap(b []byte) ([]relay, []byte, error) {
	var relays []relay
	for len(b) > 0 && dhcpv6.MessageType(b[0]) == dhcpv6.MessageTypeRelayForward {
		if len(relays) > maxHops {
			return nil, nil, dropf(dropRelays, "more than %d relays", maxHops+1)
		}
		if len(b) < dhcpv6.RelayHeaderSize {
			return nil, nil, dropf(dropMalformed, "relay header of %d octets", len(b))
		}
		r := relay{
			hops: b[1],
			link: netip.AddrFrom16([16]byte(b[2:18])),
			peer: netip.AddrFrom16([16]byte(b[18:34])),
		}
		if r.hops > maxHops {
			return nil, nil, dropf(dropRelays, "hop count %d", r.hops)
		}
		opts, err := parseOptions(b[dhcpv6.RelayHeaderSize:])
		if err != nil {
			return nil, nil, err
		}
		r.interfaceID, _ = opts.find(dhcpv6.OptionInterfaceID)
		r.remoteID, _ = opts.find(dhcpv6.OptionRemoteID)
		r.port, _ = opts.find(dhcpv6.OptionRelayPort)
		if codes, ok := opts.find(dhcpv6.OptionEchoRequest); ok {
			r.echo = echoed(opts, codes)
		}
		if v, ok := opts.find(dhcpv6.OptionRSOO); ok {
			if r.supplied, err = parseOptions(v); err != nil {
				return nil, nil, err
			}
		}
		// Hardware type 1 is Ethernet (RFC 6939 section 4).
		if v, ok := opts.find(dhcpv6.OptionClientLinkLayerAddr); ok && len(v) == 8 && v[0] == 0 && v[1] == 1 {
			if mac, err := inventory.MACFromBytes(v[2:]); err == nil {
				r.linkLayer = mac
			}
		}
		inner, ok := opts.find(dhcpv6.OptionRelayMsg)
		if !ok {
			return nil, nil, dropf(dropMalformed, "relay message without a message")
		}
		relays, b = append(relays, r), inner
	}
	return relays, b, nil
}

// echoed are the options that a relay wants to have back. Those that a Relay-reply
// has anyway are left out.
func echoed(opts options, codes []byte) (out options) {
	for ; len(codes) >= 2; codes = codes[2:] {
		switch code := dhcpv6.OptionCode(binary.BigEndian.Uint16(codes)); code {
		case dhcpv6.OptionRelayMsg, dhcpv6.OptionInterfaceID, dhcpv6.OptionRelayPort, dhcpv6.OptionEchoRequest:
		default:
			_, again := out.find(code)
			if v, ok := opts.find(code); ok && !again {
				out.add(code, v)
			}
		}
	}
	return out
}

// parseMessage reads a client message. Only what is needed is looked into: a
// client that garbles an option nobody reads still boots.
func parseMessage(b []byte) (*message, error) {
	if len(b) < dhcpv6.MessageHeaderSize {
		return nil, dropf(dropMalformed, "message of %d octets", len(b))
	}
	m := &message{kind: dhcpv6.MessageType(b[0]), xid: dhcpv6.TransactionID(b[1:4])}
	if !answerable(m.kind) {
		return nil, dropf(dropType, "%s is not a message for a server", m.kind)
	}
	opts, err := parseOptions(b[dhcpv6.MessageHeaderSize:])
	if err != nil {
		return nil, err
	}
	for code, v := range opts.all() {
		switch code {
		// Of what may stand once, the first counts.
		case dhcpv6.OptionClientID:
			m.clientID = first(m.clientID, v)
		case dhcpv6.OptionServerID:
			m.serverID = first(m.serverID, v)
		case dhcpv6.OptionRapidCommit:
			m.rapidCommit = true
		case dhcpv6.OptionFQDN:
			if len(v) > 0 && len(v) <= 256 {
				m.fqdn = first(m.fqdn, v)
			}
		case dhcpv6.OptionUserClass:
			if m.userClass == nil {
				m.userClass = items(v)
			}
		case dhcpv6.OptionClientArchType:
			if m.archs == nil {
				m.archs = uint16s[uint16](nil, v)
			}
		case dhcpv6.OptionORO: // some clients send several
			m.wants = uint16s(m.wants, v)
		case dhcpv6.OptionVendorClass: // one for each enterprise number
			if len(v) > 4 {
				m.vendorClass = append(m.vendorClass, items(v[4:])...)
			}
		case dhcpv6.OptionIANA:
			a, err := parseAssociation(v)
			if err != nil {
				return nil, err
			}
			same := func(b association) bool { return a.id == b.id }
			if !slices.ContainsFunc(m.ias, same) {
				m.ias = append(m.ias, a)
			}
		case dhcpv6.OptionIATA, dhcpv6.OptionIAPD:
			if len(v) < 4 {
				return nil, dropf(dropMalformed, "option %d of %d octets", code, len(v))
			}
			m.unserved = append(m.unserved, unserved{code, binary.BigEndian.Uint32(v)})
		}
	}
	return m, nil
}

// first returns what was found before, else v.
func first(before, v []byte) []byte {
	if before != nil {
		return before
	}
	return v
}

// uint16s appends the numbers that an option lists.
func uint16s[T ~uint16](to []T, v []byte) []T {
	to = slices.Grow(to, len(v)/2)
	for ; len(v) >= 2; v = v[2:] {
		to = append(to, T(binary.BigEndian.Uint16(v)))
	}
	return to
}

// items are the parts of a user or vendor class (RFC 8415 sections 21.15, 21.16).
// What has no length that fits is taken whole: some write the bare text.
func items(v []byte) []string {
	var out []string
	for len(v) >= 2 {
		n := 2 + int(binary.BigEndian.Uint16(v))
		if n > len(v) {
			return append(out, string(v))
		}
		out, v = append(out, string(v[2:n])), v[n:]
	}
	return out
}

func answerable(k dhcpv6.MessageType) bool {
	switch k {
	case dhcpv6.MessageTypeSolicit, dhcpv6.MessageTypeRequest, dhcpv6.MessageTypeConfirm,
		dhcpv6.MessageTypeRenew, dhcpv6.MessageTypeRebind, dhcpv6.MessageTypeRelease,
		dhcpv6.MessageTypeDecline, dhcpv6.MessageTypeInformationRequest:
		return true
	}
	return false
}

func parseAssociation(v []byte) (association, error) {
	if len(v) < 12 {
		return association{}, dropf(dropMalformed, "IA_NA of %d octets", len(v))
	}
	a := association{id: binary.BigEndian.Uint32(v), t1: binary.BigEndian.Uint32(v[4:]), t2: binary.BigEndian.Uint32(v[8:])}
	opts, err := parseOptions(v[12:])
	if err != nil {
		return a, err
	}
	for code, v := range opts.all() {
		if code != dhcpv6.OptionIAAddr {
			continue
		}
		if len(v) < 24 {
			return a, dropf(dropMalformed, "IA address of %d octets", len(v))
		}
		a.addrs = append(a.addrs, netip.AddrFrom16([16]byte(v[:16])))
	}
	return a, nil
}

// check applies RFC 8415 section 16: which messages must name a client, a
// server, this server.
func (m *message) check(serverDUID []byte) error {
	if n := len(m.clientID); m.clientID != nil && (n < 3 || n > maxDUID) {
		return dropf(dropDUID, "%s with a client DUID of %d octets", m.kind, n)
	}
	if m.serverID != nil && !bytes.Equal(m.serverID, serverDUID) {
		switch m.kind {
		case dhcpv6.MessageTypeSolicit, dhcpv6.MessageTypeConfirm, dhcpv6.MessageTypeRebind:
		default:
			return dropf(dropOtherServer, "%s for server %x", m.kind, m.serverID)
		}
	}
	if m.clientID == nil && m.kind != dhcpv6.MessageTypeInformationRequest {
		return dropf(dropNoClient, "%s without a client DUID", m.kind)
	}
	switch m.kind {
	case dhcpv6.MessageTypeSolicit, dhcpv6.MessageTypeConfirm, dhcpv6.MessageTypeRebind:
		if m.serverID != nil {
			return dropf(dropServerNamed, "%s with a server DUID", m.kind)
		}
	case dhcpv6.MessageTypeInformationRequest:
		if len(m.ias)+len(m.unserved) > 0 {
			return dropf(dropIA, "%s with an IA", m.kind)
		}
	default:
		if m.serverID == nil {
			return dropf(dropNoServer, "%s without a server DUID", m.kind)
		}
	}
	return nil
}

// mustBeMulticast reports whether section 16 discards the message when a client
// sent it to a unicast address. The others get UseMulticast (section 18.4).
func (m *message) mustBeMulticast() bool {
	switch m.kind {
	case dhcpv6.MessageTypeSolicit, dhcpv6.MessageTypeConfirm, dhcpv6.MessageTypeRebind, dhcpv6.MessageTypeInformationRequest:
		return true
	}
	return false
}

// asked reports whether the client asked for an option.
func (m *message) asked(code dhcpv6.OptionCode) bool { return slices.Contains(m.wants, code) }
