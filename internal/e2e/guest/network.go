//go:build linux

package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"time"

	"github.com/jsimonetti/rtnetlink/v2"
	"golang.org/x/sys/unix"
)

// nic is the machine's network card.
type nic struct {
	conn  *rtnetlink.Conn
	index uint32
}

// configure brings the NIC with this MAC up, gives it the address if it has not
// got it, waits until duplicate address detection is through, and sets the
// default route.
func configure(ctx context.Context, mac net.HardwareAddr, address netip.Prefix, gateway netip.Addr) error {
	conn, err := rtnetlink.Dial(nil)
	if err != nil {
		return err
	}
	defer func() { _ = conn.Close() }()
	n, err := findNIC(conn, mac)
	if err != nil {
		return err
	}
	const loopback = 1 // a machine reaches its own addresses by it
	for _, index := range []uint32{loopback, n.index} {
		if err := up(conn, index); err != nil {
			return fmt.Errorf("bringing link %d up: %w", index, err)
		}
	}
	if err := n.add(address); err != nil {
		return fmt.Errorf("adding %s: %w", address, err)
	}
	if err := n.usable(ctx, address.Addr()); err != nil {
		return err
	}
	if gateway.IsValid() {
		if err := n.route(gateway); err != nil {
			return fmt.Errorf("default route by %s: %w", gateway, err)
		}
	}
	return nil
}

func findNIC(conn *rtnetlink.Conn, mac net.HardwareAddr) (*nic, error) {
	all, err := net.Interfaces()
	if err != nil {
		return nil, err
	}
	for _, i := range all {
		if bytes.Equal(i.HardwareAddr, mac) {
			return &nic{conn, uint32(i.Index)}, nil
		}
	}
	return nil, fmt.Errorf("no NIC has the MAC %s", mac)
}

func up(conn *rtnetlink.Conn, index uint32) error {
	return conn.Link.Set(&rtnetlink.LinkMessage{Family: unix.AF_UNSPEC, Index: index, Flags: unix.IFF_UP, Change: unix.IFF_UP})
}

func (n *nic) add(p netip.Prefix) error {
	err := n.conn.Address.New(&rtnetlink.AddressMessage{
		Family: unix.AF_INET6, PrefixLength: uint8(p.Bits()), Index: n.index,
		Attributes: &rtnetlink.AddressAttributes{Address: p.Addr().AsSlice(), Local: p.Addr().AsSlice()},
	})
	if errors.Is(err, unix.EEXIST) {
		return nil
	}
	return err
}

// usable waits for the end of duplicate address detection (RFC 4862 section
// 5.4), about 1 s, or 5 s if the link takes its time.
func (n *nic) usable(ctx context.Context, a netip.Addr) error {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for {
		list, err := n.conn.Address.List()
		if err != nil {
			return err
		}
		for _, m := range list {
			have, _ := netip.AddrFromSlice(m.Attributes.Address)
			if m.Index != n.index || have != a {
				continue
			}
			switch flags := m.Attributes.Flags; {
			case flags&unix.IFA_F_DADFAILED != 0:
				return fmt.Errorf("somebody else on the link has %s", a)
			case flags&unix.IFA_F_TENTATIVE == 0:
				return nil
			}
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return fmt.Errorf("%s is not usable: %w", a, ctx.Err())
		}
	}
}

func (n *nic) route(gateway netip.Addr) error {
	err := n.conn.Route.Add(&rtnetlink.RouteMessage{
		Family: unix.AF_INET6, Table: unix.RT_TABLE_MAIN, Protocol: unix.RTPROT_STATIC,
		Scope: unix.RT_SCOPE_UNIVERSE, Type: unix.RTN_UNICAST,
		Attributes: rtnetlink.RouteAttributes{Gateway: gateway.AsSlice(), OutIface: n.index},
	})
	if errors.Is(err, unix.EEXIST) {
		return nil
	}
	return err
}
