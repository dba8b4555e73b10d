package machinelog

import "time"

// A kernel line says nothing of which boot it is of. Talos sends the kernel's
// ring buffer from its start with each connection, so a line whose seq was seen
// is either sent again or of another boot. The clock, in microseconds, tells
// them apart, but for the first lines, which are at 0 in every boot.

const (
	maxMarks = 64               // remembered lines of the boot that goes on
	certain  = time.Second      // a clock from here on is not the same in two boots
	late     = 10 * time.Second // that lines of the boot before may come after the first of the next
	maxLeap  = 1 << 20          // of seq between two lines that follow each other
	maxHeld  = 4096             // lines of one connection that wait to be told apart,
	maxHold  = 512 << 10        // and their bytes
	maxIDs   = 1024             // remembered events; Talos replays no more than 1000
)

// mark is what is remembered of a kernel line.
type mark struct {
	seq   uint64
	clock time.Duration
	sum   uint64
}

func markOf(l *Line) mark { return mark{l.Seq, l.Clock, sum(l.Text)} }

// kernel is what is known of the boot that goes on.
type kernel struct {
	boot   uint64 // 0: no line was ever heard
	began  time.Time
	last   mark
	marks  []mark // every stride-th line, in order
	stride int
	lines  int
}

// begin is another boot.
func (k *kernel) begin(boot uint64) {
	*k = kernel{boot: boot, began: time.Now(), stride: 1, marks: k.marks[:0]}
}

// add remembers a line that follows the last one.
func (k *kernel) add(l *Line) {
	k.last = markOf(l)
	if k.lines%k.stride == 0 {
		k.marks = append(k.marks, k.last)
	}
	k.lines++
	if len(k.marks) == maxMarks {
		for i := range maxMarks / 2 {
			k.marks[i] = k.marks[2*i]
		}
		k.marks = k.marks[:maxMarks/2]
		k.stride *= 2
	}
}

type verdict int

const (
	unknown verdict = iota
	same
	another
)

// compare says whether the first lines of a connection are of the boot that
// goes on.
func (k *kernel) compare(l *Line) verdict {
	switch {
	case k.boot == 0:
		return another
	case l.Seq > k.last.seq && (l.Clock < k.last.clock || l.Seq-k.last.seq > maxLeap):
		return another
	case l.Seq > k.last.seq:
		return same // and so was all before it, as far as can be told
	}
	m := markOf(l)
	for _, known := range append(k.marks, k.last) {
		switch {
		case known.seq != m.seq:
		case known != m:
			return another
		case known.clock >= certain:
			return same
		}
	}
	return unknown
}
