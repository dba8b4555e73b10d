package inventory_test

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/provisiond/provisiond/internal/boltstore"
	"github.com/provisiond/provisiond/internal/inventory"
	"github.com/provisiond/provisiond/internal/inventory/storetest"
)

func addr(s string) netip.Addr { return netip.MustParseAddr(s) }

func subnets() []inventory.Subnet {
	return []inventory.Subnet{{
		Name: "rack1", Prefix: netip.MustParsePrefix("2001:db8:1::/64"), Interface: "eth0", Strangers: true,
		Machines:  inventory.Range{First: addr("2001:db8:1::100"), Last: addr("2001:db8:1::1ff")},
		Pool:      inventory.Range{First: addr("2001:db8:1::f00"), Last: addr("2001:db8:1::f3f")},
		Reserved:  []inventory.Range{{First: addr("2001:db8:1::2"), Last: addr("2001:db8:1::2")}},
		Preferred: time.Hour, Valid: 2 * time.Hour,
	}}
}

func newKeeper(t *testing.T) (*inventory.Keeper, *storetest.Faulty) {
	t.Helper()
	db, err := boltstore.Open(filepath.Join(t.TempDir(), "db"), boltstore.Options{NoSync: true})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = db.Close() })
	store := storetest.NewFaulty(db)
	k, err := inventory.NewKeeper(t.Context(), store, inventory.KeeperConfig{Subnets: subnets(), MaxStrangers: 16})
	if err != nil {
		t.Fatal(err)
	}
	return k, store
}

func mac(i int) inventory.MAC {
	return inventory.MAC(fmt.Sprintf("52:54:00:00:%02x:%02x", i>>8, i&255))
}

func machine(i int) *inventory.Machine {
	return &inventory.Machine{Name: fmt.Sprintf("m-%d", i), MACs: []inventory.MAC{mac(i)}, Role: inventory.Worker}
}

func mustPut(t *testing.T, k *inventory.Keeper, m *inventory.Machine) *inventory.Machine {
	t.Helper()
	stored, err := k.PutMachine(t.Context(), m, 0)
	if err != nil {
		t.Fatalf("registering %s: %v", m.Name, err)
	}
	return stored
}

func cluster(name string) *inventory.Cluster {
	return &inventory.Cluster{
		Name: name, Endpoint: "https://[2001:db8::1]:6443", TalosVersion: "v1.13.6", KubernetesVersion: "1.36.2",
		PodSubnets:     []netip.Prefix{netip.MustParsePrefix("fc00:db8:10::/56")},
		ServiceSubnets: []netip.Prefix{netip.MustParsePrefix("fc00:db8:20::/112")},
	}
}

func mustCluster(t *testing.T, k *inventory.Keeper, name string) {
	t.Helper()
	if _, err := k.CreateCluster(t.Context(), cluster(name), []byte("secrets")); err != nil {
		t.Fatal(err)
	}
}

func TestRegister(t *testing.T) {
	k, _ := newKeeper(t)
	mustCluster(t, k, "prod")
	m := &inventory.Machine{Name: "cp-1", MACs: []inventory.MAC{"52-54-00-AB-CD-EF"}, Cluster: "prod", Role: inventory.ControlPlane}
	stored := mustPut(t, k, m)
	if stored.MACs[0] != "52:54:00:ab:cd:ef" || !subnets()[0].Machines.Contains(stored.Address) {
		t.Fatalf("stored as %+v", stored)
	}
	for _, ref := range []string{"cp-1", "5254.00ab.cdef", "52:54:00:ab:cd:ef"} {
		if v, err := k.Machine(t.Context(), ref); err != nil || v.Machine.Name != "cp-1" || v.Cluster == nil || !v.Facts.Install.Outstanding() {
			t.Errorf("Machine(%s) = %+v, %v", ref, v, err)
		}
	}
	if v, err := k.MachineByAddress(t.Context(), stored.Address); err != nil || v.Machine == nil {
		t.Errorf("not found by its address: %v", err)
	}
	if v, err := k.MachineByAddress(t.Context(), addr("fe80::5054:ff:feab:cdef").WithZone("eth0")); err != nil || v.Machine == nil {
		t.Errorf("not found by its link-local address: %v", err)
	}
	for _, zone := range []string{"", "eth1"} {
		if v, err := k.MachineByAddress(t.Context(), addr("fe80::5054:ff:feab:cdef").WithZone(zone)); err != nil || v.Machine != nil {
			t.Errorf("found by its link-local address on %q: %v", zone, err)
		}
	}
	for a, found := range map[string]bool{"2001:db8:1::5054:ff:feab:cdef": true, "2001:db8:2::5054:ff:feab:cdef": false, "2001:db8:9::5054:ff:feab:cdef": false, "2001:db8:1::5054:ff:feab:cdee": false} {
		if v, err := k.MachineByAddress(t.Context(), addr(a)); err != nil || (v.Machine != nil) != found {
			t.Errorf("%s by SLAAC: found %t, %v", a, !found, err)
		}
	}
	if members, err := k.Members(t.Context(), "prod", ""); err != nil || len(members) != 1 {
		t.Errorf("members are %v, %v", members, err)
	}

	stored.MACs = []inventory.MAC{mac(7), mac(8)}
	stored.Address = addr("2001:db8:1::77")
	stored.Cluster = ""
	changed, err := k.PutMachine(t.Context(), stored, stored.Rev)
	if err != nil {
		t.Fatal(err)
	}
	if v, _ := k.View(t.Context(), "52:54:00:ab:cd:ef", ""); v.Machine != nil {
		t.Error("the old MAC still finds it")
	}
	if v, _ := k.View(t.Context(), mac(8), ""); v.Machine == nil {
		t.Error("the second MAC does not find it")
	}
	if members, _ := k.Members(t.Context(), "prod", ""); len(members) != 0 {
		t.Errorf("still a member: %v", members)
	}
	if _, err := k.PutMachine(t.Context(), stored, stored.Rev); !errors.Is(err, inventory.ErrConflict) {
		t.Errorf("changing an old revision: %v", err)
	}
	if err := k.DeleteMachine(t.Context(), "cp-1", changed.Rev); err != nil {
		t.Fatal(err)
	}
	mustPut(t, k, &inventory.Machine{Name: "cp-2", MACs: []inventory.MAC{mac(7)}, Address: addr("2001:db8:1::77"), Role: inventory.Worker})
}

func TestRegisterRefuses(t *testing.T) {
	k, _ := newKeeper(t)
	mustPut(t, k, &inventory.Machine{Name: "taken", MACs: []inventory.MAC{mac(1)}, Address: addr("2001:db8:1::10"), Role: inventory.Worker})
	for _, tt := range []struct {
		field string
		is    error
		m     inventory.Machine
	}{
		{"name", inventory.ErrExists, inventory.Machine{Name: "taken", MACs: []inventory.MAC{mac(9)}}},
		{"name", nil, inventory.Machine{Name: "CP_1", MACs: []inventory.MAC{mac(9)}}},
		{"macs[0]", inventory.ErrExists, inventory.Machine{Name: "new", MACs: []inventory.MAC{mac(1)}}},
		{"macs[1]", nil, inventory.Machine{Name: "new", MACs: []inventory.MAC{mac(9), "nonsense"}}},
		{"macs", nil, inventory.Machine{Name: "new"}},
		{"address", inventory.ErrExists, inventory.Machine{Name: "new", MACs: []inventory.MAC{mac(9)}, Address: addr("2001:db8:1::10")}},
		{"address", nil, inventory.Machine{Name: "new", MACs: []inventory.MAC{mac(9)}, Address: addr("2001:db8:9::10")}},
		{"address", nil, inventory.Machine{Name: "new", MACs: []inventory.MAC{mac(9)}, Address: addr("2001:db8:1::f01")}},
		{"address", nil, inventory.Machine{Name: "new", MACs: []inventory.MAC{mac(9)}, Address: addr("2001:db8:1::2")}},
		{"address", nil, inventory.Machine{Name: "new", MACs: []inventory.MAC{mac(9)}, Address: addr("2001:db8:1::")}},
		{"address", nil, inventory.Machine{Name: "new", MACs: []inventory.MAC{mac(9)}, Address: addr("fe80::1")}},
		{"subnet", nil, inventory.Machine{Name: "new", MACs: []inventory.MAC{mac(9)}, Subnet: "rack9"}},
		{"cluster", inventory.ErrNotFound, inventory.Machine{Name: "new", MACs: []inventory.MAC{mac(9)}, Cluster: "nowhere"}},
		{"role", nil, inventory.Machine{Name: "new", MACs: []inventory.MAC{mac(9)}, Role: "init"}},
		{"install.disk", nil, inventory.Machine{Name: "new", MACs: []inventory.MAC{mac(9)}, Install: inventory.InstallTarget{Disk: "sda"}}},
		{"kernelArgs[0]", nil, inventory.Machine{Name: "new", MACs: []inventory.MAC{mac(9)}, KernelArgs: []string{"a b"}}},
		{"kernelArgs[0]", nil, inventory.Machine{Name: "new", MACs: []inventory.MAC{mac(9)}, KernelArgs: []string{"talos.config=http://evil/"}}},
	} {
		if tt.m.Role == "" {
			tt.m.Role = inventory.Worker
		}
		_, err := k.PutMachine(t.Context(), &tt.m, 0)
		var fe *inventory.FieldError
		if !errors.As(err, &fe) || fe.Field != tt.field || tt.is != nil && !errors.Is(err, tt.is) {
			t.Errorf("%+v: %v, want an error of %s (%v)", tt.m, err, tt.field, tt.is)
		}
	}
	if views, err := k.Machines(t.Context(), "", 0); err != nil || len(views) != 1 {
		t.Errorf("a refused machine was stored: %d, %v", len(views), err)
	}
}

// TestConcurrentRegistration registers machines that want the same address: one
// gets it, and no two share one.
func TestConcurrentRegistration(t *testing.T) {
	k, _ := newKeeper(t)
	var wg sync.WaitGroup
	var mu sync.Mutex
	won := 0
	for i := range 40 {
		wg.Go(func() {
			m := machine(i)
			if i%2 == 0 {
				m.Address = addr("2001:db8:1::42")
			}
			_, err := k.PutMachine(t.Context(), m, 0)
			if i%2 == 1 && err != nil {
				t.Errorf("%s: %v", m.Name, err)
			}
			if i%2 == 0 && err == nil {
				mu.Lock()
				won++
				mu.Unlock()
			}
		})
	}
	wg.Wait()
	if won != 1 {
		t.Errorf("%d machines got the same address", won)
	}
	views, err := k.Machines(t.Context(), "", 0)
	if err != nil || len(views) != 21 {
		t.Fatalf("%d machines, %v, want 21", len(views), err)
	}
	seen := map[netip.Addr]string{}
	for _, v := range views {
		if other := seen[v.Machine.Address]; other != "" {
			t.Errorf("%s and %s share %s", other, v.Machine.Name, v.Machine.Address)
		}
		seen[v.Machine.Address] = v.Machine.Name
	}
}

func TestRangeRunsOut(t *testing.T) {
	k, _ := newKeeper(t)
	for i := range 256 {
		mustPut(t, k, machine(i))
	}
	_, err := k.PutMachine(t.Context(), machine(999), 0)
	if !errors.Is(err, inventory.ErrFull) || !strings.Contains(err.Error(), "address") {
		t.Errorf("the 257th machine: %v", err)
	}
}

// TestFaultyCommits makes commits fail in every way, each operation with each
// pattern: what was acknowledged is there, what was refused is not, nothing
// happened twice.
func TestFaultyCommits(t *testing.T) {
	rng := rand.New(rand.NewPCG(3, 4))
	for round := range 60 {
		k, store := newKeeper(t)
		mustCluster(t, k, "prod")
		store.Each(func() storetest.Fault {
			switch rng.IntN(4) {
			case 0:
				return storetest.LostButPersisted
			case 1:
				return storetest.LostNotPersisted
			}
			return storetest.None
		})
		m, err := k.PutMachine(t.Context(), &inventory.Machine{Name: "cp-1", MACs: []inventory.MAC{mac(1)}, Cluster: "prod", Role: inventory.ControlPlane}, 0)
		if err != nil {
			t.Fatalf("round %d: registering: %v", round, err)
		}
		for _, e := range []inventory.Event{
			{Kind: inventory.Solicited, Client: inventory.FirmwarePXE, XID: 1}, {Kind: inventory.ScriptServed, Plan: inventory.Install},
			{Kind: inventory.ConfigServed, Hash: "h"},
		} {
			e.MAC = mac(1)
			if _, err := k.Record(t.Context(), e); err != nil {
				t.Fatalf("round %d: %s: %v", round, e.Kind, err)
			}
		}
		if _, err := k.Record(t.Context(), inventory.Event{Kind: inventory.BootstrapClaimed, Cluster: "prod", Machine: "cp-1", Epoch: 1}); err != nil {
			t.Fatalf("round %d: claiming: %v", round, err)
		}
		store.Each(nil)
		if _, err := k.Record(t.Context(), inventory.Event{Kind: inventory.BootstrapClaimed, Cluster: "prod", MAC: mac(1), Machine: "", Epoch: 1}); !errors.Is(err, inventory.ErrRefused) {
			t.Fatalf("round %d: a second claim: %v", round, err)
		}
		v, err := k.Machine(t.Context(), "cp-1")
		if err != nil || len(v.Facts.Boots) != 1 || v.Facts.Boots[0].Config.IsZero() || v.Machine.Address != m.Address {
			t.Fatalf("round %d: %+v, %v", round, v, err)
		}
		times := 0
		for _, e := range must(k.Events(t.Context(), 0, 0)) {
			if e.Kind == inventory.Registered {
				times++
			}
		}
		if times != 1 {
			t.Fatalf("round %d: registered %d times", round, times)
		}
	}
}

func TestFullDiskLosesNothing(t *testing.T) {
	k, store := newKeeper(t)
	mustPut(t, k, machine(1))
	store.Each(func() storetest.Fault { return storetest.Full })
	if _, err := k.PutMachine(t.Context(), machine(2), 0); !errors.Is(err, inventory.ErrFull) {
		t.Errorf("registering on a full disk: %v", err)
	}
	v, err := k.View(t.Context(), mac(1), "")
	if err != nil || v.Machine == nil {
		t.Errorf("a known machine is not found any more: %v", err)
	}
	b := inventory.Binding{MAC: mac(1), Machine: "m-1", Stable: v.Machine.Address, Client: inventory.FirmwarePXE, Subnet: &k.Subnets()[0], Commit: true}
	if l, err := k.Bind(t.Context(), b); err != nil || l.Address != v.Machine.Address {
		t.Errorf("a registered machine gets no address on a full disk: %v", err)
	}
	store.Each(nil)
	mustPut(t, k, machine(2))
}

func TestEventThatChangesNothingWritesNothing(t *testing.T) {
	k, store := newKeeper(t)
	mustPut(t, k, machine(1))
	e := inventory.Event{Kind: inventory.Solicited, MAC: mac(1), Client: inventory.FirmwarePXE, XID: 5, Time: time.Now()}
	if _, err := k.Record(t.Context(), e); err != nil {
		t.Fatal(err)
	}
	commits := 0
	store.Each(func() storetest.Fault { commits++; return storetest.None })
	for range 10 {
		if _, err := k.Record(t.Context(), e); err != nil {
			t.Fatal(err)
		}
	}
	if commits != 0 {
		t.Errorf("repeats of one packet made %d commits", commits)
	}
}

func TestStrangersAreBounded(t *testing.T) {
	k, _ := newKeeper(t)
	now := time.Now()
	for i := range 200 {
		e := inventory.Event{Kind: inventory.Solicited, MAC: mac(i), Time: now.Add(time.Duration(i) * time.Minute), Arch: inventory.AMD64, Subnet: "rack1"}
		if _, err := k.Record(t.Context(), e); err != nil {
			t.Fatal(err)
		}
	}
	list, err := k.Strangers(t.Context())
	if err != nil || len(list) != 16 || list[0].MAC != mac(199) {
		t.Fatalf("%d strangers, %v, want the 16 seen last", len(list), err)
	}
	mustPut(t, k, machine(199))
	if list, _ := k.Strangers(t.Context()); len(list) != 15 {
		t.Errorf("a registered machine is still a stranger: %d", len(list))
	}
	before := len(must(k.Events(t.Context(), 0, 0)))
	for i := range 5000 { // all in one second
		e := inventory.Event{Kind: inventory.Solicited, MAC: mac(1000 + i), Time: now.Truncate(time.Second)}
		if _, err := k.Record(t.Context(), e); err != nil {
			t.Fatal(err)
		}
	}
	if wrote := len(must(k.Events(t.Context(), 0, 0))) - before; wrote > 100 {
		t.Errorf("a flood of strangers wrote %d events in a second", wrote)
	}
}

func must[T any](v T, _ error) T { return v }

func TestBind(t *testing.T) {
	k, _ := newKeeper(t)
	s := &k.Subnets()[0]
	m := mustPut(t, k, machine(1))
	bind := func(b inventory.Binding) netip.Addr {
		t.Helper()
		b.Subnet = s
		l, err := k.Bind(t.Context(), b)
		if err != nil {
			t.Fatalf("%+v: %v", b, err)
		}
		return l.Address
	}
	known := inventory.Binding{MAC: mac(1), DUID: []byte{0, 4, 1}, Machine: m.Name, Stable: m.Address, Commit: true}
	for iaid, client := range map[uint32]inventory.Client{1: inventory.FirmwarePXE, 2: inventory.FirmwareHTTP, 3: inventory.IPXE, 4: inventory.OperatingSystem} {
		b := known
		b.Client, b.IAID = client, iaid
		if got := bind(b); got != m.Address {
			t.Errorf("%s got %s, want the stable address", client, got)
		}
	}
	stack := known
	stack.Client, stack.IAID = inventory.FirmwareStack, 77
	first := bind(stack)
	if !s.Pool.Contains(first) {
		t.Errorf("the firmware's own stack got %s, want one of the pool", first)
	}
	if again := bind(stack); again != first {
		t.Errorf("the same IA got %s and %s", first, again)
	}
	// Firmware takes a new IAID each boot; one NIC must never drain the pool.
	used := map[netip.Addr]bool{}
	var last netip.Addr
	for i := range 100 {
		stack.IAID = uint32(1000 + i)
		last = bind(stack)
		used[last] = true
	}
	if len(used) > 4 {
		t.Errorf("one NIC holds %d addresses", len(used))
	}
	// Strangers: by identity, the same again from an empty database.
	other, _ := newKeeper(t)
	taken := map[netip.Addr]bool{}
	for a := range used {
		taken[a] = true
	}
	full := 0
	for i := range 100 {
		b := inventory.Binding{MAC: mac(5000 + i), DUID: []byte{0, 1, byte(i)}, Client: inventory.OperatingSystem, Subnet: s, Commit: true}
		l, err := k.Bind(t.Context(), b)
		if errors.Is(err, inventory.ErrFull) {
			full++
			continue
		} else if err != nil {
			t.Fatal(err)
		}
		if taken[l.Address] {
			t.Fatalf("%s was given twice", l.Address)
		}
		taken[l.Address] = true
		if i == 0 {
			b.Subnet = &other.Subnets()[0]
			fresh, err := other.Bind(t.Context(), b)
			if err != nil {
				t.Fatal(err)
			}
			if !used[fresh.Address] && fresh.Address != l.Address {
				t.Errorf("the stranger got %s, and %s from an empty database", l.Address, fresh.Address)
			}
		}
	}
	// Strangers leave a quarter of the pool to registered machines.
	if len(taken) != 48+len(used) || full != 100-48 {
		t.Errorf("the pool of 64 gave %d addresses, and %d strangers none", len(taken), full)
	}
	next := stack
	next.MAC = mac(2)
	if got := bind(next); taken[got] || !s.Pool.Contains(got) {
		t.Errorf("with the pool full of strangers a machine's second address is %s", got)
	}
	// What a NIC gives back is free, once.
	for _, want := range []error{nil, inventory.ErrNotFound} {
		if err := k.Release(t.Context(), withIAID(stack, 1099, s), []netip.Addr{last}); !errors.Is(err, want) {
			t.Errorf("releasing %s: %v, want %v", last, err, want)
		}
	}
	if got := bind(withIAID(stack, 1100, s)); taken[got] && !used[got] {
		t.Errorf("after a release it got %s, which a stranger holds", got)
	}
}

func withIAID(b inventory.Binding, iaid uint32, s *inventory.Subnet) inventory.Binding {
	b.IAID, b.Subnet = iaid, s
	return b
}

func TestAdvertiseWritesNothing(t *testing.T) {
	k, _ := newKeeper(t)
	b := inventory.Binding{MAC: mac(1), DUID: []byte{1}, Subnet: &k.Subnets()[0]}
	offered, err := k.Bind(t.Context(), b)
	if err != nil {
		t.Fatal(err)
	}
	if leases, _ := k.Leases(t.Context()); len(leases) != 0 {
		t.Errorf("an Advertise left %d leases", len(leases))
	}
	b.Commit = true
	promised, err := k.Bind(t.Context(), b)
	if err != nil || promised.Address != offered.Address {
		t.Errorf("offered %s, promised %s, %v", offered.Address, promised.Address, err)
	}
}

func TestDeclineQuarantines(t *testing.T) {
	k, _ := newKeeper(t)
	b := inventory.Binding{MAC: mac(1), DUID: []byte{1}, Subnet: &k.Subnets()[0], Commit: true}
	first, err := k.Bind(t.Context(), b)
	if err != nil {
		t.Fatal(err)
	}
	if err := k.Decline(t.Context(), b, []netip.Addr{first.Address}); err != nil {
		t.Fatal(err)
	}
	for i := range 10 {
		b.MAC = mac(1 + i)
		l, err := k.Bind(t.Context(), b)
		if err != nil || l.Address == first.Address {
			t.Fatalf("after a Decline %s got %s, %v", b.MAC, l.Address, err)
		}
	}
	if err := k.Decline(t.Context(), b, []netip.Addr{addr("2001:db8:1::f3f")}); !errors.Is(err, inventory.ErrNotFound) {
		t.Errorf("declining what was not given: %v", err)
	}
}

func TestSharedDUIDNamesNobody(t *testing.T) {
	k, _ := newKeeper(t)
	mustPut(t, k, machine(1))
	mustPut(t, k, machine(2))
	duid := "0004" + strings.Repeat("ab", 15) + "cd"
	raw := append([]byte{0, 4}, append([]byte(strings.Repeat("\xab", 15)), 0xcd)...)
	record := func(i int) {
		t.Helper()
		if _, err := k.Record(t.Context(), inventory.Event{Kind: inventory.Solicited, MAC: mac(i), DUID: duid}); err != nil {
			t.Fatal(err)
		}
		if err := k.Flush(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	record(1)
	if got, ok := k.Learnt(t.Context(), raw); !ok || got != mac(1) {
		t.Fatalf("Learnt = %q, %v", got, ok)
	}
	record(2)
	if got, ok := k.Learnt(t.Context(), raw); ok {
		t.Errorf("a DUID that two machines sent names %s", got)
	}
}

func TestDeleteClusterWithMachinesIsRefused(t *testing.T) {
	k, _ := newKeeper(t)
	mustCluster(t, k, "prod")
	mustCluster(t, k, "prod-2")
	m := machine(1)
	m.Cluster = "prod"
	mustPut(t, k, m)
	if err := k.DeleteCluster(t.Context(), "prod", 0); !errors.Is(err, inventory.ErrRefused) || !strings.Contains(err.Error(), "m-1") {
		t.Errorf("deleting a cluster with a machine: %v", err)
	}
	if err := k.DeleteCluster(t.Context(), "prod-2", 0); err != nil {
		t.Errorf("deleting an empty cluster: %v", err)
	}
	if _, err := k.CreateCluster(t.Context(), cluster("prod"), []byte("other")); !errors.Is(err, inventory.ErrExists) {
		t.Errorf("creating it again: %v", err)
	}
	if s, err := k.Secrets(t.Context(), "prod"); err != nil || string(s.Bundle) != "secrets" {
		t.Errorf("its secrets changed: %v", err)
	}
}

// TestViewsAreNeverOld: many writers and readers of few machines, and after
// every write that returned, what is read is at least as new, from the cache as
// from the store. Clusters and machines change meanwhile.
func TestViewsAreNeverOld(t *testing.T) {
	k, store := newKeeper(t)
	mustCluster(t, k, "prod")
	for i := range 3 {
		m := machine(i)
		m.Cluster = "prod"
		mustPut(t, k, m)
	}
	fresh := func() *inventory.Keeper { // reads the store, remembers nothing
		other, err := inventory.NewKeeper(t.Context(), store, inventory.KeeperConfig{Subnets: subnets()})
		if err != nil {
			t.Fatal(err)
		}
		return other
	}
	rng := rand.New(rand.NewPCG(11, 12))
	var faults sync.Mutex
	store.Each(func() storetest.Fault {
		faults.Lock()
		defer faults.Unlock()
		return []storetest.Fault{storetest.None, storetest.None, storetest.None, storetest.LostButPersisted, storetest.LostNotPersisted}[rng.IntN(5)]
	})
	var wg sync.WaitGroup
	for w := range 6 {
		wg.Go(func() {
			for i := range 60 {
				n := (w + i) % 3
				kind := []inventory.Kind{inventory.Solicited, inventory.ScriptServed, inventory.ConfigServed, inventory.APIAnswered}[i%4]
				e := inventory.Event{Kind: kind, MAC: mac(n), Client: inventory.FirmwarePXE, XID: uint32(w*1000 + i), Plan: inventory.Install, Hash: fmt.Sprint(w, i), Stage: inventory.StageBooting}
				after, err := k.Record(t.Context(), e)
				if err != nil {
					t.Error(err)
					return
				}
				v, err := k.View(t.Context(), mac(n), "")
				if err != nil || kind == inventory.ConfigServed && v.Facts.Rev < after.Facts.Rev { // that one always writes
					t.Errorf("wrote revision %d and read %d, %v", after.Facts.Rev, v.Facts.Rev, err)
				}
			}
		})
	}
	wg.Go(func() {
		for i := range 20 {
			cl, _, err := k.Cluster(t.Context(), "prod")
			if err != nil {
				t.Error(err)
				return
			}
			cl.KernelArgs = []string{fmt.Sprint("n=", i)}
			stored, err := k.PutCluster(t.Context(), cl, cl.Rev)
			if err != nil {
				continue // an injected fault made our own commit look like somebody else's
			}
			if v, err := k.View(t.Context(), mac(0), ""); err != nil || v.Cluster.Rev < stored.Rev {
				t.Errorf("changed the cluster to revision %d and read %d, %v", stored.Rev, v.Cluster.Rev, err)
			}
		}
	})
	wg.Wait()
	store.Each(nil)
	for i := range 3 {
		cached, err := k.View(t.Context(), mac(i), "")
		if err != nil {
			t.Fatal(err)
		}
		stored, err := fresh().View(t.Context(), mac(i), "")
		if err != nil || cached.Facts.Rev != stored.Facts.Rev || cached.Machine.Rev != stored.Machine.Rev || cached.Cluster.Rev != stored.Cluster.Rev {
			t.Errorf("machine %d: kept revisions %d, %d, %d; stored %d, %d, %d; %v", i, cached.Facts.Rev, cached.Machine.Rev, cached.Cluster.Rev,
				stored.Facts.Rev, stored.Machine.Rev, stored.Cluster.Rev, err)
		}
	}
}

// TestManyRecords: what is read in several parts is read whole, each record once, and no
// further than it is asked for.
func TestManyRecords(t *testing.T) {
	const n = 1500
	_, store := newKeeper(t)
	var c inventory.Commit
	for i := range n {
		for key, value := range map[inventory.Key]string{
			{Bucket: inventory.BucketMACs, ID: string(mac(i))}:                    fmt.Sprintf("m-%d", i),
			{Bucket: inventory.BucketMembers, ID: fmt.Sprintf("c1/m-%04d", i)}:    string(inventory.Worker),
			{Bucket: inventory.BucketMembers, ID: fmt.Sprintf("other/m-%04d", i)}: string(inventory.Worker),
		} {
			c.Writes = append(c.Writes, inventory.Write{Key: key, Value: []byte(value)})
		}
	}
	if _, _, err := store.Commit(t.Context(), c); err != nil {
		t.Fatal(err)
	}
	k, err := inventory.NewKeeper(t.Context(), store, inventory.KeeperConfig{Subnets: subnets()})
	if err != nil {
		t.Fatal(err)
	}
	for i := range n {
		if !k.Registered(mac(i)) {
			t.Fatalf("%s is not registered", mac(i))
		}
	}
	names, err := k.Members(t.Context(), "c1", "")
	if err != nil || len(names) != n {
		t.Fatalf("%d members of %d, %v", len(names), n, err)
	}
	for i, name := range names {
		if name != fmt.Sprintf("m-%04d", i) {
			t.Fatalf("member %d is %s", i, name)
		}
	}
}

// TestRecordWithin: what is only for machines of some clusters is not for one that has
// moved away.
func TestRecordWithin(t *testing.T) {
	k, _ := newKeeper(t)
	mustCluster(t, k, "prod")
	mustPut(t, k, &inventory.Machine{Name: "cp-1", MACs: []inventory.MAC{mac(1)}, Cluster: "prod", Role: inventory.ControlPlane})
	order := inventory.Event{Kind: inventory.ReimageOrdered, Machine: "cp-1", Within: []string{"lab"}}
	if _, err := k.Record(t.Context(), order); !errors.Is(err, inventory.ErrNotFound) {
		t.Errorf("of another cluster: %v", err)
	}
	order.Within = []string{"lab", "prod"}
	if v, err := k.Record(t.Context(), order); err != nil || !v.Facts.Reimage.Outstanding() {
		t.Errorf("of one of them: %+v, %v", v.Facts.Reimage, err)
	}
}
