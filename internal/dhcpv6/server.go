package dhcpv6

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"runtime"
	"sync"
	"time"

	"github.com/rs/zerolog"
	"golang.org/x/net/ipv6"
	"golang.org/x/sys/unix"

	"github.com/provisiond/provisiond/internal/inventory"
)

// Inventory is what the server asks and tells. [inventory.Keeper] is one. All
// methods must be safe for concurrent use.
type Inventory interface {
	// View returns what is known of the machine behind a NIC; its Machine is nil
	// for a stranger, which is no error. arch may be empty.
	View(ctx context.Context, mac inventory.MAC, arch inventory.Arch) (inventory.View, error)
	// Learnt returns the MAC a DUID was seen with earlier.
	Learnt(ctx context.Context, duid []byte) (inventory.MAC, bool)
	// Bind chooses the address of one IA: the same again for the same MAC, DUID
	// and IAID, promised until the lease's Expires. With Commit it is durable when
	// Bind returns. Errors are ErrFull (no free address) and ErrRefused (this
	// client gets none).
	Bind(ctx context.Context, b inventory.Binding) (inventory.Lease, error)
	// Release gives addresses of an IA back, and Decline reports that somebody
	// else uses them. Both return ErrNotFound when the IA has none of them. They
	// find it by MAC, DUID and IAID; Client is a guess in these messages.
	Release(ctx context.Context, b inventory.Binding, addrs []netip.Addr) error
	Decline(ctx context.Context, b inventory.Binding, addrs []netip.Addr) error
	// Registered reports whether a NIC is one of a registered machine. It is asked
	// for every packet, and cheaper than View.
	Registered(mac inventory.MAC) bool
	// Subnets are those of now; they have passed [inventory.ValidateSubnets] and
	// are not changed.
	Subnets() []inventory.Subnet
	// Record folds an event into the facts.
	Record(ctx context.Context, e inventory.Event) (inventory.View, error)
}

// Neighbours is a neighbour table: the link-layer address of an on-link
// address, if it is known. [KernelNeighbours] is one.
type Neighbours interface {
	Lookup(addr netip.Addr, ifindex int) (inventory.MAC, bool)
}

// BootURLs names what a client boots: tftp://[addr]/path for FirmwarePXE,
// http://[addr]/path.efi for FirmwareHTTP, a loader or a UKI by the way, the script's URL
// for IPXE. It reports false when there is no such file. arch is empty when iPXE did not tell. URLs
// go out in clear and into the log: they must hold no secret.
type BootURLs interface {
	Start(way inventory.Way, client inventory.Client, arch inventory.Arch, mac inventory.MAC, v *inventory.View) (string, bool)
}

// Config is what a server needs to know.
type Config struct {
	// ServerDUID identifies the server for ever (RFC 8415 section 11), 3 to 130
	// octets with the type. Clients that hold a lease ask for it by this name.
	ServerDUID []byte
	// Boot may be nil: then no client is given a URL.
	Boot BootURLs
}

// Server is a DHCPv6 server.
type Server struct {
	cfg        Config
	inv        Inventory
	neighbours Neighbours
	log        zerolog.Logger
	decisions  zerolog.Logger // the same, sampled: a flood of packets is no flood of lines
	drops      *drops
	exchanges  exchanges
}

// maxDecisionsPerSecond bounds the log lines of answers. A rack of 100 machines
// that is switched on at once needs four a machine, over half a minute.
const maxDecisionsPerSecond = 200

// New returns a server. neighbours may be nil: then a NIC is never looked up.
func New(cfg Config, inv Inventory, neighbours Neighbours, log zerolog.Logger) *Server {
	return &Server{
		cfg: cfg, inv: inv, neighbours: neighbours, log: log, drops: newDrops(), exchanges: newExchanges(),
		decisions: log.Sample(&zerolog.BurstSampler{Burst: maxDecisionsPerSecond, Period: time.Second}),
	}
}

const (
	// queueLength is how many packets wait for a worker: a hall's first Solicits at
	// once, some 4 MB of them. They are asked again after a second, so that a longer
	// queue would hold repeats only.
	queueLength = 1 << 14
	// maxCommits is how many strangers' leases can share one write to disk.
	maxCommits = 64
	// answerWithin bounds the work on one packet. By then its client has asked
	// again.
	answerWithin = 5 * time.Second
	// retryRead is the pause after a failed read that was not the end.
	retryRead = 100 * time.Millisecond
)

// packet is a datagram as it arrived.
type packet struct {
	data    []byte
	src     netip.AddrPort // the zone is dropped: ifindex says it
	dst     netip.Addr     // invalid: not known
	ifindex int
	ifname  string
}

// answer is a datagram to be sent.
type answer struct {
	data    []byte
	dst     netip.AddrPort
	src     netip.Addr // invalid: the kernel chooses
	ifindex int        // 0: the routing table chooses
}

// Serve answers packets from conn, a UDP socket such as [Listen] returns, until
// ctx ends; then it returns nil. It closes conn and leaves no goroutine behind.
func (s *Server) Serve(ctx context.Context, conn net.PacketConn) error {
	closed := make(chan struct{})
	stop := context.AfterFunc(ctx, func() {
		_ = conn.Close()
		close(closed)
	})
	defer func() {
		if stop() {
			_ = conn.Close()
		} else {
			<-closed
		}
	}()
	udp, ok := conn.(*net.UDPConn)
	if !ok {
		return fmt.Errorf("serving DHCPv6: %T is not a UDP socket", conn)
	}
	if raw, err := udp.SyscallConn(); err == nil {
		if has, err := setReceiveBuffer(raw, receiveBuffer); err != nil || has < receiveBuffer {
			s.log.Warn().AnErr("reason", err).Int("octets", has).Msg(fmt.Sprintf(
				"the receive buffer is small: a hall that is switched on at once loses packets; set sysctl net.core.rmem_max=%d, or give CAP_NET_ADMIN", receiveBuffer))
		}
	}
	if n := len(s.cfg.ServerDUID); n < 3 || n > maxDUID {
		return fmt.Errorf("the server DUID has %d octets, not 3 to %d", n, maxDUID)
	}
	if err := ipv6.NewPacketConn(conn).SetControlMessage(ipv6.FlagDst|ipv6.FlagInterface, true); err != nil {
		if ctx.Err() != nil {
			return nil
		}
		return fmt.Errorf("asking for packet information on %s: %w", conn.LocalAddr(), err)
	}

	// What strangers ask waits behind what machines ask: their leases have to be on
	// disk before the answer, a machine's address is.
	packets, strangers := make(chan packet, queueLength), make(chan *exchange, queueLength)
	var workers, strangerWorkers sync.WaitGroup
	for range 4 * runtime.GOMAXPROCS(0) {
		workers.Go(func() {
			w := worker{Server: s, conn: udp}
			for in := range packets {
				w.work(w.bounded(ctx), in, strangers)
			}
			w.end()
		})
	}
	for range maxCommits {
		strangerWorkers.Go(func() {
			w := worker{Server: s, conn: udp}
			for x := range strangers {
				w.finish(w.bounded(ctx), x)
			}
			w.end()
		})
	}
	err := s.read(ctx, udp, packets)
	close(packets)
	workers.Wait()
	close(strangers)
	strangerWorkers.Wait()
	return err
}

// read moves packets into the queue until ctx ends.
func (s *Server) read(ctx context.Context, conn *net.UDPConn, queue chan packet) error {
	names := map[int]string{}
	buf := make([]byte, maxMessage+1) // one more, so that a longer one shows
	oob := make([]byte, unix.CmsgSpace(unix.SizeofInet6Pktinfo))
	for {
		n, oobn, _, src, err := conn.ReadMsgUDPAddrPort(buf, oob)
		switch {
		case ctx.Err() != nil:
			return nil
		case errors.Is(err, net.ErrClosed):
			return fmt.Errorf("reading DHCPv6: %w", err)
		case err != nil:
			s.drops.add(s.log, dropFailed, func(e *zerolog.Event) *zerolog.Event { return e.AnErr("reason", err) })
			select {
			case <-ctx.Done():
				return nil
			case <-time.After(retryRead):
			}
			continue
		}
		in := packet{data: bytes.Clone(buf[:n]), src: netip.AddrPortFrom(src.Addr().WithZone(""), src.Port())}
		if in.dst, in.ifindex = arrival(oob[:oobn]); in.ifindex != 0 {
			in.ifname = interfaceName(names, in.ifindex)
		}
		enqueue(queue, in, s.dropQueued)
	}
}

// enqueue drops the oldest of a full queue: its client has asked again by now. It
// never waits for a worker.
func enqueue[T any](queue chan T, v T, drop func(T)) {
	for {
		select {
		case queue <- v:
			return
		default:
		}
		select {
		case old := <-queue:
			drop(old)
		default: // a worker was faster
		}
	}
}

func (s *Server) dropQueued(in packet) {
	s.drops.add(s.log, dropQueue, func(e *zerolog.Event) *zerolog.Event { return e.Stringer("from", in.src) })
}

// worker answers packets one after the other.
type worker struct {
	*Server
	conn *net.UDPConn

	ctx    context.Context // of several packets
	cancel context.CancelFunc
	began  time.Time
}

// bounded is a context that ends between answerWithin and a second less from now. A
// timer of its own for each packet costs more than reading it.
func (w *worker) bounded(ctx context.Context) context.Context {
	if now := time.Now(); now.Sub(w.began) > time.Second {
		w.end()
		w.ctx, w.cancel = context.WithTimeout(ctx, answerWithin)
		w.began = now
	}
	return w.ctx
}

func (w *worker) end() {
	if w.cancel != nil {
		w.cancel()
	}
}

// work answers one packet, or has it wait if it is a stranger's.
func (w *worker) work(ctx context.Context, in packet, strangers chan *exchange) {
	x, err := w.receive(ctx, in)
	switch {
	case err != nil:
		w.exchanges.dropped(x)
		w.failed(ctx, in, err)
	case x.unicast || w.inv.Registered(x.mac):
		w.finish(ctx, x)
	default:
		enqueue(strangers, x, func(old *exchange) {
			w.exchanges.dropped(old)
			w.dropQueued(old.in)
		})
	}
}

// finish answers a packet that was received.
func (w *worker) finish(ctx context.Context, x *exchange) {
	r, err := w.respond(ctx, x)
	if err == nil {
		err = w.send(x.answer(r))
	}
	if err != nil {
		w.exchanges.dropped(x)
		w.failed(ctx, x.in, err)
		return
	}
	w.exchanges.answered(x, r)
}

// failed counts and logs a packet that got no answer.
func (s *Server) failed(ctx context.Context, in packet, err error) {
	if errors.Is(ctx.Err(), context.Canceled) {
		return
	}
	why := dropFailed
	var d *dropError
	if errors.As(err, &d) {
		why, err = d.why, d.err
	}
	s.drops.add(s.log, why, func(e *zerolog.Event) *zerolog.Event {
		return e.Stringer("from", in.src).Str("interface", in.ifname).Str("reason", err.Error())
	})
}

func (w *worker) send(out answer) error {
	var oob []byte
	if out.src.IsValid() || out.ifindex != 0 {
		info := unix.Inet6Pktinfo{Ifindex: uint32(out.ifindex)}
		if out.src.IsValid() {
			info.Addr = out.src.As16()
		}
		oob = unix.PktInfo6(&info)
	}
	if _, _, err := w.conn.WriteMsgUDPAddrPort(out.data, oob, out.dst); err != nil {
		return dropf(dropSend, "answering %s: %w", out.dst, err)
	}
	return nil
}

// arrival reads where a packet came in from its IPV6_PKTINFO (RFC 3542 section 6). dst
// is invalid and ifindex 0 if there is none.
func arrival(oob []byte) (dst netip.Addr, ifindex int) {
	for len(oob) > 0 {
		h, data, rest, err := unix.ParseOneSocketControlMessage(oob)
		if err != nil {
			break
		}
		if h.Level == unix.IPPROTO_IPV6 && h.Type == unix.IPV6_PKTINFO && len(data) >= unix.SizeofInet6Pktinfo {
			return netip.AddrFrom16([16]byte(data)), int(binary.NativeEndian.Uint32(data[16:]))
		}
		oob = rest
	}
	return netip.Addr{}, 0
}

// interfaceName looks an interface up once: asking the kernel costs more than
// answering the packet.
func interfaceName(names map[int]string, index int) string {
	if name, ok := names[index]; ok {
		return name
	}
	i, err := net.InterfaceByIndex(index)
	if err != nil {
		return ""
	}
	names[index] = i.Name
	return i.Name
}
