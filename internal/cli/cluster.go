package cli

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"strings"

	"github.com/spf13/cobra"

	"github.com/provisiond/provisiond/api"
	"github.com/provisiond/provisiond/client"
)

func (a *app) clusterCommand() *cobra.Command {
	cmd := Group("cluster", "Create, import and look at clusters",
		a.clusterCreate(), a.clusterImport(), a.clusterSet(), a.clusterList(), a.clusterShow(), a.clusterRollout(), a.clusterReset(), a.clusterDelete(),
		a.clusterAccess("talosconfig", "Make a talosconfig for an administrator, to be used with talosctl", func(ctx context.Context, c *client.Client, cluster string) (*http.Response, error) {
			return c.GetTalosconfig(ctx, cluster)
		}),
		a.clusterAccess("kubeconfig", "Make a kubeconfig for an administrator, to be used with kubectl", func(ctx context.Context, c *client.Client, cluster string) (*http.Response, error) {
			return c.GetKubeconfig(ctx, cluster)
		}))
	cmd.Aliases = []string{"clusters"}
	return cmd
}

func (a *app) clusterCreate() *cobra.Command {
	cmd := &cobra.Command{
		Use: "create NAME --endpoint URL", Short: "Create a cluster and its secrets", Args: cobra.ExactArgs(1),
		Example: "  provisiond cluster create rack1 --endpoint 'https://[2001:db8::1]:6443' --install-disk /dev/sda",
	}
	object := bind(cmd, clusterFields())
	out := (&format{"table"}).bind(cmd)
	_ = cmd.MarkFlagRequired("endpoint") // the flag is there
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		spec, err := object()
		if err != nil {
			return err
		}
		spec["name"] = args[0]
		return a.newCluster(cmd, out, "created", func(ctx context.Context, c *client.Client) (*http.Response, error) {
			return c.CreateCluster(ctx, api.ClusterSpec{}, client.Body(spec))
		})
	}
	return cmd
}

func (a *app) clusterImport() *cobra.Command {
	cmd := &cobra.Command{
		Use: "import NAME --secrets FILE", Short: "Take over a cluster whose secrets exist", Args: cobra.ExactArgs(1),
		Long: "Take over a cluster whose secrets exist. FILE is the secrets.yaml or controlplane.yaml that talosctl wrote;\n" +
			"flags that are left out are read from it, where it tells.\n\n" +
			"The cluster is taken to run already: provisiond never bootstraps it, whatever its machines look like, since a\n" +
			"second bootstrap would make a second etcd. For secrets that were made and never used, say --new: then it is\n" +
			"bootstrapped, once, as one that was created here.",
	}
	object := bind(cmd, clusterFields())
	out := (&format{"table"}).bind(cmd)
	file := cmd.Flags().String("secrets", "", "secrets.yaml or controlplane.yaml; - for standard input")
	unused := cmd.Flags().Bool("new", false, "these secrets were never used: bootstrap the cluster")
	_ = cmd.MarkFlagRequired("secrets") // the flag is there
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		spec, err := object()
		if err != nil {
			return err
		}
		b, err := readText("secrets", *file, cmd.InOrStdin(), maxText)
		if err != nil {
			return err
		}
		spec["name"], spec["secrets"], spec["new"] = args[0], string(b), *unused
		return a.newCluster(cmd, out, "imported", func(ctx context.Context, c *client.Client) (*http.Response, error) {
			return c.ImportCluster(ctx, api.ClusterImport{}, client.Body(spec))
		})
	}
	return cmd
}

func (a *app) newCluster(cmd *cobra.Command, out *format, verb string, make func(context.Context, *client.Client) (*http.Response, error)) error {
	c, err := a.client()
	if err != nil {
		return err
	}
	cl, err := client.Answer[api.Cluster](make(cmd.Context(), c))
	if err != nil {
		return err
	}
	return out.print(cmd, cl, func(w io.Writer) {
		row(w, fmt.Sprintf("%s %s with Talos %s and Kubernetes %s at %s", verb, cl.Name, cl.TalosVersion, cl.KubernetesVersion, cl.Endpoint))
		if cl.Imported {
			row(w, "it is taken to run already and is never bootstrapped from here")
		}
	})
}

func (a *app) clusterSet() *cobra.Command {
	cmd := &cobra.Command{
		Use: "set CLUSTER", Short: "Change what was said of a cluster; only the flags given", Args: cobra.ExactArgs(1),
		Long: "Change what was said of a cluster. Only the flags given change anything: a list is replaced whole, an empty\n" +
			"value removes the field. Machines that run get the new config by `provisiond cluster rollout`, others when they are\n" +
			"installed.",
	}
	object := bind(cmd, clusterFields())
	out := (&format{"table"}).bind(cmd)
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		changes, err := changed(object)
		if err != nil {
			return err
		}
		c, err := a.client()
		if err != nil {
			return err
		}
		cl, err := client.Answer[api.Cluster](c.PatchCluster(cmd.Context(), args[0], client.PatchClusterParams{}, changes))
		if err != nil {
			return err
		}
		return out.print(cmd, cl, func(w io.Writer) { describeCluster(w, &cl) })
	}
	return cmd
}

func (a *app) clusterList() *cobra.Command {
	cmd := &cobra.Command{Use: "list", Aliases: []string{"ls"}, Short: "List clusters", Args: cobra.NoArgs}
	out := (&format{"table"}).bind(cmd)
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		c, err := a.client()
		if err != nil {
			return err
		}
		clusters, err := list[api.Cluster](func(after string) (*http.Response, error) {
			return c.ListClusters(cmd.Context(), client.ListClustersParams{After: after, Limit: api.MaxLimit})
		})
		if err != nil {
			return err
		}
		return out.print(cmd, clusters, func(w io.Writer) {
			row(w, "NAME", "ENDPOINT", "TALOS", "KUBERNETES", "BOOTSTRAP", "REASON")
			for _, cl := range clusters {
				row(w, cl.Name, cl.Endpoint, cl.TalosVersion, cl.KubernetesVersion, bootstrap(cl.Bootstrap), cl.Bootstrap.Reason)
			}
		})
	}
	return cmd
}

func bootstrap(b api.Bootstrap) string {
	if b.Machine != "" {
		return b.State + " on " + b.Machine
	}
	return b.State
}

func (a *app) clusterShow() *cobra.Command {
	return get(a, "show CLUSTER", "Show a cluster", func(ctx context.Context, c *client.Client, name string) (*http.Response, error) {
		return c.GetCluster(ctx, name)
	}, describeCluster)
}

func describeCluster(w io.Writer, c *api.Cluster) {
	pair(w, "name", c.Name)
	pair(w, "endpoint", c.Endpoint)
	pair(w, "talos", c.TalosVersion)
	pair(w, "kubernetes", c.KubernetesVersion)
	pair(w, "schematic", c.Schematic)
	pair(w, "pod subnets", strings.Join(c.PodSubnets, " "))
	pair(w, "service subnets", strings.Join(c.ServiceSubnets, " "))
	pair(w, "dns", strings.Join(c.DNS, " "))
	pair(w, "ntp", strings.Join(c.NTP, " "))
	pair(w, "addressing", c.Addressing)
	pair(w, "delivery", c.Delivery)
	pair(w, "approval", c.Approval)
	describeInstall(w, c.Install)
	pair(w, "kernel args", strings.Join(c.KernelArgs, " "))
	pair(w, "patches", count(len(c.Patches)))
	pair(w, "control plane patches", count(len(c.ControlPlanePatches)))
	pair(w, "worker patches", count(len(c.WorkerPatches)))
	pair(w, "bootstrap", bootstrap(c.Bootstrap))
	pair(w, "claimed", when(c.Bootstrap.ClaimedAt))
	pair(w, "called", when(c.Bootstrap.CalledAt))
	pair(w, "done", when(c.Bootstrap.DoneAt))
	pair(w, "reason", c.Bootstrap.Reason)
	pair(w, "created", when(c.Created))
	if c.Imported {
		pair(w, "imported", "taken to run already, never bootstrapped from here")
	}
}

func (a *app) clusterDelete() *cobra.Command {
	cmd := &cobra.Command{Use: "delete CLUSTER --yes", Aliases: []string{"rm"}, Short: "Remove a cluster without machines, and its secrets for good", Args: cobra.ExactArgs(1)}
	yes := cmd.Flags().Bool("yes", false, "yes, the secrets too")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		if !*yes {
			return usagef("this deletes the secrets of %s for good: take a backup first, and add --yes", args[0])
		}
		return a.remove(cmd, args, func(ctx context.Context, c *client.Client, name string) (*http.Response, error) {
			return c.DeleteCluster(ctx, name, client.DeleteClusterParams{})
		})
	}
	return cmd
}

func (a *app) clusterAccess(what, short string, get byName) *cobra.Command {
	cmd := &cobra.Command{Use: what + " CLUSTER", Short: short, Args: cobra.ExactArgs(1)}
	file := cmd.Flags().String("to", "", "file to write, mode 0600, in place of one that is there (default: standard output)")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		return a.copyText(cmd, *file, func(ctx context.Context, c *client.Client) (*http.Response, error) { return get(ctx, c, args[0]) })
	}
	return cmd
}
