package web

import (
	"cmp"
	"context"
	"net/http"

	"github.com/provisiond/provisiond/api"
	"github.com/provisiond/provisiond/client"
	"github.com/provisiond/provisiond/internal/admin"
)

// NICs that were seen and belong to no machine, and how they become one.

// discoveredData is discovered.html.
type discoveredData struct {
	NICs       []api.Stranger // the one seen last first
	MayOperate bool
}

func (p *Pages) discovered(r *http.Request) (*page, error) {
	data, err := p.strangers(r.Context())
	if err != nil {
		return nil, err
	}
	return &page{name: "discovered", title: "Discovered", data: data, live: "/discovered/live"}, nil
}

// liveDiscovered asks for the list with each beat while that is cheap.
func (p *Pages) liveDiscovered(*http.Request) (liveParts, error) {
	return p.sparing(0, func(ctx context.Context) ([]part, error) {
		data, err := p.strangers(ctx)
		return []part{{name: "nics", data: data}}, err
	}), nil
}

func (p *Pages) strangers(ctx context.Context) (*discoveredData, error) {
	list, err := client.Answer[api.List[api.Stranger]](p.api.ListDiscovered(ctx, client.ListDiscoveredParams{}))
	return &discoveredData{list.Items, mayOperate(ctx)}, err
}

// adoptData is adopt.html: a machine that is to be, of a NIC.
type adoptData struct {
	NIC                          api.Stranger
	Code                         string // as somebody typed it; empty: it was chosen from the list
	Name, Role, Cluster, Address string
	Clusters                     []string
	MayHold                      bool // it may be without a cluster
	Problems                     problems
}

// adopt asks what a NIC of the list is to be.
func (p *Pages) adopt(r *http.Request) (*page, error) {
	nic, err := p.stranger(r.Context(), r.PathValue("mac"))
	if err != nil {
		return nil, err
	}
	return p.adoption(r.Context(), nic, "")
}

func (p *Pages) stranger(ctx context.Context, mac string) (api.Stranger, error) {
	list, err := client.Answer[api.List[api.Stranger]](p.api.ListDiscovered(ctx, client.ListDiscoveredParams{Mac: mac}))
	if err != nil {
		return api.Stranger{}, err
	}
	if mac == "" || len(list.Items) == 0 {
		return api.Stranger{}, &admin.Refusal{Status: http.StatusNotFound, Reason: "No NIC " + mac + " is among those that belong to no machine. Somebody may have registered it by now."}
	}
	return list.Items[0], nil
}

// adoption is the form with what is most likely meant.
func (p *Pages) adoption(ctx context.Context, nic api.Stranger, code string) (*page, error) {
	data := &adoptData{NIC: nic, Code: code, Role: "worker", Name: nic.Suggestion.Name, Address: nic.Suggestion.Address}
	if err := p.clusterChoice(ctx, data); err != nil {
		return nil, err
	}
	if len(data.Clusters) == 1 {
		data.Cluster = data.Clusters[0]
	}
	return data.page(), nil
}

func (d *adoptData) page() *page {
	return &page{name: "adopt", title: "Adopt " + d.NIC.MAC, data: d}
}

func (p *Pages) clusterChoice(ctx context.Context, d *adoptData) (err error) {
	d.Clusters, err = p.clusterNames(ctx)
	d.MayHold = wholeRack(ctx)
	return err
}

// clusterNames are the clusters of who asks, sorted.
func (p *Pages) clusterNames(ctx context.Context) (names []string, err error) {
	for c, err := range client.All[api.Cluster](func(after string) (*http.Response, error) {
		return p.api.ListClusters(ctx, client.ListClustersParams{After: after, Limit: api.MaxLimit})
	}) {
		if err != nil {
			return nil, err
		}
		names = append(names, c.Name)
	}
	return names, nil
}

// register makes a machine of a NIC: by the code that somebody read off its console, or
// by its MAC.
func (p *Pages) register(r *http.Request) (*page, error) {
	d := &adoptData{Code: r.PostFormValue("code"), Name: r.PostFormValue("name"), Role: r.PostFormValue("role"), Cluster: r.PostFormValue("cluster"), Address: r.PostFormValue("address")}
	var err error
	if d.Code != "" {
		d.NIC, err = client.Answer[api.Stranger](p.api.GetDiscovered(r.Context(), d.Code))
	} else {
		d.NIC, err = p.stranger(r.Context(), r.PostFormValue("mac"))
	}
	if err != nil {
		return nil, err
	}
	var m api.Machine
	if d.Code != "" {
		m, err = client.Answer[api.Machine](p.api.AdoptMachine(r.Context(), d.Code, api.Adoption{Name: d.Name, Role: d.Role, Cluster: d.Cluster, Address: d.Address}))
	} else {
		spec := api.MachineSpec{Name: d.Name, MACs: []string{d.NIC.MAC}, Role: d.Role, Cluster: d.Cluster, Address: d.Address}
		if spec.Address == "" {
			spec.Subnet = d.NIC.Subnet
		}
		m, err = client.Answer[api.Machine](p.api.CreateMachine(r.Context(), spec))
	}
	if err != nil {
		var again bool
		if d.Problems, again = problemsOf(err, "name", "role", "cluster", "address"); !again {
			return nil, err
		}
		if err := p.clusterChoice(r.Context(), d); err != nil {
			return nil, err
		}
		form := d.page()
		form.status = refusal(err).Status
		return form, nil
	}
	words := m.Name + " is registered, with the address " + m.Address + ". "
	if m.Cluster == "" {
		words += "It has no cluster, and is held until it has one."
	} else {
		words += "It goes on with its boot within half a minute if it waits with a code; else it is installed when it next boots from the network."
	}
	return done(m.Name, words, pageLink{"/machines/" + m.Name, "See " + m.Name}, pageLink{"/discovered", "The other discovered ones"}), nil
}

// doneData is done.html: what was done, and where to go on.
type doneData struct {
	Words string
	Links []pageLink
}

type pageLink struct{ Path, Text string }

// done says that something was done.
func done(title, words string, links ...pageLink) *page {
	return &page{name: "done", title: cmp.Or(title, "Done"), data: doneData{words, links}}
}
