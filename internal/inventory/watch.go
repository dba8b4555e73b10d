package inventory

import (
	"context"
	"sync"
	"time"
)

// Watch returns a channel that receives after each commit (several may be one
// wake-up), and a function that ends it.
func (k *Keeper) Watch() (<-chan struct{}, func()) {
	w := &watcher{wake: make(chan struct{}, 1)}
	return w.wake, k.watchers.add(w)
}

// WatchMachines is Watch for who wants to know which machines something happened
// to. take returns their names, each once, since it was last called. Word of
// their own API is left out: it comes from who asks it.
func (k *Keeper) WatchMachines() (wake <-chan struct{}, take func() []string, stop func()) {
	w := &watcher{wake: make(chan struct{}, 1), machines: map[string]struct{}{}}
	return w.wake, func() []string { return k.watchers.take(w) }, k.watchers.add(w)
}

// WatchViews is Watch for who shows machines. take returns those whose view may have
// changed since it was last called, by whatever, each once; all says that any may have, as
// when a cluster was changed. Word of their own API is in it, as far as it told something.
func (k *Keeper) WatchViews() (wake <-chan struct{}, take func() (machines []string, all bool), stop func()) {
	w := &watcher{wake: make(chan struct{}, 1), machines: map[string]struct{}{}, views: true}
	return w.wake, func() ([]string, bool) { return k.watchers.takeViews(w) }, k.watchers.add(w)
}

// Wait returns after d, or when pause has passed since a wake-up, so that what comes at
// once is looked at together; at once when ctx ends.
func Wait(ctx context.Context, wake <-chan struct{}, d, pause time.Duration) {
	select {
	case <-ctx.Done():
	case <-time.After(d):
	case <-wake:
		select {
		case <-ctx.Done():
		case <-time.After(pause):
		}
	}
}

// watchers wakes whoever waits for a change.
type watchers struct {
	mu  sync.Mutex
	set map[*watcher]struct{}
}

type watcher struct {
	wake     chan struct{}
	machines map[string]struct{} // nil: not of interest
	views    bool                // of interest are those whose records changed, not those that events tell of
	all      bool
}

func (ws *watchers) add(w *watcher) (stop func()) {
	ws.mu.Lock()
	defer ws.mu.Unlock()
	if ws.set == nil {
		ws.set = map[*watcher]struct{}{}
	}
	ws.set[w] = struct{}{}
	return func() {
		ws.mu.Lock()
		defer ws.mu.Unlock()
		delete(ws.set, w)
	}
}

func (ws *watchers) take(w *watcher) []string {
	names, _ := ws.takeViews(w)
	return names
}

func (ws *watchers) takeViews(w *watcher) (machines []string, all bool) {
	ws.mu.Lock()
	defer ws.mu.Unlock()
	machines = make([]string, 0, len(w.machines))
	for name := range w.machines {
		machines = append(machines, name)
	}
	clear(w.machines)
	all, w.all = w.all, false
	return machines, all
}

// news is what to wake somebody for.
type news struct {
	events []string // machines that something happened to
	views  []string // machines whose view may have changed
	all    bool     // any machine's may have
}

func (ws *watchers) wake(n news) {
	ws.mu.Lock()
	defer ws.mu.Unlock()
	for w := range ws.set {
		names := n.events
		if w.views {
			names, w.all = n.views, w.all || n.all
		}
		if w.machines != nil {
			if len(names) == 0 && !(w.views && n.all) {
				continue
			}
			for _, name := range names {
				w.machines[name] = struct{}{}
			}
		}
		select {
		case w.wake <- struct{}{}:
		default:
		}
	}
}

// news is what a commit is to those who watch.
func (c *Commit) news() news {
	n := news{events: c.about}
	for _, w := range c.Writes {
		switch w.Key.Bucket {
		case BucketMachines, BucketFacts:
			n.views = append(n.views, w.Key.ID)
		case BucketClusters, BucketImages: // views have them in
			n.all = true
		}
	}
	return n
}
