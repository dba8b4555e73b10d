package web

import (
	"crypto/tls"
	"crypto/x509/pkix"
	"net/http"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/provisiond/provisiond/internal/audit"
	"github.com/provisiond/provisiond/internal/inventory"
)

// TestDay is an operator's: log in, look, approve what a console shows, deny another, and
// log out, with all of it in the trail.
func TestDay(t *testing.T) {
	s := newSite(t, nil)
	token := s.token("ada", inventory.AccessOperate)
	before := s.head()
	b := s.browser()
	if got := b.get("/approve?code=wdjb-mjht"); got.code != 303 || got.header.Get("Location") != "/login?next=%2Fapprove%3Fcode%3Dwdjb-mjht" {
		t.Fatalf("nobody: %d %v", got.code, got.header)
	}
	got := b.get("/login?next=%2Fapprove%3Fcode%3Dwdjb-mjht")
	if got.code != 200 || !got.has(`name="next" value="/approve?code=wdjb-mjht"`, `action="/login"`) || got.has("log in with") {
		t.Fatalf("%d %s", got.code, got.text)
	}
	got = b.post("/login", url.Values{"token": {" " + token + "\n"}, "next": {"/approve?code=wdjb-mjht"}})
	if got.code != 303 || got.header.Get("Location") != "/approve?code=wdjb-mjht" {
		t.Fatalf("%d %v %s", got.code, got.header, got.text)
	}
	if got = b.get("/login?next=/approve"); got.code != 303 || got.header.Get("Location") != "/approve" {
		t.Errorf("who is in is asked again: %d %s", got.code, got.text)
	}
	got = b.get("/")
	if got.code != 200 || !got.has("<strong>ada</strong>", "<strong>operate</strong>", "the whole rack", "2 machines wait", "3 machines", "w-3", "failed", "/openapi.json", "v0.0.0-test", "Log out") {
		t.Errorf("%d %s", got.code, got.text)
	}
	got = b.get("/approve?code=wdjb-mjht")
	if got.code != 200 || !got.has(`value="WDJB-MJHT"`, "w-1", "w-2", "2001:db8::1000", "store") || got.has("BCDF") {
		t.Errorf("%d %s", got.code, got.text)
	}
	got = b.get("/approve/confirm?code=wdjb+mjht")
	if got.code != 200 || !got.has("Approve w-1?", "cluster <strong>web</strong>", "52:54:00:00:00:01", "2001:db8::1000", "Deny", `value="WDJB-MJHT"`) {
		t.Errorf("%d %s", got.code, got.text)
	}
	if got = b.get("/approve/confirm?code=" + codeStore); got.code != 200 || !got.has("all keys of cluster store") {
		t.Errorf("a control plane: %d %s", got.code, got.text)
	}
	if got = b.post("/approve", url.Values{"code": {"ZZZZ-ZZZZ"}, "decision": {"approve"}}); got.code != 404 || !got.has("no machine shows the code") {
		t.Errorf("nobody's code: %d %s", got.code, got.text)
	}
	if got = b.post("/approve", url.Values{"code": {" "}, "decision": {"approve"}}); got.code != 400 || !got.has("Type the code") {
		t.Errorf("no code: %d %s", got.code, got.text)
	}
	if got = b.get("/approve/confirm?code=ZZZZ-ZZZZ"); got.code != 404 || !got.has("no machine shows the code", `href="/approve"`) {
		t.Errorf("%d %s", got.code, got.text)
	}
	if got = b.post("/approve", url.Values{"code": {codeWeb}}); got.code != 400 {
		t.Errorf("no decision: %d %s", got.code, got.text)
	}
	for range 2 { // clicked twice
		if got = b.post("/approve", url.Values{"code": {codeWeb}, "decision": {"approve"}}); got.code != 200 || !got.has("w-1 is approved, by ada") {
			t.Errorf("%d %s", got.code, got.text)
		}
	}
	if got = b.post("/approve", url.Values{"code": {codeWeb}, "decision": {"deny"}}); got.code != 409 || !got.has("was decided at", "by ada") {
		t.Errorf("yes and no: %d %s", got.code, got.text)
	}
	if got = b.post("/approve", url.Values{"code": {codeStore}, "decision": {"deny"}}); got.code != 200 || !got.has("w-2 is denied") {
		t.Errorf("%d %s", got.code, got.text)
	}
	if got = b.get("/approve/confirm?code=" + codeStore); got.code != 200 || !got.has("w-2 is denied, by ada") {
		t.Errorf("what was decided: %d %s", got.code, got.text)
	}
	if got = b.get("/approve"); got.code != 200 || !got.has("None.") {
		t.Errorf("%d %s", got.code, got.text)
	}
	v, err := s.keeper.Machine(t.Context(), "w-1")
	if err != nil || !v.Facts.Boots[0].Flows[0].Approved() || v.Facts.Boots[0].Flows[0].By != "ada" {
		t.Errorf("%+v, %v", v.Facts.Boots[0].Flows, err)
	}
	if got = b.post("/logout", nil); got.code != 303 || got.header.Get("Location") != "/login" || b.cookie() != "" {
		t.Errorf("%d %v", got.code, got.header)
	}
	if got = b.get("/nowhere"); got.code != 404 || !got.has("There is no page here", "<!DOCTYPE html>") {
		t.Errorf("%d %s", got.code, got.text)
	}

	want := []audit.Entry{
		{Action: "login", Outcome: audit.OK}, {Action: "decide-approval", Outcome: audit.Refused, Status: 404},
		{Action: "decide-approval", Outcome: audit.OK, Target: "machine/w-1"}, {Action: "decide-approval", Outcome: audit.OK, Target: "machine/w-1"},
		{Action: "decide-approval", Outcome: audit.Refused, Status: 409}, {Action: "decide-approval", Outcome: audit.OK, Target: "machine/w-2"}, {Action: "logout", Outcome: audit.OK},
	}
	lines := s.lines(before)
	if len(lines) != len(want) {
		t.Fatalf("the trail has %+v", lines)
	}
	for i, e := range lines {
		w := want[i]
		if e.Action != w.Action || e.Outcome != w.Outcome || w.Status != 0 && e.Status != w.Status || w.Target != "" && e.Target != w.Target ||
			e.Who != "ada" || e.Via != "token" || e.Role != "operate" || e.From == "" || e.Request == "" {
			t.Errorf("line %d: %+v, want %+v", i, e, w)
		}
	}
	if strings.Contains(s.logs.String(), token) || strings.Contains(s.logs.String(), codeStore) {
		t.Error("the log has a token or a code")
	}
}

// TestRoles: who reads approves nothing, and who is limited to clusters sees and decides
// only what is theirs.
func TestRoles(t *testing.T) {
	s := newSite(t, nil)
	b := s.in(s.token("reads", inventory.AccessRead))
	if got := b.get("/"); got.code != 200 || got.has(`href="/approve"`) {
		t.Errorf("%d %s", got.code, got.text)
	}
	before := s.head()
	for what, got := range map[string]answer{
		"list": b.get("/approve"), "confirm": b.get("/approve/confirm?code=" + codeWeb),
		"decide": b.post("/approve", url.Values{"code": {codeWeb}, "decision": {"approve"}}),
	} {
		if got.code != 403 || !got.has("takes the role operate") || got.has("w-1") {
			t.Errorf("%s: %d %s", what, got.code, got.text)
		}
	}
	if lines := s.lines(before); len(lines) != 3 || lines[0].Outcome != audit.Refused || lines[0].Who != "reads" || lines[0].Status != 403 {
		t.Errorf("%+v", lines)
	}

	b = s.in(s.token("limited", inventory.AccessOperate, "web"))
	if got := b.get("/"); !got.has("w-3", "1 machine waits", "in web") || got.has("store") || got.has("w-2") {
		t.Errorf("%s", got.text)
	}
	if got := b.get("/approve"); got.code != 200 || !got.has("w-1") || got.has("w-2") {
		t.Errorf("%d %s", got.code, got.text)
	}
	of, nobodys := b.get("/approve/confirm?code="+codeStore), b.get("/approve/confirm?code=ZZZZ-ZZZZ")
	if of.code != 404 || strings.ReplaceAll(of.text, codeStore, "") != strings.ReplaceAll(nobodys.text, "ZZZZ-ZZZZ", "") {
		t.Errorf("a code of others is another answer than none: %d %s", of.code, of.text)
	}
	for _, decision := range []string{"approve", "deny"} {
		if got := b.post("/approve", url.Values{"code": {codeStore}, "decision": {decision}}); got.code != 404 || got.has("w-2") {
			t.Errorf("%s: %d %s", decision, got.code, got.text)
		}
	}
	v, err := s.keeper.Machine(t.Context(), "w-2")
	if err != nil || !v.Facts.Boots[0].Flows[0].Decided.IsZero() {
		t.Errorf("somebody else's machine was decided on: %+v, %v", v.Facts.Boots[0].Flows, err)
	}
	if got := b.post("/approve", url.Values{"code": {codeWeb}, "decision": {"approve"}}); got.code != 200 {
		t.Errorf("their own: %d %s", got.code, got.text)
	}
	if got := b.get("/api/v1/machines"); got.code != 200 || !got.has("w-1") || got.has("w-2") {
		t.Errorf("the API, in a session: %d %s", got.code, got.text)
	}
	for code, status := range map[string]int{codeStore: 404, codeWeb: 200} {
		if got := b.send(http.MethodPost, "/api/v1/approvals/"+code, `{"approve":true}`, "Content-Type", "application/json"); got.code != status {
			t.Errorf("the API, %s: %d %s", code, got.code, got.text)
		}
	}
	if got := b.get("/api/v1/tokens"); got.code != 403 {
		t.Errorf("the API, what takes admin: %d %s", got.code, got.text)
	}
}

// TestExpired: a code that is too old is not asked about.
func TestExpired(t *testing.T) {
	s := newSite(t, nil)
	b := s.in(s.token("ada", inventory.AccessOperate))
	s.late.Store(int64(31 * time.Minute))
	if got := b.get("/approve/confirm?code=" + codeWeb); got.code != 409 || !got.has("has expired", "w-1") || got.has("<form method=\"post\" action=\"/approve\"") {
		t.Errorf("%d %s", got.code, got.text)
	}
}

// TestAlarm: a second address that asks is shown before anything is approved.
func TestAlarm(t *testing.T) {
	s := newSite(t, nil)
	s.asks("w-1", "CCCC-CCCC", "2001:db8::bad")
	b := s.in(s.token("ada", inventory.AccessOperate))
	for _, path := range []string{"/", "/approve", "/approve/confirm?code=" + codeWeb} {
		if got := b.get(path); got.code != 200 || !got.has("Alarm:", "2001:db8::bad and 2001:db8::1000 both asked") && !got.has("Alarm:", "2001:db8::1000 and 2001:db8::bad both asked") {
			t.Errorf("%s: %d %s", path, got.code, got.text)
		}
	}
}

// TestClientCertificate: a browser with one needs no session, and has none to end.
func TestClientCertificate(t *testing.T) {
	s := newSite(t, nil)
	text, err := s.ca.IssueClient(pkix.Name{CommonName: "grace", Organization: []string{"provisiond:operate"}}, time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	pair, err := tls.X509KeyPair(text, text)
	if err != nil {
		t.Fatal(err)
	}
	b := s.browser(pair)
	if got := b.get("/"); got.code != 200 || !got.has("grace", "certificate") || got.has("Log out") {
		t.Errorf("%d %s", got.code, got.text)
	}
	if got := b.post("/approve", url.Values{"code": {codeWeb}, "decision": {"approve"}}); got.code != 200 {
		t.Errorf("%d %s", got.code, got.text)
	}
}

// TestNoTrail: while nobody would know, nobody gets in, and nothing is decided; but out
// they get.
func TestNoTrail(t *testing.T) {
	s := newSite(t, nil)
	token := s.token("ada", inventory.AccessOperate)
	b := s.in(token)
	id := b.cookie()
	s.trail.broken.Store(true)
	if got := b.post("/approve", url.Values{"code": {codeWeb}, "decision": {"approve"}}); got.code != 507 || !got.has("nothing was done") {
		t.Errorf("%d %s", got.code, got.text)
	}
	other := s.browser()
	if got := other.post("/login", url.Values{"token": {token}}); got.code != 507 || other.cookie() != "" {
		t.Errorf("%d %s", got.code, got.text)
	}
	b.post("/logout", nil)
	b.hold(id)
	if got := b.get("/"); got.code != http.StatusSeeOther {
		t.Errorf("%d %s", got.code, got.text)
	}
	v, err := s.keeper.Machine(t.Context(), "w-1")
	if err != nil || !v.Facts.Boots[0].Flows[0].Decided.IsZero() {
		t.Errorf("%+v, %v", v.Facts.Boots[0].Flows, err)
	}
}
