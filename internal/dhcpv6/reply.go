package dhcpv6

import (
	"encoding/binary"
	"net"
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

// raw is an option by its octets.
func raw(code dhcpv6.OptionCode, v []byte) dhcpv6.Option {
	return &dhcpv6.OptionGeneric{OptionCode: code, OptionData: v}
}

func status(code iana.StatusCode, msg string) dhcpv6.Option {
	return &dhcpv6.OptStatusCode{StatusCode: code, StatusMessage: msg}
}

// reply starts an answer of a type: client, boot URL, server. The URL stands
// before the server id because EDK2's HTTP boot ends it with strlen, so that it
// must never be the last option.
func (s *Server) reply(m *message, kind dhcpv6.MessageType, client inventory.Client, url string) *dhcpv6.Message {
	r := &dhcpv6.Message{MessageType: kind, TransactionID: m.xid}
	if m.clientID != nil {
		r.AddOption(raw(dhcpv6.OptionClientID, m.clientID))
	}
	if url != "" {
		r.AddOption(dhcpv6.OptBootFileURL(url))
		if client == inventory.FirmwareHTTP {
			// Without it HTTP boot cancels; with "PXEClient" in it PXE takes the
			// offer for a boot server's and stops (PXE-E16).
			r.AddOption(&dhcpv6.OptVendorClass{EnterpriseNumber: pxeEnterprise, Data: [][]byte{[]byte("HTTPClient")}})
		}
	}
	// Option 60 is never sent: EDK2 reads it as a file size (PXE-E53).
	r.AddOption(raw(dhcpv6.OptionServerID, s.cfg.ServerDUID))
	return r
}

// addParameters adds what the client asked for and the subnet has.
func addParameters(r *dhcpv6.Message, m *message, client inventory.Client, n *inventory.Subnet) {
	if len(n.DNS) > 0 && m.asked(dhcpv6.OptionDNSRecursiveNameServer) {
		r.AddOption(dhcpv6.OptDNS(ips(n.DNS)...))
	}
	if len(n.Domains) > 0 && m.asked(dhcpv6.OptionDomainSearchList) {
		r.AddOption(dhcpv6.OptDomainSearchList(&rfc1035label.Labels{Labels: n.Domains}))
	}
	// Talos uses option 56 and does not ask for it
	// (internal/app/machined/pkg/controllers/network/operator/dhcp6.go).
	if len(n.NTP) > 0 && (m.asked(dhcpv6.OptionNTPServer) || client == inventory.OperatingSystem) {
		var servers dhcpv6.OptNTPServer
		for _, ip := range ips(n.NTP) {
			addr := dhcpv6.NTPSuboptionSrvAddr(ip)
			servers.Suboptions.Add(&addr)
		}
		r.AddOption(&servers)
	}
	for _, o := range n.Options {
		if code := dhcpv6.OptionCode(o.Code); o.Always || m.asked(code) {
			r.AddOption(raw(code, o.Value))
		}
	}
	if m.kind == dhcpv6.MessageTypeInformationRequest && m.asked(dhcpv6.OptionInformationRefreshTime) {
		seconds := max(irtMinimum, min(n.Valid, infinity)) / time.Second
		r.AddOption(raw(dhcpv6.OptionInformationRefreshTime, binary.BigEndian.AppendUint32(nil, uint32(seconds))))
	}
	for _, code := range []dhcpv6.OptionCode{dhcpv6.OptionSolMaxRT, dhcpv6.OptionInfMaxRT} {
		if m.asked(code) {
			r.AddOption(raw(code, binary.BigEndian.AppendUint32(nil, uint32(solMaxRT/time.Second))))
		}
	}
}

// addFQDN answers a client that tells or asks for its name (option 39, RFC 4704):
// a registered machine is called as it is registered, a stranger as it likes.
// There is no DNS here to be updated, neither by us nor with our blessing.
func addFQDN(r *dhcpv6.Message, x *exchange) {
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
		labels := append([]byte{byte(len(m.Name))}, m.Name...)
		if name = labels; len(x.subnet.Domains) > 0 { // else not ended: not fully qualified
			name = (&rfc1035label.Labels{Labels: []string{m.Name + "." + x.subnet.Domains[0]}}).ToBytes()
		}
	}
	r.AddOption(raw(dhcpv6.OptionFQDN, append([]byte{flags}, name...)))
}

// addSupplied passes on what relays supply, the one closest to the client first,
// where it is an option made for that and we have none ourselves (RFC 6422
// section 6; IANA, Options Permitted in the RSOO).
func addSupplied(r *dhcpv6.Message, relays []relay) {
	for i := len(relays) - 1; i >= 0; i-- {
		for _, o := range relays[i].supplied {
			if o.Code() == dhcpv6.OptionERPLocalDomainName && r.Options.GetOne(o.Code()) == nil {
				r.AddOption(o)
			}
		}
	}
}

// leased is an IA_NA with its address. Addresses the client holds besides are
// returned with lifetimes of 0: it must give them up (RFC 8415 section 18.3.4).
func leased(id uint32, lease inventory.Lease, stale []netip.Addr, n *inventory.Subnet) dhcpv6.Option {
	addr := lease.Address
	// What is left of the promise, and not a second more.
	valid := min(n.Valid, infinity)
	if valid < infinity {
		valid = max(0, min(valid, time.Until(lease.Expires).Truncate(time.Second)))
	}
	preferred := min(n.Preferred, valid)
	ia := &dhcpv6.OptIANA{IaId: iaid(id)}
	switch ia.T1, ia.T2 = n.Timers(); {
	case preferred == infinity:
		ia.T1, ia.T2 = infinity, infinity
	case preferred < n.Preferred: // what is left of an earlier promise
		ia.T1, ia.T2 = preferred/2, preferred/5*4
	}
	ia.Options.Add(&dhcpv6.OptIAAddress{IPv6Addr: addr.AsSlice(), PreferredLifetime: preferred, ValidLifetime: valid})
	for _, a := range stale {
		if a != addr {
			ia.Options.Add(&dhcpv6.OptIAAddress{IPv6Addr: a.AsSlice()})
		}
	}
	return ia
}

// denied is an IA_NA without address. Addresses in stale must be given up.
func denied(id uint32, code iana.StatusCode, msg string, stale ...netip.Addr) dhcpv6.Option {
	ia := &dhcpv6.OptIANA{IaId: iaid(id)}
	for _, a := range stale {
		ia.Options.Add(&dhcpv6.OptIAAddress{IPv6Addr: a.AsSlice()})
	}
	ia.Options.Add(status(code, msg))
	return ia
}

// denied answers an IA_TA or IA_PD, which are not served.
func (u unserved) denied(kind dhcpv6.MessageType) dhcpv6.Option {
	code := iana.StatusNoAddrsAvail
	if u.code == dhcpv6.OptionIAPD {
		code = iana.StatusNoPrefixAvail
	}
	switch kind {
	case dhcpv6.MessageTypeRenew, dhcpv6.MessageTypeRebind, dhcpv6.MessageTypeRelease, dhcpv6.MessageTypeDecline:
		code = iana.StatusNoBinding
	}
	v := binary.BigEndian.AppendUint32(nil, u.id)
	if u.code == dhcpv6.OptionIAPD {
		v = append(v, make([]byte, 8)...) // T1, T2
	}
	opts := dhcpv6.Options{status(code, "not served here")}
	return raw(u.code, append(v, opts.ToBytes()...))
}

func iaid(id uint32) [4]byte { return [4]byte(binary.BigEndian.AppendUint32(nil, id)) }

func ips(addrs []netip.Addr) []net.IP {
	out := make([]net.IP, len(addrs))
	for i, a := range addrs {
		out[i] = a.AsSlice()
	}
	return out
}

// wrap puts an answer into one Relay-reply for each relay it came through
// (RFC 8415 section 19.3). relays is outermost first.
func wrap(relays []relay, m *dhcpv6.Message) []byte {
	var d dhcpv6.DHCPv6 = m
	for i := len(relays) - 1; i >= 0; i-- {
		r := relays[i]
		outer := &dhcpv6.RelayMessage{
			MessageType: dhcpv6.MessageTypeRelayReply,
			HopCount:    r.hops,
			LinkAddr:    r.link.AsSlice(),
			PeerAddr:    r.peer.AsSlice(),
		}
		if r.interfaceID != nil {
			outer.AddOption(raw(dhcpv6.OptionInterfaceID, r.interfaceID))
		}
		if r.port != nil {
			outer.AddOption(raw(dhcpv6.OptionRelayPort, r.port))
		}
		for _, o := range r.echo {
			outer.AddOption(o)
		}
		outer.AddOption(dhcpv6.OptRelayMessage(d))
		d = outer
	}
	return d.ToBytes()
}
