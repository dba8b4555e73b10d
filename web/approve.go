package web

import (
	"net/http"
	"slices"

	"github.com/provisiond/provisiond/api"
	"github.com/provisiond/provisiond/client"
	"github.com/provisiond/provisiond/internal/admin"
	"github.com/provisiond/provisiond/internal/inventory"
)

// approveData is approve.html. It has no codes but the one that the QR code on the console
// of a machine brought: they are to be read off the machines.
type approveData struct {
	Code    string
	Waiting []api.Approval // the longest first
}

func (p *Pages) approve(r *http.Request) (*page, error) {
	waits, err := client.Answer[api.List[api.Approval]](p.api.ListApprovals(r.Context()))
	if err != nil {
		return nil, err
	}
	slices.SortFunc(waits.Items, func(a, b api.Approval) int { return a.Asked.Compare(b.Asked) })
	return &page{name: "approve", title: "Approve a machine", data: approveData{inventory.NormalUserCode(r.FormValue("code")), waits.Items}}, nil
}

// confirmData is confirm.html.
type confirmData struct {
	Code string
	api.Approval
	Role string
	MACs []string
}

func (p *Pages) confirm(r *http.Request) (*page, error) {
	code, err := codeOf(r)
	if err != nil {
		return nil, err
	}
	a, err := client.Answer[api.Approval](p.api.GetApproval(r.Context(), code))
	switch {
	case err != nil:
		// A console shows either kind of code in the same way.
		nic, other := client.Answer[api.Stranger](p.api.GetDiscovered(r.Context(), code))
		if other != nil {
			return nil, err
		}
		return p.adoption(r.Context(), nic, code)
	case a.State != "waiting":
		return decided(a), nil
	case !p.now().Before(a.Expires):
		return nil, &admin.Refusal{Status: http.StatusConflict, Reason: "The code has expired: " + a.Machine + " shows another by now."}
	}
	m, err := client.Answer[api.Machine](p.api.GetMachine(r.Context(), a.Machine))
	if err != nil {
		return nil, err
	}
	return &page{name: "confirm", title: "Approve " + a.Machine + "?", data: confirmData{code, a, m.Role, m.MACs}}, nil
}

func (p *Pages) decide(r *http.Request) (*page, error) {
	decision := r.PostFormValue("decision")
	if decision != "approve" && decision != "deny" {
		return nil, &admin.Refusal{Status: http.StatusBadRequest, Reason: "The form says neither approve nor deny."}
	}
	code, err := codeOf(r)
	if err != nil {
		return nil, err
	}
	a, err := client.Answer[api.Approval](p.api.DecideApproval(r.Context(), code, api.Decision{Approve: decision == "approve"}))
	if err != nil {
		return nil, err
	}
	return decided(a), nil
}

// decided is decided.html, of an api.Approval.
func decided(a api.Approval) *page { return &page{name: "decided", title: a.Machine, data: a} }

// codeOf is the code that somebody typed.
func codeOf(r *http.Request) (string, error) {
	code := inventory.NormalUserCode(r.FormValue("code"))
	if code == "" {
		return "", &admin.Refusal{Status: http.StatusBadRequest, Reason: "Type the code that the machine shows."}
	}
	return code, nil
}
