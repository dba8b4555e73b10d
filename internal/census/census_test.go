package census

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
	"github.com/rs/zerolog"

	"github.com/provisiond/provisiond/internal/boltstore"
	"github.com/provisiond/provisiond/internal/inventory"
	"github.com/provisiond/provisiond/internal/inventory/storetest"
)

// rack is an inventory of machines in one cluster.
type rack struct {
	views []inventory.View
	err   error
	asked int
}

func (r *rack) Machines(_ context.Context, after string, limit int) ([]inventory.View, error) {
	for i := range r.views {
		if r.views[i].Machine.Name > after {
			return r.views[i:min(i+limit, len(r.views))], r.err
		}
	}
	return nil, r.err
}

func (r *rack) Clusters(context.Context) ([]*inventory.Cluster, error) {
	r.asked++
	return []*inventory.Cluster{{Name: "prod"}}, r.err
}

func (r *rack) Cluster(context.Context, string) (*inventory.Cluster, *inventory.Bootstrap, error) {
	return &inventory.Cluster{Name: "prod"}, &inventory.Bootstrap{Machine: "m-00000", CalledAt: time.Now()}, nil
}

func (r *rack) Strangers(context.Context) ([]inventory.Stranger, error) {
	return make([]inventory.Stranger, 3), nil
}

func (r *rack) Pools() []inventory.PoolUse {
	return []inventory.PoolUse{{Subnet: "rack1", Size: 256, Used: 2}}
}

func newRack(n int) *rack {
	r := &rack{}
	for i := range n {
		now := time.Now()
		v := inventory.View{Machine: &inventory.Machine{Name: fmt.Sprintf("m-%05d", i), Cluster: "prod"}}
		switch i {
		case 0: // an alarm, and an order
			v.Facts.Boots = []*inventory.Boot{{Started: now, Script: now, Config: now, Alarm: "twice"}}
			v.Facts.Reimage.Ordered = 1
		case 1: // at its console
			v.Facts.Boots = []*inventory.Boot{{Started: now, Script: now, Flows: []inventory.Flow{{Asked: now, Expires: now.Add(time.Hour)}}}}
		case 2: // long silent
			v.Facts.Boots = []*inventory.Boot{{Started: now.Add(-time.Hour), Script: now.Add(-time.Hour)}}
		case 3:
			v.Machine.Cluster = ""
		}
		r.views = append(r.views, v)
	}
	return r
}

// start runs a census until the test ends.
func start(t testing.TB, inv Inventory) (*Census, *prometheus.Registry) {
	t.Helper()
	c := New(inv, nil, zerolog.Nop())
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- c.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	reg := prometheus.NewPedanticRegistry()
	reg.MustRegister(c.Collectors()...)
	return c, reg
}

func TestCensus(t *testing.T) {
	_, reg := start(t, newRack(1000))
	err := testutil.GatherAndCompare(reg, strings.NewReader(`
# HELP provisiond_machine_alarms Machines whose keys may be out, until somebody acknowledges it.
# TYPE provisiond_machine_alarms gauge
provisiond_machine_alarms{cluster=""} 0
provisiond_machine_alarms{cluster="prod"} 1
# HELP provisiond_machines_awaiting_approval Machines that wait for a person to approve them.
# TYPE provisiond_machines_awaiting_approval gauge
provisiond_machines_awaiting_approval{cluster=""} 0
provisiond_machines_awaiting_approval{cluster="prod"} 1
# HELP provisiond_reimages_outstanding Machines that are to be wiped, or were and have not fetched their config since.
# TYPE provisiond_reimages_outstanding gauge
provisiond_reimages_outstanding{cluster=""} 0
provisiond_reimages_outstanding{cluster="prod"} 1
# HELP provisiond_bootstrap_state 1 for the state that the bootstrap of a cluster is in.
# TYPE provisiond_bootstrap_state gauge
provisiond_bootstrap_state{cluster="prod",state="called"} 1
provisiond_bootstrap_state{cluster="prod",state="claimed"} 0
provisiond_bootstrap_state{cluster="prod",state="done"} 0
provisiond_bootstrap_state{cluster="prod",state="imported"} 0
provisiond_bootstrap_state{cluster="prod",state="waiting"} 0
# HELP provisiond_discovered_nics NICs that asked and belong to no registered machine.
# TYPE provisiond_discovered_nics gauge
provisiond_discovered_nics 3
# HELP provisiond_dhcpv6_pool_addresses Addresses in the pool of a subnet, reserved ones included.
# TYPE provisiond_dhcpv6_pool_addresses gauge
provisiond_dhcpv6_pool_addresses{subnet="rack1"} 256
# HELP provisiond_dhcpv6_pool_leased Addresses of the pool of a subnet that are promised, or kept out of use after a Decline.
# TYPE provisiond_dhcpv6_pool_leased gauge
provisiond_dhcpv6_pool_leased{subnet="rack1"} 2
# HELP provisiond_machines Registered machines by phase.
# TYPE provisiond_machines gauge
provisiond_machines{cluster="",phase="booting"} 0
provisiond_machines{cluster="",phase="configuring"} 0
provisiond_machines{cluster="",phase="failed"} 0
provisiond_machines{cluster="",phase="installing"} 0
provisiond_machines{cluster="",phase="loading"} 0
provisiond_machines{cluster="",phase="offered"} 0
provisiond_machines{cluster="",phase="ready"} 0
provisiond_machines{cluster="",phase="registered"} 1
provisiond_machines{cluster="",phase="reimaging"} 0
provisiond_machines{cluster="",phase="stalled"} 0
provisiond_machines{cluster="prod",phase="booting"} 0
provisiond_machines{cluster="prod",phase="configuring"} 1
provisiond_machines{cluster="prod",phase="failed"} 0
provisiond_machines{cluster="prod",phase="installing"} 1
provisiond_machines{cluster="prod",phase="loading"} 0
provisiond_machines{cluster="prod",phase="offered"} 0
provisiond_machines{cluster="prod",phase="ready"} 0
provisiond_machines{cluster="prod",phase="registered"} 996
provisiond_machines{cluster="prod",phase="reimaging"} 0
provisiond_machines{cluster="prod",phase="stalled"} 1
`), "provisiond_machines", "provisiond_machine_alarms", "provisiond_machines_awaiting_approval", "provisiond_reimages_outstanding",
		"provisiond_bootstrap_state", "provisiond_discovered_nics", "provisiond_dhcpv6_pool_addresses", "provisiond_dhcpv6_pool_leased")
	if err != nil {
		t.Error(err)
	}
	if problems, err := testutil.GatherAndLint(reg); err != nil || len(problems) > 0 {
		t.Error(problems, err)
	}
}

// TestSeriesDoNotGrow: ten times a hundred machines are as many series as five.
func TestSeriesDoNotGrow(t *testing.T) {
	_, few := start(t, newRack(5))
	_, many := start(t, newRack(1000))
	a, err := testutil.GatherAndCount(few)
	if err != nil {
		t.Fatal(err)
	}
	if b, err := testutil.GatherAndCount(many); err != nil || a != b {
		t.Errorf("%d series and %d, %v", a, b, err)
	}
}

// TestCountedSeldom: who asks again soon gets the same, and a failure is no count.
func TestCountedSeldom(t *testing.T) {
	r := newRack(5)
	c, _ := start(t, r)
	now := time.Now()
	c.now = func() time.Time { return now } // before anybody asks
	first := c.latest()
	if first == nil || c.latest() != first || r.asked != 1 {
		t.Fatalf("%v, asked %d times", first, r.asked)
	}
	now = now.Add(every)
	second := c.latest()
	if second == first || r.asked != 2 {
		t.Errorf("asked %d times", r.asked)
	}
	now, r.err = now.Add(every), errors.New("the disk is gone")
	if c.latest() != second || testutil.ToFloat64(c.failing) != 1 {
		t.Error("a failure is shown as a count")
	}
	now = now.Add(every)
	c.took = time.Second
	if c.latest(); testutil.ToFloat64(c.failing) != 1 {
		t.Error("one that takes long is taken again at once")
	}
}

// BenchmarkCensus counts 100,000 machines that run, from a database.
func BenchmarkCensus(b *testing.B) {
	const n = 100_000
	store, err := boltstore.Open(filepath.Join(b.TempDir(), "db"), boltstore.Options{NoSync: true})
	if err != nil {
		b.Fatal(err)
	}
	defer store.Close()
	now := time.Now()
	err = storetest.Fill(b.Context(), store, n, func(i int) (inventory.Machine, inventory.Facts) {
		name := fmt.Sprintf("m-%08d", i)
		mac := inventory.MAC(fmt.Sprintf("52:54:%02x:%02x:%02x:%02x", i>>24&255, i>>16&255, i>>8&255, i&255))
		boot := &inventory.Boot{Number: 1, Token: "dGhpcyBpcyBhIHRva2Vu", MAC: mac, Client: inventory.IPXE, Started: now, XIDs: []uint32{1, 2, 3, 4}, Offered: now, Loader: now, Script: now,
			Kernel: now, Initramfs: now, Config: now, API: now, Ready: now, Plan: inventory.Install, Order: 1, ConfigFetches: 1}
		return inventory.Machine{Name: name, MACs: []inventory.MAC{mac}, Role: inventory.Worker, Created: now, Address: netip.MustParseAddr(fmt.Sprintf("2001:db8:1::%x:%x", i>>16+1, i&0xffff))},
			inventory.Facts{Machine: name, Arch: inventory.AMD64, UUID: "00112233-4455-6677-8899-aabbccddeeff", FirstSeen: now, Boots: []*inventory.Boot{boot, boot}, Ready: true, Stage: inventory.StageRunning, StageAt: now, APIAt: now}
	})
	if err != nil {
		b.Fatal(err)
	}
	subnets := []inventory.Subnet{}
	k, err := inventory.NewKeeper(b.Context(), store, inventory.KeeperConfig{Subnets: subnets})
	if err != nil {
		b.Fatal(err)
	}
	c := New(k, nil, zerolog.Nop())
	for b.Loop() {
		if got, err := c.count(b.Context(), now); err != nil || got.clusters[""].phases[inventory.PhaseReady] != n {
			b.Fatal(err)
		}
	}
	b.ReportMetric(b.Elapsed().Seconds()/float64(b.N)/n*1e6, "µs/machine")
}
