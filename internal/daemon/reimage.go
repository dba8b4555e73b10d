package daemon

import (
	"context"
	"fmt"
	"net/netip"

	"github.com/provisiond/provisiond/internal/inventory"
	"github.com/provisiond/provisiond/internal/reimage"
	"github.com/provisiond/provisiond/internal/talos"
)

// resets is the Talos API as reimage sees it.
type resets struct{ client *talos.Client }

// Status implements reimage.Talos.
func (r resets) Status(ctx context.Context, cl *inventory.Cluster, s *inventory.Secrets, addr netip.Addr) (reimage.Status, error) {
	st, err := r.client.Status(ctx, cl, s, addr)
	return reimage.Status{Stage: st.Stage, Etcd: st.Etcd == talos.EtcdRunning}, err
}

// Members implements reimage.Talos.
func (r resets) Members(ctx context.Context, cl *inventory.Cluster, s *inventory.Secrets, addr netip.Addr) ([]reimage.Member, error) {
	list, err := r.client.EtcdMembers(ctx, cl, s, addr)
	members := make([]reimage.Member, 0, len(list))
	for _, m := range list {
		members = append(members, reimage.Member{ID: m.ID, Name: m.Hostname, Addresses: m.Addresses, Learner: m.Learner})
	}
	return members, err
}

// RemoveMember implements reimage.Talos.
func (r resets) RemoveMember(ctx context.Context, cl *inventory.Cluster, s *inventory.Secrets, addr netip.Addr, id uint64) error {
	return r.client.RemoveEtcdMember(ctx, cl, s, addr, id)
}

// Reset implements reimage.Talos.
func (r resets) Reset(ctx context.Context, cl *inventory.Cluster, s *inventory.Secrets, addr netip.Addr, graceful, allDisks bool) (reimage.Outcome, error) {
	outcome, err := r.client.Reset(ctx, cl, s, addr, talos.ResetOptions{Graceful: graceful, AllDisks: allDisks})
	switch outcome {
	case talos.Accepted:
		return reimage.Accepted, err
	case talos.Unknown:
		return reimage.Unknown, err
	}
	return reimage.Declined, err
}

// guards is reimage.Guard as the operator's API sees it.
type guards struct {
	guard    *reimage.Guard
	reimages *reimage.Actor
}

// MayGo implements admin.Guards.
func (g guards) MayGo(ctx context.Context, v inventory.View, destroy bool) (bool, string, error) {
	s, err := g.guard.Look(ctx, v)
	if err != nil {
		return false, "", err
	}
	ok, reason := s.MayGo(destroy)
	return ok, reason, nil
}

// Foresee implements admin.Guards.
func (g guards) Foresee(ctx context.Context, v inventory.View) (inventory.Via, string, error) {
	return g.reimages.Foresee(ctx, v)
}

// Release implements admin.Guards.
func (g guards) Release(ctx context.Context, v inventory.View, destroy bool) error {
	s, err := g.guard.Look(ctx, v)
	if err != nil {
		return err
	}
	if ok, reason := s.MayGo(destroy); !ok {
		return fmt.Errorf("%s: %w", reason, inventory.ErrRefused)
	}
	return g.guard.Release(ctx, &s)
}
