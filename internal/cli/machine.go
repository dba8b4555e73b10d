package cli

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/http"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/provisiond/provisiond/api"
	"github.com/provisiond/provisiond/client"
)

func (a *app) machineCommand() *cobra.Command {
	cmd := Group("machine", "Register, change and look at machines",
		a.machineAdd(), a.machineSet(), a.machineList(), a.machineShow(), a.machineBoots(), a.machineLogs(), a.machineDelete(), a.machineReimage(), a.machineAcknowledge(), a.machineConfirm(), a.machineConfig(), a.machineDiff(), a.machineApply(), a.machineSeed(), a.machineISO())
	cmd.Aliases = []string{"machines"}
	return cmd
}

func (a *app) machineAdd() *cobra.Command {
	cmd := &cobra.Command{
		Use: "add NAME --mac MAC --role ROLE", Short: "Register a machine, to be installed when it boots next", Args: cobra.ExactArgs(1),
		Example: "  provisiond machine add cp-1 --mac 52:54:00:12:34:56 --role controlplane --cluster rack1 --disk /dev/sda",
	}
	object := bind(cmd, machineFields())
	out := (&format{"table"}).bind(cmd)
	for _, f := range []string{"mac", "role"} {
		_ = cmd.MarkFlagRequired(f) // the flag is there
	}
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		spec, err := object()
		if err != nil {
			return err
		}
		spec["name"] = args[0]
		c, err := a.client()
		if err != nil {
			return err
		}
		m, err := client.Answer[api.Machine](c.CreateMachine(cmd.Context(), api.MachineSpec{}, client.Body(spec)))
		if err != nil {
			return err
		}
		return out.print(cmd, m, func(w io.Writer) {
			row(w, fmt.Sprintf("registered %s as %s with address %s", m.Name, m.Role, m.Address))
		})
	}
	return cmd
}

func (a *app) machineSet() *cobra.Command {
	cmd := &cobra.Command{
		Use: "set MACHINE", Short: "Change what was said of a machine; only the flags given", Args: cobra.ExactArgs(1),
		Long: "Change what was said of a machine, a name or one of its MACs. Only the flags given change\n" +
			"anything: a list is replaced whole, an empty value removes the field, --label KEY- a label.\n\n" +
			"A machine that has its config keeps its role, cluster and address unless --yes says that they are meant.",
	}
	object := bind(cmd, machineFields())
	out := (&format{"table"}).bind(cmd)
	var params client.PatchMachineParams
	bindYes(cmd, &params.Force)
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		changes, err := changed(object)
		if err != nil {
			return err
		}
		c, err := a.client()
		if err != nil {
			return err
		}
		m, err := client.Answer[api.Machine](c.PatchMachine(cmd.Context(), args[0], params, changes))
		if err != nil {
			return err
		}
		return out.print(cmd, m, func(w io.Writer) { describeMachine(w, &m) })
	}
	return cmd
}

// changed is what flags say of fields, which has to be something.
func changed(object func() (map[string]any, error)) (map[string]any, error) {
	changes, err := object()
	if err == nil && len(changes) == 0 {
		err = usagef("nothing to change: give a flag")
	}
	return changes, err
}

// bindYes adds the flag without which a machine that has its config is left as it is.
func bindYes(cmd *cobra.Command, force *bool) {
	cmd.Flags().BoolVar(force, "yes", false, "yes, also for a machine that runs or has fetched its config")
}

func (a *app) machineList() *cobra.Command {
	cmd := &cobra.Command{Use: "list", Aliases: []string{"ls"}, Short: "List machines", Args: cobra.NoArgs}
	out := (&format{"table"}).bind(cmd)
	params := machineFilters(cmd)
	watch := cmd.Flags().BoolP("watch", "w", false, "go on with what changes, as provisiond watch does")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		c, err := a.client()
		if err != nil {
			return err
		}
		if *watch {
			return watchMachines(cmd, c, out, params)
		}
		params.Limit = api.MaxLimit
		machines, err := list[api.Machine](func(after string) (*http.Response, error) {
			params.After = after
			return c.ListMachines(cmd.Context(), *params)
		})
		if err != nil {
			return err
		}
		if len(machines) == 0 {
			missing(cmd, c, "cluster", params.Cluster)
		}
		return out.print(cmd, machines, func(w io.Writer) {
			row(w, "NAME", "CLUSTER", "ROLE", "PHASE", "SINCE", "ADDRESS", "MAC", "REASON")
			for _, m := range machines {
				row(w, m.Name, m.Cluster, m.Role, phaseText(&m), when(m.Phase.Since), m.Address, m.MACs[0], m.Phase.Reason)
			}
		})
	}
	return cmd
}

// missing tells of a filter, the machine or cluster of a name, that names what is not
// there, for a list that came out empty. It is no error: the log may name what was removed
// long ago.
func missing(cmd *cobra.Command, c *client.Client, what, name string) {
	if name == "" {
		return
	}
	look := c.GetMachine
	if what == "cluster" {
		look = c.GetCluster
	}
	var p *client.Problem
	if err := client.Done(look(cmd.Context(), name)); errors.As(err, &p) && p.Status == http.StatusNotFound {
		say(cmd.ErrOrStderr(), "no %s %s", what, name)
	}
}

func phase(s api.State) string {
	if s.StalledIn != "" {
		return s.Phase + " in " + s.StalledIn
	}
	return s.Phase
}

// byName calls for one thing by its name.
type byName func(ctx context.Context, c *client.Client, name string) (*http.Response, error)

// get is a command that reads one thing by its name and prints it.
func get[T any](a *app, use, short string, read byName, table func(io.Writer, *T)) *cobra.Command {
	cmd := &cobra.Command{Use: use, Short: short, Args: cobra.ExactArgs(1)}
	out := (&format{"table"}).bind(cmd)
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		c, err := a.client()
		if err != nil {
			return err
		}
		v, err := client.Answer[T](read(cmd.Context(), c, args[0]))
		if err != nil {
			return err
		}
		return out.print(cmd, v, func(w io.Writer) { table(w, &v) })
	}
	return cmd
}

func (a *app) machineShow() *cobra.Command {
	return get(a, "show MACHINE", "Show a machine, by name or MAC", func(ctx context.Context, c *client.Client, name string) (*http.Response, error) {
		return c.GetMachine(ctx, name)
	}, describeMachine)
}

func describeMachine(w io.Writer, m *api.Machine) {
	pair(w, "name", m.Name)
	pair(w, "phase", phaseText(m))
	pair(w, "since", when(m.Phase.Since))
	pair(w, "reason", m.Phase.Reason)
	pair(w, "ALARM", m.Facts.Alarm)
	pair(w, "next boot", m.Plan.Action+": "+m.Plan.Reason)
	if m.Plan.WayReason != "" {
		pair(w, "by", cmp.Or(m.Plan.Way, "no way")+": "+m.Plan.WayReason)
	}
	if r := m.Facts.Reimage; r != nil {
		pair(w, "reimage", fmt.Sprintf("order %d, %s: %s", r.Order, r.State, r.Reason))
	}
	pair(w, "role", m.Role)
	pair(w, "cluster", m.Cluster)
	if h := m.Facts.Holds; h != nil && (h.Cluster != m.Cluster || h.Role != m.Role) {
		pair(w, "its disk says", h.Role+" of "+h.Cluster)
	}
	pair(w, "address", m.Address)
	pair(w, "macs", strings.Join(m.MACs, " "))
	pair(w, "image", m.Image)
	pair(w, "boot", m.Boot)
	pair(w, "secure boot", secureBootText(m))
	describeInstall(w, m.Install)
	pair(w, "addressing", m.Addressing)
	pair(w, "approval", m.Approval)
	pair(w, "kernel args", strings.Join(m.KernelArgs, " "))
	pair(w, "patches", count(len(m.Patches)))
	pair(w, "labels", pairsText(m.Labels))
	pair(w, "arch", m.Facts.Arch)
	pair(w, "uuid", m.Facts.UUID)
	pair(w, "serial", m.Facts.Serial)
	if i := m.Facts.Identified; i != nil {
		pair(w, "known by", fmt.Sprintf("%s: %s, as %s%s%s%s", i.By, i.MAC, i.Client, named(" at ", i.Peer), named(" through ", i.Relay), named(" on ", i.Port)))
	}
	pair(w, "declined", when(m.Facts.DeclinedAt))
	pair(w, "stage", m.Facts.Stage)
	pair(w, "config error", m.Facts.ConfigError)
	if c := m.Facts.Maintenance; c != nil {
		pair(w, "waits at", c.Address+named(", confirmed by ", c.By))
		pair(w, "fingerprint", c.Fingerprint)
	}
	pair(w, "last seen", when(m.Facts.LastSeen))
	pair(w, "registered", when(m.Created))
	if b := m.Facts.Boot; b != nil {
		pair(w, "last boot", fmt.Sprintf("number %d, began %s, %s", b.Number, when(b.Started), stepsText(b)))
	}
}

// secureBootText is what is known of it, and by whom.
func secureBootText(m *api.Machine) string {
	switch {
	case m.SecureBoot != "" && m.Facts.SecureBoot != "" && m.SecureBoot != m.Facts.SecureBoot:
		return m.SecureBoot + ", as registered; Talos said " + m.Facts.SecureBoot
	case m.SecureBoot != "":
		return m.SecureBoot + ", as registered"
	case m.Facts.SecureBoot != "":
		return m.Facts.SecureBoot + ", by Talos"
	}
	return ""
}

func describeInstall(w io.Writer, i api.Install) {
	pair(w, "install disk", i.Disk+pairsText(i.DiskSelector))
	pair(w, "installer", i.Image)
}

func pairsText(m map[string]string) string {
	var list []string
	for _, k := range slices.Sorted(maps.Keys(m)) {
		list = append(list, k+"="+m[k])
	}
	return strings.Join(list, " ")
}

func count(n int) string {
	if n == 0 {
		return ""
	}
	return fmt.Sprint(n)
}

// stepsText is how long after its beginning a boot came to each step.
func stepsText(b *api.Boot) string {
	list := make([]string, 0, len(b.Steps))
	for _, s := range b.Steps {
		list = append(list, s.Step+" +"+seconds(s.Seconds))
	}
	return strings.Join(list, ", ")
}

func (a *app) machineBoots() *cobra.Command {
	cmd := &cobra.Command{Use: "boots MACHINE", Short: "Show the last boots of a machine and the time of each step", Args: cobra.ExactArgs(1)}
	out := (&format{"table"}).bind(cmd)
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		c, err := a.client()
		if err != nil {
			return err
		}
		boots, err := client.Answer[api.List[api.Boot]](c.ListBoots(cmd.Context(), args[0]))
		if err != nil {
			return err
		}
		return out.print(cmd, boots.Items, func(w io.Writer) {
			row(w, "BOOT", "BEGAN", "TOOK", "PLAN", "CLIENT", "MAC", "STEPS")
			for _, b := range boots.Items {
				row(w, b.Number, when(b.Started), seconds(b.Seconds), b.Plan, b.Client, b.MAC, stepsText(&b))
			}
		})
	}
	return cmd
}

func (a *app) machineDelete() *cobra.Command {
	cmd := &cobra.Command{Use: "delete MACHINE...", Aliases: []string{"rm"}, Short: "Forget machines; nothing is done to them", Args: cobra.MinimumNArgs(1),
		Long: "Forget machines; nothing is done to them. One that runs, or has fetched its config, is forgotten only with --yes.\n" +
			"A control plane leaves etcd first, and is refused with the numbers where that would take etcd's quorum."}
	var params client.DeleteMachineParams
	bindYes(cmd, &params.Force)
	bindDestroy(cmd, &params.DestroyCluster)
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		return a.remove(cmd, args, func(ctx context.Context, c *client.Client, name string) (*http.Response, error) {
			return c.DeleteMachine(ctx, name, params)
		})
	}
	return cmd
}

// remove deletes each of names, and says so.
func (a *app) remove(cmd *cobra.Command, names []string, remove byName) error {
	c, err := a.client()
	if err != nil {
		return err
	}
	for _, name := range names {
		if err := client.Done(remove(cmd.Context(), c, name)); err != nil {
			return err
		}
		row(cmd.OutOrStdout(), "deleted "+name)
	}
	return nil
}

func (a *app) machineConfig() *cobra.Command {
	cmd := &cobra.Command{Use: "config MACHINE", Short: "Print the Talos config a machine would get now", Args: cobra.ExactArgs(1)}
	var params client.GetMachineConfigParams
	cmd.Flags().BoolVar(&params.Secrets, "show-secrets", false, "with its secrets; that is noted in the event log")
	origins := cmd.Flags().Bool("origins", false, "with where each line comes from before it: base, or a patch of the cluster, the role or the machine")
	cmd.MarkFlagsMutuallyExclusive("show-secrets", "origins")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		if *origins {
			c, err := a.client()
			if err != nil {
				return err
			}
			o, err := client.Answer[api.ConfigOrigins](c.GetMachineConfigOrigins(cmd.Context(), args[0]))
			if err != nil {
				return err
			}
			return writeOrigins(cmd.OutOrStdout(), o.Blocks)
		}
		return a.copyText(cmd, "", func(ctx context.Context, c *client.Client) (*http.Response, error) {
			return c.GetMachineConfig(ctx, args[0], params)
		})
	}
	return cmd
}

// copyText prints a text of the API, or writes it to a file of mode 0600.
func (a *app) copyText(cmd *cobra.Command, file string, read func(context.Context, *client.Client) (*http.Response, error)) error {
	c, err := a.client()
	if err != nil {
		return err
	}
	b, err := client.Answer[[]byte](read(cmd.Context(), c))
	if err != nil {
		return err
	}
	if file == "" || file == "-" {
		_, err = cmd.OutOrStdout().Write(b)
		return err
	}
	_, err = writeSecret(file, bytes.NewReader(b))
	return err
}

func (a *app) machineDiff() *cobra.Command {
	cmd := &cobra.Command{Use: "diff MACHINE", Short: "Compare the config a machine would get now with the one it was last given, or runs", Args: cobra.ExactArgs(1)}
	var params client.GetMachineDiffParams
	cmd.Flags().BoolVar(&params.Running, "running", false, "compare with what it runs: its Talos API is asked")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		c, err := a.client()
		if err != nil {
			return err
		}
		d, err := client.Answer[api.Diff](c.GetMachineDiff(cmd.Context(), args[0], params))
		if err != nil {
			return err
		}
		switch {
		case d.Diff != "":
		case params.Running && d.Running == d.Wanted:
			say(cmd.ErrOrStderr(), "%s runs the config that it would get now", d.Machine)
		case params.Running:
			say(cmd.ErrOrStderr(), "%s runs another config than it would get now, and no difference that may be shown", d.Machine)
		case d.Served == "":
			say(cmd.ErrOrStderr(), "%s was given no config yet", d.Machine)
		default:
			say(cmd.ErrOrStderr(), "no difference to the config of %s", when(d.ServedAt))
		}
		_, err = io.WriteString(cmd.OutOrStdout(), d.Diff)
		return err
	}
	return cmd
}

func (a *app) machineApply() *cobra.Command {
	cmd := &cobra.Command{
		Use: "apply MACHINE", Aliases: []string{"push"}, Short: "Give a running machine the config that it would get now", Args: cobra.ExactArgs(1),
		Long: "Give a running machine the config that it would get now, through its Talos API. `provisiond machine diff MACHINE\n" +
			"--running` shows what that changes. (`provisiond apply` is for the inventory.)\n\n" +
			"It takes effect at once, with a reboot where Talos cannot do without (auto); at once or not at all (no-reboot);\n" +
			"with the machine's next boot (staged); or for a minute (try). A machine that is reimaged gets it in any case. For\n" +
			"all machines of a cluster, one after the other: `provisiond cluster rollout`.",
		Example: "  provisiond machine apply w-7 --dry-run\n  provisiond machine apply w-7 --mode no-reboot",
	}
	var order api.ConfigApply
	cmd.Flags().StringVar(&order.Mode, "mode", "", "auto, no-reboot, staged or try; left out: auto")
	cmd.Flags().BoolVar(&order.DryRun, "dry-run", false, "ask Talos what it would do, and change nothing")
	out := (&format{"table"}).bind(cmd)
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		c, err := a.client()
		if err != nil {
			return err
		}
		done, err := client.Answer[api.ConfigApplied](c.ApplyMachineConfig(cmd.Context(), args[0], order))
		if err != nil {
			return err
		}
		return out.print(cmd, done, func(w io.Writer) { row(w, done.Machine+": "+done.Said) })
	}
	return cmd
}
