package inventory

import (
	"crypto/subtle"
	"fmt"
	"net/netip"
	"slices"
	"time"
)

// Maintenance is a machine's Talos that waits, in its maintenance mode, to be given a
// config over its API: what anyone sees who asks it. It is replaced, never modified.
type Maintenance struct {
	Address netip.Addr `json:"address"` // where its API answers
	// Fingerprint is the SHA-256 of the public key of its certificate, in base64, as
	// its console prints it.
	Fingerprint string    `json:"fingerprint"`
	Since       time.Time `json:"since"`
	// Reason is why it has no config yet; empty: it is being given one.
	Reason string `json:"reason,omitempty"`
	// Confirmed is when a person gave the fingerprint that the console prints, By who
	// that was, and For what the machine was then; zero: nobody did.
	Confirmed time.Time  `json:"confirmed,omitzero"`
	By        string     `json:"by,omitempty"`
	For       Membership `json:"for,omitzero"`
}

// ConfirmedFor reports whether a person has confirmed the machine's certificate for what
// it would be now.
func (m *Maintenance) ConfirmedFor(v *View) bool {
	return m != nil && v.Cluster != nil && !m.Confirmed.IsZero() &&
		m.For == Membership{Cluster: v.Cluster.Name, Role: v.Machine.Role, Epoch: v.Cluster.Epoch}
}

// maintenanceSeen keeps what a machine in maintenance mode shows. What a person confirmed
// counts for as long as its certificate is the same.
func maintenanceSeen(f *Facts, e Event) (tells bool) {
	old, next := f.Maintenance, Maintenance{Address: e.Peer, Fingerprint: e.Fingerprint, Since: e.Time, Reason: e.Message}
	if old != nil && old.Fingerprint == e.Fingerprint {
		next.Since, next.Confirmed, next.By, next.For = old.Since, old.Confirmed, old.By, old.For
	}
	if old != nil && *old == next {
		return false
	}
	f.Maintenance = &next
	return true
}

// confirmMaintenance refuses (ErrRefused) a fingerprint that is not that of the machine's
// certificate.
func confirmMaintenance(f *Facts, e Event) (tells bool, err error) {
	old := f.Maintenance
	if old == nil || subtle.ConstantTimeCompare([]byte(old.Fingerprint), []byte(e.Fingerprint)) != 1 {
		// One answer for both: it tells nobody how much of it was right.
		return false, fmt.Errorf("no machine in maintenance mode has this fingerprint: give the one that the console of the machine prints now: %w", ErrRefused)
	}
	if !old.Confirmed.IsZero() && old.For == e.Holds {
		return false, nil // said twice
	}
	next := *old
	next.Confirmed, next.By, next.For = e.Time, e.By, e.Holds
	f.Maintenance = &next
	return true, nil
}

// maintenanceBoot is the boot that a machine is in which is given its config in
// maintenance mode. Unless it was netbooted for that, or is given it once more, somebody
// has started it by hand.
func maintenanceBoot(f *Facts, e Event) *Boot {
	b := f.Current()
	// Not by the fingerprint: Talos makes another key when its addresses or its clock
	// change (internal/app/machined/pkg/controllers/secrets/api.go).
	if b != nil && b.API.IsZero() && (b.ConfigBy == ChannelAPI || b.Way == BySigned) {
		b = f.change(0)
	} else {
		b = begin(f, e)
		b.Client = MaintenanceMode
	}
	b.Plan, b.Fingerprint = Install, e.Fingerprint
	return b
}

// maintained reports whether the machine waits in maintenance mode, and was not given a
// config there.
func (f *Facts) maintained() bool {
	b := f.Current()
	return f.Maintenance != nil && (b == nil || b.ConfigBy != ChannelAPI || b.Config.IsZero() || !b.API.IsZero())
}

// AddressesOf lists where NICs can be reached: at a stable address, their leases, and the
// addresses that they make of their MACs in a subnet and, where we are on it, on its
// link. stable may be invalid; then subnet, by its name, is where they are.
func (k *Keeper) AddressesOf(macs []MAC, stable netip.Addr, subnet string) []netip.Addr {
	var out []netip.Addr
	add := func(a netip.Addr) {
		if a.IsValid() && !slices.Contains(out, a) {
			out = append(out, a)
		}
	}
	add(stable)
	subnets := k.Subnets()
	s := subnetOf(subnets, stable)
	for i := range subnets {
		if s == nil && subnets[i].Name == subnet {
			s = &subnets[i]
		}
	}
	if s != nil {
		for _, mac := range macs {
			if s.Prefix.Bits() == 64 { // RFC 4862 section 5.5.3
				add(mac.EUI64(s.Prefix))
			}
			if a := mac.LinkLocal(); s.Interface != "" && a.IsValid() {
				add(a.WithZone(s.Interface))
			}
		}
	}
	for _, a := range k.leases.ofNICs(macs, time.Now()) {
		add(a)
	}
	return out
}
