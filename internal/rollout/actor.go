package rollout

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/rs/zerolog"

	"github.com/provisiond/provisiond/internal/inventory"
)

const (
	poll    = time.Second
	pause   = time.Second / 2
	looking = 20 * time.Second // at one machine
	calling = 2 * time.Minute  // an upgrade is answered when its image was pulled
)

// Outcome is how a call that changes a machine ended.
type Outcome string

// The outcomes. Only after Unknown is it open whether the machine does what it was told.
const (
	Accepted Outcome = "accepted"
	NotYet   Outcome = "not yet" // nothing has happened, and it may be asked again
	Refused  Outcome = "refused" // a definite no
	Unknown  Outcome = "unknown"
)

// Inventory is what the actor reads and records. What is recorded is durable when the
// method returns nil.
type Inventory interface {
	Rollouts(ctx context.Context) ([]inventory.Rollout, error)
	RecordRollout(ctx context.Context, number uint64, e inventory.Event) (*inventory.Rollout, error)
	Cluster(ctx context.Context, name string) (*inventory.Cluster, *inventory.Bootstrap, error)
	Machine(ctx context.Context, ref string) (inventory.View, error)
	Record(ctx context.Context, e inventory.Event) (inventory.View, error)
	Watch() (wake <-chan struct{}, stop func())
}

// Machines are the machines, through their APIs. All methods return within the deadline
// of ctx and act at most once.
type Machines interface {
	// Look fills in what a machine's API says, and what it should have.
	Look(ctx context.Context, v inventory.View) (Probe, error)
	// Apply gives a machine the config that it should have, if that has this hash still,
	// and returns what Talos said.
	Apply(ctx context.Context, v inventory.View, hash string, mode inventory.ConfigMode) (string, Outcome, error)
	// Upgrade has a machine install Talos from an image, and reboot.
	Upgrade(ctx context.Context, v inventory.View, image string) (string, Outcome, error)
}

// Guard says whether the etcd of a machine's cluster has quorum without it.
type Guard interface {
	MayRest(ctx context.Context, v inventory.View) (ok bool, reason string, err error)
}

// Actor sees rollouts through.
type Actor struct {
	inv      Inventory
	machines Machines
	guard    Guard
	log      zerolog.Logger
	acts     *prometheus.CounterVec
}

// New returns an actor. It does nothing until Run.
func New(inv Inventory, machines Machines, guard Guard, log zerolog.Logger) *Actor {
	return &Actor{inv: inv, machines: machines, guard: guard, log: log, acts: newActs()}
}

// Run sees every rollout through, until ctx ends. It re-derives everything from what is
// committed, so that a restart costs nothing.
func (a *Actor) Run(ctx context.Context) error {
	wake, stop := a.inv.Watch()
	defer stop()
	for ctx.Err() == nil {
		going, err := a.Round(ctx)
		if err != nil && ctx.Err() == nil {
			a.log.Error().Err(err).Msg("a rollout cannot go on")
		}
		again := time.Hour
		if going || err != nil {
			again = poll
		}
		inventory.Wait(ctx, wake, again, pause)
	}
	return nil
}

// Round takes each rollout that goes on as far as it goes now, side by side, and says
// whether there is one.
func (a *Actor) Round(ctx context.Context) (going bool, err error) {
	all, err := a.inv.Rollouts(ctx)
	if err != nil {
		return false, err
	}
	errs := make([]error, len(all))
	var wg sync.WaitGroup
	for i := range all {
		r := &all[i]
		if !r.Going() {
			continue
		}
		going = true
		wg.Go(func() {
			// Whoever stops it does so in the middle of a step.
			if err := a.advance(ctx, r); err != nil && !errors.Is(err, inventory.ErrRefused) {
				errs[i] = fmt.Errorf("rollout %d over %s: %w", r.Number, r.Cluster, err)
			}
		})
	}
	wg.Wait()
	return going, errors.Join(errs...)
}

// advance takes one rollout as far as it goes now.
func (a *Actor) advance(ctx context.Context, r *inventory.Rollout) error {
	for {
		s, probes, err := a.decide(ctx, r)
		if err != nil {
			return err
		}
		e := inventory.Event{Machine: s.machine, Message: s.reason}
		switch s.do {
		case wait:
			if e.Machine, e.Message = "", s.machine+": "+s.reason; e.Message == r.Reason {
				return nil
			}
			e.Kind = inventory.RolloutWaits
		case again:
			e.Kind = inventory.RolloutMachineAgain
		case done:
			if err := a.known(ctx, r, s.machine, probes[s.machine]); err != nil {
				return err
			}
			e.Kind = inventory.RolloutMachineDone
		case fail:
			e.Kind = inventory.RolloutMachineFailed
		case end:
			e.Kind = inventory.RolloutEnded
		case apply, upgrade:
			return a.ask(ctx, r, s, probes[s.machine])
		}
		if r, err = a.record(ctx, r, e); err != nil || s.do != done && s.do != again {
			return err
		}
	}
}

// decide looks at what next needs to know.
func (a *Actor) decide(ctx context.Context, r *inventory.Rollout) (step, map[string]Probe, error) {
	cl, _, err := a.inv.Cluster(ctx, r.Cluster)
	switch {
	case errors.Is(err, inventory.ErrNotFound):
		return step{end, "", "the cluster was removed"}, nil, nil
	case err != nil:
		return step{}, nil, err
	case cl.Epoch != r.Epoch:
		return step{end, "", "the cluster was reset"}, nil, nil
	}
	probes, err := a.look(ctx, r)
	if err != nil {
		return step{}, nil, err
	}
	return next(r, probes, time.Now()), probes, nil
}

// look asks the machines that are to be decided on, all at once.
func (a *Actor) look(ctx context.Context, r *inventory.Rollout) (map[string]Probe, error) {
	ctx, cancel := context.WithTimeout(ctx, looking)
	defer cancel()
	probes := map[string]Probe{}
	var errs []error
	var mu sync.Mutex
	var wg sync.WaitGroup
	for _, name := range looked(r) {
		wg.Go(func() {
			p, err := a.probe(ctx, r, name)
			mu.Lock()
			defer mu.Unlock()
			if probes[name] = p; err != nil {
				errs = append(errs, fmt.Errorf("%s: %w", name, err))
			}
		})
	}
	wg.Wait()
	return probes, errors.Join(errs...)
}

func (a *Actor) probe(ctx context.Context, r *inventory.Rollout, name string) (Probe, error) {
	v, err := a.inv.Machine(ctx, name)
	if errors.Is(err, inventory.ErrNotFound) {
		return Probe{Gone: "it was removed"}, nil
	} else if err != nil {
		return Probe{}, err
	}
	if v.Machine.Cluster != r.Cluster {
		return Probe{Gone: "it is not in the cluster any more"}, nil
	}
	p, err := a.machines.Look(ctx, v)
	if err != nil {
		return p, err
	}
	p.Staged = v.Facts.StagedHash
	if m := r.Current(); m.Name == name && m.State == inventory.RolloutPending && p.Ready && !p.has(r) {
		p.May, p.Why, err = a.may(ctx, r, v)
	}
	return p, err
}

// may says whether the machine may be away for a while.
func (a *Actor) may(ctx context.Context, r *inventory.Rollout, v inventory.View) (ok bool, reason string, err error) {
	if v.Facts.Reimage.Outstanding() {
		return false, "it is to be reimaged, and gets its config then", nil
	}
	if r.Mode == inventory.ConfigStaged && !r.Upgrade {
		return true, "it goes on as it is until its next boot", nil
	}
	if v.Machine.Role != inventory.ControlPlane {
		return true, "a worker", nil
	}
	for _, m := range r.Machines {
		if m.Role != inventory.ControlPlane || m.Name == v.Machine.Name {
			continue
		}
		o, err := a.inv.Machine(ctx, m.Name)
		if errors.Is(err, inventory.ErrNotFound) {
			continue
		} else if err != nil {
			return false, "", err
		}
		if f := &o.Facts; f.Reimage.Outstanding() && f.Reimage.Claimed() {
			return false, m.Name + ", another control plane, is being reimaged", nil
		}
	}
	return a.guard.MayRest(ctx, v)
}

// ask claims a machine, asks it once, and records the answer. A crash after the claim
// leaves one whose act may have happened: it is looked at, and not asked again.
func (a *Actor) ask(ctx context.Context, r *inventory.Rollout, s step, p Probe) error {
	claim := inventory.Event{Kind: inventory.RolloutMachineClaimed, Machine: s.machine, Hash: p.Wanted, Message: s.reason}
	if s.do == upgrade {
		claim.Hash, claim.Image = "", p.Image
	}
	if _, err := a.record(ctx, r, claim); err != nil {
		return err
	}
	// Another control plane may have been claimed for a wipe meanwhile: whoever claims
	// second sees the other's claim.
	ok, why := false, ""
	v, err := a.inv.Machine(ctx, s.machine)
	if err == nil {
		ok, why, err = a.may(ctx, r, v)
	}
	if err != nil {
		ok, why = false, err.Error()
	}
	if !ok { // nothing was asked, so no claim may be left
		_, err := a.record(context.WithoutCancel(ctx), r, inventory.Event{Kind: inventory.RolloutMachineAgain, Machine: s.machine, Message: why})
		return err
	}
	call, cancel := context.WithTimeout(ctx, calling)
	defer cancel()
	var said string
	var outcome Outcome
	if s.do == upgrade {
		said, outcome, err = a.machines.Upgrade(call, v, p.Image)
	} else {
		said, outcome, err = a.machines.Apply(call, v, p.Wanted, r.Mode)
	}
	a.acts.WithLabelValues(string(s.do), string(outcome)).Inc()
	a.log.Info().Str("cluster", r.Cluster).Str("machine", s.machine).Str("act", string(s.do)).Str("outcome", string(outcome)).AnErr("detail", err).Msg("a machine was asked")
	e := inventory.Event{Kind: inventory.RolloutMachineAnswered, Machine: s.machine, Message: said}
	switch outcome {
	case Accepted:
		if s.do == apply && r.Mode == inventory.ConfigStaged {
			e.Kind = inventory.RolloutMachineDone
		}
	case NotYet:
		e.Kind, e.Message = inventory.RolloutMachineAgain, fmt.Sprint(err)
	case Refused:
		e.Kind, e.Message = inventory.RolloutMachineFailed, fmt.Sprint(err)
	case Unknown:
		e.Message = fmt.Sprintf("it is not known what came of it: %v", err)
	}
	_, err = a.record(context.WithoutCancel(ctx), r, e) // the answer is here, whatever becomes of ctx
	return err
}

// known makes it a fact which config a machine was found to run, should the answer that
// said so have been lost.
func (a *Actor) known(ctx context.Context, r *inventory.Rollout, name string, p Probe) error {
	if p.Gone != "" || r.Mode == inventory.ConfigStaged && p.Running != p.Wanted {
		return nil
	}
	v, err := a.inv.Machine(ctx, name)
	if err != nil || v.Facts.ConfigHash == p.Running {
		return err
	}
	_, err = a.inv.Record(ctx, inventory.Event{Kind: inventory.ConfigApplied, Machine: name, Hash: p.Running, Mode: inventory.ConfigAuto, Message: "it was found to run it"})
	return err
}

func (a *Actor) record(ctx context.Context, r *inventory.Rollout, e inventory.Event) (*inventory.Rollout, error) {
	e.Cluster = r.Cluster
	after, err := a.inv.RecordRollout(ctx, r.Number, e)
	if err == nil && after.Reason != r.Reason {
		a.log.Info().Str("cluster", r.Cluster).Uint64("rollout", r.Number).Str("reason", after.Reason).Msg("rollout")
	}
	return after, err
}
