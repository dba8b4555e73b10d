package racktest

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"time"

	"github.com/insomniacslk/dhcp/dhcpv6"
	"github.com/insomniacslk/dhcp/iana"
)

// errNoAnswer is the end of a DHCPv6 exchange that nobody answered usefully.
var errNoAnswer = errors.New("no DHCPv6 answer")

// dhcpClient is one program on a NIC that asks for one address.
type dhcpClient struct {
	port *port
	time Timing
	duid dhcpv6.DUID
	iaid [4]byte
	// lifetimes is T1 and T2 as sent: 0, or infinity for EDK2.
	lifetimes time.Duration
	// options go into every Solicit and Request: ORO, architecture, classes.
	options []dhcpv6.Option
	// rapid asks for a Reply at once (RFC 8415 section 18.2.1).
	rapid bool
	// collect gathers offers as firmware does; otherwise the first one wins.
	collect bool
	// tries is how often a message is sent; 0 is without end.
	tries int
	// usable may refuse an Advertise that is otherwise in order.
	usable func(*dhcpv6.Message) bool
	// before is called when a step of the exchange is about to be taken.
	before func(dhcpv6.MessageType) error
}

// binding is an address that a server gave, and the message it came in.
type binding struct {
	addr   netip.Addr
	valid  time.Duration
	server dhcpv6.DUID
	msg    *dhcpv6.Message
}

// message begins a message of the client.
func (c *dhcpClient) message(t dhcpv6.MessageType, addr netip.Addr) (*dhcpv6.Message, error) {
	xid, err := dhcpv6.GenerateTransactionID()
	if err != nil {
		return nil, fmt.Errorf("choosing a transaction id: %w", err)
	}
	m := &dhcpv6.Message{MessageType: t, TransactionID: xid}
	m.AddOption(dhcpv6.OptClientID(c.duid))
	m.AddOption(dhcpv6.OptElapsedTime(0))
	ia := &dhcpv6.OptIANA{IaId: c.iaid, T1: c.lifetimes, T2: c.lifetimes}
	if addr.IsValid() {
		ia.Options.Add(&dhcpv6.OptIAAddress{IPv6Addr: addr.AsSlice()})
	}
	m.AddOption(ia)
	return m, nil
}

// acquire gets an address: Solicit, Advertise, Request, Reply, or the short
// form with rapid commit. The Advertise is nil in the latter.
func (c *dhcpClient) acquire(ctx context.Context) (advertise *dhcpv6.Message, b *binding, err error) {
	solicit, err := c.message(dhcpv6.MessageTypeSolicit, netip.Addr{})
	if err != nil {
		return nil, nil, err
	}
	for _, o := range c.options {
		solicit.AddOption(o)
	}
	if c.rapid {
		dhcpv6.WithRapidCommit(solicit)
	}
	if err := c.step(dhcpv6.MessageTypeSolicit); err != nil {
		return nil, nil, err
	}
	answer, err := c.transact(ctx, solicit, c.collect, func(m *dhcpv6.Message) bool {
		switch m.MessageType {
		case dhcpv6.MessageTypeReply:
			return c.rapid && m.GetOneOption(dhcpv6.OptionRapidCommit) != nil && c.bound(m) != nil
		case dhcpv6.MessageTypeAdvertise:
			return c.bound(m) != nil && (c.usable == nil || c.usable(m))
		}
		return false
	})
	if err != nil {
		return nil, nil, err
	}
	if answer.MessageType == dhcpv6.MessageTypeReply {
		return nil, c.bound(answer), c.step(dhcpv6.MessageTypeReply)
	}
	if err := c.step(dhcpv6.MessageTypeAdvertise); err != nil {
		return answer, nil, err
	}
	return answer, nil, nil
}

// request accepts an offer.
func (c *dhcpClient) request(ctx context.Context, advertise *dhcpv6.Message) (*binding, error) {
	offer := c.bound(advertise)
	request, err := c.message(dhcpv6.MessageTypeRequest, offer.addr)
	if err != nil {
		return nil, err
	}
	request.AddOption(dhcpv6.OptServerID(offer.server))
	for _, o := range c.options {
		request.AddOption(o)
	}
	if err := c.step(dhcpv6.MessageTypeRequest); err != nil {
		return nil, err
	}
	reply, err := c.transact(ctx, request, false, func(m *dhcpv6.Message) bool {
		return m.MessageType == dhcpv6.MessageTypeReply
	})
	if err != nil {
		return nil, err
	}
	b := c.bound(reply)
	if b == nil {
		return nil, fmt.Errorf("%w: the Reply holds no address: %s", errNoAnswer, reply.Summary())
	}
	return b, c.step(dhcpv6.MessageTypeReply)
}

// give sends a Release or Decline and waits for its Reply for a while. Nothing
// depends on it: a machine may also just lose power.
func (c *dhcpClient) give(ctx context.Context, t dhcpv6.MessageType, b *binding) error {
	m, err := c.message(t, b.addr)
	if err != nil {
		return err
	}
	m.AddOption(dhcpv6.OptServerID(b.server))
	_, err = c.transact(ctx, m, false, func(m *dhcpv6.Message) bool { return m.MessageType == dhcpv6.MessageTypeReply })
	if errors.Is(err, errNoAnswer) {
		return nil
	}
	return err
}

func (c *dhcpClient) step(t dhcpv6.MessageType) error {
	if c.before == nil {
		return nil
	}
	return c.before(t)
}

// bound returns the address in a message for our IA, or nil.
func (c *dhcpClient) bound(m *dhcpv6.Message) *binding {
	server := m.Options.ServerID()
	if server == nil || failed(m.Options.Status()) {
		return nil
	}
	for _, ia := range m.Options.IANA() {
		if ia.IaId != c.iaid || failed(ia.Options.Status()) {
			continue
		}
		for _, a := range ia.Options.Addresses() {
			addr, ok := netip.AddrFromSlice(a.IPv6Addr)
			if ok && a.ValidLifetime > 0 && !failed(a.Options.Status()) {
				return &binding{addr: addr, valid: a.ValidLifetime, server: server, msg: m}
			}
		}
	}
	return nil
}

func failed(s *dhcpv6.OptStatusCode) bool { return s != nil && s.StatusCode != iana.StatusSuccess }

// transact sends m until an answer to it is accepted (RFC 8415 section 15).
// With collect it goes on listening after the first good answer, and returns
// the first that has a boot URL, else the first.
func (c *dhcpClient) transact(ctx context.Context, m *dhcpv6.Message, collect bool, accept func(*dhcpv6.Message) bool) (*dhcpv6.Message, error) {
	start := time.Now()
	rt := c.time.Retransmit
	var first *dhcpv6.Message
	for try := 0; c.tries == 0 || try < c.tries; try++ {
		m.UpdateOption(dhcpv6.OptElapsedTime(time.Since(start)))
		if err := c.port.send(m); err != nil {
			return nil, ended(ctx, err)
		}
		deadline := time.Now().Add(rt)
		for {
			answer, err := c.port.receive(deadline)
			if errors.Is(err, os.ErrDeadlineExceeded) {
				break
			}
			if err != nil {
				return nil, ended(ctx, err)
			}
			if answer.TransactionID != m.TransactionID || !sameDUID(answer.Options.ClientID(), c.duid) || !accept(answer) {
				continue
			}
			if !collect || try > 0 || answer.Options.Preference() == 255 {
				return answer, nil
			}
			if first == nil || first.Options.BootFileURL() == "" && answer.Options.BootFileURL() != "" {
				first = answer
			}
			deadline = start.Add(c.time.Collect)
		}
		if first != nil {
			return first, nil
		}
		rt = min(2*rt, c.time.RetransmitMax)
	}
	return nil, fmt.Errorf("%w to %s after %d tries", errNoAnswer, m.MessageType, c.tries)
}

func sameDUID(a, b dhcpv6.DUID) bool {
	return a != nil && string(a.ToBytes()) == string(b.ToBytes())
}

// ended prefers the reason for which ctx ended to the error that followed.
func ended(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	return err
}
