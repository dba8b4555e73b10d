package web

import (
	"cmp"
	"net/http"
	"strings"

	"github.com/provisiond/provisiond/api"
	"github.com/provisiond/provisiond/client"
)

// A machine's config in other ways than by its netboot: from URLs, or as a volume.

// seedData is seed.html.
type seedData struct {
	api.Machine
	For, Format string // as somebody chose them
	Problems    problems
}

func (p *Pages) askSeed(r *http.Request) (*page, error) {
	m, err := client.Answer[api.Machine](p.api.GetMachine(r.Context(), named(r)))
	if err != nil {
		return nil, err
	}
	d := &seedData{Machine: m, For: strings.TrimSpace(r.PostFormValue("for")), Format: cmp.Or(r.PostFormValue("format"), api.ISOMetal)}
	return &page{name: "seed", title: "Other ways to the config of " + m.Name, data: d}, nil
}

// seed begins a boot whose config is read from URLs, and shows them this once.
func (p *Pages) seed(r *http.Request) (*page, error) {
	order := api.SeedOrder{For: strings.TrimSpace(r.PostFormValue("for"))}
	seed, err := client.Answer[api.Seed](p.api.SeedMachine(r.Context(), named(r), order))
	if err != nil {
		return p.noSeed(r, err)
	}
	return &page{name: "seeded", title: "Seed of " + seed.Machine, data: seed}, nil
}

// iso hands over a volume with the machine's config.
func (p *Pages) iso(r *http.Request) (*page, error) {
	order := api.ISOOrder{Format: cmp.Or(r.PostFormValue("format"), api.ISOMetal)}
	m, err := client.Answer[api.Machine](p.api.GetMachine(r.Context(), named(r)))
	if err != nil {
		return nil, err
	}
	volume, err := client.Answer[[]byte](p.api.MakeMachineIso(r.Context(), m.Name, order))
	if err != nil {
		return p.noSeed(r, err)
	}
	return &page{file: &file{name: m.Name + "-" + order.Format + ".iso", kind: "application/vnd.efi.iso", content: volume}}, nil
}

// noSeed is the form again, with why there is none.
func (p *Pages) noSeed(r *http.Request, err error) (*page, error) {
	bad, again := problemsOf(err, "for", "format")
	if !again {
		return nil, err
	}
	form, asking := p.askSeed(r)
	if asking != nil {
		return nil, asking
	}
	form.data.(*seedData).Problems = bad
	form.status = refusal(err).Status
	return form, nil
}
