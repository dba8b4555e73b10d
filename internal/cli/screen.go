package cli

import (
	"cmp"
	"context"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/provisiond/provisiond/api"
	"github.com/provisiond/provisiond/client"
)

// What a terminal is told (ECMA-48, xterm): to show another screen without a cursor, to
// begin at its top, and to forget what follows.
const (
	otherScreen = "\x1b[?1049h\x1b[?25l"
	firstScreen = "\x1b[?25h\x1b[?1049l"
	toTop       = "\x1b[H"
	clearLine   = "\x1b[K"
	clearRest   = "\x1b[J"
)

// redraw is how often a screen is drawn at most, and drawn again at least: times go on,
// and the terminal may have another size.
const (
	redraw  = 200 * time.Millisecond
	refresh = time.Second
)

// screen is the machines on a terminal.
type screen struct {
	out  io.Writer
	size func() (width, height int, err error)

	machines map[string]*api.Machine
	told     map[string]*api.Machine // instead, while all is told anew; nil: it is not
	note     string                  // what is wrong; empty: nothing
}

func newScreen(out io.Writer, size func() (int, int, error)) *screen {
	return &screen{out: out, size: size, machines: map[string]*api.Machine{}, note: "connecting"}
}

// watchScreen shows machines on a terminal, and leaves it as it was.
func watchScreen(ctx context.Context, c *client.Client, filter *client.ListMachinesParams, s *screen) (err error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	all, troubles, ended := make(chan news), make(chan error), make(chan error, 1)
	go func() {
		ended <- followMachines(ctx, c, filter, func(n news) error {
			select {
			case all <- n:
			case <-ctx.Done():
			}
			return nil
		}, func(err error) {
			select {
			case troubles <- err:
			case <-ctx.Done():
			}
		})
	}()
	if _, err := io.WriteString(s.out, otherScreen); err != nil {
		cancel()
		<-ended
		return err
	}
	defer func() {
		_, _ = io.WriteString(s.out, firstScreen) // there is nobody to tell
	}()
	tick := time.NewTicker(redraw)
	defer tick.Stop()
	changed, drawn := true, time.Time{}
	for {
		select {
		case err := <-ended: // refused, or interrupted
			return err
		case n := <-all:
			s.take(n)
			changed = true
		case err := <-troubles:
			s.note, changed = err.Error()+"; trying again", true
		case now := <-tick.C:
			if !changed && now.Sub(drawn) < refresh {
				continue
			}
			if err := s.draw(now); err != nil {
				cancel()
				<-ended
				return err
			}
			changed, drawn = false, now
		}
	}
}

func (s *screen) take(n news) {
	s.note = ""
	of := s.machines
	if s.told != nil {
		of = s.told
	}
	switch n.Event {
	case "machine":
		of[n.Name] = n.machine
	case "removed":
		delete(of, n.Name)
	case "reset":
		s.told = map[string]*api.Machine{}
	case "synced":
		s.machines, s.told = of, nil
	}
}

func (s *screen) draw(now time.Time) error {
	width, height, err := s.size()
	if err != nil || width <= 0 || height <= 0 {
		width, height = 80, 24
	}
	var b strings.Builder
	b.WriteString(toTop)
	for i, line := range s.lines(now, width, height) {
		if i > 0 {
			b.WriteString("\r\n")
		}
		b.WriteString(line + clearLine)
	}
	b.WriteString(clearRest)
	_, err = io.WriteString(s.out, b.String())
	return err
}

// urgency is the order of the phases on a screen: those that need somebody, those on
// their way, the others.
var urgency = []string{"failed", "stalled", "reimaging", "offered", "loading", "configuring", "installing", "booting", "registered", "ready"}

// lines are what fits on a screen of a size.
func (s *screen) lines(now time.Time, width, height int) []string {
	rank := func(m *api.Machine) int {
		if i := slices.Index(urgency, m.Phase.Phase); i >= 0 {
			return i
		}
		return len(urgency)
	}
	list := slices.SortedFunc(maps.Values(s.machines), func(a, b *api.Machine) int {
		return cmp.Or(cmp.Compare(rank(a), rank(b)), cmp.Compare(a.Name, b.Name))
	})
	count := map[string]int{}
	for _, m := range list {
		count[m.Phase.Phase]++
	}
	summary := fmt.Sprintf("%d machines", len(list))
	if len(list) == 1 {
		summary = "1 machine"
	}
	for _, p := range urgency {
		if count[p] > 0 {
			summary += fmt.Sprintf(", %d %s", count[p], p)
		}
	}
	if s.note != "" {
		summary = s.note + " (" + summary + ")"
	}
	rows := [][]string{{"NAME", "CLUSTER", "ROLE", "PHASE", "FOR", "PROGRESS", "ADDRESS", "REASON"}}
	room := height - 2 // summary and heads
	more := 0
	if len(list) > room {
		more = len(list) - max(room-1, 0)
		list = list[:max(room-1, 0)]
	}
	for _, m := range list {
		rows = append(rows, []string{m.Name, m.Cluster, m.Role, phase(m.Phase), lasted(now, m.Phase.Since), progressText(m.Progress), m.Address, m.Phase.Reason})
	}
	lines := append([]string{summary}, columns(rows)...)
	if more > 0 {
		lines = append(lines, fmt.Sprintf("… and %d more", more))
	}
	lines = lines[:min(len(lines), height)]
	for i, line := range lines {
		if r := []rune(clean(line)); len(r) > width {
			lines[i] = string(r[:width-1]) + "…"
		} else {
			lines[i] = string(r)
		}
	}
	return lines
}

// columns are rows with each cell but the last as wide as the widest of its column.
func columns(rows [][]string) (lines []string) {
	var wide [16]int
	for _, row := range rows {
		for i, cell := range row {
			wide[i] = max(wide[i], len([]rune(cell)), 1)
		}
	}
	for _, row := range rows {
		var b strings.Builder
		for i, cell := range row {
			fmt.Fprintf(&b, "%-*s  ", wide[i], cmp.Or(cell, "-"))
		}
		lines = append(lines, strings.TrimRight(b.String(), " "))
	}
	return lines
}

// lasted is how long ago a time was, in the two units that matter.
func lasted(now, since time.Time) string {
	if since.IsZero() {
		return ""
	}
	d := max(now.Sub(since), 0)
	const day = 24 * time.Hour
	switch {
	case d < time.Minute:
		return fmt.Sprintf("%ds", d/time.Second)
	case d < time.Hour:
		return fmt.Sprintf("%dm%02ds", d/time.Minute, d%time.Minute/time.Second)
	case d < day:
		return fmt.Sprintf("%dh%02dm", d/time.Hour, d%time.Hour/time.Minute)
	}
	return fmt.Sprintf("%dd%02dh", d/day, d%day/time.Hour)
}
