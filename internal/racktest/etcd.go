package racktest

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log"
	"net/http"
	"time"

	"github.com/cosi-project/runtime/pkg/state"
	"github.com/google/uuid"
	machineapi "github.com/siderolabs/talos/pkg/machinery/api/machine"
	"github.com/siderolabs/talos/pkg/machinery/resources/etcd"
)

// runEtcd is the etcd service of a control plane
// (internal/app/machined/pkg/system/services/etcd.go): with data it starts;
// without, it waits for a Bootstrap call or for a member to join.
func (n *Node) runEtcd(ctx context.Context) error {
	if err := n.startEtcd(ctx, 0); err != nil {
		return err
	}
	data := n.opts.Disk.Etcd()
	if data == "" {
		if err := n.opts.step(StepBootstrapWait, "etcd has no data and waits"); err != nil {
			return err
		}
	}
	for handled := 0; data == ""; data = n.opts.Disk.Etcd() {
		calls := n.Accepted()
		var join string
		if calls == handled {
			for _, m := range n.opts.Peers.Members(ctx, n.cluster) {
				join = m.Etcd
				break
			}
			if join == "" {
				poll, cancel := context.WithTimeout(ctx, n.opts.Timing.Poll)
				n.wait(poll, func() bool { return n.bootstraps != handled })
				cancel()
				if ctx.Err() != nil {
					return context.Cause(ctx)
				}
				continue
			}
		} else {
			// Every accepted call starts etcd, and its image pull, anew.
			handled = calls
			if err := n.startEtcd(ctx, calls); err != nil {
				return err
			}
		}
		pull, cancel := context.WithTimeout(ctx, n.opts.Timing.EtcdPull)
		n.wait(pull, func() bool { return n.bootstraps != handled })
		cancel()
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		if join == "" {
			join = uuid.NewString() // a new cluster
		}
		if err := n.update(ctx, func() {
			if n.bootstraps == handled { // else the pull was cut short
				n.opts.Disk.setEtcd(join)
			}
		}); err != nil {
			return err
		}
	}
	if err := n.set(ctx, "etcd", machineapi.ServiceStateEvent_PREPARING, "Creating service runner", false); err != nil {
		return err
	}
	if err := sleep(ctx, n.opts.Timing.EtcdStart); err != nil {
		return err
	}
	local := etcd.NewMember(etcd.NamespaceName, etcd.LocalMemberID)
	local.TypedSpec().MemberID = etcd.FormatMemberID(1)
	if err := n.resources.Create(ctx, local); err != nil && !state.IsConflictError(err) {
		return fmt.Errorf("storing the etcd member: %w", ended(ctx, err))
	}
	withdraw := n.opts.Peers.Announce(n.cluster, Member{Name: n.opts.Hostname, Address: n.opts.Addresses[0], Etcd: data})
	defer withdraw()
	if err := n.up(ctx, "etcd"); err != nil {
		return err
	}
	return n.runKube(ctx)
}

// startEtcd goes through the states up to the one that "waits for bootstrap"
// and "pulls the image" share.
func (n *Node) startEtcd(ctx context.Context, call int) error {
	type step struct {
		state   machineapi.ServiceStateEvent_Action
		message string
	}
	steps := []step{
		{machineapi.ServiceStateEvent_STARTING, "Starting service"},
		{machineapi.ServiceStateEvent_WAITING, `Waiting for volumes /var/lib, ETCD to be mounted, service "cri" to be "up", time sync, network, etcd spec`},
	}
	if call > 0 {
		steps = append([]step{
			{machineapi.ServiceStateEvent_FINISHED, "Service finished successfully"},
			{machineapi.ServiceStateEvent_FINISHED, "Bootstrap requested"},
		}, steps...)
	}
	for _, s := range steps {
		if err := n.set(ctx, "etcd", s.state, s.message, false); err != nil {
			return err
		}
	}
	if err := n.wait(ctx, func() bool { return n.timeSynced && n.healthy("cri") }); err != nil {
		return err
	}
	return n.set(ctx, "etcd", machineapi.ServiceStateEvent_PREPARING, "Running pre state", false)
}

// runKube stands for kube-apiserver on a node whose etcd runs: it tells who the
// members are, for [EndpointPeers].
func (n *Node) runKube(ctx context.Context) error {
	cert, err := n.issue(n.cfg.Cluster().IssuingCA(), append(n.cfg.Cluster().CertSANs(), n.cluster.Endpoint.Hostname()))
	if err != nil {
		return fmt.Errorf("cluster.ca: %w", err)
	}
	ln, err := n.opts.Network.Listen(ctx, kubePort)
	if err != nil {
		return fmt.Errorf("kube-apiserver: %w", ended(ctx, err))
	}
	mux := http.NewServeMux()
	mux.HandleFunc("GET "+membersPath, func(w http.ResponseWriter, r *http.Request) {
		var members []Member
		if local, ok := n.opts.Peers.(*EndpointPeers); ok {
			members = local.local.Members(r.Context(), n.cluster) // do not ask ourselves
		} else {
			members = n.opts.Peers.Members(r.Context(), n.cluster)
		}
		json.NewEncoder(w).Encode(members)
	})
	server := &http.Server{Handler: mux, ReadHeaderTimeout: 10 * time.Second, ErrorLog: log.New(io.Discard, "", 0)}
	stop := context.AfterFunc(ctx, func() { server.Close() })
	defer stop()
	err = server.Serve(tls.NewListener(ln, &tls.Config{Certificates: []tls.Certificate{cert}, MinVersion: tls.VersionTLS12}))
	if ctx.Err() != nil || errors.Is(err, http.ErrServerClosed) {
		return context.Cause(ctx)
	}
	return err
}
