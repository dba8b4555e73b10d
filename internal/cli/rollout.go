package cli

import (
	"cmp"
	"fmt"
	"io"

	"github.com/spf13/cobra"

	"github.com/provisiond/provisiond/api"
	"github.com/provisiond/provisiond/client"
)

func (a *app) clusterRollout() *cobra.Command {
	cmd := &cobra.Command{
		Use: "rollout CLUSTER", Short: "Give all machines of a cluster the configs that they should have", Args: cobra.ExactArgs(1),
		Long: "Give all running machines of a cluster the configs that they would get now, one machine after the other.\n" +
			"Control planes come first, each only while etcd of the others has quorum, and once those before it are ready\n" +
			"again; then the workers. The only control plane of a cluster is taken all the same, and --mode staged without\n" +
			"--upgrade reboots nobody and does not ask. It goes on in provisiond, and ends by itself at the first failure.\n" +
			"--status shows how far it is; --stop stops it before the next machine. Begun again, it passes over machines that\n" +
			"have their config.\n\n" +
			"With --upgrade a machine that runs another Talos than it would netboot installs that first, from the installer\n" +
			"image of its config, and reboots; then it is given its config.",
		Example: "  provisiond cluster set rack1 --patch @sysctls.yaml\n  provisiond cluster rollout rack1\n  provisiond cluster rollout rack1 --status\n\n" +
			"  provisiond cluster set rack1 --talos-version v1.13.7\n  provisiond cluster rollout rack1 --upgrade",
	}
	var order api.RolloutOrder
	f := cmd.Flags()
	f.StringVar(&order.Mode, "mode", "", "auto, no-reboot or staged; left out: auto")
	f.BoolVar(&order.Upgrade, "upgrade", false, "first install the Talos that each machine would netboot")
	stop := f.Bool("stop", false, "stop it instead")
	status := f.Bool("status", false, "only show it")
	cmd.MarkFlagsMutuallyExclusive("mode", "stop", "status")
	cmd.MarkFlagsMutuallyExclusive("upgrade", "stop", "status")
	out := (&format{"table"}).bind(cmd)
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		c, err := a.client()
		if err != nil {
			return err
		}
		var r api.Rollout
		switch {
		case *status:
			r, err = client.Answer[api.Rollout](c.GetRollout(cmd.Context(), args[0]))
		case *stop:
			r, err = client.Answer[api.Rollout](c.StopRollout(cmd.Context(), args[0]))
		default:
			r, err = client.Answer[api.Rollout](c.StartRollout(cmd.Context(), args[0], order))
		}
		if err != nil {
			return err
		}
		return out.print(cmd, r, func(w io.Writer) {
			row(w, fmt.Sprintf("rollout %d over %s, mode %s, is %s%s", r.Number, r.Cluster, r.Mode, r.State, named(": ", r.Reason)))
			row(w, "MACHINE", "ROLE", "STATE", "SINCE", "REASON")
			for _, m := range r.Machines {
				row(w, m.Name, m.Role, m.State, when(cmp.Or(m.EndedAt, m.ClaimedAt)), m.Reason)
			}
		})
	}
	return cmd
}
