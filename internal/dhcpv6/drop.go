package dhcpv6

import (
	"fmt"
	"sync/atomic"
	"time"

	"github.com/rs/zerolog"
	"golang.org/x/time/rate"
)

// drop is a reason for giving a packet no answer.
type drop int

const (
	dropOversized drop = iota
	dropMalformed
	dropSource
	dropRelays
	dropRelay
	dropType
	dropDUID
	dropNoClient
	dropNoServer
	dropServerNamed
	dropIA
	dropNoAddress
	dropOtherServer
	dropUnicast
	dropSubnet
	dropRefused
	dropFailed
	dropQueue
	dropSend
	numDrops
)

var dropNames = [numDrops]string{
	dropOversized:   "oversized",
	dropMalformed:   "malformed",
	dropSource:      "bad source",
	dropRelays:      "too many relays",
	dropRelay:       "unknown relay",
	dropType:        "wrong type",
	dropDUID:        "bad client DUID",
	dropNoClient:    "no client DUID",
	dropNoServer:    "no server DUID",
	dropServerNamed: "server DUID where none belongs",
	dropIA:          "IA where none belongs",
	dropNoAddress:   "nothing to confirm",
	dropOtherServer: "for another server",
	dropUnicast:     "unicast",
	dropSubnet:      "no subnet",
	dropRefused:     "refused",
	dropFailed:      "failed",
	dropQueue:       "queue full",
	dropSend:        "not sent",
}

func (d drop) String() string { return dropNames[d] }

func (d drop) level() zerolog.Level {
	switch d {
	case dropOtherServer:
		return zerolog.DebugLevel // every link with two servers has these
	case dropRefused:
		return zerolog.InfoLevel // as configured
	case dropFailed:
		return zerolog.ErrorLevel
	}
	return zerolog.WarnLevel
}

// dropError says why a packet got no answer.
type dropError struct {
	why drop
	err error
}

func (e *dropError) Error() string { return e.why.String() + ": " + e.err.Error() }
func (e *dropError) Unwrap() error { return e.err }

func dropf(why drop, format string, args ...any) error {
	return &dropError{why, fmt.Errorf(format, args...)}
}

// drops counts by reason and logs one line a second for each.
type drops struct {
	counts [numDrops]atomic.Uint64
	lines  [numDrops]rate.Sometimes
}

func newDrops() *drops {
	d := new(drops)
	for i := range d.lines {
		d.lines[i].Interval = time.Second
	}
	return d
}

// add counts one dropped packet; line completes its log line, if it gets one.
func (d *drops) add(log zerolog.Logger, why drop, line func(*zerolog.Event) *zerolog.Event) {
	n := d.counts[why].Add(1)
	d.lines[why].Do(func() {
		line(log.WithLevel(why.level())).Str("drop", why.String()).Uint64("dropped", n).Msg("no answer")
	})
}

// Dropped returns how many packets got no answer, by reason, since New.
func (s *Server) Dropped() map[string]uint64 {
	m := make(map[string]uint64, numDrops)
	for why := range numDrops {
		m[why.String()] = s.drops.counts[why].Load()
	}
	return m
}
