package racktest

import (
	"context"
	"errors"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/cosi-project/runtime/pkg/safe"
	machineapi "github.com/siderolabs/talos/pkg/machinery/api/machine"
	"github.com/siderolabs/talos/pkg/machinery/client"
	"github.com/siderolabs/talos/pkg/machinery/config/machine"
	configres "github.com/siderolabs/talos/pkg/machinery/resources/config"
	"github.com/siderolabs/talos/pkg/machinery/role"
	"google.golang.org/grpc/codes"
)

// members lists etcd's members by host name, as one control plane sees them.
func members(t *testing.T, c *client.Client) map[string]uint64 {
	t.Helper()
	list, err := c.EtcdMemberList(t.Context(), &machineapi.EtcdMemberListRequest{})
	if err != nil {
		t.Fatal(err)
	}
	ids := map[string]uint64{}
	seen := map[uint64]bool{}
	for _, m := range list.Messages[0].Members {
		if ids[m.Hostname] != 0 || seen[m.Id] || m.Id == 0 {
			t.Fatalf("members are %v", list.Messages[0].Members)
		}
		ids[m.Hostname], seen[m.Id] = m.Id, true
	}
	return ids
}

func remove(t *testing.T, c *client.Client, id uint64) codes.Code {
	t.Helper()
	return client.StatusCode(c.EtcdRemoveMemberByID(t.Context(), &machineapi.EtcdRemoveMemberByIDRequest{MemberId: id}))
}

// planes are three control planes of one cluster, and what each is reached by.
type planes struct {
	fabric  *Fabric
	peers   *Registry
	config  []byte
	nodes   [3]*Node
	off     [3]func()
	disks   [3]*Disk
	clients [3]*client.Client
}

func (p *planes) addr(i int) netip.Addr {
	return netip.MustParseAddr([]string{endpointHost, "fd00:1ab::12", "fd00:1ab::13"}[i])
}

func (p *planes) on(t *testing.T, i int) {
	t.Helper()
	p.nodes[i], p.off[i] = startNode(t, p.fabric, p.peers, []string{"cp-1", "cp-2", "cp-3"}[i], p.addr(i).String(), p.config, func(o *NodeOptions) {
		o.Disk = p.disks[i]
	})
}

func newPlanes(t *testing.T) *planes {
	t.Helper()
	p := &planes{fabric: NewFabric(), peers: &Registry{}, config: machineConfig(t, newBundle(), machine.TypeControlPlane)}
	for i := range p.nodes {
		p.disks[i] = &Disk{}
		p.on(t, i)
		p.clients[i] = dial(t, p.fabric, newBundle(), p.addr(i))
	}
	bootstrap(t, p.clients[0])
	ready(t, p.nodes[:]...)
	return p
}

func (n *Node) isHealthy(id string) bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.healthy(id)
}

// A member stays one while its machine is off, and its id is its own.
func TestMembersOutliveTheirMachines(t *testing.T) {
	p := newPlanes(t)
	before := members(t, p.clients[0])
	if len(before) != 3 {
		t.Fatalf("members are %v", before)
	}
	p.off[2]()
	if got := members(t, p.clients[0]); len(got) != 3 || got["cp-3"] != before["cp-3"] {
		t.Errorf("with cp-3 off the members are %v, before %v", got, before)
	}

	p.off[1]()
	eventually(t, "etcd without quorum to be unhealthy", func() bool { return !p.nodes[0].isHealthy("etcd") })
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	if _, err := p.clients[0].EtcdMemberList(ctx, &machineapi.EtcdMemberListRequest{}); client.StatusCode(err) != codes.DeadlineExceeded {
		t.Errorf("member list without quorum: %v", err)
	}
	ctx, cancel = context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	if err := p.clients[0].EtcdRemoveMemberByID(ctx, &machineapi.EtcdRemoveMemberByIDRequest{MemberId: before["cp-3"]}); client.StatusCode(err) != codes.DeadlineExceeded {
		t.Errorf("removal without quorum: %v", err)
	}
	if err := p.nodes[0].leaveEtcd(); !errors.Is(err, errNoQuorum) {
		t.Errorf("leaving without quorum: %v", err)
	}

	p.on(t, 1)
	ready(t, p.nodes[1])
	if got := members(t, p.clients[0]); len(got) != 3 || got["cp-2"] != before["cp-2"] {
		t.Errorf("with cp-2 back the members are %v, before %v", got, before)
	}
}

// A removed member's etcd stops and does not come back, until its disk is wiped.
func TestRemovedMember(t *testing.T) {
	p := newPlanes(t)
	before := members(t, p.clients[0])
	if got := remove(t, p.clients[0], before["cp-3"]); got != codes.OK {
		t.Fatalf("removal: %v", got)
	}
	if got := remove(t, p.clients[0], before["cp-3"]); got != codes.NotFound {
		t.Errorf("removal of a member that is gone: %v", got)
	}
	eventually(t, "the removed member's end", func() bool { return etcdState(t, p.clients[2]) == "Waiting" })
	p.off[2]()
	p.on(t, 2)
	eventually(t, "the removed member's end after a restart", func() bool { return etcdState(t, p.clients[2]) == "Waiting" })
	if got := members(t, p.clients[0]); len(got) != 2 || got["cp-3"] != 0 {
		t.Errorf("members are %v", got)
	}
	p.off[2]()
	p.disks[2].Wipe()
	p.on(t, 2)
	ready(t, p.nodes[2])
	if got := members(t, p.clients[0]); len(got) != 3 || got["cp-3"] == before["cp-3"] {
		t.Errorf("members are %v, before %v", got, before)
	}

	// Two of three run: one that runs may not go, the other two need it.
	p.off[1]()
	if got := remove(t, p.clients[0], before["cp-1"]); got != codes.FailedPrecondition {
		t.Errorf("removal of a member that is needed: %v", got)
	}
	if got := remove(t, p.clients[0], before["cp-2"]); got != codes.OK {
		t.Errorf("removal of a member that is off: %v", got)
	}
}

// One whose disk was wiped takes its own stale place away when it joins.
func TestStaleMember(t *testing.T) {
	p := newPlanes(t)
	before := members(t, p.clients[0])
	p.off[2]()
	p.disks[2].Wipe()
	if got := members(t, p.clients[0]); got["cp-3"] != before["cp-3"] {
		t.Errorf("after the wipe the members are %v, before %v", got, before)
	}
	p.on(t, 2)
	ready(t, p.nodes[2])
	if got := members(t, p.clients[0]); len(got) != 3 || got["cp-3"] == before["cp-3"] {
		t.Errorf("after it joined again the members are %v, before %v", got, before)
	}
}

// A learner has no vote: a node that dies while it joins takes no quorum along.
func TestLearner(t *testing.T) {
	r, c := &Registry{}, ClusterRef{Secret: "x"}
	m := Member{Name: "cp-1", Etcd: "e"}
	var err error
	if m.ID, err = r.Join(m); err != nil {
		t.Fatal(err)
	}
	if _, err := r.Membership(t.Context(), c, "e"); !errors.Is(err, errNoQuorum) {
		t.Errorf("nobody runs: %v", err)
	}
	_, withdraw := r.Announce(c, m)
	if _, err := r.Join(Member{Name: "cp-2", Etcd: "e"}); err != nil {
		t.Fatal(err)
	}
	got, err := r.Membership(t.Context(), c, "e")
	if err != nil || len(got) != 2 || got[0].Learner || !got[1].Learner {
		t.Errorf("members are %v, %v", got, err)
	}
	withdraw()
	if _, err := r.Join(Member{Name: "cp-3", Etcd: "e"}); !errors.Is(err, errNoQuorum) {
		t.Errorf("joining without quorum: %v", err)
	}
}

func second[T any](_ T, err error) error { return err }

func TestResetIsForAdmins(t *testing.T) {
	f := NewFabric()
	disk := &Disk{}
	n, _ := startNode(t, f, &Registry{}, "cp-1", endpointHost, machineConfig(t, newBundle(), machine.TypeControlPlane), func(o *NodeOptions) { o.Disk = disk })
	eventually(t, "the API", func() bool { return n.isHealthy("apid") })
	c := dialAs(t, f, role.Operator, netip.MustParseAddr(endpointHost))
	for name, err := range map[string]error{
		"Reset":                c.ResetGeneric(t.Context(), &machineapi.ResetRequest{Reboot: true}),
		"EtcdRemoveMemberByID": c.EtcdRemoveMemberByID(t.Context(), &machineapi.EtcdRemoveMemberByIDRequest{MemberId: 1}),
		"EtcdLeaveCluster":     c.EtcdLeaveCluster(t.Context(), &machineapi.EtcdLeaveClusterRequest{}),
		"ApplyConfiguration":   second(c.ApplyConfiguration(t.Context(), &machineapi.ApplyConfigurationRequest{})),
		"Upgrade":              second(c.MachineClient.Upgrade(t.Context(), &machineapi.UpgradeRequest{Image: "x:v1"})), //nolint:staticcheck // deprecated, and used
		"reading its config":   second(safe.StateGetByID[*configres.MachineConfig](t.Context(), c.COSI, configres.ActiveID)),
	} {
		if client.StatusCode(err) != codes.PermissionDenied {
			t.Errorf("os:operator calling %s: %v", name, err)
		}
	}
	if disk.Wipes() != 0 {
		t.Error("the disk was wiped")
	}
}

// What a Reset call does to the disk, and where the node goes from there.
func TestReset(t *testing.T) {
	config := machineConfig(t, newBundle(), machine.TypeControlPlane)
	spec := func(labels ...string) (specs []*machineapi.ResetPartitionSpec) {
		for _, l := range labels {
			specs = append(specs, &machineapi.ResetPartitionSpec{Label: l, Wipe: true})
		}
		return specs
	}
	for _, tc := range []struct {
		name      string
		req       *machineapi.ResetRequest
		refused   bool
		next      error
		wipes     int
		installed bool
		config    bool
		etcd      bool
	}{
		{name: "system disk", req: &machineapi.ResetRequest{Reboot: true, Mode: machineapi.ResetRequest_SYSTEM_DISK}, next: errReboot, wipes: 1},
		{name: "all disks", req: &machineapi.ResetRequest{Reboot: true, Mode: machineapi.ResetRequest_ALL}, next: errReboot, wipes: 1},
		{name: "no reboot", req: &machineapi.ResetRequest{Mode: machineapi.ResetRequest_SYSTEM_DISK}, next: errHalt, wipes: 1},
		{name: "user disks", req: &machineapi.ResetRequest{Reboot: true, Mode: machineapi.ResetRequest_USER_DISKS}, next: errKexec, installed: true, config: true, etcd: true},
		{name: "EPHEMERAL", req: &machineapi.ResetRequest{Reboot: true, SystemPartitionsToWipe: spec("EPHEMERAL")}, next: errKexec, wipes: 1, installed: true, config: true},
		{name: "STATE", req: &machineapi.ResetRequest{Reboot: true, SystemPartitionsToWipe: spec("STATE")}, next: errKexec, wipes: 1, installed: true, etcd: true},
		{name: "META", req: &machineapi.ResetRequest{Reboot: true, SystemPartitionsToWipe: spec("META")}, next: errReboot, wipes: 1, config: true, etcd: true},
		{name: "no such partition", req: &machineapi.ResetRequest{Reboot: true, SystemPartitionsToWipe: spec("HOME")}, refused: true, installed: true, config: true, etcd: true},
		{name: "user disks named, system disk meant", req: &machineapi.ResetRequest{Mode: machineapi.ResetRequest_SYSTEM_DISK, UserDisksToWipe: []string{"/dev/sdb"}}, refused: true, installed: true, config: true, etcd: true},
	} {
		t.Run(tc.name, func(t *testing.T) {
			f := NewFabric()
			n, disk, c := installedNode(t, f, config)
			err := c.ResetGeneric(t.Context(), tc.req)
			if (err != nil) != tc.refused {
				t.Errorf("Reset answered %v", err)
			}
			if tc.refused {
				n.cancel()
			}
			err = n.ended()
			if tc.refused && err != nil || !tc.refused && (!errors.Is(err, ErrReset) || !errors.Is(err, tc.next)) {
				t.Errorf("Run returned %v, want %v", err, tc.next)
			}
			if _, err := f.DialContext(t.Context(), "tcp", "["+endpointHost+"]:50000"); err == nil {
				t.Error("the API is still there")
			}
			if disk.Wipes() != tc.wipes || disk.Installs() != 1 {
				t.Errorf("%d wipes, %d installs", disk.Wipes(), disk.Installs())
			}
			if disk.Installed() != tc.installed || (disk.Config() != nil) != tc.config || (disk.Etcd() != "") != tc.etcd {
				t.Errorf("installed %t, config %t, etcd %q", disk.Installed(), disk.Config() != nil, disk.Etcd())
			}
		})
	}
}

// A graceful reset of the last member fails, since etcd lets it not go: the node
// keeps its disk and its stage.
func TestGracefulResetOfLastMember(t *testing.T) {
	f := NewFabric()
	disk := &Disk{}
	n, _ := startNode(t, f, &Registry{}, "cp-1", endpointHost, machineConfig(t, newBundle(), machine.TypeControlPlane), func(o *NodeOptions) { o.Disk = disk })
	c := dial(t, f, newBundle(), netip.MustParseAddr(endpointHost))
	bootstrap(t, c)
	ready(t, n)
	data := disk.Etcd()
	if err := c.ResetGeneric(t.Context(), &machineapi.ResetRequest{Graceful: true, Reboot: true, Mode: machineapi.ResetRequest_SYSTEM_DISK}); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the failure", func() bool {
		return slices.ContainsFunc(sequences(t, n.events), func(e string) bool { return strings.Contains(e, "reset NOOP") })
	})
	eventually(t, "the stage it had", func() bool {
		n.mu.Lock()
		defer n.mu.Unlock()
		return n.order == nil && n.stage == machineapi.MachineStatusEvent_RUNNING && n.status.Status.Ready
	})
	if disk.Wipes() != 0 || disk.Etcd() != data || len(members(t, c)) != 1 {
		t.Errorf("%d wipes, etcd %q, before %q", disk.Wipes(), disk.Etcd(), data)
	}
}

// sequences lists the sequence events of a log, errors with their text.
func sequences(t *testing.T, l *eventLog) (list []string) {
	t.Helper()
	for i := 0; ; i++ {
		e, _ := l.at(i)
		if e == nil {
			return list
		}
		msg, err := e.Data.UnmarshalNew()
		if err != nil {
			t.Fatal(err)
		}
		if s, ok := msg.(*machineapi.SequenceEvent); ok {
			if (e.ActorId != "") != (s.Sequence == "reset") {
				t.Errorf("actor of %s is %q", s.Sequence, e.ActorId)
			}
			list = append(list, strings.TrimSpace(s.Sequence+" "+s.Action.String()+" "+s.Error.GetMessage()))
		}
	}
}

// One that boots is reset in the middle of it; while that lasts a second call is
// refused.
func TestResetWhileBooting(t *testing.T) {
	f := NewFabric()
	n := runNode(t, f, &Registry{}, "cp-1", endpointHost, machineConfig(t, newBundle(), machine.TypeControlPlane), func(o *NodeOptions) {
		o.Timing.Stop = 5 * time.Second // within which a second call comes, on a busy host, too
	})
	c := dial(t, f, newBundle(), netip.MustParseAddr(endpointHost))
	eventually(t, "etcd waiting", func() bool { return etcdState(t, c) == "Preparing" })
	if err := c.ResetGeneric(t.Context(), &machineapi.ResetRequest{Graceful: true, Reboot: true}); err != nil {
		t.Fatal(err)
	}
	if err := c.ResetGeneric(t.Context(), &machineapi.ResetRequest{Reboot: true}); client.StatusCode(err) != codes.FailedPrecondition {
		t.Errorf("a second Reset answered %v", err)
	}
	if err := n.ended(); !errors.Is(err, ErrReset) {
		t.Errorf("Run returned %v", err)
	}
	want := []string{"boot START", "boot STOP", "boot NOOP sequence failed: context canceled", "reset START"}
	if got := sequences(t, n.events); !slices.Equal(got, want) {
		t.Errorf("sequences\n got %q\nwant %q", got, want)
	}
	if n.opts.Disk.Wipes() != 1 {
		t.Errorf("%d wipes", n.opts.Disk.Wipes())
	}
}

// cameBack waits until a machine is up with another Talos than before.
func cameBack(t *testing.T, m *Machine, before *Node) {
	t.Helper()
	eventually(t, "another Talos", func() bool {
		n := m.Node()
		if n == nil || n == before {
			return false
		}
		select {
		case <-n.Ready():
			return true
		default:
			return false
		}
	})
}

// A machine that is up is reset over its API: it reboots to its firmware by
// itself, installs once more and comes up; or it is off.
func TestMachineReset(t *testing.T) {
	s := newSite(t)
	m := newMachine(t, s, nil)
	mustBoot(t, m)
	first, etcd := m.Node(), m.Disk().Etcd()
	ctx, cancel := context.WithCancel(t.Context())
	var operator sync.WaitGroup
	defer func() { cancel(); operator.Wait() }()
	c := dialMachine(t, m)
	if err := c.ResetGeneric(ctx, &machineapi.ResetRequest{Reboot: true, Mode: machineapi.ResetRequest_SYSTEM_DISK}); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the wipe", func() bool { return m.Disk().Wipes() == 1 })
	operator.Go(func() { bootstrapWhenUp(ctx, t, m) })
	cameBack(t, m, first)
	if m.Disk().Wipes() != 1 || m.Disk().Installs() != 2 || m.Disk().Etcd() == etcd || m.Accepted() != 2 {
		t.Errorf("%d wipes, %d installs, %d bootstraps, etcd %q, before %q", m.Disk().Wipes(), m.Disk().Installs(), m.Accepted(), m.Disk().Etcd(), etcd)
	}

	eventually(t, "the API", func() bool { _, err := c.Version(ctx); return err == nil })
	if err := c.ResetGeneric(ctx, &machineapi.ResetRequest{Mode: machineapi.ResetRequest_SYSTEM_DISK}); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the machine to be off", func() bool { m.mu.Lock(); defer m.mu.Unlock(); return m.power == nil })
	if m.Disk().Wipes() != 2 || m.Disk().Installed() || m.Node() != nil {
		t.Errorf("%d wipes, installed %t", m.Disk().Wipes(), m.Disk().Installed())
	}
	mustBoot(t, m)
	if m.Disk().Installs() != 3 {
		t.Errorf("%d installs", m.Disk().Installs())
	}
}

// The event stream ends with the phase that wipes, in stage RESETTING.
func TestResetEvents(t *testing.T) {
	s := newSite(t)
	m := newMachine(t, s, nil)
	text := machineConfig(t, newBundle(), machine.TypeControlPlane, staticPatch(m.MAC(), address(m.MAC(), 0), "cp-1"),
		"apiVersion: v1alpha1\nkind: EventSinkConfig\nendpoint: '"+s.sink+"'\n")
	s.with(func() { s.config = func(string) []byte { return text } })
	mustBoot(t, m)
	c := dialMachine(t, m)
	if err := c.ResetGeneric(t.Context(), &machineapi.ResetRequest{Mode: machineapi.ResetRequest_SYSTEM_DISK}); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the machine to be off", func() bool { m.mu.Lock(); defer m.mu.Unlock(); return m.power == nil })
	s.mu.Lock()
	defer s.mu.Unlock()
	last, ok := s.events[len(s.events)-1].(*machineapi.PhaseEvent)
	if !ok || last.Phase != "reset" || last.Action != machineapi.PhaseEvent_STOP {
		t.Errorf("the last event is %v", s.events[len(s.events)-1])
	}
	var stages []string
	for _, e := range s.events {
		if e, ok := e.(*machineapi.MachineStatusEvent); ok {
			stages = append(stages, e.Stage.String())
		}
	}
	if stages[len(stages)-1] != "RESETTING" {
		t.Errorf("stages are %v", slices.Compact(stages))
	}
}

// The kernel line may name partitions; what it does not say is not wiped.
func TestWipeOrders(t *testing.T) {
	for _, tc := range []struct {
		order           string
		wipes, installs int
		etcd            bool // it is still there
	}{
		{"system", 1, 2, false},
		{"system:EPHEMERAL,STATE", 1, 1, false},
		{"system:STATE", 1, 1, true},
		{"system:NOSUCH", 0, 1, true},
		{"system:", 0, 1, true},
		{"systems", 0, 1, true},
	} {
		t.Run(tc.order, func(t *testing.T) {
			s := newSite(t)
			m := newMachine(t, s, nil)
			mustBoot(t, m)
			etcd := m.Disk().Etcd()
			m.PowerOff()
			ordered := false
			s.with(func() {
				s.kernelLine = func(l string) string {
					if ordered {
						return l
					}
					ordered = true
					return l + " talos.experimental.wipe=" + tc.order
				}
			})
			ctx, cancel := context.WithCancel(t.Context())
			var operator sync.WaitGroup
			operator.Go(func() { bootstrapWhenUp(ctx, t, m) })
			outcome, err := powerOn(t, m)
			cancel()
			operator.Wait()
			if outcome != Ready || err != nil {
				t.Fatalf("%q, %v", outcome, err)
			}
			d := m.Disk()
			if d.Wipes() != tc.wipes || d.Installs() != tc.installs || (d.Etcd() == etcd) != tc.etcd || d.Config() == nil {
				t.Errorf("%d wipes, %d installs, etcd %q, before %q", d.Wipes(), d.Installs(), d.Etcd(), etcd)
			}
		})
	}
}

// A rack brings a machine back that was reset, over a power cut too, and the
// cluster takes it in again.
func TestRackReset(t *testing.T) {
	s := newSite(t)
	var mu sync.Mutex
	cut := false
	r := newRack(t, s, RackOptions{OnStep: func(m *Machine, at Step) error {
		mu.Lock()
		defer mu.Unlock()
		if m.Name() == "cp-3" && m.Disk().Wipes() == 1 && at == StepInstall && !cut {
			cut = true
			return errors.New("power cut")
		}
		return nil
	}}, 0)
	runRack(t, r)
	m := r.Machines[2]
	first := m.Node()
	cp1 := dialMachine(t, r.Machines[0])
	before := members(t, cp1)
	c := dialMachine(t, m)
	if err := c.ResetGeneric(t.Context(), &machineapi.ResetRequest{Graceful: true, Reboot: true, Mode: machineapi.ResetRequest_SYSTEM_DISK}); err != nil {
		t.Fatal(err)
	}
	eventually(t, "cp-3 to leave", func() bool { return members(t, cp1)["cp-3"] != before["cp-3"] })
	cameBack(t, m, first)
	if after := members(t, cp1); len(after) != 3 || after["cp-1"] != before["cp-1"] || after["cp-3"] == before["cp-3"] {
		t.Errorf("members are %v, before %v", after, before)
	}
	if err := r.Check(); err != nil {
		t.Error(err)
	}
	if m.Disk().Wipes() != 1 || m.Disk().Installs() != 2 || r.Machines[0].Disk().Wipes() != 0 {
		t.Errorf("%d wipes, %d installs", m.Disk().Wipes(), m.Disk().Installs())
	}
	mu.Lock()
	defer mu.Unlock()
	if !cut {
		t.Error("the power was not cut")
	}
}
