package racktest

import (
	"bufio"
	"context"
	"encoding/json"
	"net"
	"testing"
	"time"
)

// A receiver that breaks off is sent all again, from the first line, and nobody
// is left when the machine goes down.
func TestKernelLogBeginsAnew(t *testing.T) {
	l, err := net.Listen("tcp6", "[::1]:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	if err := l.(*net.TCPListener).SetDeadline(time.Now().Add(patience)); err != nil {
		t.Fatal(err)
	}
	k := newKernelLog()
	k.kernel("Linux version")
	k.talos("phase %s", "config")
	draining, done := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(done)
		k.stream(context.Background(), l.Addr().String(), FastTiming(), draining)
	}()
	type line struct {
		Seq, Clock int64
		Msg        string
	}
	read := func(n int) (lines []line, conn net.Conn) {
		t.Helper()
		conn, err := l.Accept()
		if err != nil {
			t.Fatal(err)
		}
		_ = conn.SetDeadline(time.Now().Add(patience))
		in := bufio.NewScanner(conn)
		for len(lines) < n && in.Scan() {
			var got line
			if err := json.Unmarshal(in.Bytes(), &got); err != nil {
				t.Fatal(err)
			}
			lines = append(lines, got)
		}
		if len(lines) != n {
			t.Fatalf("%d lines of %d: %v", len(lines), n, in.Err())
		}
		return lines, conn
	}
	first, conn := read(2)
	conn.Close()
	k.talos("after")
	again, conn := read(3)
	close(draining)
	receive(t, "the end of the stream", done)
	conn.Close()
	if first[0] != again[0] || first[1] != again[1] || again[2].Seq != 2 || again[2].Msg != "[talos] after\n" {
		t.Errorf("first %+v, then %+v", first, again)
	}
	if first[0].Clock != 0 || first[1].Clock < 2e6 || again[2].Clock < first[1].Clock {
		t.Errorf("the clocks are %+v", again)
	}
	var none *kernelLog
	none.talos("nobody hears this")
}
