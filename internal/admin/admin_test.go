package admin

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/provisiond/provisiond/api"
	"github.com/provisiond/provisiond/internal/inventory"
)

// root is who has opened the unix socket.
var root = &Principal{Name: "root", Via: ViaSocket, Role: admin}

// do sends one request straight to the handler, as root.
func (r *rig) do(method, path, body string, header ...string) *httptest.ResponseRecorder {
	r.t.Helper()
	var reader io.Reader
	if body != "" {
		reader = strings.NewReader(body)
	}
	req := httptest.NewRequestWithContext(as(r.t.Context(), root), method, "http://[::1]"+path, reader)
	for i := 0; i < len(header); i += 2 {
		req.Header.Set(header[i], header[i+1])
	}
	rec := httptest.NewRecorder()
	r.Handler().ServeHTTP(rec, req)
	return rec
}

// as is the context of a connection that somebody has at its other end.
func as(ctx context.Context, p *Principal) context.Context {
	return context.WithValue(ctx, peerKey{}, p)
}

// must is do for what has to work; it decodes the answer into v unless nil.
func (r *rig) must(status int, method, path, body string, v any, header ...string) *httptest.ResponseRecorder {
	r.t.Helper()
	rec := r.do(method, path, body, header...)
	if rec.Code != status {
		r.t.Fatalf("%s %s: %d, want %d: %s\n%s", method, path, rec.Code, status, rec.Body, r.logs)
	}
	if v != nil {
		if err := json.Unmarshal(rec.Body.Bytes(), v); err != nil {
			r.t.Fatalf("%s %s: %v in %s", method, path, err, rec.Body)
		}
	}
	return rec
}

const (
	rack1 = `{"name":"rack1","endpoint":"https://[2001:db8::1]:6443"}`
	cp1   = `{"name":"cp-1","macs":["52-54-00-12-34-56"],"role":"controlplane","cluster":"rack1","labels":{"row":"a"}}`
)

// seed makes one cluster with one machine.
func seed(t *testing.T, cfg Config) *rig {
	r := newRig(t, cfg)
	r.must(201, "POST", "/api/v1/clusters", rack1, nil)
	r.must(201, "POST", "/api/v1/machines", cp1, nil)
	return r
}

// strict is a cluster that no machine fits into.
const strict = `{"name":"strict","endpoint":"https://[2001:db8::3]:6443","patches":["unfit"]}`

func TestMachineThatDoesNotFitItsCluster(t *testing.T) {
	r := newRig(t, Config{})
	r.must(201, "POST", "/api/v1/clusters", strict, nil)
	rec := r.must(422, "POST", "/api/v1/machines", `{"name":"w-1","macs":["525400000001"],"role":"worker","cluster":"strict"}`, nil)
	if !strings.Contains(rec.Body.String(), `"message":"its cluster's patches[0]: does not fit","location":"body.cluster"`) {
		t.Errorf("%s", rec.Body)
	}
	rec = r.must(422, "POST", "/api/v1/apply", `{"machines":[{"name":"w-1","macs":["525400000001"],"role":"worker","cluster":"strict"}]}`, nil)
	if !strings.Contains(rec.Body.String(), `"location":"body.machines[0].cluster"`) {
		t.Errorf("%s", rec.Body)
	}
}

// TestErrorTable has each error of the domain come back as it is documented.
func TestErrorTable(t *testing.T) {
	s := newRig(t, Config{}).Server
	ifMatch := &struct{ Precondition }{Precondition{IfMatch: `"1"`}}
	for _, tc := range []struct {
		err    error
		in     any
		status int
		detail string
	}{
		{inventory.ErrNotFound, nil, 404, "not found"},
		{inventory.ErrExists, nil, 409, "already exists"},
		{inventory.ErrConflict, nil, 409, "changed in the meantime"},
		{inventory.ErrConflict, ifMatch, 412, "changed in the meantime"},
		{inventory.ErrRefused, nil, 409, "refused"},
		{inventory.ErrFull, nil, 507, "full"},
		{inventory.ErrAmbiguous, nil, 500, "may or may not"},
		{io.ErrUnexpectedEOF, nil, 500, "internal error"},
		{&inventory.FieldError{Field: "a", Problem: "p", Fix: "f"}, nil, 422, "a: p (f)"},
		{&inventory.FieldError{Field: "a", Problem: "p", Err: inventory.ErrNotFound}, nil, 422, "a: p"},
		{&inventory.FieldError{Field: "a", Problem: "p", Err: inventory.ErrExists}, nil, 409, "a: p"},
		{fmt.Errorf("storing: %w", &inventory.FieldError{Field: "a", Problem: "p", Err: inventory.ErrFull}), nil, 507, "a: p"},
	} {
		rec := httptest.NewRecorder()
		err := s.problem(context.Background(), "test", tc.in, fmt.Errorf("x: %w", tc.err))
		var p api.Problem
		if e := json.Unmarshal([]byte(mustJSON(t, err)), &p); e != nil {
			t.Fatal(e)
		}
		if p.Status != tc.status || !strings.Contains(p.Detail, tc.detail) {
			t.Errorf("%v: %+v, want %d %q (%v)", tc.err, p, tc.status, tc.detail, rec.Code)
		}
	}
}

// TestConditional is two operators who change one machine.
func TestConditional(t *testing.T) {
	r := seed(t, Config{})
	w1 := r.must(201, "POST", "/api/v1/machines", `{"name":"w-1","macs":["525400000001"],"role":"worker"}`, nil).Header()
	if at := w1.Get("Location"); at != "/api/v1/machines/w-1" || r.must(200, "GET", at, "", nil).Header().Get("ETag") != w1.Get("ETag") {
		t.Errorf("created %v", w1)
	}
	first := r.must(200, "GET", "/api/v1/machines/cp-1", "", nil).Header().Get("ETag")
	second := r.must(200, "PUT", "/api/v1/machines/cp-1", cp1, nil, "If-Match", first).Header().Get("ETag")
	if first == second || first == "" {
		t.Fatalf("the ETag did not move: %s, %s", first, second)
	}
	r.must(412, "PUT", "/api/v1/machines/cp-1", cp1, nil, "If-Match", first)
	r.must(412, "PATCH", "/api/v1/machines/cp-1", `{"role":"worker"}`, nil, "If-Match", first)
	r.must(412, "DELETE", "/api/v1/machines/cp-1", "", nil, "If-Match", first)
	r.must(204, "DELETE", "/api/v1/machines/cp-1", "", nil, "If-Match", second)
	r.must(412, "PUT", "/api/v1/machines/cp-1", cp1, nil, "If-Match", second)

	first = r.must(200, "GET", "/api/v1/clusters/rack1", "", nil).Header().Get("ETag")
	second = r.must(200, "PATCH", "/api/v1/clusters/rack1", `{"ntp":["2001:db8::123"]}`, nil, "If-Match", first).Header().Get("ETag")
	r.must(412, "PUT", "/api/v1/clusters/rack1", rack1, nil, "If-Match", first)
	r.must(412, "DELETE", "/api/v1/clusters/rack1", "", nil, "If-Match", first)
	r.must(204, "DELETE", "/api/v1/clusters/rack1", "", nil, "If-Match", second)
}

// TestPutKeepsTheAddress: one machine, one stable address.
func TestPutKeepsTheAddress(t *testing.T) {
	r := seed(t, Config{})
	var before, after api.Machine
	r.must(200, "GET", "/api/v1/machines/cp-1", "", &before)
	r.must(200, "PUT", "/api/v1/machines/cp-1", cp1, &after)
	if before.Address == "" || before.Address != after.Address || !before.Created.Equal(after.Created) {
		t.Errorf("%+v became %+v", before, after)
	}
}

func TestListPagesAndFilters(t *testing.T) {
	r := newRig(t, Config{})
	r.must(201, "POST", "/api/v1/clusters", rack1, nil)
	for i := range 256 { // more than a page of the store, and one octet of a MAC
		role, cluster := "worker", `,"cluster":"rack1"`
		if i%100 == 0 {
			role = "controlplane"
		}
		if i%2 == 0 {
			cluster = ""
		}
		r.must(201, "POST", "/api/v1/machines", fmt.Sprintf(`{"name":"m-%03d","macs":["5254000000%02x","52540001%04x"],"role":%q%s,"labels":{"row":"r%d"}}`, i, i%256, i, role, cluster, i%3), nil)
		if i == 255 {
			break // one MAC range is enough: 256 machines, more than a Page of the store
		}
	}
	for query, want := range map[string]int{
		"":                           256,
		"cluster=rack1":              128,
		"role=controlplane":          3,
		"phase=registered":           256,
		"phase=ready":                0,
		"label=row%3Dr0":             86,
		"label=row%3Dr0&label=x%3Dy": 0,
		"q=M-25":                     6,
		"q=52-54-00-00-00-0A":        1,
		"q=5254.0000.000a":           1,
		"q=00000a":                   17, // m-010, and m-160 to m-175
		"q=00-0a":                    1,
		"q=0000.000a":                1,
		"q=row%3Dr1&cluster=rack1":   43,
	} {
		for _, limit := range []int{1, 7, 100, 1000} {
			var names []string
			after := ""
			for range 1000 {
				var l api.List[api.Machine]
				r.must(200, "GET", fmt.Sprintf("/api/v1/machines?%s&limit=%d&after=%s", query, limit, after), "", &l)
				if len(l.Items) > limit {
					t.Fatalf("%d on a Page of %d", len(l.Items), limit)
				}
				for _, m := range l.Items {
					if len(names) > 0 && m.Name <= names[len(names)-1] {
						t.Fatalf("%s after %s", m.Name, names[len(names)-1])
					}
					names = append(names, m.Name)
				}
				if after = l.Next; after == "" {
					break
				}
			}
			if len(names) != want {
				t.Errorf("%q by %d: %d machines, want %d", query, limit, len(names), want)
			}
		}
	}
}

// TestBootsNeverShowTheToken: the token opens the machine's config.
func TestBootsNeverShowTheToken(t *testing.T) {
	r := seed(t, Config{})
	mac := inventory.MAC("52:54:00:12:34:56")
	v, err := r.keeper.Record(t.Context(), inventory.Event{Kind: inventory.Solicited, MAC: mac, Client: inventory.FirmwarePXE, Arch: inventory.AMD64, XID: 7})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := r.keeper.Record(t.Context(), inventory.Event{Kind: inventory.LoaderServed, MAC: mac}); err != nil {
		t.Fatal(err)
	}
	token := v.Facts.Current().Token
	if token == "" {
		t.Fatal("the boot has no token")
	}
	var boots api.List[api.Boot]
	rec := r.must(200, "GET", "/api/v1/machines/cp-1/boots", "", &boots)
	if len(boots.Items) != 1 || boots.Items[0].Number != 1 || len(boots.Items[0].Steps) == 0 {
		t.Errorf("boots %+v", boots)
	}
	for _, path := range []string{"/machines/cp-1", "/machines", "/events", "/export", "/status"} {
		rec.Body.WriteString(r.must(200, "GET", api.Prefix+path, "", nil).Body.String())
	}
	if strings.Contains(rec.Body.String(), token) || strings.Contains(r.logs.String(), token) {
		t.Error("the token of a boot left")
	}
}

func TestDiff(t *testing.T) {
	r := seed(t, Config{})
	r.talos.served = []byte("machine:\n  token: *****\n  name: cp-0\n  patches: 0\n")
	var d api.Diff
	r.must(200, "GET", "/api/v1/machines/cp-1/diff", "", &d)
	want := "--- served\n+++ now\n@@ -1,4 +1,4 @@\n machine:\n   token: *****\n-  name: cp-0\n+  name: cp-1\n   patches: 0\n"
	if d.Diff != want || d.Served != "abc123" || d.ServedAt.IsZero() {
		t.Errorf("%+v", d)
	}
	r.talos.served = []byte("machine:\n  token: *****\n  name: cp-1\n  patches: 0\n")
	r.must(200, "GET", "/api/v1/machines/cp-1/diff", "", &d)
	if d.Diff != "" {
		t.Errorf("a difference of nothing: %s", d.Diff)
	}
	r.must(201, "POST", "/api/v1/machines", `{"name":"w-1","macs":["525400000001"],"role":"worker"}`, nil)
	r.must(409, "GET", "/api/v1/machines/w-1/diff", "", nil)
	r.must(409, "GET", "/api/v1/machines/w-1/config/origins", "", nil)
	if rec := r.must(409, "GET", "/api/v1/machines/w-1/config", "", nil); !strings.Contains(rec.Body.String(), "machine set w-1 --cluster") {
		t.Errorf("%s", rec.Body)
	}
}

func TestFullDisk(t *testing.T) {
	r := seed(t, Config{})
	r.store.full = true
	r.must(507, "PUT", "/api/v1/machines/cp-1", cp1, nil)
	r.must(507, "POST", "/api/v1/apply", `{"machines":[{"name":"w-1","macs":["525400000001"],"role":"worker"}]}`, nil)
}

func TestBrokenStore(t *testing.T) {
	r := seed(t, Config{})
	r.must(200, "PATCH", "/api/v1/clusters/rack1", `{"ntp":["2001:db8::123"]}`, nil) // the inventory forgets what it has read of its machines
	r.store.broken = fmt.Errorf("bad block at /dev/sda")
	for _, path := range []string{"/machines", "/machines/cp-1", "/clusters", "/clusters/rack1", "/images", "/discovered", "/export", "/status"} {
		if rec := r.must(500, "GET", api.Prefix+path, "", nil); strings.Contains(rec.Body.String(), "/dev/sda") {
			t.Errorf("%s tells the inside: %s", path, rec.Body)
		}
	}
	if !strings.Contains(r.logs.String(), "bad block") {
		t.Error("the log does not say why")
	}
}

// put1 uploads one file.
func put1(r *rig, content string) (b api.Blob) {
	r.t.Helper()
	r.must(200, "PUT", "/api/v1/images/blobs/"+sha(content), content, &b)
	return b
}

func TestImages(t *testing.T) {
	r := newRig(t, Config{MaxBlob: 64})
	const kernel, initramfs = "a kernel", "an initramfs"
	junk := put1(r, "x")
	rec := r.must(422, "PUT", "/api/v1/images/v1.13.6/default/amd64", mustJSON(t, api.ImageSpec{Kernel: junk, Initramfs: junk}), nil)
	if !strings.Contains(rec.Body.String(), "no kernel") || !strings.Contains(rec.Body.String(), "no initramfs") {
		t.Errorf("%s", rec.Body)
	}
	body := mustJSON(t, api.ImageSpec{Kernel: put1(r, kernel), Initramfs: put1(r, initramfs)})
	var img api.Image
	r.must(200, "PUT", "/api/v1/images/v1.13.6/default/amd64", body, &img)
	if img.ID != "v1.13.6/default/amd64" || img.Schematic != "" || img.Kernel.Size != int64(len(kernel)) {
		t.Errorf("%+v", img)
	}
	r.must(200, "PUT", "/api/v1/images/v1.13.6/default/amd64", body, nil) // the same once more
	other := mustJSON(t, api.ImageSpec{Kernel: put1(r, kernel), Initramfs: put1(r, "another initramfs")})
	rec = r.must(409, "PUT", "/api/v1/images/v1.13.6/default/amd64", other, nil)
	if b := rec.Body.String(); !strings.Contains(b, sha(initramfs)) || !strings.Contains(b, sha("another initramfs")) || !strings.Contains(b, `"location":"body.initramfs"`) || strings.Contains(b, "body.kernel") {
		t.Errorf("%s", b)
	}
	r.must(200, "PUT", "/api/v1/images/v1.13.6/default/amd64?replace=true", other, &img)
	if img.Initramfs.SHA256 != sha("another initramfs") {
		t.Errorf("%+v", img)
	}
	r.must(200, "PUT", "/api/v1/images/v1.13.6/abc/amd64", body, &img)
	if img.Schematic != "abc" {
		t.Errorf("%+v", img)
	}
	var list api.List[api.Image]
	r.must(200, "GET", "/api/v1/images", "", &list)
	if len(list.Items) != 2 {
		t.Errorf("%+v", list)
	}
	r.must(200, "GET", "/api/v1/images/v1.13.6/abc/amd64", "", nil)
	r.must(204, "DELETE", "/api/v1/images/v1.13.6/abc/amd64", "", nil)
	r.must(404, "GET", "/api/v1/images/v1.13.6/abc/amd64", "", nil)

	large := strings.Repeat("x", 65)
	r.must(413, "PUT", "/api/v1/images/blobs/"+sha(large), large, nil, "Content-Length", "65")
	r.must(422, "PUT", "/api/v1/images/blobs/"+sha(large), large, nil)
	r.blobs.full = true
	r.must(507, "PUT", "/api/v1/images/blobs/"+sha("x"), "x", nil)
}

func TestGuard(t *testing.T) {
	r := seed(t, Config{Hosts: []string{"rack.example"}})
	for _, tc := range []struct {
		host   string
		header []string
		method string
		want   int
	}{
		{"[::1]:8080", nil, "GET", 200},
		{"127.0.0.1", nil, "GET", 200},
		{"localhost:80", nil, "GET", 200},
		{"provisiond", nil, "GET", 200},
		{"rack.example:443", nil, "GET", 200},
		{"evil.example", nil, "GET", 421},
		{"localhost.evil.example", nil, "GET", 421},
		{"[::1]:8080", []string{"Origin", "https://evil.example"}, "DELETE", 403},
		{"[::1]:8080", []string{"Sec-Fetch-Site", "cross-site"}, "DELETE", 403},
		{"[::1]:8080", []string{"Origin", "http://[::1]:8080"}, "DELETE", 409},
	} {
		req := httptest.NewRequestWithContext(as(t.Context(), root), tc.method, "/api/v1/clusters/rack1", nil)
		req.Host = tc.host
		for i := 0; i < len(tc.header); i += 2 {
			req.Header.Set(tc.header[i], tc.header[i+1])
		}
		rec := httptest.NewRecorder()
		r.Handler().ServeHTTP(rec, req)
		if rec.Code != tc.want {
			t.Errorf("%s %s %v: %d, want %d", tc.method, tc.host, tc.header, rec.Code, tc.want)
		}
	}
}

// TestBackupBreaksOff: half a backup must not look like one.
func TestBackupBreaksOff(t *testing.T) {
	r := seed(t, Config{})
	url := r.serve(t)
	get := func() (string, int, error) {
		resp, err := r.client.Get(url + "/api/v1/backup")
		if err != nil {
			return "", 0, err
		}
		defer resp.Body.Close()
		b, err := io.ReadAll(resp.Body)
		return string(b), resp.StatusCode, err
	}
	if b, code, err := get(); b != "the whole database" || code != 200 || err != nil {
		t.Errorf("%q %d %v", b, code, err)
	}
	r.store.backup = func(io.Writer) error { return io.ErrUnexpectedEOF }
	if _, code, err := get(); code != 500 || err != nil {
		t.Errorf("%d %v", code, err)
	}
	r.store.backup = func(w io.Writer) error {
		_, _ = io.WriteString(w, strings.Repeat("x", 100000))
		return io.ErrUnexpectedEOF
	}
	if b, code, err := get(); err == nil {
		t.Errorf("%d bytes with %d look whole", len(b), code)
	}
}

// serve runs Serve on a real unix socket, makes a client of it, and checks that it ends.
func (r *rig) serve(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "api") // short: the path of a socket has 107 bytes at most
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	path := filepath.Join(dir, "sock")
	ln, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	r.client = &http.Client{Transport: &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, "unix", path)
	}}}
	r.listen(t, ln)
	return "http://provisiond"
}

// listen runs Serve until the test ends.
func (r *rig) listen(t *testing.T, ln net.Listener) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- r.Serve(ctx, ln) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("Serve: %v", err)
		}
		if r.client != nil {
			r.client.CloseIdleConnections()
		}
	})
}

func TestServeFails(t *testing.T) {
	r := newRig(t, Config{})
	ln, err := net.Listen("tcp", "[::1]:0")
	if err != nil {
		t.Fatal(err)
	}
	_ = ln.Close()
	if err := r.Serve(t.Context(), ln); err == nil {
		t.Error("a closed listener is no error")
	}
}

// TestPagesAnswerTheRest: browsers get pages at all paths that are not the API's, over TLS
// only.
func TestPagesAnswerTheRest(t *testing.T) {
	r := newRig(t, Config{Pages: func(*Server) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "a page") })
	}})
	for url, page := range map[string]bool{
		"https://[::1]/": true, "https://[::1]/api": true, "https://[::1]/login?x": true,
		"http://[::1]/": false, "https://[::1]/api/v1/nothing": false, "https://[::1]/api/v1/version": false, "https://[::1]/openapi.json": false,
	} {
		rec := httptest.NewRecorder()
		r.Handler().ServeHTTP(rec, httptest.NewRequestWithContext(t.Context(), http.MethodGet, url, nil))
		if (rec.Body.String() == "a page") != page {
			t.Errorf("%s: %d %s", url, rec.Code, rec.Body)
		}
	}
}

// TestImageUses: each image has who would netboot it, counted in one pass, of what the
// caller may see; and what is wanted and not here is told.
func TestImageUses(t *testing.T) {
	r := seed(t, Config{}) // cp-1
	const body = `{"name":"%s","macs":["5254000001%02x"],"role":"worker","cluster":"%s"%s}`
	r.must(201, "POST", "/api/v1/clusters", `{"name":"other","endpoint":"https://[2001:db8::9]:6443"}`, nil)
	for i := range 12 {
		r.must(201, "POST", "/api/v1/machines", fmt.Sprintf(body, fmt.Sprintf("w-%02d", i), i, "rack1", ""), nil)
	}
	r.must(201, "POST", "/api/v1/machines", fmt.Sprintf(body, "o-1", 20, "other", ""), nil)
	r.must(201, "POST", "/api/v1/machines", fmt.Sprintf(body, "o-2", 21, "other", `,"image":"v1.12.1/abc"`), nil)
	for _, version := range []string{"v1.13.6", "v1.12.0"} {
		if err := r.keeper.PutImage(t.Context(), &inventory.Image{Version: version, Arch: inventory.AMD64}); err != nil {
			t.Fatal(err)
		}
	}
	var got api.Images
	r.must(200, "GET", "/api/v1/images", "", &got)
	if len(got.Items) != 2 || len(got.Missing) != 1 {
		t.Fatalf("%+v", got)
	}
	if use := got.Items[0].Use; got.Items[0].Version != "v1.12.0" || use.Clusters != 0 || use.Machines != 0 {
		t.Errorf("%+v", got.Items[0])
	}
	use := got.Items[1].Use
	if use.Clusters != 2 || strings.Join(use.ClusterNames, " ") != "other rack1" || use.Machines != 14 || len(use.MachineNames) != maxUsers || use.MachineNames[0] != "cp-1" {
		t.Errorf("%+v", use)
	}
	if m := got.Missing[0]; m.ID != "v1.12.1/abc/amd64" || m.Use.Machines != 1 || m.Use.MachineNames[0] != "o-2" {
		t.Errorf("%+v", m)
	}
	var one api.Image
	r.must(200, "GET", "/api/v1/images/v1.13.6/default/amd64", "", &one)
	if one.Use.Machines != 14 || one.Use.Clusters != 2 {
		t.Errorf("%+v", one)
	}
	rec := r.ask(&Principal{Name: "limited", Via: ViaToken, Role: read, Clusters: []string{"other"}}, "GET", "/api/v1/images", "")
	var theirs api.Images
	if err := json.Unmarshal(rec.Body.Bytes(), &theirs); err != nil || rec.Code != 200 || len(theirs.Items) != 2 {
		t.Fatalf("%d %s", rec.Code, rec.Body)
	}
	if use := theirs.Items[1].Use; use.Machines != 1 || use.Clusters != 1 || strings.Contains(rec.Body.String(), "rack1") || strings.Contains(rec.Body.String(), "w-00") {
		t.Errorf("%s", rec.Body)
	}
}
