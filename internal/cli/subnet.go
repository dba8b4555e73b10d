package cli

import (
	"io"
	"net/http"

	"github.com/spf13/cobra"

	"github.com/provisiond/provisiond/api"
	"github.com/provisiond/provisiond/client"
)

func (a *app) subnetCommand() *cobra.Command {
	cmd := Group("subnet", "Look at the subnets and their addresses", a.subnetList(), a.subnetAddresses())
	cmd.Aliases = []string{"subnets"}
	return cmd
}

func (a *app) subnetList() *cobra.Command {
	cmd := &cobra.Command{Use: "list", Short: "List the subnets, and how their addresses are used", Args: cobra.NoArgs}
	out := (&format{"table"}).bind(cmd)
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		c, err := a.client()
		if err != nil {
			return err
		}
		subnets, err := client.Answer[api.List[api.Subnet]](c.ListSubnets(cmd.Context()))
		if err != nil {
			return err
		}
		return out.print(cmd, subnets.Items, func(w io.Writer) {
			row(w, "NAME", "PREFIX", "RESERVED", "SECOND", "LEASED", "DECLINED", "LEFT", "FREE FOR MACHINES", "FREE IN POOL")
			for _, s := range subnets.Items {
				free := map[string]string{}
				for _, r := range s.Ranges {
					free[r.For] = r.Free + " of " + r.Size
				}
				row(w, s.Name, s.Prefix, s.Used.Reserved, s.Used.Second, s.Used.Leased, s.Used.Declined, s.Used.Left, free["machines"], free["pool"])
			}
		})
	}
	return cmd
}

func (a *app) subnetAddresses() *cobra.Command {
	cmd := &cobra.Command{Use: "addresses SUBNET", Short: "List the addresses of a subnet that are not free", Args: cobra.ExactArgs(1)}
	out := (&format{"table"}).bind(cmd)
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		c, err := a.client()
		if err != nil {
			return err
		}
		used, err := list[api.UsedAddress](func(after string) (*http.Response, error) {
			return c.ListAddresses(cmd.Context(), args[0], client.ListAddressesParams{After: after, Limit: api.MaxLimit})
		})
		if err != nil {
			return err
		}
		return out.print(cmd, used, func(w io.Writer) {
			row(w, "ADDRESS", "KIND", "MACHINE", "MAC", "DUID", "UNTIL")
			for _, u := range used {
				row(w, u.Address, u.Kind, u.Machine, u.MAC, u.DUID, when(u.Until))
			}
		})
	}
	return cmd
}
