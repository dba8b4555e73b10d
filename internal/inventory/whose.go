package inventory

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
)

// Locator knows whose an address is; a [Keeper] does.
type Locator interface {
	MachineByAddress(ctx context.Context, a netip.Addr) (View, error)
	SubnetOf(a netip.Addr) *Subnet
}

// LinkLayers is the neighbour table of an interface, by its name.
type LinkLayers interface {
	LinkLayer(addr netip.Addr, on string) (MAC, bool)
}

// WhyNotOf says why who speaks from an address is not the machine; empty: it is, as far as
// a network can tell. The address must be one of the machine's. On a segment that we are
// on, so must be the link-layer address behind it, or whoever takes an address would be
// the machine; behind a router, that one has to know its hosts.
func WhyNotOf(ctx context.Context, l Locator, n LinkLayers, m *Machine, peer netip.Addr) (why string, err error) {
	if peer != m.Address {
		view, err := l.MachineByAddress(ctx, peer)
		if err != nil && !errors.Is(err, ErrNotFound) {
			return "", err
		}
		if err != nil || view.Machine == nil || view.Machine.Name != m.Name {
			return fmt.Sprintf("%s is no address of %s", peer, m.Name), nil
		}
	}
	mac, on := LinkOf(l, n, peer)
	switch {
	case on == "":
		return "", nil // behind a router
	case mac == "":
		return fmt.Sprintf("%s has no link-layer address on %s", peer, on), nil
	case !slices.Contains(m.MACs, mac):
		return fmt.Sprintf("%s is at %s, which is no NIC of %s", peer, mac, m.Name), nil
	}
	return "", nil
}

// LinkOf is the link-layer address behind an address, empty if there is none, on an
// interface of ours; on is empty for an address behind a router.
func LinkOf(l Locator, n LinkLayers, peer netip.Addr) (_ MAC, on string) {
	on = peer.Zone()
	if sub := l.SubnetOf(peer); sub != nil {
		on = sub.Interface
	}
	if on == "" {
		return "", ""
	}
	mac, ok := n.LinkLayer(peer, on)
	if !ok {
		mac = ""
	}
	return mac, on
}
