package httpconfig

import (
	"cmp"
	"context"
	"encoding/hex"
	"errors"
	"net/http"
	"net/url"
	"strings"
	"time"

	"github.com/provisiond/provisiond/internal/audit"
	"github.com/provisiond/provisiond/internal/inventory"
)

// entry sends iPXE on to the script of its NIC.
func (s *Server) entry(w *transfer, _ *http.Request) {
	text(w, http.StatusOK, entryScript(s.config.URLs))
}

// script answers iPXE with what its machine is to do. All but a request that no
// iPXE makes is answered with a script, since a script can say why and try again.
func (s *Server) script(w *transfer, r *http.Request) {
	mac, err := inventory.ParseMAC(param(r, "mac"))
	if err != nil {
		s.refuse(w, r, http.StatusBadRequest, err.Error())
		return
	}
	q := r.URL.Query()
	e := inventory.Event{
		Kind: inventory.ScriptServed, MAC: mac, Client: inventory.IPXE, Peer: peerOf(r), Way: inventory.ByIPXE,
		UUID: cleanUUID(q.Get("uuid")), Serial: cleanSerial(q.Get("serial")),
	}
	arch, ok := archOf(q.Get("arch"))
	e.Arch = arch
	if !ok {
		s.hold(w, r, e, "this iPXE is for an architecture that Talos does not run on; boot the one for x86_64 or arm64")
		return
	}
	s.answer(w, r, e, q.Get("retry"))
}

// wipeArg has Talos wipe its system disk and reboot
// (internal/app/machined/pkg/runtime/v1alpha1/v1alpha1_sequencer.go, wipeDisks).
const wipeArg = "talos.experimental.wipe=system"

// Seconds until a machine asks for its script again: where we are about to know more,
// and where somebody has to do something first.
const soon, later = 5, 30

// answer makes the script. retry is the token of the script that the machine could not
// start, empty if there was none.
func (s *Server) answer(w http.ResponseWriter, r *http.Request, e inventory.Event, retry string) {
	again := s.again(e)
	st := s.start(r.Context(), &e, retry, true)
	who := e.Machine + ": "
	switch st.verdict {
	case unavailable:
		if e.Machine == "" {
			who = ""
		}
		text(w, http.StatusOK, retryScript(who+st.reason, again, later))
	case foreign:
		text(w, http.StatusOK, leaveScript(st.reason))
		s.noteForeign(r, e, st.reason)
	case raced:
		text(w, http.StatusOK, retryScript(st.reason, again, soon))
	case waits:
		if b := st.boot; b != nil {
			again = withQuery(again, "retry", b.Token)
		}
		text(w, http.StatusOK, retryScript(who+st.reason, again, soon))
	case holds:
		if st.view.Machine == nil && s.adopt(w, r, e) {
			return
		}
		s.hold(w, r, e, st.reason)
	case broken:
		s.broken(w, r, e, st.err)
	case starts:
		if st.plan.Action == inventory.Wipe {
			again = withQuery(again, "retry", st.boot.Token)
		}
		urls, image := s.config.URLs, st.view.Image
		body, err := installScript(
			e.Machine+" starts Talos "+image.Version+": "+st.plan.Reason,
			urls.Kernel(image, e.MAC, st.boot.Number), urls.Initramfs(image, e.MAC, st.boot.Number), st.line, again)
		if err != nil {
			s.broken(w, r, e, err)
			return
		}
		s.logStart(e, st, "boot script served")
		text(w, http.StatusOK, body)
	}
}

func (s *Server) logStart(e inventory.Event, st *start, what string) {
	s.log.Info().Str("machine", e.Machine).Str("mac", string(e.MAC)).Str("plan", string(st.plan.Action)).Str("reason", st.plan.Reason).
		Uint64("boot", st.boot.Number).Stringer("peer", e.Peer).Msg(what)
}

// verdict is what a request to be started comes to.
type verdict int

const (
	starts      verdict = iota
	unavailable         // the inventory does not answer, or cannot be written
	foreign             // who asks is not the machine
	waits               // for word that it may be wiped
	holds               // it is to start nothing, or is not registered
	raced               // another request was first
	broken              // its config or kernel line cannot be made
	unusable            // its boot image cannot be read
)

// start is a machine that asks to be started, and what that comes to.
type start struct {
	verdict verdict
	reason  string
	err     error // of broken
	view    inventory.View
	plan    inventory.Plan
	boot    *inventory.Boot // of starts; of waits, if there is one
	line    string          // the kernel line, of starts
}

// start decides what a machine that asks to be started is told, by a script or a UKI, and
// fills in e. If record is set, what is told is durable when it returns; without, there is
// no boot and no line.
func (s *Server) start(ctx context.Context, e *inventory.Event, retry string, record bool) *start {
	st := &start{}
	is := func(v verdict, reason string) *start {
		st.verdict, st.reason = v, reason
		return st
	}
	var err error
	if st.view, err = s.Inventory.View(ctx, e.MAC, e.Arch); err != nil {
		s.log.Error().Err(err).Str("mac", string(e.MAC)).Msg("cannot look up the machine that asks to be started")
		return is(unavailable, "the inventory does not answer")
	}
	if st.view.Machine != nil {
		e.Machine = st.view.Machine.Name
		// What follows carries the token of a boot, or is kept as what the machine said.
		why, err := s.stranger(ctx, st.view.Machine, e.Peer)
		if err != nil {
			s.log.Error().Err(err).Str("machine", e.Machine).Str("mac", string(e.MAC)).Msg("cannot look up who asks to be started")
			e.Machine = ""
			return is(unavailable, "the inventory does not answer")
		}
		if why != "" {
			return is(foreign, why)
		}
	}
	st.plan = inventory.PlanScript(st.view, retry)
	e.Plan, e.Message = st.plan.Action, st.plan.Reason
	if st.plan.Action.Netboots() && st.view.Image == nil {
		st.plan = inventory.Plan{Action: inventory.Hold, Reason: "there is no boot image for " + e.Machine}
		e.Plan = st.plan.Action
	}
	if b := st.view.Facts.Current(); b != nil && retry != "" && retry == b.Token {
		e.Boot = b.Number
	}
	if st.plan.Wait {
		e.Plan, e.Wait = inventory.Hold, true
		if record && e.Client == inventory.IPXE { // firmware does not wait, but goes on to what it may find on a disk
			if after, err := s.Inventory.Record(ctx, *e); err == nil { // which has it looked at
				st.boot = after.Facts.Current()
			}
		}
		return is(waits, st.plan.Reason)
	}
	if !st.plan.Action.Netboots() {
		return is(holds, st.plan.Reason)
	}
	// The config is made now: a mistake in it is shown on the machine's console
	// instead of after a boot, and when it is fetched it is at hand. That goes for a
	// wipe, too: the install comes next.
	if _, st.err = s.Configs.Config(ctx, st.view); st.err != nil {
		return is(broken, "")
	}
	if !record {
		return st
	}
	// Recorded first: the token in the kernel line must be known when the machine,
	// or we, come back from a power cut; and a wipe is asked for once.
	e.Time = time.Now()
	after, err := s.Inventory.Record(ctx, *e)
	if err == nil && (after.Machine == nil || after.Facts.Current() == nil) {
		err = inventory.ErrNotFound // removed between the two
	}
	if errors.Is(err, inventory.ErrRefused) {
		return is(raced, err.Error())
	}
	if err != nil {
		s.log.Error().Err(err).Str("machine", e.Machine).Str("mac", string(e.MAC)).Msg("cannot record a boot, so the machine is not started")
		return is(unavailable, "the inventory cannot be written")
	}
	st.boot = after.Facts.Current()
	if st.line, st.err = s.Configs.KernelLine(ctx, st.view, s.config.URLs.Config(&st.view, e.MAC, st.boot.Token)); st.err != nil {
		return is(broken, "")
	}
	if st.plan.Action == inventory.Wipe {
		st.line += " " + wipeArg
	}
	return st
}

// hold gives the machine back to its firmware, for its disk or for nothing.
func (s *Server) hold(w http.ResponseWriter, r *http.Request, e inventory.Event, reason string) {
	text(w, http.StatusOK, leaveScript(cmp.Or(e.Machine, string(e.MAC))+": "+reason))
	s.noteHold(r, e, reason)
}

// noteHold keeps that a machine was started by nothing.
func (s *Server) noteHold(r *http.Request, e inventory.Event, reason string) {
	if e.Plan == "" {
		e.Plan = inventory.Hold
	}
	e.Message = reason
	log := &s.log
	if e.Machine == "" {
		log = &s.junk
	}
	log.Info().Str("machine", e.Machine).Str("mac", string(e.MAC)).Str("plan", string(e.Plan)).Str("reason", reason).Stringer("peer", e.Peer).Msg("sent back to its firmware")
	// Nothing hangs on this record. That of a stranger is anybody's to cause.
	if e.Machine != "" || s.refusals.Allow() {
		s.record(r.Context(), e)
	}
}

// adopt has an unregistered machine wait until somebody registers it, where that is
// wanted: its next script is of what it is by then.
func (s *Server) adopt(w http.ResponseWriter, r *http.Request, e inventory.Event) bool {
	code, err := s.Inventory.Adopts(r.Context(), e.MAC)
	if err != nil {
		s.log.Error().Err(err).Str("mac", string(e.MAC)).Msg("cannot look up who asks for a script")
	}
	if code == "" {
		return false
	}
	s.junk.Info().Str("mac", string(e.MAC)).Str("code", code).Stringer("peer", e.Peer).Msg("an unregistered machine waits to be adopted")
	text(w, http.StatusOK, retryScript(string(e.MAC)+" is not registered. Its code is "+code+": provisiond adopt "+code, s.again(e), later))
	if e.Plan, e.Message = inventory.Hold, "waits to be adopted"; s.refusals.Allow() {
		s.record(r.Context(), e)
	}
	return true
}

// noteForeign keeps that what a machine starts with was refused to who is not the machine.
// It is no event of the machine's boot: anyone can cause it.
func (s *Server) noteForeign(r *http.Request, e inventory.Event, reason string) {
	s.junk.Warn().Str("machine", e.Machine).Str("mac", string(e.MAC)).Stringer("peer", e.Peer).Str("reason", reason).Msg("boot script refused")
	if s.worthNoting(e.MAC, e.Machine) {
		s.Trail.Note(audit.Entry{Action: "fetch-script", From: e.Peer.String(), Target: "machine/" + e.Machine, Outcome: audit.Refused, Reason: reason})
		s.record(r.Context(), inventory.Event{Kind: inventory.ScriptRefused, MAC: e.MAC, Machine: e.Machine, Peer: e.Peer, Message: reason})
	}
}

// broken says on the machine's console why it has no config, and lets it ask
// again: an operator will have corrected it.
func (s *Server) broken(w http.ResponseWriter, r *http.Request, e inventory.Event, err error) {
	text(w, http.StatusOK, retryScript(e.Machine+" has no valid config: "+err.Error(), s.again(e), later))
	s.noteBroken(r, e, err)
}

func (s *Server) noteBroken(r *http.Request, e inventory.Event, err error) {
	s.log.Error().Err(err).Str("machine", e.Machine).Str("mac", string(e.MAC)).Msg("cannot make a machine's config, so it waits")
	e.Plan, e.Error, e.Message = inventory.Hold, err.Error(), "its config cannot be made: "+err.Error()
	s.record(r.Context(), e)
}

// again is the URL by which a script asks for its successor.
func (s *Server) again(e inventory.Event) string {
	return withQuery(s.config.URLs.Script(e.MAC, e.Arch), "uuid", e.UUID, "serial", e.Serial)
}

// withQuery adds parameters, names and values in turn, to a URL. Those that are empty
// are left out.
func withQuery(u string, params ...string) string {
	for ; len(params) >= 2; params = params[2:] {
		if params[1] == "" {
			continue
		}
		sep := "&"
		if !strings.Contains(u, "?") {
			sep = "?"
		}
		u += sep + params[0] + "=" + url.QueryEscape(params[1])
	}
	return u
}

// archOf reads iPXE's ${buildarch}, or our own name of an architecture. Nothing
// is an answer too.
func archOf(s string) (inventory.Arch, bool) {
	switch s {
	case "":
		return "", true
	case "x86_64", string(inventory.AMD64):
		return inventory.AMD64, true
	case string(inventory.ARM64):
		return inventory.ARM64, true
	}
	return "", false
}

// cleanUUID takes an SMBIOS UUID in text form, in lower case; "" for anything
// else and for the UUIDs that vendors leave unset.
func cleanUUID(s string) string {
	s = strings.ToLower(s)
	if len(s) != 36 || s[8] != '-' || s[13] != '-' || s[18] != '-' || s[23] != '-' {
		return ""
	}
	digits := strings.ReplaceAll(s, "-", "")
	if _, err := hex.DecodeString(digits); err != nil || strings.Trim(digits, "0") == "" || strings.Trim(digits, "f") == "" {
		return ""
	}
	return s
}

// cleanSerial takes a serial number of at most 64 printable characters.
func cleanSerial(s string) string {
	s = strings.TrimSpace(s)
	if len(s) > 64 || strings.ContainsFunc(s, func(r rune) bool { return r < ' ' || r > '~' }) {
		return ""
	}
	return s
}
