package racktest

import (
	"context"
	"encoding/base32"
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	eventsapi "github.com/siderolabs/siderolink/api/events"
	"github.com/siderolabs/talos/pkg/machinery/api/common"
	machineapi "github.com/siderolabs/talos/pkg/machinery/api/machine"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"
)

// eventLog holds every event of one run of Talos, since a sink that connects
// late is told all of them, from the start.
type eventLog struct {
	mu     sync.Mutex
	events []*eventsapi.EventRequest
	grown  chan struct{} // closed when an event was added
	actor  string        // who has started the sequence that runs, if the API has
	kmsg   *kernelLog    // where Talos says the same; may be nil
}

func newEventLog() *eventLog { return &eventLog{grown: make(chan struct{})} }

// eventCounter makes the ids of events made in the same second differ.
var eventCounter atomic.Uint32

// eventID is an xid: seconds, machine, process and counter in base32hex of
// lower case. Its first 32 bits are the time at which Talos made the event.
func eventID() string {
	var raw [12]byte
	binary.BigEndian.PutUint32(raw[0:], uint32(time.Now().Unix()))
	binary.BigEndian.PutUint32(raw[4:], rand.Uint32())
	binary.BigEndian.PutUint32(raw[8:], eventCounter.Add(1))
	return base32.NewEncoding("0123456789abcdefghijklmnopqrstuv").WithPadding(base32.NoPadding).EncodeToString(raw[:])
}

func (l *eventLog) publish(payload proto.Message) {
	data, err := anypb.New(payload)
	if err != nil {
		panic(fmt.Sprintf("marshalling %T: %v", payload, err)) // a generated message of ours
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	event := &eventsapi.EventRequest{Id: eventID(), Data: data}
	switch payload.(type) {
	case *machineapi.SequenceEvent, *machineapi.PhaseEvent, *machineapi.TaskEvent:
		event.ActorId = l.actor
	}
	l.events = append(l.events, event)
	close(l.grown)
	l.grown = make(chan struct{})
}

// act names the actor of the sequence that runs now.
func (l *eventLog) act(actor string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.actor = actor
}

// at returns event i, or a channel that closes when there may be one.
func (l *eventLog) at(i int) (*eventsapi.EventRequest, <-chan struct{}) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if i < len(l.events) {
		return l.events[i], nil
	}
	return nil, l.grown
}

// The events by the names they have in Talos' own traces.

func (l *eventLog) sequence(name string, a machineapi.SequenceEvent_Action) {
	l.kmsg.talos("%s sequence: %s", name, strings.ToLower(a.String()))
	l.publish(&machineapi.SequenceEvent{Sequence: name, Action: a})
}

func (l *eventLog) sequenceError(name, message string) {
	l.kmsg.talos("%s sequence: failed: %s", name, message)
	l.publish(&machineapi.SequenceEvent{Sequence: name, Action: machineapi.SequenceEvent_NOOP, Error: &common.Error{Message: message}})
}

// task is a phase with its one task, from START to STOP.
func (l *eventLog) task(phase, task string) {
	l.taskStart(phase, task)
	l.taskStop(phase, task)
}

func (l *eventLog) taskStart(phase, task string) {
	l.kmsg.talos("phase %s: 1 tasks(s)", phase)
	l.publish(&machineapi.PhaseEvent{Phase: phase, Action: machineapi.PhaseEvent_START})
	l.publish(&machineapi.TaskEvent{Task: task, Action: machineapi.TaskEvent_START})
}

func (l *eventLog) taskStop(phase, task string) {
	l.publish(&machineapi.TaskEvent{Task: task, Action: machineapi.TaskEvent_STOP})
	l.publish(&machineapi.PhaseEvent{Phase: phase, Action: machineapi.PhaseEvent_STOP})
}

func (l *eventLog) service(name string, a machineapi.ServiceStateEvent_Action, message string, health *machineapi.ServiceHealth) {
	if health == nil {
		health = &machineapi.ServiceHealth{Unknown: true}
	}
	l.kmsg.talos("service[%s](%s): %s", name, titled(a.String()), message)
	l.publish(&machineapi.ServiceStateEvent{Service: name, Action: a, Message: message, Health: health})
}

// up is a service that runs and is healthy.
func (l *eventLog) up(name string) {
	l.service(name, machineapi.ServiceStateEvent_STARTING, "Starting service", nil)
	l.service(name, machineapi.ServiceStateEvent_RUNNING, "Started", nil)
	l.service(name, machineapi.ServiceStateEvent_RUNNING, "Health check successful", &machineapi.ServiceHealth{Healthy: true})
}

func (l *eventLog) status(stage machineapi.MachineStatusEvent_MachineStage, ready bool, unmet ...*machineapi.MachineStatusEvent_MachineStatus_UnmetCondition) {
	l.publish(&machineapi.MachineStatusEvent{
		Stage:  stage,
		Status: &machineapi.MachineStatusEvent_MachineStatus{Ready: ready, UnmetConditions: unmet},
	})
}

// drainTimeout is how long Talos goes on sending when it goes down.
const drainTimeout = 10 * time.Second

// stream sends the log to an event sink: one unary call at a time over
// plaintext gRPC, at least once, with back-off when it fails. It begins with
// event *sent and counts it up. When draining closes it sends what is left and
// returns.
func (l *eventLog) stream(ctx context.Context, endpoint string, t Timing, draining <-chan struct{}, sent *int) {
	conn, err := grpc.NewClient("passthrough:///"+endpoint, grpc.WithTransportCredentials(insecure.NewCredentials()), grpc.WithNoProxy())
	if err != nil {
		return
	}
	defer conn.Close()
	sink := eventsapi.NewEventSinkServiceClient(conn)
	retry := backoff{next: t.Backoff, max: t.BackoffMax}
	for {
		event, grown := l.at(*sent)
		if event == nil {
			select {
			case <-grown:
				continue
			case <-draining:
				if event, _ = l.at(*sent); event == nil {
					return
				}
			case <-ctx.Done():
				return
			}
		}
		if _, err := sink.Publish(ctx, event); err != nil {
			select {
			case <-draining:
				return
			default:
			}
			if retry.wait(ctx) != nil {
				return
			}
			conn.ResetConnectBackoff()
			continue
		}
		retry.next = t.Backoff
		*sent++
	}
}
