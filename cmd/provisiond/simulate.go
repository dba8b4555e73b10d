package main

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/netip"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sync/errgroup"

	"github.com/provisiond/provisiond/internal/racktest"
)

// simulation is a rack of simulated machines in front of a running daemon.
type simulation struct {
	controlPlanes, workers int
	server                 netip.AddrPort // DHCPv6, by unicast
	link                   netip.Addr     // the relay's address on the machines' link
	fast                   bool
	loss                   float64
	within                 time.Duration
}

func simulateCommand() *cobra.Command {
	var s simulation
	var server, link, proxy string
	cmd := &cobra.Command{
		Use:   "simulate",
		Short: "Boot simulated machines against a running daemon",
		Long: `Boot simulated machines against a running daemon, with the real wire protocols: DHCPv6 through a relay
agent, TFTP, HTTP, Talos' config fetch, event stream and API, in Talos' order.

The machines are cp-1, cp-2, ... (52:54:00:00:00:01 and on) and after them w-1, w-2, ...; register them, with a
cluster and a boot image, before. Their Talos APIs are reached through an HTTP CONNECT proxy that this command
runs: set talos.proxy of the daemon to its address.`,
		Example: "  provisiond simulate --control-planes 3 --workers 2 --dhcpv6 '[::1]:5470' --link 2001:db8:1::1 --proxy '[::1]:3128'",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			var err error
			if s.controlPlanes < 1 || s.workers < 0 {
				return fmt.Errorf("--control-planes %d --workers %d is no rack: at least one control plane is needed", s.controlPlanes, s.workers)
			}
			if s.server, err = netip.ParseAddrPort(server); err != nil {
				return fmt.Errorf("--dhcpv6 %q is not an address with a port, such as [::1]:547", server)
			}
			if s.link, err = netip.ParseAddr(link); err != nil || !s.link.Is6() {
				return fmt.Errorf("--link %q is not an IPv6 address of the machines' subnet", link)
			}
			var lc net.ListenConfig
			l, err := lc.Listen(cmd.Context(), "tcp", proxy)
			if err != nil {
				return fmt.Errorf("--proxy: %w", err)
			}
			ctx, cancel := context.WithTimeout(cmd.Context(), s.within)
			defer cancel()
			return s.run(ctx, l, cmd.OutOrStdout(), nil)
		},
	}
	f := cmd.Flags()
	f.IntVar(&s.controlPlanes, "control-planes", 3, "how many control planes")
	f.IntVar(&s.workers, "workers", 2, "how many workers")
	f.StringVar(&server, "dhcpv6", "[::1]:547", "where the daemon's DHCPv6 server is reached by unicast")
	f.StringVar(&link, "link", "", "link-address of the simulated relay: any address of the machines' subnet (required)")
	f.StringVar(&proxy, "proxy", "[::1]:3128", "where to listen with the proxy to the machines' Talos APIs")
	f.BoolVar(&s.fast, "fast", true, "shorten the waits of real machines")
	f.Float64Var(&s.loss, "loss", 0, "share of datagrams to lose, 0 to 0.9")
	f.DurationVar(&s.within, "within", 10*time.Minute, "give up after")
	_ = cmd.MarkFlagRequired("link") // fails only for a flag that does not exist
	return cmd
}

// run boots the rack and prints its timeline. until, if not nil, runs once all
// machines are ready and before they are switched off.
func (s *simulation) run(ctx context.Context, proxy net.Listener, out io.Writer, until func(context.Context) error) error {
	timing := racktest.RealTiming()
	if s.fast {
		timing = racktest.FastTiming()
	}
	if s.loss < 0 || s.loss > 0.9 {
		return fmt.Errorf("--loss %v is not between 0 and 0.9", s.loss)
	}
	rack, err := racktest.NewRack(racktest.RackOptions{
		ControlPlanes: s.controlPlanes, Workers: s.workers, Timing: timing, OwnStack: true,
		Net: &racktest.Net{Server: s.server, Link: s.link, LinkLayer: true, Faults: racktest.Faults{Loss: s.loss, Seed: 1}},
	})
	if err != nil {
		return err
	}
	defer rack.Close()
	serving, stop := context.WithCancel(ctx)
	defer stop()
	var group errgroup.Group
	group.Go(func() error { return rack.Fabric.ServeProxy(serving, proxy) })
	err = rack.Run(ctx)
	if err == nil && until != nil {
		err = until(ctx)
	}
	if report := rack.Report(out); err == nil {
		err = report
	}
	if err == nil {
		err = rack.Check()
	}
	rack.Close()
	stop()
	if perr := group.Wait(); err == nil {
		err = perr
	}
	return err
}
