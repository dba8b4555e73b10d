package racktest

import (
	"context"
	"errors"
	"net"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/siderolabs/talos/pkg/machinery/config/machine"
	"google.golang.org/grpc/codes"
)

// newRack is three control planes and two workers at a site, and an operator who
// bootstraps the control planes named.
func newRack(t *testing.T, s *site, o RackOptions, operate ...int) *Rack {
	t.Helper()
	o.ControlPlanes, o.Workers, o.Net, o.Timing = 3, 2, s.net, FastTiming()
	r, err := NewRack(o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(r.Close)
	configs := map[string][]byte{}
	for i, m := range r.Machines {
		kind := machine.TypeControlPlane
		if i >= o.ControlPlanes {
			kind = machine.TypeWorker
		}
		configs[m.MAC().String()] = machineConfig(t, newBundle(), kind, staticPatch(m.MAC(), address(m.MAC(), 0), m.Name()),
			"apiVersion: v1alpha1\nkind: EventSinkConfig\nendpoint: '"+s.sink+"'\n")
	}
	s.with(func() { s.config = func(mac string) []byte { return configs[mac] } })
	s.start()

	ctx, cancel := context.WithCancel(context.Background())
	var operators sync.WaitGroup
	t.Cleanup(func() { cancel(); operators.Wait() })
	for _, i := range operate {
		c := dialMachine(t, r.Machines[i])
		operators.Go(func() {
			for ctx.Err() == nil && bootstrapCode(ctx, c) != codes.OK {
				sleep(ctx, 5*time.Millisecond)
			}
		})
	}
	return r
}

func runRack(t *testing.T, r *Rack) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	t.Cleanup(cancel)
	if err := r.Run(ctx); err != nil {
		var report strings.Builder
		r.Report(&report)
		t.Fatalf("%v\n%s", err, report.String())
	}
}

func TestRack(t *testing.T) {
	s := newSite(t)
	r := newRack(t, s, RackOptions{OwnStack: true}, 0)
	runRack(t, r)
	if err := r.Check(); err != nil {
		t.Error(err)
	}
	var report strings.Builder
	if err := r.Report(&report); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"cp-1", "cp-2", "cp-3", "w-1", "w-2"} {
		if !strings.Contains(report.String(), name+"  52:54:00:00:00:0") {
			t.Errorf("the report does not tell of %s", name)
		}
	}
	if strings.Count(report.String(), "running and ready") != 5 {
		t.Errorf("not all are ready:\n%s", report.String())
	}
}

// A bad network and a power cut for every machine, each at another step.
func TestRackInTrouble(t *testing.T) {
	s := newSite(t)
	s.net.Faults = Faults{Loss: 0.02, Duplicate: 0.1, Reorder: 0.1, Seed: 1}
	var mu sync.Mutex
	seen := map[*Machine]int{}
	r := newRack(t, s, RackOptions{OnStep: func(m *Machine, at Step) error {
		mu.Lock()
		defer mu.Unlock()
		if seen[m]++; seen[m] == 2*int(m.MAC()[5]) {
			return errors.New("power cut")
		}
		return nil
	}}, 0)
	runRack(t, r)
	if err := r.Check(); err != nil {
		t.Error(err)
	}
}

// The rack's own check notices what it is there for.
func TestRackCheckNotices(t *testing.T) {
	t.Run("two bootstraps", func(t *testing.T) {
		s := newSite(t)
		r := newRack(t, s, RackOptions{}, 0)
		runRack(t, r)
		m := r.Machines[1]
		m.PowerOff()
		m.Disk().setEtcd("another cluster", 1)
		m.mu.Lock()
		m.accepted++
		m.mu.Unlock()
		err := r.Check()
		if err == nil || !strings.Contains(err.Error(), "2 Bootstrap calls") || !strings.Contains(err.Error(), "2 etcd clusters") {
			t.Errorf("Check says %v", err)
		}
	})
	t.Run("a broken URL", func(t *testing.T) {
		s := newSite(t)
		s.kernelLine = func(l string) string { return strings.Replace(l, "/config?", "/nowhere?", 1) }
		r := newRack(t, s, RackOptions{})
		ctx, cancel := context.WithCancel(t.Context())
		go func() {
			defer cancel()
			eventually(t, "a failed fetch", func() bool { return len(r.Machines[0].Unfetched()) > 0 })
		}()
		if err := r.Run(ctx); err == nil {
			t.Fatal("it ran without a config")
		}
		if err := r.Check(); err == nil || !strings.Contains(err.Error(), "/nowhere?") {
			t.Errorf("Check says %v", err)
		}
	})
}

func TestMachinesAreTheSameEveryTime(t *testing.T) {
	s := newSite(t)
	a, b := newRack(t, s, RackOptions{}), newRack(t, s, RackOptions{})
	for i := range a.Machines {
		if a.Machines[i].MAC().String() != b.Machines[i].MAC().String() || a.Machines[i].UUID() != b.Machines[i].UUID() {
			t.Errorf("machine %d differs", i)
		}
	}
	if want := (net.HardwareAddr{0x52, 0x54, 0, 0, 0, 1}).String(); a.Machines[0].MAC().String() != want {
		t.Errorf("the first MAC is %s", a.Machines[0].MAC())
	}
}
