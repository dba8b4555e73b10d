package inventory

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"iter"
	"sync"
)

// revisioned are the record types, which carry the revision they were read at.
type revisioned interface {
	Machine | Facts | Cluster | Secrets | Bootstrap | Stranger | Image | Lease | Rendered | Rollout | Token
}

func decode[T revisioned](rec Record) (T, error) {
	var v T
	if err := json.Unmarshal(rec.Value, &v); err != nil {
		return v, fmt.Errorf("record %s/%s is damaged: %w", rec.Key.Bucket, rec.Key.ID, err)
	}
	switch p := any(&v).(type) {
	case *Machine:
		p.Rev = rec.Rev
	case *Facts:
		p.Rev, p.stored = rec.Rev, rec.Value
	case *Cluster:
		p.Rev = rec.Rev
	case *Secrets:
		p.Rev = rec.Rev
	case *Bootstrap:
		p.Rev, p.stored = rec.Rev, rec.Value
	case *Stranger:
		p.Rev = rec.Rev
	case *Image:
		p.Rev = rec.Rev
	case *Lease:
		p.Rev = rec.Rev
	case *Rendered:
		p.Rev = rec.Rev
	case *Rollout:
		p.Rev = rec.Rev
	case *Token:
		p.Rev = rec.Rev
	}
	return v, nil
}

func getJSON[T revisioned](ctx context.Context, s Store, key Key) (T, error) {
	rec, err := s.Get(ctx, key)
	if err != nil {
		var zero T
		return zero, err
	}
	return decode[T](rec)
}

func listAll[T revisioned](ctx context.Context, s Store, b Bucket) ([]T, error) {
	recs, err := s.List(ctx, b, "", 0)
	if err != nil {
		return nil, err
	}
	out := make([]T, 0, len(recs))
	for _, rec := range recs {
		v, err := decode[T](rec)
		if err != nil {
			return nil, err
		}
		out = append(out, v)
	}
	return out, nil
}

// recordsAfter yields the records of a bucket after an id, in order of id, and reads few
// of them at a time. An error ends it.
func recordsAfter(ctx context.Context, s Store, b Bucket, after string) iter.Seq2[Record, error] {
	const page = 512
	return func(yield func(Record, error) bool) {
		for {
			recs, err := s.List(ctx, b, after, page)
			if err != nil {
				yield(Record{}, err)
				return
			}
			for _, rec := range recs {
				if !yield(rec, nil) {
					return
				}
				after = rec.Key.ID
			}
			if len(recs) < page {
				return
			}
		}
	}
}

// decoded keeps the decoded form of records that many machines share, such as
// their cluster. The record is still read each time, and decoded anew when its
// revision moved. Values are shared: nobody may modify them.
type decoded[T revisioned] struct {
	mu sync.RWMutex
	m  map[string]decodedRecord[T]
}

type decodedRecord[T revisioned] struct {
	rev   uint64
	value *T
}

// maxDecoded bounds the cache; reaching it starts it anew.
const maxDecoded = 1024

func (d *decoded[T]) get(ctx context.Context, s Store, key Key) (*T, error) {
	rec, err := s.Get(ctx, key)
	if err != nil {
		return nil, err
	}
	d.mu.RLock()
	hit, ok := d.m[rec.Key.ID]
	d.mu.RUnlock()
	if ok && hit.rev == rec.Rev {
		return hit.value, nil
	}
	v, err := decode[T](rec)
	if err != nil {
		return nil, err
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.m == nil || len(d.m) >= maxDecoded {
		d.m = map[string]decodedRecord[T]{}
	}
	d.m[rec.Key.ID] = decodedRecord[T]{rec.Rev, &v}
	return &v, nil
}

// Backup writes a consistent copy of the inventory, secrets included.
func (k *Keeper) Backup(ctx context.Context, w io.Writer) error {
	if err := k.Flush(ctx); err != nil {
		return err
	}
	return k.store.Backup(ctx, w)
}
