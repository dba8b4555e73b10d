package web

import (
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	"github.com/provisiond/provisiond/api"
	"github.com/provisiond/provisiond/client"
)

// Who did what, the newest first.

// auditData is audit.html.
type auditData struct {
	Who, Machine, Since string // as they are typed
	Before              string
	Problems            problems
	Entries             []api.AuditEntry
	Older               string // the list of those before these; empty: that is all
}

// sinceTime is how a time is typed, in UTC; without the hour it is the day's first.
const sinceTime = "2006-01-02 15:04"

func (p *Pages) audit(r *http.Request) (*page, error) {
	d := &auditData{Who: strings.TrimSpace(r.FormValue("who")), Machine: strings.TrimSpace(r.FormValue("machine")), Since: strings.TrimSpace(r.FormValue("since")), Before: r.FormValue("before")}
	answer := &page{name: "audit", title: "Audit", data: d}
	params := client.ListAuditParams{Newest: true, Limit: rowsShown, Who: d.Who, Machine: d.Machine}
	var err error
	if d.Since != "" {
		if params.Since, err = time.Parse(sinceTime, d.Since); err != nil {
			params.Since, err = time.Parse(time.DateOnly, d.Since)
		}
		if err != nil {
			answer.status, d.Problems = http.StatusUnprocessableEntity, problems{"since": {"This is no time such as 2026-11-26 09:30."}}
			return answer, nil
		}
	}
	if d.Before != "" {
		if params.Before, err = strconv.Atoi(d.Before); err != nil {
			answer.status, d.Problems = http.StatusUnprocessableEntity, problems{"": {"The number of the line to go on from is none."}}
			return answer, nil
		}
	}
	list, err := client.Answer[api.List[api.AuditEntry]](p.api.ListAudit(r.Context(), params))
	if err != nil {
		return nil, err
	}
	if d.Entries = list.Items; list.Next != "" {
		d.Older = d.at("before", list.Next)
	}
	return answer, nil
}

// Newest is the same list from its end on.
func (d *auditData) Newest() string { return d.at() }

// Filtered reports whether the list may leave something out.
func (d *auditData) Filtered() bool { return d.Who+d.Machine+d.Since != "" }

func (d *auditData) at(more ...string) string {
	v := url.Values{}
	for i := 0; i+1 < len(more); i += 2 {
		v.Set(more[i], more[i+1])
	}
	for name, text := range map[string]string{"who": d.Who, "machine": d.Machine, "since": d.Since} {
		if text != "" {
			v.Set(name, text)
		}
	}
	return "/audit?" + v.Encode()
}

// auditTarget is what a line is about, and its page; no path: it has none.
func auditTarget(target string) pageLink {
	kind, name, _ := strings.Cut(target, "/")
	switch {
	case name == "":
		return pageLink{"", target}
	case kind == "machine":
		return pageLink{"/machines/" + url.PathEscape(name), "machine " + name}
	case kind == "cluster":
		return pageLink{"/clusters/" + url.PathEscape(name), "cluster " + name}
	}
	return pageLink{"", kind + " " + name}
}

// auditAction is the id of an operation in words.
func auditAction(id string) string { return strings.ReplaceAll(id, "-", " ") }
