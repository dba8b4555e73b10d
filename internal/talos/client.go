package talos

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"

	cosiv1alpha1 "github.com/cosi-project/runtime/api/v1alpha1"
	"github.com/cosi-project/runtime/pkg/safe"
	"github.com/cosi-project/runtime/pkg/state"
	"github.com/cosi-project/runtime/pkg/state/protobuf/client"
	"github.com/rs/zerolog"
	machineapi "github.com/siderolabs/talos/pkg/machinery/api/machine"
	"github.com/siderolabs/talos/pkg/machinery/constants"
	"github.com/siderolabs/talos/pkg/machinery/resources/runtime"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/emptypb"

	"github.com/provisiond/provisiond/internal/inventory"
)

// ErrForeignCA means that the server's certificate was signed by another CA
// than the cluster's: the machine belongs to another cluster or to an earlier
// life of this one, waits in maintenance mode, or is not the machine at all.
var ErrForeignCA = errors.New("the certificate was not signed by the cluster's CA")

// ErrNotReached means that no call left: there was no connection to make it on.
var ErrNotReached = errors.New("the machine's API was not reached")

// callTimeout bounds one call by default. Some hang for ever, such as listing
// etcd's members before there is an etcd.
const callTimeout = 5 * time.Second

// ClientOptions configure a [Client].
type ClientOptions struct {
	// Proxy is the host:port of an HTTP proxy that takes CONNECT. Empty means
	// direct connections.
	Proxy string
	// Timeout bounds each call and the dial before it. Zero means 5 s.
	Timeout time.Duration
}

// Client calls the API of Talos machines as os:admin. It keeps no connections,
// because a machine is asked seldom and reboots often. It is safe for
// concurrent use.
type Client struct {
	proxy   string
	timeout time.Duration
	port    uint16
	logins  *lru[*login]
	log     zerolog.Logger
}

// NewClient returns a Client. It does no I/O.
func NewClient(o ClientOptions, log zerolog.Logger) *Client {
	if o.Timeout <= 0 {
		o.Timeout = callTimeout
	}
	return &Client{proxy: o.Proxy, timeout: o.Timeout, port: constants.ApidPort, logins: newLRU[*login](256), log: log}
}

// EtcdState is how far etcd is on one machine.
type EtcdState string

// The states of etcd.
const (
	EtcdAbsent  EtcdState = "absent"  // no such service: a worker, or not that far yet
	EtcdWaiting EtcdState = "waiting" // waits for bootstrap or for a cluster to join, or pulls its image
	EtcdRunning EtcdState = "running" // the process runs, healthy or not
)

// Service is one Talos service.
type Service struct {
	ID      string
	State   string // as Talos has it: Waiting, Preparing, Running, Finished, ...
	Healthy bool
}

// Status is what a machine says of itself, over mTLS.
type Status struct {
	Stage inventory.Stage
	// Ready means something only while the stage is running: installing and
	// resetting machines say it, too.
	Ready    bool
	Unmet    []string // what a machine that is not ready waits for, "time: not in sync"
	Version  string   // of Talos, v1.13.6
	Etcd     EtcdState
	Services []Service
	// SecureBoot is what it says of its firmware; empty: it does not know yet.
	SecureBoot inventory.Switch
}

// Status asks a machine. An error wraps ErrNotReached when no call was made,
// and ErrForeignCA when another than the expected cluster answered.
func (c *Client) Status(ctx context.Context, cluster *inventory.Cluster, secrets *inventory.Secrets, addr netip.Addr) (Status, error) {
	var s Status
	err := c.with(ctx, secrets, addr, func(conn *grpc.ClientConn) error {
		if err := c.machineStatus(ctx, conn, &s); err != nil {
			return err
		}
		api := machineapi.NewMachineServiceClient(conn)
		if err := c.version(ctx, api, &s); err != nil {
			return err
		}
		err := c.services(ctx, api, &s)
		if err != nil {
			return err
		}
		s.SecureBoot, err = c.secureBoot(ctx, conn)
		return err
	})
	if err != nil {
		return Status{}, fmt.Errorf("asking %s of cluster %s: %w", addr, cluster.Name, err)
	}
	return s, nil
}

func (c *Client) machineStatus(ctx context.Context, conn *grpc.ClientConn, s *Status) error {
	ctx, cancel := context.WithTimeout(ctx, c.timeout)
	defer cancel()
	st := state.WrapCore(client.NewAdapter(cosiv1alpha1.NewStateClient(conn)))
	res, err := safe.StateGetByID[*runtime.MachineStatus](ctx, st, runtime.MachineStatusID)
	if state.IsNotFoundError(err) { // the first moments of a boot
		s.Stage = inventory.StageUnknown
		return nil
	}
	if err != nil {
		return fmt.Errorf("reading the machine status: %w", err)
	}
	s.Stage = inventory.Stage(res.TypedSpec().Stage.String())
	s.Ready = res.TypedSpec().Status.Ready
	for _, u := range res.TypedSpec().Status.UnmetConditions {
		s.Unmet = append(s.Unmet, u.Name+": "+u.Reason)
	}
	return nil
}

// secureBoot is what a machine says of its firmware; empty: it does not know yet.
func (c *Client) secureBoot(ctx context.Context, conn *grpc.ClientConn) (inventory.Switch, error) {
	ctx, cancel := context.WithTimeout(ctx, c.timeout)
	defer cancel()
	st := state.WrapCore(client.NewAdapter(cosiv1alpha1.NewStateClient(conn)))
	res, err := safe.StateGetByID[*runtime.SecurityState](ctx, st, runtime.SecurityStateID)
	switch {
	case state.IsNotFoundError(err):
		return "", nil
	case err != nil:
		return "", fmt.Errorf("reading the security state: %w", err)
	case res.TypedSpec().SecureBoot:
		return inventory.On, nil
	}
	return inventory.Off, nil
}

func (c *Client) version(ctx context.Context, api machineapi.MachineServiceClient, s *Status) error {
	ctx, cancel := context.WithTimeout(ctx, c.timeout)
	defer cancel()
	v, err := api.Version(ctx, &emptypb.Empty{})
	if err != nil {
		return fmt.Errorf("reading the version: %w", err)
	}
	for _, m := range v.GetMessages() {
		s.Version = m.GetVersion().GetTag()
	}
	return nil
}

// services lists the services and takes etcd's state from there. The list of
// etcd's members would say no more: it answers only where etcd runs.
func (c *Client) services(ctx context.Context, api machineapi.MachineServiceClient, s *Status) error {
	ctx, cancel := context.WithTimeout(ctx, c.timeout)
	defer cancel()
	list, err := api.ServiceList(ctx, &emptypb.Empty{})
	if err != nil {
		return fmt.Errorf("listing the services: %w", err)
	}
	s.Etcd = EtcdAbsent
	for _, m := range list.GetMessages() {
		for _, svc := range m.GetServices() {
			s.Services = append(s.Services, Service{svc.GetId(), svc.GetState(), svc.GetHealth().GetHealthy()})
			if svc.GetId() != "etcd" {
				continue
			}
			if s.Etcd = EtcdWaiting; svc.GetState() == "Running" {
				s.Etcd = EtcdRunning
			}
		}
	}
	slices.SortFunc(s.Services, func(a, b Service) int { return strings.Compare(a.ID, b.ID) })
	return nil
}

// Outcome is how a call that changes a machine ended: [Client.Bootstrap],
// [Client.Reset], [Client.ApplyConfig] or [Client.Upgrade].
type Outcome string

// The outcomes. Only Unknown leaves open whether the machine does what it was
// told: after it no other machine may be told to bootstrap.
const (
	// Accepted: the machine does it. Never bootstrap again; each call restarts
	// etcd.
	Accepted Outcome = "accepted"
	// AlreadyBootstrapped: the machine's etcd has data. Of Bootstrap only.
	AlreadyBootstrapped Outcome = "already bootstrapped"
	// NotYet: refused for now (time not in sync, no container runtime, a reset
	// under way), or nobody answered. Nothing has happened.
	NotYet Outcome = "not yet"
	// Unknown: the call left and no answer came.
	Unknown Outcome = "unknown"
	// WrongMachine: not a control plane. Of Bootstrap only.
	WrongMachine Outcome = "wrong machine"
	// Denied: the machine does not take our certificate, or has one of another
	// CA, or knows no such call. Nothing has happened.
	Denied Outcome = "denied"
	// Refused: the machine does not take this config, or not in this mode. Nothing
	// has happened. Of ApplyConfig only.
	Refused Outcome = "refused"
)

// Bootstrap tells etcd of one machine to begin a new cluster. Talos guards
// nothing beyond that machine: the caller must have claimed it durably and
// must know that no other control plane runs etcd. The call is made at most
// once. The error says why, for every outcome but Accepted.
func (c *Client) Bootstrap(ctx context.Context, cluster *inventory.Cluster, secrets *inventory.Secrets, addr netip.Addr) (Outcome, error) {
	err := c.with(ctx, secrets, addr, func(conn *grpc.ClientConn) error {
		ctx, cancel := context.WithTimeout(ctx, 2*c.timeout) // 3.5 s were seen; the check of the time takes 5 s
		defer cancel()
		_, err := machineapi.NewMachineServiceClient(conn).Bootstrap(ctx, &machineapi.BootstrapRequest{})
		return err
	})
	outcome := outcomeOf(err)
	switch status.Code(err) {
	case codes.AlreadyExists:
		outcome = AlreadyBootstrapped
	case codes.Unimplemented:
		outcome = WrongMachine
	}
	if err != nil {
		err = fmt.Errorf("bootstrapping cluster %s on %s: %w", cluster.Name, addr, err)
	}
	return outcome, err
}

func outcomeOf(err error) Outcome {
	switch {
	case err == nil:
		return Accepted
	case errors.Is(err, ErrForeignCA), errors.Is(err, errRefusedUs):
		return Denied
	case errors.Is(err, ErrNotReached):
		return NotYet
	}
	switch status.Code(err) {
	case codes.FailedPrecondition:
		return NotYet
	case codes.PermissionDenied, codes.Unauthenticated, codes.Unimplemented:
		return Denied
	}
	return Unknown
}
