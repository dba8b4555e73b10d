package tftp

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"testing/fstest"
	"time"

	pin "github.com/pin/tftp/v3"
	"github.com/rs/zerolog"

	"github.com/provisiond/provisiond/internal/inventory"
)

// deadline bounds what must happen; nothing is timed with it.
const deadline = 5 * time.Second

// keeper knows one machine, by the address of the loopback.
type keeper struct {
	mu     sync.Mutex
	events []inventory.Event
	wrote  chan struct{}
	err    error
}

func newKeeper() *keeper { return &keeper{wrote: make(chan struct{}, 1000)} }

func (k *keeper) MachineByAddress(_ context.Context, a netip.Addr) (inventory.View, error) {
	if k.err != nil {
		return inventory.View{}, k.err
	}
	return inventory.View{Machine: &inventory.Machine{Name: "cp-1", Cluster: "lab", MACs: []inventory.MAC{"52:54:00:00:00:01", "52:54:00:00:00:02"}, Address: a}}, nil
}

func (k *keeper) Record(_ context.Context, e inventory.Event) (inventory.View, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.events = append(k.events, e)
	k.wrote <- struct{}{}
	return inventory.View{}, nil
}

func (k *keeper) recorded() []inventory.Event {
	k.mu.Lock()
	defer k.mu.Unlock()
	return slices.Clone(k.events)
}

// logLines collects what is logged.
type logLines struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *logLines) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *logLines) lines() []string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return strings.Split(strings.TrimSpace(l.b.String()), "\n")
}

// loader is what is served: blocks of 1228 do not divide it.
func loader() []byte {
	b := make([]byte, 300_001)
	r := rand.New(rand.NewPCG(1, 2))
	for i := range b {
		b[i] = byte(r.Uint32())
	}
	return b
}

func tree() fstest.MapFS {
	return fstest.MapFS{
		"amd64/snponly.efi":   {Data: loader()},
		"amd64/exact.efi":     {Data: loader()[:4*512]},
		"amd64/autoexec.ipxe": {Data: []byte("#!ipxe\n")},
		"amd64/empty.efi":     {Data: nil},
	}
}

// serve runs s on a loopback address until the test ends, and returns where.
func serve(t *testing.T, s *Server) netip.AddrPort {
	t.Helper()
	conn, err := net.ListenPacket("udp", "[::1]:0")
	if err != nil {
		t.Fatal(err)
	}
	return serveOn(t, s, conn)
}

func serveOn(t *testing.T, s *Server, conn net.PacketConn) netip.AddrPort {
	t.Helper()
	at := conn.LocalAddr().(*net.UDPAddr).AddrPort()
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- s.Serve(ctx, conn) }()
	t.Cleanup(func() {
		cancel()
		select {
		case err := <-done:
			if err != nil {
				t.Errorf("Serve returned %v", err)
			}
		case <-time.After(deadline):
			t.Error("Serve does not return")
		}
		s.mu.Lock()
		defer s.mu.Unlock()
		if s.total != 0 || len(s.transfers) != 0 {
			t.Errorf("%d transfers left, %v", s.total, s.transfers)
		}
	})
	return at
}

func client(t *testing.T, at netip.AddrPort, blksize int, tsize bool) *pin.Client {
	t.Helper()
	c, err := pin.NewClient(at.String())
	if err != nil {
		t.Fatal(err)
	}
	c.SetTimeout(deadline)
	c.SetBlockSize(blksize)
	c.RequestTSize(tsize)
	return c
}

func TestFiles(t *testing.T) {
	k := newKeeper()
	at := serve(t, New(Config{}, tree(), k, zerolog.Nop()))
	for name, file := range tree() {
		for _, asked := range []string{name, "/" + name} {
			for _, blksize := range []int{0, 512, 1228, 1432, 65464} {
				for _, tsize := range []bool{false, true} {
					t.Run(fmt.Sprintf("%s blksize=%d tsize=%v", asked, blksize, tsize), func(t *testing.T) {
						from, err := client(t, at, blksize, tsize).Receive(asked, "octet")
						if err != nil {
							t.Fatal(err)
						}
						if size, ok := from.(pin.IncomingTransfer).Size(); tsize && len(file.Data) > 0 && (!ok || size != int64(len(file.Data))) {
							t.Errorf("tsize is %d, %v; want %d", size, ok, len(file.Data))
						}
						var got bytes.Buffer
						if _, err := from.WriteTo(&got); err != nil {
							t.Fatal(err)
						}
						if !bytes.Equal(got.Bytes(), file.Data) {
							t.Errorf("got %d bytes that are not the %d of the file", got.Len(), len(file.Data))
						}
						if path.Ext(name) != ".efi" {
							return
						}
						select {
						case <-k.wrote:
						case <-time.After(deadline):
							t.Fatal("nothing recorded")
						}
						e := k.recorded()[len(k.recorded())-1]
						if e.Kind != inventory.LoaderServed || e.Machine != "cp-1" || e.Cluster != "" || e.MAC != "52:54:00:00:00:01" || e.Peer != at.Addr() || e.Time.IsZero() || e.Took <= 0 {
							t.Errorf("recorded %+v", e)
						}
					})
				}
			}
		}
	}
	for _, e := range k.recorded() {
		if strings.Contains(e.Message, "autoexec") {
			t.Errorf("a script is no loader: %+v", e)
		}
	}
}

// peer is a client that sends packets of its own making.
type peer struct {
	*testing.T
	conn   *net.UDPConn
	server netip.AddrPort
}

func newPeer(t *testing.T, server netip.AddrPort) *peer {
	t.Helper()
	conn, err := net.ListenUDP("udp", &net.UDPAddr{IP: net.IPv6loopback})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	if err := conn.SetReadDeadline(time.Now().Add(deadline)); err != nil {
		t.Fatal(err)
	}
	return &peer{t, conn, server}
}

func (p *peer) send(to netip.AddrPort, b []byte) {
	p.Helper()
	if _, err := p.conn.WriteToUDPAddrPort(b, to); err != nil {
		p.Fatal(err)
	}
}

func (p *peer) receive() ([]byte, netip.AddrPort) {
	p.Helper()
	b := make([]byte, 1<<16)
	n, from, err := p.conn.ReadFromUDPAddrPort(b)
	if err != nil {
		p.Fatal(err)
	}
	if from.Addr() != p.server.Addr() {
		p.Errorf("answer from %v, asked %v", from.Addr(), p.server.Addr())
	}
	return b[:n], from
}

func request(op uint16, fields ...string) []byte {
	b := binary.BigEndian.AppendUint16(nil, op)
	for _, f := range fields {
		b = append(append(b, f...), 0)
	}
	return b
}

// TestLikeOVMF does what OVMF's PXEv6 does: it asks for the size, aborts, and
// reads the file with another request, hoping for a window.
func TestLikeOVMF(t *testing.T) {
	k, log := newKeeper(), &logLines{}
	at := serve(t, New(Config{}, tree(), k, zerolog.New(log).Level(zerolog.InfoLevel)))
	p := newPeer(t, at)

	p.send(at, request(1, "amd64/snponly.efi", "octet", "tsize", "0", "blksize", "1228", "windowsize", "4"))
	oack, from := p.receive()
	options := bytes.Split(bytes.TrimSuffix(oack[2:], []byte{0}), []byte{0})
	got := map[string]string{}
	for i := 0; i+1 < len(options); i += 2 {
		got[string(options[i])] = string(options[i+1])
	}
	want := map[string]string{"tsize": strconv.Itoa(len(loader())), "blksize": "1228"}
	if binary.BigEndian.Uint16(oack) != 6 || fmt.Sprint(got) != fmt.Sprint(want) {
		t.Fatalf("answer %q has the options %v, want an OACK with %v", oack, got, want)
	}
	p.send(from, append([]byte{0, 5, 0, 8}, "User aborted the transfer\x00"...))

	p = newPeer(t, at)
	p.send(at, request(1, "amd64/snponly.efi", "octet", "blksize", "1228", "windowsize", "4"))
	oack, from = p.receive()
	if !bytes.Equal(oack, request(6, "blksize", "1228")) {
		t.Fatalf("answer is %q, want an OACK with blksize only", oack)
	}
	var file []byte
	for block := uint16(0); ; {
		p.send(from, binary.BigEndian.AppendUint16([]byte{0, 4}, block))
		data, _ := p.receive()
		block++
		if binary.BigEndian.Uint16(data) != 3 || binary.BigEndian.Uint16(data[2:]) != block {
			t.Fatalf("got %x, want block %d", data[:4], block)
		}
		file = append(file, data[4:]...)
		if len(data) < 4+1228 {
			p.send(from, binary.BigEndian.AppendUint16([]byte{0, 4}, block))
			break
		}
	}
	if !bytes.Equal(file, loader()) {
		t.Fatalf("got %d bytes that are not the file", len(file))
	}
	select {
	case <-k.wrote:
	case <-time.After(deadline):
		t.Fatal("nothing recorded")
	}
	wait(t, func() bool { return strings.Contains(strings.Join(log.lines(), ""), "TFTP file served") })
	if n := len(k.recorded()); n != 1 {
		t.Errorf("%d events, want 1: asking for the size is no reading", n)
	}
	if lines := log.lines(); len(lines) != 1 || !strings.Contains(lines[0], `"machine":"cp-1"`) {
		t.Errorf("logged %q, want one line with the machine", lines)
	}
}

func wait(t *testing.T, until func() bool) {
	t.Helper()
	for end := time.Now().Add(deadline); !until(); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("it does not happen")
		}
	}
}

// TestStopDuringTransfer ends Serve while a peer reads, and one that went away.
func TestStopDuringTransfer(t *testing.T) {
	s := New(Config{Timeout: 10 * time.Millisecond, Retries: 2}, tree(), newKeeper(), zerolog.Nop())
	t.Run("serve", func(t *testing.T) {
		at := serve(t, s)
		for range 3 {
			p := newPeer(t, at)
			p.send(at, request(1, "amd64/snponly.efi", "octet"))
			p.receive()
		}
	}) // its cleanup waits for Serve and checks that nothing is left
}

func TestServeReturnsBeforeStart(t *testing.T) {
	conn, err := net.ListenPacket("udp", "[::1]:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := New(Config{}, tree(), newKeeper(), zerolog.Nop()).Serve(ctx, conn); err != nil {
		t.Errorf("Serve returned %v", err)
	}
	if _, err := conn.WriteTo(nil, conn.LocalAddr()); !errors.Is(err, net.ErrClosed) {
		t.Errorf("the conn is not closed: %v", err)
	}
}

func TestInventoryOut(t *testing.T) {
	for _, c := range []struct {
		err  error
		want int // lines
	}{{inventory.ErrNotFound, 1}, {errors.New("store is gone"), 2}} {
		k, log := newKeeper(), &logLines{}
		k.err = fmt.Errorf("asking: %w", c.err)
		at := serve(t, New(Config{}, tree(), k, zerolog.New(log)))
		from, err := client(t, at, 0, false).Receive("amd64/exact.efi", "octet")
		if err != nil {
			t.Fatal(err)
		}
		if _, err := from.WriteTo(io.Discard); err != nil {
			t.Fatal(err)
		}
		wait(t, func() bool { return strings.Contains(strings.Join(log.lines(), ""), "TFTP file served") })
		if lines := log.lines(); len(lines) != c.want {
			t.Errorf("%v: logged %q, want %d lines", c.err, lines, c.want)
		}
	}
}

// TestForeignClients reads the file with the TFTP clients that others wrote. CI
// installs them, and must not leave them out.
func TestForeignClients(t *testing.T) {
	at := serve(t, New(Config{}, tree(), newKeeper(), zerolog.Nop()))
	port := strconv.Itoa(int(at.Port()))
	for name, args := range map[string][]string{
		"tftp":  {"-6", "-m", "binary", at.Addr().String(), port, "-c", "get", "amd64/snponly.efi", "/dev/stdout"},
		"atftp": {"--option", "tsize", "--option", "blksize 1228", "-g", "-r", "amd64/snponly.efi", "-l", "/dev/stdout", at.Addr().String(), port},
	} {
		t.Run(name, func(t *testing.T) {
			binary, err := exec.LookPath(name)
			if err != nil && os.Getenv("CI") != "" {
				t.Fatalf("%s is not installed; .ci/packages names it", name)
			} else if err != nil {
				t.Skipf("%s is not installed", name)
			}
			ctx, cancel := context.WithTimeout(t.Context(), deadline)
			defer cancel()
			got, err := exec.CommandContext(ctx, binary, args...).Output()
			if err != nil || !bytes.Equal(got, loader()) {
				t.Errorf("%d bytes, %v; want the %d of the file", len(got), err, len(loader()))
			}
		})
	}
}
