package web

import (
	"net/url"
	"strings"
	"testing"

	"github.com/chromedp/chromedp"
	"github.com/chromedp/chromedp/kb"

	"github.com/provisiond/provisiond/internal/audit"
	"github.com/provisiond/provisiond/internal/browsertest"
	"github.com/provisiond/provisiond/internal/inventory"
)

const (
	onConsole = "jTzh1hUzyPBrtr1RBY2F+Aw2HC7KEbLv7JyXNV3Pzhs="
	another   = "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA="
)

// waits has w-1 wait in maintenance mode for a person.
func (s *site) waits() {
	s.t.Helper()
	s.image("v1.13.6", inventory.AMD64)
	s.record(inventory.Event{
		Kind: inventory.MaintenanceSeen, Machine: "w-1", Fingerprint: onConsole, Peer: s.peer("2001:db8::1000"), Message: "a person has to confirm it",
	})
}

// TestConfirmMaintenance: who reads the fingerprint off the console confirms the machine,
// and the page does not say it.
func TestConfirmMaintenance(t *testing.T) {
	s := newSite(t, nil)
	b := s.in(s.token("ada", inventory.AccessOperate))
	if got := b.get("/machines/w-1/maintenance"); got.code != 409 || !got.has("does not wait in maintenance mode") {
		t.Errorf("%d %s", got.code, got.text)
	}
	s.waits()
	if got := b.get("/machines/w-1"); !got.has(`href="/machines/w-1/maintenance"`) {
		t.Errorf("%s", got.text)
	}
	if got := b.get("/machines/w-2"); got.has("/maintenance") {
		t.Errorf("a machine that does not wait: %s", got.text)
	}
	got := b.get("/machines/w-1/maintenance")
	if got.code != 200 || !got.has("Confirm w-1?", "52:54:00:00:00:01", "2001:db8::1000", "what lets it join cluster web") || got.has(onConsole) {
		t.Errorf("%d %s", got.code, got.text)
	}
	before := s.head()
	for typed, c := range map[string]struct {
		status int
		says   string
	}{another: {409, "no machine in maintenance mode has this fingerprint"}, "jTzh": {422, `id="problem-fingerprint" class="bad"`}, "": {422, `id="problem-fingerprint" class="bad"`}} {
		got := b.post("/machines/w-1/maintenance", url.Values{"fingerprint": {typed}})
		if got.code != c.status || !got.has(c.says, `value="`+typed+`"`) || got.has(onConsole) {
			t.Errorf("%q: %d %s", typed, got.code, got.text)
		}
	}
	for name, c := range map[string]struct {
		role     inventory.Access
		clusters []string
		status   int
	}{"reads": {inventory.AccessRead, nil, 403}, "another": {inventory.AccessOperate, []string{"store"}, 404}} {
		b := s.in(s.token(name, c.role, c.clusters...))
		if got := b.get("/machines/w-1"); got.has("/machines/w-1/maintenance") {
			t.Errorf("%s: %s", name, got.text)
		}
		for what, got := range map[string]answer{"form": b.get("/machines/w-1/maintenance"), "confirm": b.post("/machines/w-1/maintenance", url.Values{"fingerprint": {onConsole}})} {
			if got.code != c.status {
				t.Errorf("%s, %s: %d %s", name, what, got.code, got.text)
			}
		}
	}
	if v, err := s.keeper.Machine(t.Context(), "w-1"); err != nil || !v.Facts.Maintenance.Confirmed.IsZero() {
		t.Errorf("it is confirmed: %+v, %v", v.Facts.Maintenance, err)
	}
	if got := b.post("/machines/w-1/maintenance", url.Values{"fingerprint": {" " + onConsole + "\n"}}); got.code != 200 || !got.has("w-1 is confirmed") {
		t.Errorf("%d %s", got.code, got.text)
	}
	if v, err := s.keeper.Machine(t.Context(), "w-1"); err != nil || v.Facts.Maintenance.By != "ada" {
		t.Errorf("%+v, %v", v.Facts.Maintenance, err)
	}
	lines := s.lines(before)
	if last := lines[len(lines)-1]; last.Action != "confirm-machine" || last.Who != "ada" || last.Outcome != audit.OK || last.Target != "machine/w-1" {
		t.Errorf("%+v", last)
	}
}

func TestChromiumConfirmMaintenance(t *testing.T) {
	s := newSite(t, nil)
	s.waits()
	c := browsertest.New(t, s.addr, s.ca.Pool())
	logIn(c, s.token("ada", inventory.AccessOperate))
	c.Do(chromedp.Navigate(c.Base + "/machines/w-1"))
	c.Sees("#machine")
	c.TabTo(`a[href="/machines/w-1/maintenance"]`)
	c.Press(kb.Enter)
	c.Sees("#fingerprint:focus")
	c.Shoot("maintenance")
	c.Press(another + kb.Enter)
	c.Sees(".bad")
	c.Shoot("maintenance-refused")
	c.TabTo("#fingerprint")
	browsertest.Eval[string](c, `document.querySelector("#fingerprint").value = ""`)
	c.Press(onConsole)
	c.Press(kb.Enter)
	if text := c.Sees(".good"); !strings.Contains(text, "w-1 is confirmed") {
		t.Errorf("%s", text)
	}
}
