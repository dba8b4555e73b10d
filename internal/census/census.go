// Package census counts the inventory for those who watch the daemon from outside.
// Nothing keeps counters in step with it: it is looked at when somebody asks.
package census

import (
	"context"
	"slices"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/rs/zerolog"

	"github.com/provisiond/provisiond/internal/inventory"
)

const (
	// every is the least time between two counts. One that took long is not taken again
	// before rest times as long, so that counting costs a fiftieth of a core at most.
	every = 5 * time.Second
	rest  = 50
	// patience is how long who asks waits for a count; then they get the one before.
	patience = 2 * time.Second
	page     = 512
)

// Inventory is what is counted.
type Inventory interface {
	Machines(ctx context.Context, after string, limit int) ([]inventory.View, error)
	Clusters(ctx context.Context) ([]*inventory.Cluster, error)
	Cluster(ctx context.Context, name string) (*inventory.Cluster, *inventory.Bootstrap, error)
	Strangers(ctx context.Context) ([]inventory.Stranger, error)
	Pools() []inventory.PoolUse
}

// Census is a prometheus.Collector of what is in the inventory. It counts only while
// [Census.Run] runs.
type Census struct {
	inv     Inventory
	stalls  inventory.Patience
	log     zerolog.Logger
	now     func() time.Time
	asked   chan struct{} // one place, and at most one in it: see latest
	descs   descs
	failing prometheus.Counter

	mu    sync.Mutex
	last  *count
	at    time.Time     // when the last one ended, however it did
	took  time.Duration // and how long it took
	under chan struct{} // closed when the one under way is done; nil: none is
}

// New returns a census. stalls is how long phases may last; nil:
// inventory.DefaultPatience.
func New(inv Inventory, stalls inventory.Patience, log zerolog.Logger) *Census {
	if stalls == nil {
		stalls = inventory.DefaultPatience()
	}
	return &Census{
		inv: inv, stalls: stalls, log: log, now: time.Now, asked: make(chan struct{}, 1), descs: newDescs(),
		failing: prometheus.NewCounter(prometheus.CounterOpts{Name: "provisiond_census_failures_total", Help: "Counts of the inventory that failed; the one before is shown until one goes well."}),
	}
}

// Collectors are the census itself and how it goes.
func (c *Census) Collectors() []prometheus.Collector { return []prometheus.Collector{c, c.failing} }

// Run counts whenever somebody asks, until ctx ends.
func (c *Census) Run(ctx context.Context) error {
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-c.asked:
			c.take(ctx)
		}
	}
}

// latest is the last count, of now if it is time for one and it does not take long; nil:
// there is none yet.
func (c *Census) latest() *count {
	c.mu.Lock()
	if c.under == nil && c.now().Sub(c.at) >= max(every, rest*c.took) {
		c.under = make(chan struct{})
		c.asked <- struct{}{}
	}
	under := c.under
	c.mu.Unlock()
	if under != nil {
		timer := time.NewTimer(patience)
		defer timer.Stop()
		select {
		case <-under:
		case <-timer.C:
		}
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.last
}

func (c *Census) take(ctx context.Context) {
	start := c.now()
	n, err := c.count(ctx, start)
	if err != nil && ctx.Err() == nil {
		c.failing.Inc()
		c.log.Error().Err(err).Msg("cannot count what is in the inventory")
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.at = c.now()
	if c.took = c.at.Sub(start); err == nil {
		n.at, n.took = start, c.took
		c.last = n
	}
	close(c.under)
	c.under = nil
}

// count is what was found at one time.
type count struct {
	at       time.Time
	took     time.Duration
	clusters map[string]*tally // by name; that of machines without one is empty
	nics     int
	pools    []inventory.PoolUse
}

// tally is of the machines of one cluster.
type tally struct {
	phases                    map[inventory.Phase]int
	alarms, waiting, reimages int
	bootstrap                 string // empty: there is none
}

func (c *Census) count(ctx context.Context, now time.Time) (*count, error) {
	n := &count{clusters: map[string]*tally{"": newTally("")}, pools: c.inv.Pools()}
	strangers, err := c.inv.Strangers(ctx)
	if err != nil {
		return nil, err
	}
	n.nics = len(strangers)
	clusters, err := c.inv.Clusters(ctx)
	if err != nil {
		return nil, err
	}
	for _, cl := range clusters {
		_, b, err := c.inv.Cluster(ctx, cl.Name)
		if err != nil {
			return nil, err
		}
		n.clusters[cl.Name] = newTally(bootstrapState(cl, b))
	}
	for after := ""; ; {
		views, err := c.inv.Machines(ctx, after, page)
		if err != nil {
			return nil, err
		}
		for i := range views {
			after = views[i].Machine.Name
			of := n.clusters[views[i].Machine.Cluster]
			if of == nil { // made since
				of = newTally("")
				n.clusters[views[i].Machine.Cluster] = of
			}
			of.add(&views[i], c.stalls.PhaseOf(views[i], now).Phase, now)
		}
		if len(views) < page {
			return n, nil
		}
	}
}

func newTally(bootstrap string) *tally {
	return &tally{phases: map[inventory.Phase]int{}, bootstrap: bootstrap}
}

func (t *tally) add(v *inventory.View, phase inventory.Phase, now time.Time) {
	f := &v.Facts
	t.phases[phase]++
	if f.Alarm() != "" {
		t.alarms++
	}
	if b := f.Current(); b != nil && slices.ContainsFunc(b.Flows, func(flow inventory.Flow) bool { return flow.Pending(now) }) {
		t.waiting++
	}
	if f.Reimage.Outstanding() {
		t.reimages++
	}
}

// The states of a bootstrap.
const (
	bootstrapWaiting  = "waiting" // for a control plane
	bootstrapClaimed  = "claimed"
	bootstrapCalled   = "called"
	bootstrapDone     = "done"
	bootstrapImported = "imported" // never bootstrapped from here
)

func bootstrapStates() []string {
	return []string{bootstrapWaiting, bootstrapClaimed, bootstrapCalled, bootstrapDone, bootstrapImported}
}

func bootstrapState(cl *inventory.Cluster, b *inventory.Bootstrap) string {
	switch {
	case b.Done():
		return bootstrapDone
	case b.Called():
		return bootstrapCalled
	case b.Claimed():
		return bootstrapClaimed
	case cl.Imported:
		return bootstrapImported
	}
	return bootstrapWaiting
}
