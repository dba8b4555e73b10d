package web

import (
	"net/url"
	"testing"

	"github.com/provisiond/provisiond/api"
	"github.com/provisiond/provisiond/internal/audit"
	"github.com/provisiond/provisiond/internal/inventory"
)

// patched gives a machine patches of its own.
func (s *site) patched(machine string, patches ...string) {
	s.t.Helper()
	v, err := s.keeper.Machine(s.t.Context(), machine)
	if err != nil {
		s.t.Fatal(err)
	}
	m := v.Machine.Clone()
	m.Patches = patches
	if _, err := s.keeper.PutMachine(s.t.Context(), m, m.Rev); err != nil {
		s.t.Fatal(err)
	}
}

// TestConfig: each line of a config says where it comes from, and how it differs from what the
// machine was given, or runs.
func TestConfig(t *testing.T) {
	s := newSite(t, nil)
	s.patched("w-1", "one: 1", "two: "+markup)
	b := s.in(s.token("reads", inventory.AccessRead))
	got := b.get("/machines/w-1/config")
	if got.code != 200 || !got.has("Config of w-1", "name: w-1", "*****", "<b>M1</b> patch 1 of the machine itself", `title="patch 2 of the machine itself">M2</b>`, "the base, made here", "&lt;script&gt;",
		`<span class="removed">-name: was-given</span>`, `<span class="added">&#43;name: w-1</span>`, "1970-01-01 00:16:40Z", "running=yes") || got.has(markup) || got.has("See what would happen") {
		t.Errorf("%d %s", got.code, got.text)
	}
	if got = b.get("/machines/w-1/config?running=yes"); !got.has("-name: runs-still", "How it differs from what the machine runs") {
		t.Errorf("%s", got.text)
	}
	if got = b.get("/machines/w-2/config?running=yes"); got.code != 200 || !got.has("w-2 does not answer", "name: w-2") {
		t.Errorf("%d %s", got.code, got.text)
	}
	if got = b.get("/machines/w-2/config"); !got.has("It was given none yet") || got.has(`class="added"`) {
		t.Errorf("%s", got.text)
	}
	if _, err := s.keeper.PutMachine(t.Context(), &inventory.Machine{Name: "w-4", MACs: []inventory.MAC{"52:54:00:00:00:04"}, Role: inventory.Worker}, 0); err != nil {
		t.Fatal(err)
	}
	if got = b.get("/machines/w-4/config"); got.code != 200 || !got.has("belongs to no cluster") {
		t.Errorf("%d %s", got.code, got.text)
	}
	limited := s.in(s.token("limited", inventory.AccessRead, "store"))
	if got = limited.get("/machines/w-1/config"); got.code != 404 {
		t.Errorf("another cluster's: %d %s", got.code, got.text)
	}
}

func TestOrigins(t *testing.T) {
	m := &api.Machine{MachineSpec: api.MachineSpec{Cluster: "web", Role: "controlplane"}}
	n := 1
	for kind, want := range map[string]origin{
		"base":    {"base", "B", "the base, made here of the inventory and of Talos' defaults"},
		"cluster": {"cluster", "C2", "patch 2 of cluster web"},
		"role":    {"role", "R2", "patch 2 of cluster web for each control plane"},
		"machine": {"machine", "M2", "patch 2 of the machine itself"},
	} {
		b := &api.ConfigBlock{Origin: kind, Patch: &n}
		if kind == "base" {
			b.Patch = nil
		}
		if got := originOf(b, m); got != want {
			t.Errorf("%+v, want %+v", got, want)
		}
	}
}

// TestApply: the machine says what would happen, and only who has read that makes it so.
func TestApply(t *testing.T) {
	s := newSite(t, nil)
	reads := s.in(s.token("reads", inventory.AccessRead))
	if got := reads.post("/machines/w-1/apply", url.Values{"mode": {"staged"}, "confirmed": {"yes"}}); got.code != 403 {
		t.Errorf("%d %s", got.code, got.text)
	}
	b := s.in(s.token("ada", inventory.AccessOperate))
	if got := b.get("/machines/w-1/config"); !got.has("See what would happen", `action="/machines/w-1/apply"`, "with its next boot") {
		t.Errorf("%s", got.text)
	}
	before := s.head()
	if got := b.post("/machines/w-1/apply", url.Values{"mode": {"staged"}}); got.code != 200 || !got.has("Nothing has happened yet", "mode staged, dry run true", `name="confirmed"`, `value="staged"`) {
		t.Errorf("%d %s", got.code, got.text)
	}
	if got := b.post("/machines/w-1/apply", url.Values{"mode": {"staged"}, "confirmed": {"yes"}}); got.code != 200 || !got.has("was given its config", "mode staged, dry run false") {
		t.Errorf("%d %s", got.code, got.text)
	}
	if got := b.post("/machines/w-2/apply", url.Values{"mode": {"auto"}}); got.code != 409 || !got.has("w-2 does not answer") {
		t.Errorf("%d %s", got.code, got.text)
	}
	for _, mode := range []string{"", "explode"} {
		if got := b.post("/machines/w-1/apply", url.Values{"mode": {mode}}); got.code != 400 {
			t.Errorf("%q: %d %s", mode, got.code, got.text)
		}
	}
	if lines := s.lines(before); len(lines) != 3 || lines[1].Action != "apply-machine-config" || lines[1].Outcome != audit.OK || lines[2].Outcome != audit.Refused {
		t.Errorf("%+v", lines)
	}
}
