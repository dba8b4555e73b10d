package httpconfig

import (
	"bytes"
	"context"
	"crypto/subtle"
	"errors"
	"fmt"
	"net/http"
	"net/netip"
	"strconv"
	"time"

	"github.com/rs/zerolog"

	"github.com/provisiond/provisiond/internal/audit"
	"github.com/provisiond/provisiond/internal/inventory"
)

const (
	// settle is the least time between two looks at the inventory for one held
	// request: in a busy rack every commit wakes all of them.
	settle = time.Second
	// recheck looks again without a wake-up, should the store have been away.
	recheck = 15 * time.Second
)

// tokenBoots is how many boots' tokens count. A repeated Solicit can begin a new
// boot while the machine still runs the script of the one before.
const tokenBoots = 2

// fetch is one request for a config and what it comes to for now. It lies on the
// heap, and the functions here are small, for the stack of a new connection is:
// each time it grows costs as much as all else that a fetch does.
type fetch struct {
	way    way
	head   bool // nothing but the header is asked for
	mac    inventory.MAC
	token  string
	peer   netip.Addr
	plain  bool   // it came over a connection that anyone can read
	bearer string // access token; empty: none

	status int // 200; 401, 403 or 404 for good; 204 for not yet
	reason string
	why    refusal // if it was refused
	view   inventory.View
	boot   *inventory.Boot
	config MachineConfig
	body   []byte // of what is not the config alone
	news   bool   // it is not a further piece of what was given already
	stolen bool   // the token is right, and who shows it is not the machine
}

// give serves machines their configs by one way, against the token of their boot.
//
// "Not yet" is never an error status on the config URL: Talos waits twice as long after
// each, up to hours. The request is held until there is a config, and at last answered
// with 204, after which Talos asks again at once.
func (s *Server) give(by way) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) { s.machineConfig(w, r, by) }
}

func (s *Server) machineConfig(w http.ResponseWriter, r *http.Request, by way) {
	start, end, sent := time.Now(), refused, 0
	defer func() { s.metrics.ended(by.kind, end, int64(sent), time.Since(start)) }()
	f := s.begin(w, r)
	if f == nil {
		return
	}
	f.way = by
	s.look(r.Context(), f)
	if f.status == http.StatusNoContent && !by.image {
		s.wait(r.Context(), f)
		// The connection's deadline has passed meanwhile.
		_ = http.NewResponseController(w).SetWriteDeadline(time.Now().Add(s.config.Stall))
	}
	if f.status == http.StatusNoContent && f.view.NeedsApproval() {
		// After 204 Talos would have to be approved again; after this it asks with the
		// same access token.
		f.status = http.StatusServiceUnavailable
	}
	if f.status == http.StatusNoContent && by.early != 0 {
		f.status = by.early
	}
	switch f.status {
	case http.StatusOK:
		if f.news {
			s.logServed(f)
			s.note(f, audit.OK, s.evidence(f))
			s.metrics.grants.Inc()
		}
		if by.public || by.image {
			sent, end = s.sendFile(w, r, f)
			return
		}
		h := w.Header()
		h.Set("Content-Type", "application/yaml")
		h.Set("Content-Length", strconv.Itoa(f.config.Size))
		h.Set("Cache-Control", "no-store")
		if sent = s.send(w, f.config.Parts); sent == f.config.Size {
			end = complete
		} else {
			end = brokenOff
		}
	case http.StatusNoContent:
		end = notReady
		f.log(s.log.Warn(), "config not ready")
		w.Header().Set("Cache-Control", "no-store")
		w.WriteHeader(http.StatusNoContent)
	case http.StatusServiceUnavailable:
		end = notReady
		f.log(s.log.Warn(), "config not ready")
		text(w, f.status, f.reason+"\n")
	default:
		s.refused(r, f)
		if by.never != 0 && f.why != refusedAddress { // that may be mended in a moment
			f.status = by.never
		}
		if f.status == http.StatusNoContent {
			w.WriteHeader(f.status)
			return
		}
		text(w, f.status, "refused; provisiond's log says why\n")
	}
}

// begin reads who asks for what; nil if it was answered already.
func (s *Server) begin(w http.ResponseWriter, r *http.Request) *fetch {
	mac, err := inventory.ParseMAC(param(r, "mac"))
	if err != nil {
		s.metrics.refusals[refusedForm].Inc()
		s.refuse(w, r, http.StatusBadRequest, err.Error())
		return nil
	}
	f := &fetch{mac: mac, token: param(r, "token"), head: r.Method == http.MethodHead, peer: peerOf(r), plain: r.TLS == nil, bearer: bearer(r)}
	if !s.lab(f.peer) && !s.guessers.allowed(f.peer) {
		s.metrics.refusals[refusedOften].Inc()
		text(w, http.StatusTooManyRequests, "too many refused requests\n")
		return nil
	}
	return f
}

// refused is for a request that is not to be tried again.
func (s *Server) refused(r *http.Request, f *fetch) {
	s.metrics.refusals[f.why].Inc()
	s.guessers.wrong(f.peer)
	f.log(s.junk.Warn(), "config refused")
	// No flood of guesses hides that a token was stolen.
	if news := f.stolen && f.boot.Alarm == ""; news || s.worthNoting(f.mac, f.machine()) {
		s.note(f, audit.Refused, f.reason)
		if f.machine() != "" {
			s.recordRefusal(r.Context(), f)
		}
	}
}

// worthNoting limits what anyone can have us write. Each machine has a budget of its own,
// which nobody spends by asking for others; all strangers have one.
func (s *Server) worthNoting(mac inventory.MAC, machine string) bool {
	if machine == "" {
		return s.refusals.Allow()
	}
	return s.guessed.wrong(mac)
}

// note has a line in the audit trail: who was given the config of a machine, and why,
// or was not.
func (s *Server) note(f *fetch, outcome audit.Outcome, why string) {
	e := audit.Entry{Action: "fetch-config", From: f.peer.String(), Outcome: outcome, Status: f.status, Reason: why, Target: "nic/" + string(f.mac)}
	if name := f.machine(); name != "" {
		e.Target = "machine/" + name
	}
	if f.boot != nil {
		e.Via = "boot token"
	}
	s.Trail.Note(e)
}

// evidence is by what a fetch was taken for the machine's.
func (s *Server) evidence(f *fetch) string {
	how := "a lease of it"
	switch _, made := inventory.MACFromEUI64(f.peer); {
	case s.lab(f.peer):
		how = "the host of the lab"
	case f.boot.For.IsValid():
		how = "the address that was named for it"
	case f.peer == f.view.Machine.Address:
		how = "its address"
	case made:
		how = "an address made of its MAC"
	}
	said := fmt.Sprintf("token of boot %d, from %s, config %.12s", f.boot.Number, how, f.config.Hash)
	if f.way.seed != "" {
		said += ", as " + f.way.seed
	}
	if f.plain {
		said += ", unencrypted"
	}
	if flow := f.approvedBy(); flow != nil {
		said += ", approved by " + flow.By
	}
	return said
}

func (s *Server) logServed(f *fetch) {
	s.log.Info().Str("machine", f.machine()).Str("mac", string(f.mac)).Uint64("boot", f.boot.Number).Stringer("peer", f.peer).Str("sha256", f.config.Hash).Msg("config served")
}

func (f *fetch) log(e *zerolog.Event, what string) {
	e.Str("machine", f.machine()).Str("mac", string(f.mac)).Stringer("peer", f.peer).Str("reason", f.reason).Msg(what)
}

// send writes the parts as one: copying 16 KB costs less than another small
// segment on the wire. Should it fail, Talos asks again. It returns the bytes that were
// written.
func (s *Server) send(w http.ResponseWriter, parts [][]byte) int {
	if len(parts) == 1 {
		n, _ := w.Write(parts[0])
		return n
	}
	buf, ok := s.buffers.Get().(*bytes.Buffer)
	if !ok {
		buf = &bytes.Buffer{}
	}
	defer s.buffers.Put(buf)
	buf.Reset()
	for _, p := range parts {
		_, _ = buf.Write(p) // never fails (bytes.Buffer)
	}
	n, _ := w.Write(buf.Bytes())
	return n
}

// look decides what the request comes to now. When that is 200 it has been
// recorded.
func (s *Server) look(ctx context.Context, f *fetch) {
	f.status, f.reason, f.boot, f.stolen, f.news = 0, "", nil, false, false
	for _, step := range [...]func(*Server, context.Context, *fetch){(*Server).load, (*Server).admit, (*Server).approve, (*Server).plan, (*Server).render, (*Server).recordServed} {
		if step(s, ctx, f); f.status != 0 {
			return
		}
	}
	f.status = http.StatusOK
}

func (s *Server) load(ctx context.Context, f *fetch) {
	var err error
	if f.view, err = s.Inventory.View(ctx, f.mac, ""); err != nil {
		f.is(http.StatusNoContent, "the inventory does not answer: "+err.Error())
	} else if f.view.Machine == nil {
		f.refuse(refusedMAC, http.StatusNotFound, "this MAC is not registered")
	} else if c := f.view.Cluster; f.plain && c != nil && !c.Plain() {
		f.refuse(refusedPlain, http.StatusForbidden, "configs of "+c.Name+" are delivered over https only")
	}
}

// admit checks who asks: the token of a recent boot that is not over, from an
// address of the machine.
func (s *Server) admit(ctx context.Context, f *fetch) {
	if f.boot = bootOf(&f.view.Facts, f.token); f.boot == nil {
		f.refuse(refusedToken, http.StatusForbidden, "the token is not that of a recent boot")
		return
	}
	seeded := f.boot.Client == inventory.Seed
	if seeded != (f.way.seed != "") {
		f.refuse(refusedToken, http.StatusForbidden, "the token is that of a boot whose config goes another way")
		return
	}
	// One that still waits in memory for its config may, for as long as it takes; but
	// nothing waits with a seed.
	waits := f.boot == f.view.Facts.Current() && f.boot.Config.IsZero() && !seeded
	if age := time.Since(f.boot.Started); age > s.config.TokenWindow && !waits {
		f.refuse(refusedAge, http.StatusForbidden, fmt.Sprintf("boot %d began %v ago", f.boot.Number, age.Round(time.Minute)))
		return
	}
	if !f.boot.API.IsZero() {
		f.refuse(refusedOver, http.StatusForbidden, fmt.Sprintf("boot %d is over: the machine's own API has answered", f.boot.Number))
		return
	}
	if why, err := s.mayFetch(ctx, f); err != nil {
		f.is(http.StatusNoContent, "the inventory does not answer: "+err.Error())
	} else if why != "" {
		f.stolen = true
		f.refuse(refusedAddress, http.StatusForbidden, why)
	}
}

// plan asks the one boot decision.
func (s *Server) plan(_ context.Context, f *fetch) {
	if f.way.seed != "" {
		f.planSeed()
		return
	}
	switch plan := inventory.PlanBoot(f.view); {
	case f.boot.Plan == inventory.Wipe:
		f.is(http.StatusNoContent, "this boot is to wipe the disk and nothing else")
	case plan.Action == inventory.Install:
	case plan.Action != inventory.Hold && f.boot.Plan == inventory.Install:
		// It was told to install and is not done: what used up the order was
		// another boot, or it is to be wiped afterwards. Without a config it hangs.
	case plan.Action == inventory.Hold:
		f.is(http.StatusNoContent, plan.Reason)
	default:
		f.refuse(refusedPlan, http.StatusForbidden, plan.Reason)
	}
}

func (s *Server) render(ctx context.Context, f *fetch) {
	var err error
	if !f.way.public {
		f.config, err = s.Configs.Config(ctx, f.view)
	}
	if err == nil && (f.way.public || f.way.image) {
		err = s.fill(ctx, f)
	}
	if err != nil {
		f.is(http.StatusNoContent, "its config cannot be made: "+err.Error())
	}
}

func (s *Server) recordServed(ctx context.Context, f *fetch) {
	if f.way.public || f.head || f.way.image && f.hasIt() {
		return
	}
	f.news = true
	_, err := s.Inventory.Record(ctx, inventory.Event{
		Time: time.Now(), Kind: inventory.ConfigServed, MAC: f.mac, Machine: f.machine(), Boot: f.boot.Number, Hash: f.config.Hash, Peer: f.peer, ConfigBy: f.way.channel,
		Holds: inventory.Membership{Cluster: f.view.Cluster.Name, Role: f.view.Machine.Role, Epoch: f.view.Cluster.Epoch},
	})
	if errors.Is(err, inventory.ErrNotFound) {
		f.refuse(refusedMAC, http.StatusNotFound, "this MAC is not registered any more")
	} else if err != nil {
		f.is(http.StatusNoContent, "the inventory cannot be written: "+err.Error())
	}
}

func (s *Server) recordRefusal(ctx context.Context, f *fetch) {
	e := inventory.Event{Kind: inventory.ConfigRefused, MAC: f.mac, Machine: f.machine(), Peer: f.peer, Message: f.reason}
	if f.stolen {
		e.Kind, e.Boot = inventory.TokenStolen, f.boot.Number
	}
	s.record(ctx, e)
}

func (f *fetch) is(status int, reason string) { f.status, f.reason = status, reason }

// refuse is for good.
func (f *fetch) refuse(why refusal, status int, reason string) {
	f.why = why
	f.is(status, reason)
}

func (f *fetch) machine() string {
	if f.view.Machine == nil {
		return ""
	}
	return f.view.Machine.Name
}

// bootOf finds the recent boot that a token is of. How long it takes says nothing
// about a token.
func bootOf(f *inventory.Facts, token string) *inventory.Boot {
	var found *inventory.Boot
	for _, b := range f.Boots[:min(len(f.Boots), tokenBoots)] {
		if b.Token != "" && subtle.ConstantTimeCompare([]byte(b.Token), []byte(token)) == 1 {
			found = b
		}
	}
	return found
}

// wait holds a request that is "not yet" until it comes to something else, or
// for Config.Hold.
func (s *Server) wait(ctx context.Context, f *fetch) {
	select {
	case s.held <- struct{}{}:
		defer func() { <-s.held }()
	default:
		f.reason = "too many requests are waiting; " + f.reason
		return
	}
	changed, stop := s.Inventory.Watch()
	defer stop()
	s.log.Info().Str("machine", f.machine()).Str("mac", string(f.mac)).Str("reason", f.reason).Msg("config request waits")
	end := time.NewTimer(s.config.Hold)
	defer end.Stop()
	// The first look again is at once: the change may have come before Watch.
	next := time.NewTimer(0)
	defer next.Stop()
	var lookedAt time.Time
	for {
		select {
		case <-ctx.Done():
			return
		case <-end.C:
			return
		case <-changed:
			next.Reset(max(0, settle-time.Since(lookedAt)))
		case <-next.C:
			if s.look(ctx, f); f.status != http.StatusNoContent {
				return
			}
			lookedAt = time.Now()
			next.Reset(recheck)
		}
	}
}
