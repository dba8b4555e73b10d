package web

import (
	"bytes"
	"context"
	"crypto/tls"
	"io"
	"net"
	"net/http"
	"net/http/cookiejar"
	"net/netip"
	"net/url"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/rs/zerolog"

	"github.com/provisiond/provisiond/client"
	"github.com/provisiond/provisiond/internal/admin"
	"github.com/provisiond/provisiond/internal/audit"
	"github.com/provisiond/provisiond/internal/ca"
	"github.com/provisiond/provisiond/internal/inventory"
	"github.com/provisiond/provisiond/internal/inventory/storetest"
)

// site is the pages on the API's real TLS socket, over a real Keeper with two clusters,
// a machine in each that waits to be approved, and one that failed with markup.
type site struct {
	pages  *Pages
	calls  *calls
	t      testing.TB
	keeper *inventory.Keeper
	trail  *trail
	ca     *ca.CA
	addr   string
	logs   *lockedBuffer
	hall   *fakeMachines
	late   atomic.Int64 // how much later it is than it is, in nanoseconds
}

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

// The codes that the consoles of the machines show.
const (
	codeWeb   = "WDJB-MJHT" // of w-1, in cluster web
	codeStore = "BCDF-GHJK" // of w-2, in cluster store
)

// followers is how many may follow something at once.
const followers = 16

const markup = `<script>alert(1)</script>`

func newSite(t testing.TB, oidc *OIDC) *site {
	t.Helper()
	s := &site{t: t, logs: &lockedBuffer{}, hall: &fakeMachines{}}
	subnet := inventory.Subnet{
		Name: "rack", Prefix: netip.MustParsePrefix("2001:db8::/64"), Preferred: time.Hour, Valid: 2 * time.Hour,
		Machines: inventory.Range{First: netip.MustParseAddr("2001:db8::1000"), Last: netip.MustParseAddr("2001:db8::1fff")},
	}
	var err error
	if s.keeper, err = inventory.NewKeeper(t.Context(), &archive{storetest.NewMemory()}, inventory.KeeperConfig{Subnets: []inventory.Subnet{subnet}}); err != nil {
		t.Fatal(err)
	}
	log, err := audit.Open(t.TempDir(), audit.Options{NoSync: true})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = log.Close() })
	s.trail = &trail{Log: log}
	for _, name := range []string{"web", "store"} {
		c := &inventory.Cluster{Name: name, Endpoint: "https://[2001:db8::1]:6443", TalosVersion: "v1.13.6", KubernetesVersion: "1.36.2", PodSubnets: []netip.Prefix{netip.MustParsePrefix("fd00:10:244::/56")}, ServiceSubnets: []netip.Prefix{netip.MustParsePrefix("fd00:10:96::/112")}, Approval: inventory.ApprovalRequired}
		if _, err := s.keeper.CreateCluster(t.Context(), c, []byte("secrets")); err != nil {
			t.Fatal(err)
		}
	}
	s.machine("w-1", "52:54:00:00:00:01", "web", inventory.Worker)
	s.machine("w-2", "52:54:00:00:00:02", "store", inventory.ControlPlane)
	s.machine("w-3", "52:54:00:00:00:03", "web", inventory.Worker)
	s.asks("w-1", codeWeb, "2001:db8::1000")
	s.asks("w-2", codeStore, "2001:db8::1001")
	s.record(inventory.Event{Kind: inventory.ScriptServed, Machine: "w-3", Boot: 1, Plan: inventory.Hold, Error: "no image " + markup})

	text, err := ca.New()
	if err != nil {
		t.Fatal(err)
	}
	if s.ca, err = ca.Load(text); err != nil {
		t.Fatal(err)
	}
	now := func() time.Time { return time.Now().Add(time.Duration(s.late.Load())) }
	logger := zerolog.New(s.logs)
	server := admin.New(admin.Config{Version: "v0.0.0-test", Trail: s.trail, CA: s.ca, Now: now, MaxWatchers: followers, Logs: s.hall, Transfers: s.hall, Running: s.hall, Seeds: fakeSeeds{}, Settings: settingsOfTests, Pages: func(a *admin.Server) http.Handler {
		s.pages = New(Config{OIDC: oidc, Now: now}, a, logger)
		s.calls = &calls{to: a.Inside(), late: &s.late}
		if s.pages.api, err = client.New("http://provisiond", client.Options{Transport: s.calls}); err != nil {
			t.Fatal(err)
		}
		return s.pages
	}}, s.keeper, fakeTalos{}, fakeGuards{}, nil, logger)
	ln, err := net.Listen("tcp", "[::1]:0")
	if err != nil {
		t.Fatal(err)
	}
	s.addr = ln.Addr().String()
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- server.Serve(ctx, tls.NewListener(ln, admin.TLS(s.ca.Server(), s.ca.Pool()))) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	return s
}

// trail is an audit trail whose disk can fail.
type trail struct {
	*audit.Log
	broken atomic.Bool
}

func (t *trail) Ready(ctx context.Context) error {
	if t.broken.Load() {
		return syscall.ENOSPC
	}
	return t.Log.Ready(ctx)
}

func (t *trail) Append(ctx context.Context, e audit.Entry) error {
	if t.broken.Load() {
		return syscall.ENOSPC
	}
	return t.Log.Append(ctx, e)
}

// archive is a store that no backup is taken of.
type archive struct{ *storetest.Memory }

func (archive) Backup(context.Context, io.Writer) error { return nil }

// await waits for a condition.
func (s *site) await(what string, holds func() bool) {
	s.t.Helper()
	for end := time.Now().Add(time.Minute); !holds(); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(end) {
			s.t.Fatalf("it does not come that %s", what)
		}
	}
}

func (s *site) record(e inventory.Event) {
	s.t.Helper()
	if _, err := s.keeper.Record(s.t.Context(), e); err != nil {
		s.t.Fatal(err)
	}
}

// machine is a new one that has booted Talos from the network.
func (s *site) machine(name string, mac inventory.MAC, cluster string, role inventory.Role) {
	s.t.Helper()
	if _, err := s.keeper.PutMachine(s.t.Context(), &inventory.Machine{Name: name, MACs: []inventory.MAC{mac}, Cluster: cluster, Role: role}, 0); err != nil {
		s.t.Fatal(err)
	}
	s.record(inventory.Event{Kind: inventory.Solicited, MAC: mac, Machine: name, Client: inventory.FirmwarePXE, XID: 1})
	s.record(inventory.Event{Kind: inventory.ScriptServed, MAC: mac, Machine: name, Plan: inventory.Install})
}

func (s *site) peer(text string) netip.Addr {
	s.t.Helper()
	a, err := netip.ParseAddr(text)
	if err != nil {
		s.t.Fatal(err)
	}
	return a
}

// asks has a machine show a code and wait.
func (s *site) asks(name, code, peer string) {
	s.t.Helper()
	s.record(inventory.Event{
		Kind: inventory.ApprovalAsked, Machine: name, Boot: 1, Code: code, Device: "device " + code, Access: "access " + code,
		Peer: netip.MustParseAddr(peer), Time: time.Now(), Expires: time.Now().Add(30 * time.Minute),
	})
}

func (s *site) token(name string, role inventory.Access, clusters ...string) string {
	s.t.Helper()
	_, text, err := s.keeper.CreateToken(s.t.Context(), inventory.Token{Name: name, Access: role, Clusters: clusters})
	if err != nil {
		s.t.Fatal(err)
	}
	return text
}

// lines are the actions of the trail after a line, with who and outcome.
func (s *site) lines(after uint64) (all []audit.Entry) {
	s.t.Helper()
	err := s.trail.Read(context.Background(), after, func(_ []byte, e audit.Entry) bool {
		all = append(all, e)
		return true
	})
	if err != nil {
		s.t.Fatal(err)
	}
	return all
}

func (s *site) head() uint64 {
	s.lines(0) // what waits is written
	seq, _ := s.trail.Head()
	return seq
}

// browser keeps cookies and says from where it sends, as browsers do.
type browser struct {
	*site
	client *http.Client
	header http.Header // with every request
}

func (s *site) browser(certs ...tls.Certificate) *browser {
	s.t.Helper()
	jar, err := cookiejar.New(nil)
	if err != nil {
		s.t.Fatal(err)
	}
	tr := &http.Transport{TLSClientConfig: &tls.Config{RootCAs: s.ca.Pool(), Certificates: certs}}
	s.t.Cleanup(tr.CloseIdleConnections)
	return &browser{s, &http.Client{Transport: tr, Jar: jar, CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }},
		http.Header{"Sec-Fetch-Site": {"same-origin"}}}
}

// answer is what came back.
type answer struct {
	code   int
	header http.Header
	text   string
}

func (a answer) has(words ...string) bool {
	return !slices.ContainsFunc(words, func(w string) bool { return !strings.Contains(a.text, w) })
}

func (b *browser) send(method, path, body string, header ...string) answer {
	b.t.Helper()
	req, err := http.NewRequestWithContext(b.t.Context(), method, "https://"+b.addr+path, strings.NewReader(body))
	if err != nil {
		b.t.Fatal(err)
	}
	req.Header = b.header.Clone()
	if method != http.MethodGet {
		req.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	}
	for i := 0; i < len(header); i += 2 {
		if header[i] == "Host" {
			req.Host = header[i+1]
		}
		req.Header.Set(header[i], header[i+1])
	}
	resp, err := b.client.Do(req)
	if err != nil {
		b.t.Fatal(err)
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	if err != nil {
		b.t.Fatal(err)
	}
	return answer{resp.StatusCode, resp.Header, string(text)}
}

func (b *browser) get(path string, header ...string) answer {
	b.t.Helper()
	return b.send(http.MethodGet, path, "", header...)
}

func (b *browser) post(path string, form url.Values, header ...string) answer {
	b.t.Helper()
	return b.send(http.MethodPost, path, form.Encode(), header...)
}

// cookie is the id of its session; empty: there is none.
func (b *browser) cookie() string {
	for _, c := range b.client.Jar.Cookies(&url.URL{Scheme: "https", Host: b.addr, Path: "/"}) {
		if c.Name == "__Host-provisiond" {
			return c.Value
		}
	}
	return ""
}

func (b *browser) hold(id string) {
	b.client.Jar.SetCookies(&url.URL{Scheme: "https", Host: b.addr, Path: "/"}, []*http.Cookie{{Name: "__Host-provisiond", Value: id, Path: "/", Secure: true}})
}

// in is a browser that has logged in with a token.
func (s *site) in(token string) *browser {
	s.t.Helper()
	b := s.browser()
	if got := b.post("/login", url.Values{"token": {token}}); got.code != http.StatusSeeOther || b.cookie() == "" {
		s.t.Fatalf("login: %d %s", got.code, got.text)
	}
	return b
}
