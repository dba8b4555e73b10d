package web

import (
	"fmt"
	"math"
	"slices"
	"strings"
	"time"

	"github.com/provisiond/provisiond/api"
)

// The boots of a machine as pictures in time: the newest step by step, those before as a bar
// each.

// steps are those of a boot in their order, and what is going on until each.
var steps = [...]struct{ name, label string }{
	{"offered", "Address"},
	{"loader", "Boot loader"},
	{"script", "Boot script"},
	{"kernel", "Kernel"},
	{"initramfs", "Initramfs"},
	{"config", "Talos asks for its config"},
	{"api", "Install, until its API is up"},
	{etcdStep, "Bootstrap of etcd"},
	{"ready", "Ready"},
}

// etcdStep is the cluster's, and not among those of api.Step.
const etcdStep = "bootstrap"

// courses are the steps that a boot takes by its plan.
var courses = map[string][]string{
	"":        {"offered", "loader", "script", "kernel", "initramfs", "config", "api", "ready"}, // not decided yet
	"install": {"offered", "loader", "script", "kernel", "initramfs", "config", "api", "ready"},
	"wipe":    {"offered", "loader", "script", "kernel", "initramfs"},
	"disk":    {"offered", "loader", "script", "api", "ready"},
	"hold":    {"offered", "loader", "script"},
}

// bootStep is one step of a boot, and the time until it.
type bootStep struct {
	Name, Label string
	State       string        // done, running, stalled, failed, or waits for those before
	At          time.Time     // when it was seen; zero: it was not
	From        time.Duration // since the boot began
	Took        time.Duration
	Reason      string        // why it is where it is
	Progress    *api.Progress // of what is read just now
	X, Width    int           // of its bar, of barWidth
}

// barWidth is how wide a bar is, in the units of its picture.
const barWidth = 1000

// timeline is a boot step by step.
type timeline struct {
	api.Boot
	Rows []bootStep
	Took time.Duration // until the last step, or until now
}

// attempt is a boot of before.
type attempt struct {
	timeline
	CameTo string // the last step that was seen
	Said   string // the bar in words
}

// timelineOf is the newest boot of a machine. bootstrap is that of its cluster, nil: it is
// none of its business.
func timelineOf(b *api.Boot, m *api.Machine, bootstrap *api.Bootstrap, now time.Time) *timeline {
	t := seen(b, bootstrapOf(b, m, bootstrap))
	state := ""
	switch m.Phase.Phase {
	case "offered", "loading", "configuring", "installing", "booting":
		state = "running"
	case "stalled", "failed":
		state = m.Phase.Phase
	}
	if state != "" {
		t.expect(state, m, bootstrap != nil && bootstrap.Machine == m.Name && bootstrap.State != "done", now)
	}
	t.draw(t.Took)
	return t
}

// bootstrapOf is the bootstrap of a cluster as a step of this boot; nil: it has none.
func bootstrapOf(b *api.Boot, m *api.Machine, bootstrap *api.Bootstrap) *api.Step {
	if bootstrap == nil || bootstrap.Machine != m.Name || !bootstrap.DoneAt.After(b.Started) {
		return nil
	}
	return &api.Step{Step: etcdStep, At: bootstrap.DoneAt, Seconds: bootstrap.DoneAt.Sub(b.Started).Seconds()}
}

// seen is what a boot came to. more is a step that others know of; nil: there is none.
func seen(b *api.Boot, more *api.Step) *timeline {
	t := &timeline{Boot: *b}
	for _, step := range steps {
		s := more
		if step.name != etcdStep {
			s = nil
			if i := slices.IndexFunc(b.Steps, func(s api.Step) bool { return s.Step == step.name }); i >= 0 {
				s = &b.Steps[i]
			}
		}
		if s == nil {
			continue
		}
		// What was seen out of order took no time.
		at := max(t.Took, time.Duration(s.Seconds*float64(time.Second)))
		t.Rows = append(t.Rows, bootStep{Name: step.name, Label: labelOf(step.name, step.label, b.Plan), State: "done", At: s.At, From: t.Took, Took: at - t.Took})
		t.Took = at
	}
	return t
}

func labelOf(name, label, plan string) string {
	if name == "api" && plan == "disk" {
		return "Start from disk, until its API is up"
	}
	return label
}

// expect adds the step that the boot is at, and those after it. In a claimed bootstrap there is one
// more.
func (t *timeline) expect(state string, m *api.Machine, bootstrap bool, now time.Time) {
	course := courses[t.Plan]
	last := -1
	for i, step := range steps {
		if slices.ContainsFunc(t.Rows, func(s bootStep) bool { return s.Name == step.name }) {
			last = i
		}
	}
	first := true
	for _, step := range steps[last+1:] {
		if !slices.Contains(course, step.name) && (step.name != etcdStep || !bootstrap) {
			continue
		}
		s := bootStep{Name: step.name, Label: labelOf(step.name, step.label, t.Plan), State: "waits", From: t.Took}
		if first {
			first = false
			s.State, s.Reason = state, m.Phase.Reason
			s.Took = max(0, now.Sub(t.Started)-t.Took).Truncate(time.Second)
			t.Took += s.Took
			if m.Progress != nil && m.Progress.Step == step.name {
				s.Progress = m.Progress
			}
		}
		t.Rows = append(t.Rows, s)
	}
}

// draw places the bars where all of them is as long as a duration.
func (t *timeline) draw(all time.Duration) {
	scale := barWidth / max(all.Seconds(), 0.001)
	for i := range t.Rows {
		s := &t.Rows[i]
		if s.State == "waits" {
			continue
		}
		s.Width = max(4, int(math.Round(s.Took.Seconds()*scale))) // to be seen
		s.X = min(int(math.Round(s.From.Seconds()*scale)), barWidth-s.Width)
	}
}

// attemptsOf are boots of before, newest first, drawn to one scale.
func attemptsOf(boots []api.Boot) []attempt {
	var out []attempt
	longest := time.Duration(0)
	for i := range boots {
		t := seen(&boots[i], nil)
		longest = max(longest, t.Took)
		a := attempt{timeline: *t, CameTo: "nothing"}
		words := make([]string, len(t.Rows))
		for i, s := range t.Rows {
			a.CameTo = s.Label
			words[i] = fmt.Sprintf("%s %s", s.Label, took(s.Took))
		}
		a.Said = strings.Join(words, ", ")
		out = append(out, a)
	}
	for i := range out {
		out[i].draw(longest)
	}
	return out
}

// took is a duration in the two units that matter, as page.js has it, and the tenth of a short one.
func took(d time.Duration) string {
	s := int(d.Seconds())
	switch {
	case d < 10*time.Second:
		return fmt.Sprintf("%.1f s", d.Seconds())
	case s < 60:
		return fmt.Sprintf("%d s", s)
	case s < 3600:
		return fmt.Sprintf("%d min %d s", s/60, s%60)
	case s < 86400:
		return fmt.Sprintf("%d h %d min", s/3600, s%3600/60)
	}
	return fmt.Sprintf("%d d %d h", s/86400, s%86400/3600)
}
