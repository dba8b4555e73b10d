package admin

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/provisiond/provisiond/api"
	"github.com/provisiond/provisiond/internal/inventory"
)

// follower reads one event stream.
type follower struct {
	t      *testing.T
	cancel context.CancelFunc
	resp   *http.Response
	lines  *bufio.Scanner
}

func (r *rig) follow(t *testing.T, url string, header ...string) *follower {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second) // against a hang only
	t.Cleanup(cancel)
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		t.Fatal(err)
	}
	for i := 0; i < len(header); i += 2 {
		req.Header.Set(header[i], header[i+1])
	}
	resp, err := r.client.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = resp.Body.Close() })
	return &follower{t, cancel, resp, bufio.NewScanner(resp.Body)}
}

// next waits for an event.
func (f *follower) next() api.Event {
	f.t.Helper()
	id := ""
	for f.lines.Scan() {
		line := f.lines.Text()
		if v, ok := strings.CutPrefix(line, "id: "); ok {
			id = v
		}
		if v, ok := strings.CutPrefix(line, "data: "); ok {
			var e api.Event
			if err := json.Unmarshal([]byte(v), &e); err != nil {
				f.t.Fatal(err)
			}
			if fmt.Sprint(e.ID) != id {
				f.t.Fatalf("event %d came as %s", e.ID, id)
			}
			return e
		}
	}
	f.t.Fatalf("the stream ended: %v", f.lines.Err())
	return api.Event{}
}

func (r *rig) logEvent(machine, message string) {
	r.t.Helper()
	if err := r.keeper.Log(r.t.Context(), inventory.Event{Kind: inventory.Changed, Machine: machine, Message: message}); err != nil {
		r.t.Fatal(err)
	}
}

func TestWatch(t *testing.T) {
	r := seed(t, Config{})
	url := r.serve(t) + "/api/v1/events/watch"
	f := r.follow(t, url)
	if ct := f.resp.Header.Get("Content-Type"); ct != "text/event-stream" {
		t.Errorf("Content-Type %s", ct)
	}
	r.logEvent("cp-1", "first")
	r.logEvent("cp-1", "second\nline")
	first := f.next()
	if first.Message != "first" || first.ID != 3 {
		t.Errorf("%+v", first)
	}
	if e := f.next(); e.Message != "second\nline" {
		t.Errorf("%+v", e)
	}

	for name, again := range map[string]*follower{
		"Last-Event-ID":    r.follow(t, url, "Last-Event-ID", fmt.Sprint(first.ID)),
		"after":            r.follow(t, url+"?after="+fmt.Sprint(first.ID)),
		"the header first": r.follow(t, url+"?after=0", "Last-Event-ID", fmt.Sprint(first.ID)),
	} {
		if e := again.next(); e.ID != first.ID+1 {
			t.Errorf("resumed by %s at %+v", name, e)
		}
	}

	// More events than one read of the log takes, and a filter.
	one := r.follow(t, url+"?machine=w-1&after=0")
	for i := range 600 {
		r.logEvent("cp-1", fmt.Sprint(i))
	}
	r.logEvent("w-1", "me")
	if e := one.next(); e.Message != "me" {
		t.Errorf("%+v", e)
	}
	for i := range 600 {
		if e := f.next(); e.Message != fmt.Sprint(i) {
			t.Fatalf("event %d is %+v", i, e)
		}
	}
}

func TestWatchersAreBounded(t *testing.T) {
	r := seed(t, Config{MaxWatchers: 1})
	url := r.serve(t) + "/api/v1/events/watch"
	first := r.follow(t, url)
	if second := r.follow(t, url); second.resp.StatusCode != http.StatusServiceUnavailable {
		t.Errorf("a second follower got %d", second.resp.StatusCode)
	}
	first.cancel()
	deadline := time.Now().Add(20 * time.Second)
	for {
		again := r.follow(t, url)
		if again.resp.StatusCode == http.StatusOK {
			break
		}
		if time.Now().After(deadline) {
			t.Fatal("the place of a follower that left is never free")
		}
	}
}

func TestListEventsPages(t *testing.T) {
	r := newRig(t, Config{})
	for i := range 1200 {
		r.logEvent(fmt.Sprintf("m-%d", i%10), "x")
	}
	for query, want := range map[string]int{"": 1200, "machine=m-3": 120, "kind=removed": 0} {
		var ids []uint64
		after := "0"
		for after != "" {
			var l api.List[api.Event]
			r.must(200, "GET", "/api/v1/events?limit=70&after="+after+"&"+query, "", &l)
			for _, e := range l.Items {
				if len(ids) > 0 && e.ID <= ids[len(ids)-1] {
					t.Fatalf("%d after %d", e.ID, ids[len(ids)-1])
				}
				ids = append(ids, e.ID)
			}
			after = l.Next
		}
		if len(ids) != want {
			t.Errorf("%q: %d events, want %d", query, len(ids), want)
		}
	}
	var l api.List[api.Event]
	r.must(200, "GET", "/api/v1/events?limit=2&machine=m-9", "", &l)
	if len(l.Items) != 2 || l.Items[1].ID != 1200 {
		t.Errorf("the newest of m-9: %+v", l.Items)
	}
}
