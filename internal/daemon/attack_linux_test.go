package daemon

import (
	"encoding/binary"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/provisiond/provisiond/internal/inventory"
)

// segment is a rack's network of its own: a bridge that the daemon is on, two machines
// and somebody who should not be there, each in a network namespace.
type segment struct {
	t    *testing.T
	name string
	lab  *lab
}

const (
	segmentServer = "2001:db8:1::2"
	evilMAC       = "52:54:00:66:66:66"
	evilAddress   = "2001:db8:1::666"
)

func newSegment(t *testing.T) *segment {
	t.Helper()
	if os.Getuid() != 0 {
		if os.Getenv("CI") != "" {
			t.Fatal("CI runs as root")
		}
		t.Skip("LEFT OUT: network namespaces take root")
	}
	s := &segment{t: t, name: fmt.Sprintf("pvd%d", os.Getpid()), lab: newLab(t)}
	for _, host := range []string{"srv", "cp", "w", "evil"} {
		s.run("ip", "netns", "add", s.ns(host))
		t.Cleanup(func() { _ = exec.Command("ip", "netns", "del", s.ns(host)).Run() })
		// No duplicate address detection: an address is there at once.
		s.in(host, "sysctl", "-qw", "net.ipv6.conf.all.accept_dad=0", "net.ipv6.conf.default.accept_dad=0")
		s.in(host, "ip", "link", "set", "lo", "up")
	}
	s.in("srv", "ip", "link", "add", "rack0", "type", "bridge", "mcast_snooping", "0")
	s.in("srv", "ip", "link", "set", "rack0", "up")
	s.in("srv", "ip", "addr", "add", segmentServer+"/64", "dev", "rack0")
	for host, nic := range map[string][2]string{"cp": {"52:54:00:00:00:01", "2001:db8:1::100"}, "w": {"52:54:00:00:00:04", "2001:db8:1::103"}, "evil": {evilMAC, evilAddress}} {
		s.in("srv", "ip", "link", "add", "to-"+host, "type", "veth", "peer", "name", "nic0", "netns", s.ns(host))
		s.in("srv", "ip", "link", "set", "to-"+host, "master", "rack0", "up")
		s.in(host, "ip", "link", "set", "nic0", "address", nic[0], "up")
		s.in(host, "ip", "addr", "add", nic[1]+"/64", "dev", "nic0")
	}
	text, err := os.ReadFile(s.lab.file())
	check(t, err)
	replaced := strings.NewReplacer("address: ::1\n", "address: "+segmentServer+"\ninterfaces: [rack0]\n",
		"{name: rack1,", "{name: rack1, interface: rack0,").Replace(string(text)) +
		"  - {name: rack2, prefix: \"2001:db8:2::/64\", machines: \"2001:db8:2::100-2001:db8:2::1ff\", relays: [\"2001:db8:1::fe\"]}\n"
	check(t, os.WriteFile(s.lab.file(), []byte(replaced), 0o600))
	s.lab.cfg, err = ReadConfig(s.lab.file())
	check(t, err)
	return s
}

func (s *segment) ns(host string) string { return s.name + host }

func (s *segment) run(name string, args ...string) string {
	s.t.Helper()
	out, err := exec.Command(name, args...).CombinedOutput()
	if err != nil {
		s.t.Fatalf("%s %v: %v: %s", name, args, err, out)
	}
	return string(out)
}

func (s *segment) in(host string, args ...string) string {
	s.t.Helper()
	return s.run("ip", append([]string{"netns", "exec", s.ns(host)}, args...)...)
}

// serve runs the daemon on the segment until the test ends.
func (s *segment) serve() {
	s.t.Helper()
	p := s.lab.spawn(s.t, "ip", "netns", "exec", s.ns("srv"))
	deadline := time.Now().Add(within)
	for !strings.Contains(p.log.String(), `"message":"ready"`) {
		if time.Now().After(deadline) {
			s.t.Fatal("the daemon does not start")
		}
		time.Sleep(10 * time.Millisecond)
	}
}

// get asks the daemon from a host with curl, and returns the status and the body.
func (s *segment) get(host, url string, args ...string) (status, body string) {
	s.t.Helper()
	out := s.in(host, append([]string{"curl", "-gsk", "--max-time", "20", "-w", "\n%{http_code}", url}, args...)...)
	i := strings.LastIndex(out, "\n")
	return out[i+1:], out[:i]
}

// root asks the API as root does, and fails for an error.
func (s *segment) root(path string) string {
	s.t.Helper()
	return s.run("curl", "-gsf", "--unix-socket", filepath.Join(s.lab.dir, "sock"), "http://provisiond/api/v1"+path)
}

// TestAttacksOnTheSegment is somebody on the machines' own segment who knows all that
// can be read there: MACs, addresses, and a boot script with its token.
func TestAttacksOnTheSegment(t *testing.T) {
	s := newSegment(t)
	s.serve()
	web := "http://" + netip.AddrPortFrom(netip.MustParseAddr(segmentServer), s.lab.cfg.HTTPPort).String()
	script := web + "/boot/52:54:00:00:00:01/boot.ipxe?arch=x86_64"

	// Before the machine asks, nobody is given its script.
	for _, host := range []string{"evil", "w"} {
		if _, body := s.get(host, script); strings.Contains(body, "/config/") || !strings.Contains(body, "is no address of cp-1") {
			t.Errorf("%s is given the script of cp-1:\n%s", host, body)
		}
	}
	// Nor one who takes the address of the machine while that is off, by hand or as a
	// lease that he asks for in its name.
	s.in("cp", "ip", "link", "set", "nic0", "down")
	s.in("evil", "ip", "addr", "add", "2001:db8:1::100/64", "dev", "nic0")
	if _, body := s.get("evil", script, "--interface", "2001:db8:1::100"); strings.Contains(body, "/config/") || !strings.Contains(body, "which is no NIC of cp-1") {
		t.Errorf("who took the address of cp-1 is given its script:\n%s", body)
	}
	s.in("evil", "ip", "addr", "del", "2001:db8:1::100/64", "dev", "nic0")
	s.in("srv", "ip", "-6", "neigh", "flush", "dev", "rack0")
	s.in("cp", "ip", "link", "set", "nic0", "up")
	s.in("cp", "ip", "addr", "replace", "2001:db8:1::100/64", "dev", "nic0")
	_, body := s.get("cp", script)
	found := regexp.MustCompile(`talos\.config=(https://\S+)`).FindStringSubmatch(body)
	if found == nil {
		t.Fatalf("cp-1 is given no script:\n%s", body)
	}
	config := found[1]
	token := config[strings.LastIndex(config, "/")+1:]

	refused := func(what, host, url string, args ...string) {
		t.Helper()
		status, body := s.get(host, url, args...)
		if status == "200" || strings.Contains(body, "machine:") || strings.Contains(body, "cluster:") {
			t.Errorf("%s: %s %.200s", what, status, body)
		}
	}
	refused("a stolen token", "evil", config)
	refused("a worker that asks for a control plane's config", "w", config)
	refused("a stolen token in its own name", "w", strings.ReplaceAll(config, "52:54:00:00:00:01", "52:54:00:00:00:04"))
	refused("from the host itself", "srv", config)
	refused("a guessed token", "cp", strings.TrimSuffix(config, token)+"AAAAAAAAAAAAAAAAAAAAAA")
	refused("unencrypted", "cp", web+"/config/52:54:00:00:00:01/"+token)
	refused("in the name of another host", "evil", config, "-H", "X-Forwarded-For: 2001:db8:1::100", "-H", "Forwarded: for=\"[2001:db8:1::100]\"")
	// An address of the machine's MAC counts on its own segment only.
	s.in("evil", "ip", "addr", "add", "2001:db8:2::5054:ff:fe00:1/64", "dev", "nic0")
	s.in("srv", "ip", "route", "add", "2001:db8:2::/64", "dev", "rack0")
	refused("with the machine's interface id in another prefix", "evil", config, "--interface", "2001:db8:2::5054:ff:fe00:1")

	for _, path := range []string{"/%2e%2e/%2e%2e/etc/passwd", "/loader/..%2f..%2f..%2fetc/passwd", "/loader/amd64/%252e%252e%252fsnponly.efi", "/image/..%2f/../etc/passwd/kernel", "//etc/passwd", "/loader/amd64/snponly.efi%00.txt", "/config/52:54:00:00:00:01/..%2f..%2f" + token} {
		if status, body := s.get("evil", web+path, "--path-as-is"); status == "200" || strings.Contains(body, "root:") {
			t.Errorf("%s: %s %.100s", path, status, body)
		}
	}

	if alarm := s.root("/machines/cp-1"); !strings.Contains(alarm, `"alarm":"`) || !strings.Contains(alarm, "showed the token of boot 1") {
		t.Errorf("no alarm: %s", alarm)
	}
	if status, body := s.get("cp", config); status != "200" || !strings.Contains(body, "machine:") {
		t.Errorf("the machine itself: %s %.200s", status, body)
	}
	trail := s.root("/audit?limit=1000")
	for _, want := range []string{"2001:db8:1::666 is no address of cp-1", "2001:db8:1::103 is no address of cp-1", "delivered over https only", "token of boot 1, from its address"} {
		if !strings.Contains(trail, want) {
			t.Errorf("the audit trail has no %q", want)
		}
	}
	if strings.Contains(trail, token) {
		t.Error("the audit trail has the token")
	}
}

// TestSpoofedDHCPv6: who claims to be another machine, or to be a relay that heard it,
// gets neither its address nor a URL.
func TestSpoofedDHCPv6(t *testing.T) {
	s := newSegment(t)
	s.serve()
	option := func(code uint16, data ...byte) []byte {
		return append(binary.BigEndian.AppendUint16(binary.BigEndian.AppendUint16(nil, code), uint16(len(data))), data...)
	}
	cp := net.HardwareAddr{0x52, 0x54, 0, 0, 0, 1}
	// UEFI PXE: DUID-LL of the control plane, IA_NA, options wanted, architecture.
	solicit := slices.Concat([]byte{1, 0xaa, 0xbb, 0xcc}, option(1, append([]byte{0, 3, 0, 1}, cp...)...), option(3, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0), option(6, 0, 59), option(8, 0, 0), option(61, 0, 7),
		option(16, append([]byte{0, 0, 1, 0x57, 0, 32}, "PXEClient:Arch:00007:UNDI:003016"...)...))
	relayed := func(link string) []byte {
		l, p := netip.MustParseAddr(link).As16(), netip.MustParseAddr("fe80::5054:ff:fe00:1").As16()
		return slices.Concat([]byte{12, 0}, l[:], p[:], option(79, append([]byte{0, 1}, cp...)...), option(9, solicit...))
	}
	loader := []byte("tftp://")
	stable := netip.MustParseAddr("2001:db8:1::100").As16()
	for name, c := range map[string]struct {
		packet []byte
		to     string
		port   uint16 // that it is sent from
	}{
		"the DUID of another machine":            {solicit, "[ff02::1:2%nic0]", 546},
		"a relay of a segment that names others": {relayed("2001:db8:2::1"), "[ff02::1:2%nic0]", 547},
	} {
		t.Run(name, func(t *testing.T) {
			answer := s.exchange("evil", netip.MustParseAddrPort(fmt.Sprintf("%s:%d", c.to, s.lab.cfg.DHCPv6Port)), c.port, c.packet)
			if strings.Contains(string(answer), string(loader)) || strings.Contains(string(answer), string(stable[:])) {
				t.Errorf("it is answered %x", answer)
			}
		})
	}
	// The machine itself is answered.
	if answer := s.exchange("cp", netip.MustParseAddrPort(fmt.Sprintf("[ff02::1:2%%nic0]:%d", s.lab.cfg.DHCPv6Port)), 546, solicit); !strings.Contains(string(answer), string(loader)) || !strings.Contains(string(answer), string(stable[:])) {
		t.Errorf("the machine is answered %x", answer)
	}
	if status := s.root("/status"); !strings.Contains(status, `"unknown relay":1`) {
		t.Errorf("not counted: %s", status)
	}
	if v := s.root("/discovered"); !strings.Contains(v, evilMAC) {
		t.Errorf("who sent it is not discovered: %s", v)
	}
}

// exchange sends a packet from a host and returns what comes back, nil for nothing in
// a while: then something else is asked that has an answer, to know that it was read.
func (s *segment) exchange(host string, to netip.AddrPort, from uint16, packet []byte) []byte {
	s.t.Helper()
	type result struct {
		answer []byte
		err    error
	}
	done := make(chan result, 1)
	go func() {
		// This thread moves into the host's namespace and is thrown away with it.
		runtime.LockOSThread()
		answer, err := func() ([]byte, error) {
			ns, err := os.Open("/run/netns/" + s.ns(host))
			if err != nil {
				return nil, err
			}
			defer ns.Close()
			if err := unix.Setns(int(ns.Fd()), unix.CLONE_NEWNET); err != nil {
				return nil, err
			}
			nic, err := net.InterfaceByName("nic0")
			if err != nil {
				return nil, err
			}
			own, _ := inventory.ParseMAC(nic.HardwareAddr.String())
			conn, err := net.ListenUDP("udp6", net.UDPAddrFromAddrPort(netip.AddrPortFrom(own.LinkLocal().WithZone("nic0"), from)))
			if err != nil {
				return nil, err
			}
			defer conn.Close()
			if _, err := conn.WriteToUDPAddrPort(packet, to); err != nil {
				return nil, err
			}
			buf := make([]byte, 4096)
			if err := conn.SetReadDeadline(time.Now().Add(3 * time.Second)); err != nil {
				return nil, err
			}
			n, err := conn.Read(buf)
			if os.IsTimeout(err) {
				return nil, nil
			}
			return buf[:n], err
		}()
		done <- result{answer, err}
	}()
	r := <-done
	check(s.t, r.err)
	return r.answer
}
