package main

import (
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/provisiond/provisiond/internal/cli"
	"github.com/provisiond/provisiond/internal/secureboot"
)

func secureBootCommand() *cobra.Command {
	cmd := cli.Group("secureboot", "Make Secure Boot keys, sign UEFI images, and check them",
		secureBootKeysCommand(), secureBootEnrollCommand(), secureBootSignCommand(), secureBootCheckCommand())
	cmd.Long = "Make Secure Boot keys, sign UEFI images, and check them. Nothing is asked of a running daemon."
	return cmd
}

func secureBootKeysCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "keys DIR",
		Short: "Make the keys PK, KEK and db, with their certificates",
		Long: "Make the keys PK, KEK and db (RSA, 2,048 bits) with their certificates, in files of DIR that only\n" +
			"their owner can read. Nothing is overwritten. provisiond needs db.key and db.pem; keep PK.key and\n" +
			"KEK.key off this host once firmware has been told: they only serve to change what it trusts.",
		Example: "  provisiond secureboot keys /etc/provisiond/secureboot",
		Args:    cobra.ExactArgs(1),
	}
	owner := cmd.Flags().String("name", "provisiond", "what the names of the certificates begin with, such as the name of the rack")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		if err := secureboot.Generate(args[0], *owner); err != nil {
			return err
		}
		key, certificate := secureboot.KeyFiles(args[0])
		fmt.Fprintf(cmd.OutOrStdout(), "made PK, KEK and db in %s; images are signed with %s and %s\n", args[0], key, certificate)
		return nil
	}
	return cmd
}

func secureBootEnrollCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "enroll DIR",
		Short: "Write the files that firmware takes the keys from",
		Long: "Write what firmware is told of the keys in DIR: for db, KEK and PK a certificate (.der), a signature\n" +
			"list (.esl) and a signed variable (.auth). Nothing is overwritten. Microsoft's certificates are not\n" +
			"among them: a machine with option ROMs that only they signed, such as a graphics card or a NIC, needs\n" +
			"them in db as well.",
		Example: "  provisiond secureboot enroll /etc/provisiond/secureboot",
		Args:    cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			names, err := secureboot.Enroll(args[0], time.Now())
			if err != nil {
				return err
			}
			fmt.Fprintf(cmd.OutOrStdout(), "wrote %s\n\n%s", strings.Join(names, " "), howToEnroll)
			return nil
		},
	}
}

const howToEnroll = `PK comes last: with it, firmware leaves its Setup Mode and takes no change that is not signed.
  Firmware's setup  put the files on a FAT stick; clear the keys there are (Setup Mode), then enroll db.der,
                    KEK.der and PK.der, or the .auth files where those are asked for; switch Secure Boot on
  KeyTool           of efitools, started from the stick: Edit Keys, Replace Keys, with the .auth files
  Linux             in Setup Mode: efi-updatevar -f db.auth db, then KEK.auth KEK, then PK.auth PK
  A BMC             by Redfish: the certificates (.pem) to .../SecureBoot/SecureBootDatabases/{db,KEK,PK}/Certificates
`

func secureBootSignCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:     "sign IMAGE -o OUT --key FILE --certificate FILE",
		Short:   "Sign a UEFI image, such as iPXE",
		Long:    "Sign a UEFI image, such as iPXE. Signatures that it has stay. OUT is not overwritten.",
		Example: "  provisiond secureboot sign ipxe.efi -o signed.efi --key db.key --certificate db.pem",
		Args:    cobra.ExactArgs(1),
	}
	out := cmd.Flags().StringP("output", "o", "", "file to write (required)")
	key := cmd.Flags().String("key", "", "file of the key, PEM (required)")
	certificate := cmd.Flags().String("certificate", "", "file of its certificate, PEM or DER (required)")
	for _, name := range []string{"output", "key", "certificate"} {
		_ = cmd.MarkFlagRequired(name) // fails only for a flag that does not exist
	}
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		signer, err := secureboot.Load(*key, *certificate)
		if err != nil {
			return err
		}
		if err := signFile(signer, args[0], *out); err != nil {
			return err
		}
		fmt.Fprintf(cmd.OutOrStdout(), "signed %s as %s\n", args[0], *out)
		return nil
	}
	return cmd
}

// signFile leaves no part of a file behind if it fails.
func signFile(signer *secureboot.Signer, from, to string) error {
	in, size, err := openImage(from)
	if err != nil {
		return err
	}
	defer func() { _ = in.Close() }() // read only
	out, err := os.OpenFile(to, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o644)
	if err != nil {
		return err
	}
	err = signer.SignImage(out, in, size)
	if err := errors.Join(err, out.Close()); err != nil {
		return fmt.Errorf("%s: %w", from, errors.Join(err, os.Remove(to)))
	}
	return nil
}

func secureBootCheckCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "check IMAGE",
		Short: "Say who signed a UEFI image, what is in it, and why it would not start",
		Long: "Say who signed a UEFI image, whether the signatures are good, what sections and kernel line a UKI\n" +
			"has, and why firmware with Secure Boot on would not start it; then the command fails. With\n" +
			"--certificate a good signature has to be that one's, as db.pem says; without, anybody's.",
		Example: "  provisiond secureboot check talos.efi --certificate db.pem",
		Args:    cobra.ExactArgs(1),
	}
	certificate := cmd.Flags().String("certificate", "", "file of the certificate that firmware has in db, PEM or DER")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		var trusted *x509.Certificate
		if *certificate != "" {
			var err error
			if trusted, err = secureboot.ReadCertificate(*certificate); err != nil {
				return err
			}
		}
		in, size, err := openImage(args[0])
		if err != nil {
			return err
		}
		defer func() { _ = in.Close() }() // read only
		report, err := secureboot.Check(in, size, trusted)
		if err != nil {
			return fmt.Errorf("%s: %w", args[0], err)
		}
		printReport(cmd.OutOrStdout(), report)
		if len(report.Problems) > 0 {
			return fmt.Errorf("%s would not start with Secure Boot on: %s", args[0], strings.Join(report.Problems, "; "))
		}
		return nil
	}
	return cmd
}

func printReport(w io.Writer, r *secureboot.Report) {
	kind := "UEFI application"
	if r.UKI {
		kind = "UKI"
	}
	fmt.Fprintf(w, "%s for %s\n", kind, r.File.Arch())
	table := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	for _, s := range r.File.Sections() {
		fmt.Fprintf(table, "  %s\t%d bytes\tat %#x\n", s.Name, min(s.Size, s.VirtualSize), s.VirtualAddress)
	}
	_ = table.Flush() // an error of w shows in what follows
	if r.UKI {
		fmt.Fprintf(w, "kernel line: %q\n", r.File.Line())
	}
	for _, s := range r.Signatures {
		who := "somebody unknown"
		if s.Signer != nil {
			who = s.Signer.Subject.String()
		}
		if s.Err != nil {
			fmt.Fprintf(w, "signed by %s: not good: %v\n", who, s.Err)
		} else {
			fmt.Fprintf(w, "signed by %s: good\n", who)
		}
	}
}

func openImage(path string) (*os.File, int64, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, 0, err
	}
	info, err := f.Stat()
	if err != nil {
		_ = f.Close()
		return nil, 0, err
	}
	return f, info.Size(), nil
}
