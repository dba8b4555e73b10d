package talos

import (
	"context"
	"crypto/tls"
	stdx509 "crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/rs/zerolog"
	"github.com/siderolabs/crypto/x509"
	machineapi "github.com/siderolabs/talos/pkg/machinery/api/machine"
	"github.com/siderolabs/talos/pkg/machinery/nethelpers"
	"github.com/siderolabs/talos/pkg/machinery/resources/hardware"
	"github.com/siderolabs/talos/pkg/machinery/resources/network"
	"github.com/siderolabs/talos/pkg/machinery/resources/runtime"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/provisiond/provisiond/internal/inventory"
)

// selfSigned is TLS as apid has it in maintenance mode, and the fingerprint that its
// console prints, by the library that it is printed with.
func selfSigned(t *testing.T) (*tls.Config, string) {
	t.Helper()
	ca, err := x509.NewSelfSignedCertificateAuthority()
	if err != nil {
		t.Fatal(err)
	}
	pair, err := x509.NewKeyPair(ca, x509.NotAfter(time.Now().Add(time.Hour)), x509.KeyUsage(stdx509.KeyUsageDigitalSignature))
	if err != nil {
		t.Fatal(err)
	}
	print, err := x509.SPKIFingerprintFromDER(pair.Certificate.Certificate[0])
	if err != nil {
		t.Fatal(err)
	}
	return &tls.Config{Certificates: []tls.Certificate{*pair.Certificate}}, print.String()
}

func nicStatus(name string, kind string, permanent, now net.HardwareAddr) *network.LinkStatus {
	l := network.NewLinkStatus(network.NamespaceName, name)
	l.TypedSpec().Type, l.TypedSpec().Kind = nethelpers.LinkEther, kind
	l.TypedSpec().PermanentAddr, l.TypedSpec().HardwareAddr = nethelpers.HardwareAddr(permanent), nethelpers.HardwareAddr(now)
	return l
}

func systemInformation(uuid, serial string) *hardware.SystemInformation {
	s := hardware.NewSystemInformation(hardware.SystemInformationID)
	s.TypedSpec().UUID, s.TypedSpec().SerialNumber = uuid, serial
	return s
}

func securityState(on bool) *runtime.SecurityState {
	s := runtime.NewSecurityStateSpec(runtime.NamespaceName)
	s.TypedSpec().SecureBoot = on
	return s
}

func mac(last byte) net.HardwareAddr { return net.HardwareAddr{0x52, 0x54, 0, 0, 0, last} }

func TestMaintenance(t *testing.T) {
	conf, print := selfSigned(t)
	f := &fakeMachine{}
	f.about = append(f.about,
		systemInformation("4C4C4544-0042-3510-8058-B7C04F4A4E32", " SN-1\t"), securityState(true),
		nicStatus("eth0", "", mac(1), mac(9)), // somebody gave it another MAC
		nicStatus("eth1", "", nil, mac(2)),
		nicStatus("bond0", "bond", nil, mac(3)), nicStatus("eth2", "", net.HardwareAddr{1, 2, 3, 4, 5, 6, 7, 8}, nil))
	c := f.serve(t, conf, machineStatus(runtime.MachineStageMaintenance, true))
	m, err := c.Maintenance(t.Context(), loopback)
	if err != nil {
		t.Fatal(err)
	}
	slices.Sort(m.MACs)
	if m.Fingerprint != print || m.UUID != "4c4c4544-0042-3510-8058-b7c04f4a4e32" || m.Serial != "SN-1" || m.SecureBoot != inventory.On || !slices.Equal(m.MACs, []inventory.MAC{"52:54:00:00:00:01", "52:54:00:00:00:02"}) {
		t.Errorf("%+v, and the console prints %s", m, print)
	}
}

// TestMaintenanceOnALink asks at an address with a zone, as all link-local ones have.
func TestMaintenanceOnALink(t *testing.T) {
	conf, print := selfSigned(t)
	f := &fakeMachine{}
	f.about = append(f.about, nicStatus("eth0", "", mac(1), mac(1)))
	c := f.serve(t, conf, machineStatus(runtime.MachineStageMaintenance, true))
	if m, err := c.Maintenance(t.Context(), loopback.WithZone("lo")); err != nil || m.Fingerprint != print {
		t.Errorf("%+v, %v", m, err)
	}
}

// TestRefusalIsCleaned: what a machine says of a config is kept, so it is short, and has no
// values of the config in it.
func TestRefusalIsCleaned(t *testing.T) {
	conf, print := selfSigned(t)
	f := &fakeMachine{}
	c := f.serve(t, conf, machineStatus(runtime.MachineStageMaintenance, true))
	said := status.Error(codes.InvalidArgument, "unknown keys found during decoding:\nmachine:\n    secret: s3cr3t\n"+strings.Repeat("x", 1<<20))
	f.apply = func(context.Context, *machineapi.ApplyConfigurationRequest) (*machineapi.ApplyConfiguration, error) {
		return nil, said
	}
	_, outcome, err := c.ApplyMaintenance(t.Context(), loopback, print, []byte("machine: {}"))
	if outcome != Refused || err == nil || len(err.Error()) > 4096 || strings.ContainsAny(err.Error(), "\n") || strings.Contains(err.Error(), "s3cr3t") {
		t.Errorf("%s: %d bytes: %.300v", outcome, len(err.Error()), err)
	}
}

// TestMaintenanceBadInput: what a stranger says is believed within bounds.
func TestMaintenanceBadInput(t *testing.T) {
	conf, _ := selfSigned(t)
	f := &fakeMachine{}
	f.about = append(f.about, systemInformation("not a uuid", strings.Repeat("S", 1000)))
	for i := range 200 {
		f.about = append(f.about, nicStatus(fmt.Sprintf("eth%d", i), "", net.HardwareAddr{2, 0, 0, 0, 0, byte(i)}, nil))
	}
	c := f.serve(t, conf, machineStatus(runtime.MachineStageMaintenance, true))
	m, err := c.Maintenance(t.Context(), loopback)
	if err != nil || m.UUID != "" || m.Serial != "" || m.SecureBoot != "" || len(m.MACs) != maxNICs {
		t.Errorf("%+v, %v", m, err)
	}

	f = &fakeMachine{}
	for i := range 40 {
		l := nicStatus(fmt.Sprintf("eth%d", i), "", mac(byte(i)), nil)
		l.TypedSpec().Product = strings.Repeat("x", maxSaid/32)
		f.about = append(f.about, l)
	}
	c = f.serve(t, conf, machineStatus(runtime.MachineStageMaintenance, true))
	if m, err := c.Maintenance(t.Context(), loopback); err == nil {
		t.Errorf("%d NICs of more bytes than are read", len(m.MACs))
	}
}

func TestNotInMaintenance(t *testing.T) {
	conf, _ := selfSigned(t)
	for name, c := range map[string]*Client{
		"it asks for a certificate": (&fakeMachine{}).start(t, testBundle(t), machineStatus(runtime.MachineStageRunning, true)),
		"it is in another stage":    (&fakeMachine{}).serve(t, conf, machineStatus(runtime.MachineStageBooting, false)),
		"it has no stage yet":       (&fakeMachine{}).serve(t, conf, nil),
	} {
		if _, err := c.Maintenance(t.Context(), loopback); !errors.Is(err, ErrNotInMaintenance) {
			t.Errorf("%s: %v", name, err)
		}
	}
	silent := NewClient(ClientOptions{Timeout: time.Second}, zerolog.Nop())
	l := listen(t)
	silent.port = uint16(l.Addr().(*net.TCPAddr).Port)
	_ = l.Close()
	if _, err := silent.Maintenance(t.Context(), loopback); !errors.Is(err, ErrNotReached) || errors.Is(err, ErrNotInMaintenance) {
		t.Errorf("nobody answers: %v", err)
	}
}

// TestApplyMaintenance: the config goes to who has the fingerprint, once, and to nobody
// else.
func TestApplyMaintenance(t *testing.T) {
	conf, print := selfSigned(t)
	_, other := selfSigned(t)
	for name, c := range map[string]struct {
		fingerprint string
		answer      error
		outcome     Outcome
		calls       int32
	}{
		"it is the one":          {print, nil, Accepted, 1},
		"it is another":          {other, nil, Denied, 0},
		"none was seen":          {"", nil, Denied, 0},
		"it refuses the config":  {print, status.Error(codes.InvalidArgument, "no such disk"), Refused, 1},
		"it has one by now":      {print, status.Error(codes.PermissionDenied, "not authorized"), Denied, 1},
		"another is under way":   {print, status.Error(codes.FailedPrecondition, "already in progress"), NotYet, 1},
		"its answer is not told": {print, status.Error(codes.Unavailable, "EOF"), Unknown, 1},
	} {
		t.Run(name, func(t *testing.T) {
			f := &fakeMachine{apply: func(_ context.Context, req *machineapi.ApplyConfigurationRequest) (*machineapi.ApplyConfiguration, error) {
				if string(req.GetData()) != "config" || req.GetMode() != machineapi.ApplyConfigurationRequest_AUTO || req.GetDryRun() {
					t.Errorf("it was given %v", req)
				}
				return &machineapi.ApplyConfiguration{ModeDetails: "done"}, c.answer
			}}
			client := f.serve(t, conf, nil)
			said, outcome, err := client.ApplyMaintenance(t.Context(), loopback, c.fingerprint, []byte("config"))
			if outcome != c.outcome || f.calls.Load() != c.calls || (err == nil) != (c.outcome == Accepted) || c.outcome == Accepted && said != "done" {
				t.Errorf("%q, %s, %v, %d calls", said, outcome, err, f.calls.Load())
			}
		})
	}
}

func TestLimitedConn(t *testing.T) {
	near, far := net.Pipe()
	done := make(chan struct{})
	go func() {
		defer close(done)
		_, _ = near.Write(make([]byte, 100)) // it is not read to its end
	}()
	got, err := io.ReadAll(&limitedConn{far, 64})
	_ = far.Close()
	<-done
	if len(got) != 64 || err == nil {
		t.Errorf("%d bytes, %v", len(got), err)
	}
}
