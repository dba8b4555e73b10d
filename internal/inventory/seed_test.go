package inventory

import (
	"errors"
	"net/netip"
	"strings"
	"testing"
	"time"
)

func TestSeedStepByStep(t *testing.T) {
	v := registered()
	for i, step := range []struct {
		e     Event
		phase Phase
		plan  Action
	}{
		{Event{Kind: Seeded, For: netip.MustParseAddr("2001:db8:9::b")}, PhaseRegistered, Install},
		{Event{Kind: ConfigServed, Boot: 1, Hash: "h1", ConfigBy: ChannelISO}, PhaseInstalling, Install},
		{Event{Kind: APIAnswered, Stage: StageBooting}, PhaseBooting, Install}, // a disk of ours could say so too
		{Event{Kind: APIAnswered, Stage: StageRunning, Ready: true}, PhaseReady, Disk},
	} {
		v = story(t, v, step.e)
		if s := DefaultPatience().PhaseOf(v, t0.Add(time.Hour)); s.Phase != step.phase && s.Stalled != step.phase {
			t.Errorf("step %d: %+v, want %s", i, s, step.phase)
		}
		if p := PlanBoot(v); p.Action != step.plan {
			t.Errorf("step %d: plan is %+v, want %s", i, p, step.plan)
		}
	}
	b := v.Facts.Current()
	if len(v.Facts.Boots) != 1 || b.Client != Seed || b.For != netip.MustParseAddr("2001:db8:9::b") || b.ConfigBy != ChannelISO || b.Token == "" || b.Order != 1 {
		t.Errorf("the boot is %+v", b)
	}
}

// TestSeedWaits: nothing stalls while nobody has plugged it in, and when it was read and
// nothing came of it, the reason is about seeds.
func TestSeedWaits(t *testing.T) {
	v := story(t, registered(), Event{Kind: Seeded})
	if s := DefaultPatience().PhaseOf(v, t0.Add(1000*time.Hour)); s.Phase != PhaseRegistered || s.Reason != "its seed has not been read yet" {
		t.Errorf("it waits as %+v", s)
	}
	for range 5 {
		v = story(t, v, Event{Kind: ConfigServed, Boot: 1, Hash: "h1", ConfigBy: ChannelNoCloud})
	}
	if s := DefaultPatience().PhaseOf(v, t0.Add(time.Hour)); s.Phase != PhaseStalled || !strings.Contains(s.Reason, "its seed was read") {
		t.Errorf("afterwards it is %+v", s)
	}
}

func TestCheckSeed(t *testing.T) {
	for _, c := range []struct {
		name   string
		change func(v *View)
		reason string // empty: it can have one
	}{
		{"its install is outstanding", func(*View) {}, ""},
		{"without a boot image of ours", func(v *View) { v.Image = nil }, ""},
		{"a stranger", func(v *View) { v.Machine = nil }, "this MAC is not registered"},
		{"of no cluster", func(v *View) { v.Machine.Cluster, v.Cluster = "", nil }, "cp-1 belongs to no cluster"},
		{"of a cluster that is gone", func(v *View) { v.Cluster = nil }, "cluster prod of cp-1 does not exist"},
		{"installed", func(v *View) { v.Facts.Install.Done = 1 }, "cp-1 is not to install: installed (order 1"},
		{"to be wiped", func(v *View) { v.Facts.Reimage.Ordered = 1 }, "cp-1 is not to install: reimage order 1"},
		{"wiped", func(v *View) { v.Facts.Install = Order{Ordered: 2, Done: 1} }, "cp-1 is to be installed anew (order 2)"},
	} {
		v := registered()
		c.change(&v)
		err := CheckSeed(v)
		if c.reason == "" {
			if err != nil {
				t.Errorf("%s: %v", c.name, err)
			}
			continue
		}
		var field *FieldError
		if !errors.As(err, &field) || !errors.Is(err, ErrRefused) || !strings.HasPrefix(field.Problem, c.reason) || field.Fix == "" {
			t.Errorf("%s: %v, want %q", c.name, err, c.reason)
		}
		if after, err := Apply(v, Event{Kind: Seeded, Time: t0, MAC: mac1}); v.Machine != nil && (!errors.Is(err, ErrRefused) || len(after.Facts.Boots) != 0) {
			t.Errorf("%s: it began a boot all the same: %v", c.name, err)
		}
	}
}

// TestSeedIsNoProof: Talos reads a seed whatever is on its disk, so that one which was
// read uses up no order to reimage, and no install order but the first.
func TestSeedIsNoProof(t *testing.T) {
	for _, by := range []Channel{ChannelNoCloud, ChannelISO, ChannelURL, ChannelAPI} {
		v := story(t, registered(), netboot()...)
		v = story(t, v,
			Event{Kind: ReimageOrdered, Time: t0.Add(time.Hour)}, Event{Kind: ReimageCleared, Time: t0.Add(time.Hour)}, Event{Kind: WipeClaimed, Time: t0.Add(time.Hour)})
		if !v.Facts.Reimage.Claimed() || v.Facts.Install.Ordered != 2 {
			t.Fatalf("not wiped: %+v %+v", v.Facts.Reimage, v.Facts.Install)
		}
		// The seed of the first install is still there.
		v.Facts.Boots[0].Client, v.Facts.Boots[0].Order = Seed, 1
		v = story(t, v, Event{Kind: ConfigServed, Time: t0.Add(2 * time.Hour), Boot: v.Facts.Current().Number, Hash: "h2", ConfigBy: by})
		if done := !v.Facts.Reimage.Outstanding(); done != (by == ChannelURL) {
			t.Errorf("%s: the reimage is done: %t", by, done)
		}
		v = story(t, v, Event{Kind: APIAnswered, Stage: StageRunning, Ready: true, Time: t0.Add(3 * time.Hour)})
		if done := !v.Facts.Install.Outstanding() && !v.Facts.Reimage.Outstanding(); done != by.BlankDisk() {
			t.Errorf("%s: installed anew: %t", by, done)
		}
	}
}

// TestNetbootAfterSeed: what the firmware does is a boot of its own, and the seed's token
// is that of the one before.
func TestNetbootAfterSeed(t *testing.T) {
	for name, events := range map[string][]Event{
		"PXE": {solicit(1), {Kind: Solicited, Client: IPXE, XID: 2}, {Kind: ScriptServed, Plan: Install}}, "iPXE in ROM": {{Kind: Solicited, Client: IPXE, XID: 2}}, "a script": {{Kind: ScriptServed, Plan: Install}},
	} {
		v := story(t, registered(), Event{Kind: Seeded})
		token := v.Facts.Current().Token
		if v = story(t, v, events...); len(v.Facts.Boots) != 2 || v.Facts.Boots[0].Client == Seed || v.Facts.Boots[1].Client != Seed || v.Facts.Boots[1].Token != token || !v.Facts.Boots[1].Script.IsZero() {
			t.Errorf("%s: boots %+v", name, v.Facts.Boots)
		}
	}
}

// TestSeedAlarm: NoCloud's network-config gives a machine its address between two
// fetches; anything else is somebody else's.
func TestSeedAlarm(t *testing.T) {
	made, stable, leased := netip.MustParseAddr("2001:db8::5054:ff:fe00:1"), netip.MustParseAddr("2001:db8::11"), netip.MustParseAddr("2001:db8::8000")
	for _, c := range []struct {
		by     Channel
		second netip.Addr
		alarm  bool
	}{{ChannelNoCloud, stable, false}, {ChannelNoCloud, leased, true}, {ChannelISO, stable, true}, {ChannelURL, stable, true}} {
		v := registered()
		v.Machine.Address = stable
		v = story(t, v, Event{Kind: Seeded}, Event{Kind: ConfigServed, Hash: "h", ConfigBy: c.by, Peer: made}, Event{Kind: ConfigServed, Hash: "h", ConfigBy: c.by, Peer: c.second})
		if got := v.Facts.Alarm() != ""; got != c.alarm {
			t.Errorf("%s, then from %s: alarm %q", c.by, c.second, v.Facts.Alarm())
		}
	}
}

// TestDeclinedIsNoProof: a machine that was to be wiped waits in maintenance mode because its
// disk was away, and does not take its config. It runs what it ran before: nothing was wiped.
func TestDeclinedIsNoProof(t *testing.T) {
	v := story(t, registered(), netboot()...)
	v = story(t, v,
		Event{Kind: APIAnswered, Stage: StageRunning, Ready: true, Time: t0.Add(30 * time.Minute), Asked: t0.Add(30 * time.Minute)},
		Event{Kind: ReimageOrdered, Time: t0.Add(time.Hour)}, Event{Kind: ReimageCleared, Time: t0.Add(time.Hour)}, Event{Kind: WipeClaimed, Time: t0.Add(time.Hour)},
		Event{Kind: ConfigServed, Time: t0.Add(2 * time.Hour), Hash: "h2", ConfigBy: ChannelAPI, Fingerprint: "key"},
		Event{Kind: ConfigDeclined, Time: t0.Add(2 * time.Hour), Hash: "h2"})
	if b := v.Facts.Current(); b.ConfigBy != ChannelAPI || !b.Config.IsZero() || !v.Facts.Reimage.Outstanding() {
		t.Fatalf("%+v", b)
	}
	v = story(t, v, Event{Kind: APIAnswered, Stage: StageRunning, Ready: true, Time: t0.Add(3 * time.Hour), Asked: t0.Add(3 * time.Hour)})
	if r := v.Facts.Reimage; !r.Outstanding() || r.Claimed() {
		t.Errorf("it runs what it ran before, and its reimage is %+v", r)
	}
}

// TestSeedIsStillThere: a machine is wiped over its API, and comes up from the seed that
// nobody took away. It is not wiped again.
func TestSeedIsStillThere(t *testing.T) {
	v := story(t, registered(),
		Event{Kind: Seeded, Time: t0}, Event{Kind: ConfigServed, Time: t0, Hash: "h", ConfigBy: ChannelISO},
		Event{Kind: APIAnswered, Stage: StageRunning, Ready: true, Time: t0.Add(30 * time.Minute), Asked: t0.Add(30 * time.Minute)},
		Event{Kind: ReimageOrdered, Time: t0.Add(time.Hour)}, Event{Kind: ReimageCleared, Time: t0.Add(time.Hour)}, Event{Kind: WipeClaimed, Time: t0.Add(time.Hour)},
		Event{Kind: APIAnswered, Stage: StageRunning, Ready: true, Time: t0.Add(2 * time.Hour), Asked: t0.Add(2 * time.Hour)})
	if r := v.Facts.Reimage; !r.Outstanding() || !r.Claimed() || !strings.Contains(r.Reason, "take the seed away") {
		t.Errorf("%+v", r)
	}
}
