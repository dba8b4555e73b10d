// Package cli is the command line of provisiond: commands for an operator that
// call the API of a running daemon. The commands that are the daemon, such as
// serve, are added by whoever calls [New].
package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	"github.com/spf13/cobra"
)

// DefaultServer is where provisiond listens unless it is told otherwise.
const DefaultServer = "unix:///run/provisiond/provisiond.sock"

// ServerVariable is the environment variable that --server defaults to.
const ServerVariable = "PROVISIOND_SERVER"

// Exit codes.
const (
	exitOK    = 0
	exitError = 1 // the command ran and failed
	exitUsage = 2 // the command line makes no sense; nothing was done
)

// app is what the commands share.
type app struct {
	version string
	server  string // --server
}

// New returns the root command, provisiond, with the operator's commands and
// those of the caller. Every call returns a tree of its own.
func New(version string, serve ...*cobra.Command) *cobra.Command {
	a := &app{version: version}
	root := Group("provisiond", "Boots bare metal over IPv6 into a Talos Kubernetes cluster")
	root.SilenceErrors, root.SilenceUsage = true, true
	server := os.Getenv(ServerVariable)
	if server == "" {
		server = DefaultServer
	}
	root.PersistentFlags().StringVar(&a.server, "server", server, "where provisiond listens: unix:///path or http://[::1]:port; $"+ServerVariable)
	root.AddCommand(serve...)
	for _, cmd := range []*cobra.Command{
		a.machineCommand(), a.clusterCommand(), a.imageCommand(),
		a.applyCommand(), a.exportCommand(), a.statusCommand(), a.eventsCommand(), a.discoveredCommand(), a.explainCommand(), a.backupCommand(), a.versionCommand(),
	} {
		a.complete(cmd)
		root.AddCommand(cmd)
	}
	return root
}

// Group is a command that only holds others. Cobra would print help for a
// misspelt one and exit with success.
func Group(use, short string, commands ...*cobra.Command) *cobra.Command {
	cmd := &cobra.Command{
		Use: use, Short: short, Args: cobra.ArbitraryArgs,
		RunE: func(cmd *cobra.Command, args []string) error {
			if len(args) == 0 {
				return cmd.Help()
			}
			hint := ""
			if near := cmd.SuggestionsFor(args[0]); len(near) > 0 {
				hint = fmt.Sprintf("; did you mean %s?", strings.Join(near, " or "))
			}
			return usagef("%s has no command %q%s", cmd.CommandPath(), args[0], hint)
		},
		SuggestionsMinimumDistance: 2,
	}
	cmd.AddCommand(commands...)
	return cmd
}

// usageError is a command line that makes no sense.
type usageError struct{ error }

func usagef(format string, args ...any) error { return usageError{fmt.Errorf(format, args...)} }

// failed is an error of a command that ran, which tells it from those that
// cobra has about the command line.
type failed struct{ error }

func (f failed) Unwrap() error { return f.error }

// Run runs a command line under ctx and returns its exit code: 0, 1 for an
// error, 2 for a command line that makes no sense. Errors go to stderr, a line
// each.
func Run(ctx context.Context, root *cobra.Command, args []string, stdin io.Reader, stdout, stderr io.Writer) int {
	root.SetArgs(args)
	root.SetIn(stdin)
	root.SetOut(stdout)
	root.SetErr(stderr)
	markFailures(root)
	cmd, err := root.ExecuteContextC(ctx)
	var usage usageError
	var ran failed
	switch {
	case err == nil:
		return exitOK
	case errors.As(err, &usage) || !errors.As(err, &ran):
		say(stderr, "%s (see %s --help)", err, cmd.CommandPath())
		return exitUsage
	}
	for _, line := range explain(ran.error) {
		say(stderr, "%s", line)
	}
	return exitError
}

// say writes one line for a person, without control characters of others.
func say(w io.Writer, format string, args ...any) {
	_, _ = fmt.Fprintln(w, "provisiond: "+clean(fmt.Sprintf(format, args...))) // nowhere left to tell
}

func markFailures(cmd *cobra.Command) {
	if run := cmd.RunE; run != nil {
		cmd.RunE = func(cmd *cobra.Command, args []string) error {
			if err := run(cmd, args); err != nil {
				return failed{err}
			}
			return nil
		}
	}
	for _, sub := range cmd.Commands() {
		markFailures(sub)
	}
}

func (a *app) versionCommand() *cobra.Command {
	return &cobra.Command{
		Use: "version", Short: "Print the version of this program, and of the provisiond it would call", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			out := cmd.OutOrStdout()
			if _, err := fmt.Fprintf(out, "client  %s\n", a.version); err != nil {
				return err
			}
			line := "not reachable"
			if v, err := a.serverVersion(cmd.Context()); err == nil {
				line = fmt.Sprintf("%s (%s)", v.Version, v.Go)
			}
			_, err := fmt.Fprintf(out, "server  %s\n", clean(line))
			return err
		},
	}
}
