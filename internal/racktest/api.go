package racktest

import (
	"context"
	"errors"
	"fmt"
	"net"
	"strings"
	"time"

	cosiv1 "github.com/cosi-project/runtime/api/v1alpha1"
	"github.com/cosi-project/runtime/pkg/state"
	cosiserver "github.com/cosi-project/runtime/pkg/state/protobuf/server"
	machineapi "github.com/siderolabs/talos/pkg/machinery/api/machine"
	"github.com/siderolabs/talos/pkg/machinery/constants"
	configres "github.com/siderolabs/talos/pkg/machinery/resources/config"
	"github.com/siderolabs/talos/pkg/machinery/role"
	"github.com/siderolabs/talos/pkg/machinery/version"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/peer"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/emptypb"
)

// runAPI is apid: it opens port 50000 once it has certificates.
func (n *Node) runAPI(ctx context.Context) error {
	if err := n.set(ctx, "apid", machineapi.ServiceStateEvent_STARTING, "Starting service", false); err != nil {
		return err
	}
	waiting := `Waiting for service "containerd" to be "up", api certificates`
	if err := n.set(ctx, "apid", machineapi.ServiceStateEvent_WAITING, waiting, false); err != nil {
		return err
	}
	tlsConfig, err := n.apiCertificate(ctx)
	if err != nil {
		return err
	}
	if err := sleep(ctx, n.opts.Timing.API); err != nil {
		return err
	}
	if err := n.opts.step(StepAPI, "apid opens port %d", constants.ApidPort); err != nil {
		return err
	}
	ln, err := n.opts.Network.Listen(ctx, constants.ApidPort)
	if err != nil {
		return fmt.Errorf("apid: %w", ended(ctx, err))
	}
	server := grpc.NewServer(
		grpc.Creds(credentials.NewTLS(tlsConfig)),
		grpc.MaxRecvMsgSize(constants.GRPCMaxMessageSize),
		grpc.UnaryInterceptor(func(ctx context.Context, req any, info *grpc.UnaryServerInfo, next grpc.UnaryHandler) (any, error) {
			if err := authorize(ctx, info.FullMethod); err != nil {
				return nil, err
			}
			return next(ctx, req)
		}),
		grpc.StreamInterceptor(func(srv any, stream grpc.ServerStream, info *grpc.StreamServerInfo, next grpc.StreamHandler) error {
			if err := authorize(stream.Context(), info.FullMethod); err != nil {
				return err
			}
			return next(srv, stream)
		}),
	)
	machineapi.RegisterMachineServiceServer(server, &machineService{node: n})
	cosiv1.RegisterStateServer(server, cosiserver.NewState(state.Filter(n.resources, readable)))
	if err := n.up(ctx, "apid"); err != nil {
		return err
	}
	return serveGRPC(ctx, server, ln, n.opts.Timing.Stop)
}

// serveGRPC serves until ctx ends, then breaks all connections, as a machine
// does that goes down. In good order it lets calls end first, for a while.
func serveGRPC(ctx context.Context, server *grpc.Server, ln net.Listener, grace time.Duration) error {
	stop := context.AfterFunc(ctx, func() {
		if errors.Is(context.Cause(ctx), errStopping) {
			defer time.AfterFunc(grace, server.Stop).Stop()
			server.GracefulStop()
			return
		}
		server.Stop()
	})
	defer stop()
	err := server.Serve(ln)
	if ctx.Err() != nil {
		server.Stop() // waits for what AfterFunc began
		return context.Cause(ctx)
	}
	return err
}

// readable lets resources be read, those with secrets by os:admin alone
// (pkg/machinery/resources, Sensitivity of a resource's definition).
func readable(ctx context.Context, access state.Access) error {
	switch {
	case !access.Verb.Readonly():
		return status.Error(codes.PermissionDenied, "the resource API is read-only")
	case access.ResourceType == configres.MachineConfigType:
		return allow(ctx, role.MakeSet(role.Admin))
	}
	return nil
}

// adminOnly are the methods that os:reader and os:operator may not call.
var adminOnly = map[string]bool{
	machineapi.MachineService_Bootstrap_FullMethodName:            true,
	machineapi.MachineService_Reset_FullMethodName:                true,
	machineapi.MachineService_ApplyConfiguration_FullMethodName:   true,
	machineapi.MachineService_Upgrade_FullMethodName:              true,
	machineapi.MachineService_EtcdRemoveMemberByID_FullMethodName: true,
	machineapi.MachineService_EtcdLeaveCluster_FullMethodName:     true,
}

func authorize(ctx context.Context, method string) error {
	if adminOnly[method] {
		return allow(ctx, role.MakeSet(role.Admin))
	}
	return allow(ctx, role.MakeSet(role.Admin, role.Operator, role.Reader))
}

// allow reads the roles in the client's certificate, which TLS has verified
// already (internal/app/apid authorizes by its organization).
func allow(ctx context.Context, allowed role.Set) error {
	p, ok := peer.FromContext(ctx)
	if !ok {
		return status.Error(codes.PermissionDenied, "no peer")
	}
	info, ok := p.AuthInfo.(credentials.TLSInfo)
	if !ok || len(info.State.PeerCertificates) == 0 {
		return status.Error(codes.PermissionDenied, "no client certificate")
	}
	roles, _ := role.Parse(info.State.PeerCertificates[0].Subject.Organization)
	if !roles.IncludesAny(allowed) {
		return status.Error(codes.PermissionDenied, "not authorized")
	}
	return nil
}

// machineService answers the calls that provisioning makes; all others are
// Unimplemented.
type machineService struct {
	machineapi.UnimplementedMachineServiceServer
	node *Node
}

// Version tells the Talos version.
func (s *machineService) Version(context.Context, *emptypb.Empty) (*machineapi.VersionResponse, error) {
	v := version.NewVersion()
	if upgraded := s.node.opts.Disk.Version(); upgraded != "" {
		v.Tag = upgraded
	}
	return &machineapi.VersionResponse{Messages: []*machineapi.Version{{
		Version:  v,
		Platform: &machineapi.PlatformInfo{Name: "metal", Mode: "metal"},
	}}}, nil
}

// ServiceList lists the services with their states, such as etcd "Preparing".
func (s *machineService) ServiceList(context.Context, *emptypb.Empty) (*machineapi.ServiceListResponse, error) {
	s.node.mu.Lock()
	defer s.node.mu.Unlock()
	list := &machineapi.ServiceList{}
	for _, v := range s.node.services {
		name := v.state.String()
		list.Services = append(list.Services, &machineapi.ServiceInfo{
			Id:     v.id,
			State:  name[:1] + strings.ToLower(name[1:]),
			Events: &machineapi.ServiceEvents{Events: []*machineapi.ServiceEvent{{Msg: v.message, State: name[:1] + strings.ToLower(name[1:])}}},
			Health: v.health,
		})
	}
	return &machineapi.ServiceListResponse{Messages: []*machineapi.ServiceList{list}}, nil
}

// Bootstrap decides in the order of Talos
// (internal/app/machined/internal/server/v1alpha1/v1alpha1_server.go). Nothing
// in it looks at the rest of the cluster.
func (s *machineService) Bootstrap(ctx context.Context, _ *machineapi.BootstrapRequest) (*machineapi.BootstrapResponse, error) {
	n := s.node
	n.mu.Lock()
	cri := n.healthy("cri")
	n.mu.Unlock()
	if !cri {
		return nil, status.Error(codes.FailedPrecondition, "bootstrap is not available yet")
	}
	if !n.control {
		return nil, status.Error(codes.Unimplemented, "bootstrap is only available on control plane nodes")
	}
	timeCtx, cancel := context.WithTimeout(ctx, n.opts.Timing.TimeWait)
	defer cancel()
	if n.wait(timeCtx, func() bool { return n.timeSynced }) != nil {
		return nil, status.Error(codes.FailedPrecondition, "time is not in sync yet")
	}
	accepted := false
	err := n.update(ctx, func() {
		if accepted = n.opts.Disk.Etcd() == ""; accepted {
			n.bootstraps++
		}
	})
	switch {
	case !accepted:
		return nil, status.Error(codes.AlreadyExists, "etcd data directory is not empty")
	case err != nil:
		return nil, status.FromContextError(err).Err()
	}
	return &machineapi.BootstrapResponse{Messages: []*machineapi.Bootstrap{{}}}, nil
}

// EtcdMemberList hangs until etcd runs and has quorum, or until the caller's
// deadline.
func (s *machineService) EtcdMemberList(ctx context.Context, _ *machineapi.EtcdMemberListRequest) (*machineapi.EtcdMemberListResponse, error) {
	list := &machineapi.EtcdMembers{}
	err := s.etcd(ctx, "etcd member list", func(etcd string) error {
		members, err := s.node.opts.Peers.Membership(ctx, s.node.cluster, etcd)
		for _, m := range members {
			list.LegacyMembers = append(list.LegacyMembers, m.Name)
			list.Members = append(list.Members, &machineapi.EtcdMember{
				Id: m.ID, Hostname: m.Name, IsLearner: m.Learner,
				PeerUrls:   []string{fmt.Sprintf("https://[%s]:2380", m.Address)},
				ClientUrls: []string{fmt.Sprintf("https://[%s]:2379", m.Address)},
			})
		}
		return err
	})
	if err != nil {
		return nil, err
	}
	return &machineapi.EtcdMemberListResponse{Messages: []*machineapi.EtcdMembers{list}}, nil
}

// EtcdRemoveMemberByID removes a member; like [machineService.EtcdMemberList] it
// hangs without quorum.
func (s *machineService) EtcdRemoveMemberByID(ctx context.Context, req *machineapi.EtcdRemoveMemberByIDRequest) (*machineapi.EtcdRemoveMemberByIDResponse, error) {
	err := s.etcd(ctx, "etcd remove member", func(etcd string) error {
		return s.node.opts.Peers.Remove(etcd, req.GetMemberId())
	})
	if err != nil {
		return nil, err
	}
	return &machineapi.EtcdRemoveMemberByIDResponse{Messages: []*machineapi.EtcdRemoveMemberByID{{}}}, nil
}

// etcd makes a call on the node's etcd once that has quorum.
func (s *machineService) etcd(ctx context.Context, what string, call func(etcd string) error) error {
	n := s.node
	if !n.control {
		return status.Error(codes.Unimplemented, what+" is only available on control plane nodes")
	}
	for {
		if err := n.wait(ctx, func() bool { return n.healthy("etcd") }); err != nil {
			return status.FromContextError(err).Err()
		}
		err := call(n.opts.Disk.Etcd())
		switch {
		case err == nil:
			return nil
		case errors.Is(err, errNoMember):
			return status.Error(codes.NotFound, err.Error())
		case errors.Is(err, errTooFew):
			return status.Error(codes.FailedPrecondition, err.Error())
		case !errors.Is(err, errNoQuorum):
			return status.Error(codes.Unknown, err.Error())
		}
		if err := sleep(ctx, max(n.opts.Timing.Poll, time.Millisecond)); err != nil {
			return status.FromContextError(ctx.Err()).Err()
		}
	}
}
