package web

import (
	"cmp"
	"context"
	"fmt"
	"hash/fnv"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"time"

	"github.com/provisiond/provisiond/api"
	"github.com/provisiond/provisiond/client"
)

// The rack: all machines as a picture, what needs attention, and a list of the machines that a
// filter lets through.

const (
	// rowsShown is how many machines a list has at once.
	rowsShown = 100
	// maxPicture is up to how many machines the picture shows each of them, and all of them are
	// followed. Beyond, the page reads no more of the rack than it lists, and the counts now and then.
	maxPicture = 2000
	// maxAttention is how many of the machines that need attention are listed apart.
	maxAttention = 20
)

// rackData is rack.html.
type rackData struct {
	rackQuery
	Summary  summary
	Clusters []string // to choose from
	Rows     []api.Machine
	Later    string // the list after these; empty: that is all

	MayOperate bool
}

// rackQuery is what of the rack is listed: what the API lists machines by.
type rackQuery struct{ Q, Cluster, Role, Phase, After string }

func rackQueryOf(r *http.Request) rackQuery {
	return rackQuery{r.FormValue("q"), r.FormValue("cluster"), r.FormValue("role"), r.FormValue("phase"), r.FormValue("after")}
}

// at is where on a path the same list is, with more parameters, each a name and a text.
func (q rackQuery) at(path string, more ...string) string {
	v := url.Values{}
	for i := 0; i+1 < len(more); i += 2 {
		v.Set(more[i], more[i+1])
	}
	for name, text := range map[string]string{"q": q.Q, "cluster": q.Cluster, "role": q.Role, "phase": q.Phase, "after": q.After} {
		if text != "" {
			v.Set(name, text)
		}
	}
	if len(v) == 0 {
		return path
	}
	return path + "?" + v.Encode()
}

// InPhase is the list of one phase; empty: of all.
func (q rackQuery) InPhase(phase string) string {
	q.Phase, q.After = phase, ""
	return q.at("/")
}

// From is the list after a machine; empty: from the first on.
func (q rackQuery) From(name string) string {
	q.After = name
	return q.at("/")
}

// Filtered reports whether the list may leave something out.
func (q rackQuery) Filtered() bool { return q.Q+q.Cluster+q.Role+q.Phase != "" }

func (q rackQuery) params() client.ListMachinesParams {
	return client.ListMachinesParams{Q: q.Q, Cluster: q.Cluster, Role: q.Role, Phase: q.Phase}
}

// summary is the rack at a glance.
type summary struct {
	rackQuery
	Version    string
	Machines   int
	Phases     []phaseCount
	Clusters   []api.ClusterStatus
	Discovered int
	Waiting    int // machines that wait to be approved
	Attention  []api.Machine
	Unlisted   int // that need attention, beside those
	Picture    *picture

	MayOperate bool
}

type phaseCount struct {
	Name  string
	Count int
}

// phases are those of a machine: what needs somebody first, then in the order of a boot.
var phases = [...]string{"failed", "stalled", "registered", "offered", "loading", "configuring", "installing", "booting", "reimaging", "ready"}

func (p *Pages) rack(r *http.Request) (*page, error) {
	q := rackQueryOf(r)
	g, err := p.glance(r.Context())
	if err != nil {
		return nil, err
	}
	all, listed := polled{p, rackQuery{}}, polled{p, q}
	data, err := rackOf(r.Context(), q, g, all, listed)
	if err != nil {
		return nil, err
	}
	return &page{name: "rack", title: "The rack", data: data, live: q.at("/live", "rows", data.same())}, nil
}

// liveRack keeps the summary up to date, and of the list the phases and reasons; the
// whole list when other machines are in it, or other things are said of them. A large rack
// is looked at again whenever a glance at it is due.
func (p *Pages) liveRack(r *http.Request) (liveParts, error) {
	q := rackQueryOf(r)
	g, err := p.glance(r.Context())
	if err != nil {
		return nil, err
	}
	var all, listed machines = polled{p, rackQuery{}}, polled{p, q}
	small := g.status.Machines <= maxPicture
	if small {
		all = p.follow(r.Context(), rackQuery{})
		if listed = all; q.Filtered() {
			listed = p.follow(r.Context(), q)
		}
	}
	var parts []part
	return func(ctx context.Context) ([]part, error) {
		due := p.now().Sub(g.at) >= g.life
		if due {
			if g, err = p.glance(ctx); err != nil {
				return nil, err
			}
		}
		if parts != nil && !small && !due {
			return parts, nil
		}
		data, err := rackOf(ctx, q, g, all, listed)
		if err != nil {
			return nil, err
		}
		known := parts == nil && data.same() == r.FormValue("rows")
		parts = data.parts()
		parts[1].shown = known // by the page itself, where somebody may have chosen some of them already
		return parts, nil
	}, nil
}

func (d *rackData) parts() []part {
	parts := []part{{name: "summary", data: d.Summary}, {name: "rows", data: d, same: d.same()}, {name: "more", data: d}}
	for i := range d.Rows {
		m := &d.Rows[i]
		parts = append(parts, part{name: m.Name + "/phase", template: "phase", data: m}, part{name: m.Name + "/reason", template: "reason", data: m})
	}
	return parts
}

// same is of two lists the same unless more differs than what has parts of its own.
func (d *rackData) same() string {
	h := fnv.New64a()
	for i := range d.Rows {
		m := &d.Rows[i]
		fmt.Fprintln(h, m.Name, m.Role, m.Cluster, m.Address, m.Labels) // maps are printed sorted
	}
	return strconv.FormatUint(h.Sum64(), 36)
}

// rarely is how often at most somebody who keeps a page open has the whole rack looked through.
const rarely = 10 * time.Second

// glance is what is asked for now and then only: it is about the whole rack.
type glance struct {
	at      time.Time
	life    time.Duration // how old it may be while a page is kept up to date
	status  api.Status
	waiting int
}

func (p *Pages) glance(ctx context.Context) (*glance, error) {
	g := &glance{at: p.now()}
	var err error
	if g.status, err = client.Answer[api.Status](p.api.Status(ctx)); err != nil {
		return nil, err
	}
	waits, err := client.Answer[api.List[api.Approval]](p.api.ListApprovals(ctx))
	if err != nil {
		return nil, err
	}
	names := map[string]bool{} // one may have asked more than once
	for _, a := range waits.Items {
		names[a.Machine] = true
	}
	g.waiting = len(names)
	g.life = lifetime(p.now().Sub(g.at), rarely)
	return g, nil
}

// machines are the machines that a filter lets through.
type machines interface {
	// list returns those after a name, at most limit, and whether there are more.
	list(ctx context.Context, after string, limit int) (some []api.Machine, more bool, err error)
}

// polled asks for them each time.
type polled struct {
	p *Pages
	q rackQuery
}

func (l polled) list(ctx context.Context, after string, limit int) ([]api.Machine, bool, error) {
	params := l.q.params()
	params.After = after
	var out []api.Machine
	for {
		params.Limit = min(limit-len(out), api.MaxLimit)
		page, err := client.Answer[api.List[api.Machine]](l.p.api.ListMachines(ctx, params))
		if err != nil {
			return nil, false, err
		}
		out, params.After = append(out, page.Items...), page.Next
		if page.Next == "" || len(out) == limit {
			return out, page.Next != "", nil
		}
	}
}

func rackOf(ctx context.Context, q rackQuery, g *glance, all, listed machines) (*rackData, error) {
	d := &rackData{rackQuery: q, MayOperate: mayOperate(ctx)}
	for _, c := range g.status.Clusters {
		d.Clusters = append(d.Clusters, c.Name)
	}
	rows, more, err := listed.list(ctx, q.After, rowsShown)
	if err != nil {
		return nil, err
	}
	if d.Rows = rows; more {
		d.Later = q.From(rows[len(rows)-1].Name)
	}
	var each []api.Machine // nil: too many
	if g.status.Machines <= maxPicture {
		if each, more, err = all.list(ctx, "", maxPicture); err != nil {
			return nil, err
		}
		if more {
			each = nil
		}
	}
	d.Summary = summaryOf(q, g, each)
	d.Summary.MayOperate = d.MayOperate
	return d, nil
}

// summaryOf is the rack at a glance, and as each of its machines says where they are known.
func summaryOf(q rackQuery, g *glance, each []api.Machine) summary {
	s := summary{rackQuery: q, Version: g.status.Version, Machines: g.status.Machines, Clusters: slices.Clone(g.status.Clusters), Discovered: g.status.Discovered, Waiting: g.waiting}
	counts := g.status.Phases
	if each != nil {
		s.Machines, counts, s.Picture = len(each), map[string]int{}, pictureOf(each)
		of := map[string]*api.ClusterStatus{}
		for i := range s.Clusters {
			of[s.Clusters[i].Name] = &s.Clusters[i]
			s.Clusters[i].Machines, s.Clusters[i].Ready = 0, 0
		}
		for i := range each {
			m := &each[i]
			counts[m.Phase.Phase]++
			if c := of[m.Cluster]; c != nil {
				c.Machines++
				if m.Phase.Phase == "ready" {
					c.Ready++
				}
			}
			if m.Phase.Phase == "failed" || m.Phase.Phase == "stalled" || m.Facts.Alarm != "" {
				s.Attention = append(s.Attention, *m)
			}
		}
	} else {
		for _, a := range g.status.Attention {
			m := api.Machine{Phase: a.Phase}
			m.Name, m.Facts.Alarm = a.Machine, a.Alarm
			s.Attention = append(s.Attention, m)
		}
	}
	slices.SortStableFunc(s.Attention, func(a, b api.Machine) int {
		return cmp.Or(cmp.Compare(b.Facts.Alarm, a.Facts.Alarm), a.Phase.Since.Compare(b.Phase.Since))
	})
	if n := len(s.Attention); n > maxAttention {
		s.Attention, s.Unlisted = s.Attention[:maxAttention], n-maxAttention
	}
	for _, name := range phases {
		if n := counts[name]; n > 0 {
			s.Phases = append(s.Phases, phaseCount{name, n})
		}
	}
	return s
}
