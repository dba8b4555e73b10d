package inventory

import (
	"errors"
	"regexp"
	"testing"
	"time"
)

func TestUserCode(t *testing.T) {
	shape := regexp.MustCompile(`^[BCDFGHJKLMNPQRSTVWXZ]{4}-[BCDFGHJKLMNPQRSTVWXZ]{4}$`)
	seen := map[rune]int{}
	for range 2000 {
		code := NewUserCode()
		if !shape.MatchString(code) {
			t.Fatalf("%q", code)
		}
		for _, r := range code {
			seen[r]++
		}
	}
	if len(seen) != len(userCodeLetters)+1 {
		t.Errorf("made of %v", seen)
	}
	for typed, want := range map[string]string{
		"WDJB-MJHT": "WDJB-MJHT", "wdjbmjht": "WDJB-MJHT", " wdjb mjht\n": "WDJB-MJHT", "wdjb—mjht": "WDJB-MJHT", "": "", "WD": "WD",
	} {
		if got := NormalUserCode(typed); got != want {
			t.Errorf("%q is %q, want %q", typed, got, want)
		}
	}
}

func FuzzNormalUserCode(f *testing.F) {
	f.Add("wdjb-mjht")
	f.Fuzz(func(t *testing.T, s string) {
		once := NormalUserCode(s)
		if again := NormalUserCode(once); again != once {
			t.Errorf("%q becomes %q and then %q", s, once, again)
		}
	})
}

// TestApprovals: what a person may say of a flow, and when.
func TestApprovals(t *testing.T) {
	asked := func(code string) Event {
		return Event{Kind: ApprovalAsked, Boot: 1, Code: code, Device: "d" + code, Access: "a" + code, Expires: t0.Add(time.Hour)}
	}
	boot := []Event{{Kind: Solicited, Client: FirmwarePXE, XID: 1}, {Kind: ScriptServed, Plan: Install}}
	v := story(t, registered(), append(boot, asked("A"))...)
	say := func(v View, kind Kind, code string, at time.Time) (View, error) {
		return Apply(v, Event{Kind: kind, Machine: "cp-1", Code: code, By: "ada", Time: at})
	}
	soon, late := t0.Add(time.Minute), t0.Add(time.Hour)
	if _, err := say(v, ApprovalGiven, "B", soon); !errors.Is(err, ErrNotFound) {
		t.Errorf("a code of nobody: %v", err)
	}
	if _, err := say(v, ApprovalGiven, "A", late); !errors.Is(err, ErrRefused) {
		t.Errorf("too late: %v", err)
	}
	yes, err := say(v, ApprovalGiven, "A", soon)
	if err != nil || !yes.Facts.Boots[0].Flows[0].Approved() || yes.Facts.Boots[0].Flows[0].By != "ada" {
		t.Errorf("%+v %v", yes.Facts.Boots[0].Flows, err)
	}
	if v.Facts.Boots[0].Flows[0].Approved() {
		t.Error("what was before has changed")
	}
	if _, err := say(yes, ApprovalGiven, "A", late); err != nil {
		t.Errorf("again: %v", err)
	}
	if _, err := say(yes, ApprovalDenied, "A", soon); !errors.Is(err, ErrRefused) {
		t.Errorf("yes and no: %v", err)
	}
	for i := range 3 * maxFlows {
		v, yes = story(t, v, asked(string(rune('B'+i)))), story(t, yes, asked(string(rune('B'+i))))
	}
	if f := yes.Facts.Boots[0].Flows; len(f) != maxFlows || !f[0].Approved() || f[0].For != (Membership{Cluster: "prod", Role: ControlPlane}) {
		t.Errorf("what was approved is pushed out: %+v", f)
	}
	if n := len(v.Facts.Boots[0].Flows); n != maxFlows {
		t.Errorf("%d flows are kept", n)
	}
	if _, err := say(v, ApprovalGiven, "A", soon); !errors.Is(err, ErrNotFound) {
		t.Errorf("one that was pushed out: %v", err)
	}
	// A boot that nobody knows of takes none.
	if v := story(t, registered(), asked("A")); len(v.Facts.Boots) != 0 {
		t.Errorf("%+v", v.Facts.Boots)
	}
}
