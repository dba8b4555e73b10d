package inventory

import (
	"errors"
	"net/netip"
	"strings"
	"testing"
	"time"
)

// byHand is a start of a machine by hand, up to its config, with a certificate.
func byHand(fingerprint string) []Event {
	at := netip.MustParseAddr("2001:db8::5054:ff:fe00:1")
	return []Event{
		{Kind: MaintenanceSeen, Client: MaintenanceMode, Peer: at, Fingerprint: fingerprint, Arch: AMD64, SecureBoot: Off, Message: "it waits for something"},
		{Kind: ConfigServed, ConfigBy: ChannelAPI, Peer: at, Fingerprint: fingerprint, Hash: "h1"},
		{Kind: MaintenanceGone},
	}
}

func TestByHand(t *testing.T) {
	start := byHand("one")
	v := story(t, registered(), start[0])
	if s := DefaultPatience().PhaseOf(v, t0.Add(1000*time.Hour)); s.Phase != PhaseConfiguring || !s.Since.Equal(t0) || s.Reason != "waits in maintenance mode: it waits for something" {
		t.Errorf("it waits, and is %+v", s)
	}
	if len(v.Facts.Boots) != 0 || v.Facts.Arch != AMD64 || v.Facts.SecureBoot != Off {
		t.Errorf("%+v", v.Facts)
	}
	later := Event{Kind: APIAnswered, Stage: StageRunning, Ready: true, Time: t0.Add(time.Hour), Asked: t0.Add(time.Hour)}
	v = story(t, v, start[0], start[1])
	b := v.Facts.Current()
	if b == nil || b.Number != 1 || b.Client != MaintenanceMode || b.ConfigBy != ChannelAPI || b.Fingerprint != "one" || b.Plan != Install || b.Order != 1 || !v.Facts.Install.Outstanding() {
		t.Fatalf("%+v", b)
	}
	if s := DefaultPatience().PhaseOf(v, t0.Add(time.Minute)); s.Phase != PhaseInstalling {
		t.Errorf("it has its config, and is %+v", s)
	}
	if again := story(t, v, start[1]); again.Facts.Current().Number != 1 || again.Facts.Current().ConfigFetches != 2 || again.Facts.Alarm() != "" {
		t.Errorf("given once more: %+v", again.Facts.Current())
	}
	elsewhere := start[1]
	elsewhere.Peer = netip.MustParseAddr("2001:db8::11")
	if again := story(t, v, elsewhere); again.Facts.Alarm() != "" {
		t.Errorf("another address of the same key is an alarm: %s", again.Facts.Alarm())
	}
	if again := story(t, v, byHand("other")[1]); again.Facts.Current().Number != 1 || again.Facts.Current().Fingerprint != "other" {
		t.Errorf("it made another key: %+v", again.Facts.Current())
	}
	v = story(t, v, Event{Kind: ConfigDeclined, Boot: 1, Time: t0.Add(time.Minute)})
	if b := v.Facts.Current(); !b.Config.IsZero() || !v.Facts.fetched().IsZero() {
		t.Errorf("it did not take its config: %+v", b)
	}
	if s := DefaultPatience().PhaseOf(v, t0.Add(time.Minute)); s.Phase != PhaseConfiguring {
		t.Errorf("it waits on, and is %+v", s)
	}
	v = story(t, v, start[1])
	v = story(t, v, later)
	if v.Facts.Install.Outstanding() || v.Facts.Maintenance != nil || !v.Facts.Ready {
		t.Errorf("its API answers: %+v", v.Facts)
	}
	v = story(t, v, byHand("other")[0])
	if s := DefaultPatience().PhaseOf(v, t0.Add(2*time.Hour)); s.Phase != PhaseConfiguring || v.Facts.Install.Outstanding() {
		t.Errorf("started from a stick although it is installed: %+v", s)
	}
	if v = story(t, v, Event{Kind: MaintenanceGone}); v.Facts.Maintenance != nil {
		t.Errorf("%+v", v.Facts.Maintenance)
	}
}

// TestByHandInABoot: what netbooted for it is in the same boot; what begins to netboot
// waits no more.
func TestByHandInABoot(t *testing.T) {
	start := byHand("one")
	signed := []Event{{Kind: Solicited, Client: FirmwareHTTP, Arch: AMD64, XID: 1}, {Kind: Offered, Client: FirmwareHTTP, Plan: Install, Way: BySigned}}
	v := story(t, registered(), append(signed, start[:2]...)...)
	if b := v.Facts.Current(); b.Number != 1 || b.Client != FirmwareHTTP || b.ConfigBy != ChannelAPI {
		t.Errorf("it netbooted the vendor's UKI: %+v", b)
	}
	v = story(t, registered(), netboot()[:7]...)
	v = story(t, v, start[:2]...)
	if b := v.Facts.Current(); b.Number != 2 || b.Client != MaintenanceMode {
		t.Errorf("it netbooted, and was started by hand: %+v", b)
	}
	v = story(t, registered(), start[0])
	if v = story(t, v, solicit(9)); v.Facts.Maintenance != nil {
		t.Errorf("it netboots: %+v", v.Facts.Maintenance)
	}
}

func TestConfirmMaintenance(t *testing.T) {
	seen := byHand("one")[0]
	confirm := func(v View, fingerprint string) (View, error) {
		return Apply(v, Event{Kind: MaintenanceConfirmed, MAC: mac1, Fingerprint: fingerprint, By: "ada", Time: t0})
	}
	var words []string
	for _, c := range []struct {
		v           View
		fingerprint string
	}{{registered(), "one"}, {story(t, registered(), seen), "other"}, {story(t, registered(), seen), "on"}, {story(t, registered(), seen), ""}} {
		after, err := confirm(c.v, c.fingerprint)
		if !errors.Is(err, ErrRefused) || after.Facts.Maintenance.ConfirmedFor(&after) {
			t.Fatalf("%q: %v", c.fingerprint, err)
		}
		words = append(words, err.Error())
	}
	if strings.Join(words, "") != strings.Repeat(words[0], len(words)) {
		t.Errorf("the refusals differ: %q", words)
	}
	v, err := confirm(story(t, registered(), seen), "one")
	if err != nil || !v.Facts.Maintenance.ConfirmedFor(&v) || v.Facts.Maintenance.By != "ada" {
		t.Fatalf("%+v, %v", v.Facts.Maintenance, err)
	}
	moved := seen
	moved.Peer = netip.MustParseAddr("2001:db8::11")
	if after := story(t, v, moved); !after.Facts.Maintenance.ConfirmedFor(&after) {
		t.Error("another address takes another confirmation")
	}
	if after := story(t, v, byHand("other")[0]); after.Facts.Maintenance.ConfirmedFor(&after) {
		t.Error("a confirmation is good for another certificate")
	}
	other := v
	other.Cluster = &Cluster{Name: "prod", TalosVersion: "v1.13.6", Epoch: 1}
	if v.Facts.Maintenance.ConfirmedFor(&other) {
		t.Error("a confirmation is good for another life of the cluster")
	}
	other.Cluster, other.Machine = v.Cluster, &Machine{Name: "cp-1", MACs: []MAC{mac1}, Cluster: "prod", Role: Worker}
	if v.Facts.Maintenance.ConfirmedFor(&other) {
		t.Error("a confirmation is good for another role")
	}
}

// TestGivenIsDurable: that a config was given over the API is never only in memory, even
// when the same was known before.
func TestGivenIsDurable(t *testing.T) {
	v := story(t, registered(), byHand("one")...)
	e := byHand("other")[1]
	e.MAC = mac1
	if e.observed(&v) {
		t.Error("it would be lost in a crash")
	}
	e.ConfigBy = ChannelURL
	if !e.observed(&v) {
		t.Error("the machine is not such that it matters: one that fetched it would only be seen")
	}
}
