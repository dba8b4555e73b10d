package maintenance

import (
	"container/heap"
	"net/netip"
	"time"

	"github.com/provisiond/provisiond/internal/inventory"
)

// key names whom a turn is of: a registered machine, or a NIC of nobody.
type key struct {
	machine string
	mac     inventory.MAC
}

// turn is when somebody is asked next. One turn is one question, to one address.
type turn struct {
	key
	at    time.Time     // zero: before all others
	wait  time.Duration // before that; doubles while nobody answers
	place int           // in the queue; -1 while it is being asked
	next  int           // index of the address
	// heard is where it was heard on a segment of ours, and until how long that is
	// reason enough to ask.
	heard netip.Addr
	until time.Time
	// there is set when the next question goes there, and owed when one went there since the
	// last to another address: anyone can be heard with anybody's MAC.
	there, owed bool
	nic         inventory.Stranger // as it was when the list was last read; zero: it is not in it
	// misses counts the rounds over all addresses in which nobody answered.
	misses  int
	refused string // for what, when that was recorded last, and
	toldAt  time.Time
	woken   bool // something happened while it was being asked
}

// turns are all of them, those that wait in the order of their time.
type turns struct {
	by    map[key]*turn
	queue queue
	nics  int // of nobody
}

func newTurns() turns { return turns{by: map[key]*turn{}} }

// of returns the turn of k, and makes one that is due at once; nil: there are too many of
// nobody.
func (t *turns) of(k key, now time.Time) *turn {
	if old := t.by[k]; old != nil {
		return old
	}
	if k.machine == "" {
		if t.nics >= maxNICs {
			return nil
		}
		t.nics++
	}
	n := &turn{key: k, at: now}
	t.by[k] = n
	heap.Push(&t.queue, n)
	return n
}

// set moves a turn, and puts one back that was being asked.
func (t *turns) set(n *turn, at time.Time) {
	n.at = at
	if n.place < 0 {
		heap.Push(&t.queue, n)
		return
	}
	heap.Fix(&t.queue, n.place)
}

// now has somebody asked at once; first: before those who are due already.
func (t *turns) now(n *turn, now time.Time, first bool) {
	n.wait = 0
	if n.place < 0 {
		n.woken = true
		return
	}
	if first {
		now = time.Time{}
	}
	if now.Before(n.at) {
		t.set(n, now)
	}
}

func (t *turns) drop(n *turn) {
	if n.place >= 0 {
		heap.Remove(&t.queue, n.place)
	}
	if delete(t.by, n.key); n.machine == "" {
		t.nics--
	}
}

// due takes the turn that is next, or says how long that takes.
func (t *turns) due(now time.Time) (n *turn, left time.Duration) {
	if len(t.queue) == 0 {
		return nil, seldom
	}
	if left = t.queue[0].at.Sub(now); left > 0 {
		return nil, left
	}
	return t.queue[0], 0
}

// take takes the first turn out of the queue, to be asked.
func (t *turns) take() *turn { return heap.Pop(&t.queue).(*turn) }

// queue is a heap by time.
type queue []*turn

func (q queue) Len() int           { return len(q) }
func (q queue) Less(i, j int) bool { return q[i].at.Before(q[j].at) }
func (q queue) Swap(i, j int) {
	q[i], q[j] = q[j], q[i]
	q[i].place, q[j].place = i, j
}

// Push implements heap.Interface.
func (q *queue) Push(x any) {
	n := x.(*turn)
	n.place = len(*q)
	*q = append(*q, n)
}

// Pop implements heap.Interface.
func (q *queue) Pop() any {
	last := len(*q) - 1
	n := (*q)[last]
	(*q)[last] = nil
	*q = (*q)[:last]
	n.place = -1
	return n
}
