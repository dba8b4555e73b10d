package httpconfig

import (
	"context"
	"errors"
	stdlog "log"
	"net/http"
	"net/netip"
	"slices"
	"time"

	"github.com/rs/zerolog"

	"github.com/provisiond/provisiond/internal/inventory"
)

// peerOf is who sent a request, without a zone; invalid if that is unknown.
func peerOf(r *http.Request) netip.Addr {
	at, err := netip.ParseAddrPort(r.RemoteAddr)
	if err != nil {
		return netip.Addr{}
	}
	return at.Addr().Unmap().WithZone("")
}

// lab reports whether a peer is of a lab on one host, where all are on loopback and no
// address tells machines apart.
func (s *Server) lab(peer netip.Addr) bool {
	return peer.IsLoopback() && s.config.URLs.HTTP.Addr().IsLoopback()
}

// belongs reports whether an address is one of the machine's. Talos fetches from its
// link-local one while the other is in DAD.
func (s *Server) belongs(ctx context.Context, m *inventory.Machine, peer netip.Addr) (bool, error) {
	if peer == m.Address || s.lab(peer) {
		return true, nil
	}
	view, err := s.Inventory.MachineByAddress(ctx, peer)
	if errors.Is(err, inventory.ErrNotFound) {
		return false, nil
	}
	return err == nil && view.Machine != nil && view.Machine.Name == m.Name, err
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

func newErrorLog(log zerolog.Logger) *stdlog.Logger { return stdlog.New(errorLog{log}, "", 0) }
