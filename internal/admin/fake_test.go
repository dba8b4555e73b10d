package admin

import (
	"bytes"
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/rs/zerolog"

	"github.com/provisiond/provisiond/api"
	"github.com/provisiond/provisiond/internal/audit"
	"github.com/provisiond/provisiond/internal/inventory"
	"github.com/provisiond/provisiond/internal/inventory/storetest"
)

// memStore is a store in memory that can fail.
type memStore struct {
	*storetest.Memory
	mu     sync.Mutex
	full   bool   // commits fail with ErrFull
	broken error  // reads fail with it
	gone   uint64 // events up to here are not kept any more
	backup func(io.Writer) error
}

func (s *memStore) Get(ctx context.Context, key inventory.Key) (inventory.Record, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.broken != nil {
		return inventory.Record{}, s.broken
	}
	return s.Memory.Get(ctx, key)
}

func (s *memStore) List(ctx context.Context, b inventory.Bucket, after string, limit int) ([]inventory.Record, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.broken != nil {
		return nil, s.broken
	}
	return s.Memory.List(ctx, b, after, limit)
}

func (s *memStore) Commit(ctx context.Context, c inventory.Commit) (rev, logID uint64, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.full {
		return 0, 0, fmt.Errorf("disk: %w", inventory.ErrFull)
	}
	return s.Memory.Commit(ctx, c)
}

func (s *memStore) Log(ctx context.Context, after uint64, limit int) ([]inventory.LogEntry, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.Memory.Log(ctx, max(after, s.gone), limit)
}

func (s *memStore) Backup(_ context.Context, w io.Writer) error {
	if s.backup != nil {
		return s.backup(w)
	}
	_, err := io.WriteString(w, "the whole database")
	return err
}

// fakeTalos refuses what its patches tell it to, and counts the secrets it makes.
type fakeTalos struct {
	mu     sync.Mutex
	made   int
	served []byte
}

func (t *fakeTalos) Defaults() (string, string, []netip.Prefix, []netip.Prefix) {
	return "v1.13.6", "1.36.2", []netip.Prefix{netip.MustParsePrefix("fd00:10:244::/56")}, []netip.Prefix{netip.MustParsePrefix("fd00:10:96::/112")}
}

func (t *fakeTalos) NewSecrets(version string) ([]byte, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if !strings.HasPrefix(version, "v1.1") {
		return nil, badField("talosVersion", "v1.12 or v1.13", "%s is not supported", version)
	}
	t.made++
	return fmt.Appendf(nil, "secret-bundle-%d", t.made), nil
}

func (t *fakeTalos) Import(yaml []byte) (ImportedCluster, error) {
	if !bytes.HasPrefix(yaml, []byte("cluster:")) {
		return ImportedCluster{}, badField("secrets", "the secrets.yaml of talosctl gen secrets", "this is not a secrets bundle")
	}
	return ImportedCluster{Secrets: yaml, Name: "old", Endpoint: "https://[2001:db8::9]:6443", KubernetesVersion: "1.35.0"}, nil
}

func (t *fakeTalos) Check(_ context.Context, c *inventory.Cluster, secrets []byte, m *inventory.Machine) error {
	patches, field := c.Patches, "cluster.patches"
	if m != nil && len(m.Patches) > 0 {
		patches, field = m.Patches, "machine.patches"
	}
	for i, p := range patches {
		switch {
		case strings.Contains(p, "bad"):
			return badField(fmt.Sprintf("%s[%d]", field, i), "mend it", "unknown key")
		case m != nil && strings.Contains(p, "unfit"):
			return badField(fmt.Sprintf("%s[%d]", field, i), "", "does not fit")
		case strings.Contains(p, "kubelet"):
			return badField("machine.kubelet.image", "", "no tag")
		case strings.Contains(p, "explode"):
			return errors.New("talos: disk on fire at /secret/path")
		}
	}
	return nil
}

func (t *fakeTalos) Preview(_ context.Context, _ *inventory.Cluster, m *inventory.Machine) ([]byte, error) {
	return fmt.Appendf(nil, "machine:\n  token: *****\n  name: %s\n  patches: %d\n", m.Name, len(m.Patches)), nil
}

func (t *fakeTalos) CheckPatches(patches []string) error {
	for i, p := range patches {
		if strings.Contains(p, "bad") {
			return badField(fmt.Sprintf("patches[%d]", i), "mend it", "unknown key")
		}
	}
	return nil
}

func (t *fakeTalos) CheckVersion(version string) error {
	if !strings.HasPrefix(version, "v1.1") {
		return badField("version", "v1.12 or v1.13", "%s is not supported", version)
	}
	return nil
}

func (t *fakeTalos) Render(_ context.Context, v inventory.View, redact bool) ([]byte, error) {
	token := "hunter2"
	if redact {
		token = "*****"
	}
	return fmt.Appendf(nil, "machine:\n  token: %s\n  name: %s\n  patches: %d\n", token, v.Machine.Name, len(v.Machine.Patches)), nil
}

func (t *fakeTalos) Origins(_ context.Context, v inventory.View) ([]api.ConfigBlock, error) {
	first := 0
	return []api.ConfigBlock{{Text: "machine:\n", Origin: "base"}, {Text: "  name: " + v.Machine.Name + "\n", Origin: "machine", Patch: &first}}, nil
}

func (t *fakeTalos) LastServed(context.Context, string) ([]byte, string, time.Time, error) {
	if t.served == nil {
		return nil, "", time.Time{}, inventory.ErrNotFound
	}
	return t.served, "abc123", time.Unix(1000, 0).UTC(), nil
}

func (t *fakeTalos) Talosconfig(_ context.Context, cluster string) ([]byte, error) {
	return t.access("context", cluster)
}

func (t *fakeTalos) Kubeconfig(_ context.Context, cluster string) ([]byte, error) {
	return t.access("clusters", cluster)
}

func (t *fakeTalos) access(kind, cluster string) ([]byte, error) {
	if cluster == "nope" {
		return nil, fmt.Errorf("secrets of cluster %q: %w", cluster, inventory.ErrNotFound)
	}
	return []byte(kind + ": " + cluster + "\n"), nil
}

type fakeBlobs struct {
	mu   sync.Mutex
	has  map[inventory.Blob]bool
	full bool
}

func (b *fakeBlobs) Put(_ context.Context, r io.Reader, want string, limit int64) (inventory.Blob, error) {
	h := sha256.New()
	n, err := io.Copy(h, io.LimitReader(r, limit+1))
	if err != nil {
		return inventory.Blob{}, err
	}
	blob := inventory.Blob{SHA256: hex.EncodeToString(h.Sum(nil)), Size: n}
	switch {
	case b.full:
		return inventory.Blob{}, fmt.Errorf("writing: %w", inventory.ErrFull)
	case n > limit:
		return inventory.Blob{}, badField("body", "", "larger than %d bytes", limit)
	case blob.SHA256 != want:
		return inventory.Blob{}, badField("sha256", "upload it again", "the bytes have the hash %s", blob.SHA256)
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	b.has[blob] = true
	return blob, nil
}

func (b *fakeBlobs) Has(_ context.Context, blob inventory.Blob) (bool, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.has[blob], nil
}

func (b *fakeBlobs) CheckKernel(blob inventory.Blob, _ inventory.Arch) error {
	if blob.Size == 1 {
		return badField("kernel", "", "this is no kernel")
	}
	return nil
}

func (b *fakeBlobs) CheckInitramfs(blob inventory.Blob) error {
	if blob.Size == 1 {
		return badField("initramfs", "", "this is no initramfs")
	}
	return nil
}

func (b *fakeBlobs) CheckUKI(i *inventory.Image) error {
	for _, f := range []struct {
		name string
		blob inventory.Blob
	}{{"uki", i.UKI}, {"stub", i.Stub}, {"signed", i.Signed}} {
		if f.blob.Size == 1 {
			return badField(f.name, "", "this is none")
		}
	}
	return nil
}

// rig is a server on a real Keeper.
type rig struct {
	guards fakeGuards
	*Server
	t      testing.TB
	store  *memStore
	keeper *inventory.Keeper
	talos  *fakeTalos
	blobs  *fakeBlobs
	logs   *syncBuffer
	trail  *audit.Log
	client *http.Client // of serve
}

type syncBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (b *syncBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.Write(p)
}

func (b *syncBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.String()
}

// fakeGuards refuse what they are told to, but for who gives the word.
type fakeGuards struct {
	refuse   string
	released []string
}

func (g *fakeGuards) MayGo(_ context.Context, _ inventory.View, destroy bool) (bool, string, error) {
	return g.refuse == "" || destroy, g.refuse, nil
}

func (g *fakeGuards) Foresee(_ context.Context, v inventory.View) (inventory.Via, string, error) {
	if !v.Facts.Reimage.Outstanding() {
		return "", "", errors.New("there is no order")
	}
	if v.Facts.Reimage.AllDisks {
		return inventory.ViaAPI, "", nil
	}
	return inventory.ViaNetboot, "its API does not answer", nil
}

func (g *fakeGuards) Release(_ context.Context, v inventory.View, destroy bool) error {
	if g.refuse != "" && !destroy {
		return fmt.Errorf("%s: %w", g.refuse, inventory.ErrRefused)
	}
	g.released = append(g.released, v.Machine.Name)
	return nil
}

// fakeRunning is a machine that runs an older config; w-9 is off.
type fakeRunning struct{}

func (fakeRunning) RunningConfig(_ context.Context, v inventory.View) (RunningConfig, error) {
	if v.Machine.Name == "w-9" {
		return RunningConfig{}, fmt.Errorf("w-9 does not answer: %w", inventory.ErrRefused)
	}
	return RunningConfig{Text: []byte("machine:\n  token: *****\n  name: old\n"), Hash: "a1", Wanted: "b2"}, nil
}

func (fakeRunning) ApplyConfig(_ context.Context, v inventory.View, mode inventory.ConfigMode, dryRun bool) (string, string, error) {
	if v.Machine.Name == "w-9" {
		return "", "", fmt.Errorf("w-9 does not answer: %w", inventory.ErrRefused)
	}
	return fmt.Sprintf("Applied %s, dry %t", mode, dryRun), "b2", nil
}

// fakeSeeds makes seeds that say what they are of.
type fakeSeeds struct{}

func (fakeSeeds) Check(_ context.Context, v inventory.View, fetched bool) error {
	if v.Machine.Name == "w-9" && fetched {
		return fmt.Errorf("w-9 is approved at its console: %w", inventory.ErrRefused)
	}
	return inventory.CheckSeed(v)
}

func (fakeSeeds) URLs(v inventory.View) api.Seed {
	b := v.Facts.Current()
	return api.Seed{Machine: v.Machine.Name, Boot: b.Number, For: text(b.For), MetalISO: "http://" + b.Token, Until: b.Started}
}

func (fakeSeeds) ISO(_ context.Context, v inventory.View, format string) ([]byte, string, error) {
	return fmt.Appendf(nil, "%s of boot %d in %s", v.Machine.Name, v.Facts.Current().Number, format), "c0ffee", nil
}

func newRig(t testing.TB, cfg Config) *rig {
	t.Helper()
	r := &rig{
		t:     t,
		store: &memStore{Memory: storetest.NewMemory()},
		talos: &fakeTalos{},
		blobs: &fakeBlobs{has: map[inventory.Blob]bool{}},
		logs:  &syncBuffer{},
	}
	subnet := inventory.Subnet{
		Name:      "rack",
		Prefix:    netip.MustParsePrefix("2001:db8::/64"),
		Machines:  inventory.Range{First: netip.MustParseAddr("2001:db8::1000"), Last: netip.MustParseAddr("2001:db8::1fff")},
		Preferred: time.Hour, Valid: 2 * time.Hour,
	}
	var err error
	r.keeper, err = inventory.NewKeeper(t.Context(), r.store, inventory.KeeperConfig{Subnets: []inventory.Subnet{subnet}})
	if err != nil {
		t.Fatal(err)
	}
	r.trail, err = audit.Open(t.TempDir(), audit.Options{NoSync: true})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = r.trail.Close() })
	if cfg.Trail == nil {
		cfg.Trail = r.trail
	}
	cfg.Version = cmp.Or(cfg.Version, "v0.0.0-test")
	if cfg.Running == nil {
		cfg.Running = fakeRunning{}
	}
	if cfg.Seeds == nil {
		cfg.Seeds = fakeSeeds{}
	}
	r.Server = New(cfg, r.keeper, r.talos, &r.guards, r.blobs, zerolog.New(r.logs))
	return r
}

func sha(content string) string {
	sum := sha256.Sum256([]byte(content))
	return hex.EncodeToString(sum[:])
}

func mustJSON(t testing.TB, v any) string {
	t.Helper()
	b, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

func addr(s string) netip.Addr { return netip.MustParseAddr(s) }

func addrs(list ...string) (out []netip.Addr) {
	for _, s := range list {
		out = append(out, addr(s))
	}
	return out
}

func prefixes(list ...string) (out []netip.Prefix) {
	for _, s := range list {
		out = append(out, netip.MustParsePrefix(s))
	}
	return out
}
