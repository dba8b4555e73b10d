package cli

import (
	"fmt"
	"io"
	"strings"

	"github.com/spf13/cobra"

	"github.com/provisiond/provisiond/api"
	"github.com/provisiond/provisiond/client"
)

func (a *app) machineReimage() *cobra.Command {
	cmd := &cobra.Command{
		Use: "reimage MACHINE", Short: "Wipe a machine and install it anew, once", Args: cobra.ExactArgs(1),
		Long: "Wipe a machine and install what the inventory says then. Its Talos API is asked to wipe it if it answers; else,\n" +
			"if it has a cluster, it is wiped when it next boots from the network: switch it on, or off and on. --wipe all\n" +
			"takes its API, and waits for that.\n\n" +
			"Ordering it twice wipes it once. It can be cancelled (--cancel) until the wipe was asked for, or it was taken out\n" +
			"of etcd. A control plane leaves etcd first, and is refused with the numbers where that would take etcd's quorum.",
		Example: "  provisiond machine reimage w-7\n  provisiond machine reimage w-7 --role controlplane --cluster rack2",
	}
	var order api.Reimage
	f := cmd.Flags()
	f.StringVar(&order.Wipe, "wipe", "", "system, the disk Talos is on, or all; left out: system")
	graceful := f.Bool("graceful", true, "drain the node and leave etcd first, where its API answers and the cluster is not to be lost")
	f.StringVar(&order.Cluster, "cluster", "", "install it into this cluster")
	f.StringVar(&order.Role, "role", "", "install it as controlplane or worker")
	f.StringVar(&order.Image, "image", "", "Talos to install, VERSION or VERSION/SCHEMATIC")
	bindDestroy(cmd, &order.DestroyCluster)
	cancel := f.Bool("cancel", false, "cancel the order instead")
	dry := f.Bool("dry-run", false, "say what the order would come to, and order nothing; fails where it would be refused")
	for _, of := range []string{"dry-run", "wipe", "graceful", "cluster", "role", "image", "destroy-cluster"} {
		cmd.MarkFlagsMutuallyExclusive("cancel", of)
	}
	out := (&format{"table"}).bind(cmd)
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		c, err := a.client()
		if err != nil {
			return err
		}
		if f.Changed("graceful") {
			order.Graceful = graceful
		}
		if *dry {
			return a.foreseeReimage(cmd, c, out, args[0], order)
		}
		var m api.Machine
		if *cancel {
			m, err = client.Answer[api.Machine](c.CancelReimage(cmd.Context(), args[0]))
		} else {
			m, err = client.Answer[api.Machine](c.ReimageMachine(cmd.Context(), args[0], order))
		}
		if err != nil {
			return err
		}
		return out.print(cmd, m, func(w io.Writer) {
			if r := m.Facts.Reimage; r != nil {
				row(w, fmt.Sprintf("%s: reimage order %d is %s: %s", m.Name, r.Order, r.State, r.Reason))
			} else {
				row(w, m.Name+" has no order to be reimaged")
			}
		})
	}
	return cmd
}

// foreseeReimage prints what an order would come to.
func (a *app) foreseeReimage(cmd *cobra.Command, c *client.Client, out *format, machine string, order api.Reimage) error {
	r, err := client.Answer[api.ReimageCheck](c.CheckReimage(cmd.Context(), machine, order))
	if err != nil {
		return err
	}
	err = out.print(cmd, r, func(w io.Writer) {
		for _, p := range r.Problems {
			pair(w, "refused", p.Message)
		}
		pair(w, "its cluster", r.Guard)
		pair(w, "may be lost", r.Loses)
		pair(w, "wiped by", map[string]string{"api": "its Talos API", "netboot": "netbooting Talos once"}[r.Via])
		pair(w, "waits for", r.Waits)
		pair(w, "wipes", map[string]string{api.WipeSystem: "its system disk", api.WipeAll: "all its disks"}[r.Wipe])
		for _, f := range r.Changes {
			pair(w, "changes", fmt.Sprintf("%s: %v → %v", f.Field, f.From, f.To))
		}
		pair(w, "then", strings.TrimSuffix(r.Role+" of "+r.Cluster, " of "))
		pair(w, "image", r.Image)
		if r.Image != "" && !r.Imported {
			pair(w, "missing", "that image is not imported")
		}
		describeInstall(w, r.Install)
	})
	if err == nil && !r.OK {
		err = fmt.Errorf("%s would not be reimaged", r.Machine)
	}
	return err
}

// bindDestroy adds the flag that says that a cluster may be lost.
func bindDestroy(cmd *cobra.Command, name *string) {
	cmd.Flags().StringVar(name, "destroy-cluster", "", "`NAME` of the machine's cluster: it may be lost with it")
}

func (a *app) clusterReset() *cobra.Command {
	cmd := &cobra.Command{
		Use: "reset CLUSTER {--confirm CLUSTER | --dry-run}", Short: "Give a cluster up and begin its next life: everything in it is lost", Args: cobra.ExactArgs(1),
		Long: "Give a cluster up and begin its next life, with new secrets. Every machine of it that has its config is\n" +
			"reimaged. The next life is bootstrapped once each control plane of the old one was wiped; --dead names those\n" +
			"that will not come back, which are not waited for.",
	}
	var order api.ClusterReset
	f := cmd.Flags()
	f.StringVar(&order.Confirm, "confirm", "", "the name of the cluster, again")
	f.StringSliceVar(&order.Dead, "dead", nil, "control planes that will not come back")
	dry := f.Bool("dry-run", false, "say which machines would be wiped, and reset nothing")
	cmd.MarkFlagsOneRequired("confirm", "dry-run")
	cmd.MarkFlagsMutuallyExclusive("confirm", "dry-run")
	out := (&format{"table"}).bind(cmd)
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		c, err := a.client()
		if err != nil {
			return err
		}
		cl, err := client.Answer[api.Cluster](c.GetCluster(cmd.Context(), args[0]))
		if err != nil {
			return err
		}
		// A second life must not be given up because the answer about the first was lost.
		order.Epoch = cl.Bootstrap.Epoch
		if cl.Bootstrap.State == "waiting" && len(cl.Bootstrap.Old) > 0 {
			order.Epoch-- // the reset goes on, with more that are declared dead
		}
		if *dry {
			return foreseeReset(cmd, c, out, args[0], order)
		}
		done, err := client.Answer[api.ClusterResetting](c.ResetCluster(cmd.Context(), args[0], order))
		if err != nil {
			return err
		}
		return out.print(cmd, done, func(w io.Writer) {
			row(w, fmt.Sprintf("%s begins its life %d; reimaged: %s", args[0], done.Epoch, strings.Join(done.Reimaged, " ")))
		})
	}
	return cmd
}

// foreseeReset prints which machines a reset would wipe.
func foreseeReset(cmd *cobra.Command, c *client.Client, out *format, cluster string, order api.ClusterReset) error {
	r, err := client.Answer[api.ClusterResetCheck](c.CheckReset(cmd.Context(), cluster, order))
	if err != nil {
		return err
	}
	return out.print(cmd, r, func(w io.Writer) {
		row(w, "WIPED", "ROLE", "WAITED FOR")
		for _, m := range r.Machines {
			row(w, m.Name, m.Role, map[bool]string{true: "yes", false: "no"}[m.Awaited])
		}
		if others := r.Count - len(r.Machines); others > 0 {
			row(w, fmt.Sprintf("and %d that are not yours: they are not wiped", others))
		}
	})
}
