package inventory

import (
	"context"
	"crypto/rand"
	"encoding/binary"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"
)

// Approval says whether a person confirms a machine at its console before it is given
// its config.
type Approval string

// The choices. An empty Approval of a machine is its cluster's, one of a cluster is
// [ApprovalNone].
const (
	ApprovalNone     Approval = "none"
	ApprovalRequired Approval = "required"
)

func checkApproval(a Approval) error {
	switch a {
	case "", ApprovalNone, ApprovalRequired:
		return nil
	}
	return fieldErr("approval", "required or none", "%q is not a kind of approval", a)
}

// NeedsApproval reports whether a person has to approve the machine's boots.
func (v *View) NeedsApproval() bool {
	switch {
	case v.Machine != nil && v.Machine.Approval != "":
		return v.Machine.Approval == ApprovalRequired
	case v.Cluster != nil:
		return v.Cluster.Approval == ApprovalRequired
	}
	return false
}

// Flow is one device authorization (RFC 8628): a machine that asked to be approved,
// shows a code on its console and waits. Whoever knows the token of the boot can
// begin one; but a person approves the code that he read off the machine.
type Flow struct {
	UserCode string `json:"userCode"`
	// Device and Access are the SHA-256, hexadecimal, of the device code by which it polls
	// and of the access token that it is given for it.
	Device  string     `json:"device"`
	Access  string     `json:"access"`
	Peer    netip.Addr `json:"peer"`
	Asked   time.Time  `json:"asked"`
	Expires time.Time  `json:"expires"`
	Decided time.Time  `json:"decided,omitzero"`
	Denied  bool       `json:"denied,omitempty"`
	By      string     `json:"by,omitempty"` // who decided
	// For is what was approved: the machine in this role, in this life of its cluster.
	For Membership `json:"for,omitzero"`
}

// Approved reports whether a person said yes.
func (f *Flow) Approved() bool { return !f.Decided.IsZero() && !f.Denied }

// Pending reports whether it still waits for a person.
func (f *Flow) Pending(now time.Time) bool { return f.Decided.IsZero() && now.Before(f.Expires) }

// maxFlows is how many of a boot are kept, the newest. Talos begins another when the
// last one ended without a config.
const maxFlows = 4

// flow finds the flow of a code among the boots whose tokens count.
func (f *Facts) flow(code string) (boot, flow int) {
	for i, b := range f.Boots {
		for j := range b.Flows {
			if b.Flows[j].UserCode == code {
				return i, j
			}
		}
	}
	return -1, -1
}

// applyApproval folds in what becomes of flows. It refuses (ErrRefused) to decide what
// is decided the other way, has expired, or is not there.
func applyApproval(f *Facts, e Event) (tells bool, err error) {
	if e.Kind == ApprovalAsked {
		if b := changeBoot(f, e); b != nil {
			b.ask(e)
			return true, nil
		}
		return false, nil
	}
	i, j := f.flow(e.Code)
	if i < 0 {
		return false, noCode(e.Code)
	}
	denied := e.Kind == ApprovalDenied
	switch flow := &f.Boots[i].Flows[j]; {
	case !flow.Decided.IsZero() && flow.Denied == denied:
		return false, nil // clicked twice
	case !flow.Decided.IsZero():
		return false, fmt.Errorf("%s was decided at %s by %s: %w", e.Code, flow.Decided.UTC().Format(time.RFC3339), flow.By, ErrRefused)
	case !e.Time.Before(flow.Expires):
		return false, fmt.Errorf("%s has expired: the machine shows another code by now: %w", e.Code, ErrRefused)
	}
	b := f.change(i)
	b.Flows[j].Decided, b.Flows[j].Denied, b.Flows[j].By, b.Flows[j].For = e.Time, denied, e.By, e.Holds
	return true, nil
}

// ask adds a flow. Another address that asks with the token of the same boot is not the
// machine that asked before.
func (b *Boot) ask(e Event) {
	for _, other := range b.Flows {
		if other.Peer != e.Peer && b.Alarm == "" {
			b.Alarm = fmt.Sprintf("%s and %s both asked to be approved as boot %d: unless that was the machine again, one of them is somebody else; approve only the code that its console shows", other.Peer, e.Peer, b.Number)
		}
	}
	b.Flows = append(b.Flows, Flow{UserCode: e.Code, Device: e.Device, Access: e.Access, Peer: e.Peer, Asked: e.Time, Expires: e.Expires})
	if len(b.Flows) > maxFlows {
		// Whoever asks again and again pushes out his own, not what a person decided.
		oldest := max(0, slices.IndexFunc(b.Flows, func(f Flow) bool { return f.Decided.IsZero() }))
		b.Flows = slices.Delete(b.Flows, oldest, oldest+1)
	}
}

// waiting is the newest flow of the newest boot, if it waits for a person.
func (f *Facts) waiting(now time.Time) *Flow {
	if b := f.Current(); b != nil && len(b.Flows) > 0 {
		if flow := &b.Flows[len(b.Flows)-1]; flow.Pending(now) {
			return flow
		}
	}
	return nil
}

// PendingApproval is a machine that waits for a person.
type PendingApproval struct {
	Machine, Cluster string
	Boot             uint64
	Alarm            string
	Flow
}

// Approvals lists what waits for a person.
func (k *Keeper) Approvals(ctx context.Context) ([]PendingApproval, error) {
	out := []PendingApproval{}
	now := time.Now()
	err := k.eachFacts(ctx, func(f Facts) error {
		b := f.Current()
		if b == nil {
			return nil
		}
		for _, flow := range b.Flows {
			if !flow.Pending(now) {
				continue
			}
			v, err := k.Machine(ctx, f.Machine)
			if err != nil {
				return err
			}
			out = append(out, PendingApproval{Machine: f.Machine, Cluster: v.Machine.Cluster, Boot: b.Number, Alarm: b.Alarm, Flow: flow})
		}
		return nil
	})
	return out, err
}

// Approval finds the request of a code, however it was typed: one that waits, or was
// decided lately. It returns ErrNotFound when no machine shows the code.
func (k *Keeper) Approval(ctx context.Context, code string) (PendingApproval, error) {
	code = NormalUserCode(code)
	var found *PendingApproval
	err := k.eachFacts(ctx, func(f Facts) error {
		if i, j := f.flow(code); i >= 0 {
			found = &PendingApproval{Machine: f.Machine, Boot: f.Boots[i].Number, Alarm: f.Boots[i].Alarm, Flow: f.Boots[i].Flows[j]}
		}
		return nil
	})
	if err != nil {
		return PendingApproval{}, err
	}
	if found == nil {
		return PendingApproval{}, noCode(code)
	}
	v, err := k.Machine(ctx, found.Machine)
	if err != nil {
		return PendingApproval{}, err
	}
	found.Cluster = v.Machine.Cluster
	return *found, nil
}

func noCode(code string) error {
	return fmt.Errorf("no machine shows the code %q: %w", code, ErrNotFound)
}

// Decide approves or denies the request of a code, in the name of a person. Saying the
// same twice is no error; saying the other, or saying it too late, is ErrRefused.
func (k *Keeper) Decide(ctx context.Context, code string, approve bool, by string) (View, error) {
	p, err := k.Approval(ctx, code)
	if err != nil {
		return View{}, err
	}
	kind := ApprovalGiven
	if !approve {
		kind = ApprovalDenied
	}
	return k.Record(ctx, Event{Kind: kind, Machine: p.Machine, Code: p.UserCode, By: by})
}

// userCodeLetters make up user codes: no vowels, so no words (RFC 8628 section 6.1).
const userCodeLetters = "BCDFGHJKLMNPQRSTVWXZ"

// NewUserCode makes a code such as WDJB-MJHT, of 34 random bits.
func NewUserCode() string {
	var random [32]byte
	_, _ = rand.Read(random[:]) // never fails (crypto/rand)
	return userCode(random[:])
}

// userCode writes the first 34 bits of a number of at least 8 octets as a code.
func userCode(b []byte) string {
	n := binary.BigEndian.Uint64(b)
	code := make([]byte, 0, 9)
	for len(code) < cap(code) {
		if len(code) == 4 {
			code = append(code, '-')
		}
		code = append(code, userCodeLetters[n%uint64(len(userCodeLetters))])
		n /= uint64(len(userCodeLetters))
	}
	return string(code)
}

// NormalUserCode writes a code as [NewUserCode] does, however it was typed.
func NormalUserCode(s string) string {
	s = strings.Map(func(r rune) rune {
		if strings.ContainsRune(userCodeLetters, r) {
			return r
		}
		return -1
	}, strings.ToUpper(s))
	if len(s) > 4 {
		s = s[:4] + "-" + s[4:]
	}
	return s
}
