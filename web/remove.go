package web

import (
	"net/http"
	"strconv"

	"github.com/provisiond/provisiond/api"
	"github.com/provisiond/provisiond/client"
)

// removeData is remove.html.
type removeData struct {
	api.Machine
	Destroy string // the cluster that may be lost with it, as somebody typed it
	No      string // why it was not removed
}

// Runs reports whether it has its config, and so may run.
func (d *removeData) Runs() bool { return !d.Facts.ConfigAt.IsZero() || !d.Facts.APIAt.IsZero() }

func (p *Pages) askRemove(r *http.Request) (*page, error) {
	m, err := client.Answer[api.Machine](p.api.GetMachine(r.Context(), named(r)))
	if err != nil {
		return nil, err
	}
	d := &removeData{Machine: m, Destroy: r.PostFormValue("destroyCluster")}
	return &page{name: "remove", title: "Remove " + m.Name, data: d}, nil
}

// remove forgets the machine, if it still is as whoever decided saw it.
func (p *Pages) remove(r *http.Request) (*page, error) {
	rev, err := strconv.ParseUint(r.FormValue("rev"), 10, 64)
	if err != nil {
		rev = 0 // no record has it
	}
	params := client.DeleteMachineParams{Force: r.FormValue("force") != "", DestroyCluster: r.PostFormValue("destroyCluster"), IfMatch: etagOf(rev)}
	err = client.Done(p.api.DeleteMachine(r.Context(), named(r), params))
	if err == nil {
		return &page{name: "acted", title: "Removed", data: &actedData{Done: 1, Results: []acted{{Name: named(r), Gone: true}}}}, nil
	}
	no := refusal(err)
	if no == nil || no.Status == http.StatusNotFound || no.Status == http.StatusForbidden {
		return nil, err
	}
	form, err := p.askRemove(r)
	if err != nil {
		return nil, err
	}
	d := form.data.(*removeData)
	d.No = no.Reason
	if no.Status == http.StatusPreconditionFailed {
		d.No = "It was changed meanwhile: look at it again."
	}
	form.status = no.Status
	return form, nil
}
