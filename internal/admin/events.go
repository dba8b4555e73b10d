package admin

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"strconv"
	"time"

	"github.com/danielgtaylor/huma/v2"
	"github.com/danielgtaylor/huma/v2/adapters/humachi"

	"github.com/provisiond/provisiond/api"
)

func (s *Server) eventRoutes(doc huma.API) {
	register(s, doc, needs{read, scoped, looks}, huma.Operation{OperationID: "list-events", Method: http.MethodGet, Path: "/events", Tags: []string{"events"},
		Summary:     "List events, oldest first",
		Description: "Without after: the newest ones. With after: those that follow it. A filter looks at 10000 events at most; follow next to go on."}, s.listEvents)

	stream := huma.Operation{OperationID: "watch-events", Method: http.MethodGet, Path: "/events/watch", Tags: []string{"events"},
		Summary:     "Follow the events",
		Description: "Server-sent events: id is the event's, data its JSON. Begins after Last-Event-ID or after; without either, with what happens from now on.",
		Responses: map[string]*huma.Response{"200": {
			Description: "Event stream",
			Content: map[string]*huma.MediaType{"text/event-stream": {Schema: &huma.Schema{Type: huma.TypeString,
				Description: "Messages of id and data, where data is an Event as JSON; comments keep the connection alive"}}},
		}}}
	register(s, doc, needs{read, scoped, looks}, stream, s.watchEvents, http.StatusUnprocessableEntity, http.StatusServiceUnavailable)
}

// maxScan bounds the events one request looks at.
const maxScan = 10000

func (s *Server) listEvents(ctx context.Context, in *struct {
	EventFilter
	After string `query:"after" pattern:"^[0-9]{1,19}$" doc:"Only events after this id"`
	Limit int    `query:"limit" minimum:"1" maximum:"1000" default:"100" doc:"At most this many"`
}) (*struct{ Body api.List[api.Event] }, error) {
	out := &struct{ Body api.List[api.Event] }{}
	out.Body.Items = []api.Event{}
	if in.After == "" {
		count := in.Limit
		if in.EventFilter != (EventFilter{}) || foreign(ctx, "") {
			count = maxScan
		}
		list, err := s.inv.EventsTail(ctx, count)
		if err != nil {
			return nil, err
		}
		for i := range list {
			if in.match(&list[i]) && s.inv.showsEvent(ctx, &list[i]) {
				out.Body.Items = append(out.Body.Items, eventOf(list[i]))
			}
		}
		out.Body.Items = out.Body.Items[max(0, len(out.Body.Items)-in.Limit):]
		return out, nil
	}
	after, err := strconv.ParseUint(in.After, 10, 64)
	if err != nil {
		return nil, badField("query.after", "the id of an event", "%q is not a number", in.After)
	}
	const size = 500
	for scanned := 0; ; scanned += size {
		list, err := s.inv.Events(ctx, after, size)
		if err != nil {
			return nil, err
		}
		for i := range list {
			if len(out.Body.Items) == in.Limit || scanned >= maxScan {
				out.Body.Next = strconv.FormatUint(after, 10)
				return out, nil
			}
			after = list[i].ID
			if in.match(&list[i]) && s.inv.showsEvent(ctx, &list[i]) {
				out.Body.Items = append(out.Body.Items, eventOf(list[i]))
			}
		}
		if len(list) < size {
			return out, nil
		}
	}
}

// watchInput begins a stream. A browser sends Last-Event-ID by itself when it
// connects again.
type watchInput struct {
	EventFilter
	LastEventID string `header:"Last-Event-ID" pattern:"^[0-9]{1,19}$" doc:"The last event that was received"`
	After       string `query:"after" pattern:"^[0-9]{1,19}$" doc:"The same, for a first connection"`
}

func (s *Server) watchEvents(ctx context.Context, in *watchInput) (*huma.StreamResponse, error) {
	leave, err := s.follower(ctx)
	if err != nil {
		return nil, err
	}
	wake, cancel := s.inv.Watch() // before the newest id is read: nothing is missed between
	end := func() {
		cancel()
		leave()
	}
	after, err := s.begin(ctx, in)
	if err != nil {
		end()
		return nil, err
	}
	return &huma.StreamResponse{Body: func(hctx huma.Context) {
		defer end()
		_, w := humachi.Unwrap(hctx)
		if err := s.stream(ctx, w, in, after, wake); err != nil && ctx.Err() == nil {
			s.log.Warn().Err(err).Msg("event stream ended")
		}
	}}, nil
}

// resumesAt is the id after which a stream goes on: that of the header, which a
// reconnecting client sends, before that of the query; not given: from its start.
func resumesAt(lastEventID, after string) (id uint64, given bool, err error) {
	text := cmp.Or(lastEventID, after)
	if text == "" {
		return 0, false, nil
	}
	if id, err = strconv.ParseUint(text, 10, 64); err != nil {
		return 0, false, badField("query.after", "the id of what was received last", "%q is not a number", text)
	}
	return id, true, nil
}

// follower takes a place among those who follow something.
func (s *Server) follower(ctx context.Context) (leave func(), err error) {
	leave, ok := s.watchers.Take(ctx)
	if !ok {
		return nil, huma.Error503ServiceUnavailable(fmt.Sprintf("there are %d places to follow something, a quarter of them for one caller, and there is none left", s.cfg.MaxWatchers))
	}
	return leave, nil
}

func (s *Server) begin(ctx context.Context, in *watchInput) (uint64, error) {
	if id, given, err := resumesAt(in.LastEventID, in.After); given || err != nil {
		return id, err
	}
	newest, err := s.inv.EventsTail(ctx, 1)
	if err != nil || len(newest) == 0 {
		return 0, err
	}
	return newest[0].ID, nil
}

// heartbeat is how often an idle stream says something, so that both ends
// notice when the other is gone.
const heartbeat = 15 * time.Second

// stream writes events until the client leaves or ctx ends; neither is an error.
func (s *Server) stream(ctx context.Context, w http.ResponseWriter, in *watchInput, after uint64, wake <-chan struct{}) error {
	const size = 256
	return s.pump(ctx, w, wake, func() (buf []byte, more bool, err error) {
		list, err := s.inv.Events(ctx, after, size)
		if err != nil {
			return nil, false, err
		}
		for i := range list {
			after = list[i].ID
			if !in.match(&list[i]) || !s.inv.showsEvent(ctx, &list[i]) {
				continue
			}
			if buf, err = message(buf, after, eventOf(list[i])); err != nil {
				return nil, false, err
			}
		}
		return buf, len(list) == size, nil
	})
}

// message adds one server-sent event, whose data is v as JSON.
func message(buf []byte, id uint64, v any) ([]byte, error) {
	data, err := json.Marshal(v) // one line: JSON escapes newlines
	return fmt.Appendf(buf, "id: %d\ndata: %s\n\n", id, data), err
}

// pump writes what next returns, at once, while there is more and each time after
// wake, until the client leaves, may no longer, ctx ends or wake is closed; none is an
// error.
func (s *Server) pump(ctx context.Context, w http.ResponseWriter, wake <-chan struct{}, next func() (buf []byte, more bool, err error)) error {
	w.Header().Set("Content-Type", "text/event-stream")
	out := http.NewResponseController(w)
	send := func(b []byte) (ok bool) {
		// A response that knows no deadlines, as in tests, is written all the same.
		_ = out.SetWriteDeadline(time.Now().Add(heartbeat))
		_, err := w.Write(b)
		return err == nil && out.Flush() == nil
	}
	if !send([]byte(": provisiond\n\n")) { // the headers go out at once
		return nil
	}
	tick := time.NewTicker(heartbeat)
	defer tick.Stop()
	for s.standing(ctx) {
		buf, more, err := next()
		if err != nil {
			return err
		}
		if len(buf) > 0 && !send(buf) {
			return nil
		}
		if more {
			continue
		}
		select {
		case <-ctx.Done():
			return nil
		case _, open := <-wake:
			if !open {
				return nil
			}
		case <-tick.C:
			if !send([]byte(":\n\n")) {
				return nil
			}
		}
	}
	return nil
}
