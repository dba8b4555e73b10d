package racktest

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"time"

	machineapi "github.com/siderolabs/talos/pkg/machinery/api/machine"
	"github.com/siderolabs/talos/pkg/machinery/config"
)

var (
	// errReboot sends the machine back to its firmware.
	errReboot = errors.New("Talos reboots")
	// errKexec starts the installed system without the firmware.
	errKexec = errors.New("Talos starts the installed system")
)

// system is one run of Talos, from its kernel's start to the next one.
type system struct {
	*boot
	line   *commandLine // nil: started from the disk, with its own fixed line
	events *eventLog
	net    *links
	trust  trust

	live     sync.WaitGroup
	draining chan struct{}
	sink     string             // endpoint that is streamed to
	stopSink context.CancelFunc // and what ends that
	sent     int                // events that a sink has confirmed

	kmsg         *kernelLog
	receiver     string             // URL that the kernel log is streamed to
	stopReceiver context.CancelFunc // and what ends that
	saidHostname string
}

// talos runs Talos: the netbooted one, which may install and kexec, or the one
// on the disk. It returns when that ends, with the reason.
func (b *boot) talos(ctx context.Context, line *commandLine) error {
	if line != nil {
		if err := line.check(); err != nil {
			return err
		}
	}
	for {
		if err := b.system(ctx, line); !errors.Is(err, errKexec) {
			return err
		}
		if err := sleep(ctx, b.opts.Timing.Kexec); err != nil {
			return err
		}
		line = nil
	}
}

func (b *boot) system(ctx context.Context, line *commandLine) error {
	s := &system{boot: b, line: line, events: newEventLog(), draining: make(chan struct{})}
	s.net = &links{boot: b}
	s.kmsg = newKernelLog()
	s.events.kmsg = s.kmsg
	ctx, stop := context.WithCancel(ctx)
	defer func() {
		close(s.draining)
		hard := time.AfterFunc(drainTimeout, stop)
		s.live.Wait()
		hard.Stop()
		stop()
	}()
	return s.run(ctx)
}

// run is the Initialize, Install and Boot sequences
// (pkg/runtime/v1alpha1/v1alpha1_sequencer.go).
func (s *system) run(ctx context.Context) error {
	e := s.events
	s.kmsg.kernel("Linux version 6.18.9-talos (@buildkitsandbox) (clang version 21.1.8) #1 SMP Wed Jan 28 12:00:00 UTC 2026")
	if s.line != nil {
		s.kmsg.kernel("Kernel command line: %s", s.line.text)
	} else {
		s.kmsg.kernel("Kernel command line: talos.platform=metal slab_nomerge pti=on")
	}
	s.kmsg.talos("[initramfs] booting Talos v1.13.6")
	e.sequence("initialize", machineapi.SequenceEvent_START)
	e.task("systemRequirements", "enforceKSPPRequirements")
	e.publish(&machineapi.AddressEvent{})
	s.unready("time: not synced", "network: waiting on: address, connectivity, hostname", "services: apid not running, kubelet not running")
	e.taskStart("earlyServices", "startMachined")
	for _, id := range []string{"containerd", "machined", "auditd", "syslogd", "udevd"} {
		e.up(id)
	}
	e.taskStop("earlyServices", "startMachined")
	e.task("usb", "waitForUSB")
	e.task("meta", "reloadMeta")
	if err := sleep(ctx, s.opts.Timing.Kernel); err != nil {
		return err
	}
	if s.line != nil && s.line.first("talos.experimental.wipe") != "" {
		s.wipe(s.line.first("talos.experimental.wipe"))
		return errReboot
	}
	if err := s.net.fromLine(s.line); err != nil {
		return err
	}
	s.sayHostname()
	s.setSink(ctx, nil)
	s.setKernelLog(ctx, nil)
	if err := s.platformNetwork(ctx); err != nil {
		return err
	}
	e.taskStart("config", "loadConfig")
	cfg, text, err := s.acquire(ctx)
	if err != nil {
		return err
	}
	if cfg == nil {
		if cfg, text, err = s.maintenance(ctx); err != nil {
			return err
		}
	}
	e.taskStop("config", "loadConfig")
	e.sequence("initialize", machineapi.SequenceEvent_STOP)
	e.sequence("install", machineapi.SequenceEvent_START)
	if !s.disk.Installed() {
		return s.install(ctx, cfg, text)
	}
	if s.disk.Config() == nil { // STATE was wiped, and the system was not
		s.disk.setConfig(text)
	}
	e.sequence("install", machineapi.SequenceEvent_STOP)
	if err := s.networkReady(ctx); err != nil {
		return err
	}
	s.platformAgain(ctx)
	return s.runNode(ctx, cfg)
}

// wipe carries out talos.experimental.wipe: "system" is the whole disk,
// "system:STATE,EPHEMERAL" are partitions of it. Talos reboots afterwards in any
// case: an order that cannot be carried out fails the sequence.
func (s *system) wipe(order string) {
	var err error
	labels, some := strings.CutPrefix(order, "system:")
	switch {
	case some:
		err = s.disk.wipePartitions(strings.Split(labels, ","))
	case order == "system":
		s.disk.Wipe()
	default:
		err = errors.New("unsupported wipe mode")
	}
	if err != nil {
		s.events.sequenceError("initialize", "sequence failed: "+err.Error())
		s.timeline.add(StepConfig, "Talos wipes nothing and reboots: talos.experimental.wipe=%s: %v", order, err)
		return
	}
	s.timeline.add(StepConfig, "Talos wipes its disk and reboots: talos.experimental.wipe=%s", order)
}

func (s *system) unready(reasons ...string) {
	var unmet []*machineapi.MachineStatusEvent_MachineStatus_UnmetCondition
	for _, r := range reasons {
		name, reason, _ := strings.Cut(r, ": ")
		unmet = append(unmet, &machineapi.MachineStatusEvent_MachineStatus_UnmetCondition{Name: name, Reason: reason})
	}
	s.events.status(machineapi.MachineStatusEvent_BOOTING, false, unmet...)
}

// install writes the disk. The API is closed for as long as it runs, and the
// event stream is silent.
func (s *system) install(ctx context.Context, cfg config.Provider, text []byte) error {
	target := cfg.Machine().Install().Disk()
	if target == "" {
		target = "the disk that diskSelector matches"
	}
	if err := s.step(StepInstall, "installs to %s", target); err != nil {
		return err
	}
	s.events.task("env", "setUserEnvVars")
	s.events.taskStart("install", "install")
	s.events.status(machineapi.MachineStatusEvent_INSTALLING, true)
	s.events.publish(s.addressEvent())
	if err := sleep(ctx, s.opts.Timing.Install); err != nil {
		return err
	}
	missing := s.disk.Path != "" && strings.HasPrefix(target, "/dev/") && target != s.disk.Path
	s.events.taskStop("install", "install")
	s.events.sequence("install", machineapi.SequenceEvent_STOP)
	if missing {
		s.events.sequenceError("install", fmt.Sprintf("sequence failed: error running phase 2 in install sequence: task 1/1: failed, 1 error(s) occurred:\n\topen %s: no such file or directory", target))
		s.events.status(machineapi.MachineStatusEvent_REBOOTING, true)
		s.timeline.add(StepInstall, "the install fails: there is no %s; Talos reboots", target)
		return errReboot
	}
	s.disk.Install(text)
	s.disk.setNoCloud(s.onNoCloud())
	s.events.status(machineapi.MachineStatusEvent_REBOOTING, true)
	return errKexec
}

func (s *system) addressEvent() *machineapi.AddressEvent {
	a := &machineapi.AddressEvent{Hostname: s.net.hostname}
	for _, addr := range s.net.addresses() {
		a.Addresses = append(a.Addresses, addr.String())
	}
	return a
}

// runNode is everything after the config: the Talos API and its services.
func (s *system) runNode(ctx context.Context, cfg config.Provider) error {
	node, err := newNode(NodeOptions{
		Hostname: s.net.hostname, Addresses: s.net.addresses(), Network: s.host, Peers: s.opts.Peers,
		Disk: s.disk, Timing: s.opts.Timing, SecureBoot: s.opts.SecureBoot, events: s.events, step: s.step,
	}, cfg)
	if err != nil {
		return err
	}
	s.setNode(node)
	ended := make(chan error, 1)
	s.live.Go(func() { ended <- node.Run(ctx) })
	select {
	case <-node.Ready():
		s.reach(Ready)
		err = <-ended
	case err = <-ended:
	}
	if err == nil { // the power went
		return context.Cause(ctx)
	}
	if errors.Is(err, ErrReset) || errors.Is(err, ErrReboot) {
		s.timeline.add(StepReady, "%v", err)
	}
	return err
}

// networkReady waits for an address. Without one it waits for ever: Talos
// knows no other way to get one.
func (s *system) networkReady(ctx context.Context) error {
	if len(s.net.addresses()) > 0 {
		return nil
	}
	s.timeline.add(StepConfig, "waiting for network to be ready: no ip=, no SLAAC, no config gives this NIC an address")
	<-ctx.Done()
	return context.Cause(ctx)
}

// setSink streams events to the endpoint that is to be used now: that of the
// active config, else that of the kernel line. The same endpoint keeps its
// connection; another goes on where the last one stopped.
func (s *system) setSink(ctx context.Context, active config.Provider) {
	endpoint := ""
	if s.line != nil {
		endpoint = s.line.first("talos.events.sink")
	}
	if active != nil {
		if e := active.Runtime().EventsEndpoint(); e != nil {
			endpoint = *e
		}
	}
	if len(s.net.addresses()) == 0 {
		endpoint = ""
	}
	if endpoint == s.sink {
		return
	}
	if s.stopSink != nil {
		s.stopSink()
	}
	s.sink, s.stopSink = endpoint, nil
	if endpoint == "" {
		return
	}
	done := make(chan struct{})
	streaming, cancel := context.WithCancel(ctx)
	s.stopSink = func() { cancel(); <-done }
	s.timeline.add(StepConfig, "events go to %s", endpoint)
	s.live.Go(func() {
		defer close(done)
		s.events.stream(streaming, endpoint, s.opts.Timing, s.draining, &s.sent)
	})
}

// activate makes a config the active one: its network, sinks and trusted roots
// replace those of the one before.
func (s *system) activate(ctx context.Context, cfg config.Provider) error {
	s.trust.set(cfg, len(s.net.addresses()) > 0)
	if err := s.net.apply(ctx, cfg); err != nil {
		return err
	}
	s.sayHostname()
	s.setSink(ctx, cfg)
	s.setKernelLog(ctx, cfg)
	return nil
}
