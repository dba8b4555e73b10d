package admin

import (
	"context"
	"errors"
	"io"
	"net/http"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/provisiond/provisiond/api"
	"github.com/provisiond/provisiond/client"
)

// within is a context of a request under way of somebody.
func within(ctx context.Context, p *Principal) context.Context {
	return context.WithValue(ctx, callKey{}, &call{id: "outer", from: "[::1]:1", who: p})
}

// TestInside: what a page asks is asked by who looks at it, and is no other than what they
// would be answered themselves.
func TestInside(t *testing.T) {
	r := newRig(t, Config{})
	r.must(201, "POST", "/api/v1/machines", `{"name":"w-1","macs":["52:54:00:00:00:01"],"role":"worker"}`, nil)
	c, err := client.New("http://provisiond", client.Options{Transport: r.Inside()})
	if err != nil {
		t.Fatal(err)
	}
	stands := true
	ada := within(t.Context(), &Principal{Name: "ada", Via: ViaToken, Role: read, stands: func(context.Context, time.Time) bool { return stands }})
	if m, err := client.Answer[api.Machine](c.GetMachine(ada, "w-1")); err != nil || m.Name != "w-1" {
		t.Errorf("%+v, %v", m, err)
	}
	for want, ctx := range map[int]context.Context{
		401: t.Context(), 403: ada, 404: within(t.Context(), &Principal{Name: "bob", Role: operate, Clusters: []string{"prod"}}),
	} {
		var problem *client.Problem
		if err := client.Done(c.DeleteMachine(ctx, "w-1", client.DeleteMachineParams{})); !errors.As(err, &problem) || problem.Status != want {
			t.Errorf("want %d: %v", want, err)
		}
	}
	if _, err := r.inv.Machine(t.Context(), "w-1"); err != nil {
		t.Error(err)
	}
	stands = false // revoked, while their page is open
	var problem *client.Problem
	if err := client.Done(c.GetMachine(ada, "w-1")); !errors.As(err, &problem) || problem.Status != 401 {
		t.Errorf("who may no longer: %v", err)
	}
}

// TestInsideStream: a stream is read as it is written, and ends when it is closed.
func TestInsideStream(t *testing.T) {
	r := newRig(t, Config{MaxWatchers: 1})
	c, err := client.New("http://provisiond", client.Options{Transport: r.Inside()})
	if err != nil {
		t.Fatal(err)
	}
	ada := within(t.Context(), &Principal{Name: "ada", Role: read})
	for range 3 { // the only place is free again each time
		resp, err := c.WatchEvents(ada, client.WatchEventsParams{})
		if err != nil {
			t.Fatal(err)
		}
		first := make([]byte, len(": provisiond\n\n"))
		if _, err := io.ReadFull(resp.Body, first); err != nil {
			t.Fatal(err)
		}
		r.must(201, "POST", "/api/v1/machines", `{"name":"w-1","macs":["52:54:00:00:00:01"],"role":"worker"}`, nil)
		if _, err := io.ReadFull(resp.Body, first); err != nil || !strings.HasPrefix(string(first), "id: ") {
			t.Fatalf("%q, %v", first, err)
		}
		if err := resp.Body.Close(); err != nil {
			t.Fatal(err)
		}
		r.must(204, "DELETE", "/api/v1/machines/w-1", "", nil)
		for r.watchers.Taken() > 0 {
			runtime.Gosched() // until the operation has seen that nobody reads
		}
	}
}

// TestInsideLarge: a machine with all the patch that it can have does not break the streams
// of the others.
func TestInsideLarge(t *testing.T) {
	r := newRig(t, Config{})
	patch := `machine:\n  env:\n    X: '` + strings.Repeat("<", 1<<20-200) + `'\n`
	r.must(201, "POST", "/api/v1/machines", `{"name":"w-1","macs":["52:54:00:00:00:01"],"role":"worker","patches":["`+patch+`"]}`, nil)
	c, err := client.New("http://provisiond", client.Options{Transport: r.Inside()})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(within(t.Context(), &Principal{Name: "ada", Role: read}))
	defer cancel()
	var names []string
	open := func(last string) (*http.Response, error) {
		return c.WatchMachines(ctx, client.WatchMachinesParams{LastEventID: last})
	}
	err = client.FollowMessages(ctx, "", open, func(m client.Message) error {
		names = append(names, m.Event)
		if m.Event == "synced" {
			cancel()
		}
		return nil
	}, func(err error) { t.Error(err); cancel() })
	if err != nil || strings.Join(names, " ") != "machine synced" {
		t.Errorf("%q, %v", names, err)
	}
}
