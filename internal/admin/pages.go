package admin

import (
	"context"
	"errors"
	"math"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/danielgtaylor/huma/v2"

	"github.com/provisiond/provisiond/internal/inventory"
)

// What pages for browsers need of the API: who asks, sessions, and that what is done
// there takes a role and leaves its line as an operation does.

// Refusal is why what somebody asked for on a page was not done.
type Refusal struct {
	Status int // of HTTP
	Reason string
	Wait   time.Duration // until it makes sense to try again; 0: that is not known
}

func (r *Refusal) Error() string { return r.Reason }

// RetryAfter is Wait as the header of that name has it, in whole seconds.
func (r *Refusal) RetryAfter() string { return strconv.Itoa(int(math.Ceil(r.Wait.Seconds()))) }

// refusal is the answer of an operation as a *Refusal; nil stays nil.
func refusal(err error) error {
	var answer huma.StatusError
	if errors.As(err, &answer) {
		return &Refusal{Status: answer.GetStatus(), Reason: answer.Error()}
	}
	return err
}

// Version is that of provisiond.
func (s *Server) Version() string { return s.cfg.Version }

// InSession reports whether they are known by a browser's session, which they can end.
func (p *Principal) InSession() bool { return p.session != nil }

// Login begins a session for the owner of a token, as [Server.Begin] does. A token that is
// no good is a *Refusal as of [Server.RefuseLogin].
func (s *Server) Login(w http.ResponseWriter, r *http.Request, token string) error {
	p, err := s.owner(r.Context(), strings.TrimSpace(token))
	switch {
	case errors.Is(err, inventory.ErrToken):
		return s.RefuseLogin(r.Context(), err.Error())
	case err != nil:
		return s.failed(r.Context(), "login", err)
	}
	return s.Begin(w, r, *p)
}

// Begin begins a session for who has proven who they are. Its cookie goes with the answer
// and is a new one: whatever the browser came with is worth nothing from now on (session
// fixation). It is refused while the audit trail cannot be written.
func (s *Server) Begin(w http.ResponseWriter, r *http.Request, p Principal) error {
	c := callOf(r.Context())
	before := c.who
	c.action, c.who = "login", &p
	if err := s.record(r.Context(), changes, http.StatusOK, nil); err != nil {
		return refusal(err)
	}
	if before != nil && before.InSession() {
		s.sessions.end(before.session)
	}
	setCookie(w, s.sessions.begin(p, s.cfg.Now()))
	return nil
}

// RefuseLogin counts a login that failed, has its line in the audit trail, and returns how
// to answer it: 401, or 429 to who fails too often. The reason is written down, so it
// quotes nothing that was sent.
func (s *Server) RefuseLogin(ctx context.Context, reason string) *Refusal {
	c := callOf(ctx)
	c.action = "login"
	return s.guessed(c, reason)
}

// Logout ends the session of a request, at once, and takes its cookie away. It does so
// even if that cannot be written down: then the log has it.
func (s *Server) Logout(w http.ResponseWriter, r *http.Request) {
	setCookie(w, "")
	c := callOf(r.Context())
	if c.who == nil || !c.who.InSession() {
		return
	}
	s.sessions.end(c.who.session)
	c.action = "logout"
	_ = s.record(r.Context(), changes, http.StatusOK, nil) // it has been logged
}

// Allow returns nil if who asks has a role, else a *Refusal, which has its line under the
// name of what they were about to do.
func (s *Server) Allow(ctx context.Context, action string, role inventory.Access) error {
	c := callOf(ctx)
	c.action = action
	status, reason, help := c.lacks(needs{role, scoped, looks})
	if status == 0 {
		return nil
	}
	s.refused(c, status, reason)
	return &Refusal{Status: status, Reason: reason + "; " + help}
}

// failed is an error of an operation as a *Refusal; nil stays nil.
func (s *Server) failed(ctx context.Context, operation string, err error) error {
	if err == nil {
		return nil
	}
	return refusal(s.problem(ctx, operation, nil, err))
}
