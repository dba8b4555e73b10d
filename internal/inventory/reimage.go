package inventory

import (
	"fmt"
	"time"
)

// Wipe plans to netboot Talos once with talos.experimental.wipe: it wipes the system
// disk and reboots.
const Wipe Action = "wipe"

// Reimage is the order to wipe a machine, so that it installs anew what the inventory
// says then. Orders count; each is claimed once, before the act, and used up by
// evidence: only from a blank disk does Talos fetch the config of the next boot.
//
// A crash leaves one of: an order without a claim (looked at again), a claim whose act
// may have happened (never repeated, but for proof that it did not), a fetched config
// (done).
type Reimage struct {
	Order
	// AllDisks wipes every disk, not the system disk alone. That takes the machine's API.
	AllDisks bool `json:"allDisks,omitempty"`
	// Graceful leaves etcd and drains the node first, if it is the API that wipes.
	Graceful bool `json:"graceful,omitempty"`
	// Destroy lets it take the quorum of its cluster, or its last control plane.
	Destroy bool `json:"destroy,omitempty"`
	// ClearedAt is when nothing was left that this machine must not be taken from: it is
	// no etcd member, or one that can go.
	ClearedAt time.Time `json:"clearedAt,omitzero"`
	// ClaimedAt is set before the wipe is asked for; from then on the disk may be blank
	// at any moment, and nothing asks a second time.
	ClaimedAt time.Time `json:"claimedAt,omitzero"`
	Via       Via       `json:"via,omitempty"`
	Boot      uint64    `json:"boot,omitempty"` // that was given the script, for ViaNetboot
	// Installed is set when the machine had been installed when its wipe was claimed.
	Installed bool `json:"installed,omitempty"`
	// Attempts counts claims, MaxWipes of them at most.
	Attempts int `json:"attempts,omitempty"`
	// Reason says in words where it stands or what it waits for.
	Reason string `json:"reason,omitempty"`
}

// Via is the way a wipe was asked for.
type Via string

// The ways to wipe.
const (
	ViaAPI     Via = "api"     // Talos' Reset
	ViaNetboot Via = "netboot" // talos.experimental.wipe
)

// MaxWipes is how often one order is tried, each time after proof that the last try
// left the disk as it was. Then it waits for its operator.
const MaxWipes = 3

// settle is how long after the last sign of a machine's way down an answer of its API
// counts as that of a system that was not wiped.
const settle = time.Minute

// Cleared reports whether the machine may be wiped.
func (r *Reimage) Cleared() bool { return !r.ClearedAt.IsZero() }

// Claimed reports whether the wipe was asked for, and may have happened.
func (r *Reimage) Claimed() bool { return !r.ClaimedAt.IsZero() }

// Due reports whether the machine is to be wiped now.
func (r *Reimage) Due() bool {
	return r.Outstanding() && r.Cleared() && !r.Claimed() && r.Attempts < MaxWipes
}

// Membership is what a machine's disk makes of it: what the config said that it
// fetched last.
type Membership struct {
	Cluster string `json:"cluster"`
	Role    Role   `json:"role"`
	Epoch   uint64 `json:"epoch"` // of the cluster
}

// HoldsEtcd reports whether the machine's disk may hold etcd's data of a cluster in
// the epoch that it is in now.
func (f *Facts) HoldsEtcd(c *Cluster) bool {
	return f.Holds == Membership{c.Name, ControlPlane, c.Epoch}
}

// PlanRetry is PlanBoot for a machine that asks with the token of a script that it
// was given and could not start: what that script ordered has not happened.
func PlanRetry(v View, token string) Plan {
	r, b := &v.Facts.Reimage, v.Facts.Current()
	if v.Machine != nil && b != nil && token == b.Token && b.Plan == Wipe && r.Outstanding() && r.Via == ViaNetboot && r.Boot == b.Number && v.Image != nil {
		return Plan{Wipe, fmt.Sprintf("reimage order %d, again: its script could not start Talos", r.Ordered)}
	}
	return PlanBoot(v)
}

// planReimage is PlanBoot of a machine with a reimage that is not claimed yet.
func planReimage(v View) Plan {
	r := &v.Facts.Reimage
	switch {
	case !r.Cleared():
		return Plan{Disk, fmt.Sprintf("reimage order %d waits: %s", r.Ordered, r.Reason)}
	case r.Attempts >= MaxWipes:
		return Plan{Disk, fmt.Sprintf("reimage order %d: %d wipes left the disk as it was; cancel it, look at the machine's console, and order it again", r.Ordered, r.Attempts)}
	case r.AllDisks:
		return Plan{Disk, fmt.Sprintf("reimage order %d is to wipe all disks, which takes the machine's API", r.Ordered)}
	case v.Image == nil:
		return Plan{Hold, fmt.Sprintf("reimage order %d: boot image %s is not imported", r.Ordered, v.Wanted)}
	}
	return Plan{Wipe, fmt.Sprintf("reimage order %d: wipe the system disk, once", r.Ordered)}
}

// applyReimage folds in what happens to a reimage. It refuses (ErrRefused) a second
// claim, a claim of what is not cleared, and to cancel what is claimed.
func applyReimage(f *Facts, e Event) (tells bool, err error) {
	r := &f.Reimage
	refused := func(format string, args ...any) error {
		return fmt.Errorf("%s: %s: %w", f.Machine, fmt.Sprintf(format, args...), ErrRefused)
	}
	switch e.Kind {
	case ReimageOrdered:
		if r.Outstanding() {
			if e.Destroy && !r.Claimed() {
				return set(&r.Destroy, true), nil // the word that it waited for
			}
			return false, nil // clicked twice
		}
		*r = Reimage{
			Order:    Order{Ordered: r.Ordered + 1, OrderedAt: e.Time, Done: r.Done, DoneAt: r.DoneAt},
			AllDisks: e.AllDisks, Graceful: e.Graceful, Destroy: e.Destroy, Reason: e.Message,
		}
		return true, nil
	case ReimageCancelled:
		switch {
		case !r.Outstanding():
			return false, nil
		case r.Claimed():
			return false, refused("its wipe was asked for (%s) and may have happened", r.Via)
		}
		*r = Reimage{Order: Order{Ordered: r.Ordered, OrderedAt: r.OrderedAt, Done: r.Ordered, DoneAt: e.Time}, Reason: "cancelled"}
		return true, nil
	case ReimageWaits:
		return r.Outstanding() && set(&r.Reason, e.Message), nil
	case ReimageCleared:
		if !r.Outstanding() || r.Claimed() {
			return false, refused("no reimage waits to be cleared")
		}
		r.Reason = e.Message
		return first(&r.ClearedAt, e.Time), nil
	case ScriptServed:
		// The same script again, for who could not start it, or a claim of its own.
		if again := e.Boot != 0 && e.Boot == r.Boot && r.Outstanding() && r.Via == ViaNetboot; e.Plan == Wipe && !r.Due() && !again {
			return false, refused("its wipe was asked for already")
		}
	case WipeClaimed:
		if !r.Outstanding() || r.Claimed() || r.Attempts >= MaxWipes {
			return false, refused("no reimage waits for its wipe")
		}
		claimWipe(f, e, ViaAPI)
		return true, nil
	case WipeAccepted:
		return r.Claimed() && set(&r.Reason, e.Message), nil
	case WipeDeclined:
		if !r.Outstanding() || !r.Claimed() || r.Via != ViaAPI {
			return false, nil
		}
		unclaim(f, e.Message)
		r.Attempts--
		return true, nil
	}
	return false, nil
}

// claimWipe records that a wipe is about to be asked for. What follows is an install.
func claimWipe(f *Facts, e Event, via Via) {
	r := &f.Reimage
	r.ClaimedAt, r.Via, r.Reason = e.Time, via, e.Message
	r.Attempts++
	if r.Installed = !f.Install.Outstanding(); r.Installed || f.Install.Ordered == 1 {
		f.Install.Ordered++ // never the first: that one may be proven without a fetch
		f.Install.OrderedAt = e.Time
	}
}

// unclaim takes a claim back, when it is certain that nothing came of it.
func unclaim(f *Facts, reason string) {
	r := &f.Reimage
	r.ClaimedAt, r.ClearedAt, r.Via, r.Boot, r.Reason = time.Time{}, time.Time{}, "", 0, reason
	if r.Installed {
		f.Install.Done = f.Install.Ordered // it still is
	}
}

// wiped takes the fetch of a config as the proof of a wipe: Talos asks for one only if
// its disk has none. b is the boot that fetched it.
func wiped(f *Facts, b *Boot, e Event) {
	r := &f.Reimage
	if r.Outstanding() && r.Claimed() && b.Order == f.Install.Ordered {
		r.Done, r.DoneAt, r.Reason = r.Ordered, e.Time, "wiped: it fetched its new config"
	}
}

// notWiped takes an answer of the API as proof that the wipe that was asked for did not
// happen: the machine runs, and has fetched no config since. Only an answer to a
// question of after the machine's last sign counts; one on its way may be older.
func notWiped(f *Facts, e Event) bool {
	r := &f.Reimage
	if !r.Outstanding() || !r.Claimed() || e.Stage != StageBooting && e.Stage != StageRunning {
		return false
	}
	last := r.ClaimedAt
	if b := f.Current(); b != nil {
		last = latest(last, b.Started, b.Offered, b.Loader, b.Script, b.Kernel, b.Initramfs)
	}
	if e.Asked.Sub(last) < settle {
		return false
	}
	unclaim(f, fmt.Sprintf("try %d did not wipe the disk: it runs what it ran before", r.Attempts))
	f.Install.Done = f.Install.Ordered // what it runs is installed
	return true
}

// fetched is when a config was fetched for the newest install order; zero: never.
func (f *Facts) fetched() (at time.Time) {
	for _, b := range f.Boots {
		if b.Order == f.Install.Ordered {
			at = latest(at, b.Config)
		}
	}
	return at
}
