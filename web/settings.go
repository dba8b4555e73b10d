package web

import (
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/provisiond/provisiond/api"
	"github.com/provisiond/provisiond/client"
)

// What provisiond runs with, and who has access by tokens.

// settingsData is settings.html.
type settingsData struct {
	Settings api.Settings
	Tokens   []api.Token
	Now      time.Time
	Form     tokenForm
}

// tokenForm is the form of a token that is to be.
type tokenForm struct {
	Name, Role, Days string
	Clusters         []clusterChoice
	Problems         problems
}

type clusterChoice struct {
	Name   string
	Chosen bool
}

func (p *Pages) settings(r *http.Request) (*page, error) {
	return p.settingsPage(r, tokenForm{Role: "read", Days: "90"})
}

func (p *Pages) settingsPage(r *http.Request, form tokenForm) (*page, error) {
	d := &settingsData{Form: form, Now: p.now()}
	var err error
	if d.Settings, err = client.Answer[api.Settings](p.api.GetSettings(r.Context())); err != nil {
		return nil, err
	}
	tokens, err := client.Answer[api.List[api.Token]](p.api.ListTokens(r.Context()))
	if err != nil {
		return nil, err
	}
	d.Tokens = tokens.Items
	names, err := p.clusterNames(r.Context())
	if err != nil {
		return nil, err
	}
	for _, name := range names {
		d.Form.Clusters = append(d.Form.Clusters, clusterChoice{name, slices.Contains(r.PostForm["cluster"], name)})
	}
	return &page{name: "settings", title: "Settings", data: d}, nil
}

// Expired reports whether a token is good no longer.
func (d *settingsData) Expired(t api.Token) bool {
	return !t.Expires.IsZero() && !d.Now.Before(t.Expires)
}

// tokenLives are how long a token can be made to be good, in days; empty: for ever.
var tokenLives = []struct{ Days, Words string }{{"1", "a day"}, {"30", "30 days"}, {"90", "90 days"}, {"365", "a year"}, {"", "for ever"}}

// maxTokenDays is the longest that a token is made for here, unless it is for ever.
const maxTokenDays = 3650

// createToken shows the text of a new token, this once.
func (p *Pages) createToken(r *http.Request) (*page, error) {
	form := tokenForm{Name: strings.TrimSpace(r.PostFormValue("name")), Role: r.PostFormValue("role"), Days: r.PostFormValue("days")}
	spec := api.TokenSpec{Name: form.Name, Role: form.Role, Clusters: r.PostForm["cluster"]}
	if form.Days == "" {
		spec.Never = true
	} else {
		days, err := strconv.Atoi(form.Days)
		if err != nil || days < 1 || days > maxTokenDays {
			form.Problems = problems{"expires": {"Choose one of these."}}
		}
		spec.Expires = p.now().AddDate(0, 0, days).UTC().Truncate(time.Second)
	}
	var made api.NewToken
	var err error
	if form.Problems == nil {
		made, err = client.Answer[api.NewToken](p.api.CreateToken(r.Context(), spec))
	}
	status := http.StatusUnprocessableEntity
	if err != nil {
		var ok bool
		if form.Problems, ok = problemsOf(err, "name", "role", "expires", "clusters"); !ok {
			return nil, err
		}
		status = refusal(err).Status
	}
	if form.Problems != nil {
		again, err := p.settingsPage(r, form)
		if err == nil {
			again.status = status
		}
		return again, err
	}
	return &page{name: "token", title: "Token " + made.Name, data: made}, nil
}

func (p *Pages) askRevokeToken(r *http.Request) (*page, error) {
	return &page{name: "revoke-token", title: "Revoke token " + r.PathValue("token") + "?", data: r.PathValue("token")}, nil
}

func (p *Pages) revokeToken(r *http.Request) (*page, error) {
	name := r.PathValue("token")
	if err := client.Done(p.api.RevokeToken(r.Context(), name)); err != nil {
		return nil, err
	}
	return done("Token "+name, "Token "+name+" is revoked: it is good for nothing from now on, and sessions that were begun with it have ended.", pageLink{"/settings", "Settings"}), nil
}
