package dhcpv6

import (
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"path/filepath"
	"testing"
	"time"

	"github.com/rs/zerolog"

	"github.com/provisiond/provisiond/internal/boltstore"
	"github.com/provisiond/provisiond/internal/inventory"
	"github.com/provisiond/provisiond/internal/inventory/storetest"
)

// hall is a server on a database of n registered machines.
type hall struct {
	server *Server
	n      int
	close  func()
}

func hallMAC(i int) inventory.MAC {
	return inventory.MAC(fmt.Sprintf("52:54:%02x:%02x:%02x:%02x", i>>24&255, i>>16&255, i>>8&255, i&255))
}

func hallAddress(i int) netip.Addr {
	return netip.MustParseAddr(fmt.Sprintf("2001:db8:1::%x:%x", i>>16+1, i&0xffff))
}

func hallSubnets() []inventory.Subnet {
	n := testSubnets()
	n[0].Pool, _ = inventory.ParseRange("2001:db8:1::f000:0-2001:db8:1::f0ff:ffff")
	return n
}

func newHall(b *testing.B, n int) *hall {
	b.Helper()
	h, err := openHall(b.TempDir(), n, false)
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(h.close)
	return h
}

// openHall makes a database in a folder. durable: what is written is synced.
func openHall(dir string, n int, durable bool) (*hall, error) {
	path, ctx := filepath.Join(dir, "db"), context.Background()
	db, err := boltstore.Open(path, boltstore.Options{NoSync: true})
	if err != nil {
		return nil, err
	}
	k, err := inventory.NewKeeper(ctx, db, inventory.KeeperConfig{Subnets: hallSubnets()})
	if err != nil {
		return nil, err
	}
	_, err = k.CreateCluster(ctx, &inventory.Cluster{
		Name: "c1", Endpoint: "https://[2001:db8::1]:6443", TalosVersion: "v1.13.6", KubernetesVersion: "1.36.2",
		PodSubnets:     []netip.Prefix{netip.MustParsePrefix("fc00:db8:10::/56")},
		ServiceSubnets: []netip.Prefix{netip.MustParsePrefix("fc00:db8:20::/112")},
	}, []byte("secrets"))
	if err != nil {
		return nil, err
	}
	if err := k.PutImage(ctx, &inventory.Image{Version: "v1.13.6", Arch: inventory.AMD64}); err != nil {
		return nil, err
	}
	err = storetest.Fill(ctx, db, n, func(i int) (inventory.Machine, inventory.Facts) {
		name := fmt.Sprintf("m-%08d", i)
		return inventory.Machine{
			Name: name, MACs: []inventory.MAC{hallMAC(i)}, Cluster: "c1", Role: inventory.Worker, Created: time.Now(),
			Address: hallAddress(i), Labels: map[string]string{"rack": "r-12", "row": "7"},
		}, inventory.Facts{Machine: name, Arch: inventory.AMD64, UUID: "00112233-4455-6677-8899-aabbccddeeff", Install: inventory.Order{Ordered: 1}}
	})
	if err != nil {
		return nil, err
	}
	// One that has read what Fill wrote.
	if err := db.Close(); err != nil {
		return nil, err
	}
	if db, err = boltstore.Open(path, boltstore.Options{NoSync: !durable}); err != nil {
		return nil, err
	}
	if k, err = inventory.NewKeeper(ctx, db, inventory.KeeperConfig{Subnets: hallSubnets()}); err != nil {
		return nil, err
	}
	ctx, cancel := context.WithCancel(ctx)
	done := make(chan error, 1)
	go func() { done <- k.Run(ctx, func(err error) { panic(err) }) }()
	return &hall{New(Config{ServerDUID: serverDUID, Boot: bootFiles{}}, k, nil, zerolog.Nop()), n, func() {
		cancel()
		<-done
		_ = db.Close()
	}}, nil
}

// booting is how many machines boot in each hall, spread over all of it: what they
// do is written down, which costs the same however many others there are.
const booting = 1_000

// exchanges times Solicit, Advertise, Request and Reply of machines that boot from
// the network. It returns the time of one exchange.
func (h *hall) exchanges(b *testing.B, rng *rand.Rand, times int) time.Duration {
	b.Helper()
	start := time.Now()
	for range times {
		i, xid := rng.IntN(booting)*(h.n/booting), rng.Uint32()
		for _, m := range [][]byte{ovmfPXE.first(), ovmfPXE.with(request, ovmfPXE.ia)} {
			binary.BigEndian.PutUint16(m[2:], uint16(xid))
			out, err := h.server.handle(b.Context(), direct(hallMAC(i), m))
			if own := hallAddress(i); err != nil || !bytes.Contains(out.data, own.AsSlice()) {
				b.Fatalf("machine %d: %x without %s: %v", i, out.data, own, err)
			}
		}
	}
	return time.Since(start) / time.Duration(times)
}

// BenchmarkExchange compares what an exchange with a registered machine costs in
// inventories of 100,000 and of a million machines and in one of 1,000, as many of
// which boot. What they were seen doing is written meanwhile, as in a running
// daemon.
func BenchmarkExchange(b *testing.B) {
	sizes := []int{1_000, 100_000, 1_000_000}
	halls := make([]*hall, len(sizes))
	for i, n := range sizes {
		halls[i] = newHall(b, n)
	}
	rng := rand.New(rand.NewPCG(5, 6))
	for b.Loop() {
		// In turn, and the best of each: whatever else the host does hits all.
		best := []time.Duration{time.Hour, time.Hour, time.Hour}
		for range 21 {
			for i, h := range halls {
				best[i] = min(best[i], h.exchanges(b, rng, 3_000))
			}
		}
		b.ReportMetric(float64(best[0].Nanoseconds()), "ns/exchange-1k")
		b.ReportMetric(float64(best[1])/float64(best[0]), "ratio-100k")
		b.ReportMetric(float64(best[2])/float64(best[0]), "ratio-1000k")
	}
}
