package cli

import (
	"fmt"
	"io"
	"net/http"

	"github.com/spf13/cobra"

	"github.com/provisiond/provisiond/api"
	"github.com/provisiond/provisiond/client"
)

// maxLogLines is the most lines that the API answers with at once.
const maxLogLines = 10000

func (a *app) machineLogs() *cobra.Command {
	cmd := &cobra.Command{
		Use: "logs MACHINE", Short: "Print what a machine said: its kernel log and Talos' events", Args: cobra.ExactArgs(1),
		Long: "Print what a machine said: its kernel log, which holds Talos' own, and Talos' events, from before its\n" +
			"config on. Times are by the clock of the machine, which may be wrong until it is synchronised.",
	}
	limit := cmd.Flags().IntP("limit", "n", 100, fmt.Sprintf("print the newest, at most this many, up to %d", maxLogLines))
	followThem := cmd.Flags().BoolP("follow", "f", false, "go on with what comes, until interrupted")
	out := (&format{"table"}).bind(cmd)
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		if err := checkLimit(*limit); err != nil {
			return err
		}
		c, err := a.client()
		if err != nil {
			return err
		}
		newest, err := client.Answer[api.List[api.LogLine]](c.ListLogs(cmd.Context(), args[0], client.ListLogsParams{Limit: *limit}))
		if err != nil {
			return err
		}
		p, last := logPrinter{cmd: cmd, out: out}, uint64(0)
		for _, l := range newest.Items {
			last = l.ID
			if err := p.print(l); err != nil {
				return err
			}
		}
		if !*followThem {
			return nil
		}
		return client.Follow(cmd.Context(), fmt.Sprint(last), func(last string) (*http.Response, error) {
			return c.ListLogs(cmd.Context(), args[0], client.ListLogsParams{Follow: true, LastEventID: last})
		}, p.print, tryingAgain(cmd))
	}
	return cmd
}

// logPrinter prints lines, and a mark where another boot begins.
type logPrinter struct {
	cmd  *cobra.Command
	out  *format
	boot uint64
}

func (p *logPrinter) print(l api.LogLine) error {
	return p.out.item(p.cmd, l, func(w io.Writer) error {
		if l.Boot != 0 && l.Boot != p.boot {
			if p.boot != 0 {
				if _, err := fmt.Fprintf(w, "---- the kernel starts again, boot %d ----\n", l.Boot); err != nil {
					return err
				}
			}
			p.boot = l.Boot
		}
		_, err := fmt.Fprintf(w, "%s  %-6s  %s\n", when(l.Time), l.Kind, clean(l.Text))
		return err
	})
}
