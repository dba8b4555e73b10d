package daemon

import (
	"net/netip"
	"os"
	"os/exec"
	"runtime"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// TestTentativeLinkLocal: a host that has just booted is still checking its
// link-local address when we start.
func TestTentativeLinkLocal(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("a network namespace takes root")
	}
	// This thread moves into a namespace of its own and is thrown away with it.
	done := make(chan struct{})
	go func() {
		defer close(done)
		runtime.LockOSThread()
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			t.Errorf("a network namespace: %v", err)
			return
		}
		for _, args := range [][]string{{"link", "add", "rack0", "type", "veth", "peer", "name", "rack1"}, {"link", "set", "rack0", "up"}, {"link", "set", "rack1", "up"}} {
			if out, err := exec.Command("ip", args...).CombinedOutput(); err != nil {
				t.Errorf("ip %v: %v: %s", args, err, out)
				return
			}
		}
		var a netip.Addr
		var err error
		for range 100 { // until the kernel has made the address, tentative
			if a, err = linkLocal("rack0"); err == nil {
				break
			}
			time.Sleep(time.Millisecond)
		}
		if err != nil {
			t.Error(err)
			return
		}
		conn, err := listenUDP(t.Context(), netip.AddrPortFrom(a, 69))
		if err != nil {
			t.Errorf("listening on %s: %v", a, err)
			return
		}
		_ = conn.Close()
	}()
	<-done
}
