package daemon

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/provisiond/provisiond/internal/inventory"
	"github.com/provisiond/provisiond/internal/racktest"
	"github.com/provisiond/provisiond/internal/talos"
)

// up is a rack that has come up.
func up(t *testing.T) (*lab, *inventory.Keeper, *racktest.Rack) {
	t.Helper()
	l := newLab(t)
	r := l.rack(t, racktest.RackOptions{})
	proxied(t, func(ctx context.Context) error { return r.Fabric.ServeProxy(ctx, l.proxy) })
	k, _ := l.start(t, l.open(t))
	runRack(t, r)
	verify(t, k, r)
	return l, k, r
}

func machine(t *testing.T, r *racktest.Rack, name string) *racktest.Machine {
	t.Helper()
	for _, m := range r.Machines {
		if m.Name() == name {
			return m
		}
	}
	t.Fatalf("there is no %s", name)
	return nil
}

func order(t *testing.T, k *inventory.Keeper, e inventory.Event) {
	t.Helper()
	e.Kind, e.Message = inventory.ReimageOrdered, "ordered"
	if _, err := k.Record(t.Context(), e); err != nil {
		t.Fatal(err)
	}
}

// wipes checks how often each disk was wiped; those that are not named, never. Each
// was installed once more than that.
func wipes(t *testing.T, r *racktest.Rack, want map[string]int) {
	t.Helper()
	for _, m := range r.Machines {
		if n := m.Disk().Wipes(); n != want[m.Name()] {
			t.Errorf("the disk of %s was wiped %d times, want %d", m.Name(), n, want[m.Name()])
		}
		if n := m.Disk().Installs(); n != want[m.Name()]+1 {
			t.Errorf("the disk of %s was installed %d times, want %d", m.Name(), n, want[m.Name()]+1)
		}
	}
}

// TestReimage: through the API, a worker and then a control plane, which leaves etcd
// and joins it again; ordered twice, wiped once.
func TestReimage(t *testing.T) {
	_, k, r := up(t)
	for _, name := range []string{"w-1", "cp-2"} {
		graceful := name == "cp-2"
		for range 2 {
			order(t, k, inventory.Event{Machine: name, Graceful: graceful})
		}
		verify(t, k, r)
		v, err := k.Machine(t.Context(), name)
		if o := v.Facts.Reimage; err != nil || o.Done != 1 || o.Via != inventory.ViaAPI || o.Attempts != 1 || o.Graceful != graceful {
			t.Errorf("the reimage of %s ended as %+v, %v", name, o, err)
		}
	}
	wipes(t, r, map[string]int{"w-1": 1, "cp-2": 1})
}

// TestReimageOfADeadMachine: it is off, so it is wiped by its boot script when it is
// switched on, and comes up as what it is registered for by then.
func TestReimageOfADeadMachine(t *testing.T) {
	_, k, r := up(t)
	m := machine(t, r, "w-2")
	m.PowerOff()
	order(t, k, inventory.Event{Machine: "w-2"})
	v, err := k.Machine(t.Context(), "w-2")
	if err != nil {
		t.Fatal(err)
	}
	as := v.Machine.Clone()
	as.Role = inventory.ControlPlane
	if _, err := k.PutMachine(t.Context(), as, v.Machine.Rev); err != nil {
		t.Fatal(err)
	}
	await(t, k, func() string {
		if v, err = k.Machine(t.Context(), "w-2"); err == nil && inventory.PlanBoot(v).Action != inventory.Wipe {
			return inventory.PlanBoot(v).Reason
		}
		return ""
	})
	powerOn(t, k, r, m)
	verify(t, k, r)
	wipes(t, r, map[string]int{"w-2": 1})
	if v, err = k.Machine(t.Context(), "w-2"); err != nil || v.Facts.Reimage.Via != inventory.ViaNetboot || v.Facts.Holds.Role != inventory.ControlPlane {
		t.Errorf("it ended as %+v, %+v, %v", v.Facts.Reimage, v.Facts.Holds, err)
	}
}

// powerOn switches a machine on, again and again, until it is up.
func powerOn(t *testing.T, k *inventory.Keeper, r *racktest.Rack, m *racktest.Machine) {
	t.Helper()
	power, cut := context.WithCancel(context.Background())
	t.Cleanup(func() { cut(); m.PowerOff() })
	late := time.AfterFunc(within, cut)
	for {
		outcome, err := m.PowerOn(power)
		if err == nil && outcome == racktest.Ready && late.Stop() {
			return
		}
		if power.Err() != nil || errors.Is(err, racktest.ErrPowerCut) {
			var report bytes.Buffer
			_ = r.Report(&report)
			v, _ := k.Machine(t.Context(), m.Name())
			t.Fatalf("%s is not up: %v, %v\n%+v\n%s", m.Name(), outcome, err, v.Facts, report.String())
		}
	}
}

// await waits until what returns nothing left to wait for.
func await(t *testing.T, k *inventory.Keeper, what func() string) {
	t.Helper()
	wake, stop := k.Watch()
	defer stop()
	deadline := time.NewTimer(within)
	defer deadline.Stop()
	for reason := what(); reason != ""; reason = what() {
		select {
		case <-wake:
		case <-deadline.C:
			t.Fatalf("it still waits: %s", reason)
		}
	}
}

// TestQuorumIsKept: with one control plane off, another one is not wiped until it is
// back.
func TestQuorumIsKept(t *testing.T) {
	_, k, r := up(t)
	off := machine(t, r, "cp-3")
	off.PowerOff()
	order(t, k, inventory.Event{Machine: "cp-2"})
	await(t, k, func() string {
		v, err := k.Machine(t.Context(), "cp-2")
		if err != nil || v.Facts.Reimage.Reason != "etcd of lab would be left with 1 of 2 members running and needs 2: start cp-3 first, or give the cluster up with --destroy-cluster lab" {
			return fmt.Sprint(v.Facts.Reimage.Reason, err)
		}
		return ""
	})
	wipes(t, r, nil)
	powerOn(t, k, r, off)
	verify(t, k, r)
	wipes(t, r, map[string]int{"cp-2": 1})
}

// TestResetWhileKilled gives the whole rack up while the daemon is killed again and
// again: every disk is wiped once, and one cluster is made of it again.
func TestResetWhileKilled(t *testing.T) {
	l := newLab(t)
	var mu sync.Mutex
	kills := 0
	daemon := l.spawn(t)
	resetting := false
	r := l.rack(t, racktest.RackOptions{OnStep: func(m *racktest.Machine, s racktest.Step) error {
		mu.Lock()
		defer mu.Unlock()
		// Each step of the way back, once, by whoever comes to it first.
		if resetting && kills < len(racktest.Steps()) && s == racktest.Steps()[kills] {
			kills++
			daemon.kill(t)
			daemon = l.spawn(t)
		}
		return nil
	}})
	proxied(t, func(ctx context.Context) error { return r.Fabric.ServeProxy(ctx, l.proxy) })
	runRack(t, r)
	mu.Lock()
	daemon.kill(t)
	mu.Unlock()

	secrets, err := talos.NewSecrets("v1.13.6")
	if err != nil {
		t.Fatal(err)
	}
	store := l.open(t)
	k, stop := l.start(t, store)
	verify(t, k, r)
	old, err := k.ResetCluster(t.Context(), "lab", 1, secrets, nil)
	if err != nil || len(old) != len(r.Machines) {
		t.Fatalf("reset: %v, %v", old, err)
	}
	for _, name := range old {
		order(t, k, inventory.Event{Machine: name, Destroy: true})
	}
	stop()
	if err := store.Close(); err != nil {
		t.Fatal(err)
	}
	mu.Lock()
	resetting = true
	daemon = l.spawn(t)
	mu.Unlock()

	again := map[string]bool{}
	deadline := time.Now().Add(within)
	for len(again) < len(r.Machines) {
		for _, m := range r.Machines {
			if m.Disk().Installs() == 2 {
				again[m.Name()] = true
			}
		}
		if time.Now().After(deadline) {
			var report bytes.Buffer
			_ = r.Report(&report)
			t.Fatalf("only %v were installed again\n%s", again, report.String())
		}
		time.Sleep(100 * time.Millisecond)
	}
	mu.Lock()
	resetting = false
	daemon.kill(t)
	mu.Unlock()
	k, _ = l.start(t, l.open(t))
	awaitRack(t, k, r)
	wipes(t, r, map[string]int{"cp-1": 1, "cp-2": 1, "cp-3": 1, "w-1": 1, "w-2": 1})
	etcds, accepted := map[string]bool{}, 0
	for _, m := range r.Machines {
		accepted += m.Accepted()
		if e := m.Disk().Etcd(); e != "" {
			etcds[e] = true
		}
	}
	if accepted != 2 || len(etcds) != 1 {
		t.Errorf("%d bootstraps in two lives, and %d etcd clusters now", accepted, len(etcds))
	}
	if kills < 5 {
		t.Errorf("the daemon was killed %d times only", kills)
	}
}
