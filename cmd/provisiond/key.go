package main

import (
	"fmt"

	"github.com/spf13/cobra"

	"github.com/provisiond/provisiond/internal/cli"
	"github.com/provisiond/provisiond/internal/daemon"
)

func keyCommand() *cobra.Command {
	cmd := cli.Group("key", "Make, show and change the key that the database is sealed to", keyNewCommand(), keyShowCommand(), keyRotateCommand())
	cmd.Long = "Make, show and change the key that the database is sealed to.\n\n" +
		"Every value in the database is encrypted, and opens with the operator's key only: an age identity\n" +
		"(age-encryption.org), which age-keygen makes as well. The daemon takes it from the systemd credential\n" +
		"provisiond.key, from PROVISIOND_KEY in its environment, or from the file of the setting key.\n" +
		"Keep a copy of it apart from the backups: nobody can read them without it."
	return cmd
}

func keyNewCommand() *cobra.Command {
	return &cobra.Command{
		Use:     "new FILE",
		Short:   "Make a key, in a file that only its owner can read",
		Example: "  provisiond key new /etc/provisiond/provisiond.key",
		Args:    cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			key, err := daemon.NewKeyFile(args[0])
			if err != nil {
				return err
			}
			fmt.Fprintf(cmd.OutOrStdout(), "made the key %s in %s; keep a copy of it, apart from the backups\n", key, args[0])
			return nil
		},
	}
}

func keyShowCommand() *cobra.Command {
	var path string
	cmd := &cobra.Command{
		Use:   "show [BACKUP]",
		Short: "Show which key the database, or a backup, is sealed to",
		Long:  "Show the public half of the key that the database, or a backup, is sealed to. The daemon must be\nstopped, unless a backup is named. `age-keygen -y FILE` shows the public half of the key in a file.",
		Args:  cobra.MaximumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if len(args) == 0 {
				cfg, err := daemon.ReadConfig(path)
				if err != nil {
					return err
				}
				args = []string{cfg.Database()}
			}
			recipient, err := daemon.SealedTo(cmd.Context(), args[0])
			if err != nil {
				return err
			}
			fmt.Fprintln(cmd.OutOrStdout(), recipient)
			return nil
		},
	}
	cmd.Flags().StringVarP(&path, "config", "c", defaultConfig, "config file")
	return cmd
}

func keyRotateCommand() *cobra.Command {
	var path, next string
	cmd := &cobra.Command{
		Use:   "rotate --new FILE",
		Short: "Seal the database to another key; the daemon must be stopped",
		Long: "Encrypt every value in the database anew, so that the key in FILE opens it and the present one does\n" +
			"not. Killed in the middle, it leaves the database as it was. Backups stay sealed to the key of their\n" +
			"time: keep that one as long as them.",
		Example: "  provisiond key new /etc/provisiond/new.key\n" +
			"  provisiond key rotate --new /etc/provisiond/new.key\n" +
			"  mv /etc/provisiond/new.key /etc/provisiond/provisiond.key",
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			cfg, err := daemon.ReadConfig(path)
			if err != nil {
				return err
			}
			key, err := daemon.ReadKey(next)
			if err != nil {
				return err
			}
			from, err := daemon.Rotate(cmd.Context(), cfg, key)
			if err != nil {
				return err
			}
			fmt.Fprintf(cmd.OutOrStdout(), "%s is sealed to %s; put this key in place of the former one, which is in %s, before provisiond is started\n", cfg.Database(), key, from)
			return nil
		},
	}
	cmd.Flags().StringVarP(&path, "config", "c", defaultConfig, "config file")
	cmd.Flags().StringVar(&next, "new", "", "file of the new key, which provisiond key new makes (required)")
	_ = cmd.MarkFlagRequired("new") // fails only for a flag that does not exist
	return cmd
}
