package inventory

import "testing"

// What a machine has after configs were applied to it, in each mode and over a boot.
func TestConfigApplied(t *testing.T) {
	l := newLife(t)
	expect := func(when, has, staged string) {
		t.Helper()
		f := &l.v.Facts
		if f.ConfigHash != has || f.StagedHash != staged {
			t.Errorf("%s: it has %q and %q is staged, want %q and %q", when, f.ConfigHash, f.StagedHash, has, staged)
		}
	}
	applied := func(hash string, m ConfigMode) {
		t.Helper()
		l.must(Event{Kind: ConfigApplied, Hash: hash, Mode: m})
	}
	l.must(Event{Kind: Solicited, Client: FirmwarePXE, XID: 1}, Event{Kind: ScriptServed, Plan: Install}, Event{Kind: ConfigServed, Hash: "a"})
	l.must(Event{Kind: APIAnswered, Stage: StageRunning, Ready: true})
	expect("installed", "a", "")
	applied("b", ConfigAuto)
	expect("at once", "b", "")
	applied("c", ConfigTry)
	expect("tried", "b", "")
	applied("d", ConfigStaged)
	expect("staged", "b", "d")
	if l.v.Facts.ConfigAt.Equal(l.now) {
		t.Error("what is staged has not come yet")
	}
	l.netboot(2)
	expect("its next boot", "d", "")
	applied("e", ConfigStaged)
	applied("f", ConfigNoReboot)
	expect("in the place of what was staged", "f", "")
	applied("g", ConfigStaged)
	l.must(Event{Kind: ReimageOrdered}, Event{Kind: WipeClaimed}, Event{Kind: WipeAccepted})
	l.now = l.now.Add(newBootAfter)
	l.must(Event{Kind: Solicited, Client: FirmwarePXE, XID: 3}, Event{Kind: ScriptServed, Plan: Install}, Event{Kind: ConfigServed, Hash: "h"})
	expect("wiped", "h", "")
	if e := (Event{Kind: ConfigApplied}); e.observed(&l.v) {
		t.Error("it may be lost in a crash")
	}
}
