package cli

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"
	"github.com/rs/zerolog"

	"github.com/provisiond/provisiond/api"
	"github.com/provisiond/provisiond/internal/admin"
	"github.com/provisiond/provisiond/internal/audit"
	"github.com/provisiond/provisiond/internal/boltstore"
	"github.com/provisiond/provisiond/internal/ca"
	"github.com/provisiond/provisiond/internal/images"
	"github.com/provisiond/provisiond/internal/inventory"
	"github.com/provisiond/provisiond/internal/racktest"
	"github.com/provisiond/provisiond/internal/uki"
)

func TestMain(m *testing.M) {
	testscript.Main(m, map[string]func(){
		"provisiond": func() {
			os.Exit(Run(context.Background(), New("v0.0.0-test"), os.Args[1:], os.Stdin, os.Stdout, os.Stderr))
		},
	})
}

// talosStub stands in for what only Talos understands.
type talosStub struct{}

func (talosStub) Defaults() (string, string, []netip.Prefix, []netip.Prefix) {
	return "v1.13.6", "1.36.2", []netip.Prefix{netip.MustParsePrefix("fd00:10:244::/56")}, []netip.Prefix{netip.MustParsePrefix("fd00:10:96::/112")}
}

func (talosStub) NewSecrets(string) ([]byte, error) { return []byte("bundle"), nil }

func (talosStub) Import(b []byte) (admin.ImportedCluster, error) {
	if !bytes.Contains(b, []byte("secrets:")) {
		return admin.ImportedCluster{}, &inventory.FieldError{Field: "secrets", Problem: "neither a secrets bundle nor a machine config"}
	}
	return admin.ImportedCluster{Secrets: b, Endpoint: "https://[2001:db8::9]:6443"}, nil
}

func (talosStub) Check(_ context.Context, c *inventory.Cluster, _ []byte, _ *inventory.Machine) error {
	for i, p := range c.Patches {
		if strings.Contains(p, "bad") {
			return &inventory.FieldError{Field: fmt.Sprintf("cluster.patches[%d]", i), Problem: "unknown key bad"}
		}
	}
	return nil
}

func (talosStub) Preview(_ context.Context, _ *inventory.Cluster, m *inventory.Machine) ([]byte, error) {
	return fmt.Appendf(nil, "name: %s\n", m.Name), nil
}

func (talosStub) CheckPatches(patches []string) error {
	for i, p := range patches {
		if strings.Contains(p, "bad") {
			return &inventory.FieldError{Field: fmt.Sprintf("patches[%d]", i), Problem: "unknown key bad"}
		}
	}
	return nil
}

func (talosStub) CheckVersion(version string) error {
	if !strings.HasPrefix(version, "v1.13.") {
		return &inventory.FieldError{Field: "version", Problem: version + " is not supported"}
	}
	return nil
}

func (talosStub) Render(_ context.Context, v inventory.View, redact bool) ([]byte, error) {
	return fmt.Appendf(nil, "name: %s\nredacted: %v\n", v.Machine.Name, redact), nil
}

func (talosStub) Origins(_ context.Context, v inventory.View) ([]api.ConfigBlock, error) {
	first := 0
	return []api.ConfigBlock{{Text: "name: " + v.Machine.Name + "\n", Origin: "base"}, {Text: "redacted: true\nmtu: 9000\n", Origin: "machine", Patch: &first}}, nil
}

func (talosStub) LastServed(context.Context, string) ([]byte, string, time.Time, error) {
	return []byte("name: other\nredacted: true\n"), "abc", time.Unix(0, 0), nil
}

func (talosStub) Talosconfig(_ context.Context, cluster string) ([]byte, error) {
	return []byte("context: " + cluster + "\n"), nil
}

func (talosStub) Kubeconfig(context.Context, string) ([]byte, error) {
	return nil, errors.New("the CA is broken")
}

type blobs struct{ *images.Store }

func (b blobs) Has(_ context.Context, blob inventory.Blob) (bool, error) {
	return b.Store.Has(blob), nil
}

// daemon is a real API on a real store, on a unix socket and over TLS.
type daemon struct {
	server string
	https  string
	keeper *inventory.Keeper
	stop   func()
}

func startDaemon(t testing.TB, dir string) *daemon {
	t.Helper()
	check := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	store, err := boltstore.Open(filepath.Join(dir, "db"), boltstore.Options{NoSync: true})
	check(err)
	keeper, err := inventory.NewKeeper(context.Background(), store, inventory.KeeperConfig{Subnets: []inventory.Subnet{{
		Name: "rack", Prefix: netip.MustParsePrefix("2001:db8::/64"),
		Machines:  inventory.Range{First: netip.MustParseAddr("2001:db8::1000"), Last: netip.MustParseAddr("2001:db8::1fff")},
		Preferred: time.Hour, Valid: time.Hour,
	}}})
	check(err)
	files, err := images.Open(filepath.Join(dir, "images"))
	check(err)
	socket := filepath.Join(dir, "sock")
	ln, err := net.Listen("unix", socket)
	check(err)
	trail, err := audit.Open(dir, audit.Options{NoSync: true})
	check(err)
	secret, err := keeper.MetaOnce(context.Background(), "ca", ca.New)
	check(err)
	authority, err := ca.Load(secret)
	check(err)
	tcp, err := net.Listen("tcp", "[::1]:0")
	check(err)
	api := admin.New(admin.Config{Version: "v0.0.0-server", Running: runningStub{}, Seeds: seedStub{}, Trail: trail, CA: authority}, keeper, talosStub{}, guardStub{}, blobs{files}, zerolog.Nop())
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 2)
	go func() { done <- api.Serve(ctx, ln) }()
	go func() {
		done <- api.Serve(ctx, tls.NewListener(tcp, admin.TLS(authority.Server("localhost"), authority.Pool())))
	}()
	return &daemon{"unix://" + socket, "https://" + tcp.Addr().String(), keeper, func() {
		cancel()
		if err := errors.Join(<-done, <-done, trail.Close(), store.Close()); err != nil {
			t.Errorf("stopping: %v", err)
		}
	}}
}

// amd64UKI is what a factory would send.
func amd64UKI(t *testing.T) []byte {
	t.Helper()
	source := func(b []byte) uki.Source { return uki.Source{R: bytes.NewReader(b), Size: int64(len(b))} }
	stub := source(racktest.Stub(racktest.AMD64))
	f, err := uki.Parse(stub.R, stub.Size)
	if err != nil {
		t.Fatal(err)
	}
	template, err := uki.Assemble(f, source(racktest.Kernel(racktest.AMD64)), source(racktest.Initramfs()), "", "")
	if err != nil {
		t.Fatal(err)
	}
	m, err := template.Make("talos.platform=metal", nil)
	if err != nil {
		t.Fatal(err)
	}
	from := [][]byte{racktest.Stub(racktest.AMD64), racktest.Kernel(racktest.AMD64), racktest.Initramfs()}
	var out []byte
	for _, p := range m.Pieces() {
		if p.Bytes == nil {
			p.Bytes = from[p.File][p.Offset : p.Offset+p.Size]
		}
		out = append(out, p.Bytes...)
	}
	return out
}

// amd64Kernel and xz begin as the real files do.
func amd64Kernel() []byte {
	return append(append(bytes.Repeat([]byte{0}, 0x202), "HdrS"...), "a kernel"...)
}

func xz() []byte { return []byte("\xfd7zXZ\x00an initramfs") }

// keeperKey is where a script has its inventory.
type keeperKey struct{}

// TestScripts runs the commands of testdata/script as an operator would, each
// file against a provisiond of its own.
func TestScripts(t *testing.T) {
	factory := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch r.URL.Path {
		case "/image/" + plainSchematic + "/v1.13.6/kernel-amd64", "/image/abc/v1.13.6/kernel-amd64":
			_, _ = w.Write(amd64Kernel())
		case "/image/" + plainSchematic + "/v1.13.6/initramfs-amd64.xz", "/image/abc/v1.13.6/initramfs-amd64.xz":
			_, _ = w.Write(xz())
		case "/image/" + plainSchematic + "/v1.13.6/metal-amd64-uki.efi", "/image/" + plainSchematic + "/v9.9.9/metal-amd64-uki.efi", "/image/abc/v1.13.6/metal-amd64-uki.efi":
			_, _ = w.Write(amd64UKI(t))
		case "/image/" + plainSchematic + "/v9.9.9/kernel-amd64":
			_, _ = w.Write(amd64Kernel())
		case "/image/" + plainSchematic + "/v9.9.9/initramfs-amd64.xz":
			_, _ = w.Write(xz())
		default:
			http.NotFound(w, r)
		}
	}))
	t.Cleanup(factory.Close)
	testscript.Run(t, testscript.Params{
		Dir:                 "testdata/script",
		RequireExplicitExec: true,
		RequireUniqueNames:  true,
		Setup: func(env *testscript.Env) error {
			dir, err := os.MkdirTemp("", "cli") // short: the path of a socket has 107 bytes at most
			if err != nil {
				return err
			}
			d := startDaemon(t, dir)
			env.Defer(func() {
				d.stop()
				_ = os.RemoveAll(dir)
			})
			env.Setenv(ServerVariable, d.server)
			env.Setenv("HTTPS", d.https)
			env.Setenv("DATA", dir)
			env.Values[keeperKey{}] = d.keeper
			env.Setenv("FACTORY", factory.URL)
			return errors.Join(
				os.WriteFile(filepath.Join(env.WorkDir, "large"), bytes.Repeat([]byte("#"), maxText+1), 0o600),
				os.WriteFile(filepath.Join(env.WorkDir, "kernel"), amd64Kernel(), 0o600),
				os.WriteFile(filepath.Join(env.WorkDir, "initramfs"), xz(), 0o600),
				os.WriteFile(filepath.Join(env.WorkDir, "uki"), amd64UKI(t), 0o600),
				os.WriteFile(filepath.Join(env.WorkDir, "stub"), racktest.Stub(racktest.AMD64), 0o600),
				os.WriteFile(filepath.Join(env.WorkDir, "stub-arm64"), racktest.Stub(racktest.ARM64), 0o600))
		},
		Cmds: map[string]func(*testscript.TestScript, bool, []string){
			// code N COMMAND...: runs provisiond and wants exit code N.
			"code": func(ts *testscript.TestScript, neg bool, args []string) {
				var out, err bytes.Buffer
				got := Run(context.Background(), New("v0.0.0-test"), append([]string{"--server", ts.Getenv(ServerVariable)}, args[1:]...), strings.NewReader(""), &out, &err)
				if fmt.Sprint(got) == args[0] == neg {
					ts.Fatalf("exit code %d: %s%s", got, out.String(), err.String())
				}
			},
			// seen MAC: the machine has fetched its config.
			"seen": func(ts *testscript.TestScript, _ bool, args []string) {
				keeper := ts.Value(keeperKey{}).(*inventory.Keeper)
				for _, kind := range []inventory.Kind{inventory.Solicited, inventory.ConfigServed} {
					_, err := keeper.Record(context.Background(), inventory.Event{Kind: kind, MAC: inventory.MAC(args[0]), Client: inventory.FirmwarePXE, XID: 7, Hash: "h"})
					ts.Check(err)
				}
			},
			// bootstrapped CLUSTER MACHINE
			"bootstrapped": func(ts *testscript.TestScript, _ bool, args []string) {
				keeper := ts.Value(keeperKey{}).(*inventory.Keeper)
				for _, kind := range []inventory.Kind{inventory.BootstrapClaimed, inventory.BootstrapDone} {
					_, err := keeper.Record(context.Background(), inventory.Event{Kind: kind, Cluster: args[0], Machine: args[1]})
					ts.Check(err)
				}
			},
			// solicits MAC: firmware of the machine asks for an address; its code is $CODE.
			"solicits": func(ts *testscript.TestScript, _ bool, args []string) {
				keeper := ts.Value(keeperKey{}).(*inventory.Keeper)
				_, err := keeper.Record(context.Background(), inventory.Event{Kind: inventory.Solicited, MAC: inventory.MAC(args[0]), Client: inventory.FirmwarePXE, XID: 7})
				ts.Check(err)
				code, err := keeper.AdoptionCode(context.Background(), inventory.MAC(args[0]))
				ts.Check(err)
				ts.Setenv("CODE", code)
			},
			// asks MAC CODE [ADDRESS]: the machine waits to be approved, and shows the code.
			"asks": func(ts *testscript.TestScript, _ bool, args []string) {
				keeper := ts.Value(keeperKey{}).(*inventory.Keeper)
				from := append(args, "2001:db8::9")[2]
				for _, e := range []inventory.Event{
					{Kind: inventory.Solicited, Client: inventory.FirmwarePXE, XID: 7},
					{Kind: inventory.ApprovalAsked, Code: args[1], Peer: netip.MustParseAddr(from), Expires: time.Now().Add(time.Hour)},
				} {
					e.MAC = inventory.MAC(args[0])
					_, err := keeper.Record(context.Background(), e)
					ts.Check(err)
				}
			},
			// append FILE: a byte.
			"append": func(ts *testscript.TestScript, _ bool, args []string) {
				b, err := os.ReadFile(ts.MkAbs(args[0]))
				ts.Check(err)
				ts.Check(os.WriteFile(ts.MkAbs(args[0]), append(b, 'x'), 0o600))
			},
			// mode FILE BITS
			"mode": func(ts *testscript.TestScript, neg bool, args []string) {
				info, err := os.Stat(ts.MkAbs(args[0]))
				ts.Check(err)
				if got := fmt.Sprintf("%o", info.Mode().Perm()); (got == args[1]) == neg {
					ts.Fatalf("mode %s", got)
				}
			},
		},
	})
}

// run runs one command line to its end.
func run(t *testing.T, server string, args ...string) (code int, stdout, stderr string) {
	t.Helper()
	var out, err bytes.Buffer
	code = Run(t.Context(), New("v0.0.0-test"), append([]string{"--server", server}, args...), strings.NewReader(""), &out, &err)
	return code, out.String(), err.String()
}

func TestUnreachable(t *testing.T) {
	socket := filepath.Join(t.TempDir(), "none")
	for server, want := range map[string]string{
		"unix://" + socket:     "cannot reach provisiond at unix://" + socket,
		"http://[::1]:1":       "cannot reach provisiond at http://[::1]:1",
		"/run/provisiond.sock": "write unix:///path or https://",
		"unix://run/x.sock":    "write unix:///path or https://",
		"ftp://x":              "write unix:///path or https://",
		"http://x/api/v1":      "write unix:///path or https://",
	} {
		code, _, stderr := run(t, server, "status")
		wantCode := exitUsage
		if strings.HasPrefix(want, "cannot") {
			wantCode = exitError
		}
		if code != wantCode || !strings.Contains(stderr, want) || strings.Count(stderr, "\n") != 1 {
			t.Errorf("%s: %d %s", server, code, stderr)
		}
	}
	if code, stdout, _ := run(t, "unix://"+socket, "version"); code != 0 || !strings.Contains(stdout, "not reachable") {
		t.Errorf("version: %d %s", code, stdout)
	}
}

// TestNotProvisiond: another program listens there.
func TestNotProvisiond(t *testing.T) {
	other := httptest.NewServer(http.NotFoundHandler())
	defer other.Close()
	if code, _, stderr := run(t, other.URL, "machine", "list"); code != exitError || !strings.Contains(stderr, "is that provisiond?") {
		t.Errorf("%d %s", code, stderr)
	}
}

// TestFollow follows the events over a restart of provisiond.
func TestFollow(t *testing.T) {
	dir, err := os.MkdirTemp("", "cli")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = os.RemoveAll(dir) }()
	d := startDaemon(t, dir)
	log := func(message string) {
		t.Helper()
		if err := d.keeper.Log(t.Context(), inventory.Event{Kind: inventory.Changed, Machine: "cp-1", Message: message}); err != nil {
			t.Fatal(err)
		}
	}
	log("before")
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute) // against a hang only
	defer cancel()
	r, w := io.Pipe()
	done := make(chan int, 1)
	go func() {
		code := Run(ctx, New("x"), []string{"--server", d.server, "events", "--follow", "--machine", "cp-1"}, strings.NewReader(""), w, io.Discard)
		_ = w.Close()
		done <- code
	}()
	read := make(chan string)
	go func() {
		buf := make([]byte, 4096)
		for {
			n, err := r.Read(buf)
			if err != nil {
				close(read)
				return
			}
			read <- string(buf[:n])
		}
	}()
	want := func(message string) {
		t.Helper()
		for got := ""; !strings.Contains(got, message); {
			text, ok := <-read
			if !ok {
				t.Fatalf("the output ended without %q: %s", message, got)
			}
			got += text
		}
	}
	want("before")
	log("first\x1b[2Jline")
	want("first\uFFFD[2Jline")
	d.stop()
	d = startDaemon(t, dir)
	defer d.stop()
	log("after the restart")
	want("after the restart")
	cancel()
	for range read { // drained, so that the command can end
	}
	if code := <-done; code != exitOK {
		t.Errorf("exit code %d", code)
	}
}

// TestAuditFollow prints what is done after it has begun.
func TestAuditFollow(t *testing.T) {
	dir, err := os.MkdirTemp("", "cli")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = os.RemoveAll(dir) }()
	d := startDaemon(t, dir)
	defer d.stop()
	create := func(name string) {
		t.Helper()
		if code, _, stderr := run(t, d.server, "cluster", "create", name, "--endpoint", "https://[2001:db8::1]:6443"); code != exitOK {
			t.Fatal(stderr)
		}
	}
	create("first")
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute) // against a hang only
	defer cancel()
	r, w := io.Pipe()
	done := make(chan int, 1)
	go func() {
		code := Run(ctx, New("x"), []string{"--server", d.server, "audit", "-f", "-o", "jsonl"}, strings.NewReader(""), w, io.Discard)
		_ = w.Close()
		done <- code
	}()
	lines := bufio.NewScanner(r)
	for _, name := range []string{"first", "second"} {
		if name == "second" {
			create(name)
		}
		if !lines.Scan() || !strings.Contains(lines.Text(), `"target":"cluster/`+name+`"`) {
			t.Errorf("no line of %s: %s", name, lines.Text())
		}
	}
	cancel()
	if code := <-done; code != exitOK {
		t.Errorf("exit code %d", code)
	}
}

// TestBackupThatBreaks leaves no file.
func TestBackupThatBreaks(t *testing.T) {
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Length", "1000")
		_, _ = io.WriteString(w, "half")
	}))
	defer server.Close()
	dir := t.TempDir()
	code, _, stderr := run(t, server.URL, "backup", filepath.Join(dir, "copy"))
	left, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	if code != exitError || len(left) != 0 || !strings.Contains(stderr, "writing ") {
		t.Errorf("%d %s, left %v", code, stderr, left)
	}
}

// TestProgressOnlyForPeople: a pipe or a file gets no bar.
func TestProgressOnlyForPeople(t *testing.T) {
	f, err := os.CreateTemp(t.TempDir(), "")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = f.Close() }()
	for _, w := range []io.Writer{&bytes.Buffer{}, f} {
		if progress(w, 10, "x") != io.Discard {
			t.Errorf("%T gets a bar", w)
		}
	}
}

// runningStub is machines that run what they should, but for cp-2, which is off.
type runningStub struct{}

func (runningStub) RunningConfig(_ context.Context, v inventory.View) (admin.RunningConfig, error) {
	if v.Machine.Name == "cp-2" {
		return admin.RunningConfig{}, fmt.Errorf("cp-2 does not answer: %w", inventory.ErrRefused)
	}
	return admin.RunningConfig{Text: fmt.Appendf(nil, "name: %s\nredacted: true\nold: true\n", v.Machine.Name), Hash: "h", Wanted: "h"}, nil
}

func (runningStub) ApplyConfig(_ context.Context, v inventory.View, mode inventory.ConfigMode, dryRun bool) (string, string, error) {
	if v.Machine.Name == "cp-2" {
		return "", "", fmt.Errorf("cp-2 does not answer: %w", inventory.ErrRefused)
	}
	return fmt.Sprintf("in mode %s,\ndry %t", mode, dryRun), "h", nil
}

// guardStub lets every machine go.
type guardStub struct{}

func (guardStub) MayGo(context.Context, inventory.View, bool) (bool, string, error) {
	return true, "", nil
}

func (guardStub) Foresee(context.Context, inventory.View) (inventory.Via, string, error) {
	return inventory.ViaNetboot, "its API does not answer", nil
}

func (guardStub) Release(context.Context, inventory.View, bool) error { return nil }

// seedStub makes seeds with URLs that nobody serves.
type seedStub struct{}

func (seedStub) Check(_ context.Context, v inventory.View, _ bool) error {
	return inventory.CheckSeed(v)
}

func (seedStub) URLs(v inventory.View) api.Seed {
	b := v.Facts.Current()
	s := api.Seed{Machine: v.Machine.Name, Boot: b.Number, MetalISO: "http://[2001:db8::1]/metal.iso", NoCloudISO: "http://[2001:db8::1]/cidata.iso", Until: b.Started.Add(time.Hour)}
	if b.For.IsValid() {
		s.For, s.NoCloudReason = b.For.String(), "only it may"
	} else {
		s.NoCloud, s.Serial = "http://[2001:db8::1]/", "ds=nocloud-net;s=http://[2001:db8::1]/"
	}
	return s
}

func (seedStub) ISO(_ context.Context, v inventory.View, format string) ([]byte, string, error) {
	return fmt.Appendf(nil, "%s of %s\n", format, v.Machine.Name), "h", nil
}
