package inventory

import (
	"strings"
	"testing"
	"time"
)

func TestPlanWay(t *testing.T) {
	at := time.Date(2026, 11, 26, 12, 0, 0, 0, time.UTC)
	blob := Blob{SHA256: strings.Repeat("a", 64), Size: 1}
	full, none := &Image{UKI: blob, Signed: blob}, &Image{}
	boot := func(w Way, good bool) *Boot {
		b := &Boot{Way: w, Plan: Install, Offered: at, Client: FirmwareHTTP}
		if good {
			b.Config = at
		}
		return b
	}
	u, i, good := boot(ByUKI, false), boot(ByIPXE, false), boot(ByUKI, true)
	now := &Boot{Client: FirmwareHTTP}
	wipe := Reimage{Order: Order{Ordered: 1}}
	for name, tc := range map[string]struct {
		wants  Way
		secure bool
		off    bool
		deaf   bool
		facts  Facts
		client Client
		image  *Image
		signs  bool
		want   Way
		says   string
	}{
		"PXE":                          {client: FirmwarePXE, image: full, want: ByIPXE, says: "over PXE"},
		"PXE, against its word":        {client: FirmwarePXE, image: full, wants: ByUKI, want: ByIPXE, says: "should boot a UKI"},
		"HTTP":                         {client: FirmwareHTTP, image: full, want: ByUKI, says: "over HTTP"},
		"a stub will do":               {client: FirmwareHTTP, image: &Image{Stub: blob}, want: ByUKI},
		"HTTP without a UKI":           {client: FirmwareHTTP, image: none, want: ByIPXE, says: "neither a UKI nor a stub"},
		"its word without a UKI":       {client: FirmwareHTTP, image: none, wants: ByUKI, want: ByIPXE, says: "should boot a UKI"},
		"no image":                     {client: FirmwareHTTP, want: ByIPXE},
		"as registered":                {client: FirmwareHTTP, image: full, wants: ByIPXE, want: ByIPXE, says: "registered"},
		"iPXE itself":                  {client: IPXE, image: full, wants: ByUKI, want: ByIPXE},
		"by its newest boot":           {facts: Facts{Boots: []*Boot{{Client: FirmwarePXE}}}, image: full, want: ByIPXE},
		"it is to be wiped":            {client: FirmwareHTTP, image: full, facts: Facts{Reimage: wipe}, want: ByIPXE, says: "wait for its turn"},
		"failed once":                  {client: FirmwareHTTP, image: full, facts: Facts{Boots: []*Boot{now, u}}, want: ByUKI},
		"failed twice":                 {client: FirmwareHTTP, image: full, facts: Facts{Boots: []*Boot{now, u, u}}, want: ByIPXE, says: "last 2 boots by uki got no config"},
		"the one that goes on":         {client: FirmwareHTTP, image: full, facts: Facts{Boots: []*Boot{u, u}}, want: ByUKI},
		"the other failed once":        {client: FirmwareHTTP, image: full, facts: Facts{Boots: []*Boot{now, i, u, u}}, want: ByIPXE},
		"the other failed too":         {client: FirmwareHTTP, image: full, facts: Facts{Boots: []*Boot{now, i, i, u, u}}, want: ByUKI},
		"back, and failed":             {client: FirmwareHTTP, image: full, facts: Facts{Boots: []*Boot{now, u, i, i, u, u}}, want: ByIPXE},
		"the other got it":             {client: FirmwareHTTP, image: full, facts: Facts{Boots: []*Boot{now, boot(ByIPXE, true), u, u}}, want: ByIPXE},
		"got it since":                 {client: FirmwareHTTP, image: full, facts: Facts{Boots: []*Boot{now, u, good, u, u}}, want: ByUKI},
		"waited, which is no try":      {client: FirmwareHTTP, image: full, facts: Facts{Boots: []*Boot{now, {Way: ByUKI, Plan: Install, Waits: true}, u}}, want: ByUKI},
		"held, which is no try":        {client: FirmwareHTTP, image: full, facts: Facts{Boots: []*Boot{now, {Way: ByUKI, Plan: Hold}, u}}, want: ByUKI},
		"registered, failed twice":     {client: FirmwareHTTP, image: full, wants: ByIPXE, facts: Facts{Boots: []*Boot{now, i, i}}, want: ByUKI},
		"signed by us":                 {client: FirmwareHTTP, image: full, secure: true, signs: true, want: ByUKI, says: "signed with our key"},
		"not enrolled, it seems":       {client: FirmwareHTTP, image: full, secure: true, signs: true, facts: Facts{Boots: []*Boot{now, u, u}}, want: BySigned, says: "trust our certificate"},
		"and the vendor's fails":       {client: FirmwareHTTP, image: full, secure: true, signs: true, facts: Facts{Boots: []*Boot{now, boot(BySigned, false), boot(BySigned, false), u, u}}, want: ByUKI},
		"nobody would ask it":          {client: FirmwareHTTP, image: full, secure: true, deaf: true, want: "", says: "maintenance.enabled"},
		"nothing else starts":          {client: FirmwareHTTP, image: &Image{UKI: blob}, secure: true, signs: true, facts: Facts{Boots: []*Boot{now, u, u}}, want: ByUKI},
		"signed by us, and wiped":      {client: FirmwareHTTP, image: full, secure: true, signs: true, facts: Facts{Reimage: wipe}, want: "", says: "wiped over its own API"},
		"a signed iPXE":                {client: FirmwareHTTP, image: full, secure: true, wants: ByIPXE, facts: Facts{Reimage: wipe}, want: ByIPXE, says: "has to be signed"},
		"by what Talos said":           {client: FirmwareHTTP, image: full, facts: Facts{SecureBoot: On}, want: BySigned, says: "no key here"},
		"its operator knows better":    {client: FirmwareHTTP, image: full, facts: Facts{SecureBoot: On}, off: true, want: ByUKI},
		"never seen":                   {image: full, want: ByUKI, says: "has not asked yet"},
		"it was HTTP before":           {image: full, facts: Facts{Boots: []*Boot{{Client: Seed}, {Client: FirmwareHTTP}}}, want: ByUKI, says: "its firmware boots over HTTP"},
		"Talos said that it is off":    {client: FirmwareHTTP, image: full, facts: Facts{SecureBoot: Off}, want: ByUKI},
		"the vendor's":                 {client: FirmwareHTTP, image: full, secure: true, want: BySigned, says: "over its own API"},
		"the vendor's has no wipe":     {client: FirmwareHTTP, image: full, secure: true, facts: Facts{Reimage: wipe}, want: "", says: "wiped over its own API"},
		"nothing signed, no key":       {client: FirmwareHTTP, image: &Image{UKI: blob}, secure: true, want: "", says: "has no signed one"},
		"a key, and nothing to sign":   {client: FirmwareHTTP, image: none, secure: true, signs: true, want: "", says: "neither a UKI nor a stub"},
		"a key; the vendor's is there": {client: FirmwareHTTP, image: &Image{Signed: blob}, secure: true, signs: true, want: BySigned, says: "neither a UKI nor a stub"},
	} {
		var secure Switch
		if tc.secure {
			secure = On
		}
		if tc.off {
			secure = Off
		}
		v := View{Machine: &Machine{Name: "m", Boot: tc.wants, SecureBoot: secure}, Facts: tc.facts, Image: tc.image, Wanted: "v1/default/amd64", Signs: tc.signs, Asks: !tc.deaf}
		if got, why := PlanWay(v, tc.client); got != tc.want || !strings.Contains(why, tc.says) {
			t.Errorf("%s: %q because %q, want %q because of %q", name, got, why, tc.want, tc.says)
		}
	}
	if got, _ := PlanWay(View{}, FirmwareHTTP); got != ByIPXE {
		t.Errorf("a stranger is started by %q: only a script can say that it waits", got)
	}
}

// TestWayOfABoot has a boot go by its UKI, and the next ones fail.
func TestWayOfABoot(t *testing.T) {
	at := time.Date(2026, 11, 26, 12, 0, 0, 0, time.UTC)
	v := View{
		Machine: &Machine{Name: "m", MACs: []MAC{"52:54:00:00:00:01"}, Cluster: "c"}, Cluster: &Cluster{Name: "c"},
		Image: &Image{UKI: Blob{SHA256: strings.Repeat("a", 64)}}, Facts: Facts{Install: Order{Ordered: 1}},
	}
	step := func(e Event) {
		t.Helper()
		at = at.Add(time.Minute)
		e.Time, e.MAC = at, v.Machine.MACs[0]
		var err error
		if v, err = Apply(v, e); err != nil {
			t.Fatal(err)
		}
	}
	start := func(xid uint32) Way {
		step(Event{Kind: Solicited, Client: FirmwareHTTP, XID: xid, Token: "t"})
		way, why := PlanWay(v, FirmwareHTTP)
		step(Event{Kind: Offered, Plan: Install, Way: way, WayReason: why})
		step(Event{Kind: ScriptServed, Plan: Install, Way: way, WayReason: why})
		return way
	}
	if way := start(1); way != ByUKI {
		t.Fatalf("started by %q", way)
	}
	step(Event{Kind: UKIServed, Took: time.Second})
	b := v.Facts.Current()
	if b.Way != ByUKI || b.WayReason == "" || b.Kernel.IsZero() || b.Initramfs.IsZero() || b.InitramfsTook != time.Second {
		t.Errorf("after its UKI was read: %+v", b)
	}
	if s := DefaultPatience().PhaseOf(v, at); s.Phase != PhaseConfiguring {
		t.Errorf("it is %v", s)
	}
	step(Event{Kind: ConfigServed, ConfigBy: ChannelURL})
	if way := start(2); way != ByUKI {
		t.Errorf("by %q after one that got its config", way)
	}
	if s := DefaultPatience().PhaseOf(v, at.Add(time.Hour)); s.Phase != PhaseStalled || !strings.Contains(s.Reason, "UKI") {
		t.Errorf("an hour later it is %v", s)
	}
	if way := start(3); way != ByUKI {
		t.Errorf("by %q after one failure", way)
	}
	if way := start(4); way != ByIPXE {
		t.Errorf("by %q after two", way)
	}
	step(Event{Kind: Solicited, Client: FirmwareHTTP, XID: 5, Token: "t"})
	step(Event{Kind: Offered, Plan: Install, Way: ByIPXE, WayReason: "why"})
	step(Event{Kind: Offered, Client: IPXE, Plan: Install, Way: ByIPXE, WayReason: "it is iPXE that asks"})
	step(Event{Kind: ScriptServed, Client: IPXE, Plan: Install, Way: ByIPXE})
	if b := v.Facts.Current(); b.Way != ByIPXE || b.WayReason != "why" {
		t.Errorf("iPXE's script made of its reason %q", b.WayReason)
	}
}
