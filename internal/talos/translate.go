package talos

import (
	"strings"

	machineapi "github.com/siderolabs/talos/pkg/machinery/api/machine"
	"google.golang.org/protobuf/proto"

	"github.com/provisiond/provisiond/internal/inventory"
)

// stages maps MachineStatusEvent's stages to the domain's.
var stages = map[machineapi.MachineStatusEvent_MachineStage]inventory.Stage{
	machineapi.MachineStatusEvent_BOOTING:       inventory.StageBooting,
	machineapi.MachineStatusEvent_INSTALLING:    inventory.StageInstalling,
	machineapi.MachineStatusEvent_MAINTENANCE:   inventory.StageMaintenance,
	machineapi.MachineStatusEvent_RUNNING:       inventory.StageRunning,
	machineapi.MachineStatusEvent_REBOOTING:     inventory.StageRebooting,
	machineapi.MachineStatusEvent_SHUTTING_DOWN: inventory.StageShuttingDown,
	machineapi.MachineStatusEvent_RESETTING:     inventory.StageResetting,
	machineapi.MachineStatusEvent_UPGRADING:     inventory.StageUpgrading,
}

// translate keeps the few events that change the picture of a machine: its
// stage, a refused config, and how an install begins and fails. Phases, tasks
// and services are dropped: their STOP comes for failures, too, and health flaps
// on slow machines.
func translate(msg proto.Message) (inventory.Event, bool) {
	switch m := msg.(type) {
	case *machineapi.MachineStatusEvent:
		stage, ok := stages[m.GetStage()] // the first event may be {UNKNOWN, ready}, which says nothing
		if !ok {
			return inventory.Event{}, false
		}
		e := inventory.Event{Stage: stage, Ready: m.GetStatus().GetReady()}
		var unmet []string
		for _, u := range m.GetStatus().GetUnmetConditions() {
			unmet = append(unmet, u.GetName()+": "+u.GetReason())
		}
		if len(unmet) > 0 {
			e.Message = oneLine("waits for " + strings.Join(unmet, "; "))
		}
		return e, true
	case *machineapi.ConfigLoadErrorEvent:
		if m.GetError() == "" {
			return inventory.Event{}, false
		}
		return inventory.Event{Error: oneLine(redactLine(m.GetError()))}, true
	case *machineapi.SequenceEvent:
		if m.GetSequence() != "install" {
			return inventory.Event{}, false
		}
		// Errors come with the action NOOP; STOP alone does not mean success.
		if text := m.GetError().GetMessage(); text != "" {
			return inventory.Event{Message: oneLine(redactLine("install failed: " + text))}, true
		}
		if m.GetAction() == machineapi.SequenceEvent_START {
			return inventory.Event{Message: "install began"}, true
		}
	}
	return inventory.Event{}, false
}

// oneLine makes a text from the network safe to print.
func oneLine(s string) string {
	s = strings.ToValidUTF8(clip(s), "?")
	return strings.Map(func(r rune) rune {
		if r < ' ' || r == 0x7f {
			return ' '
		}
		return r
	}, s)
}
