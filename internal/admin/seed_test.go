package admin

import (
	"strings"
	"testing"

	"github.com/provisiond/provisiond/api"
	"github.com/provisiond/provisiond/internal/audit"
	"github.com/provisiond/provisiond/internal/inventory"
)

// TestSeed: a seed begins a boot, durably, is for who is named, and in the audit trail as
// a secret that was told.
func TestSeed(t *testing.T) {
	r := seed(t, Config{})
	for i, c := range []struct{ body, named, reason string }{{`{}`, "", ""}, {`{"for":"2001:db8:9::b"}`, "2001:db8:9::b", "2001:db8:9::b alone may fetch it"}} {
		before := r.head()
		var told api.Seed
		r.must(200, "POST", api.Prefix+"/machines/cp-1/seed", c.body, &told)
		v, err := r.keeper.Machine(t.Context(), "cp-1")
		if err != nil {
			t.Fatal(err)
		}
		b := v.Facts.Current()
		if len(v.Facts.Boots) != i+1 || b.Client != inventory.Seed || b.Plan != inventory.Install || text(b.For) != c.named || b.MAC != "52:54:00:12:34:56" {
			t.Fatalf("the boots are %+v", b)
		}
		if told.Machine != "cp-1" || told.Boot != b.Number || told.For != c.named || told.MetalISO != "http://"+b.Token {
			t.Errorf("told %+v of %+v", told, b)
		}
		lines := r.lines(before)
		if len(lines) != 1 || lines[0].Action != "seed-machine" || lines[0].Target != "machine/cp-1" || lines[0].Outcome != audit.OK || lines[0].Reason != c.reason || strings.Contains(lines[0].Reason, b.Token) {
			t.Errorf("the trail is %+v", lines)
		}
		var boots api.List[api.Boot]
		rec := r.must(200, "GET", api.Prefix+"/machines/cp-1/boots", "", &boots)
		if boots.Items[0].Client != "seed" || boots.Items[0].For != c.named || strings.Contains(rec.Body.String(), b.Token) {
			t.Errorf("the boots are shown as %s", rec.Body)
		}
	}
}

// TestISO: what was told is known to have left.
func TestISO(t *testing.T) {
	r := seed(t, Config{})
	for i, c := range []struct{ body, format string }{{`{}`, "metal-iso"}, {`{"format":"metal-iso"}`, "metal-iso"}, {`{"format":"nocloud"}`, "nocloud"}} {
		before := r.head()
		rec := r.must(200, "POST", api.Prefix+"/machines/cp-1/iso", c.body, nil)
		h := rec.Header()
		if h.Get("Content-Type") != "application/vnd.efi.iso" || h.Get("Cache-Control") != "no-store" || !strings.HasSuffix(rec.Body.String(), " in "+c.format) {
			t.Errorf("answer is %v %s", h, rec.Body)
		}
		v, err := r.keeper.Machine(t.Context(), "cp-1")
		if err != nil {
			t.Fatal(err)
		}
		if b := v.Facts.Current(); len(v.Facts.Boots) != i+1 || b.Client != inventory.Seed || b.Config.IsZero() || b.ConfigBy != inventory.ChannelISO || v.Facts.ConfigHash != "c0ffee" {
			t.Errorf("the boot is %+v", b)
		}
		if lines := r.lines(before); len(lines) != 1 || lines[0].Action != "make-machine-iso" || lines[0].Outcome != audit.OK {
			t.Errorf("the trail is %+v", lines)
		}
	}
}

func TestSeedRefused(t *testing.T) {
	const mac = inventory.MAC("52:54:00:12:34:56")
	for _, c := range []struct {
		name, path, body string
		status           int
		want             string
	}{
		{"an unknown machine", "/machines/cp-9/seed", `{}`, 404, "cp-9"},
		{"an ISO of an unknown machine", "/machines/cp-9/iso", `{}`, 404, "cp-9"},
		{"for a name", "/machines/cp-1/seed", `{"for":"bmc"}`, 422, `"location":"body.for"`},
		{"for IPv4", "/machines/cp-1/seed", `{"for":"192.0.2.1"}`, 422, `"location":"body.for"`},
		{"for IPv4 in IPv6", "/machines/cp-1/seed", `{"for":"::ffff:192.0.2.1"}`, 422, `"location":"body.for"`},
		{"for a link-local address", "/machines/cp-1/seed", `{"for":"fe80::1"}`, 422, `"location":"body.for"`},
		{"for a zone", "/machines/cp-1/seed", `{"for":"2001:db8::1%eth0"}`, 422, `"location":"body.for"`},
		{"for anybody", "/machines/cp-1/seed", `{"for":"::"}`, 422, `"location":"body.for"`},
		{"for this host", "/machines/cp-1/seed", `{"for":"::1"}`, 422, `"location":"body.for"`},
		{"in no format", "/machines/cp-1/iso", `{"format":"floppy"}`, 422, `"location":"body.format"`},
	} {
		r := seed(t, Config{})
		if rec := r.do("POST", api.Prefix+c.path, c.body); rec.Code != c.status || !strings.Contains(rec.Body.String(), c.want) {
			t.Errorf("%s: %d %s", c.name, rec.Code, rec.Body)
		}
	}
	r := seed(t, Config{})
	r.record(t, inventory.Event{Kind: inventory.APIAnswered, MAC: mac, Machine: "cp-1", Stage: inventory.StageRunning, Ready: true})
	for _, path := range []string{"/machines/cp-1/seed", "/machines/cp-1/iso"} {
		if rec := r.do("POST", api.Prefix+path, `{}`); rec.Code != 409 || !strings.Contains(rec.Body.String(), "cp-1 is not to install: installed") {
			t.Errorf("installed, %s: %d %s", path, rec.Code, rec.Body)
		}
	}
	if v, err := r.keeper.Machine(t.Context(), "cp-1"); err != nil || len(v.Facts.Boots) != 0 {
		t.Errorf("it began a boot: %+v, %v", v.Facts.Boots, err)
	}
}
