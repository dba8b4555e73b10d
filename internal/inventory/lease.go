package inventory

import "net/netip"

// Binding asks for the address of one IA (RFC 8415 section 21.4) of one client
// program on one NIC.
type Binding struct {
	MAC    MAC
	DUID   []byte
	IAID   uint32
	Client Client
	Subnet *Subnet
	// Machine and Stable are the registered machine's name and its stable
	// address; both zero for a stranger.
	Machine string
	Stable  netip.Addr
	// Extra is set for every IA but the first of one message: it gets an
	// address of its own, since a duplicate would fail DAD.
	Extra bool
	// Commit is set when the answer promises the address (Reply). An Advertise
	// writes nothing.
	Commit bool
}
