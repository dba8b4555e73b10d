package dhcpv6

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"syscall"

	"golang.org/x/net/ipv6"
	"golang.org/x/sys/unix"
)

// ListenConfig says where to listen.
type ListenConfig struct {
	// Interfaces are the local interfaces clients are on. A server that is only
	// reached through relays by unicast has none.
	Interfaces []string
	// Address is the local address; invalid means all. It must be left out when
	// there are Interfaces: a socket with an address hears no multicast.
	Address netip.Addr
	// Port is 547 (RFC 8415 section 7.2) but in tests; 0 means any free one.
	Port uint16
}

// receiveBuffer is what a hall that is switched on at once needs, in octets: ten
// thousand Solicits in an instant. The kernel's default holds some hundred.
const receiveBuffer = 8 << 20

// setReceiveBuffer gives a socket the receive buffer. Beyond net.core.rmem_max that
// takes CAP_NET_ADMIN. It returns what the socket has, in octets of packets; the
// kernel counts twice that, for its own part.
func setReceiveBuffer(conn syscall.RawConn, size int) (has int, err error) {
	ctlErr := conn.Control(func(fd uintptr) {
		if unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, size) != nil {
			_ = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_RCVBUF, size) // as much as there is
		}
		has, err = unix.GetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_RCVBUF)
	})
	return has / 2, errors.Join(ctlErr, err)
}

// Listen opens the server's socket and joins All_DHCP_Relay_Agents_and_Servers
// (ff02::1:2) and All_DHCP_Servers (ff05::1:3) on every interface.
func Listen(ctx context.Context, cfg ListenConfig) (net.PacketConn, error) {
	addr := cfg.Address
	if !addr.IsValid() {
		addr = netip.IPv6Unspecified()
	}
	if len(cfg.Interfaces) > 0 && !addr.IsUnspecified() {
		return nil, fmt.Errorf("listening for DHCPv6 on %s: a socket with an address hears no multicast: leave the address out, or the interfaces", addr)
	}
	local := netip.AddrPortFrom(addr, cfg.Port)
	var lc net.ListenConfig
	conn, err := lc.ListenPacket(ctx, "udp6", local.String())
	if err != nil {
		return nil, listenError(local, err)
	}
	pc := ipv6.NewPacketConn(conn)
	for _, name := range cfg.Interfaces {
		ifi, err := net.InterfaceByName(name)
		if err != nil {
			_ = conn.Close()
			return nil, fmt.Errorf("listening for DHCPv6 on interface %q: %w (`ip link` lists the interfaces)", name, err)
		}
		for _, group := range []string{"ff02::1:2", "ff05::1:3"} {
			if err := pc.JoinGroup(ifi, &net.UDPAddr{IP: net.ParseIP(group)}); err != nil {
				_ = conn.Close()
				return nil, fmt.Errorf("joining %s on interface %q: %w (is IPv6 enabled on it? sysctl net.ipv6.conf.%s.disable_ipv6)", group, name, err, name)
			}
		}
	}
	return conn, nil
}

func listenError(local netip.AddrPort, err error) error {
	fix := ""
	switch {
	case errors.Is(err, syscall.EADDRINUSE):
		fix = fmt.Sprintf(" (another DHCPv6 server runs on this host: `ss -ulpn sport = :%d` names it; stop it)", local.Port())
	case errors.Is(err, syscall.EACCES):
		fix = " (ports below 1024 need CAP_NET_BIND_SERVICE: AmbientCapabilities=CAP_NET_BIND_SERVICE in the unit, or --cap-add NET_BIND_SERVICE)"
	case errors.Is(err, syscall.EADDRNOTAVAIL):
		fix = " (no interface of this host has this address)"
	}
	return fmt.Errorf("listening for DHCPv6 on %s: %w%s", local, err, fix)
}
