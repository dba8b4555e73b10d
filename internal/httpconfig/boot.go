package httpconfig

import (
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
		Kind: inventory.ScriptServed, MAC: mac, Client: inventory.IPXE, Peer: peerOf(r),
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
	ctx := r.Context()
	again := s.again(e)
	view, err := s.Inventory.View(ctx, e.MAC, e.Arch)
	if err != nil {
		s.log.Error().Err(err).Str("mac", string(e.MAC)).Msg("cannot look up the machine that asks for a script")
		text(w, http.StatusOK, retryScript("the inventory does not answer", again, later))
		return
	}
	if view.Machine == nil && s.adopt(w, r, e) {
		return
	}
	if view.Machine != nil {
		e.Machine = view.Machine.Name
		// What follows carries the token of a boot, or is kept as what the machine said.
		why, err := s.stranger(ctx, view.Machine, e.Peer)
		if err != nil {
			s.log.Error().Err(err).Str("machine", e.Machine).Str("mac", string(e.MAC)).Msg("cannot look up who asks for a script")
			text(w, http.StatusOK, retryScript("the inventory does not answer", again, later))
			return
		}
		if why != "" {
			s.foreign(w, r, e, why)
			return
		}
	}
	plan := inventory.PlanScript(view, retry)
	e.Plan, e.Message = plan.Action, plan.Reason
	if plan.Action.Netboots() && view.Image == nil {
		plan = inventory.Plan{Action: inventory.Hold, Reason: "there is no boot image for " + e.Machine}
		e.Plan = plan.Action
	}
	if b := view.Facts.Current(); b != nil && retry != "" && retry == b.Token {
		e.Boot = b.Number
	}
	if plan.Wait {
		e.Plan, e.Wait = inventory.Hold, true
		after, err := s.Inventory.Record(ctx, e) // which has it looked at
		if b := after.Facts.Current(); err == nil && b != nil {
			again = withQuery(again, "retry", b.Token)
		}
		text(w, http.StatusOK, retryScript(e.Machine+": "+plan.Reason, again, soon))
		return
	}
	if !plan.Action.Netboots() {
		s.hold(w, r, e, plan.Reason)
		return
	}

	// The config is made now: a mistake in it is shown on the machine's console
	// instead of after a boot, and when it is fetched it is at hand. That goes for a
	// wipe, too: the install comes next.
	if _, err := s.Configs.Config(ctx, view); err != nil {
		s.broken(w, r, e, err)
		return
	}
	// Recorded first: the token in the script must be known when the machine,
	// or we, come back from a power cut; and a wipe is asked for once.
	e.Time = time.Now()
	after, err := s.Inventory.Record(ctx, e)
	if err == nil && (after.Machine == nil || after.Facts.Current() == nil) {
		err = inventory.ErrNotFound // removed between the two
	}
	if errors.Is(err, inventory.ErrRefused) { // another request was first
		text(w, http.StatusOK, retryScript(err.Error(), again, soon))
		return
	}
	if err != nil {
		s.log.Error().Err(err).Str("machine", e.Machine).Str("mac", string(e.MAC)).Msg("cannot record a boot, so no script is given")
		text(w, http.StatusOK, retryScript(e.Machine+": the inventory cannot be written", again, later))
		return
	}
	boot := after.Facts.Current()
	urls := s.config.URLs
	line, err := s.Configs.KernelLine(ctx, view, urls.Config(&view, e.MAC, boot.Token))
	if err != nil {
		s.broken(w, r, e, err)
		return
	}
	if plan.Action == inventory.Wipe {
		line += " " + wipeArg
		again = withQuery(again, "retry", boot.Token)
	}
	body, err := installScript(
		e.Machine+" starts Talos "+view.Image.Version+": "+plan.Reason,
		urls.Kernel(view.Image, e.MAC, boot.Number), urls.Initramfs(view.Image, e.MAC, boot.Number), line, again)
	if err != nil {
		s.broken(w, r, e, err)
		return
	}
	s.log.Info().Str("machine", e.Machine).Str("mac", string(e.MAC)).Str("plan", string(plan.Action)).Str("reason", plan.Reason).
		Uint64("boot", boot.Number).Stringer("peer", e.Peer).Msg("boot script served")
	text(w, http.StatusOK, body)
}

// hold gives the machine back to its firmware, for its disk or for nothing.
func (s *Server) hold(w http.ResponseWriter, r *http.Request, e inventory.Event, reason string) {
	if e.Plan == "" {
		e.Plan = inventory.Hold
	}
	e.Message = reason
	who, log := e.Machine, &s.log
	if who == "" {
		who, log = string(e.MAC), &s.junk
	}
	log.Info().Str("machine", e.Machine).Str("mac", string(e.MAC)).Str("plan", string(e.Plan)).Str("reason", reason).Stringer("peer", e.Peer).Msg("boot script served")
	text(w, http.StatusOK, leaveScript(who+": "+reason))
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

// foreign refuses the script of a machine to who is not the machine. It is no event of
// the machine's boot: anyone can cause it.
func (s *Server) foreign(w http.ResponseWriter, r *http.Request, e inventory.Event, reason string) {
	s.junk.Warn().Str("machine", e.Machine).Str("mac", string(e.MAC)).Stringer("peer", e.Peer).Str("reason", reason).Msg("boot script refused")
	text(w, http.StatusOK, leaveScript(reason))
	if s.worthNoting(e.MAC, e.Machine) {
		s.Trail.Note(audit.Entry{Action: "fetch-script", From: e.Peer.String(), Target: "machine/" + e.Machine, Outcome: audit.Refused, Reason: reason})
		s.record(r.Context(), inventory.Event{Kind: inventory.ScriptRefused, MAC: e.MAC, Machine: e.Machine, Peer: e.Peer, Message: reason})
	}
}

// broken says on the machine's console why it has no config, and lets it ask
// again: an operator will have corrected it.
func (s *Server) broken(w http.ResponseWriter, r *http.Request, e inventory.Event, err error) {
	s.log.Error().Err(err).Str("machine", e.Machine).Str("mac", string(e.MAC)).Msg("cannot make a machine's config, so it waits")
	text(w, http.StatusOK, retryScript(e.Machine+" has no valid config: "+err.Error(), s.again(e), later))
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
