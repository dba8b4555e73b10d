package talos

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	"github.com/provisiond/provisiond/internal/inventory"
)

const (
	// loginFor is how long a client certificate is used. It is valid for twice
	// as long.
	loginFor = 12 * time.Hour
	// maxMessage bounds an answer of a machine, in bytes.
	maxMessage = 4 << 20
)

// errRefusedUs means that the machine ended the TLS handshake over our
// certificate.
var errRefusedUs = errors.New("the machine refuses the cluster's admin certificate")

// login is a client certificate of one cluster and whom it trusts.
type login struct {
	cert   tls.Certificate
	roots  *x509.CertPool
	expire time.Time
}

// login returns the certificate for a cluster's secrets, signed when needed.
func (c *Client) login(s *inventory.Secrets) (*login, error) {
	key := digest(s.Bundle)
	if l, ok := c.logins.get(key); ok && time.Now().Before(l.expire) {
		return l, nil
	}
	b, err := loadBundle(s)
	if err != nil {
		return nil, err
	}
	pair, err := adminCertificate(b, 2*loginFor)
	if err != nil {
		return nil, fmt.Errorf("signing a certificate for cluster %s: %w", s.Cluster, err)
	}
	l := &login{roots: x509.NewCertPool(), expire: time.Now().Add(loginFor)}
	if l.cert, err = tls.X509KeyPair(pair.Crt, pair.Key); err != nil {
		return nil, fmt.Errorf("loading the certificate for cluster %s: %w", s.Cluster, err)
	}
	if !l.roots.AppendCertsFromPEM(b.Certs.OS.Crt) {
		return nil, fmt.Errorf("the secrets of cluster %s hold no CA certificate", s.Cluster)
	}
	c.logins.put(key, l)
	c.log.Info().Str("cluster", s.Cluster).Time("until", l.expire).Str("reason", "none at hand").Msg("signed an admin certificate for our own calls")
	return l, nil
}

// with dials one machine, runs f on the connection and closes it.
//
// TLS is done here and not by gRPC, which turns every handshake error into text
// and dials again by itself: a call must be sent at most once, and who refused
// whom must be known.
func (c *Client) with(ctx context.Context, s *inventory.Secrets, addr netip.Addr, f func(*grpc.ClientConn) error) error {
	l, err := c.login(s)
	if err != nil {
		return fmt.Errorf("%w: %w", ErrNotReached, err)
	}
	target := netip.AddrPortFrom(addr, c.port).String()
	conn, err := c.dial(ctx, &tls.Config{RootCAs: l.roots, Certificates: []tls.Certificate{l.cert}}, target, c.timeout)
	if err != nil {
		return fmt.Errorf("%w: %w", ErrNotReached, err)
	}
	return c.over(conn, f)
}

// over runs f on a connection, and closes it.
func (c *Client) over(conn net.Conn, f func(*grpc.ClientConn) error) error {
	defer conn.Close() //nolint:errcheck // gRPC has closed it
	var used atomic.Bool
	// The name is nobody's, since gRPC takes the zone of an address for an escape.
	g, err := grpc.NewClient("passthrough:///machine",
		grpc.WithTransportCredentials(insecure.NewCredentials()), // inside our own TLS
		grpc.WithContextDialer(func(context.Context, string) (net.Conn, error) {
			if used.Swap(true) {
				return nil, errors.New("the connection was lost")
			}
			return conn, nil
		}),
		grpc.WithNoProxy(), grpc.WithDisableRetry(), grpc.WithDisableServiceConfig(),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(maxMessage)))
	if err != nil {
		return fmt.Errorf("%w: %w", ErrNotReached, err)
	}
	defer g.Close() //nolint:errcheck // nothing to do about it
	return f(g)
}

// dial connects and shakes hands in time.
func (c *Client) dial(ctx context.Context, t *tls.Config, target string, within time.Duration) (net.Conn, error) {
	ctx, cancel := context.WithTimeout(ctx, within)
	defer cancel()
	raw, err := c.connect(ctx, target)
	if err != nil {
		return nil, err
	}
	host, _, _ := net.SplitHostPort(target)
	t.MinVersion, t.NextProtos = tls.VersionTLS13, []string{"h2"}
	t.ServerName = host // Talos' certificate names the machine's addresses
	conn := tls.Client(raw, t)
	if err := conn.HandshakeContext(ctx); err != nil {
		_ = raw.Close() // the handshake's error says more
		if _, foreign := errors.AsType[x509.UnknownAuthorityError](err); foreign {
			return nil, fmt.Errorf("%w: %w", ErrForeignCA, err)
		}
		return nil, fmt.Errorf("TLS with %s: %w", target, err)
	}
	greeted, err := awaitGreeting(ctx, conn)
	if err != nil {
		_ = conn.Close() // the error before says more
		return nil, fmt.Errorf("TLS with %s: %w", target, err)
	}
	return greeted, nil
}

// awaitGreeting waits for the first byte of the server. A TLS 1.3 client learns
// only by reading whether its certificate was taken, and a gRPC server speaks
// first, with its SETTINGS: so what fails until here failed before any call.
func awaitGreeting(ctx context.Context, conn *tls.Conn) (net.Conn, error) {
	stop := context.AfterFunc(ctx, func() { _ = conn.NetConn().Close() }) // ends the read below
	first := make([]byte, 1)
	_, err := io.ReadFull(conn, first)
	if !stop() {
		return nil, ctx.Err()
	}
	// crypto/tls has no type for alerts.
	if op, ok := errors.AsType[*net.OpError](err); ok && op.Op == "remote error" && strings.Contains(op.Err.Error(), "certificate") {
		return nil, fmt.Errorf("%w: %w", errRefusedUs, err)
	}
	if err != nil {
		return nil, err
	}
	return greetedConn{conn, io.MultiReader(bytes.NewReader(first), conn)}, nil
}

// greetedConn gives back the byte that awaitGreeting has read.
type greetedConn struct {
	net.Conn
	r io.Reader
}

func (g greetedConn) Read(b []byte) (int, error) { return g.r.Read(b) }

// connect opens a TCP connection, through the proxy if there is one.
func (c *Client) connect(ctx context.Context, target string) (net.Conn, error) {
	var d net.Dialer
	if c.proxy == "" {
		return d.DialContext(ctx, "tcp", target)
	}
	conn, err := d.DialContext(ctx, "tcp", c.proxy)
	if err != nil {
		return nil, fmt.Errorf("the proxy %s: %w", c.proxy, err)
	}
	stop := context.AfterFunc(ctx, func() { _ = conn.Close() }) // ends the exchange below
	err = tunnel(conn, target)
	if !stop() && err == nil {
		err = ctx.Err()
	}
	if err != nil {
		_ = conn.Close() // the error before says more
		return nil, fmt.Errorf("the proxy %s: %w", c.proxy, err)
	}
	return conn, nil
}

// tunnel asks an HTTP proxy for a connection (RFC 9110 section 9.3.6). The
// server behind it speaks second, so nothing but the answer is in the buffer.
func tunnel(conn net.Conn, target string) error {
	req := &http.Request{Method: http.MethodConnect, URL: &url.URL{Opaque: target}, Host: target, Header: http.Header{}}
	if err := req.Write(conn); err != nil {
		return err
	}
	resp, err := http.ReadResponse(bufio.NewReaderSize(conn, 4096), req) //nolint:bodyclose // an answer to CONNECT has none: the tunnel follows
	if err != nil {
		return err
	}
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("no tunnel to %s: %s", target, strconv.Quote(resp.Status))
	}
	return nil
}
