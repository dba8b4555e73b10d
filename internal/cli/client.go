package cli

import (
	"bytes"
	"cmp"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"strings"
	"time"

	"github.com/provisiond/provisiond/api"
)

// client calls the API of one provisiond.
type client struct {
	server string // as the operator wrote it
	base   string // http://host
	token  string // to log in with; empty: something else does
	http   *http.Client
}

// callTimeout bounds a call that answers with a document; making the keys of a
// cluster on a slow machine takes seconds. Streams have no bound.
const callTimeout = 2 * time.Minute

func (a *app) client() (*client, error) {
	noAddress := usagef("--server %q is no address: write unix:///path or https://host:port", a.server)
	u, err := url.Parse(a.server)
	if err != nil {
		return nil, noAddress
	}
	dialer := &net.Dialer{Timeout: 5 * time.Second}
	transport := &http.Transport{DialContext: dialer.DialContext, ResponseHeaderTimeout: 10 * time.Minute, ExpectContinueTimeout: 5 * time.Second}
	c := &client{server: a.server, http: &http.Client{Transport: transport, CheckRedirect: func(*http.Request, []*http.Request) error {
		return http.ErrUseLastResponse // provisiond redirects nobody, and a login goes nowhere else
	}}}
	switch {
	case u.Scheme == "unix" && u.Host == "" && strings.HasPrefix(u.Path, "/"):
		transport.DialContext = func(ctx context.Context, _, _ string) (net.Conn, error) {
			return dialer.DialContext(ctx, "unix", u.Path)
		}
		c.base = "http://provisiond"
	case (u.Scheme == "http" || u.Scheme == "https") && u.Host != "" && strings.Trim(u.Path, "/") == "":
		c.base = u.Scheme + "://" + u.Host
		if c.token, err = a.login(); err != nil {
			return nil, err
		}
		if u.Scheme == "http" && (c.token != "" || a.cert != "") {
			return nil, usagef("--server %q would show the login to the network: write https://", a.server)
		}
		if transport.TLSClientConfig, err = a.trust(); err != nil {
			return nil, err
		}
	default:
		return nil, noAddress
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

// trust is whom to believe over TLS, and how to log in there with a certificate.
func (a *app) trust() (*tls.Config, error) {
	cfg := &tls.Config{MinVersion: tls.VersionTLS13}
	if a.ca != "" {
		text, err := os.ReadFile(a.ca)
		if err != nil {
			return nil, fmt.Errorf("reading the CA: %w", err)
		}
		cfg.RootCAs = x509.NewCertPool()
		if !cfg.RootCAs.AppendCertsFromPEM(text) {
			return nil, fmt.Errorf("%s holds no certificate: provisiond ca prints one", a.ca)
		}
	}
	if a.cert != "" {
		pair, err := tls.LoadX509KeyPair(a.cert, a.cert)
		if err != nil {
			return nil, fmt.Errorf("reading the client certificate: %w", err)
		}
		cfg.Certificates = []tls.Certificate{pair}
	}
	return cfg, nil
}

func (a *app) serverVersion(ctx context.Context) (v api.Version, err error) {
	c, err := a.client()
	if err != nil {
		return v, err
	}
	ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
	defer cancel()
	return v, c.call(ctx, http.MethodGet, "/version", nil, nil, &v)
}

// problem is an error answer of the API.
type problem struct{ api.Problem }

func (p *problem) Error() string {
	if p.Detail != "" {
		return p.Detail
	}
	return p.Title
}

// explain is an error as the lines an operator reads: one for each field that
// is wrong, else one for all.
func explain(err error) []string {
	var p *problem
	if !errors.As(err, &p) || len(p.Errors) == 0 {
		return []string{err.Error()}
	}
	var lines []string
	for _, d := range p.Errors {
		lines = append(lines, where(d.Location)+d.Message)
	}
	return lines
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

// path joins escaped segments below the API's prefix.
func path(segments ...string) string {
	for i, s := range segments {
		segments[i] = url.PathEscape(s)
	}
	return "/" + strings.Join(segments, "/")
}

// call sends in as JSON, unless nil, and decodes the answer into out, unless
// nil.
func (c *client) call(ctx context.Context, method, path string, query url.Values, in, out any) error {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	var body io.Reader
	if in != nil {
		b, err := json.Marshal(in)
		if err != nil {
			return err
		}
		body = bytes.NewReader(b)
	}
	resp, err := c.send(ctx, method, path, query, body, -1, nil)
	if err != nil {
		return err
	}
	defer func() { _ = resp.Body.Close() }() // it was read, or the error says more
	switch out := out.(type) {
	case nil:
		return nil
	case *[]byte:
		*out, err = io.ReadAll(resp.Body)
	default:
		err = json.NewDecoder(resp.Body).Decode(out)
	}
	if err != nil {
		return fmt.Errorf("reading the answer of %s: %w", c.server, err)
	}
	return nil
}

// send returns an answer that is a success; the caller closes its body. length
// is that of a body which is a stream, else -1.
func (c *client) send(ctx context.Context, method, path string, query url.Values, body io.Reader, length int64, header http.Header) (*http.Response, error) {
	target := c.base + api.Prefix + path
	if len(query) > 0 {
		target += "?" + query.Encode()
	}
	return c.sendTo(ctx, method, target, body, length, header)
}

func (c *client) sendTo(ctx context.Context, method, target string, body io.Reader, length int64, header http.Header) (*http.Response, error) {
	req, err := http.NewRequestWithContext(ctx, method, target, body)
	if err != nil {
		return nil, err
	}
	for k, v := range header {
		req.Header[k] = v
	}
	if c.token != "" {
		req.Header.Set("Authorization", "Bearer "+c.token)
	}
	switch {
	case length >= 0:
		req.ContentLength = length
		req.Header.Set("Content-Type", "application/octet-stream")
		req.Header.Set("Expect", "100-continue") // a refusal comes before the bytes, not as a broken pipe
	case method == http.MethodPatch:
		req.Header.Set("Content-Type", "application/merge-patch+json")
	case body != nil:
		req.Header.Set("Content-Type", "application/json")
	}
	resp, err := c.http.Do(req)
	if err != nil {
		return nil, c.unreachable(ctx, err)
	}
	if resp.StatusCode < 300 {
		return resp, nil
	}
	defer func() { _ = resp.Body.Close() }()
	text, err := io.ReadAll(io.LimitReader(resp.Body, api.MaxBody))
	if err != nil {
		return nil, fmt.Errorf("reading the answer of %s: %w", c.server, err)
	}
	p := &problem{}
	if json.Unmarshal(text, &p.Problem) != nil || p.Status == 0 {
		return nil, fmt.Errorf("%s answered %s: is that provisiond?", c.server, resp.Status)
	}
	return nil, p
}

// unreachable says what to do about a daemon that does not answer.
func (c *client) unreachable(ctx context.Context, err error) error {
	var op *net.OpError
	if ctx.Err() == nil && errors.As(err, &op) && op.Op == "dial" {
		return fmt.Errorf("cannot reach provisiond at %s: %w; is it running? (--server or $%s names another)", c.server, op.Err, ServerVariable)
	}
	var unknown x509.UnknownAuthorityError
	if errors.As(err, &unknown) {
		return fmt.Errorf("provisiond at %s shows a certificate of a CA that is not trusted here: on its host, provisiond ca prints it; give it as --ca FILE or $%s", c.server, CAVariable)
	}
	var u *url.Error
	if errors.As(err, &u) {
		err = u.Err
	}
	return fmt.Errorf("calling provisiond at %s: %w", c.server, err)
}

// list reads every page of a list.
func list[T any](ctx context.Context, c *client, path string, query url.Values) ([]T, error) {
	if query == nil {
		query = url.Values{}
	}
	all := []T{}
	for {
		var p api.List[T]
		if err := c.call(ctx, http.MethodGet, path, query, nil, &p); err != nil {
			return nil, err
		}
		all = append(all, p.Items...)
		if p.Next == "" || p.Next == query.Get("after") {
			return all, nil
		}
		query.Set("after", p.Next)
	}
}
