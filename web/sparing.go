package web

import (
	"context"
	"time"
)

// lifetime is how old something may be that took so long to find out, while a page is kept up to
// date: so that one page takes no more than a fiftieth of a core. It is least at least.
func lifetime(took, least time.Duration) time.Duration { return max(least, 50*took) }

// sparing gathers parts again only when they have lived, for least at least.
func (p *Pages) sparing(least time.Duration, gather liveParts) liveParts {
	var parts []part // nil: there are none yet
	var at time.Time
	var life time.Duration
	return func(ctx context.Context) ([]part, error) {
		start := p.now()
		if parts != nil && start.Sub(at) < life {
			return parts, nil
		}
		now, err := gather(ctx)
		if err != nil {
			return nil, err
		}
		parts, at, life = now, start, lifetime(p.now().Sub(start), least)
		return parts, nil
	}
}
