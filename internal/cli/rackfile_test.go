package cli

import (
	"strings"
	"testing"

	"github.com/provisiond/provisiond/api"
)

const rackYAML = `clusters:
- name: rack1
  endpoint: https://[2001:db8::1]:6443
  patches:
  - |
    a: b
machines:
- name: cp-1
  macs: [52:54:00:12:34:56, 5254]
  labels: {row: a, x.y: 2024-01-01}
- &w
  name: w-1
  role: worker
- <<: *w
  name: w-2
`

func TestLines(t *testing.T) {
	f, err := parseRack("rack.yaml", []byte(rackYAML))
	if err != nil {
		t.Fatal(err)
	}
	for location, want := range map[string]int{
		"body":                        1,
		"body.clusters[0]":            2,
		"body.clusters[0].endpoint":   3,
		"body.clusters[0].patches[0]": 5,
		"body.clusters[0].dns[3]":     2,
		"body.machines[0].macs[1]":    9,
		"body.machines[0].labels.row": 10,
		"body.machines[0].labels.x.y": 10,
		"body.machines[0].role":       8,
		"body.machines[1].role":       13,
		"body.machines[2].name":       15,
		"body.machines[7].name":       7,
		"body.bogus":                  1,
		"query.dryRun":                1,
		"body.machines[x]":            7,
		"body.machines[":              7,
	} {
		if got := f.line(location); got != want {
			t.Errorf("%s is on line %d, want %d", location, got, want)
		}
	}
	want := `"labels":{"row":"a","x.y":"2024-01-01"}`
	if !strings.Contains(string(f.json), want) || !strings.Contains(string(f.json), `{"name":"w-2","role":"worker"}`) {
		t.Errorf("%s", f.json)
	}
}

func TestBadFiles(t *testing.T) {
	for text, want := range map[string]string{
		"":                                "is empty",
		"# nothing\n":                     "is empty",
		"- a\n":                           "rack.yaml:1: not an object",
		"machines: []\n---\nmachines: []": "more than one document",
		"machines:\n- name: a\n  name: b": "line 3",
		"machines: [\n":                   "rack.yaml: ",
		"machines:\n- labels: {1: a}":     "rack.yaml:2: the key 1 is not text",
		"a: *b":                           "rack.yaml: ",
		"\tx: y":                          "rack.yaml: ",
	} {
		if _, err := parseRack("rack.yaml", []byte(text)); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v, want %q", text, err, want)
		}
	}
}

func TestYAMLOutput(t *testing.T) {
	b, err := toYAML(api.Rack{Machines: []api.MachineSpec{{
		Name: "007", MACs: []string{"52:54:00:12:34:56"}, Role: "yes", Patches: []string{"a: b\nc: \"d\"\n"},
		Labels: map[string]string{"n": "1e3", "e": "", "s": "x: y # z", "t": "<&>"},
	}}})
	if err != nil {
		t.Fatal(err)
	}
	const want = `machines:
  - name: "007"
    macs:
      - 52:54:00:12:34:56
    role: yes
    patches:
      - |
        a: b
        c: "d"
    labels:
      e: ""
      n: "1e3"
      s: 'x: y # z'
      t: <&>
`
	if string(b) != want {
		t.Errorf("%s", b)
	}
	f, err := parseRack("x", b)
	if err != nil || !strings.Contains(string(f.json), `"name":"007"`) || !strings.Contains(string(f.json), `"n":"1e3"`) {
		t.Errorf("%v %s", err, f.json)
	}
}

func TestClean(t *testing.T) {
	for in, want := range map[string]string{
		"plain ünïcode": "plain ünïcode", "a\x1b[31mb": "a\uFFFD[31mb", "a\nb\tc": "a b c", "\u202eevil": "\uFFFDevil", "\x00\x9b": "\uFFFD\uFFFD",
	} {
		if got := clean(in); got != want {
			t.Errorf("%q became %q, want %q", in, got, want)
		}
	}
}

// FuzzRackFile: no file and no location makes the command fall over.
func FuzzRackFile(f *testing.F) {
	f.Add([]byte(rackYAML), "body.machines[0].macs[1]")
	f.Add([]byte("a: &a [*a]"), "body.a[0][0]")
	f.Add([]byte("a: &a\n  b: *a"), "body.a.b.b")
	f.Add([]byte("x: !!binary aGVsbG8=\ny: .inf"), "body.x")
	f.Fuzz(func(t *testing.T, b []byte, location string) {
		file, err := parseRack("rack.yaml", b)
		if err != nil {
			return
		}
		if line := file.line(location); line < 0 || line > 1+strings.Count(string(b), "\n")+strings.Count(string(b), "\r") {
			t.Errorf("line %d", line)
		}
	})
}
