package web

import (
	"crypto/rand"
	"crypto/rsa"
	"encoding/json"
	"net"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/golang-jwt/jwt/v5"
	"github.com/oauth2-proxy/mockoidc"

	"github.com/provisiond/provisiond/internal/audit"
	"github.com/provisiond/provisiond/internal/inventory"
)

// realIssuer is a small OpenID Connect issuer, and how it lies.
type realIssuer struct {
	*mockoidc.MockOIDC
	mu   sync.Mutex
	down bool
	lie  func(*http.Request) // changes what it is asked
}

func newRealIssuer(t *testing.T) (*realIssuer, *OIDC) {
	t.Helper()
	server, err := mockoidc.NewServer(nil)
	if err != nil {
		t.Fatal(err)
	}
	i := &realIssuer{MockOIDC: server}
	err = i.AddMiddleware(func(next http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			i.mu.Lock()
			defer i.mu.Unlock()
			if i.down {
				http.Error(w, "down", http.StatusServiceUnavailable)
				return
			}
			if i.lie != nil {
				i.lie(r)
			}
			next.ServeHTTP(w, r)
		})
	})
	if err != nil {
		t.Fatal(err)
	}
	ln, err := net.Listen("tcp", "[::1]:0")
	if err != nil {
		t.Fatal(err)
	}
	if err := i.Start(ln, nil); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := i.Shutdown(); err != nil {
			t.Error(err)
		}
	})
	return i, &OIDC{
		Issuer: i.Issuer(), ClientID: i.ClientID, ClientSecret: i.ClientSecret, Scopes: []string{"openid", "profile", "email", "groups"}, RoleClaim: "groups",
		Roles: map[string]Grant{
			"everybody": {Role: inventory.AccessRead}, "admins": {Role: inventory.AccessAdmin},
			"web team": {Role: inventory.AccessOperate, Clusters: []string{"web"}}, "store team": {Role: inventory.AccessOperate, Clusters: []string{"store"}},
		},
	}
}

func (i *realIssuer) set(f func()) {
	i.mu.Lock()
	defer i.mu.Unlock()
	f()
}

// go to the issuer as a browser does, and return the path that it sends back to.
func (b *browser) issuer(path string) (back string) {
	b.t.Helper()
	got := b.get(path)
	if got.code != http.StatusSeeOther {
		b.t.Fatalf("%s: %d %s", path, got.code, got.text)
	}
	resp, err := b.client.Get(got.header.Get("Location"))
	if err != nil {
		b.t.Fatal(err)
	}
	defer resp.Body.Close()
	to, err := resp.Location()
	if err != nil {
		b.t.Fatalf("%d: %v", resp.StatusCode, err)
	}
	if to.Scheme != "https" || to.Host != b.addr {
		b.t.Fatalf("it sends back to %s", to)
	}
	return to.RequestURI()
}

// ada is in two groups of the same role, and in one that nobody knows.
func ada(groups ...string) *mockoidc.MockUser {
	return &mockoidc.MockUser{Subject: "1", PreferredUsername: "ada", Email: "ada@example.org", Groups: groups}
}

// crossSite is how a browser follows what another site sent it.
var crossSite = []string{"Sec-Fetch-Site", "cross-site"}

func TestIssuer(t *testing.T) {
	i, cfg := newRealIssuer(t)
	s := newSite(t, cfg)
	b := s.browser()
	before := s.head()
	host := strings.TrimPrefix(i.Addr(), "http://")
	if got := b.get("/login?next=%2Fapprove%3Fcode%3DX"); !got.has("log in with "+host, `href="/login/oidc?next=%2fapprove%3fcode%3dX"`) {
		t.Fatalf("%s", got.text)
	}
	i.QueueUser(ada("nobody knows", "everybody", "web team", "store team"))
	back := b.issuer("/login/oidc?next=%2Fapprove%3Fcode%3DX")
	got := b.get(back, crossSite...)
	if got.code != 200 || b.cookie() == "" || !got.has(`http-equiv="refresh" content="0;url=/approve?code=X"`, `href="/approve?code=X"`) {
		t.Fatalf("%d %s", got.code, got.text)
	}
	if got := b.get("/"); got.code != 200 || !got.has("<strong>ada</strong> (oidc)", "operate", "in web") || got.has("w-2") {
		t.Errorf("%d %s", got.code, got.text)
	}
	if got := b.get("/api/v1/machines"); got.code != 200 || got.has("w-2") {
		t.Errorf("%d %s", got.code, got.text)
	}
	if got := b.post("/approve", url.Values{"code": {codeWeb}, "decision": {"approve"}}); got.code != 200 {
		t.Errorf("%d %s", got.code, got.text)
	}
	if got := b.get(back, crossSite...); got.code != 401 || !got.has("not begun in this browser") {
		t.Errorf("the same answer again: %d %s", got.code, got.text)
	}
	b.post("/logout", nil)
	var acts []string
	for _, e := range s.lines(before) {
		acts = append(acts, strings.Join([]string{e.Action, e.Who, e.Via, string(e.Outcome)}, " "))
	}
	want := "login ada oidc ok|decide-approval ada oidc ok|login ada oidc refused|logout ada oidc ok"
	if strings.Join(acts, "|") != want {
		t.Errorf("the trail has %q", acts)
	}

	// The highest role of all groups, and names from what there is.
	for want, user := range map[string]*mockoidc.MockUser{
		"<strong>ada</strong> (oidc), with the role <strong>admin</strong> in the whole rack":            ada("web team", "admins", "everybody"),
		"<strong>ada@example.org</strong> (oidc), with the role <strong>read</strong> in the whole rack": {Subject: "1", Email: "ada@example.org", Groups: []string{"everybody"}},
		"<strong>1</strong> (oidc), with the role <strong>read</strong> in the whole rack":               {Subject: "1", Groups: []string{"everybody"}},
		"<strong>2</strong> (oidc), with the role <strong>read</strong> in the whole rack":               {Subject: "2", PreferredUsername: "a\x1b[2J", Email: strings.Repeat("x", 200), Groups: []string{"everybody"}},
		"<strong>&lt;script&gt;</strong> (oidc), with the role <strong>read</strong> in the whole rack":  {Subject: "2", PreferredUsername: "<script>", Groups: []string{"everybody"}},
	} {
		b := s.browser()
		i.QueueUser(user)
		b.get(b.issuer("/login/oidc"), crossSite...)
		if got := b.get("/"); !got.has(want) {
			t.Errorf("want %s: %d %s", want, got.code, got.text)
		}
	}
}

// claims are of somebody whose token lies.
type claims struct {
	*mockoidc.MockUser
	lie func(*mockoidc.IDTokenClaims)
}

func (c claims) Claims(scope []string, base *mockoidc.IDTokenClaims) (jwt.Claims, error) {
	c.lie(base)
	return c.MockUser.Claims(scope, base)
}

// TestIssuerLies: whatever is wrong with an answer, nobody is let in, and it is written down
// without a word of it.
func TestIssuerLies(t *testing.T) {
	user := ada("everybody")
	token := func(lie func(*mockoidc.IDTokenClaims)) func(*realIssuer) {
		return func(i *realIssuer) { i.QueueUser(claims{user, lie}) }
	}
	change := func(name, value string) func(string) string {
		return func(back string) string {
			u, _ := url.Parse(back)
			q := u.Query()
			q.Set(name, value)
			return u.Path + "?" + q.Encode()
		}
	}
	for what, tc := range map[string]struct {
		issuer func(*realIssuer)
		back   func(string) string
		code   int
		says   string
	}{
		"another nonce":    {issuer: token(func(c *mockoidc.IDTokenClaims) { c.Nonce = "x" }), code: 401, says: "for another login"},
		"no nonce":         {issuer: token(func(c *mockoidc.IDTokenClaims) { c.Nonce = "" }), code: 401, says: "for another login"},
		"another audience": {issuer: token(func(c *mockoidc.IDTokenClaims) { c.Audience = []string{"other"} }), code: 401, says: "not good here"},
		"another issuer":   {issuer: token(func(c *mockoidc.IDTokenClaims) { c.Issuer = "https://evil.example" }), code: 401, says: "not good here"},
		"expired": {issuer: token(func(c *mockoidc.IDTokenClaims) { c.ExpiresAt = jwt.NewNumericDate(time.Now().Add(-time.Minute)) }),
			code: 401, says: "not good here"},
		"another key": {issuer: func(i *realIssuer) {
			i.QueueUser(user)
			i.set(func() {
				i.lie = func(r *http.Request) {
					if r.URL.Path == mockoidc.TokenEndpoint {
						key, _ := rsa.GenerateKey(rand.Reader, 2048)
						i.Keypair.PrivateKey = key // but the keys that it shows stay
					}
				}
			})
		}, code: 401, says: "not good here"},
		"no group":      {issuer: func(i *realIssuer) { i.QueueUser(ada("nobody knows")) }, code: 401, says: "in no group"},
		"no groups":     {issuer: func(i *realIssuer) { i.QueueUser(ada()) }, code: 401, says: "in no group"},
		"another state": {back: change("state", "x"), code: 401, says: "not begun in this browser"},
		"no state":      {back: func(string) string { return callback + "?code=x" }, code: 401, says: "not begun in this browser"},
		"another code":  {back: change("code", "x"), code: 401, says: "knows nothing of this login"},
		"a refusal":     {back: change("error", "access_denied"), code: 401, says: "let nobody in"},
		"markup":        {back: change("error", markup), code: 401, says: "let nobody in"},
		"down since":    {issuer: func(i *realIssuer) { i.QueueUser(user) }, back: nil, code: 502, says: "does not answer"},
	} {
		t.Run(what, func(t *testing.T) {
			i, cfg := newRealIssuer(t)
			s := newSite(t, cfg)
			b := s.browser()
			before := s.head()
			if tc.issuer != nil {
				tc.issuer(i)
			}
			back := b.issuer("/login/oidc?next=/approve")
			if tc.back != nil {
				back = tc.back(back)
			}
			if tc.code == 502 {
				i.set(func() { i.down = true })
			}
			got := b.get(back, crossSite...)
			if got.code != tc.code || !got.has(tc.says, `value="/approve"`) || got.has(markup) || b.cookie() != "" {
				t.Errorf("%d %s", got.code, got.text)
			}
			lines := s.lines(before)
			if tc.code == 401 && (len(lines) != 1 || lines[0].Action != "login" || lines[0].Outcome != audit.Refused || lines[0].Who != "" || strings.Contains(lines[0].Reason, "script")) {
				t.Errorf("%+v", lines)
			}
			if got := b.get("/"); got.code != 303 {
				t.Errorf("somebody is in: %d", got.code)
			}
		})
	}
}

// TestIssuerOfAnother: an answer for the login of one browser lets no other in.
func TestIssuerOfAnother(t *testing.T) {
	i, cfg := newRealIssuer(t)
	s := newSite(t, cfg)
	mallory, victim := s.browser(), s.browser()
	i.QueueUser(ada("everybody"))
	back := mallory.issuer("/login/oidc")
	if got := victim.get(back, crossSite...); got.code != 401 || victim.cookie() != "" {
		t.Errorf("a browser that began none: %d %s", got.code, got.text)
	}
	victim.issuer("/login/oidc")
	if got := victim.get(back, crossSite...); got.code != 401 || victim.cookie() != "" {
		t.Errorf("a browser that began another: %d %s", got.code, got.text)
	}
	if got := mallory.get(back, crossSite...); got.code != 200 {
		t.Errorf("who began it: %d %s", got.code, got.text)
	}
}

// TestIssuerIsDown: nothing waits for it, tokens go on working, and it is asked again.
func TestIssuerIsDown(t *testing.T) {
	i, cfg := newRealIssuer(t)
	i.set(func() { i.down = true })
	s := newSite(t, cfg)
	b := s.browser()
	if got := b.get("/login/oidc?next=/approve"); got.code != 502 || !got.has("does not answer", `name="token"`, `value="/approve"`) {
		t.Errorf("%d %s", got.code, got.text)
	}
	s.in(s.token("ada", inventory.AccessOperate))
	i.set(func() { i.down = false })
	i.QueueUser(ada("everybody"))
	if got := b.get(b.issuer("/login/oidc"), crossSite...); got.code != 200 || b.cookie() == "" {
		t.Errorf("%d %s", got.code, got.text)
	}
}

// TestIssuerGuesses: who sends answers that are no good is told to wait.
func TestIssuerGuesses(t *testing.T) {
	_, cfg := newRealIssuer(t)
	s := newSite(t, cfg)
	b := s.browser()
	codes := map[int]int{}
	for range 60 {
		codes[b.get(callback+"?state=x&code=y").code]++
	}
	if codes[401] < 10 || codes[429] < 30 || codes[401]+codes[429] != 60 {
		t.Errorf("%v", codes)
	}
}

// TestAttempt: what binds a login at the issuer to a browser.
func TestAttempt(t *testing.T) {
	_, cfg := newRealIssuer(t)
	s := newSite(t, cfg)
	got := s.browser().get("/login/oidc")
	cookies := got.header.Values("Set-Cookie")
	if len(cookies) != 1 || !strings.HasPrefix(cookies[0], "__Host-provisiond-login=") || !strings.HasSuffix(cookies[0], "; Path=/; Max-Age=600; HttpOnly; Secure; SameSite=Lax") {
		t.Errorf("%q", cookies)
	}
	u, err := url.Parse(got.header.Get("Location"))
	if err != nil {
		t.Fatal(err)
	}
	q := u.Query()
	secret, _, _ := strings.Cut(strings.TrimPrefix(cookies[0], "__Host-provisiond-login="), ".")
	if q.Get("code_challenge_method") != "S256" || len(q.Get("code_challenge")) != 43 || len(q.Get("state")) != 43 || len(q.Get("nonce")) != 43 || q.Get("state") == q.Get("nonce") ||
		q.Get("response_type") != "code" || q.Get("redirect_uri") != "https://"+s.addr+callback || strings.Contains(u.RawQuery, secret) || len(secret) != 43 {
		t.Errorf("%s", u)
	}
}

func TestWords(t *testing.T) {
	for claim, want := range map[string]string{`["a","b"]`: "a,b", `"a"`: "a", `7`: "", `{"a":1}`: "", ``: "", `["a",7]`: "", `null`: "", `[]`: ""} {
		if got := strings.Join(words(json.RawMessage(claim)), ","); got != want {
			t.Errorf("%s is %q", claim, got)
		}
	}
}
