package racktest

import (
	"bytes"
	"errors"
	"testing"

	machineapi "github.com/siderolabs/talos/pkg/machinery/api/machine"
	"github.com/siderolabs/talos/pkg/machinery/config/machine"
)

// An upgrade reboots the node into another Talos, and keeps its config and its data.
func TestUpgrade(t *testing.T) {
	config := machineConfig(t, newBundle(), machine.TypeControlPlane)
	n, disk, c := installedNode(t, NewFabric(), config)
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
	if err := n.ended(); !errors.Is(err, ErrReboot) || !errors.Is(err, errKexec) {
		t.Errorf("Run returned %v", err)
	}
	if disk.Version() != "v1.13.7" || !bytes.Equal(disk.Config(), config) || disk.Etcd() != "some cluster" || disk.Installs() != 1 || disk.Wipes() != 0 {
		t.Errorf("Talos %q, etcd %q, %d installs, %d wipes", disk.Version(), disk.Etcd(), disk.Installs(), disk.Wipes())
	}
	if disk.Install(config); disk.Version() != "" {
		t.Error("installed anew, it has the version of before")
	}
}
