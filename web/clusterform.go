package web

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"net/http"
	"reflect"
	"slices"
	"strconv"
	"strings"

	"github.com/provisiond/provisiond/api"
	"github.com/provisiond/provisiond/client"
	"github.com/provisiond/provisiond/internal/admin"
)

// The form of what an operator says of a cluster: for a new one, and to change one, which is
// checked while it is written.

// clusterFields are the fields of an api.ClusterSpec, but for its name.
var clusterFields = fieldsOf(reflect.TypeFor[api.ClusterSpec](), []formField{
	{Name: "endpoint", Label: "Endpoint"},
	{Name: "talosVersion", Label: "Talos"},
	{Name: "kubernetesVersion", Label: "Kubernetes"},
	{Name: "install.disk", Label: "Install disk"},
	{Name: "approval", Label: "Approval"},
	{Name: "patches", Label: "Patches for all machines"},
	{Name: "controlPlanePatches", Label: "Patches for control planes"},
	{Name: "workerPatches", Label: "Patches for workers"},
	{Name: "delivery", Label: "Delivery of configs", Rare: true},
	{Name: "addressing", Label: "Addressing", Rare: true},
	{Name: "schematic", Label: "Schematic", Rare: true},
	{Name: "install.diskSelector", Label: "Install disk selector", Rare: true},
	{Name: "install.image", Label: "Installer image", Rare: true},
	{Name: "podSubnets", Label: "Pod subnets", Rare: true},
	{Name: "serviceSubnets", Label: "Service subnets", Rare: true},
	{Name: "dns", Label: "Name servers", Rare: true},
	{Name: "ntp", Label: "Time servers", Rare: true},
	{Name: "kernelArgs", Label: "Kernel arguments", Rare: true},
})

// nameField is that of a cluster that is to be.
var nameField = fieldsOf(reflect.TypeFor[api.ClusterSpec](), []formField{{Name: "name", Label: "Name"}})

// clusterFormData is cluster-form.html.
type clusterFormData struct {
	specForm
	Name string // of the cluster; empty: it is to be
	Rev  string // that was looked at
	More string // the list that another patch was asked for

	Check   *api.ClusterCheck // what would come of it; nil: that was not asked
	Changed []fieldNow        // what is stored and not as it is written here, where somebody else changed the cluster meanwhile
}

// fieldNow is a field as it is stored.
type fieldNow struct{ Label, Text string }

func (p *Pages) askNewCluster(r *http.Request) (*page, error) {
	if !wholeRack(r.Context()) {
		return nil, &admin.Refusal{Status: http.StatusForbidden, Reason: "A new cluster is about the whole rack, and you are limited to " + strings.Join(admin.PrincipalOf(r.Context()).Clusters, ", ") + "."}
	}
	d := &clusterFormData{}
	d.Fields = slices.Concat(nameField, clusterFields)
	return d.page(), nil
}

func (p *Pages) newCluster(r *http.Request) (*page, error) {
	d := &clusterFormData{More: r.PostFormValue("more")}
	d.Fields = slices.Concat(nameField, clusterFields)
	d.read(r.PostForm)
	if d.More != "" {
		return d.page(), nil
	}
	written, err := d.patch(api.ClusterSpec{})
	if err != nil {
		return d.again(err)
	}
	text, err := json.Marshal(written)
	if err != nil {
		return nil, err
	}
	var spec api.ClusterSpec
	if err := json.Unmarshal(text, &spec); err != nil {
		return nil, err
	}
	c, err := client.Answer[api.Cluster](p.api.CreateCluster(r.Context(), spec))
	if err != nil {
		return d.again(err)
	}
	return done("Cluster "+c.Name, "Cluster "+c.Name+" is created, with secrets of its own. Machines that are registered in it are installed when they boot from the network.",
		pageLink{"/clusters/" + c.Name, "See cluster " + c.Name}), nil
}

func (d *clusterFormData) page() *page {
	title := "New cluster"
	if d.Name != "" {
		title = "Change cluster " + d.Name
	}
	return &page{name: "cluster-form", title: title, data: d}
}

// again is the form with what was wrong; an error that no other entry would mend stays one.
func (d *clusterFormData) again(err error) (*page, error) {
	details, ok := detailsOf(err)
	if !ok {
		return nil, err
	}
	d.wrong(details)
	form := d.page()
	form.status = refusal(err).Status
	return form, nil
}

func (p *Pages) editCluster(r *http.Request) (*page, error) {
	d, c, err := p.clusterForm(r.Context(), r.PathValue("cluster"))
	if err != nil {
		return nil, err
	}
	return d.page(), d.fill(c.ClusterSpec)
}

// clusterForm is an empty form for a cluster as it is.
func (p *Pages) clusterForm(ctx context.Context, name string) (*clusterFormData, *api.Cluster, error) {
	c, err := client.Answer[api.Cluster](p.api.GetCluster(ctx, name))
	if err != nil {
		return nil, nil, err
	}
	d := &clusterFormData{Name: c.Name, Rev: etagOf(c.Rev)}
	d.Fields = slices.Clone(clusterFields)
	return d, &c, nil
}

// etagOf is the ETag of a revision.
func etagOf(rev uint64) string { return strconv.Quote(strconv.FormatUint(rev, 10)) }

// checkCluster says what would come of what is written, while it is.
func (p *Pages) checkCluster(r *http.Request) (*page, error) {
	d, c, err := p.clusterForm(r.Context(), r.PathValue("cluster"))
	if err != nil {
		return nil, err
	}
	d.Rev = r.PostFormValue("rev")
	d.read(r.PostForm)
	written, err := d.patch(c.ClusterSpec)
	var check api.ClusterCheck
	if err == nil {
		check, err = client.Answer[api.ClusterCheck](p.api.CheckCluster(r.Context(), c.Name, written))
	}
	if err != nil {
		form, err := d.again(err)
		if err == nil {
			form.status = http.StatusOK // htmx shows no other
		}
		return form, err
	}
	d.Check = &check
	d.wrong(check.Problems)
	return d.page(), nil
}

func (p *Pages) changeCluster(r *http.Request) (*page, error) {
	d, c, err := p.clusterForm(r.Context(), r.PathValue("cluster"))
	if err != nil {
		return nil, err
	}
	now := d.Rev
	d.Rev, d.More = r.PostFormValue("rev"), r.PostFormValue("more")
	d.read(r.PostForm)
	if d.More != "" {
		return d.page(), nil
	}
	written, err := d.patch(c.ClusterSpec)
	if err != nil {
		return d.again(err)
	}
	err = client.Done(p.api.PatchCluster(r.Context(), c.Name, client.PatchClusterParams{IfMatch: d.Rev}, written))
	if no := refusal(err); no != nil && no.Status == http.StatusPreconditionFailed {
		d.Rev = now // who has seen what changed may save again
		if err := d.compare(c.ClusterSpec); err != nil {
			return nil, err
		}
		form := d.page()
		form.status = no.Status
		return form, nil
	}
	if err != nil {
		return d.again(err)
	}
	return done("Cluster "+c.Name, "Cluster "+c.Name+" is changed. Machines that boot from the network get their configs accordingly; a rollout gives them to machines that run.",
		pageLink{"/clusters/" + c.Name, "See cluster " + c.Name}, pageLink{"/clusters/" + c.Name + "/rollout", "Roll out"}), nil
}

// compare finds the fields that are stored otherwise than they are written here.
func (d *clusterFormData) compare(stored api.ClusterSpec) error {
	is := specForm{Fields: slices.Clone(clusterFields)}
	if err := is.fill(stored); err != nil {
		return err
	}
	for i, f := range d.Fields {
		if strings.TrimSpace(f.Text()) != strings.TrimSpace(is.Fields[i].Text()) {
			d.Changed = append(d.Changed, fieldNow{f.Label, is.Fields[i].Text()})
		}
	}
	if len(d.Changed) == 0 {
		d.Changed = []fieldNow{{"Nothing that is not as it is here", ""}}
	}
	return nil
}

// RareOpen reports whether what most leave as it is has something in it, or is wrong.
func (d *clusterFormData) RareOpen() bool {
	return slices.ContainsFunc(d.Fields, func(f formField) bool {
		return f.Rare && (f.Written() && f.Name != "podSubnets" && f.Name != "serviceSubnets" || d.Problems.Of(f.Name) != "")
	})
}

// Wrong names what is wrong.
func (d *clusterFormData) Wrong() string {
	var labels []string
	for _, f := range d.Fields {
		if slices.ContainsFunc(slices.Collect(maps.Keys(d.Problems)), func(at string) bool { return at == f.Name || strings.HasPrefix(at, f.Name+"[") }) {
			labels = append(labels, f.Label)
		}
	}
	return strings.Join(labels, ", ")
}

// Said is what came of the check in words; empty: nothing was checked.
func (d *clusterFormData) Said() string {
	switch c := d.Check; {
	case c == nil || len(c.Problems) > 0:
		return ""
	case c.Checked == 0:
		return "This can be saved. No machine belongs to the cluster yet."
	case len(c.Machines) > 0:
		return fmt.Sprintf("This can be saved, but %d of %d machines would be left without a config:", len(c.Machines), c.Checked)
	case c.Unchecked > 0:
		return fmt.Sprintf("This can be saved. Each of the first %d machines would have a config; %d more were not looked at.", c.Checked, c.Unchecked)
	default:
		return fmt.Sprintf("This can be saved. Each of its machines (%d) would have a config.", c.Checked)
	}
}
