// Package bootstrap calls Talos' Bootstrap exactly once for each cluster.
//
// Nothing in Talos guards a cluster against two of these calls: a second
// control plane with an empty etcd accepts it too and makes a second cluster
// with the same name and keys. So the claim is committed first, every known
// control plane is looked at, one call is sent, and the answer is recorded.
package bootstrap

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/rs/zerolog"

	"github.com/provisiond/provisiond/internal/inventory"
)

const (
	poll         = 5 * time.Second  // how often to look again while something is under way
	pause        = time.Second / 4  // between rounds, however much happens
	idle         = time.Minute      // how often to look when nothing is
	probeTimeout = 10 * time.Second // for one control plane
	callTimeout  = 30 * time.Second // for the call; Talos answers in 0.2 to 4 s
	maxSteps     = 8                // in one round, so that a round ends
)

// Inventory is what the actor reads and records. Record is durable when it
// returns nil, and refuses (inventory.ErrRefused) a second claim.
type Inventory interface {
	Clusters(ctx context.Context) ([]*inventory.Cluster, error)
	Cluster(ctx context.Context, name string) (*inventory.Cluster, *inventory.Bootstrap, error)
	Secrets(ctx context.Context, cluster string) (*inventory.Secrets, error)
	Members(ctx context.Context, cluster string, role inventory.Role) ([]string, error)
	Machine(ctx context.Context, ref string) (inventory.View, error)
	Record(ctx context.Context, e inventory.Event) (inventory.View, error)
	Watch() (<-chan struct{}, func())
}

// Talos is the API of a machine, over mTLS with the cluster's own CA. Both
// methods return within the deadline of ctx.
type Talos interface {
	// Probe looks at a machine. It does not fail: what went wrong is in the Probe.
	Probe(ctx context.Context, cl *inventory.Cluster, s *inventory.Secrets, addr netip.Addr) Probe
	// Bootstrap sends the call once and never retries.
	Bootstrap(ctx context.Context, cl *inventory.Cluster, s *inventory.Secrets, addr netip.Addr) (Outcome, error)
}

// Actor bootstraps every cluster of an inventory, once each.
type Actor struct {
	inv   Inventory
	talos Talos
	log   zerolog.Logger
	calls *prometheus.CounterVec
}

// New returns an actor. It does nothing until Run.
func New(inv Inventory, talos Talos, log zerolog.Logger) *Actor {
	return &Actor{inv: inv, talos: talos, log: log, calls: newCalls()}
}

// Run looks at all clusters whenever the inventory changes, and every few
// seconds while one is under way, until ctx ends. It is level-triggered: it
// re-derives everything from what is committed, so a wake-up that is lost or a
// restart at any point costs nothing.
func (a *Actor) Run(ctx context.Context) error {
	wake, stop := a.inv.Watch()
	defer stop()
	for {
		again := a.round(ctx)
		if !sleep(ctx, nil, pause) || !sleep(ctx, wake, again-pause) {
			return nil
		}
	}
}

// sleep waits for d, or a wake-up. It returns false when ctx ended.
func sleep(ctx context.Context, wake <-chan struct{}, d time.Duration) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-timer.C:
	case <-wake:
	}
	return true
}

// round takes every cluster as far as it goes now, side by side: one that does
// not answer must not hold up another. It returns when to look again.
func (a *Actor) round(ctx context.Context) time.Duration {
	clusters, err := a.inv.Clusters(ctx)
	if err != nil {
		a.log.Error().Err(err).Msg("cannot list the clusters")
		return poll
	}
	var mu sync.Mutex
	again := idle
	var wg sync.WaitGroup
	slots := make(chan struct{}, 16)
	for _, cl := range clusters {
		slots <- struct{}{}
		wg.Go(func() {
			defer func() { <-slots }()
			d, err := a.Advance(ctx, cl.Name)
			if err != nil && ctx.Err() == nil {
				a.log.Error().Err(err).Str("cluster", cl.Name).Msg("bootstrap cannot go on")
				d = poll
			}
			if d > 0 {
				mu.Lock()
				again = min(again, d)
				mu.Unlock()
			}
		})
	}
	wg.Wait()
	return again
}

// Advance takes one cluster step by step until it has to wait, and returns for how
// long; 0: until something changes.
func (a *Actor) Advance(ctx context.Context, name string) (time.Duration, error) {
	for range maxSteps {
		cl, b, err := a.inv.Cluster(ctx, name)
		if err != nil {
			return 0, err
		}
		if b.Done() {
			return 0, nil
		}
		secrets, err := a.inv.Secrets(ctx, name)
		if err != nil {
			return 0, err
		}
		addrs, probes, err := a.probe(ctx, cl, secrets)
		if err != nil {
			return 0, err
		}
		old, err := a.old(ctx, cl, b)
		if err != nil {
			return 0, err
		}
		s := next(*b, cl.Imported, old, probes, time.Now())
		if s.act == wait {
			return s.again, a.keepReason(ctx, b, s.reason)
		}
		if err := a.do(ctx, cl, secrets, *b, s, addrs[s.machine]); err != nil || s.act == call {
			return poll, err
		}
	}
	return poll, nil
}

func (a *Actor) do(ctx context.Context, cl *inventory.Cluster, secrets *inventory.Secrets, b inventory.Bootstrap, s step, addr netip.Addr) error {
	record := func(kind inventory.Kind, message string) error {
		_, err := a.inv.Record(ctx, inventory.Event{Kind: kind, Cluster: cl.Name, Machine: s.machine, Epoch: b.Epoch, Message: message})
		return err
	}
	log := a.log.With().Str("cluster", cl.Name).Str("machine", s.machine).Logger()
	switch s.act {
	case done:
		log.Info().Str("reason", s.reason).Msg("the cluster is bootstrapped")
		return record(inventory.BootstrapDone, s.reason)
	case claim:
		log.Info().Str("reason", s.reason).Msg("claiming the bootstrap")
		// A crash after this leaves a claim without a call: the next round looks
		// at every control plane again and calls this machine, no other.
		return record(inventory.BootstrapClaimed, s.reason)
	}
	// It may have been ordered to be wiped meanwhile: whoever claims second sees the
	// other's claim.
	if v, err := a.inv.Machine(ctx, s.machine); err != nil || v.Facts.Reimage.Outstanding() {
		return err
	}
	// A crash after this, before the answer is recorded, leaves an ambiguous
	// call: the same machine is left alone for a while, then asked again.
	if err := record(inventory.BootstrapSent, s.reason); err != nil {
		return err
	}
	callCtx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	outcome, err := a.talos.Bootstrap(callCtx, cl, secrets, addr)
	a.calls.WithLabelValues(string(outcome)).Inc()
	log.Info().Str("outcome", string(outcome)).AnErr("detail", err).Msg("bootstrap was called")
	switch outcome {
	case Accepted:
		return record(inventory.BootstrapAccepted, s.machine+" accepted the bootstrap")
	case Already:
		return record(inventory.BootstrapAccepted, s.machine+" already holds etcd data")
	case NotYet, WrongMachine, Denied:
		if b.Ambiguous {
			return nil // it says nothing about the call before, whose answer was lost
		}
		return record(inventory.BootstrapDeclined, fmt.Sprintf("%s declined (%s): %v", s.machine, outcome, err))
	}
	return nil // no answer: the record says ambiguous, and stays so
}

// old names the machines that may still hold data of the life before the reset.
func (a *Actor) old(ctx context.Context, cl *inventory.Cluster, b *inventory.Bootstrap) (names []string, err error) {
	for _, name := range b.Old {
		v, err := a.inv.Machine(ctx, name)
		if errors.Is(err, inventory.ErrNotFound) {
			continue // removing it took the word that its cluster may be lost
		} else if err != nil {
			return nil, err
		}
		if h := v.Facts.Holds; h.Cluster == "" || h.Cluster == cl.Name && h.Epoch < b.Epoch {
			names = append(names, name)
		}
	}
	return names, nil
}

// probe looks at every control plane the inventory knows, all at once.
func (a *Actor) probe(ctx context.Context, cl *inventory.Cluster, secrets *inventory.Secrets) (map[string]netip.Addr, []Probe, error) {
	names, err := a.inv.Members(ctx, cl.Name, inventory.ControlPlane)
	if err != nil {
		return nil, nil, err
	}
	addrs := map[string]netip.Addr{}
	var planes []inventory.View
	for _, name := range names {
		v, err := a.inv.Machine(ctx, name)
		if errors.Is(err, inventory.ErrNotFound) {
			continue
		} else if err != nil {
			return nil, nil, err
		}
		planes = append(planes, v)
		addrs[name] = v.Machine.Address
	}
	probing, cancel := context.WithTimeout(ctx, probeTimeout)
	defer cancel()
	probes := make([]Probe, len(planes))
	var wg sync.WaitGroup
	for i, v := range planes {
		// The secrets were made here, so a machine whose API we never saw cannot
		// hold etcd data of this cluster, unless others ran the cluster before us.
		holds := v.Facts.Holds
		if holds.Cluster == cl.Name && holds.Epoch != cl.Epoch {
			probes[i] = Probe{Machine: v.Machine.Name, Err: "is of an earlier life of the cluster"}
			continue
		}
		mayHaveData := cl.Imported || (v.Facts.HoldsEtcd(cl) || holds.Cluster == "") && !v.Facts.APIAt.IsZero()
		if !mayHaveData && v.Facts.ConfigAt.IsZero() {
			probes[i] = Probe{Machine: v.Machine.Name, Err: "has not booted yet"}
			continue
		}
		wg.Go(func() {
			probes[i] = a.talos.Probe(probing, cl, secrets, v.Machine.Address)
			probes[i].Machine = v.Machine.Name
			probes[i].MayHaveData, probes[i].Leaves, probes[i].Wiped = mayHaveData, v.Facts.Reimage.Outstanding(), v.Facts.WipeAskedAt
			if v.Machine.Created.After(probes[i].Wiped) {
				probes[i].Wiped = v.Machine.Created // another one may have had its name
			}
		})
	}
	wg.Wait()
	slices.SortFunc(probes, func(x, y Probe) int { return strings.Compare(x.Machine, y.Machine) })
	return addrs, probes, ctx.Err()
}

// keepReason records what the cluster waits for, when that changed.
func (a *Actor) keepReason(ctx context.Context, b *inventory.Bootstrap, reason string) error {
	if reason == "" || reason == b.Reason {
		return nil
	}
	a.log.Info().Str("cluster", b.Cluster).Str("reason", reason).Msg("bootstrap waits")
	_, err := a.inv.Record(ctx, inventory.Event{Kind: inventory.BootstrapWaits, Cluster: b.Cluster, Epoch: b.Epoch, Message: reason})
	return err
}
