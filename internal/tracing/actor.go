package tracing

import (
	"cmp"
	"context"
	"errors"
	"slices"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/rs/zerolog"
	tracepb "go.opentelemetry.io/proto/otlp/trace/v1"

	"github.com/provisiond/provisiond/internal/inventory"
)

const (
	every    = 5 * time.Second  // is looked at what happened
	rest     = 10 * time.Second // after the collector did not take all
	keep     = time.Hour        // a trace that the collector does not take
	together = 64               // traces, at most some 16 spans each, in a request
	page     = 512
)

// Inventory is what boots are read from.
type Inventory interface {
	Machines(ctx context.Context, after string, limit int) ([]inventory.View, error)
	Machine(ctx context.Context, ref string) (inventory.View, error)
	Cluster(ctx context.Context, name string) (*inventory.Cluster, *inventory.Bootstrap, error)
	WatchMachines() (wake <-chan struct{}, take func() []string, stop func())
}

// Sender is a [Collector].
type Sender interface {
	Send(ctx context.Context, spans []*tracepb.Span) error
	Close()
}

// Actor sends the trace of each boot once that is over. There is no queue: what waits for
// the collector is in the inventory, for as many boots as that keeps of a machine.
type Actor struct {
	inv    Inventory
	to     Sender
	stalls inventory.Patience
	log    zerolog.Logger
	counts counters

	open map[string]bool   // machines with boots to be looked at
	next map[string]uint64 // the first boot of a machine that is not dealt with; none: the first
	down bool              // the collector did not take all when it was last asked
}

// New returns an actor. It does nothing until Run. stalls is how long phases may last.
func New(inv Inventory, to Sender, stalls inventory.Patience, log zerolog.Logger) *Actor {
	return &Actor{inv: inv, to: to, stalls: stalls, log: log, counts: newCounters(), open: map[string]bool{}, next: map[string]uint64{}}
}

// finished is the trace of a boot that is over.
type finished struct {
	machine string
	boot    uint64
	at      time.Time
	spans   []*tracepb.Span
}

// Run sends traces until ctx ends. Boots that are over when it begins are left out, so
// that no restart sends one twice.
func (a *Actor) Run(ctx context.Context) error {
	defer a.to.Close()
	_, take, stop := a.inv.WatchMachines()
	defer stop()
	if err := a.begin(ctx); err != nil && ctx.Err() == nil {
		return err
	}
	timer := time.NewTimer(every)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-timer.C:
		}
		for _, name := range take() {
			a.open[name] = true
		}
		if a.round(ctx) {
			timer.Reset(every)
		} else {
			timer.Reset(rest)
		}
	}
}

// begin finds out which boots are under way.
func (a *Actor) begin(ctx context.Context) error {
	now := time.Now()
	for after := ""; ; {
		views, err := a.inv.Machines(ctx, after, page)
		if err != nil {
			return err
		}
		for i := range views {
			v := &views[i]
			after = v.Machine.Name
			boot := v.Facts.Current()
			if boot == nil {
				continue
			}
			a.next[after] = boot.Number
			if !boot.Ready.IsZero() || now.Sub(boot.Started) > patience {
				a.next[after]++
			} else {
				a.open[after] = true
			}
		}
		if len(views) < page {
			return nil
		}
	}
}

// round sends the traces of boots that are over by now. It says whether the collector
// took them.
func (a *Actor) round(ctx context.Context) bool {
	var batch []finished
	var trouble error
	for name := range a.open {
		done, err := a.over(ctx, name)
		trouble = cmp.Or(err, trouble)
		if batch = append(batch, done...); len(batch) >= together {
			if !a.send(ctx, batch) {
				return false
			}
			batch = nil
		}
	}
	if trouble != nil && ctx.Err() == nil {
		a.log.Error().Err(trouble).Msg("cannot look up how machines booted; trying again")
	}
	return a.send(ctx, batch)
}

// over returns the traces of a machine's boots that are over and not dealt with.
func (a *Actor) over(ctx context.Context, name string) (done []finished, err error) {
	v, err := a.inv.Machine(ctx, name)
	if errors.Is(err, inventory.ErrNotFound) {
		delete(a.open, name)
		delete(a.next, name)
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	if boot := v.Facts.Current(); boot != nil && boot.Number+1 < a.next[name] {
		delete(a.next, name) // it was removed and registered anew
	}
	now := time.Now()
	for i, boot := range slices.Backward(v.Facts.Boots) {
		switch next := max(1, a.next[name]); {
		case boot.Number < next:
			continue
		case boot.Number > next && len(done) == 0: // those before are forgotten by now
			a.counts.dropped.Add(float64(boot.Number - next))
			a.next[name] = boot.Number
		}
		var strap *inventory.Bootstrap
		if v.Cluster != nil && !boot.API.IsZero() {
			if _, strap, err = a.inv.Cluster(ctx, v.Cluster.Name); err != nil {
				return done, err
			}
		}
		end, over := endOf(&v, i, strap, a.stalls, now)
		if !over {
			return done, nil
		}
		done = append(done, finished{name, boot.Number, end.at, bootSpans(&v, i, strap, end)})
	}
	if len(done) == 0 {
		delete(a.open, name)
	}
	return done, nil
}

// send gives traces to the collector, and says whether it took them. A request that it
// refuses is sent again trace by trace, since one may be all that it does not like.
func (a *Actor) send(ctx context.Context, batch []finished) bool {
	if len(batch) == 0 {
		return true
	}
	err := a.give(ctx, batch)
	if len(batch) > 1 && errors.Is(err, errRefused) {
		err = nil
		for i := range batch {
			one := a.give(ctx, batch[i:i+1])
			if err = cmp.Or(err, one); one != nil && !errors.Is(one, errRefused) {
				err = one // the others wait for when it answers again
				break
			}
		}
	}
	if err != nil && ctx.Err() != nil {
		return false
	}
	switch {
	case err == nil && a.down:
		a.log.Info().Msg("the collector takes traces again")
	case err != nil && !a.down:
		a.log.Warn().Err(err).Int("traces", len(batch)).Msg("the collector does not take all traces")
	}
	a.down = err != nil
	return err == nil
}

// give sends traces in one request, and counts what became of them. One that is
// refused, or was not taken for long, is dropped; several that are refused together are
// not dealt with yet.
func (a *Actor) give(ctx context.Context, batch []finished) error {
	var spans []*tracepb.Span
	for _, f := range batch {
		spans = append(spans, f.spans...)
	}
	err := a.to.Send(ctx, spans)
	refused := errors.Is(err, errRefused)
	if err != nil && ctx.Err() != nil || refused && len(batch) > 1 {
		return err
	}
	now := time.Now()
	for _, f := range batch {
		switch {
		case err == nil:
			a.counts.sent.Inc()
		case refused || now.Sub(f.at) > keep:
			a.counts.dropped.Inc()
		default:
			a.counts.failed.Inc()
			continue
		}
		a.next[f.machine] = f.boot + 1
	}
	return err
}

// counters count traces of boots by what became of them, resolved once.
type counters struct {
	vec                   *prometheus.CounterVec
	sent, failed, dropped prometheus.Counter
}

func newCounters() counters {
	vec := prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "provisiond_traces_total", Help: "Traces of boots by what became of them; failed: the collector did not take one, and is sent it again; dropped: it refused it, or has not taken it for an hour.",
	}, []string{"outcome"})
	return counters{vec, vec.WithLabelValues("sent"), vec.WithLabelValues("failed"), vec.WithLabelValues("dropped")}
}

// Collectors are the actor's metrics.
func (a *Actor) Collectors() []prometheus.Collector { return []prometheus.Collector{a.counts.vec} }
