package maintenance

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/provisiond/provisiond/internal/inventory"
)

// Answer is what a Talos in maintenance mode says of itself. Nothing vouches for it.
type Answer struct {
	Fingerprint  string // of its certificate, as its console prints it
	UUID, Serial string
	MACs         []inventory.MAC
	Arch         inventory.Arch
	SecureBoot   inventory.Switch
}

// Outcome is how giving a config ended.
type Outcome string

// The outcomes.
const (
	// Accepted: the machine goes on with it, and answers nobody until it is installed.
	Accepted Outcome = "accepted"
	// Refused: Talos does not take this config. Nothing has happened.
	Refused Outcome = "refused"
	// NotYet: nobody answered, or another config is being applied.
	NotYet Outcome = "not yet"
	// Denied: another certificate answers by now, or the machine has a config.
	Denied Outcome = "denied"
	// Unknown: the call left and no answer came. Should it not have the config, it
	// waits still, and is given it again.
	Unknown Outcome = "unknown"
)

// sight is an API in maintenance mode, and what we know of who that is.
type sight struct {
	Answer

	addr netip.Addr
	// on is the interface of ours that the address is reached over, empty for one behind
	// a router; link is the link-layer address there.
	on   string
	link inventory.MAC
	// owners are the machines that its NICs are registered for, each once.
	owners []inventory.View
	// at is the machine that the address belongs to; empty: none.
	at string
	// whyNot is why who is at the address is not the only owner; empty: it is.
	whyNot string
	// hash is that of the config that the only owner would get; broken says why there
	// is none.
	hash, broken string
}

// act is what the actor is to do next.
type act int

const (
	nothing  act = iota // look again later
	stranger            // it is discovered, under the MAC
	refuse              // it is not who it says, or not only
	wait                // keep why it has no config yet
	give                // record that it is given its config, and give it
)

type step struct {
	act     act
	machine string // empty for a stranger
	mac     inventory.MAC
	reason  string
}

const (
	// giveAgain is how long a machine is left alone with its config: a call that was
	// lost in a crash of ours is made again then.
	giveAgain = 30 * time.Second
	// refusedAgain is how long one that it refused is not offered again, unless the
	// config has changed: its disks may have.
	refusedAgain = 10 * time.Minute
)

// next decides one step from what was seen and what is known. It is pure. Only a
// machine whose plan is to install is given a config, and only over an address that is
// its own.
//
// A crash between any two steps is decided the same way: a machine that waits still has
// no config, whatever was recorded, and one that has its config does not wait.
func next(s sight, now time.Time) step {
	switch {
	case len(s.MACs) == 0:
		return step{reason: "it names no NIC"}
	case len(s.owners) == 0 && s.at != "":
		return step{act: refuse, machine: s.at, reason: fmt.Sprintf("who waits at %s has the NICs %s, and none of %s", s.addr, list(s.MACs), s.at)}
	case len(s.owners) == 0:
		mac := s.nic(s.MACs)
		if mac == "" {
			return step{reason: fmt.Sprintf("%s is at %q, which is none of its NICs", s.addr, s.link)}
		}
		return step{act: stranger, mac: mac}
	}
	v := s.owners[0]
	to := step{machine: v.Machine.Name, mac: s.nic(v.Machine.MACs)}
	if to.mac == "" {
		to.mac = v.Machine.BootMAC()
	}
	if len(s.owners) > 1 {
		to.act, to.reason = refuse, fmt.Sprintf("who waits at %s has NICs of %s and of %s", s.addr, v.Machine.Name, s.owners[1].Machine.Name)
		return to
	}
	if s.whyNot != "" {
		to.act, to.reason = refuse, "it waits in maintenance mode, but "+s.whyNot
		return to
	}
	f, b := &v.Facts, v.Facts.Current()
	to.act = wait
	given := b != nil && b.ConfigBy == inventory.ChannelAPI && b.Fingerprint == s.Fingerprint
	switch plan := inventory.PlanConfig(v); {
	case plan.Action == inventory.Disk:
		to.reason = plan.Reason + ": order a reimage to have it installed again"
	case plan.Action != inventory.Install:
		to.reason = plan.Reason
	case v.NeedsApproval() && !confirmed(&v, s.Fingerprint):
		to.reason = fmt.Sprintf("a person has to confirm it: provisiond machine confirm %s and the fingerprint that its console prints", v.Machine.Name)
	case s.broken != "":
		to.reason = "its config cannot be made: " + s.broken
	case given && f.ConfigErrorHash == s.hash && !f.ConfigErrorAt.Before(f.ConfigAt) && now.Sub(f.ConfigErrorAt) < refusedAgain:
		to.act, to.reason = nothing, "it refused this config"
	case given && f.ConfigHash == s.hash && now.Sub(f.ConfigAt) < giveAgain:
		to.act, to.reason = nothing, "it was given its config"
	default:
		to.act = give
	}
	return to
}

// confirmed reports whether a person has read this fingerprint off the machine's console.
func confirmed(v *inventory.View, fingerprint string) bool {
	m := v.Facts.Maintenance
	return m.ConfirmedFor(v) && m.Fingerprint == fingerprint
}

// nic is the one of some NICs that it is seen at; empty: at none. Behind a router its
// address may tell, and else its word counts.
func (s *sight) nic(of []inventory.MAC) inventory.MAC {
	at := s.link
	if s.on == "" {
		at, _ = inventory.MACFromEUI64(s.addr)
		if !slices.Contains(of, at) {
			for _, mac := range s.MACs {
				if slices.Contains(of, mac) {
					return mac
				}
			}
		}
	}
	if !slices.Contains(of, at) {
		return ""
	}
	return at
}

func list(macs []inventory.MAC) string {
	const most = 4
	var out []string
	for _, m := range macs[:min(len(macs), most)] {
		out = append(out, string(m))
	}
	if len(macs) > most {
		out = append(out, "…")
	}
	return strings.Join(out, ", ")
}
