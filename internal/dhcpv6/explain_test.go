package dhcpv6

import (
	"net/netip"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/provisiond/provisiond/internal/inventory"
)

// TestExplain: the explanation of a packet is the answer that it gets, and asking
// for it leaves nothing behind.
func TestExplain(t *testing.T) {
	for name, tc := range map[string]struct {
		in   Capture
		want Explanation // the fields that are set
		text string      // in the answer, or in why there is none
	}{
		"direct": {
			Capture{Data: ovmfPXE.first(), Source: installMAC.LinkLocal(), LinkLayer: "52:54:00:00:00:99"},
			Explanation{
				Request: "SOLICIT", Client: inventory.FirmwarePXE, Arch: inventory.AMD64, Subnet: "rack-1", SubnetBy: "interface rack0", Machine: "cp-1",
				Evidence: []inventory.Candidate{{Source: inventory.FromLinkLocal, MAC: installMAC}, {Source: inventory.FromNeighbour, MAC: "52:54:00:00:00:99"}},
			}, "tftp://",
		},
		"relayed": {
			Capture{Data: relayed(0, "2001:db8:1::fe", installMAC.LinkLocal().String(), talos.first(), opt(37, u32(9), []byte("p3")), opt(18, []byte("eth1"))), Source: netip.MustParseAddr("2001:db8:ffff::1")},
			Explanation{
				Request: "SOLICIT", Client: inventory.OperatingSystem, Subnet: "rack-1", SubnetBy: "the relay's link-address 2001:db8:1::fe", Machine: "cp-1",
				Evidence: []inventory.Candidate{{Source: inventory.FromRelayPeer, MAC: installMAC}, {Source: inventory.FromDUIDLL, MAC: installMAC}},
			}, stableAddr.String(),
		},
		"stranger":    {Capture{Data: ovmfPXE.first(), Source: strangeMAC.LinkLocal()}, Explanation{Subnet: "rack-1"}, firstPool},
		"no subnet":   {Capture{Data: relayed(0, "2001:db8:9::1", "fe80::1", ovmfPXE.first())}, Explanation{Request: "SOLICIT"}, "in no subnet"},
		"interface":   {Capture{Data: ovmfPXE.first(), Interface: "mgmt0", Source: installMAC.LinkLocal()}, Explanation{Request: "SOLICIT"}, "mgmt0"},
		"not for us":  {Capture{Data: append(talos.with(renew)[:4], append(opt(1, talos.duid), opt(2, unhex("0003000152540000aaaa"))...)...)}, Explanation{Request: "RENEW"}, "for server"},
		"garbage":     {Capture{Data: []byte{1, 2, 3}}, Explanation{}, "malformed"},
		"nothing":     {Capture{}, Explanation{}, "malformed"},
		"an answer":   {Capture{Data: msg(advertise, opt(1, talos.duid))}, Explanation{}, "not a message for a server"},
		"release":     {Capture{Data: talos.with(release, iaNA(1, 0, stableAddr.String())), Source: installMAC.LinkLocal()}, Explanation{Request: "RELEASE"}, "Success"},
		"no evidence": {Capture{Data: ovmfPXE.first()}, Explanation{Request: "SOLICIT", Subnet: "rack-1"}, firstPool},
	} {
		inv := newRack()
		s := newServer(t, inv, nil)
		got := s.Explain(t.Context(), tc.in)
		if text := strings.Join(got.Answer, "\n") + got.Dropped; !strings.Contains(text, tc.text) {
			t.Errorf("%s: %q is not in %q", name, tc.text, text)
		}
		w := tc.want
		if w.Request != "" && got.Request != w.Request || w.Client != "" && got.Client != w.Client || w.Arch != got.Arch && w.Arch != "" ||
			w.Subnet != "" && got.Subnet != w.Subnet || w.SubnetBy != "" && got.SubnetBy != w.SubnetBy || w.Machine != got.Machine && w.Machine != "" {
			t.Errorf("%s: explained as %+v, want %+v", name, got, w)
		}
		for i, c := range w.Evidence {
			if i >= len(got.Evidence) || got.Evidence[i] != c {
				t.Errorf("%s: evidence %v, want %v", name, got.Evidence, w.Evidence)
			}
		}
		if len(inv.events)+len(inv.leases)+len(inv.freed) > 0 {
			t.Errorf("%s: it was recorded: %v %v %v", name, inv.events, inv.leases, inv.freed)
		}
		if d := s.Dropped(); d["malformed"] != 0 {
			t.Errorf("%s: it was counted as a packet", name)
		}
	}
}

// TestDropsAreExplained: whoever looks up why a packet got no answer finds it.
func TestDropsAreExplained(t *testing.T) {
	page, err := os.ReadFile("../../docs/troubleshooting.md")
	if err != nil {
		t.Fatal(err)
	}
	var listed []string
	for _, line := range strings.Split(string(page), "\n") {
		if reasons, _, ok := strings.Cut(strings.TrimPrefix(line, "| "), " |"); ok && strings.HasPrefix(line, "| ") {
			listed = append(listed, strings.Split(reasons, ", ")...)
		}
	}
	for _, name := range dropNames {
		if !slices.Contains(listed, name) {
			t.Errorf("docs/troubleshooting.md does not list %q", name)
		}
	}
}
