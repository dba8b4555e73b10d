package admin

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"maps"
	"net/http"
	"sync"
	"time"
)

// sessionCookie is what a browser that has logged in sends. Because of its prefix a
// browser takes it from this very host only, over TLS only, for all paths (RFC 6265bis
// section 4.1.3.2): no neighbour can plant one.
const sessionCookie = "__Host-provisiond"

const (
	// sessionIdle and sessionLife are how long a session lasts without a request, and at
	// most (OWASP ASVS 5.0, 7.3).
	sessionIdle = time.Hour
	sessionLife = 12 * time.Hour
	// maxSessionsEach is how many browsers of one person are logged in, and maxSessions
	// how many together. One more ends the one that has been idle longest.
	maxSessionsEach = 16
	maxSessions     = 1024
)

// sessions are the browsers that are logged in. They are in memory only: on disk they
// would be secrets that a backup brings back after a logout, and a restart, which is
// rare, costs people no more than a login.
type sessions struct {
	mu sync.Mutex
	// By hash, so that how long a look-up takes says nothing of an id that is there.
	by map[[sha256.Size]byte]*session
}

// session is one browser.
type session struct {
	key         [sha256.Size]byte
	who         *Principal
	begun, seen time.Time
}

func newSessions() *sessions { return &sessions{by: map[[sha256.Size]byte]*session{}} }

// begin returns the id, 256 random bits, of a new session of somebody.
func (t *sessions) begin(p Principal, now time.Time) string {
	var secret [32]byte
	_, _ = rand.Read(secret[:]) // never fails (crypto/rand)
	id := base64.RawURLEncoding.EncodeToString(secret[:])
	x := &session{key: sha256.Sum256([]byte(id)), who: &p, begun: now, seen: now}
	vouched := p.stands
	p.session = x
	p.stands = func(ctx context.Context, now time.Time) bool {
		return t.has(x, now) && (vouched == nil || vouched(ctx, now))
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	maps.DeleteFunc(t.by, func(_ [sha256.Size]byte, o *session) bool { return o.over(now) })
	t.room(maxSessionsEach, func(o *session) bool { return o.who.Via == p.Via && o.who.Name == p.Name })
	t.room(maxSessions, func(*session) bool { return true })
	t.by[x.key] = x
	return id
}

// room sees to it that one more fits among those that count.
func (t *sessions) room(most int, counts func(*session) bool) {
	var idle *session
	n := 0
	for _, o := range t.by {
		if !counts(o) {
			continue
		}
		if n++; idle == nil || o.seen.Before(idle.seen) {
			idle = o
		}
	}
	if n >= most {
		delete(t.by, idle.key)
	}
}

// of returns who a request's cookie says it is; nil: nobody. It ends a session that has
// lasted its time, or whose owner is no longer let in.
func (t *sessions) of(r *http.Request, now time.Time) *Principal {
	c, err := r.Cookie(sessionCookie)
	if err != nil {
		return nil
	}
	t.mu.Lock()
	x := t.by[sha256.Sum256([]byte(c.Value))]
	if x != nil && !x.over(now) && r.Header.Get("Accept") != "text/event-stream" {
		x.seen = now // a page that is open asks by itself for what is new
	}
	t.mu.Unlock()
	switch {
	case x == nil:
		return nil
	case !x.who.stands(r.Context(), now):
		t.end(x)
		return nil
	}
	return x.who
}

func (t *sessions) end(x *session) {
	t.mu.Lock()
	defer t.mu.Unlock()
	delete(t.by, x.key)
}

func (t *sessions) has(x *session, now time.Time) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.by[x.key] == x && !x.over(now)
}

func (x *session) over(now time.Time) bool {
	return now.Sub(x.seen) >= sessionIdle || now.Sub(x.begun) >= sessionLife
}

// setCookie gives a browser the id of its session; empty: takes it away.
func setCookie(w http.ResponseWriter, id string) {
	c := &http.Cookie{Name: sessionCookie, Value: id, Path: "/", Secure: true, HttpOnly: true, SameSite: http.SameSiteStrictMode}
	if id == "" {
		c.MaxAge = -1
	}
	http.SetCookie(w, c)
}

// hides reports whether a request that changes something carries a session and does not
// say from where it is sent. Only browsers have sessions, and those say.
func hides(r *http.Request) bool {
	switch r.Method {
	case http.MethodGet, http.MethodHead, http.MethodOptions:
		return false
	}
	_, err := r.Cookie(sessionCookie)
	return err == nil && r.Header.Get("Sec-Fetch-Site") == "" && r.Header.Get("Origin") == ""
}
