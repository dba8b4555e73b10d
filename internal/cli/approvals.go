package cli

import (
	"io"
	"net/http"
	"strings"

	"github.com/spf13/cobra"

	"github.com/provisiond/provisiond/api"
)

func (a *app) approvalsCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use: "approvals", Short: "List machines that wait to be approved", Args: cobra.NoArgs,
		Long: "List machines that wait for a person before they are given their config. The code is on the console of each.",
	}
	out := (&format{"table"}).bind(cmd)
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		c, err := a.client()
		if err != nil {
			return err
		}
		waiting, err := list[api.Approval](cmd.Context(), c, path("approvals"), nil)
		if err != nil {
			return err
		}
		return out.print(cmd, waiting, func(w io.Writer) {
			row(w, "MACHINE", "CLUSTER", "ADDRESS", "ASKED", "UNTIL", "ALARM")
			for _, p := range waiting {
				row(w, p.Machine, p.Cluster, p.Peer, when(p.Asked), when(p.Expires), p.Alarm)
			}
		})
	}
	return cmd
}

func (a *app) approveCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use: "approve CODE", Short: "Give a machine its config, by the code that its console shows", Args: cobra.ExactArgs(1),
		Long: "Approve a machine that waits for a person, by the code that its console shows. Read it there: whoever listens on\n" +
			"the network can ask in the machine's name, but only the machine shows its code on its console.",
		Example: "  provisiond approve WDJB-MJHT\n  provisiond approve wdjbmjht --deny",
	}
	deny := cmd.Flags().Bool("deny", false, "refuse it instead; the machine asks again, with another code")
	out := (&format{"table"}).bind(cmd)
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		c, err := a.client()
		if err != nil {
			return err
		}
		var p api.Approval
		if err := c.call(cmd.Context(), http.MethodPost, path("approvals", args[0]), nil, api.Decision{Approve: !*deny}, &p); err != nil {
			return err
		}
		return out.print(cmd, p, func(w io.Writer) { row(w, p.Machine+" of "+p.Cluster+", at "+p.Peer+", is "+p.State) })
	}
	return cmd
}

func (a *app) adoptCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use: "adopt CODE --name NAME --role ROLE", Short: "Register a machine that waits for it, by the code that its console shows", Args: cobra.ExactArgs(1),
		Long: "Register a machine that nobody registered and that waits in its boot loader, on a subnet with `adopt: true`. It goes\n" +
			"on with its boot within half a minute. `provisiond discovered` lists the codes, too.",
		Example: "  provisiond adopt WDJB-MJHT --name w-7 --role worker --cluster prod",
	}
	var spec api.Adoption
	f := cmd.Flags()
	f.StringVar(&spec.Name, "name", "", "its name, and host name")
	f.StringVar(&spec.Role, "role", "", "controlplane or worker")
	f.StringVar(&spec.Cluster, "cluster", "", "its cluster")
	f.StringVar(&spec.Address, "address", "", "its one stable IPv6 address (default: allocated)")
	f.StringToStringVar(&spec.Labels, "label", nil, "label KEY=VALUE (repeat)")
	_, _ = cmd.MarkFlagRequired("name"), cmd.MarkFlagRequired("role") // the flags are there
	out := (&format{"table"}).bind(cmd)
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		c, err := a.client()
		if err != nil {
			return err
		}
		var m api.Machine
		if err := c.call(cmd.Context(), http.MethodPost, path("discovered", args[0], "adopt"), nil, spec, &m); err != nil {
			return err
		}
		return out.print(cmd, m, func(w io.Writer) {
			row(w, "registered "+m.Name+", "+strings.Join(m.MACs, " ")+", as "+m.Role+" with address "+m.Address)
		})
	}
	return cmd
}

func (a *app) machineAcknowledge() *cobra.Command {
	return &cobra.Command{
		Use: "acknowledge MACHINE", Short: "Say that you have looked into the alarms of a machine", Args: cobra.ExactArgs(1),
		Long: "Take the alarms of a machine off the list. Its keys may be out all the same: `provisiond cluster reset` makes others.",
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := a.client()
			if err != nil {
				return err
			}
			return c.call(cmd.Context(), http.MethodDelete, path("machines", args[0], "alarm"), nil, nil, nil)
		},
	}
}
