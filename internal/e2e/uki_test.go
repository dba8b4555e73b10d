//go:build e2e

package e2e

import (
	"context"
	"fmt"
	"net"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/provisiond/provisiond/api"
)

// TestUKI boots two machines at once by HTTP, each straight into its own UKI, and then
// two by iPXE, to compare.
func TestUKI(t *testing.T) {
	const first, second, third, fourth = "fd00:7a10:e2e::21", "fd00:7a10:e2e::22", "fd00:7a10:e2e::23", "fd00:7a10:e2e::24"
	r := newRack(t, pc, budget)
	ctx, d := r.ctx, r.daemon
	r.addImage(t, "--stub", r.images.stub)
	r.createCluster(t, first, "no_timer_check") // not quiet: the kernel's first line is waited for
	machine := func(name string, last byte, option bootOption) *vm {
		return newVM(t, r.lab, name, pc, net.HardwareAddr{0x52, 0x54, 0, 0xe2, 0, last}, option)
	}
	auto, uki := machine("uki-1", 0x21, http6), machine("uki-2", 0x22, http6)
	pxe, http := machine("ipxe-1", 0x23, pxe6), machine("ipxe-2", 0x24, http6)
	r.addMachine(t, auto, "controlplane", first) // by itself: its firmware boots over HTTP
	r.addMachine(t, uki, "worker", second, "--boot", "uki")
	r.addMachine(t, pxe, "worker", third)
	r.addMachine(t, http, "worker", fourth, "--boot", "ipxe")

	roads := []*road{
		{name: "UKI", vm: auto}, {name: "UKI, the other at the same time", vm: uki},
		{name: "iPXE by PXE", vm: pxe}, {name: "iPXE by HTTP", vm: http},
	}
	race(ctx, t, roads[:2]...)
	checkLine(ctx, t, auto, uki)
	checkLine(ctx, t, uki, auto)
	for _, v := range []*vm{auto, uki} {
		install(ctx, t, r.clock, d, v)
		reachReady(ctx, t, r.clock, v)
		checkWay(t, d, v, "uki")
	}
	checkBootstrap(ctx, t, d, auto, uki)

	// An installed machine whose firmware tries HTTP first comes up from its disk.
	auto.powerOff()
	uki.powerOff()
	auto.powerOn(t)
	powerCycled(ctx, t, r.clock, d, auto, "http")
	auto.powerOff()

	race(ctx, t, roads[2:]...)
	for _, v := range []*vm{pxe, http} {
		install(ctx, t, r.clock, d, v)
		checkWay(t, d, v, "ipxe")
	}
	compare(t, r.stopCapture(), roads...)
	checkLog(t, r.lab.out)
}

// checkLine looks at the kernel line that a machine came up with: whole, its own, and
// with nothing of another's.
func checkLine(ctx context.Context, t *testing.T, v *vm, others ...*vm) {
	t.Helper()
	line, err := strconv.Unquote(mustAwait(ctx, t, v, "GUEST: kernel line "))
	must(t, err)
	words := strings.Fields(line)
	if strings.Join(words, " ") != line {
		t.Errorf("%s: the kernel line has more than words with a space between them: %q", v.name, line)
	}
	for _, want := range []string{
		fmt.Sprintf("talos.config=https://[%s]:8443/config/%s/", serverAddr, v.mac),
		fmt.Sprintf("ip=[%s]:", v.address),
		"talos.config.early=", "console=" + v.board.console,
	} {
		if !slices.ContainsFunc(words, func(word string) bool { return strings.HasPrefix(word, want) }) {
			t.Errorf("%s: the kernel line has nothing that begins with %s: %q", v.name, want, line)
		}
	}
	if slices.ContainsFunc(words, func(word string) bool { return strings.HasPrefix(word, "initrd=") }) {
		t.Errorf("%s: a boot loader was at work: %q", v.name, line)
	}
	for _, other := range others {
		if strings.Contains(line, other.mac.String()) || strings.Contains(line, other.address.String()+"]") {
			t.Errorf("%s has the kernel line of %s: %q", v.name, other.name, line)
		}
	}
}

// checkWay wants that the machine was started once, by a way, as the daemon saw it.
func checkWay(t *testing.T, d *daemon, v *vm, way string) {
	t.Helper()
	boots := ask[[]api.Boot](t, d, "machine", "boots", v.name)
	if len(boots) != 1 {
		t.Fatalf("%s: %d boots, want 1: %+v", v.name, len(boots), boots)
	}
	if b := boots[0]; b.Way != way || b.WayReason == "" {
		t.Errorf("%s was started by %s (%s), want %s", v.name, b.Way, b.WayReason, way)
	}
}
