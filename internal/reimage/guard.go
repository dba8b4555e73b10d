// Package reimage wipes machines as ordered, each order once, and keeps the etcd of
// their clusters alive while it does.
package reimage

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/provisiond/provisiond/internal/inventory"
)

// lookTimeout bounds one look at a cluster's etcd, in all.
const lookTimeout = 15 * time.Second

// Outcome is how a reset that was asked for ended.
type Outcome string

// The outcomes. Only after Unknown is it open whether the machine wipes its disk.
const (
	Accepted Outcome = "accepted"
	Declined Outcome = "declined" // a definite no: nothing has happened
	Unknown  Outcome = "unknown"  // no answer
)

// Status is what a machine's API says.
type Status struct {
	Stage inventory.Stage
	Etcd  bool // its etcd runs
}

// Member is a member of a cluster's etcd, up or down.
type Member struct {
	ID        uint64
	Name      string // host name
	Addresses []netip.Addr
	Learner   bool // it follows, and has no vote yet
}

// Talos is the API of a machine, over mTLS with the CA of a cluster. All methods
// return within the deadline of ctx and act at most once.
type Talos interface {
	Status(ctx context.Context, cl *inventory.Cluster, s *inventory.Secrets, addr netip.Addr) (Status, error)
	Members(ctx context.Context, cl *inventory.Cluster, s *inventory.Secrets, addr netip.Addr) ([]Member, error)
	// RemoveMember returns nil also when there is no such member any more.
	RemoveMember(ctx context.Context, cl *inventory.Cluster, s *inventory.Secrets, addr netip.Addr, id uint64) error
	Reset(ctx context.Context, cl *inventory.Cluster, s *inventory.Secrets, addr netip.Addr, graceful, allDisks bool) (Outcome, error)
}

// Clusters is what a look at an etcd reads of the inventory.
type Clusters interface {
	Cluster(ctx context.Context, name string) (*inventory.Cluster, *inventory.Bootstrap, error)
	SecretsOf(ctx context.Context, cluster string, epoch uint64) (*inventory.Secrets, error)
	Members(ctx context.Context, cluster string, role inventory.Role) ([]string, error)
	Machine(ctx context.Context, ref string) (inventory.View, error)
}

// Guard says what a machine means to its cluster's etcd.
type Guard struct {
	inv   Clusters
	talos Talos
}

// NewGuard returns a guard. It does no I/O.
func NewGuard(inv Clusters, talos Talos) *Guard { return &Guard{inv, talos} }

// Standing is what was seen of an etcd with regard to one machine.
type Standing struct {
	Machine string
	Cluster *inventory.Cluster // nil: it can hold no etcd data
	// Claims is set when the machine holds the claim of a bootstrap that is not done.
	Claims bool
	// Seen is set when a control plane told who the members are.
	Seen    bool
	Member  *Member // the machine as a member; nil: it is none
	Members int     // those with a vote, and this one
	Others  int     // those with a vote, but this one, whose etcd runs
	Down    []string

	secrets *inventory.Secrets
	via     netip.Addr // another member, which can remove this one; invalid: none
}

// Look asks the cluster that the machine's disk belongs to.
func (g *Guard) Look(ctx context.Context, v inventory.View) (Standing, error) {
	s := Standing{Machine: v.Machine.Name}
	name := v.Facts.Holds.Cluster
	if name == "" || v.Facts.Holds.Role != inventory.ControlPlane {
		return s, nil
	}
	cl, b, err := g.inv.Cluster(ctx, name)
	if errors.Is(err, inventory.ErrNotFound) {
		return s, nil // and so are the keys to it
	} else if err != nil {
		return s, err
	}
	if !v.Facts.HoldsEtcd(cl) || !b.Claimed() && !b.Done() && !cl.Imported {
		return s, nil // of an earlier life, or nobody has an etcd yet
	}
	s.Cluster, s.Claims = cl, b.Machine == v.Machine.Name && !b.Done()
	if s.secrets, err = g.inv.SecretsOf(ctx, name, cl.Epoch); err != nil {
		return s, err
	}
	names, err := g.inv.Members(ctx, name, inventory.ControlPlane)
	if err != nil {
		return s, err
	}
	addrs := []netip.Addr{v.Machine.Address} // it may not be in the cluster's list any more
	for _, n := range names {
		p, err := g.inv.Machine(ctx, n)
		if errors.Is(err, inventory.ErrNotFound) {
			continue
		} else if err != nil {
			return s, err
		}
		if !slices.Contains(addrs, p.Machine.Address) {
			addrs = append(addrs, p.Machine.Address)
		}
	}
	looking, cancel := context.WithTimeout(ctx, lookTimeout)
	defer cancel()
	members := g.members(looking, &s, addrs)
	if err := ctx.Err(); err != nil {
		return s, err
	}
	g.count(looking, &s, v.Machine, members)
	return s, ctx.Err()
}

// members asks all control planes at once, and takes the first list there is.
func (g *Guard) members(ctx context.Context, s *Standing, addrs []netip.Addr) (first []Member) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	var mu sync.Mutex
	var wg sync.WaitGroup
	for _, a := range addrs {
		wg.Go(func() {
			list, err := g.talos.Members(ctx, s.Cluster, s.secrets, a)
			mu.Lock()
			defer mu.Unlock()
			if err == nil && len(list) > 0 && !s.Seen {
				s.Seen, first = true, list
				cancel() // the others
			}
		})
	}
	wg.Wait()
	return first
}

// count finds the machine among the members, and which of the others run.
func (g *Guard) count(ctx context.Context, s *Standing, m *inventory.Machine, members []Member) {
	var mu sync.Mutex
	var wg sync.WaitGroup
	for _, member := range members {
		if member.Name == m.Name || slices.Contains(member.Addresses, m.Address) {
			s.Member = &member
			s.Members++
			continue
		}
		if member.Learner {
			continue // has no vote, so it neither counts nor helps
		}
		s.Members++
		wg.Go(func() {
			for _, a := range member.Addresses {
				st, err := g.talos.Status(ctx, s.Cluster, s.secrets, a)
				if err == nil && st.Etcd {
					mu.Lock()
					defer mu.Unlock()
					s.Others++
					if !s.via.IsValid() || a.Less(s.via) {
						s.via = a
					}
					return
				}
			}
			mu.Lock()
			defer mu.Unlock()
			s.Down = append(s.Down, member.Name)
		})
	}
	wg.Wait()
	slices.Sort(s.Down)
}

// MayGo says whether the machine may be wiped or forgotten, in words; when not, what to
// do instead. destroy is the operator's word that its cluster may be lost. It is pure.
func (s *Standing) MayGo(destroy bool) (ok bool, reason string) {
	left := s.Members - 1
	quorum := left/2 + 1
	word := ""
	if s.Cluster != nil {
		word = "--destroy-cluster " + s.Cluster.Name
	}
	switch {
	case s.Cluster == nil:
		return true, "it holds no etcd data"
	case s.Seen && s.Member == nil:
		return true, "it is no member of etcd"
	case destroy:
		return true, fmt.Sprintf("cluster %s may be lost: the operator said so", s.Cluster.Name)
	case s.Claims:
		return false, fmt.Sprintf("%s holds the claim of the bootstrap of %s, which is not done: wait for it, or give the cluster up with %s", s.Machine, s.Cluster.Name, word)
	case !s.Seen:
		return false, fmt.Sprintf("no control plane of %s says who the members of etcd are: start enough of them, or give the cluster up with %s", s.Cluster.Name, word)
	case left == 0:
		return false, fmt.Sprintf("%s is the last control plane of %s: add another first, or give the cluster up with %s", s.Machine, s.Cluster.Name, word)
	case s.Others < quorum:
		return false, fmt.Sprintf("etcd of %s would be left with %d of %d members running and needs %d: start %s first, or give the cluster up with %s",
			s.Cluster.Name, s.Others, left, quorum, strings.Join(s.Down, ", "), word)
	}
	return true, fmt.Sprintf("etcd of %s goes on with %d of %d members running", s.Cluster.Name, s.Others, left)
}

// Leaves reports whether Release would take the machine out of etcd.
func (s *Standing) Leaves() bool { return s.Member != nil && s.via.IsValid() }

// MayRest says whether the machine may be away for a while, in words; its etcd data
// stays. The one control plane of a cluster may: there is no quorum to keep. It is pure.
func (s *Standing) MayRest() (ok bool, reason string) {
	quorum := s.Members/2 + 1
	switch {
	case s.Cluster == nil:
		return true, "it holds no etcd data"
	case s.Seen && s.Member == nil:
		return true, "it is no member of etcd"
	case s.Claims:
		return false, fmt.Sprintf("%s holds the claim of the bootstrap of %s, which is not done", s.Machine, s.Cluster.Name)
	case !s.Seen:
		return false, fmt.Sprintf("no control plane of %s says who the members of etcd are", s.Cluster.Name)
	case s.Members == 1:
		return true, "it is the only member of etcd"
	case s.Others < quorum:
		return false, fmt.Sprintf("etcd of %s would have %d of %d members running without it, and needs %d (down: %s)",
			s.Cluster.Name, s.Others, s.Members, quorum, strings.Join(s.Down, ", "))
	}
	return true, fmt.Sprintf("etcd of %s goes on with %d of %d members", s.Cluster.Name, s.Others, s.Members)
}

// Release has the machine leave etcd, if it is a member and another one runs. MayGo
// must have allowed it. A crash after it leaves a member less, and an order that is
// looked at again.
func (g *Guard) Release(ctx context.Context, s *Standing) error {
	if !s.Leaves() {
		return nil
	}
	if err := g.talos.RemoveMember(ctx, s.Cluster, s.secrets, s.via, s.Member.ID); err != nil {
		return fmt.Errorf("removing %s from etcd of %s: %w", s.Machine, s.Cluster.Name, err)
	}
	return nil
}
