package admin

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/danielgtaylor/huma/v2"
	"github.com/danielgtaylor/huma/v2/adapters/humachi"

	"github.com/provisiond/provisiond/api"
	"github.com/provisiond/provisiond/internal/audit"
)

// enter decides on a request before anything of it is read, and sees to it that what is
// not a plain look leaves its line, even if it ends before it was tried.
func (s *Server) enter(id string, n needs) func(huma.Context, func(huma.Context)) {
	return func(hctx huma.Context, next func(huma.Context)) {
		r, w := humachi.Unwrap(hctx)
		c := callOf(r.Context())
		c.action, c.target = id, targetOf(hctx)
		if status, reason, help := c.lacks(n); status != 0 {
			if status == http.StatusUnauthorized {
				w.Header().Set("WWW-Authenticate", `Bearer realm="provisiond"`)
			}
			s.refuse(w, c, status, reason, help)
			return
		}
		if n.act != looks {
			if err := s.ready(r.Context()); err != nil {
				writeProblem(w, err.GetStatus(), err.Error())
				return
			}
			defer func() {
				if !c.told { // refused by its form, or it panicked
					s.note(c, hctx.Status())
				}
			}()
		}
		next(hctx)
	}
}

// lacks returns what who calls has not that something needs, as a status of HTTP with the
// reason and what to do; 0: nothing.
func (c *call) lacks(n needs) (status int, reason, help string) {
	switch p := c.who; {
	case p == nil:
		return http.StatusUnauthorized, "nobody has logged in", howToLogIn
	case !p.Role.Allows(n.role):
		return http.StatusForbidden, fmt.Sprintf("this takes the role %s, and %s has %s", n.role, p.Name, p.Role), askAnAdmin
	case p.limited() && n.about == rackWide:
		return http.StatusForbidden, fmt.Sprintf("this is about the whole rack, and %s may only act in %s", p.Name, inWords(p.Clusters)), askAnAdmin
	}
	return 0, "", ""
}

// ready returns the refusal to do anything while no line can be written; nil: one can.
func (s *Server) ready(ctx context.Context) huma.StatusError {
	err := s.cfg.Trail.Ready(ctx)
	if err == nil {
		return nil
	}
	s.log.Error().Err(err).Msg("the audit trail cannot be written")
	return huma.NewError(unwritten(err), "nothing was done: the audit trail cannot be written, and so nobody would know")
}

// targetOf names what a path is about.
func targetOf(hctx huma.Context) string {
	for _, what := range []string{"machine", "cluster", "token", "sha256"} {
		if name := hctx.Param(what); name != "" {
			return what + "/" + name
		}
	}
	if v := hctx.Param("version"); v != "" {
		return strings.Join([]string{"image", v, hctx.Param("schematic"), hctx.Param("arch")}, "/")
	}
	return ""
}

func inWords(clusters []string) string {
	if len(clusters) == 1 {
		return "cluster " + clusters[0]
	}
	return "clusters " + strings.Join(clusters, ", ")
}

// record leaves the line of a request that was decided on: of what was done or told it is
// on disk before the answer. It returns the error to answer with, which is err, or that
// there is no line: what was done is done then, and that is said.
func (s *Server) record(ctx context.Context, n act, status int, err error) error {
	c := callOf(ctx)
	e := c.entry()
	e.Outcome, e.Status = audit.OK, status
	if err != nil {
		e.Outcome, e.Status, e.Reason = outcome(err)
	}
	switch {
	case c.told:
		return err
	case e.Status == http.StatusForbidden:
		s.refused(c, e.Status, e.Reason)
		return err
	case n == looks:
		return err
	case e.Outcome == audit.Refused && !c.parts: // nothing has happened
		c.told = true
		s.cfg.Trail.Note(e)
		return err
	}
	c.told = true
	failed := s.cfg.Trail.Append(context.WithoutCancel(ctx), e)
	if failed == nil {
		return err
	}
	s.log.Error().Err(failed).Str("request", c.id).Str("who", e.Who).Str("action", e.Action).Str("target", e.Target).Int("status", e.Status).Msg("not in the audit trail")
	if err != nil {
		return err
	}
	return huma.NewError(unwritten(failed), "it is done if it was a change, and not told if it was a secret; but the audit trail could not be written")
}

// did leaves a line for one of several things that a request changes: the trail is asked
// about things. They are on disk with the request's own.
func (s *Server) did(ctx context.Context, target string) {
	c := callOf(ctx)
	c.parts = true
	e := c.entry()
	e.Target, e.Outcome = target, audit.OK
	s.cfg.Trail.Note(e)
}

// note is the line of a request that ended before it was decided on.
func (s *Server) note(c *call, status int) {
	e := c.entry()
	e.Outcome, e.Status, e.Reason = audit.Refused, status, http.StatusText(status)
	if status == 0 || status >= http.StatusInternalServerError {
		e.Outcome, e.Status = audit.Failed, http.StatusInternalServerError
	}
	s.cfg.Trail.Note(e)
}

// outcome is what an error says in the audit trail: where, and what kind of error, but
// none of its words, which may quote what was sent.
func outcome(err error) (o audit.Outcome, status int, reason string) {
	o, status = audit.Refused, http.StatusInternalServerError
	var answer huma.StatusError
	if errors.As(err, &answer) {
		status = answer.GetStatus()
	}
	if status >= http.StatusInternalServerError {
		o = audit.Failed
	}
	words := []string{http.StatusText(status)}
	var model *huma.ErrorModel
	if errors.As(err, &model) {
		for _, d := range model.Errors {
			if d != nil && d.Location != "" && !slices.Contains(words, d.Location) {
				words = append(words, d.Location)
			}
		}
	}
	return o, status, strings.Join(words, " ")
}

func unwritten(err error) int {
	if errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT) {
		return http.StatusInsufficientStorage
	}
	return http.StatusInternalServerError
}

// noTrail forgets.
type noTrail struct{}

func (noTrail) Ready(context.Context) error               { return nil }
func (noTrail) Append(context.Context, audit.Entry) error { return nil }
func (noTrail) Note(audit.Entry)                          {}
func (noTrail) Read(context.Context, uint64, func([]byte, audit.Entry) bool) error {
	return huma.Error503ServiceUnavailable("no audit trail is kept")
}
func (noTrail) ReadBack(context.Context, uint64, func([]byte, audit.Entry) bool) error {
	return huma.Error503ServiceUnavailable("no audit trail is kept")
}

func (s *Server) auditRoutes(doc huma.API) {
	entries := doc.OpenAPI().Components.Schemas.Schema(reflect.TypeFor[api.List[api.AuditEntry]](), true, "AuditEntries")
	op := huma.Operation{OperationID: "list-audit", Method: http.MethodGet, Path: "/audit", Tags: []string{"access"},
		Summary: "Who did what, oldest first unless newest is true",
		Description: "Without after and since: from the first line. Each line is as it was written, byte for byte, so that its SHA-256 is the prev of the next. " +
			"A filter looks at 100000 lines at most; follow next to go on. next is always there, and waits for lines to come at the end; with newest, it is what before takes, and absent after the first line.",
		Responses: map[string]*huma.Response{"200": {Description: "Lines", Content: map[string]*huma.MediaType{"application/json": {Schema: entries}}}}}
	register(s, doc, needs{admin, rackWide, looks}, op, s.listAudit, http.StatusUnprocessableEntity, http.StatusServiceUnavailable)
}

// maxAuditScan bounds the lines that one request looks at.
const maxAuditScan = 100_000

func (s *Server) listAudit(ctx context.Context, in *struct {
	After   uint64    `query:"after" doc:"Only lines after this number"`
	Limit   int       `query:"limit" minimum:"1" maximum:"1000" default:"100" doc:"At most this many"`
	Machine string    `query:"machine" doc:"Only what is about this machine"`
	Who     string    `query:"who" doc:"Only what this one did"`
	Since   time.Time `query:"since" doc:"Only what was done from then on"`
	Newest  bool      `query:"newest" doc:"Newest first, from the last line on or from before"`
	Before  uint64    `query:"before" doc:"Only lines before this number, with newest"`
}) (*huma.StreamResponse, error) {
	switch {
	case in.Newest && in.After != 0:
		return nil, badField("query.after", "before, which goes with it", "newest goes back from the end, or from before")
	case !in.Newest && in.Before != 0:
		return nil, badField("query.before", "newest=true, which goes with it", "without newest, lines are answered from after on")
	}
	out := api.List[json.RawMessage]{Items: []json.RawMessage{}}
	last, scanned := in.After, 0
	read, from := s.cfg.Trail.Read, in.After
	if in.Newest {
		read, from = s.cfg.Trail.ReadBack, in.Before
	}
	more := true
	err := read(ctx, from, func(line []byte, e audit.Entry) bool {
		last = e.Seq
		scanned++
		if (in.Machine == "" || e.Target == "machine/"+in.Machine) && (in.Who == "" || e.Who == in.Who) && !e.Time.Before(in.Since) {
			out.Items = append(out.Items, slices.Clone(line))
		}
		more = len(out.Items) < in.Limit && scanned < maxAuditScan
		return more
	})
	if err != nil {
		return nil, err
	}
	if !in.Newest || !more && last > 1 {
		out.Next = strconv.FormatUint(last, 10)
	}
	return &huma.StreamResponse{Body: func(hctx huma.Context) {
		_, w := humachi.Unwrap(hctx)
		w.Header().Set("Content-Type", "application/json")
		_ = json.NewEncoder(w).Encode(out) // the client's loss
	}}, nil
}
