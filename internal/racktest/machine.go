package racktest

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"maps"
	"net"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/google/uuid"
	"github.com/insomniacslk/dhcp/dhcpv6"
	"github.com/insomniacslk/dhcp/iana"
)

// Firmware is how the UEFI of a machine boots from the network.
type Firmware string

// The two ways; each is one boot option of UEFI, before the disk.
const (
	PXE  Firmware = "pxe"  // PXEv6: DHCPv6 and TFTP
	HTTP Firmware = "http" // HTTPv6: DHCPv6 and HTTP
)

// IPXE is the generation of the iPXE build that is served as the loader. The
// bytes are read and hashed, not run.
type IPXE string

// The two measured ones. They differ in autoexec.ipxe, which only 2.0 looks
// for and only over HTTP, and in initrd=, without which 2019 loads no initramfs.
const (
	IPXE2019 IPXE = "1.0.0+" // Debian 1.0.0+git-20190125
	IPXE20   IPXE = "2.0.0+"
)

// Architectures by their Go and Talos names.
const (
	AMD64 = "amd64"
	ARM64 = "arm64"
)

// MachineOptions describe a machine. Zero values are a blank amd64 machine with
// PXE firmware and the iPXE of 2019.
type MachineOptions struct {
	Name string
	// MACs of the NICs, in the order of the firmware; it boots from the first.
	MACs []net.HardwareAddr
	// UUID of SMBIOS. Zero: it has none, and the firmware's DUID is a
	// DUID-LLT.
	UUID     uuid.UUID
	Serial   string
	Arch     string
	Firmware Firmware
	IPXE     IPXE
	// OwnStack lets the firmware's own IPv6 stack take an address first, as
	// EDK2 does when the router advertisement has M set.
	OwnStack bool
	// SLAAC is a prefix announced with the A flag, if any. Without one Talos
	// has no address but what ip=, early or machine config give it.
	SLAAC netip.Prefix
	// Starts says whether the firmware starts what it has loaded: with Secure Boot, only
	// what is signed. An error sends it to its next boot option. Nil: it starts anything.
	Starts func(image []byte) error
	// Medium is the kernel line of a USB stick, or the like, that somebody has put in:
	// the machine is started from it as long as its disk is blank. Empty: there is none.
	Medium string
	// Patient is set for a machine that will be given its config over its API: maintenance
	// mode is not the end of its first boot, and neither is it with a Medium.
	Patient bool
	// SecureBoot is what Talos says of the firmware.
	SecureBoot bool
	// Pretends are the NICs that it says it has in maintenance mode. Nil: its own.
	Pretends []net.HardwareAddr
	// Disk survives power cycles. Nil: a new blank one.
	Disk *Disk

	Net    *Net
	Fabric *Fabric
	Peers  Peers
	Timing Timing
	// OnStep is called before each step, one call at a time. An error cuts the
	// power; calling [Machine.PowerOff] in it would wait for itself.
	OnStep func(Step) error
}

// Outcome is how far a boot came.
type Outcome string

// The ends of a boot that are not errors.
const (
	// Ready: Talos is up, its stage is running and it is ready.
	Ready Outcome = "ready"
	// NoBoot: the network offered nothing, and the disk is blank.
	NoBoot Outcome = "nothing to boot"
	// Maintenance: Talos was given a config without a machine section, or
	// none, and waits for an operator.
	Maintenance Outcome = "maintenance"
	// PoweredOff: a Reset call without reboot has switched it off.
	PoweredOff Outcome = "powered off"
)

// Machine is one bare metal machine. Its methods are safe for concurrent use.
type Machine struct {
	opts     MachineOptions
	disk     *Disk
	timeline Timeline
	llt      dhcpv6.DUID // in NVRAM, for firmware without a UUID

	stepping sync.Mutex // one OnStep at a time

	mu       sync.Mutex
	power    *boot
	urls     map[string]error // by URL: nil once fetched, else the last error
	accepted int
	served   Loaded
	serial   string   // of SMBIOS
	volumes  [][]byte // that are plugged in
}

// Loaded is what the newest network boot brought into memory.
type Loaded struct {
	LoaderURL, Loader       string // SHA-256 in hexadecimal
	KernelURL, Kernel       string
	InitramfsURL, Initramfs string
	CommandLine             string
	UserCode                string // that the console shows, for a person to approve
	Config                  string // SHA-256 of the machine config
	Fingerprint             string // that the console prints in maintenance mode
}

// NewMachine makes a machine that is off.
func NewMachine(o MachineOptions) (*Machine, error) {
	if len(o.MACs) == 0 || len(o.MACs[0]) != 6 {
		return nil, fmt.Errorf("machine %q needs the six octets of at least one MAC", o.Name)
	}
	if o.Net == nil || o.Fabric == nil || o.Peers == nil {
		return nil, fmt.Errorf("machine %q needs Net, Fabric and Peers", o.Name)
	}
	if o.Arch == "" {
		o.Arch = AMD64
	}
	if o.Firmware == "" {
		o.Firmware = PXE
	}
	if o.IPXE == "" {
		o.IPXE = IPXE2019
	}
	if o.Name == "" {
		o.Name = o.MACs[0].String()
	}
	if o.Disk == nil {
		o.Disk = &Disk{}
	}
	return &Machine{
		opts: o, disk: o.Disk, urls: map[string]error{}, serial: o.Serial,
		// The time is bogus in EDK2 too; what matters is that it stays.
		llt: &dhcpv6.DUIDLLT{HWType: iana.HWTypeEthernet, Time: uint32(time.Now().Unix()), LinkLayerAddr: o.MACs[0]},
	}, nil
}

// Name is the machine's name in reports.
func (m *Machine) Name() string { return m.opts.Name }

// MAC is the NIC it boots from.
func (m *Machine) MAC() net.HardwareAddr { return m.opts.MACs[0] }

// UUID is the SMBIOS UUID.
func (m *Machine) UUID() uuid.UUID { return m.opts.UUID }

// Disk is the machine's disk.
func (m *Machine) Disk() *Disk { return m.disk }

// Timeline is what it did so far.
func (m *Machine) Timeline() *Timeline { return &m.timeline }

// Loaded is what the newest network boot read.
func (m *Machine) Loaded() Loaded {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.served
}

// Accepted counts the Bootstrap calls its API has answered with OK, over all
// its boots.
func (m *Machine) Accepted() int {
	m.mu.Lock()
	defer m.mu.Unlock()
	n := m.accepted
	if m.power != nil && m.power.node != nil {
		n += m.power.node.Accepted()
	}
	return n
}

// Node is the Talos it runs, or nil.
func (m *Machine) Node() *Node {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.power == nil {
		return nil
	}
	return m.power.node
}

// Unfetched lists the URLs that were tried and never worked, with the last
// error of each.
func (m *Machine) Unfetched() map[string]error {
	m.mu.Lock()
	defer m.mu.Unlock()
	broken := maps.Clone(m.urls)
	maps.DeleteFunc(broken, func(_ string, err error) bool { return err == nil })
	return broken
}

// URLs lists everything it tried to fetch, sorted.
func (m *Machine) URLs() []string {
	m.mu.Lock()
	defer m.mu.Unlock()
	return slices.Sorted(maps.Keys(m.urls))
}

// fetched notes how a fetch went; a success outlives later failures. A fetch
// that the power cut short says nothing of the URL.
func (b *boot) fetched(url string, err error) {
	if b.ctx.Err() != nil && err != nil {
		return
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if old, seen := b.urls[url]; !seen || old != nil {
		b.urls[url] = err
	}
}

func (b *boot) loaded(set func(*Loaded)) {
	b.mu.Lock()
	defer b.mu.Unlock()
	set(&b.served)
}

func hash(b []byte) string {
	sum := sha256.Sum256(b)
	return hex.EncodeToString(sum[:])
}

// boot is one period of power.
type boot struct {
	*Machine
	ctx  context.Context // ends when the power does
	cut  context.CancelCauseFunc
	host *Host
	node *Node // guarded by Machine.mu

	came      chan ending   // how far the first boot came
	done      chan struct{} // closed when the machine is off
	end       ending        // why; read it after done
	unplugged atomic.Bool   // by PowerOff
}

// ending is what PowerOn returns.
type ending struct {
	outcome Outcome
	err     error
}

// PowerOn starts the machine and blocks until its first boot comes to an end.
// A machine that was started from its medium and waits for its config is waited for.
//
// On Ready and Maintenance the machine stays on until [Machine.PowerOff], or
// until ctx, which is the electricity, ends: a Reset call makes it boot again,
// as often as there are some. Otherwise it is off again. It also goes off by
// itself when a later boot ends like that.
//
// A server that does not answer, or breaks off, is waited for as long as ctx
// lasts, by way of the boot manager's other options; a server that answers
// wrongly ends the boot with a [*Fault].
func (m *Machine) PowerOn(ctx context.Context) (Outcome, error) {
	_, outcome, err := m.powerOn(ctx)
	return outcome, err
}

func (m *Machine) powerOn(ctx context.Context) (*boot, Outcome, error) {
	power, cut := context.WithCancelCause(ctx)
	b := &boot{
		Machine: m, ctx: power, cut: cut, host: m.opts.Fabric.NewHost(m.opts.Name),
		came: make(chan ending, 1), done: make(chan struct{}),
	}
	m.mu.Lock()
	if m.power != nil {
		m.mu.Unlock()
		cut(nil)
		return nil, "", fmt.Errorf("%s is on already", m.opts.Name)
	}
	m.power = b
	m.mu.Unlock()
	go b.live()
	first := <-b.came
	return b, first.outcome, first.err
}

// live is the machine from power-on until it is off.
func (b *boot) live() {
	defer close(b.done)
	outcome, err := b.run(b.ctx)
	if err != nil {
		stood := b.timeline.last()
		b.timeline.add(StepSolicit, "off: %v", err)
		err = fmt.Errorf("%s, at %s: %w", b.opts.Name, stood, err)
	}
	b.cut(ErrPowerCut)
	b.host.Close()
	b.setNode(nil)
	b.mu.Lock()
	b.power = nil
	b.mu.Unlock()
	b.end = ending{outcome, err}
	b.tell(b.end)
}

// reach tells PowerOn that the machine is up.
func (b *boot) reach(o Outcome) { b.tell(ending{outcome: o}) }

// tell is heard once.
func (b *boot) tell(e ending) {
	select {
	case b.came <- e:
	default:
	}
}

// setNode makes n the Talos that runs, in place of the one before.
func (b *boot) setNode(n *Node) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.node != nil {
		b.accepted += b.node.Accepted()
	}
	b.node = n
}

// PowerOff cuts the power and waits until nothing of the machine runs.
func (m *Machine) PowerOff() {
	m.mu.Lock()
	b := m.power
	m.mu.Unlock()
	if b != nil {
		b.unplugged.Store(true)
		b.cut(ErrPowerCut)
		b.host.Close()
		<-b.done
	}
}

// step notes a step that is about to be taken, and asks the hook.
func (b *boot) step(s Step, format string, args ...any) error {
	b.stepping.Lock()
	defer b.stepping.Unlock()
	if b.ctx.Err() != nil {
		return context.Cause(b.ctx)
	}
	b.timeline.add(s, format, args...)
	if b.opts.OnStep != nil {
		if err := b.opts.OnStep(s); err != nil {
			b.cut(ErrPowerCut)
			return fmt.Errorf("%w: %w", ErrPowerCut, err)
		}
	}
	if b.ctx.Err() != nil {
		return context.Cause(b.ctx)
	}
	return nil
}

// errExit is iPXE giving up on purpose: the script said so.
var errExit = errors.New("iPXE exits to the firmware")

// run is the boot manager: network first, then disk, from the start again. It
// returns when the machine is off.
func (b *boot) run(ctx context.Context) (Outcome, error) {
	for {
		line, err := b.start(ctx)
		if err == nil {
			if err := b.talos(ctx, line); !errors.Is(err, errReboot) {
				return halted(err)
			}
			b.restart()
			continue
		}
		var broken *Fault
		if ctx.Err() != nil || errors.Is(err, ErrPowerCut) || errors.As(err, &broken) {
			return "", err
		}
		b.timeline.add(StepSolicit, "network boot ends: %v", err)
		switch {
		case b.disk.Installed():
			if err := b.talos(ctx, nil); !errors.Is(err, errReboot) {
				return halted(err)
			}
			b.restart()
		case errors.Is(err, errNoOffer) || errors.Is(err, errExit):
			return NoBoot, nil
		}
		if err := sleep(ctx, b.opts.Timing.BootRetry); err != nil {
			return "", err
		}
	}
}

func halted(err error) (Outcome, error) {
	if errors.Is(err, errHalt) {
		return PoweredOff, nil
	}
	return "", err
}

// restart is between Talos' end and the firmware: no Talos, no addresses.
func (b *boot) restart() {
	b.setNode(nil)
	b.host.dropAll()
}

// start gets as far as a kernel.
func (b *boot) start(ctx context.Context) (*commandLine, error) {
	if b.opts.Medium == "" || b.disk.Installed() {
		return b.network(ctx)
	}
	if err := b.step(StepKernel, "starts from its medium"); err != nil {
		return nil, err
	}
	b.loaded(func(l *Loaded) { *l = Loaded{CommandLine: b.opts.Medium} })
	return parseCommandLine(b.opts.Medium), nil
}

// network runs firmware and what it loads, and returns the kernel line.
func (b *boot) network(ctx context.Context) (*commandLine, error) {
	loader, err := b.firmware(ctx)
	if err != nil {
		return nil, err
	}
	if b.opts.Starts != nil {
		if err := b.opts.Starts(loader.bytes); err != nil {
			return nil, fmt.Errorf("the firmware does not start %s: %w", loader.url, err)
		}
	}
	if line, ok, err := b.uki(loader); ok {
		return line, err
	}
	return b.ipxe(ctx, loader)
}
