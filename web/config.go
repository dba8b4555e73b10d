package web

import (
	"fmt"
	"net/http"
	"slices"

	"github.com/provisiond/provisiond/api"
	"github.com/provisiond/provisiond/client"
	"github.com/provisiond/provisiond/internal/admin"
)

// The config that a machine would get now: where each part of it comes from, how it differs
// from what the machine has, and to give it to a machine that runs.

// configData is config.html.
type configData struct {
	Machine api.Machine
	Parts   []configPart
	Legend  []origin // those that there are, in order
	No      string   // why there is no config
	Running bool     // the machine was asked what it runs
	Diff    *api.Diff
	NoDiff  string // why there is none

	MayOperate bool
}

// configPart is consecutive lines of one origin.
type configPart struct {
	Text string
	From origin
}

// origin is where a part comes from.
type origin struct {
	Kind   string // as in api.ConfigBlock
	Letter string // what stands beside its lines
	Said   string
}

// originOf is that of a block of a machine's config.
func originOf(b *api.ConfigBlock, m *api.Machine) origin {
	n := 1
	if b.Patch != nil {
		n += *b.Patch
	}
	switch b.Origin {
	case "cluster":
		return origin{b.Origin, fmt.Sprintf("C%d", n), fmt.Sprintf("patch %d of cluster %s", n, m.Cluster)}
	case "role":
		return origin{b.Origin, fmt.Sprintf("R%d", n), fmt.Sprintf("patch %d of cluster %s for each %s", n, m.Cluster, roleWords(m.Role))}
	case "machine":
		return origin{b.Origin, fmt.Sprintf("M%d", n), fmt.Sprintf("patch %d of the machine itself", n)}
	}
	return origin{b.Origin, "B", "the base, made here of the inventory and of Talos' defaults"}
}

func (p *Pages) config(r *http.Request) (*page, error) {
	m, err := client.Answer[api.Machine](p.api.GetMachine(r.Context(), named(r)))
	if err != nil {
		return nil, err
	}
	d := &configData{Machine: m, Running: r.FormValue("running") != "", MayOperate: mayOperate(r.Context())}
	out := &page{name: "config", title: "Config of " + m.Name, data: d}
	origins, err := client.Answer[api.ConfigOrigins](p.api.GetMachineConfigOrigins(r.Context(), m.Name))
	if err != nil {
		d.No = p.whyNot(r.Context(), err)
		return out, nil
	}
	for i := range origins.Blocks {
		b := &origins.Blocks[i]
		from := originOf(b, &m)
		d.Parts = append(d.Parts, configPart{b.Text, from})
		if !slices.Contains(d.Legend, from) {
			d.Legend = append(d.Legend, from)
		}
	}
	// The base first, then as they are applied.
	order := []string{"base", "cluster", "role", "machine"}
	slices.SortStableFunc(d.Legend, func(a, b origin) int { return slices.Index(order, a.Kind) - slices.Index(order, b.Kind) })
	diff, err := client.Answer[api.Diff](p.api.GetMachineDiff(r.Context(), m.Name, client.GetMachineDiffParams{Running: d.Running}))
	if d.NoDiff = p.whyNot(r.Context(), err); err == nil {
		d.Diff = &diff
	}
	return out, nil
}

// modes are how a config is given to a machine that runs.
var modes = []struct{ Name, Said string }{
	{"auto", "at once, with a reboot where that takes one"},
	{"no-reboot", "at once, or not at all where that takes a reboot"},
	{"staged", "with its next boot"},
	{"try", "at once, and taken back after a minute"},
}

// applyData is apply.html.
type applyData struct {
	Machine    api.Machine
	Mode, Said string // the mode, and in words
	Applied    api.ConfigApplied
}

// apply has the machine say what a config would do, or gives it to it once somebody has read that.
func (p *Pages) apply(r *http.Request) (*page, error) {
	i := slices.IndexFunc(modes, func(m struct{ Name, Said string }) bool { return m.Name == r.FormValue("mode") })
	if i < 0 {
		return nil, &admin.Refusal{Status: http.StatusBadRequest, Reason: "The form does not say how the config is to be applied."}
	}
	m, err := client.Answer[api.Machine](p.api.GetMachine(r.Context(), named(r)))
	if err != nil {
		return nil, err
	}
	d := &applyData{Machine: m, Mode: modes[i].Name, Said: modes[i].Said}
	d.Applied, err = client.Answer[api.ConfigApplied](p.api.ApplyMachineConfig(r.Context(), m.Name, api.ConfigApply{Mode: d.Mode, DryRun: r.FormValue("confirmed") == ""}))
	if err != nil {
		return nil, err
	}
	title := "Apply its config to " + m.Name + "?"
	if !d.Applied.DryRun {
		title = m.Name
	}
	return &page{name: "apply", title: title, data: d}, nil
}
