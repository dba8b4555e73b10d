package httpconfig

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/fstest"
	"time"

	"github.com/rs/zerolog"

	"github.com/provisiond/provisiond/internal/audit"
	"github.com/provisiond/provisiond/internal/inventory"
	"github.com/provisiond/provisiond/internal/seed"
	"github.com/provisiond/provisiond/internal/uki"
)

const (
	mac1  = inventory.MAC("52:54:00:00:00:01")
	mac2  = inventory.MAC("52:54:00:00:00:02") // the machine's second NIC
	token = "dGhpcyBpcyBhIHRva2Vu"
)

var (
	stable = netip.MustParseAddr("2001:db8::11")
	leased = netip.MustParseAddr("2001:db8::8000")
	alien  = netip.MustParseAddr("2001:db8::bad")
	slaac  = netip.MustParsePrefix("2001:db8::/64")
)

func errNotFound(what string) error { return fmt.Errorf("%s: %w", what, inventory.ErrNotFound) }

// keeper is an inventory of one machine, in memory.
type keeper struct {
	mu      sync.Mutex
	view    inventory.View
	images  []inventory.Image
	leases  map[netip.Addr]inventory.MAC
	events  []inventory.Event
	watches map[chan struct{}]bool

	attached   string // interface of the subnet; empty: it is behind a router
	neighbours map[netip.Addr]inventory.MAC
	adopts     string // the code

	viewErr, recordErr, addressErr error
	onRecord                       func(e inventory.Event) // before it is in effect
}

func (k *keeper) View(_ context.Context, mac inventory.MAC, arch inventory.Arch) (inventory.View, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.viewErr != nil {
		return inventory.View{}, k.viewErr
	}
	if k.view.Machine == nil || !slices.Contains(k.view.Machine.MACs, mac) {
		return inventory.View{}, nil
	}
	v := k.view
	v.Facts = v.Facts.Clone()
	if v.Image != nil && arch != "" && v.Image.Arch != arch {
		v.Image, v.Wanted = nil, inventory.ImageID("v1.13.6", "", arch)
	}
	return v, nil
}

func (k *keeper) Record(_ context.Context, e inventory.Event) (inventory.View, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.onRecord != nil {
		k.onRecord(e)
	}
	if k.recordErr != nil {
		return inventory.View{}, k.recordErr
	}
	k.events = append(k.events, e)
	if k.view.Machine == nil || e.Machine != k.view.Machine.Name {
		return inventory.View{}, nil
	}
	e.Token = token
	after, err := inventory.Apply(k.view, e)
	if err != nil {
		return inventory.View{}, err
	}
	k.view = after
	after.Facts = after.Facts.Clone()
	return after, nil
}

func (k *keeper) MachineByAddress(_ context.Context, a netip.Addr) (inventory.View, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.addressErr != nil {
		return inventory.View{}, k.addressErr
	}
	mac, _ := inventory.MACFromEUI64(a)
	if m := k.view.Machine; m != nil && (a == m.Address || slices.Contains(m.MACs, mac) && (a.IsLinkLocalUnicast() || slaac.Contains(a)) || k.leases[a] != "" && slices.Contains(m.MACs, k.leases[a])) {
		return k.view, nil
	}
	return inventory.View{}, nil
}

func (k *keeper) SubnetOf(a netip.Addr) *inventory.Subnet {
	if slaac.Contains(a) {
		return &inventory.Subnet{Name: "rack1", Prefix: slaac, Interface: k.attached}
	}
	return nil
}

// LinkLayer implements Neighbours.
func (k *keeper) LinkLayer(a netip.Addr, on string) (inventory.MAC, bool) {
	k.mu.Lock()
	defer k.mu.Unlock()
	mac, ok := k.neighbours[a.WithZone("")]
	return mac, ok && on == k.attached
}

func (k *keeper) Adopts(_ context.Context, mac inventory.MAC) (string, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.adopts, k.viewErr
}

func (k *keeper) Images(context.Context) ([]inventory.Image, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.images, k.viewErr
}

func (k *keeper) Watch() (<-chan struct{}, func()) {
	k.mu.Lock()
	defer k.mu.Unlock()
	ch := make(chan struct{}, 1)
	k.watches[ch] = true
	return ch, func() {
		k.mu.Lock()
		defer k.mu.Unlock()
		delete(k.watches, ch)
	}
}

// change does what an operator would, and wakes whoever waits.
func (k *keeper) change(f func(v *inventory.View)) {
	k.mu.Lock()
	defer k.mu.Unlock()
	f(&k.view)
	for ch := range k.watches {
		select {
		case ch <- struct{}{}:
		default:
		}
	}
}

func (k *keeper) recorded() []inventory.Event {
	k.mu.Lock()
	defer k.mu.Unlock()
	return slices.Clone(k.events)
}

// kinds is what was recorded, in short: "kind/boot/plan".
func (k *keeper) kinds() []string {
	out := []string{}
	for _, e := range k.recorded() {
		out = append(out, fmt.Sprintf("%s/%d/%s", e.Kind, e.Boot, e.Plan))
	}
	return out
}

// configs renders nothing: it answers with what it has.
type configs struct {
	mu      sync.Mutex
	parts   [][]byte
	err     error
	line    string
	lineErr error
	asked   int
}

func (c *configs) Config(_ context.Context, v inventory.View) (MachineConfig, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.asked++
	if c.err != nil {
		return MachineConfig{}, c.err
	}
	if v.Machine == nil || v.Cluster == nil {
		return MachineConfig{}, errors.New("nothing to render")
	}
	m := MachineConfig{Hash: "c0ffee", Parts: c.parts}
	for _, p := range c.parts {
		m.Size += len(p)
	}
	return m, nil
}

func (c *configs) KernelLine(_ context.Context, _ inventory.View, at ConfigURLs) (string, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return strings.ReplaceAll(c.line, "URL", at.Config), c.lineErr
}

func (c *configs) Seed(_ context.Context, v inventory.View) (seed.Machine, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return seed.Machine{Name: v.Machine.Name, Instance: "cp-1-order-1", MAC: v.Machine.BootMAC().Bytes(), Address: netip.PrefixFrom(v.Machine.Address, 64)}, c.err
}

func (c *configs) fail(err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.err = err
}

// blobs is a folder of images without the checks.
type blobs struct {
	dir string
	err error
}

func (b *blobs) Open(blob inventory.Blob) (*os.File, error) {
	if b.err != nil {
		return nil, b.err
	}
	return os.Open(filepath.Join(b.dir, blob.SHA256))
}

func (b *blobs) UKI(i *inventory.Image) (*uki.Template, error) {
	if i.Stub.SHA256 == "" {
		return nil, errNotFound("UKI")
	}
	var sources []uki.Source
	for _, blob := range i.UKIFiles() {
		f, err := b.Open(blob)
		if err != nil {
			return nil, err
		}
		defer f.Close()
		sources = append(sources, uki.Source{R: f, Size: blob.Size})
	}
	stub, err := uki.Parse(sources[0].R, sources[0].Size)
	if err != nil {
		return nil, err
	}
	return uki.Assemble(stub, sources[1], sources[2], "", "")
}

// logLines collects what is logged.
type logLines struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *logLines) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *logLines) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

// rack is a server with everything around it: one machine whose install is
// outstanding.
type rack struct {
	*Server
	keeper  *keeper
	configs *configs
	blobs   *blobs
	log     *logLines
	kernel  []byte
	trail   []audit.Entry // guarded by keeper.mu
}

func testURLs() URLs {
	return URLs{
		HTTP:     netip.MustParseAddrPort("[2001:db8::1]:8080"),
		HTTPS:    netip.MustParseAddrPort("[2001:db8::1]:8443"),
		TFTP:     netip.MustParseAddrPort("[2001:db8::1]:69"),
		PXE:      map[inventory.Arch]string{inventory.AMD64: "amd64/snponly.efi", inventory.ARM64: "arm64/ipxe.efi"},
		HTTPBoot: map[inventory.Arch]string{inventory.AMD64: "amd64/ipxe.efi", inventory.ARM64: "arm64/ipxe.efi"},
	}
}

func newRack(t testing.TB) *rack {
	t.Helper()
	dir := t.TempDir()
	kernel := bytes.Repeat([]byte("kernel! "), 3<<17) // 3 MB: more than a socket's buffer
	write := func(name string, data []byte) inventory.Blob {
		if err := os.WriteFile(filepath.Join(dir, name), data, 0o600); err != nil {
			t.Fatal(err)
		}
		return inventory.Blob{SHA256: name, Size: int64(len(data))}
	}
	image := inventory.Image{Version: "v1.13.6", Arch: inventory.AMD64, Kernel: write("k3rn31", kernel), Initramfs: write("1n1trd", []byte("initramfs"))}
	other := inventory.Image{Version: "v1.12.0", Schematic: "abc", Arch: inventory.ARM64, Kernel: image.Kernel, Initramfs: image.Initramfs}
	r := &rack{
		keeper: &keeper{
			view: inventory.View{
				Machine: &inventory.Machine{Name: "cp-1", Cluster: "lab", Role: inventory.ControlPlane, MACs: []inventory.MAC{mac1, mac2}, Address: stable},
				Facts:   inventory.Facts{Machine: "cp-1", Install: inventory.Order{Ordered: 1}},
				Cluster: &inventory.Cluster{Name: "lab"},
				Image:   &image, Wanted: image.ID(),
			},
			images:  []inventory.Image{other, image},
			leases:  map[netip.Addr]inventory.MAC{leased: mac2},
			watches: map[chan struct{}]bool{},
		},
		configs: &configs{parts: [][]byte{[]byte("version: v1alpha1\n"), []byte("---\nkind: LinkConfig\n")}, line: "slab_nomerge talos.config=URL"},
		blobs:   &blobs{dir: dir},
		log:     &logLines{},
		kernel:  kernel,
	}
	files := fstest.MapFS{
		"amd64/snponly.efi":   {Data: []byte("snponly"), ModTime: time.Unix(1e9, 0)},
		"amd64/ipxe.efi":      {Data: []byte("ipxe")},
		"arm64/ipxe.efi":      {Data: []byte("ipxe arm64")},
		"amd64/autoexec.ipxe": {Data: Autoexec(testURLs())},
		"secret":              {Data: []byte("secret")},
	}
	r.Server = New(Config{URLs: testURLs()}, Deps{Inventory: r.keeper, Configs: r.configs, Loaders: files, Images: r.blobs, Trail: r, Neighbours: r.keeper}, zerolog.New(r.log))
	return r
}

// Note implements Trail.
func (r *rack) Note(e audit.Entry) {
	r.keeper.mu.Lock()
	defer r.keeper.mu.Unlock()
	r.trail = append(r.trail, e)
}

// boots gives the machine boots, newest first, of the current order.
func (r *rack) boots(b ...inventory.Boot) {
	r.keeper.change(func(v *inventory.View) {
		v.Facts.Boots = nil
		for _, b := range b {
			v.Facts.Boots = append(v.Facts.Boots, &b)
		}
	})
}

func bootNow(number uint64, tok string) inventory.Boot {
	return inventory.Boot{Number: number, Token: tok, MAC: mac1, Started: time.Now(), Plan: inventory.Install, Order: 1}
}
