package talos

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"znkr.io/diff/textdiff"
)

// wantOrigins asks where a config comes from and fails unless the blocks are the
// config that is shown.
func wantOrigins(t testing.TB, in Input) []Block {
	t.Helper()
	r := testRenderer()
	c, err := r.Render(in)
	if err != nil {
		t.Fatal(err)
	}
	want, err := Redact(c.Bytes())
	if err != nil {
		t.Fatal(err)
	}
	blocks, err := r.Origins(in)
	if err != nil {
		t.Fatal(err)
	}
	var got strings.Builder
	for i, b := range blocks {
		if got.WriteString(b.Text); !strings.HasSuffix(b.Text, "\n") {
			t.Errorf("block %d ends within a line", i)
		}
		if i > 0 && b.Origin == blocks[i-1].Origin && b.Patch == blocks[i-1].Patch {
			t.Errorf("blocks %d and %d are one", i-1, i)
		}
	}
	if got.String() != string(want) {
		t.Errorf("the blocks are not the config:\n%s", textdiff.Unified(string(want), got.String()))
	}
	// What was traced is what is rendered: else an origin would be of something else.
	layers, err := r.layers(in.Machine, in.Cluster)
	if err != nil {
		t.Fatal(err)
	}
	told, err := r.trace(in, layers)
	if err != nil {
		t.Fatal(err)
	}
	whole, err := parseDocuments(c.Bytes())
	if err != nil {
		t.Fatal(err)
	}
	if len(told) != len(whole) {
		t.Errorf("%d documents were traced, of %d", len(told), len(whole))
	}
	for _, n := range whole {
		if p := told[documentKey(n)]; p == nil || !sameNode(p.node, n) {
			t.Errorf("document %q was traced as another", documentKey(n))
		}
	}
	return blocks
}

// prefixed is the lines of a config with their origin before each.
func prefixed(blocks []Block) []string {
	var out []string
	for _, b := range blocks {
		from := string(b.Origin)
		if b.Origin != FromBase {
			from = fmt.Sprintf("%s[%d]", b.Origin, b.Patch)
		}
		for line := range strings.Lines(b.Text) {
			out = append(out, from+"|"+strings.TrimSuffix(line, "\n"))
		}
	}
	return out
}

// TestOrigins: each row has patches and the lines that they account for. All other
// lines are ours.
func TestOrigins(t *testing.T) {
	for _, tc := range []struct {
		name                      string
		all, planes, own, workers []string
		want                      []string
	}{
		{name: "no patch"},
		{name: "the last one wins", all: []string{"machine: {sysctls: {who: all, a: b}}"}, planes: []string{"machine: {}", "machine: {sysctls: {who: role}}"},
			own:  []string{"machine: {sysctls: {who: me}}"},
			want: []string{"cluster[0]|    sysctls:", "cluster[0]|        a: b", "machine[0]|        who: me"}},
		{name: "saying it again changes nothing", all: []string{"machine: {sysctls: {a: b}}"}, own: []string{"machine: {sysctls: {a: b}}"},
			want: []string{"cluster[0]|    sysctls:", "cluster[0]|        a: b"}},
		{name: "nor does what we say anyway", own: []string{"cluster: {clusterName: prod}"}},
		{name: "that of the other role", workers: []string{"machine: {sysctls: {a: b}}"}},
		{name: "taken out again", all: []string{"machine: {sysctls: {a: b, c: d}}"}, own: []string{"machine: {sysctls: {a: {$patch: delete}}}"},
			want: []string{"cluster[0]|    sysctls:", "cluster[0]|        c: d"}},
		{name: "a list grows", all: []string{"machine: {certSANs: [a.example.org]}"}, own: []string{"machine: {certSANs: [b.example.org]}"},
			want: []string{"cluster[0]|        - a.example.org", "machine[0]|        - b.example.org"}},
		{name: "an element changes", all: []string{"machine: {kubelet: {extraMounts: [{destination: /a, type: bind, source: /a, options: [ro]}]}}"},
			own: []string{"machine: {kubelet: {extraMounts: [{destination: /b, type: bind, source: /a, options: [ro]}]}}"},
			want: []string{
				"cluster[0]|        extraMounts:",
				"cluster[0]|            - destination: /a", "cluster[0]|              type: bind", "cluster[0]|              source: /a", "cluster[0]|              options:", "cluster[0]|                - ro",
				"machine[0]|            - destination: /b", "machine[0]|              type: bind", "machine[0]|              source: /a", "machine[0]|              options:", "machine[0]|                - ro",
			}},
		{name: "our networks replaced", planes: []string{"machine: {kubelet: {nodeIP: {validSubnets: ['2001:db8:ff::/48']}}}"},
			want: []string{"role[0]|                - 2001:db8:ff::/48"}},
		{name: "a field of our document", own: []string{doc("LinkConfig", "name: "+nic+", mtu: 9000")}, want: []string{"machine[0]|mtu: 9000"}},
		{name: "a document", all: []string{"machine: {}", doc("DummyLinkConfig", "name: dummy1, addresses: [{address: '2001:db8:100::11/128'}]")},
			want: []string{
				"cluster[1]|---", "cluster[1]|apiVersion: v1alpha1", "cluster[1]|kind: DummyLinkConfig", "cluster[1]|name: dummy1",
				"cluster[1]|addresses:", "cluster[1]|    - address: 2001:db8:100::11/128",
			}},
		{name: "a text of several lines", own: []string{"cluster: {externalCloudProvider: {enabled: true}}\nmachine: {udev: {rules: [\"a\\nb\\n\"]}}"},
			want: []string{
				"machine[0]|    udev:", "machine[0]|        rules:", "machine[0]|            - |", "machine[0]|              a", "machine[0]|              b",
				"machine[0]|    externalCloudProvider:", "machine[0]|        enabled: true",
			}},
		{name: "a secret that another replaces", all: []string{"machine: {files: [{path: /var/x, op: create, permissions: 0o600, content: hunter1}]}"},
			want: []string{
				"cluster[0]|    files:", "cluster[0]|        - content: (redacted)", "cluster[0]|          permissions: 0o600", "cluster[0]|          path: /var/x", "cluster[0]|          op: create",
			}},
		{name: "a secret in place", all: []string{"machine: {env: {TOKEN: hunter1}}"}, own: []string{"machine: {env: {TOKEN: hunter2}}"},
			want: []string{"cluster[0]|    env:", "machine[0]|        TOKEN: (redacted)"}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			in := testInput(t)
			in.Cluster.Patches, in.Cluster.ControlPlanePatches, in.Cluster.WorkerPatches, in.Machine.Patches = tc.all, tc.planes, tc.workers, tc.own
			var got []string
			for _, line := range prefixed(wantOrigins(t, in)) {
				if !strings.HasPrefix(line, "base|") {
					got = append(got, line)
				}
			}
			slices.Sort(got) // the order of a config's lines is Talos'
			slices.Sort(tc.want)
			if !slices.Equal(got, tc.want) {
				t.Errorf("got\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(tc.want, "\n"))
			}
		})
	}
}

// TestOriginsAreTheConfig: joined, the blocks are what is shown without them, and
// none has a secret in it.
func TestOriginsAreTheConfig(t *testing.T) {
	secret := string(testSecretWords(t, testInput(t)))
	for _, patch := range goodPatches {
		in := testInput(t)
		in.Cluster.Patches = []string{patch, "machine: {sysctls: {a: b}}"}
		in.Machine.Patches = []string{"machine: {sysctls: {a: c}}", patch}
		if _, err := testRenderer().Render(in); err != nil { // it does not go twice
			in.Machine.Patches = nil
		}
		for _, b := range wantOrigins(t, in) {
			if strings.Contains(b.Text, secret) {
				t.Errorf("%s: a secret is shown", patch)
			}
		}
	}
	in := testInput(t)
	in.Cluster.Patches = []string{"machine: {kubelet: {image: x}}"}
	_, err := testRenderer().Origins(in)
	wantField(t, err, "cluster.patches[0] → machine.kubelet.image")
}

// TestOriginsOfManyPatches stays within seconds: as many as there may be, each of
// which adds to a list.
func TestOriginsOfManyPatches(t *testing.T) {
	in := testInput(t)
	for i := range maxPatches {
		for j, list := range []*[]string{&in.Cluster.Patches, &in.Cluster.ControlPlanePatches, &in.Machine.Patches} {
			*list = append(*list, fmt.Sprintf("machine: {certSANs: [s%d-%d.example.org]}", j, i))
		}
	}
	blocks := wantOrigins(t, in)
	last := map[Origin]int{}
	for _, b := range blocks {
		if b.Origin != FromBase {
			last[b.Origin]++
			if want := fmt.Sprintf("-%d.example.org", b.Patch); !strings.Contains(b.Text, want) {
				t.Errorf("%s[%d] is %s", b.Origin, b.Patch, b.Text)
			}
		}
	}
	if last[FromCluster] != maxPatches || last[FromRole] != maxPatches || last[FromMachine] != maxPatches {
		t.Errorf("blocks by origin: %v", last)
	}
}

func BenchmarkOrigins(b *testing.B) {
	in := testInput(b)
	in.Cluster.Patches = []string{"machine: {sysctls: {a: b}}", doc("LinkConfig", "name: "+nic+", mtu: 9000")}
	in.Machine.Patches = []string{"machine: {sysctls: {a: c}}"}
	r := testRenderer()
	b.ReportAllocs()
	for b.Loop() {
		if _, err := r.Origins(in); err != nil {
			b.Fatal(err)
		}
	}
}
