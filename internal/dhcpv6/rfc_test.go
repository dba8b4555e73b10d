package dhcpv6

import (
	"bytes"
	"fmt"
	"net/netip"
	"slices"
	"testing"

	"github.com/provisiond/provisiond/internal/inventory"
)

// answerTo is the answer to a packet, its type and its options.
func answerTo(t *testing.T, s *Server, in packet) (answer, byte, []option) {
	t.Helper()
	out, err := s.handle(t.Context(), in)
	if err != nil {
		t.Fatal(err)
	}
	kind, opts := inside(t, out.data)
	return out, kind, opts
}

// TestEveryIAIsAnswered: as many as fit into a message, with an address or a
// status each (RFC 8415 section 18.3.2), and no address twice.
func TestEveryIAIsAnswered(t *testing.T) {
	var ias [][]byte
	for i := range uint32(200) {
		ias = append(ias, iaNA(i, 0))
	}
	ias = append(ias, opt(25, u32(7), u32(0), u32(0)), opt(4, u32(8)))
	c := talos
	_, kind, opts := answerTo(t, newServer(t, newRack(), nil), direct(installMAC, c.with(request, ias...)))
	if kind != replied {
		t.Fatalf("answered with %d", kind)
	}
	seen := map[string]bool{}
	answered := 0
	for _, o := range opts {
		switch o.code {
		case 3:
			answered++
			in := splitOptions(t, o.value[12:])
			a, has := value(in, 5)
			if !has && statusOf(in) != noAddrs {
				t.Errorf("IA %x has neither an address nor NoAddrsAvail", o.value[:4])
			}
			if has && seen[string(a[:16])] {
				t.Errorf("IA %x has an address that another has", o.value[:4])
			} else if has {
				seen[string(a[:16])] = true
			}
		case 4, 25:
			answered++
		}
	}
	if answered != 202 || len(seen) == 0 || len(seen) > maxIAs {
		t.Errorf("%d of 202 IAs are answered, %d with an address", answered, len(seen))
	}
}

// TestOwnIAByAddress: the IA that has the machine's address keeps it, in whatever
// order they come.
func TestOwnIAByAddress(t *testing.T) {
	s := newServer(t, newRack(), nil)
	_, _, opts := answerTo(t, s, direct(installMAC, talos.with(renew, iaNA(1, 0, firstPool), iaNA(2, 0, stableAddr.String()))))
	first, _ := addresses(t, opts, 0)
	second, _ := addresses(t, opts, 1)
	if len(first) != 1 || len(second) != 1 || second[0] != stableAddr.String()+" 43200/86400" {
		t.Errorf("the IAs have %v and %v", first, second)
	}
}

// TestRebindSparesOtherServers: addresses on the link that are none of ours may be
// another server's.
func TestRebindSparesOtherServers(t *testing.T) {
	s := newServer(t, newRack(), nil)
	foreign, ours, elsewhere := "2001:db8:1::abcd", "2001:db8:1::f002", "2001:db8:9::1"
	_, _, opts := answerTo(t, s, direct(installMAC, talos.with(rebind, iaNA(1, 0, foreign, ours, elsewhere))))
	got, _ := addresses(t, opts, 0)
	want := []string{stableAddr.String() + " 43200/86400", ours + " 0/0", elsewhere + " 0/0"}
	if !slices.Equal(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
}

// TestRapidCommitOfNothing: a server that has no address commits to none, and
// leaves the client to others.
func TestRapidCommitOfNothing(t *testing.T) {
	inv := newRack()
	full(inv)
	_, kind, opts := answerTo(t, newServer(t, inv, nil), direct(installMAC, talos.first()))
	if _, rapid := value(opts, 14); kind != advertise || rapid {
		t.Errorf("answered with %d, rapid commit %v", kind, rapid)
	}
}

// TestRelayGetsItsOwnBack: what a relay asks to have echoed (RFC 4994), such as
// its remote-id (RFC 4649), and what it supplies for the client (RFC 6422).
func TestRelayGetsItsOwnBack(t *testing.T) {
	remote := opt(37, u32(9), []byte("switch-7/port-3"))
	rsoo := opt(66, opt(65, []byte("\x04rack\x00")), opt(23, netip.MustParseAddr("2001:db8::bad").AsSlice()))
	in := viaRelay(relayed(0, "2001:db8:1::fe", installMAC.LinkLocal().String(), talos.first(),
		remote, opt(18, []byte("eth1/0")), opt(43, u16s(37, 38, 18, 37)), rsoo))
	out, _, opts := answerTo(t, newServer(t, newRack(), nil), in)
	outer := splitOptions(t, out.data[34:])
	if got := codes(outer); fmt.Sprint(got) != "[18 37 9]" {
		t.Errorf("the Relay-reply has options %v", got)
	}
	if v, _ := value(outer, 37); !bytes.Equal(v, remote[4:]) {
		t.Errorf("the remote-id came back as %x", v)
	}
	if v, _ := value(opts, 65); string(v) != "\x04rack\x00" {
		t.Errorf("the client gets %q of what the relay supplied", v)
	}
	if dns, _ := value(opts, 23); len(dns) != 16 || netip.AddrFrom16([16]byte(dns)) == netip.MustParseAddr("2001:db8::bad") {
		t.Errorf("a relay supplied the client's DNS server %x", dns)
	}
}

// TestNothingNamesTheNIC: such a client is a stranger by its DUID, with an address
// and no boot URL, and a reason that says what to do.
func TestNothingNamesTheNIC(t *testing.T) {
	for name, in := range map[string]packet{
		"direct":  {data: ovmfPXE.first(), src: netip.MustParseAddrPort("[fe80::1:2]:546"), dst: netip.MustParseAddr("ff02::1:2"), ifindex: testIndex, ifname: "rack0"},
		"relayed": viaRelay(relayed(0, "2001:db8:1::fe", "fe80::1:2", ovmfPXE.first())),
	} {
		inv := newRack()
		_, kind, opts := answerTo(t, newServer(t, inv, nil), in)
		got, _ := addresses(t, opts, 0)
		if _, url := value(opts, 59); kind != advertise || len(got) != 1 || url {
			t.Errorf("%s: answered with %d, addresses %v, URL %v", name, kind, got, url)
		}
		if len(inv.bound) != 1 || inv.bound[0].MAC != "" || inv.bound[0].Machine != "" {
			t.Errorf("%s: bound as %+v", name, inv.bound)
		}
	}
}

// TestPlainDNSClient: wide-dhcpv6-client and others that want no more than DNS are
// not the firmware's own stack, and get the machine's address.
func TestPlainDNSClient(t *testing.T) {
	c := client{name: "dhcp6c", duid: unhex("0001 0001 2f6b1c2d 525400123456"), ia: iaNA(0, 0), options: [][]byte{opt(6, u16s(23))}}
	s := newServer(t, newRack(), nil)
	adv, rep := boot(t, s, installMAC, c)
	for what, opts := range map[string][]option{"Advertise": adv, "Reply": rep} {
		if got, _ := addresses(t, opts, 0); len(got) != 1 || got[0] != stableAddr.String()+" 43200/86400" {
			t.Errorf("%s: %v", what, got)
		}
	}
}

// TestTwoNICs: only the NIC that a machine's address belongs on gets it.
func TestTwoNICs(t *testing.T) {
	inv := newRack()
	v := inv.views[installMAC]
	m := *v.Machine
	second := inventory.MAC("52:54:00:12:34:66")
	m.MACs = append(slices.Clone(m.MACs), second)
	v.Machine = &m
	inv.views[installMAC], inv.views[second] = v, v
	s := newServer(t, inv, nil)
	_, rep := boot(t, s, second, client{duid: unhex("0002 00000009 01"), ia: iaNA(9, 0), options: [][]byte{opt(6, u16s(23, 24))}})
	if got, _ := addresses(t, rep, 0); len(got) != 1 || got[0] != firstPool+" 43200/86400" {
		t.Errorf("the second NIC got %v", got)
	}
	// Firmware boots from it: now it is the one.
	v.Facts.Boots = []*inventory.Boot{{Number: 1, MAC: second}}
	inv.views[second] = v
	_, rep = boot(t, s, second, ovmfPXE)
	if got, _ := addresses(t, rep, 0); len(got) != 1 || got[0] != stableAddr.String()+" 43200/86400" {
		t.Errorf("the NIC that boots got %v", got)
	}
}

// TestDirectAnswerLeavesWhereItWasHeard, whatever the client's address (RFC 8415
// section 18.3.10).
func TestDirectAnswerLeavesWhereItWasHeard(t *testing.T) {
	in := direct(installMAC, talos.with(renew, iaNA(1, 0, stableAddr.String())))
	in.src = netip.AddrPortFrom(stableAddr, 546)
	if out, _, _ := answerTo(t, newServer(t, newRack(), nil), in); out.ifindex != testIndex {
		t.Errorf("it leaves by interface %d", out.ifindex)
	}
}

// TestOperatorOptions go to whoever asks, or to all.
func TestOperatorOptions(t *testing.T) {
	inv := newRack()
	n := testSubnets()
	n[0].Options = []inventory.Option{{Code: 41, Value: []byte("UTC0")}, {Code: 242, Value: []byte{1}, Always: true}}
	s := newServer(t, withSubnets{inv, n}, nil)
	_, _, opts := answerTo(t, s, direct(installMAC, talos.first()))
	if _, asked := value(opts, 41); asked {
		t.Error("option 41 was sent unasked for")
	}
	if v, _ := value(opts, 242); string(v) != "\x01" {
		t.Errorf("option 242 is %x", v)
	}
	c := talos
	c.options = [][]byte{opt(6, u16s(41, 32))}
	_, _, opts = answerTo(t, s, direct(installMAC, c.with(request, c.ia)))
	if v, _ := value(opts, 41); string(v) != "UTC0" {
		t.Errorf("option 41 is %q", v)
	}
	if _, refresh := value(opts, 32); refresh {
		t.Error("an Information Refresh Time for a client with a lease")
	}
	c.info, c.ia = true, nil
	_, _, opts = answerTo(t, s, direct(installMAC, c.first()))
	if v, _ := value(opts, 32); !bytes.Equal(v, u32(86400)) {
		t.Errorf("Information Refresh Time is %x", v)
	}
}

// TestTimeServers: one option 56 for each, with one suboption each, addresses before
// multicast before names (RFC 5908 section 4).
func TestTimeServers(t *testing.T) {
	n := testSubnets()
	n[0].NTP = []netip.Addr{netip.MustParseAddr("2001:db8::123"), netip.MustParseAddr("ff05::101")}
	n[0].NTPNames = []string{"ntp.example"}
	out, _, _ := answerTo(t, newServer(t, withSubnets{newRack(), n}, nil), direct(installMAC, talos.first()))
	want := unhex("0038 0014 0001 0010 20010db8000000000000000000000123" + "0038 0014 0002 0010 ff050000000000000000000000000101" +
		"0038 0011 0003 000d 036e7470 076578616d706c65 00")
	if !bytes.Contains(out.data, want) {
		t.Errorf("got %x, want %x in it", out.data, want)
	}
}

type withSubnets struct {
	*rack
	n []inventory.Subnet
}

func (w withSubnets) Subnets() []inventory.Subnet { return w.n }

// TestFQDN: a machine is told its name, a stranger keeps its own, and nobody is
// promised an update of the DNS (RFC 4704).
func TestFQDN(t *testing.T) {
	s := newServer(t, newRack(), nil)
	fqdn := opt(39, []byte{1}, []byte("\x05me-me\x00"))
	for mac, want := range map[inventory.MAC]string{
		installMAC: "\x06\x04cp-1\x04rack\x07example\x00", strangeMAC: "\x06\x05me-me\x00",
	} {
		c := talosLegacy
		c.options = append(slices.Clone(c.options), fqdn)
		_, _, opts := answerTo(t, s, direct(mac, c.first()))
		if v, _ := value(opts, 39); string(v) != want {
			t.Errorf("%s is told %q, want %q", mac, v, want)
		}
	}
	_, _, opts := answerTo(t, s, direct(installMAC, talos.first()))
	if _, told := value(opts, 39); told {
		t.Error("it did not ask")
	}
}
