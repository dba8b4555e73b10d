package talos

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"encoding/pem"
	"io"
	"math/big"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/klauspost/compress/zstd"
	"github.com/siderolabs/talos/pkg/machinery/config/configloader"

	"github.com/provisiond/provisiond/internal/inventory"
)

func testKernelInput(t testing.TB) KernelInput {
	in := testInput(t)
	return KernelInput{
		Machine: in.Machine, Cluster: in.Cluster, Subnet: in.Subnet, Arch: inventory.AMD64,
		ConfigURL: "http://[2001:db8::5]:8080/config/0123456789abcdef0123456789abcdef?mac=52-54-00-12-34-56",
	}
}

var testSink = Options{EventSink: netip.MustParseAddrPort("[2001:db8::5]:9090")}

func TestKernelLine(t *testing.T) {
	const (
		config   = "talos.config=http://[2001:db8::5]:8080/config/0123456789abcdef0123456789abcdef?mac=52-54-00-12-34-56"
		defaults = "init_on_alloc=1 slab_nomerge= pti=on consoleblank=0 nvme_core.io_timeout=4294967295 printk.devkmsg=on selinux=1 module.sig_enforce=1"
		amd64    = "talos.platform=metal console=ttyS0 console=tty0 " + defaults + " proc_mem.force_override=never " + config + " "
		sink     = " talos.events.sink=[2001:db8::5]:9090"
	)
	for _, tc := range []struct {
		name   string
		change func(*KernelInput, *Options)
		want   string
	}{
		{"static", func(*KernelInput, *Options) {},
			amd64 + "ip=[2001:db8::11]::[fe80::1]:64:cp-1:enx525400123456:off:[2001:db8::53]::[2001:db8::123]" + sink},
		{"no gateway, no servers", func(in *KernelInput, o *Options) {
			in.Subnet.Gateway, in.Subnet.DNS, in.Cluster.NTP = netip.Addr{}, nil, nil
		}, amd64 + "ip=[2001:db8::11]:::64:cp-1:enx525400123456:off:::" + sink},
		{"cluster's servers first", func(in *KernelInput, o *Options) {
			in.Cluster.DNS = []netip.Addr{netip.MustParseAddr("2001:db8::a"), netip.MustParseAddr("2001:db8::b"), netip.MustParseAddr("2001:db8::c")}
			in.Cluster.NTP = nil
			in.Subnet.NTP = []netip.Addr{netip.MustParseAddr("2001:db8::d")}
		}, amd64 + "ip=[2001:db8::11]::[fe80::1]:64:cp-1:enx525400123456:off:[2001:db8::a]:[2001:db8::b]:[2001:db8::d]" + sink},
		{"only names of time servers", func(in *KernelInput, _ *Options) { in.Cluster.NTP = []string{"time.example.org"} },
			amd64 + "ip=[2001:db8::11]::[fe80::1]:64:cp-1:enx525400123456:off:[2001:db8::53]::" + sink},
		{"arm64", func(in *KernelInput, o *Options) { in.Arch = inventory.ARM64; o.EventSink = netip.AddrPort{} },
			strings.Replace(amd64, "ttyS0", "ttyAMA0", 1) + "ip=[2001:db8::11]::[fe80::1]:64:cp-1:enx525400123456:off:[2001:db8::53]::[2001:db8::123]"},
		{"Talos 1.12", func(in *KernelInput, o *Options) {
			in.Cluster.TalosVersion, in.Cluster.KubernetesVersion = "v1.12.3", "1.35.0"
		},
			strings.Replace(amd64, " proc_mem.force_override=never", "", 1) + "ip=[2001:db8::11]::[fe80::1]:64:cp-1:enx525400123456:off:[2001:db8::53]::[2001:db8::123]" + sink},
		{"operator's arguments and log", func(in *KernelInput, o *Options) {
			o.KernelLog = "tcp://[2001:db8::5]:9091"
			in.Cluster.KernelArgs, in.Machine.KernelArgs = []string{"a=1", "pti=on"}, []string{"a=2", "talos.dashboard.disabled=1"}
		}, amd64 + "ip=[2001:db8::11]::[fe80::1]:64:cp-1:enx525400123456:off:[2001:db8::53]::[2001:db8::123]" + sink +
			" talos.logging.kernel=tcp://[2001:db8::5]:9091 a=1 pti=on a=2 talos.dashboard.disabled=1"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			in := testKernelInput(t)
			o := testSink
			tc.change(&in, &o)
			got, err := NewRenderer(o).KernelLine(in)
			if err != nil {
				t.Fatal(err)
			}
			if got != tc.want {
				t.Errorf("got  %s\nwant %s", got, tc.want)
			}
			params := cmdline(got)
			if v, ok := params["slab_nomerge"]; !ok || v[0] != "" {
				t.Error("slab_nomerge is missing: Talos would reboot")
			}
			if v := params["pti"]; len(v) == 0 || v[0] != "on" {
				t.Error("pti=on is missing: Talos would reboot")
			}
			if f := ipFields(params["ip"][0]); len(f) != 10 || f[0] != "2001:db8::11" || f[3] != "64" || f[5] != nic {
				t.Errorf("ip= has the fields %q", f)
			}
		})
	}
}

// TestEarlyConfig: what Talos has to know before its config, and nothing else.
func TestEarlyConfig(t *testing.T) {
	const (
		dhcpv6 = "apiVersion: v1alpha1\nkind: LinkConfig\nname: " + nic + "\n---\napiVersion: v1alpha1\nkind: DHCPv6Config\nname: " + nic + "\n"
		roots  = "apiVersion: v1alpha1\nkind: TrustedRootsConfig\nname: provisiond\ncertificates: |\n"
	)
	pem := newRoot(t)
	root := roots + "    " + strings.ReplaceAll(strings.TrimSpace(pem), "\n", "\n    ") + "\n"
	for _, tc := range []struct {
		name       string
		addressing inventory.Addressing
		scheme     string
		roots      string
		want       string
	}{
		{"static, http", inventory.Static, "http", pem, ""},
		{"static, https", inventory.Static, "https", pem, root},
		{"static, https by a CA that Talos knows", inventory.Static, "https", "", ""},
		{"DHCPv6, http", inventory.DHCPv6, "http", pem, dhcpv6},
		{"DHCPv6, https", inventory.DHCPv6, "https", pem, dhcpv6 + "---\n" + root},
	} {
		t.Run(tc.name, func(t *testing.T) {
			in, o := testKernelInput(t), testSink
			in.ConfigURL = tc.scheme + strings.TrimPrefix(in.ConfigURL, "http")
			in.Cluster.Addressing = tc.addressing
			if tc.addressing == inventory.DHCPv6 {
				in.Machine.Address = netip.Addr{}
			}
			o.TrustedRoots = tc.roots
			line, err := NewRenderer(o).KernelLine(in)
			if err != nil {
				t.Fatal(err)
			}
			if len(line) > 1200 {
				t.Errorf("%d bytes leave too few to the operator: %s", len(line), line)
			}
			params := cmdline(line)
			if (params["ip"] == nil) != (tc.addressing == inventory.DHCPv6) {
				t.Errorf("ip= is %q", params["ip"])
			}
			if got := early(t, params["talos.config.early"]); got != tc.want {
				t.Fatalf("the early config is\n%s", got)
			}
			if tc.want == "" {
				return
			}
			p, err := configloader.NewFromBytes([]byte(tc.want))
			if err != nil {
				t.Fatal(err)
			}
			if _, err := p.Validate(metal{}); err != nil {
				t.Error(err)
			}
		})
	}
}

// early decodes talos.config.early as Talos does.
func early(t *testing.T, values []string) string {
	t.Helper()
	packed, err := base64.StdEncoding.DecodeString(strings.Join(values, ""))
	if err != nil {
		t.Fatal(err)
	}
	zr, err := zstd.NewReader(bytes.NewReader(packed))
	if err != nil {
		t.Fatal(err)
	}
	defer zr.Close()
	text, err := io.ReadAll(zr)
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

// newRoot makes a root certificate of the size that provisiond's own has.
func newRoot(t *testing.T) string {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	c := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "provisiond"}, NotAfter: time.Now().Add(time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign, SubjectKeyId: make([]byte, 20),
	}
	der, err := x509.CreateCertificate(rand.Reader, c, c, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	return string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}))
}

// cmdline splits a kernel line as go-procfs does: at white space, then at the
// first equals sign.
func cmdline(s string) map[string][]string {
	out := map[string][]string{}
	for _, f := range strings.Fields(s) {
		k, v, _ := strings.Cut(f, "=")
		out[k] = append(out[k], v)
	}
	return out
}

// ipFields splits the value of ip= at the colons outside brackets.
func ipFields(s string) []string {
	depth, fields := 0, []string{""}
	for _, c := range s {
		switch {
		case c == '[':
			depth++
		case c == ']':
			depth--
		case c == ':' && depth == 0:
			fields = append(fields, "")
		default:
			fields[len(fields)-1] += string(c)
		}
	}
	return fields
}

func TestKernelLineRefuses(t *testing.T) {
	for _, tc := range []struct {
		name   string
		change func(*KernelInput, *Options)
		field  string
	}{
		{"quotes", func(in *KernelInput, _ *Options) { in.ConfigURL = `"http://[2001:db8::5]/"` }, "configURL"},
		{"space", func(in *KernelInput, _ *Options) { in.ConfigURL = "http://[2001:db8::5]/a b" }, "configURL"},
		{"unbracketed", func(in *KernelInput, _ *Options) { in.ConfigURL = "http://2001:db8::5:80/" }, "configURL"},
		{"no URL", func(in *KernelInput, _ *Options) { in.ConfigURL = "" }, "configURL"},
		{"tftp", func(in *KernelInput, _ *Options) { in.ConfigURL = "tftp://[2001:db8::5]/x" }, "configURL"},
		{"arch", func(in *KernelInput, _ *Options) { in.Arch = "riscv64" }, "arch"},
		{"log", func(in *KernelInput, o *Options) { o.KernelLog = "tcp://2001:db8::5:514" }, "kernelLog"},
		{"no subnet", func(in *KernelInput, _ *Options) { in.Subnet = nil }, "machine.address"},
		{"version", func(in *KernelInput, _ *Options) { in.Cluster.TalosVersion = "v1.2.3" }, "cluster.talosVersion"},
		{"own argument", func(in *KernelInput, _ *Options) { in.Machine.KernelArgs = []string{"talos.config=x"} }, "machine.kernelArgs[0]"},
		{"pti=off", func(in *KernelInput, _ *Options) { in.Cluster.KernelArgs = []string{"a", "pti=off"} }, "cluster.kernelArgs[1]"},
		{"too long", func(in *KernelInput, _ *Options) { in.Machine.KernelArgs = []string{"a=" + strings.Repeat("x", 1700)} }, "machine.kernelArgs"},
		{"too long for the cluster", func(in *KernelInput, _ *Options) { in.Cluster.KernelArgs = []string{"a=" + strings.Repeat("x", 1700)} }, "cluster.kernelArgs"},
		{"too long a URL", func(in *KernelInput, _ *Options) { in.ConfigURL += strings.Repeat("x", 1700) }, "configURL"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			in := testKernelInput(t)
			o := testSink
			tc.change(&in, &o)
			_, err := NewRenderer(o).KernelLine(in)
			wantField(t, err, tc.field)
		})
	}
}

// The URL holds the boot's token, which must not get into a log.
func TestKernelLineErrorKeepsTheToken(t *testing.T) {
	in := testKernelInput(t)
	in.ConfigURL = "http://[2001:db8::5]/config?token=s3cret \n"
	_, err := NewRenderer(testSink).KernelLine(in)
	if err == nil || strings.Contains(err.Error(), "s3cret") {
		t.Errorf("got %v", err)
	}
}
