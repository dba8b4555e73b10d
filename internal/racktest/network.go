package racktest

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"github.com/insomniacslk/dhcp/dhcpv6"
	"github.com/insomniacslk/dhcp/iana"
)

// Net is how the NICs of simulated machines reach the servers. DHCPv6 goes
// through a relay agent that Net plays, since loopback has no multicast, or
// with Interface set straight onto a link. TFTP and HTTP go wherever the URLs
// point.
type Net struct {
	// Server is the unicast address of the DHCPv6 server that Relay-forwards
	// are sent to. Unused with Interface.
	Server netip.AddrPort
	// Link is the relay's link-address: any address of the machines' subnet
	// (RFC 8415 section 19.1.1).
	Link netip.Addr
	// LinkLayer adds the client's link-layer address (option 79, RFC 6939).
	LinkLayer bool
	// InterfaceID adds an Interface-Id (option 18) when not empty; a server
	// must echo it.
	InterfaceID []byte
	// Interface, when set, sends from the NIC's link-local address on this
	// interface to ff02::1:2 instead. The interface must have that address.
	Interface string
	// Faults are done to the datagrams of DHCPv6 and TFTP.
	Faults Faults

	sockets atomic.Uint64 // opened so far
}

// Faults is what a bad network does to datagrams, in both directions.
// The probabilities are from 0 to 1; the zero value is a perfect network.
type Faults struct {
	Loss, Duplicate, Reorder float64
	// Seed makes a run repeatable, as far as the machines' own timing is.
	Seed uint64
}

// allServers is All_DHCP_Relay_Agents_and_Servers (RFC 8415 section 7.1).
const allServers = "ff02::1:2"

const (
	clientPort = 546
	serverPort = 547
)

// maxDatagram is more than any answer of a sane DHCPv6 or TFTP server.
const maxDatagram = 65536

// linkLocal is the EUI-64 address that firmware, iPXE and Talos all use.
func linkLocal(mac net.HardwareAddr) netip.Addr {
	return eui64(netip.MustParsePrefix("fe80::/64"), mac)
}

// eui64 makes an interface identifier of a MAC (RFC 4291 appendix A).
func eui64(prefix netip.Prefix, mac net.HardwareAddr) netip.Addr {
	a := prefix.Masked().Addr().As16()
	copy(a[8:], []byte{mac[0] ^ 2, mac[1], mac[2], 0xff, 0xfe, mac[3], mac[4], mac[5]})
	return netip.AddrFrom16(a)
}

// port is UDP port 546 of one NIC.
type port struct {
	net  *Net
	mac  net.HardwareAddr
	conn net.PacketConn
	dst  net.Addr
	buf  []byte
}

// open opens the DHCPv6 client port of a NIC.
func (n *Net) open(mac net.HardwareAddr) (*port, error) {
	p := &port{net: n, mac: mac, buf: make([]byte, maxDatagram)}
	var local *net.UDPAddr
	if n.Interface != "" {
		local = &net.UDPAddr{IP: linkLocal(mac).AsSlice(), Port: clientPort, Zone: n.Interface}
		p.dst = &net.UDPAddr{IP: net.ParseIP(allServers), Port: serverPort, Zone: n.Interface}
	} else {
		local = &net.UDPAddr{}
		if n.Server.Addr().IsLoopback() {
			local.IP = net.IPv6loopback
		}
		p.dst = net.UDPAddrFromAddrPort(n.Server)
	}
	conn, err := net.ListenUDP("udp6", local)
	if err != nil {
		return nil, fmt.Errorf("opening the DHCPv6 client port of %s: %w", mac, err)
	}
	p.conn = n.wrap(conn)
	return p, nil
}

func (p *port) close() { p.conn.Close() }

// send sends a client's message. An unreachable server is a lost packet, as on
// a wire.
func (p *port) send(m *dhcpv6.Message) error {
	packet := m.ToBytes()
	if p.net.Interface == "" {
		relay := &dhcpv6.RelayMessage{
			MessageType: dhcpv6.MessageTypeRelayForward,
			LinkAddr:    p.net.Link.AsSlice(),
			PeerAddr:    linkLocal(p.mac).AsSlice(),
		}
		if p.net.LinkLayer {
			relay.AddOption(dhcpv6.OptClientLinkLayerAddress(iana.HWTypeEthernet, p.mac))
		}
		if len(p.net.InterfaceID) > 0 {
			relay.AddOption(dhcpv6.OptInterfaceID(p.net.InterfaceID))
		}
		relay.AddOption(dhcpv6.OptRelayMessage(m))
		packet = relay.ToBytes()
	}
	_, err := p.conn.WriteTo(packet, p.dst)
	if errors.Is(err, net.ErrClosed) {
		return err
	}
	return nil
}

// receive returns the next message for this NIC. Packets that are none are
// dropped, as a client does.
func (p *port) receive(deadline time.Time) (*dhcpv6.Message, error) {
	if err := p.conn.SetReadDeadline(deadline); err != nil {
		return nil, err
	}
	for {
		n, _, err := p.conn.ReadFrom(p.buf)
		if err != nil {
			return nil, err
		}
		parsed, err := dhcpv6.FromBytes(p.buf[:n])
		if err != nil {
			continue
		}
		if p.net.Interface == "" {
			relay, ok := parsed.(*dhcpv6.RelayMessage)
			if !ok || relay.MessageType != dhcpv6.MessageTypeRelayReply ||
				!relay.PeerAddr.Equal(linkLocal(p.mac).AsSlice()) ||
				string(relay.Options.InterfaceID()) != string(p.net.InterfaceID) {
				continue
			}
			parsed = relay.Options.RelayMessage()
		}
		if m, ok := parsed.(*dhcpv6.Message); ok {
			return m, nil
		}
	}
}

// wrap puts the faults between a program and its socket. Each socket has its own
// sequence of them, so that a second try does not meet the first one's fate.
func (n *Net) wrap(c net.PacketConn) net.PacketConn {
	f := n.Faults
	if f.Loss == 0 && f.Duplicate == 0 && f.Reorder == 0 {
		return c
	}
	return &faultyConn{PacketConn: c, faults: f, rng: rand.New(rand.NewPCG(f.Seed, n.sockets.Add(1)))}
}

// reorderDelay is how long a datagram that is overtaken waits. It must outlast
// an answer on loopback and stay below all retransmission times.
const reorderDelay = 3 * time.Millisecond

type datagram struct {
	bytes []byte
	peer  net.Addr
}

// faultyConn loses, repeats and delays datagrams; those that follow overtake a
// delayed one.
type faultyConn struct {
	net.PacketConn
	faults Faults

	mu       sync.Mutex
	rng      *rand.Rand
	deadline time.Time  // the reader's own
	again    []datagram // read once already
	late     *datagram  // read, and waits
}

// fate rolls the dice for one datagram.
func (c *faultyConn) fate() (lost, twice, late bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.rng.Float64() < c.faults.Loss, c.rng.Float64() < c.faults.Duplicate, c.rng.Float64() < c.faults.Reorder
}

func (c *faultyConn) WriteTo(b []byte, peer net.Addr) (int, error) {
	lost, twice, late := c.fate()
	if lost {
		return len(b), nil
	}
	if late || twice {
		later := append([]byte(nil), b...)
		time.AfterFunc(reorderDelay, func() { c.PacketConn.WriteTo(later, peer) })
	}
	if late {
		return len(b), nil
	}
	return c.PacketConn.WriteTo(b, peer)
}

func (c *faultyConn) SetReadDeadline(t time.Time) error {
	c.mu.Lock()
	c.deadline = t
	c.mu.Unlock()
	return c.PacketConn.SetReadDeadline(t)
}

// ReadFrom is for one reader at a time.
func (c *faultyConn) ReadFrom(b []byte) (int, net.Addr, error) {
	for {
		if len(c.again) > 0 {
			d := c.again[0]
			c.again = c.again[1:]
			return copy(b, d.bytes), d.peer, nil
		}
		n, peer, err := c.PacketConn.ReadFrom(b)
		if err != nil {
			if c.late == nil {
				return n, peer, err
			}
			d := c.late
			c.late = nil
			c.mu.Lock()
			defer c.mu.Unlock()
			if err := c.PacketConn.SetReadDeadline(c.deadline); err != nil {
				return 0, nil, err
			}
			return copy(b, d.bytes), d.peer, nil
		}
		lost, twice, late := c.fate()
		switch d := (datagram{append([]byte(nil), b[:n]...), peer}); {
		case lost:
		case late && c.late == nil:
			c.late = &d
			if err := c.PacketConn.SetReadDeadline(time.Now().Add(reorderDelay)); err != nil {
				return 0, nil, err
			}
		case twice:
			c.again = append(c.again, d)
			return n, peer, nil
		default:
			return n, peer, nil
		}
	}
}

// interruptible makes blocked reads of conn return when ctx ends.
func interruptible(ctx context.Context, conn net.PacketConn) (stop func() bool) {
	return context.AfterFunc(ctx, func() { conn.Close() })
}
