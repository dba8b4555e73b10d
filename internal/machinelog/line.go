package machinelog

import (
	"hash/maphash"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"
)

// Kind says where a line comes from.
type Kind string

// The two kinds.
const (
	Kernel Kind = "kernel" // the kernel's log, which holds Talos' own
	Event  Kind = "event"  // Talos' event stream
)

// maxText bounds what is kept of one line, in bytes; what is longer is cut and
// says so.
const maxText = 16 << 10

// Line is one line of a machine's log.
type Line struct {
	// N counts the lines of a machine from 1. The store sets it.
	N    uint64
	Kind Kind
	Time time.Time // of the machine's own clock
	Text string

	// Of a kernel line. Boot counts the starts of a kernel that were heard of,
	// from 1; the store sets it. Clock is the time since that start.
	Boot            uint64
	Seq             uint64
	Clock           time.Duration
	Facility, Level string // as Talos names them: kern or user; notice, warning

	// Of an event: what tells it from all others of the machine.
	ID string
}

// appendTo writes a line as it is in the file: fields with tabs between them, and
// the text last.
func (l *Line) appendTo(b []byte) []byte {
	b = strconv.AppendUint(b, l.N, 10)
	b = append(b, '\t')
	b = append(b, l.Kind...)
	b = append(b, '\t')
	b = l.Time.UTC().AppendFormat(b, time.RFC3339Nano)
	b = append(b, '\t')
	if l.Kind == Kernel {
		b = strconv.AppendUint(b, l.Boot, 10)
		b = append(b, '\t')
		b = strconv.AppendUint(b, l.Seq, 10)
		b = append(b, '\t')
		b = strconv.AppendInt(b, l.Clock.Microseconds(), 10)
		b = append(b, '\t')
		b = append(b, l.Facility...)
		b = append(b, '\t')
		b = append(b, l.Level...)
	} else {
		b = append(b, l.ID...)
	}
	b = append(b, '\t')
	b = append(b, l.Text...)
	return append(b, '\n')
}

// parseLine reads what appendTo wrote, without the newline.
func parseLine(s string) (l Line, ok bool) {
	var bad bool
	next := func() (field string) {
		var more bool
		field, s, more = strings.Cut(s, "\t")
		bad = bad || !more
		return field
	}
	number := func() uint64 {
		n, err := strconv.ParseUint(next(), 10, 64)
		bad = bad || err != nil
		return n
	}
	l.N, l.Kind = number(), Kind(next())
	at, err := time.Parse(time.RFC3339Nano, next())
	l.Time, bad = at.UTC(), bad || err != nil
	switch l.Kind {
	case Kernel:
		l.Boot, l.Seq = number(), number()
		micros := number()
		bad = bad || micros > maxClock
		l.Clock = time.Duration(micros) * time.Microsecond
		l.Facility, l.Level = next(), next()
	case Event:
		l.ID = next()
	default:
		bad = true
	}
	l.Text = s
	return l, !bad && l.N > 0
}

// maxClock is the longest time since the start that a Duration holds, in
// microseconds: 292 years.
const maxClock = uint64((1<<63 - 1) / time.Microsecond)

// plain makes a line fit into the file: no control characters, no broken UTF-8, no
// more than maxText, a time that can be written.
func (l *Line) plain() {
	if y := l.Time.UTC().Year(); y < 0 || y > 9999 {
		l.Time = time.Time{}
	}
	l.Clock = max(l.Clock, 0)
	for _, f := range []struct {
		s     *string
		limit int
	}{{&l.Facility, 32}, {&l.Level, 32}, {&l.ID, 128}, {&l.Text, maxText}} {
		*f.s = plain(*f.s, f.limit)
	}
}

func plain(s string, limit int) string {
	const cut = " [cut]"
	long := len(s) > limit
	if long {
		s = s[:limit-len(cut)]
	}
	if !utf8.ValidString(s) || strings.ContainsFunc(s, control) {
		s = strings.Map(func(r rune) rune {
			if control(r) {
				return ' '
			}
			return r
		}, strings.ToValidUTF8(s, "?"))
	}
	if long {
		s += cut
	}
	return s
}

func control(r rune) bool { return r < ' ' || r >= 0x7f && r < 0xa0 }

var seed = maphash.MakeSeed()

// sum tells texts apart, in this process alone.
func sum(text string) uint64 { return maphash.String(seed, text) }
