package admin

import (
	"context"
	"sync"
)

// Places are for what lasts: so many at once, and no more than a quarter of them for one
// caller, who cannot keep the others out.
type Places struct {
	most int

	mu    sync.Mutex
	taken int
	by    map[caller]int
}

// caller is who has a place.
type caller struct {
	via  Via
	name string
}

// NewPlaces returns so many places.
func NewPlaces(most int) *Places { return &Places{most: most, by: map[caller]int{}} }

// Take takes a place for who sends the request under way, until leave is called, once.
func (p *Places) Take(ctx context.Context) (leave func(), ok bool) {
	var who caller
	if x := PrincipalOf(ctx); x != nil {
		who = caller{x.Via, x.Name}
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.taken >= p.most || p.by[who] >= max(1, p.most/4) {
		return nil, false
	}
	p.taken++
	p.by[who]++
	return func() {
		p.mu.Lock()
		defer p.mu.Unlock()
		p.taken--
		if p.by[who]--; p.by[who] == 0 {
			delete(p.by, who)
		}
	}, true
}

// Taken returns how many are.
func (p *Places) Taken() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.taken
}
