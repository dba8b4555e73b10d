package racktest

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/google/uuid"
	"github.com/siderolabs/talos/pkg/machinery/api/common"
	machineapi "github.com/siderolabs/talos/pkg/machinery/api/machine"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// ErrReset is what [Node.Run] returns when a Reset call has done its work: the
// disk is wiped as far as it was to be, and the machine reboots or is off.
var ErrReset = errors.New("Talos was reset")

var (
	// errHalt switches the machine off.
	errHalt = errors.New("Talos powers off")
	// errStopping ends the services of a node that goes down in good order.
	errStopping = errors.New("Talos stops its services")
)

// resetOrder is a Reset call that was accepted.
type resetOrder struct {
	*machineapi.ResetRequest
	actor string
}

// partitions are the labels to wipe; none: the whole disk.
func (o *resetOrder) partitions() []string {
	var labels []string
	for _, p := range o.GetSystemPartitionsToWipe() {
		if p.GetWipe() {
			labels = append(labels, p.GetLabel())
		}
	}
	return labels
}

// Reset answers before the work (v1alpha1_server.go Reset).
func (s *machineService) Reset(ctx context.Context, req *machineapi.ResetRequest) (*machineapi.ResetResponse, error) {
	n := s.node
	order := &resetOrder{req, uuid.NewString()}
	if len(req.GetUserDisksToWipe()) > 0 && req.GetMode() == machineapi.ResetRequest_SYSTEM_DISK {
		return nil, status.Error(codes.Unknown, "reset failed: invalid input, wipe mode SYSTEM_DISK doesn't support UserDisksToWipe parameter")
	}
	if err := n.opts.Disk.locate(order.partitions()); err != nil {
		return nil, status.Error(codes.Unknown, "failed to reset: "+err.Error())
	}
	taken := false
	err := n.update(ctx, func() {
		if taken = n.order == nil && !n.rebooting; taken {
			n.order = order
		}
	})
	switch {
	case !taken:
		return nil, status.Error(codes.FailedPrecondition, "another sequence is in progress")
	case err != nil:
		return nil, status.FromContextError(err).Err()
	}
	return &machineapi.ResetResponse{Messages: []*machineapi.Reset{{ActorId: order.actor}}}, nil
}

// runReset carries out one reset after the other, until one succeeds. stop ends
// all services, the API with them, and waits for that.
func (n *Node) runReset(ctx context.Context, stop func()) error {
	for {
		if err := n.wait(ctx, func() bool { return n.order != nil }); err != nil {
			return err
		}
		n.mu.Lock()
		order, stage, booted := n.order, n.stage, n.booted
		n.mu.Unlock()
		if !booted {
			n.events.sequence("boot", machineapi.SequenceEvent_STOP)
			n.events.publish(&machineapi.SequenceEvent{
				Sequence: "boot", Action: machineapi.SequenceEvent_NOOP,
				Error: &common.Error{Code: common.Code_CANCELED, Message: "sequence failed: context canceled"},
			})
			// The end of the boot sequence is taken for its success.
			if err := n.update(ctx, func() { n.stage = machineapi.MachineStatusEvent_RUNNING }); err != nil {
				return err
			}
		}
		n.events.act(order.actor)
		failed, err := n.reset(ctx, order, stop)
		if failed == nil {
			return err
		}
		n.events.sequenceError("reset", fmt.Sprintf("sequence failed: error running phase 3 in reset sequence: task 1/1: failed, 1 error(s) occurred:\n\t%s", failed))
		n.events.act("")
		if err := n.update(ctx, func() { n.stage, n.order = stage, nil }); err != nil {
			return err
		}
	}
}

// reset is the Reset sequence (v1alpha1_sequencer.go). One that failed has done
// nothing to the disk.
func (n *Node) reset(ctx context.Context, order *resetOrder, stop func()) (failed, err error) {
	e, t := n.events, n.opts.Timing
	e.sequence("reset", machineapi.SequenceEvent_START)
	if err := n.update(ctx, func() { n.stage = machineapi.MachineStatusEvent_RESETTING }); err != nil {
		return nil, err
	}
	e.task("cleanup", "stopAllPods")
	e.task("dbus", "stopDBus")
	if order.GetGraceful() {
		e.taskStart("leave", "leaveEtcd")
		failed := n.leaveEtcd()
		e.taskStop("leave", "leaveEtcd")
		if failed != nil {
			return failed, nil
		}
	}
	e.task("preReset", "sendResetSignal")
	if err := sleep(ctx, t.Stop); err != nil {
		return nil, err
	}
	e.taskStart("stopServices", "stopServicesForUpgrade")
	stop() // from here on nothing but us writes to the disk
	if err := ctx.Err(); err != nil {
		return nil, context.Cause(ctx)
	}
	for _, s := range n.services {
		if err := n.set(ctx, s.id, machineapi.ServiceStateEvent_FINISHED, "Service finished successfully", false); err != nil {
			return nil, err
		}
	}
	e.taskStop("stopServices", "stopServicesForUpgrade")
	e.task("umountEphemeral", "unmountEphemeralPartition")
	e.task("stopEverything", "stopAllServices")
	e.task("forceCleanup", "forceCleanup")
	e.taskStart("reset", "resetSystemDisk")
	if err := sleep(ctx, t.Reset); err != nil {
		return nil, err
	}
	next := errReboot
	labels := order.partitions()
	switch {
	case order.GetMode() == machineapi.ResetRequest_USER_DISKS:
		next = errKexec
	case len(labels) > 0:
		if err := n.opts.Disk.wipePartitions(labels); err != nil {
			return nil, err
		}
		if n.opts.Disk.Installed() {
			next = errKexec
		}
	default:
		n.opts.Disk.Wipe()
	}
	if !order.GetReboot() {
		next = errHalt
	}
	// The last one to arrive: the network is gone before the sequence's end.
	e.taskStop("reset", "resetSystemDisk")
	return nil, fmt.Errorf("%w: %w", ErrReset, next)
}

// leaveEtcd is what a graceful reset adds. Where etcd does not run there is
// nothing to leave. Where too few members run etcd does not let one go; that
// includes the last one, for which a reset must not be graceful. Talos tries for
// up to five minutes, this node once (internal/pkg/etcd LeaveCluster).
func (n *Node) leaveEtcd() error {
	cluster, id := n.opts.Disk.etcdData()
	n.mu.Lock()
	running := slices.ContainsFunc(n.services, func(s *service) bool {
		return s.id == "etcd" && s.state == machineapi.ServiceStateEvent_RUNNING
	})
	n.mu.Unlock()
	if cluster == "" || !running {
		return nil
	}
	if err := n.opts.Peers.Remove(cluster, id); err != nil {
		return fmt.Errorf("failed to leave cluster: %w", err)
	}
	n.opts.Disk.setEtcd("", 0)
	return nil
}
