package cli

import (
	"io"
	"strings"

	"github.com/spf13/cobra"

	"github.com/provisiond/provisiond/api"
	"github.com/provisiond/provisiond/client"
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
		waiting, err := client.Answer[api.List[api.Approval]](c.ListApprovals(cmd.Context()))
		if err != nil {
			return err
		}
		return out.print(cmd, waiting.Items, func(w io.Writer) {
			row(w, "MACHINE", "CLUSTER", "ADDRESS", "ASKED", "UNTIL", "ALARM")
			for _, p := range waiting.Items {
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
		p, err := client.Answer[api.Approval](c.DecideApproval(cmd.Context(), args[0], api.Decision{Approve: !*deny}))
		if err != nil {
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
		m, err := client.Answer[api.Machine](c.AdoptMachine(cmd.Context(), args[0], spec))
		if err != nil {
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
			return client.Done(c.AcknowledgeAlarm(cmd.Context(), args[0]))
		},
	}
}

func (a *app) machineConfirm() *cobra.Command {
	cmd := &cobra.Command{
		Use: "confirm MACHINE FINGERPRINT", Short: "Say what fingerprint the console of a machine in maintenance mode prints", Args: cobra.ExactArgs(2),
		Long: "Confirm a machine that was started by hand and waits in maintenance mode, by the fingerprint that its console prints\n" +
			"(`server certificate issued`). Read it there: whoever took its address shows one, too, but not on its console.",
		Example: "  provisiond machine confirm cp-1 jTzh1hUzyPBrtr1RBY2F+Aw2HC7KEbLv7JyXNV3Pzhs=",
	}
	out := (&format{"table"}).bind(cmd)
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		c, err := a.client()
		if err != nil {
			return err
		}
		m, err := client.Answer[api.Machine](c.ConfirmMachine(cmd.Context(), args[0], api.Confirmation{Fingerprint: args[1]}))
		if err != nil {
			return err
		}
		return out.print(cmd, m, func(w io.Writer) { row(w, m.Name+" is confirmed") })
	}
	return cmd
}
