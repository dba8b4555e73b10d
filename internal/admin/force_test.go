package admin

import (
	"go/ast"
	"go/parser"
	"go/token"
	"net/http"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/provisiond/provisiond/internal/inventory"
)

// TestForce: a machine that has its config is not turned into another one, nor
// forgotten, by a slip.
func TestForce(t *testing.T) {
	const (
		mac   = inventory.MAC("52:54:00:12:34:56")
		taken = "cp-1 is a control plane of rack1 that has fetched its config: "
		runs  = "cp-1 is a running control plane of rack1: "
	)
	events := map[string]inventory.Event{
		taken: {Kind: inventory.ConfigServed, MAC: mac, Hash: "h"},
		runs:  {Kind: inventory.APIAnswered, MAC: mac, Stage: inventory.StageRunning},
	}
	worker := strings.Replace(cp1, `"controlplane"`, `"worker"`, 1)
	for who, e := range events {
		for _, tc := range []struct{ name, method, path, body, location, want string }{
			{"delete", "DELETE", "/machines/cp-1", "", "path.machine", "it would run on"},
			{"role", "PATCH", "/machines/cp-1", `{"role":"worker"}`, "body.role", "its config says role controlplane, and provisiond would go by worker"},
			{"cluster", "PATCH", "/machines/cp-1", `{"cluster":null}`, "body.cluster", "its config says cluster rack1, and provisiond would go by none"},
			{"address", "PATCH", "/machines/cp-1", `{"address":"2001:db8::7"}`, "body.address", "would go by 2001:db8::7"},
			{"put", "PUT", "/machines/cp-1", worker, "body.role", "would go by worker"},
			{"apply", "POST", "/apply", `{"machines":[` + worker + `]}`, "body.machines[0].role", "would go by worker"},
			{"dry run", "POST", "/apply?dryRun=true", `{"machines":[` + worker + `]}`, "body.machines[0].role", "would go by worker"},
			{"label", "PATCH", "/machines/cp-1", `{"labels":{"a":"b"}}`, "", ""},
			{"the same", "PUT", "/machines/cp-1", cp1, "", ""},
		} {
			t.Run(who+tc.name, func(t *testing.T) {
				r := seed(t, Config{})
				for _, e := range []inventory.Event{{Kind: inventory.Solicited, MAC: mac, Client: inventory.FirmwarePXE, XID: 7}, e} {
					if _, err := r.keeper.Record(t.Context(), e); err != nil {
						t.Fatal(err)
					}
				}
				v, err := r.keeper.Machine(t.Context(), "cp-1")
				if err != nil || v.Facts.ConfigAt.IsZero() && v.Facts.APIAt.IsZero() {
					t.Fatalf("%+v %v", v.Facts, err)
				}
				ok := http.StatusOK
				if tc.method == "DELETE" {
					ok = http.StatusNoContent
				}
				if tc.want == "" {
					r.must(ok, tc.method, "/api/v1"+tc.path, tc.body, nil)
					return
				}
				rev := r.store.Rev()
				rec := r.must(409, tc.method, "/api/v1"+tc.path, tc.body, nil)
				for _, want := range []string{who, tc.want, `"location":"` + tc.location + `"`, "--yes"} {
					if !strings.Contains(rec.Body.String(), want) {
						t.Errorf("no %q in %s", want, rec.Body)
					}
				}
				if r.store.Rev() != rev || len(r.guards.released) > 0 {
					t.Errorf("it wrote all the same, and %v left etcd", r.guards.released)
				}
				query := "?force=true"
				if strings.Contains(tc.path, "?") {
					query = "&force=true"
				}
				r.must(ok, tc.method, "/api/v1"+tc.path+query, tc.body, nil)
				if left := len(r.guards.released) > 0; left != (tc.method == "DELETE") {
					t.Errorf("%v left etcd", r.guards.released)
				}
			})
		}
	}
}

// TestKindsAreThoseOfTheInventory: the filter of the events knows all of them.
func TestKindsAreThoseOfTheInventory(t *testing.T) {
	file, err := parser.ParseFile(token.NewFileSet(), "../inventory/event.go", nil, 0)
	if err != nil {
		t.Fatal(err)
	}
	var kinds []string
	ast.Inspect(file, func(n ast.Node) bool {
		spec, ok := n.(*ast.ValueSpec)
		if !ok {
			return true
		}
		if typ, ok := spec.Type.(*ast.Ident); ok && typ.Name == "Kind" {
			kind, err := strconv.Unquote(spec.Values[0].(*ast.BasicLit).Value)
			if err != nil {
				t.Fatal(err)
			}
			kinds = append(kinds, kind)
		}
		return true
	})
	field, _ := reflect.TypeFor[EventFilter]().FieldByName("Kind")
	got := strings.Split(field.Tag.Get("enum"), ",")
	slices.Sort(got)
	slices.Sort(kinds)
	if len(kinds) < 10 || !slices.Equal(got, kinds) {
		t.Errorf("the filter knows\n%v\nand the inventory\n%v", got, kinds)
	}
}
