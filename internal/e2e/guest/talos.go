//go:build linux

package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/provisiond/provisiond/internal/racktest"
)

// serve installs if that was not done yet, and runs the Talos API until the
// power goes. Talos would load the installed kernel in between; to the network
// that looks the same.
func serve(ctx context.Context, console *console, line *commandLine, cfg *machineConfig, stored *state) error {
	if stored == nil {
		var err error
		if stored, err = install(ctx, cfg); err != nil {
			return fmt.Errorf("install: %w", err)
		}
		console.say("installed")
	}
	var addresses []netip.Addr
	for _, a := range cfg.addresses {
		addresses = append(addresses, a.Addr())
	}
	disk := &racktest.Disk{Path: cfg.disk}
	disk.Install(cfg.raw)
	peers := &racktest.EndpointPeers{Network: racktest.RealNetwork{}}
	if stored.Etcd != "" {
		disk.RestoreEtcd(stored.Etcd)
	}
	node, err := racktest.NewNode(racktest.NodeOptions{
		Config: cfg.raw, Hostname: cfg.hostname, Addresses: addresses, Network: racktest.RealNetwork{},
		Peers: peers, Disk: disk, Timing: timing(), Sink: cmp.Or(cfg.sink, line.eventSink),
	})
	if err != nil {
		return err
	}
	live, ctx := errgroup.WithContext(ctx)
	live.Go(func() error {
		err := node.Run(ctx)
		if errors.Is(err, racktest.ErrReset) {
			return wipe(console, "a reset")
		}
		return err
	})
	live.Go(func() error { return reportAPI(ctx, console, addresses[0]) })
	live.Go(func() error { return follow(ctx, console, node, disk, stored) })
	live.Go(func() error {
		select {
		case <-node.Ready():
			console.say("ready")
		case <-ctx.Done():
		}
		return nil
	})
	return live.Wait()
}

// timing is that of a quick machine: the emulated processor is slow enough.
func timing() racktest.Timing {
	t := racktest.FastTiming()
	t.Poll, t.Backoff, t.BackoffMax = time.Second, 500*time.Millisecond, 5*time.Second
	t.CRI, t.TimeSync, t.Kubelet = time.Second, time.Second, time.Second
	t.EtcdPull, t.EtcdStart = 3*time.Second, time.Second
	return t
}

func reportAPI(ctx context.Context, console *console, a netip.Addr) error {
	const port = 50000
	var dialer net.Dialer
	for {
		conn, err := dialer.DialContext(ctx, "tcp", netip.AddrPortFrom(a, port).String())
		if err == nil {
			console.say("api up")
			return conn.Close()
		}
		if sleep(ctx, 200*time.Millisecond) != nil {
			return nil
		}
	}
}

// follow tells each accepted Bootstrap call, and stores what etcd writes.
func follow(ctx context.Context, console *console, node *racktest.Node, disk *racktest.Disk, stored *state) error {
	told := 0
	for {
		for ; told < node.Accepted(); told++ {
			console.say("bootstrapped (call %d)", told+1)
		}
		if etcd := disk.Etcd(); etcd != stored.Etcd && etcd != "" {
			stored.Etcd = etcd
			if err := stored.write(); err != nil {
				return fmt.Errorf("storing etcd's data: %w", err)
			}
			console.say("etcd %s", etcd)
		}
		if sleep(ctx, 100*time.Millisecond) != nil {
			return nil
		}
	}
}
