package racktest

import (
	"bytes"
	"context"
	"fmt"
	"slices"
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

	mu        sync.Mutex
	installed bool   // META and the boot loader
	nocloud   bool   // what is installed is Talos for NoCloud
	version   string // of the boot loader's Talos, after an upgrade
	config    []byte // STATE
	etcd      string // EPHEMERAL: the etcd cluster whose data lies there
	member    uint64 // EPHEMERAL: which of its members the data is
	wipes     int
	installs  int
}

// Installed reports whether Talos was installed on the disk.
func (d *Disk) Installed() bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.installed
}

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

// noCloud reports whether Talos was installed from its nocloud image.
func (d *Disk) noCloud() bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.nocloud
}

func (d *Disk) setNoCloud(is bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.nocloud = is
}

// Wipes counts how often something was wiped off the disk, over all its life.
func (d *Disk) Wipes() int {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.wipes
}

// Installs counts how often Talos was installed, over all the disk's life.
func (d *Disk) Installs() int {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.installs
}

// Wipe makes the disk blank.
func (d *Disk) Wipe() {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.wipes++
	d.installed, d.nocloud, d.version, d.config, d.etcd, d.member = false, false, "", nil, "", 0
}

// partitions are the labels of the system disk that a wipe may name.
var partitions = []string{"EFI", "BIOS", "BOOT", "META", "STATE", "EPHEMERAL"}

// locate reports the first partition that is not there.
func (d *Disk) locate(labels []string) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, l := range labels {
		if !d.installed || !slices.Contains(partitions, l) {
			return fmt.Errorf("volume %q is not located", l)
		}
	}
	return nil
}

// wipePartitions wipes some partitions of an installed disk, by their labels.
// It wipes nothing when one is not there.
func (d *Disk) wipePartitions(labels []string) error {
	if err := d.locate(labels); err != nil {
		return err
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	d.wipes++
	for _, l := range labels {
		switch l {
		case "STATE":
			d.config = nil
		case "EPHEMERAL":
			d.etcd, d.member = "", 0
		default: // without it nothing boots or counts as installed
			d.installed = false
		}
	}
	return nil
}

// Install puts Talos with a config on the disk, as the installer does: what was
// there is gone.
func (d *Disk) Install(config []byte) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.installs++
	d.installed, d.version, d.config, d.etcd, d.member = true, "", bytes.Clone(config), "", 0
}

// setConfig replaces what is in STATE, or fills one that was wiped.
func (d *Disk) setConfig(config []byte) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.config = bytes.Clone(config)
}

// RestoreEtcd puts the data of an etcd cluster back on a disk whose contents were kept
// elsewhere.
func (d *Disk) RestoreEtcd(cluster string) { d.setEtcd(cluster, 0) }

func (d *Disk) setEtcd(cluster string, member uint64) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.etcd, d.member = cluster, member
}

// etcdData is [Disk.Etcd] with the member's ID. Data of which nobody has said
// whose it is gets an ID here.
func (d *Disk) etcdData() (cluster string, member uint64) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.etcd != "" && d.member == 0 {
		d.member = newMemberID()
	}
	return d.etcd, d.member
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
