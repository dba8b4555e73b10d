package dhcpv6

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"

	"github.com/insomniacslk/dhcp/dhcpv6"
	"github.com/insomniacslk/dhcp/iana"

	"github.com/provisiond/provisiond/internal/inventory"
)

// assign answers every IA. It fails with dropRefused when a Solicit gets no
// address because this client is not to have one: silence leaves the link to
// another server, and a refusal would cost firmware the same minute.
func (s *Server) assign(ctx context.Context, x *exchange, commit bool) (out options, err error) {
	var refused error
	if x.client == inventory.FirmwareStack && slices.ContainsFunc(x.ias, x.holdsOwn) {
		x.client = inventory.OperatingSystem // the firmware's stack is never given it
	}
	own := x.ownIA()
	for i, ia := range x.ias {
		if x.kind == dhcpv6.MessageTypeRequest && !onLink(ia.addrs, x.subnet) {
			out.addDenied(ia.id, iana.StatusNotOnLink, "these addresses belong to another link")
			continue
		}
		if i >= maxIAs && i != own {
			out.addDenied(ia.id, iana.StatusNoAddrsAvail, "no more addresses for this client")
			continue
		}
		b := x.binding(i, i == own)
		b.Commit, b.Not = commit, x.addrs
		lease, err := s.inv.Bind(ctx, b)
		switch {
		case err == nil:
			if !lease.Address.Is6() {
				return nil, fmt.Errorf("binding IA %08x of %s: got no address", ia.id, x.mac)
			}
			out.addLeased(ia.id, lease, x.stale(ia), x.subnet)
			x.addrs = append(x.addrs, lease.Address)
		case errors.Is(err, inventory.ErrFull), errors.Is(err, inventory.ErrRefused):
			refused = err
			code, msg := iana.StatusNoAddrsAvail, "no address for this client"
			if x.extends() && errors.Is(err, inventory.ErrRefused) {
				code, msg = iana.StatusNoBinding, "ask for a new address"
			}
			var off []netip.Addr
			if x.extends() {
				off = offLink(ia.addrs, x.subnet)
			}
			out.addDenied(ia.id, code, msg, off...)
		default:
			return nil, fmt.Errorf("binding IA %08x of %s: %w", ia.id, x.mac, err)
		}
	}
	// To be answered, one that nothing names has to be resolved, after which its
	// NIC is known.
	unresolved := x.mac == "" && len(x.relays) == 0
	if x.kind == dhcpv6.MessageTypeSolicit && len(x.addrs) == 0 && errors.Is(refused, inventory.ErrRefused) && !unresolved {
		return nil, dropf(dropRefused, "%s: %w", x.who(), refused)
	}
	if refused != nil {
		x.plan.Reason += "; no address: " + refused.Error()
	}
	for _, u := range x.unserved {
		out.addUnserved(u, x.kind)
	}
	return out, nil
}

// ownIA is the IA that gets the machine's stable address: the one that has it,
// else the first; -1 if this is not the NIC or the link for it.
func (x *exchange) ownIA() int {
	m := x.view.Machine
	// A machine plugged into another segment gets an address of that one.
	if m == nil || !x.subnet.Prefix.Contains(m.Address) || x.mac != x.view.AddressNIC(x.client) {
		return -1
	}
	return max(0, slices.IndexFunc(x.ias, func(ia association) bool { return slices.Contains(ia.addrs, m.Address) }))
}

// binding names the i-th IA of the message. own: the stable address is its.
func (x *exchange) binding(i int, own bool) inventory.Binding {
	b := inventory.Binding{MAC: x.mac, DUID: x.clientID, IAID: x.ias[i].id, Client: x.client, Subnet: x.subnet}
	if m := x.view.Machine; m != nil {
		b.Machine = m.Name
		if own {
			b.Stable = m.Address
		}
	}
	return b
}

// extends reports whether the client wants to keep what it has.
func (x *exchange) extends() bool {
	return x.kind == dhcpv6.MessageTypeRenew || x.kind == dhcpv6.MessageTypeRebind
}

// stale are the addresses of an IA that the client has to give up, unless it is
// given them again. What a Renew names we gave (RFC 8415 section 18.3.4). What a
// Rebind names may be another server's, unless it fits no server on this link or
// lies where we give addresses (section 18.3.5).
func (x *exchange) stale(ia association) []netip.Addr {
	switch x.kind {
	case dhcpv6.MessageTypeRenew:
		return ia.addrs
	case dhcpv6.MessageTypeRebind:
		return slices.DeleteFunc(slices.Clone(ia.addrs), func(a netip.Addr) bool {
			return x.subnet.Prefix.Contains(a) && !x.subnet.Machines.Contains(a) && !x.subnet.Pool.Contains(a)
		})
	}
	return nil
}

// confirm says whether all addresses still fit the link (section 18.3.3).
func (s *Server) confirm(x *exchange) (*reply, error) {
	n := 0
	for _, ia := range x.ias {
		n += len(ia.addrs)
	}
	if n == 0 {
		return nil, dropf(dropNoAddress, "%s without an address", x.kind)
	}
	r := s.reply(x.message, dhcpv6.MessageTypeReply, "", "")
	for _, ia := range x.ias {
		if !onLink(ia.addrs, x.subnet) {
			x.plan.Reason = "an address belongs to another link"
			r.addStatus(iana.StatusNotOnLink, x.plan.Reason)
			s.decided(x, r.kind)
			return r, nil
		}
	}
	r.addStatus(iana.StatusSuccess, "")
	s.decided(x, r.kind)
	return r, nil
}

// giveBack answers Release and Decline (sections 18.3.7 and 18.3.8).
func (s *Server) giveBack(ctx context.Context, x *exchange) (*reply, error) {
	var err error
	if x.view, err = s.inv.View(ctx, x.mac, x.arch); err != nil {
		return nil, fmt.Errorf("looking up %s: %w", x.mac, err)
	}
	r := s.reply(x.message, dhcpv6.MessageTypeReply, "", "")
	r.addStatus(iana.StatusSuccess, "")
	for i, ia := range x.ias {
		act := s.inv.Release
		if x.kind == dhcpv6.MessageTypeDecline {
			act = s.inv.Decline
		}
		switch err := act(ctx, x.binding(i, x.holdsOwn(ia)), ia.addrs); {
		case err == nil:
			x.addrs = append(x.addrs, ia.addrs...)
		case errors.Is(err, inventory.ErrNotFound):
			r.addDenied(ia.id, iana.StatusNoBinding, "no such binding")
		default:
			return nil, fmt.Errorf("%s of IA %08x of %s: %w", x.kind, ia.id, x.mac, err)
		}
	}
	for _, u := range x.unserved {
		r.addUnserved(u, x.kind)
	}
	s.decided(x, dhcpv6.MessageTypeReply)
	return r, nil
}

// holdsOwn reports whether an IA has the machine's stable address.
func (x *exchange) holdsOwn(ia association) bool {
	return x.view.Machine != nil && slices.Contains(ia.addrs, x.view.Machine.Address)
}

func onLink(addrs []netip.Addr, n *inventory.Subnet) bool { return len(offLink(addrs, n)) == 0 }

func offLink(addrs []netip.Addr, n *inventory.Subnet) []netip.Addr {
	var off []netip.Addr
	for _, a := range addrs {
		if !n.Prefix.Contains(a) {
			off = append(off, a)
		}
	}
	return off
}
