package inventory_test

import (
	"fmt"
	"math/rand/v2"
	"path/filepath"
	"runtime"
	"testing"
	"time"

	"github.com/provisiond/provisiond/internal/boltstore"
	"github.com/provisiond/provisiond/internal/inventory"
	"github.com/provisiond/provisiond/internal/inventory/storetest"
)

func bigMAC(i int) inventory.MAC {
	return inventory.MAC(fmt.Sprintf("52:54:%02x:%02x:%02x:%02x", i>>24&255, i>>16&255, i>>8&255, i&255))
}

// fill makes a database of n machines.
func fill(b *testing.B, path string, n int) {
	b.Helper()
	store, err := boltstore.Open(path, boltstore.Options{NoSync: true})
	if err != nil {
		b.Fatal(err)
	}
	defer store.Close()
	k, err := inventory.NewKeeper(b.Context(), store, inventory.KeeperConfig{Subnets: subnets()})
	if err != nil {
		b.Fatal(err)
	}
	if _, err := k.CreateCluster(b.Context(), cluster("prod"), []byte("secrets")); err != nil {
		b.Fatal(err)
	}
	if err := k.PutImage(b.Context(), &inventory.Image{Version: "v1.13.6", Arch: inventory.AMD64}); err != nil {
		b.Fatal(err)
	}
	err = storetest.Fill(b.Context(), store, n, func(i int) (inventory.Machine, inventory.Facts) {
		name := fmt.Sprintf("m-%08d", i)
		return inventory.Machine{
			Name: name, MACs: []inventory.MAC{bigMAC(i)}, Cluster: "prod", Role: inventory.Worker, Created: time.Now(),
			Address: addr(fmt.Sprintf("2001:db8:1::%x:%x", i>>16+1, i&0xffff)), Labels: map[string]string{"rack": "r-12", "row": "7"},
		}, inventory.Facts{Machine: name, Arch: inventory.AMD64, UUID: "00112233-4455-6677-8899-aabbccddeeff", Install: inventory.Order{Ordered: 1}}
	})
	if err != nil {
		b.Fatal(err)
	}
}

// lookups times random lookups of the boot decision. It returns the time of one.
func lookups(b *testing.B, k *inventory.Keeper, n, times int) time.Duration {
	b.Helper()
	rng := rand.New(rand.NewPCG(7, 8))
	start := time.Now()
	for range times {
		v, err := k.View(b.Context(), bigMAC(rng.IntN(n)), inventory.AMD64)
		if err != nil || inventory.PlanBoot(v).Action != inventory.Install {
			b.Fatalf("%+v, %v", v, err)
		}
	}
	return time.Since(start) / time.Duration(times)
}

// BenchmarkLookup compares the boot decision in inventories of 100,000 and of a
// million machines with one of 1,000, and says what a registered machine costs
// in memory and how long a start takes to its first answer.
func BenchmarkLookup(b *testing.B) {
	sizes := []int{1_000, 100_000, 1_000_000}
	keepers := make([]*inventory.Keeper, len(sizes))
	for i, n := range sizes {
		path := filepath.Join(b.TempDir(), fmt.Sprint(n))
		fill(b, path, n)
		before, start := heap(), time.Now()
		store, err := boltstore.Open(path, boltstore.Options{})
		if err != nil {
			b.Fatal(err)
		}
		b.Cleanup(func() { _ = store.Close() })
		if keepers[i], err = inventory.NewKeeper(b.Context(), store, inventory.KeeperConfig{Subnets: subnets()}); err != nil {
			b.Fatal(err)
		}
		lookups(b, keepers[i], n, 1)
		first := time.Since(start)
		for m := range min(n, 100_000) { // every one is known now, as after a while
			if _, err := keepers[i].View(b.Context(), bigMAC(m), inventory.AMD64); err != nil {
				b.Fatal(err)
			}
		}
		if memory := max(0, float64(heap()-before)/float64(n)); i > 0 {
			defer b.ReportMetric(float64(first.Milliseconds()), fmt.Sprintf("ms-to-first-answer-%dk", n/1000))
			defer b.ReportMetric(memory, fmt.Sprintf("B/machine-%dk", n/1000))
		}
	}
	for b.Loop() {
		// In turn, and the best of each: whatever else the host does hits all.
		best := []time.Duration{time.Hour, time.Hour, time.Hour}
		for range 9 {
			for i, n := range sizes {
				best[i] = min(best[i], lookups(b, keepers[i], n, 20_000))
			}
		}
		b.ReportMetric(float64(best[0].Nanoseconds()), "ns/lookup-1k")
		b.ReportMetric(float64(best[1])/float64(best[0]), "ratio-100k")
		b.ReportMetric(float64(best[2])/float64(best[0]), "ratio-1000k")
	}
}

func heap() int64 {
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return int64(m.HeapAlloc)
}
