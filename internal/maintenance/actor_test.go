package maintenance

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/rs/zerolog"

	"github.com/provisiond/provisiond/internal/audit"
	"github.com/provisiond/provisiond/internal/inventory"
	"github.com/provisiond/provisiond/internal/inventory/storetest"
)

// rack is the machines, the network and the rest of the daemon.
type rack struct {
	t     *testing.T
	store *storetest.Memory
	k     *inventory.Keeper

	mu      sync.Mutex
	waits   map[netip.Addr]*Answer // who waits, by address; they share an Answer who are one machine
	asked   map[netip.Addr]int
	calls   int // that are under way
	most    int // at once
	given   []string
	outcome Outcome
	die     context.CancelFunc // the daemon dies in the call, before it left
	trail   []audit.Entry
}

var subnets = []inventory.Subnet{{
	Name: "rack", Prefix: netip.MustParsePrefix("2001:db8::/64"), Interface: "rack0",
	Machines:  inventory.Range{First: netip.MustParseAddr("2001:db8::1:0"), Last: netip.MustParseAddr("2001:db8::ffff")},
	Preferred: time.Hour, Valid: time.Hour,
}}

func newRack(t *testing.T) *rack {
	t.Helper()
	r := &rack{t: t, store: storetest.NewMemory(), waits: map[netip.Addr]*Answer{}, asked: map[netip.Addr]int{}, outcome: Accepted}
	r.open()
	_, err := r.k.CreateCluster(t.Context(), &inventory.Cluster{
		Name: "prod", Endpoint: "https://[2001:db8::1]:6443", TalosVersion: "v1.13.6", KubernetesVersion: "1.36.2",
		PodSubnets: []netip.Prefix{netip.MustParsePrefix("fc00:db8:10::/56")}, ServiceSubnets: []netip.Prefix{netip.MustParsePrefix("fc00:db8:20::/112")},
	}, []byte("bundle"))
	r.must(err)
	blob := inventory.Blob{SHA256: fmt.Sprintf("%064x", 1), Size: 1}
	r.must(r.k.PutImage(t.Context(), &inventory.Image{Version: "v1.13.6", Arch: inventory.AMD64, Kernel: blob, Initramfs: blob}))
	return r
}

func (r *rack) must(err error) {
	r.t.Helper()
	if err != nil {
		r.t.Fatal(err)
	}
}

// open is what a daemon that starts does.
func (r *rack) open() {
	r.t.Helper()
	s := slices.Clone(subnets)
	s[0].Machines.First = netip.MustParseAddr("2001:db8::1000")
	k, err := inventory.NewKeeper(context.Background(), r.store, inventory.KeeperConfig{Subnets: s})
	r.must(err)
	r.k = k
}

func (r *rack) register(name string, mac inventory.MAC) *inventory.Machine {
	r.t.Helper()
	m, err := r.k.PutMachine(r.t.Context(), &inventory.Machine{Name: name, MACs: []inventory.MAC{mac}, Cluster: "prod", Role: inventory.ControlPlane}, 0)
	r.must(err)
	return m
}

// starts has a machine wait at addresses.
func (r *rack) starts(fingerprint string, mac inventory.MAC, at ...netip.Addr) {
	r.mu.Lock()
	defer r.mu.Unlock()
	a := &Answer{Fingerprint: fingerprint, MACs: []inventory.MAC{mac}, Arch: inventory.AMD64}
	for _, addr := range at {
		r.waits[addr] = a
	}
}

func (r *rack) Ask(_ context.Context, addr netip.Addr) (*Answer, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.asked[addr]++
	if a := r.waits[addr]; a != nil {
		return a, nil
	}
	return nil, errors.New("nobody is there")
}

func (r *rack) Apply(ctx context.Context, addr netip.Addr, fingerprint string, config []byte) (Outcome, error) {
	r.mu.Lock()
	r.calls++
	r.most = max(r.most, r.calls)
	die := r.die
	r.mu.Unlock()
	if die != nil {
		die()
		<-ctx.Done()
	} else {
		time.Sleep(time.Second)
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.calls--
	a := r.waits[addr]
	switch {
	case die != nil:
		return NotYet, ctx.Err()
	case a == nil || a.Fingerprint != fingerprint:
		return Denied, errors.New("another certificate")
	case r.outcome != Accepted:
		return r.outcome, errors.New("it says no")
	}
	for at, other := range r.waits {
		if other == a {
			delete(r.waits, at)
		}
	}
	r.given = append(r.given, string(config))
	return Accepted, nil
}

func (r *rack) Config(_ context.Context, v inventory.View) ([]byte, string, error) {
	time.Sleep(time.Millisecond) // it takes a moment, in which another may look too
	return []byte("config of " + v.Machine.Name), "c0ffee", nil
}

// LinkLayer has every NIC at the address that is made of it, and a machine's NIC at its
// stable one.
func (r *rack) LinkLayer(addr netip.Addr, _ string) (inventory.MAC, bool) {
	if mac, ok := inventory.MACFromEUI64(addr.WithZone("")); ok {
		return mac, true
	}
	v, err := r.k.MachineByAddress(context.Background(), addr)
	if err != nil || v.Machine == nil {
		return "", false
	}
	return v.Machine.BootMAC(), true
}

func (r *rack) Note(e audit.Entry) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.trail = append(r.trail, e)
}

// runs runs an actor on what is on the disk, for some time or until it dies.
func (r *rack) runs(d time.Duration, during func(a *Actor)) {
	r.t.Helper()
	ctx, cancel := context.WithTimeout(r.t.Context(), d)
	defer cancel()
	r.mu.Lock()
	if r.die != nil {
		r.die = cancel
	}
	r.mu.Unlock()
	a := New(Deps{Inventory: r.k, Talos: r, Configs: r, Neighbours: r, Trail: r}, zerolog.Nop())
	done := make(chan error)
	go func() { done <- a.Run(ctx) }()
	if during != nil {
		during(a)
	}
	r.must(<-done)
}

func (r *rack) machine(name string) *inventory.View {
	r.t.Helper()
	v, err := r.k.Machine(r.t.Context(), name)
	r.must(err)
	return &v
}

func mac(i int) inventory.MAC {
	return inventory.MAC(fmt.Sprintf("52:54:00:%02x:%02x:%02x", i>>16, i>>8&0xff, i&0xff))
}

// TestGiven: a machine is given its config once, although it answers at all its addresses
// and is heard at one of them.
func TestGiven(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRack(t)
		m := r.register("cp-1", mac(1))
		linkLocal := mac(1).LinkLocal().WithZone("rack0")
		r.starts("key", mac(1), m.Address, mac(1).EUI64(subnets[0].Prefix), linkLocal)
		r.runs(time.Hour, func(a *Actor) {
			for range 3 {
				a.Heard(mac(1), linkLocal)
			}
		})
		if len(r.given) != 1 || r.given[0] != "config of cp-1" || r.most != 1 {
			t.Errorf("%q was given, %d calls at once", r.given, r.most)
		}
		v := r.machine("cp-1")
		if b := v.Facts.Current(); b == nil || b.Number != 1 || b.ConfigBy != inventory.ChannelAPI || b.Fingerprint != "key" || b.ConfigFetches != 1 || b.Plan != inventory.Install || b.Order != 1 {
			t.Errorf("%+v", b)
		}
		if v.Facts.Maintenance != nil {
			t.Errorf("it still waits: %+v", v.Facts.Maintenance)
		}
	})
}

// TestDiesBeforeTheCall: the daemon dies once it has recorded that a machine is given its
// config. The next one finds that it waits still, and gives it, in the same boot.
func TestDiesBeforeTheCall(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRack(t)
		m := r.register("cp-1", mac(1))
		r.starts("key", mac(1), m.Address)
		r.die = func() {}
		r.runs(time.Minute, nil)
		if len(r.given) != 0 || r.machine("cp-1").Facts.Current() == nil {
			t.Fatalf("%q was given, and on the disk is %+v", r.given, r.machine("cp-1").Facts)
		}
		r.die = nil
		r.open() // what was only in memory is gone
		r.runs(time.Hour, nil)
		if len(r.given) != 1 {
			t.Errorf("%q was given", r.given)
		}
		if b := r.machine("cp-1").Facts.Current(); b.Number != 1 || b.ConfigFetches != 2 {
			t.Errorf("%+v", b)
		}
	})
}

// TestDurableBeforeTheCall: what cannot be recorded is not given.
func TestDurableBeforeTheCall(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRack(t)
		m := r.register("cp-1", mac(1))
		faulty := storetest.NewFaulty(r.store)
		k, err := inventory.NewKeeper(t.Context(), faulty, inventory.KeeperConfig{Subnets: r.k.Subnets()})
		r.must(err)
		broken := true
		faulty.Each(func() storetest.Fault {
			if broken {
				return storetest.LostNotPersisted
			}
			return storetest.None
		})
		r.k = k
		r.starts("key", mac(1), m.Address)
		r.runs(10*time.Minute, nil)
		if len(r.given) != 0 || len(r.trail) != 0 {
			t.Fatalf("%q was given and is on no disk; %v", r.given, r.trail)
		}
		broken = false
		r.runs(10*time.Minute, nil)
		if len(r.given) != 1 || len(r.trail) != 1 {
			t.Errorf("%q was given; %v", r.given, r.trail)
		}
	})
}

// TestRefused: what a machine does not take shows, and is not pressed upon it.
func TestRefused(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRack(t)
		m := r.register("cp-1", mac(1))
		r.starts("key", mac(1), m.Address)
		r.outcome = Refused
		r.runs(time.Hour, nil)
		v := r.machine("cp-1")
		if s := inventory.DefaultPatience().PhaseOf(*v, time.Now()); s.Phase != inventory.PhaseFailed || s.Reason != "it says no" {
			t.Errorf("%+v", s)
		}
		if n := v.Facts.Current().ConfigFetches; n < 2 || n > 7 {
			t.Errorf("it was given its config %d times in an hour", n)
		}
	})
}

// TestGone: that a machine waits is forgotten when it does not any more.
func TestGone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRack(t)
		m := r.register("cp-1", mac(1))
		m = m.Clone()
		m.Approval = inventory.ApprovalRequired
		_, err := r.k.PutMachine(t.Context(), m, r.machine("cp-1").Machine.Rev)
		r.must(err)
		r.starts("key", mac(1), m.Address)
		r.runs(time.Hour, func(*Actor) {
			time.Sleep(time.Minute)
			if w := r.machine("cp-1").Facts.Maintenance; w == nil || w.Fingerprint != "key" || w.Address != m.Address || w.Reason == "" {
				t.Errorf("%+v", w)
			}
			if n := r.asked[m.Address]; n > 5 {
				t.Errorf("it was asked %d times in a minute", n)
			}
			r.mu.Lock()
			clear(r.waits)
			r.mu.Unlock()
		})
		if w := r.machine("cp-1").Facts.Maintenance; w != nil {
			t.Errorf("%+v", w)
		}
		if len(r.given) != 0 {
			t.Errorf("%q was given", r.given)
		}
	})
}

// TestManyIdle: ten thousand machines that are to be installed, and are off, cost a bounded
// number of questions, none is forgotten, and one that is heard is asked before them.
func TestManyIdle(t *testing.T) {
	const many = 10_000
	synctest.Test(t, func(t *testing.T) {
		r := newRack(t)
		for i := range many {
			r.register(fmt.Sprintf("m-%d", i), mac(i))
		}
		linkLocal := mac(many / 2).LinkLocal().WithZone("rack0")
		began := time.Now()
		var total int
		var found time.Duration
		const lasts = time.Hour
		r.runs(lasts, func(a *Actor) {
			time.Sleep(lasts / 2)
			r.mu.Lock()
			for _, n := range r.asked {
				total += n
			}
			if most := int(time.Since(began).Seconds()+1) * perSecond; total > most || total < most*9/10 {
				t.Errorf("%d questions in %v", total, lasts/2)
			}
			if len(r.asked) < 3*many {
				t.Errorf("%d addresses of %d were asked", len(r.asked), 3*many)
			}
			r.mu.Unlock()
			r.starts("key", mac(many/2), linkLocal)
			now := time.Now()
			a.Heard(mac(many/2), linkLocal)
			for found == 0 {
				time.Sleep(time.Second)
				r.mu.Lock()
				if len(r.given) > 0 || time.Since(now) > time.Minute {
					found = time.Since(now)
				}
				r.mu.Unlock()
			}
		})
		if found > 5*time.Second {
			t.Errorf("who was heard had its config after %v", found)
		}
	})
}

// TestOneCallAtATime: two turns may come to the same machine, as when one of its NICs was
// registered a moment ago. Only one of them gives it its config.
func TestOneCallAtATime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRack(t)
		m := r.register("cp-1", mac(1))
		slaac := mac(1).EUI64(subnets[0].Prefix)
		r.starts("key", mac(1), m.Address, slaac)
		a := New(Deps{Inventory: r.k, Talos: r, Configs: r, Neighbours: r, Trail: r}, zerolog.Nop())
		var both sync.WaitGroup
		for _, at := range []netip.Addr{m.Address, slaac} {
			both.Go(func() {
				r.mu.Lock()
				answer := *r.waits[at]
				r.mu.Unlock()
				if _, _, err := a.advance(t.Context(), at, answer, func(string) bool { return true }); err != nil {
					t.Error(err)
				}
			})
		}
		both.Wait()
		if len(r.given) != 1 || r.most != 1 {
			t.Errorf("%q was given, %d calls at once", r.given, r.most)
		}
	})
}
