package dhcpv6

import (
	"net"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/insomniacslk/dhcp/dhcpv6"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
)

// TestMetrics: each message is counted by what it was answered with, and each drop by
// its reason.
func TestMetrics(t *testing.T) {
	s := newServer(t, newRack(), nil)
	t.Run("a boot", func(t *testing.T) { // counted whole when the server has ended
		conn, err := net.DialUDP("udp6", nil, net.UDPAddrFromAddrPort(serve(t, s)))
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		if err := conn.SetDeadline(time.Now().Add(20 * time.Second)); err != nil {
			t.Fatal(err)
		}
		for _, m := range [][]byte{ovmfPXE.first(), ovmfPXE.with(request, ovmfPXE.ia), ipxeInfo.first(), ipxeInfo.first()} {
			if _, err := conn.Write(throughRelay(installMAC, m)); err != nil {
				t.Fatal(err)
			}
			if _, err := conn.Read(make([]byte, maxMessage)); err != nil {
				t.Fatal(err)
			}
		}
		for why, b := range map[string][]byte{"malformed": {1, 2, 3, 4, 5}, "no subnet": relayed(0, "2001:db8:9::1", "fe80::1", ovmfPXE.first())} {
			if _, err := conn.Write(b); err != nil {
				t.Fatal(err)
			}
			for deadline := time.Now().Add(20 * time.Second); s.Dropped()[why] != 1; runtime.Gosched() {
				if time.Now().After(deadline) {
					t.Fatalf("%s was not counted: %v", why, s.Dropped())
				}
			}
		}
	})
	reg := prometheus.NewPedanticRegistry()
	reg.MustRegister(s.Collectors()...)
	err := testutil.GatherAndCompare(reg, strings.NewReader(`
# HELP provisiond_dhcpv6_messages_total Messages of clients by type and by what they were answered with; none: see provisiond_dhcpv6_dropped_total.
# TYPE provisiond_dhcpv6_messages_total counter
provisiond_dhcpv6_messages_total{answer="advertise",message="solicit"} 1
provisiond_dhcpv6_messages_total{answer="none",message="confirm"} 0
provisiond_dhcpv6_messages_total{answer="none",message="decline"} 0
provisiond_dhcpv6_messages_total{answer="none",message="information-request"} 0
provisiond_dhcpv6_messages_total{answer="none",message="rebind"} 0
provisiond_dhcpv6_messages_total{answer="none",message="release"} 0
provisiond_dhcpv6_messages_total{answer="none",message="renew"} 0
provisiond_dhcpv6_messages_total{answer="none",message="request"} 0
provisiond_dhcpv6_messages_total{answer="none",message="solicit"} 1
provisiond_dhcpv6_messages_total{answer="reply",message="confirm"} 0
provisiond_dhcpv6_messages_total{answer="reply",message="decline"} 0
provisiond_dhcpv6_messages_total{answer="reply",message="information-request"} 2
provisiond_dhcpv6_messages_total{answer="reply",message="rebind"} 0
provisiond_dhcpv6_messages_total{answer="reply",message="release"} 0
provisiond_dhcpv6_messages_total{answer="reply",message="renew"} 0
provisiond_dhcpv6_messages_total{answer="reply",message="request"} 1
provisiond_dhcpv6_messages_total{answer="reply",message="solicit"} 0
`), "provisiond_dhcpv6_messages_total")
	if err != nil {
		t.Error(err)
	}
	if n := testutil.CollectAndCount(reg, "provisiond_dhcpv6_dropped_total"); n != int(numDrops) {
		t.Errorf("%d reasons", n)
	}
}

// TestCountingIsFree: what counts on the path of a packet allocates nothing.
func TestCountingIsFree(t *testing.T) {
	s := newServer(t, newRack(), nil)
	x, r := &exchange{message: &message{kind: dhcpv6.MessageTypeSolicit}}, &reply{kind: dhcpv6.MessageTypeAdvertise}
	if n := testing.AllocsPerRun(100, func() {
		s.exchanges.answered(x, r)
		s.exchanges.dropped(x)
		s.exchanges.dropped(&exchange{message: &message{kind: dhcpv6.MessageTypeAdvertise}})
	}); n > 0 {
		t.Errorf("%v allocations", n)
	}
}
