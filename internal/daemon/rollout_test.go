package daemon

import (
	"bytes"
	"context"
	"slices"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/provisiond/provisiond/internal/inventory"
	"github.com/provisiond/provisiond/internal/racktest"
)

// TestRollout: a cluster is patched with something that takes a reboot, and all its
// machines take it, one after the other; then with something that does not.
func TestRollout(t *testing.T) {
	l := newLab(t)
	var r *racktest.Rack
	var rolling atomic.Bool
	var back atomic.Int32
	r = l.rack(t, racktest.RackOptions{OnStep: func(m *racktest.Machine, s racktest.Step) error {
		if !rolling.Load() || s != racktest.StepAPI {
			return nil
		}
		back.Add(1)
		for _, o := range r.Machines {
			if o == m || !strings.HasPrefix(o.Name(), "cp-") {
				continue
			}
			if n := o.Node(); n == nil {
				t.Errorf("%s and %s are away together", m.Name(), o.Name())
			} else {
				select {
				case <-n.Ready():
				default:
					t.Errorf("%s and %s are away together", m.Name(), o.Name())
				}
			}
		}
		return nil
	}})
	proxied(t, func(ctx context.Context) error { return r.Fabric.ServeProxy(ctx, l.proxy) })
	k, _ := l.start(t, l.open(t))
	runRack(t, r)
	verify(t, k, r)

	upgrading := false
	rollOver := func(mode inventory.ConfigMode, patches ...string) *inventory.Rollout {
		t.Helper()
		patchLab(t, k, patches...)
		started, err := k.StartRollout(t.Context(), "lab", mode, upgrading)
		if err != nil {
			t.Fatal(err)
		}
		var now *inventory.Rollout
		await(t, k, func() string {
			if now, err = k.Rollout(t.Context(), "lab"); err != nil || now.Going() {
				return "it goes on: " + now.Reason
			}
			return ""
		})
		if now.Number != started.Number {
			t.Fatalf("rollout %d became %d", started.Number, now.Number)
		}
		return now
	}
	outdated := func() (names []string) {
		t.Helper()
		for _, m := range r.Machines {
			v, err := k.Machine(t.Context(), m.Name())
			if err != nil {
				t.Fatal(err)
			}
			wanted, err := l.daemon.configs.config(t.Context(), v)
			if err != nil {
				t.Fatal(err)
			}
			if !bytes.Equal(m.Node().Config(), wanted.Bytes()) || !bytes.Equal(m.Disk().Config(), wanted.Bytes()) || v.Facts.ConfigHash != wanted.Hash {
				names = append(names, m.Name())
			}
		}
		return names
	}
	const udev = `machine: {udev: {rules: ['SUBSYSTEM=="net"']}}`
	rolling.Store(true)
	if now := rollOver(inventory.ConfigAuto, udev); !now.Complete() || len(outdated()) > 0 || back.Load() != planes+workers {
		t.Errorf("%d machines rebooted, %v are outdated: %+v", back.Load(), outdated(), now)
	}
	verify(t, k, r)
	if now := rollOver(inventory.ConfigAuto, udev, `machine: {sysctls: {vm.swappiness: "10"}}`); !now.Complete() || len(outdated()) > 0 || back.Load() != planes+workers {
		t.Errorf("%d machines rebooted, %v are outdated: %+v", back.Load(), outdated(), now)
	}
	newTalos(t, k, "v1.13.7")
	back.Store(0)
	upgrading = true
	if now := rollOver(inventory.ConfigAuto, udev); !now.Complete() || len(outdated()) > 0 || back.Load() != planes+workers {
		t.Errorf("%d machines rebooted, %v are outdated: %+v", back.Load(), outdated(), now)
	}
	for _, m := range r.Machines {
		if m.Disk().Version() != "v1.13.7" {
			t.Errorf("%s has Talos %q", m.Name(), m.Disk().Version())
		}
	}
	upgrading = false
	// What no machine takes without a reboot ends it with the first.
	if now := rollOver(inventory.ConfigNoReboot); now.Complete() || !strings.Contains(now.Reason, "cp-1: ") || !slices.Equal(outdated(), []string{"cp-1", "cp-2", "cp-3", "w-1", "w-2"}) {
		t.Errorf("%v are outdated: %+v", outdated(), now)
	}
	verify(t, k, r)
	wipes(t, r, nil)
}

// newTalos makes the cluster one of another Talos, whose image is imported.
func newTalos(t *testing.T, k *inventory.Keeper, version string) {
	t.Helper()
	list, err := k.Images(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for _, img := range list {
		img.Version = version
		if err := k.PutImage(t.Context(), &img); err != nil {
			t.Fatal(err)
		}
	}
	cl, _, err := k.Cluster(t.Context(), "lab")
	if err != nil {
		t.Fatal(err)
	}
	cl.TalosVersion = version
	if _, err := k.PutCluster(t.Context(), cl, cl.Rev); err != nil {
		t.Fatal(err)
	}
}
