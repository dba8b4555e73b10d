package tracing

import (
	"encoding/json"
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	tracepb "go.opentelemetry.io/proto/otlp/trace/v1"
	"google.golang.org/protobuf/proto"

	"github.com/provisiond/provisiond/internal/inventory"
)

var start = time.Date(2026, 11, 26, 8, 0, 0, 0, time.UTC)

// at is so many seconds after the first boot of a test began.
func at(seconds int) time.Time { return start.Add(time.Duration(seconds) * time.Second) }

// machine is one with these boots, newest first.
func machine(boots ...*inventory.Boot) inventory.View {
	return inventory.View{
		Machine: &inventory.Machine{Name: "w-1", Cluster: "lab", Role: inventory.Worker},
		Cluster: &inventory.Cluster{Name: "lab"}, Wanted: "v1.13.6/default/amd64",
		Facts: inventory.Facts{Machine: "w-1", Arch: inventory.AMD64, Boots: boots},
	}
}

// booted is a boot that went as far as a step, which comes at a second of its own.
func booted(number uint64, began int, plan inventory.Action, upTo string) *inventory.Boot {
	b := &inventory.Boot{Number: number, Token: "secret", MAC: "52:54:00:00:00:04", Client: inventory.FirmwarePXE, Started: at(began), Plan: plan}
	steps := []struct {
		name string
		at   *time.Time
		n    int
	}{{"offered", &b.Offered, 1}, {"loader", &b.Loader, 4}, {"script", &b.Script, 6}, {"kernel", &b.Kernel, 9}, {"initramfs", &b.Initramfs, 20}, {"config", &b.Config, 30}, {"api", &b.API, 90}, {"ready", &b.Ready, 120}}
	for _, s := range steps {
		*s.at = at(began + s.n)
		if s.name == upTo {
			return b
		}
	}
	panic("no step " + upTo)
}

// fromDisk is a boot of an installed machine.
func fromDisk(number uint64, began int) *inventory.Boot {
	return &inventory.Boot{Number: number, Client: inventory.FirmwareHTTP, Started: at(began), Offered: at(began + 1), API: at(began + 40), Ready: at(began + 50), Plan: inventory.Disk}
}

// with changes a value in place, for tables.
func with[T any](v T, change func(*T)) T {
	change(&v)
	return v
}

// show is a line for each span: what it is in, its seconds, how it ended, and the roots
// that it is linked to.
func show(spans []*tracepb.Span) string {
	var out strings.Builder
	names := map[string]string{}
	for _, s := range spans {
		names[string(s.SpanId)] = s.Name
	}
	second := func(nanos uint64) string {
		return strings.TrimSuffix(fmt.Sprintf("%.1f", time.Unix(0, int64(nanos)).Sub(start).Seconds()), ".0")
	}
	for _, s := range spans {
		if parent := names[string(s.ParentSpanId)]; parent != "" {
			fmt.Fprintf(&out, "%s/", parent)
		}
		fmt.Fprintf(&out, "%s %s-%s", s.Name, second(s.StartTimeUnixNano), second(s.EndTimeUnixNano))
		for _, kv := range s.Attributes {
			if slices.Contains([]string{"provisiond.outcome", "provisiond.phase", "provisiond.via", "network.protocol.name"}, kv.Key) {
				fmt.Fprintf(&out, " %s", kv.Value.GetStringValue())
			}
		}
		if s.Status.GetCode() == tracepb.Status_STATUS_CODE_ERROR {
			fmt.Fprintf(&out, " (%s)", s.Status.Message)
		}
		if s.Status.GetCode() == tracepb.Status_STATUS_CODE_OK {
			out.WriteString(" OK")
		}
		for range s.Links {
			out.WriteString(" linked")
		}
		out.WriteString("\n")
	}
	return out.String()
}

func TestBoots(t *testing.T) {
	const toKernel = "boot/dhcpv6 0-1 dhcpv6\nboot/loader 1-4 tftp\nboot/script 4-6 http\n"
	const toConfig = toKernel + "boot/kernel 6-9 http\nboot/initramfs 9-20 http\nboot/config 20-30 https\n"
	strap := &inventory.Bootstrap{Cluster: "lab", Epoch: 1, Machine: "w-1", ClaimedAt: at(92), SentAt: at(93), CalledAt: at(94), DoneAt: at(110)}
	others := with(*strap, func(b *inventory.Bootstrap) { b.Machine = "cp-1" })
	for name, tt := range map[string]struct {
		view inventory.View
		boot int // as in Facts.Boots
		b    *inventory.Bootstrap
		now  int
		want string // empty: it goes on
	}{
		"ready": {machine(booted(1, 0, inventory.Install, "ready")), 0, nil, 125,
			"boot 0-120 ready ready OK\n" + toConfig + "boot/install 30-90 talos\nboot/ready 90-120 talos\n"},
		"unencrypted": {with(machine(booted(1, 0, inventory.Install, "ready")), func(v *inventory.View) { v.Cluster.Delivery = inventory.OverHTTP }), 0, nil, 125,
			"boot 0-120 ready ready OK\n" + strings.Replace(toConfig, "https", "http", 1) + "boot/install 30-90 talos\nboot/ready 90-120 talos\n"},
		"true durations": {machine(with(booted(1, 0, inventory.Install, "ready"), func(b **inventory.Boot) {
			(*b).Client, (*b).LoaderTook, (*b).KernelTook, (*b).InitramfsTook = inventory.FirmwareHTTP, time.Second, 2500*time.Millisecond, 10*time.Second
		})), 0, nil, 125,
			"boot 0-120 ready ready OK\nboot/dhcpv6 0-1 dhcpv6\nboot/loader 3-4 http\nboot/script 4-6 http\nboot/kernel 6.5-9 http\nboot/initramfs 10-20 http\nboot/config 20-30 https\nboot/install 30-90 talos\nboot/ready 90-120 talos\n"},
		"in the middle": {machine(booted(1, 0, inventory.Install, "config")), 0, nil, 4 * 3600, ""},
		"steps that were not seen": {machine(with(booted(1, 0, inventory.Install, "ready"), func(b **inventory.Boot) {
			(*b).Client, (*b).Offered, (*b).Loader, (*b).Started, (*b).Kernel = inventory.IPXE, time.Time{}, time.Time{}, at(6), time.Time{}
		})), 0, nil, 125,
			"boot 6-120 ready ready OK\nboot/script 6-6 http\nboot/initramfs 6-20 http\nboot/config 20-30 https\nboot/install 30-90 talos\nboot/ready 90-120 talos\n"},
		"broken off": {machine(booted(2, 300, inventory.Install, "offered"), booted(1, 0, inventory.Install, "script")), 1, nil, 301,
			"boot 0-300 loading failed (began to boot again before it was ready)\n" + toKernel + "boot/kernel 6-300 http (began to boot again before it was ready)\n"},
		"no config": {machine(booted(2, 300, inventory.Install, "offered"), with(booted(1, 0, inventory.Install, "script"), func(b **inventory.Boot) { (*b).Error = "its patch is wrong" })), 1, nil, 301,
			"boot 0-300 failed failed (its patch is wrong)\n" + toKernel + "boot/kernel 6-300 http (its patch is wrong)\n"},
		"given up": {machine(booted(1, 0, inventory.Install, "initramfs")), 0, nil, 4*3600 + 1,
			"boot 0-14400 configuring given up (read kernel and initramfs but never fetched its config: Talos found no network; see its console)\n" +
				strings.Replace(toConfig, "20-30 https\n", "20-14400 https (read kernel and initramfs but never fetched its config: Talos found no network; see its console)\n", 1)},
		"from disk": {machine(fromDisk(2, 0)), 0, nil, 60,
			"boot 0-50 ready ready OK\nboot/dhcpv6 0-1 dhcpv6\nboot/start 1-40 talos\nboot/ready 40-50 talos\n"},
		"held": {machine(booted(2, 300, inventory.Install, "offered"), booted(1, 0, inventory.Hold, "offered")), 1, nil, 301,
			"boot 0-300 registered held\nboot/dhcpv6 0-1 dhcpv6\n"},
		"a bootstrap of another": {machine(booted(1, 0, inventory.Install, "ready")), 0, &others, 125,
			"boot 0-120 ready ready OK\n" + toConfig + "boot/install 30-90 talos\nboot/bootstrap 92-110 talos linked\nboot/ready 110-120 talos\n"},
		"a bootstrap before": {machine(booted(1, 200, inventory.Install, "ready")), 0, &others, 325,
			"boot 200-320 ready ready OK\n" + "boot/dhcpv6 200-201 dhcpv6\nboot/loader 201-204 tftp\nboot/script 204-206 http\nboot/kernel 206-209 http\nboot/initramfs 209-220 http\nboot/config 220-230 https\nboot/install 230-290 talos\nboot/ready 290-320 talos\n"},
		"its own bootstrap": {machine(booted(1, 0, inventory.Install, "ready")), 0, strap, 125,
			"boot 0-120 ready ready OK\n" + toConfig + "boot/install 30-90 talos\nboot/bootstrap 92-110 talos linked\nboot/ready 110-120 talos\nbootstrap 92-110 linked\nbootstrap/look 92-93\nbootstrap/call 93-94\nbootstrap/etcd 94-110\n"},
		"its own bootstrap goes on": {machine(booted(1, 0, inventory.Install, "ready")), 0, new(with(*strap, func(b *inventory.Bootstrap) { b.DoneAt = time.Time{} })), 125, ""},
		"its own bootstrap was seen late": {machine(booted(1, 0, inventory.Install, "ready")), 0, new(with(*strap, func(b *inventory.Bootstrap) { b.DoneAt = at(130) })), 135,
			"boot 0-130 ready ready OK\n" + toConfig + "boot/install 30-90 talos\nboot/ready 90-120 talos\nboot/bootstrap 92-130 talos linked\nbootstrap 92-130 linked\nbootstrap/look 92-93\nbootstrap/call 93-94\nbootstrap/etcd 94-130\n"},
		"wiped by netboot": {with(machine(booted(2, 60, inventory.Install, "offered"), booted(1, 0, inventory.Wipe, "initramfs")), func(v *inventory.View) {
			v.Facts.Reimage = inventory.Reimage{Order: inventory.Order{Ordered: 3, OrderedAt: at(-100), Done: 2, DoneAt: at(-5000)}, ClaimedAt: at(6), Via: inventory.ViaNetboot, Boot: 1}
		}), 1, nil, 62,
			"boot 0-60 reimaging wiped OK linked\n" + toKernel + "boot/kernel 6-9 http\nboot/initramfs 9-20 http\nboot/wipe 20-60\n"},
		"the boot after it": {with(machine(booted(2, 60, inventory.Install, "ready"), booted(1, 0, inventory.Wipe, "initramfs")), func(v *inventory.View) {
			v.Facts.Reimage = inventory.Reimage{Order: inventory.Order{Ordered: 3, OrderedAt: at(-100), Done: 3, DoneAt: at(90)}, ClaimedAt: at(6), Via: inventory.ViaNetboot, Boot: 1}
		}), 0, nil, 200,
			"boot 60-180 ready ready OK linked\nboot/dhcpv6 60-61 dhcpv6\nboot/loader 61-64 tftp\nboot/script 64-66 http\nboot/kernel 66-69 http\nboot/initramfs 69-80 http\nboot/config 80-90 https\nboot/install 90-150 talos\nboot/ready 150-180 talos\n" +
				"reimage -100-90 netboot linked linked\nreimage/clearance -100-6\nreimage/wipe 6-60\nreimage/install 60-90\n"},
	} {
		t.Run(name, func(t *testing.T) {
			end, over := endOf(&tt.view, tt.boot, tt.b, inventory.DefaultPatience(), at(tt.now))
			if !over {
				if tt.want != "" {
					t.Fatal("it is not over")
				}
				return
			}
			spans := bootSpans(&tt.view, tt.boot, tt.b, end)
			if have := show(spans); have != tt.want {
				t.Errorf("have\n%swant\n%s", have, tt.want)
			}
			wantSound(t, spans)
			for _, s := range spans {
				if strings.Contains(s.String(), "secret") {
					t.Errorf("the token is in %v", s)
				}
			}
		})
	}
}

// wantSound checks what holds for the spans of every boot.
func wantSound(t *testing.T, spans []*tracepb.Span) {
	t.Helper()
	ids, roots := map[string]bool{}, map[string]*tracepb.Span{}
	for _, s := range spans {
		if id := string(s.TraceId) + string(s.SpanId); ids[id] || len(s.TraceId) != 16 || len(s.SpanId) != 8 {
			t.Errorf("%s: its id is no good", s.Name)
		} else {
			ids[id] = true
		}
		if len(s.ParentSpanId) == 0 {
			roots[string(s.TraceId)] = s
		}
		root := roots[string(s.TraceId)]
		if root == nil || s != root && string(s.ParentSpanId) != string(root.SpanId) || s.StartTimeUnixNano > s.EndTimeUnixNano || s.StartTimeUnixNano < root.StartTimeUnixNano || s.EndTimeUnixNano > root.EndTimeUnixNano {
			t.Errorf("%s is not within its trace", s.Name)
		}
	}
}

// TestRealBoots makes traces of boots of a simulated rack, which TestTraces of package
// daemon keeps with -update.
func TestRealBoots(t *testing.T) {
	text, err := os.ReadFile("testdata/rack.json")
	if err != nil {
		t.Fatal(err)
	}
	var kept struct {
		Bootstrap *inventory.Bootstrap
		Machines  []*inventory.Machine
		Facts     []inventory.Facts
	}
	if err := json.Unmarshal(text, &kept); err != nil {
		t.Fatal(err)
	}
	bootstraps := 0
	for i, m := range kept.Machines {
		v := inventory.View{Machine: m, Facts: kept.Facts[i], Cluster: &inventory.Cluster{Name: "lab"}}
		now := v.Facts.Boots[0].Ready.Add(time.Hour)
		end, over := endOf(&v, 0, kept.Bootstrap, inventory.DefaultPatience(), now)
		if !over || end.outcome != ready {
			t.Fatalf("%s ended as %+v", m.Name, end)
		}
		spans := bootSpans(&v, 0, kept.Bootstrap, end)
		wantSound(t, spans)
		if last := v.Facts.Boots[0].Ready; spans[0].EndTimeUnixNano < uint64(last.UnixNano()) || end.at.Before(last) {
			t.Errorf("%s: the trace ends before the machine is ready", m.Name)
		}
		for _, name := range []string{"dhcpv6", "script", "kernel", "initramfs", "config", "install", "ready"} {
			if !slices.ContainsFunc(spans, func(s *tracepb.Span) bool { return s.Name == name }) {
				t.Errorf("%s: there is no %s", m.Name, name)
			}
		}
		for _, s := range spans {
			if s.Name == "bootstrap" && len(s.ParentSpanId) == 0 {
				bootstraps++
			}
		}
		// Who looks later, and elsewhere, makes the same.
		far := v
		far.Facts = far.Facts.Clone()
		boot := *far.Facts.Boots[0]
		boot.Started = boot.Started.In(time.FixedZone("", 3600))
		far.Facts.Boots[0] = &boot
		end, _ = endOf(&far, 0, kept.Bootstrap, inventory.DefaultPatience(), now.Add(24*time.Hour))
		for n, s := range bootSpans(&far, 0, kept.Bootstrap, end) {
			if !proto.Equal(s, spans[n]) {
				t.Errorf("%s: %v became %v", m.Name, spans[n], s)
			}
		}
	}
	if bootstraps != 1 {
		t.Errorf("%d machines tell of the bootstrap", bootstraps)
	}
}
