package admin

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"net/http"
	"slices"
	"time"

	"github.com/danielgtaylor/huma/v2"
	"github.com/danielgtaylor/huma/v2/adapters/humachi"

	"github.com/provisiond/provisiond/internal/inventory"
)

func (s *Server) machineWatchRoute(doc huma.API) {
	op := huma.Operation{OperationID: "watch-machines", Method: http.MethodGet, Path: "/machines/watch", Tags: []string{"machines"},
		Summary: "Follow the machines",
		Description: "Server-sent events, of the machines that match. event: machine has a Machine as JSON, one that is new or of which anything changed, " +
			"each at most twice a second; event: removed has {\"name\":…}, one that is gone or matches no more; event: synced, once, says that all was sent that is there. " +
			"id is a place to go on from: after Last-Event-ID or after, machines that may have changed since are sent, and those removed, also some that were never sent. " +
			"Where the event log does not reach back that far, event: reset says to forget all, and everything follows, as it does without either.",
		Responses: map[string]*huma.Response{"200": {
			Description: "Event stream",
			Content: map[string]*huma.MediaType{"text/event-stream": {Schema: &huma.Schema{Type: huma.TypeString,
				Description: "Messages of id, event and data; one of id alone moves the place to go on from; comments keep the connection alive"}}},
		}}}
	register(s, doc, needs{read, scoped, looks}, op, s.watchMachines, http.StatusUnprocessableEntity, http.StatusServiceUnavailable)
}

type watchMachinesInput struct {
	MachineFilter
	LastEventID string `header:"Last-Event-ID" pattern:"^[0-9]{1,19}$" doc:"The last id that was received"`
	After       string `query:"after" pattern:"^[0-9]{1,19}$" doc:"The same, for a first connection"`
}

func (s *Server) watchMachines(ctx context.Context, in *watchMachinesInput) (*huma.StreamResponse, error) {
	st, err := s.newMachineStream(ctx, in)
	if err != nil {
		return nil, err
	}
	return &huma.StreamResponse{Body: func(hctx huma.Context) {
		defer st.end()
		_, w := humachi.Unwrap(hctx)
		err := s.pump(ctx, w, st.wake, func() ([]byte, bool, error) { return st.next(ctx) })
		if err != nil && ctx.Err() == nil {
			s.log.Warn().Err(err).Msg("stream of machines ended")
		}
	}}, nil
}

const (
	// chunk is how many machines are looked at for one write, which is to be read within
	// a heartbeat.
	chunk = 64
	// idEvery is how often a stream that has nothing to tell moves its place.
	idEvery = 10 * time.Second
)

// machineStream is one stream. It keeps names only, and reads what is to be written when
// that can be written: who reads slowly misses what was undone meanwhile.
type machineStream struct {
	s     *Server
	hub   *hub
	end   func()
	wake  chan struct{}
	match func(*shown) bool

	pending map[string]struct{} // may have changed; guarded by hub.mu

	sent  map[string]uint64 // what the client has, by name
	id    uint64            // what the client goes on after, if it has to
	idAt  time.Time         // when it was told
	taken time.Time         // when pending was last looked at
	upTo  uint64            // id when batch is done
	batch []string          // taken of pending
	walk  *walk             // nil: the beginning is over
}

// newMachineStream joins the hub, and finds out how to begin.
func (s *Server) newMachineStream(ctx context.Context, in *watchMachinesInput) (*machineStream, error) {
	match, err := in.matcher()
	if err != nil {
		return nil, err
	}
	after, resumes, err := resumesAt(in.LastEventID, in.After)
	if err != nil {
		return nil, err
	}
	leave, err := s.follower(ctx)
	if err != nil {
		return nil, err
	}
	st := &machineStream{
		s: s, wake: make(chan struct{}, 1), pending: map[string]struct{}{}, sent: map[string]uint64{}, walk: &walk{},
		match: func(sh *shown) bool { return sh != nil && !foreign(ctx, sh.machine.Cluster) && match(&sh.machine) },
	}
	if err := s.join(ctx, st); err != nil {
		leave()
		return nil, err
	}
	st.end = func() {
		s.leave(st)
		leave()
	}
	st.hub.mu.Lock()
	st.upTo = st.hub.cursor // before anything is read: whatever comes later is marked
	st.hub.mu.Unlock()
	if resumes {
		st.id = after
		if st.walk, err = s.since(ctx, after); err != nil {
			st.end()
			return nil, err
		}
		if st.walk.reset {
			st.id = 0
		}
	}
	return st, nil
}

func (st *machineStream) notify() {
	select {
	case st.wake <- struct{}{}:
	default:
	}
}

// next returns the messages of some machines.
func (st *machineStream) next(ctx context.Context) (buf []byte, more bool, err error) {
	st.hub.mu.Lock()
	defer st.hub.mu.Unlock()
	var out messages
	if st.walk != nil {
		return st.begin(ctx, &out)
	}
	if len(st.batch) == 0 && !st.take(ctx) {
		return nil, false, nil
	}
	n := min(len(st.batch), chunk)
	for _, name := range st.batch[:n] {
		sh, err := st.hub.show(ctx, name)
		if err != nil {
			return nil, false, err
		}
		st.tell(&out, name, sh, false)
	}
	if st.batch = st.batch[n:]; len(st.batch) > 0 {
		return out.bytes(st.id, st.id), true, nil
	}
	now := time.Now()
	if len(out) == 0 && now.Sub(st.idAt) < idEvery || st.upTo == st.id {
		return out.bytes(st.id, st.id), false, nil
	}
	was := st.id
	st.id, st.idAt = st.upTo, now
	return out.bytes(was, st.id), false, nil
}

// take begins a batch, not sooner than a pause after the last one. hub.mu is held.
func (st *machineStream) take(ctx context.Context) bool {
	if wait := time.Until(st.taken.Add(streamPause)); wait > 0 && len(st.pending) > 0 {
		st.hub.mu.Unlock()
		timer := time.NewTimer(wait)
		select {
		case <-ctx.Done():
		case <-timer.C:
		}
		timer.Stop()
		st.hub.mu.Lock()
	}
	if len(st.pending) > 0 {
		st.taken = time.Now()
	}
	st.upTo = max(st.upTo, st.hub.cursor)
	st.batch = slices.Sorted(maps.Keys(st.pending))
	clear(st.pending)
	return ctx.Err() == nil
}

// tell adds the message of a machine, if the client has something else. gone: one that
// does not match is removed even if it is not known whether the client has it.
func (st *machineStream) tell(out *messages, name string, sh *shown, gone bool) {
	old, has := st.sent[name]
	switch {
	case st.match(sh):
		if !has || old != sh.sum {
			out.add("machine", sh.body)
			st.sent[name] = sh.sum
		}
	case has || gone:
		out.add("removed", removed(name))
		delete(st.sent, name)
	}
}

func removed(name string) []byte {
	data, _ := json.Marshal(map[string]string{"name": name}) // never fails
	return data
}

// messages are server-sent events without their ids.
type messages []struct {
	event string
	data  []byte
}

func (m *messages) add(event string, data []byte) {
	*m = append(*m, struct {
		event string
		data  []byte
	}{event, data})
}

// bytes writes them with an id, the last one with another: only with that the client has
// all up to there.
func (m messages) bytes(id, last uint64) (buf []byte) {
	for i, msg := range m {
		if i == len(m)-1 {
			id = last
		}
		buf = fmt.Appendf(buf, "id: %d\nevent: %s\ndata: %s\n\n", id, msg.event, msg.data)
	}
	if len(m) == 0 && id != last {
		buf = fmt.Appendf(buf, "id: %d\n\n", last)
	}
	return buf
}

// walk is the beginning of a stream, over all machines by name.
type walk struct {
	reset   bool
	at      string
	resumes bool // the client has what is not told
	since   time.Time
	all     bool            // any machine may have changed
	changed map[string]bool // by events; true: it left a cluster of the client's
	last    uint64          // event that was read
}

// begin walks on by a chunk. hub.mu is held.
func (st *machineStream) begin(ctx context.Context, out *messages) (buf []byte, more bool, err error) {
	w := st.walk
	if w.reset {
		w.reset = false
		clear(st.sent)
		out.add("reset", []byte("{}"))
	}
	// Not those of the client's scope alone, of which there may be none for long.
	views, err := st.hub.inv.Machines(ctx, w.at, chunk)
	if err != nil {
		return nil, false, err
	}
	for _, v := range views {
		name := v.Machine.Name
		if w.at = name; foreign(ctx, v.Machine.Cluster) {
			continue
		}
		sh, err := st.hub.make(v)
		if err != nil {
			return nil, false, err
		}
		_, named := w.changed[name]
		if w.resumes && !w.all && !named && !st.s.mayDiffer(v, w.since) {
			if st.match(sh) {
				st.sent[name] = sh.sum
			}
		} else {
			st.tell(out, name, sh, w.resumes)
		}
		delete(w.changed, name)
	}
	if len(views) == chunk {
		return out.bytes(st.id, st.id), true, nil
	}
	if w.resumes { // what happened meanwhile to those that were still to come
		read, err := st.s.read(ctx, w)
		if err != nil {
			return nil, false, err
		}
		if !read {
			st.walk, st.id = &walk{reset: true}, 0
			return out.bytes(0, 0), true, nil
		}
	}
	for _, name := range slices.Sorted(maps.Keys(w.changed)) {
		sh, err := st.hub.show(ctx, name)
		if err != nil {
			return nil, false, err
		}
		st.tell(out, name, sh, w.changed[name])
	}
	st.walk = nil
	out.add("synced", []byte("{}"))
	was := st.id
	st.id, st.idAt = st.upTo, time.Now()
	return out.bytes(was, st.id), true, nil
}

// since finds out what may have changed after an event. Of a machine that is not there
// for who calls they are told nothing but that it left, if it was theirs.
func (s *Server) since(ctx context.Context, after uint64) (*walk, error) {
	reset := &walk{reset: true}
	if after == 0 {
		return reset, nil
	}
	list, err := s.inv.Events(ctx, after-1, 1)
	if err != nil {
		return nil, err
	}
	if len(list) == 0 || list[0].ID != after {
		return reset, nil
	}
	w := &walk{resumes: true, changed: map[string]bool{}, since: list[0].Time, last: after}
	if read, err := s.read(ctx, w); err != nil || read {
		return w, err
	}
	return reset, nil
}

// read takes into account what happened since it last did. It returns false if that is
// too much to be worth it.
func (s *Server) read(ctx context.Context, w *walk) (bool, error) {
	const size = 500
	for scanned := 0; scanned <= maxScan; scanned += size {
		list, err := s.inv.Events(ctx, w.last, size)
		if err != nil {
			return false, err
		}
		for i := range list {
			e := &list[i]
			w.last = e.ID
			switch {
			case e.Machine != "":
				w.changed[e.Machine] = w.changed[e.Machine] || !limited(ctx) || e.Left != "" && !foreign(ctx, e.Left)
			case ofMany(e.Kind):
				w.all = true
			}
		}
		if len(list) < size {
			return true, nil
		}
	}
	return false, nil
}

// ofMany reports whether what happened changes what machines show that the event does
// not name.
func ofMany(k inventory.Kind) bool {
	switch k {
	case inventory.ClusterCreated, inventory.ClusterChanged, inventory.ClusterRemoved, inventory.ClusterReset, inventory.ImageAdded, inventory.ImageRemoved:
		return true
	}
	return false
}

// timesOff is by how much the times of facts may be before they were known: those of an
// API are to the minute.
const timesOff = 2 * time.Minute

// mayDiffer reports whether a machine may show something else than at a time although no
// event names it: it was heard of and told nothing new, the clock changed its phase, or
// it may have been reading a file.
func (s *Server) mayDiffer(v inventory.View, since time.Time) bool {
	since = since.Add(-timesOff)
	f, now := &v.Facts, s.cfg.Now()
	if f.LastSeen.After(since) || f.APIAt.After(since) {
		return true
	}
	if b := f.Current(); b != nil && b.Plan != inventory.Disk && b.Config.IsZero() {
		return true
	}
	return slices.ContainsFunc(s.cfg.Patience.Turns(v), func(at time.Time) bool { return at.After(since) && now.After(at) })
}
