package daemon

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"go.yaml.in/yaml/v4"

	"github.com/provisiond/provisiond/api"
	"github.com/provisiond/provisiond/internal/cli"
	"github.com/provisiond/provisiond/internal/racktest"
)

// commandVariable makes this test binary be the command provisiond.
const commandVariable = "PROVISIOND_TEST_COMMAND"

// example is a block of shell in a document, and what it says that is printed.
type example struct {
	line    int
	shell   string
	printed string
	prints  bool
}

// examples are the blocks ```sh of a document, each with the block ```json right beneath it.
func examples(text string) []example {
	var all []example
	lines := strings.Split(text, "\n")
	for i, end := 0, -2; i < len(lines); i++ {
		language, fenced := strings.CutPrefix(lines[i], "```")
		if !fenced {
			continue
		}
		start := i + 1
		for i++; i < len(lines) && lines[i] != "```"; i++ {
		}
		body := strings.Join(lines[start:min(i, len(lines))], "\n") + "\n"
		switch {
		case language == "sh":
			all = append(all, example{line: start, shell: body})
		case language == "json" && start == end+2:
			last := &all[len(all)-1]
			last.printed, last.prints = body, true
		}
		end = i
		if language != "sh" {
			end = -2
		}
	}
	return all
}

// alike says where two JSON values differ in more than the values of their leaves:
// those change from run to run.
func alike(at string, got, want any) error {
	switch want := want.(type) {
	case map[string]any:
		object, ok := got.(map[string]any)
		if !ok {
			return fmt.Errorf("%s is %v, want an object", at, got)
		}
		for key := range object {
			if _, ok := want[key]; !ok {
				return fmt.Errorf("%s.%s is new", at, key)
			}
		}
		for key, value := range want {
			if _, ok := object[key]; !ok {
				return fmt.Errorf("%s.%s is gone", at, key)
			}
			if err := alike(at+"."+key, object[key], value); err != nil {
				return err
			}
		}
	case []any:
		list, ok := got.([]any)
		if !ok || len(list) != len(want) {
			return fmt.Errorf("%s is %v, want a list of %d", at, got, len(want))
		}
		for i := range want {
			if err := alike(fmt.Sprintf("%s[%d]", at, i), list[i], want[i]); err != nil {
				return err
			}
		}
	default:
		if fmt.Sprintf("%T", got) != fmt.Sprintf("%T", want) {
			return fmt.Errorf("%s is %v, want %T", at, got, want)
		}
	}
	return nil
}

// TestDocsAPI runs the examples of docs/api.md as a reader would, one after the other in
// one shell, against a daemon whose rack is up.
func TestDocsAPI(t *testing.T) {
	for _, program := range []string{"bash", "curl", "jq"} {
		if _, err := exec.LookPath(program); err != nil {
			if os.Getenv("CI") != "" {
				t.Fatalf("%v: CI leaves no example out", err)
			}
			t.Skipf("LEFT OUT: %v: install the packages in .ci/packages", err)
		}
	}
	text, err := os.ReadFile("../../docs/api.md")
	check(t, err)
	all := examples(string(text))
	if len(all) < 10 {
		t.Fatalf("%d examples", len(all))
	}

	l := newLab(t)
	l.cfg.Listen = netip.MustParseAddrPort("[::1]:0")
	r := l.rack(t, racktest.RackOptions{})
	proxied(t, func(ctx context.Context) error { return r.Fabric.ServeProxy(ctx, l.proxy) })
	k, _ := l.start(t, l.open(t))
	runRack(t, r)
	verify(t, k, r)

	// What the page takes from the host it is read on.
	here := strings.NewReplacer("[::1]:8440", l.daemon.Addrs().API.String(), cli.DefaultServer, "unix://"+l.cfg.Socket)
	dir := t.TempDir()
	exe, err := os.Executable()
	check(t, err)
	check(t, os.Mkdir(filepath.Join(dir, "bin"), 0o700))
	check(t, os.WriteFile(filepath.Join(dir, "bin/provisiond"), fmt.Appendf(nil, "#!/bin/sh\n%s=1 exec %s \"$@\"\n", commandVariable, exe), 0o700))
	script := "set -e\n"
	for i, e := range all {
		script += fmt.Sprintf("echo %[1]d >at; exec >%[1]d.out 2>%[1]d.err\n%s", i, here.Replace(e.shell))
	}
	check(t, os.WriteFile(filepath.Join(dir, "script"), []byte(script+"wait\n"), 0o600))
	cmd := exec.CommandContext(t.Context(), "bash", "script")
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), "PATH="+filepath.Join(dir, "bin")+":"+os.Getenv("PATH"), cli.ServerVariable+"=unix://"+l.cfg.Socket)
	failed := cmd.Run()
	reached := -1
	if b, err := os.ReadFile(filepath.Join(dir, "at")); err == nil {
		_, err = fmt.Sscan(string(b), &reached)
		check(t, err)
	}
	for i, e := range all[:reached+1] {
		out, err := os.ReadFile(filepath.Join(dir, fmt.Sprint(i, ".out")))
		check(t, err)
		said, err := os.ReadFile(filepath.Join(dir, fmt.Sprint(i, ".err")))
		check(t, err)
		if failed != nil && i == reached {
			t.Fatalf("docs/api.md:%d: %v\n%s%s", e.line, failed, out, said)
		}
		if !e.prints {
			continue
		}
		var got, want any
		if err := json.Unmarshal([]byte(e.printed), &want); err != nil {
			t.Errorf("docs/api.md:%d: what is said to be printed: %v", e.line, err)
		}
		if err := json.Unmarshal(out, &got); err != nil {
			t.Errorf("docs/api.md:%d printed %q, %q: %v", e.line, out, said, err)
		} else if err := alike("it", got, want); err != nil {
			t.Errorf("docs/api.md:%d: %v\nit printed %s", e.line, err, out)
		}
	}
	if failed != nil {
		t.Fatal(failed)
	}
}

// documents are all pages for people, by path from the root of the repository.
func documents(t *testing.T) map[string]string {
	t.Helper()
	root := os.DirFS("../..")
	pages, err := fs.Glob(root, "*.md")
	check(t, err)
	check(t, fs.WalkDir(root, "docs", func(path string, _ fs.DirEntry, err error) error {
		if filepath.Ext(path) == ".md" {
			pages = append(pages, path)
		}
		return err
	}))
	all := map[string]string{}
	for _, page := range pages {
		text, err := fs.ReadFile(root, page)
		check(t, err)
		all[page] = string(text)
	}
	return all
}

var (
	fences   = regexp.MustCompile("(?ms)^```.*?^```$")
	links    = regexp.MustCompile(`\]\(([^)\s]+)\)`)
	headings = regexp.MustCompile(`(?m)^#+ +(.*)$`)
	notInIDs = regexp.MustCompile(`[^\p{L}\p{N} _-]`)
)

// anchors are the names by which the headings of a page can be linked to, as GitHub and
// its like make them.
func anchors(text string) []string {
	var all []string
	for _, h := range headings.FindAllStringSubmatch(fences.ReplaceAllString(text, ""), -1) {
		id := strings.ReplaceAll(notInIDs.ReplaceAllString(strings.ToLower(h[1]), ""), " ", "-")
		for n, first := 1, id; slices.Contains(all, id); n++ {
			id = fmt.Sprint(first, "-", n)
		}
		all = append(all, id)
	}
	return all
}

// TestDocsLinks: every link from one page to another leads to a file and a heading.
func TestDocsLinks(t *testing.T) {
	pages := documents(t)
	checked := 0
	for page, text := range pages {
		for _, link := range links.FindAllStringSubmatch(fences.ReplaceAllString(text, ""), -1) {
			if strings.Contains(link[1], "://") {
				continue
			}
			checked++
			path, anchor, anchored := strings.Cut(link[1], "#")
			to := page
			if path != "" {
				to = filepath.Join(filepath.Dir(page), path)
			}
			if _, err := os.Stat(filepath.Join("../..", to)); err != nil {
				t.Errorf("%s links to %s: %v", page, link[1], err)
			} else if anchored && !slices.Contains(anchors(pages[to]), anchor) {
				t.Errorf("%s links to %s: there is no such heading", page, link[1])
			}
		}
	}
	if checked < 20 {
		t.Errorf("%d links", checked)
	}
}

// blocks are what is fenced as one language in a document.
func blocks(text, language string) (all []string) {
	for _, b := range fences.FindAllString(text, -1) {
		if body, ok := strings.CutPrefix(b, "```"+language+"\n"); ok {
			all = append(all, strings.TrimSuffix(body, "```"))
		}
	}
	return all
}

// TestDocsConfigs: config files that a page shows are config files, and racks are racks.
func TestDocsConfigs(t *testing.T) {
	configs, racks := 0, 0
	for page, text := range documents(t) {
		for _, b := range blocks(text, "yaml") {
			var err error
			switch {
			case strings.Contains(b, "subnets:"):
				configs++
				_, err = ParseConfig([]byte(b))
			case strings.HasPrefix(b, "machines:"), strings.HasPrefix(b, "clusters:"):
				racks++
				var written any
				check(t, yaml.Unmarshal([]byte(b), &written))
				plain, _ := json.Marshal(written) // of YAML with names only
				dec := json.NewDecoder(bytes.NewReader(plain))
				dec.DisallowUnknownFields()
				err = dec.Decode(&api.Rack{})
			}
			if err != nil {
				t.Errorf("%s: %v in\n%s", page, err, b)
			}
		}
	}
	if configs < 2 || racks < 1 {
		t.Errorf("the pages show %d config files and %d racks", configs, racks)
	}
}

// TestDocsRadvd: radvd takes what docs/network.md tells it.
func TestDocsRadvd(t *testing.T) {
	if _, err := exec.LookPath("radvd"); err != nil {
		if os.Getenv("CI") != "" {
			t.Fatalf("%v: CI leaves no snippet out", err)
		}
		t.Skipf("LEFT OUT: %v: install the packages in .ci/packages", err)
	}
	snippets := blocks(documents(t)["docs/network.md"], "radvd")
	if len(snippets) != 1 {
		t.Fatalf("%d snippets", len(snippets))
	}
	file := filepath.Join(t.TempDir(), "radvd.conf")
	check(t, os.WriteFile(file, []byte(snippets[0]), 0o644))
	if out, err := exec.CommandContext(t.Context(), "radvd", "--configtest", "--logmethod=stderr_clean", "--config", file).CombinedOutput(); err != nil {
		t.Errorf("%v: %s", err, out)
	}
}

// TestDocsExamples: what is compared is the shape.
func TestDocsExamples(t *testing.T) {
	got := examples("```sh\na\n```\n```json\n1\n```\n\n```json\n2\n```\n```sh\nb\n```\n\n```json\n3\n```\n")
	want := []example{{line: 1, shell: "a\n", printed: "1\n", prints: true}, {line: 11, shell: "b\n"}}
	if !slices.Equal(got, want) {
		t.Errorf("%+v", got)
	}
	for _, tt := range []struct {
		got, want string
		ok        bool
	}{
		{`{"a": [1, "x", null]}`, `{"a": [2, "y", null]}`, true},
		{`{"a": 1, "b": 1}`, `{"a": 1}`, false},
		{`{"a": 1}`, `{"a": 1, "b": 1}`, false},
		{`{"a": "1"}`, `{"a": 1}`, false},
		{`[1]`, `[1, 2]`, false},
		{`[{"a": 1}]`, `[{"b": 1}]`, false},
		{`1`, `{}`, false},
	} {
		var a, b any
		dec := json.NewDecoder(bytes.NewReader([]byte(tt.got + tt.want)))
		check(t, dec.Decode(&a))
		check(t, dec.Decode(&b))
		if err := alike("it", a, b); (err == nil) != tt.ok {
			t.Errorf("%s and %s: %v", tt.got, tt.want, err)
		}
	}
}
