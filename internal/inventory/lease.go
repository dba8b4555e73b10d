package inventory

import (
	"net/netip"
	"time"
)

// Binding asks for the address of one IA (RFC 8415 section 21.4) of one client
// program on one NIC.
type Binding struct {
	MAC    MAC // empty: nothing names the NIC, and the DUID stands for it
	DUID   []byte
	IAID   uint32
	Client Client
	Subnet *Subnet
	// Machine and Stable are the registered machine's name and its stable
	// address; both zero for a stranger. Stable is also zero where the machine's
	// address is not this IA's: on another NIC, on another link, or for any but
	// one IA of a message.
	Machine string
	Stable  netip.Addr
	// Not are addresses that other IAs of the message have got: a duplicate would
	// fail DAD.
	Not []netip.Addr
	// Commit is set when the answer promises the address (Reply). An Advertise
	// writes nothing.
	Commit bool
}

// AddressNIC is the NIC that a machine's stable address belongs on while a client
// program speaks: the one that boots, as long as firmware or iPXE run; in the
// operating system the first one, which its config names. Two NICs with one
// address would fail DAD on both (EDK2: PXE-E07).
func (v *View) AddressNIC(c Client) MAC {
	if b := v.Facts.Current(); b != nil && c != OperatingSystem && v.Machine.has(b.MAC) {
		return b.MAC
	}
	return v.Machine.BootMAC()
}

// Lease is an address handed out beside the stable one of a machine, or to a
// stranger: to one IA of one client program on one NIC.
type Lease struct {
	Address netip.Addr `json:"address"`
	MAC     MAC        `json:"mac"`
	DUID    string     `json:"duid"` // hexadecimal
	IAID    uint32     `json:"iaid"`
	Machine string     `json:"machine,omitempty"` // empty: a stranger's
	// Expires is the end of the valid lifetime that was promised last. Nobody else
	// gets the address before, and anybody may get it then.
	Expires time.Time `json:"expires"`
	// Declined is set when the client found somebody else on the address
	// (RFC 8415 section 18.3.8); it is kept out of use until Expires.
	Declined bool `json:"declined,omitempty"`
	// Left is set for the stable address of a machine that was removed or got
	// another one: whoever holds it still may, until Expires.
	Left bool `json:"left,omitempty"`

	Rev uint64 `json:"-"`
}

// client is whose lease it is: a NIC's, or a DUID's where the NIC is not known.
func (l *Lease) client() string {
	if l.MAC != "" {
		return string(l.MAC)
	}
	return "duid " + l.DUID
}

func (l *Lease) sameIA(o *Lease) bool {
	return l.MAC == o.MAC && l.DUID == o.DUID && l.IAID == o.IAID && !l.Declined && !l.Left
}

// live reports whether the address is still promised, or kept out of use.
func (l *Lease) live(now time.Time) bool { return l.Expires.After(now) }
