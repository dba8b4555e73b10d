package dhcpv6

import (
	"context"
	"encoding/hex"
	"fmt"
	"net/netip"

	"github.com/insomniacslk/dhcp/dhcpv6"
	"github.com/insomniacslk/dhcp/iana"
	"github.com/rs/zerolog"

	"github.com/provisiond/provisiond/internal/inventory"
)

// exchange is one client message with all that was found out about it.
type exchange struct {
	*message
	in     packet
	relays []relay // outermost first
	// unicast: a client sent it straight to an address of ours.
	unicast bool
	subnet  *inventory.Subnet
	client  inventory.Client
	arch    inventory.Arch
	mac     inventory.MAC
	source  inventory.Source
	said    inventory.Evidence
	view    inventory.View
	plan    inventory.Plan
	url     string       // boot URL; empty: none, and plan says why
	addrs   []netip.Addr // given, for the log
}

// examine decides the answer to one packet. Its only effects are those on the
// inventory, and the log line of the decision. x is what was found out, also when
// there is no answer; nil for a packet that cannot be read. The error is a
// dropError, or says what failed; the client will ask again.
func (s *Server) examine(ctx context.Context, in packet) (x *exchange, r *reply, err error) {
	if x, err = s.receive(ctx, in); err == nil {
		r, err = s.respond(ctx, x)
	}
	return x, r, err
}

// receive reads a packet, and finds out which link and which NIC it is from.
func (s *Server) receive(ctx context.Context, in packet) (x *exchange, err error) {
	if len(in.data) > maxMessage {
		return nil, dropf(dropOversized, "more than %d octets", maxMessage)
	}
	if a := in.src.Addr(); !a.Is6() || a.Is4In6() || a.IsUnspecified() || a.IsMulticast() || in.src.Port() == 0 {
		return nil, dropf(dropSource, "nothing can be sent to %s", in.src)
	}
	relays, inner, err := unwrap(in.data)
	if err != nil {
		return nil, err
	}
	m, err := parseMessage(inner)
	if err != nil {
		return nil, err
	}
	x = &exchange{message: m, in: in, relays: relays}
	if err := m.check(s.cfg.ServerDUID); err != nil {
		return x, err
	}
	if x.unicast = len(relays) == 0 && in.dst.IsValid() && !in.dst.IsMulticast(); x.unicast {
		return x, nil // whoever it is
	}
	return x, s.identify(ctx, x)
}

// useMulticast answers a client that sent straight to the server's address,
// which only the Server Unicast option would allow; it is never sent (RFC 8415
// section 18.4; RFC 9915 did away with it).
func (s *Server) useMulticast(x *exchange) (*reply, error) {
	if x.mustBeMulticast() {
		return nil, dropf(dropUnicast, "%s to %s instead of ff02::1:2", x.kind, x.in.dst)
	}
	r := s.reply(x.message, dhcpv6.MessageTypeReply, "", "")
	r.addStatus(iana.StatusUseMulticast, "send to ff02::1:2")
	return r, nil
}

// identify finds the subnet and the NIC. A client whose NIC nothing names is a
// stranger by its DUID.
func (s *Server) identify(ctx context.Context, x *exchange) error {
	x.client, x.arch = clientOf(x.message), archOf(x.archs)
	if err := s.findSubnet(x); err != nil {
		return err
	}
	e := &x.said
	e.DUID = x.clientID
	if n := len(x.relays); n > 0 {
		e.RelayPeer = x.relays[n-1].peer
		e.RelayLinkLayer = x.relays[n-1].linkLayer
	} else {
		e.Source = x.in.src.Addr()
	}
	x.mac, x.source = inventory.Identify(*e, nil)
	if x.mac == "" {
		if s.neighbours != nil && len(x.relays) == 0 {
			e.Neighbour, _ = s.neighbours.Lookup(e.Source, x.in.ifindex)
		}
		x.mac, x.source = inventory.Identify(*e, func(duid []byte) (inventory.MAC, bool) { return s.inv.Learnt(ctx, duid) })
	}
	return nil
}

// who names the client for people.
func (x *exchange) who() string {
	switch {
	case x.mac != "":
		return string(x.mac)
	case len(x.relays) > 0:
		return fmt.Sprintf("DUID %x (nothing names its NIC: let the relay add option 79, RFC 6939)", x.clientID)
	}
	return fmt.Sprintf("DUID %x (neither %s nor the neighbour table names its NIC)", x.clientID, x.in.src.Addr())
}

// link is the link-address closest to the client (RFC 8415 section 13.1), passing
// over relays that leave it unspecified (layer-2 relays, RFC 6221). It is invalid if
// there is none.
func (x *exchange) link() netip.Addr {
	for i := len(x.relays) - 1; i >= 0; i-- {
		if link := x.relays[i].link; !link.IsUnspecified() {
			return link
		}
	}
	return netip.Addr{}
}

// findSubnet chooses by the link-address, and by the receiving interface where there
// is none.
func (s *Server) findSubnet(x *exchange) error {
	if err := s.chooseSubnet(x); err != nil {
		return err
	}
	if from := x.in.src.Addr(); len(x.relays) > 0 && !x.subnet.MayRelay(from) {
		return dropf(dropRelay, "%s is not among the relays of subnet %s", from, x.subnet.Name)
	}
	return nil
}

func (s *Server) chooseSubnet(x *exchange) error {
	subnets := s.inv.Subnets() // once: a packet sees one network
	if link := x.link(); link.IsValid() {
		for j := range subnets {
			if subnets[j].Prefix.Contains(link) {
				x.subnet = &subnets[j]
				return nil
			}
		}
		return dropf(dropSubnet, "the relay's link-address %s is in no subnet", link)
	}
	for j := range subnets {
		if name := subnets[j].Interface; name != "" && name == x.in.ifname {
			x.subnet = &subnets[j]
			return nil
		}
	}
	return dropf(dropSubnet, "no subnet is attached to interface %q", x.in.ifname)
}

// respond makes the answer.
func (s *Server) respond(ctx context.Context, x *exchange) (*reply, error) {
	if x.unicast {
		return s.useMulticast(x)
	}
	switch x.kind {
	case dhcpv6.MessageTypeConfirm:
		return s.confirm(x)
	case dhcpv6.MessageTypeRelease, dhcpv6.MessageTypeDecline:
		return s.giveBack(ctx, x)
	}
	if err := s.decide(ctx, x); err != nil {
		return nil, err
	}
	kind := dhcpv6.MessageTypeReply
	rapid := x.kind == dhcpv6.MessageTypeSolicit && x.rapidCommit
	if x.kind == dhcpv6.MessageTypeSolicit && !rapid {
		kind = dhcpv6.MessageTypeAdvertise
	}
	ias, err := s.assign(ctx, x, kind == dhcpv6.MessageTypeReply)
	if err != nil {
		return nil, err
	}
	if rapid && len(x.addrs) == 0 {
		// Nothing was committed: leave the client to other servers.
		kind, rapid = dhcpv6.MessageTypeAdvertise, false
	}
	if boots(x.client) && kind == dhcpv6.MessageTypeReply && (rapid || x.kind == dhcpv6.MessageTypeRequest || x.kind == dhcpv6.MessageTypeInformationRequest) {
		e := x.event(inventory.Offered)
		e.Plan, e.Message = x.plan.Action, x.plan.Reason
		if x.url != "" {
			e.Way, e.WayReason = x.plan.Way, x.plan.WayReason
		}
		if _, err := s.inv.Record(ctx, e); err != nil && x.plan.Action.Netboots() {
			return nil, fmt.Errorf("recording the offer to %s: %w", x.mac, err)
		}
	}
	r := s.reply(x.message, kind, x.client, x.url)
	if p := x.subnet.Preference; p > 0 && len(x.addrs) > 0 && kind == dhcpv6.MessageTypeAdvertise {
		r.add(dhcpv6.OptionPreference, []byte{p})
	}
	if rapid {
		r.add(dhcpv6.OptionRapidCommit)
	}
	r.addParameters(x.message, x.client, x.subnet)
	r.addFQDN(x)
	r.addSupplied(x.relays)
	r.options = append(r.options, ias...)
	s.decided(x, kind)
	return r, nil
}

// decide asks for the boot decision. The view of a Solicit is the one that has
// it recorded. Everything but an install goes on without the record: a full disk
// here must keep no machine from its own.
func (s *Server) decide(ctx context.Context, x *exchange) (err error) {
	if x.mac == "" {
		x.plan = inventory.Plan{Action: inventory.Hold, Reason: x.who()}
		return nil
	}
	var unrecorded error
	if x.kind == dhcpv6.MessageTypeSolicit || x.kind == dhcpv6.MessageTypeInformationRequest && x.client == inventory.IPXE {
		x.view, unrecorded = s.inv.Record(ctx, x.event(inventory.Solicited))
	}
	if x.view.Machine == nil || unrecorded != nil {
		if x.view, err = s.inv.View(ctx, x.mac, x.arch); err != nil {
			return fmt.Errorf("looking up %s: %w", x.mac, err)
		}
	}
	x.plan = inventory.PlanBoot(x.view)
	if x.view.Machine == nil && x.subnet.Adopt {
		x.plan = inventory.Plan{Action: inventory.Hold, Wait: true, Reason: "it waits to be adopted, by the code that its console shows"}
	}
	if !boots(x.client) || !x.plan.Action.Netboots() && !x.plan.Wait {
		return nil
	}
	if unrecorded != nil {
		return fmt.Errorf("recording the Solicit of %s: %w", x.mac, unrecorded)
	}
	hold := func(format string, args ...any) error {
		x.plan = inventory.Plan{Action: inventory.Hold, Reason: fmt.Sprintf(format, args...)}
		return nil
	}
	switch {
	case x.arch == "" && (len(x.archs) > 0 || x.client != inventory.IPXE):
		return hold("Talos does not boot on architecture type %v: use UEFI on x86-64 or arm64", x.archs)
	case !x.asked(dhcpv6.OptionBootfileURL):
		return hold("it did not ask for a boot file URL (option 59)")
	case s.cfg.Boot == nil:
		return hold("no boot URLs are configured")
	}
	way, why := inventory.PlanWay(x.view, x.client)
	if way == "" {
		return hold("%s", why)
	}
	x.plan.Way, x.plan.WayReason = way, why
	url, ok := s.cfg.Boot.Start(way, x.client, x.arch, x.mac, &x.view)
	if !ok || url == "" {
		return hold("there is no boot file for %s on %s", x.client, x.arch)
	}
	x.url = url
	return nil
}

// event describes x for the inventory.
func (x *exchange) event(kind inventory.Kind) inventory.Event {
	e := inventory.Event{
		Kind: kind, MAC: x.mac, Client: x.client, Arch: x.arch, Source: x.source, Subnet: x.subnet.Name,
		UUID: uuidOf(x.clientID, x.client),
		XID:  uint32(x.xid[0])<<16 | uint32(x.xid[1])<<8 | uint32(x.xid[2]),
		Peer: x.in.src.Addr(),
	}
	// Others name nobody, and some are new in every message (Talos' DUID-LLT).
	if inventory.LearnableDUID(x.clientID) {
		e.DUID = hex.EncodeToString(x.clientID)
	}
	if n := len(x.relays); n > 0 {
		nearest := &x.relays[n-1]
		e.Peer, e.Relay, e.Port = nearest.peer, x.in.src.Addr(), nearest.where()
	}
	return e
}

const (
	clientPort = 546 // RFC 8415 section 7.2
	serverPort = 547
)

// answer addresses r. A client is answered on port 546; the outermost relay on
// 547, or on the port it sent from when it said so (option 135, RFC 8357). On
// the loopback interface it is always the port that was sent from: no other
// host can be there, and a test's relay cannot have port 547.
func (x *exchange) answer(r *reply) answer {
	out := answer{data: wrap(x.relays, r)}
	peer, port := x.in.src.Addr(), uint16(clientPort)
	if len(x.relays) > 0 {
		port = serverPort
		if x.relays[0].port != nil {
			port = x.in.src.Port()
		}
	}
	if peer.IsLoopback() {
		port = x.in.src.Port()
	}
	out.dst = netip.AddrPortFrom(peer, port)
	// A direct client is answered where it was heard (RFC 8415 section 18.3.10).
	if len(x.relays) == 0 || peer.IsLinkLocalUnicast() {
		out.ifindex = x.in.ifindex
	}
	if x.in.dst.IsValid() && !x.in.dst.IsMulticast() {
		out.src = x.in.dst
		if x.in.dst.IsLinkLocalUnicast() {
			out.ifindex = x.in.ifindex
		}
	}
	return out
}

// decided writes the one log line of an answer. What only keeps a lease going
// is for debugging.
func (s *Server) decided(x *exchange, kind dhcpv6.MessageType) {
	level := zerolog.InfoLevel
	switch x.kind {
	case dhcpv6.MessageTypeRenew, dhcpv6.MessageTypeRebind:
		level = zerolog.DebugLevel
	case dhcpv6.MessageTypeInformationRequest:
		if !boots(x.client) {
			level = zerolog.DebugLevel
		}
	case dhcpv6.MessageTypeDecline:
		level = zerolog.WarnLevel
	}
	e := s.decisions.WithLevel(level)
	if !e.Enabled() {
		return
	}
	e = e.Str("mac", string(x.mac)).Str("source", string(x.source))
	if m := x.view.Machine; m != nil {
		e = e.Str("machine", m.Name)
		if m.Address.IsValid() && !x.subnet.Prefix.Contains(m.Address) {
			e = e.Stringer("notOnThisSubnet", m.Address)
		}
	}
	e = e.Str("request", x.kind.String()).Stringer("xid", x.xid).Str("client", string(x.client)).
		Str("arch", string(x.arch)).Str("subnet", x.subnet.Name)
	if n := len(x.relays); n > 0 {
		e = e.Stringer("relay", x.in.src.Addr()).Str("port", x.relays[n-1].where())
	}
	if len(x.addrs) > 0 {
		e = e.Str("address", fmt.Sprint(x.addrs[0])).Int("addresses", len(x.addrs))
	}
	if boots(x.client) && x.plan.Action != "" {
		e = e.Str("plan", string(x.plan.Action)).Str("way", string(x.plan.Way)).Str("url", x.url)
	}
	e.Str("reason", x.plan.Reason).Msg(kind.String())
}
