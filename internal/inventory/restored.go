package inventory

import (
	"context"
	"errors"
	"fmt"
	"time"
)

// Restored makes a database that comes from a backup safe to go on with: what it says
// may have been overtaken. It may be called again after a crash in the middle, before
// anything else is done with the database.
//
// A cluster that was not bootstrapped then may be by now: it is never bootstrapped, as
// an imported one. An order to reimage may have been carried out: it is cancelled, and a
// rollout is stopped. And any machine of a cluster may be a control plane by now. A token
// may have been revoked since, because it leaked: all of them are.
func (k *Keeper) Restored(ctx context.Context) error {
	clusters, err := k.Clusters(ctx)
	if err != nil {
		return err
	}
	for _, cl := range clusters {
		err := k.update(ctx, func() (Commit, error) {
			var c Commit
			now, b, err := k.Cluster(ctx, cl.Name)
			if err != nil || b.Done() || now.Imported {
				return c, err
			}
			now.Imported = true
			err = c.put(Key{BucketClusters, cl.Name}, now, now.Rev)
			c.log(Event{Time: time.Now().UTC(), Kind: ClusterChanged, Cluster: cl.Name, Message: "restored from a backup: taken to run already, and not bootstrapped"})
			return c, err
		})
		if err != nil {
			return err
		}
	}
	if err := k.revokeAll(ctx); err != nil {
		return err
	}
	rollouts, err := k.Rollouts(ctx)
	if err != nil {
		return err
	}
	for _, r := range rollouts {
		if !r.Going() {
			continue
		}
		if _, err := k.RecordRollout(ctx, r.Number, Event{Kind: RolloutEnded, Cluster: r.Cluster, Message: "the database was restored from a backup"}); err != nil {
			return err
		}
	}
	return k.eachFacts(ctx, func(f Facts) error {
		err := k.update(ctx, func() (Commit, error) {
			var c Commit
			now, err := getJSON[Facts](ctx, k.store, Key{BucketFacts, f.Machine})
			if err != nil {
				return c, err
			}
			m, err := getJSON[Machine](ctx, k.store, Key{BucketMachines, f.Machine})
			if err != nil {
				return c, err
			}
			if r := &now.Reimage; r.Outstanding() {
				*r = Reimage{Order: Order{Ordered: r.Ordered, OrderedAt: r.OrderedAt, Done: r.Ordered, DoneAt: r.DoneAt}, Reason: "cancelled: the database was restored from a backup"}
				c.log(Event{Time: time.Now().UTC(), Kind: ReimageCancelled, Machine: f.Machine, Message: r.Reason})
			}
			if now.Install.Outstanding() {
				now.Install = Order{Ordered: 1, OrderedAt: now.Install.OrderedAt} // whatever runs is installed
			}
			if b := now.Current(); b != nil && b.Config.IsZero() && b.API.IsZero() {
				now.change(0).Plan = Disk // it may have gone on since, and run from its disk
			}
			if m.Cluster != "" {
				cl, err := getJSON[Cluster](ctx, k.store, Key{BucketClusters, m.Cluster})
				if errors.Is(err, ErrNotFound) {
					return c, nil
				} else if err != nil {
					return c, err
				}
				now.Holds = Membership{Cluster: m.Cluster, Role: ControlPlane, Epoch: cl.Epoch, Guess: true}
			}
			return c, c.put(Key{BucketFacts, f.Machine}, now, now.Rev)
		})
		if err != nil {
			return fmt.Errorf("machine %s: %w", f.Machine, err)
		}
		return nil
	})
}

// eachFacts calls f for the facts of every machine, as they are on disk.
func (k *Keeper) eachFacts(ctx context.Context, f func(Facts) error) error {
	for rec, err := range recordsAfter(ctx, k.store, BucketFacts, "") {
		if err != nil {
			return err
		}
		facts, err := decode[Facts](rec)
		if err != nil {
			return err
		}
		if err := f(facts); err != nil {
			return err
		}
	}
	return nil
}
