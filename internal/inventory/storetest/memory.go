package storetest

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"io"
	"maps"
	"slices"
	"sync"

	"github.com/provisiond/provisiond/internal/inventory"
)

// Memory is a store without a disk. What is committed stays for whoever opens it
// again; see [Memory.Copy] for a backup.
type Memory struct {
	mu      sync.Mutex
	rev     uint64
	records map[inventory.Key]inventory.Record
	entries []inventory.LogEntry
}

// NewMemory returns an empty store.
func NewMemory() *Memory { return &Memory{records: map[inventory.Key]inventory.Record{}} }

// Copy returns a store with the same contents.
func (s *Memory) Copy() *Memory {
	s.mu.Lock()
	defer s.mu.Unlock()
	return &Memory{rev: s.rev, records: maps.Clone(s.records), entries: slices.Clone(s.entries)}
}

// Rev is the revision of the newest commit.
func (s *Memory) Rev() uint64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.rev
}

// Get implements inventory.Store.
func (s *Memory) Get(_ context.Context, key inventory.Key) (inventory.Record, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	rec, ok := s.records[key]
	if !ok {
		return inventory.Record{}, inventory.ErrNotFound
	}
	rec.Value = slices.Clone(rec.Value)
	return rec, nil
}

// List implements inventory.Store.
func (s *Memory) List(_ context.Context, b inventory.Bucket, after string, limit int) ([]inventory.Record, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	var out []inventory.Record
	for key, rec := range s.records {
		if key.Bucket == b && key.ID > after {
			rec.Value = slices.Clone(rec.Value)
			out = append(out, rec)
		}
	}
	slices.SortFunc(out, func(a, b inventory.Record) int { return cmp.Compare(a.Key.ID, b.Key.ID) })
	if limit > 0 && len(out) > limit {
		out = out[:limit]
	}
	return out, nil
}

// Commit implements inventory.Store.
func (s *Memory) Commit(ctx context.Context, c inventory.Commit) (rev, logID uint64, err error) {
	if err := ctx.Err(); err != nil {
		return 0, 0, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, check := range c.Checks {
		if s.records[check.Key].Rev != check.Rev {
			return 0, 0, inventory.ErrConflict
		}
	}
	s.rev++
	for _, w := range c.Writes {
		if w.Value == nil {
			delete(s.records, w.Key)
		} else {
			s.records[w.Key] = inventory.Record{Key: w.Key, Value: slices.Clone(w.Value), Rev: s.rev}
		}
	}
	first := uint64(len(s.entries) + 1)
	for _, v := range c.Log {
		s.entries = append(s.entries, inventory.LogEntry{ID: uint64(len(s.entries) + 1), Value: slices.Clone(v)})
	}
	if len(c.Log) == 0 {
		first = 0
	}
	return s.rev, first, nil
}

// Log implements inventory.Store.
func (s *Memory) Log(_ context.Context, after uint64, limit int) ([]inventory.LogEntry, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	list := s.entries[min(after, uint64(len(s.entries))):]
	if limit > 0 && len(list) > limit {
		list = list[:limit]
	}
	return cloned(list), nil
}

// LogTail implements inventory.Store.
func (s *Memory) LogTail(_ context.Context, limit int) ([]inventory.LogEntry, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return cloned(s.entries[max(0, len(s.entries)-max(0, limit)):]), nil
}

func cloned(entries []inventory.LogEntry) []inventory.LogEntry {
	out := slices.Clone(entries)
	for i := range out {
		out[i].Value = slices.Clone(out[i].Value)
	}
	return out
}

// Backup implements inventory.Store.
func (s *Memory) Backup(_ context.Context, w io.Writer) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.records) == 0 {
		return errors.New("there is nothing to back up")
	}
	return json.NewEncoder(w).Encode(s.entries)
}

// Close implements inventory.Store.
func (s *Memory) Close() error { return nil }
