package inventory

import (
	"context"
	"errors"
	"slices"
	"sync"
	"time"
)

const (
	// flushEvery is how long what a machine was seen doing may be in memory only.
	flushEvery = time.Second
	// maxNotes bounds the events that wait: in all, and of one machine. What is
	// beyond is written at once.
	maxNotes        = 1 << 16
	maxMachineNotes = 64
	// flushTogether is how many machines one commit of a flush is about.
	flushTogether = 128
)

// notes are events that were folded into what is known and are not on disk yet.
type notes struct {
	mu    sync.RWMutex
	of    map[string]*noted // by machine
	count int
	wake  chan struct{} // receives when there is something to flush
}

// noted is what waits of one machine.
type noted struct {
	events []Event // in order; only appended to
	// facts are those of base with all events in them; base is nil if they have to be
	// folded anew.
	base  *View
	facts Facts
}

// last is the token of the newest event, empty if there is none.
func (of *noted) last() string {
	if of == nil || len(of.events) == 0 {
		return ""
	}
	return of.events[len(of.events)-1].Token
}

// add keeps an event, and what is known with it: facts, which are those of base with
// all events up to the one of the token and with this one. It returns false when there
// are too many already.
func (n *notes) add(machine string, e Event, base *View, upTo string, facts Facts) bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	of := n.of[machine]
	if of == nil {
		of = &noted{}
	}
	if n.count >= maxNotes || len(of.events) >= maxMachineNotes {
		return false
	}
	if n.of == nil {
		n.of = map[string]*noted{}
	}
	n.of[machine] = of
	if of.base = nil; of.last() == upTo { // else another was added meanwhile
		of.base, of.facts = base, facts
	}
	of.events = append(of.events, e)
	n.count++
	select {
	case n.wake <- struct{}{}:
	default:
	}
	return true
}

// waiting returns the events of a machine that are not in the view. Those that were
// committed a moment ago may still be kept.
func (n *notes) waiting(v *View) []Event {
	events, _, _, _ := n.folded(v)
	return events
}

// folded also returns the facts with them in, if they were kept, and the token of the
// newest event.
func (n *notes) folded(v *View) (events []Event, facts Facts, kept bool, last string) {
	n.mu.RLock()
	defer n.mu.RUnlock()
	of := n.of[v.Machine.Name]
	if of == nil {
		return nil, facts, false, ""
	}
	events, last = of.events, of.last()
	for i := len(events) - 1; i >= 0; i-- {
		if events[i].Token == v.Facts.Noted {
			events = events[i+1:]
			break
		}
	}
	return events, of.facts, of.base == v, last
}

func (n *notes) has(machine string) bool {
	n.mu.RLock()
	defer n.mu.RUnlock()
	return n.of[machine] != nil
}

func (n *notes) machines() []string {
	n.mu.RLock()
	defer n.mu.RUnlock()
	names := make([]string, 0, len(n.of))
	for name := range n.of {
		names = append(names, name)
	}
	slices.Sort(names) // neighbours in the database
	return names
}

// drop forgets events of a machine that are on disk now. Others may have dropped
// some of them already.
func (n *notes) drop(machine string, written []Event) {
	if len(written) == 0 {
		return
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	of := n.of[machine]
	if of == nil {
		return
	}
	last := written[len(written)-1].Token
	if i := slices.IndexFunc(of.events, func(e Event) bool { return e.Token == last }); i >= 0 {
		n.forget(machine, of, i+1)
	}
}

// forget drops a machine's first events. n.mu is held.
func (n *notes) forget(machine string, of *noted, first int) {
	n.count -= first
	if of.events = slices.Clone(of.events[first:]); len(of.events) == 0 {
		delete(n.of, machine)
	}
}

// committed forgets the events of machines that were removed.
func (n *notes) committed(writes []Write) {
	for _, w := range writes {
		if w.Key.Bucket == BucketMachines && w.Value == nil {
			n.mu.Lock()
			if of := n.of[w.Key.ID]; of != nil {
				n.forget(w.Key.ID, of, len(of.events))
			}
			n.mu.Unlock()
		}
	}
}

// note folds an event into what is known, in memory. ok is false if it has to be
// recorded now: it is more than observed, or a stranger's, or too many wait.
func (k *Keeper) note(ctx context.Context, e Event) (after View, ok bool, err error) {
	if e.Machine == "" && e.MAC == "" {
		return after, false, nil
	}
	base, err := k.committedView(ctx, e.MAC, e.Machine, e.Arch)
	if errors.Is(err, ErrNotFound) {
		return after, false, nil // Record says so
	}
	if err != nil || base == nil || !e.observed(base) {
		return after, false, err
	}
	after, upTo, err := k.fold(ctx, base, e.Arch)
	if err != nil {
		return after, false, err
	}
	e.complete(after)
	if after, err = Apply(after, e); err != nil || !k.notes.add(base.Machine.Name, e, base, upTo, after.Facts) {
		return after, false, err
	}
	name := []string{base.Machine.Name}
	k.watchers.wake(news{events: name, views: name})
	return after, true, nil
}

// withNotes adds to a view from disk what waits to be written.
func (k *Keeper) withNotes(ctx context.Context, base *View, arch Arch) (View, error) {
	v, _, err := k.fold(ctx, base, arch)
	return v, err
}

// fold is withNotes, and returns the token of the newest event that waits.
func (k *Keeper) fold(ctx context.Context, base *View, arch Arch) (v View, last string, err error) {
	v = *base
	events, facts, kept, last := k.notes.folded(base)
	switch {
	case len(events) == 0:
		return v, last, nil
	case kept:
		v.Facts = facts
	default:
		v.Facts = v.Facts.Clone()
		for _, e := range events {
			applyMachine(&v.Facts, e)
		}
	}
	if v.Cluster == nil || v.imageFits() {
		return v, last, nil
	}
	return v, last, k.findImage(ctx, &v, arch)
}

// Run writes what machines were seen doing, at most a second after. It returns
// nil when ctx ends; then Flush writes the rest. report is told what fails; it is
// tried again.
func (k *Keeper) Run(ctx context.Context, report func(error)) error {
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-k.notes.wake:
		}
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(flushEvery):
		}
		if err := k.Flush(ctx); err != nil && ctx.Err() == nil {
			report(err)
			select { // what could not be written is still there
			case k.notes.wake <- struct{}{}:
			default:
			}
		}
	}
}

// Flush writes what machines were seen doing. It is durable when Flush returns
// nil.
func (k *Keeper) Flush(ctx context.Context) error {
	for names := range slices.Chunk(k.notes.machines(), flushTogether) {
		if err := k.flush(ctx, names); err != nil {
			return err
		}
	}
	return nil
}

// part is one machine's share of a flush.
type part struct {
	after  View
	facts  []byte
	events []Event
}

// flush writes the events of some machines with one commit. Where somebody else
// wrote to one of them meanwhile, or two of them write the same record, it is
// done by halves.
func (k *Keeper) flush(ctx context.Context, names []string) error {
	var parts []*part
	decide := func() (all Commit, err error) {
		parts = nil
		for _, name := range names {
			base, err := k.committedView(ctx, "", name, "")
			if errors.Is(err, ErrNotFound) {
				continue
			} else if err != nil {
				return all, err
			}
			p := &part{events: k.notes.waiting(base)}
			var c Commit
			if c, p.after, err = changes(ctx, k.store, *base, p.events); err != nil {
				return all, err
			}
			p.facts = c.facts
			parts = append(parts, p)
			all.Checks, all.Writes, all.Log = append(all.Checks, c.Checks...), append(all.Writes, c.Writes...), append(all.Log, c.Log...)
		}
		return all, nil
	}
	var rev uint64
	var err error
	if len(names) == 1 {
		rev, err = k.commit(ctx, decide)
	} else {
		var all Commit
		if all, err = decide(); err == nil {
			if err = errAgain; !all.overlaps() {
				rev, err = k.try(ctx, all)
			}
		}
		if errors.Is(err, errAgain) {
			half := len(names) / 2
			return errors.Join(k.flush(ctx, names[:half]), k.flush(ctx, names[half:]))
		}
	}
	if err != nil {
		return err
	}
	for _, p := range parts {
		k.recorded(&p.after, rev, p.facts, p.events)
	}
	return nil
}

// overlaps reports whether a commit writes a record twice.
func (c *Commit) overlaps() bool {
	written := make(map[Key]struct{}, len(c.Writes))
	for _, w := range c.Writes {
		written[w.Key] = struct{}{}
	}
	return len(written) < len(c.Writes)
}
