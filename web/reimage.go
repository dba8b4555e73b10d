package web

import (
	"context"
	"fmt"
	"net/http"
	"slices"
	"sync"

	"github.com/provisiond/provisiond/api"
	"github.com/provisiond/provisiond/client"
	"github.com/provisiond/provisiond/internal/admin"
)

// To reimage machines: the order is put together, what it would come to is spelled out for
// each, and that very order is given.

// maxAct is how many machines are acted on at once.
const maxAct = 100

// maxAsked is how many machines are asked at once what would come of an order.
const maxAsked = 8

// reimageData is reimage.html.
type reimageData struct {
	One      string   // the machine whose page it is; empty: some of the rack
	Machines []string // by name
	Order    reimageOrder
	Foreseen []foreseen
	Ready    []string // those that would take the order
	Clusters []string // to choose from
	No       string   // why the order was not taken
}

// reimageOrder is the order as a form has it.
type reimageOrder struct{ Wipe, Hard, Role, Cluster, Image, DestroyCluster string }

// foreseen is what an order would come to for one machine.
type foreseen struct {
	Name  string
	Check api.ReimageCheck
	No    string // why that cannot be said
}

// reimageOrderOf is the order that was sent. The word that a cluster may be lost is never taken from a link.
func reimageOrderOf(r *http.Request) reimageOrder {
	return reimageOrder{r.FormValue("wipe"), r.FormValue("hard"), r.FormValue("role"), r.FormValue("cluster"), r.FormValue("image"), r.PostFormValue("destroyCluster")}
}

func (o reimageOrder) api() api.Reimage {
	order := api.Reimage{Wipe: o.Wipe, DestroyCluster: o.DestroyCluster, Cluster: o.Cluster, Role: o.Role, Image: o.Image}
	if o.Hard != "" {
		graceful := false
		order.Graceful = &graceful
	}
	return order
}

// Fields are those of the form that gives the order.
func (o reimageOrder) Fields() map[string]string {
	return map[string]string{"wipe": o.Wipe, "hard": o.Hard, "role": o.Role, "cluster": o.Cluster, "image": o.Image, "destroyCluster": o.DestroyCluster}
}

// At is where the forms of the page go.
func (d *reimageData) At() string {
	if d.One != "" {
		return machineAt(d.One, "reimage")
	}
	return "/machines/act"
}

// Back is where to go instead.
func (d *reimageData) Back() string {
	if d.One != "" {
		return machineAt(d.One)
	}
	return "/"
}

// Doubtful reports whether the machine's cluster may be the reason that it would be refused.
func (d *reimageData) Doubtful() bool {
	return d.One != "" && (d.Order.DestroyCluster != "" || len(d.Ready) == 0)
}

// Shared are the clusters that several machines which would take the order are control planes of.
func (d *reimageData) Shared() (clusters []string) {
	planes := map[string]int{}
	for _, f := range d.Foreseen {
		if h := f.Check.Holds; f.Check.OK && h != nil && h.Role == "controlplane" {
			if planes[h.Cluster]++; planes[h.Cluster] == 2 {
				clusters = append(clusters, h.Cluster)
			}
		}
	}
	return clusters
}

// askReimage shows what would come of an order for one machine.
func (p *Pages) askReimage(r *http.Request) (*page, error) {
	m, err := client.Answer[api.Machine](p.api.GetMachine(r.Context(), named(r)))
	if err != nil {
		return nil, err
	}
	return p.foresee(r, &reimageData{One: m.Name, Machines: []string{m.Name}})
}

// foresee completes the page with what would come of the order.
func (p *Pages) foresee(r *http.Request, d *reimageData) (*page, error) {
	d.Order = reimageOrderOf(r)
	var err error
	if d.Clusters, err = p.clusterNames(r.Context()); err != nil {
		return nil, err
	}
	d.Foreseen = foreseeAll(d.Machines, func(name string) foreseen {
		check, err := client.Answer[api.ReimageCheck](p.api.CheckReimage(r.Context(), name, d.Order.api()))
		return foreseen{name, check, p.whyNot(r.Context(), err)}
	})
	for _, f := range d.Foreseen {
		if f.Check.OK {
			d.Ready = append(d.Ready, f.Name)
		}
	}
	title := "Reimage machines"
	if d.One != "" {
		title = "Reimage " + d.One
	}
	return &page{name: "reimage", title: title, data: d}, nil
}

// foreseeAll asks of some machines at a time: each may take seconds to answer.
func foreseeAll[T any](names []string, ask func(name string) T) []T {
	out := make([]T, len(names))
	places := make(chan struct{}, maxAsked)
	var all sync.WaitGroup
	for i, name := range names {
		places <- struct{}{}
		all.Go(func() {
			defer func() { <-places }()
			out[i] = ask(name)
		})
	}
	all.Wait()
	return out
}

// whyNot is an error as a person is told it; empty: there was none.
func (p *Pages) whyNot(ctx context.Context, err error) string {
	if err == nil {
		return ""
	}
	if no := refusal(err); no != nil {
		return no.Reason
	}
	if ctx.Err() == nil {
		p.log.Error().Err(err).Msg("cannot act on a machine")
	}
	return "internal error; the log of provisiond has the detail"
}

// reimage gives the order to one machine, whose page shows the rest. With check it only shows
// what would come of it with the word that its cluster may be lost.
func (p *Pages) reimage(r *http.Request) (*page, error) {
	if r.PostFormValue("check") != "" {
		return p.askReimage(r)
	}
	m, err := client.Answer[api.Machine](p.api.ReimageMachine(r.Context(), named(r), reimageOrderOf(r).api()))
	if err == nil {
		return &page{to: machineAt(m.Name)}, nil
	}
	no := refusal(err)
	if no == nil || no.Status == http.StatusNotFound || no.Status == http.StatusForbidden {
		return nil, err
	}
	form, err := p.foresee(r, &reimageData{One: named(r), Machines: []string{named(r)}, No: no.Reason})
	if err == nil {
		form.status = no.Status
	}
	return form, err
}

func (p *Pages) cancelReimage(r *http.Request) (*page, error) {
	if err := client.Done(p.api.CancelReimage(r.Context(), named(r))); err != nil {
		return nil, err
	}
	return &page{to: machineAt(named(r))}, nil
}

// chosen are the machines of a list that were selected, each once, by name.
func chosen(r *http.Request) ([]string, error) {
	names := slices.Clone(r.Form["machine"])
	slices.Sort(names)
	names = slices.Compact(names)
	switch {
	case len(names) == 0:
		return nil, &admin.Refusal{Status: http.StatusBadRequest, Reason: "No machine was selected. Select some in the list of the rack first."}
	case len(names) > maxAct:
		return nil, &admin.Refusal{Status: http.StatusBadRequest, Reason: fmt.Sprintf("These are too many machines at once. Select at most %d.", maxAct)}
	}
	return names, nil
}
