package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/rs/zerolog"
	"github.com/spf13/cobra"

	"github.com/provisiond/provisiond/internal/cli"
	"github.com/provisiond/provisiond/internal/daemon"
	"github.com/provisiond/provisiond/internal/racktest"
)

const (
	demoControlPlanes = 3
	demoWorkers       = 2
	demoWithin        = 2 * time.Minute
)

func demoCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "demo",
		Short: "Boot a simulated rack into a cluster, on loopback, without root",
		Long: `Start a daemon in a temporary folder on loopback, register three control planes and two workers, boot
them as simulated machines that speak the real protocols, and end when the cluster is bootstrapped and every
machine is ready. Nothing is left behind, but the daemon's log where the demo failed.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) (err error) {
			dir, err := os.MkdirTemp("", "provisiond-demo-")
			if err != nil {
				return err
			}
			defer func() {
				if err != nil {
					err = fmt.Errorf("%w (the daemon's log is %s)", err, filepath.Join(dir, "log"))
					return
				}
				err = os.RemoveAll(dir)
			}()
			ctx, cancel := context.WithTimeout(cmd.Context(), demoWithin)
			defer cancel()
			return demo(ctx, dir, cmd.OutOrStdout(), cmd.ErrOrStderr())
		},
	}
}

func demo(ctx context.Context, dir string, stdout, stderr io.Writer) error {
	var lc net.ListenConfig
	proxy, err := lc.Listen(ctx, "tcp6", "[::1]:0")
	if err != nil {
		return err
	}
	defer proxy.Close() //nolint:errcheck // the simulation closes it too
	cfg, err := demoConfig(dir, proxy.Addr().String())
	if err != nil {
		return err
	}
	logFile, err := os.Create(filepath.Join(dir, "log"))
	if err != nil {
		return err
	}
	defer logFile.Close() //nolint:errcheck // nothing to do about it
	d, err := daemon.New(ctx, daemon.Options{Config: cfg, Version: version, Log: zerolog.New(logFile).With().Timestamp().Logger()})
	if err != nil {
		return err
	}
	serving, stop := context.WithCancel(ctx)
	stopped := make(chan error, 1)
	go func() { stopped <- d.Run(serving) }()
	err = demoRack(ctx, dir, d.Addrs(), proxy, stdout, stderr)
	stop()
	return errors.Join(err, <-stopped)
}

// demoRack does what an operator would: the commands are shown as they run.
func demoRack(ctx context.Context, dir string, addrs daemon.Addrs, proxy net.Listener, stdout, stderr io.Writer) error {
	server := "--server=unix://" + addrs.Socket
	say := func(args ...string) error {
		fmt.Fprintf(stdout, "$ provisiond %s\n", strings.ReplaceAll(strings.Join(args, " "), dir, "."))
		if code := cli.Run(ctx, cli.New(version), append([]string{server}, args...), strings.NewReader(""), stdout, stderr); code != 0 {
			return fmt.Errorf("provisiond %s: exit code %d", strings.Join(args, " "), code)
		}
		return nil
	}
	commands := [][]string{
		{"image", "add", "--version", "v1.13.6", "--arch", "amd64", "--kernel", filepath.Join(dir, "kernel"), "--initramfs", filepath.Join(dir, "initramfs")},
		{"cluster", "create", "demo", "--endpoint", "https://[2001:db8:1::100]:6443", "--talos-version", "v1.13.6", "--install-disk", "/dev/vda"},
	}
	for i := range demoControlPlanes + demoWorkers {
		name, role := fmt.Sprintf("cp-%d", i+1), "controlplane"
		if i >= demoControlPlanes {
			name, role = fmt.Sprintf("w-%d", i-demoControlPlanes+1), "worker"
		}
		commands = append(commands, []string{"machine", "add", name, "--mac", fmt.Sprintf("52:54:00:00:00:%02x", i+1), "--cluster", "demo", "--role", role, "--address", fmt.Sprintf("2001:db8:1::1%02x", i)})
	}
	for _, args := range commands {
		if err := say(args...); err != nil {
			return err
		}
	}
	fmt.Fprintf(stdout, "\npower on: %d control planes and %d workers\n\n", demoControlPlanes, demoWorkers)
	rack := simulation{controlPlanes: demoControlPlanes, workers: demoWorkers, server: addrs.DHCPv6, link: netip.MustParseAddr("2001:db8:1::1"), fast: true}
	err := rack.run(ctx, proxy, stdout, func(ctx context.Context) error { return waitForCluster(ctx, server, stderr) })
	if err != nil {
		return err
	}
	fmt.Fprintln(stdout)
	for _, args := range [][]string{{"machine", "list"}, {"cluster", "list"}} {
		if err := say(args...); err != nil {
			return err
		}
	}
	fmt.Fprintln(stdout, "\nThe rack is up: five machines ready, one bootstrap.")
	return nil
}

// waitForCluster waits until the daemon, too, sees all machines ready.
func waitForCluster(ctx context.Context, server string, stderr io.Writer) error {
	for {
		var out bytes.Buffer
		if code := cli.Run(ctx, cli.New(version), []string{server, "machine", "list"}, strings.NewReader(""), &out, stderr); code != 0 {
			return fmt.Errorf("provisiond machine list: exit code %d", code)
		}
		if strings.Count(out.String(), " ready ") == demoControlPlanes+demoWorkers {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("not every machine became ready within %v:\n%s", demoWithin, out.String())
		case <-time.After(200 * time.Millisecond):
		}
	}
}

// demoConfig writes the demo's assets and config file, and reads it as serve
// would.
func demoConfig(dir, proxy string) (*daemon.Config, error) {
	files := map[string][]byte{
		"snponly.efi": racktest.Loader(racktest.AMD64), "kernel": racktest.Kernel(racktest.AMD64), "initramfs": racktest.Initramfs(),
		"provisiond.yaml": fmt.Appendf(nil, `data: %[1]s/data
address: ::1
ports: {dhcpv6: 0, tftp: 0, http: 0, https: 0, events: 0, kernelLog: 0}
api: {socket: %[1]s/provisiond.sock, listen: ""}
loaders: {amd64/snponly.efi: %[1]s/snponly.efi}
talos: {proxy: "%[2]s"}
subnets:
  - name: rack1
    prefix: 2001:db8:1::/64
    machines: 2001:db8:1::100-2001:db8:1::1ff
    pool: 2001:db8:1::f00-2001:db8:1::fff
    strangers: true
    gateway: fe80::1
    dns: [2001:db8:1::53]
    ntp: [2001:db8:1::123]
`, dir, proxy),
	}
	for name, data := range files {
		if err := os.WriteFile(filepath.Join(dir, name), data, 0o600); err != nil {
			return nil, err
		}
	}
	return daemon.ReadConfig(filepath.Join(dir, "provisiond.yaml"))
}
