package tftp

import (
	"bytes"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"syscall"
	"testing"
	"time"

	"github.com/rs/zerolog"
)

// inNamespace is set in the process that TestLinkLocal starts.
const inNamespace = "PROVISIOND_TEST_NETNS"

// TestLinkLocal runs itself again in a network namespace of its own, with two
// ends of a wire in it. Not everybody may make one; make test says what it left
// out.
func TestLinkLocal(t *testing.T) {
	if os.Getenv(inNamespace) != "" {
		testLinkLocal(t)
		return
	}
	if os.Getuid() != 0 {
		t.Skip("a network namespace takes root")
	}
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), self, "-test.run=^TestLinkLocal$", "-test.v")
	cmd.Env = append(os.Environ(), inNamespace+"=1")
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags:  syscall.CLONE_NEWUSER | syscall.CLONE_NEWNET,
		UidMappings: []syscall.SysProcIDMap{{HostID: os.Getuid(), Size: 1}},
		GidMappings: []syscall.SysProcIDMap{{HostID: os.Getgid(), Size: 1}},
	}
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("in a namespace: %v\n%s", err, out)
	} else if !bytes.Contains(out, []byte("--- PASS: TestLinkLocal")) {
		t.Fatalf("in a namespace it did not run:\n%s", out)
	}
}

func testLinkLocal(t *testing.T) {
	for _, args := range [][]string{
		{"link", "add", "srv", "type", "veth", "peer", "name", "cli"},
		// No EUI-64 and no DAD: the addresses below are the only ones, at once.
		{"link", "set", "srv", "addrgenmode", "none"},
		{"link", "set", "cli", "addrgenmode", "none"},
		{"addr", "add", "fe80::1/64", "dev", "srv", "nodad"},
		{"addr", "add", "2001:db8::1/64", "dev", "srv", "nodad"},
		{"addr", "add", "2001:db8::2/64", "dev", "srv", "nodad"},
		{"addr", "add", "fe80::c/64", "dev", "cli", "nodad"},
		{"link", "set", "lo", "up"},
		{"link", "set", "srv", "up"},
		{"link", "set", "cli", "up"},
	} {
		if out, err := exec.CommandContext(t.Context(), "ip", args...).CombinedOutput(); err != nil {
			t.Fatalf("ip %v: %v %s", args, err, out)
		}
	}
	s := New(Config{}, tree(), newKeeper(), zerolog.Nop())
	for _, c := range []struct{ server, client string }{
		{"fe80::1%srv", "fe80::c%cli"},
		{"2001:db8::1", "2001:db8::1"},
		{"2001:db8::2", "2001:db8::1"}, // not the address the kernel would choose
	} {
		t.Run(c.server, func(t *testing.T) {
			conn, err := net.ListenUDP("udp", net.UDPAddrFromAddrPort(netip.AddrPortFrom(netip.MustParseAddr(c.server), 0)))
			if err != nil {
				t.Fatal(err)
			}
			at := serveOn(t, s, conn)
			cli, err := net.ListenUDP("udp", net.UDPAddrFromAddrPort(netip.AddrPortFrom(netip.MustParseAddr(c.client), 0)))
			if err != nil {
				t.Fatal(err)
			}
			defer func() { _ = cli.Close() }()
			if err := cli.SetReadDeadline(time.Now().Add(deadline)); err != nil {
				t.Fatal(err)
			}
			// From the client's end of the wire the server's zone is its own.
			at = netip.AddrPortFrom(at.Addr().WithZone(netip.MustParseAddr(c.client).Zone()), at.Port())
			p := &peer{t, cli, at}
			p.send(at, request(1, "amd64/snponly.efi", "octet", "blksize", "1432"))
			oack, from := p.receive() // checks where it came from
			if !bytes.Equal(oack, request(6, "blksize", "1432")) {
				t.Fatalf("answer is %q", oack)
			}
			p.send(from, []byte{0, 4, 0, 0})
			if data, _ := p.receive(); len(data) != 4+1432 || !bytes.Equal(data[4:], loader()[:1432]) {
				t.Errorf("block 1 has %d bytes and is not the file's", len(data))
			}
			p.send(from, []byte{0, 5, 0, 0, 0})
		})
	}
}
