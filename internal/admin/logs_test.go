package admin

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/provisiond/provisiond/api"
)

// fakeLogs is the logs of some machines in memory.
type fakeLogs struct {
	mu    sync.Mutex
	lines map[string][]api.LogLine
	wakes map[string][]chan struct{}
	err   error
}

func (f *fakeLogs) add(machine, text string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.lines == nil {
		f.lines, f.wakes = map[string][]api.LogLine{}, map[string][]chan struct{}{}
	}
	f.lines[machine] = append(f.lines[machine], api.LogLine{ID: uint64(len(f.lines[machine]) + 1), Time: time.Unix(1000, 0).UTC(), Kind: "kernel", Boot: 1, Text: text})
	for _, c := range f.wakes[machine] {
		select {
		case c <- struct{}{}:
		default:
		}
	}
}

func (f *fakeLogs) remove(machine string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, c := range f.wakes[machine] {
		close(c)
	}
	delete(f.wakes, machine)
}

func (f *fakeLogs) Tail(machine string, n int) ([]api.LogLine, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	list := f.lines[machine]
	return append([]api.LogLine{}, list[max(0, len(list)-n):]...), f.err
}

func (f *fakeLogs) After(machine string, id uint64) ([]api.LogLine, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	list := f.lines[machine]
	return append([]api.LogLine{}, list[min(int(id), len(list)):]...), f.err
}

func (f *fakeLogs) Watch(machine string) (<-chan struct{}, func(), error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	c := make(chan struct{}, 1)
	if f.wakes == nil {
		f.lines, f.wakes = map[string][]api.LogLine{}, map[string][]chan struct{}{}
	}
	f.wakes[machine] = append(f.wakes[machine], c)
	return c, func() {}, nil
}

func logTexts(lines []api.LogLine) string {
	var all []string
	for _, l := range lines {
		all = append(all, fmt.Sprintf("%d %s", l.ID, l.Text))
	}
	return strings.Join(all, ", ")
}

func TestListLogs(t *testing.T) {
	logs := &fakeLogs{}
	r := seed(t, Config{Logs: logs})
	const path = "/api/v1/machines/cp-1/logs"
	var l api.List[api.LogLine]
	if r.must(200, "GET", path, "", &l); l.Items == nil || len(l.Items) != 0 {
		t.Errorf("of a machine that said nothing: %+v", l)
	}
	for i := range 5 {
		logs.add("cp-1", fmt.Sprint("line ", i+1))
	}
	for query, want := range map[string]string{
		"": "1 line 1, 2 line 2, 3 line 3, 4 line 4, 5 line 5; ", "?limit=2": "4 line 4, 5 line 5; ",
		"?after=1&limit=2": "2 line 2, 3 line 3; 3", "?after=3&limit=2": "4 line 4, 5 line 5; ", "?after=5": "; ",
	} {
		l = api.List[api.LogLine]{}
		rec := r.must(200, "GET", path+query, "", &l)
		if got := logTexts(l.Items) + "; " + l.Next; got != want {
			t.Errorf("%s: %q, want %q", query, got, want)
		}
		if ct := rec.Header().Get("Content-Type"); ct != "application/json" {
			t.Errorf("Content-Type %s", ct)
		}
	}
	r.must(200, "GET", "/api/v1/machines/525400123456/logs", "", nil) // any of its MACs
	r.must(404, "GET", "/api/v1/machines/nobody/logs", "", nil)
	r.must(404, "GET", "/api/v1/machines/nobody/logs?follow=true", "", nil)
	for _, query := range []string{"?limit=0", "?limit=10001", "?after=x", "?follow=perhaps", "?nosuch=1"} {
		r.must(422, "GET", path+query, "", nil)
	}
	logs.err = errors.New("disk on fire")
	r.must(500, "GET", path, "", nil)
	seed(t, Config{}).must(503, "GET", path, "", nil)
}

// nextLine waits for a line.
func (f *follower) nextLine() (l api.LogLine, ok bool) {
	f.t.Helper()
	for f.lines.Scan() {
		if v, isData := strings.CutPrefix(f.lines.Text(), "data: "); isData {
			if err := json.Unmarshal([]byte(v), &l); err != nil {
				f.t.Fatal(err)
			}
			return l, true
		}
	}
	return l, false
}

func TestFollowLogs(t *testing.T) {
	logs := &fakeLogs{}
	r := seed(t, Config{Logs: logs, MaxWatchers: 16})
	url := r.serve(t) + "/api/v1/machines/cp-1/logs?follow=true"
	for i := range 5 {
		logs.add("cp-1", fmt.Sprint("line ", i+1))
	}
	var followers []*follower
	for _, tt := range []struct {
		f    *follower
		want string
	}{
		{r.follow(t, url+"&limit=2"), "4 line 4, 5 line 5"},
		{r.follow(t, url+"&limit=2&after=1"), "2 line 2, 3 line 3, 4 line 4, 5 line 5"},
		{r.follow(t, url+"&after=1", "Last-Event-ID", "3"), "4 line 4, 5 line 5"},
		{r.follow(t, url, "Last-Event-ID", "5"), ""}, // has all, and is not sent it again
	} {
		if ct := tt.f.resp.Header.Get("Content-Type"); ct != "text/event-stream" {
			t.Fatalf("Content-Type %s", ct)
		}
		var got []api.LogLine
		for range strings.Count(tt.want, "line") {
			l, _ := tt.f.nextLine()
			got = append(got, l)
		}
		if logTexts(got) != tt.want {
			t.Errorf("got %s, want %s", logTexts(got), tt.want)
		}
		followers = append(followers, tt.f)
	}
	logs.add("w-1", "somebody else")
	logs.add("cp-1", "more")
	for _, f := range followers {
		if l, _ := f.nextLine(); l.Text != "more" || l.ID != 6 {
			t.Errorf("then %+v", l)
		}
	}
	if full := r.follow(t, url); full.resp.StatusCode != http.StatusServiceUnavailable {
		t.Errorf("one follower too many got %d", full.resp.StatusCode)
	}
}

// The stream of a machine that is removed ends.
func TestFollowLogsOfARemovedMachine(t *testing.T) {
	logs := &fakeLogs{}
	r := seed(t, Config{Logs: logs})
	f := r.follow(t, r.serve(t)+"/api/v1/machines/cp-1/logs?follow=true")
	logs.add("cp-1", "last words")
	if l, _ := f.nextLine(); l.Text != "last words" {
		t.Errorf("%+v", l)
	}
	logs.remove("cp-1")
	if l, ok := f.nextLine(); ok {
		t.Errorf("after the end: %+v", l)
	}
}
