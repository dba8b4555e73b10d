package daemon

import (
	"context"
	"crypto/tls"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	"github.com/rs/zerolog"

	"github.com/provisiond/provisiond/internal/inventory"
	"github.com/provisiond/provisiond/web"
)

// TestPages: the daemon serves pages over TLS, with the issuer of its config, and none on
// the unix socket.
func TestPages(t *testing.T) {
	l := newLab(t)
	l.cfg.Listen = netip.MustParseAddrPort("[::1]:0")
	l.cfg.OIDC = &web.OIDC{Issuer: "https://login.example.org/ops", ClientID: "provisiond"}
	l.cfg.OIDCSecretFile = filepath.Join(l.dir, "secret")
	if _, err := New(t.Context(), Options{Config: l.cfg, Log: zerolog.Nop()}); err == nil || !strings.Contains(err.Error(), "api.oidc.clientSecretFile") {
		t.Fatalf("without its secret: %v", err)
	}
	if err := os.WriteFile(l.cfg.OIDCSecretFile, []byte("hunter2\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if o, err := l.cfg.issuer(); err != nil || o.ClientSecret != "hunter2" || l.cfg.OIDC.ClientSecret != "" {
		t.Errorf("%+v, %v", o, err)
	}
	d, err := New(t.Context(), Options{Config: l.cfg, Version: "v0", Log: zerolog.Nop()})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- d.Run(ctx) }()
	defer func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	}()
	get := func(tr *http.Transport, url string) (int, string) {
		t.Helper()
		defer tr.CloseIdleConnections()
		resp, err := (&http.Client{Transport: tr}).Get(url)
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		b, err := io.ReadAll(resp.Body)
		if err != nil {
			t.Fatal(err)
		}
		return resp.StatusCode, string(b)
	}
	secure := &http.Transport{TLSClientConfig: &tls.Config{InsecureSkipVerify: true}}
	if code, text := get(secure, "https://"+d.Addrs().API.String()+"/approve"); code != 200 || !strings.Contains(text, "log in with login.example.org") {
		t.Errorf("%d %s", code, text)
	}
	socket := &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, "unix", l.cfg.Socket)
	}}
	for _, path := range []string{"/", "/login", "/approve"} {
		if code, text := get(socket, "http://provisiond"+path); code != 404 || !strings.Contains(text, "/openapi.json") {
			t.Errorf("%s on the socket: %d %s", path, code, text)
		}
	}
}

func TestOIDCConfig(t *testing.T) {
	const good = "address: 2001:db8::2\nsubnets: [{name: a, prefix: 2001:db8::/64, machines: 2001:db8::100-2001:db8::1ff}]\n"
	parse := func(oidc string) (*Config, error) { return ParseConfig([]byte(good + "api: {oidc: {" + oidc + "}}\n")) }
	const min = "issuer: 'https://login.example.org/ops', clientID: p, "
	c, err := parse(min + "clientSecretFile: /s, roles: {admins: {role: admin}, team: {role: operate, clusters: [web]}}")
	want := &web.OIDC{Issuer: "https://login.example.org/ops", ClientID: "p", Scopes: []string{"openid", "profile", "email", "groups"}, RoleClaim: "groups",
		Roles: map[string]web.Grant{"admins": {Role: inventory.AccessAdmin}, "team": {Role: inventory.AccessOperate, Clusters: []string{"web"}}}}
	if err != nil || !reflect.DeepEqual(c.OIDC, want) || c.OIDCSecretFile != "/s" {
		t.Errorf("%+v, %v", c, err)
	}
	if c, err = parse(min + "scopes: [openid, x], roleClaim: y, roles: {g: {role: read}}"); err != nil || c.OIDC.RoleClaim != "y" || len(c.OIDC.Scopes) != 2 {
		t.Errorf("%+v, %v", c, err)
	}
	if c, err = parse(""); err != nil || c.OIDC != nil {
		t.Errorf("%+v, %v", c, err)
	}
	const roles = "roles: {g: {role: read}}"
	for text, field := range map[string]string{
		"clientID: p": "api.oidc.issuer", roles: "api.oidc.issuer",
		"issuer: 'http://login.example.org', clientID: p, " + roles:      "api.oidc.issuer",
		"issuer: login.example.org, clientID: p, " + roles:               "api.oidc.issuer",
		"issuer: 'https://login.example.org?x=y', clientID: p, " + roles: "api.oidc.issuer",
		"issuer: 'https://login.example.org', " + roles:                  "api.oidc.clientID",
		min:                                 "api.oidc.roles",
		min + "scopes: [profile], " + roles: "api.oidc.scopes",
		min + "roles: {g: {}}":              "api.oidc.roles.g.role",
		min + "roles: {g: {role: root}}":    "api.oidc.roles.g.role",
		min + "roles: {g: {role: read, clusters: []}}":   "api.oidc.roles.g.clusters",
		min + "roles: {g: {role: read, clusters: [A_]}}": "api.oidc.roles.g.clusters[0]",
		min + "secret: hunter2, " + roles:                "secret",
	} {
		if _, err := parse(text); err == nil || !strings.Contains(err.Error(), field) {
			t.Errorf("%s: %v, want %s", text, err, field)
		}
	}
}
