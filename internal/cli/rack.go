package cli

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/provisiond/provisiond/api"
	"github.com/provisiond/provisiond/client"
)

func (a *app) applyCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use: "apply -f FILE", Short: "Make clusters and machines be as a file declares", Args: cobra.NoArgs,
		Long: "Make clusters and machines be as a YAML file declares: creates and updates what differs, and never deletes.\n" +
			"Everything is checked first. The file has the form that export prints.\n\n" +
			"A cluster that does not exist is refused, since its secrets are made once: applied onto a lost database, the\n" +
			"file must not make a second cluster beside the one that runs. Where a new one is meant, say --create-clusters.\n\n" +
			"A machine that has its config keeps its role, cluster and address unless --yes says that they are meant.",
	}
	file := cmd.Flags().StringP("filename", "f", "", "rack.yaml; - for standard input")
	var params client.ApplyParams
	cmd.Flags().BoolVar(&params.DryRun, "dry-run", false, "only tell what would be done")
	cmd.Flags().BoolVar(&params.CreateClusters, "create-clusters", false, "create the clusters that do not exist, with new secrets")
	bindYes(cmd, &params.Force)
	out := (&format{"table"}).bind(cmd)
	_ = cmd.MarkFlagRequired("filename") // the flag is there
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		b, err := readText("filename", *file, cmd.InOrStdin(), maxRack)
		if err != nil {
			return err
		}
		name := *file
		if name == "-" {
			name = "standard input"
		}
		rack, err := parseRack(name, b)
		if err != nil {
			return err
		}
		c, err := a.client()
		if err != nil {
			return err
		}
		applied, err := client.Answer[api.Applied](c.Apply(cmd.Context(), params, api.Rack{}, client.Body(rack.json)))
		if err != nil {
			return rack.locate(err)
		}
		return out.print(cmd, applied, func(w io.Writer) { describeApplied(w, &applied) })
	}
	return cmd
}

func describeApplied(w io.Writer, a *api.Applied) {
	for _, ch := range a.Changes {
		if ch.Action == "unchanged" {
			continue
		}
		row(w, ch.Action+" "+ch.Kind+" "+ch.Name)
		for _, f := range ch.Fields {
			switch {
			case f.From == nil:
				row(w, fmt.Sprintf("  %s: %s", f.Field, compact(f.To)))
			case f.To == nil:
				row(w, fmt.Sprintf("  %s: %s -> nothing", f.Field, compact(f.From)))
			default:
				row(w, fmt.Sprintf("  %s: %s -> %s", f.Field, compact(f.From), compact(f.To)))
			}
		}
	}
	tense := ""
	if a.DryRun {
		tense = " (dry run: nothing was written)"
	}
	row(w, fmt.Sprintf("%d created, %d updated, %d unchanged%s", a.Created, a.Updated, a.Unchanged, tense))
}

// compact is a value on one line.
func compact(v any) string {
	if s, ok := v.(string); ok {
		return s
	}
	b, err := json.Marshal(v)
	if err != nil {
		return fmt.Sprint(v)
	}
	return string(b)
}

func (a *app) exportCommand() *cobra.Command {
	cmd := &cobra.Command{Use: "export", Short: "Print all clusters and machines, as apply takes them", Args: cobra.NoArgs,
		Long: "Print all clusters and machines, as apply takes them. The secrets of the clusters are not among them: an\n" +
			"empty provisiond can make other clusters of this, not the same ones. To move a provisiond, use backup."}
	out := &format{"yaml"}
	cmd.Flags().StringVarP(&out.name, "output", "o", "yaml", "json or yaml")
	_ = cmd.RegisterFlagCompletionFunc("output", cobra.FixedCompletions([]cobra.Completion{"json", "yaml"}, cobra.ShellCompDirectiveNoFileComp)) // the flag is there
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		if out.name == "table" {
			return usagef("-o table: write json or yaml")
		}
		c, err := a.client()
		if err != nil {
			return err
		}
		rack, err := client.Answer[api.Rack](c.Export(cmd.Context()))
		if err != nil {
			return err
		}
		return out.print(cmd, rack, nil)
	}
	return cmd
}

func (a *app) statusCommand() *cobra.Command {
	cmd := &cobra.Command{Use: "status", Short: "Show the rack at a glance", Args: cobra.NoArgs}
	out := (&format{"table"}).bind(cmd)
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		c, err := a.client()
		if err != nil {
			return err
		}
		st, err := client.Answer[api.Status](c.Status(cmd.Context()))
		if err != nil {
			return err
		}
		return out.print(cmd, st, func(w io.Writer) { describeStatus(w, &st) })
	}
	return cmd
}

func describeStatus(w io.Writer, st *api.Status) {
	var phases []string
	for _, p := range slices.Sorted(maps.Keys(st.Phases)) {
		phases = append(phases, fmt.Sprintf("%d %s", st.Phases[p], p))
	}
	pair(w, "provisiond", st.Version)
	pair(w, "machines", strings.TrimSuffix(fmt.Sprintf("%d: %s", st.Machines, strings.Join(phases, ", ")), ": "))
	pair(w, "discovered", st.Discovered)
	pair(w, "images", st.Images)
	var dropped []string
	for _, why := range slices.Sorted(maps.Keys(st.Dropped)) {
		dropped = append(dropped, fmt.Sprintf("%d %s", st.Dropped[why], why))
	}
	pair(w, "unanswered", strings.Join(dropped, ", "))
	if len(st.Clusters) > 0 {
		_, _ = fmt.Fprintln(w) // Flush reports it
		row(w, "CLUSTER", "READY", "BOOTSTRAP", "REASON")
		for _, cl := range st.Clusters {
			row(w, cl.Name, fmt.Sprintf("%d of %d", cl.Ready, cl.Machines), bootstrap(cl.Bootstrap), cl.Bootstrap.Reason)
		}
	}
	if len(st.Attention) > 0 {
		_, _ = fmt.Fprintln(w) // Flush reports it
		row(w, "LOOK AT", "PHASE", "SINCE", "REASON")
		for _, at := range st.Attention {
			row(w, at.Machine, phase(at.Phase), when(at.Phase.Since), cmp.Or(at.Alarm, at.Phase.Reason))
		}
	}
}

func (a *app) discoveredCommand() *cobra.Command {
	cmd := &cobra.Command{Use: "discovered", Short: "List NICs that were seen and belong to no machine", Args: cobra.NoArgs}
	out := (&format{"table"}).bind(cmd)
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		c, err := a.client()
		if err != nil {
			return err
		}
		strangers, err := client.Answer[api.List[api.Stranger]](c.ListDiscovered(cmd.Context(), client.ListDiscoveredParams{}))
		if err != nil {
			return err
		}
		return out.print(cmd, strangers.Items, func(w io.Writer) {
			row(w, "MAC", "CODE", "ARCH", "CLIENT", "SUBNET", "RELAY", "PORT", "FIRST SEEN", "LAST SEEN", "UUID", "FINGERPRINT")
			for _, s := range strangers.Items {
				row(w, s.MAC, s.Code, s.Arch, s.Client, s.Subnet, s.Relay, s.Port, when(s.FirstSeen), when(s.LastSeen), s.UUID, s.Fingerprint)
			}
		})
	}
	return cmd
}

func (a *app) backupCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use: "backup FILE", Short: "Save the database, sealed as it is, to a file of mode 0600", Args: cobra.ExactArgs(1),
		Long: "Save everything, secrets included, to a file of mode 0600; - for standard output. The file is whole or not\n" +
			"written at all. Nobody can read it without the key that the database is sealed to: keep that elsewhere. Boot\n" +
			"images are not in it.",
	}
	force := cmd.Flags().Bool("force", false, "replace a file that is there")
	cmd.RunE = func(cmd *cobra.Command, args []string) (err error) {
		name := args[0]
		if _, err := os.Lstat(name); err == nil && name != "-" && !*force {
			return fmt.Errorf("%s is there already: choose another name, or add --force", name)
		}
		c, err := a.client()
		if err != nil {
			return err
		}
		resp, err := c.Backup(cmd.Context())
		if err != nil {
			return err
		}
		defer func() { err = errors.Join(err, resp.Body.Close()) }()
		if name == "-" {
			_, err = io.Copy(cmd.OutOrStdout(), resp.Body)
			return err
		}
		size, err := writeSecret(name, resp.Body)
		if err != nil {
			return err
		}
		row(cmd.OutOrStdout(), fmt.Sprintf("saved %s, %d bytes, with all secrets", name, size))
		return nil
	}
	return cmd
}
