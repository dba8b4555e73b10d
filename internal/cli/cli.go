// Package cli is the command line of provisiond: commands for an operator that
// call the API of a running daemon. The commands that are the daemon, such as
// serve, are added by whoever calls [New].
package cli

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	"github.com/spf13/cobra"

	"github.com/provisiond/provisiond/client"
)

// DefaultServer is where provisiond listens unless it is told otherwise.
const DefaultServer = "unix:///run/provisiond/provisiond.sock"

// The environment variables that flags default to.
const (
	ServerVariable      = "PROVISIOND_SERVER"      // --server
	TokenVariable       = "PROVISIOND_TOKEN"       // --token
	CAVariable          = "PROVISIOND_CA"          // --ca
	CertificateVariable = "PROVISIOND_CERTIFICATE" // --certificate
)

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
	token   string // --token: itself, or @ and the file it is in
	ca      string // --ca: the file of the CA to trust; empty: those that the host trusts
	cert    string // --certificate: the file of a client certificate and its key
}

// New returns the root command, provisiond, with the operator's commands and
// those of the caller. Every call returns a tree of its own.
func New(version string, serve ...*cobra.Command) *cobra.Command {
	a := &app{version: version}
	root := Group("provisiond", "Boots bare metal over IPv6 into a Talos Kubernetes cluster")
	root.SilenceErrors, root.SilenceUsage = true, true
	global := root.PersistentFlags()
	global.StringVar(&a.server, "server", cmp.Or(os.Getenv(ServerVariable), DefaultServer), "where provisiond listens: unix:///path or https://host:port; $"+ServerVariable)
	// What is no default of a flag is in no help text either.
	global.StringVar(&a.token, "token", "", "token to log in with over https, or @FILE; $"+TokenVariable+", which no list of processes shows")
	global.StringVar(&a.ca, "ca", os.Getenv(CAVariable), "file of the CA to trust over https, as provisiond ca prints it; $"+CAVariable)
	global.StringVar(&a.cert, "certificate", os.Getenv(CertificateVariable), "file of a client certificate and its key, to log in with over https; $"+CertificateVariable)
	root.AddCommand(serve...)
	for _, cmd := range []*cobra.Command{
		a.machineCommand(), a.clusterCommand(), a.imageCommand(), a.subnetCommand(),
		a.approvalsCommand(), a.approveCommand(), a.adoptCommand(),
		a.applyCommand(), a.exportCommand(), a.statusCommand(), a.watchCommand(), a.eventsCommand(), a.discoveredCommand(), a.explainCommand(), a.backupCommand(),
		a.tokenCommand(), a.certificateCommand(), a.caCommand(), a.auditCommand(), a.settingsCommand(), a.versionCommand(),
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
			v, err := a.serverVersion(cmd.Context())
			var refused *client.Problem
			switch {
			case err == nil:
				line = fmt.Sprintf("%s (%s)", v.Version, v.Go)
			case errors.As(err, &refused):
				line = "does not say: " + refused.Title
			}
			_, err = fmt.Fprintf(out, "server  %s\n", clean(line))
			return err
		},
	}
}
