package model

import (
	"flag"
	"fmt"
	"runtime"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/provisiond/provisiond/internal/inventory"
)

var (
	schedules = flag.Int("schedules", 20_000, "how many random schedules to drive the model through")
	begin     = flag.Uint64("begin", 1, "seed of the first of them; the others follow it")
	seed      = flag.Uint64("seed", 0, "run the schedule of this seed only")
)

const (
	planes, workers = 3, 1
	length          = 120 // ops of a schedule
)

// run drives a world through a schedule and then, with nothing going wrong any more,
// to its end. It returns what must never happen and did, and after which op.
func run(t *testing.T, ops []op, m mutation) (wrong []string, at int) {
	synctest.Test(t, func(t *testing.T) {
		w, err := newWorld(t.Context(), planes, workers, m)
		if err != nil {
			t.Fatal(err)
		}
		for i, o := range ops {
			if w.do(o); len(w.wrong) > 0 {
				wrong, at = w.wrong, i
				return
			}
		}
		w.end()
		wrong, at = w.wrong, len(ops)
	})
	return wrong, at
}

// end is a rack that is left alone, powered and connected: all must come up.
func (w *world) end() {
	w.store.fault, w.call = 0, answered
	w.start()
	lost := w.given[w.secrets()] // somebody gave the word, so it may need a new life
	for _, b := range w.boxes {
		lost = lost || b.runs != nil && b.runs.secrets != w.secrets() || b.disk.config != nil && b.disk.config.secrets != w.secrets()
		b.diskFirst = false
	}
	if cl, _, err := w.k.Cluster(w.ctx, cluster); err == nil && cl.Imported {
		lost = true // restored: an operator has to say what becomes of it
	}
	if lost {
		w.reset(false)
	}
	for round := range 400 {
		for i, b := range w.boxes {
			for _, k := range []kind{power, advances, monitors, answers} {
				w.do(op{k, i, 2}) // nothing of which goes wrong
			}
			if round%40 == 39 {
				w.orderAgain(b)
			}
			// Who lost what he waited for, or is said to have to netboot, is switched off
			// and on, after a while.
			if r := w.facts(b).Reimage; round%40 == 39 && (b.at == memory || r.Outstanding() && strings.Contains(r.Reason, "next boots from the network")) {
				w.do(op{cut, i, 1})
			}
		}
		w.do(op{bootstraps, 0, 1})
		w.do(op{reimages, 0, 1})
		w.do(op{waits, 0, uint32(20 + round%3*60)})
		if len(w.wrong) > 0 || w.ready() == "" {
			return
		}
	}
	w.never("left alone, %s; %s", w.ready(), w.state())
}

// orderAgain is what a person orders who sees that a machine does not come up.
func (w *world) orderAgain(b *box) {
	v, err := w.k.Machine(w.ctx, b.name)
	if err != nil {
		return
	}
	r, c := &v.Facts.Reimage, b.disk.config
	switch {
	case c != nil && c.secrets != w.secrets() && (!r.Outstanding() || r.Claimed()):
		// Cancelled, and has to be all the same; or it came to nothing, which a machine of
		// another life does not prove.
		w.ordered(b, inventory.Event{Destroy: true}, true)
	case !w.stale || r.Outstanding():
	case c == nil && inventory.PlanBoot(v).Action == inventory.Disk, b.at == system && b.runs.role == inventory.ControlPlane && b.disk.etcd != "" && !w.member(b):
		// Wiped, or taken out of etcd, for an order that the restored backup does not know.
		w.ordered(b, inventory.Event{}, false)
	}
}

// state is that of all boxes, for who has to find out.
func (w *world) state() string {
	var b strings.Builder
	for _, m := range w.boxes {
		f := w.facts(m)
		fmt.Fprintf(&b, "\n\t%s at %s line %+v runs %v wipes %v disk %+v holds %+v install %+v reimage %+v", m.name, m.at, m.line, m.runs, m.wipes, m.disk, f.Holds, f.Install, f.Reimage)
	}
	return b.String()
}

// ready says what is left to do; nothing, when all machines are up as they should be.
func (w *world) ready() string {
	for _, b := range w.boxes {
		v, err := w.k.Machine(w.ctx, b.name)
		if err != nil {
			return err.Error()
		}
		s := inventory.DefaultPatience().PhaseOf(v, time.Now())
		switch r := &v.Facts.Reimage; {
		case r.Outstanding() && r.Claimed():
			return fmt.Sprintf("%s is being wiped: %+v", b.name, *r)
		case r.Outstanding() && !strings.Contains(r.Reason, "last control plane") && !strings.Contains(r.Reason, "left its disk as it was"):
			return fmt.Sprintf("%s is to be reimaged (it is at %s): %+v", b.name, b.at, *r)
		case b.at != system || !v.Facts.Ready:
			_, boot, _ := w.k.Cluster(w.ctx, cluster)
			return fmt.Sprintf("%s is at %s (it runs %v, etcd %q) and not ready: %+v, plan %+v, order %+v, bootstrap %+v %q", b.name, b.at, b.runs, b.disk.etcd, s, inventory.PlanBoot(v), v.Facts.Install, boot.Machine, boot.Reason)
		case v.Facts.Install.Outstanding():
			return fmt.Sprintf("%s is up and its install order %+v is open", b.name, v.Facts.Install)
		}
	}
	return ""
}

// shrink leaves out of a failing schedule what it fails without.
func shrink(t *testing.T, ops []op, m mutation) []op {
	fails := func(ops []op) bool { wrong, _ := run(t, ops, m); return len(wrong) > 0 }
	for size := len(ops) / 2; size > 0; size /= 2 {
		for from := 0; from+size <= len(ops); {
			if less := slices.Concat(ops[:from], ops[from+size:]); fails(less) {
				ops = less
			} else {
				from += size
			}
		}
	}
	return ops
}

func show(ops []op) string {
	var b strings.Builder
	for i, o := range ops {
		fmt.Fprintf(&b, "%4d  %-10s box %d  %d\n", i, o.kind, o.box, o.n)
	}
	return b.String()
}

// TestLifecycle: at most one etcd in each life of the cluster, no wipe that was not
// ordered and none twice, nothing installed over what runs, no quorum lost without the
// word, and all that stays powered and connected comes up. A schedule that fails is
// shrunk, and runs again with -seed.
func TestLifecycle(t *testing.T) {
	n := *schedules
	if raceEnabled {
		n /= 20
	}
	first, last := *begin, *begin+uint64(n)-1
	if *seed != 0 {
		first, last = *seed, *seed
	}
	var next atomic.Uint64
	next.Store(first)
	for i := range runtime.GOMAXPROCS(0) {
		t.Run(fmt.Sprint(i), func(t *testing.T) {
			t.Parallel()
			for s := next.Add(1) - 1; s <= last; s = next.Add(1) - 1 {
				ops := schedule(s, length, planes+workers)
				if wrong, at := run(t, ops, ""); len(wrong) > 0 {
					small := shrink(t, ops, "")
					again, _ := run(t, small, "")
					t.Fatalf("seed %d, after op %d: %s\nshrunk to %d ops, %v:\n%s", s, at, strings.Join(wrong, "; "), len(small), again, show(small))
				}
			}
		})
	}
}

// TestChecksCanFail breaks the daemon in one way after the other: each is caught, by the
// check that is there for it.
func TestChecksCanFail(t *testing.T) {
	for m, check := range map[mutation]string{
		noClaim:      "was bootstrapped twice",
		anyNode:      "was bootstrapped twice",
		wipeAlways:   "and that was ordered",
		noGuard:      "nobody said that it may be lost",
		oldLifeLives: "begins while",
	} {
		t.Run(string(m), func(t *testing.T) {
			for s := uint64(1); s <= 3_000; s++ {
				wrong, _ := run(t, schedule(s, length, planes+workers), m)
				if all := strings.Join(wrong, "; "); strings.Contains(all, check) {
					t.Logf("seed %d: %.200s", s, all)
					return
				}
			}
			t.Errorf("never %q", check)
		})
	}
}
