package inventory

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"slices"
	"strings"
	"sync"
	"time"
)

// strangers bounds what unknown NICs can make us write: a fixed number of
// records, and a fixed rate of new ones, since a hostile client has as many
// MACs as it likes.
type strangers struct {
	max int

	mu    sync.Mutex
	seen  map[MAC]time.Time // last seen
	spent int               // new records in the current second
	slot  time.Time
}

// maxNewPerSecond is the rate of new strangers written to disk. A rack that is
// switched on at once has fewer unknown machines a second than this.
const maxNewPerSecond = 100

func (s *strangers) load(list []Stranger) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.seen = make(map[MAC]time.Time, len(list))
	for _, st := range list {
		s.seen[st.MAC] = st.LastSeen
	}
}

// admit says whether mac may be written, and which NIC has to go for it, if any.
// It changes nothing but the rate; saw does, once the write happened.
func (s *strangers) admit(mac MAC, now time.Time) (evict MAC, ok bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if _, known := s.seen[mac]; known {
		return "", true
	}
	if slot := now.Truncate(time.Second); slot != s.slot {
		s.slot, s.spent = slot, 0
	}
	if s.spent++; s.spent > maxNewPerSecond {
		return "", false
	}
	if len(s.seen) >= s.max {
		oldest := now
		for m, t := range s.seen {
			if evict == "" || t.Before(oldest) {
				evict, oldest = m, t
			}
		}
	}
	return evict, true
}

// saw notes what a commit wrote.
func (s *strangers) saw(writes []Write) {
	for _, w := range writes {
		if w.Key.Bucket != BucketStrangers {
			continue
		}
		var st Stranger
		_ = json.Unmarshal(w.Value, &st) // nil, or what we encoded a moment ago
		s.mu.Lock()
		if st.MAC == "" {
			delete(s.seen, MAC(w.Key.ID))
		} else {
			s.seen[st.MAC] = st.LastSeen
		}
		s.mu.Unlock()
	}
}

func (s *strangers) record(ctx context.Context, store Store, e Event) (Commit, error) {
	if e.MAC == "" || e.Kind != Solicited && e.Kind != ScriptServed && e.Kind != ConfigRefused && e.Kind != MaintenanceSeen {
		return Commit{}, nil
	}
	key := Key{BucketStrangers, string(e.MAC)}
	old, err := getJSON[Stranger](ctx, store, key)
	if err != nil && !errors.Is(err, ErrNotFound) {
		return Commit{}, err
	}
	next := old.SeenAgain(e)
	a, _ := json.Marshal(old)
	b, err := json.Marshal(next)
	if err != nil || bytes.Equal(a, b) {
		return Commit{}, err
	}
	evict, ok := s.admit(e.MAC, e.Time)
	if !ok {
		return Commit{}, nil
	}
	c := Commit{
		// Not if it is being registered at this moment.
		Checks: []Check{{key, old.Rev}, {Key{BucketMACs, string(e.MAC)}, 0}},
		Writes: []Write{{key, b}},
	}
	if evict != "" {
		c.Writes = append(c.Writes, Write{Key: Key{BucketStrangers, string(evict)}})
	}
	if old.Rev == 0 {
		e.Message = "an unregistered machine was discovered"
		c.log(e)
	}
	return c, nil
}

// Strangers lists the discovered NICs that are not registered, the one seen
// last first.
func (k *Keeper) Strangers(ctx context.Context) ([]Stranger, error) {
	list, err := listAll[Stranger](ctx, k.store, BucketStrangers)
	slices.SortFunc(list, func(a, b Stranger) int {
		if c := b.LastSeen.Compare(a.LastSeen); c != 0 {
			return c
		}
		return strings.Compare(string(a.MAC), string(b.MAC))
	})
	return list, err
}
