package talos

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net/netip"
	"strings"

	cosiv1alpha1 "github.com/cosi-project/runtime/api/v1alpha1"
	"github.com/cosi-project/runtime/pkg/safe"
	"github.com/cosi-project/runtime/pkg/state"
	"github.com/cosi-project/runtime/pkg/state/protobuf/client"
	machineapi "github.com/siderolabs/talos/pkg/machinery/api/machine"
	"github.com/siderolabs/talos/pkg/machinery/config/configloader"
	"github.com/siderolabs/talos/pkg/machinery/config/encoder"
	"github.com/siderolabs/talos/pkg/machinery/constants"
	"github.com/siderolabs/talos/pkg/machinery/resources/config"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/provisiond/provisiond/internal/inventory"
)

// RunningConfig reads the config that a machine runs, as it was given, with all its
// secrets: not one that is staged for its next boot. An error wraps ErrNotReached when
// no call was made. The machine has none in the first moments of a boot, which is
// inventory.ErrNotFound.
func (c *Client) RunningConfig(ctx context.Context, cluster *inventory.Cluster, secrets *inventory.Secrets, addr netip.Addr) ([]byte, error) {
	var text []byte
	err := c.with(ctx, secrets, addr, func(conn *grpc.ClientConn) error {
		ctx, cancel := context.WithTimeout(ctx, c.timeout)
		defer cancel()
		st := state.WrapCore(client.NewAdapter(cosiv1alpha1.NewStateClient(conn)))
		res, err := safe.StateGetByID[*config.MachineConfig](ctx, st, config.ActiveID)
		if state.IsNotFoundError(err) {
			return inventory.ErrNotFound
		}
		if err != nil {
			return err
		}
		text, err = res.Provider().Bytes()
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("reading the config of %s of cluster %s: %w", addr, cluster.Name, err)
	}
	return text, nil
}

// Runs reports whether what a machine runs is this config: the same bytes, or the same
// documents, should Talos have written them anew.
func (c *Config) Runs(running []byte) bool {
	text := c.Bytes()
	if bytes.Equal(text, running) {
		return true
	}
	ours, err := plain(text)
	if err != nil {
		return false
	}
	theirs, err := plain(running)
	return err == nil && bytes.Equal(ours, theirs)
}

// plain is a config in machinery's own notation.
func plain(text []byte) ([]byte, error) {
	p, err := configloader.NewFromBytes(text)
	if err != nil {
		return nil, err
	}
	return p.EncodeBytes(encoder.WithComments(encoder.CommentsDisabled))
}

// applyModes are those of Talos, but for one that reboots always.
var applyModes = map[inventory.ConfigMode]machineapi.ApplyConfigurationRequest_Mode{
	inventory.ConfigAuto:     machineapi.ApplyConfigurationRequest_AUTO,
	inventory.ConfigNoReboot: machineapi.ApplyConfigurationRequest_NO_REBOOT,
	inventory.ConfigStaged:   machineapi.ApplyConfigurationRequest_STAGED,
	inventory.ConfigTry:      machineapi.ApplyConfigurationRequest_TRY,
}

// ApplyOptions say how a config is applied.
type ApplyOptions struct {
	Mode   inventory.ConfigMode // empty: auto
	DryRun bool                 // say what would happen, and change nothing
}

// ApplyConfig gives a running machine a whole config in place of the one it has.
// details are Talos' words on what it did or would do, without the difference that it
// adds to them, which holds secrets. The call is made at most once; after an outcome of
// Unknown [Client.RunningConfig] tells whether the config was taken, unless it was
// staged. The error says why, for every outcome but Accepted
// (internal/app/machined/internal/server/v1alpha1/v1alpha1_server.go).
func (c *Client) ApplyConfig(ctx context.Context, cluster *inventory.Cluster, secrets *inventory.Secrets, addr netip.Addr, text []byte, o ApplyOptions) (details string, outcome Outcome, err error) {
	if o.Mode == "" {
		o.Mode = inventory.ConfigAuto
	}
	mode, ok := applyModes[o.Mode]
	if !ok {
		return "", Refused, fmt.Errorf("%q is no mode to apply a config in", o.Mode)
	}
	req := &machineapi.ApplyConfigurationRequest{Data: text, Mode: mode, DryRun: o.DryRun}
	if o.Mode == inventory.ConfigTry {
		req.TryModeTimeout = durationpb.New(constants.ConfigTryTimeout)
	}
	err = c.with(ctx, secrets, addr, func(conn *grpc.ClientConn) error {
		details, err = c.applyOn(ctx, conn, req)
		return err
	})
	outcome = applyOutcome(err)
	if err != nil {
		err = fmt.Errorf("applying a config to %s of cluster %s: %w", addr, cluster.Name, shortened(err))
	}
	return details, outcome, err
}

// applyOn makes the call.
func (c *Client) applyOn(ctx context.Context, conn *grpc.ClientConn, req *machineapi.ApplyConfigurationRequest) (details string, err error) {
	ctx, cancel := context.WithTimeout(ctx, 2*c.timeout) // it looks at disks and writes to one
	defer cancel()
	resp, err := machineapi.NewMachineServiceClient(conn).ApplyConfiguration(ctx, req)
	for _, m := range resp.GetMessages() {
		details = strings.Join(append([]string{withoutDiff(m.GetModeDetails())}, m.GetWarnings()...), "\n")
	}
	return details, err
}

// applyOutcome is outcomeOf for a config. Talos has no code for its refusals; one is
// known by its words, and comes before anything is stored.
func applyOutcome(err error) Outcome {
	if code := status.Code(err); code == codes.InvalidArgument || code == codes.Unknown && strings.Contains(err.Error(), "can't be applied in immediate mode") {
		return Refused
	}
	return outcomeOf(err)
}

// withoutDiff cuts off the difference of two configs that Talos adds to its words.
func withoutDiff(s string) string {
	for _, mark := range []string{"\ndiff:", "\nConfig diff:"} {
		s, _, _ = strings.Cut(s, mark)
	}
	return strings.TrimSpace(s)
}

// shortened is an error without such a difference. One that carries none is kept as it
// is, with what it wraps.
func shortened(err error) error {
	s, ok := status.FromError(err)
	if !ok || withoutDiff(s.Message()) == s.Message() || errors.Is(err, ErrNotReached) {
		return err
	}
	return status.Error(s.Code(), withoutDiff(s.Message()))
}
