package racktest

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/insomniacslk/dhcp/dhcpv6"
	"github.com/insomniacslk/dhcp/iana"
	"github.com/pin/tftp/v3"
	eventsapi "github.com/siderolabs/siderolink/api/events"
	"google.golang.org/grpc"
	"google.golang.org/protobuf/proto"
)

// site is the smallest provisioning server that answers as netboot.md says one
// must. The hooks break it for one test.
type site struct {
	t    *testing.T
	net  *Net
	http *httptest.Server
	base string // its URL
	tftp string // [::1]:port
	sink string

	// start serves. The hooks below may be set freely before; later, by with.
	start func()

	// change may alter an answer before it leaves.
	change func(kind dhcpv6.MessageType, client string, m *dhcpv6.Message)
	// plan is "install" (zero), "disk" or "hold" for a MAC.
	plan func(mac string) string
	// kernelLine may alter the kernel line.
	kernelLine func(string) string
	// handle may answer an HTTP request itself.
	handle func(w http.ResponseWriter, r *http.Request) bool
	config func(mac string) []byte

	mu       sync.Mutex
	seen     []string // one word a message: "stack/SOLICIT" and so on
	requests []string // HTTP: "GET /path UserAgent"
	events   []proto.Message
	ids      map[string]int
}

var (
	loaderBytes = bytes.Repeat([]byte("MZ iPXE "), 5000)
	kernelBytes = []byte("MZ kernel")
	initrdBytes = bytes.Repeat([]byte("initramfs"), 1000)
)

const siteSubnet = "fd00:1ab::/64"

// address gives each MAC of the tests its stable address: ::1:last octet.
func address(mac net.HardwareAddr, pool byte) netip.Addr {
	a := netip.MustParsePrefix(siteSubnet).Addr().As16()
	a[13], a[15] = pool, mac[5]+0x10
	return netip.AddrFrom16(a)
}

func newSite(t *testing.T) *site {
	t.Helper()
	s := &site{t: t, ids: map[string]int{}, plan: func(string) string { return "install" }}
	var live sync.WaitGroup
	t.Cleanup(live.Wait) // last: when all sockets are closed

	dhcp, err := net.ListenUDP("udp6", &net.UDPAddr{IP: net.IPv6loopback})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { dhcp.Close() })
	s.net = &Net{
		Server: dhcp.LocalAddr().(*net.UDPAddr).AddrPort(), Link: netip.MustParseAddr("fd00:1ab::1"),
		LinkLayer: true, InterfaceID: []byte("port 1"),
	}

	conn, err := net.ListenUDP("udp6", &net.UDPAddr{IP: net.IPv6loopback})
	if err != nil {
		t.Fatal(err)
	}
	files := tftp.NewServer(func(name string, rf io.ReaderFrom) error {
		if name != "amd64/snponly.efi" {
			return fmt.Errorf("file not found")
		}
		rf.(tftp.OutgoingTransfer).SetSize(int64(len(loaderBytes)))
		_, err := rf.ReadFrom(bytes.NewReader(loaderBytes))
		return err
	}, nil)
	files.SetTimeout(50 * time.Millisecond)
	files.SetRetries(20)
	files.SetBackoff(func(int) time.Duration { return 0 }) // instead of up to a second
	t.Cleanup(func() { files.Shutdown(); conn.Close() })
	s.tftp = conn.LocalAddr().String()

	ln, err := net.Listen("tcp6", "[::1]:0")
	if err != nil {
		t.Fatal(err)
	}
	s.http = httptest.NewUnstartedServer(http.HandlerFunc(s.serveHTTP))
	s.http.Listener.Close()
	s.http.Listener = ln
	s.base = "http://" + ln.Addr().String()
	t.Cleanup(s.http.Close)

	sink, err := net.Listen("tcp6", "[::1]:0")
	if err != nil {
		t.Fatal(err)
	}
	server := grpc.NewServer()
	eventsapi.RegisterEventSinkServiceServer(server, &eventSink{site: s})
	t.Cleanup(server.Stop)
	s.sink = sink.Addr().String()
	s.start = sync.OnceFunc(func() {
		live.Go(func() { s.serveDHCP(dhcp) })
		live.Go(func() { files.Serve(conn) })
		live.Go(func() { server.Serve(sink) })
		s.http.Start()
	})
	return s
}

// with changes hooks while the site serves.
func (s *site) with(change func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	change()
}

func (s *site) serveDHCP(conn *net.UDPConn) {
	buf := make([]byte, 4096)
	for {
		n, peer, err := conn.ReadFrom(buf)
		if err != nil {
			return
		}
		packet, err := dhcpv6.FromBytes(buf[:n])
		if err != nil {
			s.t.Errorf("a machine sent rubbish: %v", err)
			continue
		}
		relay := packet.(*dhcpv6.RelayMessage)
		_, mac := relay.Options.ClientLinkLayerAddress()
		if got := linkLocal(mac); !relay.PeerAddr.Equal(got.AsSlice()) {
			s.t.Errorf("peer-address %s of %s", relay.PeerAddr, mac)
		}
		inner, err := relay.GetInnerMessage()
		if err != nil {
			s.t.Errorf("no inner message: %v", err)
			continue
		}
		answer := s.answer(mac, inner)
		if answer == nil {
			continue
		}
		reply, err := dhcpv6.NewRelayReplFromRelayForw(relay, answer)
		if err != nil {
			s.t.Errorf("relay reply: %v", err)
			continue
		}
		conn.WriteTo(reply.ToBytes(), peer)
	}
}

// clientKind tells the programs on a NIC apart as a server must.
func clientKind(m *dhcpv6.Message) string {
	for _, u := range m.Options.UserClasses() {
		if string(u) == "iPXE" {
			return "ipxe"
		}
	}
	switch {
	case hasClass(m, "HTTPClient"):
		return "http"
	case hasClass(m, "PXEClient"):
		return "pxe"
	}
	if _, ok := m.Options.ClientID().(*dhcpv6.DUIDLL); ok {
		return "os"
	}
	return "stack"
}

var serverDUID = &dhcpv6.DUIDLL{HWType: iana.HWTypeEthernet, LinkLayerAddr: net.HardwareAddr{2, 0, 0, 0, 0, 1}}

func (s *site) answer(mac net.HardwareAddr, m *dhcpv6.Message) *dhcpv6.Message {
	kind := clientKind(m)
	s.mu.Lock()
	switch m.MessageType {
	case dhcpv6.MessageTypeRelease, dhcpv6.MessageTypeDecline: // these hold no class
		kind = m.Options.OneIANA().Options.OneAddress().IPv6Addr.String()
	}
	s.seen = append(s.seen, kind+"/"+m.MessageType.String())
	change, plan := s.change, s.plan
	s.mu.Unlock()
	answer := &dhcpv6.Message{MessageType: dhcpv6.MessageTypeReply, TransactionID: m.TransactionID}
	if m.MessageType == dhcpv6.MessageTypeSolicit && m.GetOneOption(dhcpv6.OptionRapidCommit) == nil {
		answer.MessageType = dhcpv6.MessageTypeAdvertise
	}
	answer.AddOption(dhcpv6.OptClientID(m.Options.ClientID()))
	answer.AddOption(dhcpv6.OptServerID(serverDUID))
	if m.GetOneOption(dhcpv6.OptionRapidCommit) != nil {
		answer.AddOption(&dhcpv6.OptionGeneric{OptionCode: dhcpv6.OptionRapidCommit})
	}
	switch m.MessageType {
	case dhcpv6.MessageTypeRelease, dhcpv6.MessageTypeDecline:
		return answer
	}
	var url string
	switch kind {
	case "pxe":
		url = "tftp://" + s.tftp + "/amd64/snponly.efi"
	case "http":
		url = s.base + "/loader/amd64/snponly.efi"
		answer.AddOption(&dhcpv6.OptVendorClass{EnterpriseNumber: enterpriseIntel, Data: [][]byte{[]byte("HTTPClient")}})
	case "ipxe":
		url = s.base + "/boot.ipxe"
	}
	if url != "" && plan(mac.String()) == "install" {
		answer.AddOption(dhcpv6.OptBootFileURL(url))
	}
	answer.AddOption(&dhcpv6.OptionGeneric{OptionCode: dhcpv6.OptionPreference, OptionData: []byte{255}})
	pool := byte(0)
	if kind == "stack" {
		pool = 1
	}
	ia := &dhcpv6.OptIANA{IaId: m.Options.OneIANA().IaId}
	ia.Options.Add(&dhcpv6.OptIAAddress{IPv6Addr: address(mac, pool).AsSlice(), PreferredLifetime: time.Hour, ValidLifetime: 2 * time.Hour})
	answer.AddOption(ia)
	if change != nil {
		change(answer.MessageType, kind, answer)
	}
	return answer
}

func (s *site) serveHTTP(w http.ResponseWriter, r *http.Request) {
	s.mu.Lock()
	s.requests = append(s.requests, r.Method+" "+r.URL.Path+" "+r.UserAgent())
	handle, kernelLine, config := s.handle, s.kernelLine, s.config
	s.mu.Unlock()
	if handle != nil && handle(w, r) {
		return
	}
	mac := r.URL.Query().Get("mac")
	switch r.URL.Path {
	case "/loader/amd64/snponly.efi":
		http.ServeContent(w, r, "snponly.efi", time.Time{}, bytes.NewReader(loaderBytes))
	case "/boot.ipxe":
		fmt.Fprintf(w, "#!ipxe\nchain %s/machine.ipxe?mac=${net0/mac}&uuid=${uuid}&arch=${buildarch}\n", s.base)
	case "/machine.ipxe":
		hw, _ := net.ParseMAC(mac)
		line := fmt.Sprintf("initrd=initramfs talos.platform=metal slab_nomerge pti=on talos.config=%s/config?mac=%s ip=[%s]::[fe80::1]:64:node:enx%s:off:: talos.events.sink=%s",
			s.base, mac, address(hw, 0), strings.ReplaceAll(mac, ":", ""), s.sink)
		if kernelLine != nil {
			line = kernelLine(line)
		}
		fmt.Fprintf(w, "#!ipxe\nimgfree\nkernel --name kernel %s/image/kernel %s || goto fail\ninitrd --name initramfs /image/initramfs || goto fail\nboot || goto fail\n:fail\necho cannot boot\nsleep 5\nexit 1\n",
			s.base, line)
	case "/image/kernel":
		w.Write(kernelBytes)
	case "/image/initramfs":
		w.Write(initrdBytes)
	case "/config":
		w.Write(config(mac))
	default:
		http.NotFound(w, r)
	}
}

type eventSink struct {
	eventsapi.UnimplementedEventSinkServiceServer
	site *site
}

func (e *eventSink) Publish(_ context.Context, r *eventsapi.EventRequest) (*eventsapi.EventResponse, error) {
	payload, err := r.Data.UnmarshalNew()
	if err != nil {
		return nil, err
	}
	e.site.mu.Lock()
	defer e.site.mu.Unlock()
	e.site.ids[r.Id]++
	if e.site.ids[r.Id] == 1 {
		e.site.events = append(e.site.events, payload)
	}
	return &eventsapi.EventResponse{}, nil
}

func (s *site) messages() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return append([]string(nil), s.seen...)
}

func (s *site) asked() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return append([]string(nil), s.requests...)
}
