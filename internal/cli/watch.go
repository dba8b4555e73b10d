package cli

import (
	"bufio"
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/term"

	"github.com/provisiond/provisiond/api"
)

func (a *app) watchCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use: "watch", Short: "Show the machines as they change", Args: cobra.NoArgs,
		Long: "Show the machines as they change, until interrupted: on a terminal a table, those first that need somebody, then those\n" +
			"on their way; else a line for each machine and each change of it. -o json writes one JSON object a line, whose event\n" +
			"is machine, removed, synced (all that is there was told) or reset (all is told anew).",
		Example: "  provisiond watch --cluster rack1\n  provisiond watch -o json | jq -r 'select(.event==\"machine\").machine.name'",
	}
	query := machineFilters(cmd)
	out := (&format{"table"}).bind(cmd)
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		c, err := a.client()
		if err != nil {
			return err
		}
		return c.watch(cmd, out, query())
	}
	return cmd
}

// machineFilters adds the flags that pick machines.
func machineFilters(cmd *cobra.Command) func() url.Values {
	query := filters(cmd, map[string]string{
		"cluster": "only machines of this cluster", "role": "controlplane or worker", "phase": "only machines in this phase, such as stalled",
		"q": "only machines with this text in name, MAC, address, UUID, serial or a label",
	})
	labels := cmd.Flags().StringArray("label", nil, "only machines with this label KEY=VALUE (repeat)")
	return func() url.Values {
		q := query()
		q["label"] = *labels
		return q
	}
}

// watch shows machines until the command is interrupted.
func (c *client) watch(cmd *cobra.Command, out *format, q url.Values) error {
	if f, ok := cmd.OutOrStdout().(*os.File); ok && out.name == "table" && term.IsTerminal(int(f.Fd())) {
		return c.watchScreen(cmd.Context(), q, newScreen(f, func() (int, int, error) { return term.GetSize(int(f.Fd())) }))
	}
	return c.watchMachines(cmd.Context(), q, func(n news) error { return printNews(cmd, out, n) }, func(err error) {
		say(cmd.ErrOrStderr(), "%s; trying again", err)
	})
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

// watchMachines hands what happens to take until ctx ends. A stream that breaks is
// told to trouble, and goes on where it was.
func (c *client) watchMachines(ctx context.Context, q url.Values, take func(news) error, trouble func(error)) error {
	last := ""
	for ctx.Err() == nil {
		err := c.readNews(ctx, q, &last, take)
		var refused *problem
		var output writeError
		switch {
		case ctx.Err() != nil:
			return nil
		case errors.As(err, &refused) && refused.Status < 500, errors.As(err, &output):
			return err
		}
		trouble(err)
		pause(ctx, reconnect)
	}
	return nil
}

// readNews reads one connection, after the id in last, which it moves on. It returns
// how that ended, always an error.
func (c *client) readNews(ctx context.Context, q url.Values, last *string, take func(news) error) error {
	header := http.Header{}
	if *last != "" {
		header.Set("Last-Event-Id", *last)
	}
	resp, err := c.send(ctx, http.MethodGet, path("machines", "watch"), q, nil, -1, header)
	if err != nil {
		return err
	}
	defer func() { _ = resp.Body.Close() }() // the stream ended or we did
	lines := bufio.NewScanner(resp.Body)
	lines.Buffer(nil, maxEvent)
	id, event, data := *last, "", []byte(nil)
	for lines.Scan() {
		name, value, _ := bytes.Cut(lines.Bytes(), []byte(": "))
		switch string(name) {
		case "id":
			id = string(value)
		case "event":
			event = string(value)
		case "data":
			data = bytes.Clone(value)
		case "": // the end of a message, or a comment
			if event != "" {
				n, err := newsOf(event, data)
				if err != nil {
					return fmt.Errorf("the stream of %s: %w", c.server, err)
				}
				if err := take(n); err != nil {
					return writeError{err}
				}
			}
			*last, event, data = id, "", nil
		}
	}
	return cmp.Or(lines.Err(), io.ErrUnexpectedEOF)
}

func newsOf(event string, data []byte) (news, error) {
	n := news{Event: event}
	if event != "machine" {
		return n, json.Unmarshal(data, &struct {
			Name *string `json:"name"`
		}{&n.Name})
	}
	n.Machine, n.machine = data, &api.Machine{}
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
