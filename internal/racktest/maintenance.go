package racktest

import (
	"context"
	"crypto/sha256"
	"crypto/tls"
	stdx509 "crypto/x509"
	"encoding/base64"
	"errors"
	"fmt"
	"net"
	"slices"
	"sync"
	"time"

	cosiv1 "github.com/cosi-project/runtime/api/v1alpha1"
	"github.com/cosi-project/runtime/pkg/resource"
	"github.com/cosi-project/runtime/pkg/state"
	cosiserver "github.com/cosi-project/runtime/pkg/state/protobuf/server"
	"github.com/google/uuid"
	"github.com/siderolabs/crypto/x509"
	machineapi "github.com/siderolabs/talos/pkg/machinery/api/machine"
	"github.com/siderolabs/talos/pkg/machinery/config"
	"github.com/siderolabs/talos/pkg/machinery/constants"
	"github.com/siderolabs/talos/pkg/machinery/nethelpers"
	configres "github.com/siderolabs/talos/pkg/machinery/resources/config"
	"github.com/siderolabs/talos/pkg/machinery/resources/hardware"
	"github.com/siderolabs/talos/pkg/machinery/resources/network"
	"github.com/siderolabs/talos/pkg/machinery/resources/runtime"
	"github.com/siderolabs/talos/pkg/machinery/version"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/emptypb"
)

// MediumLine is the kernel line of Talos' own ISO, as far as it matters: it names no
// config.
const MediumLine = "talos.platform=metal console=tty0 init_on_alloc=1 slab_nomerge pti=on consoleblank=0"

// maintenance is what Talos does without a config: it opens its API with a certificate
// that nobody signed, and waits there to be given one
// (controllers/config/acquire.go, controllers/secrets/api.go).
func (s *system) maintenance(ctx context.Context) (config.Provider, []byte, error) {
	s.events.publish(&machineapi.TaskEvent{Task: "runningMaintenance", Action: machineapi.TaskEvent_START})
	s.events.status(machineapi.MachineStatusEvent_MAINTENANCE, true)
	if err := s.step(StepConfig, "Talos has no machine config and waits in maintenance mode"); err != nil {
		return nil, nil, err
	}
	cert, fingerprint, err := selfSigned(s.net.addresses())
	if err != nil {
		return nil, nil, err
	}
	m := &maintenanceService{system: s, given: make(chan struct{})}
	resources, err := s.describe(ctx)
	if err != nil {
		return nil, nil, err
	}
	ln, err := s.host.Listen(ctx, constants.ApidPort)
	if err != nil {
		return nil, nil, fmt.Errorf("apid: %w", ended(ctx, err))
	}
	server := grpc.NewServer(
		grpc.Creds(credentials.NewTLS(&tls.Config{MinVersion: tls.VersionTLS13, Certificates: []tls.Certificate{cert}})),
		grpc.MaxRecvMsgSize(constants.GRPCMaxMessageSize),
		grpc.UnaryInterceptor(func(ctx context.Context, req any, info *grpc.UnaryServerInfo, next grpc.UnaryHandler) (any, error) {
			// Everyone is os:reader, who may give a config as long as there is none.
			if adminOnly[info.FullMethod] && info.FullMethod != machineapi.MachineService_ApplyConfiguration_FullMethodName {
				return nil, status.Error(codes.PermissionDenied, "not authorized")
			}
			return next(ctx, req)
		}),
	)
	machineapi.RegisterMachineServiceServer(server, m)
	cosiv1.RegisterStateServer(server, cosiserver.NewState(state.Filter(resources, public)))
	s.kmsg.talos(`server certificate issued {"component": "controller-runtime", "controller": "runtime.MaintenanceServiceInformController", "fingerprint": %q}`, fingerprint)
	s.timeline.add(StepConfig, "the console prints the fingerprint %s", fingerprint)
	s.loaded(func(l *Loaded) { l.Fingerprint = fingerprint })
	if s.opts.Medium == "" && !s.opts.Patient {
		s.reach(Maintenance)
	}
	serving, stop := context.WithCancelCause(ctx)
	defer stop(nil)
	defer context.AfterFunc(ctx, func() { stop(context.Cause(ctx)) })()
	go func() {
		select {
		case <-m.given:
			stop(errStopping) // once its answer is out
		case <-serving.Done():
		}
	}()
	err = serveGRPC(serving, server, ln, time.Second)
	ln.Close()
	if ctx.Err() != nil || !errors.Is(err, errStopping) {
		return nil, nil, ended(ctx, err)
	}
	s.loaded(func(l *Loaded) { l.Fingerprint, l.Config = "", hash(m.text) })
	s.events.publish(&machineapi.TaskEvent{Task: "runningMaintenance", Action: machineapi.TaskEvent_STOP})
	s.timeline.add(StepConfig, "config via API: %d bytes", len(m.text))
	return m.cfg, m.text, s.activate(ctx, m.cfg)
}

// selfSigned is a certificate as Talos makes it for its maintenance mode, and the
// SHA-256 of its public key.
func selfSigned[A interface{ AsSlice() []byte }](addrs []A) (tls.Certificate, string, error) {
	authority, err := x509.NewSelfSignedCertificateAuthority()
	if err != nil {
		return tls.Certificate{}, "", err
	}
	var ips []net.IP
	for _, a := range addrs {
		ips = append(ips, a.AsSlice())
	}
	pair, err := x509.NewKeyPair(authority,
		x509.IPAddresses(ips), x509.CommonName("maintenance-service.talos.dev"), x509.NotAfter(time.Now().Add(certificateLife)),
		x509.KeyUsage(stdx509.KeyUsageDigitalSignature), x509.ExtKeyUsage([]stdx509.ExtKeyUsage{stdx509.ExtKeyUsageServerAuth}))
	if err != nil {
		return tls.Certificate{}, "", err
	}
	leaf, err := stdx509.ParseCertificate(pair.Certificate.Certificate[0])
	if err != nil {
		return tls.Certificate{}, "", err
	}
	sum := sha256.Sum256(leaf.RawSubjectPublicKeyInfo)
	return *pair.Certificate, base64.StdEncoding.EncodeToString(sum[:]), nil
}

// describe is what the machine says of itself there.
func (s *system) describe(ctx context.Context) (state.State, error) {
	now := runtime.NewMachineStatus()
	now.TypedSpec().Stage, now.TypedSpec().Status.Ready = runtime.MachineStageMaintenance, true
	info := hardware.NewSystemInformation(hardware.SystemInformationID)
	info.TypedSpec().SerialNumber = s.opts.Serial
	if s.opts.UUID != uuid.Nil {
		info.TypedSpec().UUID = s.opts.UUID.String()
	}
	security := runtime.NewSecurityStateSpec(runtime.NamespaceName)
	security.TypedSpec().SecureBoot = s.opts.SecureBoot
	all := []resource.Resource{now, info, security}
	lo := network.NewLinkStatus(network.NamespaceName, "lo")
	lo.TypedSpec().Type = nethelpers.LinkLoopbck
	dummy := network.NewLinkStatus(network.NamespaceName, "dummy0")
	dummy.TypedSpec().Type, dummy.TypedSpec().Kind, dummy.TypedSpec().HardwareAddr = nethelpers.LinkEther, "dummy", nethelpers.HardwareAddr{0x0e, 1, 2, 3, 4, 5}
	all = append(all, lo, dummy)
	macs := s.opts.MACs
	if s.opts.Pretends != nil {
		macs = s.opts.Pretends
	}
	for i, mac := range macs {
		nic := network.NewLinkStatus(network.NamespaceName, fmt.Sprintf("enp%ds0", i+1))
		nic.TypedSpec().Type = nethelpers.LinkEther
		nic.TypedSpec().HardwareAddr, nic.TypedSpec().PermanentAddr = nethelpers.HardwareAddr(mac), nethelpers.HardwareAddr(mac)
		all = append(all, nic)
	}
	resources := newResources()
	for _, r := range all {
		if err := resources.Create(ctx, r); err != nil {
			return nil, ended(ctx, err)
		}
	}
	return resources, nil
}

// public lets everyone read what is no secret.
func public(_ context.Context, access state.Access) error {
	if !access.Verb.Readonly() || access.ResourceType == configres.MachineConfigType {
		return status.Error(codes.PermissionDenied, "not authorized")
	}
	return nil
}

// maintenanceService answers the calls that can be made without a config.
type maintenanceService struct {
	machineapi.UnimplementedMachineServiceServer
	system *system

	mu    sync.Mutex
	given chan struct{} // closed once there is a config
	cfg   config.Provider
	text  []byte
}

// Version tells the Talos version and the architecture.
func (m *maintenanceService) Version(context.Context, *emptypb.Empty) (*machineapi.VersionResponse, error) {
	v := version.NewVersion()
	v.Arch = m.system.opts.Arch
	return &machineapi.VersionResponse{Messages: []*machineapi.Version{{Version: v, Platform: &machineapi.PlatformInfo{Name: "metal", Mode: "metal"}}}}, nil
}

// Bootstrap and Reset exist, and are the administrator's; see the interceptor.

// ApplyConfiguration takes the first complete config, in the order of Talos.
func (m *maintenanceService) ApplyConfiguration(ctx context.Context, req *machineapi.ApplyConfigurationRequest) (*machineapi.ApplyConfigurationResponse, error) {
	if !m.mu.TryLock() {
		return nil, status.Error(codes.FailedPrecondition, "another apply configuration is already in progress")
	}
	defer m.mu.Unlock()
	if m.cfg != nil {
		return nil, status.Error(codes.PermissionDenied, "not authorized")
	}
	cfg, err := loadConfig(ctx, req.GetData(), "via API", m.system.disk)
	if err != nil {
		return nil, status.Error(codes.InvalidArgument, err.Error())
	}
	answer := &machineapi.ApplyConfigurationResponse{Messages: []*machineapi.ApplyConfiguration{{
		Mode: machineapi.ApplyConfigurationRequest_NO_REBOOT, ModeDetails: "Applied configuration without a reboot",
	}}}
	if req.GetDryRun() || !cfg.CompleteForBoot() {
		return answer, nil
	}
	m.cfg, m.text = cfg, slices.Clone(req.GetData())
	close(m.given)
	return answer, nil
}
