package seed

import (
	"net/netip"
	"testing"
)

func TestFiles(t *testing.T) {
	m := testMachine()
	if got, want := string(m.MetaData()), "instance-id: \"cp-1-order-1\"\nlocal-hostname: \"cp-1\"\n"; got != want {
		t.Errorf("meta-data is %s", got)
	}
	static := `version: 2
ethernets:
  enx525400000001:
    match:
      macaddress: "52:54:00:00:00:01"
    addresses:
      - "2001:db8::11/64"
    routes:
      - to: "::/0"
        via: "fe80::1"
    nameservers:
      addresses:
        - "2001:db8::53"
`
	if got := string(m.NetworkConfig()); got != static {
		t.Errorf("static is\n%s", got)
	}
	m.Gateway, m.Nameservers = netip.Addr{}, nil
	alone := `version: 2
ethernets:
  enx525400000001:
    match:
      macaddress: "52:54:00:00:00:01"
    addresses:
      - "2001:db8::11/64"
`
	if got := string(m.NetworkConfig()); got != alone {
		t.Errorf("without a router it is\n%s", got)
	}
	m.DHCPv6, m.Nameservers = true, []netip.Addr{netip.MustParseAddr("2001:db8::53")}
	dhcp := `version: 2
ethernets:
  enx525400000001:
    match:
      macaddress: "52:54:00:00:00:01"
    dhcp6: true
    nameservers:
      addresses:
        - "2001:db8::53"
`
	if got := string(m.NetworkConfig()); got != dhcp {
		t.Errorf("with DHCPv6 it is\n%s", got)
	}
}
