package web

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/provisiond/provisiond/api"
	"github.com/provisiond/provisiond/internal/admin"
	"github.com/provisiond/provisiond/internal/inventory"
)

// What the API stands on beside the inventory, as far as pages come to it.

// fakeMachines are what all machines say, read and answer.
type fakeMachines struct {
	mu    sync.Mutex
	lines map[string][]api.LogLine
	wake  map[string][]chan struct{}
	reads map[string]inventory.Transfer
}

// says adds lines to the log of a machine.
func (m *fakeMachines) says(machine string, texts ...string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.lines == nil {
		m.lines = map[string][]api.LogLine{}
	}
	for _, text := range texts {
		n := len(m.lines[machine]) + 1
		m.lines[machine] = append(m.lines[machine], api.LogLine{ID: uint64(n), Time: time.Unix(int64(n), 0), Kind: "kernel", Level: "info", Text: text})
	}
	for _, w := range m.wake[machine] {
		select {
		case w <- struct{}{}:
		default:
		}
	}
}

// Tail implements admin.Logs.
func (m *fakeMachines) Tail(machine string, limit int) ([]api.LogLine, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	all := m.lines[machine]
	return slices.Clone(all[max(0, len(all)-limit):]), nil
}

// After implements admin.Logs.
func (m *fakeMachines) After(machine string, id uint64) ([]api.LogLine, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	all := m.lines[machine]
	return slices.Clone(all[min(id, uint64(len(all))):]), nil
}

// Watch implements admin.Logs.
func (m *fakeMachines) Watch(machine string) (<-chan struct{}, func(), error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.wake == nil {
		m.wake = map[string][]chan struct{}{}
	}
	w := make(chan struct{}, 1)
	m.wake[machine] = append(m.wake[machine], w)
	return w, func() {
		m.mu.Lock()
		defer m.mu.Unlock()
		m.wake[machine] = slices.DeleteFunc(m.wake[machine], func(other chan struct{}) bool { return other == w })
	}, nil
}

// reading is what a machine reads over HTTP from now on; of no size: nothing.
func (m *fakeMachines) reading(machine string, t inventory.Transfer) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.reads == nil {
		m.reads = map[string]inventory.Transfer{}
	}
	if m.reads[machine] = t; t.Size == 0 {
		delete(m.reads, machine)
	}
}

// Transfer implements admin.Transfers.
func (m *fakeMachines) Transfer(machine string) (inventory.Transfer, bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	t, ok := m.reads[machine]
	return t, ok
}

// Transfers implements admin.Transfers.
func (m *fakeMachines) Transfers() map[string]inventory.Transfer {
	m.mu.Lock()
	defer m.mu.Unlock()
	return maps.Clone(m.reads)
}

// RunningConfig implements admin.Running: all but w-2 run an older config.
func (m *fakeMachines) RunningConfig(_ context.Context, v inventory.View) (admin.RunningConfig, error) {
	if v.Machine.Name == "w-2" {
		return admin.RunningConfig{}, fmt.Errorf("w-2 does not answer: %w", inventory.ErrRefused)
	}
	return admin.RunningConfig{Text: []byte("name: runs-still\n"), Hash: "a1", Wanted: "b2"}, nil
}

// ApplyConfig implements admin.Running.
func (m *fakeMachines) ApplyConfig(_ context.Context, v inventory.View, mode inventory.ConfigMode, dryRun bool) (said, hash string, err error) {
	if v.Machine.Name == "w-2" {
		return "", "", fmt.Errorf("w-2 does not answer: %w", inventory.ErrRefused)
	}
	return fmt.Sprintf("Applied configuration in mode %s, dry run %t", mode, dryRun), "b2", nil
}

// fakeTalos makes configs of a machine's name and patches, and refuses a patch with a mistake in it.
type fakeTalos struct {
	admin.Talos // what no page asks for
}

func (fakeTalos) Check(_ context.Context, c *inventory.Cluster, _ []byte, m *inventory.Machine) error {
	var errs []error
	if c != nil {
		for i, p := range c.WorkerPatches {
			if strings.Contains(p, "mistake:") {
				errs = append(errs, &inventory.FieldError{Field: fmt.Sprintf("cluster.workerPatches[%d]", i), Problem: `unknown key "mistake"`})
			}
			if m != nil && strings.Contains(p, "not for "+m.Name) {
				errs = append(errs, &inventory.FieldError{Field: fmt.Sprintf("cluster.workerPatches[%d]", i), Problem: "it does not fit"})
			}
		}
	}
	if m == nil {
		return errors.Join(errs...)
	}
	for i, p := range m.Patches {
		if strings.Contains(p, "mistake:") {
			errs = append(errs, &inventory.FieldError{Field: fmt.Sprintf("machine.patches[%d]", i), Problem: `unknown key "mistake"`})
		}
	}
	return errors.Join(errs...)
}

func (t fakeTalos) CheckPatches(patches []string) error {
	return t.Check(context.Background(), nil, nil, &inventory.Machine{Patches: patches})
}

func (fakeTalos) Origins(_ context.Context, v inventory.View) ([]api.ConfigBlock, error) {
	blocks := []api.ConfigBlock{{Text: "name: " + v.Machine.Name + "\n", Origin: "base"}, {Text: "token: '*****'\n", Origin: "base"}}
	for i, p := range v.Cluster.Patches {
		blocks = append(blocks, api.ConfigBlock{Text: p + "\n", Origin: "cluster", Patch: &i})
	}
	for i, p := range v.Machine.Patches {
		blocks = append(blocks, api.ConfigBlock{Text: p + "\n", Origin: "machine", Patch: &i})
	}
	return blocks, nil
}

func (t fakeTalos) Render(ctx context.Context, v inventory.View, _ bool) ([]byte, error) {
	blocks, err := t.Origins(ctx, v)
	var out bytes.Buffer
	for _, b := range blocks {
		out.WriteString(b.Text)
	}
	return out.Bytes(), err
}

func (t fakeTalos) Preview(ctx context.Context, c *inventory.Cluster, m *inventory.Machine) ([]byte, error) {
	return t.Render(ctx, inventory.View{Machine: m, Cluster: c}, true)
}

func (fakeTalos) LastServed(_ context.Context, name string) (text []byte, hash string, at time.Time, err error) {
	if name != "w-1" {
		return nil, "", time.Time{}, inventory.ErrNotFound
	}
	return []byte("name: was-given\n"), "c3", time.Unix(1000, 0).UTC(), nil
}

func (fakeTalos) Defaults() (talos, kubernetes string, pods, services []netip.Prefix) {
	return "v1.13.6", "1.36.2", []netip.Prefix{netip.MustParsePrefix("fd00:10:244::/56")}, []netip.Prefix{netip.MustParsePrefix("fd00:10:96::/112")}
}

func (fakeTalos) NewSecrets(string) ([]byte, error) { return []byte("bundle"), nil }

func (fakeTalos) CheckVersion(string) error { return nil }

func (fakeTalos) Talosconfig(_ context.Context, cluster string) ([]byte, error) {
	return []byte("context: " + cluster + "\n"), nil
}

func (fakeTalos) Kubeconfig(_ context.Context, cluster string) ([]byte, error) {
	return []byte("clusters: " + cluster + "\n"), nil
}

// fakeGuards keep control planes, but from who says that their cluster may be lost.
type fakeGuards struct{}

func (fakeGuards) MayGo(_ context.Context, v inventory.View, destroy bool) (ok bool, reason string, err error) {
	if v.Machine.Role == inventory.ControlPlane && !destroy {
		return false, v.Machine.Name + " is the last control plane of its cluster", nil
	}
	return true, "a worker may go", nil
}

func (g fakeGuards) Release(ctx context.Context, v inventory.View, destroy bool) error {
	if ok, reason, _ := g.MayGo(ctx, v, destroy); !ok {
		return fmt.Errorf("%s: %w", reason, inventory.ErrRefused)
	}
	return nil
}

func (fakeGuards) Foresee(context.Context, inventory.View) (via inventory.Via, waits string, err error) {
	return inventory.ViaNetboot, "its API does not answer", nil
}

// fakeSeeds are at URLs with the token of their boot.
type fakeSeeds struct{}

func (fakeSeeds) Check(_ context.Context, v inventory.View, _ bool) error {
	return inventory.CheckSeed(v)
}

func (fakeSeeds) URLs(v inventory.View) api.Seed {
	b := v.Facts.Current()
	at := "http://[2001:db8::2]:8080/seed/" + string(b.MAC) + "/" + b.Token + "/"
	seed := api.Seed{Machine: v.Machine.Name, Boot: b.Number, MetalISO: at + "metal.iso", NoCloudISO: at + "cidata.iso", Until: b.Started.Add(24 * time.Hour)}
	if b.For.IsValid() {
		seed.For, seed.NoCloudReason = b.For.String(), "told elsewhere"
	} else {
		seed.NoCloud, seed.Serial = at, "ds=nocloud-net;s="+at
	}
	return seed
}

func (fakeSeeds) ISO(_ context.Context, v inventory.View, format string) ([]byte, string, error) {
	return []byte(format + " of " + v.Machine.Name), "c0ffee", nil
}
