package web

import (
	"cmp"
	"context"
	"errors"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/provisiond/provisiond/api"
	"github.com/provisiond/provisiond/client"
)

// What a machine says, and what happens to it: the newest lines, and then each line once.

const (
	// linesShown and eventsShown are how many a page begins with.
	linesShown  = 200
	eventsShown = 50
	// maxHeard is how many wait for the next beat, of a kind and a page. It is also how many
	// lines a page keeps (see machine.html).
	maxHeard = 2000
)

// said are lines, oldest first.
type said struct {
	Lines []saidLine
	Last  string // id of the newest; empty: nothing was said yet
}

type saidLine struct {
	Time time.Time
	Kind string
	Text string
	Bad  bool
}

// saidOf is what a machine said last, and what happened to it. The log is nil if nobody
// keeps one.
func (p *Pages) saidOf(ctx context.Context, machine string) (log *said, events said, err error) {
	lines, err := client.Answer[api.List[api.LogLine]](p.api.ListLogs(ctx, machine, client.ListLogsParams{Limit: linesShown}))
	var problem *client.Problem
	switch {
	case err == nil:
		s := linesOf(lines.Items)
		log = &s
	case !errors.As(err, &problem) || problem.Status != http.StatusServiceUnavailable:
		return nil, events, err
	}
	list, err := client.Answer[api.List[api.Event]](p.api.ListEvents(ctx, client.ListEventsParams{Machine: machine, Limit: eventsShown}))
	return log, eventsOf(list.Items), err
}

func linesOf(list []api.LogLine) (s said) {
	for i := range list {
		l := &list[i]
		kind := cmp.Or(l.Level, l.Kind)
		s.Lines = append(s.Lines, saidLine{l.Time, kind, l.Text, strings.HasPrefix(kind, "err") || kind == "crit" || kind == "alert" || kind == "emerg"})
		s.Last = strconv.FormatUint(l.ID, 10)
	}
	return s
}

func eventsOf(list []api.Event) (s said) {
	for i := range list {
		e := &list[i]
		var words []string
		for _, w := range []string{e.Plan, e.Stage, e.Message, e.Error} {
			if w != "" {
				words = append(words, w)
			}
		}
		s.Lines = append(s.Lines, saidLine{e.Time, e.Kind, strings.Join(words, ": "), e.Error != ""})
		s.Last = strconv.FormatUint(e.ID, 10)
	}
	return s
}

// heard is what a stream of the API brought since it was last taken.
type heard[T any] struct {
	mu    sync.Mutex
	items []T
	deaf  bool // it could not be begun, and is tried again
}

// hear follows a stream until ctx ends. The newest maxHeard items wait to be taken.
func hear[T any](ctx context.Context, last string, open func(last string) (*http.Response, error)) *heard[T] {
	h := &heard[T]{}
	go func() {
		_ = client.Follow(ctx, last, func(last string) (*http.Response, error) { // a machine that is gone ends the page
			resp, err := open(last)
			h.mu.Lock()
			defer h.mu.Unlock()
			h.deaf = err != nil
			return resp, err
		}, h.add, func(error) {})
	}()
	return h
}

func (h *heard[T]) add(item T) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	if len(h.items) == maxHeard {
		h.items = h.items[1:]
	}
	h.items = append(h.items, item)
	return nil
}

// take returns what waits, and whether more will come.
func (h *heard[T]) take() (items []T, follows bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	items, h.items = h.items, nil
	return items, !h.deaf
}
