package talos

import (
	"context"
	"fmt"
	"net/netip"
	"net/url"

	machineapi "github.com/siderolabs/talos/pkg/machinery/api/machine"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/provisiond/provisiond/internal/inventory"
)

// ResetOptions say how a machine is reset.
type ResetOptions struct {
	// Graceful makes the machine drain itself and leave etcd before its disk is
	// wiped. Where etcd has no quorum it fails for that, and the machine keeps
	// its disk.
	Graceful bool
	// AllDisks wipes the user disks, too, and not only the system disk.
	AllDisks bool
}

// Reset tells one machine to wipe its disk and to reboot to its firmware.
// Accepted means that Talos has begun: its answer comes before the work, which
// may still fail. The API is gone within seconds. The call is made at most
// once; an outcome of Unknown must be taken as a disk that may be wiped. The
// error says why, for every outcome but Accepted
// (internal/app/machined/internal/server/v1alpha1/v1alpha1_server.go).
func (c *Client) Reset(ctx context.Context, cluster *inventory.Cluster, secrets *inventory.Secrets, addr netip.Addr, o ResetOptions) (Outcome, error) {
	req := &machineapi.ResetRequest{Graceful: o.Graceful, Reboot: true, Mode: machineapi.ResetRequest_SYSTEM_DISK}
	if o.AllDisks {
		req.Mode = machineapi.ResetRequest_ALL
	}
	err := c.with(ctx, secrets, addr, func(conn *grpc.ClientConn) error {
		ctx, cancel := context.WithTimeout(ctx, c.timeout)
		defer cancel()
		_, err := machineapi.NewMachineServiceClient(conn).Reset(ctx, req)
		return err
	})
	outcome := outcomeOf(err)
	if err != nil {
		err = fmt.Errorf("resetting %s of cluster %s: %w", addr, cluster.Name, err)
	}
	return outcome, err
}

// EtcdMember is one member of a cluster's etcd, running or not.
type EtcdMember struct {
	ID       uint64
	Hostname string // empty: it was added and has never started
	// Addresses are those of its peer URLs, without URLs that hold a name.
	Addresses []netip.Addr
	Learner   bool // it follows, and has no vote yet
}

// EtcdMembers asks one control plane for the members of its cluster's etcd: the
// cluster's view, for which etcd needs quorum. Where etcd does not run or has
// no quorum Talos does not answer, and the error is that of the deadline. It
// wraps ErrNotReached when no call was made.
func (c *Client) EtcdMembers(ctx context.Context, cluster *inventory.Cluster, secrets *inventory.Secrets, addr netip.Addr) ([]EtcdMember, error) {
	var members []EtcdMember
	err := c.with(ctx, secrets, addr, func(conn *grpc.ClientConn) error {
		ctx, cancel := context.WithTimeout(ctx, c.timeout)
		defer cancel()
		list, err := machineapi.NewMachineServiceClient(conn).EtcdMemberList(ctx, &machineapi.EtcdMemberListRequest{})
		if err != nil {
			return err
		}
		for _, m := range list.GetMessages() {
			for _, e := range m.GetMembers() {
				members = append(members, EtcdMember{
					ID: e.GetId(), Hostname: e.GetHostname(), Addresses: peerAddresses(e.GetPeerUrls()), Learner: e.GetIsLearner(),
				})
			}
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("listing the etcd members of cluster %s on %s: %w", cluster.Name, addr, err)
	}
	return members, nil
}

func peerAddresses(urls []string) []netip.Addr {
	var addrs []netip.Addr
	for _, raw := range urls {
		u, err := url.Parse(raw)
		if err != nil {
			continue
		}
		if a, err := netip.ParseAddr(u.Hostname()); err == nil {
			addrs = append(addrs, a)
		}
	}
	return addrs
}

// RemoveEtcdMember removes a member from the etcd of the cluster that one
// control plane belongs to. A member that is not there is removed: the error is
// nil. etcd refuses what would cost it its quorum, and does not answer where it
// has none. An error leaves open whether the member is gone, unless it wraps
// ErrNotReached; calling again is safe.
func (c *Client) RemoveEtcdMember(ctx context.Context, cluster *inventory.Cluster, secrets *inventory.Secrets, addr netip.Addr, id uint64) error {
	err := c.with(ctx, secrets, addr, func(conn *grpc.ClientConn) error {
		ctx, cancel := context.WithTimeout(ctx, c.timeout)
		defer cancel()
		_, err := machineapi.NewMachineServiceClient(conn).EtcdRemoveMemberByID(ctx, &machineapi.EtcdRemoveMemberByIDRequest{MemberId: id})
		if status.Code(err) == codes.NotFound {
			return nil
		}
		return err
	})
	if err != nil {
		return fmt.Errorf("removing etcd member %016x of cluster %s through %s: %w", id, cluster.Name, addr, err)
	}
	return nil
}
