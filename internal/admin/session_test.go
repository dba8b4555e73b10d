package admin

import (
	"context"
	"fmt"
	"net/http"
	"net/http/httptest"
	"testing"
	"time"
)

// holding is a request with a cookie.
func holding(t *testing.T, id string) *http.Request {
	r := httptest.NewRequestWithContext(t.Context(), http.MethodGet, "https://[::1]/", nil)
	r.AddCookie(&http.Cookie{Name: sessionCookie, Value: id})
	return r
}

func TestSessionsEnd(t *testing.T) {
	start := time.Now()
	good := true
	p := Principal{Name: "ada", Via: ViaToken, Role: read, stands: func(context.Context, time.Time) bool { return good }}
	for what, tc := range map[string]struct {
		minutes []int // when it was asked
		known   bool  // the last time
	}{
		"at once":               {[]int{0}, true},
		"in the first hour":     {[]int{59}, true},
		"idle for an hour":      {[]int{60}, false},
		"used before that":      {[]int{59, 118}, true},
		"idle later":            {[]int{59, 119}, false},
		"used for twelve hours": {[]int{55, 110, 165, 220, 275, 330, 385, 440, 495, 550, 605, 660, 715, 720}, false},
	} {
		table := newSessions()
		id := table.begin(p, start)
		for i, m := range tc.minutes {
			known := table.of(holding(t, id), start.Add(time.Duration(m)*time.Minute)) != nil
			if last := i == len(tc.minutes)-1; known != (tc.known || !last) {
				t.Errorf("%s: known after %d minutes: %t", what, m, known)
			}
		}
		if !tc.known && len(table.by) > 0 {
			t.Errorf("%s: it ended and is kept", what)
		}
	}

	table := newSessions()
	one, two := table.begin(p, start), table.begin(p, start)
	if one == two || len(one) != 43 {
		t.Errorf("ids %q and %q", one, two)
	}
	for _, id := range []string{"", one[1:], one + "A", two + "="} {
		if table.of(holding(t, id), start) != nil {
			t.Errorf("%q is a session", id)
		}
	}
	who := table.of(holding(t, one), start)
	if who == nil || !who.InSession() || !who.stands(t.Context(), start) || who.Role != read {
		t.Fatalf("%+v", who)
	}
	table.end(who.session)
	if table.of(holding(t, one), start) != nil || who.stands(t.Context(), start) {
		t.Error("who has logged out goes on")
	}
	who = table.of(holding(t, two), start)
	good = false // its token was revoked
	if who.stands(t.Context(), start) || table.of(holding(t, two), start) != nil {
		t.Error("whose token was revoked goes on")
	}
	if good = true; table.of(holding(t, two), start) != nil {
		t.Error("what has ended begins again")
	}
}

// TestSessionsAreBounded: nobody's logins end those of others, but for the very many.
func TestSessionsAreBounded(t *testing.T) {
	table, now := newSessions(), time.Now()
	ada := table.begin(Principal{Name: "ada", Via: ViaToken}, now)
	eve := table.begin(Principal{Name: "eve", Via: ViaToken}, now)
	for i := range 3 * maxSessionsEach {
		table.begin(Principal{Name: "eve", Via: ViaToken}, now.Add(time.Duration(i+1)))
	}
	if len(table.by) != maxSessionsEach+1 || table.of(holding(t, ada), now) == nil || table.of(holding(t, eve), now) != nil {
		t.Errorf("%d sessions", len(table.by))
	}
	if table.begin(Principal{Name: "eve", Via: ViaOIDC}, now); len(table.by) != maxSessionsEach+2 {
		t.Error("somebody else of the same name")
	}
	for i := range 2 * maxSessions {
		table.begin(Principal{Name: fmt.Sprint(i), Via: ViaOIDC}, now.Add(time.Minute))
	}
	if len(table.by) != maxSessions {
		t.Errorf("%d sessions", len(table.by))
	}
	if table.begin(Principal{Name: "late"}, now.Add(2*time.Hour)); len(table.by) != 1 {
		t.Errorf("%d sessions that are over are kept", len(table.by)-1)
	}
}
