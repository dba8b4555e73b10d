package inventory

import (
	"cmp"
	"fmt"
	"net/netip"
	"reflect"
	"slices"
	"time"
)

// newBootAfter is how long a boot may make no progress before the next Solicit
// counts as another attempt, not as the same one trying its next boot option.
const newBootAfter = 10 * time.Minute

// Apply folds one event into what is known. It is the only reducer, and total:
// packets repeat, overtake each other and get lost, and machines lose power at
// any step, so every event is accepted in every state, twice or never. Facts
// only accumulate. It refuses (ErrRefused) only what must never be: a second
// bootstrap claim, or a bootstrap call that no claim covers.
//
// v is not modified. Apply is pure: e carries the time and the random token.
func Apply(v View, e Event) (View, error) {
	after, _, err := apply(v, e)
	return after, err
}

// apply is Apply, and says whether the event told something that is worth a line in
// the log: a change, but not one that only moved the time a machine was last heard of,
// nor one more transaction of the same boot, of which a client may begin as many as it
// likes.
func apply(v View, e Event) (after View, tells bool, err error) {
	if v.Bootstrap != nil {
		b := *v.Bootstrap
		if err := applyBootstrap(&b, e); err != nil {
			return v, false, err
		}
		tells = !reflect.DeepEqual(*v.Bootstrap, b)
		v.Bootstrap = &b
	}
	if v.Machine != nil {
		if e.Kind == Seeded {
			if err := CheckSeed(v); err != nil {
				return v, false, err
			}
		}
		e.complete(v)
		before := v
		v.Facts = v.Facts.Clone()
		told, err := applyReimage(&v.Facts, e)
		if e.Kind == ApprovalAsked || e.Kind == ApprovalGiven || e.Kind == ApprovalDenied {
			told, err = applyApproval(&v.Facts, e)
		}
		if e.Kind == MaintenanceConfirmed {
			told, err = confirmMaintenance(&v.Facts, e)
		}
		if err != nil {
			return before, false, err
		}
		tells = applyMachine(&v.Facts, e) || told || tells
	}
	return v, tells || e.Kind == ScriptRefused || e.Kind == ConfigRefused || e.Kind == Reported && e.Message != "", nil
}

// complete fills in what follows from what is known when the event happens.
func (e *Event) complete(v View) {
	if e.Kind == Solicited && e.Plan == "" {
		e.Plan = PlanBoot(v).Action
	}
	e.own = v.Machine.owns(e.Peer)
	if e.Kind != ScriptServed && e.Kind != ConfigServed && e.Kind != APIAnswered && e.Kind != ApprovalGiven && e.Kind != MaintenanceConfirmed || v.Cluster == nil {
		return
	}
	if e.Holds.Cluster == "" {
		e.Holds = Membership{Cluster: v.Cluster.Name, Role: v.Machine.Role, Epoch: v.Cluster.Epoch}
	}
	e.stale = e.Holds.Cluster != v.Cluster.Name || e.Holds.Epoch != v.Cluster.Epoch
}

// applyMachine folds an event into f and says whether it tells something.
func applyMachine(f *Facts, e Event) (tells bool) {
	switch e.Kind {
	case Solicited:
		tells = seen(f, e)
		switch e.Client {
		case FirmwarePXE, FirmwareHTTP:
			return solicitedByFirmware(f, e) || tells
		case IPXE:
			return solicitedByIPXE(f, e) || tells
		}
	case Offered:
		b := changeBoot(f, e)
		if b == nil {
			b = begin(f, e)
		}
		offered, plan := first(&b.Offered, e.Time), set(&b.Plan, e.Plan)
		return setWay(b, e) || offered || plan
	case LoaderServed:
		if b := changeBoot(f, e); b != nil && first(&b.Loader, e.Time) {
			b.LoaderTook = e.Took
			return true
		}
	case Seeded:
		seeded(f, e)
		return true
	case ScriptServed:
		tells = seen(f, e)
		return scriptServed(f, e) || tells
	case KernelServed:
		if b := changeBoot(f, e); b != nil && first(&b.Kernel, e.Time) {
			b.KernelTook = e.Took
			return true
		}
	case InitramfsServed:
		if b := changeBoot(f, e); b != nil && first(&b.Initramfs, e.Time) {
			b.InitramfsTook = e.Took
			return true
		}
	case UKIServed:
		if b := changeBoot(f, e); b != nil && first(&b.Initramfs, e.Time) {
			first(&b.Kernel, e.Time)
			b.InitramfsTook = e.Took
			return true
		}
	case MaintenanceSeen:
		tells = seen(f, e)
		return maintenanceSeen(f, e) || tells
	case MaintenanceGone:
		tells, f.Maintenance = f.Maintenance != nil, nil
		return tells
	case ConfigServed:
		var b *Boot
		if e.ConfigBy == ChannelAPI {
			b = maintenanceBoot(f, e)
		} else {
			b = changeBoot(f, e)
		}
		if b != nil {
			first(&b.Config, e.Time)
			b.ConfigBy = e.ConfigBy
			b.ConfigFetches++
			if !b.ConfigTo.IsValid() {
				b.ConfigTo = e.Peer
			} else if e.Peer != b.ConfigTo && b.Alarm == "" && e.ConfigBy != ChannelAPI && !(e.ConfigBy == ChannelNoCloud && e.own) { // there a key says who it is; network-config comes in between
				b.Alarm = fmt.Sprintf("the config of boot %d was given to %s, and to %s after it: unless that was the machine again, somebody has its keys", b.Number, b.ConfigTo, e.Peer)
			}
			f.ConfigHash, f.ConfigAt = e.Hash, e.Time
			switch {
			case e.ConfigBy == ChannelURL || e.ConfigBy == "": // it asks when its disk is blank
				f.Holds, f.StagedHash = e.Holds, ""
			case f.Holds.Cluster == "": // its disk may become that; what is known of it may be still true
				f.Holds, f.Holds.Guess = e.Holds, e.Holds.Cluster != ""
			}
			wiped(f, b, e)
			return true
		}
	case ConfigDeclined:
		if b := changeBoot(f, e); b != nil && b.ConfigBy == ChannelAPI && b.API.IsZero() {
			b.Config = time.Time{} // it has none
			return true
		}
	case TokenStolen:
		if b := changeBoot(f, e); b != nil && b.Alarm == "" {
			b.Alarm = fmt.Sprintf("%s, which is no address of the machine, showed the token of boot %d: it got nothing, but somebody listens", e.Peer, b.Number)
			return true
		}
	case AlarmSeen:
		for i := range f.Boots {
			tells = set(&f.change(i).Alarm, "") || tells
		}
	case ConfigApplied:
		return configApplied(f, e)
	case Reported:
		if e.Error != "" {
			f.ConfigError, f.ConfigErrorHash, f.ConfigErrorAt = e.Error, f.ConfigHash, e.Time
			tells = true
		}
		// Unauthenticated: it moves the picture, never Ready and no order.
		return stage(f, e) || tells
	case APIAnswered:
		return apiAnswered(f, e)
	case Declined:
		if e.Time.Sub(f.DeclinedAt) >= declinedFor { // else it is the same conflict
			f.DeclinedAt = e.Time
			return true
		}
	}
	return tells
}

// configApplied keeps what config a machine has now. One that is tried is taken back.
func configApplied(f *Facts, e Event) (tells bool) {
	switch e.Mode {
	case ConfigTry:
		return true
	case ConfigStaged:
		f.StagedHash = e.Hash
	default:
		f.ConfigHash, f.ConfigAt = e.Hash, e.Time
		f.StagedHash = "" // its place on the disk is taken
	}
	return true
}

// seen keeps what identifies the machine and when it was last heard of.
func seen(f *Facts, e Event) (tells bool) {
	tells = first(&f.FirstSeen, e.Time)
	if e.Time.Sub(f.LastSeen) >= time.Minute {
		f.LastSeen = e.Time
	}
	if e.Kind == Solicited && e.Source != "" {
		f.Identified = Identification{By: e.Source, MAC: e.MAC, Client: e.Client, Peer: e.Peer, Relay: e.Relay, Port: e.Port}
	}
	if e.Arch != "" {
		tells = set(&f.Arch, e.Arch) || tells
	}
	if e.UUID != "" {
		tells = set(&f.UUID, e.UUID) || tells
	}
	if e.Serial != "" {
		tells = set(&f.Serial, e.Serial) || tells
	}
	if e.SecureBoot != "" {
		tells = set(&f.SecureBoot, e.SecureBoot) || tells
	}
	if e.DUID != "" && !slices.Contains(f.DUIDs, e.DUID) {
		f.DUIDs = append(f.DUIDs, e.DUID)
		if n := len(f.DUIDs); n > maxDUIDs {
			f.DUIDs = slices.Delete(f.DUIDs, 0, n-maxDUIDs)
		}
		tells = true
	}
	return tells
}

// solicitedByFirmware begins a boot, unless the packet belongs to the current
// one: it is a repeat, or the firmware tries its next boot option. The plan is
// kept here, because firmware that is sent to its disk leaves at the Advertise.
func solicitedByFirmware(f *Facts, e Event) (tells bool) {
	b := f.Current()
	if b != nil && f.repeats(e) {
		return false
	}
	if b == nil || b.Client == Seed || !b.Loader.IsZero() || !b.Script.IsZero() || !b.API.IsZero() || e.Time.Sub(latest(b.Started, b.Offered)) > newBootAfter {
		b, tells = begin(f, e), true
	} else {
		b = f.change(0)
	}
	addXID(b, e.XID)
	client, mac, plan := set(&b.Client, e.Client), set(&b.MAC, e.MAC), set(&b.Plan, e.Plan)
	return tells || client || mac || plan
}

// solicitedByIPXE usually continues the firmware's boot. iPXE in the NIC's ROM
// is the first to speak, so it begins a boot after one that got its config.
func solicitedByIPXE(f *Facts, e Event) (tells bool) {
	b := f.Current()
	if b == nil || !f.repeats(e) && (b.Client == Seed || !b.Config.IsZero() || !b.API.IsZero()) {
		b, tells = begin(f, e), true
		b.Client = e.Client
	} else {
		b = f.change(0)
	}
	addXID(b, e.XID)
	return tells
}

// scriptServed begins a boot where DHCPv6 was not seen (another server gives
// the addresses, or our record of it was lost in a crash).
func scriptServed(f *Facts, e Event) (tells bool) {
	b := f.Current()
	// Who does not come from the script of this boot may have run since.
	fresh := func() bool { return !b.Script.IsZero() && e.Boot != b.Number }
	wipes := f.Reimage.Outstanding() && !f.Reimage.Claimed()
	// It is in the boot that its wipe was cleared in, whatever that was to do before: a
	// backup that was put back takes every boot for one from disk.
	due := e.Plan == Wipe && f.DueAtNetboot()
	if !due && (b == nil || b.Client == Seed || !b.Config.IsZero() || !b.API.IsZero() || b.Plan == Disk && e.Plan != Disk || !b.Script.IsZero() && b.Plan == Wipe && e.Plan != Wipe || wipes && fresh()) {
		b = begin(f, e)
	} else {
		b = f.change(0)
	}
	b.Waits = e.Wait
	served, plan, failed := first(&b.Script, e.Time), set(&b.Plan, e.Plan), set(&b.Error, e.Error)
	setWay(b, e)
	if due {
		claimWipe(f, e, ViaNetboot)
		f.Reimage.Boot = b.Number
	}
	if e.Plan == Install && f.Holds.Cluster == "" {
		// Should the fetch of its config be lost in a crash of ours, its disk may make
		// it that all the same.
		f.Holds, f.Holds.Guess = e.Holds, e.Holds.Cluster != ""
	}
	order := e.Plan == Install && set(&b.Order, f.Install.Ordered)
	return served || plan || failed || order
}

// setWay keeps how a boot is started and why so, and says whether that is news. What
// firmware was offered says more than the iPXE that came of it.
func setWay(b *Boot, e Event) (tells bool) {
	if e.Way == "" || e.Client == IPXE && b.Way == e.Way {
		return false
	}
	b.WayReason = e.WayReason
	return set(&b.Way, e.Way)
}

// apiAnswered takes the word of an API that proved itself with our CA. It alone
// uses up an install order.
func apiAnswered(f *Facts, e Event) (tells bool) {
	if e.Time.Sub(f.APIAt) >= time.Minute {
		f.APIAt = e.Time
	}
	tells = stage(f, e)
	if up := e.Stage == StageBooting || e.Stage == StageRunning; up && f.Maintenance != nil {
		f.Maintenance, tells = nil, true
	}
	tells = tookConfig(f, e) || tells
	tells = notWiped(f, e) || tells
	if e.SecureBoot != "" {
		tells = set(&f.SecureBoot, e.SecureBoot) || tells
	}
	up := e.Stage == StageBooting || e.Stage == StageRunning
	b := f.Current()
	if !f.isOf(b, e) {
		return tells
	}
	tells = set(&f.Ready, e.Ready && e.Stage == StageRunning) || tells
	if b != nil && up && (b.API.IsZero() || f.Ready && b.Ready.IsZero()) {
		b = f.change(0)
		first(&b.API, e.Time)
		if f.Ready {
			first(&b.Ready, e.Time)
		}
		tells = true
	}
	if f.Install.Outstanding() && installed(f, e) {
		f.Install.Done, f.Install.DoneAt = f.Install.Ordered, e.Time
		if f.Holds.Cluster == "" || f.Holds.Guess {
			f.Holds = e.Holds
		}
		tells = true
	}
	return tells
}

// isOf says whether an answer of the API can be of what the machine runs since a boot
// began. One that arrives after it began may still be of the system before it.
func (f *Facts) isOf(b *Boot, e Event) bool {
	switch {
	case b == nil || b.Plan == Disk || b.Plan != Wipe && !b.Config.IsZero():
		return true
	case e.Asked.Sub(b.lastSign()) >= settle:
		return true // it went no further, and came up from its disk
	case b.Plan == Wipe || e.Stage != StageRunning || b.Script.IsZero() && b.Initramfs.IsZero():
		return false
	}
	// What came after the script may have been lost in a crash of ours. A first install
	// has no old system that could answer instead, and neither has one whose config was
	// fetched in an earlier boot, once the question is younger than the script.
	return !b.Initramfs.IsZero() || f.Install.Ordered == 1 || !f.fetched().IsZero() && e.Asked.After(b.Script)
}

// installed says whether an answer of the API is the evidence that uses up the
// outstanding install order.
func installed(f *Facts, e Event) bool {
	switch at := f.fetched(); {
	case !at.IsZero():
		// Its disk had no config when it fetched the one for this order, so what was
		// there before is gone; but not an answer of it that is late.
		return (e.Stage == StageBooting || e.Stage == StageRunning) && (e.Asked.IsZero() || !e.Asked.Before(at))
	case f.Install.Ordered == 1:
		// It runs a config of our CA that this database does not know it served:
		// from its disk. The database was lost, or its last second in a crash, or
		// the cluster imported. Never true for a reimage, whose order is 2 or more.
		return e.Stage == StageRunning
	}
	return false
}

func stage(f *Facts, e Event) (tells bool) {
	if e.Stage != "" && e.Stage != f.Stage || e.Kind == APIAnswered && e.Ready && !f.Ready {
		f.Stage, f.StageAt = cmp.Or(e.Stage, f.Stage), e.Time
		return true
	}
	return false
}

// begin starts the next boot attempt.
func begin(f *Facts, e Event) *Boot {
	b := &Boot{Number: 1, Token: e.Token, MAC: e.MAC, Client: e.Client, Started: e.Time}
	if last := f.Current(); last != nil {
		b.Number = last.Number + 1
	}
	f.Boots = slices.Insert(f.Boots, 0, b)
	if len(f.Boots) > maxBoots {
		f.Boots = f.Boots[:maxBoots]
	}
	f.Ready = false
	if e.ConfigBy != ChannelAPI {
		f.Maintenance = nil
	}
	if f.StagedHash != "" { // unless its disk is wiped, and then it fetches another
		f.ConfigHash, f.ConfigAt = f.StagedHash, e.Time
		f.StagedHash = ""
	}
	return b
}

// bootOf finds the boot an event belongs to: the numbered one, else the newest; -1 if
// there is none.
func bootOf(f *Facts, e Event) int {
	return slices.IndexFunc(f.Boots, func(b *Boot) bool { return e.Boot == 0 || b.Number == e.Boot })
}

// changeBoot is the boot an event belongs to, to be modified, or nil.
func changeBoot(f *Facts, e Event) *Boot {
	if i := bootOf(f, e); i >= 0 {
		return f.change(i)
	}
	return nil
}

// repeats reports whether a Solicit was seen before: UDP repeats packets and
// relays delay them, beyond the end of a boot.
func (f *Facts) repeats(e Event) bool {
	return slices.ContainsFunc(f.Boots, func(b *Boot) bool { return slices.Contains(b.XIDs, e.XID) })
}

func addXID(b *Boot, xid uint32) {
	if !slices.Contains(b.XIDs, xid) {
		b.XIDs = append(b.XIDs, xid)
		if n := len(b.XIDs); n > maxXIDs {
			b.XIDs = slices.Delete(b.XIDs, 0, n-maxXIDs)
		}
	}
}

// first sets the time when something happened for the first time, and says whether
// this was it.
func first(t *time.Time, now time.Time) bool {
	if !t.IsZero() {
		return false
	}
	*t = now
	return true
}

// set gives a field a value and says whether it had another.
func set[T comparable](field *T, value T) bool {
	changed := *field != value
	*field = value
	return changed
}

// applyBootstrap keeps the one rule that must survive everything: within an
// epoch one machine holds the claim, and only it is called.
func applyBootstrap(b *Bootstrap, e Event) error {
	if e.Epoch != 0 && e.Epoch != b.Epoch {
		return fmt.Errorf("event of epoch %d, but cluster %s is in epoch %d: %w", e.Epoch, b.Cluster, b.Epoch, ErrRefused)
	}
	switch e.Kind {
	case BootstrapClaimed:
		switch {
		case b.Done():
			return fmt.Errorf("cluster %s already runs: %w", b.Cluster, ErrRefused)
		case b.Claimed() && b.Machine != e.Machine:
			return fmt.Errorf("the bootstrap of cluster %s is claimed by %s: %w", b.Cluster, b.Machine, ErrRefused)
		case !b.Claimed():
			b.Machine, b.ClaimedAt, b.Reason = e.Machine, e.Time, e.Message
		}
	case BootstrapSent:
		if b.Machine != e.Machine || b.Called() || b.Done() {
			return fmt.Errorf("no open claim of %s on the bootstrap of cluster %s: %w", e.Machine, b.Cluster, ErrRefused)
		}
		b.Attempts++
		b.SentAt, b.Ambiguous, b.Reason = e.Time, true, e.Message
	case BootstrapAccepted:
		if b.Machine != e.Machine {
			return fmt.Errorf("%s does not hold the claim of cluster %s: %w", e.Machine, b.Cluster, ErrRefused)
		}
		first(&b.CalledAt, e.Time)
		b.Ambiguous, b.Reason = false, e.Message
	case BootstrapDeclined:
		b.Ambiguous, b.Reason = false, e.Message
	case BootstrapWaits:
		b.Reason = e.Message
	case BootstrapDone:
		first(&b.DoneAt, e.Time)
		b.Reason = e.Message
	}
	return nil
}

// SeenAgain folds an event into the record of a stranger.
func (s Stranger) SeenAgain(e Event) Stranger {
	if s.FirstSeen.IsZero() {
		s.MAC, s.FirstSeen = e.MAC, e.Time
	}
	if e.Time.Sub(s.LastSeen) >= time.Minute {
		s.LastSeen = e.Time
	}
	if e.UUID != "" {
		s.UUID = e.UUID
	}
	if e.Arch != "" {
		s.Arch = e.Arch
	}
	if e.Client != "" && e.Client != FirmwareStack {
		s.Client = e.Client
	}
	if e.Relay.IsValid() {
		s.Relay, s.Port = e.Relay, e.Port
	}
	if e.Subnet != "" {
		s.Subnet = e.Subnet
	}
	s.Address, s.Fingerprint = netip.Addr{}, e.Fingerprint
	if e.Kind == MaintenanceSeen {
		s.Address = e.Peer
	}
	return s
}
