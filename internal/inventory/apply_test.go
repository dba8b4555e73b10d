package inventory

import (
	"encoding/json"
	"errors"
	"math/rand/v2"
	"net/netip"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"
)

var t0 = time.Date(2026, 11, 22, 12, 0, 0, 0, time.UTC)

const mac1 = MAC("52:54:00:00:00:01")

// story replays events a second apart, each with a token of its own.
func story(t *testing.T, v View, events ...Event) View {
	t.Helper()
	for i, e := range events {
		if e.Time.IsZero() {
			e.Time = t0.Add(time.Duration(i) * time.Second)
		}
		e.MAC = mac1
		e.Token = "token-" + string(rune('a'+i))
		var err error
		if v, err = Apply(v, e); err != nil {
			t.Fatalf("event %d, %s: %v", i, e.Kind, err)
		}
	}
	return v
}

func registered() View {
	return View{
		Machine: &Machine{Name: "cp-1", MACs: []MAC{mac1}, Cluster: "prod", Role: ControlPlane, Created: t0},
		Cluster: &Cluster{Name: "prod", TalosVersion: "v1.13.6"},
		Facts:   Facts{Machine: "cp-1", Install: Order{Ordered: 1, OrderedAt: t0}},
		Image:   &Image{}, Wanted: "v1.13.6/default/amd64",
	}
}

func solicit(xid uint32) Event {
	return Event{Kind: Solicited, Client: FirmwarePXE, Arch: AMD64, XID: xid}
}

// netboot is one whole first boot.
func netboot() []Event {
	return []Event{
		solicit(1),
		{Kind: Offered, Client: FirmwarePXE, Plan: Install},
		{Kind: LoaderServed},
		{Kind: Solicited, Client: IPXE, XID: 2},
		{Kind: ScriptServed, Plan: Install},
		{Kind: KernelServed},
		{Kind: InitramfsServed},
		{Kind: ConfigServed, Hash: "h1"},
		{Kind: Reported, Stage: StageInstalling},
		{Kind: APIAnswered, Stage: StageBooting},
		{Kind: APIAnswered, Stage: StageRunning, Ready: true},
	}
}

func TestBootStepByStep(t *testing.T) {
	v := registered()
	want := []struct {
		phase  Phase
		action Action
	}{
		{PhaseOffered, Install}, {PhaseOffered, Install}, {PhaseLoading, Install}, {PhaseLoading, Install}, {PhaseLoading, Install},
		{PhaseLoading, Install}, {PhaseConfiguring, Install}, {PhaseInstalling, Install}, {PhaseInstalling, Install},
		{PhaseBooting, Disk}, {PhaseReady, Disk},
	}
	if s := DefaultPatience().PhaseOf(v, t0); s.Phase != PhaseRegistered {
		t.Fatalf("before: %+v", s)
	}
	events := netboot()
	for i := range events {
		v = story(t, registered(), events[:i+1]...)
		s := DefaultPatience().PhaseOf(v, t0.Add(time.Duration(i)*time.Second))
		if p := PlanBoot(v); s.Phase != want[i].phase || p.Action != want[i].action {
			t.Errorf("after %s: %s and %s (%s), want %s and %s", events[i].Kind, s.Phase, p.Action, p.Reason, want[i].phase, want[i].action)
		}
	}
	if n := len(v.Facts.Boots); n != 1 {
		t.Errorf("one boot was counted as %d", n)
	}
	if v.Facts.Boots[0].Token != "token-a" {
		t.Errorf("the token changed in mid-boot: %q", v.Facts.Boots[0].Token)
	}
}

func TestApply(t *testing.T) {
	first := netboot()
	for _, tt := range []struct {
		name   string
		events []Event
		boots  int
		action Action
	}{
		{"a repeated Solicit begins no boot", []Event{solicit(1), solicit(1), solicit(1)}, 1, Install},
		{"another transaction before any loader is the next boot option", []Event{solicit(1), solicit(2)}, 1, Install},
		{"power cut after the loader", []Event{solicit(1), {Kind: LoaderServed}, solicit(2)}, 2, Install},
		{"power cut after the script", []Event{solicit(1), {Kind: ScriptServed, Plan: Install}, solicit(2)}, 2, Install},
		{"and even after the next boot began", append(slices.Clone(first[:8]), solicit(9), Event{Kind: LoaderServed}, solicit(1)), 2, Install},
		{"a late copy of an old Solicit is known", append(slices.Clone(first[:7]), solicit(1)), 1, Install},
		{"power cut after the config: the order is still open", append(slices.Clone(first[:8]), solicit(9)), 2, Install},
		{"a script served twice uses nothing up", append(slices.Clone(first[:5]), Event{Kind: ScriptServed, Plan: Install}), 1, Install},
		{"netbooted again after the install", append(slices.Clone(first), solicit(9), Event{Kind: Offered, Plan: Disk}), 2, Disk},
		{"sent to its disk, it tries its next boot option", append(slices.Clone(first), solicit(9), solicit(10)), 2, Disk},
		{"and powered on once more later", append(slices.Clone(first), solicit(9), Event{Kind: APIAnswered, Stage: StageRunning, Ready: true}, solicit(10)), 3, Disk},
		{"without DHCPv6 the script begins the boot", []Event{{Kind: ScriptServed, Plan: Install}}, 1, Install},
		{"the next script after a config is the next boot", append(slices.Clone(first[:8]), Event{Kind: ScriptServed, Plan: Install}), 2, Install},
		{"an event stream alone proves nothing", append(slices.Clone(first[:8]), Event{Kind: Reported, Stage: StageRunning, Ready: true}), 1, Install},
		{"an installing API proves nothing", append(slices.Clone(first[:8]), Event{Kind: APIAnswered, Stage: StageInstalling}), 1, Install},
		{"the old system's late answer does not count for the new boot", append(slices.Clone(first[:8]), solicit(9), Event{Kind: APIAnswered, Stage: StageRunning, Ready: true}), 2, Install},
		{"a running machine of a lost database is recognised", []Event{{Kind: APIAnswered, Stage: StageRunning, Ready: true}}, 0, Disk},
		{"its config on disk won over ours", append(slices.Clone(first[:7]), Event{Kind: APIAnswered, Stage: StageRunning}), 1, Disk},
	} {
		t.Run(tt.name, func(t *testing.T) {
			v := story(t, registered(), tt.events...)
			if n := len(v.Facts.Boots); n != tt.boots {
				t.Errorf("%d boots, want %d", n, tt.boots)
			}
			if p := PlanBoot(v); p.Action != tt.action {
				t.Errorf("plan is %s (%s), want %s", p.Action, p.Reason, tt.action)
			}
		})
	}
}

// TestDiskIsKnownFromTheSolicit: firmware that is sent to its disk leaves at
// the Advertise, so that nothing more is heard of it before its API.
// TestTransfersTook: how long the first whole read of a file took is kept with its time.
func TestTransfersTook(t *testing.T) {
	v := story(t, registered(), solicit(1), Event{Kind: LoaderServed, Took: 1}, Event{Kind: ScriptServed, Plan: Install},
		Event{Kind: KernelServed, Took: 2}, Event{Kind: KernelServed, Took: 20}, Event{Kind: InitramfsServed, Took: 3}, Event{Kind: LoaderServed, Took: 10})
	if b := v.Facts.Current(); b.LoaderTook != 1 || b.KernelTook != 2 || b.InitramfsTook != 3 || b.Kernel != t0.Add(3*time.Second) {
		t.Errorf("kept is %+v", b)
	}
}

func TestDiskIsKnownFromTheSolicit(t *testing.T) {
	v := story(t, registered(), append(netboot(), solicit(9))...)
	if s := DefaultPatience().PhaseOf(v, t0.Add(time.Minute)); s.Phase != PhaseBooting {
		t.Errorf("after the Solicit: %+v", s)
	}
	v = story(t, v, Event{Kind: APIAnswered, Stage: StageRunning, Ready: true, Time: t0.Add(time.Minute)})
	if s := DefaultPatience().PhaseOf(v, t0.Add(time.Minute)); s.Phase != PhaseReady {
		t.Errorf("after its API: %+v", s)
	}
}

func TestReimageOrderNeedsItsOwnBoot(t *testing.T) {
	v := story(t, registered(), netboot()...)
	v.Facts.Install.Ordered++
	v = story(t, v, Event{Kind: APIAnswered, Stage: StageRunning, Ready: true, Time: t0.Add(time.Hour)})
	if p := PlanBoot(v); p.Action != Install {
		t.Fatalf("the old system's answer used up the new order: %s", p.Reason)
	}
	events := netboot()
	for i := range events {
		events[i].Time = t0.Add(2*time.Hour + time.Duration(i)*time.Second)
		if events[i].XID != 0 {
			events[i].XID += 100
		}
	}
	v = story(t, v, events...)
	if p := PlanBoot(v); p.Action != Disk || v.Facts.Install.Done != 2 {
		t.Fatalf("after the second install: %s (%s), done %d", p.Action, p.Reason, v.Facts.Install.Done)
	}
}

func TestConfigErrorFailsUntilAnotherConfig(t *testing.T) {
	v := story(t, registered(), append(netboot()[:8], Event{Kind: Reported, Error: "unknown keys"})...)
	if s := DefaultPatience().PhaseOf(v, t0.Add(time.Minute)); s.Phase != PhaseFailed || s.Reason != "unknown keys" {
		t.Fatalf("after the error: %+v", s)
	}
	v = story(t, v, Event{Kind: ConfigServed, Hash: "h1", Time: t0.Add(time.Minute)})
	if s := DefaultPatience().PhaseOf(v, t0.Add(time.Minute)); s.Phase != PhaseFailed {
		t.Fatalf("fetching the same config again hid the error: %+v", s)
	}
	v = story(t, v, Event{Kind: ConfigServed, Hash: "h2", Time: t0.Add(2 * time.Minute)})
	if s := DefaultPatience().PhaseOf(v, t0.Add(2*time.Minute)); s.Phase != PhaseInstalling {
		t.Fatalf("after another config: %+v", s)
	}
}

func TestConfigThatCannotBeMadeFails(t *testing.T) {
	v := story(t, registered(), solicit(1), Event{Kind: ScriptServed, Plan: Hold, Error: "patches[0]: not YAML"})
	if s := DefaultPatience().PhaseOf(v, t0); s.Phase != PhaseFailed || s.Reason != "patches[0]: not YAML" {
		t.Errorf("%+v", s)
	}
	v = story(t, v, Event{Kind: ScriptServed, Plan: Install, Time: t0.Add(time.Minute)})
	if s := DefaultPatience().PhaseOf(v, t0.Add(time.Minute)); s.Phase != PhaseLoading {
		t.Errorf("after it could be made: %+v", s)
	}
}

func TestStalledSaysWhy(t *testing.T) {
	events := netboot()
	for _, tt := range []struct {
		n  int
		in Phase
	}{{1, PhaseOffered}, {3, PhaseLoading}, {7, PhaseConfiguring}, {8, PhaseInstalling}, {10, PhaseBooting}} {
		v := story(t, registered(), events[:tt.n]...)
		s := DefaultPatience().PhaseOf(v, t0.Add(24*time.Hour))
		if s.Phase != PhaseStalled || s.Stalled != tt.in || s.Reason == "" {
			t.Errorf("a day after %s: %+v, want stalled in %s with a reason", events[tt.n-1].Kind, s, tt.in)
		}
	}
	v := story(t, registered(), events[:8]...)
	v.Facts.change(0).ConfigFetches = 5
	if s := DefaultPatience().PhaseOf(v, t0.Add(24*time.Hour)); !strings.Contains(s.Reason, "fetched its config 5 times") {
		t.Errorf("a config that is fetched again and again: %+v", s)
	}
	if s := (Patience{PhaseInstalling: 48 * time.Hour}).PhaseOf(v, t0.Add(24*time.Hour)); s.Phase != PhaseInstalling {
		t.Errorf("with more patience: %+v", s)
	}
	ready := story(t, registered(), events...)
	if s := DefaultPatience().PhaseOf(ready, t0.Add(24*time.Hour)); s.Phase != PhaseStalled || s.Stalled != PhaseReady {
		t.Errorf("a machine whose API was silent for a day: %+v", s)
	}
	ready = story(t, ready, Event{Kind: APIAnswered, Stage: StageRunning, Ready: true, Time: t0.Add(24 * time.Hour)})
	if s := DefaultPatience().PhaseOf(ready, t0.Add(24*time.Hour)); s.Phase != PhaseReady {
		t.Errorf("a ready machine stalled: %+v", s)
	}
}

// tellable compares all but the times a machine was last heard of, what named it, and
// its transactions.
func tellable(before, after Facts) bool {
	plain := func(f Facts) Facts {
		f = f.Clone()
		f.LastSeen, f.APIAt, f.Identified = time.Time{}, time.Time{}, Identification{}
		for i := range f.Boots {
			f.change(i).XIDs = nil
		}
		return f
	}
	return !reflect.DeepEqual(plain(before), plain(after))
}

// TestApplyIsTotal shuffles, repeats and drops events: nothing may panic, the
// lists stay bounded, what is worth a line in the log is told, an order is used up only after a config was fetched, and
// the input is never modified.
func TestApplyIsTotal(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 2))
	for range 500 {
		v := registered()
		v.Facts.Install.Ordered = 2 // so that only a boot of ours can use it up
		fetched := false
		for i := range 40 {
			pool := append(netboot(), byHand("one")...)
			pool = append(pool, byHand("other")...)
			e := pool[rng.IntN(len(pool))]
			e.MAC, e.Time, e.XID = mac1, t0.Add(time.Duration(i)*time.Minute), rng.Uint32N(20)
			before, err := json.Marshal(v)
			if err != nil {
				t.Fatal(err)
			}
			next, tells, err := apply(v, e)
			if err != nil {
				t.Fatalf("%s was refused: %v", e.Kind, err)
			}
			if changed := tellable(v.Facts, next.Facts); changed != tells {
				t.Fatalf("%s changed something worth a line: %v, and says %v\n%+v\n%+v", e.Kind, changed, tells, v.Facts, next.Facts)
			}
			if after, _ := json.Marshal(v); string(after) != string(before) {
				t.Fatalf("%s modified its input", e.Kind)
			}
			v = next
			fetched = fetched || e.Kind == ConfigServed && len(v.Facts.Boots) > 0
			if !v.Facts.Install.Outstanding() && !fetched {
				t.Fatalf("the order was used up by %s before any config was fetched", e.Kind)
			}
			if len(v.Facts.Boots) > maxBoots || len(v.Facts.DUIDs) > maxDUIDs {
				t.Fatal("a list grew beyond its bound")
			}
			again, err := Apply(v, e)
			if err != nil {
				t.Fatal(err)
			}
			if len(again.Facts.Boots) > len(v.Facts.Boots) && e.Kind == Solicited {
				t.Fatal("a repeated Solicit began another boot")
			}
			DefaultPatience().PhaseOf(v, e.Time)
		}
	}
}

func TestBootstrapClaimIsForOne(t *testing.T) {
	v := View{Bootstrap: &Bootstrap{Cluster: "prod", Epoch: 1}}
	do := func(kind Kind, machine string) error {
		next, err := Apply(v, Event{Kind: kind, Cluster: "prod", Machine: machine, Epoch: 1, Time: t0})
		v = next
		return err
	}
	refused := func(what string, err error) {
		t.Helper()
		if !errors.Is(err, ErrRefused) {
			t.Errorf("%s: %v, want ErrRefused", what, err)
		}
	}
	accepted := func(what string, err error) {
		t.Helper()
		if err != nil {
			t.Errorf("%s: %v", what, err)
		}
	}
	refused("a call without a claim", do(BootstrapSent, "cp-1"))
	accepted("a claim", do(BootstrapClaimed, "cp-1"))
	accepted("the same claim again", do(BootstrapClaimed, "cp-1"))
	refused("a second claim", do(BootstrapClaimed, "cp-2"))
	refused("a call of another", do(BootstrapSent, "cp-2"))
	refused("an answer of another", do(BootstrapAccepted, "cp-2"))
	accepted("the call", do(BootstrapSent, "cp-1"))
	if !v.Bootstrap.Ambiguous {
		t.Error("a call on its way is not ambiguous")
	}
	accepted("a call again after an ambiguous one", do(BootstrapSent, "cp-1"))
	accepted("the answer", do(BootstrapAccepted, "cp-1"))
	refused("a call after an accepted one", do(BootstrapSent, "cp-1"))
	accepted("the end", do(BootstrapDone, "cp-1"))
	refused("a claim after the end", do(BootstrapClaimed, "cp-1"))
	if _, err := Apply(v, Event{Kind: BootstrapClaimed, Cluster: "prod", Machine: "cp-1", Epoch: 2}); !errors.Is(err, ErrRefused) {
		t.Errorf("an event of another epoch: %v", err)
	}
	if v.Bootstrap.Attempts != 2 {
		t.Errorf("%d attempts were counted, want 2", v.Bootstrap.Attempts)
	}
}

func TestPlanHolds(t *testing.T) {
	for name, change := range map[string]func(*View){
		"a stranger":        func(v *View) { v.Machine = nil },
		"no cluster":        func(v *View) { v.Machine.Cluster = "" },
		"a missing cluster": func(v *View) { v.Cluster = nil },
		"no image":          func(v *View) { v.Image = nil },
	} {
		v := registered()
		change(&v)
		if p := PlanBoot(v); p.Action != Hold || p.Reason == "" {
			t.Errorf("%s: %+v, want hold with a reason", name, p)
		}
	}
}

// TestAlarm: a second taker of a config, and a token in the hands of somebody else.
func TestAlarm(t *testing.T) {
	a, b := netip.MustParseAddr("2001:db8::11"), netip.MustParseAddr("fe80::5054:ff:fe00:1")
	boot := []Event{{Kind: Solicited, Client: FirmwarePXE, XID: 1}, {Kind: ScriptServed, Plan: Install}}
	for name, tt := range map[string]struct {
		events []Event
		want   string
	}{
		"once":               {[]Event{{Kind: ConfigServed, Peer: a}}, ""},
		"tried again":        {[]Event{{Kind: ConfigServed, Peer: a}, {Kind: ConfigServed, Peer: a}}, ""},
		"refused":            {[]Event{{Kind: ConfigRefused, Peer: b}}, ""},
		"second taker":       {[]Event{{Kind: ConfigServed, Peer: a}, {Kind: ConfigServed, Peer: b}}, "given to 2001:db8::11, and to fe80::5054:ff:fe00:1 after it"},
		"stolen":             {[]Event{{Kind: TokenStolen, Boot: 1, Peer: b}}, "fe80::5054:ff:fe00:1, which is no address of the machine"},
		"stolen from nobody": {[]Event{{Kind: TokenStolen, Boot: 9, Peer: b}}, ""},
		"the first counts":   {[]Event{{Kind: TokenStolen, Boot: 1, Peer: b}, {Kind: ConfigServed, Peer: a}, {Kind: ConfigServed, Peer: b}}, "showed the token of boot 1"},
		"seen":               {[]Event{{Kind: TokenStolen, Boot: 1, Peer: b}, {Kind: AlarmSeen}}, ""},
		"seen, and another":  {[]Event{{Kind: ConfigServed, Peer: a}, {Kind: ConfigServed, Peer: b}, {Kind: AlarmSeen}, {Kind: TokenStolen, Boot: 1, Peer: b}}, "showed the token of boot 1"},
		"in a boot before":   {[]Event{{Kind: TokenStolen, Boot: 1, Peer: b}, {Kind: ConfigServed, Peer: a}, {Kind: Solicited, Client: FirmwarePXE, XID: 2, Time: t0.Add(time.Hour)}}, "showed the token of boot 1"},
	} {
		t.Run(name, func(t *testing.T) {
			v := story(t, registered(), slices.Concat(boot, tt.events)...)
			if got := v.Facts.Alarm(); (got == "") != (tt.want == "") || !strings.Contains(got, tt.want) {
				t.Errorf("alarm %q, want %q", got, tt.want)
			}
		})
	}
}

// TestBlankDisk: a machine that is sent to its disk and comes back again and again is
// stalled, however often it begins anew.
func TestBlankDisk(t *testing.T) {
	v := registered()
	v.Facts.Install.Done, v.Facts.Install.DoneAt = 1, t0
	for i := range uint32(5) {
		at := t0.Add(time.Duration(i) * 11 * time.Minute)
		v = story(t, v, Event{Kind: Solicited, Client: FirmwarePXE, XID: i, Time: at}, Event{Kind: Offered, Plan: Disk, Time: at})
		s := DefaultPatience().PhaseOf(v, at.Add(time.Second))
		if stalled := i >= 2; (s.Phase == PhaseStalled) != stalled || stalled && !strings.Contains(s.Reason, "order a reimage") {
			t.Errorf("boot %d: %+v", i+1, s)
		}
	}
	v = story(t, v, Event{Kind: APIAnswered, Stage: StageBooting, Time: t0.Add(time.Hour)})
	if s := DefaultPatience().PhaseOf(v, t0.Add(61*time.Minute)); s.Phase != PhaseBooting {
		t.Errorf("it came up: %+v", s)
	}
}
