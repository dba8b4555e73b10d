package talos

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"sync"
	"testing"

	"github.com/siderolabs/talos/pkg/machinery/config"
	"github.com/siderolabs/talos/pkg/machinery/config/configloader"
	"github.com/siderolabs/talos/pkg/machinery/config/machine"
	"github.com/siderolabs/talos/pkg/machinery/config/types/network"

	"github.com/provisiond/provisiond/internal/inventory"
)

// mustRender renders, and loads the bytes as Talos will.
func mustRender(t testing.TB, r *Renderer, in Input) (*Config, config.Provider) {
	t.Helper()
	c, err := r.Render(in)
	if err != nil {
		t.Fatalf("Render: %v", err)
	}
	p, err := configloader.NewFromBytes(c.Bytes())
	if err != nil {
		t.Fatalf("Talos would not load it: %v", err)
	}
	if _, err := p.Validate(metal{}); err != nil {
		t.Fatalf("Talos would refuse it: %v", err)
	}
	return c, p
}

func TestRenderControlPlane(t *testing.T) {
	in := testInput(t)
	c, p := mustRender(t, testRenderer(), in)
	if len(c.Warnings) != 0 {
		t.Errorf("warnings: %q", c.Warnings)
	}
	whole := c.Bytes()
	sum := sha256.Sum256(whole)
	if c.Hash != hex.EncodeToString(sum[:]) || c.Size != len(whole) {
		t.Errorf("hash %s, size %d do not fit the %d bytes", c.Hash, c.Size, len(whole))
	}
	if p.Machine().Type() != machine.TypeControlPlane {
		t.Errorf("type is %s", p.Machine().Type())
	}
	if p.Cluster().Discovery().Enabled() {
		t.Error("discovery is on, which needs the Internet")
	}
	for _, want := range []string{
		"disk: /dev/sda", "image: ghcr.io/siderolabs/installer:v1.13.6",
		"name: enx525400123456", "address: 2001:db8::11/64", "gateway: fe80::1",
		"address: 2001:db8::53", "rack.example.org",
		"- 2001:db8::123", "- time.example.org",
		"hostname: cp-1", `auto: "off"`,
		"endpoint: '[2001:db8::5]:9090'", "url: tcp://[2001:db8::5]:9091",
		"fc00:db8:10::/56", "fc00:db8:20::/112",
		"https://[2001:db8::10]:6443", "kubelet:v1.36.2",
	} {
		if !bytes.Contains(whole, []byte(want)) {
			t.Errorf("the config lacks %q", want)
		}
	}
	v1 := p.RawV1Alpha1()
	if got := v1.MachineConfig.MachineKubelet.KubeletNodeIP.KubeletNodeIPValidSubnets; fmt.Sprint(got) != "[2001:db8::/64]" {
		t.Errorf("nodeIP.validSubnets: %v", got)
	}
	if got := v1.ClusterConfig.EtcdConfig.EtcdAdvertisedSubnets; fmt.Sprint(got) != "[2001:db8::/64]" {
		t.Errorf("etcd.advertisedSubnets: %v", got)
	}
}

func TestRenderWorker(t *testing.T) {
	in := testInput(t).worker("w-1", "2001:db8::21")
	c, p := mustRender(t, testRenderer(), in)
	v1 := p.RawV1Alpha1()
	if p.Machine().Type() != machine.TypeWorker || v1.ClusterConfig.EtcdConfig != nil || v1.ClusterConfig.ClusterServiceAccount != nil {
		t.Error("a worker's config holds what only control planes have")
	}
	if len(v1.MachineConfig.MachineCA.Key) > 0 || len(v1.ClusterConfig.ClusterCA.Key) > 0 {
		t.Error("a worker's config holds a CA key")
	}
	if c.Size > 8<<10 {
		t.Errorf("%d bytes", c.Size)
	}
}

func TestRenderDHCPv6(t *testing.T) {
	in := testInput(t)
	in.Machine.Addressing, in.Machine.Address, in.Subnet.Gateway = inventory.DHCPv6, netip.Addr{}, netip.Addr{}
	c, p := mustRender(t, testRenderer(), in)
	if n := len(p.NetworkDHCPv6Configs()); n != 1 || p.NetworkDHCPv6Configs()[0].Name() != "enx525400123456" {
		t.Errorf("%d DHCPv6Config documents", n)
	}
	if p.RunDefaultDHCPOperators() {
		t.Error("Talos would run DHCPv4")
	}
	if bytes.Contains(c.Parts[1], []byte("addresses:")) {
		t.Errorf("a static address is there, too:\n%s", c.Parts[1])
	}
}

// Both contracts that are said to be supported must be.
func TestRenderVersions(t *testing.T) {
	for _, v := range []struct{ talos, k8s string }{{"v1.12.0", "1.35.0"}, {"v1.12.7", "1.34.1"}, {"v1.13.0", "1.36.0"}, {"v1.13.6-beta.1", "1.31.0"}} {
		in := testInput(t)
		in.Cluster.TalosVersion, in.Cluster.KubernetesVersion = v.talos, v.k8s
		c, _ := mustRender(t, testRenderer(), in)
		if !bytes.Contains(c.Parts[0], []byte("installer:"+v.talos+"\n")) {
			t.Errorf("%s: another installer", v.talos)
		}
	}
}

func TestRenderInstaller(t *testing.T) {
	for name, tc := range map[string]struct {
		change func(*Input)
		want   string
	}{
		"plain":              {func(*Input) {}, "ghcr.io/siderolabs/installer:v1.13.6"},
		"schematic":          {func(in *Input) { in.Cluster.Schematic = "abc" }, "factory.talos.dev/installer/abc:v1.13.6"},
		"cluster's image":    {func(in *Input) { in.Cluster.Install.Image = "[2001:db8::5]:5000/i:v1" }, "[2001:db8::5]:5000/i:v1"},
		"machine's image":    {func(in *Input) { in.Machine.Install.Image = "r.example/i:v2"; in.Cluster.Install.Image = "x/y:z" }, "r.example/i:v2"},
		"machine's release":  {func(in *Input) { in.Machine.Image = "v1.13.2/def" }, "factory.talos.dev/installer/def:v1.13.2"},
		"default schematic":  {func(in *Input) { in.Machine.Image = "v1.13.2/default" }, "ghcr.io/siderolabs/installer:v1.13.2"},
		"release over image": {func(in *Input) { in.Machine.Image = "v1.13.2"; in.Cluster.Install.Image = "x/y:z" }, "ghcr.io/siderolabs/installer:v1.13.2"},
	} {
		t.Run(name, func(t *testing.T) {
			in := testInput(t)
			tc.change(&in)
			_, p := mustRender(t, testRenderer(), in)
			if got := p.Machine().Install().Image(); got != tc.want {
				t.Errorf("got %s, want %s", got, tc.want)
			}
		})
	}
}

func TestRenderDiskSelector(t *testing.T) {
	in := testInput(t)
	in.Machine.Install.DiskSelector = map[string]string{"size": ">= 100GB", "type": "nvme", "serial": "S3*"}
	_, p := mustRender(t, testRenderer(), in)
	if p.Machine().Install().Disk() != "" {
		t.Error("the cluster's disk is there beside the machine's selector")
	}
	expr, err := p.Machine().Install().DiskMatchExpression()
	if err != nil {
		t.Fatal(err)
	}
	if s := expr.String(); !strings.Contains(s, "100000000000u") || !strings.Contains(s, "S3*") {
		t.Errorf("the expression is %s", s)
	}
}

func TestRenderIsDeterministic(t *testing.T) {
	in := testInput(t)
	in.Cluster.Patches = []string{"machine:\n  sysctls: {b: '1', a: '2', c: '3'}\n  nodeLabels: {z: y, x: w}\n"}
	first, _ := mustRender(t, testRenderer(), in)
	for range 5 {
		again, _ := mustRender(t, testRenderer(), in)
		if again.Hash != first.Hash {
			t.Fatal("the same input gave other bytes")
		}
	}
	r := testRenderer()
	a, _ := mustRender(t, r, in)
	b, _ := mustRender(t, r, in)
	if a != b {
		t.Error("the second render was not remembered")
	}
}

// Every field that goes in must change the bytes: else a cache would hide it.
func TestRenderFollowsEveryInput(t *testing.T) {
	r := testRenderer()
	base, _ := mustRender(t, r, testInput(t))
	seen := map[string]string{base.Hash: "the base"}
	other, err := NewSecrets("v1.13.6")
	if err != nil {
		t.Fatal(err)
	}
	for name, change := range map[string]func(*Input){
		"name":    func(in *Input) { in.Machine.Name = "cp-2" },
		"mac":     func(in *Input) { in.Machine.MACs = []inventory.MAC{"52:54:00:12:34:57"} },
		"address": func(in *Input) { in.Machine.Address = netip.MustParseAddr("2001:db8::12") },
		"role":    func(in *Input) { in.Machine.Role = inventory.Worker },
		"disk":    func(in *Input) { in.Machine.Install.Disk = "/dev/vda" },
		"patch":   func(in *Input) { in.Machine.Patches = []string{"machine: {sysctls: {a: '1'}}"} },
		"link": func(in *Input) {
			in.Machine.Patches = []string{"{apiVersion: v1alpha1, kind: LinkConfig, name: enx525400123456, mtu: 9000}"}
		},
		"cpatch":   func(in *Input) { in.Cluster.Patches = []string{"machine: {sysctls: {a: '2'}}"} },
		"cppatch":  func(in *Input) { in.Cluster.ControlPlanePatches = []string{"machine: {sysctls: {a: '3'}}"} },
		"endpoint": func(in *Input) { in.Cluster.Endpoint = "https://api.example.org:6443" },
		"k8s":      func(in *Input) { in.Cluster.KubernetesVersion = "1.36.1" },
		"talos":    func(in *Input) { in.Cluster.TalosVersion = "v1.13.5" },
		"pods":     func(in *Input) { in.Cluster.PodSubnets = []netip.Prefix{netip.MustParsePrefix("fc00:db8:30::/56")} },
		"services": func(in *Input) {
			in.Cluster.ServiceSubnets = []netip.Prefix{netip.MustParsePrefix("fc00:db8:40::/112")}
		},
		"dns": func(in *Input) { in.Cluster.DNS = []netip.Addr{netip.MustParseAddr("2001:db8::54")} },
		"ntp": func(in *Input) {
			in.Cluster.NTP = nil
			in.Subnet.NTP = []netip.Addr{netip.MustParseAddr("2001:db8::124")}
		},
		"prefix":  func(in *Input) { in.Subnet.Prefix = netip.MustParsePrefix("2001:db8::/60") },
		"gateway": func(in *Input) { in.Subnet.Gateway = netip.MustParseAddr("2001:db8::1") },
		"domains": func(in *Input) { in.Subnet.Domains = nil },
		"secrets": func(in *Input) { in.Secrets = &inventory.Secrets{Cluster: "prod", Bundle: other} },
	} {
		in := testInput(t)
		change(&in)
		c, _ := mustRender(t, r, in)
		if before, dup := seen[c.Hash]; dup {
			t.Errorf("%s gives the config of %s", name, before)
		}
		seen[c.Hash] = name
	}
}

func TestRenderSharesTheBase(t *testing.T) {
	r, in := testRenderer(), testInput(t)
	a, _ := mustRender(t, r, in.worker("w-1", "2001:db8::21"))
	b, _ := mustRender(t, r, in.worker("w-2", "2001:db8::22"))
	own := in.worker("w-3", "2001:db8::23")
	own.Machine.Patches = []string{"{apiVersion: v1alpha1, kind: LinkConfig, name: enx525400123456, mtu: 9000}"}
	c, _ := mustRender(t, r, own)
	if &a.Parts[0][0] != &b.Parts[0][0] || &a.Parts[0][0] != &c.Parts[0][0] {
		t.Error("machines that install alike do not share their bytes")
	}
	if n := len(a.Parts[1]); n > 1200 {
		t.Errorf("the machine's own part has %d bytes", n)
	}
	if bytes.Contains(a.Parts[1], testSecretWords(t, in)) {
		t.Error("a secret is in the machine's own part")
	}
}

func testSecretWords(t *testing.T, in Input) []byte {
	b, err := loadBundle(in.Secrets)
	if err != nil {
		t.Fatal(err)
	}
	return []byte(b.TrustdInfo.Token)
}

func TestRenderConcurrently(t *testing.T) {
	r, in := testRenderer(), testInput(t)
	in.Cluster.Patches = []string{"machine: {sysctls: {a: '1'}}", "machine: {sysctls: {b: '2'}}\n---\n{apiVersion: v1alpha1, kind: LinkConfig, name: lan0, mtu: 9000}"}
	want, _ := mustRender(t, testRenderer(), in)
	var wg sync.WaitGroup
	for i := range 40 {
		wg.Go(func() {
			m := in.Machine.Clone()
			if i%4 > 0 {
				m.Patches = []string{fmt.Sprintf("machine: {sysctls: {c: '%d'}}", i%4)}
			}
			c, err := r.Render(Input{m, in.Cluster, in.Secrets, in.Subnet})
			if err != nil {
				t.Error(err)
			} else if i%4 == 0 && c.Hash != want.Hash {
				t.Error("a concurrent render changed a shared patch")
			}
		})
	}
	wg.Wait()
}

func TestPatchOrderAndReach(t *testing.T) {
	in := testInput(t)
	in.Cluster.Patches = []string{
		"machine: {sysctls: {who: cluster, cluster: yes}}",
		"{apiVersion: v1alpha1, kind: HostnameConfig, hostname: cp-1.example.org}",
	}
	in.Cluster.ControlPlanePatches = []string{"machine: {sysctls: {who: role, role: yes}, kubelet: {nodeIP: {validSubnets: ['2001:db8:ff::/48']}}}\ncluster: {etcd: {advertisedSubnets: ['2001:db8:ff::/48']}}"}
	in.Cluster.WorkerPatches = []string{"machine: {sysctls: {worker: yes}}"}
	in.Machine.Patches = []string{
		"machine: {sysctls: {who: machine}}\n---\n{apiVersion: v1alpha1, kind: ResolverConfig, nameservers: [{address: '2001:db8::99'}]}",
		"{apiVersion: v1alpha1, kind: TimeSyncConfig, enabled: false}",
		"{apiVersion: v1alpha1, kind: LinkConfig, name: enx525400123456, mtu: 9000}",
	}
	c, p := mustRender(t, testRenderer(), in)
	s := p.Machine().Sysctls()
	if s["who"] != "machine" || s["cluster"] == "" || s["role"] == "" || s["worker"] != "" {
		t.Errorf("sysctls: %v", s)
	}
	v1 := p.RawV1Alpha1()
	if got := fmt.Sprint(v1.MachineConfig.MachineKubelet.KubeletNodeIP.KubeletNodeIPValidSubnets, v1.ClusterConfig.EtcdConfig.EtcdAdvertisedSubnets); got != "[2001:db8:ff::/48] [2001:db8:ff::/48]" {
		t.Errorf("a patch's networks did not replace ours: %s", got)
	}
	if got := p.NetworkHostnameConfig().Hostname(); got != "cp-1.example.org" {
		t.Errorf("hostname %s", got)
	}
	if got := fmt.Sprint(p.NetworkResolverConfig().Resolvers()); got != "[2001:db8::99]" {
		t.Errorf("resolvers %s", got)
	}
	if !p.NetworkTimeSyncConfig().Disabled() || len(p.NetworkTimeSyncConfig().Servers()) != 0 {
		t.Error("the patch's TimeSyncConfig did not replace ours")
	}
	var nic *network.LinkConfigV1Alpha1
	for _, d := range p.Documents() {
		if l, ok := d.(*network.LinkConfigV1Alpha1); ok {
			nic = l
		}
	}
	if nic.LinkMTU != 9000 || len(nic.LinkAddresses) != 1 {
		t.Errorf("the patch did not merge into our LinkConfig: %+v", nic)
	}
	if bytes.Contains(c.Bytes(), []byte("$patch")) {
		t.Error("a patch instruction is left")
	}
}

func TestPatchDelete(t *testing.T) {
	in := testInput(t)
	in.Cluster.Patches = []string{
		"{apiVersion: v1alpha1, kind: LinkConfig, name: enx525400123456, $patch: delete}\n---\n{apiVersion: v1alpha1, kind: BondConfig, name: bond0, links: [enx525400123456], bondMode: active-backup, addresses: [{address: '2001:db8::11/64'}]}",
		"machine: {features: {diskQuotaSupport: {$patch: delete}}}",
	}
	c, p := mustRender(t, testRenderer(), in)
	if n := len(p.NetworkCommonLinkConfigs()); n != 1 || p.NetworkCommonLinkConfigs()[0].Name() != "bond0" {
		t.Errorf("%d link documents:\n%s", n, c.Parts[1])
	}
}

// TestCiliumBGPExample is the set of patches the manual gives for Cilium with
// BGP on the host's loopback.
func TestCiliumBGPExample(t *testing.T) {
	in := testInput(t)
	in.Cluster.Patches = []string{`
cluster:
  network:
    cni:
      name: none
  proxy:
    disabled: true
machine:
  kubelet:
    nodeIP:
      validSubnets:
        - 2001:db8:100::/48
`}
	in.Cluster.ControlPlanePatches = []string{`
cluster:
  etcd:
    advertisedSubnets:
      - 2001:db8:100::/48
`}
	in.Machine.Patches = []string{`
apiVersion: v1alpha1
kind: DummyLinkConfig
name: dummy1
addresses:
  - address: 2001:db8:100::11/128
`}
	c, p := mustRender(t, testRenderer(), in)
	if len(c.Warnings) != 0 {
		t.Errorf("warnings: %q", c.Warnings)
	}
	if got := p.Cluster().Network().CNI().Name(); got != "none" {
		t.Errorf("cni %s", got)
	}
	if p.Cluster().Proxy().Enabled() {
		t.Error("kube-proxy is on")
	}
	if got := fmt.Sprint(p.Machine().Kubelet().NodeIP().ValidSubnets()); got != "[2001:db8:100::/48]" {
		t.Errorf("nodeIP networks %s", got)
	}
	w := in.worker("w-1", "2001:db8::21")
	w.Machine.Patches = []string{strings.ReplaceAll(in.Machine.Patches[0], "::11/", "::21/")}
	mustRender(t, testRenderer(), w)
}

func TestRenderWarns(t *testing.T) {
	in := testInput(t)
	in.Cluster.NTP, in.Subnet.DNS, in.Subnet.Domains = nil, nil, nil
	c, _ := mustRender(t, testRenderer(), in)
	if len(c.Warnings) != 2 || !strings.Contains(c.Warnings[0], "DNS") || !strings.Contains(c.Warnings[1], "time server") {
		t.Errorf("warnings: %q", c.Warnings)
	}
}

// wantField fails unless err is a FieldError on the field.
func wantField(t testing.TB, err error, field string) {
	t.Helper()
	var fe *inventory.FieldError
	if !errors.As(err, &fe) {
		t.Fatalf("got %v, want an error on %s", err, field)
	}
	if fe.Field != field {
		t.Errorf("the error names %q, want %q: %v", fe.Field, field, err)
	}
}

func TestLRU(t *testing.T) {
	l := newLRU[int](2)
	l.put("a", 1)
	l.put("b", 2)
	l.get("a")
	l.put("c", 3)
	if _, ok := l.get("b"); ok {
		t.Error("the least recently used entry is still there")
	}
	l.put("a", 4)
	if v, ok := l.get("a"); !ok || v != 4 {
		t.Errorf("a is %d, %v", v, ok)
	}
	if len(l.byKey) != 2 || l.order.Len() != 2 {
		t.Errorf("%d entries, %d in order", len(l.byKey), l.order.Len())
	}
}

func BenchmarkRenderCold(b *testing.B) {
	in := testInput(b)
	b.ReportAllocs()
	for b.Loop() {
		if _, err := testRenderer().Render(in); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkRenderWarmBase renders a machine of a known kind.
func BenchmarkRenderWarmBase(b *testing.B) {
	r, in := testRenderer(), testInput(b)
	a := netip.MustParseAddr("2001:db8::1000")
	b.ReportAllocs()
	for b.Loop() {
		a = a.Next()
		in.Machine.Address = a
		if _, err := r.Render(in); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkRenderAgain renders what is in the cache.
func BenchmarkRenderAgain(b *testing.B) {
	r, in := testRenderer(), testInput(b)
	b.ReportAllocs()
	for b.Loop() {
		if _, err := r.Render(in); err != nil {
			b.Fatal(err)
		}
	}
}
