package ndp

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"sync/atomic"
	"time"

	"github.com/mdlayher/ndp"
	"github.com/rs/zerolog"
	"golang.org/x/net/ipv6"
	"golang.org/x/time/rate"

	"github.com/provisiond/provisiond/internal/inventory"
)

// Conn is the part of [ndp.Conn] that is used.
type Conn interface {
	// ReadFrom returns the next neighbour discovery message, until Close.
	ReadFrom() (ndp.Message, *ipv6.ControlMessage, netip.Addr, error)
	WriteTo(m ndp.Message, cm *ipv6.ControlMessage, dst netip.Addr) error
	Close() error
}

// The constants of RFC 4861 section 10.
const (
	maxInitialInterval   = 16 * time.Second
	maxInitial           = 3
	minDelayBetween      = 3 * time.Second
	maxDelayOfAnswer     = 500 * time.Millisecond
	requiredHopLimit     = 255 // anything less came from another link
	retryRead            = 100 * time.Millisecond
	secondsBetweenErrors = 60
)

var (
	allNodes   = netip.MustParseAddr("ff02::1")
	allRouters = netip.MustParseAddr("ff02::2")
)

// Advertiser sends router advertisements on one link.
type Advertiser struct {
	cfg     atomic.Pointer[Config]
	changed chan struct{} // receives after Update
	log     zerolog.Logger
	fail    rate.Sometimes
	heard   func(mac inventory.MAC, from netip.Addr) // nil: nobody wants to know
}

// New returns an advertiser. cfg must have passed [Config.Validate].
func New(cfg Config, log zerolog.Logger) *Advertiser {
	a := &Advertiser{
		changed: make(chan struct{}, 1),
		log:     log.With().Str("interface", cfg.Interface).Logger(),
		fail:    rate.Sometimes{Interval: secondsBetweenErrors * time.Second},
	}
	cfg = cfg.withDefaults()
	a.cfg.Store(&cfg)
	return a
}

// Update advertises something else from now on, and says so at once. cfg must
// have passed [Config.Validate] and be of the same interface.
func (a *Advertiser) Update(cfg Config) {
	cfg = cfg.withDefaults()
	a.cfg.Store(&cfg)
	select {
	case a.changed <- struct{}{}:
	default:
	}
}

// Observe has f told of every NIC that asks for a router, with the link-local address
// that it asked from and the interface as its zone. f must not block. Observe must be
// called before Serve or Hear.
func (a *Advertiser) Observe(f func(mac inventory.MAC, from netip.Addr)) { a.heard = f }

// Hear is Serve for a link that others advertise on: it sends nothing, and its Config
// needs no more than the interface.
func (a *Advertiser) Hear(ctx context.Context, conn Conn) error {
	stop := context.AfterFunc(ctx, func() { _ = conn.Close() }) // ends the reading
	err := a.read(ctx, conn, make(chan struct{}, 1))
	if !stop() {
		return nil
	}
	_ = conn.Close()
	return fmt.Errorf("reading router solicitations on %s: %w", a.cfg.Load().Interface, err)
}

// Listen opens the raw socket of an interface (CAP_NET_RAW) for router
// solicitations, and returns it with the interface's link-layer address.
func Listen(name string) (*ndp.Conn, net.HardwareAddr, error) {
	ifi, err := net.InterfaceByName(name)
	if err != nil {
		return nil, nil, fmt.Errorf("router advertisements on interface %q: %w (`ip link` lists the interfaces)", name, err)
	}
	conn, _, err := ndp.Listen(ifi, ndp.LinkLocal)
	if err != nil {
		return nil, nil, fmt.Errorf("router advertisements on interface %q: %w (they need CAP_NET_RAW, and a link-local address on the interface)", name, err)
	}
	var filter ipv6.ICMPFilter
	filter.SetAll(true)
	filter.Accept(ipv6.ICMPTypeRouterSolicitation)
	err = conn.SetICMPFilter(&filter)
	if err == nil {
		err = conn.SetControlMessage(ipv6.FlagHopLimit|ipv6.FlagInterface, true)
	}
	if err == nil {
		err = conn.JoinGroup(allRouters)
	}
	if err != nil {
		_ = conn.Close()
		return nil, nil, fmt.Errorf("router advertisements on interface %q: %w", name, err)
	}
	return conn, ifi.HardwareAddr, nil
}

// Serve advertises on conn until ctx ends; then it returns nil. An advertiser
// that is a default router says before that it no longer is. It closes conn and
// leaves no goroutine behind.
func (a *Advertiser) Serve(ctx context.Context, conn Conn) error {
	ctx, cancel := context.WithCancel(ctx)
	solicited := make(chan struct{}, 1) // more are one
	ended := make(chan error, 1)
	go func() { ended <- a.read(ctx, conn, solicited) }()

	err := a.advertise(ctx, conn, solicited, ended)
	if a.cfg.Load().Lifetime > 0 { // RFC 4861 section 6.2.5
		a.send(conn, 0)
	}
	cancel()
	_ = conn.Close()
	if err == nil {
		<-ended
	}
	return err
}

// advertise sends at every due time. It returns when ctx ends (nil) or reading
// did (its error).
func (a *Advertiser) advertise(ctx context.Context, conn Conn, solicited <-chan struct{}, ended <-chan error) error {
	timer := time.NewTimer(0)
	defer timer.Stop()
	var last time.Time // of the last advertisement
	due := time.Now()
	soon := func() {
		if at := answerAt(time.Now(), last); at.Before(due) {
			due = at
			timer.Reset(time.Until(due))
		}
	}
	for sent := 0; ; {
		select {
		case <-ctx.Done():
			return nil
		case err := <-ended:
			return fmt.Errorf("reading router solicitations on %s: %w", a.cfg.Load().Interface, err)
		case <-solicited:
			soon()
		case <-a.changed:
			soon()
		case <-timer.C:
			a.send(conn, a.cfg.Load().Lifetime)
			last = time.Now()
			sent++
			due = last.Add(a.interval(sent))
			timer.Reset(time.Until(due))
		}
	}
}

// interval is the time to the next unsolicited advertisement after n were sent
// (RFC 4861 section 6.2.4). It is random, so that routers do not fall in step.
func (a *Advertiser) interval(n int) time.Duration {
	most := a.cfg.Load().MaxInterval
	least := most / 3
	if most < 9*time.Second {
		least = max(3*time.Second, most*3/4) // section 6.2.1 allows no less
	}
	d := least + rand.N(most-least+1)
	if n < maxInitial {
		d = min(d, maxInitialInterval)
	}
	return d
}

// answerAt is when a solicitation that arrives now is answered: by multicast,
// after a random delay of at most half a second, and not within 3 s of the last
// advertisement (RFC 4861 section 6.2.6). A rack that asks at once gets one.
func answerAt(now, last time.Time) time.Time {
	at := now.Add(rand.N(maxDelayOfAnswer + 1))
	if earliest := last.Add(minDelayBetween); at.Before(earliest) {
		return earliest
	}
	return at
}

func (a *Advertiser) send(conn Conn, lifetime time.Duration) {
	if err := conn.WriteTo(a.cfg.Load().advertisement(lifetime), nil, allNodes); err != nil {
		a.failed(err, "router advertisement was not sent")
	}
}

// failed logs at most one line a minute: a link that is down fails every time.
func (a *Advertiser) failed(err error, msg string) {
	a.fail.Do(func() { a.log.Warn().Str("reason", err.Error()).Msg(msg) })
}

// read reports valid solicitations until ctx ends (nil) or conn is lost.
func (a *Advertiser) read(ctx context.Context, conn Conn, solicited chan<- struct{}) error {
	for {
		m, cm, from, err := conn.ReadFrom()
		switch {
		case ctx.Err() != nil:
			return nil
		case errors.Is(err, net.ErrClosed):
			return err
		case err != nil:
			a.failed(err, "router solicitation was not read")
			select {
			case <-ctx.Done():
				return nil
			case <-time.After(retryRead):
			}
			continue
		}
		if !valid(m, cm, from) {
			continue
		}
		a.log.Debug().Stringer("from", from).Msg("router solicitation")
		if mac, ok := nicOf(m, from); ok && a.heard != nil {
			a.heard(mac, from.WithZone(a.cfg.Load().Interface))
		}
		select {
		case solicited <- struct{}{}:
		default:
		}
	}
}

// nicOf is the NIC that a solicitation from a link-local address came from: as the address
// tells, else as it says itself.
func nicOf(m ndp.Message, from netip.Addr) (inventory.MAC, bool) {
	if !from.IsLinkLocalUnicast() {
		return "", false
	}
	if mac, ok := inventory.MACFromEUI64(from.WithZone("")); ok {
		return mac, true
	}
	rs, _ := m.(*ndp.RouterSolicitation)
	for _, o := range rs.Options {
		if lla, ok := o.(*ndp.LinkLayerAddress); ok && lla.Direction == ndp.Source {
			mac, err := inventory.MACFromBytes(lla.Addr)
			return mac, err == nil
		}
	}
	return "", false
}

// valid applies RFC 4861 section 6.1.1. The kernel has checked the checksum and
// the library the lengths.
func valid(m ndp.Message, cm *ipv6.ControlMessage, from netip.Addr) bool {
	rs, ok := m.(*ndp.RouterSolicitation)
	if !ok || cm == nil || cm.HopLimit != requiredHopLimit {
		return false
	}
	if !from.WithZone("").IsUnspecified() {
		return true
	}
	for _, o := range rs.Options {
		if lla, ok := o.(*ndp.LinkLayerAddress); ok && lla.Direction == ndp.Source {
			return false
		}
	}
	return true
}
