package web

import (
	"bytes"
	"cmp"
	"context"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/provisiond/provisiond/internal/admin"
)

// A page is kept up to date in parts. A part is an element with sse-swap="NAME", and a
// template that makes what is in it. While a page is open, its parts are made again
// twice a second, and those that changed are sent to it as server-sent events of their name,
// which htmx puts in place. There is nothing to resume: whoever connects again is
// sent all parts.

// part is a piece of a page, made of data by a template.
type part struct {
	name     string // of its event; no two parts of a page have the same
	template string // empty: of the same name
	data     any
	same     string // what to compare instead of how it looks, as some of it has parts of its own; empty: how it looks
	shown    bool   // the page has it already, whatever was sent
}

// liveParts gathers the parts of a page again, each time that it is called. What it
// holds ends with ctx.
type liveParts func(ctx context.Context) ([]part, error)

const (
	// beat is how often a page is made again while somebody looks at it.
	beat = 500 * time.Millisecond
	// heartbeat is how often a stream says something although nothing has changed, so that both
	// ends notice when the other is gone.
	heartbeat = 15 * time.Second
	// maxOpen is how many pages can be kept up to date at once, a quarter of them for one person.
	maxOpen = 256
)

// toWatchers keeps a page up to date for who may see it, until it is closed or they may
// no longer.
func (p *Pages) toWatchers(name string, begin func(*http.Request) (liveParts, error)) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		s := stream{w: w, out: http.NewResponseController(w)}
		if admin.PrincipalOf(r.Context()) == nil {
			s.say(p.templates[name], part{name: "notice", template: "logged-out"})
			return
		}
		leave, ok := p.open.Take(r.Context())
		if !ok {
			http.Error(w, "too many pages are open", http.StatusServiceUnavailable)
			return
		}
		defer leave()
		gather, err := begin(r)
		if err != nil {
			p.end(&s, name, err)
			return
		}
		p.keep(r.Context(), &s, name, gather)
	}
}

// keep sends the parts that changed, until ctx ends, the page is closed or cannot be made.
func (p *Pages) keep(ctx context.Context, s *stream, name string, gather liveParts) {
	tick := time.NewTicker(beat)
	defer tick.Stop()
	quiet := time.Now()
	for {
		parts, err := gather(ctx)
		if ctx.Err() != nil {
			return
		}
		if err != nil {
			p.end(s, name, err)
			return
		}
		if !slices.ContainsFunc(parts, func(one part) bool { return one.name == "notice" }) {
			// What was said of a stream before this one is not true any more.
			parts = slices.Concat(parts, []part{{name: "notice", template: "fresh"}})
		}
		sent, err := s.changed(p.templates[name], parts)
		if err == nil && !sent && time.Since(quiet) >= heartbeat {
			sent, err = true, s.send([]byte(":\n\n"))
		}
		if err != nil {
			return // the page was closed, or there is a mistake in it that tests find
		}
		if sent {
			quiet = time.Now()
		}
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}

// end tells a page that it is no longer kept up to date.
func (p *Pages) end(s *stream, name string, err error) {
	p.log.Debug().Err(err).Str("page", name).Msg("a page is no longer kept up to date")
	notice := part{name: "notice", template: "stale"}
	if no := refusal(err); no != nil && no.Status == http.StatusUnauthorized {
		notice.template = "logged-out"
	}
	s.say(p.templates[name], notice)
}

// stream is what one open page is sent.
type stream struct {
	w     http.ResponseWriter
	out   *http.ResponseController
	has   map[string]string // part: what the page shows
	begun bool
}

// oneLine takes out what ends a line of server-sent events: that is a CR by itself, too.
var oneLine = strings.NewReplacer("\n", "", "\r", " ")

// say sends one part, whatever the page shows.
func (s *stream) say(t *templateSet, one part) {
	_, _ = s.changed(t, []part{one}) // the page's loss
}

// changed sends the parts that are not as the page shows them, all at once, and reports
// whether there were any.
func (s *stream) changed(t *templateSet, parts []part) (bool, error) {
	var out bytes.Buffer
	has := make(map[string]string, len(parts))
	for _, one := range parts {
		text, err := t.fragment(cmp.Or(one.template, one.name), one.data)
		if err != nil {
			return false, err
		}
		same := cmp.Or(one.same, text)
		has[one.name] = same
		if old, shown := s.has[one.name]; shown && old == same || one.shown {
			continue
		}
		out.WriteString("event: " + one.name + "\n")
		for line := range strings.Lines(cmp.Or(text, "\n")) { // without data there is no event
			out.WriteString("data: " + oneLine.Replace(line) + "\n")
		}
		out.WriteString("\n")
	}
	s.has = has
	if out.Len() == 0 && s.begun {
		return false, nil
	}
	return true, s.send(out.Bytes())
}

func (s *stream) send(b []byte) error {
	if !s.begun {
		s.begun = true
		s.w.Header().Set("Content-Type", "text/event-stream")
		b = append([]byte(": provisiond\n\n"), b...)
	}
	// A response that knows no deadlines, as in tests, is written all the same.
	_ = s.out.SetWriteDeadline(time.Now().Add(heartbeat))
	if _, err := s.w.Write(b); err != nil {
		return err
	}
	return s.out.Flush()
}
