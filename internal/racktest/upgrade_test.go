package racktest

import (
	"bytes"
	"context"
	"errors"
	"net/netip"
	"testing"

	machineapi "github.com/siderolabs/talos/pkg/machinery/api/machine"
	"github.com/siderolabs/talos/pkg/machinery/config/machine"
)

// An upgrade reboots the node into another Talos, and keeps its config and its data.
func TestUpgrade(t *testing.T) {
	f := NewFabric()
	host := f.NewHost("cp-1")
	defer host.Close()
	addr := netip.MustParseAddr(endpointHost)
	host.Claim(addr)
	config, disk := machineConfig(t, newBundle(), machine.TypeControlPlane), &Disk{}
	disk.Install(config)
	disk.setEtcd("some cluster", 7)
	n, err := NewNode(NodeOptions{Config: config, Hostname: "cp-1", Addresses: []netip.Addr{addr}, Network: host, Peers: &Registry{}, Disk: disk, Timing: FastTiming()})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	done := make(chan error, 1)
	go func() { done <- n.Run(ctx) }()
	<-n.Ready()
	c := dial(t, f, newBundle(), addr)
	call := func(image string) error {
		_, err := c.MachineClient.Upgrade(t.Context(), &machineapi.UpgradeRequest{Image: image}) //nolint:staticcheck // deprecated, and used
		return err
	}
	if err := call("reg/installer"); err == nil || disk.Version() != "" {
		t.Errorf("an image without a version: %v, %q", err, disk.Version())
	}
	if err := call("reg/installer:v1.13.7"); err != nil {
		t.Fatal(err)
	}
	if err := <-done; !errors.Is(err, ErrReboot) || !errors.Is(err, errKexec) {
		t.Errorf("Run returned %v", err)
	}
	if disk.Version() != "v1.13.7" || !bytes.Equal(disk.Config(), config) || disk.Etcd() != "some cluster" || disk.Installs() != 1 || disk.Wipes() != 0 {
		t.Errorf("Talos %q, etcd %q, %d installs, %d wipes", disk.Version(), disk.Etcd(), disk.Installs(), disk.Wipes())
	}
	if disk.Install(config); disk.Version() != "" {
		t.Error("installed anew, it has the version of before")
	}
}
