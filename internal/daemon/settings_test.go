package daemon

import (
	"context"
	"encoding/json"
	"net/http"
	"net/netip"
	"reflect"
	"slices"
	"testing"
	"time"

	"github.com/rs/zerolog"

	"github.com/provisiond/provisiond/api"
	"github.com/provisiond/provisiond/internal/inventory"
	"github.com/provisiond/provisiond/web"
)

// TestSettings asks a daemon what it runs with: what its config says, and what came of
// it on this host.
func TestSettings(t *testing.T) {
	l := newLab(t)
	l.cfg.Listen = netip.MustParseAddrPort("[::1]:0")
	d, err := New(t.Context(), Options{Config: l.cfg, Version: "v0.0.0-test", Log: zerolog.Nop()})
	check(t, err)
	ctx, stop := context.WithCancel(context.Background())
	stopped := make(chan error, 1)
	go func() { stopped <- d.Run(ctx) }()
	defer func() { stop(); <-stopped }()
	_, token, err := d.keeper.CreateToken(t.Context(), inventory.Token{Name: "reader", Access: inventory.AccessRead})
	check(t, err)
	ask := newAsker(t, d, token)
	if status, _ := ask.tcp.ask("GET", "/api/v1/settings", ""); status != http.StatusForbidden {
		t.Errorf("who may only read gets %d", status)
	}
	status, text := ask.socket.ask("GET", "/api/v1/settings", "")
	var got api.Settings
	if check(t, json.Unmarshal(text, &got)); status != http.StatusOK {
		t.Fatalf("%d %s", status, text)
	}
	if h := got.Host; h.Version != "v0.0.0-test" || h.User != runsAs() || h.Data != l.cfg.Data || h.Free == 0 || len(h.KeyID) < 20 {
		t.Errorf("host: %+v", h)
	}
	for _, want := range []api.Listening{
		{Server: "api", Address: d.Addrs().API.String()}, {Server: "http", Address: d.Addrs().HTTP.String()},
		{Server: "dhcpv6", Address: d.Addrs().DHCPv6.String()}, {Server: "socket", Address: d.Addrs().Socket},
	} {
		if !slices.Contains(got.Listening, want) {
			t.Errorf("%+v is not among %+v", want, got.Listening)
		}
	}
	if want := (api.Advertised{What: "boot script", Value: "http://" + d.Addrs().HTTP.String() + "/boot.ipxe"}); !slices.Contains(got.Advertised, want) {
		t.Errorf("%+v is not among %+v", want, got.Advertised)
	}
	if len(got.Expiries) != 1 || !got.Expiries[0].Expires.After(time.Now()) {
		t.Errorf("certificates: %+v", got.Expiries)
	}
	if len(got.Subnets) != len(l.cfg.Subnets) || got.Subnets[0].Preferred != l.cfg.Subnets[0].Preferred.String() || len(got.Stall) != len(l.cfg.Stall) || len(got.Loaders) != len(l.cfg.Loaders) {
		t.Errorf("%+v", got)
	}
}

// TestSettingsOfOIDC: that there is a secret is told, and neither it nor its file.
func TestSettingsOfOIDC(t *testing.T) {
	got := oidcSettings(&Config{OIDCSecretFile: "/etc/hunter2", OIDC: &web.OIDC{
		Issuer: "https://login.example.org", ClientID: "provisiond", ClientSecret: "hunter2", Scopes: []string{"openid"}, RoleClaim: "groups",
		Roles: map[string]web.Grant{"ops": {Role: inventory.AccessAdmin}, "dev": {Role: inventory.AccessRead, Clusters: []string{"a", "b"}}},
	}})
	want := &api.OIDCSettings{
		Issuer: "https://login.example.org", ClientID: "provisiond", Scopes: []string{"openid"}, RoleClaim: "groups",
		Groups: []string{"dev: read in a, b", "ops: admin"}, Secret: true,
	}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("%+v", got)
	}
}

// TestSettingsAreDecidedOn: each field of the config is one that is told, or that is not.
// A new one fails here until somebody has decided.
func TestSettingsAreDecidedOn(t *testing.T) {
	told := []string{
		"Data", "Key", "User", "Address", "Interfaces", "DHCPv6Port", "TFTPPort", "HTTPPort", "HTTPSPort", "EventsPort", "KernelLogPort", "Socket", "Listen",
		"Names", "Certificate", "ClientCA", "OIDC", "Loaders", "Boot", "Advertise", "TalosProxy", "Maintenance", "SecureBootCertificate", "KernelLog", "LogLevel", "LogJSON", "Tracing", "Stall", "Subnets",
	}
	kept := []string{"CertificateKey", "SecureBootKey", "OIDCSecretFile"}
	for i := range reflect.TypeFor[Config]().NumField() {
		if name := reflect.TypeFor[Config]().Field(i).Name; slices.Contains(told, name) == slices.Contains(kept, name) {
			t.Errorf("is Config.%s told by Settings? Say so here", name)
		}
	}
}
