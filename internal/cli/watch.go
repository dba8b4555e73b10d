package cli

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/term"

	"github.com/provisiond/provisiond/api"
	"github.com/provisiond/provisiond/client"
)

func (a *app) watchCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use: "watch", Short: "Show the machines as they change", Args: cobra.NoArgs,
		Long: "Show the machines as they change, until interrupted: on a terminal a table, those first that need somebody, then those\n" +
			"on their way; else a line for each machine and each change of it. -o json writes one JSON object a line, whose event\n" +
			"is machine, removed, synced (all that is there was told) or reset (all is told anew).",
		Example: "  provisiond watch --cluster rack1\n  provisiond watch -o json | jq -r 'select(.event==\"machine\").machine.name'",
	}
	filter := machineFilters(cmd)
	out := (&format{"table"}).bind(cmd)
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		c, err := a.client()
		if err != nil {
			return err
		}
		return watchMachines(cmd, c, out, filter)
	}
	return cmd
}

// machineFilters adds the flags that pick machines.
func machineFilters(cmd *cobra.Command) *client.ListMachinesParams {
	var p client.ListMachinesParams
	f := cmd.Flags()
	f.StringVar(&p.Cluster, "cluster", "", "only machines of this cluster")
	f.StringVar(&p.Role, "role", "", "controlplane or worker")
	f.StringVar(&p.Phase, "phase", "", "only machines in this phase, such as stalled")
	f.StringVar(&p.Q, "q", "", "only machines with this text in name, MAC, address, UUID, serial or a label")
	f.StringArrayVar(&p.Label, "label", nil, "only machines with this label KEY=VALUE (repeat)")
	return &p
}

// watchMachines shows machines until the command is interrupted.
func watchMachines(cmd *cobra.Command, c *client.Client, out *format, filter *client.ListMachinesParams) error {
	if f, ok := cmd.OutOrStdout().(*os.File); ok && out.name == "table" && term.IsTerminal(int(f.Fd())) {
		return watchScreen(cmd.Context(), c, filter, newScreen(f, func() (int, int, error) { return term.GetSize(int(f.Fd())) }))
	}
	return followMachines(cmd.Context(), c, filter, func(n news) error { return printNews(cmd, out, n) }, tryingAgain(cmd))
}

// news is a message of the stream of machines.
type news struct {
	Event   string          `json:"event"` // machine, removed, synced or reset
	Name    string          `json:"name,omitempty"`
	Machine json.RawMessage `json:"machine,omitempty"` // as it came
	machine *api.Machine    // the same; nil: it is not of a machine
}

func printNews(cmd *cobra.Command, out *format, n news) error {
	if out.name != "table" {
		return out.item(cmd, n, nil)
	}
	return out.item(cmd, n, func(w io.Writer) (err error) {
		line := fmt.Sprintf("%s  %-16s ", when(time.Now()), n.Name)
		switch m := n.machine; {
		case m != nil:
			line += fmt.Sprintf("%-24s %-24s %s", phaseText(m), m.Address, m.Phase.Reason)
		case n.Event == "removed":
			line += n.Event
		default:
			return nil
		}
		_, err = fmt.Fprintln(w, strings.TrimRight(clean(line), " "))
		return err
	})
}

// followMachines hands what happens to take until ctx ends. A stream that breaks is
// told to trouble, and goes on where it was.
func followMachines(ctx context.Context, c *client.Client, f *client.ListMachinesParams, take func(news) error, trouble func(error)) error {
	return client.FollowMessages(ctx, "", func(last string) (*http.Response, error) {
		return c.WatchMachines(ctx, client.WatchMachinesParams{Cluster: f.Cluster, Role: f.Role, Phase: f.Phase, Q: f.Q, Label: f.Label, LastEventID: last})
	}, func(m client.Message) error {
		n, err := newsOf(m.Event, m.Data)
		if err != nil {
			return err
		}
		return take(n)
	}, trouble)
}

func newsOf(event string, data []byte) (news, error) {
	n := news{Event: event}
	if event != "machine" {
		return n, json.Unmarshal(data, &struct {
			Name *string `json:"name"`
		}{&n.Name})
	}
	n.Machine, n.machine = bytes.TrimSpace(bytes.Clone(data)), &api.Machine{}
	err := json.Unmarshal(data, n.machine)
	n.Name = n.machine.Name
	return n, err
}

// phaseText is the phase of a machine, and how far it is.
func phaseText(m *api.Machine) string {
	if p := progressText(m.Progress); p != "" {
		return phase(m.Phase) + ": " + p
	}
	return phase(m.Phase)
}

// progressText is how much of its file a machine has; empty: it reads none.
func progressText(p *api.Progress) string {
	if p == nil {
		return ""
	}
	return fmt.Sprintf("%s %d %%", p.Step, 100*p.Sent/max(p.Size, 1))
}
