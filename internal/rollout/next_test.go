package rollout

import (
	"strings"
	"testing"
	"time"

	"github.com/provisiond/provisiond/internal/inventory"
)

var t0 = time.Date(2026, 1, 1, 12, 0, 0, 0, time.UTC)

func TestNext(t *testing.T) {
	const (
		pending = inventory.RolloutPending
		claim   = inventory.RolloutClaimed
		over    = inventory.RolloutDone
	)
	ok := Probe{Answered: true, Ready: true, Running: "old", Wanted: "new", Version: "v1", WantedVersion: "v1", May: true, Why: "it may"}
	with := func(f func(*Probe)) Probe { p := ok; f(&p); return p }
	has := with(func(p *Probe) { p.Running = "new" })
	silent := Probe{Silent: "refused"}
	unready := with(func(p *Probe) { p.Ready = false })
	aged := with(func(p *Probe) { p.WantedVersion = "v2" })
	for _, tc := range []struct {
		name    string
		first   inventory.RolloutState // of cp-1; cp-2 and the worker follow
		second  inventory.RolloutState
		worker  inventory.RolloutState
		mode    inventory.ConfigMode
		upgrade bool
		image   string // of the claim
		probes  map[string]Probe
		after   time.Duration
		do      act
		machine string
		reason  string
	}{
		{name: "begins", first: pending, second: pending, worker: pending, probes: map[string]Probe{"cp-1": ok}, do: apply, machine: "cp-1"},
		{name: "has it", first: pending, second: pending, worker: pending, probes: map[string]Probe{"cp-1": has}, do: done, machine: "cp-1"},
		{name: "has it and is not ready", first: pending, second: pending, worker: pending, probes: map[string]Probe{"cp-1": with(func(p *Probe) { p.Running, p.Ready = "new", false })}, do: wait, machine: "cp-1"},
		{name: "may not", first: pending, second: pending, worker: pending, probes: map[string]Probe{"cp-1": with(func(p *Probe) { p.May, p.Why = false, "quorum" })}, do: wait, machine: "cp-1", reason: "quorum"},
		{name: "may not, for long", first: pending, second: pending, worker: pending, probes: map[string]Probe{"cp-1": with(func(p *Probe) { p.May, p.Why = false, "quorum" })}, after: time.Hour, do: fail, machine: "cp-1", reason: "quorum"},
		{name: "silent", first: pending, second: pending, worker: pending, probes: map[string]Probe{"cp-1": silent}, do: wait, machine: "cp-1", reason: "refused"},
		{name: "silent for long", first: pending, second: pending, worker: pending, probes: map[string]Probe{"cp-1": silent}, after: time.Hour, do: fail, machine: "cp-1"},
		{name: "of another life", first: pending, second: pending, worker: pending, probes: map[string]Probe{"cp-1": {Unfit: "life 1"}}, do: fail, machine: "cp-1", reason: "life 1"},
		{name: "removed", first: pending, second: pending, worker: pending, probes: map[string]Probe{"cp-1": {Gone: "removed"}}, do: done, machine: "cp-1"},

		{name: "asked, and away", first: claim, second: pending, worker: pending, probes: map[string]Probe{"cp-1": silent}, after: settle * 2, do: wait, machine: "cp-1"},
		{name: "asked, and away for too long", first: claim, second: pending, worker: pending, probes: map[string]Probe{"cp-1": silent}, after: time.Hour, do: fail, machine: "cp-1"},
		{name: "asked, and as it was", first: claim, second: pending, worker: pending, probes: map[string]Probe{"cp-1": ok}, after: settle / 2, do: wait, machine: "cp-1"},
		{name: "asked, and still as it was", first: claim, second: pending, worker: pending, probes: map[string]Probe{"cp-1": ok}, after: settle * 2, do: fail, machine: "cp-1", reason: "it runs what it ran before: said"},
		{name: "back with the config", first: claim, second: pending, worker: pending, probes: map[string]Probe{"cp-1": has}, do: done, machine: "cp-1"},
		{name: "back with the config, not ready", first: claim, second: pending, worker: pending, probes: map[string]Probe{"cp-1": with(func(p *Probe) { p.Running, p.Ready = "new", false })}, do: wait, machine: "cp-1"},
		{name: "wanted is another one by now", first: claim, second: pending, worker: pending, probes: map[string]Probe{"cp-1": with(func(p *Probe) { p.Running, p.Wanted = "new", "newer" })}, do: done, machine: "cp-1"},

		{name: "the next", first: over, second: pending, worker: pending, probes: map[string]Probe{"cp-1": has, "cp-2": ok}, do: apply, machine: "cp-2"},
		{name: "the one before is not ready", first: over, second: pending, worker: pending, probes: map[string]Probe{"cp-1": unready, "cp-2": ok}, do: wait, machine: "cp-2", reason: "cp-1"},
		{name: "the one before is removed", first: over, second: pending, worker: pending, probes: map[string]Probe{"cp-1": {Gone: "removed"}, "cp-2": ok}, do: apply, machine: "cp-2"},
		{name: "a worker waits for control planes", first: over, second: over, worker: pending, probes: map[string]Probe{"cp-1": has, "cp-2": silent, "w-1": ok}, do: wait, machine: "w-1", reason: "cp-2"},
		{name: "a worker", first: over, second: over, worker: pending, probes: map[string]Probe{"cp-1": has, "cp-2": has, "w-1": ok}, do: apply, machine: "w-1"},
		{name: "all done", first: over, second: over, worker: over, probes: map[string]Probe{"cp-1": silent}, do: end},

		{name: "staged already", first: pending, second: pending, worker: pending, mode: inventory.ConfigStaged, probes: map[string]Probe{"cp-1": with(func(p *Probe) { p.Staged = "new" })}, do: done, machine: "cp-1"},
		{name: "staged is not running", first: pending, second: pending, worker: pending, probes: map[string]Probe{"cp-1": with(func(p *Probe) { p.Staged = "new" })}, do: apply, machine: "cp-1"},
		{name: "staged, the answer was recorded", first: claim, second: pending, worker: pending, mode: inventory.ConfigStaged, probes: map[string]Probe{"cp-1": with(func(p *Probe) { p.Staged = "new" })}, do: done, machine: "cp-1"},
		{name: "staged, the answer was lost", first: claim, second: pending, worker: pending, mode: inventory.ConfigStaged, probes: map[string]Probe{"cp-1": ok}, do: fail, machine: "cp-1", reason: "not known"},

		{name: "an upgrade comes first", first: pending, second: pending, worker: pending, upgrade: true, probes: map[string]Probe{"cp-1": aged}, do: upgrade, machine: "cp-1"},
		{name: "a version is none of a config's", first: pending, second: pending, worker: pending, probes: map[string]Probe{"cp-1": with(func(p *Probe) { p.Running, p.WantedVersion = "new", "v2" })}, do: done, machine: "cp-1"},
		{name: "it installs", first: claim, second: pending, worker: pending, upgrade: true, image: "i", probes: map[string]Probe{"cp-1": aged}, after: settle * 2, do: wait, machine: "cp-1"},
		{name: "it did not install", first: claim, second: pending, worker: pending, upgrade: true, image: "i", probes: map[string]Probe{"cp-1": aged}, after: settleUpgrade * 2, do: fail, machine: "cp-1"},
		{name: "upgraded", first: claim, second: pending, worker: pending, upgrade: true, image: "i", probes: map[string]Probe{"cp-1": ok}, do: again, machine: "cp-1"},
		{name: "then the config", first: pending, second: pending, worker: pending, upgrade: true, image: "i", probes: map[string]Probe{"cp-1": ok}, do: apply, machine: "cp-1"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			r := &inventory.Rollout{Cluster: "prod", Mode: inventory.ConfigAuto, Upgrade: tc.upgrade, Started: t0}
			if tc.mode != "" {
				r.Mode = tc.mode
			}
			for i, s := range []inventory.RolloutState{tc.first, tc.second, tc.worker} {
				m := inventory.RolloutMachine{Name: []string{"cp-1", "cp-2", "w-1"}[i], Role: inventory.ControlPlane, State: s, Image: tc.image, Reason: "said"}
				if i == 2 {
					m.Role = inventory.Worker
				}
				if s == claim && tc.image == "" {
					m.Hash = "new"
				}
				if s == claim {
					m.ClaimedAt = t0
				}
				r.Machines = append(r.Machines, m)
			}
			s := next(r, tc.probes, t0.Add(tc.after))
			if s.do != tc.do || s.machine != tc.machine || !strings.Contains(s.reason, tc.reason) {
				t.Errorf("%+v; want %s of %q: %s", s, tc.do, tc.machine, tc.reason)
			}
		})
	}
}
