// Package monitor asks the API of every machine that should have one how it is,
// and records what it proves: that the config arrived, that the install is
// done, that the machine is ready.
package monitor

import (
	"context"
	"errors"
	"net/netip"
	"sync"
	"time"

	"github.com/rs/zerolog"
	"golang.org/x/time/rate"

	"github.com/provisiond/provisiond/internal/inventory"
)

const (
	soon    = 2 * time.Second // a machine that is expected to come up
	seldom  = time.Minute     // one that is up
	timeout = 8 * time.Second // for one answer
	workers = 32
	page    = 512
	// perSecond bounds how many machines are asked in a second: a hall that is
	// switched on at once is served its configs first.
	perSecond = 100
)

// Inventory is what the monitor reads and records.
type Inventory interface {
	Machines(ctx context.Context, after string, limit int) ([]inventory.View, error)
	Machine(ctx context.Context, ref string) (inventory.View, error)
	Secrets(ctx context.Context, cluster string) (*inventory.Secrets, error)
	EventsTail(ctx context.Context, limit int) ([]inventory.Event, error)
	Events(ctx context.Context, after uint64, limit int) ([]inventory.Event, error)
	Record(ctx context.Context, e inventory.Event) (inventory.View, error)
	Watch() (<-chan struct{}, func())
}

// Talos is the API of a machine over mTLS. Status returns an error when no API
// with a certificate of the cluster's CA answers within the deadline of ctx.
type Talos interface {
	Status(ctx context.Context, cl *inventory.Cluster, s *inventory.Secrets, addr netip.Addr) (stage inventory.Stage, ready bool, err error)
}

// Monitor watches over machines that have, or should soon have, an API.
type Monitor struct {
	inv   Inventory
	talos Talos
	log   zerolog.Logger

	pace  *rate.Limiter
	due   map[string]time.Time // machine → when to ask next; owned by Run
	after uint64               // last event looked at; owned by Run
}

// New returns a monitor. It does nothing until Run.
func New(inv Inventory, talos Talos, log zerolog.Logger) *Monitor {
	return &Monitor{inv: inv, talos: talos, log: log, pace: rate.NewLimiter(perSecond, perSecond), due: map[string]time.Time{}}
}

// Run asks machines until ctx ends. At start it looks at every machine once;
// from then on the event log names those whose turn may have come.
func (m *Monitor) Run(ctx context.Context) error {
	wake, stop := m.inv.Watch()
	defer stop()
	if tail, err := m.inv.EventsTail(ctx, 1); err == nil && len(tail) > 0 {
		m.after = tail[0].ID
	}
	if err := m.scan(ctx); err != nil && ctx.Err() == nil {
		return err
	}
	for {
		next := m.ask(ctx)
		timer := time.NewTimer(next)
		select {
		case <-ctx.Done():
			timer.Stop()
			return nil
		case <-timer.C:
		case <-wake:
			timer.Stop()
			if err := m.follow(ctx); err != nil && ctx.Err() == nil {
				m.log.Error().Err(err).Msg("cannot read the event log")
			}
		}
	}
}

func (m *Monitor) scan(ctx context.Context) error {
	now := time.Now()
	for after := ""; ; {
		views, err := m.inv.Machines(ctx, after, page)
		if err != nil {
			return err
		}
		for _, v := range views {
			if every(v) > 0 {
				m.due[v.Machine.Name] = now
			}
			after = v.Machine.Name
		}
		if len(views) < page {
			return nil
		}
	}
}

// follow takes up machines that something happened to.
func (m *Monitor) follow(ctx context.Context) error {
	for {
		events, err := m.inv.Events(ctx, m.after, page)
		if err != nil {
			return err
		}
		for _, e := range events {
			m.after = e.ID
			if e.Machine == "" || e.Kind == inventory.APIAnswered {
				continue
			}
			if _, known := m.due[e.Machine]; !known || e.Kind == inventory.Reported {
				m.due[e.Machine] = time.Now()
			}
		}
		if len(events) < page {
			return nil
		}
	}
}

// every is how often a machine's API is worth asking; 0 is never.
func every(v inventory.View) time.Duration {
	b := v.Facts.Current()
	switch {
	case v.Cluster == nil:
		return 0
	case v.Facts.Ready:
		return seldom
	case b == nil && (v.Cluster.Imported || !v.Facts.APIAt.IsZero()):
		return seldom // it may run already, from before our time
	case b == nil:
		return 0
	case b.Plan == inventory.Disk || !b.Config.IsZero() || !b.Initramfs.IsZero():
		return soon
	}
	return 0
}

// ask questions the machines whose time has come and returns when the next is.
func (m *Monitor) ask(ctx context.Context) time.Duration {
	now := time.Now()
	slots := make(chan struct{}, workers)
	var wg sync.WaitGroup
	var mu sync.Mutex
	results := map[string]time.Duration{}
	next := seldom
	for name, at := range m.due {
		if at.After(now) {
			continue
		}
		if !m.pace.Allow() {
			next = time.Second
			break // the others in a second; ranging over a map favours none
		}
		slots <- struct{}{}
		wg.Go(func() {
			defer func() { <-slots }()
			again := m.one(ctx, name)
			mu.Lock()
			defer mu.Unlock()
			results[name] = again
		})
	}
	wg.Wait()
	for name, again := range results {
		if again == 0 {
			delete(m.due, name)
		} else {
			m.due[name] = time.Now().Add(again)
		}
	}
	if next < seldom {
		return next
	}
	for _, at := range m.due {
		next = min(next, time.Until(at))
	}
	return max(next, 0)
}

// one asks one machine and returns when to ask it again, 0 for never.
func (m *Monitor) one(ctx context.Context, name string) time.Duration {
	v, err := m.inv.Machine(ctx, name)
	if errors.Is(err, inventory.ErrNotFound) {
		return 0
	} else if err != nil {
		return seldom
	}
	again := every(v)
	if again == 0 {
		return 0
	}
	secrets, err := m.inv.Secrets(ctx, v.Cluster.Name)
	if err != nil {
		m.log.Error().Err(err).Str("machine", name).Msg("cannot ask the API")
		return seldom
	}
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	stage, ready, err := m.talos.Status(ctx, v.Cluster, secrets, v.Machine.Address)
	if err != nil {
		return again // not up yet, or down: both are seen elsewhere
	}
	after, err := m.inv.Record(ctx, inventory.Event{Kind: inventory.APIAnswered, Machine: name, Stage: stage, Ready: ready, Message: "its API answered: " + string(stage)})
	if err != nil {
		m.log.Error().Err(err).Str("machine", name).Msg("cannot record what the API said")
		return again
	}
	if after.Facts.Ready && !v.Facts.Ready {
		m.log.Info().Str("machine", name).Msg("ready")
	}
	return every(after)
}
