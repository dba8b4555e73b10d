package web

import (
	"context"
	"fmt"
	"math/rand/v2"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/chromedp/cdproto/cdp"
	"github.com/chromedp/cdproto/performance"
	"github.com/chromedp/chromedp"
	"github.com/chromedp/chromedp/kb"

	"github.com/provisiond/provisiond/internal/browsertest"
	"github.com/provisiond/provisiond/internal/inventory"
)

// BenchmarkRack opens the rack in a browser while 1,000 machines boot, at 300 steps a
// second, which is a boot of all of them in half a minute. It reports, of each second,
//
//   - script-ms/s: how long the browser runs scripts, and task-ms/s all that its main thread does;
//   - page-ms/s: how much more CPU the daemon takes with the page open than without it, and
//     page/boots: the same beside what the steps themselves take;
//   - late-ms: how long a step takes to be seen on the page.
func BenchmarkRack(b *testing.B) {
	const machines, rate, span = 1000, 300, 10 * time.Second
	s := newSite(b, nil)
	for i := range machines {
		s.machine(fmt.Sprintf("m-%04d", i), benchMAC(i), "web", inventory.Worker)
	}
	boots := &boots{s: s, at: make([]int, machines)}
	ctx, stop := context.WithCancel(context.Background())
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		boots.run(ctx, rate)
	}()
	defer func() {
		stop()
		<-ended
	}()
	token := s.token("ada", inventory.AccessOperate)
	for b.Loop() {
		without := cpu(b, span)
		c := browsertest.New(b, s.addr, s.ca.Pool())
		c.Do(chromedp.Navigate(c.Base + "/"))
		c.Sees("#token:focus")
		c.Press(token + kb.Enter)
		c.Sees("#list")
		c.Do(browsertest.Call(performance.Enable, performance.EnableParams{TimeDomain: performance.EnableTimeDomainThreadTicks}))
		before := metrics(b, c)
		with := cpu(b, span)
		after := metrics(b, c)
		per := func(name string) float64 { return (after[name] - before[name]) / span.Seconds() * 1000 }
		b.ReportMetric(per("ScriptDuration"), "script-ms/s")
		b.ReportMetric(per("TaskDuration"), "task-ms/s")
		b.ReportMetric((with-without).Seconds()/span.Seconds()*1000, "page-ms/s")
		b.ReportMetric((with-without).Seconds()/without.Seconds(), "page/boots")

		const looks = 10
		var late time.Duration
		for i := range looks {
			name, word := fmt.Sprintf("m-%04d", i), fmt.Sprintf("look %d", i)
			boots.mu.Lock() // or the machine would go on before anybody looks
			s.record(inventory.Event{Kind: inventory.ScriptServed, Machine: name, Plan: inventory.Hold, Error: word})
			start := time.Now()
			for !strings.Contains(browsertest.Eval[string](c, fmt.Sprintf(`document.querySelector('[sse-swap="%s/reason"]').innerText`, name)), word) {
				if time.Since(start) > time.Minute {
					b.Fatalf("%s: nothing is seen", name)
				}
			}
			late += time.Since(start)
			boots.mu.Unlock()
		}
		b.ReportMetric(late.Seconds()*1000/looks, "late-ms")
	}
	b.ReportMetric(0, "ns/op")
}

// boots are machines that boot, each again when it has.
type boots struct {
	s  *site
	mu sync.Mutex
	at []int // steps that a machine has done
}

// run has machines do so many steps together a second.
func (x *boots) run(ctx context.Context, rate int) {
	tick := time.NewTicker(time.Second / time.Duration(rate))
	defer tick.Stop()
	for ctx.Err() == nil {
		x.mu.Lock()
		x.next(rand.IntN(len(x.at)))
		x.mu.Unlock()
		select {
		case <-ctx.Done():
		case <-tick.C:
		}
	}
}

var benchSteps = []inventory.Event{
	{Kind: inventory.Solicited, Client: inventory.FirmwarePXE}, {Kind: inventory.Offered, Plan: inventory.Install}, {Kind: inventory.LoaderServed},
	{Kind: inventory.ScriptServed, Plan: inventory.Install}, {Kind: inventory.KernelServed}, {Kind: inventory.InitramfsServed}, {Kind: inventory.ConfigServed},
	{Kind: inventory.Reported, Stage: inventory.StageInstalling},
}

func (x *boots) next(i int) {
	e := benchSteps[x.at[i]%len(benchSteps)]
	e.Machine, e.MAC, e.XID = fmt.Sprintf("m-%04d", i), benchMAC(i), uint32(x.at[i])
	x.at[i]++
	x.s.record(e)
}

func benchMAC(i int) inventory.MAC {
	return inventory.MAC(fmt.Sprintf("52:54:00:01:%02x:%02x", i>>8, i&255))
}

// cpu is what this process takes of the processors in a while: the daemon, and not the browser.
func cpu(b *testing.B, span time.Duration) time.Duration {
	b.Helper()
	taken := func() time.Duration {
		var u syscall.Rusage
		if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
			b.Fatal(err)
		}
		return time.Duration(u.Utime.Nano() + u.Stime.Nano())
	}
	before := taken()
	time.Sleep(span)
	return taken() - before
}

// metrics are Chromium's own, in seconds.
func metrics(b *testing.B, c *browsertest.Chromium) map[string]float64 {
	b.Helper()
	out := map[string]float64{}
	for _, m := range browsertest.Ask(c, performance.GetMetrics, cdp.Empty{}).Metrics {
		out[m.Name] = m.Value
	}
	return out
}
