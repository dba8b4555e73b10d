package web

import (
	"net/http"
	"net/url"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/provisiond/provisiond/internal/audit"
	"github.com/provisiond/provisiond/internal/inventory"
)

// Each of these is an attack, as requests over the real socket.

// TestCookie: what a browser is told to do with the id of its session.
func TestCookie(t *testing.T) {
	s := newSite(t, nil)
	b := s.browser()
	got := b.post("/login", url.Values{"token": {s.token("ada", inventory.AccessRead)}})
	cookies := got.header.Values("Set-Cookie")
	if len(cookies) != 1 || !regexp.MustCompile(`^__Host-provisiond=[A-Za-z0-9_-]{43}; Path=/; HttpOnly; Secure; SameSite=Strict$`).MatchString(cookies[0]) {
		t.Errorf("%q", cookies)
	}
	got = b.post("/logout", nil)
	if cookies := got.header.Values("Set-Cookie"); len(cookies) != 1 || !strings.HasPrefix(cookies[0], "__Host-provisiond=; Path=/; Max-Age=0;") {
		t.Errorf("%q", cookies)
	}
}

// TestFixation: an id that a browser came with is worth nothing after the login, be it made
// up or of another session.
func TestFixation(t *testing.T) {
	s := newSite(t, nil)
	mallory := s.in(s.token("mallory", inventory.AccessRead))
	planted := mallory.cookie()
	ada := s.token("ada", inventory.AccessOperate)
	for _, id := range []string{planted, strings.Repeat("A", 43), ""} {
		b := s.browser()
		b.hold(id)
		if got := b.post("/login", url.Values{"token": {ada}}); got.code != 303 || b.cookie() == id || b.cookie() == "" {
			t.Fatalf("%d %s", got.code, got.text)
		}
		if got := b.get("/"); !got.has("<strong>ada</strong>") {
			t.Errorf("%s", got.text)
		}
		attacker := s.browser()
		attacker.hold(id)
		if got := attacker.get("/"); got.code != 303 {
			t.Errorf("%q is somebody: %d %s", id, got.code, got.text)
		}
	}
}

// TestForgery: no page of another site changes anything with the browser of who is in, or
// logs them in as somebody else.
func TestForgery(t *testing.T) {
	s := newSite(t, nil)
	token := s.token("ada", inventory.AccessOperate)
	b := s.in(token)
	id := b.cookie()
	before := s.head()
	for what, header := range map[string]http.Header{
		"another site":         {"Sec-Fetch-Site": {"cross-site"}, "Origin": {"https://evil.example"}},
		"another port":         {"Sec-Fetch-Site": {"same-site"}, "Origin": {"https://[::1]:1"}},
		"an old browser":       {"Origin": {"https://evil.example"}},
		"a sandboxed frame":    {"Origin": {"null"}},
		"who does not say":     {},
		"who says it to Fetch": {"Sec-Fetch-Site": {"cross-site"}, "Origin": {"https://" + s.addr}},
	} {
		b.header = header
		for path, form := range map[string]url.Values{
			"/approve": {"code": {codeWeb}, "decision": {"approve"}}, "/logout": nil, "/login": {"token": {token}},
			"/machines/w-1/reimage": nil, "/machines/w-1/remove": {"rev": {"1"}, "force": {"yes"}}, "/machines/act": {"act": {"reimage"}, "machine": {"w-1"}}, "/machines/w-1/apply": {"mode": {"auto"}, "confirmed": {"yes"}},
			"/machines/w-1/seed": nil, "/machines/w-1/iso": nil, "/machines/w-1/maintenance": {"fingerprint": {onConsole}},
		} {
			if got := b.post(path, form); got.code != 403 || len(got.header.Values("Set-Cookie")) > 0 {
				t.Errorf("%s, %s: %d %s", what, path, got.code, got.text)
			}
		}
		if got := b.send(http.MethodDelete, "/api/v1/machines/w-1", ""); got.code != 403 {
			t.Errorf("%s, the API: %d %s", what, got.code, got.text)
		}
	}
	stranger := s.browser()
	stranger.header = http.Header{"Sec-Fetch-Site": {"cross-site"}}
	if got := stranger.post("/login", url.Values{"token": {token}}); got.code != 403 {
		t.Errorf("login by another site: %d", got.code)
	}
	if lines := s.lines(before); len(lines) > 0 {
		t.Errorf("%+v", lines)
	}
	b.header = http.Header{"Origin": {"https://" + s.addr}} // an old browser, at home
	if got := b.post("/approve", url.Values{"code": {codeWeb}, "decision": {"approve"}}); got.code != 200 || b.cookie() != id {
		t.Errorf("at home: %d %s", got.code, got.text)
	}
}

// ourScript is how a page names a script of ours.
var ourScript = regexp.MustCompile(`<script src="/static/[a-z.-]+" defer></script>`)

// TestHeaders: what browsers are told about every page.
func TestHeaders(t *testing.T) {
	s := newSite(t, nil)
	nobody, ada := s.browser(), s.in(s.token("ada", inventory.AccessOperate))
	for path, got := range map[string]answer{
		"/login": nobody.get("/login"), "/": ada.get("/"), "/approve": ada.get("/approve"), "/approve/confirm": ada.get("/approve/confirm?code=" + codeWeb),
		"/machines/w-1": ada.get("/machines/w-1"), "edit": ada.get("/machines/w-1/edit"), "new": ada.get("/machines/new"), "config": ada.get("/machines/w-1/config"),
		"reimage": ada.get("/machines/w-1/reimage"), "remove": ada.get("/machines/w-1/remove"), "act": ada.get("/machines/act?act=label&machine=w-1"),
		"/nowhere": nobody.get("/nowhere"), "/static/style.css": nobody.get("/static/style.css"), "a redirect": nobody.get("/"), "an error": ada.get("/approve/confirm"),
	} {
		for name, want := range map[string]string{
			"Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; form-action 'self'; frame-ancestors 'none'; base-uri 'none'",
			"X-Frame-Options":         "DENY", "X-Content-Type-Options": "nosniff", "Referrer-Policy": "no-referrer", "Cache-Control": "no-store",
			"Cross-Origin-Opener-Policy": "same-origin", "Cross-Origin-Resource-Policy": "same-origin",
		} {
			if got.header.Get(name) != want {
				t.Errorf("%s: %s is %q", path, name, got.header.Get(name))
			}
		}
		text := ourScript.ReplaceAllString(got.text, "")
		if strings.Contains(text, "style=") || strings.Contains(text, "<style") || strings.Contains(text, "<script") || strings.Contains(text, "src=") {
			t.Errorf("%s has something of its own: %s", path, got.text)
		}
	}
	if got := nobody.get("/static/style.css"); got.code != 200 || got.header.Get("Content-Type") != "text/css; charset=utf-8" || got.has("url(") || got.has("@import") {
		t.Errorf("%d %v", got.code, got.header)
	}
}

// TestBruteForce: who guesses at /login is told to wait, and a good token, from the same
// address, is not.
func TestBruteForce(t *testing.T) {
	s := newSite(t, nil)
	token := s.token("ada", inventory.AccessRead)
	before := s.head()
	codes := map[int]int{}
	var mu sync.Mutex
	var all sync.WaitGroup
	for range 4 {
		all.Go(func() {
			b := s.browser()
			for range 30 {
				got := b.post("/login", url.Values{"token": {"pvd_ada_" + strings.Repeat("A", 43)}, "next": {"/approve"}})
				if got.code == 429 && got.header.Get("Retry-After") == "" || !got.has(`role="alert"`, `value="/approve"`) || b.cookie() != "" {
					t.Errorf("%d %v %s", got.code, got.header, got.text)
				}
				mu.Lock()
				codes[got.code]++
				mu.Unlock()
				s.in(token)
			}
		})
	}
	all.Wait()
	if codes[401] < 10 || codes[429] < 60 || codes[401]+codes[429] != 120 {
		t.Errorf("%v", codes)
	}
	failed := 0
	for _, e := range s.lines(before) {
		if e.Action != "login" {
			t.Errorf("%+v", e)
		}
		if e.Outcome == audit.Refused {
			failed++
		}
	}
	if failed != codes[401] {
		t.Errorf("%d lines of %v", failed, codes)
	}
}

// TestMarkup: what machines and people send is text on every page.
func TestMarkup(t *testing.T) {
	s := newSite(t, nil)
	b := s.in(s.token("ada", inventory.AccessOperate))
	if got := b.get("/"); !got.has("no image &lt;script&gt;alert(1)&lt;/script&gt;") || got.has(markup) {
		t.Errorf("%s", got.text)
	}
	evil := url.QueryEscape(`"><script>alert(1)</script>`)
	for _, path := range []string{"/approve?code=" + evil, "/approve/confirm?code=" + evil, "/" + evil, "/?x=" + evil} {
		if got := b.get(path); strings.Contains(ourScript.ReplaceAllString(got.text, ""), "<script") {
			t.Errorf("%s: %s", path, got.text)
		}
	}
	for _, next := range []string{`/"><script>alert(1)</script>`, `/javascript:alert(1)`, "javascript:alert(1)"} {
		if got := s.browser().get("/login?next=" + url.QueryEscape(next)); strings.Contains(ourScript.ReplaceAllString(got.text, ""), "<script") || got.has(`value="javascript`) {
			t.Errorf("%s: %s", next, got.text)
		}
	}
}

// TestRedirect: a login leads nowhere but to a page of ours.
func TestRedirect(t *testing.T) {
	s := newSite(t, nil)
	token := s.token("ada", inventory.AccessRead)
	for next, want := range map[string]string{
		"": "/", "/": "/", "/approve?code=WDJB-MJHT": "/approve?code=WDJB-MJHT",
		"https://evil.example": "/", "//evil.example": "/", "///evil.example": "/", `/\evil.example`: "/", `\\evil.example`: "/", "/\t/evil.example": "/",
		"https:evil.example": "/", "evil.example": "/", "javascript:alert(1)": "/", "/\r\nSet-Cookie: a=b": "/", "//": "/", "/%0d%0aX:y": "/%0d%0aX:y", " /": "/",
	} {
		b := s.browser()
		if got := b.post("/login", url.Values{"token": {token}, "next": {next}}); got.code != 303 || got.header.Get("Location") != want || got.header.Get("X") != "" {
			t.Errorf("%q: %d %q", next, got.code, got.header.Get("Location"))
		}
		if got := b.get("/login?next=" + url.QueryEscape(next)); got.code != 303 || got.header.Get("Location") != want {
			t.Errorf("%q, who is in: %d %q", next, got.code, got.header.Get("Location"))
		}
	}
}

// TestRebinding: a name that leads to us and is not ours gets no page.
func TestRebinding(t *testing.T) {
	s := newSite(t, nil)
	b := s.in(s.token("ada", inventory.AccessOperate))
	for _, path := range []string{"/", "/login", "/approve", "/static/style.css"} {
		if got := b.get(path, "Host", "evil.example"); got.code != http.StatusMisdirectedRequest {
			t.Errorf("%s: %d %s", path, got.code, got.text)
		}
	}
}

// TestEnds: a session ends at once with its token, a logout, an hour of silence and half a
// day, for pages and the API.
func TestEnds(t *testing.T) {
	for what, end := range map[string]func(s *site, b *browser){
		"revoked": func(s *site, _ *browser) {
			if err := s.keeper.RevokeToken(s.t.Context(), "ada"); err != nil {
				s.t.Fatal(err)
			}
		},
		"revoked and made anew": func(s *site, _ *browser) {
			if err := s.keeper.RevokeToken(s.t.Context(), "ada"); err != nil {
				s.t.Fatal(err)
			}
			s.token("ada", inventory.AccessAdmin)
		},
		"logged out": func(_ *site, b *browser) { b.post("/logout", nil) },
		"idle":       func(s *site, _ *browser) { s.late.Store(int64(time.Hour)) },
		"half a day": func(s *site, b *browser) {
			for d := time.Duration(0); d < 12*time.Hour; d += 50 * time.Minute {
				s.late.Store(int64(d))
				if got := b.get("/"); got.code != 200 {
					s.t.Errorf("it ended before %v: %d", d, got.code)
				}
			}
			s.late.Store(int64(12 * time.Hour))
		},
		"expired": func(s *site, b *browser) {
			_, text, err := s.keeper.CreateToken(s.t.Context(), inventory.Token{Name: "short", Access: inventory.AccessOperate, Expires: time.Now().Add(30 * time.Minute)})
			if err != nil {
				s.t.Fatal(err)
			}
			if got := b.post("/login", url.Values{"token": {text}}); got.code != 303 {
				s.t.Fatal(got.text)
			}
			s.late.Store(int64(30 * time.Minute))
		},
	} {
		t.Run(what, func(t *testing.T) {
			s := newSite(t, nil)
			b := s.in(s.token("ada", inventory.AccessOperate))
			if got := b.get("/api/v1/machines"); got.code != 200 {
				t.Errorf("%d %s", got.code, got.text)
			}
			id := b.cookie()
			end(s, b)
			if what == "expired" {
				id = b.cookie()
			}
			b.hold(id)
			if got := b.post("/approve", url.Values{"code": {codeWeb}, "decision": {"approve"}}); got.code != 303 || got.header.Get("Location") != "/login?next=%2Fapprove" {
				t.Errorf("%d %s", got.code, got.text)
			}
			for path, code := range map[string]int{"/": 303, "/approve": 303, "/login": 200, "/api/v1/machines": 401} {
				if got := b.get(path); got.code != code {
					t.Errorf("%s: %d %s", path, got.code, got.text)
				}
			}
			s.late.Store(0)
			if got := b.get("/"); got.code != 303 {
				t.Errorf("it is back: %d", got.code)
			}
		})
	}
}

// TestLarge: a form that is too large is not read to its end.
func TestLarge(t *testing.T) {
	s := newSite(t, nil)
	if got := s.browser().post("/login", url.Values{"token": {strings.Repeat("x", 1<<20)}}); got.code != 401 {
		t.Errorf("%d %s", got.code, got.text)
	}
}
