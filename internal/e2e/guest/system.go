//go:build linux

package main

import (
	"fmt"
	"os"
	"runtime"
	"strings"
	"sync"

	"golang.org/x/sys/unix"
)

// Marker begins every line that is meant for the test.
const Marker = "GUEST: "

// serialPorts are what QEMU gives its machines.
var serialPorts = map[string]string{"amd64": "/dev/ttyS0", "arm64": "/dev/ttyAMA0"}

// console is the serial port. The kernel's console= may name another device
// last, which would then be init's standard output.
type console struct {
	mu sync.Mutex
	w  *os.File
}

// say prints one line. Both line ends keep it apart from the kernel's own.
func (c *console) say(format string, args ...any) {
	c.mu.Lock()
	defer c.mu.Unlock()
	text := strings.ReplaceAll(fmt.Sprintf(format, args...), "\n", "\r\n")
	_, _ = fmt.Fprintf(c.w, "\r\n%s%s\r\n", Marker, text) // nowhere else to tell
}

// startSystem mounts what the rest needs and loads the drivers. The console it
// returns is usable even with an error.
func startSystem() (*console, error) {
	c := &console{w: os.Stdout}
	for _, m := range []struct{ kind, at string }{{"devtmpfs", "/dev"}, {"proc", "/proc"}, {"sysfs", "/sys"}, {"tmpfs", "/tmp"}} {
		if err := os.MkdirAll(m.at, 0o755); err != nil {
			return c, err
		}
		if err := unix.Mount(m.kind, m.at, m.kind, 0, ""); err != nil {
			return c, fmt.Errorf("mounting %s: %w", m.at, err)
		}
	}
	serial, err := os.OpenFile(serialPorts[runtime.GOARCH], os.O_WRONLY|unix.O_NOCTTY, 0)
	if err != nil {
		return c, err
	}
	c.w = serial
	return c, loadModules()
}

// loadModules loads /modules/* in the order of /modules/order, in which every
// driver stands behind those it needs.
func loadModules() error {
	order, err := os.ReadFile("/modules/order")
	if err != nil {
		return err
	}
	for name := range strings.FieldsSeq(string(order)) {
		if err := loadModule("/modules/" + name); err != nil {
			return fmt.Errorf("loading %s: %w", name, err)
		}
	}
	return nil
}

func loadModule(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer func() { _ = f.Close() }() // read only
	return unix.FinitModule(int(f.Fd()), "", 0)
}

func powerOff() {
	unix.Sync()
	_ = unix.Reboot(unix.LINUX_REBOOT_CMD_POWER_OFF)
}

func reboot() {
	unix.Sync()
	_ = unix.Reboot(unix.LINUX_REBOOT_CMD_RESTART)
}
