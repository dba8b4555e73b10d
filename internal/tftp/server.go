// Package tftp serves first-stage boot loaders to firmware that boots by PXE,
// from one read-only file system. Everything larger goes over HTTP.
package tftp

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/netip"
	"path"
	"slices"
	"strings"
	"sync"
	"time"

	pin "github.com/pin/tftp/v3"
	"github.com/rs/zerolog"

	"github.com/provisiond/provisiond/internal/inventory"
)

// maxBlock is the largest block that fits an Ethernet frame unfragmented:
// 1500 less 40 (IPv6), 8 (UDP) and 4 (TFTP). EDK2 asks for 1228, iPXE for 1432.
const maxBlock = 1500 - headers

const headers = 40 + 8 + 4

// recordTimeout bounds the wait for the inventory after a transfer.
const recordTimeout = 10 * time.Second

// Config sets limits. A zero field means its default.
type Config struct {
	// Timeout is how long a block waits for its acknowledgement before it is
	// sent again; 1 s by default.
	Timeout time.Duration
	// Retries is how often a block is sent again before the transfer is given
	// up; 5 by default. Serve may take Timeout * (Retries+1) to return, since a
	// transfer whose peer is gone has to run out.
	Retries int
	// MaxTransfers bounds the transfers at one time, 512 by default, and
	// MaxPerPeer those to one address, 8 by default: firmware that repeats its
	// request begins a second one.
	MaxTransfers, MaxPerPeer int
}

// Inventory is where a loader that was read to its end is recorded.
type Inventory interface {
	// MachineByAddress returns the machine that has a as its stable address, in
	// a lease or as an EUI-64 link-local address. The view's Machine is nil when
	// it is nobody's.
	MachineByAddress(ctx context.Context, a netip.Addr) (inventory.View, error)
	Record(ctx context.Context, e inventory.Event) (inventory.View, error)
}

// Server is a read-only TFTP server (RFC 1350, with the options of RFC 2348 and
// RFC 2349). It asks no plan: loaders are public bytes, firmware asks only
// where DHCPv6 sent it, and an error here would cost a machine a minute of
// retries. What the loader then does is decided by its script.
type Server struct {
	config Config
	files  fs.FS
	inv    Inventory
	log    zerolog.Logger
	junk   zerolog.Logger // rate-limited: anyone on the link can cause these lines

	metrics metrics

	mu        sync.Mutex
	transfers map[netip.Addr]int
	total     int
}

// New makes a server of the files. It does no I/O.
func New(c Config, files fs.FS, inv Inventory, log zerolog.Logger) *Server {
	c.Timeout = cmp.Or(c.Timeout, time.Second)
	c.Retries = cmp.Or(c.Retries, 5)
	c.MaxTransfers = cmp.Or(c.MaxTransfers, 512)
	c.MaxPerPeer = cmp.Or(c.MaxPerPeer, 8)
	return &Server{
		config:    c,
		files:     files,
		inv:       inv,
		log:       log,
		junk:      log.Sample(&zerolog.BurstSampler{Burst: 5, Period: 10 * time.Second}),
		metrics:   newMetrics(),
		transfers: map[netip.Addr]int{},
	}
}

// Serve answers the requests that come to conn until ctx ends, then closes conn,
// waits for the transfers and returns nil. It may run on several conns at once.
//
// Answers leave from the address that was asked, which firmware insists on (EDK2
// gives up after 50 s otherwise), if every conn is bound to one address: a
// global one as *net.UDPConn, or a link-local one with its zone.
func (s *Server) Serve(ctx context.Context, conn net.PacketConn) error {
	defer func() { _ = conn.Close() }() // closed twice on the usual way out
	server := pin.NewServer(func(name string, to io.ReaderFrom) error { return s.send(ctx, name, to) }, nil)
	server.SetTimeout(s.config.Timeout)
	server.SetRetries(s.config.Retries)
	server.SetBackoff(func(int) time.Duration { return 0 }) // the timeout is wait enough
	server.SetBlockSize(maxBlock)
	server.SetHook(dropped{ctx, s.junk})
	if addr, ok := conn.LocalAddr().(*net.UDPAddr); ok && addr.IP.IsLinkLocalUnicast() {
		conn = unzoned{conn}
		// The library takes 512 for the MTU of a conn it does not know.
		server.SetBlockSizeNegotiation(false)
		server.SetBlockSize(blockFor(addr.Zone))
	}
	stopped := make(chan struct{})
	stop := context.AfterFunc(ctx, func() {
		server.Shutdown()
		close(stopped)
	})
	err := server.Serve(conn)
	if stop() { // ctx has not ended: the conn is of no use
		server.Shutdown()
		return fmt.Errorf("serving TFTP on %s: %w", conn.LocalAddr(), err)
	}
	<-stopped
	// A request read while Shutdown was waiting began a transfer after it.
	server.Shutdown()
	return nil
}

// send answers one read request. Its error goes to the peer as it is, so it
// says nothing but what the peer knows.
func (s *Server) send(ctx context.Context, asked string, to io.ReaderFrom) error {
	out, ok := to.(pin.OutgoingTransfer)
	if !ok {
		return errors.New("internal error")
	}
	remote := out.RemoteAddr()
	peer := remote.AddrPort().Addr().Unmap()
	log := s.log.With().Stringer("peer", peer).Logger()

	outcome, sent, took := refused, int64(0), time.Duration(0)
	defer func() { s.metrics.ended(asked, outcome, sent, took) }()
	name, ok := cleanName(asked)
	if !ok {
		s.junk.Warn().Stringer("peer", peer).Str("file", clip(asked)).Str("reason", "not a file name").Msg("TFTP request refused")
		return errors.New("not a file name")
	}
	if err := s.begin(peer); err != nil {
		s.junk.Warn().Stringer("peer", peer).Str("file", clip(name)).Str("reason", err.Error()).Msg("TFTP request refused")
		return err
	}
	defer s.end(peer)

	f, err := s.files.Open(name)
	if err != nil {
		s.junk.Warn().Stringer("peer", peer).Str("file", clip(name)).Str("reason", "no such file").Msg("TFTP request refused")
		return errors.New("no such file")
	}
	defer func() { _ = f.Close() }() // read only
	st, err := f.Stat()
	if err != nil || !st.Mode().IsRegular() {
		s.junk.Warn().Stringer("peer", peer).Str("file", clip(name)).Str("reason", "not a regular file").Msg("TFTP request refused")
		return errors.New("no such file")
	}

	// The size is set even if nobody asked: the library else copies what the
	// peer sent as tsize into its answer.
	out.SetSize(st.Size())
	start := time.Now()
	sent, err = to.ReadFrom(untilDone{ctx, f})
	outcome, took = brokenOff, time.Since(start)
	switch {
	case err != nil && ctx.Err() != nil:
		log.Debug().Str("file", name).Str("reason", "shutting down").Msg("TFTP transfer broken off")
	case err != nil && sent == 0 && strings.Contains(err.Error(), "block 0: code="):
		// EDK2 asks for the size, reads it in the OACK, aborts with error 8 and
		// asks again. That is how it should be.
		outcome = sizeAsked
		log.Debug().Str("file", name).Msg("TFTP size asked")
	case err != nil:
		log.Warn().Str("file", name).Int64("bytes", sent).Str("reason", err.Error()).Msg("TFTP transfer failed")
	default:
		outcome = complete
		log.Info().Str("file", name).Int64("bytes", sent).Dur("took", took).Str("machine", s.served(ctx, peer, name, took)).Msg("TFTP file served")
	}
	return nil // the library has told the peer of any error already
}

// served records that a loader was read to its end by a machine, and how long that took. It returns the
// machine's name, "" for none.
func (s *Server) served(ctx context.Context, peer netip.Addr, name string, took time.Duration) string {
	if path.Ext(name) != ".efi" {
		return ""
	}
	ctx, cancel := context.WithTimeout(ctx, recordTimeout)
	defer cancel()
	view, err := s.inv.MachineByAddress(ctx, peer)
	if err == nil && view.Machine == nil {
		err = inventory.ErrNotFound
	}
	if errors.Is(err, inventory.ErrNotFound) {
		return "" // a stranger that was told where to ask by somebody else
	}
	if err != nil {
		s.log.Error().Err(err).Stringer("peer", peer).Msg("cannot look up the machine that read a loader")
		return ""
	}
	m := view.Machine
	mac := m.BootMAC()
	if own, ok := inventory.MACFromEUI64(peer); ok && slices.Contains(m.MACs, own) {
		mac = own
	}
	_, err = s.inv.Record(ctx, inventory.Event{
		Time: time.Now(), Kind: inventory.LoaderServed, MAC: mac, Machine: m.Name, Peer: peer, Message: name + " over TFTP", Took: took,
	})
	if err != nil {
		s.log.Error().Err(err).Str("machine", m.Name).Msg("cannot record that a loader was read")
	}
	return m.Name
}

func (s *Server) begin(peer netip.Addr) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case s.total >= s.config.MaxTransfers:
		return errors.New("too many transfers, ask again later")
	case s.transfers[peer] >= s.config.MaxPerPeer:
		return errors.New("too many transfers to this address")
	}
	s.total++
	s.transfers[peer]++
	return nil
}

func (s *Server) end(peer netip.Addr) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.total--
	s.transfers[peer]--
	if s.transfers[peer] == 0 {
		delete(s.transfers, peer)
	}
}

// cleanName turns what a client asked for into a name for [fs.FS]: a leading
// slash is dropped (GRUB sends one, firmware none), anything that is not a plain
// relative path is refused. Nothing is unescaped: a TFTP name is bytes, and EDK2
// decodes the URL itself.
func cleanName(s string) (string, bool) {
	name := strings.TrimLeft(s, "/")
	ok := fs.ValidPath(name) && name != "." && len(name) <= 255 && !strings.ContainsFunc(name, func(r rune) bool { return r < ' ' || r == 0x7f || r == '\\' })
	if !ok {
		return "", false
	}
	return name, true
}

// clip bounds what a peer can put into one log line.
func clip(s string) string { return s[:min(len(s), 100)] }

// untilDone stops a transfer at the next block once ctx has ended.
type untilDone struct {
	ctx context.Context
	r   io.Reader
}

func (u untilDone) Read(p []byte) (int, error) {
	if u.ctx.Err() != nil {
		return 0, errors.New("the server is stopping")
	}
	return u.r.Read(p)
}

// dropped logs what the library could not make a transfer of.
type dropped struct {
	ctx context.Context
	log zerolog.Logger
}

// OnSuccess implements pin.Hook. The transfer has logged itself.
func (d dropped) OnSuccess(pin.TransferStats) {}

// OnFailure implements pin.Hook.
func (d dropped) OnFailure(stats pin.TransferStats, err error) {
	if stats.Filename == "" && d.ctx.Err() == nil { // else send logs it, or we are closing the conn
		d.log.Warn().Str("reason", err.Error()).Msg("TFTP packet dropped")
	}
}
