package httpconfig

import (
	"net/http"
	"net/netip"
	"runtime"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"

	"github.com/provisiond/provisiond/internal/inventory"
)

// TestTransfersAreCounted: every answer by what it was and how it ended.
func TestTransfersAreCounted(t *testing.T) {
	for _, c := range []struct {
		name, method, target string
		kind                 kind
		outcome              outcome
		headers              []string
	}{
		{"kernel", "GET", imagePath + "kernel", kindKernel, complete, nil},
		{"initramfs", "GET", imagePath + "initramfs", kindInitramfs, complete, nil},
		{"loader", "GET", "/loader/amd64/snponly.efi", kindLoader, complete, nil},
		{"script", "GET", "/boot/52:54:00:00:00:01/boot.ipxe", kindScript, complete, nil},
		{"first script", "GET", "/boot.ipxe", kindScript, complete, nil},
		{"HEAD", "HEAD", imagePath + "kernel", kindKernel, part, nil},
		{"a range", "GET", imagePath + "kernel", kindKernel, part, []string{"Range", "bytes=1-"}},
		{"not modified", "GET", imagePath + "initramfs", kindInitramfs, part, []string{"If-None-Match", `"1n1trd"`}},
		{"no such image", "GET", "/image/v0.0.0/default/amd64/kernel", kindKernel, refused, nil},
		{"no such loader", "GET", "/loader/amd64/none.efi", kindLoader, refused, nil},
		{"config", "GET", configPath + token, kindConfig, complete, nil},
		{"no config", "GET", configPath + "x", kindConfig, refused, nil},
	} {
		t.Run(c.name, func(t *testing.T) {
			r := newRack(t)
			r.boots(bootNow(7, token))
			rec := r.ask(c.method, c.target, stable, c.headers...)
			for k := range numKinds {
				for o := range numOutcomes {
					want := 0.0
					if k == c.kind && o == c.outcome {
						want = 1
					}
					if n := testutil.ToFloat64(r.metrics.transfers[k][o]); n != want {
						t.Errorf("%v of %s, %s; want %v", n, kindNames[k], outcomeNames[o], want)
					}
				}
			}
			if n := testutil.ToFloat64(r.metrics.bytes[c.kind]); c.outcome != refused && n != float64(rec.Body.Len()) {
				t.Errorf("%v bytes, not %d", n, rec.Body.Len())
			}
		})
	}
}

// TestRefusalsAreCounted: every refusal has its class, which names nobody.
func TestRefusalsAreCounted(t *testing.T) {
	for _, c := range []struct {
		want  refusal
		path  string
		peer  netip.Addr
		spoil func(r *rack)
	}{
		{refusedForm, "/config/nobody/" + token, stable, nil},
		{refusedMAC, "/config/52:54:00:00:00:99/" + token, stable, nil},
		{refusedPlain, configPath + token, stable, nil},
		{refusedToken, configPath + "x", stable, nil},
		{refusedAge, configPath + token, stable, func(r *rack) {
			b := r.keeper.view.Facts.Boots[0]
			b.Started, b.Config = time.Now().Add(-25*time.Hour), time.Now().Add(-25*time.Hour)
		}},
		{refusedOver, configPath + token, stable, func(r *rack) { r.keeper.view.Facts.Boots[0].API = time.Now() }},
		{refusedAddress, configPath + token, alien, nil},
		{refusedApproval, configPath + token, stable, func(r *rack) { r.keeper.view.Cluster.Approval = inventory.ApprovalRequired }},
		{refusedPlan, configPath + token, stable, func(r *rack) {
			r.keeper.view.Facts.Install.Done, r.keeper.view.Facts.Boots[0].Plan = 1, inventory.Disk
		}},
		{refusedOften, configPath + token, alien, func(r *rack) {
			for range guessBurst {
				r.guessers.wrong(alien)
			}
		}},
	} {
		t.Run(refusalNames[c.want], func(t *testing.T) {
			r := newRack(t)
			r.boots(bootNow(7, token))
			if c.spoil != nil {
				c.spoil(r)
			}
			if c.want == refusedPlain {
				r.over(r.router, http.MethodGet, c.path, c.peer)
			} else {
				r.ask(http.MethodGet, c.path, c.peer)
			}
			for why := range numRefusals {
				want := 0.0
				if why == c.want {
					want = 1
				}
				if n := testutil.ToFloat64(r.metrics.refusals[why]); n != want {
					t.Errorf("%v of %s, want %v", n, refusalNames[why], want)
				}
			}
			if n := testutil.ToFloat64(r.metrics.grants); n != 0 {
				t.Errorf("%v configs given out", n)
			}
		})
	}
}

// TestHandshakesAreCounted: net/http tells of those that fail by a line of its log.
func TestHandshakesAreCounted(t *testing.T) {
	r := newRack(t)
	_, base := r.serveTLS(t)
	if _, err := (&http.Client{Transport: &http.Transport{}}).Get(base); err == nil {
		t.Fatal("anybody is trusted")
	}
	for deadline := time.Now().Add(20 * time.Second); testutil.ToFloat64(r.metrics.handshakes) != 1; runtime.Gosched() {
		if time.Now().After(deadline) {
			t.Fatal("not counted")
		}
	}
}

func TestCountingIsFree(t *testing.T) {
	m := newMetrics()
	if n := testing.AllocsPerRun(100, func() { m.ended(kindConfig, complete, 1<<14, time.Second) }); n > 0 {
		t.Errorf("%v allocations", n)
	}
}

func TestCollectors(t *testing.T) {
	reg := prometheus.NewPedanticRegistry()
	reg.MustRegister(newRack(t).Collectors()...)
	if problems, err := testutil.GatherAndLint(reg); err != nil || len(problems) > 0 {
		t.Error(problems, err)
	}
}
