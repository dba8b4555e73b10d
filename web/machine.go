package web

import (
	"context"
	"net/http"
	"net/url"

	"github.com/provisiond/provisiond/api"
	"github.com/provisiond/provisiond/client"
)

// The page of one machine: what it is and does, its boots in time, and what it says.

// machineData is machine.html.
type machineData struct {
	machineNow
	Log    *said // nil: nobody keeps what machines say
	Events said
}

// machineNow is what of it is kept up to date as a whole.
type machineNow struct {
	api.Machine
	Boot   *timeline // its newest boot; nil: there was none
	Before []attempt // the boots before, newest first

	MayOperate bool
}

// named is the name or MAC in the path.
func named(r *http.Request) string { return r.PathValue("name") }

// machineAt is the page of a machine, or one of the pages below it.
func machineAt(name string, below ...string) string {
	at, err := url.JoinPath("/machines/"+url.PathEscape(name), below...)
	if err != nil {
		return "/" // it is no name
	}
	return at
}

func (p *Pages) machine(r *http.Request) (*page, error) {
	now, err := p.machineNow(r.Context(), named(r))
	if err != nil {
		return nil, err
	}
	d := machineData{machineNow: *now}
	if d.Log, d.Events, err = p.saidOf(r.Context(), now.Name); err != nil {
		return nil, err
	}
	has := url.Values{"events": {d.Events.Last}}
	if d.Log != nil {
		has.Set("log", d.Log.Last)
	}
	return &page{name: "machine", title: now.Name, data: d, live: machineAt(now.Name, "live") + "?" + has.Encode()}, nil
}

func (p *Pages) machineNow(ctx context.Context, ref string) (*machineNow, error) {
	m, err := client.Answer[api.Machine](p.api.GetMachine(ctx, ref))
	if err != nil {
		return nil, err
	}
	boots, err := client.Answer[api.List[api.Boot]](p.api.ListBoots(ctx, m.Name)) // the inventory bounds them
	if err != nil {
		return nil, err
	}
	var bootstrap *api.Bootstrap
	if m.Cluster != "" && m.Role == "controlplane" {
		c, err := client.Answer[api.Cluster](p.api.GetCluster(ctx, m.Cluster))
		if err != nil {
			return nil, err
		}
		bootstrap = &c.Bootstrap
	}
	d := &machineNow{Machine: m, MayOperate: mayOperate(ctx)}
	if len(boots.Items) > 0 {
		d.Boot = timelineOf(&boots.Items[0], &m, bootstrap, p.now())
		d.Before = attemptsOf(boots.Items[1:])
	}
	return d, nil
}

// liveMachine keeps the page up to date; what the machine says is added to what is there
// already.
func (p *Pages) liveMachine(r *http.Request) (liveParts, error) {
	name := named(r)
	log, events, err := p.saidOf(r.Context(), name)
	if err != nil {
		return nil, err
	}
	var newLines *heard[api.LogLine]
	if log != nil {
		newLines = hear[api.LogLine](r.Context(), log.Last, func(last string) (*http.Response, error) {
			return p.api.ListLogs(r.Context(), name, client.ListLogsParams{Follow: true, LastEventID: last})
		})
	}
	newEvents := hear[api.Event](r.Context(), events.Last, func(last string) (*http.Response, error) {
		return p.api.WatchEvents(r.Context(), client.WatchEventsParams{Machine: name, LastEventID: last})
	})
	first := true
	return func(ctx context.Context) ([]part, error) {
		now, err := p.machineNow(ctx, name)
		if err != nil {
			return nil, err
		}
		parts := []part{{name: "status", data: now}, {name: "boots", data: now}, {name: "facts", data: now}}
		if first { // what was said since the page was made, or since it was last connected
			first = false
			if log != nil {
				parts = append(parts, part{name: "log", data: log, shown: log.Last == r.FormValue("log")})
			}
			return append(parts, part{name: "events", data: events, shown: events.Last == r.FormValue("events")}), nil
		}
		more, follows := newEvents.take()
		parts = appendSaid(parts, "event-lines", eventsOf(more))
		if newLines != nil {
			more, too := newLines.take()
			parts, follows = appendSaid(parts, "log-lines", linesOf(more)), follows && too
		}
		return append(parts, part{name: "notice", template: "unheard", data: follows}), nil
	}, nil
}

// appendSaid adds a part with lines that are new, if there are any.
func appendSaid(parts []part, name string, s said) []part {
	if len(s.Lines) == 0 {
		return parts
	}
	return append(parts, part{name: name, template: "lines", data: s, same: s.Last})
}

// acknowledge takes an alarm off, as somebody has looked into it.
func (p *Pages) acknowledge(r *http.Request) (*page, error) {
	if err := client.Done(p.api.AcknowledgeAlarm(r.Context(), named(r))); err != nil {
		return nil, err
	}
	return &page{to: machineAt(named(r))}, nil
}
