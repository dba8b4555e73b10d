// Command provisiond takes a rack of bare metal from power-on to a running Talos
// Kubernetes cluster over IPv6.
package main

import (
	"context"
	"fmt"
	"io"
	"os"
	"os/signal"
	"syscall"

	"github.com/spf13/cobra"

	"github.com/provisiond/provisiond/internal/cli"
)

// version is set by the linker (see Makefile).
var version = "devel"

func main() {
	if err := noCoreDumps(); err != nil {
		fmt.Fprintln(os.Stderr, "provisiond:", err)
		os.Exit(1)
	}
	os.Exit(run(context.Background(), os.Args[1:], os.Stdin, os.Stdout, os.Stderr))
}

// run is the program without its process: the exit code is 0, 1 for an error,
// 2 for a command line that makes no sense.
func run(ctx context.Context, args []string, stdin io.Reader, stdout, stderr io.Writer) int {
	ctx, stop := signal.NotifyContext(ctx, os.Interrupt, syscall.SIGTERM)
	defer stop()
	return cli.Run(ctx, newRoot(), args, stdin, stdout, stderr)
}

func newRoot() *cobra.Command {
	return cli.New(version, serveCommand(), restoreCommand(), keyCommand(), secureBootCommand(), simulateCommand(), demoCommand())
}
