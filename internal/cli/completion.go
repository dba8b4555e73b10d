package cli

import (
	"context"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/provisiond/provisiond/api"
	"github.com/provisiond/provisiond/client"
)

// completeWithin is how long a shell waits for names. What goes wrong is not
// told: it would land in the line that somebody types.
const completeWithin = time.Second

// phases of a registered machine, in the order it passes them.
var phases = []cobra.Completion{"registered", "offered", "loading", "configuring", "installing", "booting", "ready", "reimaging", "stalled", "failed"}

// offer has the shell complete a flag with these words, instead of what flags of its name
// have elsewhere.
func offer(cmd *cobra.Command, flag string, words ...cobra.Completion) {
	_ = cmd.RegisterFlagCompletionFunc(flag, cobra.FixedCompletions(words, cobra.ShellCompDirectiveNoFileComp)) // the flag is there
}

// complete has the shell complete a command and those below it: arguments by
// the placeholder in Use, flags by their name.
func (a *app) complete(cmd *cobra.Command) {
	fixed := func(list ...cobra.Completion) cobra.CompletionFunc {
		return cobra.FixedCompletions(list, cobra.ShellCompDirectiveNoFileComp)
	}
	machines := names(a, func(ctx context.Context, c *client.Client) (*http.Response, error) {
		return c.ListMachines(ctx, client.ListMachinesParams{Limit: api.MaxLimit})
	}, func(m api.Machine) string { return m.Name })
	clusters := names(a, func(ctx context.Context, c *client.Client) (*http.Response, error) {
		return c.ListClusters(ctx, client.ListClustersParams{Limit: api.MaxLimit})
	}, func(c api.Cluster) string { return c.Name })
	subnets := func(ctx context.Context, c *client.Client) (*http.Response, error) { return c.ListSubnets(ctx) }
	tokens := func(ctx context.Context, c *client.Client) (*http.Response, error) { return c.ListTokens(ctx) }
	images := func(ctx context.Context, c *client.Client) (*http.Response, error) { return c.ListImages(ctx) }
	arguments := map[string]cobra.CompletionFunc{
		"MACHINE": machines, "CLUSTER": clusters,
		"SUBNET":                 names(a, subnets, func(s api.Subnet) string { return s.Name }),
		"TOKEN":                  names(a, tokens, func(t api.Token) string { return t.Name }),
		"VERSION/SCHEMATIC/ARCH": names(a, images, func(i api.Image) string { return i.ID }),
	}
	flags := map[string]cobra.CompletionFunc{
		"machine": machines, "cluster": clusters,
		"image": names(a, images, func(i api.Image) string {
			return strings.TrimSuffix(strings.TrimSuffix(i.ID, "/"+i.Arch), "/"+api.DefaultSchematic)
		}),
		"role": fixed("controlplane", "worker"), "phase": fixed(phases...), "addressing": fixed("static", "dhcpv6"), "delivery": fixed("https", "http"), "approval": fixed("none", "required"),
		"arch": fixed("amd64", "arm64"), "output": fixed("table", "json", "yaml"),
	}
	if words := strings.Fields(cmd.Use); len(words) > 1 {
		place, several := strings.CutSuffix(words[1], "...")
		if f, ok := arguments[place]; ok {
			cmd.ValidArgsFunction = func(cmd *cobra.Command, args []string, begun string) ([]cobra.Completion, cobra.ShellCompDirective) {
				if len(args) > 0 && !several {
					return nil, cobra.ShellCompDirectiveNoFileComp
				}
				return f(cmd, args, begun)
			}
		}
	}
	cmd.Flags().VisitAll(func(f *pflag.Flag) {
		if values, ok := flags[f.Name]; ok {
			_ = cmd.RegisterFlagCompletionFunc(f.Name, values) // fails only for a flag that is not there or has one
		}
	})
	for _, sub := range cmd.Commands() {
		a.complete(sub)
	}
}

// names completes with the names of a list of the API, but for those that are on the
// line already. It asks for one page.
func names[T any](a *app, page func(context.Context, *client.Client) (*http.Response, error), name func(T) string) cobra.CompletionFunc {
	return func(cmd *cobra.Command, args []string, begun string) ([]cobra.Completion, cobra.ShellCompDirective) {
		ctx, cancel := context.WithTimeout(cmd.Context(), completeWithin)
		defer cancel()
		c, err := a.client()
		if err != nil {
			return nil, cobra.ShellCompDirectiveNoFileComp
		}
		all, err := client.Answer[api.List[T]](page(ctx, c))
		if err != nil {
			return nil, cobra.ShellCompDirectiveNoFileComp
		}
		var found []cobra.Completion
		for _, item := range all.Items {
			if n := name(item); strings.HasPrefix(n, begun) && !slices.Contains(args, n) && !slices.Contains(found, n) {
				found = append(found, n)
			}
		}
		return found, cobra.ShellCompDirectiveNoFileComp
	}
}
