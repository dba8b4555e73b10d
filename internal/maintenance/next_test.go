package maintenance

import (
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/provisiond/provisiond/internal/inventory"
)

const (
	mac1 = inventory.MAC("52:54:00:00:00:01")
	mac2 = inventory.MAC("52:54:00:00:00:02")
	evil = inventory.MAC("52:54:00:66:66:66")
	key1 = "jTzh1hUzyPBrtr1RBY2F+Aw2HC7KEbLv7JyXNV3Pzhs="
)

var (
	stable = netip.MustParseAddr("2001:db8::11")
	slaac  = netip.MustParseAddr("2001:db8::5054:ff:fe00:1")
	noon   = time.Date(2026, 11, 25, 12, 0, 0, 0, time.UTC)
)

// machine is cp-1, to be installed.
func machine(change ...func(*inventory.View)) inventory.View {
	v := inventory.View{
		Machine: &inventory.Machine{Name: "cp-1", MACs: []inventory.MAC{mac1}, Cluster: "rack1", Role: inventory.ControlPlane, Address: stable},
		Cluster: &inventory.Cluster{Name: "rack1", Epoch: 1},
		Image:   &inventory.Image{Version: "v1.13.6", Arch: inventory.AMD64}, Wanted: "v1.13.6/default/amd64",
	}
	v.Facts.Install.Ordered = 1
	for _, c := range change {
		c(&v)
	}
	return v
}

func needsApproval(v *inventory.View) { v.Machine.Approval = inventory.ApprovalRequired }

func confirmedAs(fingerprint string, epoch uint64) func(*inventory.View) {
	return func(v *inventory.View) {
		v.Facts.Maintenance = &inventory.Maintenance{
			Fingerprint: fingerprint, Confirmed: noon, By: "ada", For: inventory.Membership{Cluster: "rack1", Role: inventory.ControlPlane, Epoch: epoch},
		}
	}
}

// givenAt is a boot in which it was given its config.
func givenAt(at time.Time, fingerprint string) func(*inventory.View) {
	return func(v *inventory.View) {
		v.Facts.Boots = []*inventory.Boot{{Number: 1, ConfigBy: inventory.ChannelAPI, Fingerprint: fingerprint, Config: at}}
		v.Facts.ConfigHash, v.Facts.ConfigAt = "c0ffee", at
	}
}

func refusedAt(at time.Time) func(*inventory.View) {
	return func(v *inventory.View) {
		v.Facts.ConfigError, v.Facts.ConfigErrorHash, v.Facts.ConfigErrorAt = "no such disk", "c0ffee", at
	}
}

func TestNext(t *testing.T) {
	other := machine(func(v *inventory.View) { v.Machine.Name, v.Machine.MACs = "w-1", []inventory.MAC{mac2} })
	for name, c := range map[string]struct {
		s       sight
		act     act
		machine string
		mac     inventory.MAC
		reason  string // a part of it
	}{
		"known and to be installed": {sight{owners: []inventory.View{machine()}}, give, "cp-1", mac1, ""},
		"no NIC":                    {sight{Answer: Answer{MACs: []inventory.MAC{}}}, nothing, "", "", "names no NIC"},

		"of nobody":                             {sight{}, stranger, "", mac1, ""},
		"of nobody, on our segment":             {sight{on: "rack0", link: mac2, Answer: Answer{MACs: []inventory.MAC{mac1, mac2}}}, stranger, "", mac2, ""},
		"of nobody, and behind another NIC":     {sight{on: "rack0", link: evil}, nothing, "", "", "none of its NICs"},
		"of nobody, at the address of somebody": {sight{at: "cp-1", Answer: Answer{MACs: []inventory.MAC{evil}}}, refuse, "cp-1", "", "has the NICs 52:54:00:66:66:66, and none of cp-1"},

		"of two machines":  {sight{owners: []inventory.View{machine(), other}}, refuse, "cp-1", mac1, "NICs of cp-1 and of w-1"},
		"somebody else is": {sight{owners: []inventory.View{machine()}, whyNot: "2001:db8::11 is at 52:54:00:66:66:66, which is no NIC of cp-1"}, refuse, "cp-1", mac1, "no NIC of cp-1"},

		"installed": {sight{owners: []inventory.View{machine(func(v *inventory.View) { v.Facts.Install.Done = 1 })}}, wait, "cp-1", mac1, "installed (order 1"},
		"held":      {sight{owners: []inventory.View{machine(func(v *inventory.View) { v.Machine.Cluster = "" })}}, wait, "cp-1", mac1, "belongs to no cluster"},
		"to be wiped": {sight{owners: []inventory.View{machine(func(v *inventory.View) {
			v.Facts.Reimage = inventory.Reimage{Order: inventory.Order{Ordered: 1}}
		})}}, wait, "cp-1", mac1, ""},
		"no image": {sight{owners: []inventory.View{machine(func(v *inventory.View) { v.Image = nil })}}, give, "cp-1", mac1, ""},

		"to be approved":                {sight{owners: []inventory.View{machine(needsApproval)}}, wait, "cp-1", mac1, "provisiond machine confirm cp-1"},
		"confirmed":                     {sight{owners: []inventory.View{machine(needsApproval, confirmedAs(key1, 1))}}, give, "cp-1", mac1, ""},
		"another fingerprint confirmed": {sight{owners: []inventory.View{machine(needsApproval, confirmedAs("other", 1))}}, wait, "cp-1", mac1, "a person has to confirm it"},
		"confirmed in another life":     {sight{owners: []inventory.View{machine(needsApproval, confirmedAs(key1, 2))}}, wait, "cp-1", mac1, "a person has to confirm it"},

		"no config":                   {sight{owners: []inventory.View{machine()}, hash: "", broken: "no disk"}, wait, "cp-1", mac1, "cannot be made: no disk"},
		"given a moment ago":          {sight{owners: []inventory.View{machine(givenAt(noon.Add(-time.Second), key1))}}, nothing, "cp-1", mac1, "was given"},
		"given, and waits still":      {sight{owners: []inventory.View{machine(givenAt(noon.Add(-giveAgain), key1))}}, give, "cp-1", mac1, ""},
		"given when it ran before":    {sight{owners: []inventory.View{machine(givenAt(noon.Add(-time.Second), "other"))}}, give, "cp-1", mac1, ""},
		"given another config":        {sight{owners: []inventory.View{machine(givenAt(noon.Add(-time.Second), key1))}, hash: "new"}, give, "cp-1", mac1, ""},
		"refused":                     {sight{owners: []inventory.View{machine(givenAt(noon.Add(-time.Minute), key1), refusedAt(noon.Add(-time.Minute)))}}, nothing, "cp-1", mac1, "refused"},
		"refused another config":      {sight{owners: []inventory.View{machine(givenAt(noon.Add(-time.Minute), key1), refusedAt(noon.Add(-time.Minute)))}, hash: "new"}, give, "cp-1", mac1, ""},
		"refused long ago":            {sight{owners: []inventory.View{machine(givenAt(noon.Add(-refusedAgain), key1), refusedAt(noon.Add(-refusedAgain)))}}, give, "cp-1", mac1, ""},
		"refused, before it was told": {sight{owners: []inventory.View{machine(givenAt(noon.Add(-time.Minute), key1), refusedAt(noon.Add(-2*time.Minute)))}}, give, "cp-1", mac1, ""},
	} {
		t.Run(name, func(t *testing.T) {
			s := c.s
			s.addr, s.Fingerprint = slaac, key1
			if s.MACs == nil {
				s.MACs = []inventory.MAC{mac1}
			}
			if s.hash == "" && s.broken == "" {
				s.hash = "c0ffee"
			}
			got := next(s, noon)
			if got.act != c.act || got.machine != c.machine || c.mac != "" && got.mac != c.mac || !strings.Contains(got.reason, c.reason) {
				t.Errorf("%+v", got)
			}
			if (got.act == wait || got.act == refuse || got.act == nothing) == (got.reason == "") {
				t.Errorf("the reason is %q", got.reason)
			}
		})
	}
}
