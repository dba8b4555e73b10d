package phaselog

import (
	"bytes"
	"context"
	"encoding/json"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/rs/zerolog"

	"github.com/provisiond/provisiond/internal/inventory"
	"github.com/provisiond/provisiond/internal/inventory/storetest"
)

// sink is a log that is read while it is written.
type sink struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (s *sink) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.Write(p)
}

// take returns the lines since the last time, each as phase, was and reason.
func (s *sink) take(t *testing.T) string {
	t.Helper()
	s.mu.Lock()
	defer s.mu.Unlock()
	var out []string
	for dec := json.NewDecoder(&s.b); dec.More(); {
		var line struct{ Level, Machine, Phase, In, Was, Reason string }
		if err := dec.Decode(&line); err != nil {
			t.Fatal(err)
		}
		out = append(out, strings.Join([]string{line.Level, line.Machine, line.Phase, line.In, line.Was, line.Reason}, "|"))
	}
	s.b.Reset()
	return strings.Join(out, "\n")
}

func TestLog(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		subnet := inventory.Subnet{
			Name: "rack", Prefix: netip.MustParsePrefix("2001:db8::/64"), Preferred: time.Hour, Valid: 2 * time.Hour,
			Machines: inventory.Range{First: netip.MustParseAddr("2001:db8::1000"), Last: netip.MustParseAddr("2001:db8::1fff")},
		}
		k, err := inventory.NewKeeper(t.Context(), storetest.NewMemory(), inventory.KeeperConfig{Subnets: []inventory.Subnet{subnet}})
		if err != nil {
			t.Fatal(err)
		}
		put := func(name string, mac inventory.MAC) {
			t.Helper()
			if _, err := k.PutMachine(t.Context(), &inventory.Machine{Name: name, MACs: []inventory.MAC{mac}, Role: inventory.Worker}, 0); err != nil {
				t.Fatal(err)
			}
		}
		record := func(e inventory.Event) {
			t.Helper()
			e.Machine, e.MAC, e.Boot = "w-1", "52:54:00:00:00:01", 1
			if _, err := k.Record(t.Context(), e); err != nil {
				t.Fatal(err)
			}
		}
		var out sink
		run := func() (stop func()) {
			ctx, cancel := context.WithCancel(context.Background())
			done := make(chan error, 1)
			go func() { done <- New(k, inventory.DefaultPatience(), zerolog.New(&out)).Run(ctx) }()
			return func() {
				cancel()
				if err := <-done; err != nil {
					t.Error(err)
				}
			}
		}
		want := func(after time.Duration, lines string) {
			t.Helper()
			time.Sleep(after)
			synctest.Wait()
			if got := out.take(t); got != lines {
				t.Errorf("got %q, want %q", got, lines)
			}
		}
		put("w-1", "52:54:00:00:00:01")
		stop := run()
		want(time.Second, "") // where it is at the start is no change
		put("w-2", "52:54:00:00:00:02")
		want(time.Second, "info|w-2|registered|||w-2 belongs to no cluster")
		record(inventory.Event{Kind: inventory.Solicited, Client: inventory.FirmwarePXE})
		record(inventory.Event{Kind: inventory.ScriptServed, Plan: inventory.Install})
		want(time.Second, "info|w-1|loading||registered|")
		record(inventory.Event{Kind: inventory.KernelServed})
		want(9*time.Minute, "")
		stop()
		stop = run() // the clock goes on over a restart
		want(2*time.Minute, "warn|w-1|stalled|loading|loading|read the kernel and not the initramfs: does it have enough memory?")
		want(time.Hour, "")
		v, err := k.Machine(t.Context(), "w-1")
		if err != nil {
			t.Fatal(err)
		}
		if err := k.DeleteMachine(t.Context(), "w-1", v.Machine.Rev); err != nil {
			t.Fatal(err)
		}
		want(time.Second, "")
		put("w-1", "52:54:00:00:00:01")
		want(time.Second, "info|w-1|registered|||w-1 belongs to no cluster")
		stop()
	})
}
