package web

import (
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/chromedp/chromedp"
	"github.com/chromedp/chromedp/kb"

	"github.com/provisiond/provisiond/internal/audit"
	"github.com/provisiond/provisiond/internal/browsertest"
	"github.com/provisiond/provisiond/internal/inventory"
)

// newSeedSite is a site with a machine that can have a seed.
func newSeedSite(t *testing.T) *site {
	s := newSite(t, nil)
	s.image("v1.13.6", inventory.AMD64)
	return s
}

// TestSeed: an admin is told where a machine's config is fetched, once, and downloads it as
// a volume; both are in the trail as secrets that were told.
func TestSeed(t *testing.T) {
	s := newSeedSite(t)
	b := s.in(s.token("ada", inventory.AccessAdmin))
	if got := b.get("/machines/w-1"); !got.has("Other ways to its config", `href="/machines/w-1/seed"`) {
		t.Errorf("%s", got.text)
	}
	if got := b.get("/machines/w-1/seed"); got.code != 200 || !got.has(`action="/machines/w-1/iso"`, `action="/machines/w-1/seed"`, "what lets it join cluster web") {
		t.Errorf("%d %s", got.code, got.text)
	}
	if got := b.get("/machines/w-2/seed"); !got.has("all keys of cluster store") {
		t.Errorf("%s", got.text)
	}
	before := s.head()
	got := b.post("/machines/w-1/seed", url.Values{"for": {" 2001:db8:9::b "}})
	v, err := s.keeper.Machine(t.Context(), "w-1")
	if err != nil {
		t.Fatal(err)
	}
	token := v.Facts.Current().Token
	if got.code != 200 || !got.has("Boot 2 of w-1", "Only <code>2001:db8:9::b</code>", "/"+token+"/metal.iso", "/"+token+"/cidata.iso", "No NoCloud by HTTP: told elsewhere.") {
		t.Errorf("%d %s", got.code, got.text)
	}
	if got := b.post("/machines/w-1/seed", nil); got.code != 200 || !got.has("Only the machine itself", "ds=nocloud-net;s=") {
		t.Errorf("%d %s", got.code, got.text)
	}
	for format, file := range map[string]string{"": "w-1-metal-iso.iso", "metal-iso": "w-1-metal-iso.iso", "nocloud": "w-1-nocloud.iso"} {
		got := b.post("/machines/52:54:00:00:00:01/iso", url.Values{"format": {format}})
		want := strings.TrimSuffix(strings.TrimPrefix(file, "w-1-"), ".iso") + " of w-1"
		if got.code != 200 || got.text != want || got.header.Get("Content-Type") != "application/vnd.efi.iso" ||
			got.header.Get("Content-Disposition") != "attachment; filename="+file || got.header.Get("Cache-Control") != "no-store" {
			t.Errorf("%q: %d %q %v", format, got.code, got.text, got.header)
		}
	}
	lines := s.lines(before)
	if len(lines) != 5 || lines[0].Action != "seed-machine" || lines[4].Action != "make-machine-iso" {
		t.Fatalf("the trail has %+v", lines)
	}
	for _, e := range lines {
		if e.Who != "ada" || e.Outcome != audit.OK || e.Target != "machine/w-1" {
			t.Errorf("%+v", e)
		}
	}
	if strings.Contains(s.logs.String(), token) {
		t.Error("the log has the token of a seed")
	}
}

// TestNoSeed: who may not sees no way to a seed and gets none, and what cannot be is said
// beside the form.
func TestNoSeed(t *testing.T) {
	s := newSeedSite(t)
	b := s.in(s.token("ada", inventory.AccessAdmin))
	if got := b.post("/machines/w-1/seed", url.Values{"for": {"10.0.0.1"}}); got.code != 422 || !got.has(`value="10.0.0.1"`, `id="problem-for" class="bad"`, "a global IPv6 address", `aria-invalid="true"`) {
		t.Errorf("%d %s", got.code, got.text)
	}
	if got := b.post("/machines/w-1/iso", url.Values{"format": {"floppy"}}); got.code != 422 || !got.has(`id="problem-format" class="bad"`) {
		t.Errorf("%d %s", got.code, got.text)
	}
	s.runs("w-1")
	s.record(inventory.Event{Kind: inventory.APIAnswered, Machine: "w-1", Stage: inventory.StageRunning, Ready: true, Time: time.Now().Add(time.Minute)})
	for _, path := range []string{"/machines/w-1/seed", "/machines/w-1/iso"} {
		if got := b.post(path, nil); got.code != 409 || !got.has("w-1 is not to install", `action="/machines/w-1/iso"`) {
			t.Errorf("%s: %d %s", path, got.code, got.text)
		}
	}
	if got := b.post("/machines/w-9/iso", nil); got.code != 404 {
		t.Errorf("%d %s", got.code, got.text)
	}
	for name, c := range map[string]struct {
		role     inventory.Access
		clusters []string
		status   int
	}{"operates": {inventory.AccessOperate, nil, 403}, "another": {inventory.AccessAdmin, []string{"store"}, 404}} {
		b := s.in(s.token(name, c.role, c.clusters...))
		if got := b.get("/machines/w-1"); got.has("Other ways") {
			t.Errorf("%s: %s", name, got.text)
		}
		for path, got := range map[string]answer{"form": b.get("/machines/w-1/seed"), "seed": b.post("/machines/w-1/seed", nil), "iso": b.post("/machines/w-1/iso", nil)} {
			if got.code != c.status || got.has("metal.iso") {
				t.Errorf("%s, %s: %d %s", name, path, got.code, got.text)
			}
		}
	}
}

func TestChromiumSeed(t *testing.T) {
	s := newSeedSite(t)
	c := browsertest.New(t, s.addr, s.ca.Pool())
	logIn(c, s.token("ada", inventory.AccessAdmin))
	c.Do(chromedp.Navigate(c.Base + "/machines/w-1"))
	c.Sees("#ways")
	c.TabTo(`a[href="/machines/w-1/seed"]`)
	c.Press(kb.Enter)
	c.Sees("#urls")
	c.Shoot("seed")
	c.TabTo("#for")
	c.Press("10.0.0.1" + kb.Enter)
	c.Sees("#problem-for.bad")
	c.Shoot("seed-problem")
	c.TabTo("#for")
	browsertest.Eval[string](c, `document.querySelector("#for").value = ""`)
	c.Press(kb.Enter)
	if text := c.Sees(".good"); !strings.Contains(text, "Boot 2 of w-1 is begun") {
		t.Errorf("%s", text)
	}
	c.Shoot("seeded")
}
