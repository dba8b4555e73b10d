package dhcpv6

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/rs/zerolog"

	"github.com/provisiond/provisiond/internal/inventory"
)

// namespaceMarker is set in a process that has a network of its own.
const namespaceMarker = "PROVISIOND_TEST_NAMESPACE"

// inNamespace runs a test once more in a process that has a network and mounts of
// its own, and reports whether this is that process.
func inNamespace(t *testing.T) bool {
	t.Helper()
	if os.Getenv(namespaceMarker) != "" {
		return true
	}
	if os.Geteuid() != 0 {
		t.Skip("a network namespace takes root")
	}
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), exe, "-test.run=^"+strings.ReplaceAll(t.Name(), "/", "$/^")+"$", "-test.v", "-test.timeout=8m")
	cmd.Env = append(os.Environ(), namespaceMarker+"=1")
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNET, Unshareflags: syscall.CLONE_NEWNS}
	out, err := cmd.CombinedOutput()
	t.Logf("in a namespace:\n%s", out)
	if err != nil || !strings.Contains(string(out), "--- PASS: "+t.Name()) {
		t.Errorf("it failed there: %v", err)
	}
	return false
}

// wire makes a link between rack0, the server's interface, and nic0, a machine's.
func wire(t *testing.T, extra ...netip.Addr) {
	t.Helper()
	for _, name := range []string{"default", "all"} { // addresses usable at once
		if err := os.WriteFile("/proc/sys/net/ipv6/conf/"+name+"/accept_dad", []byte("0"), 0); err != nil {
			t.Fatal(err)
		}
	}
	commands := []string{
		"link add name rack0 type veth peer name nic0 address " + string(installMAC),
		"link set lo up", "link set rack0 up", "link set nic0 up",
	}
	for _, a := range extra {
		commands = append(commands, fmt.Sprintf("addr add %s/64 dev nic0", a))
	}
	for _, c := range commands {
		if out, err := exec.CommandContext(t.Context(), "ip", strings.Fields(c)...).CombinedOutput(); err != nil {
			t.Fatalf("ip %s: %v\n%s", c, err, out)
		}
	}
}

// nic opens port 546 on an address of nic0, once the kernel lets it.
func nic(t *testing.T, a netip.Addr) *net.UDPConn {
	t.Helper()
	local := net.UDPAddrFromAddrPort(netip.AddrPortFrom(a.WithZone("nic0"), clientPort))
	for deadline := time.Now().Add(20 * time.Second); ; {
		conn, err := net.ListenUDP("udp6", local)
		if err == nil {
			t.Cleanup(func() { _ = conn.Close() })
			return conn
		}
		if time.Now().After(deadline) {
			t.Fatal(err)
		}
	}
}

// multicast asks as a client does, again until answered. It returns the answer
// and who sent it.
func multicast(t *testing.T, conn *net.UDPConn, data []byte) ([]byte, *net.UDPAddr) {
	t.Helper()
	all := &net.UDPAddr{IP: net.ParseIP("ff02::1:2"), Port: serverPort, Zone: "nic0"}
	buf := make([]byte, 65536)
	for range 20 {
		if _, err := conn.WriteTo(data, all); err != nil {
			t.Fatal(err)
		}
		if err := conn.SetReadDeadline(time.Now().Add(time.Second)); err != nil {
			t.Fatal(err)
		}
		if size, from, err := conn.ReadFromUDP(buf); err == nil {
			return buf[:size], from
		}
	}
	t.Fatal("no answer to 20 packets")
	return nil, nil
}

// TestOnAWire boots a NIC by multicast on a real link, then one whose address
// and DUID name nobody, so that only the kernel's neighbour table does.
func TestOnAWire(t *testing.T) {
	if !inNamespace(t) {
		return
	}
	private := netip.MustParseAddr("fe80::1:2")
	wire(t, private)
	conn, err := Listen(t.Context(), ListenConfig{Interfaces: []string{"rack0"}, Port: serverPort})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := Listen(t.Context(), ListenConfig{Interfaces: []string{"rack0"}, Port: serverPort}); err == nil {
		t.Error("a second server could listen")
	}
	inv := newRack()
	s := newServer(t, inv, NewKernelNeighbours())
	s.log = zerolog.New(zerolog.NewTestWriter(t))
	s.decisions = s.log
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- s.Serve(ctx, conn) }()

	eui64 := nic(t, installMAC.LinkLocal())
	for _, m := range [][]byte{ovmfPXE.first(), ovmfPXE.with(request, ovmfPXE.ia)} {
		b, from := multicast(t, eui64, m)
		_, opts := inside(t, b)
		if url, _ := value(opts, 59); len(url) == 0 {
			t.Error("no boot URL")
		}
		if !from.IP.IsLinkLocalUnicast() || from.Port != serverPort {
			t.Errorf("the answer came from %s", from)
		}
	}
	// The first answer goes to a stranger; sending it makes the kernel resolve the
	// address.
	last := func() inventory.Event {
		inv.mu.Lock()
		defer inv.mu.Unlock()
		return inv.events[len(inv.events)-1]
	}
	conn2 := nic(t, private)
	for range 20 {
		if multicast(t, conn2, talosLegacy.first()); last().Source == inventory.FromNeighbour {
			break
		}
	}
	cancel()
	if err := <-done; err != nil {
		t.Errorf("Serve returned %v", err)
	}
	if e := last(); e.MAC != installMAC || e.Source != inventory.FromNeighbour {
		t.Errorf("the last event is of %s by %q", e.MAC, e.Source)
	}
}
