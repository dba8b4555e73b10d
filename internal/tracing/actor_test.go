package tracing

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus/testutil"
	"github.com/rs/zerolog"
	tracepb "go.opentelemetry.io/proto/otlp/trace/v1"

	"github.com/provisiond/provisiond/internal/inventory"
)

// rack is an inventory that a test writes.
type rack struct {
	mu      sync.Mutex
	views   map[string]inventory.View
	changed []string
	err     error
}

// put is what is known of a machine by now; without boots, it is gone.
func (r *rack) put(name string, boots ...*inventory.Boot) {
	r.mu.Lock()
	defer r.mu.Unlock()
	v := machine(boots...)
	v.Machine.Name = name
	if r.views[name] = v; len(boots) == 0 {
		delete(r.views, name)
	}
	r.changed = append(r.changed, name)
}

func (r *rack) set(f func()) {
	r.mu.Lock()
	defer r.mu.Unlock()
	f()
}

func (r *rack) Machine(_ context.Context, name string) (inventory.View, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	v, ok := r.views[name]
	if !ok {
		return v, inventory.ErrNotFound
	}
	return v, r.err
}

func (r *rack) Machines(_ context.Context, after string, limit int) (all []inventory.View, err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for name, v := range r.views {
		if name > after {
			all = append(all, v)
		}
	}
	slices.SortFunc(all, func(a, b inventory.View) int { return strings.Compare(a.Machine.Name, b.Machine.Name) })
	return all[:min(limit, len(all))], nil
}

func (r *rack) Cluster(context.Context, string) (*inventory.Cluster, *inventory.Bootstrap, error) {
	return &inventory.Cluster{Name: "lab"}, &inventory.Bootstrap{Cluster: "lab"}, nil
}

func (r *rack) WatchMachines() (<-chan struct{}, func() []string, func()) {
	return make(chan struct{}, 1), func() []string {
		r.mu.Lock()
		defer r.mu.Unlock()
		names := r.changed
		r.changed = nil
		return names
	}, func() {}
}

// sink is a collector that answers with an error, or keeps what boots it was sent.
type sink struct {
	mu     sync.Mutex
	err    error
	hates  string // a machine: requests with a trace of it are refused
	fails  string // a machine: requests with a trace of it alone fail
	boots  []string
	most   int
	closed bool
}

func (s *sink) Send(_ context.Context, spans []*tracepb.Span) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.most = max(s.most, len(spans))
	if s.err != nil {
		return s.err
	}
	var boots []string
	for _, span := range spans {
		if span.Name != "boot" {
			continue
		}
		said := map[string]string{}
		for _, kv := range span.Attributes {
			said[kv.Key] = kv.Value.GetStringValue()
		}
		if said["provisiond.machine"] == s.hates {
			return fmt.Errorf("%w: 400 Bad Request", errRefused)
		}
		boots = append(boots, fmt.Sprintf("%s/%s %s", said["provisiond.machine"], said["provisiond.boot"], said["provisiond.outcome"]))
	}
	if len(boots) == 1 && s.fails != "" && strings.HasPrefix(boots[0], s.fails+"/") {
		return errors.New("503 Service Unavailable")
	}
	s.boots = append(s.boots, boots...)
	return nil
}

func (s *sink) Close() { s.closed = true }

func (s *sink) answer(err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.err = err
}

// bench is an actor that runs on a rack that is not there.
type bench struct {
	*rack
	*sink
	actor *Actor
	stop  func()
}

func newBench(t *testing.T, r *rack) *bench {
	t.Helper()
	b := &bench{rack: r, sink: &sink{}}
	b.actor = New(b.rack, b.sink, inventory.DefaultPatience(), zerolog.New(zerolog.NewTestWriter(t)))
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- b.actor.Run(ctx) }()
	b.stop = sync.OnceFunc(func() {
		cancel()
		if err := <-done; err != nil || !b.closed {
			t.Errorf("it ended with %v, closed: %v", err, b.closed)
		}
	})
	synctest.Wait()
	return b
}

// want checks what was sent since the last look, in any order, and what is counted in all.
func (b *bench) want(t *testing.T, sent, failed, dropped float64, boots ...string) {
	t.Helper()
	b.sink.mu.Lock()
	defer b.sink.mu.Unlock()
	if slices.Sort(b.boots); !slices.Equal(b.boots, boots) {
		t.Errorf("sent were %q, want %q", b.boots, boots)
	}
	b.boots = nil
	c := b.actor.counts
	if s, f, d := testutil.ToFloat64(c.sent), testutil.ToFloat64(c.failed), testutil.ToFloat64(c.dropped); s != sent || f != failed || d != dropped {
		t.Errorf("counted are %v sent, %v failed, %v dropped; want %v, %v, %v", s, f, d, sent, failed, dropped)
	}
}

func pass(d time.Duration) {
	time.Sleep(d) // of the bubble
	synctest.Wait()
}

// seconds is how many seconds after the first boot it is.
func seconds() int { return int(time.Since(start) / time.Second) }

func TestActor(t *testing.T) {
	scene := func(name string, f func(t *testing.T, b *bench)) {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				b := newBench(t, &rack{views: map[string]inventory.View{}})
				defer b.stop()
				f(t, b)
			})
		})
	}
	done := func(number uint64) *inventory.Boot { return booted(number, seconds()-120, inventory.Install, "ready") }

	scene("each boot once", func(t *testing.T, b *bench) {
		b.put("w-1", booted(1, seconds()-30, inventory.Install, "config"))
		pass(time.Minute)
		b.want(t, 0, 0, 0)
		first := done(1)
		b.put("w-1", first)
		pass(time.Minute)
		b.want(t, 1, 0, 0, "w-1/1 ready")
		b.put("w-1", first) // something else happened
		pass(time.Minute)
		b.want(t, 1, 0, 0)
		b.put("w-1", done(4), booted(3, seconds()-600, inventory.Install, "kernel"), booted(2, seconds()-1200, inventory.Hold, "offered"), first)
		pass(time.Minute)
		b.want(t, 4, 0, 0, "w-1/2 held", "w-1/3 failed", "w-1/4 ready")
	})
	scene("ready without a word", func(t *testing.T, b *bench) {
		b.put("w-1", booted(1, seconds()-30, inventory.Install, "config"))
		pass(time.Minute)
		b.put("w-1", done(1))
		b.rack.set(func() { b.changed = nil }) // as it is with what its own API says
		pass(time.Minute)
		b.want(t, 1, 0, 0, "w-1/1 ready")
	})
	scene("given up", func(t *testing.T, b *bench) {
		b.put("w-1", booted(1, seconds()-20, inventory.Install, "initramfs"))
		pass(patience - time.Minute)
		b.want(t, 0, 0, 0)
		pass(2 * time.Minute)
		b.want(t, 1, 0, 0, "w-1/1 given up")
		if len(b.actor.open) != 0 {
			t.Errorf("%v are still looked at", b.actor.open)
		}
	})
	scene("a restart", func(t *testing.T, b *bench) {
		b.put("w-1", done(1))
		b.put("w-2", booted(1, seconds()-30, inventory.Install, "config"))
		b.put("w-3", booted(1, seconds()-5*3600, inventory.Install, "config"))
		b.put("w-4", booted(2, seconds()-30, inventory.Install, "config"), done(1))
		b.stop()
		b = newBench(t, b.rack)
		defer b.stop()
		b.put("w-2", done(1))
		b.put("w-4", done(2), done(1))
		pass(time.Minute)
		b.want(t, 2, 0, 0, "w-2/1 ready", "w-4/2 ready")
	})
	scene("a collector that is down", func(t *testing.T, b *bench) {
		b.answer(errors.New("connection refused"))
		b.put("w-1", done(1))
		pass(every + rest + rest)
		b.want(t, 0, 3, 0)
		b.answer(nil)
		b.put("w-2", done(1))
		pass(rest)
		b.want(t, 2, 3, 0, "w-1/1 ready", "w-2/1 ready")
	})
	scene("a collector that is down for long", func(t *testing.T, b *bench) {
		b.answer(errors.New("connection refused"))
		b.put("w-1", done(1))
		pass(keep + time.Minute)
		if d := testutil.ToFloat64(b.actor.counts.dropped); d != 1 {
			t.Errorf("%v were dropped", d)
		}
		tried := testutil.ToFloat64(b.actor.counts.failed)
		b.answer(nil)
		b.put("w-2", done(1))
		pass(time.Minute)
		b.want(t, 1, tried, 1, "w-2/1 ready")
	})
	scene("a collector that refuses", func(t *testing.T, b *bench) {
		b.answer(fmt.Errorf("%w: 400 Bad Request", errRefused))
		b.put("w-1", done(1))
		pass(time.Minute)
		b.want(t, 0, 0, 1)
		b.answer(nil)
		b.put("w-1", done(2), done(1))
		pass(time.Minute)
		b.want(t, 1, 0, 1, "w-1/2 ready")
	})
	scene("a collector that refuses one of many", func(t *testing.T, b *bench) {
		b.sink.hates = "w-2"
		b.put("w-1", done(2), done(1))
		b.put("w-2", done(1))
		b.put("w-3", done(1))
		pass(time.Minute)
		b.want(t, 3, 0, 1, "w-1/1 ready", "w-1/2 ready", "w-3/1 ready")
	})
	scene("a collector that refuses one of many, and then is down", func(t *testing.T, b *bench) {
		b.sink.hates, b.sink.fails = "w-2", "w-1"
		b.put("w-1", done(2), done(1))
		b.put("w-2", done(1))
		pass(every)
		if s, f, d := testutil.ToFloat64(b.actor.counts.sent), testutil.ToFloat64(b.actor.counts.failed), testutil.ToFloat64(b.actor.counts.dropped); s != 0 || f != 1 || d > 1 {
			t.Errorf("%v sent, %v failed, %v dropped", s, f, d)
		}
		b.sink.mu.Lock()
		b.sink.fails = ""
		b.sink.mu.Unlock()
		pass(time.Minute)
		b.want(t, 2, 1, 1, "w-1/1 ready", "w-1/2 ready")
	})
	scene("boots that are forgotten by now", func(t *testing.T, b *bench) {
		b.put("w-1", done(1))
		pass(time.Minute)
		b.want(t, 1, 0, 0, "w-1/1 ready")
		b.put("w-1", done(6), booted(5, seconds()-600, inventory.Install, "kernel"))
		pass(time.Minute)
		b.want(t, 3, 0, 3, "w-1/5 failed", "w-1/6 ready")
	})
	scene("an inventory that does not answer", func(t *testing.T, b *bench) {
		b.rack.set(func() { b.rack.err = errors.New("disk on fire") })
		b.put("w-1", done(1))
		pass(time.Minute)
		b.want(t, 0, 0, 0)
		b.rack.set(func() { b.rack.err = nil })
		pass(time.Minute)
		b.want(t, 1, 0, 0, "w-1/1 ready")
	})
	scene("a machine that is removed, and registered anew", func(t *testing.T, b *bench) {
		b.put("w-1", done(3), done(2), done(1))
		b.put("w-2", done(3), done(2), done(1))
		pass(time.Minute)
		b.want(t, 6, 0, 0, "w-1/1 ready", "w-1/2 ready", "w-1/3 ready", "w-2/1 ready", "w-2/2 ready", "w-2/3 ready")
		b.put("w-1")
		pass(time.Minute)
		b.put("w-1", done(1))
		b.put("w-2", done(1)) // sooner than anybody looked
		pass(time.Minute)
		b.want(t, 8, 0, 0, "w-1/1 ready", "w-2/1 ready")
	})
	scene("a hall", func(t *testing.T, b *bench) {
		for i := range 1000 {
			b.put(fmt.Sprintf("w-%d", i), done(1))
		}
		pass(every)
		if n := testutil.ToFloat64(b.actor.counts.sent); n != 1000 || b.most > 16*together || len(b.actor.next) != 1000 {
			t.Errorf("%v were sent, %d spans at once", n, b.most)
		}
	})
}
