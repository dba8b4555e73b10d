package web

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/provisiond/provisiond/api"
	"github.com/provisiond/provisiond/client"
	"github.com/provisiond/provisiond/internal/admin"
	"github.com/provisiond/provisiond/internal/inventory"
)

// Clusters: what they are, how far they are, and what can be done with one as a whole.

// clustersData is clusters.html.
type clustersData struct {
	Clusters  []clusterRow
	MayCreate bool
}

type clusterRow struct {
	api.Cluster
	Machines, Ready int
}

func (p *Pages) clusters(r *http.Request) (*page, error) {
	status, err := client.Answer[api.Status](p.api.Status(r.Context()))
	if err != nil {
		return nil, err
	}
	data, err := p.clusterRows(r.Context(), &status)
	if err != nil {
		return nil, err
	}
	return &page{name: "clusters", title: "Clusters", data: data, live: "/live/clusters"}, nil
}

func (p *Pages) liveClusters(r *http.Request) (liveParts, error) {
	g, err := p.glance(r.Context())
	if err != nil {
		return nil, err
	}
	return func(ctx context.Context) ([]part, error) {
		if p.now().Sub(g.at) >= g.life {
			if g, err = p.glance(ctx); err != nil {
				return nil, err
			}
		}
		data, err := p.clusterRows(ctx, &g.status)
		return []part{{name: "clusters", template: "cluster-rows", data: data}}, err
	}, nil
}

// clusterRows are the clusters as they are, and their machines as the status counts them.
func (p *Pages) clusterRows(ctx context.Context, status *api.Status) (*clustersData, error) {
	counts := map[string]api.ClusterStatus{}
	for _, c := range status.Clusters {
		counts[c.Name] = c
	}
	data := &clustersData{MayCreate: mayOperate(ctx) && wholeRack(ctx)}
	for c, err := range client.All[api.Cluster](func(after string) (*http.Response, error) {
		return p.api.ListClusters(ctx, client.ListClustersParams{After: after, Limit: api.MaxLimit})
	}) {
		if err != nil {
			return nil, err
		}
		data.Clusters = append(data.Clusters, clusterRow{c, counts[c.Name].Machines, counts[c.Name].Ready})
	}
	return data, nil
}

// wholeRack reports whether who asks is not limited to clusters.
func wholeRack(ctx context.Context) bool {
	who := admin.PrincipalOf(ctx)
	return who != nil && len(who.Clusters) == 0
}

// clusterData is cluster.html.
type clusterData struct {
	api.Cluster
	ControlPlanes, Workers members
	Rollout                *api.Rollout // nil: there was none
	MayOperate, MayAdmin   bool
}

// members are the machines of a cluster that have a role, as many as are shown.
type members struct {
	Cluster, Role string
	Machines      []api.Machine
	More          bool
}

func (p *Pages) cluster(r *http.Request) (*page, error) {
	data, err := p.clusterNow(r.Context(), r.PathValue("cluster"))
	if err != nil {
		return nil, err
	}
	return &page{name: "cluster", title: "Cluster " + data.Name, data: data, live: "/clusters/" + data.Name + "/live"}, nil
}

// liveCluster follows the machines of a cluster. A large one is asked for now and then: as fewer
// control planes than are shown match, that looks through the whole rack each time.
func (p *Pages) liveCluster(r *http.Request) (liveParts, error) {
	name := r.PathValue("cluster")
	g, err := p.glance(r.Context())
	if err != nil {
		return nil, err
	}
	planes, workers := p.polledMembers(name)
	least := rarely
	if i := slices.IndexFunc(g.status.Clusters, func(c api.ClusterStatus) bool { return c.Name == name }); i >= 0 && g.status.Clusters[i].Machines <= maxPicture {
		all := p.follow(r.Context(), rackQuery{Cluster: name})
		planes, workers, least = withRole{all, "controlplane"}, withRole{all, "worker"}, 0
	}
	return p.sparing(least, func(ctx context.Context) ([]part, error) {
		d, err := p.clusterOf(ctx, name, planes, workers)
		if err != nil {
			return nil, err
		}
		return []part{{name: "bootstrap", data: d}, {name: "rollout", data: d}, {name: "controlplanes", template: "members", data: d.ControlPlanes}, {name: "workers", template: "members", data: d.Workers}}, nil
	}), nil
}

// withRole are those of some machines that have a role.
type withRole struct {
	of   machines
	role string
}

func (l withRole) list(ctx context.Context, after string, limit int) ([]api.Machine, bool, error) {
	all, more, err := l.of.list(ctx, after, maxPicture)
	all = slices.DeleteFunc(all, func(m api.Machine) bool { return m.Role != l.role })
	return all[:min(limit, len(all))], more || len(all) > limit, err
}

// polledMembers are the machines of a cluster, asked for each time.
func (p *Pages) polledMembers(name string) (planes, workers machines) {
	return polled{p, rackQuery{Cluster: name, Role: "controlplane"}}, polled{p, rackQuery{Cluster: name, Role: "worker"}}
}

// clusterNow is a cluster as it is.
func (p *Pages) clusterNow(ctx context.Context, name string) (*clusterData, error) {
	planes, workers := p.polledMembers(name)
	return p.clusterOf(ctx, name, planes, workers)
}

func (p *Pages) clusterOf(ctx context.Context, name string, planes, workers machines) (*clusterData, error) {
	c, err := client.Answer[api.Cluster](p.api.GetCluster(ctx, name))
	if err != nil {
		return nil, err
	}
	d := &clusterData{Cluster: c, MayOperate: mayOperate(ctx), MayAdmin: admin.PrincipalOf(ctx).Role.Allows(inventory.AccessAdmin)}
	d.ControlPlanes, d.Workers = members{Cluster: name, Role: "controlplane"}, members{Cluster: name, Role: "worker"}
	if d.ControlPlanes.Machines, d.ControlPlanes.More, err = planes.list(ctx, "", rowsShown); err != nil {
		return nil, err
	}
	if d.Workers.Machines, d.Workers.More, err = workers.list(ctx, "", rowsShown); err != nil {
		return nil, err
	}
	rollout, err := client.Answer[api.Rollout](p.api.GetRollout(ctx, name))
	switch {
	case err == nil:
		d.Rollout = &rollout
	case !notFound(err):
		return nil, err
	}
	return d, nil
}

func notFound(err error) bool {
	var problem *client.Problem
	return errors.As(err, &problem) && problem.Status == http.StatusNotFound
}

// All is where all of them are listed.
func (m members) All() string { return rackQuery{Cluster: m.Cluster, Role: m.Role}.at("/") }

// Empty reports whether no machine belongs to the cluster.
func (d *clusterData) Empty() bool { return len(d.ControlPlanes.Machines)+len(d.Workers.Machines) == 0 }

// Going reports whether a rollout goes on.
func (d *clusterData) Going() bool { return d.Rollout != nil && d.Rollout.State == "going" }

// Ended is how many machines a rollout is through with.
func (d *clusterData) Ended() (n int) {
	for _, m := range d.Rollout.Machines {
		if m.State == "done" || m.State == "failed" {
			n++
		}
	}
	return n
}

// clusterStep is a step of a cluster to its bootstrap.
type clusterStep struct {
	Name, Words string
	At          time.Time
	State       string // before, now or ahead
}

// Steps are those of its bootstrap, in order.
func (d *clusterData) Steps() []clusterStep {
	b := d.Bootstrap
	claimed, called := "One control plane is chosen, for good", "It is told to bootstrap"
	if b.Machine != "" {
		claimed = b.Machine + " is the one that may be bootstrapped"
		called = b.Machine + " was told to bootstrap"
	}
	if b.Attempts > 1 {
		called += fmt.Sprintf(", with the call sent %d times", b.Attempts)
	}
	steps := []clusterStep{
		{Name: "waiting", Words: "No control plane reports in yet", At: d.Created},
		{Name: "claimed", Words: claimed, At: b.ClaimedAt},
		{Name: "called", Words: called, At: b.CalledAt},
		{Name: "done", Words: "etcd runs", At: b.DoneAt},
	}
	now := 0
	for i := range steps {
		if steps[i].Name == b.State {
			now = i
		}
	}
	for i := range steps {
		switch {
		case i < now:
			steps[i].State = "before"
		case i == now:
			steps[i].State = "now"
		default:
			steps[i].State = "ahead"
		}
	}
	return steps
}

// clusterActData is delete-cluster.html, reset-cluster.html and rollout.html: what would be
// done to a cluster.
type clusterActData struct {
	clusterData
	Problems problems
	Confirm  string          // as it was typed
	Dead     map[string]bool // control planes that are said not to come back
	Mode     string          // of a rollout
	Upgrade  bool
	Reset    api.ClusterResetCheck // what a reset would come to
}

// act is a page that says what would be done to a cluster.
func (p *Pages) act(r *http.Request, name, title string) (*page, *clusterActData, error) {
	d, err := p.clusterNow(r.Context(), r.PathValue("cluster"))
	if err != nil {
		return nil, nil, err
	}
	data := &clusterActData{clusterData: *d, Confirm: r.PostFormValue("confirm"), Dead: map[string]bool{}, Mode: r.PostFormValue("mode"), Upgrade: r.PostFormValue("upgrade") != ""}
	for _, machine := range r.PostForm["dead"] {
		data.Dead[machine] = true
	}
	return &page{name: name, title: fmt.Sprintf(title, d.Name), data: data}, data, nil
}

// again is the same page with what was wrong; an error that is none of who asks stays one.
func again(form *page, d *clusterActData, err error, fields ...string) (*page, error) {
	var ok bool
	if d.Problems, ok = problemsOf(err, fields...); !ok {
		return nil, err
	}
	form.status = refusal(err).Status
	return form, nil
}

func (p *Pages) askDeleteCluster(r *http.Request) (*page, error) {
	form, _, err := p.act(r, "delete-cluster", "Remove cluster %s?")
	return form, err
}

func (p *Pages) deleteCluster(r *http.Request) (*page, error) {
	form, d, err := p.act(r, "delete-cluster", "Remove cluster %s?")
	if err != nil {
		return nil, err
	}
	if err := client.Done(p.api.DeleteCluster(r.Context(), d.Name, client.DeleteClusterParams{IfMatch: r.PostFormValue("rev")})); err != nil {
		return again(form, d, err)
	}
	return done("Cluster "+d.Name, "Cluster "+d.Name+" and its secrets are removed.", pageLink{"/clusters", "Clusters"}), nil
}

// resetPage says what would be lost with a cluster, as the API would take it now.
func (p *Pages) resetPage(r *http.Request) (*page, *clusterActData, error) {
	form, d, err := p.act(r, "reset-cluster", "Reset cluster %s?")
	if err == nil {
		d.Reset, err = client.Answer[api.ClusterResetCheck](p.api.CheckReset(r.Context(), d.Name, api.ClusterReset{}))
	}
	return form, d, err
}

func (p *Pages) askResetCluster(r *http.Request) (*page, error) {
	form, _, err := p.resetPage(r)
	return form, err
}

func (p *Pages) resetCluster(r *http.Request) (*page, error) {
	form, d, err := p.resetPage(r)
	if err != nil {
		return nil, err
	}
	order := api.ClusterReset{Confirm: strings.TrimSpace(d.Confirm), Dead: r.PostForm["dead"]}
	if _, err := fmt.Sscan(r.PostFormValue("epoch"), &order.Epoch); err != nil {
		return nil, &admin.Refusal{Status: http.StatusBadRequest, Reason: "The form does not say which life of the cluster is given up."}
	}
	began, err := client.Answer[api.ClusterResetting](p.api.ResetCluster(r.Context(), d.Name, order))
	if err != nil {
		return again(form, d, err, "confirm", "dead")
	}
	words := fmt.Sprintf("Cluster %s begins its life %d, with new secrets. ", d.Name, began.Epoch)
	if len(began.Reimaged) > 0 {
		words += "These are to be wiped and installed anew: " + strings.Join(began.Reimaged, ", ") + "."
	} else {
		words += "No machine has its config, so none is wiped."
	}
	return done("Cluster "+d.Name, words, pageLink{"/clusters/" + d.Name, "See cluster " + d.Name}), nil
}

// Wiped names the machines that a reset would wipe.
func (d *clusterActData) Wiped() (names []string) {
	for _, m := range d.Reset.Machines {
		names = append(names, m.Name)
	}
	return names
}

// Awaited are the control planes among them that a reset waits for, unless they are said to be dead.
func (d *clusterActData) Awaited() (planes []api.ResetMachine) {
	for _, m := range d.Reset.Machines {
		if m.Awaited {
			planes = append(planes, m)
		}
	}
	return planes
}

// Others is how many more a reset is about, of clusters that are not of who asks.
func (d *clusterActData) Others() int { return d.Reset.Count - len(d.Reset.Machines) }

// OthersAwaited is how many control planes among those it waits for.
func (d *clusterActData) OthersAwaited() int { return d.Reset.Awaited - len(d.Awaited()) }

func (p *Pages) askRollout(r *http.Request) (*page, error) {
	form, _, err := p.act(r, "rollout", "Roll out over cluster %s?")
	return form, err
}

func (p *Pages) rollOut(r *http.Request) (*page, error) {
	form, d, err := p.act(r, "rollout", "Roll out over cluster %s?")
	if err != nil {
		return nil, err
	}
	if r.PostFormValue("act") == "stop" {
		ro, err := client.Answer[api.Rollout](p.api.StopRollout(r.Context(), d.Name))
		if err != nil {
			return nil, err
		}
		return done("Cluster "+d.Name, fmt.Sprintf("Rollout %d is %s: no further machine is asked. What one was asked already is not taken back.", ro.Number, ro.State), pageLink{"/clusters/" + d.Name, "See cluster " + d.Name}), nil
	}
	ro, err := client.Answer[api.Rollout](p.api.StartRollout(r.Context(), d.Name, api.RolloutOrder{Mode: d.Mode, Upgrade: d.Upgrade}))
	if err != nil {
		return again(form, d, err, "mode", "upgrade")
	}
	return done("Cluster "+d.Name, fmt.Sprintf("Rollout %d over %d machines has begun.", ro.Number, len(ro.Machines)), pageLink{"/clusters/" + d.Name, "Follow it"}), nil
}
