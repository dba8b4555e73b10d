package web

import (
	"fmt"
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

// TestAuditPage pages from the newest line back to the first, each line once.
func TestAuditPage(t *testing.T) {
	s := newSite(t, nil)
	for i := range 230 {
		e := audit.Entry{Who: "grace", Via: "token", Role: "operate", Action: "patch-machine", Target: "machine/w-1", Outcome: audit.OK}
		if i == 100 {
			e.Who, e.Target, e.Outcome, e.Reason = markup, "cluster/web", audit.Refused, "it may not"
		}
		s.trail.Note(e)
	}
	b := s.in(s.token("ada", inventory.AccessAdmin))
	first := b.get("/audit")
	if first.code != 200 || !first.has("<strong>ada</strong>", "login", "patch machine", `<a href="/machines/w-1">machine w-1</a>`, "provisiond audit verify", "Older ones") || first.has("The newest") {
		t.Fatalf("%d %s", first.code, first.text)
	}
	want := 231
	for path := "/audit"; path != ""; {
		got := b.get(path)
		if got.code != 200 {
			t.Fatalf("%s: %d %s", path, got.code, got.text)
		}
		for _, row := range strings.Split(got.text, `</time> <span class="quiet">`)[1:] {
			if seq, _, _ := strings.Cut(row, "<"); seq != fmt.Sprint(want) {
				t.Fatalf("%s: line %s where %d is to be", path, seq, want)
			}
			want--
		}
		path = ""
		if _, next, ok := strings.Cut(got.text, `href="/audit?before=`); ok {
			next, _, _ = strings.Cut(next, `"`)
			path = "/audit?before=" + next
		}
	}
	if want != 0 {
		t.Errorf("%d lines are missing", want)
	}
	got := b.get("/audit?" + url.Values{"who": {markup}}.Encode())
	if got.code != 200 || !got.has("it may not", `<a href="/clusters/web">cluster web</a>`, "refused") || got.has("grace", markup) {
		t.Errorf("%d %s", got.code, got.text)
	}
	if got = b.get("/audit?" + url.Values{"machine": {"w-1"}, "since": {time.Now().Add(time.Hour).UTC().Format(sinceTime)}}.Encode()); got.code != 200 || !got.has("No line that was looked at fits") {
		t.Errorf("%d %s", got.code, got.text)
	}
	if got = b.get("/audit?since=2026-01-01"); got.code != 200 || !got.has("grace") {
		t.Errorf("%d %s", got.code, got.text)
	}
	for _, query := range []string{"since=yesterday", "before=x"} {
		if got = b.get("/audit?" + query); got.code != 422 || !got.has(`class="bad"`) {
			t.Errorf("%s: %d %s", query, got.code, got.text)
		}
	}
	for _, token := range []string{s.token("operates", inventory.AccessOperate), s.token("limited", inventory.AccessAdmin, "web")} {
		if got = s.in(token).get("/audit"); got.code != 403 || got.has("grace") {
			t.Errorf("%d %s", got.code, got.text)
		}
	}
}

func TestChromiumAudit(t *testing.T) {
	s := newSite(t, nil)
	c := browsertest.New(t, s.addr, s.ca.Pool())
	logIn(c, s.token("ada", inventory.AccessAdmin))
	s.in(s.token("grace", inventory.AccessRead)).post("/approve", url.Values{"code": {codeWeb}, "decision": {"approve"}})
	c.Do(chromedp.Navigate(c.Base + "/audit"))
	c.Sees("tbody th")
	c.Shoot("audit")
	c.TabTo("input[name=who]")
	c.Press("grace" + kb.Enter)
	c.Sees("input[name=who][value=grace]")
	if text := c.Sees("tbody .outcome.refused"); strings.Contains(text, "ada login") || !strings.Contains(text, "page /approve") {
		t.Errorf("%s", text)
	}
}
