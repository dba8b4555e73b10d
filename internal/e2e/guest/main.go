//go:build linux

// Command guest is the init of the test images that real firmware boots in
// package e2e: Talos as far as provisiond can tell from outside. It reads the
// kernel line as Talos does, takes its address, fetches and validates its
// machine config, installs itself to the disk the config names, and serves the
// Talos API. What it comes to is printed on the serial console, a line each,
// with [Marker] in front.
package main

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"os"
	"runtime/debug"
)

func main() {
	if os.Getpid() != 1 {
		fmt.Fprintln(os.Stderr, "guest is the init of a virtual machine of package e2e and runs nowhere else")
		os.Exit(2)
	}
	console, err := startSystem()
	if err == nil {
		err = guarded(console)
	}
	if errors.Is(err, errWiped) {
		console.say("reboots")
		reboot()
	}
	// Talos reboots on a fatal error; here that would hide it.
	console.say("failed: %v", err)
	powerOff()
}

// guarded turns a panic into an error that is seen on the console; the kernel
// would print its own when init dies.
func guarded(console *console) (err error) {
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("panic: %v\n%s", p, debug.Stack())
		}
	}()
	return run(context.Background(), console)
}

// run is Talos' boot in its order: a config on the disk wins over the URL
// (machined's config acquisition), so that a machine that is netbooted twice is
// not configured twice.
func run(ctx context.Context, console *console) error {
	line, err := readCommandLine()
	if err != nil {
		return err
	}
	console.say("kernel line %q", line.text)
	stored, err := findState()
	if err != nil {
		return err
	}
	if line.wipe == "system" { // before anything is read from the disk (wipeDisks)
		return wipe(console, "its kernel line")
	}
	switch {
	case stored != nil && line.configURL == "":
		console.say("booted from disk")
	case stored != nil:
		console.say("netbooted although installed")
	case line.configURL == "":
		return fmt.Errorf("the kernel line has no talos.config and the disk no config")
	}

	if line.hasAddress() {
		if err := configure(ctx, line.mac, line.address, line.gateway); err != nil {
			return err
		}
		console.say("address %s", line.address)
	}
	cfg, err := acquire(ctx, console, line, stored)
	if err != nil {
		return err
	}
	console.say("config ok sha256=%x", sha256.Sum256(cfg.raw))
	// The machine config replaces what the kernel line said of the network.
	for _, prefix := range cfg.addresses {
		if err := configure(ctx, cfg.mac, prefix, cfg.gateway); err != nil {
			return fmt.Errorf("address %s of the config: %w", prefix, err)
		}
	}
	return serve(ctx, console, line, cfg, stored)
}
