package racktest

import (
	"errors"
	"fmt"
	"io"
	"slices"
	"sync"
	"time"
)

// Step is a point of a boot. The steps come in this order; a machine that
// starts from its disk begins at [StepAPI].
type Step int

// The steps of a network boot.
const (
	StepSolicit Step = iota
	StepAdvertise
	StepRequest
	StepReply
	StepLoader
	StepIPXESolicit
	StepScript
	StepKernel
	StepInitramfs
	StepConfig
	StepInstall
	StepAPI
	StepBootstrapWait
	StepReady
)

var stepNames = [...]string{
	"solicit", "advertise", "request", "reply", "loader", "ipxe-solicit", "script",
	"kernel", "initramfs", "config", "install", "api", "bootstrap-wait", "ready",
}

// Steps returns all steps in order.
func Steps() []Step {
	steps := make([]Step, len(stepNames))
	for i := range steps {
		steps[i] = Step(i)
	}
	return steps
}

// String returns the step's name, such as "ipxe-solicit".
func (s Step) String() string {
	if s < 0 || int(s) >= len(stepNames) {
		return fmt.Sprintf("step(%d)", int(s))
	}
	return stepNames[s]
}

// ErrPowerCut is what [Machine.PowerOn] returns when the power went away, by
// [Machine.PowerOff] or by a step hook that returned an error.
var ErrPowerCut = errors.New("power cut")

// Fault is what a machine was told by a server and cannot work with: a broken
// answer, as opposed to none. Code is the firmware's own where it has one.
type Fault struct {
	Code string // such as PXE-E53
	Text string
}

// Error says what was wrong, with the firmware's code.
func (f *Fault) Error() string {
	if f.Code == "" {
		return f.Text
	}
	return f.Code + ": " + f.Text
}

func fault(code, format string, args ...any) error {
	return &Fault{Code: code, Text: fmt.Sprintf(format, args...)}
}

// Entry is one line of a [Timeline].
type Entry struct {
	Time time.Time
	Step Step
	Note string
}

// Timeline is what a machine did since it was made, over all its boots.
// It is safe for concurrent use.
type Timeline struct {
	mu      sync.Mutex
	entries []Entry
}

// maxEntries bounds a timeline of a machine that boots in a loop.
const maxEntries = 4096

func (t *Timeline) add(s Step, format string, args ...any) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if len(t.entries) < maxEntries {
		t.entries = append(t.entries, Entry{time.Now(), s, fmt.Sprintf(format, args...)})
	}
}

// Entries returns a copy of the timeline, oldest first.
func (t *Timeline) Entries() []Entry {
	t.mu.Lock()
	defer t.mu.Unlock()
	return slices.Clone(t.entries)
}

func (t *Timeline) last() string {
	t.mu.Lock()
	defer t.mu.Unlock()
	if len(t.entries) == 0 {
		return "nothing yet"
	}
	e := t.entries[len(t.entries)-1]
	return e.Step.String() + ": " + e.Note
}

// print writes the timeline with seconds since start.
func (t *Timeline) print(w io.Writer, start time.Time) error {
	for _, e := range t.Entries() {
		if _, err := fmt.Fprintf(w, "  %+9.3fs  %-14s  %s\n", e.Time.Sub(start).Seconds(), e.Step, e.Note); err != nil {
			return err
		}
	}
	return nil
}
