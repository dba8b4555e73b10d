package dhcpv6

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"net"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/insomniacslk/dhcp/dhcpv6"
	"github.com/insomniacslk/dhcp/dhcpv6/nclient6"
	"github.com/rs/zerolog"

	"github.com/provisiond/provisiond/internal/boltstore"
	"github.com/provisiond/provisiond/internal/inventory"
)

// realClient is a DHCPv6 client that others wrote, in the client's namespace.
type realClient struct {
	program string // what must be installed
	files   map[string]string
	start   []string // runs in the foreground; %s is the folder of files
	release []string // empty: SIGTERM makes it release
	keeps   bool     // it keeps its lease when it ends
}

// applyAddress is what dhclient calls when something changes.
const applyAddress = `#!/bin/sh
case "$reason" in
BOUND6|RENEW6|REBIND6) ip -6 addr replace "$new_ip6_address/128" dev "$interface" ;;
EXPIRE6|RELEASE6|STOP6) ip -6 addr del "$old_ip6_address/128" dev "$interface" ;;
esac
exit 0
`

var realClients = map[string]realClient{
	"dhclient": {
		program: "dhclient",
		files:   map[string]string{"script": applyAddress, "conf": ""},
		start:   []string{"dhclient", "-6", "-d", "-v", "-cf", "%s/conf", "-sf", "%s/script", "-lf", "%s/leases", "-pf", "%s/pid", "nic0"},
		release: []string{"dhclient", "-6", "-r", "-v", "-cf", "%s/conf", "-sf", "%s/script", "-lf", "%s/leases", "-pf", "%s/pid", "nic0"},
	},
	"dhcpcd": {
		program: "dhcpcd",
		files:   map[string]string{"conf": "duid\nnoipv4\nnoipv6rs\nnohook resolv.conf, hostname, ntp.conf\ninterface nic0\nia_na 1\n"},
		start:   []string{"dhcpcd", "-6", "-B", "-d", "-f", "%s/conf", "nic0"},
		release: []string{"dhcpcd", "-6", "-k", "-f", "%s/conf", "nic0"},
	},
	"dhcp6c": {
		program: "dhcp6c",
		files:   map[string]string{"conf": "interface nic0 { send ia-na 1; request domain-name-servers; };\nid-assoc na 1 { };\n"},
		start:   []string{"dhcp6c", "-D", "-f", "-c", "%s/conf", "nic0"},
	},
	"networkd": {
		program: networkd,
		files: map[string]string{
			"network": "[Match]\nName=nic0\n[Network]\nDHCP=ipv6\nIPv6AcceptRA=no\n[DHCPv6]\nWithoutRA=solicit\n",
			// Without udev networkd waits for it for ever, unless /sys is read-only, as in
			// a container.
			"run": "set -e\nmkdir -p /run/systemd/network /run/systemd/netif/links /run/systemd/netif/leases /run/systemd/netif/lldp\n" +
				"chown -R systemd-network /run/systemd/netif\ncp $1/network /run/systemd/network/10-nic0.network\n" +
				"mount -o remount,bind,ro /sys\nexec " + networkd + "\n",
		},
		start: []string{"sh", "%s/run", "%s"},
		keeps: true,
	},
	"nclient6": {start: []string{"self"}}, // the library that Talos uses, see talosClient
}

const networkd = "/lib/systemd/systemd-networkd"

// topologies are how the client reaches the server: the number of relays.
var topologies = map[string]int{"direct": 0, "relay": 1, "two-relays": 2}

// TestRealClients has clients that others wrote get, renew and rebind their
// address, and give it back, directly and through ISC's relay.
func TestRealClients(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("network namespaces take root")
	}
	for _, c := range realClients {
		for _, program := range []string{c.program, "dhcrelay"} {
			if _, err := exec.LookPath(program); program != "" && err != nil {
				if os.Getenv("CI") != "" {
					t.Fatalf("%v: CI leaves out no client", err)
				}
				t.Skipf("%v: install the packages in .ci/packages", err)
			}
		}
	}
	var all sync.WaitGroup
	for name, c := range realClients {
		for way, relays := range topologies {
			all.Go(func() {
				t.Run(name+"/"+way, func(t *testing.T) {
					if inNamespace(t) {
						c.lifetime(t, relays)
					}
				})
			})
			if os.Getenv(namespaceMarker) != "" {
				all.Wait()
			}
		}
	}
	all.Wait()
}

// network makes the namespaces of a client and of relays, and starts the relays.
// The test's own namespace is the server's, which listens on rack0.
func network(t *testing.T, relays int) {
	t.Helper()
	for _, dir := range []string{"/run", "/var/lib/dhcpcd", "/var/lib/dhcpv6", "/var/lib/dhcp"} {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			t.Fatal(err)
		}
		if err := syscall.Mount("tmpfs", dir, "tmpfs", 0, ""); err != nil { // ours alone
			t.Fatalf("mounting %s: %v", dir, err)
		}
	}
	run := func(ns string, command string) {
		t.Helper()
		args := strings.Fields(command)
		if ns != "" {
			args = append([]string{"ip", "netns", "exec", ns}, args...)
		}
		if out, err := exec.CommandContext(t.Context(), args[0], args[1:]...).CombinedOutput(); err != nil {
			t.Fatalf("%v: %v\n%s", args, err, out)
		}
	}
	prepare := func(ns string) {
		for _, name := range []string{"default", "all"} { // addresses usable at once
			run(ns, "sysctl -qw net.ipv6.conf."+name+".accept_dad=0")
		}
		run(ns, "ip link set lo up")
	}
	prepare("")
	// From the client up: each link has a lower end and an upper one.
	names := []string{"client"}
	for i := range relays {
		names = append(names, fmt.Sprint("relay", i+1))
	}
	for _, ns := range names {
		run("", "ip netns add "+ns)
		prepare(ns)
	}
	upper := func(i int) (ns, dev string) {
		if i == relays {
			return "", "rack0"
		}
		return names[i+1], "down0"
	}
	for i, ns := range names {
		lower := "up0"
		if i == 0 {
			lower = "nic0"
		}
		above, dev := upper(i)
		run("", "ip link add "+lower+" type veth peer name "+dev)
		run("", "ip link set "+lower+" netns "+ns)
		if i == 0 {
			run(ns, "ip link set nic0 address "+string(installMAC))
		}
		if above != "" {
			run("", "ip link set "+dev+" netns "+above)
		}
		run(ns, "ip link set "+lower+" up")
		run(above, "ip link set "+dev+" up")
		link := "2001:db8:1::"
		if i > 0 {
			link = fmt.Sprintf("2001:db8:ff%d::", i)
			run(ns, "ip addr add "+link+"1/64 dev up0 nodad")
		}
		run(above, "ip addr add "+link+"fe/64 dev "+dev+" nodad")
	}
	for i := range relays {
		to := fmt.Sprintf("2001:db8:ff%d::fe", i+1)
		args := []string{"netns", "exec", names[i+1], "dhcrelay", "-6", "-d", "-I", "-pf", fmt.Sprintf("/run/relay%d.pid", i+1), "-l", "down0", "-u", to + "%up0"}
		background(t, fmt.Sprint("relay ", i+1), exec.Command("ip", args...))
	}
}

// background runs a command until the test ends, and keeps what it says for a
// failure.
func background(t *testing.T, what string, cmd *exec.Cmd) *exec.Cmd {
	t.Helper()
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := cmd.Start(); err != nil {
		t.Fatalf("%s: %v", what, err)
	}
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		_ = cmd.Wait() // it is killed
	}()
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		<-ended
		if t.Failed() {
			t.Logf("%s said:\n%s", what, out.String())
		}
	})
	return cmd
}

// answered counts a server's answers by the request, from its log.
type answered struct {
	mu    sync.Mutex
	count map[string]int
	lines bytes.Buffer
}

func (a *answered) Write(p []byte) (int, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	var line struct{ Request, Machine string }
	if json.Unmarshal(p, &line) == nil && line.Request != "" && line.Machine == "cp-1" {
		a.count[line.Request]++
	}
	return a.lines.Write(p)
}

func (a *answered) of(kind dhcpv6.MessageType) int {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.count[kind.String()]
}

// serveOn runs a server on the database in dir until stop is called.
func serveOn(t *testing.T, dir string, log *answered) (stop func()) {
	t.Helper()
	db, err := boltstore.Open(filepath.Join(dir, "db"), boltstore.Options{NoSync: true})
	if err != nil {
		t.Fatal(err)
	}
	subnet := testSubnets()[0]
	subnet.Preferred, subnet.Valid = 6*time.Second, 60*time.Second // T1 is 3 s, T2 4.8 s
	k, err := inventory.NewKeeper(t.Context(), db, inventory.KeeperConfig{Subnets: []inventory.Subnet{subnet}})
	if err != nil {
		t.Fatal(err)
	}
	if v, err := k.View(t.Context(), installMAC, ""); err != nil {
		t.Fatal(err)
	} else if v.Machine == nil {
		m := &inventory.Machine{Name: "cp-1", MACs: []inventory.MAC{installMAC}, Role: inventory.ControlPlane, Address: stableAddr}
		if _, err := k.PutMachine(t.Context(), m, 0); err != nil {
			t.Fatal(err)
		}
	}
	conn, err := Listen(t.Context(), ListenConfig{Interfaces: []string{"rack0"}, Port: serverPort})
	if err != nil {
		t.Fatal(err)
	}
	s := New(Config{ServerDUID: serverDUID, Boot: bootFiles{}}, k, NewKernelNeighbours(), zerolog.New(log))
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- s.Serve(ctx, conn) }()
	var once sync.Once
	stop = func() {
		once.Do(func() {
			cancel()
			if err := <-done; err != nil {
				t.Errorf("Serve returned %v", err)
			}
			_ = db.Close()
		})
	}
	t.Cleanup(stop)
	return stop
}

// hearRebind waits in the server's place until the client turns to all servers.
func hearRebind(t *testing.T) {
	t.Helper()
	conn, err := Listen(t.Context(), ListenConfig{Interfaces: []string{"rack0"}, Port: serverPort})
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if err := conn.SetReadDeadline(time.Now().Add(2 * time.Minute)); err != nil {
		t.Fatal(err)
	}
	for buf := make([]byte, maxMessage); ; {
		n, _, err := conn.ReadFrom(buf)
		if err != nil {
			t.Fatalf("no Rebind: %v", err)
		}
		if _, inner, err := unwrap(buf[:n]); err == nil && dhcpv6.MessageType(inner[0]) == dhcpv6.MessageTypeRebind {
			return
		}
	}
}

// until waits for a condition.
func until(t *testing.T, what string, log *answered, holds func() bool) {
	t.Helper()
	for end := time.Now().Add(2 * time.Minute); !holds(); time.Sleep(50 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("%s: not within two minutes; the server said:\n%s", what, log.lines.String())
		}
	}
	t.Log(what)
}

// lifetime is what a client goes through.
func (c realClient) lifetime(t *testing.T, relays int) {
	network(t, relays)
	dir := t.TempDir()
	for name, text := range c.files {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	inClient := func(args []string) *exec.Cmd {
		command := []string{"netns", "exec", "client"}
		for _, a := range args {
			command = append(command, strings.ReplaceAll(a, "%s", dir))
		}
		cmd := exec.Command("ip", command...)
		cmd.Env = append(os.Environ(), talosVariable+"=1")
		return cmd
	}
	has := func() bool {
		out, err := inClient([]string{"ip", "-6", "-o", "addr", "show", "dev", "nic0", "scope", "global"}).Output()
		return err == nil && strings.Contains(string(out), stableAddr.String()+"/")
	}
	start := c.start
	if start[0] == "self" {
		exe, err := os.Executable()
		if err != nil {
			t.Fatal(err)
		}
		start = []string{exe}
	}
	log := &answered{count: map[string]int{}}
	data := t.TempDir()
	stop := serveOn(t, data, log)
	client := background(t, "the client", inClient(start))
	until(t, "it has its address", log, has)
	until(t, "it renewed", log, func() bool { return log.of(dhcpv6.MessageTypeRenew) > 0 })
	// Another server process on the same database: its promise still holds.
	stop()
	hearRebind(t)
	log = &answered{count: map[string]int{}}
	serveOn(t, data, log)
	until(t, "its Rebind was answered by the next server", log, func() bool { return log.of(dhcpv6.MessageTypeRebind) > 0 })
	if !has() {
		t.Error("its address is gone")
	}
	if c.keeps {
		return
	}
	if c.release != nil {
		if out, err := inClient(c.release).CombinedOutput(); err != nil {
			t.Errorf("releasing: %v\n%s", err, out)
		}
	} else if err := client.Process.Signal(syscall.SIGTERM); err != nil {
		t.Error(err)
	}
	until(t, "it gave its address back", log, func() bool { return log.of(dhcpv6.MessageTypeRelease) > 0 && !has() })
}

// talosVariable makes this test binary be a client on nic0.
const talosVariable = "PROVISIOND_TEST_NCLIENT6"

// talosClient is nclient6, the client of Talos, kept going with Renew, Rebind and
// Release, which Talos itself does not send.
func talosClient() error {
	ifi, err := net.InterfaceByName("nic0")
	if err != nil {
		return err
	}
	c, err := nclient6.New("nic0", nclient6.WithTimeout(time.Second), nclient6.WithRetry(3))
	if err != nil {
		return err
	}
	ended := make(chan os.Signal, 1)
	signal.Notify(ended, syscall.SIGTERM)
	duid := &dhcpv6.DUIDLL{HWType: 1, LinkLayerAddr: ifi.HardwareAddr}
	held, err := c.RapidSolicit(context.Background(), dhcpv6.WithClientID(duid))
	for ; err != nil; held, err = c.RapidSolicit(context.Background(), dhcpv6.WithClientID(duid)) {
		fmt.Fprintln(os.Stderr, err)
	}
	addr := held.Options.OneIANA().Options.OneAddress().IPv6Addr.String() + "/128"
	if out, err := exec.Command("ip", "-6", "addr", "add", addr, "dev", "nic0").CombinedOutput(); err != nil {
		return fmt.Errorf("%w: %s", err, out)
	}
	say := func(kind dhcpv6.MessageType, server bool) (*dhcpv6.Message, error) {
		m, err := dhcpv6.NewMessage(dhcpv6.WithClientID(duid))
		if err != nil {
			return nil, err
		}
		m.MessageType = kind
		m.AddOption(held.Options.OneIANA())
		if server {
			m.AddOption(dhcpv6.OptServerID(held.Options.ServerID()))
		}
		return c.SendAndRead(context.Background(), nclient6.AllDHCPRelayAgentsAndServers, m, nclient6.IsMessageType(dhcpv6.MessageTypeReply))
	}
	for {
		select {
		case <-ended:
			if _, err := say(dhcpv6.MessageTypeRelease, true); err != nil {
				return err
			}
			return exec.Command("ip", "-6", "addr", "del", addr, "dev", "nic0").Run()
		case <-time.After(3 * time.Second):
		}
		reply, err := say(dhcpv6.MessageTypeRenew, true)
		if err != nil {
			reply, err = say(dhcpv6.MessageTypeRebind, false)
		}
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			continue
		}
		held = reply
	}
}

func TestMain(m *testing.M) {
	if job := os.Getenv(jobVariable); job != "" {
		if err := jobMain(job); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		return
	}
	if os.Getenv(talosVariable) != "" && os.Getenv(namespaceMarker) != "" && len(os.Args) == 1 {
		if err := talosClient(); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		return
	}
	os.Exit(m.Run())
}
