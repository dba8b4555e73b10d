package inventory_test

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"math/rand/v2"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/provisiond/provisiond/internal/boltstore"
	"github.com/provisiond/provisiond/internal/inventory"
	"github.com/provisiond/provisiond/internal/inventory/storetest"
)

func mustRecord(t *testing.T, k *inventory.Keeper, e inventory.Event) inventory.View {
	t.Helper()
	v, err := k.Record(t.Context(), e)
	if err != nil {
		t.Fatalf("recording %s: %v", e.Kind, err)
	}
	return v
}

// reopened is what another Keeper on the same store finds, as after a crash.
func reopened(t *testing.T, store inventory.Store, m inventory.MAC) inventory.View {
	t.Helper()
	k, err := inventory.NewKeeper(t.Context(), store, inventory.KeeperConfig{Subnets: subnets()})
	if err != nil {
		t.Fatal(err)
	}
	return view(t, k, m)
}

func view(t *testing.T, k *inventory.Keeper, m inventory.MAC) inventory.View {
	t.Helper()
	v, err := k.View(t.Context(), m, "")
	if err != nil {
		t.Fatal(err)
	}
	return v
}

// TestObservationsWaitForTheDisk: what a machine was seen doing counts at once,
// is on disk within a second, and goes along with whatever has to be durable.
func TestObservationsWaitForTheDisk(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k, store := newKeeper(t)
		mustPut(t, k, machine(1))
		solicit := inventory.Event{Kind: inventory.Solicited, MAC: mac(1), Client: inventory.FirmwarePXE, Arch: inventory.ARM64, XID: 7}
		if v := mustRecord(t, k, solicit); v.Facts.Current() == nil || v.Facts.Arch != inventory.ARM64 {
			t.Fatalf("after a Solicit: %+v", v.Facts)
		}
		v := view(t, k, mac(1))
		token := v.Facts.Current().Token
		if token == "" || len(must(k.Machines(t.Context(), "", 0))[0].Facts.Boots) != 1 {
			t.Fatal("a Solicit does not count at once")
		}
		if v := reopened(t, store, mac(1)); v.Facts.Current() != nil {
			t.Fatal("a Solicit waited for the disk")
		}
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() { done <- k.Run(ctx, func(err error) { t.Error(err) }) }()
		time.Sleep(1100 * time.Millisecond)
		synctest.Wait()
		v = reopened(t, store, mac(1))
		if b := v.Facts.Current(); b == nil || b.Token != token {
			t.Fatalf("a second later the disk has %+v", b)
		}
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}

		mustRecord(t, k, inventory.Event{Kind: inventory.LoaderServed, MAC: mac(1)})
		mustRecord(t, k, inventory.Event{Kind: inventory.ScriptServed, MAC: mac(1), Plan: inventory.Install})
		v = reopened(t, store, mac(1))
		if b := v.Facts.Current(); b.Script.IsZero() || b.Loader.IsZero() {
			t.Errorf("the script went out and the disk has %+v", b)
		}
		mustRecord(t, k, inventory.Event{Kind: inventory.ConfigServed, MAC: mac(1), Hash: "h"})
		var kinds []inventory.Kind
		for _, e := range must(k.Events(t.Context(), 0, 0)) {
			kinds = append(kinds, e.Kind)
		}
		want := []inventory.Kind{inventory.Registered, inventory.Solicited, inventory.LoaderServed, inventory.ScriptServed, inventory.ConfigServed}
		if fmt.Sprint(kinds) != fmt.Sprint(want) {
			t.Errorf("the log has %v, want %v", kinds, want)
		}
	})
}

// TestAChattyMachineFillsNoLog: a machine that begins one transaction after the
// other is one line.
func TestAChattyMachineFillsNoLog(t *testing.T) {
	k, _ := newKeeper(t)
	mustPut(t, k, machine(1))
	for xid := range uint32(300) {
		mustRecord(t, k, inventory.Event{Kind: inventory.Solicited, MAC: mac(1), Client: inventory.FirmwarePXE, XID: xid})
	}
	if n := len(must(k.Events(t.Context(), 0, 0))); n != 2 { // registered, solicited
		t.Errorf("300 Solicits left %d lines", n)
	}
}

// TestNotesOfARemovedMachineGo: they must not be taken for those of another that
// gets its name.
func TestNotesOfARemovedMachineGo(t *testing.T) {
	k, _ := newKeeper(t)
	mustPut(t, k, machine(1))
	mustRecord(t, k, inventory.Event{Kind: inventory.Solicited, MAC: mac(1), Client: inventory.FirmwarePXE})
	if err := k.DeleteMachine(t.Context(), "m-1", 0); err != nil {
		t.Fatal(err)
	}
	m := machine(1)
	m.MACs = []inventory.MAC{mac(2)}
	mustPut(t, k, m)
	if v := view(t, k, mac(2)); v.Facts.Current() != nil {
		t.Errorf("it has a boot of the machine before it: %+v", v.Facts)
	}
	if err := k.Flush(t.Context()); err != nil {
		t.Error(err)
	}
}

// TestClonesInOneFlush: two machines that send one DUID in the same second leave
// it naming nobody, though both are written with one commit.
func TestClonesInOneFlush(t *testing.T) {
	k, _ := newKeeper(t)
	duid := "0004" + strings.Repeat("ab", 15) + "cd"
	for i := range 6 {
		mustPut(t, k, machine(i))
		e := inventory.Event{Kind: inventory.Solicited, MAC: mac(i), Client: inventory.FirmwarePXE}
		if i%2 == 1 {
			e.DUID = duid
		}
		mustRecord(t, k, e)
	}
	if err := k.Flush(t.Context()); err != nil {
		t.Fatal(err)
	}
	raw, _ := hex.DecodeString(duid)
	if m, ok := k.Learnt(t.Context(), raw); ok {
		t.Errorf("a DUID of three machines names %s", m)
	}
	for i := range 6 {
		if v := view(t, k, mac(i)); len(v.Facts.Boots) != 1 {
			t.Errorf("machine %d has %d boots", i, len(v.Facts.Boots))
		}
	}
}

// TestEachFetchCountsOnce: flushes and durable events race for what waits, some
// commits fail and some only seem to, and in the end every fetch was counted once.
func TestEachFetchCountsOnce(t *testing.T) {
	k, store := newKeeper(t)
	const machines, fetches = 20, 30
	for i := range machines {
		mustPut(t, k, machine(i))
		mustRecord(t, k, inventory.Event{Kind: inventory.ScriptServed, MAC: mac(i), Plan: inventory.Install})
	}
	rng := rand.New(rand.NewPCG(3, 4))
	var mu sync.Mutex
	store.Each(func() storetest.Fault {
		mu.Lock()
		defer mu.Unlock()
		return []storetest.Fault{storetest.None, storetest.None, storetest.LostNotPersisted, storetest.LostButPersisted}[rng.IntN(4)]
	})
	var wg sync.WaitGroup
	stop := make(chan struct{})
	wg.Go(func() {
		for {
			select {
			case <-stop:
				return
			default:
				_ = k.Flush(t.Context()) // may fail; the last one must not
			}
		}
	})
	var machinesDone sync.WaitGroup
	for i := range machines {
		machinesDone.Go(func() {
			at := time.Now()
			for n := range fetches {
				at = at.Add(time.Millisecond)
				if _, err := k.Record(t.Context(), inventory.Event{Kind: inventory.ConfigServed, MAC: mac(i), Hash: "h", Time: at}); err != nil {
					t.Error(err)
				}
				if n%10 == 5 {
					if _, err := k.Record(t.Context(), inventory.Event{Kind: inventory.APIAnswered, MAC: mac(i), Stage: inventory.StageInstalling, Time: at}); err != nil {
						t.Error(err)
					}
				}
			}
		})
	}
	machinesDone.Wait()
	close(stop)
	wg.Wait()
	store.Each(nil)
	if err := k.Flush(t.Context()); err != nil {
		t.Fatal(err)
	}
	for i := range machines {
		v := reopened(t, store, mac(i))
		if b := v.Facts.Current(); b.ConfigFetches != fetches {
			t.Errorf("machine %d fetched %d times, the disk has %d", i, fetches, b.ConfigFetches)
		}
	}
}

// TestFullDiskKeepsNoMachineWaiting: what a machine does is known though it
// cannot be written, and is written once there is room.
func TestFullDiskKeepsNoMachineWaiting(t *testing.T) {
	k, store := newKeeper(t)
	mustPut(t, k, machine(1))
	store.Each(func() storetest.Fault { return storetest.Full })
	mustRecord(t, k, inventory.Event{Kind: inventory.Solicited, MAC: mac(1), Client: inventory.FirmwarePXE, XID: 1})
	if err := k.Flush(t.Context()); !errors.Is(err, inventory.ErrFull) {
		t.Fatalf("Flush on a full disk: %v", err)
	}
	// So many that they may not wait: now the disk's error is the caller's.
	var err error
	for xid := range uint32(1000) {
		if _, err = k.Record(t.Context(), inventory.Event{Kind: inventory.Solicited, MAC: mac(1), Client: inventory.FirmwarePXE, XID: xid}); err != nil {
			break
		}
	}
	if !errors.Is(err, inventory.ErrFull) {
		t.Errorf("a thousand Solicits on a full disk: %v", err)
	}
	store.Each(nil)
	if err := k.Flush(t.Context()); err != nil {
		t.Fatal(err)
	}
	if v := reopened(t, store, mac(1)); v.Facts.Current() == nil {
		t.Error("the Solicit was lost")
	}
}

func BenchmarkRecordObserved(b *testing.B) {
	db, err := boltstore.Open(filepath.Join(b.TempDir(), "db"), boltstore.Options{NoSync: true})
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { _ = db.Close() })
	k, err := inventory.NewKeeper(b.Context(), db, inventory.KeeperConfig{Subnets: subnets()})
	if err != nil {
		b.Fatal(err)
	}
	if _, err := k.PutMachine(b.Context(), machine(1), 0); err != nil {
		b.Fatal(err)
	}
	_, err = k.Record(b.Context(), inventory.Event{Kind: inventory.ScriptServed, MAC: mac(1), Plan: inventory.Install})
	if err != nil {
		b.Fatal(err)
	}
	b.ReportAllocs()
	for b.Loop() {
		if _, err := k.Record(b.Context(), inventory.Event{Kind: inventory.ConfigServed, MAC: mac(1), Hash: "h"}); err != nil {
			b.Fatal(err)
		}
	}
}
