package talos

import (
	"container/list"
	"sync"
)

// lru is a bounded map that forgets what was not asked for the longest. It is
// safe for concurrent use.
type lru[V any] struct {
	mu    sync.Mutex
	max   int
	order *list.List // of entry[V], newest first
	byKey map[string]*list.Element
}

type entry[V any] struct {
	key   string
	value V
}

func newLRU[V any](limit int) *lru[V] {
	return &lru[V]{max: limit, order: list.New(), byKey: map[string]*list.Element{}}
}

func (l *lru[V]) get(key string) (v V, ok bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	e, ok := l.byKey[key]
	if !ok {
		return v, false
	}
	l.order.MoveToFront(e)
	return e.Value.(entry[V]).value, true
}

func (l *lru[V]) put(key string, v V) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if e, ok := l.byKey[key]; ok {
		e.Value = entry[V]{key, v}
		l.order.MoveToFront(e)
		return
	}
	l.byKey[key] = l.order.PushFront(entry[V]{key, v})
	if l.order.Len() > l.max {
		oldest := l.order.Back()
		delete(l.byKey, oldest.Value.(entry[V]).key)
		l.order.Remove(oldest)
	}
}
