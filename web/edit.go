package web

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"strconv"
	"strings"

	"github.com/provisiond/provisiond/api"
	"github.com/provisiond/provisiond/client"
	"github.com/provisiond/provisiond/internal/admin"
)

// To say what a machine is to be: a new one, or one that is there.

// editData is edit.html.
type editData struct {
	Machine  string // the one that is changed; empty: a new one
	Rev      uint64 // of it, as the form began
	Was      string // the form as it began, as JSON
	Runs     bool   // it has its config, and so may run
	Force    bool   // change it even so
	Form     machineForm
	Clusters []string
	MayHold  bool // it may be without a cluster
	Problems problems
	Changed  []meanwhile
	Check    *api.MachineCheck // nil: nothing was checked
}

// Field is a field as the form calls it, of its place in a request.
func (d *editData) Field(location string) string {
	field := strings.TrimPrefix(location, "body.")
	if index, ok := strings.CutPrefix(field, "patches["); ok {
		if n, err := strconv.Atoi(index[:max(0, strings.IndexByte(index, ']'))]); err == nil {
			return fmt.Sprintf("Patch %d", n+1)
		}
	}
	for _, t := range d.Form.texts() {
		if field == t.field || strings.HasPrefix(field, t.field+".") || strings.HasPrefix(field, t.field+"[") {
			return t.label
		}
	}
	return ""
}

// fields are those of the form, as the API names them.
func (d *editData) fields() []string {
	var out []string
	for _, t := range d.Form.texts() {
		out = append(out, t.field)
	}
	for i := range d.Form.Patches {
		out = append(out, fmt.Sprintf("patches[%d]", i))
	}
	return out
}

func (p *Pages) editPage(r *http.Request, d *editData) (*page, error) {
	var err error
	if d.Clusters, err = p.clusterNames(r.Context()); err != nil {
		return nil, err
	}
	d.MayHold = wholeRack(r.Context())
	title := "Edit " + d.Machine
	if d.Machine == "" {
		title = "Add a machine"
	}
	return &page{name: "edit", title: title, data: d}, nil
}

// again shows the form with what is wrong with it.
func (p *Pages) again(r *http.Request, d *editData, err error) (*page, error) {
	var ok bool
	if d.Problems, ok = problemsOf(err, d.fields()...); !ok {
		return nil, err
	}
	form, failed := p.editPage(r, d)
	if failed == nil {
		form.status = refusal(err).Status
	}
	return form, failed
}

func (p *Pages) askNew(r *http.Request) (*page, error) {
	d := &editData{Form: formOf(r)}
	if d.Form.MACs == "" {
		d.Form.MACs = r.FormValue("mac")
	}
	if d.Form.Role == "" {
		d.Form.Role = "worker"
	}
	return p.editPage(r, d)
}

func (p *Pages) create(r *http.Request) (*page, error) {
	d := &editData{Form: formOf(r)}
	spec, err := d.Form.spec()
	if err == nil {
		var m api.Machine
		if m, err = client.Answer[api.Machine](p.api.CreateMachine(r.Context(), spec)); err == nil {
			return &page{to: machineAt(m.Name)}, nil
		}
	}
	return p.again(r, d, err)
}

// begun is the form of a machine as it is now.
func begun(m *api.Machine) *editData {
	d := &editData{Machine: m.Name, Rev: m.Rev, Form: formOfMachine(m), Runs: !m.Facts.ConfigAt.IsZero() || !m.Facts.APIAt.IsZero()}
	was, err := json.Marshal(d.Form)
	if err != nil {
		panic(err) // texts only
	}
	d.Was = string(was)
	return d
}

func (p *Pages) edit(r *http.Request) (*page, error) {
	m, err := client.Answer[api.Machine](p.api.GetMachine(r.Context(), named(r)))
	if err != nil {
		return nil, err
	}
	return p.editPage(r, begun(&m))
}

// edited is the form as it was sent, the change that it asks for, and the form as it began.
func (p *Pages) edited(r *http.Request) (d *editData, m api.Machine, was machineForm, err error) {
	if m, err = client.Answer[api.Machine](p.api.GetMachine(r.Context(), named(r))); err != nil {
		return nil, m, was, err
	}
	d = begun(&m)
	if err := json.Unmarshal([]byte(r.FormValue("was")), &was); err != nil {
		return nil, m, was, &admin.Refusal{Status: http.StatusBadRequest, Reason: "The form does not say what it began with: load it again."}
	}
	d.Was, d.Force = r.FormValue("was"), r.FormValue("force") != ""
	d.Rev, err = strconv.ParseUint(r.FormValue("rev"), 10, 64)
	if err != nil {
		d.Rev = 0 // no record has it
	}
	d.Form = formOf(r)
	d.Form.Name, d.Form.Subnet = was.Name, was.Subnet // not in the form
	return d, m, was, nil
}

// change writes what the form says, if the machine still is as it was when the form began.
func (p *Pages) change(r *http.Request) (*page, error) {
	d, m, was, err := p.edited(r)
	if err != nil {
		return nil, err
	}
	patch, err := d.Form.patch(&was)
	if err == nil {
		err = client.Done(p.api.PatchMachine(r.Context(), m.Name, client.PatchMachineParams{Force: d.Force, IfMatch: etagOf(d.Rev)}, patch))
	}
	var problem *client.Problem
	switch {
	case err == nil:
		return &page{to: machineAt(m.Name)}, nil
	case errors.As(err, &problem) && problem.Status == http.StatusPreconditionFailed:
		return p.conflict(r, d, &m, &was)
	}
	return p.again(r, d, err)
}

// conflict shows the form on top of what somebody else made of the machine meanwhile.
func (p *Pages) conflict(r *http.Request, d *editData, m *api.Machine, was *machineForm) (*page, error) {
	now := begun(m)
	d.Changed = d.Form.rebase(was, &now.Form)
	d.Rev, d.Was = now.Rev, now.Was
	form, err := p.editPage(r, d)
	if err == nil {
		form.status = http.StatusPreconditionFailed
	}
	return form, err
}

// checkEdit is the form with what would come of it, while somebody types.
func (p *Pages) checkEdit(r *http.Request) (*page, error) {
	d, m, was, err := p.edited(r)
	if err != nil {
		return nil, err
	}
	patch, err := d.Form.patch(&was)
	if err != nil {
		details, _ := detailsOf(err)
		d.Check = &api.MachineCheck{Problems: details}
		return p.editPage(r, d)
	}
	check, err := client.Answer[api.MachineCheck](p.api.CheckMachine(r.Context(), m.Name, client.CheckMachineParams{Force: d.Force}, patch))
	if err != nil {
		return nil, err
	}
	d.Check = &check
	return p.editPage(r, d)
}
