package web

import (
	"net/http"
	"strings"

	"github.com/provisiond/provisiond/api"
	"github.com/provisiond/provisiond/client"
	"github.com/provisiond/provisiond/internal/admin"
)

// A machine that was started by hand, and the person who reads its console.

// maintenanceData is maintenance.html. It does not say the fingerprint, which is to be read
// off the machine.
type maintenanceData struct {
	api.Machine
	Typed    string
	Problems problems
}

func (p *Pages) askMaintenance(r *http.Request) (*page, error) {
	m, err := client.Answer[api.Machine](p.api.GetMachine(r.Context(), named(r)))
	if err != nil {
		return nil, err
	}
	if m.Facts.Maintenance == nil {
		return nil, &admin.Refusal{Status: http.StatusConflict, Reason: m.Name + " does not wait in maintenance mode, as far as is known. One that does is found within minutes."}
	}
	return &page{name: "maintenance", title: "Confirm " + m.Name + "?", data: &maintenanceData{Machine: m, Typed: r.PostFormValue("fingerprint")}}, nil
}

func (p *Pages) confirmMaintenance(r *http.Request) (*page, error) {
	typed := strings.TrimSpace(r.PostFormValue("fingerprint"))
	m, err := client.Answer[api.Machine](p.api.ConfirmMachine(r.Context(), named(r), api.Confirmation{Fingerprint: typed}))
	if err == nil {
		return done(m.Name, m.Name+" is confirmed. It is given its config within half a minute.", pageLink{machineAt(m.Name), "See " + m.Name}), nil
	}
	bad, again := problemsOf(err, "fingerprint")
	if !again {
		return nil, err
	}
	form, asking := p.askMaintenance(r)
	if asking != nil {
		return nil, asking
	}
	form.data.(*maintenanceData).Problems = bad
	form.status = refusal(err).Status
	return form, nil
}
