package httpconfig

import (
	"net/netip"
	"sync"
	"time"

	"golang.org/x/time/rate"
)

const (
	// guessBurst refused requests for configs are free to an address, then one every
	// guessEvery. A machine that holds an old token makes a dozen in its first hour.
	guessBurst = 30
	guessEvery = 10 * time.Second
	// maxGuessers bounds the memory. Whoever has so many addresses begins anew.
	maxGuessers = 4096
)

// guesses keeps addresses whose requests for configs are refused again and again from
// costing us anything. A token of 128 random bits is not guessed; but it may be tried.
type guesses struct {
	mu sync.Mutex
	by map[netip.Addr]*rate.Limiter
}

func newGuesses() *guesses { return &guesses{by: map[netip.Addr]*rate.Limiter{}} }

// allowed reports whether an address may still be looked at.
func (g *guesses) allowed(a netip.Addr) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	l := g.by[a]
	return l == nil || l.Tokens() >= 1
}

// wrong counts a request that was refused.
func (g *guesses) wrong(a netip.Addr) {
	g.mu.Lock()
	defer g.mu.Unlock()
	l := g.by[a]
	if l == nil {
		if len(g.by) >= maxGuessers {
			clear(g.by)
		}
		l = rate.NewLimiter(rate.Every(guessEvery), guessBurst)
		g.by[a] = l
	}
	l.Allow()
}
