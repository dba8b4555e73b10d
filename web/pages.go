package web

import (
	"cmp"
	"net/http"
	"slices"

	"github.com/provisiond/provisiond/api"
	"github.com/provisiond/provisiond/internal/admin"
	"github.com/provisiond/provisiond/internal/inventory"
)

// What each page shows, and how it is found out.

// homeData is home.html.
type homeData struct {
	Status  api.Status
	Phases  []phase
	Waiting int // machines that wait to be approved
}

// phase is how many machines are in it.
type phase struct {
	Name  string
	Count int
}

func (p *Pages) home(r *http.Request) (*page, error) {
	st, err := p.operators.Status(r.Context())
	if err != nil {
		return nil, err
	}
	waits, err := p.operators.Approvals(r.Context())
	if err != nil {
		return nil, err
	}
	machines := map[string]bool{} // one may have asked more than once
	for _, a := range waits {
		machines[a.Machine] = true
	}
	data := homeData{Status: st, Waiting: len(machines)}
	for name, n := range st.Phases {
		data.Phases = append(data.Phases, phase{name, n})
	}
	slices.SortFunc(data.Phases, func(a, b phase) int { return cmp.Or(cmp.Compare(b.Count, a.Count), cmp.Compare(a.Name, b.Name)) })
	return &page{name: "home", title: "The rack", data: data}, nil
}

// approveData is approve.html. It has no codes but the one that the QR code on the console
// of a machine brought: they are to be read off the machines.
type approveData struct {
	Code    string
	Waiting []api.Approval // the longest first
}

func (p *Pages) approve(r *http.Request) (*page, error) {
	waits, err := p.operators.Approvals(r.Context())
	if err != nil {
		return nil, err
	}
	slices.SortFunc(waits, func(a, b api.Approval) int { return a.Asked.Compare(b.Asked) })
	return &page{name: "approve", title: "Approve a machine", data: approveData{inventory.NormalUserCode(r.FormValue("code")), waits}}, nil
}

// confirmData is confirm.html.
type confirmData struct {
	Code string
	api.Approval
	Role inventory.Role
	MACs []inventory.MAC
}

func (p *Pages) confirm(r *http.Request) (*page, error) {
	code := inventory.NormalUserCode(r.FormValue("code"))
	a, err := p.operators.Approval(r.Context(), code)
	switch {
	case err != nil:
		return nil, err
	case a.State != "waiting":
		return decided(a), nil
	case !p.now().Before(a.Expires):
		return nil, &admin.Refusal{Status: http.StatusConflict, Reason: "The code has expired: " + a.Machine + " shows another by now."}
	}
	v, err := p.operators.Machine(r.Context(), a.Machine)
	if err != nil {
		return nil, err
	}
	return &page{name: "confirm", title: "Approve " + a.Machine + "?", data: confirmData{code, a, v.Machine.Role, v.Machine.MACs}}, nil
}

func (p *Pages) decide(r *http.Request) (*page, error) {
	decision := r.PostFormValue("decision")
	if decision != "approve" && decision != "deny" {
		return nil, &admin.Refusal{Status: http.StatusBadRequest, Reason: "The form says neither approve nor deny."}
	}
	a, err := p.operators.Decide(r.Context(), r.PostFormValue("code"), decision == "approve")
	if err != nil {
		return nil, err
	}
	return decided(a), nil
}

// decided is decided.html, of an api.Approval.
func decided(a api.Approval) *page { return &page{name: "decided", title: a.Machine, data: a} }
