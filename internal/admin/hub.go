package admin

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"hash/maphash"
	"sync"
	"time"

	"github.com/provisiond/provisiond/api"
	"github.com/provisiond/provisiond/internal/inventory"
)

const (
	// hubPause is how long a hub collects changes, and streamPause the least time between two
	// batches of a stream.
	hubPause    = 250 * time.Millisecond
	streamPause = 500 * time.Millisecond
	// hubTick is how often it asks for what nobody tells: downloads, the clock, the
	// newest event.
	hubTick = time.Second
	// turnPause is how often it looks which machines the clock has changed.
	turnPause = 5 * time.Second
	// sweepPause is the least time between two changes that any machine may show.
	sweepPause = 10 * time.Second
	// maxShown bounds what is kept in JSON, at some 3 KB each. Who reads slower than this
	// many machines change has them made again.
	maxShown = 4096
)

// shown is a machine as the API shows it, made once for all streams. It is not modified.
type shown struct {
	machine api.Machine
	body    []byte
	sum     uint64
}

// hub is what streams of machines have in common. It runs while there is one: one
// goroutine finds out which machines changed, and whoever writes one first makes it for
// the others.
type hub struct {
	s    *Server
	inv  Inventory // of the whole rack: a stream sees to its scope
	seed maphash.Seed
	stop context.CancelFunc
	done chan struct{}

	mu      sync.Mutex
	streams map[*machineStream]struct{}
	shown   map[string]*shown    // nil: there is no such machine
	turns   map[string]time.Time // when the clock changes a machine next
	// cursor is an event; what it and those before it changed, streams were told.
	cursor uint64

	newest  uint64 // event, a tick ago; run's alone, as what follows
	reading map[string]inventory.Transfer
	turned  time.Time
	swept   time.Time
}

func (s *Server) newHub() *hub {
	return &hub{
		s: s, inv: s.inv.Inventory, seed: maphash.MakeSeed(), done: make(chan struct{}),
		streams: map[*machineStream]struct{}{}, shown: map[string]*shown{}, turns: map[string]time.Time{},
	}
}

// join adds a stream to the hub, which begins with the first one.
func (s *Server) join(ctx context.Context, st *machineStream) error {
	s.hubs.Lock()
	defer s.hubs.Unlock()
	h := s.hub
	if h == nil {
		h = s.newHub()
		wake, take, cancel := h.inv.WatchViews() // before the newest event is read: nothing is missed between
		newest, err := h.newestEvent(ctx)
		if err != nil {
			cancel()
			return err
		}
		h.cursor, h.newest = newest, newest
		var run context.Context
		run, h.stop = context.WithCancel(context.Background())
		go func() {
			defer close(h.done)
			defer cancel()
			h.run(run, wake, take)
		}()
		s.hub = h
	}
	st.hub = h
	h.mu.Lock()
	defer h.mu.Unlock()
	h.streams[st] = struct{}{}
	return nil
}

// leave takes a stream out. The last one ends the hub.
func (s *Server) leave(st *machineStream) {
	s.hubs.Lock()
	defer s.hubs.Unlock()
	h := st.hub
	h.mu.Lock()
	delete(h.streams, st)
	last := len(h.streams) == 0
	h.mu.Unlock()
	if last {
		h.stop()
		<-h.done
		s.hub = nil
	}
}

func (h *hub) newestEvent(ctx context.Context) (uint64, error) {
	list, err := h.inv.EventsTail(ctx, 1)
	if err != nil || len(list) == 0 {
		return 0, err
	}
	return list[0].ID, nil
}

// run tells the streams what changed until ctx ends.
func (h *hub) run(ctx context.Context, wake <-chan struct{}, take func() ([]string, bool)) {
	tick := time.NewTicker(hubTick)
	defer tick.Stop()
	pause := time.NewTimer(hubPause)
	defer pause.Stop()
	sweep, failed := false, false
	for {
		select {
		case <-ctx.Done():
			return
		case <-wake:
			select { // what comes at once is looked at together
			case <-ctx.Done():
				return
			case <-pause.C:
			}
			pause.Reset(hubPause)
			names, all := take()
			sweep = sweep || all
			h.mark(names)
		case <-tick.C:
			names, all := take() // those of the events up to the newest of the last tick
			h.mark(names)
			sweep = sweep || all
			err := h.tick(ctx, &sweep)
			if err != nil && !failed && ctx.Err() == nil {
				h.s.log.Warn().Err(err).Msg("cannot look what changed; streams of machines lag behind")
			}
			failed = err != nil
		}
	}
}

// tick looks after what nobody tells.
func (h *hub) tick(ctx context.Context, sweep *bool) error {
	now := h.s.cfg.Now()
	var names []string
	if h.s.cfg.Transfers != nil {
		reading := h.s.cfg.Transfers.Transfers()
		for name, t := range reading {
			if h.reading[name] != t {
				names = append(names, name)
			}
		}
		for name := range h.reading {
			if _, ok := reading[name]; !ok {
				names = append(names, name)
			}
		}
		h.reading = reading
	}
	if now.Sub(h.turned) >= turnPause {
		h.turned = now
		names = append(names, h.due(now)...)
	}
	h.mark(names)
	if *sweep && now.Sub(h.swept) >= sweepPause {
		if err := h.markAll(ctx); err != nil {
			return err
		}
		*sweep, h.swept = false, now
	}
	if *sweep {
		return nil // what an event changed that waits for this is not told yet
	}
	// A commit is in the log a moment before it wakes anybody, so an event counts as told
	// only with the next tick.
	told := h.newest
	newest, err := h.newestEvent(ctx)
	if err != nil {
		return err
	}
	h.newest = newest
	h.mu.Lock()
	defer h.mu.Unlock()
	h.cursor = told
	for st := range h.streams {
		st.notify()
	}
	return nil
}

// due returns the machines that the clock has changed. Who makes one anew says when it
// does so next.
func (h *hub) due(now time.Time) (names []string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for name, at := range h.turns {
		if now.After(at) {
			names = append(names, name)
			delete(h.turns, name)
		}
	}
	return names
}

// mark tells all streams that machines may have changed.
func (h *hub) mark(names []string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, name := range names {
		delete(h.shown, name)
	}
	for st := range h.streams {
		for _, name := range names {
			st.pending[name] = struct{}{}
		}
		if len(names) > 0 {
			st.notify()
		}
	}
}

// markAll is mark for every machine.
func (h *hub) markAll(ctx context.Context) error {
	const size = 256
	for after := ""; ; {
		views, err := h.inv.Machines(ctx, after, size)
		if err != nil {
			return err
		}
		names := make([]string, 0, len(views))
		for _, v := range views {
			after = v.Machine.Name
			names = append(names, after)
		}
		h.mark(names)
		if len(views) < size {
			return nil
		}
	}
}

// show returns a machine as it is; nil: there is none. h.mu is held, so that nobody makes
// it at the same time, or keeps one that is older than what woke the others.
func (h *hub) show(ctx context.Context, name string) (*shown, error) {
	if sh, ok := h.shown[name]; ok {
		return sh, nil
	}
	v, err := h.inv.Machine(ctx, name)
	if errors.Is(err, inventory.ErrNotFound) || err == nil && v.Machine.Name != name { // a name can be a MAC
		delete(h.turns, name)
		return h.keep(name, nil), nil
	}
	if err != nil {
		return nil, err
	}
	return h.make(v)
}

// make turns a view into what is shown. h.mu is held.
func (h *hub) make(v inventory.View) (*shown, error) {
	sh := &shown{machine: h.s.machineOf(v)}
	var body bytes.Buffer
	enc := json.NewEncoder(&body)
	enc.SetEscapeHTML(false) // patches may be large, and have many a < in them
	if err := enc.Encode(sh.machine); err != nil {
		return nil, err
	}
	sh.body = bytes.TrimSuffix(body.Bytes(), []byte("\n"))
	sh.sum = maphash.Bytes(h.seed, sh.body)
	delete(h.turns, v.Machine.Name)
	if next := nextTurn(h.s.cfg.Patience.Turns(v), h.s.cfg.Now()); !next.IsZero() {
		h.turns[v.Machine.Name] = next
	}
	return h.keep(v.Machine.Name, sh), nil
}

func (h *hub) keep(name string, sh *shown) *shown {
	if len(h.shown) >= maxShown {
		clear(h.shown)
	}
	h.shown[name] = sh
	return sh
}

// nextTurn is the first that is not over; zero: there is none.
func nextTurn(turns []time.Time, now time.Time) (next time.Time) {
	for _, at := range turns {
		if !now.After(at) && (next.IsZero() || at.Before(next)) {
			next = at
		}
	}
	return next
}
