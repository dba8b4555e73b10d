package dhcpv6

import (
	"context"
	"encoding/hex"
	"fmt"
	"net/netip"
	"sync"
	"testing"
	"time"

	"github.com/rs/zerolog"

	"github.com/provisiond/provisiond/internal/inventory"
)

var _ Inventory = (*inventory.Keeper)(nil)

// rack is an Inventory of two machines and any number of strangers.
type rack struct {
	mu      sync.Mutex
	views   map[inventory.MAC]inventory.View
	learnt  map[string]inventory.MAC
	leases  map[string]netip.Addr // by MAC, DUID and IAID; committed only
	events  []inventory.Event
	bound   []inventory.Binding
	freed   []string
	failing map[string]error // by method name
	relays  []netip.Prefix   // of the first subnet
	adopt   bool             // on the first subnet
}

func (r *rack) fail(method string, err error) { r.failing[method] = err }

func (r *rack) View(_ context.Context, mac inventory.MAC, _ inventory.Arch) (inventory.View, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.views[mac], r.failing["View"]
}

func (r *rack) Learnt(_ context.Context, duid []byte) (inventory.MAC, bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	mac, ok := r.learnt[string(duid)]
	return mac, ok
}

func (r *rack) Record(_ context.Context, e inventory.Event) (inventory.View, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if err := r.failing["Record"]; err != nil {
		return inventory.View{}, err
	}
	r.events = append(r.events, e)
	return r.views[e.MAC], nil
}

func leaseKey(b inventory.Binding) string {
	return fmt.Sprintf("%s %x %08x", b.MAC, b.DUID, b.IAID)
}

func (r *rack) Bind(_ context.Context, b inventory.Binding) (inventory.Lease, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if err := r.failing["Bind"]; err != nil {
		return inventory.Lease{}, err
	}
	r.bound = append(r.bound, b)
	lease := inventory.Lease{
		MAC: b.MAC, DUID: hex.EncodeToString(b.DUID), IAID: b.IAID, Machine: b.Machine, Expires: time.Now().Add(b.Subnet.Valid + time.Second),
	}
	switch {
	case b.Stable.IsValid() && b.Client != inventory.FirmwareStack:
		lease.Address = b.Stable
		return lease, nil
	case b.Machine == "" && !b.Subnet.Strangers:
		return lease, fmt.Errorf("strangers get no address here: %w", inventory.ErrRefused)
	}
	key := leaseKey(b)
	if a, ok := r.leases[key]; ok {
		lease.Address = a
		return lease, nil
	}
	used := map[netip.Addr]bool{}
	for _, a := range r.leases {
		used[a] = true
	}
	for _, a := range b.Not {
		used[a] = true
	}
	a := b.Subnet.Pool.First
	for ; used[a]; a = a.Next() {
	}
	if !b.Subnet.Pool.Contains(a) {
		return lease, fmt.Errorf("the pool: %w", inventory.ErrFull)
	}
	if b.Commit {
		r.leases[key] = a
	}
	lease.Address = a
	return lease, nil
}

func (r *rack) Release(_ context.Context, b inventory.Binding, addrs []netip.Addr) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if err := r.failing["Release"]; err != nil {
		return err
	}
	return r.free("release", b, addrs)
}

func (r *rack) free(how string, b inventory.Binding, addrs []netip.Addr) error {
	key := leaseKey(b)
	err := inventory.ErrNotFound
	for _, a := range addrs {
		switch held, ok := r.leases[key]; {
		case ok && held == a:
			delete(r.leases, key)
		case b.Stable != a:
			continue
		}
		r.freed = append(r.freed, how+" "+key+" "+a.String())
		err = nil
	}
	return err
}

func (r *rack) Decline(_ context.Context, b inventory.Binding, addrs []netip.Addr) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.free("decline", b, addrs)
}

func (r *rack) Registered(mac inventory.MAC) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.views[mac].Machine != nil
}

func (r *rack) Subnets() []inventory.Subnet {
	n := testSubnets()
	n[0].Relays, n[0].Adopt = r.relays, r.adopt
	return n
}

func (r *rack) solicited() int {
	n := 0
	for _, e := range r.events {
		if e.Kind == inventory.Solicited {
			n++
		}
	}
	return n
}

// neighbours is a fixed neighbour table that counts how often it is asked.
type neighbours struct {
	table map[netip.Addr]inventory.MAC
	asked int
}

func (n *neighbours) Lookup(a netip.Addr, ifindex int) (inventory.MAC, bool) {
	n.asked++
	mac, ok := n.table[a]
	return mac, ok && ifindex == testIndex
}

type bootFiles struct{}

func (bootFiles) Start(_ inventory.Way, c inventory.Client, a inventory.Arch, mac inventory.MAC, _ *inventory.View) (string, bool) {
	switch c {
	case inventory.FirmwarePXE:
		return "tftp://[2001:db8:1::1]/" + string(a) + "/ipxe.efi", true
	case inventory.FirmwareHTTP:
		return "http://[2001:db8:1::1]:8080/loader/" + string(a) + "/ipxe.efi", true
	case inventory.IPXE:
		return "http://[2001:db8:1::1]:8080/boot.ipxe?mac=" + string(mac), true
	}
	return "", false
}

const (
	testIndex  = 7
	installMAC = inventory.MAC("52:54:00:12:34:56") // has an outstanding install order
	diskMAC    = inventory.MAC("52:54:00:12:34:57") // is installed
	strangeMAC = inventory.MAC("52:54:00:99:99:99")
)

var (
	serverDUID = []byte{0, 4, 0xaa, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15}
	stableAddr = netip.MustParseAddr("2001:db8:1::100")
	diskAddr   = netip.MustParseAddr("2001:db8:1::101")
)

func testSubnets() []inventory.Subnet {
	addr := netip.MustParseAddr
	return []inventory.Subnet{{
		Name: "rack-1", Prefix: netip.MustParsePrefix("2001:db8:1::/64"), Interface: "rack0",
		Machines:  inventory.Range{First: addr("2001:db8:1::100"), Last: addr("2001:db8:1::1ff")},
		Pool:      inventory.Range{First: addr("2001:db8:1::f000"), Last: addr("2001:db8:1::f003")},
		Strangers: true,
		DNS:       []netip.Addr{addr("2001:db8::53")}, Domains: []string{"rack.example"},
		NTP:       []netip.Addr{addr("2001:db8::123")},
		Preferred: 12 * time.Hour, Valid: 24 * time.Hour, Preference: 255,
	}, {
		Name: "rack-2", Prefix: netip.MustParsePrefix("2001:db8:2::/64"),
		Pool:      inventory.Range{First: addr("2001:db8:2::f000"), Last: addr("2001:db8:2::f003")},
		Preferred: 12 * time.Hour, Valid: 24 * time.Hour, Preference: 255,
	}}
}

func newRack() *rack {
	cluster := &inventory.Cluster{Name: "c1"}
	image := &inventory.Image{Version: "v1.13.6", Arch: inventory.AMD64}
	return &rack{
		learnt: map[string]inventory.MAC{}, leases: map[string]netip.Addr{}, failing: map[string]error{},
		views: map[inventory.MAC]inventory.View{
			installMAC: {
				Machine: &inventory.Machine{Name: "cp-1", MACs: []inventory.MAC{installMAC}, Cluster: "c1", Address: stableAddr},
				Facts:   inventory.Facts{Install: inventory.Order{Ordered: 1}}, Cluster: cluster, Image: image,
			},
			diskMAC: {
				Machine: &inventory.Machine{Name: "cp-2", MACs: []inventory.MAC{diskMAC}, Cluster: "c1", Address: diskAddr},
				Facts:   inventory.Facts{Install: inventory.Order{Ordered: 1, Done: 1}}, Cluster: cluster, Image: image,
			},
		},
	}
}

func newServer(t testing.TB, inv Inventory, n Neighbours) *Server {
	t.Helper()
	if err := inventory.ValidateSubnets(inv.Subnets()); err != nil {
		t.Fatal(err)
	}
	return New(Config{ServerDUID: serverDUID, Boot: bootFiles{}}, inv, n, zerolog.Nop())
}

// handle is what a packet is answered with.
func (s *Server) handle(ctx context.Context, in packet) (answer, error) {
	x, r, err := s.examine(ctx, in)
	if err != nil {
		return answer{}, err
	}
	return x.answer(r), nil
}

func seconds(n int64) time.Duration { return time.Duration(n) * time.Second }
