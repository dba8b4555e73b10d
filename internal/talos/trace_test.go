package talos

import (
	"encoding/binary"
	"fmt"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/rs/zerolog"
	"github.com/siderolabs/talos/pkg/machinery/api/common"
	machineapi "github.com/siderolabs/talos/pkg/machinery/api/machine"
	"google.golang.org/protobuf/proto"
)

// traced is one event of a trace, and the second after power-on at which Talos
// made it.
type traced struct {
	msg  proto.Message
	made int
}

var field = regexp.MustCompile(`(\w+)=("(?:[^"\\]|\\.)*"|\S*)`)

// readTrace reads the events that a real Talos 1.13.6 sent to its sink. Its form
// is in the first lines of each file.
func readTrace(t *testing.T, name string) (list []traced) {
	t.Helper()
	for line := range strings.Lines(testdata(t, name)) {
		if strings.HasPrefix(line, "#") {
			continue
		}
		parts := strings.SplitN(strings.TrimSpace(line), " ", 3)
		// Each of the values is the rest of the line or one of its fields.
		f := map[string]string{}
		for _, m := range field.FindAllStringSubmatch(parts[2], -1) {
			value := m[2]
			if s, err := strconv.Unquote(value); err == nil {
				value = s
			}
			f[m[1]] = value
		}
		_, failure, _ := strings.Cut(parts[2], `error={"message": `)
		made, err := strconv.Atoi(strings.TrimPrefix(f["made"], "+"))
		if err != nil {
			t.Fatalf("%s: %v", line, err)
		}
		action := func(values map[string]int32) int32 {
			n, ok := values[f["action"]]
			if !ok {
				t.Fatalf("%s: unknown action", line)
			}
			return n
		}
		var msg proto.Message
		switch parts[1] {
		case "SequenceEvent":
			e := &machineapi.SequenceEvent{Sequence: f["sequence"], Action: machineapi.SequenceEvent_Action(action(machineapi.SequenceEvent_Action_value))}
			if text, err := strconv.Unquote(strings.TrimSuffix(failure, "}")); err == nil {
				e.Error = &common.Error{Message: text}
			}
			msg = e
		case "PhaseEvent":
			msg = &machineapi.PhaseEvent{Phase: f["phase"], Action: machineapi.PhaseEvent_Action(action(machineapi.PhaseEvent_Action_value))}
		case "TaskEvent":
			msg = &machineapi.TaskEvent{Task: f["task"], Action: machineapi.TaskEvent_Action(action(machineapi.TaskEvent_Action_value))}
		case "ServiceStateEvent":
			msg = &machineapi.ServiceStateEvent{
				Service: f["service"], Message: f["message"], Action: machineapi.ServiceStateEvent_Action(action(machineapi.ServiceStateEvent_Action_value)),
				Health: &machineapi.ServiceHealth{Unknown: f["healthy"] == "unknown", Healthy: f["healthy"] == "true"},
			}
		case "MachineStatusEvent":
			e := stageEvent(machineapi.MachineStatusEvent_MachineStage(machineapi.MachineStatusEvent_MachineStage_value[f["stage"]]), f["ready"] == "true")
			for _, u := range strings.Split(f["unmet"], "; ") {
				if name, reason, ok := strings.Cut(u, ": "); ok {
					e.Status.UnmetConditions = append(e.Status.UnmetConditions, &machineapi.MachineStatusEvent_MachineStatus_UnmetCondition{Name: name, Reason: reason})
				}
			}
			msg = e
		case "AddressEvent":
			msg = &machineapi.AddressEvent{Hostname: f["hostname"], Addresses: strings.Fields(f["addresses"])}
		case "ConfigLoadErrorEvent":
			msg = &machineapi.ConfigLoadErrorEvent{Error: f["error"]}
		default:
			t.Fatalf("%s: unknown type", line)
		}
		list = append(list, traced{msg, made})
	}
	return list
}

var powerOn = time.Date(2026, 11, 22, 7, 24, 0, 0, time.UTC)

// xid is the id of an event by its second and its number.
func xid(at time.Time, n int) string {
	b := make([]byte, 12)
	binary.BigEndian.PutUint32(b, uint32(at.Unix()))
	binary.BigEndian.PutUint32(b[8:], uint32(n))
	return xidEncoding.EncodeToString(b)
}

// The real traces, as a sink hears them that a machine reaches late: every event
// becomes a line, in order and with the time at which it was made, and the few
// that change the picture are recorded beside.
func TestEventSinkTakesRealTraces(t *testing.T) {
	const (
		waitsForTime     = "stage=booting/false message=waits for time"
		waitsForServices = "stage=booting/false message=waits for services"
	)
	for name, tt := range map[string]struct {
		lines    []string // some of them
		recorded []string // all, to their first colon, those that are the same so far as one
	}{
		"boot-to-etcd.txt": {
			[]string{
				"sequence initialize start", "phase systemRequirements start", "task startContainerd stop",
				"service containerd starting: Starting service", "service machined running, healthy: Health check successful",
				"address n3 fd00:7a10:5::77", "service etcd finished: Bootstrap requested", "service etcd running, healthy: Health check successful",
			},
			[]string{waitsForTime, "message=install began", waitsForTime, waitsForServices},
		},
		"install-blank.txt": {
			[]string{"task install start", "status installing, ready", "sequence install failed: sequence failed: error running phase 2 in install sequence: task 1/1: failed, 1 error(s) occurred:  failed to pull image \"ghcr.io/siderolabs/installer:v1.13.6\": failed to resolve reference \"ghcr.io/siderolabs/installer:v1.13.6\": ghcr.io/siderolabs/installer:v1.13.6: not found"},
			[]string{waitsForTime, "message=install began", "stage=installing/true", "message=install failed", "stage=rebooting/true"},
		},
		"invalid-config.txt": {
			[]string{"status unknown, ready", "task loadConfig start", "config refused: failed to load config via platform metal: error decoding document /v1alpha1/ (line 1): unknown keys machine.nosuchfield"},
			[]string{waitsForTime, "error=failed to load config via platform metal", waitsForServices},
		},
	} {
		t.Run(name, func(t *testing.T) {
			rec, logs := &fakeRecorder{}, &fakeLogs{}
			addr, _ := serve(t, NewEventSink(rec, byLoopback, logs, zerolog.Nop()).Serve)
			publish := dialSink(t, addr)
			trace := readTrace(t, name)
			for i, e := range trace {
				if i%90 == 89 {
					publish = dialSink(t, addr) // reconnects, and sends the last once more
					send(t, publish, xid(powerOn.Add(time.Duration(trace[i-1].made)*time.Second), i-1), trace[i-1].msg)
				}
				send(t, publish, xid(powerOn.Add(time.Duration(e.made)*time.Second), i), e.msg)
			}
			got := logs.events["cp-1"]
			if want := len(trace) + len(trace)/90; len(got) != want { // the log itself drops what comes twice
				t.Errorf("%d lines of %d events", len(got), want)
			}
			text := ""
			for _, l := range got {
				text += l.Text + "\n"
			}
			for _, want := range tt.lines {
				if !strings.Contains("\n"+text, "\n"+want+"\n") {
					t.Errorf("no line %q in\n%s", want, text)
				}
			}
			if at := powerOn.Add(time.Duration(trace[0].made) * time.Second); !got[0].Time.Equal(at) {
				t.Errorf("the first was made at %v, want %v", got[0].Time, at)
			}
			recorded := rec.take()
			for i, line := range recorded {
				line, _, _ = strings.Cut(line, ": ")
				recorded[i] = strings.TrimPrefix(line, "reported cp-1 mac-of-cp-1 ")
			}
			if recorded = slices.Compact(recorded); !slices.Equal(recorded, tt.recorded) {
				t.Errorf("recorded %q\nwant     %q", recorded, tt.recorded)
			}
		})
	}
}

// What a machine said before it was known is in its log, too.
func TestEventSinkKeepsLinesUntilItKnows(t *testing.T) {
	logs := &fakeLogs{}
	addr, _ := serve(t, NewEventSink(&fakeRecorder{}, fakeResolver{byName: map[string]string{"n3": "n3"}}, logs, zerolog.Nop()).Serve)
	publish := dialSink(t, addr)
	trace := readTrace(t, "boot-to-etcd.txt")
	for i, e := range trace {
		send(t, publish, fmt.Sprint(i), e.msg)
	}
	if n := len(logs.events["n3"]); n != len(trace) {
		t.Errorf("%d lines of %d", n, len(trace))
	}
}

func TestEventTexts(t *testing.T) {
	const url = "http://[2001:db8::5]:8080/config/52:54:00:12:34:56/"
	refused := &machineapi.ConfigLoadErrorEvent{Error: "Get \"" + url + "s3cret\": EOF"}
	if e, ok := translate(refused); !ok || strings.Contains(e.Error, "s3cret") {
		t.Errorf("recorded %+v", e)
	}
	failed := &machineapi.SequenceEvent{Sequence: "install", Error: &common.Error{Message: url + "s3cret"}}
	if e, ok := translate(failed); !ok || strings.Contains(e.Message, "s3cret") {
		t.Errorf("recorded %+v", e)
	}
	for want, msg := range map[string]proto.Message{
		"config refused: Get \"" + url + "[token]\": EOF":                  refused,
		"sequence install failed: " + url + "[token]":                      failed,
		"status shutting down, not ready":                                  stageEvent(machineapi.MachineStatusEvent_SHUTTING_DOWN, false),
		"status booting, not ready: waits for time (not yet); a (not yet)": stageEvent(machineapi.MachineStatusEvent_BOOTING, false, "time", "a"),
		"service etcd running, not healthy: x":                             &machineapi.ServiceStateEvent{Service: "etcd", Action: machineapi.ServiceStateEvent_RUNNING, Message: "x", Health: &machineapi.ServiceHealth{}},
		"config not valid: x":                                              &machineapi.ConfigValidationErrorEvent{Error: "x"},
		"restart 7":                                                        &machineapi.RestartEvent{Cmd: 7},
		"Version":                                                          &machineapi.Version{},
	} {
		if l := eventLine("", msg); l.Text != want {
			t.Errorf("%q, want %q", l.Text, want)
		}
	}
	for _, id := range []string{"", "x", strings.Repeat("z", 20), strings.Repeat("0", 200)} {
		if at, ok := eventTime(id); ok {
			t.Errorf("%q was made at %v", id, at)
		}
	}
	if _, ok := eventTime("9m4e2mr0ui3e8a215n4g"); !ok { // the example of github.com/rs/xid
		t.Error("an xid has no time")
	}
}
