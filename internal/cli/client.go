package cli

import (
	"cmp"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net/http"
	"os"
	"strings"
	"time"

	"github.com/provisiond/provisiond/api"
	"github.com/provisiond/provisiond/client"
)

// client is that of the provisiond of --server.
func (a *app) client() (*client.Client, error) {
	var o client.Options
	if !strings.HasPrefix(a.server, "unix:") { // which needs no login
		var err error
		if o.Token, err = a.login(); err != nil {
			return nil, err
		}
		if o.TLS, err = client.TLS(a.ca, a.cert); err != nil {
			return nil, err
		}
	}
	return a.clientWith(o)
}

// stranger is a client that believes whoever answers, and does not say who it is.
func (a *app) stranger() (*client.Client, error) {
	return a.clientWith(client.Options{TLS: &tls.Config{InsecureSkipVerify: true, MinVersion: tls.VersionTLS13}})
}

func (a *app) clientWith(o client.Options) (*client.Client, error) {
	c, err := client.New(a.server, o)
	if err != nil {
		return nil, usagef("--server %w", err)
	}
	return c, nil
}

// login is the token to log in with; empty: none is given.
func (a *app) login() (string, error) {
	token := cmp.Or(a.token, os.Getenv(TokenVariable))
	if file, ok := strings.CutPrefix(token, "@"); ok {
		text, err := os.ReadFile(file)
		if err != nil {
			return "", fmt.Errorf("reading the token: %w", err)
		}
		token = string(text)
	}
	token = strings.TrimSpace(token)
	if strings.ContainsFunc(token, func(r rune) bool { return r <= ' ' || r > '~' }) {
		return "", usagef("--token is not a token: write pvd_…, or @ and the file that it is in")
	}
	return token, nil
}

func (a *app) serverVersion(ctx context.Context) (v api.Version, err error) {
	c, err := a.client()
	if err != nil {
		return v, err
	}
	ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
	defer cancel()
	return client.Answer[api.Version](c.Version(ctx))
}

// list reads all of a list.
func list[T any](page func(after string) (*http.Response, error)) ([]T, error) {
	all := []T{}
	for item, err := range client.All[T](page) {
		if err != nil {
			return nil, err
		}
		all = append(all, item)
	}
	return all, nil
}

// explain is an error as the lines an operator reads: one for each field that
// is wrong, else one for all.
func explain(err error) []string {
	var p *client.Problem
	if !errors.As(err, &p) || len(p.Errors) == 0 {
		return []string{withFlag(err)}
	}
	var lines []string
	for _, d := range p.Errors {
		lines = append(lines, where(d.Location)+d.Message)
	}
	return lines
}

// withFlag is an error with the flag that helps.
func withFlag(err error) string {
	var unreachable *client.UnreachableError
	var untrusted *client.UntrustedError
	switch {
	case errors.As(err, &unreachable):
		return fmt.Sprintf("%s (--server or $%s names another)", err, ServerVariable)
	case errors.As(err, &untrusted):
		return fmt.Sprintf("%s; give it as --ca FILE or $%s", err, CAVariable)
	}
	return err.Error()
}

// where is a location in the operator's words.
func where(location string) string {
	for _, p := range []string{"body.", "query.", "path.", "header."} {
		location = strings.TrimPrefix(location, p)
	}
	if location == "" || location == "body" {
		return ""
	}
	return location + ": "
}
