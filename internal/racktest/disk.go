package racktest

import (
	"bytes"
	"context"
	"fmt"
	"sync"

	"github.com/cosi-project/runtime/pkg/state"
	"github.com/cosi-project/runtime/pkg/state/impl/inmem"
	"github.com/cosi-project/runtime/pkg/state/impl/namespaced"
	"github.com/siderolabs/talos/pkg/machinery/config"
	"github.com/siderolabs/talos/pkg/machinery/config/configloader"
	"github.com/siderolabs/talos/pkg/machinery/config/validation"
	"github.com/siderolabs/talos/pkg/machinery/resources/block"
)

// Disk is the system disk of a machine. Its contents survive power cycles; the
// zero value is blank. The exported fields are what a diskSelector sees, and
// must not be changed while a machine uses it.
type Disk struct {
	Path      string // such as /dev/sda; empty: whatever the config names exists
	Size      uint64 // bytes
	Model     string
	Serial    string
	Transport string // such as nvme or sata

	mu     sync.Mutex
	config []byte // STATE
	etcd   string // EPHEMERAL: the etcd cluster whose data lies there
}

// Installed reports whether Talos was installed on the disk.
func (d *Disk) Installed() bool { return d.Config() != nil }

// Config returns the machine config in STATE, or nil.
func (d *Disk) Config() []byte {
	d.mu.Lock()
	defer d.mu.Unlock()
	return bytes.Clone(d.config)
}

// Etcd names the etcd cluster whose data the disk holds, or is empty. Two
// bootstraps make two names.
func (d *Disk) Etcd() string {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.etcd
}

// Wipe makes the disk blank.
func (d *Disk) Wipe() { d.write(nil, "") }

// Install puts Talos with a config on the disk, as the installer does: what was
// there is gone.
func (d *Disk) Install(config []byte) { d.write(bytes.Clone(config), "") }

func (d *Disk) write(config []byte, etcd string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.config, d.etcd = config, etcd
}

func (d *Disk) setEtcd(cluster string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.etcd = cluster
}

// mode is a validation.RuntimeMode.
type mode string

const (
	metal      mode = "metal"
	diskConfig mode = "diskConfig" // Talos' mode for a config from STATE
)

func (m mode) String() string        { return string(m) }
func (m mode) RequiresInstall() bool { return m == metal }
func (mode) InContainer() bool       { return false }

var _ validation.RuntimeMode = metal

// loadConfig loads and validates as Talos does (controllers/config/acquire.go),
// with its error texts: source is "via platform metal" and the like.
func loadConfig(ctx context.Context, text []byte, source string, disk *Disk) (config.Provider, error) {
	cfg, err := configloader.NewFromBytes(text)
	if err != nil {
		return nil, fmt.Errorf("failed to load config %s: %w", source, err)
	}
	if _, err := cfg.Validate(metal); err != nil {
		return nil, fmt.Errorf("failed to validate config acquired %s: %w", source, err)
	}
	resources := newResources()
	if disk != nil {
		d := block.NewDisk(block.NamespaceName, "sda")
		*d.TypedSpec() = block.DiskSpec{DevPath: disk.Path, Size: disk.Size, Model: disk.Model, Serial: disk.Serial, Transport: disk.Transport}
		if err := resources.Create(ctx, d); err != nil {
			return nil, err
		}
	}
	if _, err := cfg.RuntimeValidate(ctx, resources, metal); err != nil {
		return nil, fmt.Errorf("failed to runtime validate config acquired %s: %w", source, err)
	}
	return cfg, nil
}

// loadState loads the config of an installed disk.
func loadState(text []byte) (config.Provider, error) {
	cfg, err := configloader.NewFromBytes(text)
	if err != nil {
		return nil, fmt.Errorf("failed to load config from STATE: %w", err)
	}
	if _, err := cfg.Validate(diskConfig); err != nil {
		return nil, fmt.Errorf("failed to validate on-disk config: %w", err)
	}
	return cfg, nil
}

func newResources() state.State {
	return state.WrapCore(namespaced.NewState(inmem.Build))
}
