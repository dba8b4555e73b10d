// Package phaselog writes a line into the log whenever the phase of a machine changes, in
// the words of the page and the API: what other lines tell step by step, and what no packet
// tells, such as that a machine has stalled.
package phaselog

import (
	"context"
	"errors"
	"time"

	"github.com/rs/zerolog"

	"github.com/provisiond/provisiond/internal/inventory"
)

const (
	// pause is how long what comes at once is collected.
	pause = 250 * time.Millisecond
	// turnEvery is how often it is looked which machines the clock has changed.
	turnEvery = 5 * time.Second
	// page is how many machines are read at once at the start.
	page = 256
)

// Inventory is what is read; inventory.Keeper is one.
type Inventory interface {
	Machine(ctx context.Context, ref string) (inventory.View, error)
	Machines(ctx context.Context, after string, limit int) ([]inventory.View, error)
	WatchViews() (wake <-chan struct{}, take func() (machines []string, all bool), stop func())
}

// Log keeps the phase that each machine was last in.
type Log struct {
	inv      Inventory
	patience inventory.Patience
	now      func() time.Time
	log      zerolog.Logger

	known map[string]known
	next  time.Time // when it is looked at the clock again
}

type known struct {
	phase inventory.Phase
	turn  time.Time // when the clock may change it; zero: never
}

// New returns a log. It does no I/O.
func New(inv Inventory, patience inventory.Patience, log zerolog.Logger) *Log {
	return &Log{inv: inv, patience: patience, now: time.Now, log: log, known: map[string]known{}}
}

// Run writes until ctx ends. Phases that machines are in at the start are no change.
func (l *Log) Run(ctx context.Context) error {
	wake, take, stop := l.inv.WatchViews()
	defer stop()
	if err := l.begin(ctx); err != nil {
		return err
	}
	for ctx.Err() == nil {
		names, _ := take() // what is said of a cluster changes no phase
		for _, name := range names {
			l.look(ctx, name)
		}
		if now := l.now(); now.After(l.next) {
			l.next = now.Add(turnEvery)
			for name, k := range l.known {
				if !k.turn.IsZero() && now.After(k.turn) {
					l.look(ctx, name)
				}
			}
		}
		inventory.Wait(ctx, wake, turnEvery, pause)
	}
	return nil
}

func (l *Log) begin(ctx context.Context) error {
	for after := ""; ; {
		views, err := l.inv.Machines(ctx, after, page)
		if ctx.Err() != nil {
			return nil
		}
		if err != nil {
			return err
		}
		for _, v := range views {
			after = v.Machine.Name
			l.known[after] = known{l.patience.PhaseOf(v, l.now()).Phase, l.turn(v)}
		}
		if len(views) < page {
			return nil
		}
		select { // who boots meanwhile is in more of a hurry
		case <-ctx.Done():
			return nil
		case <-time.After(pause):
		}
	}
}

// look writes a line if the phase of a machine is another than it was.
func (l *Log) look(ctx context.Context, name string) {
	v, err := l.inv.Machine(ctx, name)
	switch {
	case errors.Is(err, inventory.ErrNotFound):
		delete(l.known, name)
		return
	case err != nil:
		return // whoever needs it for more says so; the next change tells
	}
	was := l.known[name]
	state := l.patience.PhaseOf(v, l.now())
	l.known[name] = known{state.Phase, l.turn(v)}
	if state.Phase == was.phase {
		return
	}
	level := zerolog.InfoLevel
	if state.Phase == inventory.PhaseStalled || state.Phase == inventory.PhaseFailed {
		level = zerolog.WarnLevel
	}
	e := l.log.WithLevel(level).Str("machine", name).Str("phase", string(state.Phase))
	if v.Machine.Cluster != "" {
		e.Str("cluster", v.Machine.Cluster)
	}
	if state.Stalled != "" {
		e.Str("in", string(state.Stalled))
	}
	if was.phase != "" {
		e.Str("was", string(was.phase))
	}
	if state.Reason != "" {
		e.Str("reason", state.Reason)
	}
	e.Msg("a machine is " + string(state.Phase))
}

// turn is when the clock may change the phase of a machine next.
func (l *Log) turn(v inventory.View) (next time.Time) {
	for _, at := range l.patience.Turns(v) {
		if at.After(l.now()) && (next.IsZero() || at.Before(next)) {
			next = at
		}
	}
	return next
}
