//go:build linux

package main

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"net/http"

	"github.com/klauspost/compress/zstd"
	"github.com/siderolabs/talos/pkg/machinery/config/configloader"
	"golang.org/x/oauth2"
)

// trusted are the roots of talos.config.early. There are no others in this system.
func trusted(early string) (*x509.CertPool, error) {
	roots := x509.NewCertPool()
	if early == "" {
		return roots, nil
	}
	packed, err := base64.StdEncoding.DecodeString(early)
	if err != nil {
		return nil, fmt.Errorf("talos.config.early: %w", err)
	}
	zr, err := zstd.NewReader(bytes.NewReader(packed))
	if err != nil {
		return nil, fmt.Errorf("talos.config.early: %w", err)
	}
	defer zr.Close()
	text, err := io.ReadAll(io.LimitReader(zr, 1<<20))
	if err != nil {
		return nil, fmt.Errorf("talos.config.early: %w", err)
	}
	cfg, err := configloader.NewFromBytes(text)
	if err != nil {
		return nil, fmt.Errorf("talos.config.early: %w", err)
	}
	for _, pem := range cfg.TrustedRoots().ExtraTrustedRootCertificates() {
		if !roots.AppendCertsFromPEM([]byte(pem)) {
			return nil, errors.New("talos.config.early: a root that is no certificate")
		}
	}
	return roots, nil
}

// httpClient asks as Talos does: anew for each request.
func httpClient(roots *x509.CertPool) *http.Client {
	return &http.Client{Transport: &http.Transport{DisableKeepAlives: true, TLSClientConfig: &tls.Config{RootCAs: roots}}}
}

// authorize waits for a person, where the kernel line says so, and returns what goes
// into the Authorization header of the config's GET.
func authorize(ctx context.Context, console *console, line *commandLine, client *http.Client) (string, error) {
	if line.clientID == "" {
		return "", nil
	}
	ctx = context.WithValue(ctx, oauth2.HTTPClient, client)
	cfg := oauth2.Config{ClientID: line.clientID, Endpoint: oauth2.Endpoint{DeviceAuthURL: line.deviceURL, TokenURL: line.tokenURL}}
	device, err := cfg.DeviceAuth(ctx)
	if err != nil {
		return "", err
	}
	console.say("approve %s at %s", device.UserCode, device.VerificationURI)
	token, err := cfg.DeviceAccessToken(ctx, device)
	if err != nil {
		return "", err
	}
	return token.Type() + " " + token.AccessToken, nil
}
