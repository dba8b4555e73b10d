package inventory

import (
	"errors"
	"strings"
	"testing"
	"time"
)

// life is a machine's story, told event by event, a second apart.
type life struct {
	t   *testing.T
	v   View
	now time.Time
	// busy: its cluster cannot do without it.
	busy bool
}

func newLife(t *testing.T) *life {
	v := registered()
	v.Cluster = &Cluster{Name: "prod", Epoch: 1}
	v.Machine.Cluster, v.Machine.Role = "prod", ControlPlane
	v.Image = &Image{Version: "v1.13.6", Arch: AMD64}
	return &life{t: t, v: v, now: t0}
}

func (l *life) try(e Event) error {
	l.now = l.now.Add(time.Second)
	e.Time, e.MAC = l.now, mac1
	if e.Token == "" {
		e.Token = l.now.Format("token-150405")
	}
	if e.Kind == APIAnswered && e.Asked.IsZero() {
		e.Asked = l.now
	}
	next, err := Apply(l.v, e)
	if err == nil {
		l.v = next
	}
	return err
}

func (l *life) must(events ...Event) {
	l.t.Helper()
	for _, e := range events {
		if err := l.try(e); err != nil {
			l.t.Fatalf("%s was refused: %v", e.Kind, err)
		}
	}
}

func (l *life) refused(e Event) {
	l.t.Helper()
	if err := l.try(e); !errors.Is(err, ErrRefused) {
		l.t.Fatalf("%s was not refused: %v", e.Kind, err)
	}
}

// boots from the network, as far as its plan takes it. xid tells boots apart.
func (l *life) netboot(xid uint32) Action {
	l.t.Helper()
	l.now = l.now.Add(3 * time.Minute)
	l.must(Event{Kind: Solicited, Client: FirmwarePXE, XID: xid})
	plan := PlanBoot(l.v)
	if !plan.Action.Netboots() {
		return plan.Action
	}
	l.must(Event{Kind: Offered, Plan: plan.Action}, Event{Kind: LoaderServed})
	if plan.Wait {
		l.refused(Event{Kind: ScriptServed, Plan: Wipe})
		l.must(Event{Kind: ScriptServed, Plan: Hold, Wait: true})
		if !l.v.Facts.AwaitsClearance() {
			l.t.Fatalf("it asks, and nobody is to look: %+v", l.v.Facts.Reimage)
		}
		if l.busy {
			l.must(Event{Kind: ReimageWaits, Message: "etcd would be lost", Refused: true})
		} else {
			l.must(Event{Kind: ReimageCleared})
		}
		if plan = PlanBoot(l.v); !plan.Action.Netboots() {
			return plan.Action
		}
	}
	b := l.v.Facts.Current()
	if plan = PlanScript(l.v, b.Token); plan.Action == Wipe {
		if stranger := PlanScript(l.v, ""); !stranger.Wait {
			l.t.Fatalf("who does not come from the script of this boot is told %+v", stranger)
		}
		l.must(Event{Kind: ScriptServed, Plan: Wipe, Boot: b.Number})
	} else {
		l.must(Event{Kind: ScriptServed, Plan: plan.Action})
	}
	l.must(Event{Kind: KernelServed}, Event{Kind: InitramfsServed})
	return plan.Action
}

func (l *life) install(xid uint32) {
	l.t.Helper()
	if plan := l.netboot(xid); plan != Install {
		l.t.Fatalf("boot %d is to %s (%s), want install", xid, plan, PlanBoot(l.v).Reason)
	}
	l.must(Event{Kind: ConfigServed, Hash: "h"}, Event{Kind: APIAnswered, Stage: StageRunning, Ready: true})
	if l.v.Facts.Install.Outstanding() || !l.v.Facts.Ready {
		l.t.Fatalf("boot %d: not installed: %+v", xid, l.v.Facts)
	}
}

func ordered() Event { return Event{Kind: ReimageOrdered, Message: "ordered"} }

func (l *life) done(n uint64) {
	l.t.Helper()
	r := l.v.Facts.Reimage
	if r.Outstanding() || r.Ordered != n {
		l.t.Fatalf("reimage stands at %+v, want order %d done", r, n)
	}
	if plan := PlanBoot(l.v); plan.Action != Disk {
		l.t.Errorf("after it the plan is %+v", plan)
	}
}

// TestReimageByNetboot: ordered twice it happens once, claimed by one script, and is
// done when the config of the boot after it was fetched.
func TestReimageByNetboot(t *testing.T) {
	l := newLife(t)
	l.install(1)
	if h := l.v.Facts.Holds; h != (Membership{Cluster: "prod", Role: ControlPlane, Epoch: 1}) {
		t.Errorf("its disk makes it %+v", h)
	}
	l.must(ordered(), ordered())
	if r := l.v.Facts.Reimage; r.Ordered != 1 {
		t.Fatalf("clicked twice, ordered %d times", r.Ordered)
	}
	if plan := PlanBoot(l.v); plan.Action != Wipe || !plan.Wait {
		t.Errorf("before it is cleared the plan is %+v", plan)
	}
	// What cleared it before it booted is too old: it may have joined etcd since.
	l.must(Event{Kind: ReimageCleared})
	l.busy = true
	if plan := l.netboot(7); plan != Disk {
		t.Errorf("needed where it is, it was to %s", plan)
	}
	l.busy = false
	if plan := l.netboot(2); plan != Wipe {
		t.Fatalf("the plan was %s", plan)
	}
	l.refused(Event{Kind: ReimageCancelled})
	l.refused(Event{Kind: WipeClaimed})
	l.refused(Event{Kind: ScriptServed, Plan: Wipe})
	if s := DefaultPatience().PhaseOf(l.v, l.now); s.Phase != PhaseReimaging {
		t.Errorf("while it is wiped its phase is %+v", s)
	}
	l.install(3)
	l.done(1)
	if plan := l.netboot(4); plan != Disk {
		t.Errorf("netbooted again it is to %s", plan)
	}
}

// TestReimageByAPI: the answer of the machine as it was, on its way meanwhile, proves
// nothing.
func TestReimageByAPI(t *testing.T) {
	l := newLife(t)
	l.install(1)
	l.must(ordered(), Event{Kind: WipeClaimed})
	l.refused(Event{Kind: WipeClaimed})
	l.must(Event{Kind: WipeAccepted}, Event{Kind: APIAnswered, Stage: StageRunning, Ready: true})
	l.now = l.now.Add(2 * time.Minute)
	late := l.now.Add(-time.Minute - 50*time.Second)
	l.must(Event{Kind: APIAnswered, Stage: StageRunning, Ready: true, Asked: late})
	if !l.v.Facts.Reimage.Claimed() {
		t.Fatal("a late answer took the claim back")
	}
	l.install(2)
	l.done(1)
}

// TestWipeThatDidNotHappen: the machine runs on, so it may be tried again, but not for
// ever.
func TestWipeThatDidNotHappen(t *testing.T) {
	l := newLife(t)
	l.install(1)
	l.must(ordered())
	for range MaxWipes {
		l.must(Event{Kind: WipeClaimed}, Event{Kind: WipeAccepted})
		l.now = l.now.Add(5 * time.Minute)
		l.must(Event{Kind: APIAnswered, Stage: StageRunning, Ready: true})
		if r := l.v.Facts.Reimage; r.Claimed() || !r.Outstanding() || l.v.Facts.Install.Outstanding() {
			t.Fatalf("it runs what it ran, and the reimage stands at %+v", r)
		}
	}
	l.refused(Event{Kind: WipeClaimed})
	if plan := PlanBoot(l.v); plan.Action != Disk {
		t.Errorf("after %d tries the plan is %+v", MaxWipes, plan)
	}
	l.must(Event{Kind: ReimageCancelled})
	if plan := PlanBoot(l.v); plan.Action != Disk || strings.Contains(plan.Reason, "reimage") {
		t.Errorf("cancelled, the plan is %+v", plan)
	}
	l.must(ordered(), Event{Kind: WipeClaimed})
	l.install(9)
	l.done(2)
}

// TestWipeDeclined: a definite no is no try.
func TestWipeDeclined(t *testing.T) {
	l := newLife(t)
	l.install(1)
	l.must(ordered())
	for range 2 * MaxWipes {
		l.must(Event{Kind: WipeClaimed}, Event{Kind: WipeDeclined, Message: "no"})
	}
	if r := l.v.Facts.Reimage; r.Attempts != 0 || r.Reason != "no" || l.v.Facts.Install.Outstanding() {
		t.Errorf("declined, it stands at %+v", r)
	}
	l.must(Event{Kind: ReimageCancelled})
	l.done(1)
}

// TestScriptThatCouldNotStart: who asks with the token of the wipe's script has not
// been wiped by it; anybody else is not told again.
func TestScriptThatCouldNotStart(t *testing.T) {
	l := newLife(t)
	l.install(1)
	l.must(ordered())
	l.netboot(2)
	b := l.v.Facts.Current()
	if plan := PlanScript(l.v, "guess"); plan.Action != Install {
		t.Errorf("with another token the plan is %+v", plan)
	}
	if plan := PlanScript(l.v, b.Token); plan.Action != Wipe {
		t.Errorf("with its own token the plan is %+v", plan)
	}
	l.must(Event{Kind: ScriptServed, Plan: Wipe, Boot: b.Number})
	if r := l.v.Facts.Reimage; r.Attempts != 1 {
		t.Errorf("it counts %d tries", r.Attempts)
	}
	l.install(3)
	if plan := PlanScript(l.v, b.Token); plan.Action != Disk {
		t.Errorf("later the token is good for %+v", plan)
	}
}

// TestReimageOfOneNeverSeen: its disk may hold anything.
func TestReimageOfOneNeverSeen(t *testing.T) {
	l := newLife(t)
	l.must(ordered())
	if plan := l.netboot(1); plan != Wipe {
		t.Fatalf("the plan was %s", plan)
	}
	// Its disk runs a config of our CA that this database does not know: with a wipe
	// ordered that is no install.
	l.now = l.now.Add(5 * time.Minute)
	l.must(Event{Kind: APIAnswered, Stage: StageRunning, Ready: true})
	if r := l.v.Facts.Reimage; r.Claimed() {
		t.Error("it runs, and counts as being wiped")
	}
	l.must(Event{Kind: WipeClaimed})
	l.install(2)
	l.done(1)
}

// TestPowerCutBeforeTheWipe: its kernel was read and nothing came of it.
func TestPowerCutBeforeTheWipe(t *testing.T) {
	l := newLife(t)
	l.install(1)
	l.must(ordered())
	l.netboot(2)
	if plan := l.netboot(3); plan != Install {
		t.Fatalf("the next boot is to %s", plan)
	}
	// Talos runs the config on its disk and does not ask for one.
	l.must(Event{Kind: APIAnswered, Stage: StageRunning, Ready: true})
	if l.v.Facts.Reimage.Outstanding() && !l.v.Facts.Reimage.Claimed() {
		t.Fatal("an answer within the minute took the claim back")
	}
	l.now = l.now.Add(2 * time.Minute)
	l.must(Event{Kind: APIAnswered, Stage: StageRunning, Ready: true})
	if r := l.v.Facts.Reimage; r.Claimed() || !r.Outstanding() {
		t.Fatalf("the reimage stands at %+v", r)
	}
	l.must(Event{Kind: WipeClaimed})
	l.install(4)
	l.done(1)
}

// TestAnotherMachineWithItsNIC is not wiped for it.
func TestAnotherMachineWithItsNIC(t *testing.T) {
	l := newLife(t)
	l.v.Facts.UUID = "11111111-0000-0000-0000-000000000000"
	l.install(1)
	l.must(ordered())
	l.must(Event{Kind: Solicited, Client: FirmwarePXE, XID: 2, UUID: "22222222-0000-0000-0000-000000000000"})
	if plan := PlanBoot(l.v); plan.Action != Disk || !strings.Contains(plan.Reason, "22222222") {
		t.Errorf("it is to %+v", plan)
	}
}

// TestWipeThatNobodyHearsOf: no API and no fetch can prove anything, so whoever orders it
// again a good while later has looked, and orders another wipe.
func TestWipeThatNobodyHearsOf(t *testing.T) {
	l := newLife(t)
	l.install(1)
	l.must(ordered())
	l.netboot(2)
	l.must(ordered())
	if r := l.v.Facts.Reimage; r.Ordered != 1 {
		t.Fatalf("at once, it counts as order %d", r.Ordered)
	}
	l.now = l.now.Add(time.Hour)
	l.must(ordered())
	if r := l.v.Facts.Reimage; r.Ordered != 2 || r.Claimed() {
		t.Fatalf("an hour later it stands at %+v", r)
	}
	if plan := l.netboot(3); plan != Wipe {
		t.Errorf("it is to %s", plan)
	}
}
