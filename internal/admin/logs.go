package admin

import (
	"context"
	"encoding/json"
	"errors"
	"net/http"
	"reflect"
	"strconv"

	"github.com/danielgtaylor/huma/v2"
	"github.com/danielgtaylor/huma/v2/adapters/humachi"

	"github.com/provisiond/provisiond/api"
)

func (s *Server) logRoutes(doc huma.API) {
	lines := doc.OpenAPI().Components.Schemas.Schema(reflect.TypeFor[api.List[api.LogLine]](), true, "LogLines")
	op := huma.Operation{OperationID: "list-logs", Method: http.MethodGet, Path: "/machines/{machine}/logs", Tags: []string{"machines"},
		Summary: "What a machine said: its kernel log and Talos' events",
		Description: "Oldest first. Without after: the newest lines. With after: those that follow it; follow next to go on. " +
			"With follow=true: server-sent events, the newest lines first and then what comes; id is the line's, data its JSON. " +
			"It begins after Last-Event-ID or after, and ends when the machine is removed. Boot tokens are replaced.",
		Responses: map[string]*huma.Response{"200": {
			Description: "Lines, or with follow=true a stream of them",
			Content: map[string]*huma.MediaType{
				"application/json": {Schema: lines},
				"text/event-stream": {Schema: &huma.Schema{Type: huma.TypeString,
					Description: "Messages of id and data, where data is a LogLine as JSON; comments keep the connection alive"}},
			},
		}}}
	register(s, doc, needs{read, scoped, looks}, op, s.machineLogs, http.StatusNotFound, http.StatusUnprocessableEntity, http.StatusServiceUnavailable)
}

type logsInput struct {
	MachinePath
	LastEventID string `header:"Last-Event-ID" pattern:"^[0-9]{1,19}$" doc:"The last line that was received"`
	After       string `query:"after" pattern:"^[0-9]{1,19}$" doc:"Only lines after this id"`
	Limit       int    `query:"limit" minimum:"1" maximum:"10000" default:"100" doc:"At most this many; of a stream, the newest to begin with"`
	Follow      bool   `query:"follow" doc:"Go on with what comes"`
}

func (s *Server) machineLogs(ctx context.Context, in *logsInput) (*huma.StreamResponse, error) {
	v, err := s.inv.Machine(ctx, in.Ref)
	if err != nil {
		return nil, err
	}
	if s.cfg.Logs == nil {
		return nil, huma.Error503ServiceUnavailable("no logs are kept")
	}
	name := v.Machine.Name
	after, resumed, err := resumesAt(in.LastEventID, in.After)
	if err != nil {
		return nil, err
	}
	first := func() ([]api.LogLine, error) {
		if resumed {
			return s.cfg.Logs.After(name, after)
		}
		return s.cfg.Logs.Tail(name, in.Limit)
	}
	if in.Follow {
		return s.followLogs(ctx, name, after, first)
	}
	lines, err := first()
	if err != nil {
		return nil, err
	}
	out := api.List[api.LogLine]{Items: lines[:min(len(lines), in.Limit)]}
	if len(lines) > in.Limit {
		out.Next = strconv.FormatUint(lines[in.Limit-1].ID, 10)
	}
	return &huma.StreamResponse{Body: func(hctx huma.Context) {
		_, w := humachi.Unwrap(hctx)
		w.Header().Set("Content-Type", "application/json")
		_ = json.NewEncoder(w).Encode(out) // the client's loss
	}}, nil
}

// followLogs streams what first returns, and then what comes after it; nothing: after an id.
func (s *Server) followLogs(ctx context.Context, machine string, last uint64, first func() ([]api.LogLine, error)) (*huma.StreamResponse, error) {
	leave, err := s.follower(ctx)
	if err != nil {
		return nil, err
	}
	wake, cancel, err := s.cfg.Logs.Watch(machine) // before the first are read: nothing is missed between
	if err != nil {
		leave()
		return nil, err
	}
	return &huma.StreamResponse{Body: func(hctx huma.Context) {
		defer func() {
			cancel()
			leave()
		}()
		_, w := humachi.Unwrap(hctx)
		read := first
		err := s.pump(ctx, w, wake, func() (buf []byte, more bool, err error) {
			lines, err := read()
			for i := range lines {
				last = lines[i].ID
				var failed error
				buf, failed = message(buf, last, lines[i])
				err = errors.Join(err, failed)
			}
			read = func() ([]api.LogLine, error) { return s.cfg.Logs.After(machine, last) }
			return buf, false, err
		})
		if err != nil && ctx.Err() == nil {
			s.log.Warn().Err(err).Msg("log stream ended")
		}
	}}, nil
}
