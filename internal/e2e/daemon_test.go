//go:build e2e

package e2e

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// configText is the daemon's config file: what a test does not add is at its default.
const configText = `data: %[1]s/data
address: %[2]s
interfaces: [%[3]s]
api: {socket: %[1]s/api.sock, listen: ""}
routerAdvertisements: {enabled: true}
log: {level: debug}
subnets:
  - name: rack
    prefix: %[4]s
    interface: %[3]s
    machines: fd00:7a10:e2e::1000-fd00:7a10:e2e::1fff
    pool: fd00:7a10:e2e::f000-fd00:7a10:e2e::ffff
    strangers: true
    gateway: %[5]s
  - name: far
    prefix: %[6]s
    gateway: %[7]s
    pool: fd00:7a10:e2f::f000-fd00:7a10:e2f::ffff
`

// daemon is a running provisiond, and the command line to it.
type daemon struct {
	binary, socket string
}

// startDaemon runs provisiond in the lab's namespace until the test ends. Its config
// file ends with settings.
func startDaemon(t *testing.T, l *lab, binary, settings string) *daemon {
	t.Helper()
	config := filepath.Join(l.dir, "provisiond.yaml")
	must(t, os.WriteFile(config, fmt.Appendf(nil, configText+"%[8]s", l.dir, serverAddr, bridge, prefix, routerAddr, farPrefix, farRouter, settings), 0o600))
	log, err := os.Create(filepath.Join(l.out, "daemon.log"))
	must(t, err)
	defer func() { _ = log.Close() }() // the daemon has its own
	cmd := l.command(binary, "serve", "--config", config)
	cmd.Stdout, cmd.Stderr = log, log
	must(t, cmd.Start())
	exited := make(chan error, 1)
	go func() { exited <- cmd.Wait() }()
	t.Cleanup(func() {
		_ = cmd.Process.Signal(syscall.SIGTERM) // Wait tells if it had ended
		select {
		case err := <-exited:
			if err != nil {
				t.Errorf("provisiond serve: %v", err)
			}
		case <-time.After(time.Minute):
			_ = cmd.Process.Kill()
			t.Error("provisiond serve did not stop within a minute of SIGTERM")
		}
	})
	d := &daemon{binary: binary, socket: filepath.Join(l.dir, "api.sock")}
	must(t, poll(deadline(t, time.Minute), "the daemon's API", func() (bool, string) {
		select {
		case err := <-exited:
			exited <- err
			t.Fatalf("provisiond serve ended: %v", err)
		default:
		}
		_, err := d.try("status")
		return err == nil, fmt.Sprint(err)
	}))
	return d
}

// run executes a client command, as an operator would.
func (d *daemon) run(t *testing.T, args ...string) []byte {
	t.Helper()
	out, err := d.try(args...)
	must(t, err)
	return out
}

func (d *daemon) try(args ...string) ([]byte, error) {
	cmd := exec.Command(d.binary, append([]string{"--server=unix://" + d.socket}, args...)...)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		return nil, fmt.Errorf("provisiond %s: %w: %s", strings.Join(args, " "), err, stderr.String())
	}
	return out, nil
}

// ask runs a command with -o json and decodes its answer.
func ask[T any](t *testing.T, d *daemon, args ...string) T {
	t.Helper()
	var v T
	must(t, json.Unmarshal(d.run(t, append(args, "-o", "json")...), &v))
	return v
}
