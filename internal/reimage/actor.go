package reimage

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/rs/zerolog"

	"github.com/provisiond/provisiond/internal/inventory"
)

const (
	poll      = 5 * time.Second
	pause     = time.Second / 4
	page      = 512
	workers   = 16
	asking    = 10 * time.Second // one question to one machine
	resetting = 30 * time.Second // the call
)

// Inventory is what the actor reads and records. Record is durable when it returns
// nil, and refuses (inventory.ErrRefused) a second claim of one order.
type Inventory interface {
	Clusters
	Machines(ctx context.Context, after string, limit int) ([]inventory.View, error)
	Record(ctx context.Context, e inventory.Event) (inventory.View, error)
	WatchMachines() (wake <-chan struct{}, take func() []string, stop func())
}

// Actor sees orders to reimage through.
type Actor struct {
	inv   Inventory
	talos Talos
	guard *Guard
	log   zerolog.Logger
}

// New returns an actor. It does nothing until Run.
func New(inv Inventory, talos Talos, log zerolog.Logger) *Actor {
	return &Actor{inv: inv, talos: talos, guard: NewGuard(inv, talos), log: log}
}

// Run looks at every machine once, and from then on at those to which something
// happened, for as long as they have an order that is not claimed, until ctx ends. It
// re-derives everything from what is committed, so that a restart costs nothing.
func (a *Actor) Run(ctx context.Context) error {
	wake, take, stop := a.inv.WatchMachines()
	defer stop()
	pending := map[string]bool{}
	if err := a.scan(ctx, pending); err != nil && ctx.Err() == nil {
		return err
	}
	for ctx.Err() == nil {
		for _, name := range take() {
			pending[name] = true
		}
		if err := a.Round(ctx, pending); err != nil && ctx.Err() == nil {
			a.log.Error().Err(err).Msg("a reimage cannot go on")
		}
		again := time.Hour
		if len(pending) > 0 {
			again = poll
		}
		timer := time.NewTimer(again)
		select {
		case <-ctx.Done():
		case <-timer.C:
		case <-wake:
			select { // what comes at once is looked at together
			case <-ctx.Done():
			case <-time.After(pause):
			}
		}
		timer.Stop()
	}
	return nil
}

func (a *Actor) scan(ctx context.Context, pending map[string]bool) error {
	for after := ""; ; {
		views, err := a.inv.Machines(ctx, after, page)
		if err != nil {
			return err
		}
		for _, v := range views {
			if after = v.Machine.Name; waits(&v.Facts) {
				pending[after] = true
			}
		}
		if len(views) < page {
			return nil
		}
	}
}

// waits reports whether there is something to do for a machine.
func waits(f *inventory.Facts) bool { return f.Reimage.Outstanding() && !f.Reimage.Claimed() }

// Round takes the pending machines as far as they go now, and takes those out that have
// nothing to wait for. Machines of one cluster's control plane go one after the other,
// all others side by side.
func (a *Actor) Round(ctx context.Context, pending map[string]bool) error {
	groups := map[string][]string{}
	for name := range pending {
		v, err := a.inv.Machine(ctx, name)
		if errors.Is(err, inventory.ErrNotFound) {
			delete(pending, name)
			continue
		} else if err != nil {
			return err
		}
		if !waits(&v.Facts) {
			delete(pending, name)
			continue
		}
		group := "machine/" + name
		if v.Facts.Holds.Role == inventory.ControlPlane {
			group = "cluster/" + v.Facts.Holds.Cluster
		}
		groups[group] = append(groups[group], name)
	}
	var mu sync.Mutex
	var errs []error
	var wg sync.WaitGroup
	slots := make(chan struct{}, workers)
	for _, names := range groups {
		slices.Sort(names)
		slots <- struct{}{}
		wg.Go(func() {
			defer func() { <-slots }()
			for _, name := range names {
				if err := a.advance(ctx, name); err != nil && !errors.Is(err, inventory.ErrNotFound) {
					mu.Lock()
					errs = append(errs, fmt.Errorf("%s: %w", name, err))
					mu.Unlock()
				}
			}
		})
	}
	wg.Wait()
	return errors.Join(errs...)
}

// advance takes one machine one step further.
func (a *Actor) advance(ctx context.Context, name string) error {
	v, err := a.inv.Machine(ctx, name)
	if err != nil || !waits(&v.Facts) {
		return err
	}
	r := v.Facts.Reimage
	if r.Attempts >= inventory.MaxWipes {
		return a.wait(ctx, v, fmt.Sprintf("%d wipes left its disk as it was: cancel this order, look at the machine, and order again", r.Attempts))
	}
	if other, err := a.underway(ctx, v); err != nil || other != "" && !r.Destroy {
		if err != nil {
			return err
		}
		return a.wait(ctx, v, "waits for "+other+", another control plane of its cluster that is being reimaged")
	}
	s, err := a.guard.Look(ctx, v)
	if err != nil {
		return err
	}
	ok, why := s.MayGo(r.Destroy)
	if !ok {
		return a.wait(ctx, v, why)
	}
	cl, secrets, err := a.keys(ctx, v)
	if err != nil {
		return err
	}
	answers := false
	if cl != nil {
		asked, cancel := context.WithTimeout(ctx, asking)
		st, err := a.talos.Status(asked, cl, secrets, v.Machine.Address)
		cancel()
		// Not while it installs, or goes down already.
		answers = err == nil && (st.Stage == inventory.StageBooting || st.Stage == inventory.StageRunning)
	}
	if !answers || !r.Graceful {
		// Talos' own way out of etcd is not taken.
		if err := a.guard.Release(ctx, &s); err != nil {
			return a.wait(ctx, v, err.Error())
		}
	}
	if answers {
		return a.reset(ctx, v, cl, secrets, why)
	}
	if !r.Cleared() {
		if _, err := a.inv.Record(ctx, inventory.Event{Kind: inventory.ReimageCleared, Machine: name, Message: why}); err != nil {
			return err
		}
	}
	if r.AllDisks {
		return a.wait(ctx, v, "its API does not answer, which alone can wipe all disks")
	}
	return a.wait(ctx, v, "its API does not answer: it is wiped when it next boots from the network")
}

// underway names another control plane of the machine's cluster that was wiped and is
// not back yet.
func (a *Actor) underway(ctx context.Context, v inventory.View) (string, error) {
	holds := v.Facts.Holds
	if holds.Role != inventory.ControlPlane {
		return "", nil
	}
	names, err := a.inv.Members(ctx, holds.Cluster, inventory.ControlPlane)
	if err != nil {
		return "", err
	}
	for _, name := range names {
		if name == v.Machine.Name {
			continue
		}
		p, err := a.inv.Machine(ctx, name)
		if errors.Is(err, inventory.ErrNotFound) {
			continue
		} else if err != nil {
			return "", err
		}
		f := &p.Facts
		if f.Holds == holds && (f.Reimage.Outstanding() && f.Reimage.Claimed() || f.Reimage.Ordered > 0 && f.Install.Outstanding()) {
			return name, nil
		}
	}
	return "", nil
}

// keys are those of the cluster that the machine's disk belongs to; nil: nobody's.
func (a *Actor) keys(ctx context.Context, v inventory.View) (*inventory.Cluster, *inventory.Secrets, error) {
	holds := v.Facts.Holds
	if holds.Cluster == "" && v.Cluster != nil {
		holds = inventory.Membership{Cluster: v.Cluster.Name, Epoch: v.Cluster.Epoch}
	}
	if holds.Cluster == "" {
		return nil, nil, nil
	}
	cl, _, err := a.inv.Cluster(ctx, holds.Cluster)
	if err == nil {
		var s *inventory.Secrets
		if s, err = a.inv.SecretsOf(ctx, holds.Cluster, holds.Epoch); err == nil {
			return cl, s, nil
		}
	}
	if errors.Is(err, inventory.ErrNotFound) {
		err = nil
	}
	return nil, nil, err
}

// reset claims the wipe, asks for it once, and records the answer. A crash after the
// claim leaves one whose act may have happened: nobody asks again, unless the machine
// is seen to run what it ran before (see inventory.Apply).
func (a *Actor) reset(ctx context.Context, v inventory.View, cl *inventory.Cluster, secrets *inventory.Secrets, why string) error {
	r, name := v.Facts.Reimage, v.Machine.Name
	log := a.log.With().Str("machine", name).Uint64("order", r.Ordered).Logger()
	if _, err := a.inv.Record(ctx, inventory.Event{Kind: inventory.WipeClaimed, Machine: name, Message: "its API is asked to wipe it: " + why}); err != nil {
		return err
	}
	calling, cancel := context.WithTimeout(ctx, resetting)
	defer cancel()
	// Where the cluster may be lost there may be nothing left to leave.
	graceful := r.Graceful && !r.Destroy
	outcome, err := a.talos.Reset(calling, cl, secrets, v.Machine.Address, graceful, r.AllDisks)
	log.Info().Str("outcome", string(outcome)).AnErr("detail", err).Bool("graceful", graceful).Bool("allDisks", r.AllDisks).Msg("the wipe was asked for")
	e := inventory.Event{Kind: inventory.WipeAccepted, Machine: name, Message: "its API wipes it"}
	switch outcome {
	case Declined:
		e.Kind, e.Message = inventory.WipeDeclined, fmt.Sprintf("its API declined to wipe it: %v", err)
	case Unknown:
		e.Message = "its API was asked to wipe it, and the answer was lost"
	}
	// Whatever becomes of ctx: the answer is here.
	_, err = a.inv.Record(context.WithoutCancel(ctx), e)
	return err
}

// wait keeps what a machine waits for, when that changed.
func (a *Actor) wait(ctx context.Context, v inventory.View, reason string) error {
	if reason == v.Facts.Reimage.Reason {
		return nil
	}
	a.log.Info().Str("machine", v.Machine.Name).Str("reason", reason).Msg("reimage waits")
	_, err := a.inv.Record(ctx, inventory.Event{Kind: inventory.ReimageWaits, Machine: v.Machine.Name, Message: reason})
	return err
}
