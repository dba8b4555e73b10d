package dhcpv6

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/rs/zerolog"

	"github.com/provisiond/provisiond/internal/inventory"
)

// serve starts s on [::1] and returns its address. The test ends it and checks
// that it ended well.
func serve(t *testing.T, s *Server) netip.AddrPort {
	t.Helper()
	conn, err := Listen(t.Context(), ListenConfig{Address: netip.IPv6Loopback()})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- s.Serve(ctx, conn) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("Serve returned %v", err)
		}
		if err := conn.SetDeadline(time.Time{}); !errors.Is(err, net.ErrClosed) {
			t.Errorf("the socket was left open: %v", err)
		}
		stacks := make([]byte, 1<<20)
		stacks = stacks[:runtime.Stack(stacks, true)]
		if bytes.Contains(stacks, []byte("dhcpv6.(*Server)")) {
			t.Errorf("a goroutine was left behind:\n%s", stacks)
		}
	})
	return conn.LocalAddr().(*net.UDPAddr).AddrPort()
}

// ask sends a relayed packet from a socket of its own, again until answered.
func ask(t testing.TB, server netip.AddrPort, data []byte) ([]byte, error) {
	t.Helper()
	conn, err := net.DialUDP("udp6", nil, net.UDPAddrFromAddrPort(server))
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	buf := make([]byte, 65536)
	for range 20 {
		if _, err := conn.Write(data); err != nil {
			return nil, err
		}
		if err := conn.SetReadDeadline(time.Now().Add(time.Second)); err != nil {
			return nil, err
		}
		if n, err := conn.Read(buf); err == nil {
			return buf[:n], nil
		}
	}
	return nil, errors.New("no answer to 20 packets")
}

func throughRelay(mac inventory.MAC, data []byte) []byte {
	return relayed(0, "2001:db8:1::fe", mac.LinkLocal().String(), data, opt(18, []byte("port-17")))
}

// TestServe boots machines through a relay over real sockets, many at a time.
func TestServe(t *testing.T) {
	inv := newRack()
	cluster := inv.views[installMAC].Cluster
	const machines = 64
	for i := range machines {
		mac := inventory.MAC(fmt.Sprintf("52:54:00:00:01:%02x", i))
		inv.views[mac] = inventory.View{
			Machine: &inventory.Machine{Name: fmt.Sprintf("n-%d", i), MACs: []inventory.MAC{mac}, Cluster: "c1",
				Address: netip.MustParseAddr(fmt.Sprintf("2001:db8:1::1%02x", i))},
			Facts: inventory.Facts{Install: inventory.Order{Ordered: 1}}, Cluster: cluster, Image: &inventory.Image{},
		}
	}
	server := serve(t, newServer(t, inv, nil))
	var wg sync.WaitGroup
	for i := range machines {
		wg.Go(func() {
			mac := inventory.MAC(fmt.Sprintf("52:54:00:00:01:%02x", i))
			for _, m := range [][]byte{ovmfPXE.first(), ovmfPXE.with(request, ovmfPXE.ia), ipxeInfo.first()} {
				b, err := ask(t, server, throughRelay(mac, m))
				if err != nil {
					t.Errorf("%s: %v", mac, err)
					return
				}
				_, opts := inside(t, b)
				if m[0] == infoRequest {
					if url, _ := value(opts, 59); !strings.HasSuffix(string(url), string(mac)) {
						t.Errorf("%s was given %q", mac, url)
					}
				} else if got, _ := addresses(t, opts, 0); got[0] != fmt.Sprintf("2001:db8:1::1%02x 43200/86400", i) {
					t.Errorf("%s was given %s", mac, got)
				}
			}
		})
	}
	wg.Wait()
}

// TestServeSurvives: hostile datagrams are counted and the next client is
// served.
func TestServeSurvives(t *testing.T) {
	s := newServer(t, newRack(), nil)
	server := serve(t, s)
	conn, err := net.DialUDP("udp6", nil, net.UDPAddrFromAddrPort(server))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	hostile := map[string][]byte{
		"oversized": make([]byte, 9000),
		"malformed": {1, 2, 3, 4, 5},
		"unicast":   ovmfPXE.first(),
		"no subnet": relayed(0, "2001:db8:9::1", "fe80::1", ovmfPXE.first()),
	}
	for _, b := range hostile {
		if _, err := conn.Write(b); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := ask(t, server, throughRelay(installMAC, ovmfPXE.first())); err != nil {
		t.Fatal(err)
	}
	for name := range hostile {
		for deadline := time.Now().Add(20 * time.Second); s.Dropped()[name] != 1; runtime.Gosched() {
			if time.Now().After(deadline) {
				t.Fatalf("%s was not counted: %v", name, s.Dropped())
			}
		}
	}
}

func TestServeRefusesBadDUID(t *testing.T) {
	conn, err := Listen(t.Context(), ListenConfig{Address: netip.IPv6Loopback()})
	if err != nil {
		t.Fatal(err)
	}
	s := New(Config{ServerDUID: []byte{1}}, newRack(), nil, zerolog.Nop())
	if err := s.Serve(t.Context(), conn); err == nil || !strings.Contains(err.Error(), "DUID") {
		t.Errorf("Serve returned %v", err)
	}
	if err := conn.SetDeadline(time.Time{}); !errors.Is(err, net.ErrClosed) {
		t.Errorf("the socket was left open: %v", err)
	}
}

func TestServeEndsAtOnce(t *testing.T) {
	conn, err := Listen(t.Context(), ListenConfig{Address: netip.IPv6Loopback()})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := newServer(t, newRack(), nil).Serve(ctx, conn); err != nil {
		t.Errorf("Serve returned %v", err)
	}
}

func TestServeReportsALostSocket(t *testing.T) {
	conn, err := Listen(t.Context(), ListenConfig{Address: netip.IPv6Loopback()})
	if err != nil {
		t.Fatal(err)
	}
	_ = conn.Close()
	if err := newServer(t, newRack(), nil).Serve(t.Context(), conn); err == nil {
		t.Error("Serve returned nil for a closed socket")
	}
}

// slowStrangers is an inventory whose disk hangs for strangers until it is let go: the
// context, which ends after some seconds, would let machines pass in the end, too.
type slowStrangers struct {
	*rack
	hang chan struct{}
}

func (r slowStrangers) Bind(ctx context.Context, b inventory.Binding) (inventory.Lease, error) {
	if b.Machine == "" {
		<-r.hang
	}
	return r.rack.Bind(ctx, b)
}

// TestMachinesBeforeStrangers: however many strangers wait for the disk, a
// registered machine is answered.
func TestMachinesBeforeStrangers(t *testing.T) {
	inv := slowStrangers{newRack(), make(chan struct{})}
	to := serve(t, newServer(t, inv, nil))
	letGo := sync.OnceFunc(func() { close(inv.hang) })
	defer letGo() // the server does not stop before
	conn, err := net.DialUDP("udp6", nil, net.UDPAddrFromAddrPort(to))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	for i := range 2 * maxCommits {
		if _, err := conn.Write(throughRelay(inventory.MAC(fmt.Sprintf("52:54:00:99:99:%02x", i)), talos.first())); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := ask(t, to, throughRelay(installMAC, talos.first())); err != nil {
		t.Errorf("a machine: %v", err)
	}
	letGo()
	if _, err := ask(t, to, throughRelay(strangeMAC, talos.first())); err != nil {
		t.Errorf("a stranger, afterwards: %v", err)
	}
}

// TestQueueDropsOldest: a full queue keeps the newest packets.
func TestQueueDropsOldest(t *testing.T) {
	s := newServer(t, newRack(), nil)
	queue := make(chan packet, 2)
	for i := range 5 {
		enqueue(queue, packet{ifindex: i}, s.dropQueued)
	}
	if a, b := <-queue, <-queue; a.ifindex != 3 || b.ifindex != 4 {
		t.Errorf("kept %d and %d", a.ifindex, b.ifindex)
	}
	if n := s.Dropped()["queue full"]; n != 3 {
		t.Errorf("counted %d", n)
	}
}

// TestDropLogIsLimited: a thousand bad packets are one line.
func TestDropLogIsLimited(t *testing.T) {
	var log bytes.Buffer
	d := newDrops()
	logger := zerolog.New(&log)
	for range 1000 {
		d.add(logger, dropMalformed, func(e *zerolog.Event) *zerolog.Event { return e.Str("reason", "x") })
	}
	if n := d.counts[dropMalformed].Load(); n != 1000 {
		t.Errorf("counted %d", n)
	}
	if lines := strings.Count(log.String(), "\n"); lines < 1 || lines > 100 {
		t.Errorf("%d lines", lines)
	}
}

func TestListenErrors(t *testing.T) {
	first, err := Listen(t.Context(), ListenConfig{Address: netip.IPv6Loopback()})
	if err != nil {
		t.Fatal(err)
	}
	defer first.Close()
	port := first.LocalAddr().(*net.UDPAddr).AddrPort().Port()
	for name, tc := range map[string]struct {
		cfg  ListenConfig
		want string
	}{
		"in use":       {ListenConfig{Address: netip.IPv6Loopback(), Port: port}, "another DHCPv6 server"},
		"no interface": {ListenConfig{Interfaces: []string{"nowhere0"}}, `interface "nowhere0"`},
		"address, too": {ListenConfig{Interfaces: []string{"lo"}, Address: netip.IPv6Loopback()}, "leave the address out"},
		"not ours":     {ListenConfig{Address: netip.MustParseAddr("2001:db8::1")}, "no interface of this host"},
	} {
		conn, err := Listen(t.Context(), tc.cfg)
		if err == nil {
			_ = conn.Close()
			t.Errorf("%s: no error", name)
		} else if !strings.Contains(err.Error(), tc.want) {
			t.Errorf("%s: %q does not say %q", name, err, tc.want)
		}
	}
	if err := listenError(netip.AddrPortFrom(netip.IPv6Unspecified(), 547), syscall.EACCES); !strings.Contains(err.Error(), "CAP_NET_BIND_SERVICE") {
		t.Errorf("missing capability: %q", err)
	}
}

// TestAnswerAddress: where an answer goes, and from where.
func TestAnswerAddress(t *testing.T) {
	relayPort := opt(135, u16s(0))
	m := ovmfPXE.first()
	peer := installMAC.LinkLocal().String()
	for name, tc := range map[string]struct {
		src, dst string
		data     []byte
		want     string
	}{
		"client":                  {"[fe80::5054:ff:fe12:3456]:546", "ff02::1:2", m, "[fe80::5054:ff:fe12:3456]:546 from invalid IP on 7"},
		"client, odd port":        {"[fe80::5054:ff:fe12:3456]:40000", "ff02::1:2", m, "[fe80::5054:ff:fe12:3456]:546 from invalid IP on 7"},
		"relay":                   {"[2001:db8:ffff::1]:547", "2001:db8::1", relayed(0, "2001:db8:1::fe", peer, m), "[2001:db8:ffff::1]:547 from 2001:db8::1 on 0"},
		"relay, odd port":         {"[2001:db8:ffff::1]:40000", "2001:db8::1", relayed(0, "2001:db8:1::fe", peer, m), "[2001:db8:ffff::1]:547 from 2001:db8::1 on 0"},
		"relay with relay port":   {"[2001:db8:ffff::1]:40000", "2001:db8::1", relayed(0, "2001:db8:1::fe", peer, m, relayPort), "[2001:db8:ffff::1]:40000 from 2001:db8::1 on 0"},
		"relay to ff05::1:3":      {"[2001:db8:ffff::1]:547", "ff05::1:3", relayed(0, "2001:db8:1::fe", peer, m), "[2001:db8:ffff::1]:547 from invalid IP on 0"},
		"relay on the link":       {"[fe80::9]:547", "ff02::1:2", relayed(0, "2001:db8:1::fe", peer, m), "[fe80::9]:547 from invalid IP on 7"},
		"relay to our link-local": {"[fe80::9]:547", "fe80::1", relayed(0, "2001:db8:1::fe", peer, m), "[fe80::9]:547 from fe80::1 on 7"},
		"relay on loopback":       {"[::1]:40000", "::1", relayed(0, "2001:db8:1::fe", peer, m), "[::1]:40000 from ::1 on 0"},
	} {
		in := packet{data: tc.data, src: netip.MustParseAddrPort(tc.src), dst: netip.MustParseAddr(tc.dst), ifindex: testIndex, ifname: "rack0"}
		out, err := newServer(t, newRack(), nil).handle(t.Context(), in)
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		if got := fmt.Sprintf("%s from %s on %d", out.dst, out.src, out.ifindex); got != tc.want {
			t.Errorf("%s: %s, want %s", name, got, tc.want)
		}
	}
}
