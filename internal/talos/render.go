package talos

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"net/netip"
	"time"

	"github.com/klauspost/compress/zstd"
	"github.com/siderolabs/talos/pkg/machinery/config/config"
	"github.com/siderolabs/talos/pkg/machinery/config/configloader"
	"github.com/siderolabs/talos/pkg/machinery/config/container"
	"github.com/siderolabs/talos/pkg/machinery/config/encoder"
	"golang.org/x/sync/singleflight"

	"github.com/provisiond/provisiond/internal/inventory"
)

// Bounds of the caches, in entries. A base takes some 25 kB of memory, its
// bytes included, and a config 1 kB beside its base.
const (
	maxBases     = 128
	maxConfigs   = 8192
	maxParsed    = 512 // patches
	docSeparator = "---\n"
)

// Options are the same for every machine.
type Options struct {
	// EventSink is where Talos sends its events. It is written into the config
	// too, because the machine config replaces what the kernel line said of it.
	// The zero value means none.
	EventSink netip.AddrPort
	// KernelLog is where Talos sends its log, tcp://[2001:db8::5]:514. Empty
	// means nowhere.
	KernelLog string
	// TrustedRoots are the PEM certificates by which Talos knows the server of an
	// https config URL; empty: those it has anyway.
	TrustedRoots string
}

// Validate returns an *inventory.FieldError, named as in the daemon's config
// file, for what no machine could be given.
func (o Options) Validate() error {
	if o.KernelLog == "" {
		return nil
	}
	return checkKernelLog("talos.kernelLog", o.KernelLog)
}

// Input is what one config is made of. All but Subnet must be set; a machine
// with a static address needs that, too. Nothing in it is modified.
type Input struct {
	Machine *inventory.Machine
	Cluster *inventory.Cluster
	Secrets *inventory.Secrets
	Subnet  *inventory.Subnet
}

// Config is a rendered machine config. It is shared and must not be modified.
type Config struct {
	// Parts make up the config. The first, which holds all secrets, is one and
	// the same slice for all machines whose patches and disk do not differ.
	Parts    [][]byte
	Hash     string   // SHA-256 of the whole, hexadecimal
	Size     int      // bytes of the whole
	Warnings []string // for the operator; none is fatal
}

// Bytes returns the whole config in a new slice.
func (c *Config) Bytes() []byte { return bytes.Join(c.Parts, nil) }

// Renderer makes machine configs. It is safe for concurrent use, remembers what
// it made, and gives identical bytes for identical input.
type Renderer struct {
	opts    Options
	flight  singleflight.Group
	patches *lru[*patch]
	bases   *lru[*base]
	configs *lru[*Config]
	zstd    *zstd.Encoder // of early configs
	renders renders
}

// NewRenderer returns a Renderer with empty caches.
func NewRenderer(o Options) *Renderer {
	enc, _ := zstd.NewWriter(nil, zstd.WithEncoderConcurrency(1), zstd.WithWindowSize(zstd.MinWindowSize)) // fails for bad options only
	return &Renderer{
		zstd:    enc,
		renders: newRenders(),
		opts:    o,
		patches: newLRU[*patch](maxParsed),
		bases:   newLRU[*base](maxBases),
		configs: newLRU[*Config](maxConfigs),
	}
}

// Render returns the config of one machine. It costs some 5 ms for the first
// machine of a kind, a fifth of that for the next, and tens of microseconds
// when nothing changed. What cannot work is an *inventory.FieldError: on the field of
// the machine or the cluster, on the patch with the place in the config that it
// spoils ("cluster.patches[0] → machine.kubelet.image"), or on the place in the
// config alone.
func (r *Renderer) Render(in Input) (*Config, error) {
	key := in.key()
	if c, ok := r.configs.get(key); ok {
		return c, nil
	}
	v, err, _ := r.flight.Do("config "+key, func() (any, error) {
		if c, ok := r.configs.get(key); ok {
			return c, nil
		}
		start := time.Now()
		c, err := r.render(in)
		r.renders.took(time.Since(start), err)
		if err != nil {
			return nil, err
		}
		r.configs.put(key, c)
		return c, nil
	})
	if err != nil {
		return nil, err
	}
	return v.(*Config), nil
}

// key is the identity of everything that goes in.
func (in Input) key() string {
	m, c := *in.Machine, *in.Cluster
	m.Labels, m.Created, m.KernelArgs = nil, time.Time{}, nil
	c.Created, c.Imported, c.KernelArgs = time.Time{}, false, nil
	var net any
	if s := in.Subnet; s != nil {
		net = []any{s.Prefix, s.Gateway, s.DNS, s.Domains, s.NTP, s.NTPNames}
	}
	return digest(m, c, in.Secrets.Bundle, net)
}

// digest is a short name for values. They are all of types that JSON encodes
// completely and in one way.
func digest(values ...any) string {
	h := sha256.New()
	enc := json.NewEncoder(h)
	for _, v := range values {
		if err := enc.Encode(v); err != nil { // an address range that is not valid cannot get here
			panic("talos: a key that cannot be encoded: " + err.Error())
		}
	}
	return hex.EncodeToString(h.Sum(nil))
}

func (r *Renderer) render(in Input) (*Config, error) {
	if err := in.Machine.Validate(); err != nil {
		return nil, under("machine", err)
	}
	if err := in.Cluster.Validate(); err != nil {
		return nil, under("cluster", err)
	}
	rel, err := releaseOf(in.Machine, in.Cluster)
	if err != nil {
		return nil, err
	}
	layers, err := r.layers(in.Machine, in.Cluster)
	if err != nil {
		return nil, err
	}
	c, err := r.assemble(in, rel, layers)
	if err != nil {
		return nil, r.blame(in, rel, layers, err)
	}
	return c, nil
}

// assemble joins the shared document and the machine's own and checks the whole
// as Talos will.
func (r *Renderer) assemble(in Input, rel release, layers []layer) (*Config, error) {
	b, err := r.base(in, rel, layers)
	if err != nil {
		return nil, err
	}
	docs, err := r.machineDocuments(in, layers)
	if err != nil {
		return nil, err
	}
	own, docs, err := reload(docs)
	if err != nil {
		return nil, err
	}
	whole, err := container.New(append([]config.Document{b.config}, docs...)...)
	if err != nil {
		return nil, fail("config", "", "%v", err)
	}
	if err := checkLegacy(b.config, docs); err != nil {
		return nil, err
	}
	warnings, err := whole.Validate(metal{})
	if err != nil {
		return nil, fail("config", "", "%s", flatten(err))
	}
	if err := checkDocuments(docs); err != nil {
		return nil, err
	}
	if err := r.checkOwn(in, docs); err != nil {
		return nil, err
	}
	if err := checkText(own); err != nil {
		return nil, err
	}
	c := &Config{Parts: [][]byte{b.bytes, own}, Warnings: append(warnings, warn(docs)...)}
	h := sha256.New()
	for _, p := range c.Parts {
		_, _ = h.Write(p) // never fails (hash.Hash)
		c.Size += len(p)
	}
	c.Hash = hex.EncodeToString(h.Sum(nil))
	return c, nil
}

// reload encodes documents and reads them back, because what a machine loads
// are the bytes: Validate passes in-memory documents whose bytes Talos refuses.
// Each document begins with a separator.
func reload(docs []config.Document) ([]byte, []config.Document, error) {
	c, err := container.New(docs...)
	if err != nil {
		return nil, nil, fail("config", "", "%v", err)
	}
	text, err := c.EncodeBytes(encoder.WithComments(encoder.CommentsDisabled))
	if err != nil {
		return nil, nil, fail("config", "", "%v", err)
	}
	p, err := configloader.NewFromBytes(text)
	if err != nil {
		return nil, nil, fail("config", "", "%s", flatten(err))
	}
	return append([]byte(docSeparator), text...), p.Documents(), nil
}

// blame finds the patch that spoils a config: the last one without which the
// same error is gone. It renders up to once for each patch, for errors only.
func (r *Renderer) blame(in Input, rel release, layers []layer, err error) error {
	var fe *inventory.FieldError
	if !errors.As(err, &fe) {
		return err
	}
	for n := len(layers); n > 0; n-- {
		if fe.Field == layers[n-1].field { // it did not even merge
			return err
		}
		var other *inventory.FieldError
		_, again := r.assemble(in, rel, layers[:n-1])
		if errors.As(again, &other) && other.Field == fe.Field && other.Problem == fe.Problem {
			continue
		}
		c := *fe
		if c.Field = layers[n-1].field; fe.Field != "config" {
			c.Field += " → " + fe.Field
		}
		return &c
	}
	return err
}

// metal is the mode Talos validates in on real machines.
type metal struct{}

func (metal) String() string        { return "metal" }
func (metal) RequiresInstall() bool { return true }
func (metal) InContainer() bool     { return false }
