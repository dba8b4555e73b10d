package ndp

import (
	"context"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/rs/zerolog"
)

// inNamespace runs a test once more in a process that has a network of its own,
// and reports whether this is that process.
func inNamespace(t *testing.T) bool {
	t.Helper()
	const marker = "PROVISIOND_TEST_NAMESPACE"
	if os.Getenv(marker) != "" {
		return true
	}
	if os.Geteuid() != 0 {
		t.Skip("a network namespace takes root")
	}
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), exe, "-test.run=^"+t.Name()+"$", "-test.v", "-test.timeout=2m")
	cmd.Env = append(os.Environ(), marker+"=1")
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNET}
	out, err := cmd.CombinedOutput()
	t.Logf("in a namespace:\n%s", out)
	if err != nil || !strings.Contains(string(out), "--- PASS: "+t.Name()) {
		t.Errorf("it failed there: %v", err)
	}
	return false
}

// TestOnAWire has Linux make up an address from what is advertised.
func TestOnAWire(t *testing.T) {
	if !inNamespace(t) {
		return
	}
	if _, _, err := Listen("rack0"); err == nil || !strings.Contains(err.Error(), `"rack0"`) {
		t.Errorf("Listen on no interface: %v", err)
	}
	if err := os.WriteFile("/proc/sys/net/ipv6/conf/default/accept_dad", []byte("0"), 0); err != nil {
		t.Fatal(err)
	}
	for _, c := range []string{
		"link set lo up", "link add name rack0 type veth peer name nic0 address 52:54:00:12:34:56",
		"link set rack0 up", "link set nic0 up",
	} {
		if out, err := exec.CommandContext(t.Context(), "ip", strings.Fields(c)...).CombinedOutput(); err != nil {
			t.Fatalf("ip %s: %v\n%s", c, err, out)
		}
	}
	cfg := Config{Interface: "rack0", Managed: true, OtherConfig: true, Prefixes: []Prefix{{Prefix: netip.MustParsePrefix("2001:db8:1::/64"), SLAAC: true}}}
	ctx, cancel := context.WithCancel(t.Context())
	conn, mac, err := Listen("rack0")
	for deadline := time.Now().Add(20 * time.Second); err != nil && time.Now().Before(deadline); {
		conn, mac, err = Listen("rack0") // its link-local address takes a moment
	}
	if err != nil {
		t.Fatal(err)
	}
	cfg.LinkLayer = mac
	done := make(chan error, 1)
	go func() { done <- New(cfg, zerolog.New(zerolog.NewTestWriter(t))).Serve(ctx, conn) }()
	for deadline := time.Now().Add(60 * time.Second); !has(t, "nic0", "2001:db8:1:0:5054:ff:fe12:3456/64"); {
		if time.Now().After(deadline) {
			t.Fatal("Linux made up no address")
		}
	}
	cancel()
	if err := <-done; err != nil {
		t.Errorf("Serve returned %v", err)
	}
}

func has(t *testing.T, name, addr string) bool {
	t.Helper()
	ifi, err := net.InterfaceByName(name)
	if err != nil {
		t.Fatal(err)
	}
	addrs, err := ifi.Addrs()
	if err != nil {
		t.Fatal(err)
	}
	for _, a := range addrs {
		if a.String() == addr {
			return true
		}
	}
	return false
}
