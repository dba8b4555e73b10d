package admin

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509/pkix"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/provisiond/provisiond/internal/audit"
	"github.com/provisiond/provisiond/internal/ca"
	"github.com/provisiond/provisiond/internal/inventory"
)

// port is the API on a real TLS socket.
type port struct {
	*rig
	ca   *ca.CA
	addr string
	late atomic.Int64 // how much later it is than it is, in nanoseconds
}

func newCA(t *testing.T) *ca.CA {
	t.Helper()
	text, err := ca.New()
	if err != nil {
		t.Fatal(err)
	}
	authority, err := ca.Load(text)
	if err != nil {
		t.Fatal(err)
	}
	return authority
}

// newPort serves two clusters over TLS. show nil: a certificate of its own CA.
func newPort(t *testing.T, show func(*tls.ClientHelloInfo) (*tls.Certificate, error)) *port {
	t.Helper()
	p := &port{rig: twoClusters(t), ca: newCA(t)}
	p.Server = New(Config{Trail: p.trail, CA: p.ca, Running: fakeRunning{}, Now: func() time.Time { return time.Now().Add(time.Duration(p.late.Load())) }},
		p.keeper, p.talos, &p.guards, p.blobs, p.Server.log)
	ln, err := net.Listen("tcp", "[::1]:0")
	if err != nil {
		t.Fatal(err)
	}
	if show == nil {
		show = p.ca.Server()
	}
	p.addr = ln.Addr().String()
	p.listen(t, tls.NewListener(ln, TLS(show, p.ca.Pool())))
	return p
}

// as is a client that trusts the port and shows a certificate, or none.
func (p *port) as(cert ...tls.Certificate) *http.Client {
	tr := &http.Transport{TLSClientConfig: &tls.Config{RootCAs: p.ca.Pool(), Certificates: cert}}
	p.t.Cleanup(tr.CloseIdleConnections)
	return &http.Client{Transport: tr}
}

// send sends one request with a token; empty: with none.
func (p *port) send(c *http.Client, token, method, path, body string) (code int, header http.Header, text string) {
	p.t.Helper()
	req, err := http.NewRequestWithContext(p.t.Context(), method, "https://"+p.addr+path, strings.NewReader(body))
	if err != nil {
		p.t.Fatal(err)
	}
	if token != "" {
		req.Header.Set("Authorization", "Bearer "+token)
	}
	resp, err := c.Do(req)
	if err != nil {
		p.t.Fatal(err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		p.t.Fatal(err)
	}
	return resp.StatusCode, resp.Header, string(b)
}

func (p *port) token(t inventory.Token) string {
	p.t.Helper()
	_, text, err := p.keeper.CreateToken(p.t.Context(), t)
	if err != nil {
		p.t.Fatal(err)
	}
	return text
}

func TestTokensOverTLS(t *testing.T) {
	p := newPort(t, nil)
	c := p.as()
	reads := p.token(inventory.Token{Name: "reads", Access: read})
	operates := p.token(inventory.Token{Name: "operates", Access: operate, Clusters: []string{"rack1"}})
	short := p.token(inventory.Token{Name: "short", Access: admin, Expires: time.Now().Add(time.Hour)})
	want := func(what string, code int, token, method, path, body string) {
		t.Helper()
		got, header, text := p.send(c, token, method, path, body)
		if got != code {
			t.Errorf("%s: %d, want %d: %s", what, got, code, text)
		}
		if header.Get("Cache-Control") != "no-store" || header.Get("X-Content-Type-Options") != "nosniff" || header.Get("X-Request-Id") == "" {
			t.Errorf("%s: %v", what, header)
		}
		if code >= 400 && header.Get("Content-Type") != "application/problem+json" || code == 401 && header.Get("WWW-Authenticate") == "" {
			t.Errorf("%s: %v", what, header)
		}
	}
	want("nobody", 401, "", "GET", "/api/v1/machines", "")
	want("nobody, the document", 200, "", "GET", "/openapi.json", "")
	want("nobody, the CA", 200, "", "GET", "/ca.pem", "")
	want("who reads", 200, reads, "GET", "/api/v1/machines", "")
	want("who reads, a change", 403, reads, "DELETE", "/api/v1/machines/cp-1", "")
	want("who reads, a secret", 403, reads, "GET", "/api/v1/machines/cp-1/config?secrets=true", "")
	want("who operates", 200, operates, "PATCH", "/api/v1/machines/cp-1", `{"labels":{"a":"b"}}`)
	want("who operates, elsewhere", 404, operates, "PATCH", "/api/v1/machines/w-b", `{"labels":{"a":"b"}}`)
	want("who operates, the whole rack", 403, operates, "GET", "/api/v1/backup", "")
	want("a guess", 401, reads[:len(reads)-43]+strings.Repeat("A", 43), "GET", "/api/v1/machines", "")
	want("a guess, the document", 401, "x", "GET", "/openapi.json", "")
	want("two tokens as one", 401, reads+" "+operates, "GET", "/api/v1/machines", "")
	want("before it expires", 200, short, "GET", "/api/v1/tokens", "")
	p.late.Store(int64(time.Hour))
	want("after it has expired", 401, short, "GET", "/api/v1/tokens", "")
	if err := p.keeper.RevokeToken(t.Context(), "reads"); err != nil {
		t.Fatal(err)
	}
	want("revoked", 401, reads, "GET", "/api/v1/machines", "")

	for _, header := range []http.Header{
		{"Authorization": {"Bearer " + operates, "Bearer " + operates}}, {"Authorization": {"Basic " + operates}}, {"Authorization": {operates}}, {"Authorization": {""}},
	} {
		req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "https://"+p.addr+"/api/v1/machines", nil)
		if err != nil {
			t.Fatal(err)
		}
		req.Header = header
		resp, err := c.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		_ = resp.Body.Close()
		if resp.StatusCode != http.StatusUnauthorized {
			t.Errorf("%v: %d", header, resp.StatusCode)
		}
	}
}

// TestGuessing: who guesses is told to wait, and who has a token, at the same address or
// another, never is.
func TestGuessing(t *testing.T) {
	p := newPort(t, nil)
	good := p.token(inventory.Token{Name: "good", Access: read})
	before := p.head()
	codes := map[int]int{}
	var mu sync.Mutex
	var all sync.WaitGroup
	for range 4 {
		all.Go(func() {
			c := p.as()
			for range 100 {
				code, header, _ := p.send(c, "pvd_good_"+strings.Repeat("A", 43), "GET", "/api/v1/machines", "")
				if wait, err := strconv.Atoi(header.Get("Retry-After")); code == 429 && (err != nil || wait < 1) {
					t.Errorf("Retry-After %q", header.Get("Retry-After"))
				}
				mu.Lock()
				codes[code]++
				mu.Unlock()
				if code, _, text := p.send(c, good, "GET", "/api/v1/machines", ""); code != 200 {
					t.Errorf("a good token: %d %s", code, text)
				}
			}
		})
	}
	all.Wait()
	if codes[401] < 10 || codes[429] < 300 || codes[401]+codes[429] != 400 {
		t.Errorf("%v", codes)
	}
	// The trail has a bounded number of lines of it, and the next says how many it has not.
	if lines := p.lines(before); len(lines) != codes[401] {
		t.Errorf("%d lines for %v", len(lines), codes)
	}
	p.late.Store(int64(time.Hour))
	before = p.head()
	p.send(p.as(), "guess", "GET", "/api/v1/machines", "")
	if lines := p.lines(before); len(lines) != 1 || lines[0].Action != "login" || lines[0].Outcome != audit.Refused || lines[0].Who != "" || !strings.HasPrefix(lines[0].Reason, fmt.Sprintf("(%d more since", codes[429])) {
		t.Errorf("%+v", lines)
	}
}

func TestGuessesAreBounded(t *testing.T) {
	g := newGuesses()
	now := time.Now()
	waits := 0
	for i := range 10_000 { // a host has a whole /64 to guess from
		if g.wait(fmt.Sprintf("[2001:db8::%x]:1", i+1), now) > 0 {
			waits++
		}
	}
	if waits != 10_000-10 {
		t.Errorf("%d of a /64 had to wait", waits)
	}
	if n := testing.AllocsPerRun(100, func() { g.wait("[2001:db8:1::1]:1", now) }); n > 20 {
		t.Errorf("%v allocations", n)
	}
	if g.wait("", now) < 0 || g.wait("@", now) < 0 || g.wait("192.0.2.1:1", now) < 0 || g.wait("[::ffff:192.0.2.1]:1", now) < 0 {
		t.Error("what is no address")
	}
}

func (p *port) client(t *testing.T, by *ca.CA, subject pkix.Name, life time.Duration) tls.Certificate {
	t.Helper()
	text, err := by.IssueClient(subject, life)
	if err != nil {
		t.Fatal(err)
	}
	pair, err := tls.X509KeyPair(text, text)
	if err != nil {
		t.Fatal(err)
	}
	return pair
}

func TestClientCertificates(t *testing.T) {
	p := newPort(t, nil)
	name := func(cn string, o, ou []string) pkix.Name {
		return pkix.Name{CommonName: cn, Organization: o, OrganizationalUnit: ou}
	}
	for what, tc := range map[string]struct {
		subject      pkix.Name
		method, path string
		want         int
	}{
		"reads":                 {name("alice", []string{"provisiond:read"}, nil), "GET", "/api/v1/machines/w-b", 200},
		"reads, changes":        {name("alice", []string{"provisiond:read"}, nil), "DELETE", "/api/v1/machines/w-b", 403},
		"limited":               {name("alice", []string{"provisiond:admin"}, []string{"rack1"}), "GET", "/api/v1/machines/cp-1/config?secrets=true", 200},
		"limited, elsewhere":    {name("alice", []string{"provisiond:admin"}, []string{"rack1"}), "GET", "/api/v1/machines/w-b", 404},
		"of two, one is theirs": {name("alice", []string{"provisiond:read"}, []string{"rack1", "other"}), "GET", "/api/v1/machines/w-b", 200},
		"among others":          {name("alice", []string{"Example", "provisiond:read"}, nil), "GET", "/api/v1/machines", 200},
		"no role":               {name("alice", []string{"Example"}, nil), "GET", "/api/v1/machines", 401},
		"two roles":             {name("alice", []string{"provisiond:read", "provisiond:admin"}, nil), "GET", "/api/v1/machines", 401},
		"no such role":          {name("alice", []string{"provisiond:root"}, nil), "GET", "/api/v1/machines", 401},
		"no name":               {name("", []string{"provisiond:admin"}, nil), "GET", "/api/v1/machines", 401},
	} {
		if code, _, text := p.send(p.as(p.client(t, p.ca, tc.subject, time.Hour)), "", tc.method, tc.path, ""); code != tc.want {
			t.Errorf("%s: %d, want %d: %s", what, code, tc.want, text)
		}
	}

	admins := name("mallory", []string{"provisiond:admin"}, nil)
	serves, err := p.ca.Issue("mallory")
	if err != nil {
		t.Fatal(err)
	}
	for what, cert := range map[string]tls.Certificate{
		"of another CA":            p.client(t, newCA(t), admins, time.Hour),
		"expired":                  p.client(t, p.ca, admins, -time.Minute),
		"that is a server's (EKU)": *serves,
	} {
		// Sent although the server did not ask for one of its CA.
		tr := &http.Transport{TLSClientConfig: &tls.Config{RootCAs: p.ca.Pool(), GetClientCertificate: func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return &cert, nil }}}
		if resp, err := (&http.Client{Transport: tr}).Get("https://" + p.addr + "/openapi.json"); err == nil {
			_ = resp.Body.Close()
			t.Errorf("a certificate %s: %d", what, resp.StatusCode)
		}
		tr.CloseIdleConnections()
	}

	// A connection that outlives its certificate is good for nothing.
	c := p.as(p.client(t, p.ca, admins, time.Hour))
	if code, _, _ := p.send(c, "", "GET", "/api/v1/tokens", ""); code != 200 {
		t.Errorf("before: %d", code)
	}
	p.late.Store(int64(2 * time.Hour))
	if code, _, text := p.send(c, "", "GET", "/api/v1/tokens", ""); code != 401 {
		t.Errorf("after: %d %s", code, text)
	}
	// A token beside a certificate is what counts, and a bad one is not made good.
	p.late.Store(0)
	if code, _, _ := p.send(c, "junk", "GET", "/api/v1/tokens", ""); code != 401 {
		t.Errorf("with a bad token: %d", code)
	}
}

func TestHandshakes(t *testing.T) {
	p := newPort(t, nil)
	conn, err := tls.Dial("tcp", p.addr, &tls.Config{RootCAs: p.ca.Pool(), MaxVersion: tls.VersionTLS12})
	if err == nil {
		_ = conn.Close()
		t.Error("TLS 1.2 is good enough")
	}
	resp, err := http.Get("http://" + p.addr + "/api/v1/machines")
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if text, err := io.ReadAll(resp.Body); err != nil || resp.StatusCode != http.StatusBadRequest || !bytes.Contains(text, []byte("HTTPS")) {
		t.Errorf("in the clear: %d %s %v", resp.StatusCode, text, err)
	}
	_, err = (&http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{RootCAs: newCA(t).Pool()}}}).Get("https://" + p.addr + "/openapi.json")
	if err == nil {
		t.Error("somebody else's CA vouches for it")
	}
}

// TestInTheClear: a token that was sent without TLS is believed by nobody.
func TestInTheClear(t *testing.T) {
	p := newPort(t, nil)
	token := p.token(inventory.Token{Name: "a", Access: admin})
	ln, err := net.Listen("tcp", "[::1]:0")
	if err != nil {
		t.Fatal(err)
	}
	p.listen(t, ln)
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "http://"+ln.Addr().String()+"/api/v1/machines", nil)
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Authorization", "Bearer "+token)
	c := &http.Client{Transport: &http.Transport{}}
	defer c.CloseIdleConnections()
	resp, err := c.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	_ = resp.Body.Close()
	if resp.StatusCode != http.StatusUnauthorized {
		t.Errorf("%d", resp.StatusCode)
	}
}

// raw sends bytes as they are and returns the status of each answer until the other end
// closes.
func (p *port) raw(t *testing.T, text string) (codes []int) {
	t.Helper()
	conn, err := tls.Dial("tcp", p.addr, &tls.Config{RootCAs: p.ca.Pool()})
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if _, err := io.WriteString(conn, text); err != nil {
		t.Fatal(err)
	}
	in := bufio.NewReader(conn)
	for {
		resp, err := http.ReadResponse(in, nil)
		if err != nil {
			return codes
		}
		codes = append(codes, resp.StatusCode)
		_, err = io.Copy(io.Discard, resp.Body)
		if _ = resp.Body.Close(); err != nil || resp.Close {
			return codes
		}
	}
}

// TestSmuggling: a request whose end is in doubt, for us or a proxy before us, is refused,
// and nothing behind it is read.
func TestSmuggling(t *testing.T) {
	p := newPort(t, nil)
	token := p.token(inventory.Token{Name: "a", Access: admin})
	head := "POST /api/v1/explain HTTP/1.1\r\nHost: [::1]\r\nAuthorization: Bearer " + token + "\r\nContent-Type: application/json\r\n"
	hidden := "DELETE /api/v1/machines/w-b HTTP/1.1\r\nHost: [::1]\r\nAuthorization: Bearer " + token + "\r\nConnection: close\r\n\r\n"
	for what, text := range map[string]string{
		"two lengths":            head + "Content-Length: 2\r\nContent-Length: 0\r\n\r\n" + hidden,
		"two lengths, one line":  head + "Content-Length: 2, 0\r\n\r\n" + hidden,
		"a length and chunks":    head + "Content-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n" + hidden,
		"chunks":                 head + "Transfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n\r\n" + hidden,
		"chunks twice":           head + "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n" + hidden,
		"chunks, hidden":         head + "Transfer-Encoding: xchunked\r\n\r\n" + hidden,
		"chunks, folded":         head + "Transfer-Encoding:\r\n chunked\r\nContent-Length: 2\r\n\r\n0\r\n\r\n" + hidden,
		"a space before a colon": head + "Content-Length : 2\r\n\r\n{}" + hidden,
		"a length with a sign":   head + "Content-Length: +2\r\n\r\n{}" + hidden,
		"two hosts":              strings.Replace(head, "Host: [::1]", "Host: [::1]\r\nHost: evil.example", 1) + "Content-Length: 2\r\n\r\n{}" + hidden,
		"a host of others":       strings.Replace(hidden, "[::1]", "evil.example", 1),
		"a header of a megabyte": "GET /api/v1/machines HTTP/1.1\r\nHost: [::1]\r\nX: " + strings.Repeat("x", 1<<20) + "\r\n\r\n",
	} {
		codes := p.raw(t, text)
		if len(codes) > 1 || len(codes) == 1 && codes[0] < 400 {
			t.Errorf("%s: answered %v", what, codes)
		}
	}
	if _, err := p.keeper.Machine(t.Context(), "w-b"); err != nil {
		t.Errorf("the hidden request was obeyed: %v", err)
	}
}

// TestTraversal: no way of writing a path leads to anything but what is at its place.
func TestTraversal(t *testing.T) {
	p := newPort(t, nil)
	boss := p.token(inventory.Token{Name: "boss", Access: admin})
	limited := p.token(inventory.Token{Name: "limited", Access: operate, Clusters: []string{"rack1"}})
	for _, path := range []string{
		"/api/v1/machines/cp-1/../w-b", "/api/v1/machines/cp-1/%2e%2e/w-b", "/api/v1/machines/cp-1%2f..%2fw-b", "/api/v1/machines/%2e%2e%2fmachines%2fw-b",
		"/api/v1/machines/%252e%252e/w-b", "/api/v1/machines/cp-1/%252e%252e%252fw-b", "/api/v1//machines/w-b", "/api/v1/machines//w-b", "/api/v1/./machines/w-b",
		"//api/v1/machines/w-b", "/API/V1/machines/w-b", "/api/v1/machines/w-b/", "/api/v1/machines/w-b%00", "/api/v1/machines/w-b;x", "/api/v1/machines/..\\w-b",
		"/api/v1/machines/%77%2d%62", "/api/v1/machines/w-b?machine=cp-1", "/ca.pem/../api/v1/backup", "/openapi.json/%2e%2e/api/v1/backup", "/api/v1/backup%2f",
	} {
		for who, token := range map[string]string{"nobody": "", "limited": limited} {
			head := "GET " + path + " HTTP/1.1\r\nHost: [::1]\r\nConnection: close\r\n"
			if token != "" {
				head += "Authorization: Bearer " + token + "\r\n"
			}
			if codes := p.raw(t, head+"\r\n"); len(codes) != 1 || codes[0] < 400 {
				t.Errorf("%s as %s: %v", path, who, codes)
			}
		}
	}
	for _, path := range []string{"/api/v1/machines/..%2f..%2f..%2fetc%2fpasswd/logs", "/api/v1/machines/%2e%2e/logs", "/api/v1/images/v1.13.6/..%2f..%2f/amd64"} {
		if code, _, text := p.send(p.as(), boss, "GET", path, ""); code < 400 {
			t.Errorf("%s: %d %s", path, code, text)
		}
	}
}

// TestRevokedInTheMiddle: a stream ends when its token does.
func TestRevokedInTheMiddle(t *testing.T) {
	p := newPort(t, nil)
	token := p.token(inventory.Token{Name: "a", Access: read})
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute) // against a hang only
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "https://"+p.addr+"/api/v1/events/watch?after=0", nil)
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Authorization", "Bearer "+token)
	resp, err := p.as().Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	lines := bufio.NewScanner(resp.Body)
	for lines.Scan() && !strings.Contains(lines.Text(), "w-b") { // it has begun
	}
	if err := p.keeper.RevokeToken(t.Context(), "a"); err != nil {
		t.Fatal(err)
	}
	if err := p.keeper.Log(t.Context(), inventory.Event{Kind: inventory.Changed, Machine: "cp-1", Message: "after the end"}); err != nil {
		t.Fatal(err)
	}
	for lines.Scan() {
		if strings.Contains(lines.Text(), "after the end") {
			t.Error("it goes on")
		}
	}
	if err := lines.Err(); err != nil || ctx.Err() != nil {
		t.Errorf("it did not end: %v", err)
	}
}

// TestCertificateReload: a new certificate is shown from the next handshake on, and a
// broken one leaves the old in place.
func TestCertificateReload(t *testing.T) {
	dir := t.TempDir()
	certFile, keyFile := filepath.Join(dir, "cert"), filepath.Join(dir, "key")
	put := func(name string, b []byte) {
		t.Helper()
		if err := errors.Join(os.WriteFile(name+".new", b, 0o600), os.Rename(name+".new", name)); err != nil {
			t.Fatal(err)
		}
	}
	// A certificate with its key stands in both files: each is read for its own part.
	one, two := newCA(t), newCA(t)
	write := func(by *ca.CA) (serial string) {
		t.Helper()
		text, err := by.IssueClient(pkix.Name{CommonName: "x"}, time.Hour)
		if err != nil {
			t.Fatal(err)
		}
		put(certFile, text)
		put(keyFile, text)
		pair, err := tls.X509KeyPair(text, text)
		if err != nil {
			t.Fatal(err)
		}
		return pair.Leaf.SerialNumber.String()
	}
	first := write(one)
	var warned atomic.Int64
	files, err := ca.OpenFiles(certFile, keyFile, func(error) { warned.Add(1) })
	if err != nil {
		t.Fatal(err)
	}
	p := newPort(t, files.GetCertificate)
	shown := func() string {
		t.Helper()
		conn, err := tls.Dial("tcp", p.addr, &tls.Config{InsecureSkipVerify: true})
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		return conn.ConnectionState().PeerCertificates[0].SerialNumber.String()
	}
	if shown() != first {
		t.Error("not the one in the file")
	}
	second := write(two)
	if shown() != second {
		t.Error("not the new one")
	}
	put(certFile, []byte("junk"))
	if shown() != second || warned.Load() == 0 {
		t.Errorf("a broken file: %d warnings", warned.Load())
	}
}
