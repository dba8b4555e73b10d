// Package maintenance finds machines that were started by hand and wait for their config
// in Talos' maintenance mode, and gives it to those that are registered and are to
// install.
//
// In maintenance mode anyone may ask a machine who it is, and give it a config: so who it
// is has to be decided here, by whose its address is, who is behind that on the link,
// and, where that is not enough, by a person who reads its fingerprint off its console.
package maintenance

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/rs/zerolog"
	"golang.org/x/time/rate"

	"github.com/provisiond/provisiond/internal/audit"
	"github.com/provisiond/provisiond/internal/inventory"
)

const (
	// perSecond bounds the questions to all machines together, and perSecondHeard those
	// that go before others because somebody was heard: anyone on a link can be heard.
	perSecond      = 20
	perSecondHeard = 5
	workers        = 64
	soon           = 3 * time.Second  // a machine that may come up, then ever less
	seldom         = 5 * time.Minute  // one that did not answer for long
	look           = 30 * time.Second // one that waits
	lately         = time.Hour        // a stranger that was not seen since is not asked
	heardFor       = 5 * time.Minute  // Talos asks for a router long before its API answers
	read           = 30 * time.Second // between two looks at the strangers
	gone           = 3                // rounds without an answer, and it waits no more
	asking         = 10 * time.Second // one question
	giving         = 30 * time.Second // the call
	page           = 512
	maxNICs        = 2048 // of nobody
	maxHeard       = 256  // that wait to be looked at
)

// Inventory is what the actor reads and records. Record is durable when it returns nil
// for a config that is given.
type Inventory interface {
	inventory.Locator
	Machines(ctx context.Context, after string, limit int) ([]inventory.View, error)
	Machine(ctx context.Context, ref string) (inventory.View, error)
	// View returns the machine of a NIC for an architecture; its Machine is nil for one
	// of nobody.
	View(ctx context.Context, mac inventory.MAC, arch inventory.Arch) (inventory.View, error)
	Strangers(ctx context.Context) ([]inventory.Stranger, error)
	AddressesOf(macs []inventory.MAC, stable netip.Addr, subnet string) []netip.Addr
	Record(ctx context.Context, e inventory.Event) (inventory.View, error)
	WatchMachines() (wake <-chan struct{}, take func() []string, stop func())
}

// Talos is the API of a machine in maintenance mode. Both methods return within the
// deadline of ctx.
type Talos interface {
	// Ask returns nil when an API answers that is not in maintenance mode, and an error
	// when none does.
	Ask(ctx context.Context, addr netip.Addr) (*Answer, error)
	// Apply gives the config to who has the fingerprint, once.
	Apply(ctx context.Context, addr netip.Addr, fingerprint string, config []byte) (Outcome, error)
}

// Configs makes machine configs.
type Configs interface {
	// Config returns a machine's config and its SHA-256, and keeps it for a later
	// comparison.
	Config(ctx context.Context, v inventory.View) (text []byte, hash string, err error)
}

// Trail is the audit trail.
type Trail interface{ Note(e audit.Entry) }

// Deps are the parts that the actor asks.
type Deps struct {
	Inventory  Inventory
	Talos      Talos
	Configs    Configs
	Neighbours inventory.LinkLayers
	Trail      Trail
}

// Actor looks for machines in maintenance mode.
type Actor struct {
	Deps
	log    zerolog.Logger
	counts counts
	heard  chan heard

	pace, paceHeard *rate.Limiter
	turns           turns // owned by Run

	mu    sync.Mutex
	given map[string]bool // machines that are being given their config
}

// heard is a NIC on a segment of ours that asked for a router.
type heard struct {
	mac  inventory.MAC
	addr netip.Addr // link-local, with the interface as its zone
}

// New returns an actor. It does nothing until Run.
func New(d Deps, log zerolog.Logger) *Actor {
	return &Actor{
		Deps: d, log: log, counts: newCounts(), heard: make(chan heard, maxHeard), turns: newTurns(), given: map[string]bool{},
		pace: rate.NewLimiter(perSecond, perSecond), paceHeard: rate.NewLimiter(perSecondHeard, perSecondHeard),
	}
}

// Heard tells of a NIC that asked for a router on a segment of ours, from its link-local
// address with the interface as its zone: a system starts there. It never blocks, and
// forgets what is too much. It may be called at any time, by any goroutine.
func (a *Actor) Heard(mac inventory.MAC, addr netip.Addr) {
	select {
	case a.heard <- heard{mac, addr}:
	default:
	}
}

// Run asks, until ctx ends, whoever may wait in maintenance mode: all registered machines
// that are to install, the strangers that were seen lately, and who is heard. It
// re-derives everything from what is committed, so that a restart costs nothing.
func (a *Actor) Run(ctx context.Context) error {
	wake, take, stop := a.Inventory.WatchMachines()
	defer stop()
	if err := a.scan(ctx); err != nil && ctx.Err() == nil {
		return err
	}
	found := make(chan found, workers)
	under := 0
	defer func() {
		for ; under > 0; under-- {
			<-found
		}
	}()
	strangers := time.NewTimer(0)
	defer strangers.Stop()
	for {
		again := seldom
		for under < workers {
			now := time.Now()
			n, left := a.turns.due(now)
			if n == nil {
				again = left
				break
			}
			if !a.pace.AllowN(now, 1) {
				again = time.Second / perSecond
				break
			}
			under++
			asked := *a.turns.take()
			go func() { found <- a.ask(ctx, asked) }()
		}
		timer := time.NewTimer(again)
		select {
		case <-ctx.Done():
			timer.Stop()
			return nil
		case f := <-found:
			under--
			a.settle(f)
		case h := <-a.heard:
			a.hear(ctx, h)
		case <-wake:
			for _, name := range take() {
				a.changed(ctx, name)
			}
		case <-strangers.C:
			a.readStrangers(ctx)
			strangers.Reset(read)
		case <-timer.C:
		}
		timer.Stop()
	}
}

func (a *Actor) scan(ctx context.Context) error {
	for after := ""; ; {
		views, err := a.Inventory.Machines(ctx, after, page)
		if err != nil {
			return err
		}
		for _, v := range views {
			if after = v.Machine.Name; every(&v) > 0 {
				a.turns.of(key{machine: after}, time.Now())
			}
		}
		if len(views) < page {
			return nil
		}
	}
}

// every is how soon a machine is worth asking for the first time; 0: it is not.
func every(v *inventory.View) time.Duration {
	b := v.Facts.Current()
	switch {
	case v.Facts.Maintenance != nil:
		return soon
	case inventory.PlanConfig(*v).Action != inventory.Install:
		return 0
	case b == nil || b.Way == inventory.BySigned || b.ConfigBy == inventory.ChannelAPI:
		return soon
	case !b.Script.IsZero() || !b.Config.IsZero():
		return seldom // its kernel line says where its config is
	}
	return soon
}

// changed is for a machine to which something happened.
func (a *Actor) changed(ctx context.Context, name string) {
	k, now := key{machine: name}, time.Now()
	v, err := a.Inventory.Machine(ctx, name)
	if err != nil {
		return // removed; or the inventory does not answer, and its turn comes all the same
	}
	switch every(&v) {
	case 0:
	case soon:
		if n := a.turns.of(k, now); n != nil {
			a.turns.now(n, now, false)
		}
	default:
		if a.turns.by[k] == nil {
			a.turns.set(a.turns.of(k, now), now.Add(seldom))
		}
	}
}

func (a *Actor) hear(ctx context.Context, h heard) {
	now, k := time.Now(), key{mac: h.mac}
	if v, err := a.Inventory.View(ctx, h.mac, ""); err == nil && v.Machine != nil {
		k = key{machine: v.Machine.Name}
	}
	n := a.turns.of(k, now)
	if n == nil {
		return
	}
	n.heard, n.until, n.there = h.addr, now.Add(heardFor), !n.owed
	a.turns.now(n, now, a.paceHeard.AllowN(now, 1))
}

// readStrangers has those asked that were seen lately.
func (a *Actor) readStrangers(ctx context.Context) {
	all, err := a.Inventory.Strangers(ctx)
	if err != nil {
		return // the next time
	}
	now := time.Now()
	for _, st := range all {
		if now.Sub(st.LastSeen) > lately {
			break // the one seen last comes first
		}
		n := a.turns.of(key{mac: st.MAC}, now)
		if n == nil {
			return
		}
		if n.nic.LastSeen.IsZero() || st.LastSeen.After(n.nic.LastSeen) && st.Fingerprint == "" {
			a.turns.now(n, now, false)
		}
		n.nic = st
	}
}

// found is how a question ended.
type found struct {
	asked turn
	state state
	step  step
	told  bool          // it was a refusal that was recorded
	reach int           // how many addresses there are
	first time.Duration // after that it is asked again at the earliest
}

type state int

const (
	silent  state = iota
	running       // an API answers, and is in no maintenance mode
	waiting
	never // it is not to be asked any more
)

// ask asks one address of one turn.
func (a *Actor) ask(ctx context.Context, t turn) (f found) {
	f = found{asked: t}
	addrs, known, first := a.addresses(ctx, &t)
	if f.first, f.reach = first, len(addrs); first == 0 || len(addrs) == 0 {
		f.state = never
		return f
	}
	f.asked.next = min(t.next, len(addrs)-1)
	addr := addrs[f.asked.next]
	if f.asked.there = t.there && time.Now().Before(t.until); f.asked.there {
		addr = t.heard
	}
	asked, cancel := context.WithTimeout(ctx, asking)
	defer cancel()
	answer, err := a.Talos.Ask(asked, addr)
	switch {
	case err != nil:
		a.counts.silent.Inc()
		a.log.Debug().Str("machine", t.machine).Str("mac", string(t.mac)).Stringer("address", addr).Str("reason", err.Error()).Msg("does not wait in maintenance mode")
		if known && !f.asked.there && f.asked.next == len(addrs)-1 && t.misses+1 >= gone {
			a.leave(ctx, t.machine)
		}
		return f
	case answer == nil:
		a.counts.runs.Inc()
		if f.state = running; known {
			a.leave(ctx, t.machine)
		}
		return f
	}
	a.counts.waits.Inc()
	f.state = waiting
	tell := func(reason string) bool { return reason != t.refused && time.Since(t.toldAt) >= tellAgain }
	if f.step, f.told, err = a.advance(ctx, addr, *answer, tell); err != nil && ctx.Err() == nil {
		a.counts.bad.Inc()
		a.log.Error().Err(err).Str("machine", t.machine).Stringer("address", addr).Msg("a machine in maintenance mode cannot be given its config")
	}
	return f
}

// addresses are where a turn is to be asked, the likeliest first; known says that it is
// known to wait there. first is as every has it.
func (a *Actor) addresses(ctx context.Context, t *turn) (addrs []netip.Addr, known bool, first time.Duration) {
	if time.Now().Before(t.until) {
		first = soon
	}
	if t.machine == "" {
		if v, err := a.Inventory.View(ctx, t.mac, ""); err != nil || v.Machine != nil {
			return nil, false, 0 // it is a machine's by now, and that has a turn of its own
		}
		if time.Since(t.nic.LastSeen) <= lately {
			if first = soon; t.nic.Address.IsValid() {
				addrs = append(addrs, t.nic.Address)
			}
			addrs = append(addrs, a.Inventory.AddressesOf([]inventory.MAC{t.mac}, netip.Addr{}, t.nic.Subnet)...)
		}
		return t.withHeard(addrs), false, first
	}
	v, err := a.Inventory.Machine(ctx, t.machine)
	if err != nil {
		return nil, false, 0
	}
	if first == 0 {
		first = every(&v)
	}
	m := v.Facts.Maintenance
	if m != nil {
		addrs = slices.Insert(addrs, 0, m.Address)
	}
	addrs = append(addrs, a.Inventory.AddressesOf(v.Machine.MACs, v.Machine.Address, "")...)
	return t.withHeard(addrs), m != nil, first
}

// withHeard adds where a NIC was heard, each address once. It comes last: anyone on a link
// can be heard with anybody's MAC, and must not keep a machine from being asked where it is.
func (t *turn) withHeard(addrs []netip.Addr) []netip.Addr {
	if time.Now().Before(t.until) {
		addrs = append(addrs, t.heard)
	}
	return distinct(addrs)
}

func distinct(addrs []netip.Addr) (out []netip.Addr) {
	for _, a := range addrs {
		if !slices.Contains(out, a) {
			out = append(out, a)
		}
	}
	return out
}

// leave records that a machine does not wait any more.
func (a *Actor) leave(ctx context.Context, machine string) {
	if _, err := a.Inventory.Record(ctx, inventory.Event{Kind: inventory.MaintenanceGone, Machine: machine}); err != nil && ctx.Err() == nil {
		a.log.Error().Err(err).Str("machine", machine).Msg("cannot record that a machine does not wait any more")
	}
}

// settle takes the answer to a question into account.
func (a *Actor) settle(f found) {
	n := a.turns.by[f.asked.key]
	now := time.Now()
	switch {
	case n == nil:
		return
	case f.state == never && !n.woken:
		a.turns.drop(n)
		return
	}
	if n.there, n.owed = n.there && !f.asked.there, f.asked.there; f.asked.there && (f.state == silent || f.step.act == refuse) {
		a.told(n, &f)
		a.turns.set(n, now) // where it should be
		return
	}
	switch {
	case (f.state == silent || f.step.act == refuse) && f.asked.next+1 < f.reach:
		// Somebody else at one of its addresses is not the machine at another. Who wakes
		// it begins no new round: it would never come to an end.
		n.next, n.woken = f.asked.next+1, false
		a.told(n, &f)
		a.turns.set(n, now) // after all others that are due
		return
	}
	n.next = 0
	switch f.state {
	case waiting:
		n.misses, n.wait = 0, look
		a.told(n, &f)
	case running:
		n.misses, n.wait = 0, seldom
	default:
		n.misses++
		n.wait = min(max(2*n.wait, f.first), seldom)
	}
	at := now.Add(n.wait)
	if n.woken {
		n.woken, n.wait, at = false, 0, now
	}
	a.turns.set(n, at)
}

// tellAgain is how often a refusal is recorded at most, of one machine: anyone who is taken
// for it can cause them, from as many addresses as he likes.
const tellAgain = time.Minute

// told keeps what was recorded of a refusal.
func (a *Actor) told(n *turn, f *found) {
	if f.told {
		n.refused, n.toldAt = f.step.reason, time.Now()
	}
}

// advance decides on a machine that waits, and does it. tell is whether a refusal of this
// reason is to be recorded, and told whether it was.
func (a *Actor) advance(ctx context.Context, addr netip.Addr, answer Answer, tell func(reason string) bool) (to step, told bool, err error) {
	s, text, err := a.see(ctx, addr, answer)
	if err != nil {
		return step{}, false, err
	}
	to = next(s, time.Now())
	seen := inventory.Event{
		Kind: inventory.MaintenanceSeen, Machine: to.machine, MAC: to.mac, Client: inventory.MaintenanceMode, Peer: addr, Fingerprint: s.Fingerprint,
		UUID: s.UUID, Serial: s.Serial, Arch: s.Arch, SecureBoot: s.SecureBoot, Message: to.reason,
	}
	if sub := a.Inventory.SubnetOf(addr); sub != nil {
		seen.Subnet = sub.Name
	}
	switch to.act {
	case nothing:
		a.log.Debug().Str("machine", to.machine).Stringer("address", addr).Str("reason", to.reason).Msg("nothing to do for who waits in maintenance mode")
	case stranger:
		_, err = a.Inventory.Record(ctx, seen)
	case refuse:
		if told = tell(to.reason); told {
			err = a.refuse(ctx, &s, to)
		}
	case wait:
		m := s.owners[0].Facts.Maintenance
		if m == nil || m.Address != addr || m.Fingerprint != s.Fingerprint || m.Reason != to.reason {
			_, err = a.Inventory.Record(ctx, seen)
		}
	case give:
		if _, err = a.Inventory.Record(ctx, seen); err == nil {
			err = a.give(ctx, &s, to, text)
		}
	}
	return to, told, err
}

// see finds out who it is that waits at an address, and makes the config for it.
func (a *Actor) see(ctx context.Context, addr netip.Addr, answer Answer) (s sight, text []byte, err error) {
	s = sight{Answer: answer, addr: addr}
	s.link, s.on = inventory.LinkOf(a.Inventory, a.Neighbours, addr)
	at, err := a.Inventory.MachineByAddress(ctx, addr)
	if err != nil && !errors.Is(err, inventory.ErrNotFound) {
		return s, nil, err
	}
	if err == nil && at.Machine != nil {
		s.at = at.Machine.Name
	}
	for _, mac := range answer.MACs {
		v, err := a.Inventory.View(ctx, mac, answer.Arch)
		if err != nil {
			return s, nil, err
		}
		if v.Machine != nil && !slices.ContainsFunc(s.owners, func(o inventory.View) bool { return o.Machine.Name == v.Machine.Name }) {
			s.owners = append(s.owners, v)
		}
	}
	if len(s.owners) != 1 {
		return s, nil, nil
	}
	v := s.owners[0]
	if s.whyNot, err = inventory.WhyNotOf(ctx, a.Inventory, a.Neighbours, v.Machine, addr); err != nil || s.whyNot != "" {
		return s, nil, err
	}
	if inventory.PlanConfig(v).Action == inventory.Install {
		if text, s.hash, err = a.Configs.Config(ctx, v); err != nil {
			s.broken = err.Error()
		}
	}
	return s, text, nil
}

// refuse tells that somebody waits who is not the machine.
func (a *Actor) refuse(ctx context.Context, s *sight, to step) error {
	a.log.Warn().Str("machine", to.machine).Stringer("address", s.addr).Str("fingerprint", s.Fingerprint).Str("reason", to.reason).Msg("config refused")
	a.note(s, to, audit.Refused, to.reason)
	_, err := a.Inventory.Record(ctx, inventory.Event{Kind: inventory.ConfigRefused, Machine: to.machine, MAC: to.mac, Peer: s.addr, Fingerprint: s.Fingerprint, Message: to.reason})
	return err
}

func (a *Actor) note(s *sight, to step, outcome audit.Outcome, why string) {
	a.Trail.Note(audit.Entry{Action: "give-config", Target: "machine/" + to.machine, From: s.addr.String(), Via: "maintenance mode", Outcome: outcome, Reason: why})
}

// give records that a machine is given its config, gives it, and records a refusal. A
// crash in between leaves one that waits still: it is given it again.
func (a *Actor) give(ctx context.Context, s *sight, to step, text []byte) error {
	if !a.begin(to.machine) {
		return nil // at another of its addresses
	}
	defer a.end(to.machine)
	v := s.owners[0]
	log := a.log.With().Str("machine", to.machine).Stringer("address", s.addr).Str("fingerprint", s.Fingerprint).Logger()
	e := inventory.Event{
		Kind: inventory.ConfigServed, Machine: to.machine, MAC: to.mac, Peer: s.addr, Hash: s.hash, ConfigBy: inventory.ChannelAPI, Fingerprint: s.Fingerprint,
		Holds: inventory.Membership{Cluster: v.Cluster.Name, Role: v.Machine.Role, Epoch: v.Cluster.Epoch},
	}
	after, err := a.Inventory.Record(ctx, e)
	if err != nil {
		return err
	}
	said := fmt.Sprintf("fingerprint %s, config %.12s", s.Fingerprint, s.hash)
	if m := after.Facts.Maintenance; confirmed(&after, s.Fingerprint) {
		said += ", confirmed by " + m.By
	}
	a.note(s, to, audit.OK, said)
	calling, cancel := context.WithTimeout(ctx, giving)
	defer cancel()
	outcome, err := a.Talos.Apply(calling, s.addr, s.Fingerprint, text)
	a.counts.configs.WithLabelValues(string(outcome)).Inc()
	log.Info().Str("sha256", s.hash).Str("outcome", string(outcome)).AnErr("detail", err).Msg("config given in maintenance mode")
	if outcome == Accepted || outcome == Unknown {
		return nil // one that waits still is seen to
	}
	// Whatever becomes of ctx: the answer is here.
	ctx = context.WithoutCancel(ctx)
	a.note(s, to, audit.Failed, fmt.Sprintf("config %.12s was not taken: %s", s.hash, outcome))
	no := inventory.Event{Kind: inventory.ConfigDeclined, Machine: to.machine, MAC: to.mac, Peer: s.addr, Fingerprint: s.Fingerprint, Hash: s.hash, Message: "did not take its config: " + string(outcome)}
	if b := after.Facts.Current(); b != nil {
		no.Boot = b.Number
	}
	if _, failed := a.Inventory.Record(ctx, no); failed != nil || outcome != Refused {
		return failed
	}
	_, err = a.Inventory.Record(ctx, inventory.Event{Kind: inventory.Reported, Machine: to.machine, Peer: s.addr, Error: err.Error()})
	return err
}

func (a *Actor) begin(machine string) bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.given[machine] {
		return false
	}
	a.given[machine] = true
	return true
}

func (a *Actor) end(machine string) {
	a.mu.Lock()
	defer a.mu.Unlock()
	delete(a.given, machine)
}
