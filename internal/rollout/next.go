// Package rollout gives the machines of a cluster their configs one after the other, and
// stops at the first that does not come back as it should.
package rollout

import (
	"fmt"
	"time"

	"github.com/provisiond/provisiond/internal/inventory"
)

const (
	// patience is how long a machine may keep the rollout from asking it.
	patience = 5 * time.Minute
	// settle is how long a machine may run on as it was after it was asked: until its
	// reboot begins. An upgrade pulls and writes an image before.
	settle        = time.Minute
	settleUpgrade = 10 * time.Minute
	// giveUp is how long a machine that was asked may be away.
	giveUp = 20 * time.Minute
)

// Probe is what a look at a machine found.
type Probe struct {
	// Gone says why it is no machine of the cluster any more; empty: it is one.
	Gone string
	// Unfit says why it cannot be given a config, however long one waits.
	Unfit string
	// Answered is set when its API did; Silent is why not.
	Answered bool
	Silent   string
	// Ready is set when it runs, and says that nothing is amiss.
	Ready bool
	// Running and Staged are the SHA-256 of the config that it runs and of the one that
	// it is known to take with its next boot; Wanted of the one that it should have.
	Running, Staged, Wanted string
	// Version is the Talos that it runs, WantedVersion the one that it should run, and
	// Image the installer of that.
	Version, WantedVersion, Image string
	// May is set when its cluster can do without it for a while; Why is the reason, or
	// why not.
	May bool
	Why string
}

// has reports whether nothing is to be done to the machine.
func (p *Probe) has(r *inventory.Rollout) bool {
	config := p.Running == p.Wanted || r.Mode == inventory.ConfigStaged && p.Staged == p.Wanted
	return config && !p.old(r)
}

// old reports whether the machine is to be upgraded.
func (p *Probe) old(r *inventory.Rollout) bool { return r.Upgrade && p.Version != p.WantedVersion }

// act is what is to be done next.
type act string

const (
	wait    act = "wait"
	apply   act = "apply"   // claim the machine, and give it its config
	upgrade act = "upgrade" // claim the machine, and upgrade it
	again   act = "again"   // it is upgraded; its config may follow
	done    act = "done"
	fail    act = "fail"
	end     act = "end"
)

// step is an act, on a machine or on the rollout, and why.
type step struct {
	do      act
	machine string
	reason  string
}

// looked names the machines that next decides on: the one whose turn it is, and every
// control plane that had its turn; none when all had theirs.
func looked(r *inventory.Rollout) (names []string) {
	current := r.Current()
	if current == nil {
		return nil
	}
	for _, m := range r.Machines {
		if m.Role == inventory.ControlPlane && m.State == inventory.RolloutDone {
			names = append(names, m.Name)
		}
	}
	return append(names, current.Name)
}

// next decides from what is committed and what was just seen. It is pure.
func next(r *inventory.Rollout, probes map[string]Probe, now time.Time) step {
	m := r.Current()
	if m == nil {
		return step{end, "", "every machine has what it should have"}
	}
	p := probes[m.Name]
	switch {
	case p.Gone != "":
		return step{done, m.Name, p.Gone}
	case p.Unfit != "":
		return step{fail, m.Name, p.Unfit}
	case m.State == inventory.RolloutClaimed:
		return claimed(r, m, &p, now)
	}
	for _, o := range r.Machines {
		if q := probes[o.Name]; o.Role == inventory.ControlPlane && o.State == inventory.RolloutDone && q.Gone == "" && !q.Ready {
			return hold(r, m, now, o.Name+", a control plane that had its turn, is not ready")
		}
	}
	switch {
	case !p.Answered:
		return hold(r, m, now, "it does not answer: "+p.Silent)
	case !p.Ready:
		return hold(r, m, now, "it is not ready")
	case p.has(r):
		return step{done, m.Name, "it has what it should have"}
	case !p.May:
		return hold(r, m, now, p.Why)
	case p.old(r):
		return step{upgrade, m.Name, fmt.Sprintf("it runs Talos %s and should run %s; %s", p.Version, p.WantedVersion, p.Why)}
	}
	return step{apply, m.Name, p.Why}
}

// claimed decides on a machine that was asked, or may have been: by looking at it, and
// never by asking again.
func claimed(r *inventory.Rollout, m *inventory.RolloutMachine, p *Probe, now time.Time) step {
	asked, limit := now.Sub(m.ClaimedAt), settle
	if m.Image != "" {
		limit = settleUpgrade
	}
	switch {
	case m.Image == "" && r.Mode == inventory.ConfigStaged:
		if p.Staged == m.Hash {
			return step{done, m.Name, "it takes the config with its next boot"}
		}
		return step{fail, m.Name, "it is not known whether it takes the config with its next boot: " + m.Reason}
	case !p.Answered || !p.Ready:
		if asked > giveUp {
			return step{fail, m.Name, fmt.Sprintf("it was asked %s ago and is not ready again: %s", giveUp, m.Reason)}
		}
		return step{wait, m.Name, "it is not ready again"}
	case m.Image != "" && p.Version == p.WantedVersion:
		return step{again, m.Name, "it runs Talos " + p.Version}
	case m.Image == "" && p.Running == m.Hash:
		return step{done, m.Name, "it runs the config"}
	case asked > limit:
		return step{fail, m.Name, "it runs what it ran before: " + m.Reason}
	}
	return step{wait, m.Name, "it was asked and runs what it ran before"}
}

// hold waits for a machine that was not asked yet, for a while.
func hold(r *inventory.Rollout, m *inventory.RolloutMachine, now time.Time, reason string) step {
	since := r.Started
	for _, o := range r.Machines {
		if o.EndedAt.After(since) {
			since = o.EndedAt
		}
	}
	if now.Sub(since) > patience {
		return step{fail, m.Name, reason}
	}
	return step{wait, m.Name, reason}
}
