package client_test

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"iter"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"testing/iotest"
	"testing/synctest"
	"time"

	"github.com/provisiond/provisiond/api"
	"github.com/provisiond/provisiond/client"
)

func TestNew(t *testing.T) {
	certificate := &tls.Config{Certificates: []tls.Certificate{{}}, MinVersion: tls.VersionTLS13}
	for _, c := range []struct {
		server string
		o      client.Options
		err    string
	}{
		{"unix:///run/x.sock", client.Options{}, ""},
		{"https://[2001:db8::1]:8440", client.Options{Token: "t", TLS: certificate}, ""},
		{"http://[::1]:8440/", client.Options{}, ""},
		{"unix://run/x.sock", client.Options{}, "is no address: write unix:///path or https://host:port"},
		{"/run/x.sock", client.Options{}, "is no address"},
		{"https://x/api/v1", client.Options{}, "is no address"},
		{"%", client.Options{}, "is no address"},
		{"http://[::1]:8440", client.Options{Token: "t"}, "would show the login to the network"},
		{"http://[::1]:8440", client.Options{TLS: certificate}, "would show the login to the network"},
	} {
		_, err := client.New(c.server, c.o)
		if (err == nil) != (c.err == "") || err != nil && !strings.Contains(err.Error(), c.err) {
			t.Errorf("%s: %v", c.server, err)
		}
	}
}

// TestUnixSocket calls over a socket, on which no token is shown.
func TestUnixSocket(t *testing.T) {
	dir, err := os.MkdirTemp("", "client") // short: the path of a socket has 107 bytes at most
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = os.RemoveAll(dir) }()
	ln, err := net.Listen("unix", filepath.Join(dir, "sock"))
	if err != nil {
		t.Fatal(err)
	}
	server := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		fmt.Fprintf(w, `{"version":%q}`, r.Header.Get("Authorization"))
	}))
	_ = server.Listener.Close()
	server.Listener = ln
	server.Start()
	defer server.Close()
	c, err := client.New("unix://"+ln.Addr().String(), client.Options{Token: "secret"})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if v, err := client.Answer[api.Version](c.Version(t.Context())); err != nil || v.Version != "" {
		t.Errorf("%+v %v", v, err)
	}
}

// TestTLS: a server is believed if its CA is, and only then is it shown the token.
func TestTLS(t *testing.T) {
	server := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		fmt.Fprintf(w, `{"version":%q}`, r.Header.Get("Authorization"))
	}))
	defer server.Close()
	ca := filepath.Join(t.TempDir(), "ca.pem")
	if err := os.WriteFile(ca, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: server.Certificate().Raw}), 0o600); err != nil {
		t.Fatal(err)
	}
	version := func(cfg *tls.Config) (api.Version, error) {
		c, err := client.New(server.URL, client.Options{Token: "secret", TLS: cfg})
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		return client.Answer[api.Version](c.Version(t.Context()))
	}
	cfg, err := client.TLS(ca, "")
	if err != nil {
		t.Fatal(err)
	}
	if v, err := version(cfg); err != nil || v.Version != "Bearer secret" {
		t.Errorf("%+v %v", v, err)
	}
	var untrusted *client.UntrustedError
	if _, err := version(nil); !errors.As(err, &untrusted) || untrusted.Server != server.URL {
		t.Errorf("untrusted: %v", err)
	}
	empty := filepath.Join(t.TempDir(), "empty")
	if err := os.WriteFile(empty, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct{ ca, certificate, err string }{
		{"/none", "", "reading the CA"},
		{empty, "", "holds no certificate: provisiond ca prints one"},
		{"", empty, "reading the client certificate"},
	} {
		if _, err := client.TLS(c.ca, c.certificate); err == nil || !strings.Contains(err.Error(), c.err) {
			t.Errorf("TLS(%q, %q): %v", c.ca, c.certificate, err)
		}
	}
}

func TestErrors(t *testing.T) {
	for _, c := range []struct {
		name        string
		status      int
		contentType string
		body        io.Reader
		want        string
	}{
		{"problem", 404, "application/problem+json", strings.NewReader(`{"status":404,"title":"Not Found","detail":"machine \"x\": not found"}`), `machine "x": not found`},
		{"title", 429, "application/problem+json", strings.NewReader(`{"status":429,"title":"Too Many Requests"}`), "Too Many Requests"},
		{"another program", 404, "text/plain", strings.NewReader("404 page not found"), "http://provisiond answered 404 Not Found: is that provisiond?"},
		{"a redirect", 302, "text/html", strings.NewReader(""), "http://provisiond answered 302 Found: is that provisiond?"},
		{"no JSON", 200, "application/json", strings.NewReader("<html>"), "reading the answer of http://provisiond: invalid character"},
		{"a broken answer", 200, "application/json", iotest.ErrReader(errors.New("reset")), "reading the answer of http://provisiond: reset"},
	} {
		t.Run(c.name, func(t *testing.T) {
			_, err := client.Answer[api.Machine](newClient(t, func(*http.Request) *http.Response {
				resp := answered(c.status, c.contentType, c.body)
				resp.Header.Set("Location", "/elsewhere")
				resp.Status = fmt.Sprint(c.status, " ", http.StatusText(c.status))
				return resp
			}).GetMachine(t.Context(), "x"))
			if err == nil || !strings.HasPrefix(err.Error(), c.want) {
				t.Errorf("%v", err)
			}
			var p *client.Problem
			if errors.As(err, &p) != strings.HasPrefix(c.contentType, "application/problem") || p != nil && p.Status != c.status {
				t.Errorf("%#v", err)
			}
		})
	}
}

// TestUnreachable: nothing listens there.
func TestUnreachable(t *testing.T) {
	server := "unix://" + filepath.Join(t.TempDir(), "none")
	c, err := client.New(server, client.Options{})
	if err != nil {
		t.Fatal(err)
	}
	var unreachable *client.UnreachableError
	if _, err := client.Answer[api.Status](c.Status(t.Context())); !errors.As(err, &unreachable) || unreachable.Server != server {
		t.Errorf("%v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := client.Answer[api.Status](c.Status(ctx)); !errors.Is(err, context.Canceled) || errors.As(err, &unreachable) {
		t.Errorf("cancelled: %v", err)
	}
}

// slow is a body whose bytes come a minute apart each. It ends early with the request.
type slow struct {
	ctx  context.Context
	text string
}

func (s *slow) Read(p []byte) (int, error) {
	select {
	case <-s.ctx.Done():
		return 0, errors.New("the connection was closed")
	case <-time.After(time.Minute):
	}
	if s.text == "" {
		return 0, io.EOF
	}
	p[0], s.text = s.text[0], s.text[1:]
	return 1, nil
}

// TestTimeout: a document has to be there in time, a stream may last.
func TestTimeout(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newClient(t, func(r *http.Request) *http.Response {
			kind := "application/json"
			if strings.HasSuffix(r.URL.Path, "/backup") {
				kind = "application/octet-stream"
			}
			return answered(200, kind, &slow{r.Context(), `"1234567"`})
		})
		if text, err := client.Answer[[]byte](c.Backup(t.Context())); err != nil || string(text) != `"1234567"` {
			t.Errorf("backup: %q %v", text, err)
		}
		if _, err := client.Answer[string](c.Version(t.Context())); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("version: %v", err)
		}
		if text, err := client.Answer[string](c.PutBlob(t.Context(), "0", strings.NewReader("stream"), client.Size(6))); err != nil || text != "1234567" {
			t.Errorf("a blob: %q %v", text, err)
		}
	})
}

// TestBody: a body in place of the method's, and of a size that is known.
func TestBody(t *testing.T) {
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, err := io.ReadAll(r.Body)
		_ = json.NewEncoder(w).Encode(fmt.Sprintf("%d %s %s %v", r.ContentLength, r.Header.Get("Expect"), body, err))
	}))
	defer server.Close()
	c, err := client.New(server.URL, client.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if got, err := client.Answer[string](c.Apply(t.Context(), client.ApplyParams{}, api.Rack{}, client.Body(map[string]any{"a": nil}))); err != nil || got != `10  {"a":null} <nil>` {
		t.Errorf("%q %v", got, err)
	}
	if got, err := client.Answer[string](c.PutBlob(t.Context(), "0", iotest.OneByteReader(strings.NewReader("stream")), client.Size(6))); err != nil || got != "6 100-continue stream <nil>" {
		t.Errorf("%q %v", got, err)
	}
}

func TestAll(t *testing.T) {
	pages := map[string]string{
		"":  `{"items":[{"name":"a"},{"name":"b"}],"next":"b"}`,
		"b": `{"items":[{"name":"c"}],"next":"c"}`,
		"c": `{"items":[],"next":"c"}`, // as a list that goes on says that there is no more yet
	}
	asked := 0
	c := newClient(t, func(r *http.Request) *http.Response {
		asked++
		if asked > 10 {
			t.Fatal("it does not end")
		}
		page, ok := pages[r.URL.Query().Get("after")]
		if !ok {
			return answered(500, "application/problem+json", strings.NewReader(`{"status":500,"detail":"oops"}`))
		}
		return answered(200, "application/json", strings.NewReader(page))
	})
	machines := func() iter.Seq2[api.Machine, error] {
		return client.All[api.Machine](func(after string) (*http.Response, error) {
			return c.ListMachines(t.Context(), client.ListMachinesParams{After: after})
		})
	}
	names := func() (all []string, err error) {
		for m, err := range machines() {
			if err != nil {
				return all, err
			}
			all = append(all, m.Name)
		}
		return all, nil
	}
	if got, err := names(); err != nil || !slices.Equal(got, []string{"a", "b", "c"}) || asked != 3 {
		t.Errorf("%v %v, %d pages", got, err, asked)
	}
	for range machines() {
		break
	}
	if asked != 4 {
		t.Errorf("who has enough was given page %d", asked-3)
	}
	delete(pages, "b")
	if got, err := names(); err == nil || !slices.Equal(got, []string{"a", "b"}) {
		t.Errorf("%v %v", got, err)
	}
}
