package tftp

import "net"

// unzoned is a conn bound to a link-local address, in the guise that pin/tftp
// v3.2.0 can work with. Left as *net.UDPConn, the library would open each
// transfer's socket on the bare address, which fails with EINVAL for want of the
// zone, and it does not understand a local address with one. Behind this type it
// opens a wildcard socket instead, and the kernel answers a link-local peer from
// the link-local address of the same interface (RFC 6724 rule 2). That is the
// address that was asked as long as the interface has one link-local address.
type unzoned struct{ net.PacketConn }

// LocalAddr implements net.PacketConn.
func (u unzoned) LocalAddr() net.Addr {
	addr, ok := u.PacketConn.LocalAddr().(*net.UDPAddr)
	if !ok {
		return u.PacketConn.LocalAddr()
	}
	return &net.UDPAddr{IP: addr.IP, Port: addr.Port}
}

// blockFor is the largest block for an interface: of its MTU, at most maxBlock.
func blockFor(zone string) int {
	ifi, err := net.InterfaceByName(zone)
	if err != nil {
		return maxBlock
	}
	return min(maxBlock, ifi.MTU-headers)
}
