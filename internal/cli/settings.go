package cli

import (
	"github.com/spf13/cobra"

	"github.com/provisiond/provisiond/api"
	"github.com/provisiond/provisiond/client"
)

func (a *app) settingsCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use: "settings", Short: "Print what provisiond runs with, without secrets", Args: cobra.NoArgs,
		Long: "Print what provisiond runs with: its config file with what that leaves out filled in, and what came of it on its host.",
	}
	out := &format{"yaml"}
	cmd.Flags().StringVarP(&out.name, "output", "o", out.name, "yaml or json")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		if out.name == "table" {
			return usagef("-o table: write yaml or json")
		}
		c, err := a.client()
		if err != nil {
			return err
		}
		s, err := client.Answer[api.Settings](c.GetSettings(cmd.Context()))
		if err != nil {
			return err
		}
		return out.print(cmd, s, nil)
	}
	return cmd
}
