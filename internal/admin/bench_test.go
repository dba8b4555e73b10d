package admin

import (
	"fmt"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/provisiond/provisiond/api"
)

// BenchmarkRack is what a rack of 1000 machines costs: a page of all of them, a
// status, and an apply that finds nothing to change.
func BenchmarkRack(b *testing.B) {
	r := newRig(b, Config{})
	rack := api.Rack{Clusters: []api.ClusterSpec{{Name: "rack1", Endpoint: "https://[2001:db8::1]:6443"}}}
	for i := range 1000 {
		rack.Machines = append(rack.Machines, api.MachineSpec{
			Name: fmt.Sprintf("m-%04d", i), MACs: []string{fmt.Sprintf("52540000%04x", i)}, Cluster: "rack1", Role: "worker",
		})
	}
	declared := mustJSON(b, rack)
	do := func(b *testing.B, method, path, body string) {
		rec := httptest.NewRecorder()
		r.Handler().ServeHTTP(rec, httptest.NewRequest(method, "http://[::1]"+path, strings.NewReader(body)))
		if rec.Code != 200 {
			b.Fatalf("%d %s", rec.Code, rec.Body)
		}
	}
	do(b, "POST", "/api/v1/apply?createClusters=true", declared)
	for name, request := range map[string][3]string{
		"list":   {"GET", "/api/v1/machines?limit=1000", ""},
		"status": {"GET", "/api/v1/status", ""},
		"apply":  {"POST", "/api/v1/apply", declared},
	} {
		b.Run(name, func(b *testing.B) {
			for b.Loop() {
				do(b, request[0], request[1], request[2])
			}
		})
	}
}
