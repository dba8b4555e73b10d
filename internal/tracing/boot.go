// Package tracing tells an OpenTelemetry collector how machines booted: each boot is a
// trace, with a span for each of its steps. It is made of what is known of a boot once
// that is over (inventory.Boot), so nothing that serves machines knows of it.
package tracing

import (
	"cmp"
	"fmt"
	"slices"
	"time"

	tracepb "go.opentelemetry.io/proto/otlp/trace/v1"

	"github.com/provisiond/provisiond/internal/inventory"
)

// patience is how long a boot may take. One that is not over by then is given up.
const patience = 4 * time.Hour

// outcome is how a boot ended.
type outcome string

const (
	ready   outcome = "ready"
	wiped   outcome = "wiped"    // it was to wipe its disk, and began anew
	held    outcome = "held"     // it was to wait, and began anew or waited on
	failed  outcome = "failed"   // it began anew before it was ready
	givenUp outcome = "given up" // nothing more was heard of it for as long as patience lasts
)

// ending is the end of a boot.
type ending struct {
	outcome outcome
	at      time.Time
	phase   inventory.Phase // that it was in; of a stalled one, the phase it was stuck in
	why     string          // it went wrong; empty: it did not
}

// endOf says how the i-th boot of a machine ended; false: it goes on. It depends on what
// is known alone, not on who looks when. b is the bootstrap of the machine's cluster, nil
// if there is none.
func endOf(v *inventory.View, i int, b *inventory.Bootstrap, stalls inventory.Patience, now time.Time) (end ending, over bool) {
	boot := v.Facts.Boots[i]
	limit := boot.Started.Add(patience)
	switch {
	case !boot.Ready.IsZero() && (!holdsClaim(v, boot, b) || b.Done() || i > 0 || now.After(limit)):
		end = ending{outcome: ready, at: boot.Ready, phase: inventory.PhaseReady}
		if holdsClaim(v, boot, b) && b.DoneAt.After(end.at) {
			end.at = b.DoneAt // we saw the machine ready before its etcd
		}
		return end, true
	case i > 0:
		end.at = v.Facts.Boots[i-1].Started
	case now.After(limit):
		end.at = limit
	default:
		return end, false
	}
	then := *v // as it was in this boot
	then.Facts.Boots, then.Facts.Ready = v.Facts.Boots[i:], false
	state := stalls.PhaseOf(then, end.at)
	end.phase = cmp.Or(state.Stalled, state.Phase)
	switch {
	case boot.Plan == inventory.Wipe && !boot.Script.IsZero() && i > 0:
		end.outcome = wiped
	case boot.Plan == inventory.Hold:
		end.outcome = held
	case i > 0:
		end.outcome, end.why = failed, cmp.Or(boot.Error, "began to boot again before it was ready")
	default:
		end.outcome, end.why = givenUp, cmp.Or(state.Reason, fmt.Sprintf("nothing more was heard of it within %v", patience))
	}
	return end, true
}

// holdsClaim reports whether a boot is the one in which the machine came to bootstrap
// its cluster.
func holdsClaim(v *inventory.View, boot *inventory.Boot, b *inventory.Bootstrap) bool {
	return b != nil && b.Machine == v.Machine.Name && b.ClaimedAt.After(boot.Started)
}

// step is a part of a boot. Most are known by their end: they begin when the one before
// ended, unless it is known how long they took or when they began.
type step struct {
	name     string
	end      time.Time // zero: it was not seen
	took     time.Duration
	began    time.Time
	protocol string
}

// stepsOf are the steps that a boot has by its plan, in their order.
func stepsOf(v *inventory.View, boot *inventory.Boot, b *inventory.Bootstrap, end ending) []step {
	all := []step{{name: "dhcpv6", end: boot.Offered, protocol: "dhcpv6"}}
	if boot.Plan != inventory.Disk {
		switch boot.Client {
		case inventory.FirmwarePXE: // takes TFTP only, and HTTP boot HTTP
			all = append(all, step{name: "loader", end: boot.Loader, took: boot.LoaderTook, protocol: "tftp"})
		case inventory.FirmwareHTTP:
			all = append(all, step{name: "loader", end: boot.Loader, took: boot.LoaderTook, protocol: "http"})
		}
		all = append(all,
			step{name: "script", end: boot.Script, protocol: "http"},
			step{name: "kernel", end: boot.Kernel, took: boot.KernelTook, protocol: "http"},
			step{name: "initramfs", end: boot.Initramfs, took: boot.InitramfsTook, protocol: "http"})
	}
	switch boot.Plan {
	case inventory.Hold:
		return all
	case inventory.Wipe:
		if end.outcome == wiped {
			all = append(all, step{name: "wipe", end: end.at})
		}
		return all
	case inventory.Disk:
		all = append(all, step{name: "start", end: boot.API, protocol: "talos"})
	default:
		protocol := "https"
		if v.Cluster != nil && v.Cluster.Plain() {
			protocol = "http"
		}
		all = append(all, step{name: "config", end: boot.Config, protocol: protocol}, step{name: "install", end: boot.API, protocol: "talos"})
	}
	run := step{name: "ready", end: boot.Ready, protocol: "talos"}
	if b == nil || !b.Claimed() || boot.API.IsZero() || !b.DoneAt.After(boot.API) || b.DoneAt.After(end.at) {
		return append(all, run)
	}
	strap := step{name: "bootstrap", began: latest(boot.API, b.ClaimedAt), end: b.DoneAt, protocol: "talos"}
	if !run.end.IsZero() && run.end.Before(strap.end) {
		return append(all, run, strap)
	}
	return append(all, strap, run)
}

// bootSpans is the trace of a boot that is over, and with it those of what it proved: the
// reimage of its machine, the bootstrap of its cluster. Its spans are the same whoever
// makes them.
func bootSpans(v *inventory.View, i int, b *inventory.Bootstrap, end ending) []*tracepb.Span {
	m, boot := v.Machine, v.Facts.Boots[i]
	in := bootTrace(m.Name, boot)
	root := in.root("boot", boot.Started, end.at)
	root.Attributes = attributes{
		{"provisiond.machine", m.Name}, {"provisiond.cluster", m.Cluster}, {"provisiond.role", string(m.Role)},
		{"provisiond.mac", string(boot.MAC)}, {"provisiond.arch", string(v.Facts.Arch)}, {"provisiond.client", string(boot.Client)},
		{"provisiond.boot", fmt.Sprint(boot.Number)}, {"provisiond.plan", string(boot.Plan)}, {"provisiond.phase", string(end.phase)},
		{"provisiond.outcome", string(end.outcome)}, {"provisiond.alarm", boot.Alarm},
	}.keyValues()
	if boot.Plan.Netboots() {
		root.Attributes = append(root.Attributes, attributes{{"provisiond.image", v.Wanted}}.keyValues()...)
	}
	setStatus(root, end)
	spans := []*tracepb.Span{root}

	steps := stepsOf(v, boot, b, end)
	last := -1
	for n, s := range steps {
		if !s.end.IsZero() {
			last = n
		}
	}
	before := boot.Started
	for n, s := range steps {
		switch {
		case n == last+1 && end.why != "": // what it was at when it went wrong
			span := in.child(root, s.name, before, end.at)
			span.Attributes = attributes{{"network.protocol.name", s.protocol}}.keyValues()
			setStatus(span, end)
			spans = append(spans, span)
		case !s.end.IsZero():
			began := before
			switch {
			case !s.began.IsZero():
				began = s.began
			case s.took > 0:
				began = latest(boot.Started, s.end.Add(-s.took))
			}
			span := in.child(root, s.name, began, s.end)
			span.Attributes = attributes{{"network.protocol.name", s.protocol}}.keyValues()
			if s.name == "bootstrap" {
				span.Links = []*tracepb.Span_Link{bootstrapTrace(b).link()}
			}
			spans, before = append(spans, span), latest(before, s.end)
		}
	}
	if holdsClaim(v, boot, b) && b.Done() && !b.DoneAt.After(end.at) {
		spans = append(spans, bootstrapSpans(b, in)...)
	}
	r := &v.Facts.Reimage
	if r.Done == r.Ordered && !r.DoneAt.IsZero() && r.DoneAt.Equal(boot.Config) {
		root.Links = append(root.Links, reimageTrace(m.Name, r).link())
		spans = append(spans, reimageSpans(v, boot, in)...)
	} else if r.Via == inventory.ViaNetboot && r.Boot == boot.Number {
		root.Links = append(root.Links, reimageTrace(m.Name, r).link())
	}
	return spans
}

// bootstrapSpans is the trace of a bootstrap that is done, from the claim on. by is the
// boot of the machine that holds the claim.
func bootstrapSpans(b *inventory.Bootstrap, by trace) []*tracepb.Span {
	in := bootstrapTrace(b)
	root := in.root("bootstrap", b.ClaimedAt, b.DoneAt)
	root.Attributes = attributes{{"provisiond.cluster", b.Cluster}, {"provisiond.machine", b.Machine}}.keyValues()
	root.Links = []*tracepb.Span_Link{by.link()}
	return append([]*tracepb.Span{root}, in.chain(root, b.ClaimedAt, step{name: "look", end: b.SentAt}, step{name: "call", end: b.CalledAt}, step{name: "etcd", end: b.DoneAt})...)
}

// reimageSpans is the trace of a reimage, which a boot proved by fetching its config.
func reimageSpans(v *inventory.View, boot *inventory.Boot, by trace) []*tracepb.Span {
	r := &v.Facts.Reimage
	in := reimageTrace(v.Machine.Name, r)
	root := in.root("reimage", r.OrderedAt, r.DoneAt)
	root.Attributes = attributes{{"provisiond.machine", v.Machine.Name}, {"provisiond.cluster", v.Machine.Cluster}, {"provisiond.via", string(r.Via)}}.keyValues()
	root.Links = []*tracepb.Span_Link{by.link()}
	if i := slices.IndexFunc(v.Facts.Boots, func(b *inventory.Boot) bool { return r.Via == inventory.ViaNetboot && b.Number == r.Boot }); i >= 0 {
		root.Links = append(root.Links, bootTrace(v.Machine.Name, v.Facts.Boots[i]).link())
	}
	steps := []step{{name: "install", end: r.DoneAt}}
	if r.Claimed() {
		steps = []step{{name: "clearance", end: r.ClaimedAt}, {name: "wipe", end: boot.Started}, {name: "install", end: r.DoneAt}}
	}
	return append([]*tracepb.Span{root}, in.chain(root, r.OrderedAt, steps...)...)
}

func latest(ts ...time.Time) (l time.Time) {
	for _, t := range ts {
		if t.After(l) {
			l = t
		}
	}
	return l
}
