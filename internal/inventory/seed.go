package inventory

import (
	"fmt"
	"net/netip"
	"slices"
)

// Seed is the client of a boot that an operator began, and no firmware: its config goes
// by NoCloud or on a volume to a machine that was started by other means.
const Seed Client = "seed"

// PlanConfig is PlanBoot for a machine that is started by other means than ours, which
// takes no boot image.
func PlanConfig(v View) Plan {
	if v.Image == nil {
		v.Wanted = ""
	}
	return planAction(v)
}

// CheckSeed returns why a machine cannot have a seed now, as a *[FieldError]; nil: it can.
//
// Talos reads NoCloud's files at every start and a volume whenever it is there, so that
// these say nothing of the disk, as the fetch from a config URL does: what is installed
// anew could not be told from what was there before.
func CheckSeed(v View) error {
	refuse := func(fix, format string, args ...any) error {
		return &FieldError{Field: "path.machine", Problem: fmt.Sprintf(format, args...), Fix: fix, Err: ErrRefused}
	}
	p := PlanConfig(v)
	switch order := v.Facts.Install; {
	case v.Machine == nil || v.Cluster == nil && p.Action == Hold:
		return refuse("provisiond machine set NAME --cluster CLUSTER", "%s", p.Reason)
	case p.Action != Install:
		return refuse("a seed is for a machine whose install is outstanding", "%s is not to install: %s", v.Machine.Name, p.Reason)
	case order.Ordered > 1:
		return refuse("netboot it, or give it its config in maintenance mode", "%s is to be installed anew (order %d), and nothing would show that a seed did that: Talos reads one even when its disk has a system", v.Machine.Name, order.Ordered)
	}
	return nil
}

// seeded begins a boot by a seed.
func seeded(f *Facts, e Event) {
	b := begin(f, e)
	b.Client, b.Plan, b.Order, b.For = Seed, Install, f.Install.Ordered, e.For
}

// BlankDisk reports whether Talos asks for a config by this channel only when its disk
// has none.
func (c Channel) BlankDisk() bool { return c != ChannelNoCloud && c != ChannelISO }

// owns reports whether an address is the machine's for good: its stable one, or one made
// of a MAC of its own.
func (m *Machine) owns(a netip.Addr) bool {
	mac, made := MACFromEUI64(a)
	return a == m.Address || made && slices.Contains(m.MACs, mac)
}
