package inventory

import (
	"bytes"
	"cmp"
	"context"
	"crypto/rand"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"reflect"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

// KeeperConfig is what a Keeper needs to know beside its store.
type KeeperConfig struct {
	// Subnets must have passed [ValidateSubnets].
	Subnets []Subnet
	// MaxStrangers bounds the list of discovered NICs; the one not seen for
	// longest makes room. 0 means 1024.
	MaxStrangers int
	// Signs and Asks are described at [View].
	Signs, Asks bool
}

// Keeper is the one writer of the inventory. Every change is loaded, decided by
// a pure function and committed with one compare-and-swap; a change that lost
// the race is decided again on what won. It is safe for concurrent use.
type Keeper struct {
	store   Store
	signs   bool
	asks    bool
	subnets atomic.Pointer[[]Subnet]
	placing sync.RWMutex // held to register machines, and to change the subnets

	strangers strangers
	watchers  watchers
	clusters  decoded[Cluster]
	images    decoded[Image]
	secrets   decoded[Secrets]
	views     views
	notes     notes
	leases    leases
	macs      macs
}

// NewKeeper returns a Keeper on a store. It reads the strangers and the leases,
// which are bounded, and the index of MACs, a million in a second; everything else
// is read when it is asked for.
func NewKeeper(ctx context.Context, store Store, cfg KeeperConfig) (*Keeper, error) {
	if cfg.MaxStrangers == 0 {
		cfg.MaxStrangers = 1024
	}
	k := &Keeper{store: store, signs: cfg.Signs, asks: cfg.Asks}
	k.subnets.Store(&cfg.Subnets)
	k.notes.wake = make(chan struct{}, 1)
	k.strangers.max = cfg.MaxStrangers
	list, err := listAll[Stranger](ctx, store, BucketStrangers)
	if err != nil {
		return nil, err
	}
	k.strangers.load(list)
	held, err := k.Leases(ctx)
	if err != nil {
		return nil, err
	}
	k.leases.load(held, k.SubnetOf)
	return k, k.macs.load(ctx, store)
}

// maxTries bounds the retries of a compare-and-swap. Contention is on one
// machine or one cluster, so a handful is plenty.
const maxTries = 32

// update runs a load-decide-commit cycle until it commits, fails, or has
// nothing to write. What lost against another commit is decided again on what
// won; what may or may not have happened is looked up.
func (k *Keeper) update(ctx context.Context, decide func() (Commit, error)) error {
	_, err := k.commit(ctx, decide)
	return err
}

// commit is update that also returns the revision; 0 when nothing was written.
func (k *Keeper) commit(ctx context.Context, decide func() (Commit, error)) (uint64, error) {
	var last error
	for range maxTries {
		c, err := decide()
		if err != nil {
			return 0, err
		}
		rev, err := k.try(ctx, c)
		if !errors.Is(err, errAgain) {
			return rev, err
		}
		last = err
		if err := ctx.Err(); err != nil {
			return 0, err
		}
	}
	return 0, fmt.Errorf("giving up after %d tries: %w", maxTries, last)
}

// errAgain wraps the error of a commit that has to be decided again.
var errAgain = errors.New("decide again")

// try commits once. A commit without content does nothing, at revision 0.
func (k *Keeper) try(ctx context.Context, c Commit) (uint64, error) {
	if len(c.Writes) == 0 && len(c.Log) == 0 {
		return 0, nil
	}
	rev, _, err := k.store.Commit(ctx, c)
	switch {
	case err == nil:
		k.committed(c, rev)
		return rev, nil
	case errors.Is(err, ErrConflict):
		k.views.conflicted(c.Writes)
		k.leases.reread(k.store, c.keys(), k.SubnetOf)
	case errors.Is(err, ErrAmbiguous):
		k.views.committed(c.Writes, 0)
		k.macs.reread(k.store, c.Writes)
		if rev, ok := k.happened(ctx, c); ok {
			k.committed(c, rev)
			return rev, nil
		}
		k.leases.reread(k.store, c.keys(), k.SubnetOf)
	default:
		return 0, err
	}
	return 0, fmt.Errorf("%w: %w", errAgain, err)
}

// committed tells everybody in this process what was written.
func (k *Keeper) committed(c Commit, rev uint64) {
	k.macs.reread(k.store, c.Writes)
	k.views.committed(c.Writes, rev)
	k.strangers.saw(c.Writes)
	k.notes.committed(c.Writes)
	k.leases.reread(k.store, c.keys(), k.SubnetOf)
	k.watchers.wake(c.news())
}

// happened looks whether a commit with an unknown outcome took effect: all that
// it wrote is there. If somebody has written over it since, it is decided anew.
func (k *Keeper) happened(ctx context.Context, c Commit) (rev uint64, ok bool) {
	for _, w := range c.Writes {
		rec, err := k.store.Get(ctx, w.Key)
		switch {
		case w.Value == nil && errors.Is(err, ErrNotFound):
		case err != nil || w.Value == nil || !bytes.Equal(rec.Value, w.Value):
			return 0, false
		default:
			rev = max(rev, rec.Rev)
		}
	}
	return rev, len(c.Writes) > 0
}

// View returns what is known of the machine behind a NIC. For a stranger the
// view's Machine is nil; that is no error. arch may be empty: then it is what
// was learnt, else amd64.
func (k *Keeper) View(ctx context.Context, mac MAC, arch Arch) (View, error) {
	v, err := k.committedView(ctx, mac, "", arch)
	if err != nil || v == nil {
		return View{}, err
	}
	return k.withNotes(ctx, v, arch)
}

// committedView is what is on disk of the machine of a NIC, nil if it is nobody's;
// or of the machine of a name, when that is not empty. It is shared, and not to
// be modified.
func (k *Keeper) committedView(ctx context.Context, mac MAC, name string, arch Arch) (*View, error) {
	byMAC := name == ""
	if byMAC {
		if name = k.macs.owner(mac); name == "" {
			return nil, nil
		}
	}
	v, epoch, ok := k.views.get(name, arch)
	if ok {
		return v, nil
	}
	rec, err := k.store.Get(ctx, Key{BucketMachines, name})
	if byMAC && errors.Is(err, ErrNotFound) { // removed between the two reads
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	if v, err = k.complete(ctx, rec, arch); err != nil {
		return nil, err
	}
	v.epoch = epoch
	if (v.Facts.Current() != nil || k.notes.has(name)) && v.imageFits() {
		k.views.put(v)
	}
	return v, nil
}

// Registered reports whether a NIC is one of a registered machine.
func (k *Keeper) Registered(mac MAC) bool { return k.macs.owner(mac) != "" }

// Machine returns the machine of a name, or of a MAC in any notation.
func (k *Keeper) Machine(ctx context.Context, ref string) (View, error) {
	name := ref
	if mac, err := ParseMAC(ref); err == nil {
		if owner := k.macs.owner(mac); owner != "" {
			name = owner
		}
	}
	v, err := k.viewOf(ctx, name, "")
	if errors.Is(err, ErrNotFound) {
		return View{}, fmt.Errorf("machine %q: %w", ref, ErrNotFound)
	}
	return v, err
}

// MachineByAddress returns the machine that an address belongs to: its stable
// address, a lease, or the EUI-64 address of one of its NICs, link-local or of the
// subnet that its stable address is of. A link-local one has the interface as its zone,
// which must be that of the subnet: whoever is on another can have the same address.
// The view's Machine is nil when it is nobody's.
func (k *Keeper) MachineByAddress(ctx context.Context, a netip.Addr) (View, error) {
	zone := a.Zone()
	a = a.Unmap().WithZone("")
	if a.IsLinkLocalUnicast() {
		v, err := k.machineByEUI64(ctx, a)
		if err == nil && v.Machine != nil {
			if s := k.SubnetOf(v.Machine.Address); s == nil || zone == "" || s.Interface != zone {
				v = View{}
			}
		}
		return v, err
	}
	rec, err := k.store.Get(ctx, Key{BucketAddresses, a.String()})
	if errors.Is(err, ErrNotFound) {
		if l := k.leases.of(a); l != nil && l.live(time.Now()) && !l.Declined && l.MAC != "" {
			return k.View(ctx, l.MAC, "")
		}
		// SLAAC, where a router announces the prefix. In another subnet anyone could
		// give himself the address.
		v, err := k.machineByEUI64(ctx, a)
		subnets := k.Subnets()
		if s := subnetOf(subnets, a); err != nil || v.Machine == nil || s == nil || s != subnetOf(subnets, v.Machine.Address) {
			return View{}, err
		}
		return v, nil
	}
	if err != nil {
		return View{}, err
	}
	return k.viewOf(ctx, string(rec.Value), "")
}

// Machines lists machines by name, strictly after a name, at most limit (0: all).
func (k *Keeper) Machines(ctx context.Context, after string, limit int) ([]View, error) {
	recs, err := k.store.List(ctx, BucketMachines, after, limit)
	if err != nil {
		return nil, err
	}
	views := make([]View, 0, len(recs))
	for _, rec := range recs {
		v, err := k.complete(ctx, rec, "")
		if err != nil {
			return nil, err
		}
		noted, err := k.withNotes(ctx, v, "")
		if err != nil {
			return nil, err
		}
		views = append(views, noted)
	}
	return views, nil
}

func (k *Keeper) machineByEUI64(ctx context.Context, a netip.Addr) (View, error) {
	if mac, ok := MACFromEUI64(a); ok {
		return k.View(ctx, mac, "")
	}
	return View{}, nil
}

func (k *Keeper) viewOf(ctx context.Context, name string, arch Arch) (View, error) {
	v, err := k.committedView(ctx, "", name, arch)
	if err != nil {
		return View{}, err
	}
	return k.withNotes(ctx, v, arch)
}

// complete reads what belongs to a machine record, as it is on disk.
func (k *Keeper) complete(ctx context.Context, rec Record, arch Arch) (*View, error) {
	m, err := decode[Machine](rec)
	if err != nil {
		return nil, err
	}
	v := &View{Machine: &m, Signs: k.signs, Asks: k.asks}
	v.Facts, err = getJSON[Facts](ctx, k.store, Key{BucketFacts, m.Name})
	if err != nil && !errors.Is(err, ErrNotFound) {
		return nil, err
	}
	v.Facts.Machine = m.Name
	if m.Cluster == "" {
		return v, nil
	}
	v.Cluster, err = k.clusters.get(ctx, k.store, Key{BucketClusters, m.Cluster})
	if errors.Is(err, ErrNotFound) {
		return v, nil
	} else if err != nil {
		return nil, err
	}
	return v, k.findImage(ctx, v, arch)
}

// findImage looks up the boot image of a machine for an architecture; empty: the
// one that was learnt, else amd64.
func (k *Keeper) findImage(ctx context.Context, v *View, arch Arch) (err error) {
	v.Wanted = ImageWanted(v.Machine, v.Cluster, cmp.Or(arch, v.Facts.Arch, AMD64))
	v.Image, err = k.images.get(ctx, k.store, Key{BucketImages, v.Wanted})
	if errors.Is(err, ErrNotFound) {
		return nil
	}
	return err
}

// ImageWanted is the id of the image that a machine of a cluster netboots.
func ImageWanted(m *Machine, c *Cluster, arch Arch) string {
	version, schematic := c.TalosVersion, c.Schematic
	if m.Image != "" {
		version, schematic, _ = strings.Cut(m.Image, "/")
	}
	return ImageID(version, schematic, arch)
}

// Learnt returns the MAC that a DUID was last seen with, if that was one only.
func (k *Keeper) Learnt(ctx context.Context, duid []byte) (MAC, bool) {
	if !LearnableDUID(duid) {
		return "", false
	}
	rec, err := k.store.Get(ctx, Key{BucketDUIDs, hex.EncodeToString(duid)})
	if err != nil || string(rec.Value) == ambiguousDUID {
		return "", false
	}
	return MAC(rec.Value), true
}

// ambiguousDUID marks a DUID that two machines sent: it names nobody.
const ambiguousDUID = "-"

// Record folds an event into the facts. An event that changes nothing writes
// nothing; one that does has its line in the event log.
//
// What is claimed, promised or proven is durable when Record returns. What a
// machine was merely seen doing ([Event.observed]) counts at once for everyone who
// asks this Keeper, and is durable within a second (see [Keeper.Run]) or with the
// machine's next durable event, so that it keeps no machine waiting for a disk.
//
// An event is about a cluster's bootstrap when it names a Cluster, else about
// the machine of its Machine or MAC; a MAC nobody registered is a stranger's.
func (k *Keeper) Record(ctx context.Context, e Event) (View, error) {
	if e.Time.IsZero() {
		e.Time = time.Now()
	}
	e.Time = e.Time.UTC()
	if e.Token == "" {
		e.Token = newToken()
	}
	if v, ok, err := k.note(ctx, e); ok || err != nil {
		return v, err
	}
	var result View
	var written []byte // the facts, if they changed
	var waited []Event // that are folded in with e
	rev, err := k.commit(ctx, func() (Commit, error) {
		result, written, waited = View{}, nil, nil
		before, err := k.load(ctx, e)
		if err != nil {
			return Commit{}, err
		}
		if before.Machine == nil && before.Bootstrap == nil {
			return k.strangers.record(ctx, k.store, e)
		}
		if before.Machine != nil {
			if len(e.Within) > 0 && !slices.Contains(e.Within, before.Machine.Cluster) {
				return Commit{}, fmt.Errorf("machine %q: %w", before.Machine.Name, ErrNotFound)
			}
			waited = k.notes.waiting(&before)
		}
		c, after, err := changes(ctx, k.store, before, waited, e)
		result, written = after, c.facts
		return c, err
	})
	if err == nil && result.Machine != nil {
		kept := result
		kept.Bootstrap = nil
		k.recorded(&kept, rev, written, waited)
		result.Facts = kept.Facts
	}
	return result, err
}

// recorded takes into account what is on disk now: a machine's facts, if they
// were written, and the events that waited for that.
func (k *Keeper) recorded(v *View, rev uint64, facts []byte, waited []Event) {
	if facts != nil {
		v.Facts.Rev, v.Facts.stored = rev, facts
		if v.imageFits() {
			k.views.put(v)
		}
	}
	k.notes.drop(v.Machine.Name, waited)
}

// imageFits reports whether the view's image was looked up for the architecture
// that the machine is known to have.
func (v *View) imageFits() bool {
	return v.Wanted == "" || strings.HasSuffix(v.Wanted, "/"+string(cmp.Or(v.Facts.Arch, AMD64)))
}

// load reads, as it is on disk, what an event is about.
func (k *Keeper) load(ctx context.Context, e Event) (v View, err error) {
	if e.Machine != "" || e.MAC != "" {
		var found *View
		if found, err = k.committedView(ctx, e.MAC, e.Machine, e.Arch); found != nil {
			v = *found
		}
		if e.Machine != "" && errors.Is(err, ErrNotFound) {
			return View{}, fmt.Errorf("machine %q: %w", e.Machine, ErrNotFound)
		}
	}
	if err != nil || e.Cluster == "" {
		return v, err
	}
	b, err := getJSON[Bootstrap](ctx, k.store, Key{BucketBootstraps, e.Cluster})
	if err != nil {
		return View{}, fmt.Errorf("bootstrap of cluster %q: %w", e.Cluster, err)
	}
	v.Bootstrap = &b
	return v, nil
}

// changes is the commit that folds events into a view, those that waited first:
// only what differs. It also returns the view after it.
func changes(ctx context.Context, store Store, view View, waited []Event, events ...Event) (c Commit, after View, err error) {
	first := view
	if len(events) > 0 {
		events = slices.Concat(waited, events)
	} else {
		events = waited
	}
	for _, e := range events {
		var tells bool
		if after, tells, err = apply(view, e); err != nil {
			return c, view, err
		}
		if after.Machine != nil {
			e.Machine = after.Machine.Name
			if i := bootOf(&after.Facts, e); i >= 0 {
				e.Boot = after.Facts.Boots[i].Number
			}
			if err := learn(ctx, store, &c, after.Machine, view.Facts, after.Facts, e); err != nil {
				return c, view, err
			}
		}
		if after.Bootstrap != nil {
			e.Epoch = after.Bootstrap.Epoch
		}
		if tells {
			c.log(e)
		}
		view = after
	}
	if view.Machine != nil && !reflect.DeepEqual(first.Facts, view.Facts) {
		if len(waited) > 0 {
			view.Facts.Noted = waited[len(waited)-1].Token
		}
		key := Key{BucketFacts, view.Machine.Name}
		if c.facts, err = c.putIfChanged(key, first.Facts.stored, view.Facts, first.Facts.Rev); err != nil {
			return c, view, err
		}
		if c.facts != nil {
			// The machine must still be there, or its facts would outlive it.
			c.Checks = append(c.Checks, Check{Key{BucketMachines, view.Machine.Name}, first.Machine.Rev})
		}
	}
	if view.Bootstrap != nil {
		key := Key{BucketBootstraps, view.Bootstrap.Cluster}
		_, err = c.putIfChanged(key, first.Bootstrap.stored, view.Bootstrap, first.Bootstrap.Rev)
	}
	return c, view, err
}

// learn keeps the DUID index in step with the facts.
func learn(ctx context.Context, store Store, c *Commit, m *Machine, before, after Facts, e Event) error {
	for _, d := range before.DUIDs {
		if !slices.Contains(after.DUIDs, d) {
			if err := forget(ctx, store, c, d, m); err != nil {
				return err
			}
		}
	}
	for _, d := range after.DUIDs {
		if slices.Contains(before.DUIDs, d) {
			continue
		}
		raw, err := hex.DecodeString(d)
		if err != nil || !LearnableDUID(raw) {
			continue
		}
		key, owner := Key{BucketDUIDs, d}, string(e.MAC)
		rec, err := store.Get(ctx, key)
		if err == nil && string(rec.Value) != owner {
			owner = ambiguousDUID
		} else if err != nil && !errors.Is(err, ErrNotFound) {
			return err
		}
		c.Checks = append(c.Checks, Check{key, rec.Rev})
		c.Writes = append(c.Writes, Write{key, []byte(owner)})
	}
	return nil
}

// putIfChanged writes a record and returns its encoding, or nil if that is what is
// stored.
func (c *Commit) putIfChanged(key Key, stored []byte, value any, rev uint64) ([]byte, error) {
	b, err := json.Marshal(value)
	if err != nil || bytes.Equal(stored, b) {
		return nil, err
	}
	c.Checks = append(c.Checks, Check{key, rev})
	c.Writes = append(c.Writes, Write{key, b})
	return b, nil
}

// forget drops a DUID from the index if it stands for a NIC of m. One that two
// machines sent stays marked, or it would name whoever sends it next.
func forget(ctx context.Context, store Store, c *Commit, duid string, m *Machine) error {
	key := Key{BucketDUIDs, duid}
	rec, err := store.Get(ctx, key)
	if errors.Is(err, ErrNotFound) {
		return nil
	} else if err != nil {
		return err
	}
	if slices.Contains(m.MACs, MAC(rec.Value)) {
		c.Checks = append(c.Checks, Check{key, rec.Rev})
		c.Writes = append(c.Writes, Write{Key: key})
	}
	return nil
}

// keys are those of the records that a commit is about.
func (c *Commit) keys() []Key {
	var out []Key
	for _, check := range c.Checks {
		out = append(out, check.Key)
	}
	for _, w := range c.Writes {
		if !slices.Contains(out, w.Key) {
			out = append(out, w.Key)
		}
	}
	return out
}

func (c *Commit) put(key Key, value any, rev uint64) error {
	b, err := json.Marshal(value)
	if err != nil {
		return fmt.Errorf("encoding %s/%s: %w", key.Bucket, key.ID, err)
	}
	c.Checks = append(c.Checks, Check{key, rev})
	c.Writes = append(c.Writes, Write{key, b})
	return nil
}

func (c *Commit) log(e Event) {
	b, err := json.Marshal(e)
	if err != nil {
		return // an Event has no value that cannot be encoded
	}
	c.Log = append(c.Log, b)
	if e.Machine != "" && e.Kind != APIAnswered {
		c.about = append(c.about, e.Machine)
	}
}

// newToken returns 128 random bits, safe in a URL path.
func newToken() string {
	var b [16]byte
	_, _ = rand.Read(b[:]) // never fails (crypto/rand)
	return base64.RawURLEncoding.EncodeToString(b[:])
}

// Events returns up to limit events after an id, oldest first.
func (k *Keeper) Events(ctx context.Context, after uint64, limit int) ([]Event, error) {
	_ = k.Flush(ctx) // those that cannot be written yet are not in the log yet
	return events(k.store.Log(ctx, after, limit))
}

// EventsTail returns the newest events, oldest first.
func (k *Keeper) EventsTail(ctx context.Context, limit int) ([]Event, error) {
	_ = k.Flush(ctx) // as in Events
	return events(k.store.LogTail(ctx, limit))
}

func events(entries []LogEntry, err error) ([]Event, error) {
	if err != nil {
		return nil, err
	}
	out := make([]Event, 0, len(entries))
	for _, l := range entries {
		var e Event
		if err := json.Unmarshal(l.Value, &e); err != nil {
			return nil, fmt.Errorf("event %d: %w", l.ID, err)
		}
		e.ID = l.ID
		out = append(out, e)
	}
	return out, nil
}
