package httpconfig

import (
	"context"
	stdlog "log"
	"net/http"
	"net/netip"
	"slices"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/rs/zerolog"

	"github.com/provisiond/provisiond/internal/inventory"
)

// peerOf is who sent a request, with the interface as zone where the address is
// link-local; invalid if that is unknown.
func peerOf(r *http.Request) netip.Addr {
	at, err := netip.ParseAddrPort(r.RemoteAddr)
	if err != nil {
		return netip.Addr{}
	}
	return at.Addr().Unmap()
}

// lab reports whether a peer is of a lab on one host, where all are on loopback and no
// address tells machines apart.
func (s *Server) lab(peer netip.Addr) bool {
	return peer.IsLoopback() && s.config.URLs.HTTP.Addr().IsLoopback()
}

// stranger says why who asks is not the machine; empty: it is, as far as a network can
// tell.
//
// Talos fetches from its link-local address while the other is in DAD.
func (s *Server) stranger(ctx context.Context, m *inventory.Machine, peer netip.Addr) (why string, err error) {
	if s.lab(peer) {
		return "", nil
	}
	return inventory.WhyNotOf(ctx, s.Inventory, s.Neighbours, m, peer)
}

// nicAt is the NIC of m that an address tells of, else the first.
func nicAt(m *inventory.Machine, a netip.Addr) inventory.MAC {
	if mac, ok := inventory.MACFromEUI64(a); ok && slices.Contains(m.MACs, mac) {
		return mac
	}
	return m.BootMAC()
}

// record keeps an event that came after its answer. The request's context does
// not count then: a client may hang up once it has the last byte.
func (s *Server) record(ctx context.Context, e inventory.Event) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), recordTimeout)
	defer cancel()
	e.Time = time.Now()
	if _, err := s.Inventory.Record(ctx, e); err != nil {
		s.log.Error().Err(err).Str("machine", e.Machine).Str("mac", string(e.MAC)).Str("event", string(e.Kind)).Msg("cannot record what a machine did")
	}
}

func newErrorLog(log zerolog.Logger, handshakes prometheus.Counter) *stdlog.Logger {
	return stdlog.New(errorLog{log, handshakes}, "", 0)
}
