package monitor_test

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
	"github.com/provisiond/provisiond/internal/inventory"
	"github.com/provisiond/provisiond/internal/monitor"
)

// machines is a rack whose APIs answer what the test says, and counts questions.
type machines struct {
	mu    sync.Mutex
	say   map[netip.Addr]inventory.Stage // absent: nobody answers
	asked map[netip.Addr]int
}

func (m *machines) Status(_ context.Context, _ *inventory.Cluster, _ *inventory.Secrets, a netip.Addr) (monitor.Status, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.asked[a]++
	stage, ok := m.say[a]
	if !ok {
		return monitor.Status{}, errors.New("connection refused")
	}
	return monitor.Status{Stage: stage, Ready: stage == inventory.StageRunning, SecureBoot: inventory.On}, nil
}

func (m *machines) set(a netip.Addr, s inventory.Stage) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.say[a] = s
}

func (m *machines) count(a netip.Addr) int {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.asked[a]
}

func setup(t *testing.T, imported bool) *inventory.Keeper {
	t.Helper()
	store, err := boltstore.Open(filepath.Join(t.TempDir(), "db"), boltstore.Options{NoSync: true})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = store.Close() })
	k, err := inventory.NewKeeper(t.Context(), store, inventory.KeeperConfig{Subnets: []inventory.Subnet{{
		Name: "rack1", Prefix: netip.MustParsePrefix("2001:db8:1::/64"), Preferred: time.Hour, Valid: time.Hour,
	}}})
	if err != nil {
		t.Fatal(err)
	}
	_, err = k.CreateCluster(t.Context(), &inventory.Cluster{
		Name: "prod", Endpoint: "https://[2001:db8::1]:6443", TalosVersion: "v1.13.6", KubernetesVersion: "1.36.2", Imported: imported,
		PodSubnets:     []netip.Prefix{netip.MustParsePrefix("fc00:db8:10::/56")},
		ServiceSubnets: []netip.Prefix{netip.MustParsePrefix("fc00:db8:20::/112")},
	}, []byte("secrets"))
	if err != nil {
		t.Fatal(err)
	}
	for i := range 3 {
		m := &inventory.Machine{
			Name: fmt.Sprintf("m-%d", i), MACs: []inventory.MAC{mac(i)}, Cluster: "prod", Role: inventory.Worker, Address: addr(i),
		}
		if _, err := k.PutMachine(t.Context(), m, 0); err != nil {
			t.Fatal(err)
		}
	}
	return k
}

func mac(i int) inventory.MAC { return inventory.MAC(fmt.Sprintf("52:54:00:00:00:%02x", i+1)) }

func addr(i int) netip.Addr { return netip.MustParseAddr(fmt.Sprintf("2001:db8:1::%x", i+0x10)) }

// run starts a monitor and returns when the bubble is at rest.
func run(t *testing.T, k *inventory.Keeper, m *machines) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- monitor.New(k, m, zerolog.Nop()).Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	synctest.Wait()
}

func boot(t *testing.T, k *inventory.Keeper, i int) {
	t.Helper()
	for _, kind := range []inventory.Kind{inventory.ScriptServed, inventory.ConfigServed} {
		if _, err := k.Record(t.Context(), inventory.Event{Kind: kind, MAC: mac(i), Plan: inventory.Install, Hash: "h"}); err != nil {
			t.Fatal(err)
		}
	}
}

func phase(t *testing.T, k *inventory.Keeper, i int) inventory.Phase {
	t.Helper()
	v, err := k.View(t.Context(), mac(i), "")
	if err != nil {
		t.Fatal(err)
	}
	return inventory.DefaultPatience().PhaseOf(v, time.Now()).Phase
}

// TestFollowsABoot: a machine is asked from the moment it has its config, and
// no other one is.
func TestFollowsABoot(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k := setup(t, false)
		m := &machines{say: map[netip.Addr]inventory.Stage{}, asked: map[netip.Addr]int{}}
		run(t, k, m)
		time.Sleep(time.Minute)
		if n := m.count(addr(0)); n != 0 {
			t.Fatalf("a machine that never booted was asked %d times", n)
		}
		boot(t, k, 0)
		time.Sleep(time.Minute)
		if n := m.count(addr(0)); n < 6 || n > 20 {
			t.Errorf("a machine that installs was asked %d times in a minute", n)
		}
		if phase(t, k, 0) != inventory.PhaseInstalling {
			t.Errorf("it is %s", phase(t, k, 0))
		}
		m.set(addr(0), inventory.StageBooting)
		time.Sleep(time.Minute)
		if phase(t, k, 0) != inventory.PhaseBooting {
			t.Errorf("its API answers and it is %s", phase(t, k, 0))
		}
		m.set(addr(0), inventory.StageRunning)
		time.Sleep(5 * time.Second)
		if v, err := k.Machine(t.Context(), "m-0"); err != nil || v.Facts.SecureBoot != inventory.On {
			t.Errorf("Secure Boot is %q, %v", v.Facts.SecureBoot, err)
		}
		if phase(t, k, 0) != inventory.PhaseReady {
			t.Errorf("it is up and %s", phase(t, k, 0))
		}
		before := m.count(addr(0))
		time.Sleep(10 * time.Minute)
		if n := m.count(addr(0)) - before; n < 8 || n > 12 {
			t.Errorf("a machine that is ready was asked %d times in ten minutes", n)
		}
		if n := m.count(addr(1)) + m.count(addr(2)); n != 0 {
			t.Errorf("machines that never booted were asked %d times", n)
		}
	})
}

// TestTakesUpWhereItStopped: after a restart the machines under way are found
// again without any event.
func TestTakesUpWhereItStopped(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k := setup(t, false)
		boot(t, k, 1)
		m := &machines{say: map[netip.Addr]inventory.Stage{addr(1): inventory.StageRunning}, asked: map[netip.Addr]int{}}
		run(t, k, m)
		time.Sleep(time.Second)
		if phase(t, k, 1) != inventory.PhaseReady {
			t.Errorf("it is %s", phase(t, k, 1))
		}
	})
}

// TestImportedClusterIsLookedFor: its machines may run, from before our time.
func TestImportedClusterIsLookedFor(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k := setup(t, true)
		m := &machines{say: map[netip.Addr]inventory.Stage{addr(2): inventory.StageRunning}, asked: map[netip.Addr]int{}}
		run(t, k, m)
		time.Sleep(2 * time.Minute)
		if phase(t, k, 2) != inventory.PhaseReady {
			t.Errorf("a running machine of an imported cluster is %s", phase(t, k, 2))
		}
		if v, err := k.View(t.Context(), mac(2), ""); err != nil || inventory.PlanBoot(v).Action != inventory.Disk {
			t.Errorf("and would %+v, %v", inventory.PlanBoot(v), err)
		}
	})
}
