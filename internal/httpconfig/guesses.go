package httpconfig

import (
	"sync"
	"time"

	"golang.org/x/time/rate"
)

const (
	// guessBurst refused requests for configs are free, from an address and for a NIC,
	// then one every guessEvery. A machine that holds an old token makes a dozen in its
	// first hour.
	guessBurst = 30
	guessEvery = 10 * time.Second
	// maxGuessed bounds the memory. Whoever has so many addresses begins anew.
	maxGuessed = 4096
)

// guesses counts refused requests for configs, by who makes them or by what they are
// for. A token of 128 random bits is not guessed; but it may be tried, and that must
// cost us little.
type guesses[K comparable] struct {
	mu sync.Mutex
	by map[K]*rate.Limiter
}

func newGuesses[K comparable]() *guesses[K] { return &guesses[K]{by: map[K]*rate.Limiter{}} }

// allowed reports whether there may be another.
func (g *guesses[K]) allowed(k K) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	l := g.by[k]
	return l == nil || l.Tokens() >= 1
}

// wrong counts one, and reports whether it was allowed.
func (g *guesses[K]) wrong(k K) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	l := g.by[k]
	if l == nil {
		if len(g.by) >= maxGuessed {
			clear(g.by)
		}
		l = rate.NewLimiter(rate.Every(guessEvery), guessBurst)
		g.by[k] = l
	}
	return l.Allow()
}
