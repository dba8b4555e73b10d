package dhcpv6

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"runtime"
	"sync"
	"time"

	"github.com/rs/zerolog"
	"golang.org/x/net/ipv6"

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
// http://[addr]/path.efi for FirmwareHTTP, the script's URL for IPXE. It reports
// false when there is no such file. arch is empty when iPXE did not tell. URLs
// go out in clear and into the log: they must hold no secret.
type BootURLs interface {
	URL(client inventory.Client, arch inventory.Arch, mac inventory.MAC) (string, bool)
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
}

// maxDecisionsPerSecond bounds the log lines of answers. A rack of 100 machines
// that is switched on at once needs four a machine, over half a minute.
const maxDecisionsPerSecond = 200

// New returns a server. neighbours may be nil: then a NIC is never looked up.
func New(cfg Config, inv Inventory, neighbours Neighbours, log zerolog.Logger) *Server {
	return &Server{
		cfg: cfg, inv: inv, neighbours: neighbours, log: log, drops: newDrops(),
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
	pc := ipv6.NewPacketConn(conn)
	if n := len(s.cfg.ServerDUID); n < 3 || n > maxDUID {
		return fmt.Errorf("the server DUID has %d octets, not 3 to %d", n, maxDUID)
	}
	if err := pc.SetControlMessage(ipv6.FlagDst|ipv6.FlagInterface, true); err != nil {
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
			for in := range packets {
				s.work(ctx, pc, in, strangers)
			}
		})
	}
	for range maxCommits {
		strangerWorkers.Go(func() {
			for x := range strangers {
				s.finish(ctx, pc, x)
			}
		})
	}
	err := s.read(ctx, pc, packets)
	close(packets)
	workers.Wait()
	close(strangers)
	strangerWorkers.Wait()
	return err
}

// read moves packets into the queue until ctx ends.
func (s *Server) read(ctx context.Context, pc *ipv6.PacketConn, queue chan packet) error {
	names := map[int]string{}
	buf := make([]byte, maxMessage+1) // one more, so that a longer one shows
	for {
		n, cm, src, err := pc.ReadFrom(buf)
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
		in := packet{data: bytes.Clone(buf[:n])}
		if udp, ok := src.(*net.UDPAddr); ok {
			from := udp.AddrPort()
			in.src = netip.AddrPortFrom(from.Addr().WithZone(""), from.Port())
		}
		if cm != nil {
			in.dst, _ = netip.AddrFromSlice(cm.Dst)
			in.ifindex, in.ifname = cm.IfIndex, interfaceName(names, cm.IfIndex)
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

// work answers one packet, or has it wait if it is a stranger's.
func (s *Server) work(ctx context.Context, pc *ipv6.PacketConn, in packet, strangers chan *exchange) {
	within, cancel := context.WithTimeout(ctx, answerWithin)
	defer cancel()
	x, err := s.receive(within, in)
	switch {
	case err != nil:
		s.failed(within, in, err)
	case x.unicast || s.inv.Registered(x.mac):
		s.finish(ctx, pc, x)
	default:
		enqueue(strangers, x, func(old *exchange) { s.dropQueued(old.in) })
	}
}

// finish answers a packet that was received.
func (s *Server) finish(ctx context.Context, pc *ipv6.PacketConn, x *exchange) {
	ctx, cancel := context.WithTimeout(ctx, answerWithin)
	defer cancel()
	r, err := s.respond(ctx, x)
	if err == nil {
		err = send(pc, x.answer(r))
	}
	if err != nil {
		s.failed(ctx, x.in, err)
	}
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

func send(pc *ipv6.PacketConn, out answer) error {
	dst := net.UDPAddrFromAddrPort(out.dst)
	cm := &ipv6.ControlMessage{IfIndex: out.ifindex}
	if out.src.IsValid() {
		cm.Src = out.src.AsSlice()
	}
	if _, err := pc.WriteTo(out.data, cm, dst); err != nil {
		return dropf(dropSend, "answering %s: %w", out.dst, err)
	}
	return nil
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
