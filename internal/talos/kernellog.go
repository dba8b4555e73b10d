package talos

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"sync"
	"time"

	"github.com/rs/zerolog"
	"golang.org/x/net/netutil"
	"golang.org/x/time/rate"

	"github.com/provisiond/provisiond/internal/inventory"
)

// Bounds of the kernel log receiver, which nobody has to prove anything to.
const (
	// firstLine is how long a connection may take to send a line that is one.
	firstLine    = time.Minute
	maxLogConns  = 16384     // open connections; each machine has one for as long as it runs
	maxLogLine   = 16 << 10  // bytes of one line; the longest seen had 1154
	logRate      = 128 << 10 // bytes per second of one connection, in the long run
	logBurst     = 4 << 20   // and at once: more than a kernel's whole ring buffer
	lineCost     = 64        // bytes that a line counts for beside its own
	maxGarbage   = 100       // lines of a connection that mean nothing, before one that does
	maxUnnamed   = 64        // connections of unknown addresses whose lines are held at once,
	maxHeldLines = 1500      // how many of them
	maxHeldBytes = 256 << 10 // and how long
	askAgain     = 10 * time.Second
)

// KernelLog is the receiver that Talos' talos.logging.kernel and KmsgLogConfig
// name: JSON lines over TCP. It is as unauthenticated as the event sink, and
// what it hears is for people alone.
type KernelLog struct {
	logs    Logs
	resolve Resolver
	log     zerolog.Logger
	unnamed chan struct{} // one token for each connection that holds lines
	metrics kernelMetrics
}

// NewKernelLog returns a KernelLog. It does no I/O.
func NewKernelLog(logs Logs, resolve Resolver, log zerolog.Logger) *KernelLog {
	return &KernelLog{logs: logs, resolve: resolve, log: log, unnamed: make(chan struct{}, maxUnnamed), metrics: newKernelMetrics()}
}

// Serve receives on l until ctx ends, then closes it and every connection. It
// returns nil when ctx ended.
func (k *KernelLog) Serve(parent context.Context, l net.Listener) error {
	ctx, cancel := context.WithCancel(parent)
	var conns sync.WaitGroup
	defer conns.Wait()
	defer cancel()
	l = netutil.LimitListener(l, maxLogConns)
	defer context.AfterFunc(ctx, func() { _ = l.Close() })()
	defer l.Close() //nolint:errcheck // nothing was written
	for {
		conn, err := l.Accept()
		switch {
		case parent.Err() != nil:
			if err == nil {
				_ = conn.Close()
			}
			return nil
		case errors.Is(err, net.ErrClosed):
			return fmt.Errorf("receiving kernel logs: %w", err)
		case err != nil: // such as too many open files, which passes
			k.log.Warn().Err(err).Msg("cannot accept a connection; trying again")
			select {
			case <-ctx.Done():
			case <-time.After(time.Second):
			}
			continue
		}
		conns.Go(func() { k.receive(ctx, conn) })
	}
}

// receive reads one connection until it ends.
func (k *KernelLog) receive(ctx context.Context, conn net.Conn) {
	defer conn.Close() //nolint:errcheck // nothing was written
	defer context.AfterFunc(ctx, func() { _ = conn.Close() })()
	c := &logConn{k: k, limit: rate.NewLimiter(logRate, logBurst)}
	if tcp, ok := conn.RemoteAddr().(*net.TCPAddr); ok {
		c.peer = tcp.AddrPort().Addr().Unmap()
	}
	defer c.close()
	k.metrics.conns.Inc()
	defer k.metrics.conns.Dec()
	err := c.read(ctx, conn)
	k.log.Debug().Str("machine", c.machine).Stringer("peer", c.peer).Uint64("lines", c.taken).Uint64("unknown", c.unknown).
		Uint64("tooLong", c.long).Uint64("garbage", c.garbage).AnErr("reason", err).Msg("a kernel log ended")
}

// logConn is one connection and what is known of its sender.
type logConn struct {
	k       *KernelLog
	peer    netip.Addr
	limit   *rate.Limiter
	machine string
	lines   KernelLines // nil: nobody's yet
	asked   time.Time   // when the address was last looked up

	holding bool // it has one of k.unnamed
	held    []LogLine
	bytes   int

	taken, unknown, long, garbage uint64
}

func (c *logConn) close() {
	c.release()
	if c.lines != nil {
		c.lines.Close()
	}
}

// read takes line after line. It waits when they come too fast, which makes the
// sender wait.
func (c *logConn) read(ctx context.Context, conn net.Conn) error {
	in := bufio.NewReader(conn)
	// Talos sends its whole log at once; who says nothing takes a place from others.
	if err := conn.SetReadDeadline(time.Now().Add(firstLine)); err != nil {
		return err
	}
	var line []byte
	tooLong := false
	for {
		part, err := in.ReadSlice('\n')
		if limitErr := c.limit.WaitN(ctx, len(part)+lineCost); limitErr != nil {
			return limitErr
		}
		if tooLong = tooLong || len(line)+len(part) > maxLogLine; tooLong {
			line = line[:0]
		} else {
			line = append(line, part...)
		}
		if errors.Is(err, bufio.ErrBufferFull) {
			continue
		}
		if err != nil {
			return err // an unfinished line is sent again with the next connection
		}
		if tooLong {
			c.k.metrics.long.Inc()
			if c.long++; c.long == 1 {
				c.k.log.Warn().Str("machine", c.machine).Stringer("peer", c.peer).Int("limit", maxLogLine).Msg("a line of a kernel log is too long and left out")
			}
		} else if err := c.take(ctx, line); err != nil {
			return err
		} else if c.taken == 1 {
			if err := conn.SetReadDeadline(time.Time{}); err != nil {
				return err
			}
		}
		line, tooLong = line[:0], false
	}
}

var (
	errNoKernelLog = errors.New("this is no kernel log")
	errFromStart   = errors.New("the sender is known now and shall send all again")
)

// take handles one line. An error ends the connection.
func (c *logConn) take(ctx context.Context, b []byte) error {
	l, err := parseKernelLine(b)
	if err != nil {
		c.k.metrics.garbage.Inc()
		if c.garbage++; c.garbage >= maxGarbage && c.taken == 0 {
			return errNoKernelLog
		}
		return nil
	}
	c.taken++
	if c.lines != nil {
		return c.keep(l)
	}
	if err := c.identify(ctx, l); err != nil {
		return err
	}
	if c.lines == nil {
		c.hold(l)
		return nil
	}
	held := c.held
	c.release()
	for _, h := range held {
		if err := c.keep(h); err != nil {
			return err
		}
	}
	return c.keep(l)
}

// keep puts a line into the machine's log.
func (c *logConn) keep(l LogLine) error {
	c.k.metrics.lines.Inc()
	return c.lines.Append(l)
}

// identify finds the machine by the peer's address; on loopback also by the name it
// gives itself (see [EventSink]).
func (c *logConn) identify(ctx context.Context, l LogLine) error {
	const byAddress = "peer address"
	var name, how string
	if now := time.Now(); c.asked.IsZero() || now.Sub(c.asked) >= askAgain {
		first := c.asked.IsZero()
		c.asked = now
		if found, _, ok := c.k.resolve.MachineByAddress(ctx, c.peer); ok {
			name, how = found, byAddress
		} else if first {
			c.k.log.Info().Stringer("peer", c.peer).Str("reason", "its address is not known").Msg("kernel log of an unknown machine")
		}
	}
	if said := hostname(l.Text); name == "" && c.peer.IsLoopback() && inventory.CheckName("hostname", said) == nil {
		if _, ok := c.k.resolve.MachineByName(ctx, said); ok {
			name, how = said, "reported host name"
		}
	}
	if name == "" {
		return nil
	}
	if c.unknown > 0 && how == byAddress { // Talos begins each connection with the first line
		return errFromStart
	}
	lines, err := c.k.logs.Kernel(name)
	if err != nil {
		return err
	}
	c.machine, c.lines = name, lines
	c.k.log.Info().Str("machine", name).Stringer("peer", c.peer).Str("reason", how).Msg("a machine sends its kernel log")
	return nil
}

// hold keeps a line of nobody until its machine is known; without room for it
// all of them are dropped.
func (c *logConn) hold(l LogLine) {
	if c.unknown == 0 && !c.holding {
		select {
		case c.k.unnamed <- struct{}{}:
			c.holding = true
		default:
		}
	}
	if c.holding && len(c.held) < maxHeldLines && c.bytes+len(l.Text) < maxHeldBytes {
		c.held, c.bytes = append(c.held, l), c.bytes+len(l.Text)
		return
	}
	c.unknown += uint64(len(c.held)) + 1
	c.k.metrics.unknown.Add(float64(len(c.held)) + 1)
	c.release()
}

// release gives up the lines that are held.
func (c *logConn) release() {
	c.held, c.bytes = nil, 0
	if c.holding {
		c.holding = false
		<-c.k.unnamed
	}
}
