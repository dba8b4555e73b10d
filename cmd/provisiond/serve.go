package main

import (
	"context"
	"fmt"
	"io"
	"os"
	"os/signal"
	"syscall"
	"time"

	"github.com/rs/zerolog"
	"github.com/spf13/cobra"

	"github.com/provisiond/provisiond/internal/daemon"
	"github.com/provisiond/provisiond/internal/sealed"
)

const defaultConfig = "/etc/provisiond/provisiond.yaml"

func serveCommand() *cobra.Command {
	var path string
	var check bool
	cmd := &cobra.Command{
		Use:   "serve",
		Short: "Run the daemon",
		Long: "Run the daemon: DHCPv6, TFTP, HTTP boot, machine configs, bootstrap and the operator's API.\n" +
			"It opens all sockets before it answers anything, takes over changed subnets at SIGHUP, and stops\nat SIGTERM.",
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			cfg, err := daemon.ReadConfig(path)
			if err != nil {
				return err
			}
			if check {
				if err := cfg.CheckHost(); err != nil {
					return err
				}
				fmt.Fprintf(cmd.OutOrStdout(), "%s is fine\n", path)
				return nil
			}
			log := logger(cfg, cmd.ErrOrStderr())
			d, err := daemon.New(cmd.Context(), daemon.Options{Config: cfg, Version: version, Log: log})
			if err != nil {
				return err
			}
			ctx, stop := context.WithCancel(cmd.Context())
			defer stop()
			reloadOnHangup(ctx, d, path, log)
			return d.Run(ctx)
		},
	}
	cmd.Flags().StringVarP(&path, "config", "c", defaultConfig, "config file; deploy/provisiond.example.yaml is its manual")
	cmd.Flags().BoolVar(&check, "check", false, "check the config file, the interfaces and the loaders it names, and exit")
	return cmd
}

// reloadOnHangup reads the config file again at SIGHUP, until ctx ends. What is
// wrong with it goes to the log, and everything stays as it was.
func reloadOnHangup(ctx context.Context, d *daemon.Daemon, path string, log zerolog.Logger) {
	hangup := make(chan os.Signal, 1)
	signal.Notify(hangup, syscall.SIGHUP)
	go func() {
		defer signal.Stop(hangup)
		for {
			select {
			case <-ctx.Done():
				return
			case <-hangup:
			}
			cfg, err := daemon.ReadConfig(path)
			if err == nil {
				err = d.Reload(ctx, cfg)
			}
			if err != nil {
				log.Error().Err(err).Msg("not reloaded")
			}
		}
	}()
}

func logger(cfg *daemon.Config, w io.Writer) zerolog.Logger {
	level, err := zerolog.ParseLevel(cfg.LogLevel)
	if err != nil {
		level = zerolog.InfoLevel // the config was checked
	}
	if !cfg.LogJSON {
		w = zerolog.ConsoleWriter{Out: w, TimeFormat: time.TimeOnly}
	}
	return zerolog.New(w).Level(level).With().Timestamp().Logger()
}

func restoreCommand() *cobra.Command {
	var path, keyFile string
	cmd := &cobra.Command{
		Use:   "restore BACKUP",
		Short: "Put a backup in place of the database; the daemon must be stopped",
		Long: "Put a backup in place of the database. The backup is checked page by page first, and the\n" +
			"database it replaces is kept beside it. What is restored is sealed to the operator's key; a backup that\n" +
			"was made before the key was changed is opened with the one of --key.\n\n" +
			"What the backup says may have been overtaken: orders to reimage in it are cancelled, rollouts in\n" +
			"it are stopped, and a cluster that was not bootstrapped then is taken to run already, until its operator\n" +
			"resets it. All tokens in it are revoked: one of them may have been since. The audit trail is not in a\n" +
			"backup, goes on as it is, and has a line of this.",
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			cfg, err := daemon.ReadConfig(path)
			if err != nil {
				return err
			}
			var former *sealed.Key
			if keyFile != "" {
				if former, err = daemon.ReadKey(keyFile); err != nil {
					return err
				}
			}
			kept, err := daemon.Restore(cmd.Context(), cfg, args[0], former)
			if err != nil {
				return err
			}
			if kept != "" {
				fmt.Fprintf(cmd.OutOrStdout(), "the former database is kept as %s\n", kept)
			}
			fmt.Fprintf(cmd.OutOrStdout(), "restored %s\n", cfg.Database())
			return nil
		},
	}
	cmd.Flags().StringVarP(&path, "config", "c", defaultConfig, "config file")
	cmd.Flags().StringVar(&keyFile, "key", "", "file of the key that the backup is sealed to, if it is not the present one")
	return cmd
}
