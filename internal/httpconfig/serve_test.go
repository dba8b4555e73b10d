package httpconfig

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/provisiond/provisiond/internal/inventory"
)

// deadline bounds what must happen; nothing is timed with it.
const deadline = 20 * time.Second

// loopback is where a lab on one host is.
var loopback = netip.MustParseAddrPort("[::1]:8080")

// serve runs the server until the test ends, and returns the URL of its root.
func (r *rack) serve(t testing.TB) string {
	t.Helper()
	l, err := net.Listen("tcp", "[::1]:0")
	if err != nil {
		t.Fatal(err)
	}
	stop := r.serveOn(t, l)
	t.Cleanup(stop)
	return "http://" + l.Addr().String()
}

// serveOn runs the server; the function it returns stops it.
func (r *rack) serveOn(t testing.TB, l net.Listener) (stop func()) {
	r.Server.config.URLs.HTTP = loopback
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- r.Serve(ctx, l) }()
	return func() {
		cancel()
		select {
		case err := <-done:
			if err != nil {
				t.Errorf("Serve returned %v", err)
			}
		case <-time.After(deadline):
			t.Error("Serve does not return")
		}
	}
}

func (r *rack) waitForLog(t *testing.T, line string) {
	t.Helper()
	for end := time.Now().Add(deadline); !strings.Contains(r.log.String(), line); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("never logged: %s", line)
		}
	}
}

// witness notes what its connections are given to send by ReadFrom.
type witness struct {
	net.Listener
	mu   sync.Mutex
	from []io.Reader
}

type witnessed struct {
	*net.TCPConn
	w *witness
}

func (w *witness) Accept() (net.Conn, error) {
	c, err := w.Listener.Accept()
	if err != nil {
		return nil, err
	}
	return &witnessed{c.(*net.TCPConn), w}, nil
}

func (c *witnessed) ReadFrom(src io.Reader) (int64, error) {
	c.w.mu.Lock()
	c.w.from = append(c.w.from, src)
	c.w.mu.Unlock()
	return c.TCPConn.ReadFrom(src)
}

// TestSendfile: the connection itself is handed the file, in the one form that
// the net package passes on to the kernel.
func TestSendfile(t *testing.T) {
	r := newRack(t)
	tcp, err := net.Listen("tcp", "[::1]:0")
	if err != nil {
		t.Fatal(err)
	}
	w := &witness{Listener: tcp}
	t.Cleanup(r.serveOn(t, w))
	res, err := http.Get("http://" + tcp.Addr().String() + imagePath + "kernel")
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	got, err := io.ReadAll(res.Body)
	if err != nil || !bytes.Equal(got, r.kernel) {
		t.Fatalf("%d bytes, %v", len(got), err)
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if want := len(r.kernel) / piece; len(w.from) != want {
		t.Errorf("ReadFrom was called %d times, want %d for 3 MB", len(w.from), want)
	}
	for _, from := range w.from {
		limited, ok := from.(*io.LimitedReader)
		if !ok {
			t.Fatalf("sent from %T", from)
		}
		if _, ok := limited.R.(*os.File); !ok {
			t.Errorf("sent from a LimitedReader of %T, not of a file", limited.R)
		}
	}
}

// TestPieces: a file of many pieces arrives whole, by ranges too.
func TestPieces(t *testing.T) {
	r := newRack(t)
	big := bytes.Repeat([]byte("0123456789abcdef"), (2*piece+piece/2)/16)
	big = append(big, "tail"...)
	if err := os.WriteFile(r.blobs.dir+"/big", big, 0o600); err != nil {
		t.Fatal(err)
	}
	r.keeper.images[1].Kernel.SHA256, r.keeper.images[1].Kernel.Size = "big", int64(len(big))
	image := r.keeper.images[1]
	r.keeper.view.Image = &image
	base := r.serve(t)
	for rng, want := range map[string][]byte{"": big, "bytes=5-": big[5:], "bytes=-10": big[len(big)-10:]} {
		req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, base+imagePath+"kernel", nil)
		if err != nil {
			t.Fatal(err)
		}
		if rng != "" {
			req.Header.Set("Range", rng)
		}
		res, err := http.DefaultClient.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		got, err := io.ReadAll(res.Body)
		res.Body.Close()
		if err != nil || sha256.Sum256(got) != sha256.Sum256(want) {
			t.Errorf("range %q: %d bytes, %v; want %d", rng, len(got), err, len(want))
		}
	}
}

// TestStalledPeer: one that stops reading loses its connection, and its download
// does not count.
func TestStalledPeer(t *testing.T) {
	r := newRack(t)
	r.Server.config.Stall = 50 * time.Millisecond
	if err := os.WriteFile(r.blobs.dir+"/k3rn31", make([]byte, 64<<20), 0o600); err != nil { // more than any socket buffers
		t.Fatal(err)
	}
	r.keeper.view.Image.Kernel.Size = 64 << 20
	base := r.serve(t)
	conn, err := net.Dial("tcp", strings.TrimPrefix(base, "http://"))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if _, err := io.WriteString(conn, "GET "+imagePath+"kernel?mac=52:54:00:00:00:01&boot=1 HTTP/1.1\r\nHost: x\r\n\r\n"); err != nil {
		t.Fatal(err)
	}
	if err := conn.SetReadDeadline(time.Now().Add(deadline)); err != nil {
		t.Fatal(err)
	}
	if _, err := conn.Read(make([]byte, 1)); err != nil {
		t.Fatal(err)
	}
	// It reads nothing until the server has given up.
	r.waitForLog(t, "image broken off")
	n, err := io.Copy(io.Discard, conn)
	if errors.Is(err, os.ErrDeadlineExceeded) || n >= 64<<20 {
		t.Errorf("read %d bytes more and then %v, want a connection cut short", n, err)
	}
	if got := r.keeper.kinds(); len(got) != 0 {
		t.Errorf("recorded %v", got)
	}
}

// TestManyShareALink: 1,000 machines that share 1 Gbit/s, one with a quarter of what another
// has, are none that stopped reading.
func TestManyShareALink(t *testing.T) {
	slowest := piece * 8 / newRack(t).Server.config.Stall.Seconds()
	if share := 1e9 / 1000 / 4.0; slowest > share {
		t.Errorf("a peer of less than %.0f bit/s is cut off: want %.0f", slowest, share)
	}
}

// TestHeldLongerThanStall: a connection outlives the deadline it began with.
func TestHeldLongerThanStall(t *testing.T) {
	r := newRack(t)
	r.Server.config.Stall, r.Server.config.Hold = 300*time.Millisecond, time.Second
	r.boots(bootNow(1, token))
	r.configs.fail(errors.New("no disk"))
	client, base := r.serveTLS(t)
	res, err := client.Get(base + configPath + token)
	if err != nil {
		t.Fatal(err)
	}
	res.Body.Close()
	if res.StatusCode != http.StatusNoContent {
		t.Errorf("status %d, want 204", res.StatusCode)
	}
}

// TestStop: held requests are answered, idle and silent connections closed.
func TestStop(t *testing.T) {
	r := newRack(t)
	r.boots(bootNow(1, token))
	r.keeper.view.Cluster.Delivery = inventory.OverHTTP
	r.configs.fail(errors.New("no disk"))
	l, err := net.Listen("tcp", "[::1]:0")
	if err != nil {
		t.Fatal(err)
	}
	stop := r.serveOn(t, l)
	idle, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer idle.Close()
	status := make(chan int, 1)
	go func() {
		res, err := http.Get("http://" + l.Addr().String() + "/config/52:54:00:00:00:01/" + token)
		if err != nil {
			t.Error(err)
			status <- 0
			return
		}
		res.Body.Close()
		status <- res.StatusCode
	}()
	r.waitForLog(t, "config request waits")
	stop()
	if got := <-status; got != http.StatusNoContent {
		t.Errorf("the held request is answered with %d, want 204", got)
	}
	if _, err := net.Dial("tcp", l.Addr().String()); err == nil {
		t.Error("it still listens")
	}
	r.keeper.mu.Lock()
	defer r.keeper.mu.Unlock()
	if len(r.keeper.watches) != 0 {
		t.Error("it still watches the inventory")
	}
}

// TestBodies: a body that nobody asked for does not keep a connection.
func TestBodies(t *testing.T) {
	r := newRack(t)
	base := r.serve(t)
	conn, err := net.Dial("tcp", strings.TrimPrefix(base, "http://"))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if _, err := io.WriteString(conn, "GET /boot.ipxe HTTP/1.1\r\nHost: x\r\nContent-Length: 1000000\r\n\r\nslow"); err != nil {
		t.Fatal(err)
	}
	if err := conn.SetReadDeadline(time.Now().Add(deadline)); err != nil {
		t.Fatal(err)
	}
	got, err := io.ReadAll(conn)
	if errors.Is(err, os.ErrDeadlineExceeded) || !strings.HasPrefix(string(got), "HTTP/1.1 200 OK\r\n") {
		t.Errorf("read %q and then %v, want an answer and the end", got, err)
	}
}

// TestSlowClients: thousands who connect and never finish asking keep nobody from his
// script or config.
func TestSlowClients(t *testing.T) {
	const many = 2000
	r := newRack(t)
	r.boots(bootNow(1, token))
	plain := r.serve(t)
	client, secure := r.serveTLS(t)
	var slow []net.Conn
	t.Cleanup(func() {
		for _, c := range slow {
			c.Close()
		}
	})
	for i := range many {
		at, says := strings.TrimPrefix(plain, "http://"), "GET /boot/52:54:00:00:00:01/boot.ipxe HTTP/1.1\r\nHost: x\r\nX-Slow: "
		if i%2 == 1 {
			at, says = strings.TrimPrefix(secure, "https://"), "\x16\x03\x01\x02\x00\x01\x00" // the beginning of a ClientHello
		}
		c, err := net.Dial("tcp", at)
		if err != nil {
			t.Fatalf("after %d: %v", i, err)
		}
		slow = append(slow, c)
		if _, err := io.WriteString(c, says); err != nil {
			t.Fatal(err)
		}
	}
	for url, want := range map[string]string{plain + scriptPath: "talos.config=", secure + configPath + token: "v1alpha1"} {
		res, err := client.Get(url)
		if err != nil {
			t.Fatal(err)
		}
		body, err := io.ReadAll(res.Body)
		res.Body.Close()
		if err != nil || res.StatusCode != http.StatusOK || !strings.Contains(string(body), want) {
			t.Errorf("%s: %d %q %v", url, res.StatusCode, body, err)
		}
	}
}

// TestConnectionsAreLimited: one address has so many open, and others as many as they
// need meanwhile.
func TestConnectionsAreLimited(t *testing.T) {
	here := &net.TCPAddr{IP: net.IPv6loopback}
	inner, err := net.ListenTCP("tcp6", here)
	if err != nil {
		t.Fatal(err)
	}
	l := &limited{Listener: inner, lab: func(netip.Addr) bool { return false }, open: map[netip.Addr]int{}}
	defer l.Close()
	accepted := make(chan net.Conn, 2*maxOfPeer)
	go func() {
		defer close(accepted)
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			accepted <- c
		}
	}()
	var open []net.Conn
	for range maxOfPeer {
		c, err := net.Dial("tcp", inner.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		open = append(open, <-accepted)
	}
	more, err := net.Dial("tcp", inner.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer more.Close()
	if n, err := more.Read(make([]byte, 1)); n > 0 || err == nil {
		t.Errorf("one more is not closed: %d %v", n, err)
	}
	if !l.enter(netip.MustParseAddr("2001:db8::11")) {
		t.Error("another address is turned away")
	}
	if err := open[0].Close(); err != nil {
		t.Fatal(err)
	}
	_ = open[0].Close() // is counted once
	again, err := net.Dial("tcp", inner.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer again.Close()
	if c := <-accepted; c == nil {
		t.Error("one that is closed makes no room")
	}
}
