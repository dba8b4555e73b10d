// Package audit keeps the audit trail: who did what, from where, and what came of
// it, in a file that only grows. Each line carries the hash of the line before, so
// that a line which is changed or taken out shows. It imports nothing of ours.
package audit

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"
	"unicode/utf8"
)

// Outcome is what came of an act.
type Outcome string

// The outcomes.
const (
	OK      Outcome = "ok"
	Refused Outcome = "refused" // it was not tried
	Failed  Outcome = "failed"  // it was tried; it may have happened in part
)

// Entry is one line. Seq, Time and Prev are the trail's to fill in; a body or a
// secret has no place in any field.
type Entry struct {
	Seq     uint64    `json:"seq"`
	Time    time.Time `json:"time"`
	Who     string    `json:"who,omitempty"`    // name of who acted; empty: nobody who is known
	Via     string    `json:"via,omitempty"`    // how that is known
	Role    string    `json:"role,omitempty"`   // what they may do
	From    string    `json:"from,omitempty"`   // address
	Action  string    `json:"action"`           // id of an operation, or a word
	Target  string    `json:"target,omitempty"` // such as machine/cp-1
	Outcome Outcome   `json:"outcome"`
	Status  int       `json:"status,omitempty"`  // of HTTP
	Reason  string    `json:"reason,omitempty"`  // why not
	Request string    `json:"request,omitempty"` // id of the request
	Prev    string    `json:"prev"`              // SHA-256 of the line before without its newline, in hexadecimal; empty in the first
}

// Actions of the trail itself.
const (
	// actionTorn marks a line before it, which has the hash in Target, as one that a
	// crash has torn: it is part of no chain.
	actionTorn = "audit-torn"
	// actionLost says that entries could not be kept.
	actionLost = "audit-lost"
	// actionResumed is the first line after some that could not be written.
	actionResumed = "audit-resumed"
	// actionDamaged says where the chain was found broken when the trail was opened.
	actionDamaged = "audit-damaged"
)

const torn = "sha256:"

// maxText bounds each field that may hold what a stranger has sent.
const maxText = 512

// clip bounds a text, and leaves nothing in it that would end up as something else
// when it is encoded.
func clip(s string) string {
	if len(s) > maxText {
		s = s[:maxText] + "…"
	}
	if !utf8.ValidString(s) {
		s = strings.ToValidUTF8(s, "\uFFFD")
	}
	return s
}

// line encodes an entry. JSON escapes newlines, so it is one line.
func (e *Entry) line() ([]byte, error) {
	for _, text := range []*string{&e.Who, &e.Via, &e.Role, &e.From, &e.Action, &e.Target, &e.Reason, &e.Request} {
		*text = clip(*text)
	}
	e.Time = e.Time.UTC().Truncate(time.Microsecond)
	return json.Marshal(e)
}

// parse reads a line. Fields of a later version are let be.
func parse(line []byte) (e Entry, err error) {
	if err := json.Unmarshal(line, &e); err != nil {
		return e, err
	}
	if e.Seq == 0 || e.Seq != seqOf(line) || e.Action == "" {
		return e, errors.New("it has no action, or its number is not in front")
	}
	return e, nil
}

func hash(line []byte) string {
	sum := sha256.Sum256(line)
	return hex.EncodeToString(sum[:])
}

// Chain checks the lines of a trail in their order. Its zero value begins with any
// line, since operators may delete the oldest files.
type Chain struct {
	First, Last uint64 // numbers of the lines checked; 0: none yet
	Head        string // hash of the last

	junk []string // hashes of what is no line and is not marked yet
}

// Next checks one line, without its newline. An error says what is wrong; the check
// goes on behind it. A line that a crash has torn is an error unless what follows marks
// it as such: ask [Chain.End] after the last.
func (c *Chain) Next(line []byte) (Entry, error) {
	e, err := parse(line)
	if err != nil {
		c.junk = append(slices.Clip(c.junk), hash(line)) // chains are copied
		return Entry{}, nil
	}
	var problems []error
	switch {
	case len(c.junk) > 0 && e.Action == actionTorn && e.Target == torn+c.junk[0]:
		c.junk = c.junk[1:]
	case len(c.junk) > 0:
		problems = append(problems, c.End())
		c.junk = nil
	}
	switch {
	case c.Last == 0 && e.Seq == 1 && e.Prev != "":
		problems = append(problems, errors.New("line 1 follows another: what was before it is gone"))
	case c.Last != 0 && e.Seq != c.Last+1:
		problems = append(problems, fmt.Errorf("line %d follows line %d", e.Seq, c.Last))
	case c.Last != 0 && e.Prev != c.Head:
		problems = append(problems, fmt.Errorf("line %d or line %d was changed: the hash of the one is not what the other says", c.Last, e.Seq))
	}
	if c.First == 0 {
		c.First = e.Seq
	}
	c.Last, c.Head = e.Seq, hash(line)
	return e, errors.Join(problems...)
}

// End returns the error of a torn line at the end that nothing marks.
func (c *Chain) End() error {
	if len(c.junk) == 0 {
		return nil
	}
	return fmt.Errorf("what follows line %d is no line, and nothing marks it as torn by a crash", c.Last)
}

// seqOf reads the number at the front of a line, without all the rest; 0: it is no line.
func seqOf(line []byte) (n uint64) {
	digits, ok := bytes.CutPrefix(line, []byte(`{"seq":`))
	if !ok {
		return 0
	}
	for _, d := range digits {
		if d < '0' || d > '9' {
			break
		}
		n = n*10 + uint64(d-'0')
	}
	return n
}
