package storetest

import (
	"context"
	"fmt"
	"sync"

	"github.com/provisiond/provisiond/internal/inventory"
)

// Fault is what goes wrong with one commit.
type Fault int

// The ways a commit can go wrong. The last is the one that breaks designs: the
// caller is told of a failure, and it happened all the same.
const (
	None Fault = iota
	Full
	LostNotPersisted
	LostButPersisted
)

// Faulty is a store whose commits fail as told.
type Faulty struct {
	inventory.Store

	mu   sync.Mutex
	next func() Fault
}

// NewFaulty wraps a store. It behaves until told otherwise.
func NewFaulty(s inventory.Store) *Faulty { return &Faulty{Store: s} }

// Each asks next before every commit what is to go wrong with it. nil: nothing.
func (f *Faulty) Each(next func() Fault) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.next = next
}

// Commit implements inventory.Store.
func (f *Faulty) Commit(ctx context.Context, c inventory.Commit) (uint64, uint64, error) {
	f.mu.Lock()
	fault := None
	if f.next != nil {
		fault = f.next()
	}
	f.mu.Unlock()
	return fault.Commit(ctx, f.Store, c)
}

// Commit commits, and has that go wrong.
func (f Fault) Commit(ctx context.Context, s inventory.Store, c inventory.Commit) (rev, logID uint64, err error) {
	switch f {
	case Full:
		return 0, 0, fmt.Errorf("injected: %w", inventory.ErrFull)
	case LostNotPersisted:
		return 0, 0, fmt.Errorf("injected: %w", inventory.ErrAmbiguous)
	case LostButPersisted:
		if _, _, err := s.Commit(ctx, c); err != nil {
			return 0, 0, err
		}
		return 0, 0, fmt.Errorf("injected: %w", inventory.ErrAmbiguous)
	}
	return s.Commit(ctx, c)
}
