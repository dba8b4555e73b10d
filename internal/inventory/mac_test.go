package inventory

import (
	"net/netip"
	"strings"
	"testing"
)

func TestParseMAC(t *testing.T) {
	const want = MAC("52:54:00:ab:cd:ef")
	for _, in := range []string{"52:54:00:ab:cd:ef", "52:54:00:AB:CD:EF", "52-54-00-AB-CD-EF", "5254.00ab.cdef", "525400abcdef", "525400ABCDEF"} {
		if got, err := ParseMAC(in); err != nil || got != want {
			t.Errorf("ParseMAC(%q) = %q, %v, want %q", in, got, err, want)
		}
	}
	for in, why := range map[string]string{
		"":                        "not a MAC",
		"52:54:00:ab:cd":          "not a MAC",
		"52:54:00:ab:cd:ef:01":    "not a MAC",
		"52:54:00:ab:cd:eg":       "not a MAC",
		"52:54-00:ab:cd:ef":       "not a MAC",
		"5:254:00:ab:cd:ef":       "not a MAC",
		"52.54.00.ab.cd.ef":       "not a MAC",
		"525.400a.bcde.f":         "not a MAC",
		"5254-00ab-cdef":          "not a MAC",
		"00:00:00:00:00:00":       "all-zero",
		"ff:ff:ff:ff:ff:ff":       "group address",
		"33:33:00:00:00:01":       "group address",
		"52:54:00:ab:cd:ef\n":     "not a MAC",
		strings.Repeat("a", 1000): "not a MAC",
	} {
		if got, err := ParseMAC(in); err == nil || !strings.Contains(err.Error(), why) {
			t.Errorf("ParseMAC(%q) = %q, %v, want an error about %q", in, got, err, why)
		}
	}
}

func FuzzParseMAC(f *testing.F) {
	for _, s := range []string{"52:54:00:ab:cd:ef", "525400abcdef", "5254.00ab.cdef", "", "::::::", "52-54-00-ab-cd-ef"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		mac, err := ParseMAC(s)
		if err != nil {
			return
		}
		again, err := ParseMAC(string(mac))
		if err != nil || again != mac {
			t.Fatalf("%q gave %q, which gave %q, %v", s, mac, again, err)
		}
		back, ok := MACFromEUI64(mac.LinkLocal())
		if !ok || back != mac {
			t.Fatalf("%q has link-local %s, which gives %q", mac, mac.LinkLocal(), back)
		}
	})
}

func TestLinkLocal(t *testing.T) {
	if got, want := MAC("52:54:00:12:34:56").LinkLocal(), netip.MustParseAddr("fe80::5054:ff:fe12:3456"); got != want {
		t.Errorf("LinkLocal = %s, want %s", got, want)
	}
	for _, a := range []string{"fe80::1", "2001:db8::", "::ffff:192.0.2.1"} {
		if mac, ok := MACFromEUI64(netip.MustParseAddr(a)); ok {
			t.Errorf("%s gave %s", a, mac)
		}
	}
}

func TestIdentify(t *testing.T) {
	const a, b, c = MAC("52:54:00:00:00:0a"), MAC("52:54:00:00:00:0b"), MAC("52:54:00:00:00:0c")
	duidLL := append([]byte{0, 3, 0, 1}, c.Bytes()...)
	duidLLT := append([]byte{0, 1, 0, 1, 1, 2, 3, 4}, c.Bytes()...)
	duidUUID := append([]byte{0, 4}, make([]byte, 16)...)
	duidUUID[5] = 7
	learnt := func(d []byte) (MAC, bool) { return b, string(d) == string(duidUUID) }
	for _, tt := range []struct {
		name   string
		e      Evidence
		mac    MAC
		source Source
	}{
		{"option 79 wins over all", Evidence{RelayLinkLayer: a, RelayPeer: b.LinkLocal(), DUID: duidLL, Neighbour: b}, a, FromRelayOption},
		{"relay peer", Evidence{RelayPeer: a.LinkLocal(), DUID: duidLL}, a, FromRelayPeer},
		{"relay peer that is no EUI-64", Evidence{RelayPeer: netip.MustParseAddr("fe80::1"), DUID: duidLL}, c, FromDUIDLL},
		{"a global peer proves nothing", Evidence{RelayPeer: netip.MustParseAddr("2001:db8::5054:ff:fe00:a"), DUID: duidLLT}, "", FromNothing},
		{"link-local source", Evidence{Source: a.LinkLocal(), DUID: duidLL}, a, FromLinkLocal},
		{"DUID-LL", Evidence{Source: netip.MustParseAddr("2001:db8::1"), DUID: duidLL, Neighbour: a}, c, FromDUIDLL},
		{"neighbour", Evidence{Source: netip.MustParseAddr("2001:db8::1"), DUID: duidLLT, Neighbour: a}, a, FromNeighbour},
		{"learnt", Evidence{DUID: duidUUID}, b, FromLearnt},
		{"never a DUID-LLT", Evidence{DUID: duidLLT}, "", FromNothing},
		{"nothing", Evidence{}, "", FromNothing},
	} {
		if mac, source := Identify(tt.e, learnt); mac != tt.mac || source != tt.source {
			t.Errorf("%s: %q by %q, want %q by %q", tt.name, mac, source, tt.mac, tt.source)
		}
	}
	if LearnableDUID(append([]byte{0, 4}, make([]byte, 16)...)) {
		t.Error("an all-zero UUID, which whole fleets share, can be learnt")
	}
	if LearnableDUID(duidLLT) || !LearnableDUID(duidUUID) {
		t.Error("want UUIDs learnt and DUID-LLTs not")
	}
}
