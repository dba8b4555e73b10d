//go:build e2e

package e2e

import (
	"net"
	"testing"
)

// TestARM64 takes a control plane of another architecture from its firmware to a cluster
// and, switched on again, from its disk. Its Secure Boot is on.
func TestARM64(t *testing.T) {
	const address = "fd00:7a10:e2e::41"
	r := newRack(t, secureARM, budget)
	r.addImage(t, "--stub", r.images.stub)
	r.createCluster(t, address, "")
	v := newVM(t, r.lab, "arm-1", secureARM, net.HardwareAddr{0x52, 0x54, 0, 0xe2, 0, 0x41}, http6)
	r.addMachine(t, v, "controlplane", address, "--secure-boot", "on")

	v.powerOn(t)
	checkLine(r.ctx, t, v)
	install(r.ctx, t, r.clock, r.daemon, v)
	reachReady(r.ctx, t, r.clock, v)
	checkWay(t, r.daemon, v, "uki")
	checkBootstrap(r.ctx, t, r.daemon, v)
	v.powerOff()
	v.powerOn(t)
	powerCycled(r.ctx, t, r.clock, r.daemon, v, "http")
	checkLog(t, r.lab.out)
}
