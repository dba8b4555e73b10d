package inventory

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"
)

// ResetCluster begins a new life of a cluster: with other secrets, so that no machine
// of the old one can join it, and an open bootstrap of the next epoch. The old secrets
// are kept, to talk to the machines that still run with them.
//
// It returns the machines whose disks are of an earlier life; they are to be reimaged,
// and nobody is bootstrapped while a control plane among them is not, unless it is
// named in dead: its operator says that it will not come back. epoch is the one that
// is given up; if it was given up already, only dead is added. ErrConflict: it is
// another.
func (k *Keeper) ResetCluster(ctx context.Context, name string, epoch uint64, bundle []byte, dead []string) (old []string, err error) {
	if len(bundle) == 0 {
		return nil, fieldErr("secrets", "", "the new life of cluster %s has no secrets bundle", name)
	}
	if err := k.Flush(ctx); err != nil { // what disks hold
		return nil, err
	}
	now := time.Now().UTC()
	key, bootKey, secretsKey := Key{BucketClusters, name}, Key{BucketBootstraps, name}, Key{BucketSecrets, name}
	err = k.update(ctx, func() (Commit, error) {
		var c Commit
		cl, b, err := k.Cluster(ctx, name)
		if err != nil {
			return c, err
		}
		holders, err := k.resetTakes(ctx, cl, b, epoch)
		if err != nil {
			return c, err
		}
		planes, err := awaited(holders, name, dead)
		if err != nil {
			return c, err
		}
		old = nil
		for _, h := range holders {
			old = append(old, h.Machine)
		}
		switch b.Epoch {
		case epoch:
			next := Bootstrap{Cluster: name, Epoch: epoch + 1, Old: planes, Reason: "the cluster was reset"}
			secrets, err := k.Secrets(ctx, name)
			if err != nil {
				return c, err
			}
			kept := Secrets{Cluster: name, Bundle: secrets.Bundle}
			cl.Epoch, cl.Imported = next.Epoch, false
			if err := errors.Join(c.put(bootKey, next, b.Rev), c.put(key, cl, cl.Rev),
				c.put(oldSecrets(name, epoch), kept, 0), c.put(secretsKey, Secrets{Cluster: name, Bundle: bundle}, secrets.Rev)); err != nil {
				return c, err
			}
		case epoch + 1:
			if b.Claimed() || slices.Equal(b.Old, planes) {
				return c, nil // our own commit, whose answer was lost, or nothing to add
			}
			next := *b
			next.Old = planes
			if err := c.put(bootKey, next, b.Rev); err != nil {
				return c, err
			}
		}
		c.log(Event{Time: now, Kind: ClusterReset, Cluster: name, Epoch: epoch + 1, Message: fmt.Sprintf("life %d was given up; declared dead: %v", epoch, dead)})
		return c, nil
	})
	return old, err
}

// Holder is a machine that a reset of a cluster takes: it is to be wiped.
type Holder struct {
	Machine string
	Role    Role // what its disk makes of it
	// Awaited is set on a control plane: nobody is bootstrapped until it was seen wiped or
	// is declared dead.
	Awaited bool
}

// CheckReset returns the machines that ResetCluster would take now, by name, without taking
// them. Its errors are those of ResetCluster.
func (k *Keeper) CheckReset(ctx context.Context, name string, epoch uint64, dead []string) ([]Holder, error) {
	if err := k.Flush(ctx); err != nil { // what disks hold
		return nil, err
	}
	cl, b, err := k.Cluster(ctx, name)
	if err != nil {
		return nil, err
	}
	holders, err := k.resetTakes(ctx, cl, b, epoch)
	if err != nil {
		return nil, err
	}
	planes, err := awaited(holders, name, dead)
	for i := range holders {
		holders[i].Awaited = slices.Contains(planes, holders[i].Machine)
	}
	return holders, err
}

// resetTakes are the machines whose disks are of a life of a cluster that is given up, or of
// an earlier one, as far as known, by name.
func (k *Keeper) resetTakes(ctx context.Context, cl *Cluster, b *Bootstrap, epoch uint64) ([]Holder, error) {
	if b.Epoch != epoch && b.Epoch != epoch+1 {
		return nil, fmt.Errorf("cluster %s is in its life %d: %w", cl.Name, b.Epoch, ErrConflict)
	}
	out, err := k.holders(ctx, cl.Name, epoch)
	if err != nil {
		return nil, err
	}
	var planes []string
	if !b.Claimed() { // the cluster may have been an imported one before
		planes = slices.Clone(b.Old)
	}
	if b.Epoch == epoch && cl.Imported { // its machines may never have been seen
		members, err := k.Members(ctx, cl.Name, ControlPlane)
		if err != nil {
			return nil, err
		}
		planes = append(planes, members...)
	}
	slices.Sort(planes)
	for _, m := range slices.Compact(planes) {
		f, err := getJSON[Facts](ctx, k.store, Key{BucketFacts, m})
		if err != nil && !errors.Is(err, ErrNotFound) {
			return nil, err
		}
		if err == nil && f.Holds.Cluster == "" {
			out = append(out, Holder{m, ControlPlane, true})
		}
	}
	slices.SortFunc(out, func(a, b Holder) int { return strings.Compare(a.Machine, b.Machine) })
	return out, nil
}

// holders are the machines whose disks are of a life of a cluster, or of an earlier one.
func (k *Keeper) holders(ctx context.Context, cluster string, epoch uint64) (out []Holder, err error) {
	err = k.eachFacts(ctx, func(f Facts) error {
		if f.Holds.Cluster == cluster && f.Holds.Epoch <= epoch {
			out = append(out, Holder{f.Machine, f.Holds.Role, f.Holds.Role == ControlPlane})
		}
		return nil
	})
	return out, err
}

// awaited are the control planes among the machines that a reset takes, but for those that
// are declared dead.
func awaited(holders []Holder, cluster string, dead []string) (planes []string, err error) {
	for _, h := range holders {
		if h.Awaited {
			planes = append(planes, h.Machine)
		}
	}
	for _, d := range dead {
		if !slices.Contains(planes, d) {
			return nil, &FieldError{Field: "dead", Problem: fmt.Sprintf("%s is no control plane of the life of %s that is given up", d, cluster), Fix: "leave it out", Err: ErrRefused}
		}
	}
	return slices.DeleteFunc(planes, func(p string) bool { return slices.Contains(dead, p) }), nil
}

// SecretsOf returns the secrets of a life of a cluster; ErrNotFound if it is not known.
func (k *Keeper) SecretsOf(ctx context.Context, cluster string, epoch uint64) (*Secrets, error) {
	cl, _, err := k.Cluster(ctx, cluster)
	if err != nil {
		return nil, err
	}
	if epoch == cl.Epoch {
		return k.Secrets(ctx, cluster)
	}
	s, err := k.secrets.get(ctx, k.store, oldSecrets(cluster, epoch))
	if err != nil {
		return nil, fmt.Errorf("secrets of life %d of cluster %q: %w", epoch, cluster, err)
	}
	return s, nil
}

// Keys are what opens a machine's API: those of a life of a cluster.
type Keys struct {
	Cluster *Cluster
	Epoch   uint64
	Secrets *Secrets
}

// Keys returns those that a machine's API may take, the likely ones first: of what its
// disk makes of it, and where that is a guess, of the cluster as it is now. There may be
// none: its cluster is gone.
func (k *Keeper) Keys(ctx context.Context, v View) ([]Keys, error) {
	h := v.Facts.Holds
	var lives []Membership
	if h.Cluster != "" {
		lives = append(lives, h)
	}
	if cl := v.Cluster; cl != nil && (h.Cluster == "" || h.Guess && (h.Cluster != cl.Name || h.Epoch != cl.Epoch)) {
		lives = append(lives, Membership{Cluster: cl.Name, Epoch: cl.Epoch})
	}
	var keys []Keys
	for _, life := range lives {
		cl, _, err := k.Cluster(ctx, life.Cluster)
		var s *Secrets
		if err == nil {
			s, err = k.SecretsOf(ctx, life.Cluster, life.Epoch)
		}
		switch {
		case errors.Is(err, ErrNotFound):
		case err != nil:
			return nil, err
		default:
			keys = append(keys, Keys{cl, life.Epoch, s})
		}
	}
	return keys, nil
}

// oldSecrets cannot be the key of another cluster: @ is in no name.
func oldSecrets(cluster string, epoch uint64) Key {
	return Key{BucketSecrets, cluster + "@" + strconv.FormatUint(epoch, 10)}
}
