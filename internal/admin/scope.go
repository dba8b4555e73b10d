package admin

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/danielgtaylor/huma/v2"

	"github.com/provisiond/provisiond/internal/inventory"
)

// scope is the inventory as who calls may see it: to those who are limited to clusters
// everything else is not there. What a request changes it has loaded here, and changes
// at the revision that it was loaded at, so that a machine which moves away meanwhile is
// not changed.
//
// What must be unique in the rack, names, MACs and addresses, shows that it is taken.
type scope struct{ Inventory }

// foreign reports whether a cluster is not of who calls.
func foreign(ctx context.Context, cluster string) bool {
	p := PrincipalOf(ctx)
	return p != nil && !p.sees(cluster)
}

// limited reports whether some of the rack is not of who calls.
func limited(ctx context.Context) bool {
	p := PrincipalOf(ctx)
	return p != nil && p.limited()
}

// limits returns the refusal for who is limited to clusters; nil: who calls is not.
func limits(ctx context.Context, what string) error {
	if p := PrincipalOf(ctx); p != nil && p.limited() {
		return huma.Error403Forbidden(fmt.Sprintf("%s is for those who may do so in the whole rack, and %s may only in %s", what, p.Name, inWords(p.Clusters)))
	}
	return nil
}

// placed refuses to put a machine where who calls would not see it.
func placed(ctx context.Context, cluster string) error {
	switch {
	case !foreign(ctx, cluster):
		return nil
	case cluster == "":
		return limits(ctx, "a machine without a cluster")
	}
	return noCluster(cluster)
}

// Machine implements Inventory.
func (s scope) Machine(ctx context.Context, ref string) (inventory.View, error) {
	v, err := s.Inventory.Machine(ctx, ref)
	if err != nil {
		return v, err
	}
	if foreign(ctx, v.Machine.Cluster) {
		return inventory.View{}, fmt.Errorf("machine %q: %w", ref, inventory.ErrNotFound)
	}
	callOf(ctx).target = "machine/" + v.Machine.Name // not one of its MACs
	return v, nil
}

// Machines implements Inventory.
func (s scope) Machines(ctx context.Context, after string, limit int) ([]inventory.View, error) {
	if p := PrincipalOf(ctx); p == nil || !p.limited() {
		return s.Inventory.Machines(ctx, after, limit)
	}
	var theirs []inventory.View
	for {
		page, err := s.Inventory.Machines(ctx, after, limit)
		if err != nil {
			return nil, err
		}
		for _, v := range page {
			after = v.Machine.Name
			if !foreign(ctx, v.Machine.Cluster) {
				theirs = append(theirs, v)
			}
			if limit > 0 && len(theirs) == limit {
				return theirs, nil
			}
		}
		if len(page) < limit || limit <= 0 {
			return theirs, nil
		}
	}
}

// Record implements Inventory. What a machine belongs to is looked at in the commit: it
// may have moved since it was loaded.
func (s scope) Record(ctx context.Context, e inventory.Event) (inventory.View, error) {
	if p := PrincipalOf(ctx); p != nil && p.limited() {
		e.Within = p.Clusters
	}
	return s.Inventory.Record(ctx, e)
}

// PutMachine implements Inventory.
func (s scope) PutMachine(ctx context.Context, m *inventory.Machine, rev uint64) (*inventory.Machine, error) {
	if err := placed(ctx, m.Cluster); err != nil {
		return nil, err
	}
	return s.Inventory.PutMachine(ctx, m, rev)
}

// Approvals implements Inventory.
func (s scope) Approvals(ctx context.Context) ([]inventory.PendingApproval, error) {
	all, err := s.Inventory.Approvals(ctx)
	return slices.DeleteFunc(all, func(p inventory.PendingApproval) bool { return foreign(ctx, p.Cluster) }), err
}

// Approval implements Inventory.
func (s scope) Approval(ctx context.Context, code string) (inventory.PendingApproval, error) {
	p, err := s.Inventory.Approval(ctx, code)
	if err == nil && foreign(ctx, p.Cluster) {
		err = fmt.Errorf("no machine shows the code %q: %w", inventory.NormalUserCode(code), inventory.ErrNotFound)
	}
	if err != nil {
		return inventory.PendingApproval{}, err
	}
	callOf(ctx).target = "machine/" + p.Machine
	return p, nil
}

// Decide implements Inventory.
func (s scope) Decide(ctx context.Context, code string, approve bool, by string) (inventory.View, error) {
	if _, err := s.Approval(ctx, code); err != nil {
		return inventory.View{}, err
	}
	return s.Inventory.Decide(ctx, code, approve, by)
}

// Clusters implements Inventory.
func (s scope) Clusters(ctx context.Context) ([]*inventory.Cluster, error) {
	all, err := s.Inventory.Clusters(ctx)
	if err != nil {
		return nil, err
	}
	theirs := all[:0]
	for _, c := range all {
		if !foreign(ctx, c.Name) {
			theirs = append(theirs, c)
		}
	}
	return theirs, nil
}

func theirs(ctx context.Context, cluster string) error {
	if foreign(ctx, cluster) {
		return fmt.Errorf("cluster %q: %w", cluster, inventory.ErrNotFound)
	}
	return nil
}

// Cluster implements Inventory.
func (s scope) Cluster(ctx context.Context, name string) (*inventory.Cluster, *inventory.Bootstrap, error) {
	if err := theirs(ctx, name); err != nil {
		return nil, nil, err
	}
	return s.Inventory.Cluster(ctx, name)
}

// CreateCluster implements Inventory.
func (s scope) CreateCluster(ctx context.Context, c *inventory.Cluster, secrets []byte) (*inventory.Cluster, error) {
	if err := limits(ctx, "creating a cluster"); err != nil {
		return nil, err
	}
	return s.Inventory.CreateCluster(ctx, c, secrets)
}

// PutCluster implements Inventory.
func (s scope) PutCluster(ctx context.Context, c *inventory.Cluster, rev uint64) (*inventory.Cluster, error) {
	if err := theirs(ctx, c.Name); err != nil {
		return nil, err
	}
	return s.Inventory.PutCluster(ctx, c, rev)
}

// DeleteCluster implements Inventory.
func (s scope) DeleteCluster(ctx context.Context, name string, rev uint64) error {
	if err := theirs(ctx, name); err != nil {
		return err
	}
	return s.Inventory.DeleteCluster(ctx, name, rev)
}

// ResetCluster implements Inventory.
func (s scope) ResetCluster(ctx context.Context, name string, epoch uint64, secrets []byte, dead []string) ([]string, error) {
	if err := theirs(ctx, name); err != nil {
		return nil, err
	}
	return s.Inventory.ResetCluster(ctx, name, epoch, secrets, dead)
}

// CheckReset implements Inventory. A machine that belongs to no cluster of who calls has no name.
func (s scope) CheckReset(ctx context.Context, name string, epoch uint64, dead []string) ([]inventory.Holder, error) {
	if err := theirs(ctx, name); err != nil {
		return nil, err
	}
	holders, err := s.Inventory.CheckReset(ctx, name, epoch, dead)
	if err != nil || !limited(ctx) {
		return holders, err
	}
	for i := range holders {
		v, err := s.Inventory.Machine(ctx, holders[i].Machine)
		switch {
		case err != nil && !errors.Is(err, inventory.ErrNotFound):
			return nil, err
		case err != nil || foreign(ctx, v.Machine.Cluster):
			holders[i].Machine = ""
		}
	}
	return holders, nil
}

// StartRollout implements Inventory.
func (s scope) StartRollout(ctx context.Context, cluster string, mode inventory.ConfigMode, upgrade bool) (*inventory.Rollout, error) {
	if err := theirs(ctx, cluster); err != nil {
		return nil, err
	}
	return s.Inventory.StartRollout(ctx, cluster, mode, upgrade)
}

// StopRollout implements Inventory.
func (s scope) StopRollout(ctx context.Context, cluster string) (*inventory.Rollout, error) {
	if err := theirs(ctx, cluster); err != nil {
		return nil, err
	}
	return s.Inventory.StopRollout(ctx, cluster)
}

// Rollout implements Inventory.
func (s scope) Rollout(ctx context.Context, cluster string) (*inventory.Rollout, error) {
	if err := theirs(ctx, cluster); err != nil {
		return nil, err
	}
	return s.Inventory.Rollout(ctx, cluster)
}

// Strangers implements Inventory: nobody's NICs are none of theirs.
func (s scope) Strangers(ctx context.Context) ([]inventory.Stranger, error) {
	if foreign(ctx, "") {
		return nil, nil
	}
	return s.Inventory.Strangers(ctx)
}

// showsEvent reports whether who calls may see an event. One that names a cluster is of
// that; any other of a machine is of the cluster that the machine belongs to now.
func (s scope) showsEvent(ctx context.Context, e *inventory.Event) bool {
	switch p := PrincipalOf(ctx); {
	case p == nil || !p.limited():
		return true
	case e.Cluster != "":
		return p.sees(e.Cluster)
	case e.Machine != "":
		v, err := s.Inventory.Machine(ctx, e.Machine)
		return err == nil && p.sees(v.Machine.Cluster)
	}
	return false
}
