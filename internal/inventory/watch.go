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
	ws.mu.Lock()
	defer ws.mu.Unlock()
	names := make([]string, 0, len(w.machines))
	for name := range w.machines {
		names = append(names, name)
	}
	clear(w.machines)
	return names
}

func (ws *watchers) wake(machines []string) {
	ws.mu.Lock()
	defer ws.mu.Unlock()
	for w := range ws.set {
		if w.machines != nil {
			if len(machines) == 0 {
				continue
			}
			for _, name := range machines {
				w.machines[name] = struct{}{}
			}
		}
		select {
		case w.wake <- struct{}{}:
		default:
		}
	}
}
