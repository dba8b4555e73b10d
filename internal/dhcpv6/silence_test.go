package dhcpv6

import (
	"errors"
	"net/netip"
	"strings"
	"testing"
)

// TestSilence: what gets no answer, and under which reason it is counted.
func TestSilence(t *testing.T) {
	id := talos.iaid()
	anyServer := func(kind byte, c client, ias ...[]byte) []byte {
		return msg(kind, append([][]byte{opt(1, c.duid), opt(2, unhex("0003 0001 0badc0ffee00"))}, ias...)...)
	}
	deep := func(n int, hops func(int) byte) []byte {
		b := ovmfPXE.first()
		for i := range n {
			b = relayed(hops(i), "2001:db8:1::fe", installMAC.LinkLocal().String(), b)
		}
		return b
	}
	on := func(in packet, change func(*packet)) packet { change(&in); return in }
	down := errors.New("the database is gone")
	for name, tc := range map[string]struct {
		in   packet
		set  func(*rack)
		want drop
	}{
		"nothing":                    {in: direct(installMAC, nil), want: dropMalformed},
		"three octets":               {in: direct(installMAC, []byte{1, 2, 3}), want: dropMalformed},
		"half an option":             {in: direct(installMAC, msg(solicit, []byte{0, 1, 0, 9, 0})), want: dropMalformed},
		"short IA":                   {in: direct(installMAC, msg(solicit, opt(1, talos.duid), opt(3, u32(1)))), want: dropMalformed},
		"short IA_PD":                {in: direct(installMAC, msg(solicit, opt(1, talos.duid), opt(25, u16s(1)))), want: dropMalformed},
		"short address":              {in: direct(installMAC, msg(solicit, opt(1, talos.duid), opt(3, u32(1), u32(0), u32(0), opt(5, u32(1))))), want: dropMalformed},
		"oversized":                  {in: direct(installMAC, msg(solicit, opt(1, talos.duid), opt(17, make([]byte, maxMessage)))), want: dropOversized},
		"advertise":                  {in: direct(installMAC, msg(advertise, opt(1, talos.duid))), want: dropType},
		"reply":                      {in: direct(installMAC, msg(replied, opt(1, talos.duid))), want: dropType},
		"reconfigure":                {in: direct(installMAC, msg(10, opt(1, talos.duid))), want: dropType},
		"relay-reply":                {in: viaRelay(msg(relayRep, make([]byte, 40))), want: dropType},
		"type 0":                     {in: direct(installMAC, msg(0)), want: dropType},
		"type 255":                   {in: direct(installMAC, msg(255)), want: dropType},
		"solicit without DUID":       {in: direct(installMAC, msg(solicit, talos.ia)), want: dropNoClient},
		"DUID too short":             {in: direct(installMAC, msg(solicit, opt(1, u16s(3)), talos.ia)), want: dropDUID},
		"DUID too long":              {in: direct(installMAC, msg(solicit, opt(1, make([]byte, maxDUID+1)), talos.ia)), want: dropDUID},
		"solicit to a server":        {in: direct(installMAC, msg(solicit, opt(1, talos.duid), opt(2, serverDUID), talos.ia)), want: dropServerNamed},
		"rebind to a server":         {in: direct(installMAC, anyServer(rebind, talos, talos.ia)), want: dropServerNamed},
		"request to no server":       {in: direct(installMAC, msg(request, opt(1, talos.duid), talos.ia)), want: dropNoServer},
		"release to no server":       {in: direct(installMAC, msg(release, opt(1, talos.duid), talos.ia)), want: dropNoServer},
		"request to another":         {in: direct(installMAC, anyServer(request, talos, talos.ia)), want: dropOtherServer},
		"renew to another":           {in: direct(installMAC, anyServer(renew, talos, talos.ia)), want: dropOtherServer},
		"release to another":         {in: direct(installMAC, anyServer(release, talos, talos.ia)), want: dropOtherServer},
		"decline to another":         {in: direct(installMAC, anyServer(decline, talos, talos.ia)), want: dropOtherServer},
		"information from another":   {in: direct(installMAC, anyServer(infoRequest, talos)), want: dropOtherServer},
		"information with an IA":     {in: direct(installMAC, msg(infoRequest, opt(1, talos.duid), talos.ia)), want: dropIA},
		"confirm of nothing":         {in: direct(installMAC, talos.with(confirm, iaNA(id, 0))), want: dropNoAddress},
		"ten relays":                 {in: viaRelay(deep(10, func(i int) byte { return byte(i) })), want: dropRelays},
		"ten relays, not counting":   {in: viaRelay(deep(10, func(int) byte { return 0 })), want: dropRelays},
		"a loop":                     {in: viaRelay(deep(70, func(int) byte { return 1 })), want: dropRelays},
		"hop count 9":                {in: viaRelay(relayed(9, "2001:db8:1::fe", "fe80::1", ovmfPXE.first())), want: dropRelays},
		"empty relay":                {in: viaRelay([]byte{forw, 0, 1}), want: dropMalformed},
		"relay of nothing":           {in: viaRelay(append([]byte{forw, 0}, make([]byte, 32)...)), want: dropMalformed},
		"relay from elsewhere":       {in: viaRelay(relayed(0, "2001:db8:9::1", "fe80::1", ovmfPXE.first())), want: dropSubnet},
		"relay with no link-address": {in: viaRelay(relayed(0, "::", "fe80::1", ovmfPXE.first())), want: dropSubnet},
		"unknown relay":              {in: viaRelay(relayed(0, "2001:db8:1::1", "fe80::1", ovmfPXE.first())), set: relaysOnly("2001:db8:ffff::2/128"), want: dropRelay},
		"unknown last relay":         {in: viaRelay(deep(2, func(i int) byte { return byte(i) })), set: relaysOnly("2001:db8:1::fe/128"), want: dropRelay},
		"another interface":          {in: on(direct(installMAC, ovmfPXE.first()), func(p *packet) { p.ifname = "mgmt0" }), want: dropSubnet},
		"no interface":               {in: on(direct(installMAC, ovmfPXE.first()), func(p *packet) { p.ifname = "" }), want: dropSubnet},
		"solicit to unicast":         {in: on(direct(installMAC, ovmfPXE.first()), func(p *packet) { p.dst = stableAddr }), want: dropUnicast},
		"information to unicast":     {in: on(direct(installMAC, ipxeInfo.first()), func(p *packet) { p.dst = stableAddr }), want: dropUnicast},
		"from ::":                    {in: on(direct(installMAC, ovmfPXE.first()), func(p *packet) { p.src = netip.MustParseAddrPort("[::]:546") }), want: dropSource},
		"from multicast":             {in: on(direct(installMAC, ovmfPXE.first()), func(p *packet) { p.src = netip.MustParseAddrPort("[ff02::1]:546") }), want: dropSource},
		"from nowhere":               {in: on(direct(installMAC, ovmfPXE.first()), func(p *packet) { p.src = netip.AddrPort{} }), want: dropSource},
		"refused":                    {in: direct(installMAC, talos.first()), set: refuse, want: dropRefused},
		"stranger where none is let": {in: viaRelay(relayed(0, "2001:db8:2::1", strangeMAC.LinkLocal().String(), ovmfPXE.first())), want: dropRefused},
		"database gone, View":        {in: direct(installMAC, talos.with(request, talos.ia)), set: func(r *rack) { r.fail("View", down) }, want: dropFailed},
		"database gone, Bind":        {in: direct(installMAC, talos.first()), set: func(r *rack) { r.fail("Bind", down) }, want: dropFailed},
		"database gone, Release":     {in: direct(installMAC, talos.with(release, talos.ia)), set: func(r *rack) { r.fail("Release", down) }, want: dropFailed},
		"install not recorded":       {in: direct(installMAC, ovmfPXE.first()), set: func(r *rack) { r.fail("Record", down) }, want: dropFailed},
		"offer not recorded":         {in: direct(installMAC, ovmfPXE.with(request, ovmfPXE.ia)), set: func(r *rack) { r.fail("Record", down) }, want: dropFailed},
	} {
		t.Run(name, func(t *testing.T) {
			inv := newRack()
			if tc.set != nil {
				tc.set(inv)
			}
			out, err := newServer(t, inv, nil).handle(t.Context(), tc.in)
			if err == nil {
				t.Fatalf("answered:\n%s", dump(t, out.data))
			}
			why := dropFailed
			var d *dropError
			if errors.As(err, &d) {
				why = d.why
			}
			if why != tc.want {
				t.Errorf("dropped as %q (%v), want %q", why, err, tc.want)
			}
			if len(inv.leases) != 0 {
				t.Error("a dropped packet made a lease")
			}
		})
	}
}

// TestRelays: those that are named may speak for their subnet.
func TestRelays(t *testing.T) {
	r := newRack()
	relaysOnly("2001:db8:ffff::/64")(r)
	for name, in := range map[string]packet{
		"through a relay that is named": viaRelay(relayed(0, "2001:db8:1::1", installMAC.LinkLocal().String(), ovmfPXE.first())),
		"on the link":                   direct(installMAC, ovmfPXE.first()),
	} {
		if out, err := newServer(t, r, nil).handle(t.Context(), in); err != nil || len(out.data) == 0 {
			t.Errorf("%s: no answer: %v", name, err)
		}
	}
}

// TestAdoption: an unregistered machine is sent to its boot loader where it is to wait
// there, and else is given an address and nothing more.
func TestAdoption(t *testing.T) {
	for _, adopt := range []bool{false, true} {
		r := newRack()
		r.adopt = adopt
		stranger(r)
		for _, c := range []client{ovmfPXE, ipxeSARR} {
			out, err := newServer(t, r, nil).handle(t.Context(), direct(installMAC, c.first()))
			if err != nil {
				t.Fatal(err)
			}
			if got := strings.Contains(string(out.data), "tftp://") || strings.Contains(string(out.data), "http://"); got != adopt {
				t.Errorf("adopt %t: a URL: %t", adopt, got)
			}
		}
	}
}
