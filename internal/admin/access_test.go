package admin

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http/httptest"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/provisiond/provisiond/api"
	"github.com/provisiond/provisiond/internal/audit"
	"github.com/provisiond/provisiond/internal/inventory"
)

// ask sends one request as somebody; nil: nobody who is known.
func (r *rig) ask(p *Principal, method, path, body string) *httptest.ResponseRecorder {
	ctx := r.t.Context()
	if p != nil {
		ctx = as(ctx, p)
	}
	req := httptest.NewRequestWithContext(ctx, method, "http://[::1]"+path, strings.NewReader(body))
	rec := httptest.NewRecorder()
	r.Handler().ServeHTTP(rec, req)
	return rec
}

// lines is the trail after a line.
func (r *rig) lines(after uint64) (all []audit.Entry) {
	r.t.Helper()
	err := r.trail.Read(context.Background(), after, func(_ []byte, e audit.Entry) bool {
		all = append(all, e)
		return true
	})
	if err != nil {
		r.t.Fatal(err)
	}
	return all
}

func (r *rig) head() uint64 {
	r.lines(0) // what waits is written
	seq, _ := r.trail.Head()
	return seq
}

// Two clusters of one machine each; who is limited is so to rack1.
const (
	other = `{"name":"other","endpoint":"https://[2001:db8::2]:6443"}`
	wb    = `{"name":"w-b","macs":["52-54-00-00-00-0b"],"role":"worker","cluster":"other"}`
	spare = `{"name":"spare","macs":["52-54-00-00-00-0c"],"role":"worker"}`
)

func twoClusters(t *testing.T) *rig {
	r := seed(t, Config{})
	r.must(201, "POST", "/api/v1/clusters", other, nil)
	r.must(201, "POST", "/api/v1/machines", wb, nil)
	r.must(201, "POST", "/api/v1/machines", spare, nil)
	for name, machine := range map[string]string{"rack1": "cp-1", "other": "w-b"} {
		for _, kind := range []inventory.Kind{inventory.BootstrapClaimed, inventory.BootstrapDone} {
			if _, err := r.keeper.Record(t.Context(), inventory.Event{Kind: kind, Cluster: name, Machine: machine}); err != nil {
				t.Fatal(err)
			}
		}
	}
	if _, _, err := r.keeper.CreateToken(t.Context(), inventory.Token{Name: "ci", Access: read}); err != nil {
		t.Fatal(err)
	}
	return r
}

// bodies are what operations take, where {} is not enough.
var bodies = map[string]string{
	"create-machine": `{"name":"new","macs":["52-54-00-00-00-0d"],"role":"worker","cluster":"other"}`,
	"put-machine":    wb, "patch-machine": `{"labels":{"a":"b"}}`,
	"create-cluster": `{"name":"new","endpoint":"https://[2001:db8::2]:6443"}`, "import-cluster": `{"secrets":"cluster: {}","name":"new"}`,
	"put-cluster": other, "patch-cluster": `{"dns":["2001:db8::53"]}`,
	"reset-cluster": `{"confirm":"other"}`, "check-reset": `{"confirm":""}`, "explain": `{"hex":"01abcdef"}`,
	"apply":           `{"machines":[{"name":"w-b","macs":["52-54-00-00-00-0b"],"role":"worker","cluster":"other","labels":{"a":"b"}}]}`,
	"put-image":       fmt.Sprintf(`{"kernel":{"sha256":%q,"size":1},"initramfs":{"sha256":%q,"size":1}}`, sha("x"), sha("x")),
	"confirm-machine": `{"fingerprint":"jTzh1hUzyPBrtr1RBY2F+Aw2HC7KEbLv7JyXNV3Pzhs="}`,
	"decide-approval": `{"approve":true}`, "adopt-machine": `{"name":"new","role":"worker","cluster":"other"}`,
	"create-token": `{"name":"new","role":"read"}`, "create-client-certificate": `{"name":"new","role":"read"}`,
}

// answers of operations about things of other clusters that are not 404.
var taken = map[string]int{
	"put-machine":    422, // the cluster does not exist, and the field says so
	"create-machine": 422,
	"apply":          422,
}

// TestEveryOperation asks every operation of the document as each kind of caller, about
// things of the cluster other, and compares with the role that it declares.
func TestEveryOperation(t *testing.T) {
	someone := func(role inventory.Access, clusters ...string) *Principal {
		return &Principal{Name: "someone", Via: ViaToken, Role: role, Clusters: clusters}
	}
	callers := []*Principal{nil, someone("none"), someone(read), someone(operate), someone(admin), someone(read, "rack1"), someone(operate, "rack1"), someone(admin, "rack1")}
	fill := strings.NewReplacer("{machine}", "w-b", "{cluster}", "other", "{version}", "v1.13.6", "{schematic}", "default", "{arch}", "amd64", "{sha256}", sha("x"), "{token}", "ci", "{subnet}", "rack")
	for path, operations := range readDocument(t, newRig(t, Config{})).Paths {
		for method, op := range operations {
			method = strings.ToUpper(method)
			needed := inventory.Access(op.Role)
			if !slices.Contains([]inventory.Access{read, operate, admin}, needed) || len(op.Security) != 3 || op.Clusters == nil {
				t.Errorf("%s does not say who may call it: %q %v", op.OperationID, op.Role, op.Security)
				continue
			}
			looking := method == "GET" || slices.Contains([]string{"explain", "check-machine", "check-cluster", "check-reimage", "check-reset"}, op.OperationID)
			if !looking && needed == read {
				t.Errorf("%s changes something and takes no more than %s", op.OperationID, needed)
			}
			for _, status := range []string{"401", "403", "429"} {
				if _, ok := op.Responses[status]; !ok {
					t.Errorf("%s does not document %s", op.OperationID, status)
				}
			}
			about := strings.Contains(path, "{machine}") || strings.Contains(path, "{cluster}") || taken[op.OperationID] != 0
			t.Run(op.OperationID, func(t *testing.T) {
				untouched := twoClusters(t)
				for _, p := range callers {
					want := 0 // not refused
					switch {
					case p == nil:
						want = 401
					case !p.Role.Allows(needed), p.limited() && !*op.Clusters:
						want = 403
					case p.limited() && about:
						if want = taken[op.OperationID]; want == 0 {
							want = 404
						}
					case strings.HasSuffix(path, "/watch"): // does not end
						continue
					}
					r := untouched
					if want == 0 {
						r = twoClusters(t)
					}
					rev, before := r.store.Rev(), r.head()
					rec := r.ask(p, method, fill.Replace(path), cmp.Or(bodies[op.OperationID], "{}"))
					if want != 0 && rec.Code != want || want == 0 && (rec.Code == 401 || rec.Code == 403 || rec.Code == 404 && about && !strings.HasSuffix(op.OperationID, "-rollout")) {
						t.Errorf("%+v: %d, want %d: %s", p, rec.Code, want, rec.Body)
					}
					if want != 0 && r.store.Rev() != rev {
						t.Errorf("%+v: it was refused, and something was written all the same", p)
					}
					if want == 401 && (!strings.HasPrefix(rec.Header().Get("WWW-Authenticate"), "Bearer ") || !strings.Contains(rec.Body.String(), "token create")) {
						t.Errorf("%v %s", rec.Header(), rec.Body)
					}
					if want == 403 && !p.Role.Allows(needed) && !strings.Contains(rec.Body.String(), "takes the role "+op.Role) {
						t.Errorf("403 does not say which role it takes: %s", rec.Body)
					}
					lines := r.lines(before)
					kept := want == 401 || want == 403 || !looking || slices.Contains([]string{"backup", "get-talosconfig", "get-kubeconfig"}, op.OperationID)
					if kept != (len(lines) > 0) {
						t.Errorf("%+v: the trail has %+v", p, lines)
					}
					for _, e := range lines {
						who := ""
						if p != nil {
							who = p.Name
						}
						if e.Outcome == audit.OK && e.Status == 0 && rec.Code < 300 { // one of several things that were done
							continue
						}
						if e.Action != op.OperationID || e.Who != who || e.Status != rec.Code || (e.Outcome == audit.OK) != (rec.Code < 300) || e.Request != rec.Header().Get("X-Request-Id") {
							t.Errorf("%d: %+v", rec.Code, e)
						}
					}
				}
			})
		}
	}
}

// TestLimited: who is limited to a cluster finds nothing of another, by any way in.
func TestLimited(t *testing.T) {
	r := twoClusters(t)
	p := &Principal{Name: "ci", Via: ViaToken, Role: admin, Clusters: []string{"rack1"}}
	if _, err := r.keeper.Record(t.Context(), inventory.Event{Kind: inventory.Solicited, MAC: "52:54:00:00:00:0e", Client: inventory.FirmwarePXE}); err != nil {
		t.Fatal(err)
	}
	for _, path := range []string{
		"/machines", "/machines?limit=1", "/machines?limit=1&after=cp-1", "/clusters", "/clusters?limit=1", "/events", "/events?after=0", "/events?machine=w-b", "/export", "/status",
		"/events?after=0&limit=1",
	} {
		rec := r.ask(p, "GET", api.Prefix+path, "")
		body := rec.Body.String()
		if rec.Code != 200 || strings.Contains(body, "w-b") || strings.Contains(body, `other`) || strings.Contains(body, "spare") || strings.Contains(body, "00:0e") {
			t.Errorf("%s: %d %s", path, rec.Code, body)
		}
	}
	var st api.Status
	if err := json.Unmarshal(r.ask(p, "GET", "/api/v1/status", "").Body.Bytes(), &st); err != nil || st.Machines != 1 || len(st.Clusters) != 1 || st.Discovered != 0 {
		t.Errorf("%+v, %v", st, err)
	}
	for _, tc := range []struct {
		method, path, body string
		want               int
	}{
		{"GET", "/machines/cp-1", "", 200},
		{"GET", "/machines/525400123456", "", 200},
		{"GET", "/machines/52-54-00-00-00-0b", "", 404}, // w-b by its MAC
		{"GET", "/machines/spare", "", 404},
		{"GET", "/machines/w-b/config?secrets=true", "", 404},
		{"GET", "/clusters/rack1/kubeconfig", "", 200},
		{"GET", "/clusters/other/kubeconfig", "", 404},
		{"PATCH", "/machines/cp-1", `{"labels":{"a":"b"}}`, 200},
		{"PATCH", "/machines/cp-1", `{"cluster":"other"}`, 422},
		{"PATCH", "/machines/cp-1", `{"cluster":"nope"}`, 422}, // the same
		{"PATCH", "/machines/cp-1", `{"cluster":null}`, 403},
		{"POST", "/machines", `{"name":"n","macs":["52-54-00-00-00-0d"],"role":"worker"}`, 403},
		{"POST", "/machines", `{"name":"n","macs":["52-54-00-00-00-0d"],"role":"worker","cluster":"rack1"}`, 201},
		{"PUT", "/machines/w-b", `{"macs":["52-54-00-00-00-0b"],"role":"worker","cluster":"rack1"}`, 409},
		{"POST", "/machines/cp-1/reimage", `{"cluster":"other"}`, 422},
		{"POST", "/apply", `{"machines":[{"name":"spare","macs":["52-54-00-00-00-0c"],"role":"worker","cluster":"rack1"}]}`, 409},
		{"POST", "/apply", `{"machines":[{"name":"n2","macs":["52-54-00-00-00-0f"],"role":"worker"}]}`, 403},
		{"POST", "/apply?createClusters=true", `{"clusters":[{"name":"n","endpoint":"https://[2001:db8::2]:6443"}]}`, 403},
		{"POST", "/apply?createClusters=true", `{"clusters":[` + other + `]}`, 403},
		{"POST", "/apply", `{"clusters":[` + rack1 + `]}`, 200},
	} {
		if rec := r.ask(p, tc.method, api.Prefix+tc.path, tc.body); rec.Code != tc.want {
			t.Errorf("%s %s %s: %d, want %d: %s", tc.method, tc.path, tc.body, rec.Code, tc.want, rec.Body)
		}
	}
	for _, name := range []string{"w-b", "spare"} {
		v, err := r.keeper.Machine(t.Context(), name)
		if err != nil || v.Machine.Cluster == "rack1" || v.Facts.Reimage.Outstanding() {
			t.Errorf("%+v, %v", v.Machine, err)
		}
	}
}

// TestDiskOfAnotherCluster: a machine that was moved here may hold the etcd of where it
// comes from, and whoever is limited to here may not have that lost.
func TestDiskOfAnotherCluster(t *testing.T) {
	r := twoClusters(t)
	for _, kind := range []inventory.Kind{inventory.Solicited, inventory.ScriptServed, inventory.ConfigServed} {
		if _, err := r.keeper.Record(t.Context(), inventory.Event{Kind: kind, MAC: "52:54:00:00:00:0b", Client: inventory.FirmwarePXE, XID: 7, Hash: "h"}); err != nil {
			t.Fatal(err)
		}
	}
	if v, err := r.keeper.Machine(t.Context(), "w-b"); err != nil || v.Facts.Holds.Cluster != "other" {
		t.Fatalf("%+v, %v", v.Facts.Holds, err)
	}
	r.must(200, "PATCH", "/api/v1/machines/w-b?force=true", `{"cluster":"rack1"}`, nil)
	p := &Principal{Name: "ci", Via: ViaToken, Role: admin, Clusters: []string{"rack1"}}
	r.guards.refuse = "etcd of other would lose its quorum"
	for _, tc := range []struct{ method, path, body string }{
		{"DELETE", "/machines/w-b?force=true&destroyCluster=other", ""},
		{"POST", "/machines/w-b/reimage", `{"destroyCluster":"other"}`},
	} {
		if rec := r.ask(p, tc.method, api.Prefix+tc.path, tc.body); rec.Code != 403 {
			t.Errorf("%s %s: %d %s", tc.method, tc.path, rec.Code, rec.Body)
		}
	}
	r.must(202, "POST", "/api/v1/machines/w-b/reimage", `{"destroyCluster":"other"}`, nil)
}

// TestMovedMeanwhile: a machine that leaves the cluster while a request is under way is
// not changed by it.
func TestMovedMeanwhile(t *testing.T) {
	r := twoClusters(t)
	p := &Principal{Name: "ci", Via: ViaToken, Role: operate, Clusters: []string{"rack1"}}
	ctx := context.WithValue(t.Context(), callKey{}, &call{who: p})
	v, err := r.inv.Machine(ctx, "cp-1")
	if err != nil {
		t.Fatal(err)
	}
	mine := v.Machine.Clone()
	mine.Labels = map[string]string{"owner": "ci"}
	r.must(200, "PATCH", "/api/v1/machines/cp-1", `{"cluster":"other"}`, nil)
	if _, err := r.inv.PutMachine(ctx, mine, v.Machine.Rev); !errors.Is(err, inventory.ErrConflict) {
		t.Errorf("it was changed: %v", err)
	}
	if err := r.inv.DeleteMachine(ctx, "cp-1", v.Machine.Rev); !errors.Is(err, inventory.ErrConflict) {
		t.Errorf("it was deleted: %v", err)
	}
	if _, err := r.inv.Record(ctx, inventory.Event{Kind: inventory.ReimageOrdered, Machine: "cp-1"}); !errors.Is(err, inventory.ErrNotFound) {
		t.Errorf("it was ordered to be wiped: %v", err)
	}
}

// brokenTrail is a trail on a disk that is full.
type brokenTrail struct {
	noTrail
	ready, appends error
}

func (b *brokenTrail) Ready(context.Context) error               { return b.ready }
func (b *brokenTrail) Append(context.Context, audit.Entry) error { return b.appends }

// TestTrailThatCannotBeWritten: no secret is told and nothing is changed unseen.
func TestTrailThatCannotBeWritten(t *testing.T) {
	trail := &brokenTrail{}
	r := seed(t, Config{Trail: trail})
	trail.appends = fmt.Errorf("disk: %w", syscall.ENOSPC)
	for _, path := range []string{"/clusters/rack1/kubeconfig", "/machines/cp-1/config?secrets=true", "/backup"} {
		rec := r.do("GET", api.Prefix+path, "")
		if rec.Code != 507 || strings.Contains(rec.Body.String(), "clusters: rack1") || strings.Contains(rec.Body.String(), "hunter2") || strings.Contains(rec.Body.String(), "database") {
			t.Errorf("%s: %d %s", path, rec.Code, rec.Body)
		}
	}
	if rec := r.do("PATCH", "/api/v1/machines/cp-1", `{"role":"worker"}`); rec.Code != 507 || !strings.Contains(rec.Body.String(), "it is done if it was a change") {
		t.Errorf("%d %s", rec.Code, rec.Body)
	}
	trail.ready = trail.appends
	rev := r.store.Rev()
	if rec := r.do("DELETE", "/api/v1/machines/cp-1", ""); rec.Code != 507 || !strings.Contains(rec.Body.String(), "nothing was done") || r.store.Rev() != rev {
		t.Errorf("%d %s", rec.Code, rec.Body)
	}
	r.must(200, "GET", "/api/v1/machines", "", nil)
}

// TestNoSecretInTheTrail sends bodies with secrets, good and bad ones.
func TestNoSecretInTheTrail(t *testing.T) {
	r := seed(t, Config{})
	var made api.NewToken
	r.must(201, "POST", "/api/v1/tokens", `{"name":"ci","role":"read"}`, &made)
	for _, tc := range []struct{ method, path, body string }{
		{"POST", "/clusters/import", `{"secrets":"cluster: s3cret","name":"x"}`},
		{"POST", "/clusters/import", `{"secrets":"s3cret"}`},
		{"POST", "/machines", `{"name":"s3cret!","macs":["s3cret"],"role":"worker"}`},
		{"PATCH", "/machines/cp-1", `{"patches":["bad: s3cret"]}`},
		{"PATCH", "/machines/cp-1", `{"s3cret":1}`},
		{"PATCH", "/machines/cp-1", `{"patches":["explode s3cret"]}`},
		{"POST", "/machines", `{"name":"s3cret`},
		{"GET", "/machines/cp-1/config?secrets=true", ""},
		{"GET", "/clusters/rack1/kubeconfig", ""},
	} {
		r.do(tc.method, api.Prefix+tc.path, tc.body)
	}
	r.ask(nil, "GET", "/api/v1/machines", "")
	var all bytes.Buffer
	if err := r.trail.Read(t.Context(), 0, func(line []byte, _ audit.Entry) bool {
		all.Write(append(line, '\n'))
		return true
	}); err != nil {
		t.Fatal(err)
	}
	for _, secret := range []string{made.Text, made.Text[7:], "hunter2", "secret-bundle"} {
		if strings.Contains(all.String(), secret) || strings.Contains(r.logs.String(), secret) {
			t.Errorf("%s is in the trail or the log", secret)
		}
	}
	// A name that is refused is what the request was about; nothing else of a body is.
	if got := strings.ReplaceAll(all.String(), `"target":"machine/s3cret!"`, ""); strings.Contains(got, "s3cret") {
		t.Errorf("%s", got)
	}
}

// TestPartsInTheTrail: what is changed together is found each by its own name.
func TestPartsInTheTrail(t *testing.T) {
	r := twoClusters(t)
	apply := func(query, labels string, code int) (lines []string) {
		t.Helper()
		before := r.head()
		r.must(code, "POST", "/api/v1/apply"+query, `{"machines":[
			{"name":"w-b","macs":["52-54-00-00-00-0b"],"role":"worker","cluster":"other","labels":`+labels+`},
			{"name":"cp-1","macs":["52-54-00-12-34-56"],"role":"controlplane","cluster":"rack1","labels":`+labels+`}]}`, nil)
		for _, e := range r.lines(before) {
			lines = append(lines, strings.TrimSpace(fmt.Sprint(e.Action, " ", e.Target, " ", e.Outcome, " ", e.Reason)))
		}
		return lines
	}
	for _, tc := range []struct {
		query, labels string
		want          []string
	}{
		{"?dryRun=true", `{"a":"1"}`, []string{"apply  ok dry run"}},
		{"", `{"a":"1"}`, []string{"apply machine/w-b ok", "apply machine/cp-1 ok", "apply  ok"}},
		{"", `{"a":"1"}`, []string{"apply  ok"}}, // nothing was left to do
	} {
		if got := apply(tc.query, tc.labels, 200); !slices.Equal(got, tc.want) {
			t.Errorf("%s %s: %q, want %q", tc.query, tc.labels, got, tc.want)
		}
	}
	before := r.head()
	r.must(201, "POST", "/api/v1/tokens", `{"name":"new","role":"operate","clusters":["other"],"expires":"2099-01-01T00:00:00Z"}`, nil)
	if e := r.lines(before)[0]; e.Target != "token/new" || e.Reason != "operate in cluster other, until 2099-01-01T00:00:00Z" {
		t.Errorf("%+v", e)
	}
	r.must(422, "POST", "/api/v1/tokens", `{"name":"none","role":"admin","clusters":[]}`, nil)
}

// TestAuditPages reads the trail a page at a time, as it was written.
func TestAuditPages(t *testing.T) {
	r := seed(t, Config{})
	for i := range 25 {
		r.must(200, "PATCH", "/api/v1/machines/cp-1", fmt.Sprintf(`{"labels":{"n":"%d"}}`, i), nil)
	}
	var chain audit.Chain
	after, count := "0", 0
	for {
		var page api.List[json.RawMessage]
		r.must(200, "GET", "/api/v1/audit?limit=7&after="+after, "", &page)
		for _, line := range page.Items {
			if _, err := chain.Next(line); err != nil {
				t.Fatal(err)
			}
			count++
		}
		if page.Next == after {
			break
		}
		after = page.Next
	}
	if count != 27 || chain.Last != 27 {
		t.Errorf("%d lines to %d", count, chain.Last)
	}
	var page api.List[api.AuditEntry]
	r.must(200, "GET", "/api/v1/audit?machine=cp-1&who=root&limit=1000", "", &page)
	if len(page.Items) != 26 || page.Items[0].Action != "create-machine" {
		t.Errorf("%d lines", len(page.Items))
	}
	r.must(200, "GET", "/api/v1/audit?since="+time.Now().Add(time.Hour).UTC().Format(time.RFC3339), "", &page)
	if len(page.Items) != 0 || page.Next != "27" {
		t.Errorf("%+v", page)
	}
	r.must(422, "GET", "/api/v1/audit?since=now", "", nil)

	// The same, newest first.
	var back []uint64
	for before, more := "0", true; more; more = before != "" {
		var page api.List[api.AuditEntry]
		r.must(200, "GET", "/api/v1/audit?newest=true&limit=9&before="+before, "", &page)
		for _, e := range page.Items {
			back = append(back, e.Seq)
		}
		if back[len(back)-1] == 1 && page.Next != "" {
			t.Errorf("after the first line comes %s", page.Next)
		}
		before = page.Next
	}
	if slices.Reverse(back); len(back) != 27 || back[0] != 1 || !slices.IsSorted(back) {
		t.Errorf("%v", back)
	}
	page = api.List[api.AuditEntry]{}
	r.must(200, "GET", "/api/v1/audit?newest=true&machine=cp-1&limit=2", "", &page)
	if len(page.Items) != 2 || page.Items[0].Seq != 27 || page.Items[1].Seq != 26 || page.Next != "26" {
		t.Errorf("%+v", page)
	}
	r.must(422, "GET", "/api/v1/audit?newest=true&after=3", "", nil)
	r.must(422, "GET", "/api/v1/audit?before=3", "", nil)
}
