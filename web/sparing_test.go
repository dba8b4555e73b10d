package web

import (
	"context"
	"io"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/provisiond/provisiond/internal/inventory"
)

// calls is what pages call of the API. Tests may have a call take time, on the clock of the
// site, or answer something else.
type calls struct {
	to   http.RoundTripper
	late *atomic.Int64

	mu     sync.Mutex
	asked  map[string]int // path: how often
	cost   time.Duration  // of each call
	answer map[string]string
	last   context.Context // who asked
}

// RoundTrip implements http.RoundTripper.
func (c *calls) RoundTrip(r *http.Request) (*http.Response, error) {
	c.mu.Lock()
	if c.asked == nil {
		c.asked = map[string]int{}
	}
	c.asked[r.URL.Path]++
	c.last = r.Context()
	c.late.Add(int64(c.cost))
	text, instead := c.answer[r.URL.Path]
	c.mu.Unlock()
	if instead {
		return &http.Response{StatusCode: http.StatusOK, Header: http.Header{"Content-Type": {"application/json"}}, Body: io.NopCloser(strings.NewReader(text)), Request: r}, nil
	}
	return c.to.RoundTrip(r)
}

// times is how often a path was asked for since the last look.
func (c *calls) times(path string) int {
	c.mu.Lock()
	defer c.mu.Unlock()
	n := c.asked[path]
	delete(c.asked, path)
	return n
}

// live begins to keep a page up to date for an operator. It returns what gathers its parts.
func (s *site) live(begin func(*http.Request) (liveParts, error), path string, names ...string) func() {
	s.t.Helper()
	s.in(s.token("ada", inventory.AccessOperate)).get("/clusters/web")
	s.calls.mu.Lock()
	ctx := context.WithoutCancel(s.calls.last)
	s.calls.mu.Unlock()
	r, err := http.NewRequestWithContext(ctx, http.MethodGet, path, nil)
	if err != nil {
		s.t.Fatal(err)
	}
	for i := 0; i+1 < len(names); i += 2 {
		r.SetPathValue(names[i], names[i+1])
	}
	gather, err := begin(r)
	if err != nil {
		s.t.Fatal(err)
	}
	return func() {
		s.t.Helper()
		if parts, err := gather(ctx); err != nil || len(parts) == 0 {
			s.t.Fatalf("%d parts, %v", len(parts), err)
		}
	}
}

// TestLiveLargeCluster: that its page is open costs little, however large a cluster is.
func TestLiveLargeCluster(t *testing.T) {
	s := newSite(t, nil)
	s.calls.answer = map[string]string{"/api/v1/status": `{"machines":5000,"clusters":[{"name":"web","machines":5000}]}`}
	gather := s.live(s.pages.liveCluster, "/clusters/web/live", "cluster", "web")
	s.calls.times("/api/v1/machines")
	gather()
	if n := s.calls.times("/api/v1/machines"); n != 2 { // of each role
		t.Errorf("at first it is asked %d times", n)
	}
	s.late.Add(int64(rarely / 2))
	if gather(); s.calls.times("/api/v1/machines") != 0 {
		t.Error("it is asked again soon")
	}
	s.calls.cost = time.Second // four calls
	s.late.Add(int64(rarely))
	if gather(); s.calls.times("/api/v1/machines") != 2 {
		t.Error("it is not asked again")
	}
	s.late.Add(int64(100 * time.Second))
	if gather(); s.calls.times("/api/v1/machines") != 0 {
		t.Error("what takes four seconds is asked again within two minutes")
	}
	s.late.Add(int64(150 * time.Second))
	if gather(); s.calls.times("/api/v1/machines") != 2 {
		t.Error("it is not asked again")
	}
}

// TestLiveDiscoveredCosts: the list is asked for with each beat, unless that takes long.
func TestLiveDiscoveredCosts(t *testing.T) {
	s := newSite(t, nil)
	gather := s.live(s.pages.liveDiscovered, "/discovered/live")
	gather()
	s.late.Add(int64(time.Minute))
	if gather(); s.calls.times("/api/v1/discovered") != 2 {
		t.Error("it is not asked again")
	}
	s.calls.cost = 2 * time.Second
	s.late.Add(int64(time.Minute))
	gather()
	s.late.Add(int64(time.Minute))
	if gather(); s.calls.times("/api/v1/discovered") != 1 {
		t.Error("what takes two seconds is asked again after one minute")
	}
	s.late.Add(int64(time.Minute))
	if gather(); s.calls.times("/api/v1/discovered") != 1 {
		t.Error("it is not asked again")
	}
}
