package dhcpv6

import (
	"context"
	"fmt"
	"net/netip"
	"strings"

	"github.com/insomniacslk/dhcp/dhcpv6"
	"github.com/rs/zerolog"

	"github.com/provisiond/provisiond/internal/inventory"
)

// Capture is a DHCPv6 packet that somebody saw on its way to the server.
type Capture struct {
	Data        []byte     // from the message type on
	Source      netip.Addr // invalid: not known
	Destination netip.Addr // invalid: ff02::1:2
	// Interface is where it would arrive; empty: the interface of the only subnet
	// that has one.
	Interface string
	LinkLayer inventory.MAC // who sent the frame; empty: not known
}

// Explanation says what the server makes of a packet, and why.
type Explanation struct {
	Request  string // message type; empty if it cannot be read
	Client   inventory.Client
	Arch     inventory.Arch
	Relays   []Hop                 // outermost first
	Subnet   string                // empty: none
	SubnetBy string                // what chose it
	Evidence []inventory.Candidate // the believed one first
	Machine  string                // empty: a stranger
	Plan     inventory.Plan
	Answer   []string // its type, then its options; empty: none
	Dropped  string   // why there is none
}

// Hop is a relay that a packet came through.
type Hop struct {
	Link, Peer            netip.Addr
	LinkLayer             inventory.MAC
	InterfaceID, RemoteID string // printable as they are, else in hexadecimal
}

// Explain says which answer a packet would get now, and changes nothing: it is
// decided by the code that answers.
func (s *Server) Explain(ctx context.Context, c Capture) Explanation {
	in := packet{data: c.Data, dst: c.Destination, ifname: c.Interface}
	port := uint16(clientPort)
	if len(c.Data) > 0 && dhcpv6.MessageType(c.Data[0]) == dhcpv6.MessageTypeRelayForward {
		port = serverPort
	}
	if !c.Source.IsValid() {
		c.Source = netip.MustParseAddr("fe80::") // names nobody
	}
	in.src = netip.AddrPortFrom(c.Source.WithZone(""), port)
	for _, n := range s.inv.Subnets() {
		if name := n.Interface; in.ifname == "" && c.Interface == "" {
			in.ifname = name
		} else if name != "" && c.Interface == "" {
			in.ifname = "" // there are several
			break
		}
	}
	dry := *s
	dry.inv, dry.neighbours = dryRun{s.inv}, knownSender(c.LinkLayer)
	dry.log, dry.decisions = zerolog.Nop(), zerolog.Nop()
	x, r, err := dry.examine(ctx, in)
	var e Explanation
	if err != nil {
		e.Dropped = err.Error()
	}
	if x == nil {
		return e
	}
	x.explain(&e)
	if c.LinkLayer != "" && len(x.relays) == 0 {
		x.said.Neighbour = c.LinkLayer // what the neighbour table would say
	}
	e.Evidence = x.said.Candidates(func(duid []byte) (inventory.MAC, bool) { return s.inv.Learnt(ctx, duid) })
	if r != nil {
		e.Answer = append(e.Answer, r.kind.String())
		for code, v := range r.all() {
			e.Answer = append(e.Answer, describe(code, v))
		}
	}
	return e
}

// describe is an option for people.
func describe(code dhcpv6.OptionCode, v []byte) string {
	o, err := dhcpv6.ParseOption(code, v)
	if _, generic := o.(*dhcpv6.OptionGeneric); generic || err != nil || code == dhcpv6.OptionClientID || code == dhcpv6.OptionServerID {
		return strings.TrimSpace(fmt.Sprintf("%s: %x", code, v)) // the library writes octets as a list
	}
	return o.String()
}

func (x *exchange) explain(e *Explanation) {
	e.Request, e.Client, e.Arch, e.SubnetBy, e.Plan = x.kind.String(), x.client, x.arch, x.subnetBy(), x.plan
	for _, r := range x.relays {
		e.Relays = append(e.Relays, Hop{r.link, r.peer, r.linkLayer, printable(r.interfaceID), printable(r.remoteID)})
	}
	if x.subnet != nil {
		e.Subnet = x.subnet.Name
	}
	if x.view.Machine != nil {
		e.Machine = x.view.Machine.Name
	}
}

// subnetBy is what chose the subnet; empty: there is none.
func (x *exchange) subnetBy() string {
	switch link := x.link(); {
	case x.subnet == nil:
		return ""
	case link.IsValid():
		return "the relay's link-address " + link.String()
	}
	return "interface " + x.in.ifname
}

func printable(b []byte) string {
	for _, c := range b {
		if c < 0x20 || c > 0x7e {
			return fmt.Sprintf("%x", b)
		}
	}
	return strings.TrimSpace(string(b))
}

// knownSender is a neighbour table that has the sender of one packet.
type knownSender inventory.MAC

func (k knownSender) Lookup(netip.Addr, int) (inventory.MAC, bool) { return inventory.MAC(k), k != "" }

// dryRun is an inventory that is only looked at.
type dryRun struct{ Inventory }

func (d dryRun) Bind(ctx context.Context, b inventory.Binding) (inventory.Lease, error) {
	b.Commit = false
	return d.Inventory.Bind(ctx, b)
}

func (dryRun) Release(context.Context, inventory.Binding, []netip.Addr) error { return nil }

func (dryRun) Decline(context.Context, inventory.Binding, []netip.Addr) error { return nil }

func (d dryRun) Record(ctx context.Context, e inventory.Event) (inventory.View, error) {
	v, err := d.View(ctx, e.MAC, e.Arch)
	if err != nil || v.Machine == nil {
		return v, err
	}
	return inventory.Apply(v, e)
}
