package daemon

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/rs/zerolog"

	"github.com/provisiond/provisiond/internal/inventory"
	"github.com/provisiond/provisiond/internal/machinelog"
	"github.com/provisiond/provisiond/internal/talos"
)

// checkLogs waits until each machine's log has its kernel's lines from before its
// config and from the installed system, and its events; all of them once and in
// order, and no token among them.
func (l *lab) checkLogs(t *testing.T, k *inventory.Keeper) {
	t.Helper()
	views, err := k.Machines(t.Context(), "", 0)
	if err != nil {
		t.Fatal(err)
	}
	for _, v := range views {
		name := v.Machine.Name
		deadline := time.Now().Add(within)
		for {
			lines, err := machinelog.New(filepath.Join(l.cfg.Data, "logs"), machinelog.Options{}).After(name, 0)
			if err != nil {
				t.Fatal(err)
			}
			missing := missingIn(lines)
			if missing == "" {
				checkOrder(t, name, lines)
				for _, b := range v.Facts.Boots {
					for _, line := range lines {
						if b.Token != "" && strings.Contains(line.Text, b.Token) {
							t.Errorf("%s: the token of boot %d is in its log: %s", name, b.Number, line.Text)
						}
					}
				}
				break
			}
			if time.Now().After(deadline) {
				t.Fatalf("%s: no %s among %d lines:\n%+v", name, missing, len(lines), lines)
			}
			select { // they are written once a second
			case <-time.After(100 * time.Millisecond):
			case <-t.Context().Done():
				t.Fatal(t.Context().Err())
			}
		}
	}
}

func missingIn(lines []machinelog.Line) string {
	has := func(kind machinelog.Kind, boot func(uint64) bool, texts ...string) bool {
		return slices.ContainsFunc(lines, func(l machinelog.Line) bool {
			return l.Kind == kind && boot(l.Boot) && !slices.ContainsFunc(texts, func(s string) bool { return !strings.Contains(l.Text, s) })
		})
	}
	first, later, none := func(b uint64) bool { return b == 1 }, func(b uint64) bool { return b > 1 }, func(b uint64) bool { return b == 0 }
	switch {
	case !has(machinelog.Kernel, first, "Kernel command line:", "talos.config=https://", "/[token]"):
		return "kernel line of the boot over the network"
	case !has(machinelog.Kernel, first, "setting hostname"):
		return "line from before the config"
	case !has(machinelog.Kernel, later, `"sources": ["state"]`):
		return "config of the installed system"
	case !has(machinelog.Kernel, later, "service[kubelet](Running)"):
		return "service of the installed system"
	case !has(machinelog.Event, none, "task loadConfig start"):
		return "event before the config"
	case !has(machinelog.Event, none, "status running, ready"):
		return "event of the installed system"
	}
	return ""
}

func checkOrder(t *testing.T, name string, lines []machinelog.Line) {
	t.Helper()
	last := map[uint64]uint64{} // boot → seq and one
	seen := uint64(0)
	for i, l := range lines {
		if l.N != uint64(i+1) {
			t.Errorf("%s: line %d has the number %d", name, i+1, l.N)
		}
		if l.Kind != machinelog.Kernel {
			continue
		}
		if l.Boot < seen || l.Seq+1 <= last[l.Boot] {
			t.Errorf("%s: boot %d line %d after boot %d line %d", name, l.Boot, l.Seq, seen, last[l.Boot]-1)
		}
		seen, last[l.Boot] = l.Boot, l.Seq+1
	}
}

// anyone is a resolver that knows one machine, at every address.
type anyone string

func (a anyone) MachineByAddress(context.Context, netip.Addr) (string, inventory.MAC, bool) {
	return string(a), "", true
}
func (a anyone) MachineByName(context.Context, string) (inventory.MAC, bool) { return "", false }

// The log of a real Talos, sent again after the connection broke, after we were
// restarted in the middle of it, and after the machine was.
func TestRealKernelLog(t *testing.T) {
	text, err := os.ReadFile("../talos/testdata/kmsg.jsonl")
	if err != nil {
		t.Fatal(err)
	}
	trace := slices.Collect(strings.Lines(string(text)))
	// Another boot of the same machine: the same lines, at other times but for the
	// first ones.
	clock := regexp.MustCompile(`"clock":([1-9][0-9]*)`)
	another := clock.ReplaceAllStringFunc(string(text), func(s string) string {
		n, _ := strconv.Atoi(strings.TrimPrefix(s, `"clock":`))
		return fmt.Sprintf(`"clock":%d`, n+1234)
	})
	dir := t.TempDir()
	kept := func(s *machinelog.Store) string {
		lines, err := s.After("cp-1", 0)
		if err != nil {
			t.Fatal(err)
		}
		checkOrder(t, "cp-1", lines)
		count := map[uint64]int{}
		for _, l := range lines {
			count[l.Boot]++
		}
		return fmt.Sprint(count)
	}
	for _, step := range []struct{ send, want string }{
		{strings.Join(trace[:10], ""), "map[1:10]"},
		{strings.Join(trace[:10], "") + trace[10][:50], "map[1:10]"}, // breaks off within a line
		{strings.Join(trace[:15], ""), "map[1:15]"},
		{string(text), "map[1:20]"},
		{string(text), "map[1:20]"},
		{another, "map[1:20 2:20]"},
		{another, "map[1:20 2:20]"},
		{string(text), "map[1:20 2:20 3:20]"}, // which is another still
	} {
		store := machinelog.New(dir, machinelog.Options{}) // as after a restart
		l, err := net.Listen("tcp6", "[::1]:0")
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() {
			done <- talos.NewKernelLog(machineLogs{store: store}, anyone("cp-1"), zerolog.Nop()).Serve(ctx, l)
		}()
		conn, err := net.Dial("tcp6", l.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		if _, err := io.WriteString(conn, step.send); err != nil {
			t.Fatal(err)
		}
		_ = conn.(*net.TCPConn).CloseWrite()
		_ = conn.SetReadDeadline(time.Now().Add(within))
		if _, err := io.Copy(io.Discard, conn); errors.Is(err, os.ErrDeadlineExceeded) { // until it was read to its end
			t.Error(err)
		}
		conn.Close()
		cancel()
		ended(t, "the receiver", done)
		if got := kept(store); got != step.want {
			t.Fatalf("kept %s, want %s", got, step.want)
		}
		if err := store.Close(); err != nil {
			t.Fatal(err)
		}
	}
}

// A machine that is removed takes its log with it, and what it says afterwards is
// not kept.
func TestLogOfARemovedMachine(t *testing.T) {
	l := newLab(t)
	k, err := inventory.NewKeeper(t.Context(), l.open(t), inventory.KeeperConfig{Subnets: l.cfg.Subnets})
	if err != nil {
		t.Fatal(err)
	}
	logs := machineLogs{machinelog.New(filepath.Join(l.cfg.Data, "logs"), machinelog.Options{}), k}
	if err := logs.Event("w-1", talos.LogLine{ID: "1", Text: "x"}); err != nil {
		t.Fatal(err)
	}
	lines, err := logs.Kernel("w-1")
	if err != nil {
		t.Fatal(err)
	}
	defer lines.Close()
	if err := lines.Append(talos.LogLine{Text: "y"}); err != nil {
		t.Fatal(err)
	}
	if got, err := logs.Tail("w-1", 10); err != nil || len(got) != 2 || got[1].Text != "y" || got[0].Kind != "event" || got[1].Kind != "kernel" {
		t.Fatalf("%+v %v", got, err)
	}
	v, err := k.Machine(t.Context(), "w-1")
	if err != nil {
		t.Fatal(err)
	}
	if err := (operators{k, logs}).DeleteMachine(t.Context(), "w-1", v.Machine.Rev); err != nil {
		t.Fatal(err)
	}
	if err := logs.Event("w-1", talos.LogLine{ID: "2", Text: "x"}); err == nil {
		t.Error("an event of a removed machine was kept")
	}
	if err := lines.Append(talos.LogLine{Seq: 1, Text: "y"}); err == nil {
		t.Error("a kernel line of a removed machine was kept")
	}
	if got, err := logs.Tail("w-1", 10); err != nil || len(got) != 0 {
		t.Errorf("left: %+v %v", got, err)
	}
}

// Somebody else's receiver stands in for ours everywhere.
func TestKernelLogElsewhere(t *testing.T) {
	l := newLab(t)
	own := talosOptions(l.cfg, Addrs{KernelLog: netip.MustParseAddrPort("[2001:db8::2]:4051")}, nil)
	if own.KernelLog != "tcp://[2001:db8::2]:4051/" {
		t.Errorf("machines send to %s", own.KernelLog)
	}
	l.cfg.KernelLog = "udp://[2001:db8::9]:514"
	d, err := New(t.Context(), Options{Config: l.cfg, Log: zerolog.Nop()})
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := d.close(); err != nil {
			t.Error(err)
		}
	}()
	if d.Addrs().KernelLog.IsValid() || talosOptions(l.cfg, d.Addrs(), nil).KernelLog != "udp://[2001:db8::9]:514" {
		t.Errorf("listening at %s, machines send to %s", d.Addrs().KernelLog, talosOptions(l.cfg, d.Addrs(), nil).KernelLog)
	}
}
