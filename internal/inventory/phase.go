package inventory

import (
	"fmt"
	"time"
)

// Phase is what an operator sees of a machine. It is derived, never stored.
type Phase string

// The phases, in the order a machine passes them.
const (
	PhaseDiscovered  Phase = "discovered"  // seen, not registered
	PhaseRegistered  Phase = "registered"  // registered, not seen booting
	PhaseOffered     Phase = "offered"     // has an address and a boot URL
	PhaseLoading     Phase = "loading"     // reads loader, script, kernel, initramfs
	PhaseConfiguring Phase = "configuring" // Talos runs from memory and should fetch its config
	PhaseInstalling  Phase = "installing"  // has its config; installs and reboots
	PhaseBooting     Phase = "booting"     // installed system comes up
	PhaseReady       Phase = "ready"       // running and ready, by its own API
	PhaseReimaging   Phase = "reimaging"   // its wipe was asked for; it has not netbooted since
	PhaseStalled     Phase = "stalled"     // longer in a phase than it should
	PhaseFailed      Phase = "failed"      // said itself that it cannot go on
)

// State is a phase with its beginning and the reason a person would ask for.
type State struct {
	Phase  Phase     `json:"phase"`
	Since  time.Time `json:"since,omitzero"`
	Reason string    `json:"reason,omitempty"`
	// Stalled is the phase a stalled machine is stuck in.
	Stalled Phase `json:"stalledIn,omitempty"`
}

// StallAfter is how long a phase may last before the machine counts as stalled.
// The times are for real hardware: an installer image may take long to pull.
func StallAfter(p Phase) time.Duration {
	switch p {
	case PhaseOffered:
		return 3 * time.Minute
	case PhaseLoading:
		return 10 * time.Minute
	case PhaseConfiguring:
		return 10 * time.Minute
	case PhaseInstalling:
		return 30 * time.Minute
	case PhaseBooting, PhaseReimaging:
		return 20 * time.Minute
	}
	return 0
}

// silentAfter is how long the API of a ready machine may be silent. It is asked
// every minute, in a large hall every few.
const silentAfter = 10 * time.Minute

// stallReason is the likely cause, from what is missing.
func stallReason(p Phase) string {
	switch p {
	case PhaseOffered:
		return "got an address and a boot URL but never fetched the loader: is TFTP or HTTP to us blocked?"
	case PhaseLoading:
		return "began to load and stopped: is HTTP to us blocked, or the link lossy?"
	case PhaseConfiguring:
		return "read kernel and initramfs but never fetched its config: Talos found no network; see its console"
	case PhaseInstalling:
		return "has its config but its API does not answer: is the installer image reachable from the machine?"
	case PhaseBooting:
		return "its API answers but it is not ready: see its unmet conditions"
	case PhaseReimaging:
		return "its wipe was asked for and it has not netbooted since: is the network in its boot order, and the machine on?"
	}
	return ""
}

// PhaseOf derives the state of a registered machine at an instant.
func PhaseOf(v View, now time.Time) State {
	if v.Machine == nil {
		return State{Phase: PhaseDiscovered, Since: v.Facts.FirstSeen}
	}
	s := progress(v)
	if s.Phase == PhaseReady && now.Sub(v.Facts.APIAt) > silentAfter {
		return State{Phase: PhaseStalled, Stalled: s.Phase, Since: v.Facts.APIAt, Reason: "its API does not answer any more"}
	}
	if limit := StallAfter(s.Phase); limit > 0 && now.Sub(s.Since) > limit {
		return State{Phase: PhaseStalled, Stalled: s.Phase, Since: s.Since, Reason: stallReason(s.Phase)}
	}
	return s
}

// progress is PhaseOf without the clock.
func progress(v View) State {
	f := &v.Facts
	s := bootProgress(v)
	switch r := &f.Reimage; {
	case !r.Outstanding():
	case !r.Claimed():
		s.Reason = fmt.Sprintf("reimage order %d: %s", r.Ordered, r.Reason)
	case f.Current() == nil || f.Current().Plan != Install || !f.Current().Started.After(r.ClaimedAt):
		return State{Phase: PhaseReimaging, Since: r.ClaimedAt, Reason: r.Reason}
	}
	return s
}

func bootProgress(v View) State {
	f := &v.Facts
	b := f.Current()
	switch {
	case b == nil && f.APIAt.IsZero():
		return State{Phase: PhaseRegistered, Since: v.Machine.Created, Reason: PlanBoot(v).Reason}
	case f.Ready:
		return State{Phase: PhaseReady, Since: f.StageAt}
	case b == nil:
		return State{Phase: PhaseBooting, Since: f.APIAt, Reason: stageReason(f)}
	case b.Plan == Disk || !b.API.IsZero():
		return State{Phase: PhaseBooting, Since: latest(b.Started, b.API), Reason: stageReason(f)}
	case !b.Config.IsZero() && f.ConfigErrorHash == f.ConfigHash && f.ConfigError != "" && !f.ConfigErrorAt.Before(b.Started):
		return State{Phase: PhaseFailed, Since: f.ConfigErrorAt, Reason: f.ConfigError}
	case !b.Config.IsZero():
		return State{Phase: PhaseInstalling, Since: b.Config, Reason: stageReason(f)}
	case b.Error != "":
		return State{Phase: PhaseFailed, Since: b.Script, Reason: b.Error}
	case !b.Initramfs.IsZero():
		return State{Phase: PhaseConfiguring, Since: b.Initramfs}
	case !b.Loader.IsZero() || !b.Script.IsZero() || !b.Kernel.IsZero():
		return State{Phase: PhaseLoading, Since: latest(b.Loader, b.Script, b.Kernel)}
	case b.Plan == Hold:
		return State{Phase: PhaseRegistered, Since: b.Started, Reason: PlanBoot(v).Reason}
	}
	return State{Phase: PhaseOffered, Since: latest(b.Started, b.Offered)}
}

func stageReason(f *Facts) string {
	if f.Stage == "" {
		return ""
	}
	return fmt.Sprintf("Talos says %q", string(f.Stage))
}

func latest(ts ...time.Time) time.Time {
	var l time.Time
	for _, t := range ts {
		if t.After(l) {
			l = t
		}
	}
	return l
}
