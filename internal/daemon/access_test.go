package daemon

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/rs/zerolog"

	"github.com/provisiond/provisiond/api"
	"github.com/provisiond/provisiond/internal/audit"
)

// lockedBuffer is a log that is read while it is written.
type lockedBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *lockedBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *lockedBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

// TestLogin is an operator's first day: a token made on the unix socket is good over TLS,
// with the CA that the daemon keeps over restarts, and the trail has all of it.
func TestLogin(t *testing.T) {
	l := newLab(t)
	l.cfg.Listen = netip.MustParseAddrPort("[::1]:0")
	var log lockedBuffer
	run := func() (d *Daemon, stop func()) {
		t.Helper()
		d, err := New(t.Context(), Options{Config: l.cfg, Version: "v0", Log: zerolog.New(&log)})
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(context.Background())
		done := make(chan error, 1)
		go func() { done <- d.Run(ctx) }()
		return d, func() {
			t.Helper()
			cancel()
			if err := <-done; err != nil {
				t.Error(err)
			}
		}
	}
	call := func(tr *http.Transport, token, method, url, body string) (int, []byte) {
		t.Helper()
		defer tr.CloseIdleConnections()
		req, err := http.NewRequestWithContext(t.Context(), method, url, strings.NewReader(body))
		if err != nil {
			t.Fatal(err)
		}
		if token != "" {
			req.Header.Set("Authorization", "Bearer "+token)
		}
		resp, err := (&http.Client{Transport: tr}).Do(req)
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		b, err := io.ReadAll(resp.Body)
		if err != nil {
			t.Fatal(err)
		}
		return resp.StatusCode, b
	}
	socket := func() *http.Transport {
		return &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return (&net.Dialer{}).DialContext(ctx, "unix", l.cfg.Socket)
		}}
	}

	d, stop := run()
	code, pem := call(socket(), "", "GET", "http://provisiond/ca.pem", "")
	trust := x509.NewCertPool()
	if code != 200 || !trust.AppendCertsFromPEM(pem) {
		t.Fatalf("%d %s", code, pem)
	}
	secure := func() *http.Transport {
		return &http.Transport{TLSClientConfig: &tls.Config{RootCAs: trust}}
	}
	url := "https://" + d.Addrs().API.String()
	if code, b := call(secure(), "", "GET", url+"/api/v1/machines", ""); code != 401 {
		t.Errorf("before: %d %s", code, b)
	}
	code, b := call(socket(), "", "POST", "http://provisiond/api/v1/tokens", `{"name":"ci","role":"read"}`)
	var made api.NewToken
	if err := json.Unmarshal(b, &made); err != nil || code != 201 {
		t.Fatalf("%d %s", code, b)
	}
	if code, b := call(secure(), made.Text, "GET", url+"/api/v1/machines", ""); code != 200 {
		t.Errorf("with the token: %d %s", code, b)
	}
	stop()
	if !strings.Contains(log.String(), "nobody has a token yet") || strings.Contains(log.String(), made.Text) {
		t.Error("the log does not say how to log in, or says the token")
	}

	before := len(log.String())
	d, stop = run()
	url = "https://" + d.Addrs().API.String()
	if code, b := call(secure(), made.Text, "GET", url+"/api/v1/machines", ""); code != 200 {
		t.Errorf("after a restart: %d %s", code, b)
	}
	stop()
	if strings.Contains(log.String()[before:], "nobody has a token yet") {
		t.Error("it says how to log in to who has")
	}

	trail, err := audit.Open(l.cfg.Data, audit.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer trail.Close()
	var chain audit.Chain
	var actions []string
	err = trail.Read(t.Context(), 0, func(line []byte, e audit.Entry) bool {
		if _, err := chain.Next(line); err != nil {
			t.Error(err)
		}
		actions = append(actions, e.Action)
		return true
	})
	if want := []string{"start", "list-machines", "create-token", "stop", "start", "stop"}; err != nil || !slices.Equal(actions, want) {
		t.Errorf("%v, %v", actions, err)
	}
	if !strings.Contains(log.String(), chain.Head) {
		t.Error("the log does not witness the end of the trail")
	}
}

// TestAPIOffTheRack: an address of one of the rack's interfaces is refused, whatever its
// prefix.
func TestAPIOffTheRack(t *testing.T) {
	all, err := net.Interfaces()
	if err != nil {
		t.Fatal(err)
	}
	for _, ifi := range all {
		addrs, err := ifi.Addrs()
		if err != nil {
			t.Fatal(err)
		}
		for _, a := range addrs {
			n, _ := a.(*net.IPNet)
			if n == nil || !n.IP.IsGlobalUnicast() {
				continue
			}
			ip, _ := netip.AddrFromSlice(n.IP)
			c := &Config{Listen: netip.AddrPortFrom(ip.Unmap(), 8440)}
			if err := c.offRack(); err != nil {
				t.Errorf("%s, which is not the rack's: %v", ifi.Name, err)
			}
			c.Interfaces = []string{"nosuch0", ifi.Name}
			if err := c.offRack(); err == nil || !strings.Contains(err.Error(), "api.listen") {
				t.Errorf("%s on %s: %v", ip, ifi.Name, err)
			}
			return
		}
	}
	if os.Getenv("CI") != "" {
		t.Fatal("this host has no address beside loopback, and CI leaves nothing out")
	}
	t.Skip("LEFT OUT: this host has no address beside loopback")
}
