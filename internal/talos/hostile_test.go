package talos

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/rs/zerolog"
	"github.com/siderolabs/siderolink/api/events"
	machineapi "github.com/siderolabs/talos/pkg/machinery/api/machine"
	"google.golang.org/grpc/peer"
	"google.golang.org/protobuf/types/known/anypb"
)

// TestNobodyNamesHimself: on a segment, what a sender says of itself makes it no
// machine: neither its events nor its kernel log are put among those of another.
func TestNobodyNamesHimself(t *testing.T) {
	evil := netip.MustParseAddr("2001:db8::bad")
	res := fakeResolver{byAddress: map[string]string{"2001:db8::11": "cp-1"}, byName: map[string]string{"w-1": "w-1"}}
	rec, logs := &fakeRecorder{}, &fakeLogs{}
	sink := NewEventSink(rec, res, logs, zerolog.Nop())
	ctx := peer.NewContext(t.Context(), &peer.Peer{Addr: net.TCPAddrFromAddrPort(netip.AddrPortFrom(evil, 4000))})
	ctx = connTagger{}.TagConn(ctx, nil)
	for i, said := range []*machineapi.AddressEvent{{Addresses: []string{"2001:db8::11"}}, {Hostname: "w-1"}} {
		data, err := anypb.New(said)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := sink.Publish(ctx, &events.EventRequest{Id: fmt.Sprint(i), Data: data}); err != nil {
			t.Fatal(err)
		}
	}
	wantLines(t, rec)

	k := NewKernelLog(logs, res, zerolog.Nop())
	c := &logConn{k: k, peer: evil}
	l, err := parseKernelLine([]byte(record(0, time.Second, setting)))
	if err != nil {
		t.Fatal(err)
	}
	if err := c.identify(context.Background(), l); err != nil || c.machine != "" {
		t.Errorf("taken for %q, %v", c.machine, err)
	}
	c.peer, c.asked = netip.IPv6Loopback(), time.Time{} // as it is in a lab on one host
	if err := c.identify(context.Background(), l); err != nil || c.machine != "w-1" {
		t.Errorf("in a lab taken for %q, %v", c.machine, err)
	}
}

// TestBombs: a patch that is small and means something huge is refused, and costs
// little to find out.
func TestBombs(t *testing.T) {
	laughs := "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n"
	for i := 1; i < 12; i++ {
		laughs += fmt.Sprintf("a%d: &a%d [%s]\n", i, i, strings.TrimSuffix(strings.Repeat(fmt.Sprintf("*a%d, ", i-1), 10), ", "))
	}
	merge := "machine:\n  sysctls: &s0 {a: \"1\"}\n"
	for name, patch := range map[string]string{
		"aliases of aliases":   laughs + "machine: {sysctls: *a11}\n",
		"in a list":            "machine:\n  certSANs: &a [x]\n  kubelet: {extraArgs: *a}\n" + laughs,
		"an alias of itself":   "machine: &m {files: [*m]}\n",
		"deep":                 "machine: " + strings.Repeat("{a: ", 20_000) + "x" + strings.Repeat("}", 20_000),
		"deep lists":           "machine: {certSANs: " + strings.Repeat("[", 50_000) + strings.Repeat("]", 50_000) + "}",
		"a thousand documents": strings.Repeat("---\nmachine: {sysctls: {a: \"1\"}}\n", 100_000),
		"merge keys":           merge + "  files: {<<: *s0}\n",
	} {
		t.Run(name, func(t *testing.T) {
			var before, after runtime.MemStats
			runtime.ReadMemStats(&before)
			err := CheckPatches([]string{patch})
			runtime.ReadMemStats(&after)
			// What contains itself is cut short by Talos' own loader, and so means nothing huge.
			if err == nil && name != "an alias of itself" {
				t.Error("it is taken")
			}
			if spent := after.TotalAlloc - before.TotalAlloc; spent > 512<<20 {
				t.Errorf("it costs %d MB", spent>>20)
			}
		})
	}
}
