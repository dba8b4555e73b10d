package tracing

import (
	"bytes"
	"compress/gzip"
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
	"os"
	"strings"
	"time"

	commonpb "go.opentelemetry.io/proto/otlp/common/v1"
	resourcepb "go.opentelemetry.io/proto/otlp/resource/v1"
	tracepb "go.opentelemetry.io/proto/otlp/trace/v1"
	"golang.org/x/net/http/httpguts"
	"google.golang.org/protobuf/proto"

	"github.com/provisiond/provisiond/internal/inventory"
)

// Config is where traces go.
type Config struct {
	// Endpoint is the URL of a collector that takes OTLP over HTTP, without its
	// /v1/traces.
	Endpoint string
	// HeadersFile is a file of header lines for each request, "Authorization: Bearer ...";
	// empty: there are none. CAFile has the CA of the collector, in PEM; empty: those of
	// this host.
	HeadersFile, CAFile string
}

// Validate checks what can be known without a look at the files. Its errors are
// *inventory.FieldError.
func (c Config) Validate() error {
	u, err := url.Parse(c.Endpoint)
	switch {
	case err != nil || u.Scheme != "https" && u.Scheme != "http" || u.Hostname() == "" || u.User != nil || u.RawQuery != "" || u.Fragment != "":
		return bad("endpoint", "its URL without /v1/traces, such as https://otel.example.org:4318; a password belongs into headersFile", "it is not the URL of a collector")
	case u.Scheme == "http" && c.CAFile != "":
		return bad("ca", "leave it out, or write https", "the endpoint has no TLS")
	case u.Scheme == "http" && c.HeadersFile != "" && !loopback(u.Hostname()):
		return bad("endpoint", "write https", "the headers would go to %s unencrypted", u.Host)
	}
	return nil
}

func loopback(host string) bool {
	a, err := netip.ParseAddr(host)
	return host == "localhost" || err == nil && a.IsLoopback()
}

func bad(field, fix, problem string, args ...any) error {
	return &inventory.FieldError{Field: "tracing." + field, Problem: fmt.Sprintf(problem, args...), Fix: fix}
}

// Collector is a server that takes OTLP over HTTP: protobuf, gzip.
type Collector struct {
	url      string
	headers  http.Header
	client   *http.Client
	resource *resourcepb.Resource
}

// timeout is for one request.
const timeout = 10 * time.Second

// NewCollector reads the files of a config that is valid. version is that of
// provisiond. Its errors are *inventory.FieldError. It asks nobody anything.
func NewCollector(c Config, version string) (*Collector, error) {
	u, err := url.Parse(c.Endpoint)
	if err != nil {
		return nil, bad("endpoint", "such as https://otel.example.org:4318", "it is not a URL")
	}
	transport := &http.Transport{
		Proxy: http.ProxyFromEnvironment, DialContext: (&net.Dialer{Timeout: timeout}).DialContext, ForceAttemptHTTP2: true,
		IdleConnTimeout: time.Minute, TLSHandshakeTimeout: timeout, TLSClientConfig: &tls.Config{MinVersion: tls.VersionTLS12},
	}
	if c.CAFile != "" {
		pem, err := os.ReadFile(c.CAFile)
		roots := x509.NewCertPool()
		if err == nil && !roots.AppendCertsFromPEM(pem) {
			err = errors.New("there is no certificate in it")
		}
		if err != nil {
			return nil, bad("ca", "a PEM file of the collector's CA", "%v", err)
		}
		transport.TLSClientConfig.RootCAs = roots
	}
	out := &Collector{url: u.JoinPath("v1/traces").String(), headers: http.Header{}, client: &http.Client{
		Transport: transport, Timeout: timeout,
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }, // the headers are for nobody else
	}}
	if c.HeadersFile != "" {
		if out.headers, err = readHeaders(c.HeadersFile); err != nil {
			return nil, err
		}
	}
	out.resource = &resourcepb.Resource{Attributes: attributes{{"service.name", "provisiond"}, {"service.version", version}}.keyValues()}
	return out, nil
}

// readHeaders never says what is in the file.
func readHeaders(path string) (http.Header, error) {
	const fix = "one NAME: VALUE in a line, such as Authorization: Bearer and a token"
	content, err := os.ReadFile(path)
	if err != nil {
		return nil, bad("headersFile", fix, "%v", err)
	}
	headers, n := http.Header{}, 0
	for line := range strings.Lines(string(content)) {
		n++
		if strings.TrimSpace(line) == "" {
			continue
		}
		name, value, ok := strings.Cut(line, ":")
		name, value = strings.TrimSpace(name), strings.TrimSpace(value)
		if !ok || value == "" || !httpguts.ValidHeaderFieldName(name) || !httpguts.ValidHeaderFieldValue(value) {
			return nil, bad("headersFile", fix, "line %d of %s is no header", n, path)
		}
		headers.Add(name, value)
	}
	if len(headers) == 0 {
		return nil, bad("headersFile", fix, "%s is empty", path)
	}
	return headers, nil
}

// errRefused wraps the error of what a collector will never take.
var errRefused = errors.New("refused")

// Send gives spans to the collector. An error that wraps errRefused says that it is of
// no use to try again.
func (c *Collector) Send(ctx context.Context, spans []*tracepb.Span) error {
	// TracesData has the fields of the request message, and needs no gRPC.
	body, err := proto.Marshal(&tracepb.TracesData{ResourceSpans: []*tracepb.ResourceSpans{{
		Resource:   c.resource,
		ScopeSpans: []*tracepb.ScopeSpans{{Scope: &commonpb.InstrumentationScope{Name: "provisiond"}, Spans: spans}},
	}}})
	if err != nil {
		return fmt.Errorf("%w: %w", errRefused, err)
	}
	var packed bytes.Buffer
	zip := gzip.NewWriter(&packed)
	if _, err := zip.Write(body); err != nil {
		return err
	}
	if err := zip.Close(); err != nil {
		return err
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, c.url, &packed)
	if err != nil {
		return err
	}
	req.Header = c.headers.Clone()
	req.Header.Set("Content-Type", "application/x-protobuf")
	req.Header.Set("Content-Encoding", "gzip")
	resp, err := c.client.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()                                       //nolint:errcheck // nothing was written
	_, _ = io.Copy(io.Discard, io.LimitReader(resp.Body, 64<<10)) // so that the connection can be used again
	switch {
	case resp.StatusCode >= 200 && resp.StatusCode < 300:
		return nil
	case resp.StatusCode == http.StatusBadRequest || resp.StatusCode == http.StatusRequestEntityTooLarge:
		return fmt.Errorf("%w: %s", errRefused, resp.Status)
	}
	return errors.New(resp.Status)
}

// Close ends connections that are idle.
func (c *Collector) Close() { c.client.CloseIdleConnections() }
