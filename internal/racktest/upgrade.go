package racktest

import (
	"context"
	"errors"
	"strings"

	machineapi "github.com/siderolabs/talos/pkg/machinery/api/machine"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// Upgrade answers before the work (v1alpha1_server.go Upgrade). The image's tag is the
// version that it brings; nothing is pulled.
func (s *machineService) Upgrade(ctx context.Context, req *machineapi.UpgradeRequest) (*machineapi.UpgradeResponse, error) {
	n := s.node
	at := strings.LastIndex(req.GetImage(), ":v")
	if at < 0 {
		return nil, errors.New("error validating installer image: " + req.GetImage())
	}
	taken := false
	err := n.update(context.WithoutCancel(ctx), func() {
		if taken = n.order == nil && !n.rebooting; taken {
			n.rebooting, n.upgrade = true, req.GetImage()[at+1:]
		}
	})
	switch {
	case !taken:
		return nil, status.Error(codes.FailedPrecondition, "another sequence is in progress")
	case err != nil:
		return nil, status.FromContextError(err).Err()
	}
	return &machineapi.UpgradeResponse{Messages: []*machineapi.Upgrade{{Ack: "Upgrade request received"}}}, nil
}

// Version is the Talos that was put on the disk by an upgrade; empty: the one that the
// machine was installed with.
func (d *Disk) Version() string {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.version
}

// upgraded replaces Talos on the disk, and keeps STATE and EPHEMERAL.
func (d *Disk) upgraded(version string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.version = version
}
