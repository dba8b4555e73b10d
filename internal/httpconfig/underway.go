package httpconfig

import (
	"slices"
	"sync"
	"time"

	"github.com/provisiond/provisiond/internal/inventory"
)

// underway is the boot files that machines are reading, by name. There are at most as
// many as connections.
type underway struct {
	mu sync.Mutex
	of map[string][]*download // oldest first
}

// download is one of them; w counts what is sent of it.
type download struct {
	step    string
	size    int64
	started time.Time
	w       *transfer
}

// begin adds a download of a machine, and returns what takes it out.
func (u *underway) begin(machine string, d *download) (end func()) {
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.of == nil {
		u.of = map[string][]*download{}
	}
	u.of[machine] = append(u.of[machine], d)
	return func() {
		u.mu.Lock()
		defer u.mu.Unlock()
		left := slices.DeleteFunc(u.of[machine], func(other *download) bool { return other == d })
		if u.of[machine] = left; len(left) == 0 {
			delete(u.of, machine)
		}
	}
}

// Transfer returns what a machine is reading: where that are two files, the one that it
// asked for last.
func (s *Server) Transfer(machine string) (t inventory.Transfer, ok bool) {
	s.underway.mu.Lock()
	defer s.underway.mu.Unlock()
	list := s.underway.of[machine]
	if len(list) == 0 {
		return t, false
	}
	return list[len(list)-1].now(), true
}

// Transfers is Transfer of all machines that are reading something, by name.
func (s *Server) Transfers() map[string]inventory.Transfer {
	s.underway.mu.Lock()
	defer s.underway.mu.Unlock()
	all := make(map[string]inventory.Transfer, len(s.underway.of))
	for machine, list := range s.underway.of {
		all[machine] = list[len(list)-1].now()
	}
	return all
}

func (d *download) now() inventory.Transfer {
	// Several ranges in one answer have a little between them, and no order.
	sent := min(d.w.from.Load()+d.w.sent.Load(), d.size)
	return inventory.Transfer{Step: d.step, Sent: sent, Size: d.size, Started: d.started}
}
