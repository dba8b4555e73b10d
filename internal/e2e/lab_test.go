//go:build e2e

package e2e

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// The addresses of the daemon's segment, and of one behind a router that relays.
var (
	prefix     = netip.MustParsePrefix("fd00:7a10:e2e::/64")
	serverAddr = netip.MustParseAddr("fd00:7a10:e2e::1")
	routerAddr = netip.MustParseAddr("fd00:7a10:e2e::fe")
	farPrefix  = netip.MustParsePrefix("fd00:7a10:e2f::/64")
	farRouter  = netip.MustParseAddr("fd00:7a10:e2f::fe")
)

// registryPort is where the installer's image comes from.
const registryPort = 5000

// bridge is the segment, and the daemon's (or the router's) interface on it.
const bridge = "rack0"

// lab is a network namespace with one bridge: a rack. Nothing in it has an IPv4
// address, and nothing leads out of it but the router.
type lab struct {
	namespace string
	dir       string // temporary files
	out       string // logs, kept when the test fails
	taps      int
}

// newLab makes the daemon's namespace and removes it at the end of the test.
func newLab(t *testing.T, out string) *lab {
	t.Helper()
	return newSegment(t, out, "", netip.PrefixFrom(serverAddr, prefix.Bits()))
}

func newSegment(t *testing.T, out, suffix string, address netip.Prefix) *lab {
	t.Helper()
	l := &lab{namespace: fmt.Sprintf("provisiond-e2e-%d%s", os.Getpid(), suffix), dir: t.TempDir(), out: out}
	command(t, "ip", "netns", "add", l.namespace)
	t.Cleanup(func() { _ = exec.Command("ip", "netns", "del", l.namespace).Run() })
	// A port of its own gives the bridge a carrier before the first machine is on.
	for _, args := range []string{
		"link set lo up",
		"link add " + bridge + " address 52:54:00:e2:00:fe type bridge mcast_snooping 0 stp_state 0 forward_delay 0",
		"link add port0 type veth peer name port1",
		"link set port1 up",
		"link set port0 master " + bridge + " up",
		"link set " + bridge + " up",
		fmt.Sprintf("address add %s dev %s nodad", address, bridge),
	} {
		l.ip(t, args)
	}
	// The daemon binds to the link-local address too, once it is there.
	must(t, poll(deadline(t, time.Minute), "the bridge's link-local address", func() (bool, string) {
		addresses := l.ip(t, "-6 -oneline address show dev "+bridge)
		return strings.Contains(addresses, "fe80::") && !strings.Contains(addresses, "tentative"), addresses
	}))
	return l
}

// newRouter makes a second segment, behind a router with ISC's DHCPv6 relay and
// radvd, which tells machines to ask DHCPv6.
func newRouter(t *testing.T, near *lab) *lab {
	t.Helper()
	l := newSegment(t, near.out, "-far", netip.PrefixFrom(farRouter, farPrefix.Bits()))
	l.ip(t, "link add up0 type veth peer name port2 netns "+near.namespace)
	near.ip(t, "link set port2 master "+bridge+" up")
	l.ip(t, "link set up0 up")
	l.ip(t, fmt.Sprintf("address add %s/%d dev up0 nodad", routerAddr, prefix.Bits()))
	near.ip(t, fmt.Sprintf("route add %s via %s", farPrefix, routerAddr))
	must(t, l.command("sysctl", "-qw", "net.ipv6.conf.all.forwarding=1").Run())
	config := filepath.Join(l.dir, "radvd.conf")
	must(t, os.WriteFile(config, fmt.Appendf(nil, `interface %s {
	AdvSendAdvert on; AdvManagedFlag on; AdvOtherConfigFlag on;
	MinRtrAdvInterval 3; MaxRtrAdvInterval 10;
	prefix %s { AdvOnLink on; AdvAutonomous off; };
};
`, bridge, farPrefix), 0o644))
	l.background(t, "radvd", "-n", "-m", "stderr", "-u", "root", "-C", config, "-p", filepath.Join(l.dir, "radvd.pid"))
	l.background(t, "dhcrelay", "-6", "-d", "-I", "-pf", filepath.Join(l.dir, "relay.pid"), "-l", bridge, "-u", serverAddr.String()+"%up0")
	return l
}

// background runs a program in the namespace until the test ends.
func (l *lab) background(t *testing.T, name string, args ...string) {
	t.Helper()
	log, err := os.Create(filepath.Join(l.out, name+".log"))
	must(t, err)
	defer func() { _ = log.Close() }() // the program has its own
	cmd := l.command(name, args...)
	cmd.Stdout, cmd.Stderr = log, log
	must(t, cmd.Start())
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait() // it was killed
	})
}

// ip runs the command of that name on the namespace.
func (l *lab) ip(t *testing.T, args string) string {
	t.Helper()
	return command(t, "ip", append([]string{"-n", l.namespace}, strings.Fields(args)...)...)
}

// newTap makes a port for a machine.
func (l *lab) newTap(t *testing.T) string {
	t.Helper()
	l.taps++
	name := fmt.Sprintf("tap%d", l.taps)
	l.ip(t, "tuntap add "+name+" mode tap")
	l.ip(t, "link set "+name+" master "+bridge+" up")
	return name
}

// newHost makes a namespace with one NIC on the segment: something that is not a
// virtual machine and looks like one. It is gone when leave was called.
func (l *lab) newHost(t *testing.T, mac net.HardwareAddr, address netip.Addr) (host *lab, leave func()) {
	t.Helper()
	host = &lab{namespace: l.namespace + "-host", dir: l.dir, out: l.out}
	command(t, "ip", "netns", "add", host.namespace)
	leave = sync.OnceFunc(func() { _ = exec.Command("ip", "netns", "del", host.namespace).Run() })
	t.Cleanup(leave)
	l.taps++
	port := fmt.Sprintf("host%d", l.taps)
	l.ip(t, fmt.Sprintf("link add %s type veth peer name nic0 address %s netns %s", port, mac, host.namespace))
	l.ip(t, "link set "+port+" master "+bridge+" up")
	host.ip(t, "link set nic0 up")
	host.ip(t, fmt.Sprintf("address add %s/%d dev nic0 nodad", address, prefix.Bits()))
	return host, leave
}

// command is a program that will run in the namespace. ip executes it in its
// own place, so its process is the program's.
func (l *lab) command(name string, args ...string) *exec.Cmd {
	return exec.Command("ip", append([]string{"netns", "exec", l.namespace, name}, args...)...)
}

// capture records the heads of all packets on the bridge. stop ends it and
// returns the file; it is called at the end of the test in any case.
func (l *lab) capture(t *testing.T) (stop func() string) {
	t.Helper()
	file := filepath.Join(l.out, "rack.pcapng")
	cmd := l.command("dumpcap", "-q", "-i", bridge, "-s", "512", "-w", file)
	var stderr strings.Builder
	cmd.Stderr = &stderr
	must(t, cmd.Start())
	stop = sync.OnceValue(func() string {
		_ = cmd.Process.Signal(os.Interrupt) // it writes what it holds; Wait tells if it had ended
		if err := cmd.Wait(); err != nil {
			t.Errorf("dumpcap: %v\n%s", err, stderr.String())
		}
		return file
	})
	t.Cleanup(func() { stop() })
	return stop
}

// serve answers HTTP on a port of the daemon's host until the test ends.
func (l *lab) serve(t *testing.T, port uint16, handler http.Handler) {
	t.Helper()
	type result struct {
		ln  net.Listener
		err error
	}
	opened := make(chan result)
	go func() {
		// Never unlocked: the thread has another network and ends with us.
		runtime.LockOSThread()
		ln, err := func() (net.Listener, error) {
			ns, err := os.Open("/run/netns/" + l.namespace)
			if err != nil {
				return nil, err
			}
			defer func() { _ = ns.Close() }()
			if err := unix.Setns(int(ns.Fd()), unix.CLONE_NEWNET); err != nil {
				return nil, err
			}
			return net.Listen("tcp", netip.AddrPortFrom(serverAddr, port).String())
		}()
		opened <- result{ln, err}
	}()
	r := <-opened
	must(t, r.err)
	server := &http.Server{Handler: handler, ReadHeaderTimeout: 10 * time.Second}
	stopped := make(chan struct{})
	go func() { _ = server.Serve(r.ln); close(stopped) }()
	t.Cleanup(func() { _ = server.Close(); <-stopped })
}

// poll asks until it is told yes. The last answer is in the error.
func poll(ctx context.Context, what string, ask func() (done bool, state string)) error {
	tick := time.NewTicker(250 * time.Millisecond)
	defer tick.Stop()
	for {
		done, state := ask()
		if done {
			return nil
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return fmt.Errorf("waiting for %s: %w; last seen: %s", what, context.Cause(ctx), state)
		}
	}
}
