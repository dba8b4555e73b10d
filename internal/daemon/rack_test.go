package daemon

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/rs/zerolog"
	"go.uber.org/goleak"

	"github.com/provisiond/provisiond/internal/boltstore"
	"github.com/provisiond/provisiond/internal/cli"
	"github.com/provisiond/provisiond/internal/images"
	"github.com/provisiond/provisiond/internal/inventory"
	"github.com/provisiond/provisiond/internal/inventory/storetest"
	"github.com/provisiond/provisiond/internal/racktest"
	"github.com/provisiond/provisiond/internal/talos"
)

// serveVariable makes this test binary be the daemon of a config file, so that
// it can be killed as a process is: without a chance to tidy up.
const serveVariable = "PROVISIOND_TEST_SERVE"

func TestMain(m *testing.M) {
	if path := os.Getenv(serveVariable); path != "" {
		if err := serveFile(path); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	if os.Getenv(commandVariable) != "" {
		os.Exit(cli.Run(context.Background(), cli.New("v0"), os.Args[1:], os.Stdin, os.Stdout, os.Stderr))
	}
	if os.Getenv(herdVariable) != "" {
		if err := herdMain(); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	if os.Getenv(ukiHerdVariable) != "" {
		if err := ukiHerdMain(); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	goleak.VerifyTestMain(m)
}

func serveFile(path string) error {
	cfg, err := ReadConfig(path)
	if err != nil {
		return err
	}
	d, err := New(context.Background(), Options{Config: cfg, Log: zerolog.New(os.Stderr).With().Timestamp().Logger()})
	if err != nil {
		return err
	}
	return d.Run(context.Background())
}

const (
	planes  = 3
	workers = 2
	within  = 2 * time.Minute // for a rack; nothing is asserted about time
)

// lab is one rack's daemon: a folder, its config and the proxy to the machines.
type lab struct {
	dir   string
	cfg   *Config
	proxy net.Listener

	daemon *Daemon // the last one that start ran
}

// bundle is made once: its RSA key takes seconds under the race detector.
var bundle = sync.OnceValues(func() ([]byte, error) { return talos.NewSecrets("v1.13.6") })

func newLab(t *testing.T) *lab {
	t.Helper()
	proxy, err := net.Listen("tcp6", "[::1]:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = proxy.Close() })
	l := &lab{dir: t.TempDir(), proxy: proxy}
	for _, arch := range []string{racktest.AMD64, racktest.ARM64} {
		if err := os.WriteFile(filepath.Join(l.dir, arch+".efi"), racktest.Loader(arch), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	// Fixed ports, so that a machine finds the daemon again after a restart.
	text := fmt.Sprintf(`data: %[1]s/data
key: %[1]s/key
address: ::1
ports: {dhcpv6: %[3]d, tftp: %[4]d, http: %[5]d, https: %[6]d, events: %[7]d, kernelLog: %[8]d}
api: {socket: %[1]s/sock, listen: ""}
loaders: {amd64/snponly.efi: %[1]s/amd64.efi, arm64/snponly.efi: %[1]s/arm64.efi}
talos: {proxy: "%[2]s"}
subnets:
  - {name: rack1, prefix: "2001:db8:1::/64", machines: "2001:db8:1::100-2001:db8:1::1ff", pool: "2001:db8:1::f00-2001:db8:1::fff", strangers: true, gateway: "fe80::1", dns: ["2001:db8:1::53"], ntp: ["2001:db8:1::123"]}
`, append([]any{l.dir, proxy.Addr()}, freePorts(t, "udp6", "udp6", "tcp6", "tcp6", "tcp6", "tcp6")...)...)
	if err := os.WriteFile(l.file(), []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	if l.cfg, err = ReadConfig(l.file()); err != nil {
		t.Fatal(err)
	}
	l.register(t, false)
	return l
}

func createLabCluster(ctx context.Context, k *inventory.Keeper, imported bool) error {
	secrets, err := bundle()
	if err != nil {
		return err
	}
	_, kubernetes, pods, services := talos.Defaults()
	_, err = k.CreateCluster(ctx, &inventory.Cluster{
		Name: "lab", Endpoint: "https://[2001:db8:1::100]:6443", TalosVersion: "v1.13.6", KubernetesVersion: kubernetes,
		PodSubnets: pods, ServiceSubnets: services, Install: inventory.InstallTarget{Disk: "/dev/vda"}, Imported: imported,
	}, secrets)
	return err
}

func (l *lab) file() string { return filepath.Join(l.dir, "provisiond.yaml") }

// freePorts are ports that nobody listens on, no two of one network alike.
func freePorts(t *testing.T, networks ...string) (ports []any) {
	t.Helper()
	for _, network := range networks {
		if network == "udp6" {
			c, err := net.ListenPacket(network, "[::1]:0")
			if err != nil {
				t.Fatal(err)
			}
			defer c.Close() // once all are chosen
			ports = append(ports, portOf(c.LocalAddr()))
			continue
		}
		l, err := net.Listen(network, "[::1]:0")
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
		ports = append(ports, portOf(l.Addr()))
	}
	return ports
}

// register fills an empty database as an operator would. imported says that the
// cluster's secrets came from outside.
func (l *lab) register(t *testing.T, imported bool) {
	t.Helper()
	check := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	store, err := openDatabase(t.Context(), l.cfg, boltstore.Options{NoSync: true}, zerolog.Nop())
	check(err)
	defer func() { check(store.Close()) }()
	k, err := inventory.NewKeeper(t.Context(), store, inventory.KeeperConfig{Subnets: l.cfg.Subnets})
	check(err)
	blobs, err := images.Open(filepath.Join(l.cfg.Data, "images"))
	check(err)
	initramfs, err := blobs.Put(t.Context(), bytes.NewReader(racktest.Initramfs()), "", 1<<30)
	check(err)
	for _, arch := range []inventory.Arch{inventory.AMD64, inventory.ARM64} {
		kernel, err := blobs.Put(t.Context(), bytes.NewReader(racktest.Kernel(string(arch))), "", 1<<30)
		check(err)
		check(k.PutImage(t.Context(), &inventory.Image{Version: "v1.13.6", Arch: arch, Kernel: kernel, Initramfs: initramfs}))
	}
	check(createLabCluster(t.Context(), k, imported))
	for i := range planes + workers {
		m := &inventory.Machine{Name: fmt.Sprintf("cp-%d", i+1), Cluster: "lab", Role: inventory.ControlPlane}
		if i >= planes {
			m.Name, m.Role = fmt.Sprintf("w-%d", i-planes+1), inventory.Worker
		}
		m.MACs = []inventory.MAC{inventory.MAC(fmt.Sprintf("52:54:00:00:00:%02x", i+1))}
		m.Address = netip.MustParseAddr(fmt.Sprintf("2001:db8:1::1%02x", i))
		_, err := k.PutMachine(t.Context(), m, 0)
		check(err)
	}
}

// rack makes the machines and runs the proxy to them until the test ends.
func (l *lab) rack(t *testing.T, o racktest.RackOptions) *racktest.Rack {
	t.Helper()
	o.ControlPlanes, o.Workers, o.OwnStack = planes, workers, true
	if o.Timing == (racktest.Timing{}) {
		o.Timing = racktest.FastTiming()
	}
	if o.Net == nil {
		o.Net = &racktest.Net{}
	}
	o.Net.Server = netip.AddrPortFrom(l.cfg.Address, l.cfg.DHCPv6Port)
	o.Net.Link, o.Net.LinkLayer = netip.MustParseAddr("2001:db8:1::1"), true
	r, err := racktest.NewRack(o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(r.Close)
	return r
}

// ended waits for what was told to end, which must be no error.
func ended(t *testing.T, what string, done <-chan error) {
	t.Helper()
	select {
	case err := <-done:
		if err != nil {
			t.Errorf("%s ended with %v", what, err)
		}
	case <-time.After(within):
		t.Errorf("%s does not end", what)
	}
}

// proxied serves the way to the machines' APIs.
func proxied(t *testing.T, f func(context.Context) error) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- f(ctx) }()
	t.Cleanup(func() {
		cancel()
		ended(t, "the proxy", done)
	})
}

// start runs a daemon in this process until stop is called or the test ends.
func (l *lab) start(t *testing.T, store inventory.Store) (k *inventory.Keeper, stop func()) {
	t.Helper()
	log := zerolog.New(zerolog.NewTestWriter(t)).Level(zerolog.WarnLevel)
	d, err := New(t.Context(), Options{Config: l.cfg, Log: log, Store: store})
	if err != nil {
		t.Fatal(err)
	}
	l.daemon = d
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- d.Run(ctx) }()
	stop = sync.OnceFunc(func() {
		cancel()
		ended(t, "the daemon", done)
	})
	t.Cleanup(stop)
	return d.keeper, stop
}

// verify waits until the daemon itself knows that all is well, and checks that
// the rack agrees.
func verify(t *testing.T, k *inventory.Keeper, r *racktest.Rack) {
	t.Helper()
	awaitRack(t, k, r)
	if err := r.Check(); err != nil {
		t.Error(err)
	}
}

// awaitRack waits until nothing is left to do for any machine.
func awaitRack(t *testing.T, k *inventory.Keeper, r *racktest.Rack) {
	t.Helper()
	wake, cancel := k.Watch()
	defer cancel()
	deadline := time.NewTimer(within)
	defer deadline.Stop()
	for {
		views, err := k.Machines(t.Context(), "", 0)
		if err != nil {
			t.Fatal(err)
		}
		_, b, err := k.Cluster(t.Context(), "lab")
		if err != nil {
			t.Fatal(err)
		}
		waiting := ""
		for _, v := range views {
			if s := inventory.DefaultPatience().PhaseOf(v, time.Now()); s.Phase != inventory.PhaseReady {
				waiting = fmt.Sprintf("%s is %s (%s)", v.Machine.Name, s.Phase, s.Reason)
			} else if p := inventory.PlanBoot(v); p.Action != inventory.Disk {
				waiting = fmt.Sprintf("%s would %s (%s)", v.Machine.Name, p.Action, p.Reason)
			} else if o := v.Facts.Reimage; o.Outstanding() {
				waiting = fmt.Sprintf("%s is to be reimaged (%s)", v.Machine.Name, o.Reason)
			}
		}
		if !b.Done() {
			waiting = "bootstrap: " + b.Reason
		}
		if waiting == "" {
			break
		}
		select {
		case <-wake:
		case <-deadline.C:
			var report bytes.Buffer
			_ = r.Report(&report)
			t.Fatalf("the daemon still waits: %s\n%s", waiting, report.String())
		}
	}
}

func runRack(t *testing.T, r *racktest.Rack) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), within)
	t.Cleanup(cancel) // the electricity
	if err := r.Run(ctx); err != nil {
		var report bytes.Buffer
		_ = r.Report(&report)
		t.Fatalf("%v\n%s", err, report.String())
	}
}

func (l *lab) open(t *testing.T) inventory.Store {
	t.Helper()
	s, err := openDatabase(t.Context(), l.cfg, boltstore.Options{LockWait: 10 * time.Second}, zerolog.Nop())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.Close() })
	return s
}

// TestRack is the whole product in one process: five machines from power-on to
// a cluster, over real sockets, with one bootstrap.
func TestRack(t *testing.T) {
	l := newLab(t)
	store := l.open(t)
	r := l.rack(t, racktest.RackOptions{})
	proxied(t, func(ctx context.Context) error { return r.Fabric.ServeProxy(ctx, l.proxy) })
	k, _ := l.start(t, store)
	runRack(t, r)
	verify(t, k, r)
	for _, m := range r.Machines {
		if v, err := k.Machine(t.Context(), m.Name()); err != nil || v.Facts.SecureBoot != inventory.Off {
			t.Errorf("Secure Boot of %s is %q, %v", m.Name(), v.Facts.SecureBoot, err)
		}
	}
	l.checkLogs(t, k)
	l.checkReplay(t, k)
}

// TestEveryFirmware boots racks of each firmware, architecture and generation
// of iPXE. Each machine fetches every URL it is told; Check fails for one that
// never worked.
func TestEveryFirmware(t *testing.T) {
	for _, arch := range []string{racktest.AMD64, racktest.ARM64} {
		for _, firmware := range []racktest.Firmware{racktest.PXE, racktest.HTTP} {
			for _, ipxe := range []racktest.IPXE{racktest.IPXE2019, racktest.IPXE20} {
				t.Run(fmt.Sprintf("%s/%s/iPXE %s", arch, firmware, ipxe), func(t *testing.T) {
					l := newLab(t)
					r := l.rack(t, racktest.RackOptions{Arch: arch, Firmware: firmware, IPXE: ipxe})
					proxied(t, func(ctx context.Context) error { return r.Fabric.ServeProxy(ctx, l.proxy) })
					k, _ := l.start(t, l.open(t))
					runRack(t, r)
					verify(t, k, r)
					for _, m := range r.Machines {
						if urls := m.URLs(); len(urls) < 4 {
							t.Errorf("%s was told only %v", m.Name(), urls)
						}
					}
				})
			}
		}
	}
}

// TestRackOnABadNetwork loses, repeats and reorders datagrams.
func TestRackOnABadNetwork(t *testing.T) {
	for name, faults := range map[string]racktest.Faults{
		"loss":        {Loss: 0.2, Seed: 1},
		"duplication": {Duplicate: 0.5, Seed: 2},
		"reordering":  {Reorder: 0.3, Seed: 3},
		"all":         {Loss: 0.1, Duplicate: 0.2, Reorder: 0.2, Seed: 4},
	} {
		t.Run(name, func(t *testing.T) {
			l := newLab(t)
			store := l.open(t)
			r := l.rack(t, racktest.RackOptions{Net: &racktest.Net{Faults: faults}})
			proxied(t, func(ctx context.Context) error { return r.Fabric.ServeProxy(ctx, l.proxy) })
			k, _ := l.start(t, store)
			runRack(t, r)
			verify(t, k, r)
		})
	}
}

// TestPowerCutAtEachStep switches the first machine off at each step of its
// first boot, and on again.
func TestPowerCutAtEachStep(t *testing.T) {
	for _, step := range racktest.Steps() {
		t.Run(step.String(), func(t *testing.T) {
			l := newLab(t)
			store := l.open(t)
			var cut sync.Once
			r := l.rack(t, racktest.RackOptions{OnStep: func(m *racktest.Machine, s racktest.Step) (err error) {
				if m.Name() == "cp-1" && s == step {
					cut.Do(func() { err = errors.New("somebody pulled the plug") })
				}
				return err
			}})
			proxied(t, func(ctx context.Context) error { return r.Fabric.ServeProxy(ctx, l.proxy) })
			k, _ := l.start(t, store)
			runRack(t, r)
			verify(t, k, r)
		})
	}
}

// TestKilledAtEachStep kills the daemon's process (SIGKILL) when the first
// machine gets to a step, and starts another one on what is on the disk.
func TestKilledAtEachStep(t *testing.T) {
	for _, step := range racktest.Steps() {
		t.Run(step.String(), func(t *testing.T) {
			l := newLab(t)
			var mu sync.Mutex
			daemon := l.spawn(t)
			killed := false
			r := l.rack(t, racktest.RackOptions{OnStep: func(_ *racktest.Machine, s racktest.Step) error {
				mu.Lock()
				defer mu.Unlock()
				if s == step && !killed {
					killed = true
					daemon.kill(t)
					daemon = l.spawn(t)
				}
				return nil
			}})
			proxied(t, func(ctx context.Context) error { return r.Fabric.ServeProxy(ctx, l.proxy) })
			runRack(t, r)
			mu.Lock()
			daemon.kill(t)
			if !killed {
				t.Errorf("no machine came to step %s", step)
			}
			mu.Unlock()
			k, _ := l.start(t, l.open(t))
			verify(t, k, r)
		})
	}
}

// process is a daemon of its own.
type process struct {
	cmd  *exec.Cmd
	log  *lockedBuffer
	once sync.Once
}

// spawn starts a daemon, by a command that is given to run it, if there is one.
func (l *lab) spawn(t *testing.T, by ...string) *process {
	t.Helper()
	command := append(slices.Clone(by), os.Args[0])
	p := &process{cmd: exec.Command(command[0], command[1:]...), log: &lockedBuffer{}}
	p.cmd.Env = append(os.Environ(), serveVariable+"="+l.file())
	p.cmd.Stderr = p.log
	if err := p.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		p.kill(t)
		if t.Failed() {
			t.Logf("log of a daemon:\n%s", p.log)
		}
	})
	return p
}

func (p *process) kill(t *testing.T) {
	t.Helper()
	p.once.Do(func() {
		if err := p.cmd.Process.Kill(); err != nil {
			t.Errorf("killing the daemon: %v\n%s", err, p.log)
		}
		_ = p.cmd.Wait() // says that it was killed
	})
}

// TestAmbiguousCommits makes a third of all commits fail, half of them although
// they happened.
func TestAmbiguousCommits(t *testing.T) {
	l := newLab(t)
	store := storetest.NewFaulty(l.open(t))
	rng := rand.New(rand.NewPCG(9, 9))
	var mu sync.Mutex
	store.Each(func() storetest.Fault {
		mu.Lock()
		defer mu.Unlock()
		switch rng.IntN(6) {
		case 0:
			return storetest.LostButPersisted
		case 1:
			return storetest.LostNotPersisted
		}
		return storetest.None
	})
	r := l.rack(t, racktest.RackOptions{})
	proxied(t, func(ctx context.Context) error { return r.Fabric.ServeProxy(ctx, l.proxy) })
	k, _ := l.start(t, store)
	runRack(t, r)
	verify(t, k, r)
}

// TestAmbiguousBootstrap loses the answer to the one Bootstrap call that was
// accepted.
func TestAmbiguousBootstrap(t *testing.T) {
	l := newLab(t)
	store := l.open(t)
	r := l.rack(t, racktest.RackOptions{})
	inner, err := net.Listen("tcp6", "[::1]:0")
	if err != nil {
		t.Fatal(err)
	}
	proxied(t, func(ctx context.Context) error { return r.Fabric.ServeProxy(ctx, inner) })
	lossy := &lossyProxy{to: inner.Addr().String(), open: map[net.Conn]struct{}{}, lose: func() bool {
		for _, m := range r.Machines {
			if m.Accepted() > 0 {
				return true
			}
		}
		return false
	}}
	proxied(t, func(ctx context.Context) error { return lossy.serve(ctx, l.proxy) })
	k, _ := l.start(t, store)
	runRack(t, r)
	verify(t, k, r)
	if !lossy.lost() {
		t.Error("no answer was lost")
	}
	_, b, err := k.Cluster(t.Context(), "lab")
	if err != nil || b.Called() || b.Attempts != 1 {
		t.Errorf("bootstrap stands at %+v, %v; want one attempt whose answer was never seen", b, err)
	}
}

// lossyProxy passes connections on. Once lose says so it cuts all that are open,
// before another byte of an answer passes; later ones are left alone.
type lossyProxy struct {
	to   string
	lose func() bool

	mu   sync.Mutex
	did  bool
	open map[net.Conn]struct{}
}

// cuts reports whether the answer that was just read is lost.
func (p *lossyProxy) cuts() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.did || !p.lose() {
		return false
	}
	p.did = true
	for c := range p.open {
		_ = c.Close()
	}
	return true
}

func (p *lossyProxy) lost() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.did
}

func (p *lossyProxy) serve(ctx context.Context, l net.Listener) error {
	defer context.AfterFunc(ctx, func() { _ = l.Close() })()
	var wg sync.WaitGroup
	defer wg.Wait()
	for {
		client, err := l.Accept()
		if err != nil {
			return nil
		}
		wg.Go(func() {
			defer client.Close()
			server, err := net.Dial("tcp6", p.to)
			if err != nil {
				return
			}
			defer server.Close()
			p.mu.Lock()
			p.open[client] = struct{}{}
			p.mu.Unlock()
			defer context.AfterFunc(ctx, func() { _ = client.Close(); _ = server.Close() })()
			wg.Go(func() {
				_, _ = io.Copy(server, client)
				_ = server.Close()
			})
			buf := make([]byte, 32<<10)
			for {
				n, err := server.Read(buf)
				if err != nil {
					return
				}
				if p.cuts() {
					return
				}
				if _, err := client.Write(buf[:n]); err != nil {
					return
				}
			}
		})
	}
}

// TestLostDatabase: the cluster runs, the database is gone, an operator imports
// the secrets and registers the machines again. Nothing is installed or
// bootstrapped a second time.
func TestLostDatabase(t *testing.T) {
	l := newLab(t)
	r := l.rack(t, racktest.RackOptions{})
	proxied(t, func(ctx context.Context) error { return r.Fabric.ServeProxy(ctx, l.proxy) })
	first := l.open(t)
	k, stop := l.start(t, first)
	runRack(t, r)
	verify(t, k, r)
	stop()
	if err := first.Close(); err != nil {
		t.Fatal(err)
	}
	if err := os.RemoveAll(l.cfg.Data); err != nil {
		t.Fatal(err)
	}
	l.register(t, true)
	k, _ = l.start(t, l.open(t))
	verify(t, k, r)
	_, b, err := k.Cluster(t.Context(), "lab")
	if err != nil || b.Attempts != 0 || b.Claimed() {
		t.Errorf("bootstrap of a running cluster: %+v, %v", b, err)
	}
}
