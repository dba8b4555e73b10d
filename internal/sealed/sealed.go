// Package sealed keeps the values of a store from whoever has only the store.
//
// [Store] stands before another inventory.Store and encrypts each value of a record
// and each entry of the log on its way down. Keys of records stay as they are,
// since they are sought and listed; so do sizes, revisions and times.
//
// What encrypts is a random data key. It is kept in the store, itself encrypted to
// the operator's [Key], which is kept elsewhere. [Reseal] replaces both.
package sealed

import (
	"context"
	"fmt"

	"github.com/provisiond/provisiond/internal/inventory"
)

// Store is an inventory.Store whose values are sealed in the store behind it.
// Backup copies that one as it is, so a copy is of no use without the key.
type Store struct {
	inventory.Store
	data dataKey
}

// Open opens a sealed store and writes nothing. It fails with ErrUnsealed when
// nothing of it is sealed, with a *WrongKeyError, or with ErrDamaged. Closing what it
// returns closes s; when it fails, s stays open.
func Open(ctx context.Context, s inventory.Store, key *Key) (*Store, error) {
	ring, err := readKeyring(ctx, s)
	if err != nil {
		return nil, err
	}
	data, err := ring.open(key)
	if err != nil {
		return nil, err
	}
	return &Store{s, data}, nil
}

// Get implements inventory.Store.
func (s *Store) Get(ctx context.Context, key inventory.Key) (inventory.Record, error) {
	rec, err := s.Store.Get(ctx, key)
	if err != nil {
		return rec, err
	}
	return s.open(rec)
}

// List implements inventory.Store.
func (s *Store) List(ctx context.Context, bucket inventory.Bucket, after string, limit int) ([]inventory.Record, error) {
	recs, err := s.Store.List(ctx, bucket, after, limit)
	if err != nil {
		return nil, err
	}
	for i, rec := range recs {
		if recs[i], err = s.open(rec); err != nil {
			return nil, err
		}
	}
	return recs, nil
}

func (s *Store) open(rec inventory.Record) (inventory.Record, error) {
	value, err := s.data.open(rec.Key, rec.Value)
	if err != nil {
		return inventory.Record{}, fmt.Errorf("record %s/%s is %w", rec.Key.Bucket, rec.Key.ID, err)
	}
	rec.Value = value
	return rec, nil
}

// Commit implements inventory.Store.
func (s *Store) Commit(ctx context.Context, c inventory.Commit) (rev, logID uint64, err error) {
	writes := make([]inventory.Write, len(c.Writes))
	for i, w := range c.Writes {
		if writes[i].Key = w.Key; w.Value != nil {
			writes[i].Value = s.data.seal(w.Key, w.Value)
		}
	}
	entries := make([][]byte, len(c.Log))
	for i, entry := range c.Log {
		entries[i] = s.data.seal(inLog, entry)
	}
	c.Writes, c.Log = writes, entries
	return s.Store.Commit(ctx, c)
}

// Log implements inventory.Store.
func (s *Store) Log(ctx context.Context, after uint64, limit int) ([]inventory.LogEntry, error) {
	return s.openLog(s.Store.Log(ctx, after, limit))
}

// LogTail implements inventory.Store.
func (s *Store) LogTail(ctx context.Context, limit int) ([]inventory.LogEntry, error) {
	return s.openLog(s.Store.LogTail(ctx, limit))
}

func (s *Store) openLog(entries []inventory.LogEntry, err error) ([]inventory.LogEntry, error) {
	if err != nil {
		return nil, err
	}
	for i, e := range entries {
		if entries[i].Value, err = s.data.open(inLog, e.Value); err != nil {
			return nil, fmt.Errorf("log entry %d is %w", e.ID, err)
		}
	}
	return entries, nil
}
