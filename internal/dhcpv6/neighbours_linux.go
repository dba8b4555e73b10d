package dhcpv6

import (
	"encoding/binary"
	"net"
	"net/netip"
	"strconv"

	"github.com/jsimonetti/rtnetlink/v2"
	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
	"golang.org/x/time/rate"

	"github.com/provisiond/provisiond/internal/inventory"
)

// KernelNeighbours is the neighbour table of the Linux kernel, asked over rtnetlink
// for one entry at a time. It needs no privilege.
type KernelNeighbours struct {
	limit *rate.Limiter
}

// lookupsPerSecond bounds the lookups that packets can cause, which may have the
// kernel send packets of its own. Only clients whose address names no NIC cause any.
const lookupsPerSecond = 50

// NewKernelNeighbours returns the kernel's table.
func NewKernelNeighbours() *KernelNeighbours {
	return &KernelNeighbours{rate.NewLimiter(lookupsPerSecond, lookupsPerSecond)}
}

// Lookup returns the entry of an address on an interface. Receiving multicast
// makes no entry, so on a miss it has the kernel resolve the address: when the
// client asks again, a second later, there is one.
func (k *KernelNeighbours) Lookup(addr netip.Addr, ifindex int) (inventory.MAC, bool) {
	if !k.limit.Allow() {
		return "", false
	}
	mac, ok := LinkLayer(addr, ifindex)
	if !ok && addr.IsLinkLocalUnicast() && ifindex > 0 {
		resolve(addr, ifindex)
	}
	return mac, ok
}

// LinkLayer is the entry of an address in the neighbour table of an interface. There is
// one for each on-link host that a TCP connection is open to.
func LinkLayer(addr netip.Addr, ifindex int) (inventory.MAC, bool) {
	if ifindex <= 0 || !addr.Is6() {
		return "", false
	}
	conn, err := netlink.Dial(unix.NETLINK_ROUTE, nil)
	if err != nil {
		return "", false
	}
	defer func() { _ = conn.Close() }()
	// struct ndmsg, and the address: linux/neighbour.h. The library can only ask for
	// the whole table.
	request := make([]byte, 12)
	request[0] = unix.AF_INET6
	binary.NativeEndian.PutUint32(request[4:], uint32(ifindex))
	attributes := netlink.NewAttributeEncoder()
	attributes.Bytes(unix.NDA_DST, addr.WithZone("").AsSlice())
	encoded, err := attributes.Encode()
	if err != nil {
		return "", false
	}
	answers, err := conn.Execute(netlink.Message{
		Header: netlink.Header{Type: unix.RTM_GETNEIGH, Flags: netlink.Request}, Data: append(request, encoded...),
	})
	if err != nil || len(answers) == 0 {
		return "", false
	}
	var entry rtnetlink.NeighMessage
	if entry.UnmarshalBinary(answers[0].Data) != nil || entry.Attributes == nil || !known(entry.State) {
		return "", false
	}
	mac, err := inventory.MACFromBytes(entry.Attributes.LLAddress)
	return mac, err == nil
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
