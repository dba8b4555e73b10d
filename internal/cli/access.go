package cli

import (
	"cmp"
	"crypto/sha256"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/provisiond/provisiond/api"
	"github.com/provisiond/provisiond/client"
)

// grant is what flags say of somebody who is let in.
type grant struct {
	role     string
	clusters []string
	expires  string
}

// never is --expires of what does not.
const never = "never"

func (g *grant) bind(cmd *cobra.Command, expires string) {
	cmd.Flags().StringVar(&g.role, "role", "", "read: see all but secrets; operate: change things; admin: be told secrets and let others in")
	_ = cmd.MarkFlagRequired("role") // the flag is there
	offer(cmd, "role", "read", "operate", "admin")
	cmd.Flags().StringSliceVar(&g.clusters, "cluster", nil, "only for this cluster; repeat it for several (default: the whole rack)")
	cmd.Flags().StringVar(&g.expires, "expires", "", expires)
}

// until is when it ends; zero: as provisiond thinks fit.
func (g *grant) until(cmd *cobra.Command) (time.Time, error) {
	if cmd.Flags().Changed("cluster") && len(g.clusters) == 0 {
		return time.Time{}, usagef("--cluster names no cluster: leave it out for the whole rack")
	}
	if g.expires == "" || g.expires == never {
		return time.Time{}, nil
	}
	d, err := time.ParseDuration(g.expires)
	if err != nil || d <= 0 {
		return time.Time{}, usagef("--expires %q is not a time: write one such as 720h", g.expires)
	}
	return time.Now().Add(d).UTC(), nil
}

func (a *app) tokenCommand() *cobra.Command {
	return Group("token", "Let people and programs in over the network", a.tokenCreate(), a.tokenList(), a.tokenRevoke())
}

func (a *app) tokenCreate() *cobra.Command {
	cmd := &cobra.Command{
		Use: "create NAME", Short: "Create a token and print it, once", Args: cobra.ExactArgs(1),
		Long: "Create a token and print it on a line of its own. It is kept nowhere: whoever loses it gets another.",
		Example: "  provisiond token create ci --role operate --cluster prod --expires 720h >token\n" +
			"  provisiond --server https://rack.example.org:8440 --ca ca.pem --token @token machine list",
	}
	var g grant
	g.bind(cmd, "how long it is good for, such as 720h, or never (default: 90 days)")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		expires, err := g.until(cmd)
		if err != nil {
			return err
		}
		spec := api.TokenSpec{Name: args[0], Role: g.role, Clusters: g.clusters, Expires: expires, Never: g.expires == never}
		c, err := a.client()
		if err != nil {
			return err
		}
		made, err := client.Answer[api.NewToken](c.CreateToken(cmd.Context(), spec))
		if err != nil {
			return err
		}
		say(cmd.ErrOrStderr(), "%s may %s in %s, until %s; keep this, it is told once:", made.Name, made.Role, cmp.Or(strings.Join(made.Clusters, ", "), "the whole rack"), cmp.Or(when(made.Expires), "it is revoked"))
		row(cmd.OutOrStdout(), made.Text)
		return nil
	}
	return cmd
}

func (a *app) tokenList() *cobra.Command {
	cmd := &cobra.Command{Use: "list", Short: "List tokens, without what they are", Args: cobra.NoArgs}
	out := (&format{"table"}).bind(cmd)
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		c, err := a.client()
		if err != nil {
			return err
		}
		tokens, err := client.Answer[api.List[api.Token]](c.ListTokens(cmd.Context()))
		if err != nil {
			return err
		}
		return out.print(cmd, tokens.Items, func(w io.Writer) {
			row(w, "NAME", "ROLE", "CLUSTERS", "CREATED", "BY", "EXPIRES", "LAST USED")
			for _, t := range tokens.Items {
				row(w, t.Name, t.Role, cmp.Or(strings.Join(t.Clusters, ","), "all"), when(t.Created), t.By, cmp.Or(when(t.Expires), "never"), when(t.Used))
			}
		})
	}
	return cmd
}

func (a *app) tokenRevoke() *cobra.Command {
	return &cobra.Command{
		Use: "revoke TOKEN...", Short: "Revoke tokens, by name, at once", Args: cobra.MinimumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := a.client()
			if err != nil {
				return err
			}
			var errs []error
			for _, name := range args {
				errs = append(errs, client.Done(c.RevokeToken(cmd.Context(), name)))
			}
			return errors.Join(errs...)
		},
	}
}

func (a *app) certificateCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use: "client-certificate NAME", Short: "Issue a client certificate and print it with its key, once", Args: cobra.ExactArgs(1),
		Long: "Issue a client certificate and print it, and its key, as PEM. It takes the place of a token, and nobody can\n" +
			"revoke it: it is good until it expires.",
		Example: "  provisiond client-certificate alice --role admin --to alice.pem\n" +
			"  provisiond --server https://rack.example.org:8440 --ca ca.pem --certificate alice.pem machine list",
	}
	var g grant
	g.bind(cmd, "how long it is good for, such as 72h, at most 8784h (default: 30 days)")
	to := cmd.Flags().String("to", "", "write it to this file, of mode 0600, instead of printing it")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		expires, err := g.until(cmd)
		if err != nil {
			return err
		}
		if g.expires == never {
			return usagef("--expires never: nobody can revoke a certificate")
		}
		c, err := a.client()
		if err != nil {
			return err
		}
		spec := api.CertificateSpec{Name: args[0], Role: g.role, Clusters: g.clusters, Expires: expires}
		made, err := client.Answer[api.NewCertificate](c.CreateClientCertificate(cmd.Context(), spec))
		if err != nil {
			return err
		}
		if *to == "" {
			_, err = io.WriteString(cmd.OutOrStdout(), made.PEM)
			return err
		}
		_, err = writeSecret(*to, strings.NewReader(made.PEM))
		return err
	}
	return cmd
}

func (a *app) caCommand() *cobra.Command {
	return &cobra.Command{
		Use: "ca", Short: "Print the CA certificate to trust, as PEM", Args: cobra.NoArgs,
		Long: "Print the certificate of provisiond's own CA, for --ca. On the host of provisiond it comes over the unix socket.\n" +
			"Over https it is fetched from whoever answers there, unless --ca is given: compare the fingerprint, which is\n" +
			"printed beside it, with that on the host. Where api.tls names another certificate, its issuer is whom to trust.",
		RunE: func(cmd *cobra.Command, _ []string) error {
			unverified := !strings.HasPrefix(a.server, "unix:") && a.ca == ""
			connect := a.client
			if unverified {
				connect = a.stranger
			}
			c, err := connect()
			if err != nil {
				return err
			}
			text, err := c.CA(cmd.Context())
			if err != nil {
				return err
			}
			block, _ := pem.Decode(text)
			if block == nil {
				return fmt.Errorf("%s answered no certificate: is that provisiond?", a.server)
			}
			if _, err := x509.ParseCertificate(block.Bytes); err != nil {
				return fmt.Errorf("%s answered no certificate: %w", a.server, err)
			}
			say(cmd.ErrOrStderr(), "SHA-256 fingerprint %X", sha256.Sum256(block.Bytes))
			if unverified {
				say(cmd.ErrOrStderr(), "this came from whoever answers at %s: compare it with the one on its host", a.server)
			}
			return pem.Encode(cmd.OutOrStdout(), &pem.Block{Type: "CERTIFICATE", Bytes: block.Bytes})
		},
	}
}
