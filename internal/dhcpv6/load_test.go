package dhcpv6

import (
	"context"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"runtime"
	"slices"
	"testing"
	"time"
)

// loadVariable makes this test binary be the clients of a benchmark, so that they
// take no time of the server's core.
const loadVariable = "PROVISIOND_BENCH_DHCPV6"

// load is a number of machines that boot behind a relay: Solicit, Advertise,
// Request, Reply, some of them at a time.
type load struct {
	Server   netip.AddrPort
	Machines int // hallMAC(0) and on
	Flight   int // exchanges at a time
	Times    int // exchanges in all
}

type loadResult struct {
	Elapsed, P99 time.Duration
	Repeats      int // messages that were sent again, after a second
}

// run runs the load in a process of its own.
func (l load) run(b *testing.B) loadResult {
	b.Helper()
	job, err := json.Marshal(l)
	if err != nil {
		b.Fatal(err)
	}
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), loadVariable+"="+string(job))
	cmd.Stderr = os.Stderr
	out, err := cmd.Output()
	var r loadResult
	if err != nil || json.Unmarshal(out, &r) != nil {
		b.Fatalf("%v: %s", err, out)
	}
	return r
}

// flying is one exchange under way; its transaction id is its place and a count.
type flying struct {
	machine     int
	xid         uint32
	began, sent time.Time
	last        []byte
}

// loadMain is the clients.
func loadMain(job string) error {
	var l load
	if err := json.Unmarshal([]byte(job), &l); err != nil {
		return err
	}
	conn, err := net.DialUDP("udp6", nil, net.UDPAddrFromAddrPort(l.Server))
	if err != nil {
		return err
	}
	defer func() { _ = conn.Close() }()
	_ = conn.SetReadBuffer(receiveBuffer)
	slots := make([]flying, l.Flight)
	var r loadResult
	took := make([]time.Duration, 0, l.Times)
	begun := 0
	send := func(f *flying, message []byte) error {
		binary.BigEndian.PutUint16(message[2:], uint16(f.xid))
		message[1] = byte(f.xid >> 16)
		f.sent, f.last = time.Now(), throughRelay(hallMAC(f.machine), message)
		_, err := conn.Write(f.last)
		return err
	}
	next := func(i int) error {
		if begun == l.Times {
			slots[i].last = nil
			return nil
		}
		f := &slots[i]
		*f = flying{machine: begun % l.Machines, xid: uint32(i)<<12 | uint32(begun)&0xfff, began: time.Now()}
		begun++
		return send(f, ovmfPXE.first())
	}
	begin := time.Now()
	for i := range slots {
		if err := next(i); err != nil {
			return err
		}
	}
	buf := make([]byte, maxMessage)
	for len(took) < l.Times {
		_ = conn.SetReadDeadline(time.Now().Add(100 * time.Millisecond))
		n, err := conn.Read(buf)
		if err != nil {
			for i := range slots {
				if f := &slots[i]; f.last != nil && time.Since(f.sent) > time.Second {
					r.Repeats++
					f.sent = time.Now()
					_, _ = conn.Write(f.last)
				}
			}
			if time.Since(begin) > 2*time.Minute {
				return fmt.Errorf("only %d of %d exchanges within two minutes", len(took), l.Times)
			}
			continue
		}
		inner := relayedMessage(buf[:n])
		if len(inner) < 4 {
			return fmt.Errorf("an answer without a message: %x", buf[:n])
		}
		xid := uint32(inner[1])<<16 | uint32(binary.BigEndian.Uint16(inner[2:]))
		f := &slots[int(xid>>12)%len(slots)]
		switch {
		case f.xid != xid || f.last == nil: // a repeat's
		case inner[0] == advertise && f.last[len(f.last)-1] != 0xff:
			if err := send(f, append(ovmfPXE.with(request, ovmfPXE.ia), opt(0xffff, []byte{0xff})...)); err != nil {
				return err
			}
		case inner[0] == replied:
			took = append(took, time.Since(f.began))
			if err := next(int(xid>>12) % len(slots)); err != nil {
				return err
			}
		}
	}
	r.Elapsed = time.Since(begin)
	slices.Sort(took)
	r.P99 = took[len(took)*99/100]
	return json.NewEncoder(os.Stdout).Encode(r)
}

// relayedMessage is the message in a Relay-reply.
func relayedMessage(b []byte) []byte {
	for b = b[min(len(b), 34):]; len(b) >= 4; {
		n := 4 + int(binary.BigEndian.Uint16(b[2:]))
		if n > len(b) {
			return nil
		}
		if binary.BigEndian.Uint16(b) == 9 {
			return b[4:n]
		}
		b = b[n:]
	}
	return nil
}

// bareResponder answers every packet with one of two packets that were made
// before, of the size of real answers: what a server would cost that did nothing.
func bareResponder(b *testing.B, advertisement, reply []byte) netip.AddrPort {
	b.Helper()
	conn, err := net.ListenUDP("udp6", &net.UDPAddr{IP: net.IPv6loopback})
	if err != nil {
		b.Fatal(err)
	}
	_ = conn.SetReadBuffer(receiveBuffer)
	b.Cleanup(func() { _ = conn.Close() })
	in := len(advertisement) - len(relayedMessage(advertisement))
	go func() {
		buf := make([]byte, maxMessage)
		for {
			n, from, err := conn.ReadFromUDPAddrPort(buf)
			if err != nil {
				return
			}
			m := relayedMessage(buf[:n])
			out := advertisement
			if m[0] == request {
				out = reply
			}
			copy(out[in+1:], m[1:4])
			_, _ = conn.WriteToUDPAddrPort(out, from)
		}
	}()
	return conn.LocalAddr().(*net.UDPAddr).AddrPort()
}

// BenchmarkServe compares the rate of exchanges with registered machines, 100,000
// of them, 64 at a time, on one core, with a responder that does nothing; and the
// time until 10,000 machines that solicit at once all have their Reply.
func BenchmarkServe(b *testing.B) {
	h := newHall(b, 100_000)
	conn, err := Listen(b.Context(), ListenConfig{Address: netip.IPv6Loopback()})
	if err != nil {
		b.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- h.server.Serve(ctx, conn) }()
	b.Cleanup(func() {
		cancel()
		<-done
	})
	var packets [2][]byte
	for i, m := range [][]byte{ovmfPXE.first(), ovmfPXE.with(request, ovmfPXE.ia)} {
		out, err := h.server.handle(b.Context(), viaRelay(throughRelay(hallMAC(1), m)))
		if err != nil {
			b.Fatal(err)
		}
		packets[i] = out.data
	}
	ours := load{Server: conn.LocalAddr().(*net.UDPAddr).AddrPort(), Machines: booting, Flight: 64, Times: 50_000}
	bare := ours
	bare.Server = bareResponder(b, packets[0], packets[1])
	atOnce := load{Server: ours.Server, Machines: 10_000, Flight: 4096, Times: 10_000}
	defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(1))
	ours.run(b) // every view is known now
	for b.Loop() {
		them, us := bare.run(b), ours.run(b)
		b.ReportMetric(float64(them.Elapsed)/float64(us.Elapsed), "rate-ratio")
		b.ReportMetric(float64(ours.Times)/us.Elapsed.Seconds(), "exchanges/s")
		b.ReportMetric(float64(us.P99.Microseconds()), "p99-µs")
		herd := atOnce.run(b)
		b.ReportMetric(float64(herd.Elapsed.Milliseconds()), "ms-for-10k")
		b.ReportMetric(float64(herd.Repeats+us.Repeats), "repeats")
	}
}
