package admin

import (
	"bytes"
	"fmt"
	"net/http"
	"strings"
	"testing"

	"github.com/provisiond/provisiond/api"
	"github.com/provisiond/provisiond/internal/inventory"
)

// TestReimageRoutes: ordered, shown, cancelled; refused with the guard's words unless
// the cluster's name is the word that it may be lost.
func TestReimageRoutes(t *testing.T) {
	r := seed(t, Config{})
	r.must(http.StatusAccepted, "POST", "/api/v1/machines/cp-1/reimage", `{"wipe":"all","graceful":false}`, nil)
	v, err := r.keeper.Machine(t.Context(), "cp-1")
	if o := v.Facts.Reimage; err != nil || !o.Outstanding() || !o.AllDisks || o.Graceful || o.Destroy {
		t.Fatalf("ordered %+v, %v", o, err)
	}
	if body := r.must(http.StatusAccepted, "POST", "/api/v1/machines/cp-1/reimage", `{}`, nil).Body.String(); !strings.Contains(body, `"order":1`) || !strings.Contains(body, `"state":"waiting"`) {
		t.Errorf("ordered again: %s", body)
	}
	r.must(http.StatusOK, "DELETE", "/api/v1/machines/cp-1/reimage", "", nil)
	r.guards.refuse = "etcd would be left with 1 of 2"
	if body := r.must(http.StatusConflict, "POST", "/api/v1/machines/cp-1/reimage", `{}`, nil).Body.String(); !strings.Contains(body, "1 of 2") {
		t.Errorf("refused with %s", body)
	}
	wantErrors(t, r.must(http.StatusUnprocessableEntity, "POST", "/api/v1/machines/cp-1/reimage", `{"destroyCluster":"other"}`, nil), "body.destroyCluster: ")
	if body := r.must(http.StatusConflict, "DELETE", "/api/v1/machines/cp-1?force=true", "", nil).Body.String(); !strings.Contains(body, "1 of 2") {
		t.Errorf("refused with %s", body)
	}
	if _, err := r.keeper.Record(t.Context(), inventory.Event{Kind: inventory.WipeClaimed, Machine: "cp-1"}); err == nil {
		t.Error("a cancelled order was claimed")
	}
	r.guards.refuse = ""
	r.must(http.StatusAccepted, "POST", "/api/v1/machines/cp-1/reimage", `{"role":"worker"}`, nil)
	if v, err = r.keeper.Machine(t.Context(), "cp-1"); err != nil || v.Machine.Role != inventory.Worker || v.Facts.Reimage.Ordered != 2 {
		t.Errorf("as another role: %+v, %+v, %v", v.Machine, v.Facts.Reimage, err)
	}
	if _, err := r.keeper.Record(t.Context(), inventory.Event{Kind: inventory.WipeClaimed, Machine: "cp-1"}); err != nil {
		t.Fatal(err)
	}
	r.must(http.StatusConflict, "DELETE", "/api/v1/machines/cp-1/reimage", "", nil)
	for phase, want := range map[inventory.Phase]string{inventory.PhaseReimaging: `"name":"cp-1"`, inventory.PhaseReady: `"items":[]`} {
		if body := r.must(http.StatusOK, "GET", "/api/v1/machines?phase="+string(phase), "", nil).Body.String(); !strings.Contains(body, want) {
			t.Errorf("%s: %s", phase, body)
		}
	}
}

// TestClusterResetRoute: only with the name typed, once for each life.
func TestClusterResetRoute(t *testing.T) {
	r := seed(t, Config{})
	cluster := func() (*inventory.Cluster, *inventory.Bootstrap) {
		cl, b, err := r.keeper.Cluster(t.Context(), "rack1")
		if err != nil {
			t.Fatal(err)
		}
		return cl, b
	}
	for _, kind := range []inventory.Kind{inventory.ScriptServed, inventory.ConfigServed} {
		if _, err := r.keeper.Record(t.Context(), inventory.Event{Kind: kind, Machine: "cp-1", Plan: inventory.Install, Hash: "h"}); err != nil {
			t.Fatal(err)
		}
	}
	wantErrors(t, r.must(http.StatusUnprocessableEntity, "POST", "/api/v1/clusters/rack1/reset", `{"confirm":"rack2"}`, nil), "body.confirm: ")
	r.must(http.StatusConflict, "POST", "/api/v1/clusters/rack1/reset", `{"confirm":"rack1","dead":["w-1"]}`, nil)
	before, err := r.keeper.Secrets(t.Context(), "rack1")
	if err != nil {
		t.Fatal(err)
	}
	body := r.must(http.StatusAccepted, "POST", "/api/v1/clusters/rack1/reset", `{"confirm":"rack1","epoch":1}`, nil).Body.String()
	if !strings.Contains(body, `"epoch":2`) || !strings.Contains(body, "cp-1") {
		t.Errorf("the reset answered %s", body)
	}
	r.must(http.StatusAccepted, "POST", "/api/v1/clusters/rack1/reset", `{"confirm":"rack1","epoch":1}`, nil)
	if cl, b := cluster(); cl.Epoch != 2 || b.Epoch != 2 || fmt.Sprint(b.Old) != "[cp-1]" {
		t.Errorf("asked twice: %+v, %+v", cl, b)
	}
	if old, err := r.keeper.SecretsOf(t.Context(), "rack1", 1); err != nil || !bytes.Equal(old.Bundle, before.Bundle) {
		t.Errorf("the old secrets: %v", err)
	}
	r.must(http.StatusAccepted, "POST", "/api/v1/clusters/rack1/reset", `{"confirm":"rack1","epoch":1,"dead":["cp-1"]}`, nil)
	if _, b := cluster(); len(b.Old) != 0 {
		t.Errorf("declared dead and still waited for: %v", b.Old)
	}
	if v, err := r.keeper.Machine(t.Context(), "cp-1"); err != nil || !v.Facts.Reimage.Outstanding() || !v.Facts.Reimage.Destroy {
		t.Errorf("its reimage stands at %+v, %v", v.Facts.Reimage, err)
	}
}

// TestResetCheck: which machines a reset would wipe is said, and nothing is done. Who is
// limited to clusters is told how many the others are.
func TestResetCheck(t *testing.T) {
	r := twoClusters(t)
	r.must(http.StatusCreated, "POST", "/api/v1/machines", `{"name":"cp-2","macs":["52-54-00-00-00-0d"],"role":"controlplane","cluster":"rack1"}`, nil)
	for _, name := range []string{"cp-1", "cp-2"} {
		for _, kind := range []inventory.Kind{inventory.ScriptServed, inventory.ConfigServed} {
			r.record(t, inventory.Event{Kind: kind, Machine: name, Plan: inventory.Install, Hash: "h"})
		}
	}
	r.must(http.StatusOK, "PATCH", "/api/v1/machines/cp-2?force=true", `{"cluster":"other","role":"worker"}`, nil, "Content-Type", "application/merge-patch+json")
	const path = "/api/v1/clusters/rack1/reset/check"
	if err := r.keeper.Flush(t.Context()); err != nil { // what is known, and not written yet
		t.Fatal(err)
	}
	rev := r.store.Rev()
	var got api.ClusterResetCheck
	r.must(http.StatusOK, "POST", path, `{"confirm":""}`, &got)
	if fmt.Sprint(got) != "{1 2 2 [{cp-1 controlplane true} {cp-2 controlplane true}]}" {
		t.Errorf("%+v", got)
	}
	r.must(http.StatusOK, "POST", path, `{"confirm":"","dead":["cp-2"]}`, &got)
	if fmt.Sprint(got) != "{1 2 1 [{cp-1 controlplane true} {cp-2 controlplane false}]}" {
		t.Errorf("%+v", got)
	}
	rec := r.ask(&Principal{Name: "limited", Via: ViaToken, Role: operate, Clusters: []string{"rack1"}}, "POST", path, `{"confirm":""}`)
	if body := rec.Body.String(); rec.Code != http.StatusOK || strings.Contains(body, "cp-2") || !strings.Contains(body, `"count":2,"awaited":2,"machines":[{"name":"cp-1"`) {
		t.Errorf("%d %s", rec.Code, body)
	}
	r.must(http.StatusConflict, "POST", path, `{"confirm":"","dead":["w-b"]}`, nil)
	r.must(http.StatusConflict, "POST", path, `{"confirm":"","epoch":7}`, nil)
	if r.store.Rev() != rev {
		t.Error("something was written")
	}
}

// TestReimageCheck: what an order would come to is said, and nothing is done.
func TestReimageCheck(t *testing.T) {
	r := seed(t, Config{})
	check := func(body string) (got api.ReimageCheck) {
		t.Helper()
		rev := r.store.Rev()
		r.must(http.StatusOK, "POST", "/api/v1/machines/cp-1/reimage/check", body, &got)
		if r.store.Rev() != rev {
			t.Error("something was written")
		}
		if got.OK != (len(got.Problems) == 0) {
			t.Errorf("%+v", got)
		}
		return got
	}
	if got := check(`{}`); !got.OK || got.Via != "netboot" || got.Waits == "" || got.Wipe != "system" || !got.Graceful || got.Cluster != "rack1" || got.Role != "controlplane" ||
		got.Image != "v1.13.6/default/amd64" || got.Imported || len(got.Changes) != 0 || got.Holds != nil {
		t.Errorf("%+v", got)
	}
	if err := r.keeper.PutImage(t.Context(), &inventory.Image{Version: "v1.13.2", Schematic: "abc", Arch: inventory.AMD64, Kernel: inventory.Blob{SHA256: sha("k"), Size: 1}, Initramfs: inventory.Blob{SHA256: sha("i"), Size: 1}}); err != nil {
		t.Fatal(err)
	}
	got := check(`{"wipe":"all","graceful":false,"role":"worker","image":"v1.13.2/abc"}`)
	if !got.OK || got.Via != "api" || got.Waits != "" || got.Wipe != "all" || got.Graceful || got.Role != "worker" || got.Image != "v1.13.2/abc/amd64" || !got.Imported ||
		fmt.Sprint(got.Changes) != "[{image <nil> v1.13.2/abc} {role controlplane worker}]" {
		t.Errorf("%+v", got)
	}
	if got := check(`{"cluster":"nope"}`); got.OK || got.Problems[0].Location != "body.cluster" || got.Via != "" {
		t.Errorf("%+v", got)
	}
	if got := check(`{"destroyCluster":"other"}`); got.OK || got.Problems[0].Location != "body.destroyCluster" {
		t.Errorf("%+v", got)
	}
	for _, kind := range []inventory.Kind{inventory.ScriptServed, inventory.ConfigServed} {
		if _, err := r.keeper.Record(t.Context(), inventory.Event{Kind: kind, Machine: "cp-1", Plan: inventory.Install, Hash: "h"}); err != nil {
			t.Fatal(err)
		}
	}
	r.guards.refuse = "etcd would be left with 1 of 2"
	if got := check(`{}`); got.OK || got.Problems[0].Message != r.guards.refuse || got.Holds == nil || got.Holds.Cluster != "rack1" {
		t.Errorf("%+v", got)
	}
	if got := check(`{"destroyCluster":"rack1"}`); !got.OK || got.Loses != "rack1" || got.Graceful {
		t.Errorf("%+v", got)
	}
	r.guards.refuse = ""
	r.must(http.StatusAccepted, "POST", "/api/v1/machines/cp-1/reimage", `{}`, nil)
	if _, err := r.keeper.Record(t.Context(), inventory.Event{Kind: inventory.WipeClaimed, Machine: "cp-1", Message: "its API is asked"}); err != nil {
		t.Fatal(err)
	}
	if got := check(`{}`); !got.OK || got.Via != "api" || got.Waits != "its API is asked" {
		t.Errorf("ordered twice: %+v", got)
	}
	if got := check(`{"wipe":"all"}`); got.OK || !strings.Contains(got.Problems[0].Message, "cannot be changed") {
		t.Errorf("another wipe: %+v", got)
	}
	r.must(http.StatusNotFound, "POST", "/api/v1/machines/cp-9/reimage/check", `{}`, nil)
}
