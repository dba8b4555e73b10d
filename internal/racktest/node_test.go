package racktest

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/cosi-project/runtime/pkg/safe"
	machineapi "github.com/siderolabs/talos/pkg/machinery/api/machine"
	"github.com/siderolabs/talos/pkg/machinery/client"
	"github.com/siderolabs/talos/pkg/machinery/config/machine"
	"github.com/siderolabs/talos/pkg/machinery/resources/etcd"
	"github.com/siderolabs/talos/pkg/machinery/resources/runtime"
	"github.com/siderolabs/talos/pkg/machinery/role"
	"google.golang.org/grpc/codes"
)

// runningNode is a node on a fabric.
type runningNode struct {
	*Node
	host   *Host
	cancel context.CancelFunc
	ended  func() error // waits for the end of Run and returns its error
}

// runNode runs a node until the test ends, or before.
func runNode(t *testing.T, f *Fabric, peers Peers, name string, addr string, config []byte, change func(*NodeOptions)) runningNode {
	t.Helper()
	host := f.NewHost(name)
	host.Claim(netip.MustParseAddr(addr))
	o := NodeOptions{
		Config: config, Hostname: name, Addresses: []netip.Addr{netip.MustParseAddr(addr)},
		Network: host, Peers: peers, Timing: FastTiming(),
	}
	if change != nil {
		change(&o)
	}
	n, err := NewNode(o)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() { defer close(done); err = n.Run(ctx) }()
	ended := func() error {
		t.Helper()
		receive(t, "the end of "+name, done)
		return err
	}
	t.Cleanup(func() {
		cancel()
		host.Close()
		_ = ended() // who cares for it has asked
	})
	return runningNode{n, host, cancel, ended}
}

// startNode is runNode for a node that ends when it loses its power only, with off or
// the test.
func startNode(t *testing.T, f *Fabric, peers Peers, name string, addr string, config []byte, change func(*NodeOptions)) (n *Node, off func()) {
	t.Helper()
	r := runNode(t, f, peers, name, addr, config, change)
	off = sync.OnceFunc(func() {
		r.cancel()
		r.host.Close()
		if err := r.ended(); err != nil {
			t.Errorf("%s: Run returned %v", name, err)
		}
	})
	t.Cleanup(off)
	return r.Node, off
}

// installedNode runs a control plane that has its config and an etcd's data on its disk,
// and waits until it is up.
func installedNode(t *testing.T, f *Fabric, config []byte) (n runningNode, disk *Disk, c *client.Client) {
	t.Helper()
	disk = &Disk{}
	disk.Install(config)
	disk.setEtcd("some cluster", 7)
	n = runNode(t, f, &Registry{}, "cp-1", endpointHost, config, func(o *NodeOptions) { o.Disk = disk })
	ready(t, n.Node)
	return n, disk, dial(t, f, newBundle(), netip.MustParseAddr(endpointHost))
}

// ready waits until nodes are up.
func ready(t *testing.T, nodes ...*Node) {
	t.Helper()
	for _, n := range nodes {
		receive(t, n.opts.Hostname+" up", n.Ready())
	}
}

func bootstrap(t *testing.T, c *client.Client) {
	t.Helper()
	eventually(t, "bootstrap", func() bool { return bootstrapCode(t.Context(), c) == codes.OK })
}

func bootstrapCode(ctx context.Context, c *client.Client) codes.Code {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	return client.StatusCode(c.Bootstrap(ctx, &machineapi.BootstrapRequest{}))
}

func etcdState(t *testing.T, c *client.Client) string {
	t.Helper()
	list, err := c.ServiceList(t.Context())
	if err != nil {
		return err.Error()
	}
	for _, s := range list.Messages[0].Services {
		if s.Id == "etcd" {
			return s.State
		}
	}
	return ""
}

func TestBootstrapCodes(t *testing.T) {
	config := machineConfig(t, newBundle(), machine.TypeControlPlane)
	addr := netip.MustParseAddr(endpointHost)
	for _, tc := range []struct {
		name   string
		change func(*NodeOptions)
		want   codes.Code
	}{
		{"cri is not up", func(o *NodeOptions) { o.Timing.CRI = time.Hour }, codes.FailedPrecondition},
		{"time is not in sync", func(o *NodeOptions) { o.Timing.TimeSync = time.Hour }, codes.FailedPrecondition},
		{"empty etcd", func(*NodeOptions) {}, codes.OK},
		{"etcd has data", func(o *NodeOptions) { o.Disk = &Disk{etcd: "some cluster"} }, codes.AlreadyExists},
	} {
		t.Run(tc.name, func(t *testing.T) {
			f := NewFabric()
			n, _ := startNode(t, f, &Registry{}, "cp-1", endpointHost, config, tc.change)
			c := dial(t, f, newBundle(), addr)
			eventually(t, "the API", func() bool { _, err := c.Version(t.Context()); return err == nil })
			if tc.want == codes.OK || tc.want == codes.AlreadyExists {
				eventually(t, "cri and time", func() bool {
					n.mu.Lock()
					defer n.mu.Unlock()
					return n.healthy("cri") && n.timeSynced
				})
			}
			if tc.name == "time is not in sync" {
				eventually(t, "cri", func() bool { return n.isHealthy("cri") })
			}
			if got := bootstrapCode(t.Context(), c); got != tc.want {
				t.Errorf("Bootstrap answered %v, want %v", got, tc.want)
			}
			accepted := 0
			if tc.want == codes.OK {
				accepted = 1
			}
			if n.Accepted() != accepted {
				t.Errorf("%d calls accepted, want %d", n.Accepted(), accepted)
			}
		})
	}
}

// Each accepted call starts the image pull anew; only when the calls stop does
// etcd come up, and then the answer changes.
func TestBootstrapRepeated(t *testing.T) {
	f := NewFabric()
	n, _ := startNode(t, f, &Registry{}, "cp-1", endpointHost, machineConfig(t, newBundle(), machine.TypeControlPlane), func(o *NodeOptions) {
		o.Timing.EtcdPull = 400 * time.Millisecond
	})
	c := dial(t, f, newBundle(), netip.MustParseAddr(endpointHost))
	bootstrap(t, c)
	for range 5 {
		if got := bootstrapCode(t.Context(), c); got != codes.OK {
			t.Fatalf("a repeated call answered %v while the data directory is empty", got)
		}
	}
	if n.Accepted() != 6 {
		t.Errorf("%d calls accepted, want 6", n.Accepted())
	}
	ready(t, n)
	if got := bootstrapCode(t.Context(), c); got != codes.AlreadyExists {
		t.Errorf("after etcd came up Bootstrap answered %v", got)
	}
	if s := etcdState(t, c); s != "Running" {
		t.Errorf("etcd is %s", s)
	}
	ms, err := safe.StateGetByID[*runtime.MachineStatus](t.Context(), c.COSI, runtime.MachineStatusID)
	if err != nil {
		t.Fatal(err)
	}
	if ms.TypedSpec().Stage != runtime.MachineStageRunning || !ms.TypedSpec().Status.Ready {
		t.Errorf("machine status is %+v", ms.TypedSpec())
	}
	if _, err := safe.StateGetByID[*etcd.Member](t.Context(), c.COSI, etcd.LocalMemberID); err != nil {
		t.Errorf("no etcd member resource: %v", err)
	}
}

func TestMemberListHangsBeforeBootstrap(t *testing.T) {
	f := NewFabric()
	startNode(t, f, &Registry{}, "cp-1", endpointHost, machineConfig(t, newBundle(), machine.TypeControlPlane), nil)
	c := dial(t, f, newBundle(), netip.MustParseAddr(endpointHost))
	eventually(t, "etcd waiting", func() bool { return etcdState(t, c) == "Preparing" })
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if _, err := c.EtcdMemberList(ctx, &machineapi.EtcdMemberListRequest{}); client.StatusCode(err) != codes.DeadlineExceeded {
		t.Fatalf("member list before bootstrap: %v, want the caller's own deadline", err)
	}
	ms, err := safe.StateGetByID[*runtime.MachineStatus](t.Context(), c.COSI, runtime.MachineStatusID)
	if err != nil {
		t.Fatal(err)
	}
	if ms.TypedSpec().Stage != runtime.MachineStageBooting || ms.TypedSpec().Status.Ready {
		t.Errorf("machine status is %+v", ms.TypedSpec())
	}
	bootstrap(t, c)
	list, err := c.EtcdMemberList(t.Context(), &machineapi.EtcdMemberListRequest{})
	if err != nil {
		t.Fatal(err)
	}
	if m := list.Messages[0].Members; len(m) != 1 || m[0].Hostname != "cp-1" {
		t.Errorf("members are %v", m)
	}
}

func TestForeignAndLesserCertificates(t *testing.T) {
	f := NewFabric()
	n, _ := startNode(t, f, &Registry{}, "cp-1", endpointHost, machineConfig(t, newBundle(), machine.TypeControlPlane), nil)
	addr := netip.MustParseAddr(endpointHost)
	ours := dial(t, f, newBundle(), addr)
	eventually(t, "cri", func() bool { return n.isHealthy("cri") && n.isHealthy("apid") })

	foreign := dial(t, f, foreignBundle(), addr)
	if err := foreign.Bootstrap(t.Context(), &machineapi.BootstrapRequest{}); err == nil || client.StatusCode(err) == codes.OK {
		t.Fatal("a certificate of another cluster's CA was accepted")
	}
	if n.Accepted() != 0 {
		t.Fatal("a foreign caller bootstrapped")
	}

	rc := dialAs(t, f, role.Reader, addr)
	if _, err := rc.Version(t.Context()); err != nil {
		t.Errorf("os:reader may not ask for the version: %v", err)
	}
	if got := bootstrapCode(t.Context(), rc); got != codes.PermissionDenied {
		t.Errorf("os:reader calling Bootstrap got %v", got)
	}
	if got := bootstrapCode(t.Context(), ours); got != codes.OK && got != codes.FailedPrecondition {
		t.Errorf("os:admin calling Bootstrap got %v", got)
	}
}

func TestWorkerNeedsTrustd(t *testing.T) {
	f := NewFabric()
	peers := &Registry{}
	worker := netip.MustParseAddr("fd00:1ab::21")
	n, _ := startNode(t, f, peers, "w-1", worker.String(), machineConfig(t, newBundle(), machine.TypeWorker), nil)
	eventually(t, "cri", func() bool { return n.isHealthy("cri") })
	var refused *net.OpError
	if _, err := f.DialContext(t.Context(), "tcp", "[fd00:1ab::21]:50000"); !errors.As(err, &refused) {
		t.Fatalf("a worker without a control plane opened its API: %v", err)
	}
	startNode(t, f, peers, "cp-1", endpointHost, machineConfig(t, newBundle(), machine.TypeControlPlane), nil)
	c := dial(t, f, newBundle(), worker)
	eventually(t, "the worker's API", func() bool { _, err := c.Version(t.Context()); return err == nil })
	if got := bootstrapCode(t.Context(), c); got != codes.Unimplemented {
		t.Errorf("Bootstrap of a worker answered %v", got)
	}
	cp := dial(t, f, newBundle(), netip.MustParseAddr(endpointHost))
	bootstrap(t, cp)
	ready(t, n)
}

// A worker whose machine token is another cluster's gets no certificate.
func TestTrustdRefusesWrongToken(t *testing.T) {
	f := NewFabric()
	peers := &Registry{}
	cp, _ := startNode(t, f, peers, "cp-1", endpointHost, machineConfig(t, newBundle(), machine.TypeControlPlane), nil)
	eventually(t, "trustd", func() bool { return cp.isHealthy("trustd") })
	text := machineConfig(t, newBundle(), machine.TypeWorker, "machine:\n  token: aaaaaa.bbbbbbbbbbbbbbbb\n")
	n, err := NewNode(NodeOptions{Config: text, Hostname: "w-1", Addresses: []netip.Addr{netip.MustParseAddr("fd00:1ab::21")}, Network: f.NewHost("w-1"), Peers: peers, Timing: FastTiming()})
	if err != nil {
		t.Fatal(err)
	}
	pool, err := n.caPool()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := n.askTrustd(t.Context(), endpointHost, pool, []byte("csr")); client.StatusCode(err) != codes.Unauthenticated {
		t.Errorf("trustd answered %v to a wrong token", err)
	}
}

func TestControlPlanesJoin(t *testing.T) {
	f := NewFabric()
	peers := &Registry{}
	config := machineConfig(t, newBundle(), machine.TypeControlPlane)
	var nodes []*Node
	for i, a := range []string{endpointHost, "fd00:1ab::12", "fd00:1ab::13"} {
		n, _ := startNode(t, f, peers, []string{"cp-1", "cp-2", "cp-3"}[i], a, config, nil)
		nodes = append(nodes, n)
	}
	c := dial(t, f, newBundle(), netip.MustParseAddr(endpointHost))
	bootstrap(t, c)
	ready(t, nodes...)
	for _, n := range nodes[1:] {
		if n.Accepted() != 0 || n.opts.Disk.Etcd() != nodes[0].opts.Disk.Etcd() {
			t.Errorf("%s did not join", n.opts.Hostname)
		}
	}
	// The one thing Talos does not guard: a blank control plane that cannot see
	// the others forms a second cluster.
	lone := netip.MustParseAddr("fd00:1ab::14")
	n, _ := startNode(t, f, &Registry{}, "cp-4", lone.String(), config, nil)
	c4 := dial(t, f, newBundle(), lone)
	bootstrap(t, c4)
	ready(t, n)
	if n.opts.Disk.Etcd() == nodes[0].opts.Disk.Etcd() {
		t.Error("the second cluster has the first one's etcd")
	}
}

// Nodes that share no memory find each other through the cluster's endpoint.
func TestEndpointPeers(t *testing.T) {
	f := NewFabric()
	config := machineConfig(t, newBundle(), machine.TypeControlPlane)
	first, _ := startNode(t, f, nil, "cp-1", endpointHost, config, func(o *NodeOptions) { o.Peers = &EndpointPeers{Network: o.Network} })
	second, _ := startNode(t, f, nil, "cp-2", "fd00:1ab::12", config, func(o *NodeOptions) { o.Peers = &EndpointPeers{Network: o.Network} })
	worker, _ := startNode(t, f, nil, "w-1", "fd00:1ab::21", machineConfig(t, newBundle(), machine.TypeWorker), func(o *NodeOptions) { o.Peers = &EndpointPeers{Network: o.Network} })
	c := dial(t, f, newBundle(), netip.MustParseAddr(endpointHost))
	bootstrap(t, c)
	ready(t, first, second, worker)
	if second.Accepted() != 0 || second.opts.Disk.Etcd() != first.opts.Disk.Etcd() {
		t.Error("cp-2 did not join")
	}
}

// A node that loses power breaks its connections, and comes back with its etcd.
func TestPowerLoss(t *testing.T) {
	f := NewFabric()
	disk := &Disk{}
	config := machineConfig(t, newBundle(), machine.TypeControlPlane)
	n, off := startNode(t, f, &Registry{}, "cp-1", endpointHost, config, func(o *NodeOptions) { o.Disk = disk })
	addr := netip.MustParseAddr(endpointHost)
	c := dial(t, f, newBundle(), addr)
	bootstrap(t, c)
	ready(t, n)
	off()
	if _, err := c.Version(t.Context()); client.StatusCode(err) != codes.Unavailable {
		t.Errorf("a node without power answered %v", err)
	}
	n, _ = startNode(t, f, &Registry{}, "cp-1", endpointHost, config, func(o *NodeOptions) { o.Disk = disk })
	ready(t, n)
	if n.Accepted() != 0 {
		t.Error("it was bootstrapped again")
	}
}

func TestRefusedConfigs(t *testing.T) {
	good := string(machineConfig(t, newBundle(), machine.TypeControlPlane))
	for _, tc := range []struct{ name, config, want string }{
		{"empty", "", "config not found"},
		{"unknown key", strings.Replace(good, "machine:\n", "machine:\n    nosuchfield: x\n", 1), "unknown keys found during decoding"},
		{"no install disk", strings.Replace(good, "        disk: /dev/sda\n", "", 1), "either install disk or diskSelector should be defined"},
		{"Kubernetes too new", strings.ReplaceAll(good, "v"+"1.36.", "v"+"1.99."), "too new to be used with Talos"},
		{"diskSelector matches nothing", strings.Replace(good, "disk: /dev/sda", "diskSelector:\n            size: '>= 1TB'", 1), "no disks matched the expression"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			_, err := NewNode(NodeOptions{Config: []byte(tc.config), Network: NewFabric().NewHost("x"), Peers: &Registry{}, Addresses: []netip.Addr{netip.MustParseAddr("fd00::1")}})
			if err == nil || !strings.Contains(err.Error(), tc.want) {
				t.Errorf("got %v, want %q", err, tc.want)
			}
		})
	}
}
