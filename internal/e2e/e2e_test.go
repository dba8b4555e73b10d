//go:build e2e

package e2e

import (
	"context"
	"fmt"
	"net"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/provisiond/provisiond/api"
)

const (
	controlPlaneAddr = "fd00:7a10:e2e::11"
	workerAddr       = "fd00:7a10:e2e::12"
	farAddr          = "fd00:7a10:e2f::13"
	talosVersion     = "v1.13.6" // what the test images pass for
	budget           = 20 * time.Minute
)

var (
	controlPlaneMAC = net.HardwareAddr{0x52, 0x54, 0, 0xe2, 0, 0x11}
	workerMAC       = net.HardwareAddr{0x52, 0x54, 0, 0xe2, 0, 0x12}
	farMAC          = net.HardwareAddr{0x52, 0x54, 0, 0xe2, 0, 0x13}
	strangerMAC     = net.HardwareAddr{0x52, 0x54, 0, 0xe2, 0, 0x99}
)

// TestFirmware boots a rack of virtual machines with real firmware.
func TestFirmware(t *testing.T) {
	r := newRack(t, pc, budget)
	ctx, clock, l, d := r.ctx, r.clock, r.lab, r.daemon
	r.addImage(t)
	r.createCluster(t, controlPlaneAddr, testKernelArgs)

	cp := newVM(t, l, "cp-1", pc, controlPlaneMAC, pxe6)
	worker := newVM(t, l, "w-1", pc, workerMAC, http6)
	stranger := newVM(t, l, "stranger", pc, strangerMAC, pxe6)
	r.addMachine(t, cp, "controlplane", controlPlaneAddr)
	r.addMachine(t, worker, "worker", workerAddr)
	clock.lap("cluster and machines registered")

	cp.powerOn(t)
	worker.powerOn(t)
	install(ctx, t, clock, d, cp)
	install(ctx, t, clock, d, worker)
	reachReady(ctx, t, clock, cp)
	reachReady(ctx, t, clock, worker)
	checkInstalled(ctx, t, d, cp, "pxe")
	checkInstalled(ctx, t, d, worker, "http")
	bootstrapped := checkBootstrap(ctx, t, d, cp, worker)
	clock.lap("daemon sees the cluster ready")

	// The same behind a relay, on a segment that the daemon is not on.
	worker.powerOff()
	far := newVM(t, newRouter(t, l), "w-2", pc, farMAC, pxe6)
	r.addMachine(t, far, "worker", farAddr, "--approval", "required")
	far.powerOn(t)
	install(ctx, t, clock, d, far)
	reachReady(ctx, t, clock, far)
	checkInstalled(ctx, t, d, far, "pxe")
	if by := ask[api.Machine](t, d, "machine", "show", "w-2").Facts.Identified; by == nil || by.Relay != routerAddr.String() || by.Port == "" {
		t.Errorf("w-2 was known by %+v, want the relay %s and its interface", by, routerAddr)
	}
	far.powerOff()

	cp.powerOff()
	stranger.powerOn(t)
	cp.powerOn(t)
	powerCycled(ctx, t, clock, d, cp, "pxe")
	if again := checkBootstrap(ctx, t, d, cp, worker); !reflect.DeepEqual(again, bootstrapped) {
		t.Errorf("the bootstrap changed by a power cycle: %+v, was %+v", again, bootstrapped)
	}
	discovered(ctx, t, d, stranger)
	clock.lap("stranger held")
	stranger.powerOff()

	// A running worker becomes a control plane; its API is asked, there is no BMC. One
	// that is off is wiped by its boot script.
	worker.powerOn(t)
	mustAwait(ctx, t, worker, "GUEST: booted from disk")
	reachReady(ctx, t, clock, worker)
	awaitPhase(ctx, t, d, "w-1", "ready")
	d.run(t, "machine", "reimage", "w-1", "--role", "controlplane")
	d.run(t, "machine", "reimage", "w-1")
	reimaged(ctx, t, clock, d, worker, "a reset", "api")
	d.run(t, "machine", "reimage", "w-2")
	far.powerOn(t)
	reimaged(ctx, t, clock, d, far, "its kernel line", "netboot")
	for v, want := range map[*vm][2]uint32{cp: {1, 0}, worker: {2, 1}, far: {2, 1}} {
		if installs, wipes := v.counts(t); installs != want[0] || wipes != want[1] {
			t.Errorf("the disk of %s was installed %d times and wiped %d times, want %v", v.name, installs, wipes, want)
		}
	}
	if again := checkBootstrap(ctx, t, d, cp, worker); !reflect.DeepEqual(again, bootstrapped) {
		t.Errorf("the bootstrap changed by a reimage: %+v, was %+v", again, bootstrapped)
	}
	checkOffers(t, r.stopCapture())
	checkLog(t, l.out)
}

// install follows a machine to its own address, its own config and its disk.
func install(ctx context.Context, t *testing.T, clock *stopwatch, d *daemon, v *vm) {
	t.Helper()
	if got := mustAwait(ctx, t, v, "GUEST: address "); got != v.address.String()+"/64" {
		t.Errorf("%s: address %s, want %s/64", v.name, got, v.address)
	}
	clock.lap(v.name + ": kernel up")
	if v.name == "w-2" {
		approve(ctx, t, d, v)
	}
	sum := mustAwait(ctx, t, v, "GUEST: config ok sha256=")
	if served := ask[api.Machine](t, d, "machine", "show", v.name).Facts.ConfigHash; sum != served {
		t.Errorf("%s: got the config %s, and the daemon served %s", v.name, sum, served)
	}
	mustAwait(ctx, t, v, "GUEST: installed")
	clock.lap(v.name + ": installed")
}

// approve is the person at the console of a machine.
func approve(ctx context.Context, t *testing.T, d *daemon, v *vm) {
	t.Helper()
	code, at, _ := strings.Cut(mustAwait(ctx, t, v, "GUEST: approve "), " at ")
	if !strings.HasSuffix(at, "/approve") {
		t.Errorf("%s sends a person to %q", v.name, at)
	}
	waiting := ask[[]api.Approval](t, d, "approvals")
	if len(waiting) != 1 || waiting[0].Machine != v.name || strings.Contains(v.console(), "GUEST: config ok") {
		t.Errorf("%s has a config, or does not wait to be approved: %+v", v.name, waiting)
	}
	d.run(t, "approve", code)
}

func reachReady(ctx context.Context, t *testing.T, clock *stopwatch, v *vm) {
	t.Helper()
	mustAwait(ctx, t, v, "GUEST: api up")
	clock.lap(v.name + ": API up")
	mustAwait(ctx, t, v, "GUEST: ready")
	clock.lap(v.name + ": ready")
}

// checkInstalled waits for the daemon's view of a machine that came up, and
// looks at the boot it recorded.
func checkInstalled(ctx context.Context, t *testing.T, d *daemon, v *vm, client string) {
	t.Helper()
	m := awaitPhase(ctx, t, d, v.name, "ready")
	if m.Plan.Action != "disk" {
		t.Errorf("%s: plan %s (%s), want disk", v.name, m.Plan.Action, m.Plan.Reason)
	}
	boots := ask[[]api.Boot](t, d, "machine", "boots", v.name)
	if len(boots) != 1 {
		t.Fatalf("%s: %d boots, want 1: %+v", v.name, len(boots), boots)
	}
	b := boots[0]
	var steps []string
	for _, s := range b.Steps {
		steps = append(steps, s.Step)
		t.Logf("%s: boot %d: %-9s +%.1f s", v.name, b.Number, s.Step, s.Seconds)
	}
	want := []string{"offered", "loader", "script", "kernel", "initramfs", "config", "api", "ready"}
	if !slices.Equal(steps, want) {
		t.Errorf("%s: steps %v, want %v", v.name, steps, want)
	}
	if reports := d.run(t, "events", "--machine", v.name, "--kind", "reported", "-o", "json"); len(reports) == 0 {
		t.Errorf("%s: nothing came by its event stream", v.name)
	}
	if b.Client != client || b.Plan != "install" || b.MAC != v.mac.String() || b.ConfigFetches != 1 {
		t.Errorf("%s: boot by %s of %s with plan %s and %d config fetches, want %s, %s, install, 1", v.name, b.Client, b.MAC, b.Plan, b.ConfigFetches, client, v.mac)
	}
}

// checkBootstrap wants the cluster bootstrapped by one call that one node took.
// The first node is the only control plane. Calls before it may have been declined: "bootstrap is not available yet".
func checkBootstrap(ctx context.Context, t *testing.T, d *daemon, nodes ...*vm) api.Bootstrap {
	t.Helper()
	var c api.Cluster
	must(t, poll(ctx, "the bootstrap", func() (bool, string) {
		c = ask[api.Cluster](t, d, "cluster", "show", "e2e")
		return c.Bootstrap.State == "done", fmt.Sprintf("%+v", c.Bootstrap)
	}))
	if c.Bootstrap.Machine != nodes[0].name {
		t.Errorf("bootstrap of %s, want %s", c.Bootstrap.Machine, nodes[0].name)
	}
	accepted := 0
	for _, v := range nodes {
		for start := range v.starts {
			accepted += strings.Count(v.consoleOf(start+1), "GUEST: bootstrapped")
		}
	}
	if accepted != 1 {
		t.Errorf("the nodes accepted %d Bootstrap calls, want 1", accepted)
	}
	return c.Bootstrap
}

// powerCycled follows an installed machine whose firmware tries the network
// first: it must come up from its disk, and be told nothing else.
func powerCycled(ctx context.Context, t *testing.T, clock *stopwatch, d *daemon, v *vm, client string) {
	t.Helper()
	before := ask[api.Machine](t, d, "machine", "show", v.name)
	mustAwait(ctx, t, v, "GUEST: booted from disk")
	clock.lap(v.name + ": power cycle: disk's kernel up")
	if sum := mustAwait(ctx, t, v, "GUEST: config ok sha256="); sum != before.Facts.ConfigHash {
		t.Errorf("%s: the disk holds the config %s, and the daemon served %s", v.name, sum, before.Facts.ConfigHash)
	}
	mustAwait(ctx, t, v, "GUEST: api up")
	mustAwait(ctx, t, v, "GUEST: ready")
	clock.lap(v.name + ": power cycle: ready")
	m := awaitPhase(ctx, t, d, v.name, "ready")
	boots := ask[[]api.Boot](t, d, "machine", "boots", v.name)
	if len(boots) != 2 {
		t.Fatalf("%s: %d boots after a power cycle, want 2: %+v", v.name, len(boots), boots)
	}
	if b := boots[0]; b.Plan != "disk" || b.ConfigFetches != 0 || b.Client != client {
		t.Errorf("%s: boot by %s with plan %s and %d config fetches, want %s, disk, 0", v.name, b.Client, b.Plan, b.ConfigFetches, client)
	}
	if m.Facts.Installs != before.Facts.Installs {
		t.Errorf("%s: install orders %+v after a power cycle, were %+v", v.name, m.Facts.Installs, before.Facts.Installs)
	}
	if strings.Contains(v.console(), "GUEST: installed") {
		t.Errorf("%s installed again", v.name)
	}
}

// reimaged follows a machine through its wipe to ready, as what it is registered for.
func reimaged(ctx context.Context, t *testing.T, clock *stopwatch, d *daemon, v *vm, how, via string) {
	t.Helper()
	if by := mustAwait(ctx, t, v, "GUEST: wiped by "); by != how {
		t.Errorf("%s was wiped by %s, want %s", v.name, by, how)
	}
	select { // -no-reboot: its own reboot ends the emulator
	case <-v.exited:
	case <-ctx.Done():
		t.Fatal(context.Cause(ctx))
	}
	clock.lap(v.name + ": wiped")
	v.powerOn(t)
	install(ctx, t, clock, d, v)
	reachReady(ctx, t, clock, v)
	m := awaitPhase(ctx, t, d, v.name, "ready")
	r := m.Facts.Reimage
	if r == nil || r.State != "done" || r.Order != 1 || r.Attempts != 1 || r.Via != via || m.Plan.Action != "disk" {
		t.Errorf("%s: reimage %+v, plan %+v; want order 1 done via %s, disk", v.name, r, m.Plan, via)
	}
	if h := m.Facts.Holds; h == nil || h.Role != m.Role {
		t.Errorf("%s is registered as %s and its disk says %+v", v.name, m.Role, h)
	}
}

// discovered waits until the daemon lists a machine that nobody registered.
func discovered(ctx context.Context, t *testing.T, d *daemon, v *vm) {
	t.Helper()
	must(t, poll(ctx, "the stranger among the discovered", func() (bool, string) {
		list := ask[[]api.Stranger](t, d, "discovered")
		return slices.ContainsFunc(list, func(s api.Stranger) bool {
			return s.MAC == v.mac.String() && s.Client == "pxe" && s.Arch == "amd64"
		}), fmt.Sprintf("%+v", list)
	}))
}

// checkOffers reads the recorded DHCPv6 with a decoder that is not ours: every
// NIC was given an address, and the registered ones alone a boot URL (option 59).
func checkOffers(t *testing.T, file string) {
	t.Helper()
	packets := func(mac net.HardwareAddr, filter string) int {
		filter = fmt.Sprintf("eth.dst == %s && dhcpv6 && %s", mac, filter)
		return strings.Count(command(t, "tshark", "-n", "-r", file, "-T", "fields", "-e", "frame.number", "-Y", filter), "\n")
	}
	for _, tt := range []struct {
		mac net.HardwareAddr
		url bool
	}{{controlPlaneMAC, true}, {workerMAC, true}, {strangerMAC, false}} {
		if packets(tt.mac, "dhcpv6.iaaddr.ip") == 0 {
			t.Errorf("%s was offered no address", tt.mac)
		}
		if n := packets(tt.mac, "dhcpv6.option.type == 59"); (n > 0) != tt.url {
			t.Errorf("%s was offered a boot URL in %d packets, want some: %v", tt.mac, n, tt.url)
		}
	}
}

// checkLog looks for config URLs, whose last part is a secret of one boot.
func checkLog(t *testing.T, out string) {
	t.Helper()
	log, err := os.ReadFile(filepath.Join(out, "daemon.log"))
	must(t, err)
	if found := regexp.MustCompile(`/config/[0-9a-f:%A-F]+/[A-Za-z0-9_-]{8,}`).FindAll(log, -1); len(found) > 0 {
		t.Errorf("the daemon's log holds %d config URLs with their tokens", len(found))
	}
}

func awaitPhase(ctx context.Context, t *testing.T, d *daemon, name, phase string) (m api.Machine) {
	t.Helper()
	must(t, poll(ctx, name+" in phase "+phase, func() (bool, string) {
		m = ask[api.Machine](t, d, "machine", "show", name)
		return m.Phase.Phase == phase, fmt.Sprintf("%+v, %+v", m.Phase, m.Facts)
	}))
	return m
}

func mustAwait(ctx context.Context, t *testing.T, v *vm, text string) string {
	t.Helper()
	rest, err := v.await(ctx, text)
	must(t, err)
	return rest
}

// checkNeeds fails with everything that is missing, so that one look is enough.
func checkNeeds(t *testing.T) {
	t.Helper()
	var missing []string
	if os.Geteuid() != 0 {
		missing = append(missing, "root, to make network namespaces")
	}
	for _, p := range []struct{ program, in string }{
		{"qemu-system-x86_64", "qemu-system-x86"}, {"ip", "iproute2"}, {"dumpcap", "wireshark-common"}, {"tshark", "tshark"},
		{"qemu-system-aarch64", "qemu-system-arm"}, {"openssl", "openssl"}, {"sbsign", "sbsigntool"}, {"curl", "curl"}, {secureARM.objcopy, "binutils-aarch64-linux-gnu"}, {"mformat", "mtools"}, {"dhcrelay", "isc-dhcp-relay"}, {"radvd", "radvd"}, {"sysctl", "procps"}, {"objcopy", "binutils"}, {"cpio", "cpio"}, {"apt-get", "apt"}, {"dpkg", "dpkg"},
	} {
		if _, err := exec.LookPath(p.program); err != nil {
			missing = append(missing, fmt.Sprintf("%s (Debian package %s)", p.program, p.in))
		}
	}
	for _, f := range []struct{ file, in string }{
		{pc.code, "ovmf"}, {pc.vars, "ovmf"}, {securePC.code, "ovmf"}, {securePC.vars, "ovmf"}, {snakeoilLocked, "ovmf"},
		{secureARM.code, "qemu-efi-aarch64"}, {secureARM.vars, "qemu-efi-aarch64"}, {"/usr/lib/ipxe/snponly.efi", "ipxe"}, {"/dev/net/tun", "of the kernel: tun"},
	} {
		if _, err := os.Stat(f.file); err != nil {
			missing = append(missing, fmt.Sprintf("%s (Debian package %s)", f.file, f.in))
		}
	}
	if len(missing) > 0 {
		t.Fatalf("this test cannot run here. Missing:\n  %s", strings.Join(missing, "\n  "))
	}
}

// stopwatch logs when the test came to a point.
type stopwatch struct {
	t     *testing.T
	start time.Time
}

func (s *stopwatch) lap(what string) {
	s.t.Helper()
	s.t.Logf("%6.1f s  %s", time.Since(s.start).Seconds(), what)
}

// deadline is a context that ends after d, with the test, or when the test is
// told to stop: then, too, nothing must be left behind.
func deadline(t *testing.T, d time.Duration) context.Context {
	stoppable, stop := signal.NotifyContext(t.Context(), os.Interrupt, syscall.SIGTERM)
	t.Cleanup(stop)
	ctx, cancel := context.WithTimeoutCause(stoppable, d, fmt.Errorf("not within %v", d))
	t.Cleanup(cancel)
	return ctx
}

// escapes are the control sequences that firmware draws its screen with.
var escapes = regexp.MustCompile(`\x1b\[[0-9;=?]*[A-Za-z]`)

// printTails shows the ends of all logs.
func printTails(t *testing.T, out string) {
	const lines = 40
	files, _ := filepath.Glob(filepath.Join(out, "*"))
	for _, f := range files {
		text, err := os.ReadFile(f)
		if err != nil || strings.HasSuffix(f, ".pcapng") || len(text) == 0 {
			continue
		}
		all := slices.DeleteFunc(strings.FieldsFunc(escapes.ReplaceAllString(string(text), "\n"), func(r rune) bool { return r == '\n' || r == '\r' }),
			func(line string) bool { return strings.TrimSpace(line) == "" })
		t.Logf("---- the end of %s\n%s", f, strings.Join(all[max(0, len(all)-lines):], "\n"))
	}
}
