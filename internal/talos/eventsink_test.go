package talos

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"sync"
	"testing"

	"github.com/rs/zerolog"
	"github.com/siderolabs/siderolink/api/events"
	"github.com/siderolabs/talos/pkg/machinery/api/common"
	machineapi "github.com/siderolabs/talos/pkg/machinery/api/machine"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/provisiond/provisiond/internal/inventory"
)

// fakeRecorder keeps what it is told as short lines, and fails on demand.
type fakeRecorder struct {
	mu    sync.Mutex
	lines []string
	err   error
}

func (f *fakeRecorder) Record(_ context.Context, e inventory.Event) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.err != nil {
		return f.err
	}
	line := fmt.Sprintf("%s %s %s", e.Kind, e.Machine, e.MAC)
	if e.Stage != "" {
		line += fmt.Sprintf(" stage=%s/%v", e.Stage, e.Ready)
	}
	if e.Error != "" {
		line += " error=" + e.Error
	}
	if e.Message != "" {
		line += " message=" + e.Message
	}
	if e.Time.IsZero() || !e.Peer.IsValid() {
		line += " WITHOUT TIME OR PEER"
	}
	f.lines = append(f.lines, line)
	return nil
}

func (f *fakeRecorder) take() []string {
	f.mu.Lock()
	defer f.mu.Unlock()
	l := f.lines
	f.lines = nil
	return l
}

func (f *fakeRecorder) fail(err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.err = err
}

// fakeResolver knows machines by address and name.
type fakeResolver struct{ byAddress, byName map[string]string }

func (f fakeResolver) MachineByAddress(_ context.Context, a netip.Addr) (string, inventory.MAC, bool) {
	name, ok := f.byAddress[a.String()]
	if !ok {
		return "", "", false
	}
	return name, inventory.MAC("mac-of-" + name), true
}

func (f fakeResolver) MachineByName(_ context.Context, name string) (inventory.MAC, bool) {
	_, ok := f.byName[name]
	return inventory.MAC("mac-of-" + name), ok
}

// startSink serves a sink until the test ends.
func startSink(t testing.TB, rec Recorder, res Resolver) (addr string, stop func()) {
	t.Helper()
	sink := NewEventSink(rec, res, &fakeLogs{}, zerolog.Nop())
	return serve(t, sink.Serve)
}

// serve runs a server until the test ends.
func serve(t testing.TB, f func(context.Context, net.Listener) error) (addr string, stop func()) {
	t.Helper()
	l := listen(t)
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- f(ctx, l) }()
	stop = sync.OnceFunc(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("Serve: %v", err)
		}
	})
	t.Cleanup(stop)
	return l.Addr().String(), stop
}

// dialSink is one connection of a machine.
func dialSink(t testing.TB, addr string) func(id string, m proto.Message) error {
	t.Helper()
	conn, err := grpc.NewClient("passthrough:///"+addr, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	client := events.NewEventSinkServiceClient(conn)
	return func(id string, m proto.Message) error {
		t.Helper()
		data, err := anypb.New(m)
		if err != nil {
			t.Fatal(err)
		}
		_, err = client.Publish(t.Context(), &events.EventRequest{Data: data, Id: id})
		return err
	}
}

func stageEvent(s machineapi.MachineStatusEvent_MachineStage, ready bool, unmet ...string) *machineapi.MachineStatusEvent {
	e := &machineapi.MachineStatusEvent{Stage: s, Status: &machineapi.MachineStatusEvent_MachineStatus{Ready: ready}}
	for _, u := range unmet {
		e.Status.UnmetConditions = append(e.Status.UnmetConditions, &machineapi.MachineStatusEvent_MachineStatus_UnmetCondition{Name: u, Reason: "not yet"})
	}
	return e
}

func wantLines(t *testing.T, rec *fakeRecorder, want ...string) {
	t.Helper()
	got := rec.take()
	if strings.Join(got, "\n") != strings.Join(want, "\n") {
		t.Errorf("recorded\n\t%s\nwant\n\t%s", strings.Join(got, "\n\t"), strings.Join(want, "\n\t"))
	}
}

func send(t *testing.T, publish func(string, proto.Message) error, id string, m proto.Message) {
	t.Helper()
	if err := publish(id, m); err != nil {
		t.Fatalf("event %s: %v", id, err)
	}
}

var byLoopback = fakeResolver{byAddress: map[string]string{"::1": "cp-1"}}

func TestEventSinkRecordsWhatChanges(t *testing.T) {
	rec := &fakeRecorder{}
	addr, _ := startSink(t, rec, byLoopback)
	publish := dialSink(t, addr)
	const who = "reported cp-1 mac-of-cp-1"
	for i, step := range []struct {
		m    proto.Message
		want []string
	}{
		{stageEvent(machineapi.MachineStatusEvent_UNKNOWN, true), nil},
		{&machineapi.SequenceEvent{Sequence: "initialize", Action: machineapi.SequenceEvent_START}, nil},
		{&machineapi.PhaseEvent{Phase: "config"}, nil},
		{&machineapi.TaskEvent{Task: "loadConfig"}, nil},
		{stageEvent(machineapi.MachineStatusEvent_BOOTING, false, "time", "network"), []string{who + " stage=booting/false message=waits for time: not yet; network: not yet"}},
		{stageEvent(machineapi.MachineStatusEvent_BOOTING, false, "time", "network"), nil},
		{&machineapi.ConfigLoadErrorEvent{Error: "unknown keys:\nnosuch"}, []string{who + " error=unknown keys: nosuch"}},
		{&machineapi.ConfigLoadErrorEvent{Error: "unknown keys:\nnosuch"}, []string{who + " error=unknown keys: nosuch"}},
		{&machineapi.ConfigLoadErrorEvent{}, nil},
		{&machineapi.AddressEvent{Hostname: "other", Addresses: []string{"2001:db8::99"}}, nil},
		{&machineapi.SequenceEvent{Sequence: "install", Action: machineapi.SequenceEvent_START}, []string{who + " message=install began"}},
		{stageEvent(machineapi.MachineStatusEvent_INSTALLING, true), []string{who + " stage=installing/true"}},
		{&machineapi.SequenceEvent{Sequence: "install", Action: machineapi.SequenceEvent_STOP}, nil},
		{&machineapi.SequenceEvent{Sequence: "install", Action: machineapi.SequenceEvent_NOOP, Error: &common.Error{Message: "failed to pull image"}}, []string{who + " message=install failed: failed to pull image"}},
		{stageEvent(machineapi.MachineStatusEvent_REBOOTING, true), []string{who + " stage=rebooting/true"}},
		{&machineapi.ServiceStateEvent{Service: "etcd"}, nil},
		{stageEvent(machineapi.MachineStatusEvent_RUNNING, false), []string{who + " stage=running/false"}},
		{stageEvent(machineapi.MachineStatusEvent_RUNNING, true), []string{who + " stage=running/true"}},
		{&machineapi.RestartEvent{}, nil},
		{wrapperspb.String("a type of tomorrow"), nil},
	} {
		send(t, publish, fmt.Sprintf("id-%d", i), step.m)
		wantLines(t, rec, step.want...)
	}
}

// Every stage of Talos must have a name in the domain.
func TestEventSinkKnowsEveryStage(t *testing.T) {
	for n, name := range machineapi.MachineStatusEvent_MachineStage_name {
		s := machineapi.MachineStatusEvent_MachineStage(n)
		want := inventory.Stage(strings.ToLower(strings.ReplaceAll(name, "_", " ")))
		if e, ok := translate(stageEvent(s, true)); s == machineapi.MachineStatusEvent_UNKNOWN {
			if ok {
				t.Error("UNKNOWN says nothing and was taken for something")
			}
		} else if !ok || e.Stage != want {
			t.Errorf("%s became %q", name, e.Stage)
		}
	}
}

func TestEventSinkForgetsRepeats(t *testing.T) {
	rec := &fakeRecorder{}
	addr, _ := startSink(t, rec, byLoopback)
	publish := dialSink(t, addr)
	failed := &machineapi.ConfigLoadErrorEvent{Error: "x"}
	send(t, publish, "a", failed)
	send(t, publish, "a", failed)
	send(t, dialSink(t, addr), "a", failed) // another connection, after a lost answer
	wantLines(t, rec, "reported cp-1 mac-of-cp-1 error=x")
	send(t, publish, "b", failed)
	wantLines(t, rec, "reported cp-1 mac-of-cp-1 error=x")
}

// What was not recorded is asked for again, and then it counts.
func TestEventSinkStoreFails(t *testing.T) {
	rec := &fakeRecorder{}
	addr, _ := startSink(t, rec, byLoopback)
	publish := dialSink(t, addr)
	rec.fail(errors.New("disk full"))
	for _, m := range []proto.Message{&machineapi.ConfigLoadErrorEvent{Error: "x"}, stageEvent(machineapi.MachineStatusEvent_RUNNING, true)} {
		if err := publish("a", m); status.Code(err) != codes.Unavailable || strings.Contains(err.Error(), "disk") {
			t.Errorf("got %v", err)
		}
	}
	rec.fail(nil)
	send(t, publish, "a", &machineapi.ConfigLoadErrorEvent{Error: "x"})
	send(t, publish, "b", stageEvent(machineapi.MachineStatusEvent_RUNNING, true))
	wantLines(t, rec, "reported cp-1 mac-of-cp-1 error=x", "reported cp-1 mac-of-cp-1 stage=running/true")
	rec.fail(fmt.Errorf("machine cp-1: %w", inventory.ErrNotFound)) // removed meanwhile
	send(t, publish, "c", &machineapi.ConfigLoadErrorEvent{Error: "x"})
}

func TestEventSinkIdentifiesByAddressEvent(t *testing.T) {
	res := fakeResolver{
		byAddress: map[string]string{"2001:db8::11": "cp-1", "fe80::5054:ff:fe12:3456": "cp-2"},
		byName:    map[string]string{"w-1": "w-1"},
	}
	for _, tc := range []struct {
		name string
		said *machineapi.AddressEvent
		want string
	}{
		{"address", &machineapi.AddressEvent{Hostname: "w-1", Addresses: []string{"junk", "fd00::9", "2001:db8::11"}}, "cp-1"},
		{"link-local with zone", &machineapi.AddressEvent{Addresses: []string{"fe80::5054:ff:fe12:3456%eth0"}}, "cp-2"},
		{"host name", &machineapi.AddressEvent{Hostname: "w-1", Addresses: []string{"2001:db8::77"}}, "w-1"},
		{"stranger", &machineapi.AddressEvent{Hostname: "nobody"}, ""},
		{"junk", &machineapi.AddressEvent{Hostname: "../../etc", Addresses: make([]string, 1000)}, ""},
	} {
		t.Run(tc.name, func(t *testing.T) {
			rec := &fakeRecorder{}
			addr, _ := startSink(t, rec, res)
			publish := dialSink(t, addr)
			send(t, publish, "1", stageEvent(machineapi.MachineStatusEvent_BOOTING, false))
			send(t, publish, "2", &machineapi.ConfigLoadErrorEvent{Error: "x"})
			send(t, publish, "3", stageEvent(machineapi.MachineStatusEvent_INSTALLING, true))
			wantLines(t, rec)
			send(t, publish, "4", tc.said)
			if tc.want == "" {
				wantLines(t, rec)
				return
			}
			who := "reported " + tc.want + " mac-of-" + tc.want
			wantLines(t, rec, who+" stage=installing/true", who+" error=x") // the last of each that came before
			send(t, publish, "5", stageEvent(machineapi.MachineStatusEvent_RUNNING, true))
			wantLines(t, rec, who+" stage=running/true")
			// The next connection of nobody in particular is nobody's.
			send(t, dialSink(t, addr), "6", stageEvent(machineapi.MachineStatusEvent_RESETTING, true))
			wantLines(t, rec)
		})
	}
}

func TestEventSinkBounds(t *testing.T) {
	rec := &fakeRecorder{}
	addr, _ := startSink(t, rec, byLoopback)
	publish := dialSink(t, addr)
	if err := publish("a", &machineapi.ConfigLoadErrorEvent{Error: strings.Repeat("x", maxEvent)}); status.Code(err) != codes.ResourceExhausted {
		t.Errorf("a huge event: %v", err)
	}
	send(t, publish, "b", &machineapi.ConfigLoadErrorEvent{Error: strings.Repeat("x", maxEvent/2)})
	if n := len(rec.take()[0]); n > maxEventText+100 {
		t.Errorf("%d bytes were recorded", n)
	}
	refused := false
	for i := range 3 * eventBurst {
		if err := publish(fmt.Sprint(i), &machineapi.PhaseEvent{}); status.Code(err) == codes.ResourceExhausted {
			refused = true
			break
		}
	}
	if !refused {
		t.Error("a flood was taken")
	}
	send(t, dialSink(t, addr), "c", &machineapi.PhaseEvent{}) // others are not affected
}

func TestEventSinkWithoutData(t *testing.T) {
	addr, _ := startSink(t, &fakeRecorder{}, byLoopback)
	conn, err := grpc.NewClient("passthrough:///"+addr, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	for _, req := range []*events.EventRequest{{}, {Data: &anypb.Any{}}, {Data: &anypb.Any{TypeUrl: "talos/runtime/machine.PhaseEvent", Value: []byte{0xff}}}} {
		if _, err := events.NewEventSinkServiceClient(conn).Publish(t.Context(), req); err != nil {
			t.Errorf("%v: %v", req, err)
		}
	}
}

// Talos names its types talos/runtime/machine.X (pkg/machinery/proto, client/events.go).
func TestEventSinkTakesTalosTypeURL(t *testing.T) {
	rec := &fakeRecorder{}
	addr, _ := startSink(t, rec, byLoopback)
	conn, err := grpc.NewClient("passthrough:///"+addr, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	value, err := proto.Marshal(stageEvent(machineapi.MachineStatusEvent_RUNNING, true))
	if err != nil {
		t.Fatal(err)
	}
	data := &anypb.Any{TypeUrl: "talos/runtime/machine.MachineStatusEvent", Value: value}
	if _, err := events.NewEventSinkServiceClient(conn).Publish(t.Context(), &events.EventRequest{Data: data, Id: "1"}); err != nil {
		t.Fatal(err)
	}
	wantLines(t, rec, "reported cp-1 mac-of-cp-1 stage=running/true")
}

func TestEventSinkServeEnds(t *testing.T) {
	addr, stop := startSink(t, &fakeRecorder{}, byLoopback)
	publish := dialSink(t, addr)
	send(t, publish, "1", &machineapi.PhaseEvent{})
	stop()
	if conn, err := net.Dial("tcp", addr); err == nil {
		conn.Close()
		t.Error("still listening")
	}
	// A context that ended before, and a listener that fails.
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	l := listen(t)
	if err := NewEventSink(nil, nil, nil, zerolog.Nop()).Serve(ctx, l); err != nil {
		t.Error(err)
	}
	bounded(t, l.(*net.TCPListener))
	if _, err := l.Accept(); !errors.Is(err, net.ErrClosed) {
		t.Errorf("the listener is open: %v", err)
	}
	l = listen(t)
	l.Close()
	if err := NewEventSink(nil, nil, nil, zerolog.Nop()).Serve(t.Context(), l); err == nil {
		t.Error("a broken listener was no error")
	}
}
