//go:build e2e

package e2e

import (
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

// vm is one virtual machine. Disk and NVRAM survive its power cycles, and every
// time it is switched on its serial console goes to a new file.
type vm struct {
	name  string
	board board
	mac   net.HardwareAddr
	tap   string
	lab   *lab
	// address is the one that it is registered with.
	address netip.Addr

	disk, nvram string
	starts      int // how often it was switched on
	cmd         *exec.Cmd
	exited      chan struct{}
}

// newVM makes a machine that is off, with a blank disk.
func newVM(t *testing.T, l *lab, name string, b board, mac net.HardwareAddr, options ...bootOption) *vm {
	t.Helper()
	v := &vm{
		name: name, board: b, mac: mac, tap: l.newTap(t), lab: l,
		disk: filepath.Join(l.dir, name+".disk"), nvram: filepath.Join(l.dir, name+".nvram"),
	}
	vars, err := os.ReadFile(b.vars)
	must(t, err)
	vars, err = withBootOptions(vars, mac, options...)
	must(t, err)
	must(t, os.WriteFile(v.nvram, vars, 0o644))
	must(t, os.WriteFile(v.disk, nil, 0o644))
	must(t, os.Truncate(v.disk, 256<<20))
	t.Cleanup(v.powerOff)
	return v
}

// powerOn starts the machine from cold.
func (v *vm) powerOn(t *testing.T) {
	t.Helper()
	v.starts++
	v.cmd = v.lab.command(v.board.emulator, append(slices.Clone(v.board.machine), "-name", v.name,
		"-nodefaults", "-no-user-config", "-display", "none", "-no-reboot", "-accel", "tcg", "-smp", "1",
		"-drive", "if=pflash,format=raw,unit=0,readonly=on,file="+v.board.code,
		"-drive", "if=pflash,format=raw,unit=1,file="+v.nvram,
		"-serial", "file:"+v.serial(v.starts),
		// romfile=: the firmware's own PXE, not QEMU's iPXE option ROM.
		"-netdev", "tap,id=n0,script=no,downscript=no,ifname="+v.tap,
		"-device", fmt.Sprintf("virtio-net-pci,netdev=n0,romfile=,mac=%s,addr=%d", v.mac, nicSlot),
		"-drive", "if=none,id=d0,format=raw,cache=unsafe,file="+v.disk,
		"-device", "virtio-blk-pci,drive=d0,addr=5",
		"-device", "virtio-rng-pci,addr=6", // firmware since 2024 has no network without one
		// A menu that waits: HTTPv6 as first option starts before duplicate
		// address detection is through, and fails (EDK2 before 202508).
		"-boot", "menu=on,splash-time=3000",
	)...)
	v.exited = make(chan struct{})
	stderr := &bytes.Buffer{}
	v.cmd.Stdout, v.cmd.Stderr = stderr, stderr
	must(t, v.cmd.Start())
	go func(cmd *exec.Cmd, log string, exited chan struct{}) {
		_ = cmd.Wait() // killed, or seen by await
		_ = os.WriteFile(log, stderr.Bytes(), 0o644)
		close(exited)
	}(v.cmd, v.serial(v.starts)+".qemu", v.exited)
}

// powerOff pulls the plug.
func (v *vm) powerOff() {
	if v.cmd == nil {
		return
	}
	_ = v.cmd.Process.Kill() // may have ended
	<-v.exited
	v.cmd = nil
}

// counts are how often the machine's disk was installed and wiped, by its own marker.
func (v *vm) counts(t *testing.T) (installs, wipes uint32) {
	t.Helper()
	f, err := os.Open(v.disk)
	must(t, err)
	defer func() { _ = f.Close() }() // read only
	var b [8]byte
	_, err = f.ReadAt(b[:], 240<<20)
	must(t, err)
	return binary.LittleEndian.Uint32(b[:]), binary.LittleEndian.Uint32(b[4:])
}

// fatal are texts on the console after which nothing is to be waited for.
var fatal = []string{"GUEST: failed", "GUEST: config refused", "GUEST: netbooted although installed", "Kernel panic", "BdsDxe: No bootable option"}

// await blocks until the console of the running period shows a text, and
// returns the rest of its line.
func (v *vm) await(ctx context.Context, text string) (string, error) {
	tick := time.NewTicker(100 * time.Millisecond)
	defer tick.Stop()
	for {
		ended := false
		select {
		case <-v.exited:
			ended = true
		default:
		}
		console := v.console()
		if _, after, ok := strings.Cut(console, text); ok && strings.ContainsRune(after, '\n') {
			rest, _, _ := strings.Cut(after, "\r")
			return rest, nil
		}
		for _, f := range fatal {
			if _, after, ok := strings.Cut(console, f); ok {
				rest, _, _ := strings.Cut(after, "\n")
				return "", fmt.Errorf("%s: waiting for %q: console says %s%s", v.name, text, f, rest)
			}
		}
		if ended {
			return "", fmt.Errorf("%s: waiting for %q: the machine switched itself off", v.name, text)
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return "", fmt.Errorf("%s: waiting for %q: %w", v.name, text, context.Cause(ctx))
		}
	}
}

// console is everything on the serial port since the machine was switched on.
func (v *vm) console() string { return v.consoleOf(v.starts) }

// consoleOf is that of an earlier period, counted from 1.
func (v *vm) consoleOf(start int) string {
	text, err := os.ReadFile(v.serial(start))
	if err != nil {
		return "" // QEMU has not made it yet
	}
	return string(text)
}

func (v *vm) serial(start int) string {
	return filepath.Join(v.lab.out, fmt.Sprintf("%s-%d.serial", v.name, start))
}
