package admin

import (
	"encoding/json"
	"net/http"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/go-chi/chi/v5"
	"go.yaml.in/yaml/v4"

	"github.com/provisiond/provisiond/internal/inventory"
)

// document is the part of OpenAPI that the tests look at.
type document struct {
	OpenAPI string
	Paths   map[string]map[string]struct {
		OperationID string `json:"operationId"`
		Summary     string
		Tags        []string
		Role        string `json:"x-provisiond-role"`
		Clusters    *bool  `json:"x-provisiond-clusters"`
		Security    []map[string][]string
		Parameters  []struct{ Name, In, Description string }
		Responses   map[string]struct {
			Headers map[string]any
			Content map[string]struct{ Schema map[string]any }
		}
	}
	Components struct {
		Schemas map[string]struct {
			Properties map[string]map[string]any
		}
	}
}

func readDocument(t *testing.T, r *rig) document {
	var doc document
	r.must(200, "GET", "/openapi.json", "", &doc)
	return doc
}

// TestDocumentIsTheRouter: what is routed is documented, and the reverse.
func TestDocumentIsTheRouter(t *testing.T) {
	r := newRig(t, Config{})
	router, _ := r.router()
	var routed, documented []string
	err := chi.Walk(router, func(method, route string, _ http.Handler, _ ...func(http.Handler) http.Handler) error {
		if !strings.HasPrefix(route, "/openapi.") && route != "/ca.pem" {
			routed = append(routed, method+" "+route)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	doc := readDocument(t, r)
	ids := map[string]bool{}
	for path, operations := range doc.Paths {
		for method, op := range operations {
			at := strings.ToUpper(method) + " " + path
			documented = append(documented, at)
			if op.OperationID == "" || ids[op.OperationID] || op.Summary == "" || len(op.Tags) != 1 {
				t.Errorf("%s: no id of its own, summary or tag: %+v", at, op)
			}
			ids[op.OperationID] = true
		}
	}
	slices.Sort(routed)
	slices.Sort(documented)
	if !slices.Equal(routed, documented) {
		t.Errorf("routed:\n%s\ndocumented:\n%s", strings.Join(routed, "\n"), strings.Join(documented, "\n"))
	}
	if !strings.HasPrefix(doc.OpenAPI, "3.1") || len(documented) < 30 {
		t.Errorf("OpenAPI %s with %d operations", doc.OpenAPI, len(documented))
	}
}

// TestDocumentedErrors: every operation says how it fails, in one shape.
func TestDocumentedErrors(t *testing.T) {
	doc := readDocument(t, newRig(t, Config{}))
	for path, operations := range doc.Paths {
		for method, op := range operations {
			at := strings.ToUpper(method) + " " + path
			for status, resp := range op.Responses {
				if status < "400" {
					continue
				}
				schema := resp.Content["application/problem+json"].Schema
				if schema["$ref"] != "#/components/schemas/ErrorModel" {
					t.Errorf("%s: %s is %v", at, status, resp.Content)
				}
			}
			want := []string{"500"}
			if method == "put" || method == "patch" || method == "delete" {
				if _, ok := op.Responses["200"].Headers["ETag"]; method != "delete" && strings.HasSuffix(path, "e}") && strings.Contains(path, "/machines/") && !ok {
					t.Errorf("%s answers no ETag", at)
				}
			}
			if slices.ContainsFunc(op.Parameters, func(p struct{ Name, In, Description string }) bool { return p.Name == "If-Match" }) {
				want = append(want, "412")
			}
			for _, status := range want {
				if _, ok := op.Responses[status]; !ok {
					t.Errorf("%s does not document %s", at, status)
				}
			}
		}
	}
	if _, ok := doc.Components.Schemas["ErrorModel"].Properties["errors"]; !ok {
		t.Error("the error has no details")
	}
}

// TestDocumentDescribesTheSpecs: no field without a word about it.
func TestDocumentDescribesTheSpecs(t *testing.T) {
	doc := readDocument(t, newRig(t, Config{}))
	for _, name := range []string{"MachineSpec", "ClusterSpec", "Install"} {
		schema := doc.Components.Schemas[name]
		if len(schema.Properties) == 0 {
			t.Errorf("no schema %s", name)
		}
		for field, p := range schema.Properties {
			if p["description"] == nil {
				t.Errorf("%s.%s has no description", name, field)
			}
		}
	}
}

func TestDocumentAsYAML(t *testing.T) {
	r := newRig(t, Config{})
	var fromYAML, fromJSON any
	if err := yaml.Unmarshal(r.must(200, "GET", "/openapi.yaml", "", nil).Body.Bytes(), &fromYAML); err != nil {
		t.Fatal(err)
	}
	r.must(200, "GET", "/openapi.json", "", &fromJSON)
	var again any
	if err := json.Unmarshal([]byte(mustJSON(t, fromYAML)), &again); err != nil {
		t.Fatal(err)
	}
	if !reflect.DeepEqual(again, fromJSON) {
		t.Error("the two documents differ")
	}
}

// TestNothingIsLost fills every field of the domain's records and expects it to
// come back through the API's types: a field added to one and forgotten in the
// other fails here.
func TestNothingIsLost(t *testing.T) {
	s := newRig(t, Config{}).Server
	t.Run("machine", func(t *testing.T) {
		m := &inventory.Machine{
			Name: "cp-1", MACs: []inventory.MAC{"52:54:00:12:34:56", "52:54:00:12:34:57"}, Cluster: "rack1", Role: inventory.ControlPlane,
			Address: addr("2001:db8::11"), Subnet: "rack", Install: inventory.InstallTarget{DiskSelector: map[string]string{"size": ">1GB"}, Image: "i"},
			Image: "v1.13.6/abc", Boot: inventory.ByUKI, SecureBoot: inventory.On, Addressing: inventory.DHCPv6, Approval: inventory.ApprovalRequired, Patches: []string{"a: b"}, KernelArgs: []string{"x=y"}, Labels: map[string]string{"a": "b"},
		}
		noneZero(t, *m, "Created", "Rev", "Install.Disk")
		got, err := machineFrom(specOfMachine(m), nil)
		if err != nil || !reflect.DeepEqual(got, m) {
			t.Errorf("%+v\nbecame %+v: %v", m, got, err)
		}
		noneZero(t, specOfMachine(m), "Install.Disk")
	})
	t.Run("cluster", func(t *testing.T) {
		c := &inventory.Cluster{
			Name: "rack1", Endpoint: "https://[2001:db8::1]:6443", TalosVersion: "v1.13.6", KubernetesVersion: "1.36.2", Schematic: "abc",
			PodSubnets: prefixes("fd00::/56"), ServiceSubnets: prefixes("fd01::/112"), DNS: addrs("2001:db8::53"), NTP: []string{"2001:db8::123"},
			Addressing: inventory.Static, Delivery: inventory.OverHTTP, Approval: inventory.ApprovalRequired, Install: inventory.InstallTarget{Disk: "/dev/sda", Image: "i"}, Patches: []string{"a"},
			ControlPlanePatches: []string{"b"}, WorkerPatches: []string{"c"}, KernelArgs: []string{"x=y"},
		}
		noneZero(t, *c, "Created", "Rev", "Imported", "Epoch", "Install.DiskSelector")
		got, err := s.clusterFrom(specOfCluster(c), nil)
		if err != nil || !reflect.DeepEqual(got, c) {
			t.Errorf("%+v\nbecame %+v: %v", c, got, err)
		}
		noneZero(t, specOfCluster(c), "Install.DiskSelector")
	})
}

// noneZero fails for a field that has its zero value and is not excepted.
func noneZero(t *testing.T, v any, except ...string) {
	t.Helper()
	var walk func(prefix string, v reflect.Value)
	walk = func(prefix string, v reflect.Value) {
		for i := range v.NumField() {
			name := prefix + v.Type().Field(i).Name
			f := v.Field(i)
			if slices.Contains(except, name) {
				continue
			}
			if f.IsZero() {
				t.Errorf("%s.%s is not set: add it to this test and to both conversions", v.Type(), name)
			}
			if f.Kind() == reflect.Struct && strings.HasSuffix(f.Type().PkgPath(), v.Type().PkgPath()) {
				walk(name+".", f)
			}
		}
	}
	walk("", reflect.ValueOf(v))
}
