package api

// Packet is a DHCPv6 packet that somebody captured.
type Packet struct {
	Hex         string `json:"hex" maxLength:"16384" doc:"The UDP payload in hexadecimal, from the message type on; spaces and colons are ignored"`
	Source      string `json:"source,omitempty" doc:"IPv6 address it was sent from" example:"fe80::5054:ff:fe00:1"`
	Destination string `json:"destination,omitempty" doc:"IPv6 address it was sent to; absent: ff02::1:2"`
	Interface   string `json:"interface,omitempty" doc:"Interface of this host it arrives on; absent: that of the only subnet that has one"`
	LinkLayer   string `json:"linkLayer,omitempty" doc:"MAC that the frame was sent from"`
}

// Explanation is what the DHCPv6 server makes of a packet, and why.
type Explanation struct {
	Request  string     `json:"request,omitempty" doc:"Message type; absent: the packet cannot be read"`
	Client   string     `json:"client,omitempty" doc:"Program that speaks: pxe, http, stack, ipxe or os"`
	Arch     string     `json:"arch,omitempty"`
	Relays   []Hop      `json:"relays,omitempty" doc:"Outermost first"`
	Subnet   string     `json:"subnet,omitempty"`
	SubnetBy string     `json:"subnetBy,omitempty" doc:"What chose the subnet"`
	Evidence []Evidence `json:"evidence,omitempty" doc:"What names the NIC, the believed one first"`
	Machine  string     `json:"machine,omitempty" doc:"Absent: no registered one"`
	Plan     string     `json:"plan,omitempty"`
	Reason   string     `json:"reason,omitempty"`
	Answer   []string   `json:"answer,omitempty" doc:"Type of the answer, then its options"`
	Dropped  string     `json:"dropped,omitempty" doc:"Why there is no answer"`
}

// Hop is a relay that a packet came through.
type Hop struct {
	Link        string `json:"link" doc:"Its link-address"`
	Peer        string `json:"peer" doc:"Its peer-address"`
	LinkLayer   string `json:"linkLayer,omitempty" doc:"Option 79 (RFC 6939)"`
	InterfaceID string `json:"interfaceId,omitempty" doc:"Option 18"`
	RemoteID    string `json:"remoteId,omitempty" doc:"Option 37 (RFC 4649)"`
}

// Evidence is what one piece of a packet says of its sender.
type Evidence struct {
	Source string `json:"source"`
	MAC    string `json:"mac"`
}
