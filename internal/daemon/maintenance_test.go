package daemon

import (
	"bytes"
	"context"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/uuid"

	"github.com/provisiond/provisiond/internal/audit"
	"github.com/provisiond/provisiond/internal/inventory"
	"github.com/provisiond/provisiond/internal/racktest"
)

// byHand is a rack that somebody starts from a USB stick.
var byHand = racktest.RackOptions{Medium: racktest.MediumLine, SLAAC: netip.MustParsePrefix("2001:db8:1::/64")}

// TestStartedByHand: nothing is netbooted, and each machine is given, over its own API,
// what its config URL would have given it.
func TestStartedByHand(t *testing.T) {
	l := newLab(t)
	r := l.rack(t, byHand)
	proxied(t, func(ctx context.Context) error { return r.Fabric.ServeProxy(ctx, l.proxy) })
	k, _ := l.start(t, l.open(t))
	runRack(t, r)
	verify(t, k, r)
	for _, m := range r.Machines {
		v, err := k.Machine(t.Context(), m.Name())
		if err != nil {
			t.Fatal(err)
		}
		b := v.Facts.Current()
		if b == nil || b.ConfigBy != inventory.ChannelAPI || b.Client != inventory.MaintenanceMode || b.Fingerprint == "" || b.Order != 1 || b.Number != 1 {
			t.Errorf("%s: its boot is %+v", m.Name(), b)
		}
		if v.Facts.UUID != m.UUID().String() || v.Facts.Serial == "" || v.Facts.SecureBoot != inventory.Off || v.Facts.Arch != inventory.AMD64 {
			t.Errorf("%s: %+v", m.Name(), v.Facts)
		}
		if v.Facts.Maintenance != nil {
			t.Errorf("%s still waits: %+v", m.Name(), v.Facts.Maintenance)
		}
		url, err := rackConfigs{l.daemon.configs}.Config(t.Context(), v)
		if err != nil {
			t.Fatal(err)
		}
		if got := m.Disk().Config(); len(got) == 0 || !bytes.Equal(got, bytes.Join(url.Parts, nil)) {
			t.Errorf("%s has %d bytes of config that are not those of its URL", m.Name(), len(got))
		}
	}
	given := 0
	for _, e := range l.trail(t) {
		if e.Action == "give-config" && e.Outcome == audit.OK && strings.Contains(e.Reason, "fingerprint ") {
			given++
		}
	}
	if given < planes+workers {
		t.Errorf("the trail has %d configs that were given", given)
	}
}

// trail is the audit trail so far.
func (l *lab) trail(t *testing.T) (all []audit.Entry) {
	t.Helper()
	err := l.daemon.trail.Read(t.Context(), 0, func(_ []byte, e audit.Entry) bool {
		all = append(all, e)
		return true
	})
	if err != nil {
		t.Fatal(err)
	}
	return all
}

// TestKilledWhileStartedByHand kills the daemon at each step of a machine that was started
// by hand.
func TestKilledWhileStartedByHand(t *testing.T) {
	for _, step := range []racktest.Step{racktest.StepKernel, racktest.StepConfig, racktest.StepInstall, racktest.StepAPI} {
		t.Run(step.String(), func(t *testing.T) {
			l := newLab(t)
			var mu sync.Mutex
			daemon := l.spawn(t)
			killed := false
			o := byHand
			o.OnStep = func(_ *racktest.Machine, s racktest.Step) error {
				mu.Lock()
				defer mu.Unlock()
				if s == step && !killed {
					killed = true
					daemon.kill(t)
					daemon = l.spawn(t)
				}
				return nil
			}
			r := l.rack(t, o)
			proxied(t, func(ctx context.Context) error { return r.Fabric.ServeProxy(ctx, l.proxy) })
			runRack(t, r)
			mu.Lock()
			daemon.kill(t)
			mu.Unlock()
			k, _ := l.start(t, l.open(t))
			verify(t, k, r)
		})
	}
}

// hand makes one machine that somebody starts, beside the rack of the lab.
func (l *lab) hand(t *testing.T, o racktest.MachineOptions) *racktest.Machine {
	t.Helper()
	o.Fabric, o.Peers, o.Timing = racktest.NewFabric(), &racktest.Registry{}, racktest.FastTiming()
	o.Net = &racktest.Net{Server: netip.AddrPortFrom(l.cfg.Address, l.cfg.DHCPv6Port), Link: netip.MustParseAddr("2001:db8:1::1"), LinkLayer: true}
	o.Medium, o.SLAAC, o.UUID = byHand.Medium, byHand.SLAAC, uuid.NewSHA1(uuid.NameSpaceOID, []byte("by hand"))
	m, err := racktest.NewMachine(o)
	if err != nil {
		t.Fatal(err)
	}
	proxied(t, func(ctx context.Context) error { return o.Fabric.ServeProxy(ctx, l.proxy) })
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		_, _ = m.PowerOn(ctx) // it ends with the power
	}()
	t.Cleanup(func() { cancel(); m.PowerOff(); <-done })
	return m
}

func nic(last byte) net.HardwareAddr { return net.HardwareAddr{0x52, 0x54, 0, 0, 0, last} }

// until waits until something is so of the inventory.
func until(t *testing.T, k *inventory.Keeper, what string, ok func() bool) {
	t.Helper()
	await(t, k, func() string {
		if ok() {
			return ""
		}
		return what
	})
}

// TestFingerprintRequired: a machine that a person has to approve is given its config for
// the fingerprint that its console prints, and for no other.
func TestFingerprintRequired(t *testing.T) {
	l := newLab(t)
	k, _ := l.start(t, l.open(t))
	v, err := k.Machine(t.Context(), "cp-1")
	check(t, err)
	approved := v.Machine.Clone()
	approved.Approval = inventory.ApprovalRequired
	_, err = k.PutMachine(t.Context(), approved, v.Machine.Rev)
	check(t, err)
	m := l.hand(t, racktest.MachineOptions{Name: "cp-1", MACs: []net.HardwareAddr{nic(1)}})
	machine := func() *inventory.View {
		v, err := k.Machine(t.Context(), "cp-1")
		check(t, err)
		return &v
	}
	until(t, k, "it waits", func() bool { return machine().Facts.Maintenance != nil })
	waits := machine().Facts.Maintenance
	if printed := m.Loaded().Fingerprint; waits.Fingerprint != printed || printed == "" || !strings.Contains(waits.Reason, "provisiond machine confirm cp-1") {
		t.Fatalf("the console prints %q, and it is %+v", printed, waits)
	}
	if s := inventory.DefaultPatience().PhaseOf(*machine(), time.Now().Add(24*time.Hour)); s.Phase != inventory.PhaseConfiguring || !strings.HasPrefix(s.Reason, "waits in maintenance mode: a person has to confirm it") {
		t.Errorf("it is %+v", s)
	}
	confirm := func(fingerprint string) (inventory.View, error) {
		return k.Record(t.Context(), inventory.Event{Kind: inventory.MaintenanceConfirmed, Machine: "cp-1", Fingerprint: fingerprint, By: "ada"})
	}
	for _, wrong := range []string{"", waits.Fingerprint[1:], "A" + waits.Fingerprint[1:]} {
		if _, err := confirm(wrong); err == nil {
			t.Errorf("%q was confirmed", wrong)
		}
	}
	if b := machine().Facts.Current(); b != nil || m.Disk().Installed() {
		t.Fatalf("it was given its config: %+v", b)
	}
	_, err = confirm(m.Loaded().Fingerprint)
	check(t, err)
	until(t, k, "it has its config", func() bool { b := machine().Facts.Current(); return b != nil && !b.API.IsZero() })
	i := slices.IndexFunc(l.trail(t), func(e audit.Entry) bool {
		return e.Action == "give-config" && strings.Contains(e.Reason, "confirmed by ada")
	})
	if i < 0 {
		t.Errorf("the trail does not say who confirmed: %+v", l.trail(t))
	}
}

// TestSomebodyElsesMAC: who says that it has the NIC of a machine gets no config, and who
// sits at the address of a machine neither.
func TestSomebodyElsesMAC(t *testing.T) {
	for name, o := range map[string]racktest.MachineOptions{
		"its MAC at another address": {MACs: []net.HardwareAddr{nic(0x66)}, Pretends: []net.HardwareAddr{nic(1)}},
		"another MAC at its address": {MACs: []net.HardwareAddr{nic(1)}, Pretends: []net.HardwareAddr{nic(0x66)}},
		"the MACs of two machines":   {MACs: []net.HardwareAddr{nic(1)}, Pretends: []net.HardwareAddr{nic(1), nic(4)}},
	} {
		t.Run(name, func(t *testing.T) {
			l := newLab(t)
			k, _ := l.start(t, l.open(t))
			if o.MACs[0][5] == 0x66 { // as it is seen when its firmware asks for an address
				_, err := k.Record(t.Context(), inventory.Event{Kind: inventory.Solicited, MAC: "52:54:00:00:00:66", Client: inventory.FirmwarePXE, Subnet: "rack1"})
				check(t, err)
			}
			m := l.hand(t, o)
			until(t, k, "it is refused", func() bool { return refusedOnce(t, k) })
			if !slices.ContainsFunc(l.trail(t), func(e audit.Entry) bool {
				return e.Action == "give-config" && e.Outcome == audit.Refused && e.Target == "machine/cp-1" && e.Reason != ""
			}) {
				t.Errorf("the trail has no refusal: %+v", l.trail(t))
			}
			v, err := k.Machine(t.Context(), "cp-1")
			check(t, err)
			if v.Facts.Current() != nil || v.Facts.ConfigHash != "" || v.Facts.Maintenance != nil || m.Disk().Installed() || m.Loaded().Config != "" {
				t.Errorf("it was given a config: %+v", v.Facts)
			}
		})
	}
}

func refusedOnce(t *testing.T, k *inventory.Keeper) bool {
	t.Helper()
	events, err := k.EventsTail(t.Context(), 100)
	check(t, err)
	return slices.ContainsFunc(events, func(e inventory.Event) bool { return e.Kind == inventory.ConfigRefused && e.Machine == "cp-1" })
}

// TestDiscoveredByHand: one that nobody knows is discovered with its fingerprint, and
// given its config once it is registered.
func TestDiscoveredByHand(t *testing.T) {
	l := newLab(t)
	k, _ := l.start(t, l.open(t))
	_, err := k.Record(t.Context(), inventory.Event{Kind: inventory.Solicited, MAC: "52:54:00:00:00:77", Client: inventory.FirmwarePXE, Subnet: "rack1"})
	check(t, err)
	m := l.hand(t, racktest.MachineOptions{Name: "new", MACs: []net.HardwareAddr{nic(0x77)}})
	var found inventory.Stranger
	until(t, k, "it is discovered", func() bool {
		all, err := k.Strangers(t.Context())
		check(t, err)
		i := slices.IndexFunc(all, func(s inventory.Stranger) bool { return s.Fingerprint != "" })
		if i >= 0 {
			found = all[i]
		}
		return i >= 0
	})
	if found.MAC != "52:54:00:00:00:77" || found.Fingerprint != m.Loaded().Fingerprint || found.UUID != m.UUID().String() || found.Client != inventory.MaintenanceMode || !found.Address.IsValid() {
		t.Fatalf("%+v", found)
	}
	_, err = k.PutMachine(t.Context(), &inventory.Machine{Name: "new", MACs: []inventory.MAC{found.MAC}, Cluster: "lab", Role: inventory.ControlPlane}, 0)
	check(t, err)
	until(t, k, "it has its config", func() bool {
		v, err := k.Machine(t.Context(), "new")
		check(t, err)
		b := v.Facts.Current()
		return b != nil && !b.API.IsZero()
	})
}
