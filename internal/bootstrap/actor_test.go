package bootstrap_test

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"path/filepath"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/rs/zerolog"

	"github.com/provisiond/provisiond/internal/boltstore"
	"github.com/provisiond/provisiond/internal/bootstrap"
	"github.com/provisiond/provisiond/internal/inventory"
	"github.com/provisiond/provisiond/internal/inventory/storetest"
)

// rack is a small working Talos: etcd forms on whoever is called, as the real
// one does, and the others join once one runs.
type rack struct {
	mu       sync.Mutex
	calls    []netip.Addr
	accepted map[netip.Addr]time.Time
	// answer may replace the answer to the n-th call (from 0) after it took
	// effect, or before when it returns false.
	answer func(n int) (bootstrap.Outcome, bool)
	crash  func()
}

func (r *rack) Probe(_ context.Context, _ *inventory.Cluster, _ *inventory.Secrets, a netip.Addr) bootstrap.Probe {
	r.mu.Lock()
	defer r.mu.Unlock()
	p := bootstrap.Probe{Answered: true, Stage: inventory.StageBooting, Etcd: bootstrap.EtcdWaiting}
	for _, at := range r.accepted {
		if time.Since(at) > time.Minute { // its image is pulled by then
			p.Etcd, p.Stage, p.Ready = bootstrap.EtcdRunning, inventory.StageRunning, true
		}
	}
	return p
}

func (r *rack) Bootstrap(ctx context.Context, _ *inventory.Cluster, _ *inventory.Secrets, a netip.Addr) (bootstrap.Outcome, error) {
	r.mu.Lock()
	n := len(r.calls)
	r.calls = append(r.calls, a)
	outcome, effect := bootstrap.Accepted, true
	if r.answer != nil {
		outcome, effect = r.answer(n)
	}
	if effect {
		if _, again := r.accepted[a]; !again {
			r.accepted[a] = time.Now()
		}
	}
	crash := r.crash
	r.mu.Unlock()
	if crash != nil {
		crash()
		<-ctx.Done()
	}
	if outcome == bootstrap.Unknown {
		return outcome, errors.New("deadline exceeded")
	}
	return outcome, nil
}

func setup(t *testing.T) (*inventory.Keeper, *storetest.Faulty) {
	t.Helper()
	db, err := boltstore.Open(filepath.Join(t.TempDir(), "db"), boltstore.Options{NoSync: true})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = db.Close() })
	store := storetest.NewFaulty(db)
	prefix := netip.MustParsePrefix("2001:db8:1::/64")
	k, err := inventory.NewKeeper(t.Context(), store, inventory.KeeperConfig{Subnets: []inventory.Subnet{{
		Name: "rack1", Prefix: prefix, Preferred: time.Hour, Valid: time.Hour,
		Machines: inventory.Range{First: netip.MustParseAddr("2001:db8:1::100"), Last: netip.MustParseAddr("2001:db8:1::1ff")},
	}}})
	if err != nil {
		t.Fatal(err)
	}
	_, err = k.CreateCluster(t.Context(), &inventory.Cluster{
		Name: "prod", Endpoint: "https://[2001:db8::1]:6443", TalosVersion: "v1.13.6", KubernetesVersion: "1.36.2",
		PodSubnets:     []netip.Prefix{netip.MustParsePrefix("fc00:db8:10::/56")},
		ServiceSubnets: []netip.Prefix{netip.MustParsePrefix("fc00:db8:20::/112")},
	}, []byte("secrets"))
	if err != nil {
		t.Fatal(err)
	}
	for i := range 3 {
		mac := inventory.MAC(fmt.Sprintf("52:54:00:00:00:%02x", i+1))
		m := &inventory.Machine{Name: fmt.Sprintf("cp-%d", i+1), MACs: []inventory.MAC{mac}, Cluster: "prod", Role: inventory.ControlPlane}
		if _, err := k.PutMachine(t.Context(), m, 0); err != nil {
			t.Fatal(err)
		}
		for _, kind := range []inventory.Kind{inventory.ScriptServed, inventory.ConfigServed} {
			if _, err := k.Record(t.Context(), inventory.Event{Kind: kind, MAC: mac, Plan: inventory.Install, Hash: "h"}); err != nil {
				t.Fatal(err)
			}
		}
	}
	return k, store
}

// run lets the actor work for a simulated while, or until stop is called.
func run(t *testing.T, k *inventory.Keeper, r *rack, d time.Duration) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), d)
	defer cancel()
	if r.crash != nil {
		r.mu.Lock()
		r.crash = cancel
		r.mu.Unlock()
	}
	if err := bootstrap.New(k, r, zerolog.Nop()).Run(ctx); err != nil {
		t.Fatal(err)
	}
}

func check(t *testing.T, k *inventory.Keeper, r *rack, calls int) {
	t.Helper()
	_, b, err := k.Cluster(context.Background(), "prod")
	if err != nil || !b.Done() {
		t.Fatalf("bootstrap stands at %+v, %v", b, err)
	}
	if len(r.accepted) != 1 {
		t.Errorf("%d machines were bootstrapped, want 1: %v", len(r.accepted), r.accepted)
	}
	if len(r.calls) != calls {
		t.Errorf("%d calls were sent, want %d", len(r.calls), calls)
	}
	for _, a := range r.calls {
		if a != r.calls[0] {
			t.Errorf("calls went to %v", r.calls)
		}
	}
}

func TestBootstrapOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k, _ := setup(t)
		r := &rack{accepted: map[netip.Addr]time.Time{}}
		run(t, k, r, 10*time.Minute)
		check(t, k, r, 1)
	})
}

// TestAmbiguousAnswer: the call took effect and its answer was lost, or it did
// not and the same machine is asked again.
func TestAmbiguousAnswer(t *testing.T) {
	for _, effect := range []bool{true, false} {
		t.Run(fmt.Sprint("effect=", effect), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				k, _ := setup(t)
				r := &rack{accepted: map[netip.Addr]time.Time{}, answer: func(n int) (bootstrap.Outcome, bool) {
					if n == 0 {
						return bootstrap.Unknown, effect
					}
					return bootstrap.Accepted, true
				}}
				run(t, k, r, 20*time.Minute)
				calls := 2
				if effect {
					calls = 1 // etcd was seen running before the retry
				}
				check(t, k, r, calls)
			})
		})
	}
}

func TestDeclinedIsAskedAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k, _ := setup(t)
		r := &rack{accepted: map[netip.Addr]time.Time{}, answer: func(n int) (bootstrap.Outcome, bool) {
			if n < 3 {
				return bootstrap.NotYet, false
			}
			return bootstrap.Accepted, true
		}}
		run(t, k, r, 20*time.Minute)
		check(t, k, r, 4)
	})
}

// TestKilledInTheCall: the daemon dies between sending the call and recording
// its answer; the next one must not bootstrap a second machine.
func TestKilledInTheCall(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k, _ := setup(t)
		r := &rack{accepted: map[netip.Addr]time.Time{}, crash: func() {}}
		run(t, k, r, time.Hour)
		if len(r.calls) != 1 {
			t.Fatalf("%d calls before the crash", len(r.calls))
		}
		r.crash = nil
		run(t, k, r, 20*time.Minute)
		check(t, k, r, 1)
	})
}

// TestEveryCommitFails makes each commit of the bootstrap fail in turn, in
// every way, and restarts the actor after it.
func TestEveryCommitFails(t *testing.T) {
	for _, fault := range []storetest.Fault{storetest.Full, storetest.LostNotPersisted, storetest.LostButPersisted} {
		for nth := range 5 {
			t.Run(fmt.Sprintf("fault=%d/commit=%d", fault, nth), func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					k, store := setup(t)
					n := 0
					store.Each(func() storetest.Fault {
						n++
						if n-1 == nth {
							return fault
						}
						return storetest.None
					})
					r := &rack{accepted: map[netip.Addr]time.Time{}}
					for range 4 { // restarts
						run(t, k, r, 7*time.Minute)
					}
					_, b, err := k.Cluster(t.Context(), "prod")
					if err != nil || !b.Done() || len(r.accepted) != 1 {
						t.Fatalf("%+v, %v, bootstrapped %v", b, err, r.accepted)
					}
				})
			})
		}
	}
}
