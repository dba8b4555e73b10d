package inventory

import (
	"slices"
	"testing"
	"time"
)

// TestTurns: between two of them the state of a machine that nothing is heard of is the
// same, and at each it may be another.
func TestTurns(t *testing.T) {
	p := DefaultPatience()
	for name, set := range map[string]func(*Facts){
		"registered": func(*Facts) {},
		"offered":    func(f *Facts) { f.Boots = []*Boot{{Started: t0, Offered: t0}} },
		"waits to be approved": func(f *Facts) {
			f.Boots = []*Boot{{Started: t0, Initramfs: t0, Flows: []Flow{{Asked: t0, Expires: t0.Add(30 * time.Minute)}}}}
		},
		"approved": func(f *Facts) {
			f.Boots = []*Boot{{Started: t0, Initramfs: t0, Flows: []Flow{{Asked: t0, Expires: t0.Add(30 * time.Minute), Decided: t0}}}}
		},
		"ready": func(f *Facts) { f.Ready, f.StageAt, f.APIAt = true, t0.Add(-time.Hour), t0 },
	} {
		t.Run(name, func(t *testing.T) {
			v := registered()
			set(&v.Facts)
			turns := p.Turns(v)
			last := p.PhaseOf(v, t0)
			for now := t0; now.Before(t0.Add(2 * time.Hour)); now = now.Add(time.Second) {
				state := p.PhaseOf(v, now)
				// The second of a turn is the last of what was before it, or the first after.
				if state != last && !slices.ContainsFunc(turns, func(at time.Time) bool { return now.Sub(at) >= 0 && now.Sub(at) <= time.Second }) {
					t.Errorf("%v after its start it is %+v, before it was %+v; turns %v", now.Sub(t0), state, last, turns)
				}
				last = state
			}
			if moves := name != "registered"; moves != (last.Phase == PhaseStalled) {
				t.Errorf("at last it is %+v", last)
			}
		})
	}
}
