package racktest

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/insomniacslk/dhcp/dhcpv6"
	machineapi "github.com/siderolabs/talos/pkg/machinery/api/machine"
	"github.com/siderolabs/talos/pkg/machinery/config/machine"
	"google.golang.org/grpc/codes"
)

var testMACs = []net.HardwareAddr{{0x52, 0x54, 0, 0, 0, 1}}

var testUUID = uuid.MustParse("00112233-4455-6677-8899-aabbccddeeff")

// newMachine is machine 1 of a site: cp-1 at the endpoint's address.
func newMachine(t *testing.T, s *site, change func(*MachineOptions)) *Machine {
	t.Helper()
	o := MachineOptions{
		Name: "cp-1", MACs: testMACs, UUID: testUUID, Serial: "SN-1",
		Net: s.net, Fabric: NewFabric(), Peers: &Registry{}, Timing: FastTiming(),
	}
	if change != nil {
		change(&o)
	}
	m, err := NewMachine(o)
	if err != nil {
		t.Fatal(err)
	}
	if s.config == nil {
		text := machineConfig(t, newBundle(), machine.TypeControlPlane, staticPatch(m.MAC(), address(m.MAC(), 0), "cp-1"))
		s.config = func(string) []byte { return text }
	}
	t.Cleanup(m.PowerOff)
	s.start()
	return m
}

// bootstrapWhenUp plays the operator for a machine.
func bootstrapWhenUp(ctx context.Context, t *testing.T, m *Machine) {
	c := dialMachine(t, m)
	for ctx.Err() == nil && bootstrapCode(ctx, c) != codes.OK {
		sleep(ctx, 5*time.Millisecond)
	}
}

func powerOn(t *testing.T, m *Machine) (Outcome, error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	t.Cleanup(cancel)
	return m.PowerOn(ctx)
}

func mustBoot(t *testing.T, m *Machine) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	if m.disk.Etcd() == "" {
		go func() { defer close(done); bootstrapWhenUp(ctx, t, m) }()
	} else {
		close(done)
	}
	outcome, err := powerOn(t, m)
	cancel()
	<-done
	if err != nil || outcome != Ready {
		var report strings.Builder
		m.timeline.print(&report, m.timeline.Entries()[0].Time)
		t.Fatalf("outcome %q, %v\n%s", outcome, err, report.String())
	}
}

func TestBootBothWays(t *testing.T) {
	for _, tc := range []struct {
		name     string
		change   func(*MachineOptions)
		messages []string // in order, retransmissions removed
		requests []string
	}{
		{
			name:     "PXE",
			messages: []string{"pxe/SOLICIT", "pxe/REQUEST", endpointHost + "/RELEASE", "ipxe/SOLICIT", "ipxe/REQUEST"},
			requests: []string{
				"GET /boot.ipxe iPXE/1.0.0+", "GET /machine.ipxe iPXE/1.0.0+", "GET /image/kernel iPXE/1.0.0+",
				"GET /image/initramfs iPXE/1.0.0+", "GET /config Go-http-client/1.1",
			},
		},
		{
			name:   "HTTP with the firmware's own stack and iPXE 2.0",
			change: func(o *MachineOptions) { o.Firmware, o.OwnStack, o.IPXE = HTTP, true, IPXE20 },
			messages: []string{
				"stack/SOLICIT", "stack/REQUEST", "http/SOLICIT", "http/REQUEST", "fd00:1ab::1:11/RELEASE", endpointHost + "/RELEASE",
				"ipxe/SOLICIT", "ipxe/REQUEST",
			},
			requests: []string{
				"HEAD /loader/amd64/snponly.efi UefiHttpBoot/1.0", "GET /loader/amd64/snponly.efi UefiHttpBoot/1.0",
				"GET /loader/amd64/autoexec.ipxe iPXE/2.0.0+",
				"GET /boot.ipxe iPXE/2.0.0+", "GET /machine.ipxe iPXE/2.0.0+", "GET /image/kernel iPXE/2.0.0+",
				"GET /image/initramfs iPXE/2.0.0+", "GET /config Go-http-client/1.1",
			},
		},
	} {
		t.Run(tc.name, func(t *testing.T) {
			s := newSite(t)
			var steps []Step
			m := newMachine(t, s, func(o *MachineOptions) {
				if tc.change != nil {
					tc.change(o)
				}
				o.OnStep = func(s Step) error { steps = append(steps, s); return nil }
			})
			mustBoot(t, m)
			if got := slices.Compact(s.messages()); !slices.Equal(got, tc.messages) {
				t.Errorf("messages\n got %v\nwant %v", got, tc.messages)
			}
			if got := s.asked(); !slices.Equal(got, tc.requests) {
				t.Errorf("requests\n got %q\nwant %q", got, tc.requests)
			}
			if got := slices.Compact(slices.Sorted(slices.Values(steps))); !slices.Equal(got, Steps()) {
				t.Errorf("steps %v", got)
			}
			l := m.Loaded()
			if l.Loader != hash(loaderBytes) || l.Kernel != hash(kernelBytes) || l.Initramfs != hash(initrdBytes) {
				t.Errorf("loaded %+v", l)
			}
			if !m.Disk().Installed() || m.Accepted() != 1 {
				t.Errorf("installed %t, accepted %d", m.Disk().Installed(), m.Accepted())
			}
			if broken := m.Unfetched(); tc.change == nil && len(broken) > 0 {
				t.Errorf("not fetched: %v", broken)
			}

			// Netbooted again it is sent to its disk, which has all it needs.
			m.PowerOff()
			s.with(func() { s.plan = func(string) string { return "disk" } })
			mustBoot(t, m)
			if m.Accepted() != 1 {
				t.Errorf("bootstrapped again: %d", m.Accepted())
			}
		})
	}
}

// What the machine told the event sink, in the order of the recordings.
func TestEvents(t *testing.T) {
	s := newSite(t)
	s.config = func(string) []byte { return nil }
	m := newMachine(t, s, nil)
	text := machineConfig(t, newBundle(), machine.TypeControlPlane, staticPatch(m.MAC(), address(m.MAC(), 0), "cp-1"),
		"apiVersion: v1alpha1\nkind: EventSinkConfig\nendpoint: '"+s.sink+"'\n")
	tries := 0
	s.with(func() {
		s.config = func(string) []byte {
			if tries++; tries < 3 {
				return []byte("machine:\n  nosuchfield: x\n")
			}
			return text
		}
	})
	mustBoot(t, m)
	var got []string
	eventually(t, "the last event", func() bool {
		s.mu.Lock()
		defer s.mu.Unlock()
		got = nil
		for _, e := range s.events {
			switch e := e.(type) {
			case *machineapi.MachineStatusEvent:
				got = append(got, fmt.Sprintf("%s/%t", e.Stage, e.Status.Ready))
			case *machineapi.SequenceEvent:
				got = append(got, e.Sequence+" "+e.Action.String())
			case *machineapi.ConfigLoadErrorEvent:
				if !strings.HasPrefix(e.Error, "failed to load config via platform metal: ") {
					t.Errorf("error event %q", e.Error)
				}
				got = append(got, "config error")
			}
		}
		return got[len(got)-1] == "RUNNING/true"
	})
	want := []string{
		"initialize START", "BOOTING/false", "config error", "initialize STOP", "install START",
		"INSTALLING/true", "install STOP", "REBOOTING/true",
		"initialize START", "BOOTING/false", "initialize STOP", "install START", "install STOP", "boot START",
		"BOOTING/false", "boot STOP", "RUNNING/true",
	}
	got = slices.Compact(got)
	got = slices.DeleteFunc(got, func(e string) bool { return e == "RUNNING/false" || e == "BOOTING/true" })
	if !slices.Equal(slices.Compact(got), want) {
		t.Errorf("events\n got %q\nwant %q", got, want)
	}
}

// Every row of netboot.md 3.1 and 3.2 that a client can see.
func TestFirmwareRefusals(t *testing.T) {
	set := func(o dhcpv6.Option) func(*dhcpv6.Message) { return func(m *dhcpv6.Message) { m.Options.Update(o) } }
	drop := func(code dhcpv6.OptionCode) func(*dhcpv6.Message) {
		return func(m *dhcpv6.Message) { m.Options.Del(code) }
	}
	class := func(enterprise uint32, text string) dhcpv6.Option {
		return &dhcpv6.OptVendorClass{EnterpriseNumber: enterprise, Data: [][]byte{[]byte(text)}}
	}
	for _, tc := range []struct {
		name     string
		firmware Firmware
		in       dhcpv6.MessageType // 0: both
		change   func(*dhcpv6.Message)
		code     string // of the Fault; "" with boots false: no boot, no error
		boots    bool
	}{
		{name: "59 only in Advertise", firmware: PXE, in: dhcpv6.MessageTypeReply, change: drop(dhcpv6.OptionBootfileURL), code: "PXE-E99"},
		{name: "59 only in Reply", firmware: PXE, in: dhcpv6.MessageTypeAdvertise, change: drop(dhcpv6.OptionBootfileURL)},
		{name: "16 PXEClient", firmware: PXE, change: set(class(343, "PXEClient")), code: "PXE-E16"},
		{name: "option 60", firmware: PXE, change: set(&dhcpv6.OptionGeneric{OptionCode: dhcpv6.OptionBootfileParam, OptionData: []byte("\x00\x03a=1")}), code: "PXE-E53"},
		{name: "http URL", firmware: PXE, change: set(dhcpv6.OptBootFileURL("http://[::1]/x.efi")), code: "PXE-E53"},
		{name: "no such file", firmware: PXE, change: func(m *dhcpv6.Message) {
			m.Options.Update(dhcpv6.OptBootFileURL(strings.Replace(m.Options.BootFileURL(), "snponly", "nothing", 1)))
		}, code: "PXE-E"},
		{name: "59 only in Advertise", firmware: HTTP, in: dhcpv6.MessageTypeReply, change: drop(dhcpv6.OptionBootfileURL), boots: true},
		{name: "59 only in Reply", firmware: HTTP, in: dhcpv6.MessageTypeAdvertise, change: drop(dhcpv6.OptionBootfileURL)},
		{name: "no 16", firmware: HTTP, change: drop(dhcpv6.OptionVendorClass), code: "-"},
		{name: "16 only in Advertise", firmware: HTTP, in: dhcpv6.MessageTypeReply, change: drop(dhcpv6.OptionVendorClass), boots: true},
		{name: "16 with enterprise 0", firmware: HTTP, change: set(class(0, "HTTPClient")), boots: true},
		{name: "16 with more text", firmware: HTTP, change: set(class(343, "HTTPClient:Arch:00016")), boots: true},
		{name: "tftp URL", firmware: HTTP, change: set(dhcpv6.OptBootFileURL("tftp://[::1]/x.efi")), code: "PXE-E53"},
	} {
		t.Run(string(tc.firmware)+" "+tc.name, func(t *testing.T) {
			s := newSite(t)
			s.change = func(kind dhcpv6.MessageType, client string, m *dhcpv6.Message) {
				if (client == "pxe" || client == "http") && (tc.in == 0 || tc.in == kind) {
					tc.change(m)
				}
			}
			m := newMachine(t, s, func(o *MachineOptions) {
				o.Firmware, o.Timing.Tries = tc.firmware, 1
				o.OnStep = func(s Step) error {
					if s == StepIPXESolicit {
						return errors.New("far enough")
					}
					return nil
				}
			})
			outcome, err := powerOn(t, m)
			var broken *Fault
			switch {
			case tc.boots:
				if !errors.Is(err, ErrPowerCut) {
					t.Errorf("did not boot: %q, %v", outcome, err)
				}
			case tc.code == "":
				if outcome != NoBoot || err != nil {
					t.Errorf("%q, %v; want to fall through", outcome, err)
				}
			case !errors.As(err, &broken) || !strings.HasPrefix(broken.Code, strings.Trim(tc.code, "-")):
				t.Errorf("%q, %v; want %s", outcome, err, tc.code)
			}
		})
	}
}

func TestHTTPLoaderRefusals(t *testing.T) {
	for name, handle := range map[string]http.HandlerFunc{
		"HEAD 405":          func(w http.ResponseWriter, r *http.Request) { w.WriteHeader(http.StatusMethodNotAllowed) },
		"302":               func(w http.ResponseWriter, r *http.Request) { http.Redirect(w, r, "/x.efi", http.StatusFound) },
		"404":               http.NotFound,
		"no Content-Length": func(w http.ResponseWriter, r *http.Request) { w.(http.Flusher).Flush() },
		"shorter than HEAD said": func(w http.ResponseWriter, r *http.Request) {
			if r.Method == http.MethodHead {
				w.Header().Set("Content-Length", "100")
			} else {
				w.Write(make([]byte, 99))
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			s := newSite(t)
			s.handle = func(w http.ResponseWriter, r *http.Request) bool { handle(w, r); return true }
			m := newMachine(t, s, func(o *MachineOptions) { o.Firmware = HTTP })
			_, err := powerOn(t, m)
			var broken *Fault
			if !errors.As(err, &broken) {
				t.Errorf("%v, want a Fault", err)
			}
		})
	}
}

func TestIdentities(t *testing.T) {
	m := newMachine(t, newSite(t), nil)
	if got := hex.EncodeToString(m.firmwareDUID().ToBytes()); got != "0004"+"33221100"+"5544"+"7766"+"8899aabbccddeeff" {
		t.Errorf("firmware DUID is %s", got)
	}
	second := net.HardwareAddr{0x52, 0x54, 0, 0, 9, 9}
	without := newMachine(t, newSite(t), func(o *MachineOptions) { o.UUID = uuid.Nil; o.MACs = append(o.MACs, second) })
	llt, ok := without.firmwareDUID().(*dhcpv6.DUIDLLT)
	if !ok || llt.LinkLayerAddr.String() != "52:54:00:00:00:01" || without.firmwareDUID() != without.firmwareDUID() {
		t.Errorf("firmware DUID without a UUID is %v", without.firmwareDUID())
	}
	if got := linkLocal(net.HardwareAddr{0x52, 0x54, 0, 0x12, 0x34, 0x56}); got != netip.MustParseAddr("fe80::5054:ff:fe12:3456") {
		t.Errorf("link-local address is %s", got)
	}
}

func TestKernelLineRefusals(t *testing.T) {
	for name, change := range map[string]func(string) string{
		"no platform":     func(l string) string { return strings.Replace(l, "talos.platform=metal", "", 1) },
		"no slab_nomerge": func(l string) string { return strings.Replace(l, "slab_nomerge", "", 1) },
		"pti=off":         func(l string) string { return strings.Replace(l, "pti=on", "pti=off", 1) },
		"no initrd=":      func(l string) string { return strings.Replace(l, "initrd=initramfs", "", 1) },
		"too long":        func(l string) string { return l + strings.Repeat(" x=y", 500) },
	} {
		t.Run(name, func(t *testing.T) {
			s := newSite(t)
			s.kernelLine = change
			m := newMachine(t, s, nil)
			outcome, err := powerOn(t, m)
			var broken *Fault
			// The script catches a failing `boot` and exits.
			if name == "no initrd=" && outcome == NoBoot && err == nil {
				return
			}
			if !errors.As(err, &broken) {
				t.Errorf("%q, %v, want a Fault", outcome, err)
			}
		})
	}
}

// Talos waits for ever when nothing gives it an address.
func TestNoAddressHangs(t *testing.T) {
	for name, change := range map[string]func(string) string{
		"no ip=":            func(l string) string { return strings.Replace(l, "ip=", "xx=", 1) },
		"a device by guess": func(l string) string { return strings.Replace(l, "enx525400000001", "eth0", 1) },
		"no device":         func(l string) string { return strings.Replace(l, "enx525400000001", "", 1) },
		"a bad ip=":         func(l string) string { return l + " ip=eth0:dhcp6:x:y" },
	} {
		t.Run(name, func(t *testing.T) {
			s := newSite(t)
			s.kernelLine = change
			m := newMachine(t, s, nil)
			done := make(chan error, 1)
			ctx, cancel := context.WithCancel(context.Background())
			go func() { _, err := m.PowerOn(ctx); done <- err }()
			eventually(t, "the wait for the network", func() bool { return strings.Contains(m.timeline.last(), "waiting for network") })
			if slices.ContainsFunc(s.asked(), func(r string) bool { return strings.Contains(r, "/config") }) {
				t.Error("it fetched a config without an address")
			}
			cancel()
			if err := receive(t, "the end of PowerOn", done); !errors.Is(err, context.Canceled) {
				t.Errorf("PowerOn: %v", err)
			}
		})
	}
}

func TestConfigStatuses(t *testing.T) {
	s := newSite(t)
	tries := 0
	s.handle = func(w http.ResponseWriter, r *http.Request) bool {
		if r.URL.Path != "/config" {
			return false
		}
		if _, hinted := r.Header["Connection"]; !hinted && !r.Close {
			t.Error("Talos keeps no connection")
		}
		switch tries++; tries {
		case 1:
			w.WriteHeader(http.StatusServiceUnavailable)
		case 2:
			w.WriteHeader(http.StatusNoContent)
		case 3: // empty 200
		case 4:
			http.Error(w, "no", http.StatusForbidden)
		case 5:
			io500(w)
		case 6:
			http.Redirect(w, r, "/moved", http.StatusFound)
		default:
			return false
		}
		return true
	}
	m := newMachine(t, s, nil)
	config := s.config
	s.with(func() {
		old := s.handle
		s.handle = func(w http.ResponseWriter, r *http.Request) bool {
			if r.URL.Path == "/moved" {
				w.Write(config(""))
				return true
			}
			return old(w, r)
		}
	})
	mustBoot(t, m)
	if tries != 6 {
		t.Errorf("%d tries", tries)
	}
}

func io500(w http.ResponseWriter) {
	w.Header().Set("Content-Length", "1000")
	w.Write([]byte("machine:")) // and breaks off
}

// A config without a machine section is maintenance mode; STATE wins over the
// URL; a wipe order is carried out once and sends the machine round again.
func TestConfigSources(t *testing.T) {
	s := newSite(t)
	m := newMachine(t, s, nil)
	complete := s.config
	serve := func(config func(string) []byte) { s.with(func() { s.config = config }) }
	serve(func(string) []byte {
		return []byte("apiVersion: v1alpha1\nkind: HostnameConfig\nauto: off\nhostname: x\n")
	})
	if outcome, err := powerOn(t, m); outcome != Maintenance || err != nil {
		t.Fatalf("%q, %v", outcome, err)
	}
	m.PowerOff()
	serve(complete)
	mustBoot(t, m)
	m.PowerOff()

	serve(func(string) []byte { t.Error("an installed machine fetched a config"); return nil })
	mustBoot(t, m)
	m.PowerOff()

	serve(complete)
	wiped := false
	s.with(func() {
		s.kernelLine = func(l string) string {
			if wiped {
				return l
			}
			wiped = true
			return l + " talos.experimental.wipe=system"
		}
	})
	before := m.Disk().Etcd()
	m.disk.setEtcd("", 0) // so that mustBoot plays the operator
	mustBoot(t, m)
	if after := m.Disk().Etcd(); after == before || after == "" {
		t.Errorf("etcd %q before, %q after the wipe", before, after)
	}
}

// DHCPv6 of Talos itself, from early documents and again from the config.
func TestTalosDHCPv6(t *testing.T) {
	s := newSite(t)
	docs := "apiVersion: v1alpha1\nkind: LinkConfig\nname: enx525400000001\n---\napiVersion: v1alpha1\nkind: DHCPv6Config\nname: enx525400000001\n"
	early := zstdBase64(t, docs)
	s.kernelLine = func(l string) string {
		var kept []string
		for _, w := range strings.Fields(l) {
			if !strings.HasPrefix(w, "ip=") {
				kept = append(kept, w)
			}
		}
		return strings.Join(append(kept, "talos.config.early="+early), " ")
	}
	s.config = func(string) []byte {
		return machineConfig(t, newBundle(), machine.TypeControlPlane, docs)
	}
	m := newMachine(t, s, nil)
	mustBoot(t, m)
	solicits := 0
	for _, msg := range s.messages() {
		if msg == "os/REQUEST" {
			t.Error("rapid commit was answered and a Request followed")
		}
		if msg == "os/SOLICIT" {
			solicits++
		}
	}
	if solicits != 2 { // one run of Talos before the kexec, one after
		t.Errorf("%d Solicits of Talos, want 2", solicits)
	}
}

// Nobody answers at first, and nothing is lost by it.
func TestServerComesLate(t *testing.T) {
	s := newSite(t)
	lost := 6
	s.change = func(kind dhcpv6.MessageType, client string, m *dhcpv6.Message) {
		if lost > 0 {
			lost--
			m.TransactionID = dhcpv6.TransactionID{} // nobody's
		}
	}
	down := 3
	s.handle = func(w http.ResponseWriter, r *http.Request) bool {
		if strings.HasPrefix(r.URL.Path, "/image/") && down > 0 {
			down--
			w.WriteHeader(http.StatusServiceUnavailable)
			return true
		}
		return false
	}
	s.net.Faults = Faults{Loss: 0.1, Duplicate: 0.2, Reorder: 0.2, Seed: 7}
	m := newMachine(t, s, func(o *MachineOptions) { o.Timing.Retransmit = 30 * time.Millisecond })
	// An `exit 1` of the script on a blank disk ends a boot; a person, or the
	// rack, switches on again.
	for {
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan struct{})
		go func() { defer close(done); bootstrapWhenUp(ctx, t, m) }()
		outcome, err := powerOn(t, m)
		cancel()
		<-done
		if err != nil {
			t.Fatal(err)
		}
		if outcome == Ready {
			break
		}
	}
}

// Another machine already has the address: firmware declines it and says so.
func TestDuplicateAddress(t *testing.T) {
	s := newSite(t)
	m := newMachine(t, s, nil)
	other := m.opts.Fabric.NewHost("other")
	other.Claim(address(m.MAC(), 0))
	_, err := powerOn(t, m)
	var broken *Fault
	if !errors.As(err, &broken) || broken.Code != "PXE-E07" {
		t.Errorf("%v", err)
	}
	if !slices.Contains(s.messages(), endpointHost+"/DECLINE") {
		t.Error("no Decline")
	}
}

// The power is cut before each step in turn; the machine comes up all the same
// and is bootstrapped once.
func TestPowerCutAtEachStep(t *testing.T) {
	for _, step := range Steps() {
		t.Run(step.String(), func(t *testing.T) {
			s := newSite(t)
			cut := false
			m := newMachine(t, s, func(o *MachineOptions) {
				o.OnStep = func(at Step) error {
					if at == step && !cut {
						cut = true
						return errors.New("somebody pulled the plug")
					}
					return nil
				}
			})
			ctx, cancel := context.WithCancel(t.Context())
			done := make(chan struct{})
			go func() { defer close(done); bootstrapWhenUp(ctx, t, m) }()
			defer func() { cancel(); <-done }()
			if _, err := powerOn(t, m); !errors.Is(err, ErrPowerCut) {
				t.Fatalf("first boot: %v", err)
			}
			if outcome, err := powerOn(t, m); outcome != Ready {
				t.Fatalf("second boot: %q, %v", outcome, err)
			}
			if m.Accepted() != 1 {
				t.Errorf("accepted %d", m.Accepted())
			}
		})
	}
}
