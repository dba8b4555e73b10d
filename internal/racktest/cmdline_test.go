package racktest

import (
	"net/netip"
	"testing"
)

func TestParseIP(t *testing.T) {
	for _, tc := range []struct {
		in      string
		addr    string // "" and no error: an IPv4 form
		device  string
		host    string
		refused bool
	}{
		{in: "[2001:db8::11]::[fe80::1]:64:cp-1:enx525400123456:off:[2001:db8::53]::[2001:db8::123]", addr: "2001:db8::11/64", device: "enx525400123456", host: "cp-1"},
		{in: "[2001:db8::11]:::::enx525400123456", addr: "2001:db8::11/128", device: "enx525400123456"},
		{in: "eth0:dhcp"},
		{in: "dhcp"},
		{in: "eth0:dhcp6:x:y", refused: true},
		{in: "[2001:db8::11]::[fe80::1]:999:h:d", refused: true},
		{in: "[2001:db8::11]::[fe80::1:64:h:d", refused: true},
		{in: "2001:db8::11::fe80::1:64:h:d", refused: true},
		{in: "[2001:db8::11]::gw:64:h:d", refused: true},
		{in: "[2001:db8::11]::[fe80::1]:64:h:d:off:dns", refused: true},
	} {
		a, err := parseIP(tc.in)
		if (err != nil) != tc.refused {
			t.Errorf("%s: %v", tc.in, err)
			continue
		}
		if tc.refused {
			continue
		}
		want := netip.Prefix{}
		if tc.addr != "" {
			want = netip.MustParsePrefix(tc.addr)
		}
		if a.prefix != want || a.device != tc.device || a.hostname != tc.host {
			t.Errorf("%s: %+v", tc.in, a)
		}
	}
}

func TestFill(t *testing.T) {
	s := newSite(t)
	m := newMachine(t, s, nil)
	sys := &system{boot: &boot{Machine: m}, net: &links{hostname: "n3"}}
	for in, want := range map[string]string{
		"http://[::1]/c?uuid=${uuid}&serial=${serial}&mac=${mac}": "http://[::1]/c?mac=52%3A54%3A00%3A00%3A00%3A01&serial=SN-1&uuid=00112233-4455-6677-8899-aabbccddeeff",
		"http://[::1]/c?u=${UUID}&f=a-${mac}.yaml":                "http://[::1]/c?f=a-52%3A54%3A00%3A00%3A00%3A01.yaml&u=00112233-4455-6677-8899-aabbccddeeff",
		"http://[::1]/c?uuid=":                                    "http://[::1]/c?uuid=00112233-4455-6677-8899-aabbccddeeff",
		"http://[::1]/c/52:54:00:00:00:01/token":                  "http://[::1]/c/52:54:00:00:00:01/token",
		"http://[::1]/c?b=2&a=1":                                  "http://[::1]/c?b=2&a=1",
		"http://[::1]/c?h=${hostname}":                            "http://[::1]/c?h=n3",
		"http://[::1]/c?x=${code}":                                "http://[::1]/c?x=%24%7Bcode%7D",
		"http://[::1]/c/${uuid}":                                  "http://[::1]/c/$%7Buuid%7D",
	} {
		if got, err := sys.fill(in); err != nil || got != want {
			t.Errorf("%s\n got %s, %v\nwant %s", in, got, err, want)
		}
	}
}

func FuzzCommandLine(f *testing.F) {
	f.Add("ip=[::1]:::64 talos.config.early=AAAA a=b=c")
	f.Add("ip=[")
	f.Fuzz(func(t *testing.T, line string) {
		c := parseCommandLine(line)
		for _, v := range c.values["ip"] {
			if a, err := parseIP(v); err == nil && a.prefix.IsValid() && !a.prefix.Addr().IsValid() {
				t.Errorf("%q gave %v", v, a)
			}
		}
		c.encoded("talos.config.early")
	})
}
