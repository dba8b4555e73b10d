package talos

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/rs/zerolog"
	"github.com/siderolabs/siderolink/api/events"
	machineapi "github.com/siderolabs/talos/pkg/machinery/api/machine"
	"golang.org/x/net/netutil"
	"golang.org/x/time/rate"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/peer"
	"google.golang.org/grpc/stats"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	"github.com/provisiond/provisiond/internal/inventory"
)

// Bounds of the event sink. Nobody on the link has to prove anything, so each
// of them keeps a liar cheap.
const (
	maxEvent       = 64 << 10 // bytes of one message
	maxSinkConns   = 4096     // open connections; a machine has one
	maxStreams     = 4        // calls at once on one connection; Talos makes one
	eventRate      = 20       // events per second of one connection, in the long run
	eventBurst     = 400      // and at once: a replay since boot was up to 98
	maxHeldEvents  = 128      // lines of one unknown machine until it says who it is,
	maxHeldEvent   = 512      // and bytes of each
	maxRemembered  = 16384    // ids of events, and machines
	maxEventText   = 2048     // bytes of an error or message that is kept
	idleConnection = 15 * time.Minute
)

// Recorder keeps what a machine reported. An error other than ErrNotFound makes
// Talos send the event again.
type Recorder interface {
	Record(context.Context, inventory.Event) error
}

// Resolver finds the machine that a report comes from. MachineByAddress must
// know its stable and leased addresses and the link-local one of its NICs
// (EUI-64): Talos connects from whichever is usable first.
type Resolver interface {
	MachineByAddress(ctx context.Context, addr netip.Addr) (name string, mac inventory.MAC, ok bool)
	MachineByName(ctx context.Context, name string) (mac inventory.MAC, ok bool)
}

// EventSink is the server that Talos' talos.events.sink and EventSinkConfig
// name: events.EventSinkService over gRPC without TLS. What it hears is
// unauthenticated and serves the picture an operator has; it decides nothing.
type EventSink struct {
	events.UnimplementedEventSinkServiceServer

	rec     Recorder
	resolve Resolver
	logs    Logs
	log     zerolog.Logger
	seen    *lru[struct{}]        // machine and id of events that were recorded
	last    *lru[inventory.Event] // machine → its last stage
	metrics sinkMetrics
}

// NewEventSink returns an EventSink: what changes the picture of a machine goes to
// rec, and a line about every event to logs. It does no I/O.
func NewEventSink(rec Recorder, resolve Resolver, logs Logs, log zerolog.Logger) *EventSink {
	return &EventSink{
		rec: rec, resolve: resolve, logs: logs, log: log,
		seen: newLRU[struct{}](maxRemembered), last: newLRU[inventory.Event](maxRemembered),
		metrics: newSinkMetrics(),
	}
}

// Serve answers on l until ctx ends, then closes it and every connection. It
// returns nil when ctx ended.
func (s *EventSink) Serve(ctx context.Context, l net.Listener) error {
	srv := grpc.NewServer(
		grpc.MaxRecvMsgSize(maxEvent),
		grpc.MaxConcurrentStreams(maxStreams),
		grpc.ConnectionTimeout(10*time.Second),
		grpc.KeepaliveParams(keepalive.ServerParameters{MaxConnectionIdle: idleConnection, Time: 30 * time.Second, Timeout: 15 * time.Second}),
		grpc.KeepaliveEnforcementPolicy(keepalive.EnforcementPolicy{MinTime: 5 * time.Second, PermitWithoutStream: true}),
		grpc.StatsHandler(connTagger{s.metrics.conns}),
		grpc.WaitForHandlers(true))
	events.RegisterEventSinkServiceServer(srv, s)
	stop := context.AfterFunc(ctx, srv.Stop)
	err := srv.Serve(netutil.LimitListener(l, maxSinkConns))
	if !stop() {
		srv.Stop() // waits for the one under way
	}
	if ctx.Err() != nil {
		return nil
	}
	srv.Stop()
	return fmt.Errorf("serving the event sink: %w", err)
}

// reporter is who is at the other end of one connection.
type reporter struct {
	limit *rate.Limiter

	mu      sync.Mutex
	asked   bool // the peer's address was looked up
	machine string
	mac     inventory.MAC
	held    []inventory.Event // of an unknown machine: its last stage and error
	lines   []LogLine         // of an unknown machine: what it said
}

type reporterKey struct{}

// connTagger gives each connection a reporter, and counts those that are open.
type connTagger struct{ open prometheus.Gauge }

func (connTagger) TagConn(ctx context.Context, _ *stats.ConnTagInfo) context.Context {
	return context.WithValue(ctx, reporterKey{}, &reporter{limit: rate.NewLimiter(eventRate, eventBurst)})
}
func (connTagger) TagRPC(ctx context.Context, _ *stats.RPCTagInfo) context.Context { return ctx }
func (connTagger) HandleRPC(context.Context, stats.RPCStats)                       {}

func (c connTagger) HandleConn(_ context.Context, s stats.ConnStats) {
	switch s.(type) {
	case *stats.ConnBegin:
		c.open.Inc()
	case *stats.ConnEnd:
		c.open.Dec()
	}
}

// Publish takes one event. Talos sends the next when it was answered, and the
// same again when it was refused.
func (s *EventSink) Publish(ctx context.Context, req *events.EventRequest) (*events.EventResponse, error) {
	r, ok := ctx.Value(reporterKey{}).(*reporter)
	if !ok {
		return nil, status.Error(codes.Internal, "the connection has no reporter")
	}
	if !r.limit.Allow() {
		s.metrics.tooMany.Inc()
		return nil, status.Error(codes.ResourceExhausted, "too many events")
	}
	msg, err := req.GetData().UnmarshalNew()
	if err != nil {
		// A type of a newer Talos must not stop the stream.
		s.metrics.unknown.Inc()
		s.log.Debug().Str("reason", "an event of an unknown type").Str("type", clip(req.GetData().GetTypeUrl())).Msg("ignored an event")
		return &events.EventResponse{}, nil
	}
	r.mu.Lock() // one event of a machine at a time, in order
	defer r.mu.Unlock()
	s.identify(ctx, r, msg)
	s.keep(r, eventLine(req.GetId(), msg))
	e, ok := translate(msg)
	if r.machine == "" {
		s.metrics.held.Inc()
		if ok {
			r.hold(e)
		}
		return &events.EventResponse{}, nil
	}
	if !ok {
		s.metrics.taken.Inc()
		return &events.EventResponse{}, nil
	}
	if err := s.record(ctx, r, req.GetId(), e); err != nil {
		s.metrics.unrecorded.Inc()
		s.log.Warn().Str("machine", r.machine).Str("mac", string(r.mac)).Str("reason", err.Error()).Msg("an event was not recorded")
		return nil, status.Error(codes.Unavailable, "the event was not recorded")
	}
	s.metrics.taken.Inc()
	return &events.EventResponse{}, nil
}

// identify finds the machine by the peer's address, which holds for the whole
// connection. What Talos says of itself in an AddressEvent is believed on loopback
// only, where a simulated rack has one address: on a segment, anyone could say it.
func (s *EventSink) identify(ctx context.Context, r *reporter, msg proto.Message) {
	if r.machine != "" {
		return
	}
	from, how := peerAddress(ctx), "peer address"
	if !r.asked {
		r.asked = true
		r.machine, r.mac, _ = s.resolve.MachineByAddress(ctx, from)
	}
	if said, ok := msg.(*machineapi.AddressEvent); ok && r.machine == "" {
		if from.IsLoopback() {
			r.machine, r.mac, how = s.byAddressEvent(ctx, said)
		}
		if r.machine == "" {
			s.log.Info().Stringer("peer", from).Str("reason", "its address is no machine's").Msg("events of an unknown machine")
			return
		}
	}
	if r.machine == "" {
		return
	}
	s.log.Info().Str("machine", r.machine).Str("mac", string(r.mac)).Stringer("peer", from).Str("reason", how).Msg("a machine reports its events")
	for _, e := range r.held {
		if err := s.record(ctx, r, "", e); err != nil {
			s.log.Warn().Str("machine", r.machine).Str("reason", err.Error()).Msg("an earlier event was not recorded")
		}
	}
	for _, l := range r.lines {
		s.keep(r, l)
	}
	r.held, r.lines = nil, nil
}

// keep puts a line into the machine's log. That it cannot is no reason to have
// the event sent again.
func (s *EventSink) keep(r *reporter, l LogLine) {
	if r.machine == "" {
		if len(r.lines) < maxHeldEvents {
			l.Text = l.Text[:min(len(l.Text), maxHeldEvent)]
			r.lines = append(r.lines, l)
		}
		return
	}
	if err := s.logs.Event(r.machine, l); err != nil {
		s.log.Debug().Str("machine", r.machine).Str("reason", err.Error()).Msg("an event is not in the machine's log")
	}
}

func (s *EventSink) byAddressEvent(ctx context.Context, said *machineapi.AddressEvent) (string, inventory.MAC, string) {
	for i, text := range said.GetAddresses() {
		if i == 32 {
			break
		}
		if a, err := netip.ParseAddr(text); err == nil {
			if name, mac, ok := s.resolve.MachineByAddress(ctx, a.WithZone("")); ok {
				return name, mac, "reported address"
			}
		}
	}
	if name := said.GetHostname(); inventory.CheckName("hostname", name) == nil {
		if mac, ok := s.resolve.MachineByName(ctx, name); ok {
			return name, mac, "reported host name"
		}
	}
	return "", "", ""
}

// peerAddress is where the connection comes from, with its zone.
func peerAddress(ctx context.Context) netip.Addr {
	if p, ok := peer.FromContext(ctx); ok {
		if tcp, ok := p.Addr.(*net.TCPAddr); ok {
			return tcp.AddrPort().Addr().Unmap()
		}
	}
	return netip.Addr{}
}

// hold keeps the last stage and the last error until the machine is known.
func (r *reporter) hold(e inventory.Event) {
	for i := range r.held {
		if (r.held[i].Stage == "") == (e.Stage == "") {
			r.held[i] = e
			return
		}
	}
	r.held = append(r.held, e)
}

// record writes an event down, unless it was recorded before or is the stage
// that is known already.
func (s *EventSink) record(ctx context.Context, r *reporter, id string, e inventory.Event) error {
	e.Kind, e.Machine, e.MAC, e.Peer, e.Time = inventory.Reported, r.machine, r.mac, peerAddress(ctx), time.Now()
	known := r.machine + "/" + clip(id)
	if _, dup := s.seen.get(known); dup && id != "" {
		return nil
	}
	if e.Stage != "" {
		if l, ok := s.last.get(r.machine); ok && l.Stage == e.Stage && l.Ready == e.Ready && l.Message == e.Message {
			return nil
		}
	}
	if err := s.rec.Record(ctx, e); err != nil && !errors.Is(err, inventory.ErrNotFound) {
		return err
	}
	if e.Stage != "" {
		s.last.put(r.machine, e)
	}
	if id != "" {
		s.seen.put(known, struct{}{})
	}
	return nil
}

// clip bounds a text that came from the network.
func clip(s string) string {
	if len(s) > maxEventText {
		return s[:maxEventText]
	}
	return s
}
