package model

import (
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"time"

	"github.com/provisiond/provisiond/internal/inventory"
	"github.com/provisiond/provisiond/internal/inventory/storetest"
	"github.com/provisiond/provisiond/internal/reimage"
)

// op is one thing that happens. Its numbers are drawn beforehand, so that a schedule
// can be run again, and with parts left out.
type op struct {
	kind kind
	box  int
	n    uint32
}

type kind string

const (
	advances   kind = "advances"   // a machine goes on
	cut        kind = "power cut"  // and is off
	power      kind = "power on"   //
	monitors   kind = "monitor"    // its API is asked
	answers    kind = "answer"     // and an answer is recorded, maybe late
	bootstraps kind = "bootstrap"  // the actor looks
	reimages   kind = "reimage"    // the actor looks
	flushes    kind = "flush"      //
	crashes    kind = "crash"      // the daemon dies after some commits
	ambiguous  kind = "ambiguous"  // the next commit's outcome is lost
	misanswers kind = "misanswer"  // the next call's answer is lost, or worse
	waits      kind = "time"       // passes
	orders     kind = "order"      // somebody orders a reimage
	cancels    kind = "cancel"     //
	resets     kind = "reset"      // of the cluster
	backsUp    kind = "backup"     //
	restores   kind = "restore"    //
	swaps      kind = "boot order" // disk or network first
)

// schedule draws a number of ops.
func schedule(seed uint64, length, boxes int) []op {
	rng := rand.New(rand.NewPCG(seed, 1))
	weights := []struct {
		kind kind
		w    int
	}{
		{advances, 46}, {power, 8}, {cut, 3}, {monitors, 9}, {answers, 9}, {bootstraps, 7}, {reimages, 8}, {flushes, 2}, {crashes, 2},
		{ambiguous, 2}, {misanswers, 2}, {waits, 5}, {orders, 4}, {cancels, 1}, {resets, 1}, {backsUp, 1}, {restores, 1}, {swaps, 1},
	}
	total := 0
	for _, w := range weights {
		total += w.w
	}
	ops := make([]op, length)
	for i := range ops {
		n := rng.IntN(total)
		for _, w := range weights {
			if n -= w.w; n < 0 {
				ops[i] = op{w.kind, rng.IntN(boxes), rng.Uint32()}
				break
			}
		}
	}
	return ops
}

// facts are those on the disk, whatever the daemon has in mind.
func (w *world) facts(b *box) (f inventory.Facts) {
	rec, err := w.store.Memory.Get(w.ctx, inventory.Key{Bucket: inventory.BucketFacts, ID: b.name})
	if err == nil {
		err = json.Unmarshal(rec.Value, &f)
	}
	if err != nil {
		w.never("the facts of %s cannot be read: %v", b.name, err)
	}
	return f
}

// secrets are those of the cluster as it is now.
func (w *world) secrets() string {
	s, err := w.k.Secrets(w.ctx, cluster)
	if err != nil {
		return ""
	}
	return string(s.Bundle)
}

// do has one thing happen.
func (w *world) do(o op) {
	b := w.boxes[o.box]
	switch o.kind {
	case advances:
		w.advance(b, o.n)
	case cut:
		b.at, b.runs, b.line = off, nil, line{}
		b.wipes = false
	case power:
		if b.at == off {
			b.at = firmware
		}
	case swaps:
		b.diskFirst = !b.diskFirst
	case monitors:
		w.monitor(b)
	case answers:
		w.answer(b)
	case bootstraps:
		w.mutate()
		_, _ = w.boot.Advance(w.ctx, cluster) // what fails is tried again
	case reimages:
		// One after the other, so that a seed always means the same.
		for _, name := range slices.Sorted(maps.Keys(w.due)) {
			one := map[string]bool{name: true}
			_ = w.re.Round(w.ctx, one)
			if len(one) == 0 {
				delete(w.due, name)
			}
		}
	case flushes:
		_ = w.k.Flush(w.ctx)
	case crashes:
		w.store.left = int(o.n % 4)
	case ambiguous:
		w.store.fault = []storetest.Fault{storetest.LostButPersisted, storetest.LostNotPersisted}[o.n%2]
	case misanswers:
		w.call = []callFault{lostBefore, lostAfter, refusedThen}[o.n%3]
	case waits:
		time.Sleep(time.Duration(o.n%300) * time.Second)
	case orders:
		w.order(b, o.n)
	case cancels:
		before := w.facts(b).Reimage
		_, _ = w.k.Record(w.ctx, inventory.Event{Kind: inventory.ReimageCancelled, Machine: b.name})
		if after := w.facts(b).Reimage; before.Outstanding() && !after.Outstanding() {
			b.orders--
		}
	case resets:
		if o.n%4 == 0 {
			w.reset(o.n/4%2 == 0)
		}
	case backsUp:
		_ = w.k.Flush(w.ctx)
		w.backups = append(w.backups, w.store.Memory.Copy())
	case restores:
		w.restore(o.n)
	}
	w.restartIfDead()
	time.Sleep(time.Duration(o.n%7) * time.Second)
}

// advance takes a machine one step further.
func (w *world) advance(b *box, n uint32) {
	switch b.at {
	case firmware:
		if b.diskFirst && b.disk.config != nil || n%16 == 0 && b.disk.config != nil {
			w.fromDisk(b)
			return
		}
		b.xid++
		e := inventory.Event{Kind: inventory.Solicited, MAC: b.mac, Client: inventory.FirmwarePXE, Arch: inventory.AMD64, XID: b.xid}
		v, err := w.k.Record(w.ctx, e)
		if err != nil {
			return // asks again
		}
		plan := inventory.PlanBoot(v)
		if !plan.Action.Netboots() {
			if b.disk.config != nil {
				w.fromDisk(b)
			}
			return
		}
		_, _ = w.k.Record(w.ctx, inventory.Event{Kind: inventory.Offered, MAC: b.mac, Plan: plan.Action})
		b.at, b.line = ipxe, line{}
	case ipxe:
		w.script(b, n)
	case loading:
		if n%8 == 0 {
			b.at = ipxe // the download broke off: it asks with the token of its script
			return
		}
		for _, kind := range []inventory.Kind{inventory.KernelServed, inventory.InitramfsServed} {
			_, _ = w.k.Record(w.ctx, inventory.Event{Kind: kind, MAC: b.mac})
		}
		b.at = memory
	case memory:
		switch {
		case b.line.wipe:
			w.wipe(b, "its kernel line")
		case b.disk.config != nil: // STATE wins, the URL is not fetched
			w.fromDisk(b)
		default:
			w.fetch(b, n)
		}
	case system:
		switch {
		case b.wipes && n%2 == 0:
			w.wipe(b, "its API")
		case b.wipes:
		case b.runs.role == inventory.ControlPlane && b.disk.etcd == "":
			w.join(b)
		}
	}
}

func (w *world) fromDisk(b *box) {
	c := *b.disk.config
	b.at, b.runs, b.line = system, &c, line{}
}

// join is etcd finding the cluster that its config belongs to.
func (w *world) join(b *box) {
	var ids []string
	for id, e := range w.etcds {
		if e.secrets == b.runs.secrets && w.quorum(id) {
			ids = append(ids, id)
		}
	}
	if slices.Sort(ids); len(ids) > 0 {
		e := w.etcds[ids[0]]
		e.members = append(slices.DeleteFunc(e.members, func(m string) bool { return m == b.name }), b.name)
		b.disk.etcd = ids[0]
	}
}

// script is what httpconfig does for a machine that asks for its script.
func (w *world) script(b *box, n uint32) {
	v, err := w.k.View(w.ctx, b.mac, inventory.AMD64)
	if err != nil || v.Machine == nil {
		return
	}
	plan := inventory.PlanScript(v, b.line.token)
	e := inventory.Event{Kind: inventory.ScriptServed, MAC: b.mac, Machine: b.name, Client: inventory.IPXE, Plan: plan.Action, Time: time.Now()}
	if w.fault == wipeAlways && v.Facts.Reimage.Outstanding() && v.Facts.Reimage.Via == inventory.ViaNetboot {
		plan.Action, e.Plan, e.Boot = inventory.Wipe, inventory.Wipe, v.Facts.Reimage.Boot
	}
	if c := v.Facts.Current(); c != nil && b.line.token == c.Token {
		e.Boot = c.Number
	}
	if plan.Wait {
		e.Plan, e.Wait = inventory.Hold, true
		if after, err := w.k.Record(w.ctx, e); err == nil && n%8 != 0 && after.Facts.Current() != nil {
			b.line.token = after.Facts.Current().Token
		}
		return
	}
	if !plan.Action.Netboots() {
		_, _ = w.k.Record(w.ctx, e)
		if b.at = firmware; b.disk.config != nil {
			w.fromDisk(b)
		}
		return
	}
	after, err := w.k.Record(w.ctx, e)
	if err != nil || after.Facts.Current() == nil {
		return // asks again
	}
	if n%8 == 0 {
		return // the answer is lost
	}
	b.at, b.line = loading, line{plan.Action == inventory.Wipe, after.Facts.Current().Token}
}

// fetch is what httpconfig does for a machine that asks for its config, and the install
// that follows.
func (w *world) fetch(b *box, n uint32) {
	v, err := w.k.View(w.ctx, b.mac, "")
	if err != nil || v.Machine == nil {
		return
	}
	var boot *inventory.Boot
	for _, c := range v.Facts.Boots {
		if c.Token == b.line.token {
			boot = c
		}
	}
	plan := inventory.PlanBoot(v)
	if boot == nil || !boot.API.IsZero() || boot.Plan == inventory.Wipe || plan.Action == inventory.Hold || plan.Action != inventory.Install && boot.Plan != inventory.Install {
		if n%4 == 0 {
			b.at = firmware // somebody presses its button
		}
		return
	}
	made := config{w.secrets(), v.Machine.Role}
	if made.secrets == "" {
		return
	}
	if _, err := w.k.Record(w.ctx, inventory.Event{Kind: inventory.ConfigServed, MAC: b.mac, Machine: b.name, Boot: boot.Number, Hash: "h"}); err != nil {
		return
	}
	if n%8 == 0 {
		return // the answer is lost
	}
	w.install(b, made)
	if n%3 == 0 {
		b.at = firmware // Secure Boot: no kexec
		return
	}
	w.fromDisk(b)
}

// monitor asks a machine's API, with the keys that it should have.
func (w *world) monitor(b *box) {
	v, err := w.k.Machine(w.ctx, b.name)
	if err != nil || v.Cluster == nil {
		return
	}
	keys, err := w.k.Keys(w.ctx, v)
	if err != nil || b.at != system || b.runs == nil {
		return
	}
	i := slices.IndexFunc(keys, func(k inventory.Keys) bool { return string(k.Secrets.Bundle) == b.runs.secrets })
	if i < 0 {
		return
	}
	stage, ready := w.stage(b)
	b.tells = &lateAnswer{stage, ready, time.Now(), inventory.Membership{Cluster: cluster, Role: v.Machine.Role, Epoch: keys[i].Epoch}}
}

func (w *world) answer(b *box) {
	if a := b.tells; a != nil {
		b.tells = nil
		if time.Since(a.asked) > 8*time.Second {
			return // the monitor waits no longer
		}
		_, _ = w.k.Record(w.ctx, inventory.Event{Kind: inventory.APIAnswered, Machine: b.name, Stage: a.stage, Ready: a.ready, Asked: a.asked, Holds: a.holds})
	}
}

// order is an operator who wants a machine reimaged, and may click twice.
func (w *world) order(b *box, n uint32) {
	v, err := w.k.Machine(w.ctx, b.name)
	if err != nil {
		return
	}
	destroy := n%8 == 0
	s, err := reimage.NewGuard(w.k, api{w}).Look(w.ctx, v)
	if err != nil {
		return
	}
	if ok, _ := s.MayGo(destroy || w.fault == noGuard); !ok {
		return
	}
	w.ordered(b, inventory.Event{Graceful: n/8%2 == 0, Destroy: destroy || w.fault == noGuard}, destroy)
}

func (w *world) ordered(b *box, e inventory.Event, word bool) {
	before := w.facts(b)
	e.Kind, e.Machine, e.Message = inventory.ReimageOrdered, b.name, "ordered"
	for range 2 {
		_, _ = w.k.Record(w.ctx, e)
	}
	w.due[b.name] = true
	after := w.facts(b)
	if after.Reimage.Ordered > before.Reimage.Ordered {
		b.orders++
	}
	if word && after.Reimage.Destroy {
		w.given[w.secrets()] = true
		if b.disk.config != nil {
			w.given[b.disk.config.secrets] = true
		}
	}
}

// reset gives the cluster up. dead: those that are off are declared dead.
func (w *world) reset(dead bool) {
	cl, b, err := w.k.Cluster(w.ctx, cluster)
	if err != nil {
		return
	}
	var gone []string
	for _, m := range w.boxes {
		if f := w.facts(m); dead && m.at == off && f.HoldsEtcd(cl) {
			gone = append(gone, m.name)
			w.dead[m.name] = true
		}
	}
	life := w.secrets()
	w.lives++
	old, err := w.k.ResetCluster(w.ctx, cluster, b.Epoch, fmt.Appendf(nil, "life %d", w.lives), gone)
	if _, now, err := w.k.Cluster(w.ctx, cluster); err != nil || now.Epoch == b.Epoch {
		if w.store.left == 0 { // the daemon died on it: whether it is done is on the disk
			w.start()
			if _, now, err := w.k.Cluster(w.ctx, cluster); err == nil && now.Epoch > b.Epoch {
				w.given[life] = true
			}
		}
		return
	}
	w.given[life] = true
	if err != nil {
		return
	}
	for _, name := range old {
		w.ordered(w.box(name), inventory.Event{Destroy: true}, true)
	}
}

// restore puts an old backup in place, as `provisiond restore` does.
func (w *world) restore(n uint32) {
	if len(w.backups) == 0 || n%4 != 0 {
		return
	}
	w.stale = true
	w.store.Memory = w.backups[int(n/4)%len(w.backups)].Copy()
	w.start()
	if err := w.k.Restored(w.ctx); err != nil && !errors.Is(err, errCrash) {
		w.never("after a restore: %v", err)
	}
}

// mutate does to the record of the bootstrap what a broken daemon would.
func (w *world) mutate() {
	key := inventory.Key{Bucket: inventory.BucketBootstraps, ID: cluster}
	rec, err := w.store.Memory.Get(w.ctx, key)
	var b inventory.Bootstrap
	if err != nil || json.Unmarshal(rec.Value, &b) != nil {
		return
	}
	switch {
	case w.fault == oldLifeLives:
		b.Old = nil
	case w.fault == noClaim && b.Claimed() && !b.Done():
		b = inventory.Bootstrap{Cluster: b.Cluster, Epoch: b.Epoch, Old: b.Old}
	case w.fault == anyNode && b.Ambiguous:
		b.Machine, b.Ambiguous = map[string]string{"cp-1": "cp-2", "cp-2": "cp-3", "cp-3": "cp-1"}[b.Machine], false
	default:
		return
	}
	if text, err := json.Marshal(b); err == nil && string(text) != string(rec.Value) {
		_, _, _ = w.store.Memory.Commit(w.ctx, inventory.Commit{Writes: []inventory.Write{{Key: key, Value: text}}})
	}
}
