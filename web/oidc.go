package web

import (
	"cmp"
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"strings"
	"sync/atomic"
	"time"
	"unicode"

	"github.com/coreos/go-oidc/v3/oidc"
	"golang.org/x/oauth2"

	"github.com/provisiond/provisiond/internal/admin"
	"github.com/provisiond/provisiond/internal/inventory"
)

// OIDC is an issuer that vouches for people (OpenID Connect Core 1.0), and what those of
// its groups may do.
type OIDC struct {
	Issuer       string // its URL, as its tokens have it
	ClientID     string
	ClientSecret string   // empty: we are a public client, which PKCE protects
	Scopes       []string // with openid
	RoleClaim    string   // the claim that lists groups
	Roles        map[string]Grant
}

// Grant is what the members of a group may do.
type Grant struct {
	Role     inventory.Access
	Clusters []string // all that they may see and change; none: the whole rack
}

// grant returns what a member of some groups may do: the first of those that give the
// highest role.
func (c *OIDC) grant(groups []string) (best Grant, ok bool) {
	for _, name := range groups {
		if g, is := c.Roles[name]; is && (!ok || !best.Role.Allows(g.Role)) {
			best, ok = g, true
		}
	}
	return best, ok
}

// noPerson is why the answer of an issuer lets nobody in.
type noPerson struct {
	reason string // quotes nothing that was sent
	err    error
}

func (e *noPerson) Error() string {
	if e.err == nil {
		return e.reason
	}
	return fmt.Sprintf("%s: %v", e.reason, e.err)
}

func (e *noPerson) Unwrap() error { return e.err }

// issuer asks an OIDC by the authorization code flow with PKCE (RFC 7636). It is first
// asked when somebody logs in there, and again until it answers.
type issuer struct {
	OIDC
	name     string // for people
	http     *http.Client
	now      func() time.Time
	provider atomic.Pointer[oidc.Provider] // nil: it has not answered yet
}

func newIssuer(cfg OIDC, now func() time.Time) *issuer {
	name := cfg.Issuer
	if u, err := url.Parse(cfg.Issuer); err == nil && u.Host != "" {
		name = u.Host
	}
	return &issuer{OIDC: cfg, name: name, now: now, http: &http.Client{Timeout: 10 * time.Second}}
}

// client is how it is asked from a redirect URL on.
func (i *issuer) client(ctx context.Context, redirect string) (*oidc.Provider, *oauth2.Config, error) {
	p := i.provider.Load()
	if p == nil {
		var err error
		if p, err = oidc.NewProvider(oidc.ClientContext(ctx, i.http), i.Issuer); err != nil {
			return nil, nil, fmt.Errorf("asking %s how it works: %w", i.Issuer, err)
		}
		i.provider.Store(p)
	}
	return p, &oauth2.Config{ClientID: i.ClientID, ClientSecret: i.ClientSecret, Endpoint: p.Endpoint(), RedirectURL: redirect, Scopes: i.Scopes}, nil
}

// derived is what one attempt to log in is checked by, made of its secret.
func derived(secret, what string) string {
	mac := hmac.New(sha256.New, []byte(secret))
	_, _ = mac.Write([]byte(what)) // never fails (hash.Hash)
	return base64.RawURLEncoding.EncodeToString(mac.Sum(nil))
}

// url is where to send a browser that keeps a secret. It returns an error if the issuer
// does not answer.
func (i *issuer) url(ctx context.Context, redirect, secret string) (string, error) {
	_, client, err := i.client(ctx, redirect)
	if err != nil {
		return "", err
	}
	return client.AuthCodeURL(derived(secret, "state"), oidc.Nonce(derived(secret, "nonce")), oauth2.S256ChallengeOption(derived(secret, "verifier"))), nil
}

// person is whom the issuer vouches for in an answer to who keeps the secret. An answer that
// lets nobody in is a *noPerson; any other error is that the issuer does not answer.
func (i *issuer) person(ctx context.Context, redirect, secret string, answer url.Values) (admin.Principal, error) {
	var none admin.Principal
	if secret == "" || subtle.ConstantTimeCompare([]byte(answer.Get("state")), []byte(derived(secret, "state"))) != 1 {
		return none, &noPerson{reason: "this login was not begun in this browser, or too long ago"}
	}
	if answer.Has("error") {
		return none, &noPerson{"the issuer let nobody in", fmt.Errorf("%q", answer.Get("error"))}
	}
	provider, client, err := i.client(ctx, redirect)
	if err != nil {
		return none, err
	}
	ctx = oidc.ClientContext(ctx, i.http)
	token, err := client.Exchange(ctx, answer.Get("code"), oauth2.VerifierOption(derived(secret, "verifier")))
	var refused *oauth2.RetrieveError
	switch {
	case errors.As(err, &refused) && refused.Response.StatusCode < http.StatusInternalServerError:
		return none, &noPerson{"the issuer knows nothing of this login", err}
	case err != nil:
		return none, fmt.Errorf("asking %s who it is: %w", i.Issuer, err)
	}
	raw, _ := token.Extra("id_token").(string) // none does not verify
	id, err := provider.Verifier(&oidc.Config{ClientID: i.ClientID, Now: i.now}).Verify(ctx, raw)
	if err != nil {
		return none, &noPerson{"the issuer's token is not good here and now", err}
	}
	if subtle.ConstantTimeCompare([]byte(id.Nonce), []byte(derived(secret, "nonce"))) != 1 {
		return none, &noPerson{reason: "the issuer's token is for another login"}
	}
	var claims map[string]json.RawMessage
	if err := id.Claims(&claims); err != nil {
		return none, &noPerson{"the issuer's token does not read", err}
	}
	name := cmp.Or(word(claims["preferred_username"]), word(claims["email"]), word(claims["sub"]))
	grant, ok := i.grant(words(claims[i.RoleClaim]))
	if !ok || name == "" {
		return none, &noPerson{"the issuer vouches for somebody in no group that may do anything here", fmt.Errorf("%q, in %q", name, words(claims[i.RoleClaim]))}
	}
	return admin.Principal{Name: name, Via: admin.ViaOIDC, Role: grant.Role, Clusters: grant.Clusters}, nil
}

// maxName bounds a name that stands in every line of the audit trail.
const maxName = 128

// word is a claim that is one printable word or more; empty: it is not.
func word(claim json.RawMessage) string {
	var s string
	if json.Unmarshal(claim, &s) != nil || len(s) > maxName || strings.ContainsFunc(s, func(r rune) bool { return !unicode.IsPrint(r) }) {
		return ""
	}
	return s
}

// words is a claim that lists some, or is one.
func words(claim json.RawMessage) []string {
	var list []string
	if json.Unmarshal(claim, &list) == nil {
		return list
	}
	var one string
	if json.Unmarshal(claim, &one) == nil {
		return []string{one}
	}
	return nil
}
