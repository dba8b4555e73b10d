package admin

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"testing"

	"github.com/provisiond/provisiond/api"
	"github.com/provisiond/provisiond/internal/inventory"
)

// TestCheckIsPatch asks what would come of a change, sees that nothing did, and then
// makes it: what was said in advance is what comes of it.
func TestCheckIsPatch(t *testing.T) {
	for _, tc := range []struct{ path, body, diff string }{
		{"/machines/cp-1", `{}`, ""},
		{"/machines/cp-1", `{"labels":{"a":"b"}}`, ""},
		{"/machines/525400123456", `{"patches":["ok"]}`, "--- now\n+++ then\n@@ -1,4 +1,4 @@\n machine:\n   token: *****\n   name: cp-1\n-  patches: 0\n+  patches: 1\n"},
		{"/machines/cp-1", `{"patches":["ok","bad"]}`, ""},
		{"/machines/cp-1", `{"patches":["kubelet"]}`, ""},
		{"/machines/cp-1", `{"patches":["explode"]}`, ""},
		{"/machines/cp-1", `{"cluster":null,"patches":["bad"]}`, ""},
		{"/machines/cp-1", `{"cluster":null}`, ""},
		{"/machines/cp-1", `{"cluster":"nope"}`, ""},
		{"/machines/cp-1", `{"cluster":"strict"}`, ""},
		{"/machines/cp-1", `{"macs":["x"],"address":"y"}`, ""},
		{"/machines/cp-1", `{"macs":["52-54-00-00-00-01"]}`, ""},
		{"/machines/cp-1", `{"address":"2001:dead::1"}`, ""},
		{"/machines/cp-1", `{"rolle":"worker"}`, ""},
		{"/machines/cp-1", `{"labels":7}`, ""},
		{"/machines/cp-1", `{"name":"cp-2"}`, ""},
		{"/machines/w-1", `{"role":"controlplane"}`, ""}, // it runs
		{"/machines/w-1?force=true", `{"role":"controlplane"}`, ""},
		{"/machines/w-9", `{}`, ""},
		{"/clusters/rack1", `{"patches":["ok"]}`, ""},
		{"/clusters/rack1", `{"patches":["bad"]}`, ""},
		{"/clusters/rack1", `{"patches":["kubelet"]}`, ""},
		{"/clusters/rack1", `{"endpoint":"x"}`, ""},
		{"/clusters/rack1", `{"dns":["x"]}`, ""},
		{"/clusters/rack1", `{"colour":"x"}`, ""},
		{"/clusters/rack1", `{"name":"x"}`, ""},
		{"/clusters/nope", `{}`, ""},
	} {
		t.Run(tc.path+tc.body, func(t *testing.T) {
			r := seed(t, Config{})
			r.must(201, "POST", "/api/v1/clusters", strict, nil)
			r.must(201, "POST", "/api/v1/machines", `{"name":"w-1","macs":["52-54-00-00-00-01"],"role":"worker","cluster":"rack1"}`, nil)
			for _, kind := range []inventory.Kind{inventory.ScriptServed, inventory.ConfigServed} {
				if _, err := r.keeper.Record(t.Context(), inventory.Event{Kind: kind, Machine: "w-1", Plan: inventory.Install, Hash: "h"}); err != nil {
					t.Fatal(err)
				}
			}
			path, query, _ := strings.Cut(tc.path, "?")
			rev := r.store.Rev()
			check := r.do("POST", api.Prefix+path+"/check?"+query, tc.body)
			if r.store.Rev() != rev {
				t.Error("a check wrote something")
			}
			patch := r.do("PATCH", api.Prefix+path+"?"+query, tc.body)
			var said api.MachineCheck // the rest of a ClusterCheck is TestCheckCluster's
			var did api.Problem
			if err := errors.Join(json.Unmarshal(check.Body.Bytes(), &said), json.Unmarshal(patch.Body.Bytes(), &did)); err != nil {
				t.Fatal(err)
			}
			want := did.Errors
			switch {
			case patch.Code != http.StatusOK && patch.Code != http.StatusUnprocessableEntity && patch.Code != http.StatusConflict:
				if check.Code != patch.Code {
					t.Errorf("%d, and patched %d", check.Code, patch.Code)
				}
				return
			case patch.Code != http.StatusOK && len(want) == 0:
				want = []api.Detail{{Message: did.Detail}}
			}
			if check.Code != http.StatusOK || said.OK != (patch.Code == http.StatusOK) || fmt.Sprint(said.Problems) != fmt.Sprint(want) {
				t.Errorf("said %d %s\nbut %d %s", check.Code, check.Body, patch.Code, patch.Body)
			}
			if said.Diff != tc.diff {
				t.Errorf("diff %q, want %q", said.Diff, tc.diff)
			}
		})
	}
}

// TestCheckCluster: a change that the cluster takes and some of its machines do not
// names those, and looks at so many only.
func TestCheckCluster(t *testing.T) {
	r := seed(t, Config{})
	for i := range 30 {
		r.must(201, "POST", "/api/v1/machines", fmt.Sprintf(`{"name":"w-%02d","macs":["52-54-00-00-01-%02x"],"role":"worker","cluster":"rack1"}`, i, i), nil)
	}
	r.must(201, "POST", "/api/v1/machines", `{"name":"spare","macs":["52-54-00-00-02-00"],"role":"worker"}`, nil)
	var got api.ClusterCheck
	r.must(200, "POST", "/api/v1/clusters/rack1/check", `{"patches":["ok"]}`, &got)
	if !got.OK || got.Checked != 31 || got.Unchecked != 0 || len(got.Machines) != 0 {
		t.Errorf("%+v", got)
	}
	got = api.ClusterCheck{}
	r.must(200, "POST", "/api/v1/clusters/rack1/check", `{"patches":["ok","unfit"]}`, &got)
	if got.OK || len(got.Problems) != 0 || len(got.Machines) != 20 || got.Checked != 20 || got.Unchecked != 11 || got.Machines[0].Machine != "cp-1" ||
		fmt.Sprint(got.Machines[19]) != "{w-18 [{does not fit body.patches[1]}]}" {
		t.Errorf("%+v", got)
	}
	got = api.ClusterCheck{}
	r.must(200, "POST", "/api/v1/clusters/rack1/check", `{"patches":["bad"]}`, &got)
	if got.OK || len(got.Problems) != 1 || got.Checked != 0 || got.Unchecked != 31 {
		t.Errorf("%+v", got)
	}
	r.must(500, "POST", "/api/v1/clusters/rack1/check", `{"patches":["explode"]}`, nil)
	for i := range 230 {
		r.must(201, "POST", "/api/v1/machines", fmt.Sprintf(`{"name":"x-%03d","macs":["52-54-00-00-03-%02x"],"role":"worker","cluster":"rack1"}`, i, i), nil)
	}
	got = api.ClusterCheck{}
	r.must(200, "POST", "/api/v1/clusters/rack1/check", `{}`, &got)
	if !got.OK || got.Checked != 256 || got.Unchecked != 5 {
		t.Errorf("%+v", got)
	}
}
