package inventory

import (
	"fmt"
	"slices"
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
	// UUID is what the machine said of itself when this was ordered, empty if it had not: a
	// NIC that was put into another machine must not have that one wiped.
	UUID string `json:"uuid,omitempty"`
	// Destroy lets it take the quorum of its cluster, or its last control plane.
	Destroy bool `json:"destroy,omitempty"`
	// ClearedAt is when nothing was left that this machine must not be taken from: it is
	// no etcd member, or one that could go. That holds for the boot it was in then.
	// RefusedAt is when it was needed where it is.
	ClearedAt time.Time `json:"clearedAt,omitzero"`
	RefusedAt time.Time `json:"refusedAt,omitzero"`
	// LeftAt is set before the machine is taken out of etcd: its data is no good then, so
	// that it has to be wiped.
	LeftAt time.Time `json:"leftAt,omitzero"`
	// ClaimedAt is set before the wipe is asked for; from then on the disk may be blank
	// at any moment, and nothing asks a second time.
	ClaimedAt time.Time `json:"claimedAt,omitzero"`
	Via       Via       `json:"via,omitempty"`
	Boot      uint64    `json:"boot,omitempty"` // that was given the script, for ViaNetboot
	// Install is the install order as it was when the wipe was claimed, should the claim
	// be taken back.
	Install Order `json:"install,omitzero"`
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

// forgotten is how long after a claim, with no sign of the machine since, an order that
// is given again is a new one: whoever gives it has looked.
const forgotten = 20 * time.Minute

// settle is how long after the last sign of a machine's way down an answer of its API
// counts as that of a system that was not wiped.
const settle = time.Minute

// Claimed reports whether the wipe was asked for, and may have happened.
func (r *Reimage) Claimed() bool { return !r.ClaimedAt.IsZero() }

// DueAtNetboot reports whether the boot that the machine is in is to wipe it: it was
// cleared since that began, so that it cannot have become a member of etcd meanwhile.
func (f *Facts) DueAtNetboot() bool {
	r, b := &f.Reimage, f.Current()
	return r.Outstanding() && !r.Claimed() && r.Attempts < MaxWipes && !r.AllDisks && !f.otherHardware() && b != nil && r.ClearedAt.After(b.Started)
}

// otherHardware reports whether another machine than the one that was ordered to be
// reimaged boots from its NIC.
func (f *Facts) otherHardware() bool {
	return f.Reimage.UUID != "" && f.UUID != "" && f.Reimage.UUID != f.UUID
}

// AwaitsClearance reports whether the machine is in its boot loader, where nothing of it
// runs, and asks whether it is to be wiped.
func (f *Facts) AwaitsClearance() bool {
	r, b := &f.Reimage, f.Current()
	return r.Outstanding() && !r.Claimed() && b != nil && b.Waits && b.Config.IsZero() && b.API.IsZero() && !f.otherHardware() &&
		!r.ClearedAt.After(b.Started) && !r.RefusedAt.After(b.Started)
}

// Membership is what a machine's disk makes of it: what the config said that it
// fetched last.
type Membership struct {
	Cluster string `json:"cluster"`
	Role    Role   `json:"role"`
	Epoch   uint64 `json:"epoch"` // of the cluster
	// Guess is set when it is not known and taken for what must be treated with most care.
	Guess bool `json:"guess,omitempty"`
}

// HoldsEtcd reports whether the machine's disk may hold etcd's data of a cluster in
// the epoch that it is in now.
func (f *Facts) HoldsEtcd(c *Cluster) bool {
	h := f.Holds
	return h.Cluster == c.Name && h.Role == ControlPlane && h.Epoch == c.Epoch
}

// PlanScript is PlanBoot for a machine that asks for its script. token is that of the
// script it was given before and comes from, empty if there is none: who shows it is
// still in the boot loader of that boot, and what its script ordered has not happened.
// Nobody else is told to wipe.
func PlanScript(v View, token string) Plan {
	r, b := &v.Facts.Reimage, v.Facts.Current()
	same := v.Machine != nil && b != nil && token == b.Token
	if same && b.Plan == Wipe && r.Outstanding() && r.Via == ViaNetboot && r.Boot == b.Number && v.Image != nil {
		return Plan{Action: Wipe, Reason: fmt.Sprintf("reimage order %d, again: its script could not start Talos", r.Ordered)}
	}
	p := PlanBoot(v)
	p.Wait = p.Wait || p.Action == Wipe && !same
	return p
}

// planReimage is PlanBoot of a machine with a reimage that is not claimed yet.
func planReimage(v View) Plan {
	r, b := &v.Facts.Reimage, v.Facts.Current()
	plan := func(a Action, format string, args ...any) Plan {
		return Plan{Action: a, Reason: fmt.Sprintf("reimage order %d: ", r.Ordered) + fmt.Sprintf(format, args...)}
	}
	switch {
	case r.Attempts >= MaxWipes:
		return plan(Disk, "%d wipes left the disk as it was: look at the machine's console, and order it again, or cancel it", r.Attempts)
	case v.Facts.otherHardware():
		return plan(Disk, "it was ordered for the machine with UUID %s, and this one says %s: cancel it, or give the NIC back", r.UUID, v.Facts.UUID)
	case r.AllDisks:
		return plan(Disk, "it is to wipe all disks, which takes the machine's API")
	case v.Cluster == nil:
		return plan(Disk, "it belongs to no cluster, whose image could wipe it: that takes the machine's API")
	case v.Image == nil:
		return plan(Hold, "boot image %s is not imported", v.Wanted)
	case v.Facts.DueAtNetboot():
		return plan(Wipe, "wipe the system disk, once")
	case b != nil && r.RefusedAt.After(b.Started):
		return plan(Disk, "%s", r.Reason)
	}
	p := plan(Wipe, "waits for word that it may be wiped")
	p.Wait = true
	return p
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
		switch {
		case !r.Outstanding() || !r.Claimed() && r.Attempts >= MaxWipes || r.Claimed() && e.Time.Sub(f.lastSign()) > forgotten:
			left := r.LeftAt
			if !r.Outstanding() {
				left = time.Time{} // it has joined another one since
			}
			*r = Reimage{
				UUID: f.UUID, LeftAt: left,
				Order:    Order{Ordered: r.Ordered + 1, OrderedAt: e.Time, Done: r.Done, DoneAt: r.DoneAt},
				AllDisks: e.AllDisks, Graceful: e.Graceful, Destroy: e.Destroy, Reason: e.Message,
			}
			return true, nil
		case r.Claimed() && e.AllDisks != r.AllDisks:
			return false, refused("its wipe was asked for (%s) and may have happened: what it wipes cannot be changed", r.Via)
		}
		if e.Destroy && !r.Destroy {
			r.Attempts = 0 // the word that it waited for
		}
		disks, graceful, word := set(&r.AllDisks, e.AllDisks), set(&r.Graceful, e.Graceful), set(&r.Destroy, r.Destroy || e.Destroy)
		if tells = disks || graceful || word; tells && !r.Claimed() {
			r.Reason = e.Message
		}
		return tells, nil // else clicked twice
	case ReimageCancelled:
		switch {
		case !r.Outstanding():
			return false, nil
		case r.Claimed():
			return false, refused("its wipe was asked for (%s) and may have happened", r.Via)
		case !r.LeftAt.IsZero():
			return false, refused("it was taken out of etcd, and what is on its disk is no good any more")
		}
		*r = Reimage{Order: Order{Ordered: r.Ordered, OrderedAt: r.OrderedAt, Done: r.Ordered, DoneAt: e.Time}, Reason: "cancelled"}
		return true, nil
	case ReimageWaits:
		if r.Outstanding() && !r.Claimed() && e.Refused {
			r.RefusedAt = e.Time
		}
		return r.Outstanding() && set(&r.Reason, e.Message), nil
	case ReimageLeaves:
		if !r.Outstanding() {
			return false, refused("its reimage was cancelled")
		}
		return first(&r.LeftAt, e.Time), nil
	case ReimageCleared:
		if !r.Outstanding() || r.Claimed() {
			return false, refused("no reimage waits to be cleared")
		}
		r.Reason, r.ClearedAt = e.Message, e.Time
		return true, nil
	case ScriptServed:
		// The same script again, for who could not start it, or a claim of its own.
		due := f.DueAtNetboot() && e.Boot == f.Current().Number
		again := e.Boot != 0 && e.Boot == r.Boot && r.Outstanding() && r.Via == ViaNetboot
		if e.Plan == Wipe && !due && !again {
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
		r.Attempts = max(0, r.Attempts-1)
		return true, nil
	}
	return false, nil
}

// claimWipe records that a wipe is about to be asked for. What follows is an install.
func claimWipe(f *Facts, e Event, via Via) {
	r := &f.Reimage
	r.ClaimedAt, r.Via, r.Reason = e.Time, via, e.Message
	r.Attempts++
	r.Install, f.WipeAskedAt = f.Install, e.Time
	f.Install.Ordered++ // an answer that is late must not use up this one
	f.Install.OrderedAt = e.Time
}

// unclaim takes a claim back, when it is certain that nothing came of it.
func unclaim(f *Facts, reason string) {
	r := &f.Reimage
	r.ClaimedAt, r.ClearedAt, r.Via, r.Boot, r.Reason = time.Time{}, time.Time{}, "", 0, reason
	f.Install = r.Install
}

// wiped takes the fetch of a config as the proof that the disk was blank: Talos asks for
// one only then. That is what any order to reimage is after, whether its wipe was asked
// for or not, and the config is for the newest install order.
func wiped(f *Facts, b *Boot, e Event) {
	if !e.ConfigBy.BlankDisk() {
		return
	}
	if b.Plan == Install {
		b.Order = f.Install.Ordered
	}
	if e.ConfigBy == ChannelAPI {
		return // it may not take it: tookConfig
	}
	if r := &f.Reimage; r.Outstanding() && !e.stale {
		r.Done, r.DoneAt, r.Reason = r.Ordered, e.Time, "its disk was blank when it fetched its config"
	}
}

// tookConfig takes an answer of the API as proof that the machine installed what it was
// given in maintenance mode: it has no config there, and runs one of our CA since.
func tookConfig(f *Facts, e Event) bool {
	b := f.Current()
	if b == nil || b.ConfigBy != ChannelAPI || b.Config.IsZero() || !b.API.IsZero() || e.stale ||
		e.Stage != StageBooting && e.Stage != StageRunning || !e.Asked.IsZero() && e.Asked.Before(b.Config) {
		return false
	}
	f.Holds, f.StagedHash = e.Holds, ""
	if r := &f.Reimage; r.Outstanding() {
		r.Done, r.DoneAt, r.Reason = r.Ordered, e.Time, "it runs what it was given in maintenance mode, where it had no config"
	}
	return true
}

// notWiped takes an answer of the API as proof that the wipe that was asked for did not
// happen: the machine runs, and has fetched no config since. Only an answer to a
// question of after the machine's last sign counts; one on its way may be older.
func notWiped(f *Facts, e Event) bool {
	r := &f.Reimage
	if !r.Outstanding() || !r.Claimed() || e.Stage != StageBooting && e.Stage != StageRunning {
		return false
	}
	if e.Asked.Sub(f.lastSign()) < settle {
		return false
	}
	if slices.ContainsFunc(f.Boots, func(b *Boot) bool { return !b.ConfigBy.BlankDisk() }) {
		// Its seed may still be there, and have installed it anew: to wipe it again would
		// never end.
		return set(&r.Reason, "it runs, and has read its config from a seed before, so that nothing shows whether it was wiped: take the seed away, and order it again")
	}
	unclaim(f, fmt.Sprintf("try %d did not wipe the disk: it runs what it ran before", r.Attempts))
	f.Install.Done = f.Install.Ordered // what it runs is installed
	return true
}

// lastSign is when the machine was last told to wipe its disk, or heard of on its way
// up.
func (f *Facts) lastSign() time.Time {
	if b := f.Current(); b != nil {
		return latest(f.Reimage.ClaimedAt, b.lastSign())
	}
	return f.Reimage.ClaimedAt
}

// fetched is when a config was fetched for the newest install order; zero: never.
func (f *Facts) fetched() (at time.Time) {
	for _, b := range f.Boots {
		if b.Order == f.Install.Ordered && b.ConfigBy.BlankDisk() {
			at = latest(at, b.Config)
		}
	}
	return at
}
