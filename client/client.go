package client

import (
	"context"
	"crypto/tls"
	"crypto/x509"
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

// Client calls the API of one provisiond. It can be used by many goroutines at once.
type Client struct {
	server string // as the caller of New wrote it
	base   string // http://host
	token  string // to log in with; empty: something else does
	http   *http.Client
}

// Options are how to log in, and whom to believe. The zero value is for a unix socket,
// which needs neither.
type Options struct {
	// Token to log in with over https, as provisiond token create prints it. Empty: a
	// client certificate does, or nothing.
	Token string
	// TLS says which CA to trust over https, and has the client certificate; see [TLS].
	// nil: the CAs that the host trusts, and none.
	TLS *tls.Config
	// Transport sends requests instead of a connection to the server, such as to a
	// handler in the same process. nil: there is a connection.
	Transport http.RoundTripper
}

// New returns a client of the provisiond at a server, unix:///path or https://host:port.
// It does no I/O. Plain http://host:port works, too, where nobody logs in. An error says
// what is wrong with server.
func New(server string, o Options) (*Client, error) {
	noAddress := fmt.Errorf("%q is no address: write unix:///path or https://host:port", server)
	u, err := url.Parse(server)
	if err != nil {
		return nil, noAddress
	}
	dialer := &net.Dialer{Timeout: 5 * time.Second}
	transport := &http.Transport{DialContext: dialer.DialContext, ResponseHeaderTimeout: 10 * time.Minute, ExpectContinueTimeout: 5 * time.Second}
	c := &Client{server: server, http: &http.Client{Transport: transport, CheckRedirect: func(*http.Request, []*http.Request) error {
		return http.ErrUseLastResponse // provisiond redirects nobody, and a login goes nowhere else
	}}}
	switch {
	case u.Scheme == "unix" && u.Host == "" && strings.HasPrefix(u.Path, "/"):
		transport.DialContext = func(ctx context.Context, _, _ string) (net.Conn, error) {
			return dialer.DialContext(ctx, "unix", u.Path)
		}
		c.base = "http://provisiond"
	case (u.Scheme == "http" || u.Scheme == "https") && u.Host != "" && strings.Trim(u.Path, "/") == "":
		if u.Scheme == "http" && (o.Token != "" || o.TLS != nil && len(o.TLS.Certificates) > 0) {
			return nil, fmt.Errorf("%q would show the login to the network: write https://", server)
		}
		c.base, c.token = u.Scheme+"://"+u.Host, o.Token
		transport.TLSClientConfig = o.TLS
		if o.TLS == nil {
			transport.TLSClientConfig = &tls.Config{MinVersion: tls.VersionTLS13}
		}
	default:
		return nil, noAddress
	}
	if o.Transport != nil {
		c.http.Transport = o.Transport
	}
	return c, nil
}

// TLS is for [Options]: whom to believe, and how to log in with a certificate. ca is the
// file of a CA's certificate, as provisiond ca prints it; empty: those that the host
// trusts. certificate is the file of a client certificate and its key, as provisiond
// client-certificate prints them; empty: none.
func TLS(ca, certificate string) (*tls.Config, error) {
	cfg := &tls.Config{MinVersion: tls.VersionTLS13}
	if ca != "" {
		text, err := os.ReadFile(ca)
		if err != nil {
			return nil, fmt.Errorf("reading the CA: %w", err)
		}
		cfg.RootCAs = x509.NewCertPool()
		if !cfg.RootCAs.AppendCertsFromPEM(text) {
			return nil, fmt.Errorf("%s holds no certificate: provisiond ca prints one", ca)
		}
	}
	if certificate != "" {
		pair, err := tls.LoadX509KeyPair(certificate, certificate)
		if err != nil {
			return nil, fmt.Errorf("reading the client certificate: %w", err)
		}
		cfg.Certificates = []tls.Certificate{pair}
	}
	return cfg, nil
}

// Close closes connections that nothing uses. The client can be used again.
func (c *Client) Close() { c.http.CloseIdleConnections() }

// CA returns the certificate of provisiond's own CA, as PEM. It comes from whoever answers.
func (c *Client) CA(ctx context.Context) ([]byte, error) {
	resp, err := c.send(ctx, request{method: http.MethodGet, path: "/ca.pem"}, nil)
	if err != nil {
		return nil, err
	}
	defer func() { _ = resp.Body.Close() }() // it was read, or the error says more
	return io.ReadAll(io.LimitReader(resp.Body, api.MaxBody))
}
