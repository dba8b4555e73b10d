package dhcpv6

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/net/ipv6"
	"golang.org/x/sys/unix"
)

// jobVariable makes this test binary do one part of a benchmark, in a process and on
// a core of its own: a server on the first, its clients on the second.
const jobVariable = "PROVISIOND_BENCH_DHCPV6"

type job struct {
	Ours  *ourServer  `json:",omitempty"`
	Bare  *bareServer `json:",omitempty"`
	Loads *load       `json:",omitempty"`
}

func jobMain(text string) error {
	var j job
	if err := json.Unmarshal([]byte(text), &j); err != nil {
		return err
	}
	switch {
	case j.Ours != nil:
		return j.Ours.main()
	case j.Bare != nil:
		return j.Bare.main()
	case j.Loads != nil:
		return j.Loads.main()
	}
	return errors.New("no job")
}

// pinned is a command on one core, as far as there are several.
func pinned(core int, name string, args ...string) *exec.Cmd {
	if core >= runtime.NumCPU() {
		return exec.Command(name, args...)
	}
	return exec.Command("taskset", append([]string{"-c", fmt.Sprint(core), name}, args...)...)
}

func jobCommand(core int, j job) (*exec.Cmd, error) {
	text, err := json.Marshal(j)
	cmd := pinned(core, os.Args[0])
	cmd.Env, cmd.Stderr = append(os.Environ(), jobVariable+"="+string(text)), os.Stderr
	return cmd, err
}

// startServer starts a server and returns where it is.
func startServer(b *testing.B, j job) (at netip.AddrPort, stop func()) {
	b.Helper()
	cmd, err := jobCommand(0, j)
	if err != nil {
		b.Fatal(err)
	}
	stdin, err1 := cmd.StdinPipe()
	stdout, err2 := cmd.StdoutPipe()
	if err := errors.Join(err1, err2, cmd.Start()); err != nil {
		b.Fatal(err)
	}
	line, err := bufio.NewReader(stdout).ReadString('\n')
	if err != nil {
		b.Fatal(err)
	}
	return netip.MustParseAddrPort(strings.TrimSpace(line)), func() {
		_ = stdin.Close() // ends it
		_ = cmd.Wait()
	}
}

// load is a number of machines that boot behind a relay: Solicit, Advertise, Request,
// Reply, some of them at a time.
type load struct {
	Server netip.AddrPort
	Local  uint16 // the relay's port; 0: any
	// Machines boot in turn, each Stride after the last: hallMAC(First), hallMAC(First+Stride) …
	First, Stride, Machines int
	Flight                  int // exchanges at a time
	Times                   int // exchanges in all
}

type loadResult struct {
	Elapsed, P99 time.Duration
	Repeats      int // messages that were sent again, after a second
}

func (r loadResult) rate(l load) float64 { return float64(l.Times) / r.Elapsed.Seconds() }

// run runs the load in a process of its own.
func (l load) run(b *testing.B) loadResult {
	b.Helper()
	cmd, err := jobCommand(1, job{Loads: &l})
	if err != nil {
		b.Fatal(err)
	}
	out, err := cmd.Output()
	var r loadResult
	if err != nil || json.Unmarshal(out, &r) != nil {
		b.Fatalf("%v: %s", err, out)
	}
	return r
}

// template is a packet of which only the machine and the transaction change.
type template struct {
	b               []byte
	xid, peer, duid int
}

// placeholderMAC stands in a template's DUID where fill writes the machine's.
var placeholderMAC = []byte{0x52, 0x54, 0xfa, 0xce, 0xfa, 0xce}

// benchClient is OVMF's PXE client; each machine has a DUID of its own.
func benchClient() client {
	c := ovmfPXE
	c.duid = slices.Concat(c.duid[:12], placeholderMAC)
	return c
}

func newTemplate(m []byte) template {
	anyMAC := hallMAC(0) // fill writes the machine's over its address
	b := throughRelay(anyMAC, m)
	t := template{b: b, peer: 18, duid: bytes.Index(b, placeholderMAC)}
	t.xid = bytes.Index(b, m[:4]) + 1
	return t
}

// fill makes the i-th machine's packet.
func (t template) fill(to []byte, i int, xid uint32) []byte {
	to = append(to[:0], t.b...)
	to[t.xid] = byte(xid >> 16)
	binary.BigEndian.PutUint16(to[t.xid+1:], uint16(xid))
	binary.BigEndian.PutUint32(to[t.duid+2:], uint32(i))
	// fe80::5054:iiff:feii:iiii with the universal bit turned.
	peer := to[t.peer : t.peer+16]
	copy(peer[8:], []byte{0x50, 0x54, byte(i >> 24), 0xff, 0xfe, byte(i >> 16), byte(i >> 8), byte(i)})
	return to
}

// flying is one exchange under way; its transaction id is its place and a count.
type flying struct {
	machine     int
	xid         uint32
	requested   bool
	began, sent time.Time
	last        []byte // nil: it is over
}

// clients is a load under way.
type clients struct {
	load
	conn             *ipv6.PacketConn
	flights          []flying
	solicit, request template
	out              []ipv6.Message
	took             []time.Duration
	begun, repeats   int
	looked           time.Time // for what had no answer
}

// main is the clients.
func (l load) main() error {
	udp, err := net.ListenUDP("udp6", &net.UDPAddr{IP: net.IPv6loopback, Port: int(l.Local)})
	if err != nil {
		return err
	}
	defer func() { _ = udp.Close() }()
	_ = udp.SetReadBuffer(receiveBuffer)
	c := &clients{load: l, conn: ipv6.NewPacketConn(udp), flights: make([]flying, l.Flight), solicit: newTemplate(benchClient().first())}
	begin := time.Now()
	for i := range c.flights {
		c.next(i, begin)
	}
	raw, err := udp.SyscallConn()
	if err != nil {
		return err
	}
	buf := make([]byte, maxMessage)
	for len(c.took) < l.Times {
		if err := c.flush(); err != nil {
			return err
		}
		now := time.Now()
		for range l.Flight {
			n := 0
			// Clients that sleep would have the server wake them, which on a virtual
			// machine can cost it more than all the rest.
			_ = raw.Control(func(fd uintptr) { n, _, err = unix.Recvfrom(int(fd), buf, unix.MSG_DONTWAIT) })
			if err != nil {
				break
			}
			if err := c.receive(buf[:n], now); err != nil {
				return err
			}
		}
		if now.Sub(begin) > 5*time.Minute {
			return fmt.Errorf("only %d of %d exchanges within five minutes", len(c.took), l.Times)
		}
		c.again(now)
	}
	slices.Sort(c.took)
	return json.NewEncoder(os.Stdout).Encode(loadResult{time.Since(begin), c.took[len(c.took)*99/100], c.repeats})
}

// next begins an exchange in place of one that is over.
func (c *clients) next(i int, now time.Time) {
	f := &c.flights[i]
	if c.begun == c.Times {
		f.last = nil
		return
	}
	*f = flying{
		machine: c.First + c.begun%c.Machines*c.Stride, xid: uint32(i)<<10 | uint32(c.begun/c.Flight)&0x3ff, began: now, last: f.last[:0],
	}
	c.begun++
	f.last = c.solicit.fill(f.last, f.machine, f.xid)
	c.send(f, now)
}

func (c *clients) send(f *flying, now time.Time) {
	f.sent = now
	c.out = append(c.out, ipv6.Message{Buffers: [][]byte{f.last}, Addr: net.UDPAddrFromAddrPort(c.Server)})
}

func (c *clients) flush() error {
	for len(c.out) > 0 {
		n, err := c.conn.WriteBatch(c.out, 0)
		if err != nil {
			return err
		}
		c.out = c.out[n:]
	}
	c.out = c.out[:0]
	return nil
}

func (c *clients) receive(b []byte, now time.Time) error {
	inner := relayedMessage(b)
	if len(inner) < 4 {
		return fmt.Errorf("an answer without a message: %x", b)
	}
	xid := uint32(inner[1])<<16 | uint32(binary.BigEndian.Uint16(inner[2:]))
	f := &c.flights[int(xid>>10)%len(c.flights)]
	switch {
	case f.xid != xid || f.last == nil: // a repeat's
	case inner[0] == advertise && !f.requested:
		if c.request.b == nil {
			server, _ := options(inner[4:]).find(2)
			m := benchClient().with(request, benchClient().ia)
			c.request = newTemplate(bytes.Replace(m, opt(2, serverDUID), opt(2, server), 1))
		}
		f.requested, f.last = true, c.request.fill(f.last, f.machine, f.xid)
		c.send(f, now)
	case inner[0] == replied:
		if _, leased := options(inner[4:]).find(3); !leased || !bytes.Contains(inner, []byte{0, 5, 0, 24}) {
			return fmt.Errorf("a Reply without an address: %x", inner)
		}
		c.took = append(c.took, now.Sub(f.began))
		c.next(int(xid>>10)%len(c.flights), now)
	}
	return nil
}

// again sends what had no answer for a second (RFC 8415 section 15, SOL_TIMEOUT).
func (c *clients) again(now time.Time) {
	if now.Sub(c.looked) < 100*time.Millisecond {
		return
	}
	c.looked = now
	for i := range c.flights {
		if f := &c.flights[i]; f.last != nil && now.Sub(f.sent) > time.Second {
			c.repeats++
			c.send(f, now)
		}
	}
}

// relayedMessage is the message in a Relay-reply.
func relayedMessage(b []byte) []byte {
	inner, _ := options(b[min(len(b), 34):]).find(9)
	return inner
}

// bareServer answers every packet with one of two packets that were made before, of
// the size of real answers: what a server would cost that did nothing.
type bareServer struct{ Advertise, Reply []byte }

func (s *bareServer) main() error {
	conn, err := net.ListenUDP("udp6", &net.UDPAddr{IP: net.IPv6loopback})
	if err != nil {
		return err
	}
	_ = conn.SetReadBuffer(receiveBuffer)
	in := len(s.Advertise) - len(relayedMessage(s.Advertise))
	go func() {
		buf := make([]byte, maxMessage)
		for {
			n, from, err := conn.ReadFromUDPAddrPort(buf)
			if err != nil {
				return
			}
			m := relayedMessage(buf[:n])
			out := s.Advertise
			if m[0] == request {
				out = s.Reply
			}
			copy(out[in+1:], m[1:4])
			_, _ = conn.WriteToUDPAddrPort(out, from)
		}
	}()
	untilTold(conn)
	return conn.Close()
}

// untilTold says where a server is and waits for the end of standard input.
func untilTold(conn net.PacketConn) {
	fmt.Println(conn.LocalAddr())
	_, _ = os.Stdin.Read(make([]byte, 1))
}
