package inventory

import "net/netip"

// Source says which evidence named the machine.
type Source string

// The sources of a MAC in the order they are believed.
const (
	FromRelayOption Source = "relay option 79"       // RFC 6939
	FromRelayPeer   Source = "relay peer address"    // EUI-64, innermost relay
	FromLinkLocal   Source = "link-local source"     // EUI-64
	FromDUIDLL      Source = "DUID-LL"               // RFC 8415 section 11.4
	FromNeighbour   Source = "neighbour table"       // the kernel's, on-link clients only
	FromLearnt      Source = "learnt DUID"           // seen earlier together with a MAC
	FromAddress     Source = "address"               // its stable address, or a lease
	FromNothing     Source = "nothing names the NIC" // no MAC
)

// Evidence is what a packet and the network say about its sender.
type Evidence struct {
	RelayLinkLayer MAC        // option 79 of the innermost relay
	RelayPeer      netip.Addr // peer-address of the innermost relay
	Source         netip.Addr // where a direct packet came from
	DUID           []byte     // the client identifier as sent
	Neighbour      MAC        // the kernel's entry for Source
}

// Identify names the NIC behind a packet, and the evidence it believed. learnt
// is asked last, with the whole DUID; it may be nil.
//
// A DUID-LLT is never taken apart: firmware without an SMBIOS UUID sends one
// made of the first NIC's MAC from every NIC of the machine (EDK2, measured).
func Identify(e Evidence, learnt func(duid []byte) (MAC, bool)) (MAC, Source) {
	if e.RelayLinkLayer != "" {
		return e.RelayLinkLayer, FromRelayOption
	}
	if e.RelayPeer.IsLinkLocalUnicast() {
		if mac, ok := MACFromEUI64(e.RelayPeer); ok {
			return mac, FromRelayPeer
		}
	}
	if e.Source.IsLinkLocalUnicast() {
		if mac, ok := MACFromEUI64(e.Source); ok {
			return mac, FromLinkLocal
		}
	}
	if mac, ok := macFromDUIDLL(e.DUID); ok {
		return mac, FromDUIDLL
	}
	if e.Neighbour != "" {
		return e.Neighbour, FromNeighbour
	}
	if len(e.DUID) > 0 && learnt != nil {
		if mac, ok := learnt(e.DUID); ok {
			return mac, FromLearnt
		}
	}
	return "", FromNothing
}

// Candidate is a NIC that one piece of evidence names.
type Candidate struct {
	Source Source
	MAC    MAC
}

// Candidates are all NICs that the evidence names, the believed one first. It is
// for people who wonder; see [Identify].
func (e Evidence) Candidates(learnt func(duid []byte) (MAC, bool)) []Candidate {
	var out []Candidate
	rest := e
	for {
		mac, source := Identify(rest, learnt)
		switch source {
		case FromRelayOption:
			rest.RelayLinkLayer = ""
		case FromRelayPeer:
			rest.RelayPeer = netip.Addr{}
		case FromLinkLocal:
			rest.Source = netip.Addr{}
		case FromDUIDLL:
			rest.DUID = nil
		case FromNeighbour:
			rest.Neighbour = ""
		case FromLearnt:
			learnt = nil
		default:
			return out
		}
		out = append(out, Candidate{source, mac})
	}
}

// macFromDUIDLL reads DUID type 3 with hardware type 1 (Ethernet).
func macFromDUIDLL(d []byte) (MAC, bool) {
	if len(d) != 10 || d[0] != 0 || d[1] != 3 || d[2] != 0 || d[3] != 1 {
		return "", false
	}
	mac, err := MACFromBytes(d[4:])
	return mac, err == nil
}

// LearnableDUID reports whether a DUID may stand for a NIC once seen with its
// MAC. An all-zero UUID (iPXE without SMBIOS UUID) is shared by whole fleets, a
// DUID-LLT by all NICs of a machine; both name nobody.
func LearnableDUID(d []byte) bool {
	if len(d) < 3 || len(d) > 130 || d[0] != 0 {
		return false
	}
	switch d[1] {
	case 1:
		return false
	case 4:
		same := true
		for _, b := range d[2:] {
			same = same && b == d[2]
		}
		return len(d) == 18 && !(same && (d[2] == 0 || d[2] == 0xff))
	}
	return true
}
