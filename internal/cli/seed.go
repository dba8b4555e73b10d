package cli

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"

	"github.com/spf13/cobra"

	"github.com/provisiond/provisiond/api"
	"github.com/provisiond/provisiond/client"
)

func (a *app) machineSeed() *cobra.Command {
	cmd := &cobra.Command{
		Use: "seed MACHINE", Short: "Offer the config of a machine by NoCloud and as an ISO by URL", Args: cobra.ExactArgs(1),
		Long: "For a machine that is started by other means than our network boot: it begins a boot, and prints where that\n" +
			"fetches its config. The URLs are secrets, and answer nobody but the machine, or the address given by --for.",
		Example: "  provisiond machine seed w-7 --for 2001:db8:9::b   # its BMC reads the ISO as virtual media",
	}
	var order api.SeedOrder
	cmd.Flags().StringVar(&order.For, "for", "", "IPv6 address that may fetch it instead of the machine, such as that of its BMC")
	out := (&format{"table"}).bind(cmd)
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		c, err := a.client()
		if err != nil {
			return err
		}
		s, err := client.Answer[api.Seed](c.SeedMachine(cmd.Context(), args[0], order))
		if err != nil {
			return err
		}
		return out.print(cmd, s, func(w io.Writer) {
			row(w, "machine:", s.Machine)
			row(w, "boot:", s.Boot)
			if s.For != "" {
				row(w, "for:", s.For)
			}
			if s.NoCloud == "" {
				row(w, "nocloud:", "none: "+s.NoCloudReason)
			} else {
				row(w, "nocloud:", s.NoCloud)
				row(w, "smbios serial:", s.Serial)
			}
			row(w, "metal-iso:", s.MetalISO)
			row(w, "nocloud iso:", s.NoCloudISO)
			row(w, "until:", when(s.Until))
		})
	}
	return cmd
}

func (a *app) machineISO() *cobra.Command {
	cmd := &cobra.Command{
		Use: "iso MACHINE --to FILE", Short: "Write an ISO with the config of a machine, for beside its boot medium", Args: cobra.ExactArgs(1),
		Long: "A small volume with the config of a machine, which Talos finds beside what it was started from. That has to have\n" +
			"talos.config=metal-iso on its kernel line, or with --nocloud be Talos' nocloud image. The file is a secret; one that\n" +
			"is there is never overwritten.",
		Example: "  provisiond machine iso w-7 --to w-7.iso",
	}
	to := cmd.Flags().StringP("to", "o", "", "file to write, mode 0600, or - for standard output")
	nocloud := cmd.Flags().Bool("nocloud", false, "for Talos' nocloud image")
	_ = cmd.MarkFlagRequired("to") // the flag is there
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		c, err := a.client()
		if err != nil {
			return err
		}
		order := api.ISOOrder{Format: api.ISOMetal}
		if *nocloud {
			order.Format = api.ISONoCloud
		}
		ask := func() ([]byte, error) {
			return client.Answer[[]byte](c.MakeMachineIso(cmd.Context(), args[0], order))
		}
		if *to == "-" {
			image, err := ask()
			if err == nil {
				_, err = cmd.OutOrStdout().Write(image)
			}
			return err
		}
		return writeNew(*to, ask)
	}
	return cmd
}

// writeNew makes a file of mode 0600 that was not there, before what is to be in it is
// asked for, which has an effect of its own. Without that the file is gone again.
func writeNew(name string, ask func() ([]byte, error)) error {
	f, err := os.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return fmt.Errorf("writing %s: %w", name, cause(err))
	}
	content, err := ask()
	if err == nil {
		if _, err = io.Copy(f, bytes.NewReader(content)); err == nil {
			err = f.Sync()
		}
		if err != nil {
			err = fmt.Errorf("writing %s: %w", name, cause(err))
		}
	}
	if err = errors.Join(err, f.Close()); err != nil {
		return errors.Join(err, os.Remove(name))
	}
	return nil
}
