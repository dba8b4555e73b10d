package inventory

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"
)

// CreateCluster stores a new cluster with its secrets bundle and an open
// bootstrap of epoch 1. Only this makes secrets known: a lost database cannot
// turn into a second cluster by serving requests.
func (k *Keeper) CreateCluster(ctx context.Context, cl *Cluster, bundle []byte) (*Cluster, error) {
	if err := cl.Validate(); err != nil {
		return nil, err
	}
	if len(bundle) == 0 {
		return nil, fieldErr("secrets", "", "cluster %s has no secrets bundle", cl.Name)
	}
	now := time.Now().UTC()
	stored := *cl
	stored.Created, stored.Epoch = now, 1
	key := Key{BucketClusters, cl.Name}
	err := k.update(ctx, func() (Commit, error) {
		old, err := getJSON[Cluster](ctx, k.store, key)
		if err == nil && old.Created.Equal(now) {
			return Commit{}, nil // our own commit, whose answer was lost
		}
		if err == nil {
			return Commit{}, &FieldError{Field: "name", Problem: fmt.Sprintf("cluster %s already exists", cl.Name), Fix: "choose another name, or change it instead", Err: ErrExists}
		}
		if !errors.Is(err, ErrNotFound) {
			return Commit{}, err
		}
		var c Commit
		if err := c.put(key, stored, 0); err != nil {
			return c, err
		}
		if err := c.put(Key{BucketSecrets, cl.Name}, Secrets{Cluster: cl.Name, Bundle: bundle}, 0); err != nil {
			return c, err
		}
		if err := c.put(Key{BucketBootstraps, cl.Name}, Bootstrap{Cluster: cl.Name, Epoch: 1}, 0); err != nil {
			return c, err
		}
		c.log(Event{Time: now, Kind: ClusterCreated, Cluster: cl.Name, Epoch: 1, Message: "created with endpoint " + cl.Endpoint})
		return c, nil
	})
	if err != nil {
		return nil, err
	}
	out, err := getJSON[Cluster](ctx, k.store, key)
	return &out, err
}

// PutCluster changes a cluster that was read at rev.
func (k *Keeper) PutCluster(ctx context.Context, cl *Cluster, rev uint64) (*Cluster, error) {
	if err := cl.Validate(); err != nil {
		return nil, err
	}
	key := Key{BucketClusters, cl.Name}
	stored := *cl
	err := k.update(ctx, func() (Commit, error) {
		old, err := getJSON[Cluster](ctx, k.store, key)
		if err != nil {
			return Commit{}, fmt.Errorf("cluster %q: %w", cl.Name, err)
		}
		if old.Rev != rev {
			return Commit{}, fmt.Errorf("cluster %s was changed: %w", cl.Name, ErrConflict)
		}
		stored.Created, stored.Imported, stored.Epoch = old.Created, old.Imported, old.Epoch
		var c Commit
		if err := c.put(key, stored, rev); err != nil {
			return c, err
		}
		c.log(Event{Time: time.Now().UTC(), Kind: ClusterChanged, Cluster: cl.Name, Message: "changed"})
		return c, nil
	})
	if err != nil {
		return nil, err
	}
	out, err := getJSON[Cluster](ctx, k.store, key)
	return &out, err
}

// DeleteCluster removes a cluster without machines, and its secrets for good.
func (k *Keeper) DeleteCluster(ctx context.Context, name string, rev uint64) error {
	return k.update(ctx, func() (Commit, error) {
		old, err := getJSON[Cluster](ctx, k.store, Key{BucketClusters, name})
		if err != nil {
			return Commit{}, fmt.Errorf("cluster %q: %w", name, err)
		}
		if rev != 0 && rev != old.Rev {
			return Commit{}, fmt.Errorf("cluster %s was changed: %w", name, ErrConflict)
		}
		members, err := k.Members(ctx, name, "")
		if err != nil {
			return Commit{}, err
		}
		if len(members) > 0 {
			return Commit{}, fmt.Errorf("cluster %s still has %d machines, such as %s; move or remove them first: %w", name, len(members), members[0], ErrRefused)
		}
		holders, err := k.holders(ctx, name, old.Epoch)
		if err != nil {
			return Commit{}, err
		}
		if len(holders) > 0 {
			return Commit{}, fmt.Errorf("the disk of %s is still of cluster %s, whose keys would be gone; reimage or remove it first: %w", holders[0].Machine, name, ErrRefused)
		}
		c := Commit{
			// A machine registered in this very instant is left in a cluster
			// that does not exist, which PlanBoot holds and says so.
			Checks: []Check{{Key{BucketClusters, name}, old.Rev}},
			Writes: []Write{{Key: Key{BucketClusters, name}}, {Key: Key{BucketSecrets, name}}, {Key: Key{BucketBootstraps, name}}, {Key: Key{BucketRollouts, name}}},
		}
		for epoch := range old.Epoch {
			c.Writes = append(c.Writes, Write{Key: oldSecrets(name, epoch)})
		}
		c.log(Event{Time: time.Now().UTC(), Kind: ClusterRemoved, Cluster: name, Message: "removed with its secrets"})
		return c, nil
	})
}

// Members returns the names of a cluster's machines, in order: all, or those of
// one role when role is not empty.
func (k *Keeper) Members(ctx context.Context, cluster string, role Role) ([]string, error) {
	var names []string
	for rec, err := range recordsAfter(ctx, k.store, BucketMembers, cluster+"/") {
		if err != nil {
			return nil, err
		}
		name, ok := strings.CutPrefix(rec.Key.ID, cluster+"/")
		if !ok {
			break
		}
		if role == "" || role == Role(rec.Value) {
			names = append(names, name)
		}
	}
	return names, nil
}

// Clusters lists all clusters by name.
func (k *Keeper) Clusters(ctx context.Context) ([]*Cluster, error) {
	list, err := listAll[Cluster](ctx, k.store, BucketClusters)
	out := make([]*Cluster, len(list))
	for i := range list {
		out[i] = &list[i]
	}
	return out, err
}

// Cluster returns a cluster and where its bootstrap stands.
func (k *Keeper) Cluster(ctx context.Context, name string) (*Cluster, *Bootstrap, error) {
	cl, err := getJSON[Cluster](ctx, k.store, Key{BucketClusters, name})
	if err != nil {
		return nil, nil, fmt.Errorf("cluster %q: %w", name, err)
	}
	b, err := getJSON[Bootstrap](ctx, k.store, Key{BucketBootstraps, name})
	if err != nil {
		return nil, nil, fmt.Errorf("bootstrap of cluster %q: %w", name, err)
	}
	return &cl, &b, nil
}

// Secrets returns the secrets bundle of a cluster. It is shared and must not be
// modified.
func (k *Keeper) Secrets(ctx context.Context, cluster string) (*Secrets, error) {
	s, err := k.secrets.get(ctx, k.store, Key{BucketSecrets, cluster})
	if err != nil {
		return nil, fmt.Errorf("secrets of cluster %q: %w", cluster, err)
	}
	return s, nil
}

// PutImage stores or replaces the description of a boot image.
func (k *Keeper) PutImage(ctx context.Context, img *Image) error {
	stored := *img
	stored.Created = time.Now().UTC()
	key := Key{BucketImages, img.ID()}
	return k.update(ctx, func() (Commit, error) {
		old, err := getJSON[Image](ctx, k.store, key)
		if err != nil && !errors.Is(err, ErrNotFound) {
			return Commit{}, err
		}
		if err == nil && slices.Equal(old.Files(), img.Files()) {
			return Commit{}, nil
		}
		var c Commit
		if err := c.put(key, stored, old.Rev); err != nil {
			return c, err
		}
		c.log(Event{Time: stored.Created, Kind: ImageAdded, Message: "boot image " + img.ID() + " added"})
		return c, nil
	})
}

// DeleteImage removes the description of a boot image.
func (k *Keeper) DeleteImage(ctx context.Context, id string) error {
	key := Key{BucketImages, id}
	return k.update(ctx, func() (Commit, error) {
		rec, err := k.store.Get(ctx, key)
		if err != nil {
			return Commit{}, fmt.Errorf("image %q: %w", id, err)
		}
		c := Commit{Checks: []Check{{key, rec.Rev}}, Writes: []Write{{Key: key}}}
		c.log(Event{Time: time.Now().UTC(), Kind: ImageRemoved, Message: "boot image " + id + " removed"})
		return c, nil
	})
}

// Images lists all boot images by id.
func (k *Keeper) Images(ctx context.Context) ([]Image, error) {
	return listAll[Image](ctx, k.store, BucketImages)
}

// Log appends an operator's act to the event log.
func (k *Keeper) Log(ctx context.Context, e Event) error {
	if e.Time.IsZero() {
		e.Time = time.Now()
	}
	e.Time = e.Time.UTC()
	return k.update(ctx, func() (Commit, error) {
		var c Commit
		c.log(e)
		return c, nil
	})
}

// KeepRendered remembers, redacted, what was rendered for a machine.
func (k *Keeper) KeepRendered(ctx context.Context, name string, v RenderedVersion) error {
	key := Key{BucketRendered, name}
	return k.update(ctx, func() (Commit, error) {
		old, err := getJSON[Rendered](ctx, k.store, key)
		if err != nil && !errors.Is(err, ErrNotFound) {
			return Commit{}, err
		}
		if len(old.Versions) > 0 && old.Versions[0].Hash == v.Hash {
			return Commit{}, nil
		}
		next := Rendered{Machine: name, Versions: append([]RenderedVersion{v}, old.Versions[:min(1, len(old.Versions))]...)}
		var c Commit
		err = c.put(key, next, old.Rev)
		return c, err
	})
}

// RenderedBy returns what was last rendered for a machine.
func (k *Keeper) RenderedBy(ctx context.Context, name string) (*Rendered, error) {
	r, err := getJSON[Rendered](ctx, k.store, Key{BucketRendered, name})
	return &r, err
}

// MetaOnce returns a single value of the installation, such as the server's
// DUID, and makes it on first use. Once stored it never changes.
func (k *Keeper) MetaOnce(ctx context.Context, id string, make func() ([]byte, error)) ([]byte, error) {
	key := Key{BucketMeta, id}
	var value []byte
	err := k.update(ctx, func() (Commit, error) {
		rec, err := k.store.Get(ctx, key)
		if err == nil {
			value = rec.Value
			return Commit{}, nil
		}
		if !errors.Is(err, ErrNotFound) {
			return Commit{}, err
		}
		if value, err = make(); err != nil {
			return Commit{}, err
		}
		return Commit{Checks: []Check{{key, 0}}, Writes: []Write{{key, value}}}, nil
	})
	return value, err
}
