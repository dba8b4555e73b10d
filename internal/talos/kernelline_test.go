package talos

import (
	"encoding/base64"
	"net/netip"
	"strings"
	"testing"

	"github.com/siderolabs/talos/pkg/machinery/config/configloader"

	"github.com/provisiond/provisiond/internal/inventory"
)

func testKernelInput(t testing.TB) KernelInput {
	in := testInput(t)
	return KernelInput{
		Machine: in.Machine, Cluster: in.Cluster, Subnet: in.Subnet, Arch: inventory.AMD64,
		ConfigURL: "http://[2001:db8::5]:8080/config/0123456789abcdef0123456789abcdef?mac=52-54-00-12-34-56",
		EventSink: netip.MustParseAddrPort("[2001:db8::5]:9090"),
	}
}

func TestKernelLine(t *testing.T) {
	const (
		config   = "talos.config=http://[2001:db8::5]:8080/config/0123456789abcdef0123456789abcdef?mac=52-54-00-12-34-56"
		defaults = "init_on_alloc=1 slab_nomerge= pti=on consoleblank=0 nvme_core.io_timeout=4294967295 printk.devkmsg=on selinux=1 module.sig_enforce=1"
		amd64    = "talos.platform=metal console=ttyS0 console=tty0 " + defaults + " proc_mem.force_override=never " + config + " "
		sink     = " talos.events.sink=[2001:db8::5]:9090"
	)
	for _, tc := range []struct {
		name   string
		change func(*KernelInput)
		want   string
	}{
		{"static", func(*KernelInput) {},
			amd64 + "ip=[2001:db8::11]::[fe80::1]:64:cp-1:enx525400123456:off:[2001:db8::53]::[2001:db8::123]" + sink},
		{"no gateway, no servers", func(in *KernelInput) {
			in.Subnet.Gateway, in.Subnet.DNS, in.Cluster.NTP = netip.Addr{}, nil, nil
		}, amd64 + "ip=[2001:db8::11]:::64:cp-1:enx525400123456:off:::" + sink},
		{"cluster's servers first", func(in *KernelInput) {
			in.Cluster.DNS = []netip.Addr{netip.MustParseAddr("2001:db8::a"), netip.MustParseAddr("2001:db8::b"), netip.MustParseAddr("2001:db8::c")}
			in.Cluster.NTP = nil
			in.Subnet.NTP = []netip.Addr{netip.MustParseAddr("2001:db8::d")}
		}, amd64 + "ip=[2001:db8::11]::[fe80::1]:64:cp-1:enx525400123456:off:[2001:db8::a]:[2001:db8::b]:[2001:db8::d]" + sink},
		{"only names of time servers", func(in *KernelInput) { in.Cluster.NTP = []string{"time.example.org"} },
			amd64 + "ip=[2001:db8::11]::[fe80::1]:64:cp-1:enx525400123456:off:[2001:db8::53]::" + sink},
		{"arm64", func(in *KernelInput) { in.Arch = inventory.ARM64; in.EventSink = netip.AddrPort{} },
			strings.Replace(amd64, "ttyS0", "ttyAMA0", 1) + "ip=[2001:db8::11]::[fe80::1]:64:cp-1:enx525400123456:off:[2001:db8::53]::[2001:db8::123]"},
		{"Talos 1.12", func(in *KernelInput) {
			in.Cluster.TalosVersion, in.Cluster.KubernetesVersion = "v1.12.3", "1.35.0"
		},
			strings.Replace(amd64, " proc_mem.force_override=never", "", 1) + "ip=[2001:db8::11]::[fe80::1]:64:cp-1:enx525400123456:off:[2001:db8::53]::[2001:db8::123]" + sink},
		{"operator's arguments and log", func(in *KernelInput) {
			in.KernelLog = "tcp://[2001:db8::5]:9091"
			in.Cluster.KernelArgs, in.Machine.KernelArgs = []string{"a=1", "pti=on"}, []string{"a=2", "talos.dashboard.disabled=1"}
		}, amd64 + "ip=[2001:db8::11]::[fe80::1]:64:cp-1:enx525400123456:off:[2001:db8::53]::[2001:db8::123]" + sink +
			" talos.logging.kernel=tcp://[2001:db8::5]:9091 a=1 pti=on a=2 talos.dashboard.disabled=1"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			in := testKernelInput(t)
			tc.change(&in)
			got, err := KernelLine(in)
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

func TestKernelLineDHCPv6(t *testing.T) {
	in := testKernelInput(t)
	in.Cluster.Addressing = inventory.DHCPv6
	in.Machine.Address = netip.Addr{}
	line, err := KernelLine(in)
	if err != nil {
		t.Fatal(err)
	}
	params := cmdline(line)
	if params["ip"] != nil {
		t.Error("ip= is there, too")
	}
	frame, err := base64.StdEncoding.DecodeString(params["talos.config.early"][0])
	if err != nil {
		t.Fatal(err)
	}
	text := unframe(t, frame)
	const want = "apiVersion: v1alpha1\nkind: LinkConfig\nname: " + nic + "\n---\napiVersion: v1alpha1\nkind: DHCPv6Config\nname: " + nic + "\n"
	if string(text) != want {
		t.Errorf("the early config is\n%s", text)
	}
	p, err := configloader.NewFromBytes(text)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := p.Validate(metal{}); err != nil {
		t.Error(err)
	}
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

// unframe reads the zstd frames that zstdFrame writes, from RFC 8878.
func unframe(t *testing.T, b []byte) []byte {
	t.Helper()
	if len(b) < 9 || string(b[:4]) != "\x28\xb5\x2f\xfd" {
		t.Fatalf("not a zstd frame: %x", b)
	}
	size, rest := 0, b[5:]
	switch b[4] {
	case 0x20: // single segment, one byte of size
		size, rest = int(rest[0]), rest[1:]
	case 0x60: // two bytes, from 256 on
		size, rest = int(rest[0])+int(rest[1])<<8+256, rest[2:]
	default:
		t.Fatalf("frame header %x", b[4])
	}
	header := int(rest[0]) | int(rest[1])<<8 | int(rest[2])<<16
	if header&1 != 1 || header>>1&3 != 0 || header>>3 != size || len(rest[3:]) != size {
		t.Fatalf("block header %x for %d bytes of %d", header, len(rest[3:]), size)
	}
	return rest[3:]
}

func TestZstdFrame(t *testing.T) {
	for _, n := range []int{0, 1, 255, 256, 257, 5000, 1<<16 - 1} {
		data := []byte(strings.Repeat("x", n))
		if got := unframe(t, zstdFrame(data)); string(got) != string(data) {
			t.Errorf("%d bytes came back as %d", n, len(got))
		}
	}
}

func TestKernelLineRefuses(t *testing.T) {
	for _, tc := range []struct {
		name   string
		change func(*KernelInput)
		field  string
	}{
		{"quotes", func(in *KernelInput) { in.ConfigURL = `"http://[2001:db8::5]/"` }, "configURL"},
		{"space", func(in *KernelInput) { in.ConfigURL = "http://[2001:db8::5]/a b" }, "configURL"},
		{"unbracketed", func(in *KernelInput) { in.ConfigURL = "http://2001:db8::5:80/" }, "configURL"},
		{"no URL", func(in *KernelInput) { in.ConfigURL = "" }, "configURL"},
		{"tftp", func(in *KernelInput) { in.ConfigURL = "tftp://[2001:db8::5]/x" }, "configURL"},
		{"arch", func(in *KernelInput) { in.Arch = "riscv64" }, "arch"},
		{"log", func(in *KernelInput) { in.KernelLog = "tcp://2001:db8::5:514" }, "kernelLog"},
		{"no subnet", func(in *KernelInput) { in.Subnet = nil }, "machine.address"},
		{"version", func(in *KernelInput) { in.Cluster.TalosVersion = "v1.2.3" }, "cluster.talosVersion"},
		{"own argument", func(in *KernelInput) { in.Machine.KernelArgs = []string{"talos.config=x"} }, "machine.kernelArgs[0]"},
		{"pti=off", func(in *KernelInput) { in.Cluster.KernelArgs = []string{"a", "pti=off"} }, "cluster.kernelArgs[1]"},
		{"too long", func(in *KernelInput) { in.Machine.KernelArgs = []string{"a=" + strings.Repeat("x", 1700)} }, "machine.kernelArgs"},
		{"too long for the cluster", func(in *KernelInput) { in.Cluster.KernelArgs = []string{"a=" + strings.Repeat("x", 1700)} }, "cluster.kernelArgs"},
		{"too long a URL", func(in *KernelInput) { in.ConfigURL += strings.Repeat("x", 1700) }, "configURL"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			in := testKernelInput(t)
			tc.change(&in)
			_, err := KernelLine(in)
			wantField(t, err, tc.field)
		})
	}
}

// The URL holds the boot's token, which must not get into a log.
func TestKernelLineErrorKeepsTheToken(t *testing.T) {
	in := testKernelInput(t)
	in.ConfigURL = "http://[2001:db8::5]/config?token=s3cret \n"
	_, err := KernelLine(in)
	if err == nil || strings.Contains(err.Error(), "s3cret") {
		t.Errorf("got %v", err)
	}
}
