package racktest

import (
	"context"
	"crypto/tls"
	"fmt"
	"net/http"
	"net/url"
	"strings"
	"time"

	"golang.org/x/oauth2"
)

// authorize waits for a person, where the kernel line says so: OAuth2's device flow
// (platform/metal/oauth2/oauth2.go, by the same library). It returns what goes into the
// Authorization header of the config's GET, empty if nothing does. Whatever fails starts
// the config controller over, and with it a new flow; only a deadline is waited out.
func (s *system) authorize(ctx context.Context, target string) (string, error) {
	if !s.line.has("talos.config.oauth.client_id") {
		return "", nil
	}
	cfg := oauth2.Config{
		ClientID: s.line.first("talos.config.oauth.client_id"), ClientSecret: s.line.first("talos.config.oauth.client_secret"),
		Scopes: s.line.values["talos.config.oauth.scope"],
	}
	var err error
	if cfg.Endpoint.DeviceAuthURL, err = s.endpoint(target, "device_auth_url", "/device/code"); err != nil {
		return "", err
	}
	if cfg.Endpoint.TokenURL, err = s.endpoint(target, "token_url", "/token"); err != nil {
		return "", err
	}
	var extra []oauth2.AuthCodeOption
	for _, name := range s.line.values["talos.config.oauth.extra_variable"] {
		value, ok := map[string]string{"mac": s.MAC().String(), "serial": s.Serial(), "uuid": s.opts.UUID.String(), "hostname": s.net.hostname}[name]
		if !ok {
			return "", fmt.Errorf("unsupported variable name: %q", name)
		}
		extra = append(extra, oauth2.SetAuthURLParam(name, value))
	}
	transport := &http.Transport{DisableKeepAlives: true, TLSClientConfig: &tls.Config{RootCAs: s.trust.now()}}
	ctx = context.WithValue(ctx, oauth2.HTTPClient, &http.Client{Transport: transport})
	s.kmsg.talos("[OAuth] starting the authentication device flow with the following settings: client ID %q, device auth URL %q, token URL %q", cfg.ClientID, cfg.Endpoint.DeviceAuthURL, cfg.Endpoint.TokenURL)
	device, err := cfg.DeviceAuth(ctx, extra...)
	if err != nil {
		return "", fmt.Errorf("failed to get device auth response: %w", err)
	}
	s.kmsg.talos("[OAuth] please visit the URL %s and enter the code %s", device.VerificationURI, device.UserCode)
	s.kmsg.talos("[OAuth] waiting for the device to be authorized (expires at %s)...", device.Expiry.Format(time.TimeOnly))
	s.timeline.add(StepConfig, "waits to be approved: its console shows %s", device.UserCode)
	s.loaded(func(l *Loaded) { l.UserCode = device.UserCode })
	if s.opts.Timing.ConfigUnit < time.Second {
		device.Interval = 1 // as short as the library has it
	}
	token, err := cfg.DeviceAccessToken(ctx, device, extra...)
	if err != nil {
		return "", fmt.Errorf("failed to get device access token: %w", err)
	}
	s.kmsg.talos("[OAuth] device authorized successfully")
	return token.Type() + " " + token.AccessToken, nil
}

// endpoint is a URL of the flow: as it is given, or the config's with another path and
// its own query, in which nothing is filled in.
func (s *system) endpoint(target, name, path string) (string, error) {
	if given := s.line.first("talos.config.oauth." + name); given != "" {
		return given, nil
	}
	u, err := url.Parse(target)
	if err != nil {
		return "", err
	}
	u.Path, u.RawPath, u.Fragment = path, "", ""
	return strings.TrimSuffix(u.String(), "#"), nil
}
