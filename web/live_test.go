package web

import (
	"bufio"
	"context"
	"net/http"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/provisiond/provisiond/internal/inventory"
)

// event is one part that an open page was sent.
type event struct{ name, data string }

// openPage is the stream of a page, as a browser holds it.
type openPage struct {
	b      *browser
	status int
	events chan event // closed when the server ended it, or the page was closed
	close  context.CancelFunc
}

func (b *browser) open(path string) *openPage {
	b.t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "https://"+b.addr+path, nil)
	if err != nil {
		b.t.Fatal(err)
	}
	req.Header = b.header.Clone()
	resp, err := b.client.Do(req)
	if err != nil {
		b.t.Fatal(err)
	}
	o := &openPage{b: b, status: resp.StatusCode, events: make(chan event), close: cancel}
	ended := make(chan struct{})
	b.t.Cleanup(func() {
		cancel()
		for range o.events {
		}
		<-ended
	})
	go func() {
		defer close(ended)
		defer func() { _ = resp.Body.Close() }()
		defer close(o.events)
		var e event
		for lines := bufio.NewScanner(resp.Body); lines.Scan(); {
			name, value, _ := strings.Cut(lines.Text(), ":")
			switch value = strings.TrimPrefix(value, " "); {
			case name == "event":
				e.name = value
			case name == "data":
				e.data += value + "\n"
			case lines.Text() == "" && e.name != "":
				select {
				case o.events <- e:
				case <-ctx.Done():
					return
				}
				e = event{}
			}
		}
	}()
	return o
}

// until waits for a part with these words, and returns the names of all that were sent up to
// it.
func (o *openPage) until(name string, words ...string) (names []string) {
	o.b.t.Helper()
	late := time.After(time.Minute)
	for {
		select {
		case e, ok := <-o.events:
			if !ok {
				o.b.t.Fatalf("the stream ended without %s with %q, after %q", name, words, names)
			}
			names = append(names, e.name)
			if e.name == name && (answer{text: e.data}).has(words...) {
				return names
			}
		case <-late:
			o.b.t.Fatalf("no %s with %q, but %q", name, words, names)
		}
	}
}

// TestLive: an open page is told what changes, and nothing else.
func TestLive(t *testing.T) {
	s := newSite(t, nil)
	b := s.in(s.token("ada", inventory.AccessOperate))
	page := b.get("/")
	_, at, ok := strings.Cut(page.text, `sse-connect="`)
	if !ok {
		t.Fatal(page.text)
	}
	at, _, _ = strings.Cut(at, `"`)
	o := b.open(strings.ReplaceAll(at, "&amp;", "&"))
	if names := o.until("w-3/reason", "no image &lt;script&gt;"); strings.Contains(strings.Join(names, " "), "rows") {
		t.Errorf("the list, which the page has, is sent again: %q", names)
	}
	s.record(inventory.Event{Kind: inventory.KernelServed, Machine: "w-2", Boot: 1})
	s.record(inventory.Event{Kind: inventory.InitramfsServed, Machine: "w-2", Boot: 1})
	s.record(inventory.Event{Kind: inventory.ConfigServed, Machine: "w-2", Boot: 1})
	if names := o.until("w-2/phase", "installing"); strings.Contains(strings.Join(names, " "), "w-1/") || strings.Contains(strings.Join(names, " "), "rows") {
		t.Errorf("what did not change is sent: %q", names)
	}
	s.machine("w-4", "52:54:00:00:00:04", "web", inventory.Worker)
	o.until("rows", `href="/machines/w-4"`, "w-1", "w-2", "w-3")
}

// TestLiveFilter: a filtered page is told of what it lists.
func TestLiveFilter(t *testing.T) {
	s := newSite(t, nil)
	b := s.in(s.token("ada", inventory.AccessOperate))
	if got := b.get("/?cluster=store"); !got.has("w-2", "3</b> machines") || got.has(`value="w-1"`) || !got.has("/live?cluster=store") {
		t.Errorf("%s", got.text)
	}
	o := b.open("/live?cluster=store")
	o.until("rows", "w-2")
	s.record(inventory.Event{Kind: inventory.KernelServed, Machine: "w-1", Boot: 1})
	s.record(inventory.Event{Kind: inventory.KernelServed, Machine: "w-2", Boot: 1})
	s.record(inventory.Event{Kind: inventory.InitramfsServed, Machine: "w-2", Boot: 1})
	s.record(inventory.Event{Kind: inventory.ConfigServed, Machine: "w-2", Boot: 1})
	if names := o.until("w-2/phase", "installing"); strings.Contains(strings.Join(names, " "), "w-1") {
		t.Errorf("%q", names)
	}
	if got := b.get("/?q=52-54-00-00-00-03"); !got.has(`value="w-3"`) || got.has(`value="w-1"`) {
		t.Errorf("by MAC: %s", got.text)
	}
	if got := b.get("/?phase=nonsense"); got.code != 422 || !got.has("phase") {
		t.Errorf("%d %s", got.code, got.text)
	}
}

// TestLiveEnds: who may no longer look is told so, and no place is kept.
func TestLiveEnds(t *testing.T) {
	s := newSite(t, nil)
	if o := s.browser().open("/live"); o.status != 200 {
		t.Errorf("%d", o.status)
	} else {
		o.until("notice", "no longer logged in")
	}
	b := s.in(s.token("ada", inventory.AccessRead))
	o := b.open("/live")
	o.until("rows", "w-1")
	if err := s.keeper.RevokeToken(t.Context(), "ada"); err != nil {
		t.Fatal(err)
	}
	o.until("notice", "no longer")

	b = s.in(s.token("bob", inventory.AccessRead, "web"))
	o = b.open("/live")
	o.until("rows", "w-1")
	s.record(inventory.Event{Kind: inventory.ConfigServed, Machine: "w-2", Boot: 1})
	s.machine("w-5", "52:54:00:00:00:05", "store", inventory.Worker)
	s.machine("w-6", "52:54:00:00:00:06", "web", inventory.Worker)
	for {
		e, ok := <-o.events
		if !ok {
			t.Fatal("the stream ended")
		}
		if (answer{text: e.name + e.data}).has("w-5") || (answer{text: e.name + e.data}).has("w-2") {
			t.Errorf("another cluster's machine is told of: %+v", e)
		}
		if e.name == "rows" && strings.Contains(e.data, "w-6") {
			break
		}
	}
	b.post("/logout", url.Values{})
	o.until("notice", "no longer")
}

// TestLiveLines: what others say ends no line of a stream: it could go on with an event
// of its own.
func TestLiveLines(t *testing.T) {
	s := newSite(t, nil)
	b := s.in(s.token("ada", inventory.AccessOperate))
	o := b.open("/live")
	o.until("notice") // whatever was said before is over
	s.record(inventory.Event{Kind: inventory.ScriptServed, Machine: "w-1", Boot: 1, Plan: inventory.Hold, Error: "oops\r\revent: summary\rdata: all is well\r\n\nevent: summary\n\n"})
	o.until("w-1/reason", "oops  event: summary data: all is well")
}
