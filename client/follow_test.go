package client_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/provisiond/provisiond/api"
	"github.com/provisiond/provisiond/client"
)

// follow follows the events, and returns what was taken, how streams broke, and the end.
func follow(t *testing.T, answer transport, enough int) (items []string, broke []string, err error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Hour) // of the bubble's
	defer cancel()
	c := newClient(t, answer)
	err = client.Follow(ctx, "7", func(last string) (*http.Response, error) {
		return c.WatchEvents(ctx, client.WatchEventsParams{LastEventID: last})
	}, func(e api.Event) error {
		items = append(items, fmt.Sprint(e.ID, " ", e.Message))
		if e.Message == "unwanted" {
			return errors.New("no more of this")
		}
		if len(items) == enough {
			cancel()
		}
		return nil
	}, func(err error) { broke = append(broke, err.Error()) })
	return items, broke, err
}

// TestFollow goes on where a stream broke off, a second later, with what was not taken.
func TestFollow(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		begin := time.Now()
		var resumed []string
		streams := []string{
			": hello\n\nid: 8\ndata: {\"id\":8,\"message\":\"one\"}\n\n:\n\nid: 9\ndata: {\"id\":9,\ndata: \"message\":\"two\"}\r\n\r\nid: 10\ndata: {\"id\":10,\"mess",
			"", // 503
			"id:10\ndata:{\"id\":10}\n\nid: 11\ndata: oops\n\n",
			"id: 11\ndata: {\"id\":11,\"message\":\"four\"}\n\nid: 12\ndata: {}\n\n",
		}
		items, broke, err := follow(t, func(r *http.Request) *http.Response {
			resumed = append(resumed, r.Header.Get("Last-Event-ID"))
			stream := streams[0]
			streams = streams[1:]
			if stream == "" {
				return answered(503, "application/problem+json", strings.NewReader(`{"status":503,"detail":"64 follow already"}`))
			}
			return answered(200, "text/event-stream", strings.NewReader(stream))
		}, 4)
		if err != nil || !slices.Equal(items, []string{"8 one", "9 two", "10 ", "11 four"}) || !slices.Equal(resumed, []string{"7", "9", "9", "10"}) {
			t.Errorf("%q, resumed after %q: %v", items, resumed, err)
		}
		want := []string{"unexpected EOF", "64 follow already", "the stream of http://provisiond: invalid character"}
		if !slices.EqualFunc(broke, want, strings.HasPrefix) {
			t.Errorf("broke: %q", broke)
		}
		if waited := time.Since(begin); waited != 3*time.Second {
			t.Errorf("waited %s", waited)
		}
	})
}

// TestFollowEnds: a refusal and an error of who takes it are final.
func TestFollowEnds(t *testing.T) { synctest.Test(t, testFollowEnds) }

func testFollowEnds(t *testing.T) {
	var p *client.Problem
	_, broke, err := follow(t, func(*http.Request) *http.Response {
		return answered(403, "application/problem+json", strings.NewReader(`{"status":403,"detail":"not yours"}`))
	}, 0)
	if !errors.As(err, &p) || p.Status != 403 || len(broke) > 0 {
		t.Errorf("refused: %v, %q", err, broke)
	}
	items, broke, err := follow(t, func(*http.Request) *http.Response {
		return answered(200, "text/event-stream", strings.NewReader("id: 8\ndata: {\"id\":8,\"message\":\"unwanted\"}\n\nid: 9\ndata: {}\n\n"))
	}, 0)
	if err == nil || err.Error() != "no more of this" || len(items) != 1 || len(broke) > 0 {
		t.Errorf("%q: %v, %q", items, err, broke)
	}
}

// endless is a line that does not end.
type endless struct{ read int }

func (e *endless) Read(p []byte) (int, error) {
	if e.read > 16<<20 {
		return 0, io.EOF
	}
	for i := range p {
		p[i] = "data: x"[min(e.read+i, 6)]
	}
	e.read += len(p)
	return len(p), nil
}

// TestFollowIsBounded: an event that does not end is not kept.
func TestFollowIsBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		bodies := []io.Reader{
			&endless{},
			strings.NewReader(strings.Repeat("data: "+strings.Repeat("x", 1000)+"\n", 8*api.MaxBody/1000+1)),
			strings.NewReader("id: 8\ndata: {\"id\":8}\n\n"),
		}
		items, broke, err := follow(t, func(*http.Request) *http.Response {
			body := bodies[0]
			bodies = bodies[1:]
			return answered(200, "text/event-stream", body)
		}, 1)
		if err != nil || len(items) != 1 || len(broke) != 2 || !strings.Contains(broke[0], "too long") || !strings.Contains(broke[1], "too long") {
			t.Errorf("%q %q %v", items, broke, err)
		}
	})
}

// TestFollowMessages: each with its kind, and an id alone is where to go on.
func TestFollowMessages(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		streams := []string{
			": hello\n\nid: 1\nevent: machine\ndata: {}\n\nid: 2\nevent: removed\ndata: 1\n\n",
			"id: 5\n\n: \n\nid: 6\nevent: lost\n",
			"event: synced\ndata: {}\n\n",
		}
		var asked, got []string
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		err := client.FollowMessages(ctx, "", func(last string) (*http.Response, error) {
			body := streams[len(asked)]
			asked = append(asked, last)
			return &http.Response{Body: io.NopCloser(strings.NewReader(body))}, nil
		}, func(m client.Message) error {
			if got = append(got, m.Event+strings.TrimSpace(string(m.Data))); m.Event == "synced" {
				cancel()
			}
			return nil
		}, func(error) {})
		if err != nil || strings.Join(got, " ") != "machine{} removed1 synced{}" || strings.Join(asked, " ") != " 2 5" {
			t.Errorf("%v: told %q, asked after %q", err, got, asked)
		}
	})
}
