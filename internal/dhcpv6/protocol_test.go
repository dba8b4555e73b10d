package dhcpv6

import (
	"encoding/binary"
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/provisiond/provisiond/internal/inventory"
)

// statusOf returns the status code among options, 0 where there is none.
func statusOf(opts []option) uint16 {
	if v, ok := value(opts, 13); ok {
		return binary.BigEndian.Uint16(v)
	}
	return 0
}

// addresses returns "address preferred/valid" of every address in the i-th IA.
func addresses(t *testing.T, opts []option, i int) (out []string, status uint16) {
	t.Helper()
	for _, o := range opts {
		if o.code != 3 {
			continue
		}
		if i > 0 {
			i--
			continue
		}
		in := splitOptions(t, o.value[12:])
		for _, a := range in {
			if a.code == 5 {
				out = append(out, fmt.Sprintf("%s %d/%d", netip.AddrFrom16([16]byte(a.value[:16])), binary.BigEndian.Uint32(a.value[16:]), binary.BigEndian.Uint32(a.value[20:])))
			}
		}
		return out, statusOf(in)
	}
	t.Fatal("no such IA in the answer")
	return nil, 0
}

const (
	noAddrs, noBinding, notOnLink, useMulticast, noPrefix = 2, 3, 4, 5, 6
	firstPool                                             = "2001:db8:1::f000"
)

// TestStatus: what a client gets for each message in each situation.
func TestStatus(t *testing.T) {
	id := talos.iaid()
	stable := stableAddr.String()
	live := stable + " 43200/86400"
	for name, tc := range map[string]struct {
		in     []byte
		set    func(*rack)
		kind   byte
		top    uint16
		ia     []string // addresses of the first IA
		iaCode uint16
		noIA   bool
	}{
		"renew":               {in: talos.with(renew, iaNA(id, 0, stable)), kind: replied, ia: []string{live}},
		"renew of another":    {in: talos.with(renew, iaNA(id, 0, "2001:db8:1::77")), kind: replied, ia: []string{live, "2001:db8:1::77 0/0"}},
		"rebind":              {in: talos.with(rebind, iaNA(id, 0, stable)), kind: replied, ia: []string{live}},
		"rebind off link":     {in: talos.with(rebind, iaNA(id, 0, "2001:db8:9::1")), kind: replied, ia: []string{live, "2001:db8:9::1 0/0"}},
		"renew refused":       {in: talos.with(renew, iaNA(id, 0, stable)), set: refuse, kind: replied, iaCode: noBinding},
		"rebind refused":      {in: talos.with(rebind, iaNA(id, 0, "2001:db8:9::1")), set: refuse, kind: replied, ia: []string{"2001:db8:9::1 0/0"}, iaCode: noBinding},
		"request":             {in: talos.with(request, iaNA(id, 0, stable)), kind: replied, ia: []string{live}},
		"request refused":     {in: talos.with(request, iaNA(id, 0)), set: refuse, kind: replied, iaCode: noAddrs},
		"request full":        {in: talos.with(request, iaNA(id, 0)), set: full, kind: replied, iaCode: noAddrs},
		"request off link":    {in: talos.with(request, iaNA(id, 0, "2001:db8:9::1")), kind: replied, iaCode: notOnLink},
		"solicit full":        {in: ovmfPXE.first(), set: full, kind: advertise, iaCode: noAddrs},
		"rapid solicit":       {in: talos.first(), kind: replied, ia: []string{live}},
		"confirm":             {in: talos.with(confirm, iaNA(id, 0, stable)), kind: replied, noIA: true},
		"confirm off link":    {in: talos.with(confirm, iaNA(id, 0, stable, "2001:db8:9::1")), kind: replied, top: notOnLink, noIA: true},
		"release":             {in: talos.with(release, iaNA(id, 0, stable)), kind: replied, noIA: true},
		"release of nothing":  {in: ovmfStack.with(release, iaNA(1, 0, firstPool)), set: stranger, kind: replied, iaCode: noBinding},
		"decline":             {in: talos.with(decline, iaNA(id, 0, stable)), kind: replied, noIA: true},
		"decline of nothing":  {in: talos.with(decline, iaNA(id, 0, "2001:db8:1::77")), kind: replied, iaCode: noBinding},
		"renew without an IA": {in: talos.with(renew), kind: replied, noIA: true},
	} {
		t.Run(name, func(t *testing.T) {
			inv := newRack()
			if tc.set != nil {
				tc.set(inv)
			}
			out, err := newServer(t, inv, nil).handle(t.Context(), direct(installMAC, tc.in))
			if err != nil {
				t.Fatal(err)
			}
			kind, opts := inside(t, out.data)
			if kind != tc.kind || statusOf(opts) != tc.top {
				t.Errorf("message type %d status %d, want %d and %d", kind, statusOf(opts), tc.kind, tc.top)
			}
			if _, ok := value(opts, 7); ok && tc.iaCode != 0 {
				t.Error("preference 255 on an Advertise without an address keeps the client from other servers")
			}
			if _, has := value(opts, 3); tc.noIA {
				if has {
					t.Error("the answer has an IA")
				}
				return
			}
			got, code := addresses(t, opts, 0)
			if fmt.Sprint(got) != fmt.Sprint(tc.ia) || code != tc.iaCode {
				t.Errorf("IA has %v status %d, want %v status %d", got, code, tc.ia, tc.iaCode)
			}
		})
	}
}

func refuse(r *rack) { r.fail("Bind", inventory.ErrRefused) }
func relaysOnly(p string) func(*rack) {
	return func(r *rack) { r.relays = []netip.Prefix{netip.MustParsePrefix(p)} }
}
func full(r *rack)     { r.fail("Bind", inventory.ErrFull) }
func stranger(r *rack) { delete(r.views, installMAC) }

// TestFullDiskHoldsNobody: what cannot be recorded keeps installed machines and
// strangers from nothing.
func TestFullDiskHoldsNobody(t *testing.T) {
	for _, mac := range []inventory.MAC{diskMAC, strangeMAC} {
		inv := newRack()
		inv.fail("Record", inventory.ErrFull)
		adv, _ := boot(t, newServer(t, inv, nil), mac, ovmfPXE)
		if _, ok := value(adv, 59); ok {
			t.Errorf("%s was given a URL", mac)
		}
	}
}

func TestNineRelays(t *testing.T) {
	b := ovmfPXE.first()
	for i := range maxHops + 1 {
		b = relayed(byte(i), "2001:db8:1::fe", installMAC.LinkLocal().String(), b, opt(18, []byte{byte(i)}))
	}
	out, err := newServer(t, newRack(), nil).handle(t.Context(), viaRelay(b))
	if err != nil {
		t.Fatal(err)
	}
	if got := strings.Count(dump(t, out.data), "Relay-reply"); got != maxHops+1 {
		t.Errorf("%d Relay-replies around the answer", got)
	}
}

// TestClosestLink: of several link-addresses the client's own relay's counts.
func TestClosestLink(t *testing.T) {
	peer := installMAC.LinkLocal().String()
	for name, tc := range map[string]struct {
		data []byte
		want string
	}{
		"inner":       {relayed(1, "2001:db8:2::1", "2001:db8:1::fe", relayed(0, "2001:db8:1::fe", peer, talos.first())), "rack-1"},
		"inner other": {relayed(1, "2001:db8:1::1", "2001:db8:2::fe", relayed(0, "2001:db8:2::fe", peer, talos.first())), "rack-2"},
		"inner none":  {relayed(1, "2001:db8:2::1", "fe80::9", relayed(0, "::", peer, talos.first())), "rack-2"},
	} {
		inv := newRack()
		if _, err := newServer(t, inv, nil).handle(t.Context(), viaRelay(tc.data)); err != nil {
			t.Errorf("%s: %v", name, err)
		} else if got := inv.events[0].Subnet; got != tc.want {
			t.Errorf("%s: subnet %s, want %s", name, got, tc.want)
		}
	}
	// A layer-2 relay on our own link: the interface decides.
	inv := newRack()
	in := direct(installMAC, relayed(0, "::", peer, talos.first()))
	if _, err := newServer(t, inv, nil).handle(t.Context(), in); err != nil || inv.events[0].Subnet != "rack-1" {
		t.Errorf("layer-2 relay: %v", err)
	}
}

func TestUseMulticast(t *testing.T) {
	for _, kind := range []byte{request, renew, release, decline} {
		in := direct(installMAC, talos.with(kind, iaNA(talos.iaid(), 0, stableAddr.String())))
		in.dst = netip.MustParseAddr("2001:db8:1::1")
		inv := newRack()
		out, err := newServer(t, inv, nil).handle(t.Context(), in)
		if err != nil {
			t.Fatal(err)
		}
		_, opts := inside(t, out.data)
		if got := fmt.Sprint(codes(opts)); got != "[1 2 13]" || statusOf(opts) != useMulticast {
			t.Errorf("message type %d: options %s status %d", kind, got, statusOf(opts))
		}
		if out.src != in.dst {
			t.Errorf("the answer leaves from %s, not from %s that was asked", out.src, in.dst)
		}
		if len(inv.bound)+len(inv.freed) > 0 {
			t.Error("it had an effect")
		}
	}
}

// TestSeveralIAs: the first gets the stable address, others their own; repeats
// of an IAID count once; what is not served gets a status.
func TestSeveralIAs(t *testing.T) {
	m := msg(request, opt(1, talos.duid), opt(2, serverDUID), iaNA(1, 0), iaNA(2, 0), iaNA(1, 0),
		opt(25, u32(9), u32(0), u32(0)), opt(4, u32(8)))
	inv := newRack()
	s := newServer(t, inv, nil)
	for range 2 { // the same again
		out, err := s.handle(t.Context(), direct(installMAC, m))
		if err != nil {
			t.Fatal(err)
		}
		_, opts := inside(t, out.data)
		if got := fmt.Sprint(codes(opts)); got != "[1 2 56 3 3 25 4]" {
			t.Errorf("options %s", got)
		}
		one, _ := addresses(t, opts, 0)
		two, _ := addresses(t, opts, 1)
		if fmt.Sprint(one, two) != "[2001:db8:1::100 43200/86400] [2001:db8:1::f000 43200/86400]" {
			t.Errorf("addresses %v and %v", one, two)
		}
		pd, _ := value(opts, 25)
		if got := statusOf(splitOptions(t, pd[12:])); got != noPrefix {
			t.Errorf("IA_PD status %d", got)
		}
		ta, _ := value(opts, 4)
		if got := statusOf(splitOptions(t, ta[4:])); got != noAddrs {
			t.Errorf("IA_TA status %d", got)
		}
	}
	many := [][]byte{opt(1, talos.duid), opt(2, serverDUID)}
	for i := range 100 {
		many = append(many, iaNA(uint32(i), 0))
	}
	inv.bound = nil
	if _, err := s.handle(t.Context(), direct(installMAC, msg(request, many...))); err != nil {
		t.Fatal(err)
	}
	if len(inv.bound) > maxIAs {
		t.Errorf("one message asked for %d addresses", len(inv.bound))
	}
}

// TestAdvertiseWritesNothing: only a Reply commits.
func TestAdvertiseWritesNothing(t *testing.T) {
	inv := newRack()
	boot(t, newServer(t, inv, nil), strangeMAC, ovmfPXE)
	if len(inv.bound) != 2 || inv.bound[0].Commit || !inv.bound[1].Commit {
		t.Errorf("bindings %+v", inv.bound)
	}
	inv = newRack()
	if _, err := newServer(t, inv, nil).handle(t.Context(), direct(strangeMAC, talos.first())); err != nil {
		t.Fatal(err)
	}
	if len(inv.bound) != 1 || !inv.bound[0].Commit {
		t.Errorf("rapid commit: bindings %+v", inv.bound)
	}
}

// TestWrongSegment: a machine plugged into another subnet is not given an
// address of the one it belongs to.
func TestWrongSegment(t *testing.T) {
	inv := newRack()
	in := viaRelay(relayed(0, "2001:db8:2::1", installMAC.LinkLocal().String(), talos.first()))
	out, err := newServer(t, inv, nil).handle(t.Context(), in)
	if err != nil {
		t.Fatal(err)
	}
	_, opts := inside(t, out.data)
	if got, _ := addresses(t, opts, 0); fmt.Sprint(got) != "[2001:db8:2::f000 43200/86400]" {
		t.Errorf("got %v", got)
	}
	if b := inv.bound[0]; b.Stable.IsValid() || b.Machine != "cp-1" || b.Subnet.Name != "rack-2" {
		t.Errorf("binding %+v", b)
	}
}

// TestRequestedOptions: only what was asked for and is there is sent.
func TestRequestedOptions(t *testing.T) {
	for name, tc := range map[string]struct {
		oro  []uint16
		want string
	}{
		"none":      {nil, "[1 2 56]"}, // Talos uses 56 and does not ask
		"all":       {[]uint16{23, 24, 56, 82, 83}, "[1 2 23 24 56 82 83]"},
		"24":        {[]uint16{24}, "[1 2 24 56]"},
		"not ours":  {[]uint16{31, 39, 60, 12}, "[1 2 56]"},
		"refresh":   {[]uint16{32}, "[1 2 56 32]"},
		"boot file": {[]uint16{59}, "[1 2 56]"}, // for an operating system
	} {
		out, err := newServer(t, newRack(), nil).handle(t.Context(), direct(installMAC, msg(infoRequest, opt(1, talos.duid), opt(6, u16s(tc.oro...)))))
		if err != nil {
			t.Fatal(err)
		}
		kind, opts := inside(t, out.data)
		if got := fmt.Sprint(codes(opts)); kind != replied || got != tc.want {
			t.Errorf("%s: message type %d, options %s, want %s", name, kind, got, tc.want)
		}
		if v, ok := value(opts, 82); ok && binary.BigEndian.Uint32(v) != 120 {
			t.Errorf("%s: SOL_MAX_RT %x", name, v)
		}
	}
	// A DUID is optional here (section 16.12).
	out, err := newServer(t, newRack(), nil).handle(t.Context(), direct(installMAC, msg(infoRequest, opt(6, u16s(23)))))
	if err != nil {
		t.Fatal(err)
	}
	if _, opts := inside(t, out.data); fmt.Sprint(codes(opts)) != "[2 23]" {
		t.Errorf("without DUID: options %v", codes(opts))
	}
}

// TestEvidence: which evidence names the NIC, and that the neighbour table is
// asked only when the packet itself says nothing.
func TestEvidence(t *testing.T) {
	llt := talosLegacy.duid
	private := netip.MustParseAddr("fe80::1")
	from := func(a netip.Addr, duid []byte) packet {
		in := direct(strangeMAC, msg(solicit, opt(1, duid), talos.ia, opt(14)))
		in.src = netip.AddrPortFrom(a, 546)
		return in
	}
	behind := func(peer netip.Addr, duid []byte, opts ...[]byte) packet {
		return viaRelay(relayed(0, "2001:db8:1::fe", peer.String(), msg(solicit, opt(1, duid), talos.ia, opt(14)), opts...))
	}
	for name, tc := range map[string]struct {
		in     packet
		source inventory.Source
		asked  int
	}{
		"source":                    {from(installMAC.LinkLocal(), llt), inventory.FromLinkLocal, 0},
		"DUID-LL":                   {from(private, talos.duid), inventory.FromDUIDLL, 0},
		"neighbour":                 {from(private, llt), inventory.FromNeighbour, 1},
		"learnt":                    {from(netip.MustParseAddr("fe80::2"), firmwareDUID), inventory.FromLearnt, 1},
		"relay option 79":           {behind(private, llt, opt(79, u16s(1), installMAC.Bytes())), inventory.FromRelayOption, 0},
		"relay peer":                {behind(installMAC.LinkLocal(), llt), inventory.FromRelayPeer, 0},
		"relayed DUID-LL":           {behind(private, talos.duid), inventory.FromDUIDLL, 0},
		"relayed learnt":            {behind(private, firmwareDUID), inventory.FromLearnt, 0},
		"option 79 of Token Ring":   {behind(installMAC.LinkLocal(), llt, opt(79, u16s(6), strangeMAC.Bytes())), inventory.FromRelayPeer, 0},
		"option 79 of group":        {behind(installMAC.LinkLocal(), llt, opt(79, u16s(1), unhex("ffffffffffff"))), inventory.FromRelayPeer, 0},
		"option 79 over the peer's": {behind(strangeMAC.LinkLocal(), llt, opt(79, u16s(1), installMAC.Bytes())), inventory.FromRelayOption, 0},
	} {
		inv := newRack()
		inv.learnt[string(firmwareDUID)] = installMAC
		n := &neighbours{table: map[netip.Addr]inventory.MAC{private: installMAC}}
		if _, err := newServer(t, inv, n).handle(t.Context(), tc.in); err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		if e := inv.events[0]; e.MAC != installMAC || e.Source != tc.source || n.asked != tc.asked {
			t.Errorf("%s: %s from %q, neighbour table asked %d times", name, e.MAC, e.Source, n.asked)
		}
	}
}

// TestFirmwareStackBesideBoot replays a boot of OVMF on a link with managed
// addresses: two leases at once, of which the first is given back.
func TestFirmwareStackBesideBoot(t *testing.T) {
	inv := newRack()
	s := newServer(t, inv, nil)
	_, own := boot(t, s, installMAC, ovmfStack)
	_, pxe := boot(t, s, installMAC, ovmfPXE)
	a, _ := addresses(t, own, 0)
	b, _ := addresses(t, pxe, 0)
	if a[0] == b[0] || !strings.HasPrefix(b[0], stableAddr.String()+" ") {
		t.Errorf("own stack has %s, PXE has %s", a, b)
	}
	if _, err := s.handle(t.Context(), direct(installMAC, ovmfStack.with(release, iaNA(ovmfStack.iaid(), 0, firstPool)))); err != nil {
		t.Fatal(err)
	}
	if len(inv.leases) != 0 || len(inv.freed) != 1 {
		t.Errorf("after Release: leases %v, freed %v", inv.leases, inv.freed)
	}
	if inv.solicited() != 2 {
		t.Errorf("%d Solicits recorded", inv.solicited())
	}
}

// TestLifetimes: infinite lifetimes stay infinite and nothing overflows.
func TestLifetimes(t *testing.T) {
	for _, tc := range []struct {
		preferred, valid       int64 // seconds
		t1, t2, wantP, wantVal uint32
	}{
		{43200, 86400, 21600, 34560, 43200, 86400},
		{1, 1, 1, 1, 1, 1},
		{0xffffffff, 0xffffffff, 0xffffffff, 0xffffffff, 0xffffffff, 0xffffffff},
		{1 << 33, 1 << 33, 0xffffffff, 0xffffffff, 0xffffffff, 0xffffffff},
	} {
		n := testSubnets()[0]
		n.Preferred, n.Valid = seconds(tc.preferred), seconds(tc.valid)
		var v options
		v.addLeased(1, inventory.Lease{Address: stableAddr, Expires: time.Now().Add(n.Valid + time.Second)}, nil, &n)
		v = v[optionHeader:]
		got := [4]uint32{binary.BigEndian.Uint32(v[4:]), binary.BigEndian.Uint32(v[8:]), binary.BigEndian.Uint32(v[32:]), binary.BigEndian.Uint32(v[36:])}
		if got != [4]uint32{tc.t1, tc.t2, tc.wantP, tc.wantVal} {
			t.Errorf("%d/%d: got %v", tc.preferred, tc.valid, got)
		}
	}
}
