package dhcpv6

import (
	"flag"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/provisiond/provisiond/internal/inventory"
)

var update = flag.Bool("update", false, "write the golden files anew")

// paths are the ways a packet reaches the server.
var paths = map[string]func(mac inventory.MAC, data []byte) packet{
	"direct": direct,
	"relayed": func(mac inventory.MAC, data []byte) packet {
		return viaRelay(relayed(0, "2001:db8:1::fe", mac.LinkLocal().String(), data, opt(18, []byte("port-17"))))
	},
	// A layer-2 relay (no link-address, option 79) below a router with a relay
	// source port.
	"twice": func(_ inventory.MAC, data []byte) packet {
		inner := relayed(0, "::", "fe80::1234", data, opt(79, u16s(1), installMAC.Bytes()), opt(18, []byte("vlan-5")))
		in := viaRelay(relayed(1, "2001:db8:1::fe", "fe80::aaaa", inner, opt(135, u16s(0)), opt(18, []byte("ge-0/0/1"))))
		in.src = netip.AddrPortFrom(in.src.Addr(), 1547)
		return in
	},
}

// TestGolden holds every answer of a boot against testdata, per client and way.
func TestGolden(t *testing.T) {
	for _, c := range allClients {
		for path, arrive := range paths {
			t.Run(c.name+"/"+path, func(t *testing.T) {
				inv := newRack()
				s := newServer(t, inv, nil)
				var w strings.Builder
				exchange := func(data []byte) {
					out, err := s.handle(t.Context(), arrive(installMAC, data))
					if err != nil {
						t.Fatal(err)
					}
					fmt.Fprintf(&w, "to %s from %s interface %d\n%s", out.dst, out.src, out.ifindex, dump(t, out.data))
				}
				exchange(c.first())
				switch {
				case c.rapid: // Talos asks anew at half the lifetime, and releases nothing
					exchange(c.first())
				case !c.info:
					exchange(c.with(request, c.ia))
				}
				for _, e := range inv.events {
					fmt.Fprintf(&w, "event %s client=%s arch=%s mac=%s by=%q xid=%06x peer=%s relay=%s subnet=%s uuid=%s duid=%s plan=%s %q\n",
						e.Kind, e.Client, e.Arch, e.MAC, e.Source, e.XID, e.Peer, e.Relay, e.Subnet, e.UUID, e.DUID, e.Plan, e.Message)
				}
				golden(t, c.name+"-"+path, w.String())
			})
		}
	}
}

func golden(t *testing.T, name, got string) {
	t.Helper()
	file := filepath.Join("testdata", "golden", name+".txt")
	if *update {
		if err := os.WriteFile(file, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if got != string(want) {
		t.Errorf("%s:\ngot:\n%s\nwant:\n%s", file, got, want)
	}
}
