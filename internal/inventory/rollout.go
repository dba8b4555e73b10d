package inventory

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"
)

// Rollout is the order to give each machine of a cluster the config that it should
// have, one machine after the other, control planes first. It ends when all have it,
// at the first failure, or when it is stopped.
//
// A crash leaves one of: a machine without a claim (looked at again), a claim whose act
// may have happened (looked at, and never repeated), a machine that is done.
type Rollout struct {
	Cluster string     `json:"cluster"`
	Epoch   uint64     `json:"epoch"`  // of the cluster
	Number  uint64     `json:"number"` // counts up by one for each rollout of the cluster
	Mode    ConfigMode `json:"mode"`   // never ConfigTry
	// Upgrade installs the Talos that the inventory says before the config.
	Upgrade bool      `json:"upgrade,omitempty"`
	Started time.Time `json:"started"`
	Stopped time.Time `json:"stopped,omitzero"`
	// Reason says in words what it waits for, or why it ended.
	Reason   string           `json:"reason,omitempty"`
	Machines []RolloutMachine `json:"machines"` // in their order

	Rev uint64 `json:"-"`
}

// RolloutState is how far one machine of a rollout is.
type RolloutState string

// The states, each recorded before what follows from it.
const (
	RolloutPending RolloutState = "pending"
	RolloutClaimed RolloutState = "claimed" // its API is asked, or was
	RolloutDone    RolloutState = "done"
	RolloutFailed  RolloutState = "failed"
)

// RolloutMachine is one machine of a rollout.
type RolloutMachine struct {
	Name  string       `json:"name"`
	Role  Role         `json:"role"`
	State RolloutState `json:"state"`
	// Hash is the SHA-256 of the config that it was claimed for.
	Hash string `json:"hash,omitempty"`
	// Image is the installer that it was claimed for; empty: it was for a config.
	Image     string    `json:"image,omitempty"`
	ClaimedAt time.Time `json:"claimedAt,omitzero"`
	EndedAt   time.Time `json:"endedAt,omitzero"` // done or failed
	Reason    string    `json:"reason,omitempty"`
}

// Complete reports whether it ended, and every machine was done.
func (r *Rollout) Complete() bool {
	return !r.Going() && !slices.ContainsFunc(r.Machines, func(m RolloutMachine) bool { return m.State != RolloutDone })
}

// Going reports whether the rollout has not ended.
func (r *Rollout) Going() bool { return r.Stopped.IsZero() }

// Claimed returns the machine that is claimed, or nil.
func (r *Rollout) Claimed() *RolloutMachine { return r.in(RolloutClaimed) }

// Current returns the machine whose turn it is, or nil when all had theirs.
func (r *Rollout) Current() *RolloutMachine { return r.in(RolloutClaimed, RolloutPending) }

func (r *Rollout) in(states ...RolloutState) *RolloutMachine {
	for i := range r.Machines {
		if slices.Contains(states, r.Machines[i].State) {
			return &r.Machines[i]
		}
	}
	return nil
}

func (r *Rollout) machine(name string) *RolloutMachine {
	for i := range r.Machines {
		if r.Machines[i].Name == name {
			return &r.Machines[i]
		}
	}
	return nil
}

// apply folds an event into a rollout and says whether it tells something. It refuses
// (ErrRefused) what one that has ended would do, and a claim while another machine is
// claimed.
func (r *Rollout) apply(e Event) (tells bool, err error) {
	if !r.Going() {
		return false, fmt.Errorf("the rollout over %s has ended: %w", r.Cluster, ErrRefused)
	}
	m := r.machine(e.Machine)
	open := m != nil && (m.State == RolloutPending || m.State == RolloutClaimed)
	switch e.Kind {
	case RolloutMachineClaimed:
		if m == nil || m.State != RolloutPending || r.Claimed() != nil {
			return false, fmt.Errorf("it is not the turn of %s in the rollout over %s: %w", e.Machine, r.Cluster, ErrRefused)
		}
		m.State, m.Hash, m.Image, m.ClaimedAt, m.Reason = RolloutClaimed, e.Hash, e.Image, e.Time, e.Message
		r.Reason = e.Machine + ": " + e.Message
		return true, nil
	case RolloutMachineAnswered:
		if m == nil || m.State != RolloutClaimed {
			return false, nil
		}
		r.Reason = e.Machine + ": " + e.Message
		return set(&m.Reason, e.Message), nil
	case RolloutMachineAgain:
		if m == nil || m.State != RolloutClaimed {
			return false, nil
		}
		m.State, m.Reason = RolloutPending, e.Message
		return true, nil
	case RolloutMachineDone:
		if !open {
			return false, nil
		}
		m.State, m.EndedAt, m.Reason = RolloutDone, e.Time, e.Message
		return true, nil
	case RolloutMachineFailed:
		if !open {
			return false, nil
		}
		m.State, m.EndedAt, m.Reason = RolloutFailed, e.Time, e.Message
		r.Stopped, r.Reason = e.Time, e.Machine+": "+e.Message
		return true, nil
	case RolloutWaits:
		return set(&r.Reason, e.Message), nil
	case RolloutEnded:
		r.Stopped, r.Reason = e.Time, e.Message
		return true, nil
	}
	return false, nil
}

// StartRollout begins a rollout over a cluster's machines as they are now. It refuses
// one while another goes on, and over a cluster that is not up.
func (k *Keeper) StartRollout(ctx context.Context, cluster string, mode ConfigMode, upgrade bool) (*Rollout, error) {
	now := time.Now().UTC()
	key := Key{BucketRollouts, cluster}
	var next Rollout
	err := k.update(ctx, func() (Commit, error) {
		var c Commit
		cl, b, err := k.Cluster(ctx, cluster)
		if err != nil {
			return c, err
		}
		if !b.Done() && !cl.Imported {
			return c, fmt.Errorf("cluster %s is not bootstrapped yet: its machines get their configs when they boot: %w", cluster, ErrRefused)
		}
		old, err := getJSON[Rollout](ctx, k.store, key)
		switch {
		case errors.Is(err, ErrNotFound):
		case err != nil:
			return c, err
		case old.Going() && old.Started.Equal(now):
			next = old // our own commit, whose answer was lost
			return c, nil
		case old.Going():
			return c, fmt.Errorf("rollout %d over %s goes on; stop it first: %w", old.Number, cluster, ErrRefused)
		}
		next = Rollout{Cluster: cluster, Epoch: cl.Epoch, Number: old.Number + 1, Mode: mode, Upgrade: upgrade, Started: now}
		for _, role := range []Role{ControlPlane, Worker} {
			names, err := k.Members(ctx, cluster, role)
			if err != nil {
				return c, err
			}
			for _, name := range names {
				next.Machines = append(next.Machines, RolloutMachine{Name: name, Role: role, State: RolloutPending})
			}
		}
		if err := c.put(key, next, old.Rev); err != nil {
			return c, err
		}
		c.Checks = append(c.Checks, Check{Key{BucketClusters, cluster}, cl.Rev}) // it must not outlive it
		c.log(Event{Time: now, Kind: RolloutStarted, Cluster: cluster, Mode: mode, Message: fmt.Sprintf("rollout %d over %d machines", next.Number, len(next.Machines))})
		return c, nil
	})
	if err != nil {
		return nil, err
	}
	return &next, nil
}

// RecordRollout folds an event into the rollout over its Cluster, durably. number is
// the rollout that it is about: it refuses (ErrRefused) another, or one that has ended.
func (k *Keeper) RecordRollout(ctx context.Context, number uint64, e Event) (*Rollout, error) {
	if e.Time.IsZero() {
		e.Time = time.Now()
	}
	e.Time = e.Time.UTC()
	key := Key{BucketRollouts, e.Cluster}
	var after Rollout
	err := k.update(ctx, func() (Commit, error) {
		var c Commit
		var err error
		if after, err = getJSON[Rollout](ctx, k.store, key); err != nil {
			return c, err
		}
		if after.Number != number {
			return c, fmt.Errorf("rollout %d over %s is not the newest: %w", number, e.Cluster, ErrRefused)
		}
		rev := after.Rev
		tells, err := after.apply(e)
		if err != nil || !tells {
			return c, err
		}
		if err := c.put(key, after, rev); err != nil {
			return c, err
		}
		c.log(e)
		return c, nil
	})
	if err != nil {
		return nil, fmt.Errorf("rollout over cluster %q: %w", e.Cluster, err)
	}
	return &after, nil
}

// StopRollout ends the rollout over a cluster, if one goes on. What a machine was asked
// already is not taken back.
func (k *Keeper) StopRollout(ctx context.Context, cluster string) (*Rollout, error) {
	r, err := k.Rollout(ctx, cluster)
	if err != nil || !r.Going() {
		return r, err
	}
	stopped, err := k.RecordRollout(ctx, r.Number, Event{Kind: RolloutEnded, Cluster: cluster, Message: "it was stopped"})
	if errors.Is(err, ErrRefused) { // it has ended meanwhile
		return k.Rollout(ctx, cluster)
	}
	return stopped, err
}

// Rollout returns the newest rollout over a cluster, or ErrNotFound.
func (k *Keeper) Rollout(ctx context.Context, cluster string) (*Rollout, error) {
	r, err := getJSON[Rollout](ctx, k.store, Key{BucketRollouts, cluster})
	if err != nil {
		return nil, fmt.Errorf("rollout over cluster %q: %w", cluster, err)
	}
	return &r, nil
}

// Rollouts lists the newest rollout over each cluster that had one.
func (k *Keeper) Rollouts(ctx context.Context) ([]Rollout, error) {
	return listAll[Rollout](ctx, k.store, BucketRollouts)
}
