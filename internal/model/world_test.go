package model

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"time"

	"github.com/rs/zerolog"

	"github.com/provisiond/provisiond/internal/bootstrap"
	"github.com/provisiond/provisiond/internal/inventory"
	"github.com/provisiond/provisiond/internal/inventory/storetest"
	"github.com/provisiond/provisiond/internal/reimage"
)

// config is what a machine config says, as far as it matters here.
type config struct {
	secrets string // of which life of which cluster
	role    inventory.Role
}

// place is how far a machine is.
type place string

const (
	off      place = "off"
	firmware place = "firmware"
	ipxe     place = "ipxe"   // has a boot URL
	loading  place = "kernel" // has its script
	memory   place = "memory" // Talos runs from memory
	system   place = "system" // Talos runs a config, its API is up
)

// box is a machine.
type box struct {
	name string
	mac  inventory.MAC
	addr netip.Addr

	at    place
	xid   uint32
	line  line    // its kernel line
	runs  *config // nil: its API is not up
	wipes bool    // a reset is under way
	tells *lateAnswer

	disk struct {
		config *config // nil: blank
		etcd   string  // the etcd whose data lies there
	}
	diskFirst bool // its firmware tries the disk before the network

	wiped, installed, orders int
}

// line is what matters of a boot script.
type line struct {
	wipe  bool
	token string
}

// lateAnswer is what an API said some time ago.
type lateAnswer struct {
	stage inventory.Stage
	ready bool
	asked time.Time
	holds inventory.Membership
}

// etcd is an etcd cluster.
type etcd struct {
	secrets string
	members []string
}

// world is everything.
type world struct {
	ctx   context.Context
	store *crashing
	k     *inventory.Keeper
	boot  *bootstrap.Actor
	re    *reimage.Actor
	due   map[string]bool // machines that the reimage actor looks at

	boxes   []*box
	etcds   map[string]*etcd
	made    map[string]int  // bootstraps that took effect, by life
	given   map[string]bool // lives that may be lost, by the operator's word
	dead    map[string]bool // machines that were declared dead
	backups []*storetest.Memory
	stale   bool // a backup was put in place: the daemon may not know all lives
	lives   int

	fault mutation
	call  callFault // of the next call that acts
	wrong []string  // what must never happen, and did
}

// callFault is what becomes of a call of the Talos API that acts.
type callFault int

const (
	answered    callFault = iota
	lostBefore            // never arrives
	lostAfter             // takes effect, the answer is lost
	refusedThen           // a definite no
)

// mutation breaks the daemon on purpose, to show that the checks can fail.
type mutation string

const (
	noClaim      mutation = "the claim of a bootstrap is forgotten"
	anyNode      mutation = "another machine is called after an answer that was lost"
	wipeAlways   mutation = "the wipe script is served as long as its order is open"
	noGuard      mutation = "etcd's quorum is not looked at"
	oldLifeLives mutation = "the next life does not wait for the end of the old one"
)

var errCrash = errors.New("the daemon crashed")

// crashing is a store whose daemon dies after a number of commits.
type crashing struct {
	*storetest.Memory
	left  int // commits before the crash; negative: none
	fault storetest.Fault
}

func (s *crashing) Get(ctx context.Context, key inventory.Key) (inventory.Record, error) {
	if s.left == 0 {
		return inventory.Record{}, errCrash
	}
	return s.Memory.Get(ctx, key)
}

func (s *crashing) List(ctx context.Context, b inventory.Bucket, after string, limit int) ([]inventory.Record, error) {
	if s.left == 0 {
		return nil, errCrash
	}
	return s.Memory.List(ctx, b, after, limit)
}

func (s *crashing) Commit(ctx context.Context, c inventory.Commit) (uint64, uint64, error) {
	if s.left == 0 {
		return 0, 0, errCrash
	}
	fault := s.fault
	s.fault = storetest.None
	if s.left > 0 {
		s.left--
	}
	return fault.Commit(ctx, s.Memory, c)
}

const cluster = "prod"

func newWorld(ctx context.Context, planes, workers int, m mutation) (*world, error) {
	w := &world{
		ctx: ctx, store: &crashing{Memory: storetest.NewMemory(), left: -1}, fault: m,
		etcds: map[string]*etcd{}, made: map[string]int{}, given: map[string]bool{}, dead: map[string]bool{}, lives: 1,
	}
	w.start()
	_, err := w.k.CreateCluster(ctx, &inventory.Cluster{
		Name: cluster, Endpoint: "https://[2001:db8:1::1]:6443", TalosVersion: "v1.13.6", KubernetesVersion: "1.36.2",
		PodSubnets:     []netip.Prefix{netip.MustParsePrefix("fc00:db8:10::/56")},
		ServiceSubnets: []netip.Prefix{netip.MustParsePrefix("fc00:db8:20::/112")},
	}, []byte("life 1"))
	if err != nil {
		return nil, err
	}
	if err := w.k.PutImage(ctx, &inventory.Image{Version: "v1.13.6", Arch: inventory.AMD64}); err != nil {
		return nil, err
	}
	for i := range planes + workers {
		b := &box{name: fmt.Sprintf("cp-%d", i+1), mac: inventory.MAC(fmt.Sprintf("52:54:00:00:00:%02x", i+1)), at: off}
		role := inventory.ControlPlane
		if i >= planes {
			b.name, role = fmt.Sprintf("w-%d", i-planes+1), inventory.Worker
		}
		m, err := w.k.PutMachine(ctx, &inventory.Machine{Name: b.name, MACs: []inventory.MAC{b.mac}, Cluster: cluster, Role: role}, 0)
		if err != nil {
			return nil, err
		}
		b.addr = m.Address
		w.boxes = append(w.boxes, b)
	}
	return w, nil
}

// start is a start of the daemon on what is on its disk.
func (w *world) start() {
	w.store.left, w.store.fault = -1, storetest.None
	k, err := inventory.NewKeeper(w.ctx, w.store, inventory.KeeperConfig{Subnets: []inventory.Subnet{{
		Name: "rack", Prefix: netip.MustParsePrefix("2001:db8:1::/64"), Preferred: time.Hour, Valid: time.Hour,
		Machines: inventory.Range{First: netip.MustParseAddr("2001:db8:1::100"), Last: netip.MustParseAddr("2001:db8:1::1ff")},
	}}})
	if err != nil {
		w.never("the daemon does not start: %v", err)
		return
	}
	w.k = k
	w.boot = bootstrap.New(k, api{w}, zerolog.Nop())
	w.re = reimage.New(k, api{w}, zerolog.Nop())
	w.due = map[string]bool{}
	for _, b := range w.boxes {
		w.due[b.name] = true
	}
}

// restartIfDead restarts the daemon if it died.
func (w *world) restartIfDead() {
	if w.store.left == 0 {
		w.start()
	}
}

func (w *world) never(format string, args ...any) {
	w.wrong = append(w.wrong, fmt.Sprintf(format, args...))
}

func (w *world) box(name string) *box {
	i := slices.IndexFunc(w.boxes, func(b *box) bool { return b.name == name })
	return w.boxes[i]
}

func (w *world) at(a netip.Addr) *box {
	if i := slices.IndexFunc(w.boxes, func(b *box) bool { return b.addr == a }); i >= 0 {
		return w.boxes[i]
	}
	return nil
}

// member reports whether a box runs as a member of the etcd on its disk.
func (w *world) member(b *box) bool {
	e := w.etcds[b.disk.etcd]
	return b.at == system && b.runs != nil && b.runs.role == inventory.ControlPlane && e != nil && slices.Contains(e.members, b.name)
}

// running counts the members of an etcd that run, but one.
func (w *world) running(id, but string) (n int) {
	for _, name := range w.etcds[id].members {
		if b := w.box(name); name != but && b.disk.etcd == id && w.member(b) {
			n++
		}
	}
	return n
}

func (w *world) quorum(id string) bool {
	return w.running(id, "") > len(w.etcds[id].members)/2
}

// leaves is an etcd losing a member on purpose, and a check that it may.
func (w *world) leaves(id, name, how string) {
	e := w.etcds[id]
	left := len(e.members) - 1
	if !w.given[e.secrets] && (left == 0 || w.running(id, name) <= left/2) {
		w.never("%s of %s leaves etcd %s with %d of %d members, and nobody said that it may be lost", how, name, id, w.running(id, name), left)
	}
	e.members = slices.DeleteFunc(e.members, func(m string) bool { return m == name })
}
