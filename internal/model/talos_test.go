package model

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"

	"github.com/provisiond/provisiond/internal/bootstrap"
	"github.com/provisiond/provisiond/internal/inventory"
	"github.com/provisiond/provisiond/internal/reimage"
)

// api is Talos' API of all boxes.
type api struct{ w *world }

var errNoAnswer = errors.New("no answer")

// ask is a question to the API at an address with some cluster's keys.
func (a api) ask(s *inventory.Secrets, addr netip.Addr) (b *box, foreign bool, err error) {
	b = a.w.at(addr)
	if b == nil || b.at != system || b.runs == nil {
		return nil, false, errNoAnswer
	}
	if b.runs.secrets != string(s.Bundle) {
		return nil, true, errors.New("another CA")
	}
	return b, false, nil
}

func (w *world) stage(b *box) (stage inventory.Stage, ready bool) {
	switch {
	case b.wipes:
		return inventory.StageResetting, true
	case b.runs.role == inventory.ControlPlane && !w.member(b):
		return inventory.StageBooting, false
	}
	return inventory.StageRunning, true
}

// Probe implements bootstrap.Talos.
func (a api) Probe(_ context.Context, _ *inventory.Cluster, s *inventory.Secrets, addr netip.Addr) bootstrap.Probe {
	b, foreign, err := a.ask(s, addr)
	if err != nil {
		return bootstrap.Probe{Foreign: foreign, Err: err.Error()}
	}
	p := bootstrap.Probe{Answered: true}
	p.Stage, p.Ready = a.w.stage(b)
	if b.runs.role == inventory.ControlPlane {
		p.Etcd = bootstrap.EtcdWaiting
		if a.w.member(b) {
			p.Etcd = bootstrap.EtcdRunning
		}
	}
	return p
}

// Bootstrap implements bootstrap.Talos. Nothing in it looks beyond the machine.
func (a api) Bootstrap(_ context.Context, _ *inventory.Cluster, s *inventory.Secrets, addr netip.Addr) (bootstrap.Outcome, error) {
	w := a.w
	fault := w.call
	w.call = answered
	b, foreign, err := a.ask(s, addr)
	switch {
	case foreign:
		return bootstrap.Denied, err
	case err != nil:
		return bootstrap.NotYet, err
	case fault == lostBefore:
		return bootstrap.Unknown, errNoAnswer
	case fault == refusedThen:
		return bootstrap.NotYet, errors.New("time is not in sync yet")
	case b.disk.etcd != "":
		return bootstrap.Already, errors.New("not empty")
	}
	w.made[b.runs.secrets]++
	id := fmt.Sprintf("etcd-%d of %s", w.made[b.runs.secrets], b.runs.secrets)
	w.etcds[id] = &etcd{secrets: b.runs.secrets, members: []string{b.name}}
	b.disk.etcd = id
	if w.made[b.runs.secrets] > 1 {
		w.never("%s was bootstrapped twice", b.runs.secrets)
	}
	for _, m := range w.boxes {
		if e := w.etcds[m.disk.etcd]; e != nil && e.secrets != b.runs.secrets && !w.dead[m.name] && !w.stale {
			w.never("%s begins while %s still holds etcd data of %s", b.runs.secrets, m.name, e.secrets)
		}
	}
	if fault == lostAfter {
		return bootstrap.Unknown, errNoAnswer
	}
	return bootstrap.Accepted, nil
}

// Status implements reimage.Talos.
func (a api) Status(_ context.Context, _ *inventory.Cluster, s *inventory.Secrets, addr netip.Addr) (reimage.Status, error) {
	b, _, err := a.ask(s, addr)
	if err != nil {
		return reimage.Status{}, err
	}
	stage, _ := a.w.stage(b)
	return reimage.Status{Stage: stage, Etcd: a.w.member(b)}, nil
}

// Members implements reimage.Talos.
func (a api) Members(_ context.Context, _ *inventory.Cluster, s *inventory.Secrets, addr netip.Addr) ([]reimage.Member, error) {
	b, _, err := a.ask(s, addr)
	if err != nil {
		return nil, err
	}
	if !a.w.member(b) || !a.w.quorum(b.disk.etcd) {
		return nil, errNoAnswer
	}
	var list []reimage.Member
	for _, name := range a.w.etcds[b.disk.etcd].members {
		m := a.w.box(name)
		list = append(list, reimage.Member{ID: uint64(slices.Index(a.w.boxes, m) + 1), Name: name, Addresses: []netip.Addr{m.addr}})
	}
	return list, nil
}

// RemoveMember implements reimage.Talos.
func (a api) RemoveMember(_ context.Context, _ *inventory.Cluster, s *inventory.Secrets, addr netip.Addr, id uint64) error {
	w := a.w
	b, _, err := a.ask(s, addr)
	if err != nil {
		return err
	}
	if !w.member(b) || !w.quorum(b.disk.etcd) {
		return errNoAnswer
	}
	name := w.boxes[id-1].name
	if slices.Contains(w.etcds[b.disk.etcd].members, name) {
		w.leaves(b.disk.etcd, name, "the removal")
	}
	return nil
}

// Reset implements reimage.Talos.
func (a api) Reset(_ context.Context, _ *inventory.Cluster, s *inventory.Secrets, addr netip.Addr, graceful, _ bool) (reimage.Outcome, error) {
	w := a.w
	fault := w.call
	w.call = answered
	b, _, err := a.ask(s, addr)
	switch {
	case err != nil || fault == refusedThen:
		return reimage.Declined, errNoAnswer
	case fault == lostBefore:
		return reimage.Unknown, errNoAnswer
	case b.wipes:
		w.never("%s is asked to wipe itself while it does", b.name)
	}
	if w.member(b) {
		id := b.disk.etcd
		if graceful && (!w.quorum(id) || len(w.etcds[id].members) == 1) {
			return reimage.Accepted, nil // and the sequence fails: it runs on
		}
		w.leaves(id, b.name, "the reset")
	}
	b.wipes = true
	if fault == lostAfter {
		return reimage.Unknown, errNoAnswer
	}
	return reimage.Accepted, nil
}

// wipe is a box wiping its disk, and a check that it was told to, and not before.
func (w *world) wipe(b *box, how string) {
	b.wiped++
	if b.wiped > b.orders {
		w.never("%s was wiped %d times (%s) and that was ordered %d times", b.name, b.wiped, how, b.orders)
	}
	if e := w.etcds[b.disk.etcd]; e != nil && slices.Contains(e.members, b.name) && b.disk.config != nil {
		w.leaves(b.disk.etcd, b.name, "the wipe")
	}
	b.disk.config, b.disk.etcd, b.wipes, b.runs = nil, "", false, nil
	b.at = firmware
}

// install is a box writing Talos to its blank disk.
func (w *world) install(b *box, c config) {
	if b.disk.config != nil {
		w.never("%s was installed over what it runs", b.name)
	}
	b.installed++
	if b.installed > b.wiped+1 {
		w.never("%s was installed %d times and wiped %d times", b.name, b.installed, b.wiped)
	}
	b.disk.config = &c
}
