package racktest

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/google/uuid"
	"golang.org/x/sync/errgroup"
)

// RackOptions describe a rack of like machines.
type RackOptions struct {
	ControlPlanes, Workers int
	Net                    *Net
	Timing                 Timing
	// Firmware of the machines; empty: PXE and HTTP in turn.
	Firmware Firmware
	// IPXE is the generation of the loader that the server hands out.
	IPXE     IPXE
	Arch     string
	OwnStack bool
	SLAAC    netip.Prefix
	// Starts is described at [MachineOptions].
	Starts  func(image []byte) error
	Medium  string // that every machine is started from, as in MachineOptions
	Patient bool   // as in MachineOptions
	// OnStep is called before each step of each machine. An error cuts that
	// machine's power; [Rack.Run] switches it on again.
	OnStep func(*Machine, Step) error
}

// Rack is several machines on one network: first the control planes cp-1 and
// on, then the workers w-1 and on.
type Rack struct {
	Machines []*Machine
	// Fabric is where the machines' Talos APIs are.
	Fabric *Fabric

	opts RackOptions

	watchers sync.WaitGroup // one for each machine that is on

	mu     sync.Mutex
	start  time.Time
	cut    context.CancelCauseFunc // the electricity of the last Run
	failed []error                 // of machines that were up before
}

// NewRack makes the machines, all off, with blank disks. Their MACs, UUIDs and
// serials are the same every time.
func NewRack(o RackOptions) (*Rack, error) {
	r := &Rack{Fabric: NewFabric(), opts: o}
	peers := &Registry{}
	for i := range o.ControlPlanes + o.Workers {
		name := fmt.Sprintf("cp-%d", i+1)
		if i >= o.ControlPlanes {
			name = fmt.Sprintf("w-%d", i-o.ControlPlanes+1)
		}
		firmware := o.Firmware
		if firmware == "" {
			firmware = []Firmware{PXE, HTTP}[i%2]
		}
		var m *Machine
		m, err := NewMachine(MachineOptions{
			Name:     name,
			MACs:     []net.HardwareAddr{{0x52, 0x54, 0, 0, byte((i + 1) >> 8), byte(i + 1)}},
			UUID:     uuid.NewSHA1(uuid.NameSpaceOID, []byte(name)),
			Serial:   fmt.Sprintf("SN-%04d", i+1),
			Firmware: firmware, IPXE: o.IPXE, Arch: o.Arch, OwnStack: o.OwnStack, SLAAC: o.SLAAC, Starts: o.Starts, Medium: o.Medium, Patient: o.Patient,
			Net: o.Net, Fabric: r.Fabric, Peers: peers, Timing: o.Timing,
			OnStep: func(s Step) error {
				if o.OnStep == nil {
					return nil
				}
				return o.OnStep(m, s)
			},
		})
		if err != nil {
			return nil, err
		}
		r.Machines = append(r.Machines, m)
	}
	return r, nil
}

// Run switches all machines on and waits until all are ready, or one has a
// [*Fault], or ctx, which is the electricity, ends. A machine whose power was
// cut, or that found nothing to boot, is switched on again. The machines stay
// on until [Rack.Close], and are switched on again like that if they reboot; one
// whose power [Machine.PowerOff] cut is left alone, and so is one that a Reset
// call has switched off.
func (r *Rack) Run(ctx context.Context) error {
	// No errgroup.WithContext: its context would end with Run, and is power.
	power, cut := context.WithCancelCause(ctx)
	r.mu.Lock()
	r.start, r.cut = time.Now(), cut
	r.mu.Unlock()
	var all errgroup.Group
	for _, m := range r.Machines {
		all.Go(func() error {
			err := r.boot(power, m)
			if err != nil {
				cut(err)
			}
			return err
		})
	}
	return all.Wait()
}

func (r *Rack) boot(ctx context.Context, m *Machine) error {
	for {
		b, outcome, err := m.powerOn(ctx)
		switch {
		case ctx.Err() != nil:
			return fmt.Errorf("%s: %w; last at %s", m.Name(), context.Cause(ctx), m.timeline.last())
		case err == nil && outcome == Ready:
			r.watchers.Go(func() { r.watch(ctx, b) })
			return nil
		case err == nil && (outcome == Maintenance || outcome == PoweredOff):
			return fmt.Errorf("%s is not ready: %s", m.Name(), outcome)
		case err != nil && !errors.Is(err, ErrPowerCut):
			return err
		}
		if err := sleep(ctx, r.opts.Timing.BootRetry); err != nil {
			return err
		}
	}
}

// watch switches a machine on again that was up and went off in a later boot.
func (r *Rack) watch(ctx context.Context, b *boot) {
	<-b.done
	if ctx.Err() != nil || b.unplugged.Load() || b.end.outcome == PoweredOff {
		return
	}
	err := b.end.err
	if err == nil || errors.Is(err, ErrPowerCut) {
		if sleep(ctx, r.opts.Timing.BootRetry) != nil {
			return
		}
		err = r.boot(ctx, b.Machine)
	}
	if err != nil && ctx.Err() == nil {
		r.mu.Lock()
		defer r.mu.Unlock()
		r.failed = append(r.failed, err)
	}
}

// Check says what went wrong over the rack's whole life although every machine
// may be ready: a cluster that was bootstrapped more or less than once, or fell
// in two, machines that went off after they were up, and URLs that were handed out and never worked.
func (r *Rack) Check() error {
	r.mu.Lock()
	errs := slices.Clone(r.failed)
	r.mu.Unlock()
	accepted := 0
	etcds := map[string][]string{}
	for _, m := range r.Machines {
		accepted += m.Accepted()
		if id := m.Disk().Etcd(); id != "" {
			etcds[id] = append(etcds[id], m.Name())
		}
		for url, err := range m.Unfetched() {
			errs = append(errs, fmt.Errorf("%s could not fetch %s: %w", m.Name(), url, err))
		}
	}
	if accepted != 1 {
		errs = append(errs, fmt.Errorf("%d Bootstrap calls were accepted, not exactly 1", accepted))
	}
	if len(etcds) != 1 {
		var parts []string
		for _, names := range etcds {
			parts = append(parts, strings.Join(names, "+"))
		}
		slices.Sort(parts)
		errs = append(errs, fmt.Errorf("%d etcd clusters were formed, not exactly 1: %s", len(etcds), strings.Join(parts, ", ")))
	}
	return errors.Join(errs...)
}

// Close cuts the power of all machines and waits until nothing of them runs.
func (r *Rack) Close() {
	r.mu.Lock()
	cut := r.cut
	r.mu.Unlock()
	if cut != nil {
		cut(ErrPowerCut)
	}
	for _, m := range r.Machines {
		m.PowerOff()
	}
	r.watchers.Wait()
}

// Report prints what each machine did, with seconds since the start.
func (r *Rack) Report(w io.Writer) error {
	r.mu.Lock()
	start := r.start
	r.mu.Unlock()
	for _, m := range r.Machines {
		if _, err := fmt.Fprintf(w, "%s  %s  %s\n", m.Name(), m.MAC(), m.opts.Firmware); err != nil {
			return err
		}
		if err := m.timeline.print(w, start); err != nil {
			return err
		}
	}
	return nil
}
