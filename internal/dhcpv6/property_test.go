package dhcpv6

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"path/filepath"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/rs/zerolog"

	"github.com/provisiond/provisiond/internal/boltstore"
	"github.com/provisiond/provisiond/internal/inventory"
	"github.com/provisiond/provisiond/internal/inventory/storetest"
)

// The model: NICs whose client programs send random messages to a server on a
// real inventory, while time passes, commits fail or only seem to, the server is
// killed, machines are registered, removed and power-cycled. It believes what the
// Replies promise, and nothing else.

// simNIC is a NIC with the program that runs on it now.
type simNIC struct {
	mac     inventory.MAC
	machine string // registered as; empty: a stranger
	program client
	iaid    uint32
	addrs   []netip.Addr // as it was told, of the present IA
}

// promise is an address that was given to a NIC.
type promise struct {
	to    inventory.MAC
	until time.Time
}

type world struct {
	t        *testing.T
	rng      *rand.Rand
	dir      string
	db       *boltstore.Store
	store    *storetest.Faulty
	keeper   *inventory.Keeper
	server   *Server
	nics     []*simNIC
	promises map[netip.Addr][]promise
	story    []string
}

// programs are what may run on a NIC, the operating system's last. Cloned disks
// and boards without a UUID send one DUID from many machines.
var programs = []client{ovmfStack, ovmfPXE, ovmfHTTP, ipxeSARR, talos, talosLegacy, {
	name: "cloned-os", duid: unhex("0001 0001 2f6b1c2d 525400aaaaaa"), options: [][]byte{opt(6, u16s(23, 24))},
}}

func (w *world) say(format string, args ...any) {
	w.story = append(w.story, time.Now().Format("15:04:05 ")+fmt.Sprintf(format, args...))
}

func (w *world) fail(format string, args ...any) {
	w.t.Helper()
	for _, line := range w.story[max(0, len(w.story)-60):] {
		w.t.Log(line)
	}
	w.t.Fatalf(format, args...)
}

func propertySubnets() []inventory.Subnet {
	subnets := testSubnets()
	subnets[0].Pool.Last = netip.MustParseAddr("2001:db8:1::f00f")
	subnets[0].Machines.Last = netip.MustParseAddr("2001:db8:1::10f")
	subnets[0].Preferred, subnets[0].Valid = time.Hour, 2*time.Hour
	return subnets
}

// start runs a server on what the store has, as after kill -9.
func (w *world) start() {
	if w.db != nil {
		_ = w.db.Close()
	}
	var err error
	if w.db, err = boltstore.Open(filepath.Join(w.dir, "db"), boltstore.Options{NoSync: true}); err != nil {
		w.t.Fatal(err)
	}
	w.store = storetest.NewFaulty(w.db)
	if w.keeper, err = inventory.NewKeeper(w.t.Context(), w.store, inventory.KeeperConfig{Subnets: propertySubnets()}); err != nil {
		w.t.Fatal(err)
	}
	w.store.Each(func() storetest.Fault {
		switch w.rng.IntN(20) {
		case 0:
			return storetest.LostButPersisted
		case 1:
			return storetest.LostNotPersisted
		}
		return storetest.None
	})
	w.server = New(Config{ServerDUID: serverDUID, Boot: bootFiles{}}, w.keeper, nil, zerolog.Nop())
}

// run has a NIC start a program, with an IAID of its own.
func (w *world) run(n *simNIC, c client) {
	n.program, n.iaid, n.addrs = c, w.rng.Uint32(), nil
	if len(c.duid) == 10 { // Talos' DUID-LL is of this NIC
		n.program.duid = append(slices.Clone(c.duid[:4]), macBytes(n.mac)...)
	}
	w.say("%s runs %s, IAID %08x", n.mac, c.name, n.iaid)
}

func macBytes(m inventory.MAC) []byte {
	a := m.LinkLocal().As16()
	return []byte{a[8] ^ 2, a[9], a[10], a[13], a[14], a[15]}
}

// send has a NIC send a message, and returns the answer's type and its IA's
// addresses with their valid lifetimes in seconds; false if there is none.
func (w *world) send(n *simNIC, kind byte, addrs []netip.Addr) (byte, map[netip.Addr]uint32, bool) {
	var ia [][]byte
	for _, a := range addrs {
		ia = append(ia, iaAddr(a.String()))
	}
	opts := [][]byte{opt(8, u16s(uint16(w.rng.IntN(3)*100))), opt(1, n.program.duid)}
	if kind != solicit && kind != rebind && kind != confirm {
		opts = append(opts, opt(2, serverDUID))
	}
	t := u32(0)
	if n.program.name == "ovmf-stack" {
		t = u32(0xffffffff)
	}
	opts = append(opts, opt(3, append([][]byte{u32(n.iaid), t, t}, ia...)...))
	data := msg(kind, append(opts, n.program.options...)...)
	binary.BigEndian.PutUint16(data[2:], uint16(w.rng.Uint32()))
	out, err := w.server.handle(w.t.Context(), direct(n.mac, data))
	if err != nil {
		w.say("%s sends %d: %v", n.mac, kind, err)
		var d *dropError
		if !errors.As(err, &d) && !errors.Is(err, inventory.ErrAmbiguous) {
			w.fail("%s: %v", n.mac, err)
		}
		return 0, nil, false
	}
	got := map[netip.Addr]uint32{}
	for _, o := range splitOptions(w.t, out.data[4:]) {
		if o.code != 3 {
			continue
		}
		for _, a := range splitOptions(w.t, o.value[12:]) {
			if a.code == 5 {
				got[netip.AddrFrom16([16]byte(a.value[:16]))] = binary.BigEndian.Uint32(a.value[20:])
			}
		}
	}
	w.say("%s (%s) sends %d with %v, is answered %d with %v", n.mac, n.machine, kind, addrs, out.data[0], got)
	return out.data[0], got, true
}

// believe takes a Reply to what asked for addresses at its word.
func (w *world) believe(n *simNIC, got map[netip.Addr]uint32) {
	n.addrs = nil
	now := time.Now()
	for a, valid := range got {
		w.letGo(n, a)
		if valid == 0 {
			continue
		}
		for _, p := range w.promises[a] {
			if p.until.After(now) {
				w.fail("%s is promised to %s until %s and is given to %s", a, p.to, p.until.Format(time.TimeOnly), n.mac)
			}
		}
		w.promises[a] = append(w.promises[a], promise{n.mac, now.Add(time.Duration(valid) * time.Second)})
		n.addrs = append(n.addrs, a)
	}
	if len(n.addrs) > 1 {
		w.fail("%s holds %v in one IA", n.mac, n.addrs)
	}
	if n.machine == "" {
		return
	}
	v, err := w.keeper.View(w.t.Context(), n.mac, "")
	if err != nil || v.Machine == nil {
		w.fail("%s: %+v, %v", n.machine, v, err)
	}
	c := inventory.OperatingSystem
	if slices.Contains([]string{"ovmf-pxe", "ovmf-http", "ipxe"}, n.program.name) {
		c = inventory.IPXE
	}
	if n.program.name != "ovmf-stack" && v.AddressNIC(c) == n.mac && !slices.Contains(n.addrs, v.Machine.Address) {
		w.fail("%s (%s) got %v, not its own %s", n.machine, n.program.name, n.addrs, v.Machine.Address)
	}
}

// step does one random thing.
func (w *world) step() {
	n := w.nics[w.rng.IntN(len(w.nics))]
	switch w.rng.IntN(20) {
	case 0:
		w.start()
		w.say("the server was killed and started")
	case 1, 2:
		d := time.Duration(w.rng.IntN(int(90 * time.Minute)))
		time.Sleep(d)
		w.say("%v pass", d)
	case 3, 4, 5, 6:
		w.run(n, programs[w.rng.IntN(len(programs))])
	case 7:
		w.register(n)
	case 8:
		if n.machine != "" && w.rng.IntN(3) == 0 {
			if err := w.keeper.DeleteMachine(w.t.Context(), n.machine, 0); err == nil {
				w.say("%s was removed", n.machine)
				n.machine = ""
			}
		}
	case 9:
		_ = w.keeper.Sweep(w.t.Context()) // ambiguous, now and then
	default:
		w.talk(n)
	}
}

// letGo forgets what a NIC was promised of an address.
func (w *world) letGo(n *simNIC, a netip.Addr) {
	w.promises[a] = slices.DeleteFunc(w.promises[a], func(p promise) bool { return p.to == n.mac })
}

func (w *world) register(n *simNIC) {
	if n.machine != "" {
		return
	}
	m := &inventory.Machine{Name: fmt.Sprintf("m-%d", w.rng.IntN(1e9)), MACs: []inventory.MAC{n.mac}, Role: inventory.Worker, Subnet: "rack-1"}
	stored, err := w.keeper.PutMachine(w.t.Context(), m, 0)
	if err != nil {
		w.say("registering %s: %v", n.mac, err)
		if errors.Is(err, inventory.ErrFull) || errors.Is(err, inventory.ErrAmbiguous) {
			return
		}
		w.fail("registering %s: %v", n.mac, err)
	}
	w.say("%s was registered as %s with %s", n.mac, stored.Name, stored.Address)
	n.machine = stored.Name
}

// talk sends a message that fits what the NIC holds.
func (w *world) talk(n *simNIC) {
	kind := []byte{solicit, solicit, request, renew, rebind, confirm, release, decline}[w.rng.IntN(8)]
	if len(n.addrs) == 0 {
		kind = solicit
	}
	if kind == decline && w.rng.IntN(4) > 0 {
		kind = renew
	}
	answer, got, ok := w.send(n, kind, n.addrs)
	if kind == release || kind == decline {
		// Whatever is answered, the client lets go of them.
		for _, a := range n.addrs {
			w.letGo(n, a)
		}
		n.addrs = nil
		return
	}
	if ok && answer == advertise {
		var offered []netip.Addr
		for a := range got {
			offered = append(offered, a)
		}
		answer, got, ok = w.send(n, request, offered)
	}
	if ok && answer == replied && kind != confirm && w.rng.IntN(10) > 0 { // else it was lost
		w.believe(n, got)
	}
}

// TestNoAddressIsHeldTwice: whatever happens, no address is promised to two
// machines at once, and a registered machine always gets its own.
func TestNoAddressIsHeldTwice(t *testing.T) {
	for seed := range uint64(60) {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := &world{t: t, rng: rand.New(rand.NewPCG(seed, 7)), dir: t.TempDir(), promises: map[netip.Addr][]promise{}}
				w.start()
				t.Cleanup(func() { _ = w.db.Close() })
				for i := range 24 {
					n := &simNIC{mac: inventory.MAC(fmt.Sprintf("52:54:00:00:00:%02x", i))}
					w.nics = append(w.nics, n)
					if i < 8 {
						w.register(n)
					}
					w.run(n, programs[i%len(programs)])
				}
				for range 400 {
					w.step()
				}
			})
		})
	}
}
