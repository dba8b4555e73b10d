package ndp

import (
	"context"
	"encoding/hex"
	"errors"
	"net"
	"net/netip"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/mdlayher/ndp"
	"github.com/rs/zerolog"
	"golang.org/x/net/ipv6"

	"github.com/provisiond/provisiond/internal/inventory"
)

// link is a Conn in memory that notes when what was sent.
type link struct {
	in     chan heard
	closed chan struct{}
	sent   []sent
	start  time.Time
	down   atomic.Bool
}

type heard struct {
	m    ndp.Message
	hops int
	from netip.Addr
	err  error
}

type sent struct {
	at time.Duration
	ra *ndp.RouterAdvertisement
	to netip.Addr
}

func newLink() *link {
	return &link{in: make(chan heard), closed: make(chan struct{}), start: time.Now()}
}

func (l *link) ReadFrom() (ndp.Message, *ipv6.ControlMessage, netip.Addr, error) {
	select {
	case h := <-l.in:
		return h.m, &ipv6.ControlMessage{HopLimit: h.hops}, h.from, h.err
	case <-l.closed:
		return nil, nil, netip.Addr{}, net.ErrClosed
	}
}

func (l *link) WriteTo(m ndp.Message, _ *ipv6.ControlMessage, dst netip.Addr) error {
	l.sent = append(l.sent, sent{time.Since(l.start), m.(*ndp.RouterAdvertisement), dst})
	if l.down.Load() {
		return errors.New("network is down")
	}
	return nil
}

func (l *link) Close() error { close(l.closed); return nil }

var (
	machine = netip.MustParseAddr("fe80::5054:ff:fe12:3456%rack0")
	plain   = Config{
		Interface: "rack0", Managed: true, OtherConfig: true,
		Prefixes: []Prefix{{Prefix: netip.MustParsePrefix("2001:db8:1::/64")}},
	}
)

func rs(opts ...ndp.Option) ndp.Message { return &ndp.RouterSolicitation{Options: opts} }

// run serves cfg on a link in a bubble while do acts, and returns what was sent.
func run(t *testing.T, cfg Config, do func(*link)) (out []sent) {
	t.Helper()
	if err := cfg.Validate(); err != nil {
		t.Fatal(err)
	}
	synctest.Test(t, func(t *testing.T) {
		l := newLink()
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() { done <- New(cfg, zerolog.Nop()).Serve(ctx, l) }()
		do(l)
		synctest.Wait()
		cancel()
		if err := <-done; err != nil {
			t.Errorf("Serve returned %v", err)
		}
		<-l.closed
		out = l.sent
	}) // fails when a goroutine is left behind
	return out
}

func TestUnsolicited(t *testing.T) {
	for range 20 {
		out := run(t, plain, func(*link) { time.Sleep(2 * time.Hour) })
		if out[0].at != 0 {
			t.Errorf("the first advertisement came after %v", out[0].at)
		}
		for i := 1; i < len(out); i++ {
			gap := out[i].at - out[i-1].at
			least, most := 200*time.Second, 600*time.Second
			if i < maxInitial {
				least, most = maxInitialInterval, maxInitialInterval
			}
			if gap < least || gap > most {
				t.Errorf("advertisement %d came %v after the last, not %v to %v", i, gap, least, most)
			}
		}
		if n := len(out); n < 12 || n > 40 {
			t.Errorf("%d advertisements in two hours", n)
		}
		for _, s := range out {
			if s.to != allNodes || s.ra.RouterLifetime != 0 {
				t.Errorf("sent to %s with router lifetime %v", s.to, s.ra.RouterLifetime)
			}
		}
	}
}

func TestShortInterval(t *testing.T) {
	cfg := plain
	cfg.MaxInterval = 4 * time.Second
	out := run(t, cfg, func(*link) { time.Sleep(10 * time.Minute) })
	for i := 1; i < len(out); i++ {
		if gap := out[i].at - out[i-1].at; gap < 3*time.Second || gap > 4*time.Second {
			t.Errorf("advertisement %d came %v after the last", i, gap)
		}
	}
}

func TestSolicited(t *testing.T) {
	for range 20 {
		asked := 100 * time.Second
		out := run(t, plain, func(l *link) {
			time.Sleep(asked)
			l.in <- heard{m: rs(), hops: 255, from: machine}
			time.Sleep(maxDelayOfAnswer)
		})
		if last := out[len(out)-1]; len(out) != 4 || last.at < asked || last.at > asked+maxDelayOfAnswer {
			t.Fatalf("%d advertisements, the last at %v", len(out), last.at)
		}
	}
}

// TestFlood: a thousand solicitations make no more than one advertisement in 3 s.
func TestFlood(t *testing.T) {
	out := run(t, plain, func(l *link) {
		for range 1000 {
			l.in <- heard{m: rs(), hops: 255, from: machine}
			time.Sleep(60 * time.Millisecond)
		}
	})
	for i := 1; i < len(out); i++ {
		if gap := out[i].at - out[i-1].at; gap < minDelayBetween {
			t.Errorf("advertisement %d came %v after the last", i, gap)
		}
	}
	if n := len(out); n < 15 || n > 21 {
		t.Errorf("%d advertisements in a minute of solicitations", n)
	}
}

func TestInvalidSolicitations(t *testing.T) {
	source := &ndp.LinkLayerAddress{Direction: ndp.Source, Addr: net.HardwareAddr{2, 0, 0, 0, 0, 1}}
	any6 := netip.MustParseAddr("::%rack0")
	for name, tc := range map[string]struct {
		h      heard
		answer bool
	}{
		"good":                   {heard{m: rs(source), hops: 255, from: machine}, true},
		"from ::":                {heard{m: rs(), hops: 255, from: any6}, true},
		"from :: with an option": {heard{m: rs(source), hops: 255, from: any6}, false},
		"from another link":      {heard{m: rs(), hops: 64, from: machine}, false},
		"advertisement":          {heard{m: &ndp.RouterAdvertisement{}, hops: 255, from: machine}, false},
		"error":                  {heard{err: errors.New("the link is down")}, false},
	} {
		out := run(t, plain, func(l *link) {
			time.Sleep(100 * time.Second)
			l.in <- tc.h
			time.Sleep(10 * time.Second)
		})
		if got := len(out) == 4; got != tc.answer {
			t.Errorf("%s: answered %v, want %v", name, got, tc.answer)
		}
	}
}

func TestRouterSaysGoodbye(t *testing.T) {
	cfg := plain
	cfg.Lifetime = 30 * time.Minute
	out := run(t, cfg, func(*link) { time.Sleep(time.Minute) })
	for i, s := range out {
		want := 30 * time.Minute
		if i == len(out)-1 {
			want = 0
		}
		if s.ra.RouterLifetime != want {
			t.Errorf("advertisement %d has router lifetime %v", i, s.ra.RouterLifetime)
		}
	}
	if out[len(out)-1].at != time.Minute {
		t.Errorf("the last advertisement came at %v", out[len(out)-1].at)
	}
}

// TestSendFailure: a link that is down is tried again at every due time.
func TestSendFailure(t *testing.T) {
	out := run(t, plain, func(l *link) {
		l.down.Store(true)
		time.Sleep(time.Hour)
	})
	if len(out) < 6 {
		t.Errorf("only %d tries in an hour", len(out))
	}
}

func TestLostConn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLink()
		done := make(chan error, 1)
		go func() { done <- New(plain, zerolog.Nop()).Serve(t.Context(), l) }()
		l.in <- heard{err: net.ErrClosed}
		if err := <-done; !errors.Is(err, net.ErrClosed) || !strings.Contains(err.Error(), "rack0") {
			t.Errorf("Serve returned %v", err)
		}
	})
}

// TestBytes holds the message against octets written from RFC 4861 section 4.2,
// 4.6.1 and 4.6.4, and RFC 8106 section 5.1.
func TestBytes(t *testing.T) {
	cfg := Config{
		Interface: "rack0", Managed: true, OtherConfig: true, MTU: 9000, LinkLayer: net.HardwareAddr{2, 0, 0, 0, 0, 1},
		Prefixes: []Prefix{
			{Prefix: netip.MustParsePrefix("2001:db8:1::/64")},
			{Prefix: netip.MustParsePrefix("2001:db8:2::/64"), SLAAC: true, Preferred: time.Hour, Valid: 1 << 62},
		},
		DNS: []netip.Addr{netip.MustParseAddr("2001:db8::53")},
	}
	if err := cfg.Validate(); err != nil {
		t.Fatal(err)
	}
	b, err := ndp.MarshalMessage(New(cfg, zerolog.Nop()).cfg.Load().advertisement(0))
	if err != nil {
		t.Fatal(err)
	}
	want := strings.ReplaceAll("8600 0000 40 c0 0000 00000000 00000000"+
		" 01 01 020000000001"+
		" 05 01 0000 00002328"+
		" 03 04 40 80 00278d00 00093a80 00000000 20010db8000100000000000000000000"+
		" 03 04 40 c0 ffffffff 00000e10 00000000 20010db8000200000000000000000000"+
		" 19 03 0000 00000708 20010db8000000000000000000000053", " ", "")
	if got := hex.EncodeToString(b); got != want {
		t.Errorf("got  %s\nwant %s", got, want)
	}
}

func TestValidate(t *testing.T) {
	prefix := func(p Prefix) Config { return Config{Prefixes: []Prefix{p}} }
	for field, cfg := range map[string]Config{
		"maxInterval":       {MaxInterval: 3 * time.Second},
		"routerLifetime":    {Lifetime: time.Minute},
		"mtu":               {MTU: 1279},
		"prefixes[0]":       prefix(Prefix{Prefix: netip.MustParsePrefix("2001:db8::1/64")}),
		"prefixes[0].slaac": prefix(Prefix{Prefix: netip.MustParsePrefix("2001:db8::/80"), SLAAC: true}),
		"dns[0]":            {DNS: []netip.Addr{netip.MustParseAddr("192.0.2.1")}},
		"domains[1]":        {Domains: []string{"rack.example", "räck.example"}},
	} {
		var fe *inventory.FieldError
		if err := cfg.Validate(); !errors.As(err, &fe) || fe.Field != field {
			t.Errorf("%q: %v", field, err)
		}
	}
	for _, p := range []string{"fe80::/64", "ff02::/64", "10.0.0.0/8", "::ffff:10.0.0.0/104"} {
		if prefix(Prefix{Prefix: netip.MustParsePrefix(p)}).Validate() == nil {
			t.Errorf("%s may be advertised", p)
		}
	}
	if err := prefix(Prefix{Prefix: plain.Prefixes[0].Prefix, Preferred: time.Hour, Valid: time.Minute}).Validate(); err == nil {
		t.Error("valid may be shorter than preferred")
	}
}

// TestUpdate: a changed prefix is advertised within seconds, not at the next turn.
func TestUpdate(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLink()
		a := New(plain, zerolog.Nop())
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() { done <- a.Serve(ctx, l) }()
		time.Sleep(time.Hour + time.Minute)
		synctest.Wait()
		changed := plain
		changed.Prefixes = []Prefix{{Prefix: netip.MustParsePrefix("2001:db8:2::/64")}}
		a.Update(changed)
		time.Sleep(minDelayBetween + maxDelayOfAnswer)
		synctest.Wait()
		ra := l.sent[len(l.sent)-1].ra
		found := false
		for _, o := range ra.Options {
			if p, ok := o.(*ndp.PrefixInformation); ok {
				found = p.Prefix == netip.MustParseAddr("2001:db8:2::")
			}
		}
		if !found {
			t.Errorf("advertised %+v", ra.Options)
		}
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
}

// TestHear: who asks for a router from a link-local address is told of, by a listener
// that says nothing itself, with the NIC that the address or the message tells.
func TestHear(t *testing.T) {
	type nic struct {
		mac inventory.MAC
		at  string
	}
	private := netip.MustParseAddr("fe80::1234:5678:9abc:def0%eth7")
	source := &ndp.LinkLayerAddress{Direction: ndp.Source, Addr: net.HardwareAddr{0x52, 0x54, 0, 0, 0, 9}}
	for name, c := range map[string]struct {
		heard
		want []nic
	}{
		"by its address":           {heard{m: rs(), hops: 255, from: machine}, []nic{{"52:54:00:12:34:56", "fe80::5054:ff:fe12:3456%rack0"}}},
		"by its word":              {heard{m: rs(source), hops: 255, from: private}, []nic{{"52:54:00:00:00:09", "fe80::1234:5678:9abc:def0%rack0"}}},
		"by nothing":               {heard{m: rs(), hops: 255, from: private}, nil},
		"without an address":       {heard{m: rs(), hops: 255, from: netip.IPv6Unspecified()}, nil},
		"from another link":        {heard{m: rs(), hops: 254, from: machine}, nil},
		"from a global address":    {heard{m: rs(source), hops: 255, from: netip.MustParseAddr("2001:db8::9")}, nil},
		"of something else":        {heard{m: &ndp.NeighborSolicitation{TargetAddress: netip.MustParseAddr("fe80::1")}, hops: 255, from: machine}, nil},
		"a group address it tells": {heard{m: rs(&ndp.LinkLayerAddress{Direction: ndp.Source, Addr: net.HardwareAddr{1, 0, 0, 0, 0, 9}}), hops: 255, from: private}, nil},
	} {
		t.Run(name, func(t *testing.T) {
			l := newLink()
			a := New(Config{Interface: "rack0"}, zerolog.Nop())
			var got []nic
			a.Observe(func(mac inventory.MAC, from netip.Addr) { got = append(got, nic{mac, from.String()}) })
			ctx, cancel := context.WithCancel(t.Context())
			done := make(chan error)
			go func() { done <- a.Hear(ctx, l) }()
			l.in <- c.heard
			l.in <- heard{m: &ndp.NeighborSolicitation{}, hops: 255, from: machine} // the one before has been looked at
			cancel()
			if err := <-done; err != nil || len(l.sent) != 0 {
				t.Errorf("%v, sent %v", err, l.sent)
			}
			if len(got) != len(c.want) || len(got) == 1 && got[0] != c.want[0] {
				t.Errorf("heard %v", got)
			}
		})
	}
	l := newLink()
	_ = l.Close()
	if err := New(Config{Interface: "rack0"}, zerolog.Nop()).Hear(t.Context(), &broken{l}); !errors.Is(err, net.ErrClosed) {
		t.Errorf("a socket that was lost: %v", err)
	}
}

// broken is a link that may be closed once more.
type broken struct{ *link }

func (*broken) Close() error { return nil }
