package admin

import (
	"encoding/json"
	"fmt"
	"strings"
	"testing"

	"github.com/provisiond/provisiond/api"
)

// TestRequests sends one request to an API with one cluster and one machine.
func TestRequests(t *testing.T) {
	sha := strings.Repeat("ab", 32)
	for _, tc := range []struct {
		name, method, path, body string
		header                   []string
		status                   int
		want                     []string // in the body
	}{
		{"show", "GET", "/machines/cp-1", "", nil, 200, []string{`"name":"cp-1"`, `"macs":["52:54:00:12:34:56"]`, `"phase":{"phase":"registered"`, `"plan":{"action":"hold","reason":"boot image`, `is not imported","image":"v1.13.6/default/amd64"}`, `"address":"2001:db8::1`}},
		{"show by MAC with dots", "GET", "/machines/5254.0012.3456", "", nil, 200, []string{`"name":"cp-1"`}},
		{"show by MAC, escaped", "GET", "/machines/52%3A54%3A00%3A12%3A34%3A56", "", nil, 200, []string{`"name":"cp-1"`}},
		{"show nobody", "GET", "/machines/cp-9", "", nil, 404, []string{`"status":404`, `machine \"cp-9\": not found`}},
		{"list", "GET", "/machines", "", nil, 200, []string{`"items":[{"name":"cp-1"`}},
		{"list with a bad limit", "GET", "/machines?limit=0", "", nil, 422, []string{`"location":"query.limit"`}},
		{"list with too large a limit", "GET", "/machines?limit=1001", "", nil, 422, []string{`"location":"query.limit"`, "1000"}},
		{"list with an unknown parameter", "GET", "/machines?rolle=worker", "", nil, 422, []string{`"location":"query.rolle"`}},
		{"list with a bad label", "GET", "/machines?label=row", "", nil, 422, []string{`"location":"query.label[0]"`, "key=value"}},
		{"list with a bad phase", "GET", "/machines?phase=happy", "", nil, 422, []string{`"location":"query.phase"`}},

		{"create", "POST", "/machines", `{"name":"w-1","macs":["525400000001"],"role":"worker"}`, nil, 201, []string{`"name":"w-1"`, `"address":"2001:db8::1`}},
		{"create twice", "POST", "/machines", cp1, nil, 409, []string{`"location":"body.name"`, "already registered"}},
		{"create with a taken MAC", "POST", "/machines", `{"name":"w-1","macs":["52:54:00:12:34:56"],"role":"worker"}`, nil, 409, []string{`"location":"body.macs[0]"`, "belongs to machine cp-1"}},
		{"create with a bad MAC", "POST", "/machines", `{"name":"w-1","macs":["525400000001","5254"],"role":"worker"}`, nil, 422, []string{`"location":"body.macs[1]"`, "write six octets"}},
		{"create with a bad address and a bad MAC", "POST", "/machines", `{"name":"w-1","macs":["x"],"address":"2001:db8::g","role":"worker"}`, nil, 422, []string{`"location":"body.macs[0]"`, `"location":"body.address"`, "2 problems"}},
		{"create outside the subnet", "POST", "/machines", `{"name":"w-1","macs":["525400000001"],"address":"2001:dead::1","role":"worker"}`, nil, 422, []string{`"location":"body.address"`, "rack 2001:db8::/64"}},
		{"create with an unknown field", "POST", "/machines", `{"name":"w-1","macs":["525400000001"],"role":"worker","colour":"x"}`, nil, 422, []string{`"location":"body.colour"`}},
		{"create with an unknown nested field", "POST", "/machines", `{"name":"w-1","macs":["525400000001"],"role":"worker","install":{"dsk":"x"}}`, nil, 422, []string{`"location":"body.install.dsk"`}},
		{"create without MACs", "POST", "/machines", `{"name":"w-1","role":"worker"}`, nil, 422, []string{"macs"}},
		{"create with a bad role", "POST", "/machines", `{"name":"w-1","macs":["525400000001"],"role":"boss"}`, nil, 422, []string{`"location":"body.role"`, "controlplane"}},
		{"create with a number for a name", "POST", "/machines", `{"name":7,"macs":["525400000001"],"role":"worker"}`, nil, 422, []string{`"location":"body.name"`, "expected string"}},
		{"create in no cluster", "POST", "/machines", `{"name":"w-1","macs":["525400000001"],"role":"worker","cluster":"x"}`, nil, 422, []string{`"location":"body.cluster"`, "create or import it first"}},
		{"create under a MAC", "POST", "/machines", `{"name":"525400000001","macs":["525400000001"],"role":"worker"}`, nil, 422, []string{`"location":"body.name"`, "is a MAC address"}},
		{"create under a path of ours", "POST", "/machines", `{"name":"watch","macs":["525400000001"],"role":"worker"}`, nil, 422, []string{`"location":"body.name"`, "machines/watch"}},
		{"put new under a MAC", "PUT", "/machines/52-54-00-00-00-01", `{"macs":["525400000001"],"role":"worker"}`, nil, 422, []string{`"location":"body.name"`, "is a MAC address"}},
		{"create without a cluster, with a bad patch", "POST", "/machines", `{"name":"w-1","macs":["525400000001"],"role":"worker","patches":["ok","bad"]}`, nil, 422, []string{`"location":"body.patches[1]"`, "mend it"}},
		{"patch a bad patch in, out of the cluster", "PATCH", "/machines/cp-1", `{"cluster":null,"patches":["bad"]}`, nil, 422, []string{`"location":"body.patches[0]"`}},
		{"apply without a cluster, with a bad patch", "POST", "/apply", `{"machines":[{"name":"w-1","macs":["525400000001"],"role":"worker","patches":["bad"]}]}`, nil, 422, []string{`"location":"body.machines[0].patches[0]"`}},
		{"create with a patch Talos refuses", "POST", "/machines", `{"name":"w-1","macs":["525400000001"],"role":"worker","cluster":"rack1","patches":["ok","bad"]}`, nil, 422, []string{`"location":"body.patches[1]"`, "mend it"}},
		{"put a cluster with a bad config", "PUT", "/clusters/rack1", `{"endpoint":"https://a:6443","patches":["kubelet"]}`, nil, 422, []string{`"location":"body"`, "machine.kubelet.image: no tag"}},
		{"create when Talos breaks", "POST", "/machines", `{"name":"w-1","macs":["525400000001"],"role":"worker","cluster":"rack1","patches":["explode"]}`, nil, 500, []string{"internal error"}},
		{"no body", "POST", "/machines", "", nil, 400, []string{"request body is required"}},
		{"not JSON", "POST", "/machines", `{"name":`, nil, 400, []string{`"location":"body"`}},
		{"YAML", "POST", "/machines", `name: x`, []string{"Content-Type", "application/yaml"}, 415, []string{"unknown content type"}},
		{"too large", "POST", "/machines", `{"name":"` + strings.Repeat("x", api.MaxBody) + `"}`, nil, 413, []string{"too large"}},

		{"put renames", "PUT", "/machines/cp-1", strings.Replace(cp1, "cp-1", "cp-2", 1), nil, 422, []string{`"location":"body.name"`, "cannot be renamed"}},
		{"put at the right revision", "PUT", "/machines/cp-1", cp1, []string{"If-Match", `"2"`}, 200, []string{`"rev":3`}},
		{"put at the wrong revision", "PUT", "/machines/cp-1", cp1, []string{"If-Match", `"1"`}, 412, []string{`"status":412`}},
		{"put at a weak revision", "PUT", "/machines/cp-1", cp1, []string{"If-Match", `W/"2"`}, 412, []string{`"status":412`}},
		{"put at junk", "PUT", "/machines/cp-1", cp1, []string{"If-Match", `2`}, 422, []string{`"location":"header.If-Match"`}},
		{"put at one of several", "PUT", "/machines/cp-1", cp1, []string{"If-Match", `"9", "2"`}, 200, []string{`"rev":3`}},
		{"put if it exists", "PUT", "/machines/cp-1", cp1, []string{"If-Match", `*`}, 200, []string{`"rev":3`}},
		{"put new", "PUT", "/machines/w-1", `{"macs":["525400000001"],"role":"worker"}`, nil, 200, []string{`"name":"w-1"`}},
		{"put new if it exists", "PUT", "/machines/w-1", `{"macs":["525400000001"],"role":"worker"}`, []string{"If-Match", `*`}, 412, []string{"no such record"}},

		{"patch", "PATCH", "/machines/cp-1", `{"role":"worker","labels":{"row":null,"u":"7"}}`, nil, 200, []string{`"role":"worker"`, `"labels":{"u":"7"}`, `"macs":["52:54:00:12:34:56"]`}},
		{"patch as merge-patch", "PATCH", "/machines/cp-1", `{"role":"worker"}`, []string{"Content-Type", "application/merge-patch+json"}, 200, []string{`"role":"worker"`}},
		{"patch an unknown field", "PATCH", "/machines/cp-1", `{"rolle":"worker"}`, nil, 422, []string{`unknown field \"rolle\"`}},
		{"patch with a wrong type", "PATCH", "/machines/cp-1", `{"labels":{"row":7}}`, nil, 422, []string{`"location":"body.labels`, "number"}},
		{"patch at the wrong revision", "PATCH", "/machines/cp-1", `{"role":"worker"}`, []string{"If-Match", `"1"`}, 412, nil},
		{"patch nobody", "PATCH", "/machines/cp-9", `{"role":"worker"}`, nil, 404, nil},
		{"delete", "DELETE", "/machines/cp-1", "", nil, 204, nil},
		{"delete by MAC at the wrong revision", "DELETE", "/machines/525400123456", "", []string{"If-Match", `"1"`}, 412, nil},
		{"delete nobody", "DELETE", "/machines/cp-9", "", nil, 404, nil},

		{"boots of one that never booted", "GET", "/machines/cp-1/boots", "", nil, 200, []string{`"items":[]`}},
		{"config", "GET", "/machines/cp-1/config", "", nil, 200, []string{"token: *****"}},
		{"where a config comes from", "GET", "/machines/cp-1/config/origins", "", nil, 200, []string{`{"text":"machine:\n","origin":"base"}`, `"origin":"machine","patch":0}`}},
		{"config with secrets", "GET", "/machines/cp-1/config?secrets=true", "", nil, 200, []string{"token: hunter2"}},
		{"config with a bad flag", "GET", "/machines/cp-1/config?secrets=please", "", nil, 422, []string{`"location":"query.secrets"`}},
		{"diff before any was served", "GET", "/machines/cp-1/diff", "", nil, 200, []string{`+machine:`}},
		{"diff to what it runs", "GET", "/machines/cp-1/diff?running=true", "", nil, 200, []string{`--- running`, `-  name: old`, `"running":"a1"`, `"wanted":"b2"`}},
		{"apply", "POST", "/machines/cp-1/apply", `{}`, nil, 200, []string{`"said":"Applied auto, dry false"`, `"hash":"b2"`, `"machine":"cp-1"`}},
		{"apply in a mode, dry", "POST", "/machines/cp-1/apply", `{"mode":"staged","dryRun":true}`, nil, 200, []string{`"said":"Applied staged, dry true"`, `"dryRun":true`}},
		{"apply in a mode that is none", "POST", "/machines/cp-1/apply", `{"mode":"reboot"}`, nil, 422, []string{`"location":"body.mode"`}},
		{"apply to no machine", "POST", "/machines/nope/apply", `{}`, nil, 404, nil},

		{"clusters", "GET", "/clusters", "", nil, 200, []string{`"name":"rack1"`, `"talosVersion":"v1.13.6"`, `"state":"waiting"`}},
		{"cluster", "GET", "/clusters/rack1", "", nil, 200, []string{`"podSubnets":["fd00:10:244::/56"]`, `"rev":1`}},
		{"no cluster", "GET", "/clusters/nope", "", nil, 404, nil},
		{"create a cluster twice", "POST", "/clusters", rack1, nil, 409, []string{`"location":"body.name"`}},
		{"create a cluster without an endpoint", "POST", "/clusters", `{"name":"a"}`, nil, 422, []string{`"location":"body.endpoint"`}},
		{"create a cluster with IPv4 pods and junk", "POST", "/clusters", `{"name":"a","endpoint":"https://a:6443","podSubnets":["fd00::/56","junk"],"dns":["x"]}`, nil, 422, []string{`"location":"body.podSubnets[1]"`, `"location":"body.dns[0]"`}},
		{"create a cluster of an old Talos", "POST", "/clusters", `{"name":"a","endpoint":"https://a:6443","talosVersion":"v0.9.0"}`, nil, 422, []string{`"location":"body.talosVersion"`}},
		{"put a cluster", "PUT", "/clusters/rack1", `{"endpoint":"https://[2001:db8::2]:6443"}`, []string{"If-Match", `"1"`}, 200, []string{`"endpoint":"https://[2001:db8::2]:6443"`, `"talosVersion":"v1.13.6"`}},
		{"put a cluster at the wrong revision", "PUT", "/clusters/rack1", rack1, []string{"If-Match", `"7"`}, 412, nil},
		{"put never creates a cluster", "PUT", "/clusters/new", `{"endpoint":"https://[2001:db8::2]:6443"}`, nil, 404, nil},
		{"put a bad patch", "PUT", "/clusters/rack1", `{"endpoint":"https://a:6443","patches":["bad"]}`, nil, 422, []string{`"location":"body.patches[0]"`}},
		{"patch a cluster", "PATCH", "/clusters/rack1", `{"dns":["2001:db8::53"]}`, nil, 200, []string{`"dns":["2001:db8::53"]`, `"endpoint":"https://[2001:db8::1]:6443"`}},
		{"delete a cluster with machines", "DELETE", "/clusters/rack1", "", nil, 409, []string{"still has 1 machines"}},
		{"import", "POST", "/clusters/import", `{"secrets":"cluster: {}"}`, nil, 201, []string{`"name":"old"`, `"imported":true`, `"kubernetesVersion":"1.35.0"`}},
		{"import what was never used", "POST", "/clusters/import", `{"secrets":"cluster: {}","new":true}`, nil, 201, []string{`"name":"old"`, `"rev":`}},
		{"import under another name", "POST", "/clusters/import", `{"secrets":"cluster: {}","name":"new","endpoint":"https://n:6443"}`, nil, 201, []string{`"name":"new"`, `"endpoint":"https://n:6443"`}},
		{"import junk", "POST", "/clusters/import", `{"secrets":"hello"}`, nil, 422, []string{`"location":"body.secrets"`}},
		{"import over another", "POST", "/clusters/import", `{"secrets":"cluster: {}","name":"rack1"}`, nil, 409, nil},
		{"talosconfig", "GET", "/clusters/rack1/talosconfig", "", nil, 200, []string{"context: rack1"}},
		{"kubeconfig", "GET", "/clusters/rack1/kubeconfig", "", nil, 200, []string{"clusters: rack1"}},
		{"kubeconfig of none", "GET", "/clusters/nope/kubeconfig", "", nil, 404, nil},

		{"rollout over a cluster that is not up", "POST", "/clusters/rack1/rollout", `{}`, nil, 409, []string{"not bootstrapped yet"}},
		{"rollout in a mode that is none", "POST", "/clusters/rack1/rollout", `{"mode":"try"}`, nil, 422, []string{`"location":"body.mode"`}},
		{"no rollout", "GET", "/clusters/rack1/rollout", "", nil, 404, nil},
		{"stop no rollout", "DELETE", "/clusters/rack1/rollout", "", nil, 404, nil},
		{"rollout over no cluster", "POST", "/clusters/nope/rollout", `{}`, nil, 404, nil},

		{"images", "GET", "/images", "", nil, 200, []string{`"items":[]`}},
		{"put an image without its files", "PUT", "/images/v1.13.6/default/amd64", fmt.Sprintf(`{"kernel":{"sha256":%q,"size":1},"initramfs":{"sha256":%q,"size":1}}`, sha, sha), nil, 422, []string{`"location":"body.kernel"`, "upload it"}},
		{"put an image of another machine", "PUT", "/images/v1.13.6/default/vax", `{}`, nil, 422, []string{`"location":"path.arch"`}},
		{"put an image of another Talos", "PUT", "/images/v9.9.9/default/amd64", fmt.Sprintf(`{"kernel":{"sha256":%q,"size":1},"initramfs":{"sha256":%q,"size":1}}`, sha, sha), nil, 422, []string{`"location":"path.version"`, "v9.9.9 is not supported"}},
		{"put an image of no version", "PUT", "/images/latest/default/amd64", `{}`, nil, 422, []string{`"location":"path.version"`}},
		{"put an image with a bad hash", "PUT", "/images/v1.13.6/default/amd64", `{"kernel":{"sha256":"x","size":1},"initramfs":{"sha256":"x","size":1}}`, nil, 422, []string{`"location":"body.kernel.sha256"`}},
		{"put a blob with the wrong hash", "PUT", "/images/blobs/" + sha, "kernel", nil, 422, []string{`"location":"path.sha256"`}},
		{"put a blob under no hash", "PUT", "/images/blobs/zz", "kernel", nil, 422, []string{`"location":"path.sha256"`}},
		{"delete no image", "DELETE", "/images/v1.13.6/default/amd64", "", nil, 404, nil},
		{"get no image", "GET", "/images/v1.13.6/default/amd64", "", nil, 404, nil},

		{"events", "GET", "/events", "", nil, 200, []string{`"kind":"cluster-created"`, `"kind":"registered"`}},
		{"events after", "GET", "/events?after=1", "", nil, 200, []string{`"items":[{"id":2`}},
		{"events of a machine", "GET", "/events?machine=cp-1", "", nil, 200, []string{`"items":[{"id":2`}},
		{"events of a kind", "GET", "/events?kind=cluster-created&after=0", "", nil, 200, []string{`"items":[{"id":1`}},
		{"events of no kind", "GET", "/events?kind=bogus", "", nil, 422, []string{`"location":"query.kind"`, "config-served"}},
		{"events to follow of no kind", "GET", "/events/watch?kind=bogus", "", nil, 422, []string{`"location":"query.kind"`}},
		{"machines to follow of no phase", "GET", "/machines/watch?phase=bogus", "", nil, 422, []string{`"location":"query.phase"`}},
		{"machines to follow by no label", "GET", "/machines/watch?label=x", "", nil, 422, []string{`"location":"query.label[0]"`}},
		{"machines after too much", "GET", "/machines/watch?after=99999999999999999999", "", nil, 422, []string{`"location":"query.after"`}},
		{"events after junk", "GET", "/events?after=x", "", nil, 422, []string{`"location":"query.after"`}},
		{"events after too much", "GET", "/events/watch?after=99999999999999999999", "", nil, 422, []string{`"location":"query.after"`}},
		{"discovered", "GET", "/discovered", "", nil, 200, []string{`"items":[]`}},
		{"export", "GET", "/export", "", nil, 200, []string{`"clusters":[{"name":"rack1"`, `"machines":[{"name":"cp-1"`}},
		{"status", "GET", "/status", "", nil, 200, []string{`"machines":1`, `"phases":{"registered":1}`, `"ready":0`}},
		{"version", "GET", "/version", "", nil, 200, []string{`"version":"v0.0.0-test"`, `"api":"v1"`}},
		{"backup", "GET", "/backup", "", nil, 200, []string{"the whole database"}},
		{"nothing", "GET", "/nothing", "", nil, 404, []string{"/openapi.json lists"}},
		{"no such method", "DELETE", "/events", "", nil, 405, []string{"DELETE does not work"}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			r := seed(t, Config{})
			rec := r.do(tc.method, api.Prefix+tc.path, tc.body, tc.header...)
			if rec.Code != tc.status {
				t.Errorf("status %d, want %d: %s\n%s", rec.Code, tc.status, rec.Body, r.logs)
			}
			for _, want := range tc.want {
				if !strings.Contains(rec.Body.String(), want) {
					t.Errorf("no %s in %s", want, rec.Body)
				}
			}
			if tc.status >= 400 {
				var p api.Problem
				if err := json.Unmarshal(rec.Body.Bytes(), &p); err != nil || p.Status != tc.status || p.Title == "" || p.Detail == "" {
					t.Errorf("not a problem: %s", rec.Body)
				}
				if ct := rec.Header().Get("Content-Type"); ct != "application/problem+json" {
					t.Errorf("an error as %s", ct)
				}
			}
			if got := rec.Header().Get("Cache-Control"); got != "no-store" {
				t.Errorf("Cache-Control %q", got)
			}
			if strings.Contains(rec.Body.String(), "secret-bundle") || strings.Contains(rec.Body.String(), "/secret/path") || strings.Contains(r.logs.String(), "secret-bundle") {
				t.Error("a secret, or the inside of an error, left")
			}
			if tc.status == 500 && !strings.Contains(r.logs.String(), "disk on fire") {
				t.Errorf("the detail is not in the log: %s", r.logs)
			}
		})
	}
}
