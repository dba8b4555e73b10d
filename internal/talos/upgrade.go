package talos

import (
	"context"
	"fmt"
	"net/netip"
	"time"

	machineapi "github.com/siderolabs/talos/pkg/machinery/api/machine"
	"github.com/siderolabs/talos/pkg/machinery/config/configloader"
	"google.golang.org/grpc"

	"github.com/provisiond/provisiond/internal/inventory"
)

// upgradeTimeout bounds the call: Talos pulls the image before it answers.
const upgradeTimeout = 2 * time.Minute

// Upgrade has a machine install Talos from an installer image and reboot into it; its
// config and its data stay. Accepted means that Talos has begun. The call is made at
// most once; after an outcome of Unknown the machine's version tells, in time, whether
// it was taken. The error says why, for every outcome but Accepted.
//
// It is MachineService.Upgrade, deprecated in Talos 1.13 and gone in 1.18: its successor
// (LifecycleService) is not there in Talos 1.12
// (internal/app/machined/internal/server/v1alpha1/v1alpha1_server.go).
func (c *Client) Upgrade(ctx context.Context, cluster *inventory.Cluster, secrets *inventory.Secrets, addr netip.Addr, image string) (Outcome, error) {
	err := c.with(ctx, secrets, addr, func(conn *grpc.ClientConn) error {
		ctx, cancel := context.WithTimeout(ctx, upgradeTimeout)
		defer cancel()
		_, err := machineapi.NewMachineServiceClient(conn).Upgrade(ctx, &machineapi.UpgradeRequest{Image: image}) //nolint:staticcheck // see above
		return err
	})
	outcome := outcomeOf(err)
	if err != nil {
		err = fmt.Errorf("upgrading %s of cluster %s to %s: %w", addr, cluster.Name, image, err)
	}
	return outcome, err
}

// Installer is the installer image that the config names (machine.install.image).
func (c *Config) Installer() (string, error) {
	p, err := configloader.NewFromBytes(c.Bytes())
	if err != nil {
		return "", fmt.Errorf("loading a config: %w", err)
	}
	return p.Machine().Install().Image(), nil
}
