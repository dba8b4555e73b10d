package bootstrap

import (
	"math/rand/v2"
	"strings"
	"testing"
	"time"

	"github.com/provisiond/provisiond/internal/inventory"
)

var t0 = time.Date(2026, 11, 22, 12, 0, 0, 0, time.UTC)

func waiting(name string) Probe {
	return Probe{Machine: name, Answered: true, Stage: inventory.StageBooting, Etcd: EtcdWaiting, MayHaveData: true}
}

func running(name string) Probe {
	return Probe{Machine: name, Answered: true, Stage: inventory.StageRunning, Etcd: EtcdRunning, MayHaveData: true}
}

func silent(name string, data bool) Probe {
	return Probe{Machine: name, MayHaveData: data, Err: "connection refused"}
}

func TestNext(t *testing.T) {
	open := inventory.Bootstrap{Cluster: "prod", Epoch: 1}
	claimed := open
	claimed.Machine, claimed.ClaimedAt = "cp-1", t0
	sent := claimed
	sent.Attempts, sent.SentAt, sent.Ambiguous = 1, t0, true
	declined := sent
	declined.Ambiguous = false
	declinedOften := declined
	declinedOften.Attempts = 20
	called := sent
	called.CalledAt, called.Ambiguous = t0, false
	over := called
	over.DoneAt = t0

	for _, tt := range []struct {
		name    string
		b       inventory.Bootstrap
		probes  []Probe
		after   time.Duration
		act     act
		machine string
		reason  string
	}{
		{"nothing registered", open, nil, 0, wait, "", "no control plane"},
		{"none has booted", open, []Probe{silent("cp-1", false)}, 0, wait, "", "waiting for"},
		{"the first reports in", open, []Probe{silent("cp-1", false), waiting("cp-2"), silent("cp-3", false)}, 0, claim, "cp-2", "cp-2 is the first"},
		{"by name when several do", open, []Probe{waiting("cp-1"), waiting("cp-2")}, 0, claim, "cp-1", ""},
		{"still installing", open, []Probe{{Machine: "cp-1", Answered: true, Stage: inventory.StageInstalling, Etcd: EtcdWaiting}}, 0, wait, "", "waiting for"},
		{"in maintenance", open, []Probe{{Machine: "cp-1", Answered: true, Stage: inventory.StageMaintenance, Etcd: EtcdWaiting}}, 0, wait, "", "waiting for"},
		{"its etcd cannot be judged", open, []Probe{{Machine: "cp-1", Answered: true, Stage: inventory.StageBooting}}, 0, wait, "", "waiting for"},
		{"one that was up is silent", open, []Probe{waiting("cp-1"), silent("cp-2", true)}, 0, wait, "", "cp-2 may hold etcd data"},
		{"one is of another cluster", open, []Probe{waiting("cp-1"), {Machine: "cp-2", Foreign: true}}, 0, wait, "", "another cluster"},
		{"the cluster already runs", open, []Probe{waiting("cp-1"), running("cp-2")}, 0, done, "cp-2", "etcd runs on cp-2"},
		{"it runs although one is silent", open, []Probe{silent("cp-1", true), running("cp-2")}, 0, done, "cp-2", ""},
		{"claimed: call", claimed, []Probe{waiting("cp-1"), waiting("cp-2")}, 0, call, "cp-1", ""},
		{"claimed: only that one", claimed, []Probe{silent("cp-1", true), waiting("cp-2")}, time.Hour, wait, "", "cp-1 may hold"},
		{"claimed: it was reset", claimed, []Probe{silent("cp-1", false), waiting("cp-2")}, time.Hour, wait, "", "no other machine may be"},
		{"claimed: it is gone", claimed, []Probe{waiting("cp-2")}, time.Hour, wait, "", "bring it back"},
		{"claimed: another runs", claimed, []Probe{waiting("cp-1"), running("cp-2")}, 0, done, "cp-2", ""},
		{"ambiguous: leave it alone", sent, []Probe{waiting("cp-1"), waiting("cp-2")}, time.Minute, wait, "", "may have been accepted"},
		{"ambiguous: then the same again", sent, []Probe{waiting("cp-1"), waiting("cp-2")}, 3 * time.Minute, call, "cp-1", ""},
		{"ambiguous: it was accepted", sent, []Probe{running("cp-1"), waiting("cp-2")}, time.Second, done, "cp-1", ""},
		{"declined: not at once", declined, []Probe{waiting("cp-1")}, time.Second, wait, "", ""},
		{"declined: soon again", declined, []Probe{waiting("cp-1")}, poll, call, "cp-1", ""},
		{"declined often: slower", declinedOften, []Probe{waiting("cp-1")}, poll, wait, "", ""},
		{"called: never again", called, []Probe{waiting("cp-1"), waiting("cp-2")}, 24 * time.Hour, wait, "", "waiting for its etcd"},
		{"called: now it runs", called, []Probe{running("cp-1")}, 0, done, "cp-1", ""},
		{"over", over, []Probe{waiting("cp-1"), waiting("cp-2")}, 24 * time.Hour, wait, "", ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			s := next(tt.b, false, nil, tt.probes, t0.Add(tt.after))
			if s.act != tt.act || s.machine != tt.machine || !strings.Contains(s.reason, tt.reason) {
				t.Errorf("next = %+v, want act %d of %q because %q", s, tt.act, tt.machine, tt.reason)
			}
		})
	}
}

// TestImportedIsNeverBootstrapped: its machines may run where we do not look.
func TestImportedIsNeverBootstrapped(t *testing.T) {
	b := inventory.Bootstrap{Cluster: "prod", Epoch: 1}
	if s := next(b, true, nil, []Probe{waiting("new-1"), waiting("new-2")}, t0); s.act != wait || !strings.Contains(s.reason, "imported") {
		t.Errorf("two blank control planes of an imported cluster: %+v", s)
	}
	if s := next(b, true, nil, []Probe{waiting("new-1"), running("cp-1")}, t0); s.act != done {
		t.Errorf("an imported cluster that runs: %+v", s)
	}
}

// TestNextNeverTwice walks random states and looks: whatever is seen, a call
// goes to the claimed machine only, never after one was accepted or etcd was
// seen, and never past a machine that could hold data.
func TestNextNeverTwice(t *testing.T) {
	rng := rand.New(rand.NewPCG(5, 6))
	names := []string{"cp-1", "cp-2", "cp-3"}
	for range 200_000 {
		b := inventory.Bootstrap{Cluster: "prod", Epoch: 1}
		if rng.IntN(2) == 0 {
			b.Machine = names[rng.IntN(3)]
			b.Ambiguous = rng.IntN(2) == 0
			b.SentAt = t0.Add(-time.Duration(rng.IntN(300)) * time.Second)
			if rng.IntN(3) == 0 {
				b.CalledAt = t0
			}
		}
		if rng.IntN(5) == 0 {
			b.DoneAt = t0
		}
		var probes []Probe
		etcdSeen, unsure := false, false
		for _, n := range names[:rng.IntN(4)] {
			p := Probe{
				Machine: n, Answered: rng.IntN(2) == 0, Foreign: rng.IntN(9) == 0, MayHaveData: rng.IntN(2) == 0,
				Stage: []inventory.Stage{inventory.StageBooting, inventory.StageRunning, inventory.StageInstalling}[rng.IntN(3)],
				Etcd:  []Etcd{EtcdUnknown, EtcdWaiting, EtcdWaiting, EtcdRunning}[rng.IntN(4)],
			}
			etcdSeen = etcdSeen || p.Answered && p.Etcd == EtcdRunning
			unsure = unsure || p.Foreign || !p.Answered && p.MayHaveData
			probes = append(probes, p)
		}
		imported := rng.IntN(4) == 0
		s := next(b, imported, nil, probes, t0)
		switch s.act {
		case call:
			if imported || s.machine != b.Machine || b.Called() || b.Done() || etcdSeen || unsure || b.Ambiguous && t0.Sub(b.SentAt) < retryAmbiguous {
				t.Fatalf("called %s with %+v and %+v", s.machine, b, probes)
			}
		case claim:
			if imported || b.Claimed() || b.Done() || etcdSeen || unsure {
				t.Fatalf("claimed %s with %+v and %+v", s.machine, b, probes)
			}
		case done:
			if !etcdSeen {
				t.Fatalf("done without etcd: %+v", probes)
			}
		}
	}
}
