package web

import (
	"fmt"
	"maps"
	"net/http"
	"slices"
	"strings"

	"github.com/provisiond/provisiond/api"
	"github.com/provisiond/provisiond/client"
	"github.com/provisiond/provisiond/internal/admin"
)

// What is done to several machines at once: for each it is said first what would come of it,
// then it is done to one after the other.

// acts are they. To approve some at once is none of them on purpose: each shows a code, which is
// read off its console.
func (p *Pages) acts(r *http.Request) (ask func(*http.Request, []string) (*page, error), do func(*http.Request, string) error, err error) {
	switch act := r.FormValue("act"); act {
	case "reimage":
		return p.askReimages, func(r *http.Request, name string) error {
			return client.Done(p.api.ReimageMachine(r.Context(), name, reimageOrderOf(r).api()))
		}, nil
	case "label":
		return p.askLabels, p.label, nil
	default:
		return nil, nil, &admin.Refusal{Status: http.StatusBadRequest, Reason: fmt.Sprintf("%q is nothing that can be done to several machines.", act)}
	}
}

func (p *Pages) askAct(r *http.Request) (*page, error) {
	if r.FormValue("act") == "approve" {
		return &page{to: "/approve"}, nil
	}
	ask, _, err := p.acts(r)
	if err != nil {
		return nil, err
	}
	names, err := chosen(r)
	if err != nil {
		return nil, err
	}
	return ask(r, names)
}

// actedData is acted.html.
type actedData struct {
	Results []acted
	Done    int
}

// acted is what came of it for one machine.
type acted struct {
	Name string
	No   string // why it was not done; empty: it was
	Gone bool   // there is no such machine any more
}

// actOn does it to one machine after the other. What was done stays done when another refuses.
func (p *Pages) actOn(r *http.Request) (*page, error) {
	_, do, err := p.acts(r)
	if err != nil {
		return nil, err
	}
	names, err := chosen(r)
	if err != nil {
		return nil, err
	}
	d := &actedData{}
	for _, name := range names {
		no := p.whyNot(r.Context(), do(r, name))
		if d.Results = append(d.Results, acted{Name: name, No: no}); no == "" {
			d.Done++
		}
	}
	return &page{name: "acted", title: fmt.Sprintf("Done for %d of %d", d.Done, len(names)), data: d}, nil
}

func (p *Pages) askReimages(r *http.Request, names []string) (*page, error) {
	return p.foresee(r, &reimageData{Machines: names})
}

// labelData is label.html.
type labelData struct {
	Machines    []string
	Set, Remove string // key=value and keys, one a line
	Problem     string // with these
	Foreseen    []labelled
	Ready       []string // those that would take it
}

// labelled are the labels of one machine, and what they would become.
type labelled struct {
	Name      string
	Now, Then map[string]string
	No        string
}

func (p *Pages) askLabels(r *http.Request, names []string) (*page, error) {
	d := &labelData{Machines: names, Set: r.FormValue("set"), Remove: r.FormValue("remove")}
	patch, err := labelPatch(d.Set, d.Remove)
	if err != nil {
		d.Problem, patch = err.Error(), nil
	}
	d.Foreseen = foreseeAll(names, func(name string) labelled {
		m, err := client.Answer[api.Machine](p.api.GetMachine(r.Context(), name))
		l := labelled{Name: name, Now: m.Labels, Then: maps.Clone(m.Labels), No: p.whyNot(r.Context(), err)}
		if err != nil || len(patch) == 0 {
			return l
		}
		check, err := client.Answer[api.MachineCheck](p.api.CheckMachine(r.Context(), name, client.CheckMachineParams{}, map[string]any{"labels": patch}))
		l.No = p.whyNot(r.Context(), err)
		for _, problem := range check.Problems {
			l.No += problem.Message + " "
		}
		if l.Then == nil {
			l.Then = map[string]string{}
		}
		for key, value := range patch {
			if text, ok := value.(string); ok {
				l.Then[key] = text
			} else {
				delete(l.Then, key)
			}
		}
		return l
	})
	for _, l := range d.Foreseen {
		if l.No == "" && len(patch) > 0 {
			d.Ready = append(d.Ready, l.Name)
		}
	}
	return &page{name: "label", title: "Label machines", data: d}, nil
}

func (p *Pages) label(r *http.Request, name string) error {
	patch, err := labelPatch(r.FormValue("set"), r.FormValue("remove"))
	if err != nil {
		return err
	}
	return client.Done(p.api.PatchMachine(r.Context(), name, client.PatchMachineParams{}, map[string]any{"labels": patch}))
}

// labelPatch is a merge patch of labels, of those to set and those to remove.
func labelPatch(set, remove string) (map[string]any, error) {
	labels, err := pairs(set)
	if err != nil {
		return nil, err
	}
	patch := map[string]any{}
	for key, value := range labels {
		patch[key] = value
	}
	for _, key := range lines(remove) {
		patch[key] = nil
	}
	return patch, nil
}

// lines are those of a text that have something in them.
func lines(text string) []string {
	var out []string
	for line := range strings.Lines(text) {
		if line = strings.TrimSpace(line); line != "" {
			out = append(out, line)
		}
	}
	return out
}

// pairs are lines of key=value.
func pairs(text string) (map[string]string, error) {
	out := map[string]string{}
	for _, line := range lines(text) {
		key, value, ok := strings.Cut(line, "=")
		if key = strings.TrimSpace(key); !ok || key == "" {
			return nil, &admin.Refusal{Status: http.StatusUnprocessableEntity, Reason: fmt.Sprintf("%q is not key=value", line)}
		}
		out[key] = strings.TrimSpace(value)
	}
	return out, nil
}

// pairsText is the inverse of pairs.
func pairsText(m map[string]string) string {
	var out strings.Builder
	for _, key := range slices.Sorted(maps.Keys(m)) {
		out.WriteString(key + "=" + m[key] + "\n")
	}
	return out.String()
}
