package web

import (
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/chromedp/chromedp"
	"github.com/chromedp/chromedp/kb"

	"github.com/provisiond/provisiond/api"
	"github.com/provisiond/provisiond/internal/browsertest"
	"github.com/provisiond/provisiond/internal/inventory"
)

// settingsOfTests has something in each field.
func settingsOfTests() api.Settings {
	return api.Settings{
		Host:       api.HostSettings{Version: "v0.0.0-test", User: "provisiond-user", Data: "/var/lib/x-data", Free: 5 << 30, KeyID: "age1keyid", KeyFile: "/etc/x.key"},
		Listening:  []api.Listening{{Server: "tftp", Address: "[2001:db8::2]:69"}},
		Advertised: []api.Advertised{{What: "loader for amd64 by HTTP", Value: "http://[2001:db8::2]:8080/loader"}},
		API: api.APISettings{
			Names: []string{"rack.example"}, Certificate: "/etc/x-cert.pem", ClientCA: "/etc/x-clients.pem",
			OIDC: &api.OIDCSettings{Issuer: "https://issuer.example", ClientID: "x-client", RoleClaim: "x-groups", Groups: []string{"ops: operate"}, Secret: true},
		},
		Rack: api.RackSettings{
			Address: "2001:db8::2", Interfaces: []string{"x-eth0"}, TalosProxy: "http://x-proxy", KernelLog: "tcp://x-log",
			Advertisements: []api.Advertisement{{Interface: "x-eth0", SLAAC: true, Lifetime: "30m0s", MTU: 1492}},
		},
		Loaders: map[string]string{"amd64/ipxe.efi": "/usr/lib/x-ipxe.efi"}, Stall: map[string]string{"installing": "31m0s", "ready": "0s"},
		Subnets: []api.SubnetSettings{{
			Name: "rack", Prefix: "2001:db8::/64", DNS: []string{"2001:db8::53"}, Domains: []string{"x.example"}, NTP: []string{"2001:db8::123"}, Options: []uint16{4711},
			Preferred: "12h0m0s", Valid: "24h0m0s", Renew: "6h0m0s", Rebind: "9h0m0s", Preference: 7,
		}},
		Log: api.LogSettings{Level: "x-debug", JSON: true}, Tracing: "http://x-traces",
		Expiries: []api.CertificateUntil{{Name: "ca", Expires: time.Date(2036, 1, 2, 3, 4, 5, 0, time.UTC)}},
	}
}

func TestSettings(t *testing.T) {
	s := newSite(t, nil)
	b := s.in(s.token("ada", inventory.AccessAdmin))
	got := b.get("/settings")
	if got.code != 200 || !got.has("provisiond-user", "/var/lib/x-data", "5.0 GiB", "age1keyid", "/etc/x.key", "[2001:db8::2]:69", "http://[2001:db8::2]:8080/loader", "rack.example",
		"/etc/x-cert.pem", "/etc/x-clients.pem", "https://issuer.example", "x-client", "x-groups", "ops: operate", "x-eth0", "http://x-proxy", "tcp://x-log", "MTU 1492", "/usr/lib/x-ipxe.efi",
		"31m0s", "as long as it likes", "2001:db8::53", "x.example", "2001:db8::123", "4711", "6h0m0s", "preference 7", "x-debug", "http://x-traces", "2036-01-02 03:04:05Z",
		`href="/ca.pem" download`, `href="/api/v1/backup" download`, "provisiond client-certificate") {
		t.Errorf("%d %s", got.code, got.text)
	}
	for _, token := range []string{s.token("operates", inventory.AccessOperate), s.token("limited", inventory.AccessAdmin, "web")} {
		if got = s.in(token).get("/settings"); got.code != 403 || got.has("x-data") {
			t.Errorf("%d %s", got.code, got.text)
		}
	}
}

// TestTokens: a token is made, shown once, works, and is revoked.
func TestTokens(t *testing.T) {
	s := newSite(t, nil)
	ada := s.token("ada", inventory.AccessAdmin)
	b := s.in(ada)
	form := url.Values{"name": {"ci"}, "role": {"operate"}, "cluster": {"web"}, "days": {"30"}}
	got := b.post("/settings/tokens", form)
	_, text, _ := strings.Cut(got.text, `class="secret" value="`)
	text, _, _ = strings.Cut(text, `"`)
	if got.code != 200 || !strings.HasPrefix(text, "pvd_ci_") || !got.has("operate in web") {
		t.Fatalf("%d %s", got.code, got.text)
	}
	ci := s.in(text)
	if got = ci.get("/"); got.code != 200 || !got.has("<strong>ci</strong>", "in web") {
		t.Errorf("%d %s", got.code, got.text)
	}
	all, err := s.keeper.Tokens(t.Context())
	if err != nil || len(all) != 2 || all[1].By != "ada" || time.Until(all[1].Expires).Round(time.Hour) != 30*24*time.Hour {
		t.Errorf("%+v, %v", all, err)
	}
	if got = b.get("/settings"); !got.has(`href="/settings/tokens/ci/revoke"`, "by ada") || got.has(text) {
		t.Errorf("%s", got.text)
	}
	if strings.Contains(s.logs.String(), text) {
		t.Error("the log has a token")
	}
	for field, change := range map[string]struct {
		value  url.Values
		status int
	}{
		"name":     {url.Values{"name": {"ci"}, "role": {"read"}, "days": {"1"}}, 409},
		"role":     {url.Values{"name": {"two"}, "role": {"root"}, "cluster": {"web"}, "days": {"1"}}, 422},
		"expires":  {url.Values{"name": {"two"}, "role": {"read"}, "days": {"-1"}}, 422},
		"clusters": {url.Values{"name": {"two"}, "role": {"read"}, "cluster": {"nowhere"}, "days": {"1"}}, 422},
	} {
		got = b.post("/settings/tokens", change.value)
		if got.code != change.status || !got.has(`<p id="problem-`+field+`" class="bad">`, `value="`+change.value.Get("name")+`"`) {
			t.Errorf("%s: %d %s", field, got.code, got.text)
		}
	}
	if got = b.get("/settings/tokens/ci/revoke"); got.code != 200 || !got.has("Revoke ci") {
		t.Errorf("%d %s", got.code, got.text)
	}
	if got = b.post("/settings/tokens/ci/revoke", nil); got.code != 200 || !got.has("is revoked") {
		t.Errorf("%d %s", got.code, got.text)
	}
	if got = ci.get("/"); got.code != 303 {
		t.Errorf("its session goes on: %d %s", got.code, got.text)
	}
	if got = b.post("/settings/tokens/ci/revoke", nil); got.code != 404 {
		t.Errorf("%d %s", got.code, got.text)
	}
	form = url.Values{"name": {"ever"}, "role": {"read"}, "days": {""}}
	if got = b.post("/settings/tokens", form); got.code != 200 || !got.has("it is revoked") {
		t.Errorf("%d %s", got.code, got.text)
	}
	if got = s.in(s.token("operates", inventory.AccessOperate)).post("/settings/tokens", form); got.code != 403 {
		t.Errorf("%d %s", got.code, got.text)
	}
}

func TestChromiumSettings(t *testing.T) {
	s := newSite(t, nil)
	c := browsertest.New(t, s.addr, s.ca.Pool())
	download := c.Downloads()
	logIn(c, s.token("ada", inventory.AccessAdmin))
	c.Do(chromedp.Navigate(c.Base + "/settings"))
	c.Sees("#running")
	c.Shoot("settings")
	c.TabTo("#token-name")
	c.Press("ci")
	c.TabTo(`input[name=cluster][value=web]`)
	c.Press(" ")
	c.TabTo("form.stack button.main")
	c.Press(kb.Enter)
	c.Sees("input.secret:focus")
	text := browsertest.Eval[string](c, `document.querySelector("input.secret").value`)
	c.Shoot("token")
	if got := s.in(text).get("/"); got.code != 200 || !got.has("<strong>ci</strong>", "<strong>read</strong> in web") {
		t.Errorf("%d %s", got.code, got.text)
	}
	c.TabTo(`main a[href="/settings"]`)
	c.Press(kb.Enter)
	c.Sees("#running")
	c.TabTo(`a[href="/ca.pem"]`)
	c.Press(kb.Enter)
	if pem := download("provisiond-ca.pem"); pem != string(s.ca.PEM()) {
		t.Errorf("the CA is %q", pem)
	}
	c.Do(chromedp.Navigate(c.Base + "/settings/tokens/ci/revoke"))
	c.Sees("button.danger")
	c.Shoot("revoke-token")
}
