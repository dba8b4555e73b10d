// Package monitor asks the API of every machine that should have one how it is,
// and records what it proves: that the config arrived, that the install is
// done, that the machine is ready.
package monitor

import (
	"context"
	"errors"
	"net/netip"
	"time"

	"github.com/rs/zerolog"
	"golang.org/x/time/rate"

	"github.com/provisiond/provisiond/internal/inventory"
)

const (
	soon    = 2 * time.Second // a machine that is expected to come up, then ever less
	seldom  = time.Minute     // one that is up, or has been silent for long
	timeout = 8 * time.Second // for one answer
	workers = 64
	page    = 512
	// perSecond bounds how many machines are asked in a second: a hall that is
	// switched on at once is served its configs first.
	perSecond = 100
	// breath is the least time between two looks at what happened.
	breath = time.Second / 10
)

// Inventory is what the monitor reads and records.
type Inventory interface {
	Machines(ctx context.Context, after string, limit int) ([]inventory.View, error)
	Machine(ctx context.Context, ref string) (inventory.View, error)
	Keys(ctx context.Context, v inventory.View) ([]inventory.Keys, error)
	Record(ctx context.Context, e inventory.Event) (inventory.View, error)
	// WatchMachines returns a channel that receives when something happened to
	// machines, and take, which names them; not what Record itself was told.
	WatchMachines() (wake <-chan struct{}, take func() []string, stop func())
}

// Talos is the API of a machine over mTLS. Status returns an error when no API
// with a certificate of the cluster's CA answers within the deadline of ctx.
type Talos interface {
	Status(ctx context.Context, cl *inventory.Cluster, s *inventory.Secrets, addr netip.Addr) (Status, error)
}

// Status is what a machine says of itself.
type Status struct {
	Stage      inventory.Stage
	Ready      bool
	SecureBoot inventory.Switch // of its firmware; empty: it did not say
}

// Monitor watches over machines that have, or should soon have, an API.
type Monitor struct {
	inv   Inventory
	talos Talos
	log   zerolog.Logger

	probes probes

	pace  *rate.Limiter
	turns map[string]*turn // by machine; owned by Run
}

// turn is when a machine is asked next.
type turn struct {
	at     time.Time
	wait   time.Duration // before that, when it does not answer; doubles
	asking bool
}

// answer is how a question to one machine ended.
type answer struct {
	machine string
	again   time.Duration // 0: it is not to be asked any more
	silent  bool
}

// New returns a monitor. It does nothing until Run.
func New(inv Inventory, talos Talos, log zerolog.Logger) *Monitor {
	return &Monitor{inv: inv, talos: talos, log: log, probes: newProbes(), pace: rate.NewLimiter(perSecond, perSecond), turns: map[string]*turn{}}
}

// Run asks machines until ctx ends. At start it looks at every machine once;
// from then on those to which something happened. A machine
// that does not answer takes up one of several workers for some seconds and is
// asked less and less, until something happens to it.
func (m *Monitor) Run(ctx context.Context) error {
	woken, take, stop := m.inv.WatchMachines()
	defer stop()
	var wake <-chan struct{}
	if err := m.scan(ctx); err != nil && ctx.Err() == nil {
		return err
	}
	answers := make(chan answer, workers)
	asking := 0
	var followed time.Time
	behind := false // something happened since
	defer func() {
		for ; asking > 0; asking-- {
			<-answers
		}
	}()
	for {
		if behind && time.Since(followed) >= breath {
			followed, behind = time.Now(), false
			for _, name := range take() {
				m.now(name)
			}
		}
		next := seldom
		for asking < workers {
			var name string
			if name, next = m.due(time.Now()); name == "" {
				break
			}
			m.turns[name].asking = true
			asking++
			go func() { answers <- m.ask(ctx, name) }()
		}
		if behind {
			next = min(next, breath-time.Since(followed))
		}
		timer := time.NewTimer(next)
		if behind {
			wake = nil // it would only say the same again
		} else {
			wake = woken
		}
		select {
		case <-ctx.Done():
			timer.Stop()
			return nil
		case a := <-answers:
			asking--
			m.settle(a)
		case <-timer.C:
		case <-wake:
			behind = true
		}
		timer.Stop()
	}
}

// due returns a machine whose turn has come, or none and how long to wait.
func (m *Monitor) due(now time.Time) (name string, wait time.Duration) {
	wait = seldom
	for n, t := range m.turns {
		if t.asking {
			continue
		}
		if left := t.at.Sub(now); left > 0 {
			wait = min(wait, left)
			continue
		}
		if !m.pace.AllowN(now, 1) {
			return "", time.Second / perSecond
		}
		return n, 0 // ranging over a map favours none
	}
	return "", wait
}

// settle takes an answer into account.
func (m *Monitor) settle(a answer) {
	t := m.turns[a.machine]
	if t.asking = false; a.again == 0 {
		delete(m.turns, a.machine)
		return
	}
	if a.silent {
		t.wait = min(max(t.wait*3/2, a.again), seldom)
	} else {
		t.wait = a.again
	}
	t.at = time.Now().Add(t.wait)
}

// now has a machine asked at once.
func (m *Monitor) now(name string) {
	t, ok := m.turns[name]
	if !ok {
		t = &turn{}
		m.turns[name] = t
	}
	t.at, t.wait = time.Now(), 0
}

func (m *Monitor) scan(ctx context.Context) error {
	for after := ""; ; {
		views, err := m.inv.Machines(ctx, after, page)
		if err != nil {
			return err
		}
		for _, v := range views {
			if every(v) > 0 {
				m.now(v.Machine.Name)
			}
			after = v.Machine.Name
		}
		if len(views) < page {
			return nil
		}
	}
}

// every is how often a machine's API is worth asking; 0 is never.
func every(v inventory.View) time.Duration {
	b := v.Facts.Current()
	switch {
	case v.Cluster == nil && v.Facts.Holds.Cluster == "":
		return 0
	case v.Facts.Ready:
		return seldom
	case b == nil && (v.Cluster != nil && v.Cluster.Imported || !v.Facts.APIAt.IsZero()):
		return seldom // it may run already, from before our time
	case b == nil:
		return 0
	case b.Plan == inventory.Disk || !b.Script.IsZero() || !b.Config.IsZero():
		return soon
	case !v.Facts.ConfigAt.IsZero() || !v.Facts.APIAt.IsZero() || v.Facts.Reimage.Claimed():
		return seldom // it may have gone no further, and come up from its disk
	}
	return 0
}

// ask asks one machine.
func (m *Monitor) ask(ctx context.Context, name string) answer {
	never := answer{machine: name}
	v, err := m.inv.Machine(ctx, name)
	if errors.Is(err, inventory.ErrNotFound) {
		return never
	} else if err != nil {
		m.probes.trouble.Inc()
		return answer{name, seldom, true}
	}
	again := every(v)
	if again == 0 {
		return never
	}
	keys, err := m.inv.Keys(ctx, v)
	if err != nil {
		m.probes.trouble.Inc()
		m.log.Error().Err(err).Str("machine", name).Msg("cannot ask the API")
		return answer{name, seldom, true}
	}
	if len(keys) == 0 {
		return never // its cluster is gone
	}
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	asked := time.Now()
	var st Status
	var life inventory.Keys
	for _, life = range keys {
		if st, err = m.talos.Status(ctx, life.Cluster, life.Secrets, v.Machine.Address); err == nil {
			break
		}
	}
	if err != nil {
		m.probes.silent.Inc()
		return answer{name, again, true} // not up yet, or down: its phase says so in time
	}
	holds := inventory.Membership{Cluster: life.Cluster.Name, Role: v.Machine.Role, Epoch: life.Epoch}
	after, err := m.inv.Record(ctx, inventory.Event{Kind: inventory.APIAnswered, Machine: name, Stage: st.Stage, Ready: st.Ready, SecureBoot: st.SecureBoot, Asked: asked, Holds: holds, Message: "its API answered: " + string(st.Stage)})
	if err != nil {
		m.probes.trouble.Inc()
		m.log.Error().Err(err).Str("machine", name).Msg("cannot record what the API said")
		return answer{name, again, true}
	}
	if st.Ready {
		m.probes.ready.Inc()
	} else {
		m.probes.notReady.Inc()
	}
	if after.Facts.Ready && !v.Facts.Ready {
		m.log.Info().Str("machine", name).Msg("ready")
	}
	return answer{name, every(after), false}
}
