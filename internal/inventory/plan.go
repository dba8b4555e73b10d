package inventory

import "fmt"

// Action is what a booting machine is to do.
type Action string

// The actions a plan can name.
const (
	Hold    Action = "hold"    // an address, but no boot URL, script or config
	Install Action = "install" // netboot Talos and hand out the config
	Disk    Action = "disk"    // fall through to the disk at once
)

// Netboots reports whether the machine is given a boot URL and a script that starts
// Talos.
func (a Action) Netboots() bool { return a == Install || a == Wipe }

// Plan is the boot decision with its reason, in the words an operator reads in
// the log, the API and on the page.
type Plan struct {
	Action Action `json:"action"`
	Reason string `json:"reason"`
	// Wait is set when it is not yet certain that the machine may be wiped: it is to
	// netboot, and to ask for its script again.
	Wait bool `json:"wait,omitempty"`
	// Way is how a machine that netboots is started, and WayReason why so. Without a way
	// it is not started.
	Way       Way    `json:"way,omitempty"`
	WayReason string `json:"wayReason,omitempty"`
}

// View is what one decision looks at: one machine (or none, for a stranger)
// and what belongs to it. What it points to is shared and must not be modified;
// Clone a machine to change it.
type View struct {
	Machine   *Machine
	Facts     Facts
	Cluster   *Cluster // nil: the machine names none, or one that does not exist
	Bootstrap *Bootstrap
	// Image is the boot image for the machine's architecture, nil when it was
	// not imported. Wanted is its id, for the reason.
	Image  *Image
	Wanted string
	// Signs is set when there is a key here to sign UKIs with.
	Signs bool
	// Asks is set when machines that wait in maintenance mode are looked for.
	Asks bool

	epoch uint64 // of the views it may be kept in
}

// PlanBoot is the one boot decision. DHCPv6, TFTP, the boot script, the UKI and the
// config URL all ask it, so that none can forget what another enforces.
func PlanBoot(v View) Plan {
	p := planAction(v)
	if p.Action.Netboots() {
		p.Way, p.WayReason = PlanWay(v, "")
	}
	return p
}

func planAction(v View) Plan {
	switch m := v.Machine; {
	case m == nil:
		return Plan{Action: Hold, Reason: "this MAC is not registered"}
	case v.Facts.Reimage.Outstanding() && !v.Facts.Reimage.Claimed():
		return planReimage(v)
	case m.Cluster == "":
		return Plan{Action: Hold, Reason: m.Name + " belongs to no cluster"}
	case v.Cluster == nil:
		return Plan{Action: Hold, Reason: fmt.Sprintf("cluster %s of %s does not exist", m.Cluster, m.Name)}
	case !v.Facts.Install.Outstanding():
		return Plan{Action: Disk, Reason: fmt.Sprintf("installed (order %d, %s)", v.Facts.Install.Done, v.Facts.Install.DoneAt.UTC().Format("2006-01-02 15:04:05Z"))}
	case v.Image == nil && v.Wanted != "":
		return Plan{Action: Hold, Reason: fmt.Sprintf("boot image %s is not imported", v.Wanted)}
	}
	return Plan{Action: Install, Reason: fmt.Sprintf("install order %d is outstanding", v.Facts.Install.Ordered)}
}
