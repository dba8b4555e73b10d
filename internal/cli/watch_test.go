package cli

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/spf13/cobra"

	"github.com/provisiond/provisiond/api"
	"github.com/provisiond/provisiond/client"
	"github.com/provisiond/provisiond/internal/inventory"
)

// addMachine registers one straight away.
func (d *daemon) addMachine(t *testing.T, name, mac string) *inventory.Machine {
	t.Helper()
	m, err := d.keeper.PutMachine(t.Context(), &inventory.Machine{Name: name, Role: inventory.Worker, MACs: []inventory.MAC{inventory.MAC(mac)}}, 0)
	if err != nil {
		t.Fatal(err)
	}
	return m
}

// TestWatch watches machines over a restart of provisiond, as programs and people do.
func TestWatch(t *testing.T) {
	for _, c := range []struct {
		name, args string
		line       func(event, name string) string // a part of what is printed
	}{
		{"JSON", "watch -o json", func(event, name string) string { return fmt.Sprintf(`{"event":%q,"name":%q`, event, name) }},
		{"lines", "machine list --watch", func(event, name string) string {
			return fmt.Sprintf("%-16s %s", name, map[string]string{"machine": "registered", "removed": "removed"}[event])
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			dir, err := os.MkdirTemp("", "cli")
			if err != nil {
				t.Fatal(err)
			}
			defer func() { _ = os.RemoveAll(dir) }()
			d := startDaemon(t, dir)
			m := d.addMachine(t, "w-1", "52:54:00:00:00:01")
			ctx, cancel := context.WithTimeout(t.Context(), time.Minute) // against a hang only
			defer cancel()
			r, w := io.Pipe()
			done := make(chan int, 1)
			go func() {
				code := Run(ctx, New("x"), append([]string{"--server", d.server}, strings.Fields(c.args)...), strings.NewReader(""), w, io.Discard)
				_ = w.Close()
				done <- code
			}()
			lines := bufio.NewScanner(r)
			lines.Buffer(nil, 1<<20)
			want := func(event, name string) {
				t.Helper()
				for lines.Scan() {
					if c.name == "JSON" && !json.Valid(lines.Bytes()) {
						t.Fatalf("%s", lines.Text())
					}
					if strings.Contains(lines.Text(), c.line(event, name)) {
						return
					}
				}
				t.Fatalf("the output ended without %s of %s", event, name)
			}
			want("machine", "w-1")
			d.addMachine(t, "w-2", "52:54:00:00:00:02")
			want("machine", "w-2")
			d.stop()
			d = startDaemon(t, dir)
			defer d.stop()
			if err := d.keeper.DeleteMachine(t.Context(), "w-1", m.Rev); err != nil {
				t.Fatal(err)
			}
			want("removed", "w-1")
			cancel()
			for lines.Scan() { // drained, so that the command can end
			}
			if code := <-done; code != exitOK {
				t.Errorf("exit code %d", code)
			}
		})
	}
}

func TestWatchRefused(t *testing.T) {
	dir, err := os.MkdirTemp("", "cli")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = os.RemoveAll(dir) }()
	d := startDaemon(t, dir)
	defer d.stop()
	var stderr strings.Builder
	if code := Run(t.Context(), New("x"), []string{"--server", d.server, "watch", "--label", "x"}, strings.NewReader(""), io.Discard, &stderr); code != exitError || !strings.Contains(stderr.String(), "label") {
		t.Errorf("%d: %s", code, &stderr)
	}
}

// terminal is what a screen is written to.
type terminal struct {
	mu sync.Mutex
	b  strings.Builder
}

func (w *terminal) Write(p []byte) (int, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.b.Write(p)
}

func (w *terminal) String() string {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.b.String()
}

// TestWatchScreen: the terminal shows what changes, and is left as it was.
func TestWatchScreen(t *testing.T) {
	dir, err := os.MkdirTemp("", "cli")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = os.RemoveAll(dir) }()
	d := startDaemon(t, dir)
	defer d.stop()
	d.addMachine(t, "w-1", "52:54:00:00:00:01")
	a := &app{server: d.server}
	c, err := a.client()
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute) // against a hang only
	defer cancel()
	var out terminal
	done := make(chan error, 1)
	go func() {
		done <- watchScreen(ctx, c, &client.ListMachinesParams{}, newScreen(&out, func() (int, int, error) { return 100, 10, nil }))
	}()
	wait := func(text string) {
		t.Helper()
		for !strings.Contains(out.String(), text) {
			if ctx.Err() != nil {
				t.Fatalf("never shown: %q in %q", text, out.String())
			}
			time.Sleep(10 * time.Millisecond)
		}
	}
	wait("1 machine, 1 registered" + clearLine)
	d.addMachine(t, "w-2", "52:54:00:00:00:02")
	wait("w-2")
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
	if got := out.String(); !strings.HasPrefix(got, otherScreen) || !strings.HasSuffix(got, firstScreen) {
		t.Errorf("%q", got)
	}
}

func TestScreenLines(t *testing.T) {
	now := time.Date(2026, 11, 1, 12, 0, 0, 0, time.UTC)
	s := newScreen(io.Discard, nil)
	s.take(news{Event: "synced"})
	for i := range 20 {
		m := &api.Machine{MachineSpec: api.MachineSpec{Name: fmt.Sprintf("w-%02d", i), Cluster: "prod", Role: "worker", Address: "2001:db8::1"}, Phase: api.State{Phase: "ready", Since: now.Add(-25 * time.Hour)}}
		switch i {
		case 7:
			m.Phase, m.Progress = api.State{Phase: "loading", Since: now.Add(-125 * time.Second)}, &api.Progress{Step: "kernel", Sent: 63, Size: 100}
		case 9:
			m.Phase = api.State{Phase: "stalled", StalledIn: "offered", Since: now.Add(-3 * time.Hour), Reason: "never fetched \x1b[2J its loader, " + strings.Repeat("ö", 200)}
		}
		s.take(news{Event: "machine", Name: m.Name, machine: m})
	}
	got := s.lines(now, 100, 8)
	want := []string{
		"20 machines, 1 stalled, 1 loading, 18 ready",
		"NAME  CLUSTER  ROLE    PHASE               FOR    PROGRESS     ADDRESS      REASON",
		"w-09  prod     worker  stalled in offered  3h00m  -            2001:db8::1  never fetched �[2J its …",
		"w-07  prod     worker  loading             2m05s  kernel 63 %  2001:db8::1  -",
		"w-00  prod     worker  ready               1d01h  -            2001:db8::1  -",
	}
	for i, line := range want {
		if !strings.HasPrefix(got[i], strings.TrimRight(line, " ")) {
			t.Errorf("line %d is\n%s, want\n%s", i, got[i], line)
		}
	}
	if last := got[len(got)-1]; last != "… and 15 more" {
		t.Errorf("the last line is %q", last)
	}
	for _, size := range [][2]int{{100, 8}, {20, 3}, {1, 1}, {200, 100}, {10, 2}} {
		lines := s.lines(now, size[0], size[1])
		if len(lines) > size[1] || slices.ContainsFunc(lines, func(l string) bool { return utf8.RuneCountInString(l) > size[0] || strings.Contains(l, "\x1b") }) {
			t.Errorf("on %v: %q", size, lines)
		}
	}

	// All is told anew: the old is shown until that is done.
	s.take(news{Event: "reset"})
	s.take(news{Event: "machine", Name: "new", machine: &api.Machine{MachineSpec: api.MachineSpec{Name: "new"}}})
	if got := s.lines(now, 100, 8)[0]; !strings.HasPrefix(got, "20 machines") {
		t.Error(got)
	}
	s.take(news{Event: "synced"})
	s.note = "it does not answer"
	if got := s.lines(now, 100, 8); got[0] != "it does not answer (1 machine)" || len(got) != 3 {
		t.Errorf("%q", got)
	}
}

func TestPhaseText(t *testing.T) {
	m := &api.Machine{Phase: api.State{Phase: "loading"}, Progress: &api.Progress{Step: "kernel", Sent: 63, Size: 100}}
	if got := phaseText(m); got != "loading: kernel 63 %" {
		t.Error(got)
	}
	var b strings.Builder
	cmd := &cobra.Command{}
	cmd.SetOut(&b)
	m.Name = "w-1"
	if err := printNews(cmd, &format{"table"}, news{Event: "machine", Name: "w-1", machine: m}); err != nil || !strings.HasSuffix(b.String(), "  w-1              loading: kernel 63 %\n") {
		t.Errorf("%q %v", b.String(), err)
	}
}
