package reimage

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
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
	Keys(ctx context.Context, v inventory.View) ([]inventory.Keys, error)
	Machines(ctx context.Context, after string, limit int) ([]inventory.View, error)
	Record(ctx context.Context, e inventory.Event) (inventory.View, error)
	// Rollout returns the newest rollout over a cluster, or inventory.ErrNotFound.
	Rollout(ctx context.Context, cluster string) (*inventory.Rollout, error)
	WatchMachines() (wake <-chan struct{}, take func() []string, stop func())
}

// Actor sees orders to reimage through.
type Actor struct {
	inv   Inventory
	talos Talos
	guard *Guard
	log   zerolog.Logger
	wipes *prometheus.CounterVec
}

// New returns an actor. It does nothing until Run.
func New(inv Inventory, talos Talos, log zerolog.Logger) *Actor {
	return &Actor{inv: inv, talos: talos, guard: NewGuard(inv, talos), log: log, wipes: newWipes()}
}

// Run looks at every machine once, and from then on at those to which something
// happened, for as long as they have an order that is open, until ctx ends. It
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
		inventory.Wait(ctx, wake, again, pause)
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
			if after = v.Machine.Name; v.Facts.Reimage.Outstanding() {
				pending[after] = true
			}
		}
		if len(views) < page {
			return nil
		}
	}
}

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
		switch r := &v.Facts.Reimage; {
		case !r.Outstanding():
			delete(pending, name)
			continue
		case r.Claimed():
			continue // until its API proves that nothing came of it
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
	if err != nil || !v.Facts.Reimage.Outstanding() || v.Facts.Reimage.Claimed() {
		return err
	}
	r := v.Facts.Reimage
	d, err := a.decide(ctx, v)
	switch {
	case err != nil:
		return err
	case d.refused:
		return a.refuse(ctx, v, d.waits)
	case d.waits != "":
		return a.wait(ctx, v, d.waits)
	case d.life != nil:
		if !r.Graceful || r.Destroy || !d.status.Etcd { // else Talos' own way out of etcd is taken
			if err := a.release(ctx, v, &d.standing); err != nil {
				return a.wait(ctx, v, err.Error())
			}
		}
		return a.reset(ctx, v, d.life, d.why)
	}
	// It is in its boot loader, and stays there until it has its script.
	if err := a.release(ctx, v, &d.standing); err != nil {
		return a.refuse(ctx, v, err.Error())
	}
	_, err = a.inv.Record(ctx, inventory.Event{Kind: inventory.ReimageCleared, Machine: name, Message: d.why})
	return err
}

// decision is how far an order can go now.
type decision struct {
	standing Standing
	why      string // it may go
	// waits says what for; empty: it can be wiped at once. With refused it must not be
	// wiped in its boot loader either.
	waits   string
	refused bool
	life    *inventory.Keys // what its API takes; nil: it does not answer
	status  Status
}

// decide looks at a machine with an order that is open, and changes nothing.
func (a *Actor) decide(ctx context.Context, v inventory.View) (d decision, err error) {
	r := v.Facts.Reimage
	if r.Attempts >= inventory.MaxWipes {
		d.waits = fmt.Sprintf("%d wipes left its disk as it was: look at its console, and order it again, or cancel it", r.Attempts)
		return d, nil
	}
	if other, err := a.underway(ctx, v); err != nil || other != "" && !r.Destroy {
		d.waits, d.refused = "waits for "+other, true
		return d, err
	}
	if d.standing, err = a.guard.Look(ctx, v); err != nil {
		return d, err
	}
	ok, why := d.standing.MayGo(r.Destroy)
	if !ok {
		d.waits, d.refused = why, true
		return d, nil
	}
	d.why = why
	d.life, d.status, err = a.answers(ctx, v)
	switch {
	case err != nil || d.life != nil:
	case r.AllDisks:
		d.waits = "its API does not answer, which alone can wipe all disks"
	case !v.Facts.AwaitsClearance():
		d.waits = "its API does not answer: it is wiped when it next boots from the network"
	}
	return d, err
}

// Foresee says of a machine, with an order that need not be given yet, how it would be
// wiped and what it would wait for; empty: nothing. It asks the machine and its
// cluster, and changes nothing.
func (a *Actor) Foresee(ctx context.Context, v inventory.View) (via inventory.Via, waits string, err error) {
	d, err := a.decide(ctx, v)
	switch {
	case err != nil:
		return "", "", err
	case d.life != nil || v.Facts.Reimage.AllDisks:
		return inventory.ViaAPI, d.waits, nil
	case d.refused:
		return "", d.waits, nil
	}
	// As its boot script will say, which knows what an image takes.
	if p := inventory.PlanBoot(v); p.Action != inventory.Wipe {
		return "", p.Reason, nil
	}
	return inventory.ViaNetboot, d.waits, nil
}

// release takes a machine out of etcd, if it is in it. From then on its disk is no good,
// and its order cannot be cancelled.
func (a *Actor) release(ctx context.Context, v inventory.View, s *Standing) error {
	if !s.Leaves() {
		return nil
	}
	if _, err := a.inv.Record(ctx, inventory.Event{Kind: inventory.ReimageLeaves, Machine: v.Machine.Name, Message: "is taken out of etcd of " + s.Cluster.Name}); err != nil {
		return err
	}
	return a.guard.Release(ctx, s)
}

// underway names another control plane of the machine's cluster that was wiped, or is
// given another config, and is not back yet.
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
		sameLife := f.Holds.Cluster == holds.Cluster && f.Holds.Role == holds.Role && f.Holds.Epoch == holds.Epoch
		if sameLife && f.Reimage.Claimed() && (f.Reimage.Outstanding() || f.Install.Outstanding()) {
			return name + ", another control plane of its cluster that is being reimaged", nil
		}
	}
	r, err := a.inv.Rollout(ctx, holds.Cluster)
	if errors.Is(err, inventory.ErrNotFound) {
		return "", nil
	} else if err != nil {
		return "", err
	}
	if m := r.Claimed(); r.Going() && m != nil && m.Role == inventory.ControlPlane && m.Name != v.Machine.Name {
		return m.Name + ", another control plane of its cluster whose turn it is in a rollout", nil
	}
	return "", nil
}

// answers finds the keys that a machine's API takes; nil if it does not answer, is
// installing, or goes down already.
func (a *Actor) answers(ctx context.Context, v inventory.View) (*inventory.Keys, Status, error) {
	keys, err := a.inv.Keys(ctx, v)
	if err != nil {
		return nil, Status{}, err
	}
	for _, life := range keys {
		asked, cancel := context.WithTimeout(ctx, asking)
		st, err := a.talos.Status(asked, life.Cluster, life.Secrets, v.Machine.Address)
		cancel()
		if err == nil && (st.Stage == inventory.StageBooting || st.Stage == inventory.StageRunning) {
			return &life, st, nil
		}
	}
	return nil, Status{}, nil
}

// reset claims the wipe, asks for it once, and records the answer. A crash after the
// claim leaves one whose act may have happened: nobody asks again, unless the machine
// is seen to run what it ran before (see inventory.Apply).
func (a *Actor) reset(ctx context.Context, v inventory.View, life *inventory.Keys, why string) error {
	r, name := v.Facts.Reimage, v.Machine.Name
	log := a.log.With().Str("machine", name).Uint64("order", r.Ordered).Logger()
	if _, err := a.inv.Record(ctx, inventory.Event{Kind: inventory.WipeClaimed, Machine: name, Message: "its API is asked to wipe it: " + why}); err != nil {
		return err
	}
	// The bootstrap may have been claimed by it meanwhile: whoever claims second sees the
	// other's claim.
	s, err := a.guard.Look(ctx, v)
	ok, word := false, ""
	if err == nil {
		ok, word = s.MayGo(r.Destroy)
	}
	if ok && !r.Destroy { // the same of the claim of a rollout
		var other string
		if other, err = a.underway(ctx, v); other != "" {
			ok, word = false, "waits for "+other
		}
	}
	if err != nil {
		ok, word = false, err.Error()
	}
	if !ok { // nothing was asked, so no claim may be left
		_, err := a.inv.Record(context.WithoutCancel(ctx), inventory.Event{Kind: inventory.WipeDeclined, Machine: name, Message: word})
		return err
	}
	calling, cancel := context.WithTimeout(ctx, resetting)
	defer cancel()
	// Where the cluster may be lost there may be nothing left to leave.
	graceful := r.Graceful && !r.Destroy
	outcome, err := a.talos.Reset(calling, life.Cluster, life.Secrets, v.Machine.Address, graceful, r.AllDisks)
	a.wipes.WithLabelValues(string(outcome)).Inc()
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
	return a.keep(ctx, v, inventory.Event{Message: reason})
}

// refuse is wait, and lets a machine that asks in its boot loader go on to its disk.
func (a *Actor) refuse(ctx context.Context, v inventory.View, reason string) error {
	return a.keep(ctx, v, inventory.Event{Message: reason, Refused: v.Facts.AwaitsClearance()})
}

func (a *Actor) keep(ctx context.Context, v inventory.View, e inventory.Event) error {
	if e.Message == v.Facts.Reimage.Reason && !e.Refused {
		return nil
	}
	a.log.Info().Str("machine", v.Machine.Name).Str("reason", e.Message).Msg("reimage waits")
	e.Kind, e.Machine = inventory.ReimageWaits, v.Machine.Name
	_, err := a.inv.Record(ctx, e)
	return err
}
