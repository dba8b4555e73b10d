package admin

import (
	"net/http/httptest"
	"slices"
	"strings"
	"testing"

	"github.com/provisiond/provisiond/internal/admin/api"
)

// TestReadOnly asks for every operation of the document. An operation that is
// new has to be told apart here: does it carry a secret?
func TestReadOnly(t *testing.T) {
	secret := []string{"/backup", "/clusters/{cluster}/talosconfig", "/clusters/{cluster}/kubeconfig"}
	open := []string{
		"/clusters", "/clusters/{cluster}", "/clusters/{cluster}/rollout", "/discovered", "/events", "/events/watch", "/export", "/images", "/images/{version}/{schematic}/{arch}",
		"/machines", "/machines/{machine}", "/machines/{machine}/boots", "/machines/{machine}/config", "/machines/{machine}/diff", "/machines/{machine}/logs", "/status", "/version",
	}
	r := seed(t, Config{})
	server := New(Config{ReadOnly: true}, r.keeper, r.talos, nil, r.blobs, r.log).Handler()
	ask := func(method, path string) *httptest.ResponseRecorder {
		rec := httptest.NewRecorder()
		server.ServeHTTP(rec, httptest.NewRequestWithContext(t.Context(), method, "http://[::1]"+path, strings.NewReader("{}")))
		return rec
	}
	refused := func(method, path string) {
		t.Helper()
		rec := ask(method, path)
		if rec.Code != 403 || !strings.Contains(rec.Body.String(), "unix socket") || rec.Header().Get("Content-Type") != "application/problem+json" {
			t.Errorf("%s %s: %d %s", method, path, rec.Code, rec.Body)
		}
	}
	fill := strings.NewReplacer("{machine}", "cp-1", "{cluster}", "rack1", "{version}", "v1.13.6", "{schematic}", "default", "{arch}", "amd64", "{sha256}", sha("x"))
	rev := r.store.Rev()
	for path, operations := range readDocument(t, r).Paths {
		for method, op := range operations {
			short := strings.TrimPrefix(path, api.Prefix)
			method = strings.ToUpper(method)
			_, documented := op.Responses["403"]
			switch {
			case method != "GET" || slices.Contains(secret, short):
				refused(method, fill.Replace(path))
				if !documented {
					t.Errorf("%s %s does not document 403", method, path)
				}
			case !slices.Contains(open, short):
				t.Errorf("%s: say in this test whether it carries a secret", path)
			case short != "/events/watch": // which does not end
				if rec := ask(method, fill.Replace(path)); rec.Code == 403 || strings.Contains(rec.Body.String(), "hunter2") {
					t.Errorf("%s %s: %d %s", method, path, rec.Code, rec.Body)
				}
			}
		}
	}
	refused("GET", "/api/v1/machines/cp-1/config?secrets=true")
	refused("DELETE", "/api/v1/nothing")
	refused("OPTIONS", "/api/v1/machines")
	if rec := ask("GET", "/openapi.json"); rec.Code != 200 {
		t.Errorf("the document: %d", rec.Code)
	}
	if r.store.Rev() != rev {
		t.Error("it wrote all the same")
	}
}

// TestReadsAreDebugLines: those who only look leave no line at info level.
func TestReadsAreDebugLines(t *testing.T) {
	r := seed(t, Config{})
	for _, tc := range []struct{ method, want string }{{"GET", "debug"}, {"DELETE", "info"}} {
		before := len(r.logs.String())
		r.do(tc.method, "/api/v1/machines/cp-1", "")
		if line := r.logs.String()[before:]; !strings.Contains(line, `"level":"`+tc.want+`"`) {
			t.Errorf("%s: %s", tc.method, line)
		}
	}
}
