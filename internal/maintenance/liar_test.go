package maintenance

import (
	"context"
	"net/netip"
	"testing"
	"testing/synctest"
	"time"

	"github.com/rs/zerolog"

	"github.com/provisiond/provisiond/internal/audit"
)

// slowTalos is one whose questions take long.
type slowTalos struct{ *rack }

func (s slowTalos) Ask(ctx context.Context, a netip.Addr) (*Answer, error) {
	time.Sleep(3 * time.Second)
	return s.rack.Ask(ctx, a)
}

// TestHeardByALiar has somebody on the segment ask for routers with a machine's MAC, all
// the time: the machine is asked at its own address all the same.
func TestHeardByALiar(t *testing.T) {
	liar := netip.MustParseAddr("fe80::bad").WithZone("rack0")
	for name, answers := range map[string]bool{"he answers": true, "he is silent": false} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				r := newRack(t)
				m := r.register("cp-1", mac(1))
				if answers {
					r.starts("liar", mac(1), liar)
				}
				ctx, cancel := context.WithTimeout(t.Context(), 30*time.Minute)
				defer cancel()
				a := New(Deps{Inventory: r.k, Talos: slowTalos{r}, Configs: r, Neighbours: r, Trail: r}, zerolog.Nop())
				done := make(chan error)
				go func() { done <- a.Run(ctx) }()
				for i := 0; ctx.Err() == nil; i++ {
					if i == 120 {
						r.starts("key", mac(1), m.Address)
					}
					a.Heard(mac(1), liar)
					time.Sleep(500 * time.Millisecond)
				}
				if err := <-done; err != nil {
					t.Error(err)
				}
				if len(r.given) == 0 {
					t.Error("it has no config")
				}
			})
		})
	}
}

// TestRefusalsAreFew has somebody answer for a machine from many addresses.
func TestRefusalsAreFew(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRack(t)
		r.register("cp-1", mac(1))
		var liars []netip.Addr
		for i := range 200 {
			b := netip.MustParseAddr("fe80::bad:0").As16()
			b[15] = byte(i)
			liars = append(liars, netip.AddrFrom16(b).WithZone("rack0"))
		}
		r.starts("liar", mac(1), liars...)
		r.runs(time.Hour, func(a *Actor) {
			for i := range 36000 {
				a.Heard(mac(1), liars[i%len(liars)])
				time.Sleep(100 * time.Millisecond)
			}
		})
		n := 0
		for _, e := range r.trail {
			if e.Outcome == audit.Refused {
				n++
			}
		}
		if n == 0 || n > 60 {
			t.Errorf("%d refusals are in the trail of an hour", n)
		}
	})
}
