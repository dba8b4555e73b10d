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
	data, id := n.opts.Disk.etcdData()
	if data == "" {
		if err := n.opts.step(StepBootstrapWait, "etcd has no data and waits"); err != nil {
			return err
		}
	}
	for handled := 0; data == ""; data, id = n.opts.Disk.etcdData() {
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
		var joined error
		if err := n.update(ctx, func() {
			if n.bootstraps != handled { // the pull was cut short
				return
			}
			m := n.member()
			m.Etcd = join
			var id uint64
			if id, joined = n.opts.Peers.Join(m); joined == nil {
				n.opts.Disk.setEtcd(join, id)
			}
		}); err != nil {
			return err
		}
		if joined != nil { // the members may be too few; they may come back
			if err := sleep(ctx, n.opts.Timing.Poll); err != nil {
				return err
			}
		}
	}
	if err := n.set(ctx, "etcd", machineapi.ServiceStateEvent_PREPARING, "Creating service runner", false); err != nil {
		return err
	}
	if err := sleep(ctx, n.opts.Timing.EtcdStart); err != nil {
		return err
	}
	local := etcd.NewMember(etcd.NamespaceName, etcd.LocalMemberID)
	local.TypedSpec().MemberID = etcd.FormatMemberID(id)
	if err := n.resources.Create(ctx, local); err != nil && !state.IsConflictError(err) {
		return fmt.Errorf("storing the etcd member: %w", ended(ctx, err))
	}
	m := n.member()
	m.Etcd, m.ID = data, id
	gone, withdraw := n.opts.Peers.Announce(n.cluster, m)
	defer withdraw()
	if err := n.started(ctx, "etcd"); err != nil {
		return err
	}
	return n.runMember(ctx, data, gone)
}

func (n *Node) member() Member { return Member{Name: n.opts.Hostname, Address: n.opts.Addresses[0]} }

// runMember is a started member: healthy for as long as its cluster has quorum,
// until it is removed. A removed member's etcd ends, and ends again at each
// start with the data it has (pkg/system/runner/restart).
func (n *Node) runMember(ctx context.Context, data string, gone <-chan struct{}) error {
	kube, stop := context.WithCancel(ctx)
	defer stop()
	ended := make(chan error, 1)
	go func() { ended <- n.runKube(kube) }()
	poll := time.NewTicker(max(n.opts.Timing.Poll, time.Millisecond))
	defer poll.Stop()
	healthy := false
	for {
		select {
		case <-gone:
			stop()
			<-ended
			if err := n.set(ctx, "etcd", machineapi.ServiceStateEvent_WAITING, `Error running etcd, going to restart forever: task "etcd" failed: exit code 1`, false); err != nil {
				return err
			}
			<-ctx.Done()
			return context.Cause(ctx)
		default:
		}
		_, err := n.opts.Peers.Membership(kube, n.cluster, data)
		if now := err == nil; now != healthy {
			healthy = now
			message := "Health check successful"
			if !healthy {
				message = "Health check failed: context deadline exceeded"
			}
			if err := n.set(ctx, "etcd", machineapi.ServiceStateEvent_RUNNING, message, healthy); err != nil {
				stop()
				<-ended
				return err
			}
		}
		select {
		case err := <-ended:
			return err
		case <-gone:
		case <-poll.C:
		}
	}
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
