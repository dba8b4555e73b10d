package talos

import (
	"encoding/base32"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"regexp"
	"strings"
	"time"

	machineapi "github.com/siderolabs/talos/pkg/machinery/api/machine"
	"google.golang.org/protobuf/proto"
)

// LogLine is one line of what a machine says, with its secrets replaced.
type LogLine struct {
	Time time.Time // of the machine's clock, which need not be right
	Text string

	// Of the kernel log: the number of the record and the time since the kernel
	// began, both of which begin anew in each boot.
	Seq             uint64
	Clock           time.Duration
	Facility, Level string

	// Of an event.
	ID string
}

// Logs keeps what machines say.
type Logs interface {
	// Event keeps a line about an event, unless one of its ID was kept before.
	Event(machine string, l LogLine) error
	// Kernel begins the kernel log of one connection of a machine.
	Kernel(machine string) (KernelLines, error)
}

// KernelLines keeps the kernel lines of one connection, of which many were sent
// before. An error says that no more of them are wanted.
type KernelLines interface {
	Append(LogLine) error
	Close()
}

// parseKernelLine reads one JSON line of Talos' kernel log
// (internal/app/machined/pkg/runtime/logging/sender_jsonlines.go, kmsg_log.go).
// The clock is in microseconds.
func parseKernelLine(b []byte) (LogLine, error) {
	var r struct {
		Clock    *uint64   `json:"clock"`
		Facility string    `json:"facility"`
		Msg      *string   `json:"msg"`
		Priority string    `json:"priority"`
		Seq      *uint64   `json:"seq"`
		Time     time.Time `json:"talos-time"`
	}
	if err := json.Unmarshal(b, &r); err != nil {
		return LogLine{}, err
	}
	if r.Clock == nil || r.Msg == nil || r.Seq == nil || *r.Clock > uint64(maxUptime/time.Microsecond) {
		return LogLine{}, errors.New("it lacks its text, its number or its clock")
	}
	return LogLine{
		Time: r.Time, Seq: *r.Seq, Clock: time.Duration(*r.Clock) * time.Microsecond,
		Facility: r.Facility, Level: r.Priority, Text: redactLine(strings.TrimRight(*r.Msg, "\n")),
	}, nil
}

// maxUptime is more than any kernel lives.
const maxUptime = 100 * 365 * 24 * time.Hour

// secretWords are what a line may hold of them. The first two are the token of a boot in
// the URL of its config, which is on the kernel line and in Talos' own words when
// it fetches; an operator may have put the others there.
var secretWords = []struct {
	hint    string // without it there is none, which is quicker to find out
	find    *regexp.Regexp
	replace string
}{
	{"/config/", regexp.MustCompile(`(/config/(?:[0-9A-Fa-f]{2}(?::|%3[Aa]|-)){5}[0-9A-Fa-f]{2}/)[^\s"'\\]+`), `${1}[token]`},
	{"/seed/", regexp.MustCompile(`(/seed/(?:[0-9A-Fa-f]{2}(?::|%3[Aa]|-)){5}[0-9A-Fa-f]{2}/)[^\s"'\\/]+`), `${1}[token]`},
	{"talos.config.", regexp.MustCompile(`(\btalos\.config\.(?:early|inline|oauth\.client_secret)=)[^\s"'\\]+`), `${1}[secret]`},
	{"@", regexp.MustCompile(`(://)[^\s/@"'\\]+@`), `${1}[secret]@`},
	{"=", regexp.MustCompile(`(?i)([?&](?:token|secret|password|key)=)[^\s&"'\\]+`), `${1}[secret]`},
}

// redactLine takes the secrets out of a line.
func redactLine(s string) string {
	if strings.Contains(s, unknownKeys) { // Talos' words for a config that it refuses
		s = withoutValues(s)
	}
	for _, w := range secretWords {
		if strings.Contains(s, w.hint) {
			s = w.find.ReplaceAllString(s, w.replace)
		}
	}
	return s
}

// hostname finds the name that a machine gives itself, in
// `[talos] setting hostname {…, "hostname": "cp-1", …}`
// (internal/app/machined/pkg/controllers/network/hostname_spec.go), or returns "".
func hostname(text string) string {
	if !strings.Contains(text, "setting hostname") {
		return ""
	}
	if m := saidHostname.FindStringSubmatch(text); m != nil {
		return m[1]
	}
	return ""
}

var saidHostname = regexp.MustCompile(`"hostname": ?"([a-z0-9-]{1,63})"`)

// eventTime is when Talos made an event: the first 32 bits of its id, an xid, are
// Unix seconds. It reports false for another id.
func eventTime(id string) (time.Time, bool) {
	if len(id) != 20 {
		return time.Time{}, false
	}
	b, err := xidEncoding.DecodeString(id)
	if err != nil || len(b) < 4 {
		return time.Time{}, false
	}
	return time.Unix(int64(binary.BigEndian.Uint32(b)), 0).UTC(), true
}

var xidEncoding = base32.NewEncoding("0123456789abcdefghijklmnopqrstuv").WithPadding(base32.NoPadding)

// eventLine is an event as a line for people.
func eventLine(id string, msg proto.Message) LogLine {
	at, ok := eventTime(id)
	if !ok {
		at = time.Now().UTC()
	}
	return LogLine{Time: at, ID: clip(id), Text: oneLine(redactLine(eventText(msg)))}
}

func eventText(msg proto.Message) string {
	action := func(a fmt.Stringer) string { return strings.ToLower(a.String()) }
	switch m := msg.(type) {
	case *machineapi.SequenceEvent:
		if text := m.GetError().GetMessage(); text != "" {
			return fmt.Sprintf("sequence %s failed: %s", m.GetSequence(), text)
		}
		return fmt.Sprintf("sequence %s %s", m.GetSequence(), action(m.GetAction()))
	case *machineapi.PhaseEvent:
		return fmt.Sprintf("phase %s %s", m.GetPhase(), action(m.GetAction()))
	case *machineapi.TaskEvent:
		return fmt.Sprintf("task %s %s", m.GetTask(), action(m.GetAction()))
	case *machineapi.ServiceStateEvent:
		health := ""
		if h := m.GetHealth(); h != nil && !h.GetUnknown() {
			health = map[bool]string{true: ", healthy", false: ", not healthy"}[h.GetHealthy()]
		}
		return fmt.Sprintf("service %s %s%s: %s", m.GetService(), action(m.GetAction()), health, m.GetMessage())
	case *machineapi.MachineStatusEvent:
		text := fmt.Sprintf("status %s, %s", strings.ReplaceAll(action(m.GetStage()), "_", " "), map[bool]string{true: "ready", false: "not ready"}[m.GetStatus().GetReady()])
		for i, u := range m.GetStatus().GetUnmetConditions() {
			text += map[bool]string{true: ": waits for ", false: "; "}[i == 0] + u.GetName() + " (" + u.GetReason() + ")"
		}
		return text
	case *machineapi.ConfigLoadErrorEvent:
		return "config refused: " + m.GetError()
	case *machineapi.ConfigValidationErrorEvent:
		return "config not valid: " + m.GetError()
	case *machineapi.AddressEvent:
		return fmt.Sprintf("address %s %s", m.GetHostname(), strings.Join(m.GetAddresses(), " "))
	case *machineapi.RestartEvent:
		return fmt.Sprintf("restart %d", m.GetCmd())
	}
	return string(msg.ProtoReflect().Descriptor().Name())
}
