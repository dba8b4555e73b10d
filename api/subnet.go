package api

import "time"

// Subnet is a segment that machines boot on, as provisiond runs it, and how its
// addresses are used.
type Subnet struct {
	Name      string         `json:"name" example:"rack"`
	Prefix    string         `json:"prefix" example:"2001:db8::/64"`
	Interface string         `json:"interface,omitempty" doc:"Interface of this host; absent: reached through relays"`
	Relays    []string       `json:"relays,omitempty" doc:"Prefixes of those who may relay for it; absent: any may"`
	Gateway   string         `json:"gateway,omitempty"`
	Reserved  []string       `json:"reserved,omitempty" doc:"Ranges that are never handed out"`
	Strangers bool           `json:"strangers" doc:"An unregistered machine gets an address"`
	Adopt     bool           `json:"adopt" doc:"An unregistered machine waits in its boot loader to be registered"`
	Used      AddressCounts  `json:"used" doc:"All addresses of the subnet that are not free, in its ranges or not"`
	Ranges    []AddressRange `json:"ranges" nullable:"false" doc:"Those that it allocates from"`
}

// AddressCounts are addresses by why they are not free.
type AddressCounts struct {
	Reserved int `json:"reserved" doc:"The one stable address of a registered machine"`
	Second   int `json:"second" doc:"Leased to a registered machine, beside its own: firmware takes one while it boots"`
	Leased   int `json:"leased" doc:"Leased to a stranger"`
	Declined int `json:"declined" doc:"In quarantine: a client found somebody else on it"`
	Left     int `json:"left" doc:"Resting: of a machine that was removed or got another, and may still use it"`
}

// AddressRange is a range that addresses are allocated from, and a picture of its use.
// Numbers of addresses are decimal text, as most are more than a number in JSON holds.
type AddressRange struct {
	For     string        `json:"for" enum:"machines,pool" doc:"machines: registered ones; pool: strangers, and second addresses"`
	First   string        `json:"first"`
	Last    string        `json:"last"`
	Size    string        `json:"size" pattern:"^[0-9]+$" doc:"Its addresses" example:"18446744073709551616"`
	Free    string        `json:"free" pattern:"^[0-9]+$" doc:"Those that are neither used nor reserved by the settings"`
	Slices  int           `json:"slices" maximum:"256" doc:"Into how many slices the picture divides it, equal but for one address"`
	Picture []AddressPart `json:"picture" nullable:"false" doc:"The slices that have anything in them, in order"`
}

// AddressPart is a slice of a range.
type AddressPart struct {
	Slice int           `json:"slice" minimum:"0" maximum:"255" doc:"Counts from 0"`
	First string        `json:"first"`
	Last  string        `json:"last"`
	Size  string        `json:"size" pattern:"^[0-9]+$"`
	Used  AddressCounts `json:"used"`
}

// UsedAddress is an address that nobody else is given.
type UsedAddress struct {
	Address string    `json:"address"`
	Kind    string    `json:"kind" enum:"reserved,second,leased,declined,left" doc:"As in the counts of its subnet"`
	Machine string    `json:"machine,omitempty" doc:"Absent: a stranger's"`
	MAC     string    `json:"mac,omitempty" doc:"Of a lease; absent if nothing names the NIC"`
	DUID    string    `json:"duid,omitempty" doc:"Of a lease, in hexadecimal"`
	Until   time.Time `json:"until,omitzero" doc:"When it is free; absent: as long as the machine is registered"`
}
