package racktest

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"slices"
	"sync"
	"time"
)

// ClusterRef names a cluster by what its machine configs share.
type ClusterRef struct {
	Secret   string   // cluster.secret
	Endpoint *url.URL // cluster.controlPlane.endpoint
	CA       []byte   // the Kubernetes CA, PEM
}

// Member is a control plane whose etcd runs.
type Member struct {
	Name    string     `json:"name"`
	Address netip.Addr `json:"address"`
	Etcd    string     `json:"etcd"` // which etcd cluster; see [Disk.Etcd]
}

// Peers is what real nodes learn of their cluster from its kube-apiserver: the
// control planes whose etcd runs.
type Peers interface {
	Members(ctx context.Context, c ClusterRef) []Member
	// Announce adds a member until the returned function is called.
	Announce(c ClusterRef, m Member) (withdraw func())
}

// Registry is [Peers] for machines of one process: every endpoint works as soon
// as any control plane of the cluster does.
type Registry struct {
	mu      sync.Mutex
	members map[string][]Member
}

// Members lists the running control planes of a cluster.
func (r *Registry) Members(_ context.Context, c ClusterRef) []Member {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.Clone(r.members[c.Secret])
}

// Announce adds a member until the returned function is called.
func (r *Registry) Announce(c ClusterRef, m Member) func() {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.members == nil {
		r.members = map[string][]Member{}
	}
	r.members[c.Secret] = append(r.members[c.Secret], m)
	return func() {
		r.mu.Lock()
		defer r.mu.Unlock()
		if i := slices.Index(r.members[c.Secret], m); i >= 0 {
			r.members[c.Secret] = slices.Delete(r.members[c.Secret], i, i+1)
		}
	}
}

// EndpointPeers is [Peers] for nodes that share no memory, such as virtual
// machines: it asks the cluster's endpoint, where every [Node] with a running
// etcd answers on port 6443.
type EndpointPeers struct {
	Network NodeNetwork

	local Registry
}

// kubePort is where a node answers for its control plane.
const kubePort = 6443

// membersPath is ours; real nodes read the endpoint slices of `kubernetes`.
const membersPath = "/racktest/members"

// Members asks the endpoint; an endpoint that does not answer has none. What
// this node announced itself is known without asking.
func (p *EndpointPeers) Members(ctx context.Context, c ClusterRef) []Member {
	members := p.local.Members(ctx, c)
	remote, err := p.ask(ctx, c)
	if err != nil {
		return members
	}
	for _, m := range remote {
		if !slices.Contains(members, m) {
			members = append(members, m)
		}
	}
	return members
}

// Announce adds this node, for the kube-apiserver port of this node to tell.
func (p *EndpointPeers) Announce(c ClusterRef, m Member) func() { return p.local.Announce(c, m) }

func (p *EndpointPeers) ask(ctx context.Context, c ClusterRef) ([]Member, error) {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	roots := x509.NewCertPool()
	if !roots.AppendCertsFromPEM(c.CA) {
		return nil, fmt.Errorf("the Kubernetes CA is not a certificate")
	}
	transport := &http.Transport{
		DialContext:       p.Network.DialContext,
		TLSClientConfig:   &tls.Config{RootCAs: roots},
		DisableKeepAlives: true,
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, c.Endpoint.JoinPath(membersPath).String(), nil)
	if err != nil {
		return nil, err
	}
	res, err := (&http.Client{Transport: transport}).Do(req)
	if err != nil {
		return nil, err
	}
	defer res.Body.Close()
	var members []Member
	return members, json.NewDecoder(res.Body).Decode(&members)
}

// RealNetwork is a [NodeNetwork] on the sockets of this host.
type RealNetwork struct{}

// Listen opens a TCP port on all addresses.
func (RealNetwork) Listen(ctx context.Context, port uint16) (net.Listener, error) {
	var l net.ListenConfig
	return l.Listen(ctx, "tcp", fmt.Sprintf("[::]:%d", port))
}

// DialContext connects.
func (RealNetwork) DialContext(ctx context.Context, network, address string) (net.Conn, error) {
	var d net.Dialer
	return d.DialContext(ctx, network, address)
}
