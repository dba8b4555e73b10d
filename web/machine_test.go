package web

import (
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/provisiond/provisiond/api"
	"github.com/provisiond/provisiond/internal/inventory"
)

// boots takes a machine through the steps of its newest boot.
func (s *site) boots(machine string, kinds ...inventory.Kind) {
	s.t.Helper()
	for _, kind := range kinds {
		s.record(inventory.Event{Kind: kind, Machine: machine})
	}
}

// TestMachine: the page of a machine, by its name and by its MACs, says all that is known.
func TestMachine(t *testing.T) {
	s := newSite(t, nil)
	s.hall.says("w-1", "hello from the kernel", markup)
	s.boots("w-1", inventory.LoaderServed, inventory.KernelServed)
	s.hall.reading("w-1", inventory.Transfer{Step: "initramfs", Sent: 30 << 20, Size: 120 << 20, Started: time.Now()})
	b := s.in(s.token("ada", inventory.AccessOperate))
	for _, path := range []string{"/machines/w-1", "/machines/52:54:00:00:00:01", "/machines/5254.0000.0001"} {
		got := b.get(path)
		if got.code != 200 || !got.has("<h1>w-1</h1>", `sse-connect="/machines/w-1/live?`, "52:54:00:00:00:01", "2001:db8::1", "worker", `href="/clusters/web"`,
			"If it boots now:</strong> it is held, as boot image v1.13.6", "Kernel", "Initramfs", "not yet", `value="31457280"`, "25 %, 30 MiB of 120 MiB",
			"hello from the kernel", "&lt;script&gt;", "script-served", "/machines/w-1/edit", "/machines/w-1/reimage", "/machines/w-1/remove", "/machines/w-1/config") || got.has(markup) {
			t.Errorf("%s: %d %s", path, got.code, got.text)
		}
	}
	if got := b.get("/machines/w-9"); got.code != 404 || !got.has("w-9") {
		t.Errorf("%d %s", got.code, got.text)
	}
	if got := b.get("/machines/w-3"); !got.has("no image &lt;script&gt;", "failed") || got.has(markup) {
		t.Errorf("%s", got.text)
	}

	reads := s.in(s.token("reads", inventory.AccessRead))
	if got := reads.get("/machines/w-1"); got.code != 200 || got.has("/machines/w-1/edit") || got.has("Reimage") || got.has("Remove") || !got.has("/machines/w-1/config") {
		t.Errorf("who reads: %d %s", got.code, got.text)
	}
	limited := s.in(s.token("limited", inventory.AccessOperate, "store"))
	for _, path := range []string{"/machines/w-1", "/machines/52:54:00:00:00:01"} {
		if got := limited.get(path); got.code != 404 || got.has("hello") {
			t.Errorf("another cluster's: %d %s", got.code, got.text)
		}
	}
	if got := limited.get("/machines/w-2"); got.code != 200 {
		t.Errorf("their own: %d %s", got.code, got.text)
	}
	o := limited.open("/machines/w-1/live")
	if names := o.until("notice", "no longer"); len(names) != 1 {
		t.Errorf("%q", names)
	}
}

// TestAcknowledge: an alarm goes once somebody says that they have looked into it.
func TestAcknowledge(t *testing.T) {
	s := newSite(t, nil)
	s.record(inventory.Event{Kind: inventory.TokenStolen, Machine: "w-1", Boot: 1, Peer: s.peer("2001:db8::bad"), Message: "somebody else"})
	reads := s.in(s.token("reads", inventory.AccessRead))
	if got := reads.get("/machines/w-1"); !got.has("Alarm:", "2001:db8::bad") || got.has("/acknowledge") {
		t.Errorf("%s", got.text)
	}
	if got := reads.post("/machines/w-1/acknowledge", nil); got.code != 403 {
		t.Errorf("%d %s", got.code, got.text)
	}
	b := s.in(s.token("ada", inventory.AccessOperate))
	if got := b.get("/machines/w-1"); !got.has("Alarm:", `action="/machines/w-1/acknowledge"`) {
		t.Errorf("%s", got.text)
	}
	if got := b.post("/machines/w-1/acknowledge", url.Values{}); got.code != http.StatusSeeOther || got.header.Get("Location") != "/machines/w-1" {
		t.Errorf("%d %s", got.code, got.text)
	}
	if got := b.get("/machines/w-1"); got.has(`action="/machines/w-1/acknowledge"`) {
		t.Errorf("%s", got.text)
	}
	if got := b.post("/machines/w-2x/acknowledge", nil); got.code != 404 {
		t.Errorf("%d %s", got.code, got.text)
	}
}

// TestLiveMachine: an open page is told of each line once, of the download as it goes, and of
// what happens.
func TestLiveMachine(t *testing.T) {
	s := newSite(t, nil)
	s.hall.says("w-1", "line one")
	b := s.in(s.token("ada", inventory.AccessOperate))
	_, at, ok := strings.Cut(b.get("/machines/w-1").text, `sse-connect="`)
	if !ok {
		t.Fatal("the page is not live")
	}
	at, _, _ = strings.Cut(at, `"`)
	o := b.open(strings.ReplaceAll(at, "&amp;", "&"))
	if names := o.until("facts", "52:54:00:00:00:01"); slices.Contains(names, "log") || slices.Contains(names, "events") {
		t.Errorf("what the page has is sent again: %q", names)
	}
	s.hall.says("w-1", "line two")
	s.hall.says("w-2", "another machine's")
	for e := range o.events {
		if e.name == "log" || strings.Contains(e.data, "line one") {
			t.Errorf("%+v", e)
		}
		if e.name == "log-lines" {
			if !strings.Contains(e.data, "line two") {
				t.Errorf("%+v", e)
			}
			break
		}
	}
	s.hall.says("w-1", "line three")
	for e := range o.events {
		if (answer{text: e.data}).has("line two") || (answer{text: e.data}).has("another machine") {
			t.Errorf("%+v", e)
		}
		if e.name == "log-lines" {
			if !strings.Contains(e.data, "line three") {
				t.Errorf("%+v", e)
			}
			break
		}
	}
	s.hall.reading("w-1", inventory.Transfer{Step: "kernel", Sent: 5 << 20, Size: 20 << 20, Started: time.Now()})
	o.until("status", "25 %, 5 MiB of 20 MiB")
	s.boots("w-1", inventory.KernelServed)
	o.until("event-lines", "kernel-served")
	s.boots("w-1", inventory.InitramfsServed, inventory.ConfigServed)
	o.until("status", "installing")
	o.until("boots", "Install, until its API is up", ", running")

	// Who was away is sent what is new, and as a whole.
	late := b.open(strings.ReplaceAll(at, "&amp;", "&"))
	late.until("log", "line one", "line two", "line three", "2000")
	if err := s.keeper.DeleteMachine(t.Context(), "w-1", s.rev("w-1")); err != nil {
		t.Fatal(err)
	}
	o.until("notice", "no longer kept up to date")
}

// TestLiveFull: who cannot be told of new lines any more is told so, and goes on once there is
// a place.
func TestLiveFull(t *testing.T) {
	s := newSite(t, nil)
	b := s.in(s.token("ada", inventory.AccessOperate))
	var others []*openPage
	for range followers / 4 { // that is all for one of them
		others = append(others, b.open("/api/v1/events/watch"))
	}
	o := b.open("/machines/w-1/live")
	o.until("notice", "Too many follow")
	s.boots("w-1", inventory.InitramfsServed) // is still told of what is kept up to date without
	o.until("boots", "Talos asks for its config")
	for _, other := range others {
		other.close()
	}
	o.until("notice", "")
	s.hall.says("w-1", "the first line")
	o.until("log-lines", "the first line")
}

func (s *site) rev(machine string) uint64 {
	s.t.Helper()
	v, err := s.keeper.Machine(s.t.Context(), machine)
	if err != nil {
		s.t.Fatal(err)
	}
	return v.Machine.Rev
}

// TestHeard: of a flood the newest lines wait, and no more.
func TestHeard(t *testing.T) {
	h := &heard[int]{}
	for i := range maxHeard + 10 {
		_ = h.add(i) // never fails
	}
	if got, _ := h.take(); len(got) != maxHeard || got[0] != 10 || got[maxHeard-1] != maxHeard+9 {
		t.Errorf("%d, from %d", len(got), got[0])
	}
	if got, _ := h.take(); got != nil {
		t.Errorf("%v twice", got)
	}
}

// TestTimeline: what a boot came to, where it is, and what is to come.
func TestTimeline(t *testing.T) {
	start := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	at := func(seconds float64) time.Time { return start.Add(time.Duration(seconds * float64(time.Second))) }
	boot := func(plan string, at ...any) *api.Boot {
		b := &api.Boot{Number: 3, Plan: plan, Started: start}
		for i := 0; i < len(at); i += 2 {
			b.Steps = append(b.Steps, api.Step{Step: at[i].(string), Seconds: at[i+1].(float64)})
		}
		return b
	}
	machine := func(phase string) *api.Machine {
		m := &api.Machine{Phase: api.State{Phase: phase, Reason: "so it is"}}
		m.Name = "cp-1"
		return m
	}
	for _, c := range []struct {
		name      string
		boot      *api.Boot
		machine   *api.Machine
		bootstrap *api.Bootstrap
		now       float64
		want      string
	}{
		{"reads the kernel", boot("install", "offered", 1.0, "loader", 3.0, "script", 4.0), machine("loading"), nil, 10,
			"offered done 1 0+100; loader done 2 100+200; script done 1 300+100; kernel running 6 400+600; initramfs waits 0 0+0; config waits 0 0+0; api waits 0 0+0; ready waits 0 0+0"},
		{"stalled", boot("install", "offered", 1.0), machine("stalled"), nil, 4, "offered done 1 0+250; loader stalled 3 250+750; script waits 0 0+0; kernel waits 0 0+0; initramfs waits 0 0+0; config waits 0 0+0; api waits 0 0+0; ready waits 0 0+0"},
		{"failed", boot("install", "offered", 1.0, "script", 2.0, "config", 2.0), machine("failed"), nil, 4, "offered done 1 0+250; script done 1 250+250; config done 0 500+4; api failed 2 500+500; ready waits 0 0+0"},
		{"out of order", boot("install", "offered", 2.0, "loader", 1.0), machine("ready"), nil, 9, "offered done 2 0+1000; loader done 0 996+4"},
		{"from disk", boot("disk", "offered", 1.0, "script", 2.0), machine("booting"), nil, 4, "offered done 1 0+250; script done 1 250+250; api running 2 500+500; ready waits 0 0+0"},
		{"held", boot("hold", "offered", 1.0, "script", 2.0), machine("registered"), nil, 40, "offered done 1 0+500; script done 1 500+500"},
		{"bootstraps", boot("install", "config", 1.0, "api", 2.0), machine("booting"), &api.Bootstrap{State: "called", Machine: "cp-1"}, 4, "config done 1 0+250; api done 1 250+250; bootstrap running 2 500+500; ready waits 0 0+0"},
		{"another one bootstraps", boot("install", "api", 2.0), machine("booting"), &api.Bootstrap{State: "called", Machine: "cp-2"}, 4, "api done 2 0+500; ready running 2 500+500"},
		{"has bootstrapped", boot("install", "api", 2.0, "ready", 4.0), machine("ready"), &api.Bootstrap{State: "done", Machine: "cp-1", DoneAt: at(3)}, 9, "api done 2 0+500; bootstrap done 1 500+250; ready done 1 750+250"},
		{"had bootstrapped before", boot("disk", "api", 2.0, "ready", 4.0), machine("ready"), &api.Bootstrap{State: "done", Machine: "cp-1", DoneAt: at(-3)}, 9, "api done 2 0+500; ready done 2 500+500"},
		{"a clock behind", boot("install", "offered", 5.0), machine("loading"), nil, 1, "offered done 5 0+1000; loader running 0 996+4; script waits 0 0+0; kernel waits 0 0+0; initramfs waits 0 0+0; config waits 0 0+0; api waits 0 0+0; ready waits 0 0+0"},
		{"nothing seen", boot(""), machine("offered"), nil, 0, "offered running 0 0+4; loader waits 0 0+0; script waits 0 0+0; kernel waits 0 0+0; initramfs waits 0 0+0; config waits 0 0+0; api waits 0 0+0; ready waits 0 0+0"},
	} {
		t.Run(c.name, func(t *testing.T) {
			got := timelineOf(c.boot, c.machine, c.bootstrap, at(c.now))
			var rows []string
			for _, r := range got.Rows {
				rows = append(rows, strings.Join([]string{r.Name, r.State, short(r.Took), place(r)}, " "))
				if (r.State == "stalled" || r.State == "failed") != (r.Reason != "") && r.State != "running" {
					t.Errorf("%+v", r)
				}
			}
			if text := strings.Join(rows, "; "); text != c.want {
				t.Errorf("%s, want %s", text, c.want)
			}
		})
	}
}

func short(d time.Duration) string { return strings.TrimSuffix(d.String(), "s") }

func place(r bootStep) string {
	return strings.Join([]string{strconv.Itoa(r.X), strconv.Itoa(r.Width)}, "+")
}

// TestAttempts: boots of before are drawn to the scale of the longest.
func TestAttempts(t *testing.T) {
	got := attemptsOf([]api.Boot{
		{Number: 2, Steps: []api.Step{{Step: "offered", Seconds: 1}, {Step: "loader", Seconds: 5}}},
		{Number: 1, Steps: []api.Step{{Step: "offered", Seconds: 10}}},
		{Number: 0},
	})
	if len(got) != 3 || got[0].Rows[1].Width != 400 || got[0].CameTo != "Boot loader" || got[0].Said != "Address 1.0 s, Boot loader 4.0 s" || got[1].Rows[0].Width != 1000 || got[2].CameTo != "nothing" {
		t.Errorf("%+v", got)
	}
}

func TestTook(t *testing.T) {
	for d, want := range map[time.Duration]string{
		0: "0.0 s", 1540 * time.Millisecond: "1.5 s", 59 * time.Second: "59 s", 83 * time.Second: "1 min 23 s", 3700 * time.Second: "1 h 1 min", 90000 * time.Second: "1 d 1 h",
	} {
		if got := took(d); got != want {
			t.Errorf("%s is %q, want %q", d, got, want)
		}
	}
}
