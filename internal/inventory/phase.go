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

// Patience is how long a phase may last before the machine counts as stalled, by phase.
// That of PhaseReady is for a ready machine whose API is silent, which is asked every
// minute, in a large hall every few. A phase that is not in it lasts for ever.
type Patience map[Phase]time.Duration

// DefaultPatience is for real hardware: an installer image may take long to pull.
func DefaultPatience() Patience {
	return Patience{
		PhaseOffered: 3 * time.Minute, PhaseLoading: 10 * time.Minute, PhaseConfiguring: 10 * time.Minute, PhaseInstalling: 30 * time.Minute,
		PhaseBooting: 20 * time.Minute, PhaseReimaging: 20 * time.Minute, PhaseReady: 10 * time.Minute,
	}
}

// manyFetches is how many fetches of a config in one boot are too many: Talos asks once,
// and again when it cannot go on with what it got.
const manyFetches = 3

// stallReason is the likely cause, from what was seen and what is missing.
func stallReason(p Phase, b *Boot) string {
	if b == nil {
		b = &Boot{}
	}
	switch p {
	case PhaseOffered:
		return "got an address and a boot URL but never fetched the loader: is TFTP or HTTP to us blocked?"
	case PhaseLoading:
		switch {
		case b.Way == ByUKI || b.Way == BySigned:
			return "was given its UKI and did not read it to its end: is the link lossy, or the HTTP port blocked for large answers (MTU)?"
		case b.Script.IsZero():
			return "has the loader and never asked for its script: is HTTP to us blocked?"
		case b.Kernel.IsZero():
			return "has its script and did not read the kernel to its end: is the link lossy, or the HTTP port blocked for large answers (MTU)?"
		}
		return "read the kernel and not the initramfs: does it have enough memory?"
	case PhaseConfiguring:
		return "read kernel and initramfs but never fetched its config: Talos found no network; see its console"
	case PhaseInstalling:
		if b.Client == Seed {
			return "its seed was read and its API does not answer: was it started with it, by a Talos that looks for it (talos.config=metal-iso, or the nocloud image)?"
		}
		if b.ConfigFetches >= manyFetches {
			return fmt.Sprintf("fetched its config %d times: Talos does not take it, or starts over; see its log", b.ConfigFetches)
		}
		return "has its config but its API does not answer: is the installer image reachable from the machine?"
	case PhaseBooting:
		if b.Plan == Disk && b.API.IsZero() {
			return "was sent to its disk, and its API has not answered since: is there a system on it? If not, order a reimage"
		}
		return "its API answers but it is not ready: see its unmet conditions"
	case PhaseReimaging:
		return "its wipe was asked for and it has not netbooted since: is the network in its boot order, and the machine on? If its wipe came to nothing, order it again"
	case PhaseReady:
		return "its API does not answer any more"
	}
	return ""
}

// PhaseOf derives the state of a registered machine at an instant.
func (p Patience) PhaseOf(v View, now time.Time) State {
	if v.Machine == nil {
		return State{Phase: PhaseDiscovered, Since: v.Facts.FirstSeen}
	}
	s := progress(v)
	since, end := p.lasts(v, s)
	if flow := v.Facts.waiting(now); flow != nil && (s.Phase == PhaseConfiguring || s.Phase == PhaseLoading) {
		// As long as it takes: a person has to go there.
		return State{Phase: PhaseConfiguring, Since: flow.Asked, Reason: "waits to be approved: provisiond approve and the code that its console shows"}
	}
	if v.Facts.maintained() {
		return s // however long: what it waits for says its reason
	}
	if !end.IsZero() && now.After(end) {
		return State{Phase: PhaseStalled, Stalled: s.Phase, Since: since, Reason: stallReason(s.Phase, v.Facts.Current())}
	}
	return s
}

// lasts is from when a phase is counted, and when it has lasted too long; zero: never.
func (p Patience) lasts(v View, s State) (since, end time.Time) {
	if since = s.Since; s.Phase == PhaseReady {
		since = v.Facts.APIAt
	}
	if limit := p[s.Phase]; limit > 0 {
		end = since.Add(limit)
	}
	return since, end
}

// Turns returns after which instants PhaseOf may say something else of a machine that
// nothing is heard of: when its phase has lasted too long, and when what it asks a person
// expires.
func (p Patience) Turns(v View) (at []time.Time) {
	if v.Machine == nil {
		return nil
	}
	if _, end := p.lasts(v, progress(v)); !end.IsZero() {
		at = append(at, end)
	}
	if b := v.Facts.Current(); b != nil && len(b.Flows) > 0 {
		at = append(at, b.Flows[len(b.Flows)-1].Expires)
	}
	return at
}

// progress is [Patience.PhaseOf] without the clock.
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

// sentToDisk is when the machine was first sent to its disk, and its API has not
// answered since: one whose disk is blank comes back again and again.
func (f *Facts) sentToDisk() (at time.Time) {
	for _, b := range f.Boots {
		if b.Plan != Disk || !b.API.IsZero() {
			break
		}
		at = b.Started
	}
	return at
}

func bootProgress(v View) State {
	f := &v.Facts
	b := f.Current()
	switch {
	case f.maintained() && b != nil && b.ConfigBy == ChannelAPI && b.API.IsZero() && f.ConfigErrorHash == f.ConfigHash && f.ConfigError != "" && !f.ConfigErrorAt.Before(b.Started):
		return State{Phase: PhaseFailed, Since: f.ConfigErrorAt, Reason: f.ConfigError}
	case f.maintained():
		return State{Phase: PhaseConfiguring, Since: f.Maintenance.Since, Reason: "waits in maintenance mode: " + f.Maintenance.Reason}
	case b == nil && f.APIAt.IsZero():
		return State{Phase: PhaseRegistered, Since: v.Machine.Created, Reason: PlanBoot(v).Reason}
	case f.Ready:
		return State{Phase: PhaseReady, Since: f.StageAt}
	case b == nil:
		return State{Phase: PhaseBooting, Since: f.APIAt, Reason: stageReason(f)}
	case !b.API.IsZero():
		return State{Phase: PhaseBooting, Since: latest(b.Started, b.API), Reason: stageReason(f)}
	case b.Plan == Disk:
		return State{Phase: PhaseBooting, Since: f.sentToDisk(), Reason: stageReason(f)}
	case !b.Config.IsZero() && f.ConfigErrorHash == f.ConfigHash && f.ConfigError != "" && !f.ConfigErrorAt.Before(b.Started):
		return State{Phase: PhaseFailed, Since: f.ConfigErrorAt, Reason: f.ConfigError}
	case !b.Config.IsZero():
		return State{Phase: PhaseInstalling, Since: b.Config, Reason: stageReason(f)}
	case b.Error != "":
		return State{Phase: PhaseFailed, Since: b.Script, Reason: b.Error}
	case b.Client == Seed:
		return State{Phase: PhaseRegistered, Since: b.Started, Reason: "its seed has not been read yet"}
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
