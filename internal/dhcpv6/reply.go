package dhcpv6

import (
	"encoding/binary"
	"net/netip"
	"time"

	"github.com/insomniacslk/dhcp/dhcpv6"
	"github.com/insomniacslk/dhcp/iana"
	"github.com/insomniacslk/dhcp/rfc1035label"

	"github.com/provisiond/provisiond/internal/inventory"
)

const (
	// solMaxRT bounds the pause between Solicits (and Information-requests) of a
	// client that gets nothing (RFC 8415 section 21.24). The RFC's default is an
	// hour; a machine that was just registered should not wait that long.
	solMaxRT = 120 * time.Second
	// irtMinimum is the shortest time after which a client that has no lease asks
	// again (RFC 8415 section 7.6, IRT_MINIMUM).
	irtMinimum = 600 * time.Second
	// infinity is the lifetime that never ends (RFC 8415 section 7.7).
	infinity = 0xffffffff * time.Second
	// pxeEnterprise is Intel's enterprise number, which EDK2 uses for the vendor
	// classes PXEClient and HTTPClient.
	pxeEnterprise = 343
)

// reply is a message to a client.
type reply struct {
	kind dhcpv6.MessageType
	xid  dhcpv6.TransactionID
	options
}

// replySize is the room that a reply is given at first, in octets; few need more.
const replySize = 320

// reply starts an answer of a type: client, boot URL, server. The URL stands
// before the server id because EDK2's HTTP boot ends it with strlen, so that it
// must never be the last option.
func (s *Server) reply(m *message, kind dhcpv6.MessageType, client inventory.Client, url string) *reply {
	r := &reply{kind: kind, xid: m.xid, options: make(options, 0, replySize)}
	if m.clientID != nil {
		r.add(dhcpv6.OptionClientID, m.clientID)
	}
	if url != "" {
		r.add(dhcpv6.OptionBootfileURL, []byte(url))
		if client == inventory.FirmwareHTTP {
			// Without it HTTP boot cancels; with "PXEClient" in it PXE takes the
			// offer for a boot server's and stops (PXE-E16).
			r.add(dhcpv6.OptionVendorClass, uint32Octets(pxeEnterprise), []byte("\x00\x0aHTTPClient"))
		}
	}
	// Option 60 is never sent: EDK2 reads it as a file size (PXE-E53).
	r.add(dhcpv6.OptionServerID, s.cfg.ServerDUID)
	return r
}

// addStatus tells how it went (RFC 8415 section 21.13).
func (o *options) addStatus(code iana.StatusCode, msg string) {
	o.add(dhcpv6.OptionStatusCode, []byte{byte(code >> 8), byte(code)}, []byte(msg))
}

// addParameters adds what the client asked for and the subnet has.
func (r *reply) addParameters(m *message, client inventory.Client, n *inventory.Subnet) {
	if len(n.DNS) > 0 && m.asked(dhcpv6.OptionDNSRecursiveNameServer) {
		at := r.begin(dhcpv6.OptionDNSRecursiveNameServer)
		for _, a := range n.DNS {
			r.options = append(r.options, a.AsSlice()...)
		}
		r.end(at)
	}
	if len(n.Domains) > 0 && m.asked(dhcpv6.OptionDomainSearchList) {
		r.add(dhcpv6.OptionDomainSearchList, labels(n.Domains...))
	}
	// Talos uses option 56 and does not ask for it
	// (internal/app/machined/pkg/controllers/network/operator/dhcp6.go).
	if m.asked(dhcpv6.OptionNTPServer) || client == inventory.OperatingSystem {
		r.addNTP(n)
	}
	for _, o := range n.Options {
		if code := dhcpv6.OptionCode(o.Code); o.Always || m.asked(code) {
			r.add(code, o.Value)
		}
	}
	if m.kind == dhcpv6.MessageTypeInformationRequest && m.asked(dhcpv6.OptionInformationRefreshTime) {
		r.add(dhcpv6.OptionInformationRefreshTime, secondsOctets(max(irtMinimum, min(n.Valid, infinity))))
	}
	for _, code := range []dhcpv6.OptionCode{dhcpv6.OptionSolMaxRT, dhcpv6.OptionInfMaxRT} {
		if m.asked(code) {
			r.add(code, secondsOctets(solMaxRT))
		}
	}
}

// addNTP adds an option 56 for each time server (RFC 5908 section 4: each holds one),
// those by address first.
func (r *reply) addNTP(n *inventory.Subnet) {
	for _, a := range n.NTP {
		code := dhcpv6.NTPSuboptionSrvAddrCode
		if a.IsMulticast() {
			code = dhcpv6.NTPSuboptionMCAddrCode
		}
		at := r.begin(dhcpv6.OptionNTPServer)
		r.add(code, a.AsSlice())
		r.end(at)
	}
	for _, name := range n.NTPNames {
		at := r.begin(dhcpv6.OptionNTPServer)
		r.add(dhcpv6.NTPSuboptionSrvFQDNCode, labels(name))
		r.end(at)
	}
}

// labels encodes domain names (RFC 8415 section 10), not compressed.
func labels(names ...string) []byte { return (&rfc1035label.Labels{Labels: names}).ToBytes() }

// addFQDN answers a client that tells or asks for its name (option 39, RFC 4704):
// a registered machine is called as it is registered, a stranger as it likes.
// There is no DNS here to be updated, neither by us nor with our blessing.
func (r *reply) addFQDN(x *exchange) {
	if x.fqdn == nil {
		return
	}
	const s, o, n = 1, 2, 4 // the flags, section 4.1
	flags := byte(n)
	if x.fqdn[0]&s != 0 {
		flags |= o
	}
	name := x.fqdn[1:]
	if m := x.view.Machine; m != nil {
		name = append([]byte{byte(len(m.Name))}, m.Name...)
		if len(x.subnet.Domains) > 0 { // else not ended: not fully qualified
			name = labels(m.Name + "." + x.subnet.Domains[0])
		}
	}
	r.add(dhcpv6.OptionFQDN, []byte{flags}, name)
}

// addSupplied passes on what relays supply, the one closest to the client first,
// where it is an option made for that and we have none ourselves (RFC 6422
// section 6; IANA, Options Permitted in the RSOO).
func (r *reply) addSupplied(relays []relay) {
	for i := len(relays) - 1; i >= 0; i-- {
		for code, v := range relays[i].supplied.all() {
			if _, ours := r.find(code); code == dhcpv6.OptionERPLocalDomainName && !ours {
				r.add(code, v)
			}
		}
	}
}

// addLeased adds an IA_NA with its address. Addresses the client holds besides are
// returned with lifetimes of 0: it must give them up (RFC 8415 section 18.3.4).
func (o *options) addLeased(id uint32, lease inventory.Lease, stale []netip.Addr, n *inventory.Subnet) {
	// What is left of the promise, and not a second more.
	valid := min(n.Valid, infinity)
	if valid < infinity {
		valid = max(0, min(valid, time.Until(lease.Expires).Truncate(time.Second)))
	}
	preferred := min(n.Preferred, valid)
	t1, t2 := n.Timers()
	switch {
	case preferred == infinity:
		t1, t2 = infinity, infinity
	case preferred < n.Preferred: // what is left of an earlier promise
		t1, t2 = preferred/2, preferred/5*4
	}
	at := o.begin(dhcpv6.OptionIANA)
	*o = append(append(append(*o, uint32Octets(id)...), secondsOctets(t1)...), secondsOctets(t2)...)
	o.add(dhcpv6.OptionIAAddr, lease.Address.AsSlice(), secondsOctets(preferred), secondsOctets(valid))
	for _, a := range stale {
		if a != lease.Address {
			o.addStale(a)
		}
	}
	o.end(at)
}

// addStale adds an address that the client has to give up.
func (o *options) addStale(a netip.Addr) {
	o.add(dhcpv6.OptionIAAddr, a.AsSlice(), make([]byte, 8)) // lifetimes of 0
}

// addDenied adds an IA_NA without address. Addresses in stale must be given up.
func (o *options) addDenied(id uint32, code iana.StatusCode, msg string, stale ...netip.Addr) {
	at := o.begin(dhcpv6.OptionIANA)
	*o = append(append(*o, uint32Octets(id)...), make([]byte, 8)...) // T1, T2
	for _, a := range stale {
		o.addStale(a)
	}
	o.addStatus(code, msg)
	o.end(at)
}

// addUnserved answers an IA_TA or IA_PD, which are not served.
func (o *options) addUnserved(u unserved, kind dhcpv6.MessageType) {
	code := iana.StatusNoAddrsAvail
	if u.code == dhcpv6.OptionIAPD {
		code = iana.StatusNoPrefixAvail
	}
	switch kind {
	case dhcpv6.MessageTypeRenew, dhcpv6.MessageTypeRebind, dhcpv6.MessageTypeRelease, dhcpv6.MessageTypeDecline:
		code = iana.StatusNoBinding
	}
	at := o.begin(u.code)
	*o = append(*o, uint32Octets(u.id)...)
	if u.code == dhcpv6.OptionIAPD {
		*o = append(*o, make([]byte, 8)...) // T1, T2
	}
	o.addStatus(code, "not served here")
	o.end(at)
}

func uint32Octets(v uint32) []byte { return binary.BigEndian.AppendUint32(nil, v) }

func secondsOctets(d time.Duration) []byte {
	return uint32Octets(uint32(min(d, infinity).Round(time.Second) / time.Second))
}

// wrap puts an answer into one Relay-reply for each relay it came through
// (RFC 8415 section 19.3). relays is outermost first.
func wrap(relays []relay, r *reply) []byte {
	size := len(r.options) + dhcpv6.MessageHeaderSize
	for _, relay := range relays {
		size += dhcpv6.RelayHeaderSize + 3*optionHeader + len(relay.interfaceID) + len(relay.port) + len(relay.echo)
	}
	out, began := make(options, 0, size), make([]int, 0, maxHops+1)
	for _, relay := range relays {
		out = append(out, byte(dhcpv6.MessageTypeRelayReply), relay.hops)
		out = append(append(out, relay.link.AsSlice()...), relay.peer.AsSlice()...)
		if relay.interfaceID != nil {
			out.add(dhcpv6.OptionInterfaceID, relay.interfaceID)
		}
		if relay.port != nil {
			out.add(dhcpv6.OptionRelayPort, relay.port)
		}
		out = append(out, relay.echo...)
		began = append(began, out.begin(dhcpv6.OptionRelayMsg))
	}
	out = append(append(out, byte(r.kind), r.xid[0], r.xid[1], r.xid[2]), r.options...)
	for _, at := range began {
		out.end(at)
	}
	return out
}
