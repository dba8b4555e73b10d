package daemon_test

import (
	"encoding/json"
	"errors"
	"io"
	"os/exec"
	"slices"
	"strings"
	"testing"
)

const module = "github.com/provisiond/provisiond/"

// ours says which packages of this module a package may import: the direction
// is cmd → daemon → adapters → inventory, and adapters never import each other.
var ours = map[string][]string{
	"internal/inventory":           nil,
	"internal/inventory/storetest": {"internal/inventory"},
	"internal/boltstore":           {"internal/inventory"},
	"internal/ca":                  nil,
	"internal/census":              {"internal/inventory"},
	"internal/sealed":              {"internal/inventory"},
	"internal/audit":               nil,
	"internal/bootstrap":           {"internal/inventory"},
	"internal/monitor":             {"internal/inventory"},
	"internal/phaselog":            {"internal/inventory"},
	"internal/reimage":             {"internal/inventory"},
	"internal/rollout":             {"internal/inventory"},
	"internal/maintenance":         {"internal/inventory", "internal/audit"},
	"internal/model":               nil,
	"internal/dhcpv6":              {"internal/inventory"},
	"internal/ndp":                 {"internal/inventory"},
	"internal/tftp":                {"internal/inventory"},
	"internal/httpconfig":          {"internal/inventory", "internal/audit", "internal/seed", "internal/uki"},
	"internal/seed":                nil,
	"internal/loaders":             {"internal/inventory"},
	"internal/images":              {"internal/inventory", "internal/uki"},
	"internal/machinelog":          {"internal/inventory"},
	"internal/talos":               {"internal/inventory"},
	"internal/uki":                 nil,
	"internal/uki/ukitest":         nil,
	"internal/secureboot":          {"internal/uki"},
	"internal/tracing":             {"internal/inventory"},
	"internal/admin":               {"internal/inventory", "api", "internal/audit"},
	"api":                          nil,
	"client":                       {"api"},
	"client/internal/generate":     {"internal/admin"},
	"internal/cli":                 {"client", "api", "internal/audit"},
	"internal/racktest":            nil,
	"internal/browsertest":         nil,
	"web":                          {"internal/inventory", "internal/admin", "api", "client"},
}

// only says which packages may import a library, and why nobody else may.
var only = []struct {
	library string
	by      []string
	reason  string
}{
	{"go.etcd.io/bbolt", []string{"internal/boltstore"}, "only boltstore knows the database: another store must fit beside it"},
	{"github.com/insomniacslk/dhcp", []string{"internal/dhcpv6", "internal/racktest"}, "only dhcpv6 knows the DHCP library"},
	{"github.com/pin/tftp", []string{"internal/tftp", "internal/racktest"}, "only tftp knows the TFTP library"},
	{"github.com/kdomanski/iso9660", []string{"internal/racktest"}, "what is read by a library is not written by it"},
	{"github.com/mdlayher/ndp", []string{"internal/ndp"}, "only ndp speaks neighbour discovery"},
	{"github.com/siderolabs", []string{"internal/talos", "internal/racktest", "internal/e2e"}, "only talos knows machinery"},
	{"google.golang.org/grpc", []string{"internal/talos", "internal/racktest", "internal/e2e"}, "only talos speaks gRPC"},
	{"go.opentelemetry.io", []string{"internal/tracing"}, "only tracing knows OpenTelemetry: nothing that serves is instrumented"},
	{"filippo.io/age", []string{"internal/sealed"}, "only sealed knows what seals"},
	{"github.com/foxboron/go-uefi", []string{"internal/secureboot"}, "only secureboot knows what firmware trusts"},
	{"github.com/coreos/go-oidc", []string{"web"}, "only browsers are sent to an issuer"},
	{"github.com/prometheus", []string{"internal/daemon", "internal/census", "internal/boltstore", "internal/dhcpv6", "internal/tftp", "internal/httpconfig", "internal/talos", "internal/bootstrap", "internal/monitor", "internal/maintenance", "internal/reimage", "internal/rollout", "internal/tracing"}, "who counts hands out collectors, and the daemon registers them"},
	{"github.com/spf13/cobra", []string{"internal/cli", "cmd/provisiond"}, "only the command line knows cobra"},
}

func TestImports(t *testing.T) {
	cmd := exec.CommandContext(t.Context(), "go", "list", "-json=ImportPath,Imports", module+"...")
	cmd.Dir = "../.."
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("go list: %v", err)
	}
	seen := map[string]bool{}
	for dec := json.NewDecoder(strings.NewReader(string(out))); ; {
		var pkg struct {
			ImportPath string
			Imports    []string
		}
		if err := dec.Decode(&pkg); errors.Is(err, io.EOF) {
			break
		} else if err != nil {
			t.Fatal(err)
		}
		name := strings.TrimPrefix(pkg.ImportPath, module)
		seen[name] = true
		allowed, ruled := ours[name]
		if !ruled && strings.HasPrefix(name, "internal/") && name != "internal/daemon" && !strings.HasPrefix(name, "internal/e2e") {
			t.Errorf("%s has no rule: say in this table what it may import", name)
		}
		for _, imp := range pkg.Imports {
			if own, ok := strings.CutPrefix(imp, module); ok && ruled && !slices.Contains(allowed, own) {
				t.Errorf("%s imports %s: adapters know inventory and never each other; the daemon wires them", name, own)
			}
			if slices.Contains([]string{"internal/inventory", "internal/ca", "internal/audit", "internal/uki", "internal/seed"}, name) && strings.Contains(imp, ".") {
				t.Errorf("%s imports %s: it is standard library only", name, imp)
			}
			for _, rule := range only {
				if (imp == rule.library || strings.HasPrefix(imp, rule.library+"/")) && !slices.ContainsFunc(rule.by, func(p string) bool { return name == p || strings.HasPrefix(name, p+"/") }) {
					t.Errorf("%s imports %s: %s", name, imp, rule.reason)
				}
			}
		}
	}
	for name := range ours {
		if !seen[name] {
			t.Errorf("%s is in the table and does not exist", name)
		}
	}
}
