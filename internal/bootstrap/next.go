package bootstrap

import (
	"fmt"
	"strings"
	"time"

	"github.com/provisiond/provisiond/internal/inventory"
)

// Etcd is what a control plane's API says of its etcd.
type Etcd string

// What can be known of an etcd from outside.
const (
	EtcdUnknown Etcd = ""        // the API did not say
	EtcdWaiting Etcd = "waiting" // not running: waits to be bootstrapped or to join
	EtcdRunning Etcd = "running" // a member of a cluster
)

// Outcome is the answer to one Bootstrap call, by gRPC code
// (talos: internal/app/machined/internal/server/v1alpha1/v1alpha1_server.go).
type Outcome string

const (
	// Accepted: OK. Never repeated: each repeat restarts etcd and cancels its
	// image pull.
	Accepted Outcome = "accepted"
	// Already: AlreadyExists, etcd's data folder is not empty.
	Already Outcome = "already"
	// NotYet: FailedPrecondition, the machine is not up that far or not in sync.
	NotYet Outcome = "not yet"
	// WrongMachine: Unimplemented, not a control plane.
	WrongMachine Outcome = "wrong machine"
	// Denied: the certificate was not accepted, on either side.
	Denied Outcome = "denied"
	// Unknown: no answer. The call may have been accepted.
	Unknown Outcome = "unknown"
)

// Probe is one look at a control plane.
type Probe struct {
	Machine string
	// Answered is set when the API answered with a certificate of the cluster's
	// CA. Foreign is set when it answered with another one.
	Answered bool
	Foreign  bool
	Stage    inventory.Stage
	Ready    bool
	Etcd     Etcd
	// MayHaveData is set for a machine that could hold etcd's data without
	// answering: its API was seen before, or its cluster was imported.
	MayHaveData bool
	// Wiped is when the machine was last told to wipe its disk; zero: never.
	Wiped time.Time
	// Leaves is set for a machine that is ordered to be wiped.
	Leaves bool
	// Err says why it did not answer, for the log.
	Err string
}

// act is what the actor is to do next.
type act int

const (
	wait  act = iota // nothing but keep the reason
	claim            // commit the claim for machine
	call             // send the call to machine
	done             // record that etcd runs
)

type step struct {
	act     act
	machine string
	reason  string
	// again is when to look again, from now; zero: at the next change.
	again time.Duration
}

// retryAmbiguous is how long to leave a machine alone after a call whose answer
// was lost, before the same call is sent to the same machine. If the first one
// was accepted, etcd needs that time to pull its image.
const retryAmbiguous = 2 * time.Minute

// next decides one step from what is committed (b) and what was just seen. It is
// pure: everything irreversible follows from its answer and from nothing else.
//
// A crash between any two steps leaves a state that is decided the same way: no
// claim, a claim without a call (checked again, then called), a call without an
// answer (ambiguous: only the same machine, after a while), an accepted call
// (never repeated, etcd is watched).
//
// old are machines of the life before a reset: as long as there is one, that life is not
// over. An imported cluster is taken to run already, on machines that need not be
// registered here: it is watched and never bootstrapped.
func next(b inventory.Bootstrap, imported bool, old []string, probes []Probe, now time.Time) step {
	if b.Done() {
		return step{act: wait, reason: b.Reason}
	}
	for _, p := range probes {
		if p.Answered && p.Etcd == EtcdRunning {
			return step{act: done, machine: p.Machine, reason: "etcd runs on " + p.Machine}
		}
	}
	if b.Called() {
		return step{act: wait, reason: fmt.Sprintf("%s was bootstrapped; waiting for its etcd", b.Machine), again: poll}
	}
	if imported {
		return step{act: wait, reason: "it was imported, so it is taken to run already and is never bootstrapped; import it with --new if it never was", again: poll}
	}
	if len(old) > 0 {
		return step{act: wait, reason: fmt.Sprintf("%s may hold etcd data of the life before the reset: waiting until reimaged, or declared dead", strings.Join(old, ", ")), again: poll}
	}
	// Nobody may be called while somebody could hold the data of a cluster that
	// exists: a second bootstrap would make a second cluster of it.
	for _, p := range probes {
		switch {
		case p.Foreign:
			return step{act: wait, reason: fmt.Sprintf("%s answers with a certificate of another cluster: reimage it, or remove it from the inventory", p.Machine), again: poll}
		case !p.Answered && p.MayHaveData:
			return step{act: wait, reason: fmt.Sprintf("%s may hold etcd data and does not answer: start it, or remove it from the inventory", p.Machine), again: poll}
		}
	}
	if b.Claimed() {
		return nextOfClaimed(b, probes, now)
	}
	for _, p := range probes {
		if eligible(p) {
			return step{act: claim, machine: p.Machine, reason: p.Machine + " is the first control plane to report in"}
		}
	}
	if len(probes) == 0 {
		return step{act: wait, reason: "no control plane is registered"}
	}
	return step{act: wait, reason: "waiting for a control plane to report in", again: poll}
}

func nextOfClaimed(b inventory.Bootstrap, probes []Probe, now time.Time) step {
	for _, p := range probes {
		if p.Machine != b.Machine {
			continue
		}
		if b.Ambiguous && p.Wiped.After(b.ClaimedAt) {
			return step{act: wait, reason: fmt.Sprintf("%s may have been bootstrapped and was wiped then: give this life of the cluster up with provisiond cluster reset", b.Machine)}
		}
		if left := retryAmbiguous - now.Sub(b.SentAt); b.Ambiguous && left > 0 {
			return step{act: wait, reason: fmt.Sprintf("the call to %s was not answered; it may have been accepted, so it is left alone for a while", b.Machine), again: min(left, poll)}
		}
		// A definite no may be asked again soon, and ever more slowly: each try is
		// two commits.
		if left := min(time.Duration(b.Attempts)*poll, time.Minute) - now.Sub(b.SentAt); !b.Ambiguous && b.Attempts > 0 && left > 0 {
			return step{act: wait, reason: b.Reason, again: min(left, poll)}
		}
		if !eligible(p) {
			return step{act: wait, reason: fmt.Sprintf("%s holds the claim and is not ready to be bootstrapped (stage %q); no other machine may be", b.Machine, string(p.Stage)), again: poll}
		}
		return step{act: call, machine: b.Machine, reason: "calling bootstrap on " + b.Machine}
	}
	return step{act: wait, reason: fmt.Sprintf("%s holds the claim and is no control plane of this cluster any more; bring it back, for no other machine may be bootstrapped", b.Machine)}
}

// eligible reports whether a control plane waits to be bootstrapped.
func eligible(p Probe) bool {
	return p.Answered && !p.Leaves && p.Etcd == EtcdWaiting && (p.Stage == inventory.StageBooting || p.Stage == inventory.StageRunning)
}
