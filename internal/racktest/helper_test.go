package racktest

import (
	"context"
	"encoding/base64"
	"net"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/klauspost/compress/zstd"
	"github.com/siderolabs/talos/pkg/machinery/client"
	clientconfig "github.com/siderolabs/talos/pkg/machinery/client/config"
	"github.com/siderolabs/talos/pkg/machinery/config"
	"github.com/siderolabs/talos/pkg/machinery/config/configpatcher"
	"github.com/siderolabs/talos/pkg/machinery/config/encoder"
	"github.com/siderolabs/talos/pkg/machinery/config/generate"
	"github.com/siderolabs/talos/pkg/machinery/config/generate/secrets"
	"github.com/siderolabs/talos/pkg/machinery/config/machine"
	"github.com/siderolabs/talos/pkg/machinery/constants"
	"github.com/siderolabs/talos/pkg/machinery/role"
	"go.uber.org/goleak"
	"google.golang.org/grpc"
	grpcbackoff "google.golang.org/grpc/backoff"
)

// TestMain fails the package when any goroutine outlives the tests: no machine,
// node or proxy may leave one behind.
func TestMain(m *testing.M) {
	goleak.VerifyTestMain(m)
}

// newBundle makes cluster secrets, which takes a second or two.
var newBundle = sync.OnceValue(bundle)

func bundle() *secrets.Bundle {
	b, err := secrets.NewBundle(secrets.NewFixedClock(time.Now()), config.TalosVersion1_13)
	if err != nil {
		panic(err)
	}
	return b
}

// foreignBundle is another cluster's.
var foreignBundle = sync.OnceValue(bundle)

const endpointHost = "fd00:1ab::11"

func input(t *testing.T, b *secrets.Bundle) *generate.Input {
	t.Helper()
	in, err := generate.NewInput("prod", "https://["+endpointHost+"]:6443", constants.DefaultKubernetesVersion,
		generate.WithVersionContract(config.TalosVersion1_13), generate.WithSecretsBundle(b),
		generate.WithEndpointList([]string{endpointHost}),
		generate.WithInstallDisk("/dev/sda"), generate.WithClusterDiscovery(false))
	if err != nil {
		t.Fatal(err)
	}
	in.PodNet = []string{constants.DefaultIPv6PodNet}
	in.ServiceNet = []string{constants.DefaultIPv6ServiceNet}
	return in
}

// machineConfig renders a config the way provisioning does, with patches.
func machineConfig(t *testing.T, b *secrets.Bundle, kind machine.Type, patches ...string) []byte {
	t.Helper()
	cfg, err := input(t, b).Config(kind)
	if err != nil {
		t.Fatal(err)
	}
	var loaded []configpatcher.Patch
	for _, p := range patches {
		patch, err := configpatcher.LoadPatch([]byte(p))
		if err != nil {
			t.Fatal(err)
		}
		loaded = append(loaded, patch)
	}
	out, err := configpatcher.Apply(configpatcher.WithConfig(cfg), loaded)
	if err != nil {
		t.Fatal(err)
	}
	if cfg, err = out.Config(); err != nil {
		t.Fatal(err)
	}
	text, err := cfg.EncodeBytes(encoder.WithComments(encoder.CommentsDisabled))
	if err != nil {
		t.Fatal(err)
	}
	return text
}

// staticPatch gives a machine its address and host name.
func staticPatch(mac net.HardwareAddr, addr netip.Addr, hostname string) string {
	nic := "enx" + strings.ReplaceAll(mac.String(), ":", "")
	return `apiVersion: v1alpha1
kind: LinkConfig
name: ` + nic + `
addresses:
  - address: ` + addr.String() + `/64
---
apiVersion: v1alpha1
kind: HostnameConfig
auto: off
hostname: ` + hostname
}

// talosconfig is the operator's, os:admin.
func talosconfig(t *testing.T, b *secrets.Bundle) *clientconfig.Config {
	t.Helper()
	tc, err := input(t, b).Talosconfig()
	if err != nil {
		t.Fatal(err)
	}
	return tc
}

// dial makes the real machinery client talk to an address of a fabric.
func dial(t *testing.T, f *Fabric, b *secrets.Bundle, addr netip.Addr) *client.Client {
	t.Helper()
	c, err := client.New(t.Context(), client.WithConfig(talosconfig(t, b)), client.WithEndpoints(addr.String()),
		client.WithGRPCDialOptions(fabricDialer(f)...))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

// dialMachine is dial for a machine of a rack.
func dialMachine(t *testing.T, m *Machine) *client.Client {
	t.Helper()
	return dial(t, m.opts.Fabric, newBundle(), address(m.MAC(), 0))
}

// dialAs is dial for one who may do less than an admin.
func dialAs(t *testing.T, f *Fabric, r role.Role, addr netip.Addr) *client.Client {
	t.Helper()
	pair, err := input(t, newBundle()).Options.SecretsBundle.GenerateTalosAPIClientCertificateWithTTL(role.MakeSet(r), time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	tc := talosconfig(t, newBundle())
	lesser := tc.Contexts[tc.Context]
	lesser.Crt, lesser.Key = b64(pair.Crt), b64(pair.Key)
	c, err := client.New(t.Context(), client.WithConfigContext(lesser), client.WithEndpoints(addr.String()),
		client.WithGRPCDialOptions(fabricDialer(f)...))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

// patience bounds every wait in these tests, of which none takes more than seconds on a
// busy host.
const patience = 30 * time.Second

// receive waits for a value, or for the end of a channel.
func receive[T any](t *testing.T, what string, from <-chan T) (v T) {
	t.Helper()
	select {
	case v = <-from:
	case <-time.After(patience):
		t.Fatalf("never came: %s", what)
	}
	return v
}

// eventually waits for a condition without a fixed sleep.
func eventually(t *testing.T, what string, cond func() bool) {
	t.Helper()
	deadline := time.Now().Add(patience)
	for !cond() {
		if time.Now().After(deadline) {
			t.Fatalf("never came: %s", what)
		}
		if err := sleep(t.Context(), time.Millisecond); err != nil {
			t.Fatal(err)
		}
	}
}

func fabricDialer(f *Fabric) []grpc.DialOption {
	// Without this a client waits a second after each refused connection.
	often := grpc.ConnectParams{MinConnectTimeout: 10 * time.Second, Backoff: grpcbackoff.Config{BaseDelay: time.Millisecond, Multiplier: 1.5, MaxDelay: 20 * time.Millisecond}}
	bounded := func(ctx context.Context, method string, req, reply any, c *grpc.ClientConn, call grpc.UnaryInvoker, opts ...grpc.CallOption) error {
		ctx, cancel := context.WithTimeout(ctx, patience)
		defer cancel()
		return call(ctx, method, req, reply, c, opts...)
	}
	return []grpc.DialOption{grpc.WithNoProxy(), grpc.WithConnectParams(often), grpc.WithChainUnaryInterceptor(bounded), grpc.WithContextDialer(func(ctx context.Context, address string) (net.Conn, error) {
		return f.DialContext(ctx, "tcp", address)
	})}
}

func b64(b []byte) string { return base64.StdEncoding.EncodeToString(b) }

// zstdBase64 is the encoding of talos.config.early.
func zstdBase64(t *testing.T, text string) string {
	t.Helper()
	zw, err := zstd.NewWriter(nil, zstd.WithEncoderConcurrency(1))
	if err != nil {
		t.Fatal(err)
	}
	defer zw.Close()
	return b64(zw.EncodeAll([]byte(text), nil))
}
