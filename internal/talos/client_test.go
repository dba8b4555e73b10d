package talos

import (
	"bufio"
	"context"
	"crypto/tls"
	stdx509 "crypto/x509"
	"errors"
	"io"
	"net"
	"net/http"
	"net/netip"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	cosiv1alpha1 "github.com/cosi-project/runtime/api/v1alpha1"
	"github.com/cosi-project/runtime/pkg/resource"
	"github.com/cosi-project/runtime/pkg/state"
	"github.com/cosi-project/runtime/pkg/state/impl/inmem"
	"github.com/cosi-project/runtime/pkg/state/impl/namespaced"
	"github.com/cosi-project/runtime/pkg/state/protobuf/server"
	"github.com/rs/zerolog"
	"github.com/siderolabs/crypto/x509"
	machineapi "github.com/siderolabs/talos/pkg/machinery/api/machine"
	"github.com/siderolabs/talos/pkg/machinery/config"
	"github.com/siderolabs/talos/pkg/machinery/config/generate/secrets"
	configres "github.com/siderolabs/talos/pkg/machinery/resources/config"
	"github.com/siderolabs/talos/pkg/machinery/resources/runtime"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/emptypb"

	"github.com/provisiond/provisiond/internal/inventory"
)

// fakeMachine is apid with as much of the API as the client uses.
type fakeMachine struct {
	machineapi.UnimplementedMachineServiceServer
	services   []*machineapi.ServiceInfo
	bootstrap  func(context.Context) error
	bootstraps atomic.Int32

	reset   func(context.Context, *machineapi.ResetRequest) error
	members func(context.Context) (*machineapi.EtcdMemberListResponse, error)
	remove  func(context.Context, uint64) error
	apply   func(context.Context, *machineapi.ApplyConfigurationRequest) (*machineapi.ApplyConfiguration, error)
	upgrade func(context.Context, *machineapi.UpgradeRequest) error
	calls   atomic.Int32 // of these five
	config  config.Provider
	about   []resource.Resource // what it also says of itself
}

func (f *fakeMachine) Version(context.Context, *emptypb.Empty) (*machineapi.VersionResponse, error) {
	return &machineapi.VersionResponse{Messages: []*machineapi.Version{{Version: &machineapi.VersionInfo{Tag: "v1.13.6"}}}}, nil
}

func (f *fakeMachine) ServiceList(context.Context, *emptypb.Empty) (*machineapi.ServiceListResponse, error) {
	return &machineapi.ServiceListResponse{Messages: []*machineapi.ServiceList{{Services: f.services}}}, nil
}

func (f *fakeMachine) Bootstrap(ctx context.Context, _ *machineapi.BootstrapRequest) (*machineapi.BootstrapResponse, error) {
	f.bootstraps.Add(1)
	if err := f.bootstrap(ctx); err != nil {
		return nil, err
	}
	return &machineapi.BootstrapResponse{}, nil
}

// serverConfig is apid's: a certificate of the bundle's OS CA for ::1, and
// clients of the same CA.
func serverConfig(t *testing.T, b *secrets.Bundle) *tls.Config {
	t.Helper()
	ca, err := x509.NewCertificateAuthorityFromCertificateAndKey(b.Certs.OS)
	if err != nil {
		t.Fatal(err)
	}
	pair, err := x509.NewKeyPair(ca,
		x509.IPAddresses([]net.IP{net.IPv6loopback}),
		x509.NotAfter(time.Now().Add(time.Hour)), x509.NotBefore(time.Now().Add(-time.Hour)),
		x509.KeyUsage(stdx509.KeyUsageDigitalSignature),
		x509.ExtKeyUsage([]stdx509.ExtKeyUsage{stdx509.ExtKeyUsageServerAuth}))
	if err != nil {
		t.Fatal(err)
	}
	crt := x509.NewCertificateAndKeyFromKeyPair(pair)
	cert, err := tls.X509KeyPair(crt.Crt, crt.Key)
	if err != nil {
		t.Fatal(err)
	}
	clients := stdx509.NewCertPool()
	clients.AppendCertsFromPEM(b.Certs.OS.Crt)
	return &tls.Config{Certificates: []tls.Certificate{cert}, ClientCAs: clients, ClientAuth: tls.RequireAndVerifyClientCert}
}

// start serves the fake on [::1] and returns a client that talks to it.
func (f *fakeMachine) start(t *testing.T, b *secrets.Bundle, ms *runtime.MachineStatus) *Client {
	t.Helper()
	return f.serve(t, serverConfig(t, b), ms)
}

func (f *fakeMachine) serve(t *testing.T, conf *tls.Config, ms *runtime.MachineStatus) *Client {
	t.Helper()
	st := state.WrapCore(namespaced.NewState(inmem.Build))
	if ms != nil {
		if err := st.Create(t.Context(), ms); err != nil {
			t.Fatal(err)
		}
	}
	if f.config != nil {
		if err := st.Create(t.Context(), configres.NewMachineConfig(f.config)); err != nil {
			t.Fatal(err)
		}
	}
	for _, r := range f.about {
		if err := st.Create(t.Context(), r); err != nil {
			t.Fatal(err)
		}
	}
	srv := grpc.NewServer(grpc.Creds(credentials.NewTLS(conf)))
	machineapi.RegisterMachineServiceServer(srv, f)
	cosiv1alpha1.RegisterStateServer(srv, server.NewState(st))
	l := listen(t)
	done := make(chan error, 1)
	go func() { done <- srv.Serve(l) }()
	t.Cleanup(func() {
		srv.Stop()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	c := NewClient(ClientOptions{Timeout: 20 * time.Second}, zerolog.Nop())
	c.port = uint16(l.Addr().(*net.TCPAddr).Port)
	return c
}

func listen(t testing.TB) net.Listener {
	t.Helper()
	l, err := net.Listen("tcp", "[::1]:0")
	if err != nil {
		t.Fatal(err)
	}
	return l
}

var loopback = netip.IPv6Loopback()

func machineStatus(stage runtime.MachineStage, ready bool, unmet ...runtime.UnmetCondition) *runtime.MachineStatus {
	ms := runtime.NewMachineStatus()
	ms.TypedSpec().Stage = stage
	ms.TypedSpec().Status = runtime.MachineStatusStatus{Ready: ready, UnmetConditions: unmet}
	return ms
}

func service(id, state string, healthy bool) *machineapi.ServiceInfo {
	return &machineapi.ServiceInfo{Id: id, State: state, Health: &machineapi.ServiceHealth{Healthy: healthy}}
}

func testBundle(t *testing.T) *secrets.Bundle {
	t.Helper()
	b, err := loadBundle(testSecrets(t))
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func TestStatus(t *testing.T) {
	in := testInput(t)
	for _, tc := range []struct {
		name     string
		ms       *runtime.MachineStatus
		services []*machineapi.ServiceInfo
		want     Status
	}{
		{"ready", machineStatus(runtime.MachineStageRunning, true), []*machineapi.ServiceInfo{service("kubelet", "Running", true), service("etcd", "Running", true)},
			Status{Stage: inventory.StageRunning, Ready: true, Etcd: EtcdRunning}},
		{"waits for bootstrap", machineStatus(runtime.MachineStageBooting, false, runtime.UnmetCondition{Name: "services", Reason: "etcd"}, runtime.UnmetCondition{Name: "time", Reason: "not in sync"}),
			[]*machineapi.ServiceInfo{service("cri", "Running", true), service("etcd", "Preparing", false)},
			Status{Stage: inventory.StageBooting, Unmet: []string{"services: etcd", "time: not in sync"}, Etcd: EtcdWaiting}},
		{"etcd sick", machineStatus(runtime.MachineStageShuttingDown, true), []*machineapi.ServiceInfo{service("etcd", "Running", false)},
			Status{Stage: inventory.StageShuttingDown, Ready: true, Etcd: EtcdRunning}},
		{"worker", machineStatus(runtime.MachineStageRunning, true), []*machineapi.ServiceInfo{service("kubelet", "Running", true)},
			Status{Stage: inventory.StageRunning, Ready: true, Etcd: EtcdAbsent}},
		{"no status yet", nil, nil, Status{Stage: inventory.StageUnknown, Etcd: EtcdAbsent}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			c := (&fakeMachine{services: tc.services}).start(t, testBundle(t), tc.ms)
			got, err := c.Status(t.Context(), in.Cluster, in.Secrets, loopback)
			if err != nil {
				t.Fatal(err)
			}
			if got.Stage != tc.want.Stage || got.Ready != tc.want.Ready || got.Etcd != tc.want.Etcd || !slices.Equal(got.Unmet, tc.want.Unmet) || got.Version != "v1.13.6" {
				t.Errorf("got %+v, want %+v", got, tc.want)
			}
			if len(got.Services) != len(tc.services) || !slices.IsSortedFunc(got.Services, func(a, b Service) int { return strings.Compare(a.ID, b.ID) }) {
				t.Errorf("services %+v", got.Services)
			}
		})
	}
}

func TestBootstrapOutcomes(t *testing.T) {
	in := testInput(t)
	for _, tc := range []struct {
		name string
		err  error
		want Outcome
	}{
		{"OK", nil, Accepted},
		{"data directory not empty", status.Error(codes.AlreadyExists, "etcd data directory is not empty"), AlreadyBootstrapped},
		{"time", status.Error(codes.FailedPrecondition, "time is not in sync yet"), NotYet},
		{"worker", status.Error(codes.Unimplemented, "bootstrap is only available on control plane nodes"), WrongMachine},
		{"role", status.Error(codes.PermissionDenied, "not authorized"), Denied},
		{"unauthenticated", status.Error(codes.Unauthenticated, "x"), Denied},
		{"unavailable", status.Error(codes.Unavailable, "x"), Unknown},
		{"deadline", status.Error(codes.DeadlineExceeded, "x"), Unknown},
		{"canceled", status.Error(codes.Canceled, "x"), Unknown},
		{"internal", status.Error(codes.Internal, "x"), Unknown},
		{"unknown", errors.New("x"), Unknown},
	} {
		t.Run(tc.name, func(t *testing.T) {
			f := &fakeMachine{bootstrap: func(context.Context) error { return tc.err }}
			got, err := f.start(t, testBundle(t), nil).Bootstrap(t.Context(), in.Cluster, in.Secrets, loopback)
			if got != tc.want || (err == nil) != (tc.want == Accepted) {
				t.Errorf("got %s, %v", got, err)
			}
			if f.bootstraps.Load() != 1 {
				t.Errorf("called %d times", f.bootstraps.Load())
			}
		})
	}
}

// A call whose answer is lost must not be made again by anything below us.
func TestBootstrapIsSentOnce(t *testing.T) {
	in := testInput(t)
	f := &fakeMachine{}
	ctx, giveUp := context.WithCancel(t.Context())
	f.bootstrap = func(ctx context.Context) error { giveUp(); <-ctx.Done(); return ctx.Err() }
	got, err := f.start(t, testBundle(t), nil).Bootstrap(ctx, in.Cluster, in.Secrets, loopback)
	if got != Unknown || err == nil || f.bootstraps.Load() != 1 {
		t.Errorf("got %s, %v after %d calls", got, err, f.bootstraps.Load())
	}
}

// The answer is lost with the connection: between us and the machine stands
// one that forwards until the call has arrived, and then cuts both sides.
func TestBootstrapConnectionCut(t *testing.T) {
	in := testInput(t)
	f := &fakeMachine{}
	c := f.start(t, testBundle(t), nil)
	back := netip.AddrPortFrom(loopback, c.port).String()
	l := listen(t)
	defer l.Close()
	var conns atomic.Int32
	cut := make(chan struct{})
	f.bootstrap = func(context.Context) error { close(cut); return nil }
	go func() {
		for {
			front, err := l.Accept()
			if err != nil {
				return
			}
			conns.Add(1)
			to, err := net.Dial("tcp", back)
			if err != nil {
				return
			}
			go func() { _, _ = io.Copy(to, front) }()
			go func() {
				<-cut // before any answer to the call can pass
				front.Close()
				to.Close()
			}()
			go func() {
				buf := make([]byte, 4096)
				for {
					n, err := to.Read(buf)
					select {
					case <-cut:
						return
					default:
					}
					if _, werr := front.Write(buf[:n]); err != nil || werr != nil {
						return
					}
				}
			}()
		}
	}()
	c.port = uint16(l.Addr().(*net.TCPAddr).Port)
	got, err := c.Bootstrap(t.Context(), in.Cluster, in.Secrets, loopback)
	if f.bootstraps.Load() != 1 || conns.Load() != 1 {
		t.Errorf("%d calls on %d connections", f.bootstraps.Load(), conns.Load())
	}
	if got != Unknown || err == nil {
		t.Errorf("got %s, %v", got, err)
	}
}

func TestForeignCA(t *testing.T) {
	in := testInput(t)
	other, err := secrets.NewTalosCA(time.Now().Add(-time.Hour))
	if err != nil {
		t.Fatal(err)
	}
	b := *testBundle(t)
	certs := *b.Certs
	certs.OS = &x509.PEMEncodedCertificateAndKey{Crt: other.CrtPEM, Key: other.KeyPEM}
	b.Certs = &certs
	f := &fakeMachine{bootstrap: func(context.Context) error { return nil }}
	c := f.start(t, &b, nil)
	_, err = c.Status(t.Context(), in.Cluster, in.Secrets, loopback)
	if !errors.Is(err, ErrForeignCA) || !errors.Is(err, ErrNotReached) {
		t.Errorf("status: %v", err)
	}
	got, err := c.Bootstrap(t.Context(), in.Cluster, in.Secrets, loopback)
	if got != Denied || !errors.Is(err, ErrForeignCA) || f.bootstraps.Load() != 0 {
		t.Errorf("bootstrap: %s, %v", got, err)
	}
}

// The machine has our CA's certificate but trusts other clients.
func TestOurCertificateRefused(t *testing.T) {
	in := testInput(t)
	f := &fakeMachine{bootstrap: func(context.Context) error { return nil }}
	conf := serverConfig(t, testBundle(t))
	conf.ClientCAs = stdx509.NewCertPool()
	c := f.serve(t, conf, nil)
	got, err := c.Bootstrap(t.Context(), in.Cluster, in.Secrets, loopback)
	if got != Denied || !errors.Is(err, ErrNotReached) || f.bootstraps.Load() != 0 {
		t.Errorf("got %s, %v", got, err)
	}
}

func TestNobodyAnswers(t *testing.T) {
	in := testInput(t)
	l := listen(t)
	port := uint16(l.Addr().(*net.TCPAddr).Port)
	l.Close()
	c := NewClient(ClientOptions{}, zerolog.Nop())
	c.port = port
	if _, err := c.Status(t.Context(), in.Cluster, in.Secrets, loopback); !errors.Is(err, ErrNotReached) || errors.Is(err, ErrForeignCA) {
		t.Errorf("status: %v", err)
	}
	if got, err := c.Bootstrap(t.Context(), in.Cluster, in.Secrets, loopback); got != NotYet || !errors.Is(err, ErrNotReached) {
		t.Errorf("bootstrap: %s, %v", got, err)
	}
	bad := &inventory.Secrets{Cluster: "prod", Bundle: []byte("x: y")}
	if got, err := c.Bootstrap(t.Context(), in.Cluster, bad, loopback); got != NotYet || err == nil {
		t.Errorf("broken secrets: %s, %v", got, err)
	}
}

// A machine that takes the connection and says nothing must not hold us.
func TestSilentMachine(t *testing.T) {
	in := testInput(t)
	l := listen(t)
	defer l.Close()
	c := NewClient(ClientOptions{Timeout: 50 * time.Millisecond}, zerolog.Nop())
	c.port = uint16(l.Addr().(*net.TCPAddr).Port)
	if got, err := c.Bootstrap(t.Context(), in.Cluster, in.Secrets, loopback); got != NotYet || !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("got %s, %v", got, err)
	}
}

// So does one that shakes hands and then says nothing: no call was made.
func TestSilentAfterHandshake(t *testing.T) {
	in := testInput(t)
	c := NewClient(ClientOptions{Timeout: 300 * time.Millisecond}, zerolog.Nop())
	l := tls.NewListener(listen(t), serverConfig(t, testBundle(t)))
	defer l.Close()
	accepted := make(chan net.Conn, 1)
	go func() {
		if conn, err := l.Accept(); err == nil {
			_ = conn.(*tls.Conn).Handshake()
			accepted <- conn
		}
	}()
	c.port = uint16(l.Addr().(*net.TCPAddr).Port)
	if got, err := c.Bootstrap(t.Context(), in.Cluster, in.Secrets, loopback); got != NotYet || !errors.Is(err, ErrNotReached) {
		t.Errorf("got %s, %v", got, err)
	}
	(<-accepted).Close()
}

// proxy is an HTTP proxy that knows CONNECT, or answers with a status.
func proxy(t *testing.T, answer int, asked *atomic.Value) string {
	t.Helper()
	l := listen(t)
	t.Cleanup(func() { l.Close() })
	go func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer conn.Close()
				r := bufio.NewReader(conn)
				req, err := http.ReadRequest(r)
				if err != nil {
					return
				}
				asked.Store(req.Method + " " + req.RequestURI + " " + req.Host)
				if answer != http.StatusOK {
					_, _ = io.WriteString(conn, "HTTP/1.1 502 Bad Gateway\r\nContent-Length: 0\r\n\r\n")
					return
				}
				to, err := net.Dial("tcp", req.RequestURI)
				if err != nil {
					return
				}
				defer to.Close()
				_, _ = io.WriteString(conn, "HTTP/1.1 200 Connection established\r\n\r\n")
				go func() { _, _ = io.Copy(to, r); to.Close() }()
				_, _ = io.Copy(conn, to)
			}()
		}
	}()
	return l.Addr().String()
}

func TestProxy(t *testing.T) {
	in := testInput(t)
	var asked atomic.Value
	c := (&fakeMachine{}).start(t, testBundle(t), nil)
	target := netip.AddrPortFrom(loopback, c.port).String()
	c.proxy = proxy(t, http.StatusOK, &asked)
	if _, err := c.Status(t.Context(), in.Cluster, in.Secrets, loopback); err != nil {
		t.Fatal(err)
	}
	if got, want := asked.Load(), "CONNECT "+target+" "+target; got != want {
		t.Errorf("the proxy was asked %q, want %q", got, want)
	}
	c.proxy = proxy(t, http.StatusBadGateway, &asked)
	if _, err := c.Status(t.Context(), in.Cluster, in.Secrets, loopback); !errors.Is(err, ErrNotReached) || !strings.Contains(err.Error(), "502") {
		t.Errorf("got %v", err)
	}
	silent := listen(t)
	defer silent.Close()
	c.proxy, c.timeout = silent.Addr().String(), 50*time.Millisecond
	if _, err := c.Status(t.Context(), in.Cluster, in.Secrets, loopback); !errors.Is(err, ErrNotReached) {
		t.Errorf("got %v", err)
	}
}

// One certificate serves for hours; other secrets get another.
func TestLoginIsKept(t *testing.T) {
	c := NewClient(ClientOptions{}, zerolog.Nop())
	s := testSecrets(t)
	a, err := c.login(s)
	if err != nil {
		t.Fatal(err)
	}
	if b, _ := c.login(s); b != a {
		t.Error("signed a second certificate")
	}
	a.expire = time.Now().Add(-time.Second)
	if b, _ := c.login(s); b == a {
		t.Error("kept an old certificate")
	}
}
