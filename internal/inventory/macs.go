package inventory

import (
	"context"
	"errors"
	"sync"
)

// macs is the index of MACs in memory, some 100 bytes for each: every packet is
// looked up in it, a stranger's too. It may be kept because the Keeper is the one
// writer.
type macs struct {
	mu     sync.RWMutex
	owners map[MAC]string // machine name
}

// load reads the index.
func (m *macs) load(ctx context.Context, store Store) error {
	m.owners = map[MAC]string{}
	for rec, err := range recordsAfter(ctx, store, BucketMACs, "") {
		if err != nil {
			return err
		}
		m.owners[MAC(rec.Key.ID)] = string(rec.Value)
	}
	return nil
}

// owner returns the machine of a NIC, empty if there is none.
func (m *macs) owner(mac MAC) string {
	m.mu.RLock()
	defer m.mu.RUnlock()
	return m.owners[mac]
}

// machines is the set of names of all registered machines: each has a MAC.
func (m *macs) machines() map[string]bool {
	m.mu.RLock()
	defer m.mu.RUnlock()
	names := make(map[string]bool, len(m.owners))
	for _, name := range m.owners {
		names[name] = true
	}
	return names
}

// reread takes over what is stored of the MACs that were written. Commits come
// back in any order, so that what they wrote is not taken at its word.
func (m *macs) reread(store Store, writes []Write) {
	for _, w := range writes {
		if w.Key.Bucket != BucketMACs {
			continue
		}
		m.mu.Lock()
		rec, err := store.Get(context.Background(), w.Key) // the commit is done, whoever waits for it
		if err == nil {
			m.owners[MAC(w.Key.ID)] = string(rec.Value)
		} else if errors.Is(err, ErrNotFound) {
			delete(m.owners, MAC(w.Key.ID))
		}
		m.mu.Unlock()
	}
}
