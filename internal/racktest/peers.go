package racktest

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
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

// Member is one member of a cluster's etcd: a control plane that has joined it.
type Member struct {
	ID      uint64     `json:"id"` // its own for life; zero: it is given one
	Name    string     `json:"name"`
	Address netip.Addr `json:"address"`
	Etcd    string     `json:"etcd"` // which etcd cluster; see [Disk.Etcd]
	Learner bool       `json:"learner,omitempty"`
}

// newMemberID is random, so that no two members ever have the same one.
func newMemberID() uint64 { return rand.Uint64() | 1 }

// Peers is what real nodes learn of their cluster from its kube-apiserver, and
// what its etcd knows of itself.
type Peers interface {
	// Members lists the control planes whose etcd runs.
	Members(ctx context.Context, c ClusterRef) []Member
	// Announce tells that a member's etcd runs, until withdraw is called. It is
	// a voting member then. gone closes when the member is removed from its
	// etcd cluster, and is closed if it was before.
	Announce(c ClusterRef, m Member) (gone <-chan struct{}, withdraw func())
	// Join adds m to the etcd cluster it names, as the first member or as a
	// learner, and returns its ID. A member of the same name is a stale one and
	// is removed (internal/app/machined/pkg/system/services/etcd.go addMember).
	Join(m Member) (uint64, error)
	// Membership lists the members of an etcd cluster, those that do not run
	// too.
	Membership(ctx context.Context, c ClusterRef, etcd string) ([]Member, error)
	// Remove removes a member from an etcd cluster. Its data is no good then.
	Remove(etcd string, id uint64) error
}

// What etcd says to changes of its membership (server/etcdserver/errors).
var (
	// errNoQuorum: nobody says it, since no answer comes.
	errNoQuorum = errors.New("etcd has no quorum")
	errNoMember = errors.New("etcdserver: member not found")
	errTooFew   = errors.New("etcdserver: re-configuration failed due to not enough started members")
)

// Registry is [Peers] for machines of one process: every endpoint works as soon
// as any control plane of the cluster does.
type Registry struct {
	mu      sync.Mutex
	members map[string][]Member // those that run, by cluster
	etcds   map[string]*etcdCluster
}

// etcdCluster is what the members of one etcd agree on.
type etcdCluster struct {
	seats   []*seat
	removed map[uint64]bool
}

// seat is one member, whether or not its machine is on or its disk still holds
// the data.
type seat struct {
	Member
	running int           // announcements
	gone    chan struct{} // closed when it is removed
}

// Members lists the running control planes of a cluster.
func (r *Registry) Members(_ context.Context, c ClusterRef) []Member {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.Clone(r.members[c.Secret])
}

// Announce adds a running member until withdraw is called. A member that the
// registry has never heard of is believed: its data says that it is one.
func (r *Registry) Announce(c ClusterRef, m Member) (gone <-chan struct{}, withdraw func()) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if m.ID == 0 {
		m.ID = newMemberID()
	}
	e := r.etcd(m.Etcd)
	if e.removed[m.ID] {
		closed := make(chan struct{})
		close(closed)
		return closed, func() {}
	}
	s := e.find(m.ID)
	if s == nil {
		s = e.add(m)
	}
	m.Learner = false
	s.Member = m
	s.running++
	if r.members == nil {
		r.members = map[string][]Member{}
	}
	r.members[c.Secret] = append(r.members[c.Secret], m)
	return s.gone, func() {
		r.mu.Lock()
		defer r.mu.Unlock()
		s.running--
		r.forget(m.ID)
	}
}

// Join adds a member to an etcd that has quorum, or begins one.
func (r *Registry) Join(m Member) (uint64, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	e := r.etcd(m.Etcd)
	if len(e.seats) > 0 {
		if !e.quorum() {
			return 0, errNoQuorum
		}
		for _, s := range slices.Clone(e.seats) {
			if s.Name != m.Name {
				continue
			}
			if err := r.remove(e, s); err != nil {
				return 0, err
			}
		}
		m.Learner = true
	}
	m.ID = newMemberID()
	e.add(m)
	return m.ID, nil
}

// Membership lists the members of an etcd that has quorum.
func (r *Registry) Membership(_ context.Context, _ ClusterRef, etcd string) ([]Member, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	e := r.etcd(etcd)
	if !e.quorum() {
		return nil, errNoQuorum
	}
	var members []Member
	for _, s := range e.seats {
		members = append(members, s.Member)
	}
	return members, nil
}

// Remove removes a member of an etcd that has quorum, before and after.
func (r *Registry) Remove(etcd string, id uint64) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	e := r.etcd(etcd)
	if !e.quorum() {
		return errNoQuorum
	}
	s := e.find(id)
	if s == nil {
		return errNoMember
	}
	return r.remove(e, s)
}

func (r *Registry) remove(e *etcdCluster, s *seat) error {
	voters, running := e.votes()
	// etcd lets a member go that is down, but none that the others need
	// (server/etcdserver mayRemoveMember): the last one never.
	if !s.Learner && s.running > 0 && running-1 < (voters-1)/2+1 {
		return errTooFew
	}
	e.seats = slices.DeleteFunc(e.seats, func(o *seat) bool { return o == s })
	e.removed[s.ID] = true
	close(s.gone)
	r.forget(s.ID)
	return nil
}

// forget takes a member off the list of those that run.
func (r *Registry) forget(id uint64) {
	for secret, members := range r.members {
		r.members[secret] = slices.DeleteFunc(members, func(m Member) bool { return m.ID == id })
	}
}

func (r *Registry) etcd(name string) *etcdCluster {
	if r.etcds == nil {
		r.etcds = map[string]*etcdCluster{}
	}
	if r.etcds[name] == nil {
		r.etcds[name] = &etcdCluster{removed: map[uint64]bool{}}
	}
	return r.etcds[name]
}

func (e *etcdCluster) add(m Member) *seat {
	s := &seat{Member: m, gone: make(chan struct{})}
	e.seats = append(e.seats, s)
	return s
}

func (e *etcdCluster) find(id uint64) *seat {
	for _, s := range e.seats {
		if s.ID == id {
			return s
		}
	}
	return nil
}

// votes counts the members that have one, and those of them that run.
func (e *etcdCluster) votes() (voters, running int) {
	for _, s := range e.seats {
		if s.Learner {
			continue
		}
		voters++
		if s.running > 0 {
			running++
		}
	}
	return voters, running
}

func (e *etcdCluster) quorum() bool {
	voters, running := e.votes()
	return running > voters/2
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
func (p *EndpointPeers) Announce(c ClusterRef, m Member) (<-chan struct{}, func()) {
	return p.local.Announce(c, m)
}

// Join gives this node an ID. The other members learn of it when it runs.
func (p *EndpointPeers) Join(m Member) (uint64, error) { return p.local.Join(m) }

// Membership lists the members that run: those that do not are not known here,
// and neither is whether etcd has quorum.
func (p *EndpointPeers) Membership(ctx context.Context, c ClusterRef, etcd string) ([]Member, error) {
	return slices.DeleteFunc(p.Members(ctx, c), func(m Member) bool { return m.Etcd != etcd }), nil
}

// Remove always fails: the members of other processes could not be told.
func (p *EndpointPeers) Remove(string, uint64) error { return errors.ErrUnsupported }

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
