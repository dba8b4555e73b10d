package inventory

import (
	"go/ast"
	"go/parser"
	"go/token"
	"os"
	"regexp"
	"strconv"
	"strings"
	"testing"
)

// reasons are the texts of a function, as they are written in its file.
func reasons(t *testing.T, file, function string) (all []string) {
	t.Helper()
	f, err := parser.ParseFile(token.NewFileSet(), file, nil, 0)
	if err != nil {
		t.Fatal(err)
	}
	for _, d := range f.Decls {
		if fn, ok := d.(*ast.FuncDecl); ok && fn.Name.Name == function {
			ast.Inspect(fn.Body, func(n ast.Node) bool {
				if lit, ok := n.(*ast.BasicLit); ok && lit.Kind == token.STRING {
					text, err := strconv.Unquote(lit.Value)
					if err != nil {
						t.Fatal(err)
					}
					if strings.Contains(text, " ") && text != timeFormat {
						all = append(all, strings.TrimSpace(text))
					}
				}
				return true
			})
		}
	}
	return all
}

// timeFormat is the only text with a blank in it that nobody reads.
const timeFormat = "2006-01-02 15:04:05Z"

// TestTroubleshooting: a person who looks up what the page says of a machine finds it.
func TestTroubleshooting(t *testing.T) {
	b, err := os.ReadFile("../../docs/troubleshooting.md")
	if err != nil {
		t.Fatal(err)
	}
	page := strings.Join(strings.Fields(string(b)), " ")
	for _, of := range []struct {
		file, function string
		least          int
	}{{"phase.go", "stallReason", 12}, {"phase.go", "PhaseOf", 1}, {"plan.go", "planAction", 6}, {"way.go", "PlanWay", 7}, {"way.go", "waySecure", 6}} {
		all := reasons(t, of.file, of.function)
		if len(all) < of.least {
			t.Errorf("%s has the texts %q, fewer than %d", of.function, all, of.least)
		}
		for _, text := range all {
			// The page has a word of its own where the code fills something in.
			words := regexp.MustCompile(`%[a-z]`).ReplaceAllString(regexp.QuoteMeta(text), "[A-Z]+")
			if !regexp.MustCompile("`(NAME )?" + words + "`").MatchString(page) {
				t.Errorf("docs/troubleshooting.md does not explain %q", text)
			}
		}
	}
	for _, p := range []Phase{PhaseDiscovered, PhaseRegistered, PhaseOffered, PhaseLoading, PhaseConfiguring, PhaseInstalling, PhaseBooting, PhaseReady, PhaseReimaging, PhaseFailed} {
		if !strings.Contains(string(b), "\n## "+string(p)+"\n") {
			t.Errorf("docs/troubleshooting.md has no heading %q", p)
		}
	}
	if reason := stallReason(PhaseInstalling, &Boot{ConfigFetches: manyFetches}); !strings.Contains(page, strings.Replace(reason, strconv.Itoa(manyFetches), "N", 1)) {
		t.Errorf("the page does not have %q", reason)
	}
}
