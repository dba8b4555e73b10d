package racktest

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"

	"github.com/cosi-project/runtime/pkg/safe"
	"github.com/cosi-project/runtime/pkg/state"
	machineapi "github.com/siderolabs/talos/pkg/machinery/api/machine"
	"github.com/siderolabs/talos/pkg/machinery/config"
	"github.com/siderolabs/talos/pkg/machinery/resources/runtime"
	"golang.org/x/sync/errgroup"
)

// NodeNetwork is the TCP of a node.
type NodeNetwork interface {
	Listen(ctx context.Context, port uint16) (net.Listener, error)
	DialContext(ctx context.Context, network, address string) (net.Conn, error)
}

// NodeOptions describe one Talos system.
type NodeOptions struct {
	// Config is a complete machine config. It is loaded and validated as Talos
	// does it for the metal platform.
	Config []byte
	// Hostname, and the global addresses the node is reached at, at least one.
	Hostname  string
	Addresses []netip.Addr
	Network   NodeNetwork
	Peers     Peers
	// Disk holds the etcd data. Nil: a new one.
	Disk   *Disk
	Timing Timing
	// Sink is an event sink "[address]:port" for a node that runs alone; a
	// [Machine] has its own.
	Sink string
	// SecureBoot is what it says of its firmware.
	SecureBoot bool

	events *eventLog
	step   func(Step, string, ...any) error
}

// Node is a Talos system after it was given its config: apid, trustd, etcd and
// the machine status. Make one with [NewNode], then [Node.Run] it once.
type Node struct {
	opts      NodeOptions
	cfg       config.Provider
	cluster   ClusterRef
	control   bool
	events    *eventLog
	resources state.State
	ready     chan struct{}

	mu         sync.Mutex
	changed    chan struct{} // closed at each change of what follows
	services   []*service
	timeSynced bool
	nodeReady  bool
	stage      machineapi.MachineStatusEvent_MachineStage
	booted     bool        // the boot sequence has ended
	order      *resetOrder // a reset that is under way
	rebooting  bool        // a config that was applied takes it, or an upgrade
	upgrade    string      // version that it brings
	active     config.Provider
	shown      config.Provider // by the resource API
	trial      *trial          // of the active config; nil: it stays
	bootstraps int             // accepted calls
	status     *machineapi.MachineStatusEvent

	applying sync.Mutex // one config at a time
}

// service is one row of ServiceList.
type service struct {
	id      string
	state   machineapi.ServiceStateEvent_Action
	message string
	health  *machineapi.ServiceHealth
}

// NewNode checks the config and makes a node that does not run yet.
func NewNode(o NodeOptions) (*Node, error) {
	if o.Disk == nil {
		o.Disk = &Disk{}
	}
	cfg, err := loadConfig(context.Background(), o.Config, "via platform metal", o.Disk)
	if err != nil {
		return nil, err
	}
	if !cfg.CompleteForBoot() {
		return nil, errors.New("the config has no v1alpha1 document: Talos would stay in maintenance mode")
	}
	return newNode(o, cfg)
}

func newNode(o NodeOptions, cfg config.Provider) (*Node, error) {
	if o.Network == nil || o.Peers == nil || len(o.Addresses) == 0 {
		return nil, errors.New("a node needs Network, Peers and Addresses")
	}
	n := &Node{
		opts: o, cfg: cfg, active: cfg, control: cfg.Machine().Type().IsControlPlane(),
		events: o.events, resources: newResources(), ready: make(chan struct{}), changed: make(chan struct{}),
		cluster: ClusterRef{Secret: cfg.Cluster().Secret(), Endpoint: cfg.Cluster().Endpoint()},
		stage:   machineapi.MachineStatusEvent_BOOTING,
	}
	if n.events == nil {
		n.events = newEventLog()
	}
	if n.opts.step == nil {
		n.opts.step = func(Step, string, ...any) error { return nil }
	}
	if ca := cfg.Cluster().IssuingCA(); ca != nil {
		n.cluster.CA = ca.Crt
	}
	ids := []string{"machined", "containerd", "udevd", "auditd", "syslogd", "apid", "cri", "kubelet"}
	if n.control {
		ids = append(ids, "trustd", "etcd")
	}
	for _, id := range ids {
		n.services = append(n.services, &service{id: id, health: &machineapi.ServiceHealth{Unknown: true}})
	}
	return n, nil
}

// Accepted counts the Bootstrap calls that were answered with OK.
func (n *Node) Accepted() int {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.bootstraps
}

// Ready is closed once the node's stage is running and it is ready.
func (n *Node) Ready() <-chan struct{} { return n.ready }

// ControlPlane reports whether the node is one.
func (n *Node) ControlPlane() bool { return n.control }

// Run runs the node until ctx ends, and returns nil then. It leaves nothing
// behind but what is on the disk. After a Reset call has done its work Run
// returns an error that wraps ErrReset, and one that wraps ErrReboot when a config
// that was applied takes a reboot, or an upgrade does.
func (n *Node) Run(parent context.Context) error {
	live, ctx := errgroup.WithContext(parent)
	e := n.events
	e.sequence("boot", machineapi.SequenceEvent_START)
	security := runtime.NewSecurityStateSpec(runtime.NamespaceName)
	security.TypedSpec().SecureBoot = n.opts.SecureBoot
	if err := n.resources.Create(ctx, security); err != nil {
		return ended(ctx, err)
	}
	if err := n.update(ctx, func() {}); err != nil {
		return err
	}
	e.publish(n.addressEvent())
	for _, task := range []string{"memorySizeCheck", "diskSizeCheck"} {
		e.task(task, task)
	}
	e.task("env", "waitForCARoots")
	e.task("dbus", "startDBus")
	e.task("ephemeral", "mountEphemeralPartition")
	e.task("udevSetup", "writeUdevRules")
	e.task("userSetup", "writeUserFiles")
	e.taskStart("startEverything", "startAllServices")
	for _, id := range []string{"machined", "containerd", "udevd", "auditd", "syslogd"} {
		if err := n.up(ctx, id); err != nil {
			return err
		}
	}
	if n.opts.Sink != "" {
		live.Go(func() error { e.stream(ctx, n.opts.Sink, n.opts.Timing, nil, new(int)); return nil })
	}
	serving, stop := context.WithCancelCause(ctx)
	defer stop(nil)
	var services sync.WaitGroup
	serve := func(run func(context.Context) error) {
		services.Add(1)
		live.Go(func() error {
			defer services.Done()
			err := run(serving)
			if errors.Is(context.Cause(serving), errStopping) {
				return nil
			}
			return err
		})
	}
	serve(n.runAPI)
	serve(n.runKubelet)
	serve(n.runTime)
	serve(n.runBoot)
	if n.control {
		serve(n.runTrustd)
		serve(n.runEtcd)
	}
	serve(n.runTrials)
	down := func() { stop(errStopping); services.Wait() }
	live.Go(func() error { return n.runReset(ctx, down) })
	live.Go(func() error { return n.runReboot(ctx, down) })
	err := live.Wait()
	if parent.Err() != nil {
		return nil
	}
	return err
}

func (n *Node) addressEvent() *machineapi.AddressEvent {
	a := &machineapi.AddressEvent{Hostname: n.opts.Hostname}
	for _, addr := range n.opts.Addresses {
		a.Addresses = append(a.Addresses, addr.String())
	}
	return a
}

// runTime is the clock: trustd, etcd and Bootstrap wait for it.
func (n *Node) runTime(ctx context.Context) error {
	if err := sleep(ctx, n.opts.Timing.TimeSync); err != nil {
		return err
	}
	return n.update(ctx, func() { n.timeSynced = true })
}

// runKubelet is cri, then kubelet, then the node object: it is ready when the
// control plane it belongs to has a running etcd.
func (n *Node) runKubelet(ctx context.Context) error {
	if err := n.set(ctx, "cri", machineapi.ServiceStateEvent_STARTING, "Starting service", false); err != nil {
		return err
	}
	if err := sleep(ctx, n.opts.Timing.CRI); err != nil {
		return err
	}
	if err := n.up(ctx, "cri"); err != nil {
		return err
	}
	if err := n.set(ctx, "kubelet", machineapi.ServiceStateEvent_PREPARING, "Running pre state", false); err != nil {
		return err
	}
	if err := sleep(ctx, n.opts.Timing.Kubelet); err != nil {
		return err
	}
	if err := n.up(ctx, "kubelet"); err != nil {
		return err
	}
	for len(n.opts.Peers.Members(ctx, n.cluster)) == 0 {
		if err := sleep(ctx, n.opts.Timing.Poll); err != nil {
			return err
		}
	}
	return n.update(ctx, func() { n.nodeReady = true })
}

// runBoot is the rest of the boot sequence: it ends when all services are up. A
// reset cancels it; it goes on after one that failed.
func (n *Node) runBoot(ctx context.Context) error {
	for booted := false; !booted; {
		if err := n.wait(ctx, func() bool { return n.order == nil && !n.rebooting && len(n.unhealthy()) == 0 && n.timeSynced }); err != nil {
			return err
		}
		if err := n.update(ctx, func() {
			if n.order != nil || n.rebooting {
				return
			}
			n.events.taskStop("startEverything", "startAllServices")
			n.events.sequence("boot", machineapi.SequenceEvent_STOP)
			n.stage, n.booted, booted = machineapi.MachineStatusEvent_RUNNING, true, true
		}); err != nil {
			return err
		}
	}
	if err := n.wait(ctx, func() bool { return n.order == nil && n.nodeReady }); err != nil {
		return err
	}
	if err := n.opts.step(StepReady, "running and ready"); err != nil {
		return err
	}
	close(n.ready)
	return nil
}

// wait blocks until a condition on the guarded fields holds.
func (n *Node) wait(ctx context.Context, cond func() bool) error {
	for {
		n.mu.Lock()
		ok, changed := cond(), n.changed
		n.mu.Unlock()
		if ok {
			return nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

// update changes the guarded fields, wakes waiters, and publishes the machine
// status if it is another one now.
func (n *Node) update(ctx context.Context, change func()) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	change()
	close(n.changed)
	n.changed = make(chan struct{})
	if err := n.showConfig(ctx); err != nil {
		return err
	}
	next := n.machineStatus()
	if n.status.String() == next.String() {
		return nil
	}
	n.status = next
	n.events.publish(next)
	err := safe.StateModify(ctx, n.resources, runtime.NewMachineStatus(), func(r *runtime.MachineStatus) error {
		r.TypedSpec().Stage = runtime.MachineStage(next.Stage)
		r.TypedSpec().Status.Ready = next.Status.Ready
		r.TypedSpec().Status.UnmetConditions = nil
		for _, c := range next.Status.UnmetConditions {
			r.TypedSpec().Status.UnmetConditions = append(r.TypedSpec().Status.UnmetConditions, runtime.UnmetCondition{Name: c.Name, Reason: c.Reason})
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("storing the machine status: %w", ended(ctx, err))
	}
	return nil
}

// machineStatus names what is missing with Talos' words.
func (n *Node) machineStatus() *machineapi.MachineStatusEvent {
	var unmet []*machineapi.MachineStatusEvent_MachineStatus_UnmetCondition
	if n.stage == machineapi.MachineStatusEvent_RESETTING || n.stage == machineapi.MachineStatusEvent_REBOOTING || n.stage == machineapi.MachineStatusEvent_UPGRADING { // Talos checks nothing then, and says ready
		return &machineapi.MachineStatusEvent{Stage: n.stage, Status: &machineapi.MachineStatusEvent_MachineStatus{Ready: true}}
	}
	add := func(name, reason string) {
		unmet = append(unmet, &machineapi.MachineStatusEvent_MachineStatus_UnmetCondition{Name: name, Reason: reason})
	}
	if !n.timeSynced {
		add("time", "time is not synced")
	}
	if missing := n.unhealthy(); len(missing) > 0 {
		add("services", strings.Join(missing, ", "))
	}
	if !n.nodeReady {
		add("nodeReady", fmt.Sprintf("node %q status is not available yet", n.opts.Hostname))
	}
	return &machineapi.MachineStatusEvent{
		Stage:  n.stage,
		Status: &machineapi.MachineStatusEvent_MachineStatus{Ready: len(unmet) == 0, UnmetConditions: unmet},
	}
}

func (n *Node) unhealthy() (missing []string) {
	for _, s := range n.services {
		switch {
		case s.state != machineapi.ServiceStateEvent_RUNNING:
			missing = append(missing, s.id+" not running")
		case !s.health.Healthy:
			missing = append(missing, s.id+" not healthy")
		}
	}
	slices.Sort(missing)
	return missing
}

func (n *Node) healthy(id string) bool {
	for _, s := range n.services {
		if s.id == id {
			return s.state == machineapi.ServiceStateEvent_RUNNING && s.health.Healthy
		}
	}
	return false
}

// up runs a service through its states to a healthy one.
func (n *Node) up(ctx context.Context, id string) error {
	if err := n.started(ctx, id); err != nil {
		return err
	}
	return n.set(ctx, id, machineapi.ServiceStateEvent_RUNNING, "Health check successful", true)
}

// started runs a service through its states to one that runs.
func (n *Node) started(ctx context.Context, id string) error {
	for _, s := range []struct {
		state   machineapi.ServiceStateEvent_Action
		message string
	}{
		{machineapi.ServiceStateEvent_STARTING, "Starting service"},
		{machineapi.ServiceStateEvent_PREPARING, "Creating service runner"},
		{machineapi.ServiceStateEvent_RUNNING, "Started task " + id},
	} {
		if err := n.set(ctx, id, s.state, s.message, false); err != nil {
			return err
		}
	}
	return nil
}

func (n *Node) set(ctx context.Context, id string, to machineapi.ServiceStateEvent_Action, message string, healthy bool) error {
	health := &machineapi.ServiceHealth{Unknown: !healthy, Healthy: healthy}
	n.events.service(id, to, message, health)
	return n.update(ctx, func() {
		for _, s := range n.services {
			if s.id == id {
				s.state, s.message, s.health = to, message, health
			}
		}
	})
}
