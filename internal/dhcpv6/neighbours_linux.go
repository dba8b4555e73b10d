package dhcpv6

import (
	"net"
	"net/netip"
	"strconv"

	"github.com/jsimonetti/rtnetlink/v2"
	"golang.org/x/sys/unix"
	"golang.org/x/time/rate"

	"github.com/provisiond/provisiond/internal/inventory"
)

// KernelNeighbours is the neighbour table of the Linux kernel, read over
// rtnetlink. It needs no privilege.
type KernelNeighbours struct {
	limit *rate.Limiter
}

// lookupsPerSecond bounds the table dumps that packets can cause. Only clients
// whose address and DUID name no NIC cause any.
const lookupsPerSecond = 50

// NewKernelNeighbours returns the kernel's table.
func NewKernelNeighbours() *KernelNeighbours {
	return &KernelNeighbours{rate.NewLimiter(lookupsPerSecond, lookupsPerSecond)}
}

// Lookup returns the entry of an address on an interface. Receiving multicast
// makes no entry, so on a miss it has the kernel resolve the address: when the
// client asks again, a second later, there is one.
func (k *KernelNeighbours) Lookup(addr netip.Addr, ifindex int) (inventory.MAC, bool) {
	if ifindex <= 0 || !addr.Is6() || !k.limit.Allow() {
		return "", false
	}
	addr = addr.WithZone("")
	conn, err := rtnetlink.Dial(nil)
	if err != nil {
		return "", false
	}
	defer func() { _ = conn.Close() }()
	entries, err := conn.Neigh.List()
	if err != nil {
		return "", false
	}
	for _, e := range entries {
		if int(e.Index) != ifindex || !known(e.State) || e.Attributes == nil {
			continue
		}
		if a, ok := netip.AddrFromSlice(e.Attributes.Address); ok && a == addr {
			mac, err := inventory.MACFromBytes(e.Attributes.LLAddress)
			return mac, err == nil
		}
	}
	if addr.IsLinkLocalUnicast() {
		resolve(addr, ifindex)
	}
	return "", false
}

// known reports whether a state has a link-layer address that was seen.
func known(state uint16) bool {
	return state&(unix.NUD_REACHABLE|unix.NUD_STALE|unix.NUD_DELAY|unix.NUD_PROBE|unix.NUD_PERMANENT) != 0
}

// resolve starts neighbour discovery with an empty datagram to the discard port.
func resolve(addr netip.Addr, ifindex int) {
	conn, err := net.DialUDP("udp6", nil, &net.UDPAddr{IP: addr.AsSlice(), Port: 9, Zone: strconv.Itoa(ifindex)})
	if err != nil {
		return
	}
	_, _ = conn.Write(nil)
	_ = conn.Close()
}
