package racktest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"reflect"
	"time"

	"github.com/siderolabs/talos/pkg/machinery/api/common"
	machineapi "github.com/siderolabs/talos/pkg/machinery/api/machine"
	"github.com/siderolabs/talos/pkg/machinery/config"
	"github.com/siderolabs/talos/pkg/machinery/config/types/v1alpha1"
	configres "github.com/siderolabs/talos/pkg/machinery/resources/config"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// ErrReboot is what [Node.Run] returns when the node reboots into what is on its disk,
// because a config that it was given takes that, or an upgrade.
var ErrReboot = errors.New("Talos reboots into its disk")

// trial is a config that is tried.
type trial struct {
	back  config.Provider // what it is taken back to
	until time.Time
}

// ApplyConfiguration gives the node another config, in the order of Talos
// (internal/app/machined/internal/server/v1alpha1/v1alpha1_server.go). A node takes
// nothing from it while it runs: its certificates, addresses and sinks change with its
// next boot.
func (s *machineService) ApplyConfiguration(ctx context.Context, req *machineapi.ApplyConfigurationRequest) (*machineapi.ApplyConfigurationResponse, error) {
	n := s.node
	// Talos has no code for these, and its errors no source.
	cfg, err := loadConfig(ctx, req.GetData(), "via API", n.opts.Disk)
	if err != nil {
		return nil, err
	}
	if !cfg.CompleteForBoot() {
		return nil, errors.New("the applied machine configuration doesn't contain v1alpha1 config")
	}
	n.applying.Lock()
	defer n.applying.Unlock()
	n.mu.Lock()
	busy, active := n.order != nil || n.rebooting, n.active
	n.mu.Unlock()
	if busy {
		return nil, status.Error(codes.FailedPrecondition, "another sequence is in progress")
	}
	mode, details := req.GetMode(), "Applied configuration without a reboot"
	immediate := canApplyImmediate(active, cfg)
	switch mode {
	case machineapi.ApplyConfigurationRequest_REBOOT:
		details = "Applied configuration with a reboot"
	case machineapi.ApplyConfigurationRequest_AUTO:
		if mode = machineapi.ApplyConfigurationRequest_NO_REBOOT; immediate != nil {
			mode, details = machineapi.ApplyConfigurationRequest_REBOOT, "Applied configuration with a reboot: "+immediate.Error()
		}
	case machineapi.ApplyConfigurationRequest_STAGED:
		details = "Staged configuration to be applied after the next reboot"
	default:
		if immediate != nil {
			return nil, immediate
		}
		if mode == machineapi.ApplyConfigurationRequest_TRY {
			details = fmt.Sprintf("The config is applied in 'try' mode and will be automatically reverted back in %s", req.GetTryModeTimeout().AsDuration())
		}
	}
	if req.GetDryRun() {
		details = fmt.Sprintf("Dry run summary:\n%s (skipped in dry-run).\nConfig diff:\n%s", details, req.GetData())
	} else if err := n.take(context.WithoutCancel(ctx), mode, cfg, req); err != nil {
		return nil, err
	}
	return &machineapi.ApplyConfigurationResponse{Messages: []*machineapi.ApplyConfiguration{{Mode: mode, ModeDetails: details}}}, nil
}

// take stores a config and makes it the active one, as far as the mode says.
func (n *Node) take(ctx context.Context, mode machineapi.ApplyConfigurationRequest_Mode, cfg config.Provider, req *machineapi.ApplyConfigurationRequest) error {
	if mode != machineapi.ApplyConfigurationRequest_TRY {
		n.opts.Disk.setConfig(req.GetData())
	}
	return n.update(ctx, func() {
		switch mode {
		case machineapi.ApplyConfigurationRequest_NO_REBOOT:
			n.active, n.trial = cfg, nil
		case machineapi.ApplyConfigurationRequest_TRY:
			back := n.active
			if n.trial != nil {
				back = n.trial.back
			}
			n.active, n.trial = cfg, &trial{back, time.Now().Add(req.GetTryModeTimeout().AsDuration())}
		case machineapi.ApplyConfigurationRequest_REBOOT:
			n.rebooting = true
		}
	})
}

// canApplyImmediate is an error when a change of config takes a reboot: all but the
// fields that Talos follows while it runs (CanApplyImmediate in
// pkg/runtime/v1alpha1/v1alpha1_runtime.go; features as a whole here).
func canApplyImmediate(from, to config.Provider) error {
	rest := func(p config.Provider) v1alpha1.Config {
		c := p.RawV1Alpha1().DeepCopy()
		m := c.MachineConfig
		fixed := v1alpha1.MachineConfig{
			MachineType: m.MachineType, MachineToken: m.MachineToken, MachineDisks: m.MachineDisks, MachineFiles: m.MachineFiles, //nolint:staticcheck // deprecated, yet a config may have them
			MachineEnv: m.MachineEnv, MachineSystemDiskEncryption: m.MachineSystemDiskEncryption, MachineUdev: m.MachineUdev, //nolint:staticcheck // the same
			MachineSeccompProfiles: m.MachineSeccompProfiles, MachineBaseRuntimeSpecOverrides: m.MachineBaseRuntimeSpecOverrides,
		}
		return v1alpha1.Config{ConfigVersion: c.ConfigVersion, MachineConfig: &fixed}
	}
	if !reflect.DeepEqual(rest(from), rest(to)) {
		text, _ := to.Bytes() // Talos shows secrets here, too
		return fmt.Errorf("this config change can't be applied in immediate mode\ndiff:\n%s", text)
	}
	return nil
}

// Config is the config that the node runs.
func (n *Node) Config() []byte {
	n.mu.Lock()
	defer n.mu.Unlock()
	text, err := n.active.Bytes()
	if err != nil {
		return nil
	}
	return bytes.Clone(text)
}

// showConfig makes the active config the one that the resource API shows. The caller
// holds n.mu.
func (n *Node) showConfig(ctx context.Context) error {
	if n.active == n.shown {
		return nil
	}
	res := configres.NewMachineConfig(n.active)
	err := n.resources.Create(ctx, res)
	if n.shown != nil {
		old, get := n.resources.Get(ctx, res.Metadata())
		if get != nil {
			return get
		}
		res.Metadata().SetVersion(old.Metadata().Version())
		err = n.resources.Update(ctx, res)
	}
	if err != nil {
		return fmt.Errorf("storing the machine config: %w", ended(ctx, err))
	}
	n.shown = n.active
	return nil
}

// runTrials takes back each config that was tried, when its time is over.
func (n *Node) runTrials(ctx context.Context) error {
	for {
		var t *trial
		if err := n.wait(ctx, func() bool { t = n.trial; return t != nil }); err != nil {
			return err
		}
		trying, cancel := context.WithDeadline(ctx, t.until)
		replaced := n.wait(trying, func() bool { return n.trial != t }) == nil
		cancel()
		switch {
		case ctx.Err() != nil:
			return context.Cause(ctx)
		case replaced:
			continue
		}
		if err := n.update(ctx, func() {
			if n.trial == t {
				n.active, n.trial = t.back, nil
			}
		}); err != nil {
			return err
		}
	}
}

// runReboot is the reboot sequence, or that of an upgrade (v1alpha1_sequencer.go). stop ends all services
// and waits for that.
func (n *Node) runReboot(ctx context.Context, stop func()) error {
	if err := n.wait(ctx, func() bool { return n.rebooting }); err != nil {
		return err
	}
	sequence, stage := "reboot", machineapi.MachineStatusEvent_REBOOTING
	if n.upgrade != "" {
		sequence, stage = "upgrade", machineapi.MachineStatusEvent_UPGRADING
	}
	n.events.sequence(sequence, machineapi.SequenceEvent_START)
	if err := n.update(ctx, func() { n.stage = stage }); err != nil {
		return err
	}
	if err := sleep(ctx, n.opts.Timing.Stop); err != nil {
		return err
	}
	stop()
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	if n.upgrade != "" {
		if err := sleep(ctx, n.opts.Timing.Install); err != nil {
			return err
		}
		n.opts.Disk.upgraded(n.upgrade)
	}
	n.events.publish(&machineapi.SequenceEvent{Sequence: sequence, Action: machineapi.SequenceEvent_NOOP, Error: &common.Error{Code: common.Code_FATAL, Message: "unix.Reboot"}})
	return fmt.Errorf("%w: %w", ErrReboot, errKexec)
}
