package web

import (
	"context"
	"encoding/json"
	"maps"
	"net/http"
	"slices"
	"sync"

	"github.com/provisiond/provisiond/api"
	"github.com/provisiond/provisiond/client"
)

// followed is a list of machines that a stream keeps, for as long as a page is open: what
// did not change costs nothing.
type followed struct {
	mu     sync.Mutex
	by     map[string]api.Machine
	err    error         // why there is none
	synced chan struct{} // closed when the list is whole for the first time, or err is set
}

// follow follows the machines that a filter lets through until ctx ends.
func (p *Pages) follow(ctx context.Context, q rackQuery) *followed {
	f := &followed{by: map[string]api.Machine{}, synced: make(chan struct{})}
	ready := sync.OnceFunc(func() { close(f.synced) })
	params := client.WatchMachinesParams{Q: q.Q, Cluster: q.Cluster, Role: q.Role, Phase: q.Phase}
	fail := func(err error) {
		f.mu.Lock()
		defer f.mu.Unlock()
		f.err = err
		ready()
	}
	go func() {
		open := func(last string) (*http.Response, error) {
			params.LastEventID = last
			return p.api.WatchMachines(ctx, params)
		}
		err := client.FollowMessages(ctx, "", open, func(m client.Message) error { return f.take(m, ready) }, fail)
		if err != nil {
			fail(err)
		}
	}()
	return f
}

func (f *followed) take(m client.Message, ready func()) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.err = nil
	switch m.Event {
	case "machine":
		var one api.Machine
		if err := json.Unmarshal(m.Data, &one); err != nil {
			return err
		}
		f.by[one.Name] = one
	case "removed":
		var gone struct{ Name string }
		if err := json.Unmarshal(m.Data, &gone); err != nil {
			return err
		}
		delete(f.by, gone.Name)
	case "reset":
		clear(f.by)
	case "synced":
		ready()
	}
	return nil
}

func (f *followed) list(ctx context.Context, after string, limit int) ([]api.Machine, bool, error) {
	select {
	case <-f.synced:
	case <-ctx.Done():
		return nil, false, ctx.Err()
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.err != nil {
		return nil, false, f.err
	}
	names := slices.Sorted(maps.Keys(f.by))
	first, _ := slices.BinarySearch(names, after+"\x00") // the first after it
	names = names[first:]
	more := len(names) > limit
	names = names[:min(limit, len(names))]
	out := make([]api.Machine, 0, len(names))
	for _, name := range names {
		out = append(out, f.by[name])
	}
	return out, more, nil
}
