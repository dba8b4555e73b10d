package talos

import (
	"net/netip"
	"sync"
	"testing"
	"time"

	"github.com/provisiond/provisiond/internal/inventory"
)

// bundleOnce makes one bundle for all tests: its RSA key takes a second.
var bundleOnce = sync.OnceValues(func() ([]byte, error) { return NewSecrets("v1.13.6") })

func testSecrets(t testing.TB) *inventory.Secrets {
	t.Helper()
	b, err := bundleOnce()
	if err != nil {
		t.Fatal(err)
	}
	return &inventory.Secrets{Cluster: "prod", Bundle: b, Rev: 7}
}

// testInput is a control plane that can work.
func testInput(t testing.TB) Input {
	t.Helper()
	return Input{
		Machine: &inventory.Machine{
			Name: "cp-1", MACs: []inventory.MAC{"52:54:00:12:34:56"}, Cluster: "prod", Role: inventory.ControlPlane,
			Address: netip.MustParseAddr("2001:db8::11"),
		},
		Cluster: &inventory.Cluster{
			Name: "prod", Endpoint: "https://[2001:db8::10]:6443", TalosVersion: "v1.13.6", KubernetesVersion: "1.36.2",
			PodSubnets:     []netip.Prefix{netip.MustParsePrefix("fc00:db8:10::/56")},
			ServiceSubnets: []netip.Prefix{netip.MustParsePrefix("fc00:db8:20::/112")},
			NTP:            []string{"2001:db8::123", "time.example.org"},
			Install:        inventory.InstallTarget{Disk: "/dev/sda"},
		},
		Secrets: testSecrets(t),
		Subnet: &inventory.Subnet{
			Name: "rack", Prefix: netip.MustParsePrefix("2001:db8::/64"), Gateway: netip.MustParseAddr("fe80::1"),
			DNS: []netip.Addr{netip.MustParseAddr("2001:db8::53")}, Domains: []string{"rack.example.org"},
			Preferred: time.Hour, Valid: time.Hour,
		},
	}
}

// worker turns an input into that of a worker.
func (in Input) worker(name string, address string) Input {
	m := in.Machine.Clone()
	m.Name, m.Role, m.Address = name, inventory.Worker, netip.MustParseAddr(address)
	in.Machine = m
	return in
}

func testRenderer() *Renderer {
	return NewRenderer(Options{
		EventSink: netip.MustParseAddrPort("[2001:db8::5]:9090"),
		KernelLog: "tcp://[2001:db8::5]:9091",
	})
}
