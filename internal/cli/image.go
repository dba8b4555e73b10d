package cli

import (
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"strings"
	"time"

	"github.com/schollz/progressbar/v3"
	"github.com/spf13/cobra"
	"golang.org/x/term"

	"github.com/provisiond/provisiond/api"
	"github.com/provisiond/provisiond/client"
)

// plainSchematic is the id that the Image Factory gives to an empty schematic:
// plain Talos. It is the SHA-256 of "customization: {}\n".
const plainSchematic = "376567988ad370138ad8b2698212367b8edcb69b5fd68c80be1f2ec7d603b4ba"

// maxDownload bounds one file of an image, in bytes.
const maxDownload = 1 << 30

func (a *app) imageCommand() *cobra.Command {
	cmd := Group("image", "Add and look at boot images", a.imageAdd(), a.imagePull(), a.imageList(), a.imageDelete())
	cmd.Aliases = []string{"images"}
	return cmd
}

// imageFlags say which image, and what its files must hash to.
type imageFlags struct {
	version, schematic, arch string
	kernelSum, initramfsSum  string
	ukiSum, signedSum        string
	replace                  bool
}

func (f *imageFlags) bind(cmd *cobra.Command) {
	cmd.Flags().StringVar(&f.version, "version", "", "Talos version, such as v1.13.6")
	cmd.Flags().StringVar(&f.arch, "arch", "", "amd64 or arm64")
	cmd.Flags().StringVar(&f.schematic, "schematic", "", "Image Factory schematic (default: plain Talos)")
	cmd.Flags().StringVar(&f.kernelSum, "kernel-sha256", "", "refuse a kernel with another SHA-256")
	cmd.Flags().StringVar(&f.initramfsSum, "initramfs-sha256", "", "refuse an initramfs with another SHA-256")
	cmd.Flags().StringVar(&f.ukiSum, "uki-sha256", "", "refuse a UKI with another SHA-256")
	cmd.Flags().StringVar(&f.signedSum, "signed-uki-sha256", "", "refuse a signed UKI with another SHA-256")
	cmd.Flags().BoolVar(&f.replace, "replace", false, "replace an image of the same name and other content")
	for _, name := range []string{"version", "arch"} {
		_ = cmd.MarkFlagRequired(name) // the flag is there
	}
}

// check refuses what would only fail after a download, or make a path of its own.
func (f *imageFlags) check() error {
	for _, sum := range []struct{ flag, value string }{{"kernel-sha256", f.kernelSum}, {"initramfs-sha256", f.initramfsSum}, {"uki-sha256", f.ukiSum}, {"signed-uki-sha256", f.signedSum}} {
		if _, err := hex.DecodeString(sum.value); sum.value != "" && (err != nil || len(sum.value) != 64) {
			return usagef("--%s %s: write 64 hexadecimal digits", sum.flag, sum.value)
		}
	}
	if f.arch != "amd64" && f.arch != "arm64" {
		return usagef("--arch %s: write amd64 or arm64", f.arch)
	}
	if !strings.HasPrefix(f.version, "v") || strings.Contains(f.version, "/") {
		return usagef("--version %s: write it with its v, such as v1.13.6", f.version)
	}
	if strings.Contains(f.schematic, "/") {
		return usagef("--schematic %s: write the id that the Image Factory gave", f.schematic)
	}
	if f.schematic == plainSchematic {
		f.schematic = ""
	}
	return nil
}

func (a *app) imageAdd() *cobra.Command {
	cmd := &cobra.Command{Use: "add --version VERSION --arch ARCH --kernel FILE --initramfs FILE", Short: "Add a boot image from files", Args: cobra.NoArgs}
	f := &imageFlags{}
	f.bind(cmd)
	var files imageFiles
	cmd.Flags().StringVar(&files.kernel, "kernel", "", "kernel, such as kernel-amd64")
	cmd.Flags().StringVar(&files.initramfs, "initramfs", "", "initramfs, such as initramfs-amd64.xz")
	cmd.Flags().StringVar(&files.uki, "uki", "", "UKI of the same, such as metal-amd64-uki.efi: firmware that boots over HTTP is given it with each machine's own kernel line")
	cmd.Flags().StringVar(&files.stub, "stub", "", "without a UKI: systemd's UEFI stub, such as linuxx64.efi.stub, to make one with")
	cmd.Flags().StringVar(&files.signed, "signed-uki", "", "UKI that the vendor signed, such as metal-amd64-secureboot-uki.efi: for machines with Secure Boot, where provisiond has no key")
	cmd.MarkFlagsMutuallyExclusive("uki", "stub")
	for _, name := range []string{"kernel", "initramfs"} {
		_ = cmd.MarkFlagRequired(name) // the flag is there
	}
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		if err := f.check(); err != nil {
			return err
		}
		return a.upload(cmd, f, files)
	}
	return cmd
}

func (a *app) imagePull() *cobra.Command {
	cmd := &cobra.Command{
		Use: "pull URL --version VERSION --arch ARCH", Short: "Download a boot image from an Image Factory and add it", Args: cobra.ExactArgs(1),
		Example: "  provisiond image pull https://factory.talos.dev --version v1.13.6 --arch amd64",
	}
	f := &imageFlags{}
	f.bind(cmd)
	uki := cmd.Flags().Bool("uki", true, "download its UKI, too, for firmware that boots over HTTP")
	signed := cmd.Flags().Bool("signed-uki", false, "download the UKI that the factory signed, too, for machines with Secure Boot, where provisiond has no key")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		if err := f.check(); err != nil {
			return err
		}
		base, err := url.Parse(args[0])
		if err != nil || base.Scheme != "http" && base.Scheme != "https" || base.Host == "" {
			return usagef("%q is not the address of an Image Factory, such as https://factory.talos.dev", args[0])
		}
		dir, err := os.MkdirTemp("", "provisiond-image-")
		if err != nil {
			return err
		}
		defer func() { _ = os.RemoveAll(dir) }() // a left-over in the temporary folder at worst
		var files imageFiles
		for _, file := range []struct {
			to   *string
			name string
			want bool
		}{
			{&files.kernel, "kernel-" + f.arch, true}, {&files.initramfs, "initramfs-" + f.arch + ".xz", true},
			{&files.uki, "metal-" + f.arch + "-uki.efi", *uki}, {&files.signed, "metal-" + f.arch + "-secureboot-uki.efi", *signed},
		} {
			if !file.want {
				continue
			}
			from := base.JoinPath("image", cmp.Or(f.schematic, plainSchematic), f.version, file.name)
			if *file.to, err = download(cmd.Context(), from.String(), dir, cmd.ErrOrStderr()); err != nil {
				return err
			}
		}
		return a.upload(cmd, f, files)
	}
	return cmd
}

// download saves one file. The factory builds what nobody asked for before, so
// that its first byte may take minutes.
func download(ctx context.Context, from, dir string, stderr io.Writer) (name string, err error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, from, nil)
	if err != nil {
		return "", err
	}
	transport := http.DefaultTransport.(*http.Transport).Clone()
	transport.ResponseHeaderTimeout = 15 * time.Minute
	defer transport.CloseIdleConnections()
	resp, err := (&http.Client{Transport: transport}).Do(req)
	if err != nil {
		return "", fmt.Errorf("downloading: %w", err)
	}
	defer func() { _ = resp.Body.Close() }() // it was read, or the error says more
	if resp.StatusCode != http.StatusOK {
		return "", fmt.Errorf("downloading %s: %s; are version, schematic and architecture right?", from, resp.Status)
	}
	f, err := os.CreateTemp(dir, "")
	if err != nil {
		return "", err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	n, err := io.Copy(f, io.TeeReader(io.LimitReader(resp.Body, maxDownload+1), progress(stderr, resp.ContentLength, "downloading "+from[strings.LastIndex(from, "/")+1:])))
	if err != nil {
		return "", fmt.Errorf("downloading %s: %w", from, err)
	}
	if n > maxDownload {
		return "", fmt.Errorf("downloading %s: larger than %d bytes", from, maxDownload)
	}
	return f.Name(), nil
}

// progress is a bar for a person who watches, and nothing for a file.
func progress(stderr io.Writer, size int64, what string) io.Writer {
	f, ok := stderr.(*os.File)
	if !ok || !term.IsTerminal(int(f.Fd())) {
		return io.Discard
	}
	return progressbar.NewOptions64(size,
		progressbar.OptionSetWriter(f), progressbar.OptionSetDescription(what), progressbar.OptionShowBytes(true),
		progressbar.OptionSetWidth(20), progressbar.OptionThrottle(100*time.Millisecond), progressbar.OptionOnCompletion(func() { _, _ = fmt.Fprintln(f) }))
}

// imageFiles are the names of an image's files here; empty: it has none of that kind.
type imageFiles struct{ kernel, initramfs, uki, stub, signed string }

// upload streams files to provisiond and makes an image of them.
func (a *app) upload(cmd *cobra.Command, f *imageFlags, files imageFiles) error {
	c, err := a.client()
	if err != nil {
		return err
	}
	var spec api.ImageSpec
	if spec.Kernel, err = put(cmd, c, "kernel", files.kernel, f.kernelSum); err != nil {
		return err
	}
	if spec.Initramfs, err = put(cmd, c, "initramfs", files.initramfs, f.initramfsSum); err != nil {
		return err
	}
	for _, more := range []struct {
		what, name, sum string
		to              **api.Blob
	}{{"uki", files.uki, f.ukiSum, &spec.UKI}, {"stub", files.stub, "", &spec.Stub}, {"signed-uki", files.signed, f.signedSum, &spec.Signed}} {
		if more.name == "" {
			continue
		}
		blob, err := put(cmd, c, more.what, more.name, more.sum)
		if err != nil {
			return err
		}
		*more.to = &blob
	}
	img, err := client.Answer[api.Image](c.PutImage(cmd.Context(), f.version, cmp.Or(f.schematic, api.DefaultSchematic), f.arch, client.PutImageParams{Replace: f.replace}, spec))
	if err != nil {
		return err
	}
	row(cmd.OutOrStdout(), "added "+img.ID)
	return nil
}

// put uploads one file, after a check of its hash.
func put(cmd *cobra.Command, c *client.Client, what, name, want string) (blob api.Blob, err error) {
	f, err := os.Open(name)
	if err != nil {
		return blob, fmt.Errorf("--%s %s: %w", what, name, cause(err))
	}
	defer func() { _ = f.Close() }() // it was only read
	h := sha256.New()
	size, err := io.Copy(h, f)
	if err != nil {
		return blob, fmt.Errorf("--%s %s: %w", what, name, cause(err))
	}
	sum := hex.EncodeToString(h.Sum(nil))
	if want != "" && !strings.EqualFold(want, sum) {
		return blob, fmt.Errorf("%s has SHA-256 %s, not the %s of --%s-sha256: nothing was added", what, sum, want, what)
	}
	if _, err := f.Seek(0, io.SeekStart); err != nil {
		return blob, err
	}
	body := io.TeeReader(f, progress(cmd.ErrOrStderr(), size, "storing "+what))
	return client.Answer[api.Blob](c.PutBlob(cmd.Context(), sum, body, client.Size(size)))
}

func (a *app) imageList() *cobra.Command {
	cmd := &cobra.Command{Use: "list", Aliases: []string{"ls"}, Short: "List boot images", Args: cobra.NoArgs}
	out := (&format{"table"}).bind(cmd)
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		c, err := a.client()
		if err != nil {
			return err
		}
		images, err := client.Answer[api.Images](c.ListImages(cmd.Context()))
		if err != nil {
			return err
		}
		return out.print(cmd, images.Items, func(w io.Writer) {
			row(w, "IMAGE", "KERNEL", "BYTES", "INITRAMFS", "BYTES", "UKI", "CLUSTERS", "MACHINES", "ADDED")
			for _, i := range images.Items {
				row(w, i.ID, short(i.Kernel.SHA256), i.Kernel.Size, short(i.Initramfs.SHA256), i.Initramfs.Size, ukiText(&i), i.Use.Clusters, i.Use.Machines, when(i.Created))
			}
		})
	}
	return cmd
}

// ukiText is of what the UKIs of an image are made, and whether it has a signed one.
func ukiText(i *api.Image) string {
	var has []string
	switch {
	case i.UKI != nil:
		has = append(has, short(i.UKI.SHA256))
	case i.Stub != nil:
		has = append(has, "by its stub")
	}
	if i.Signed != nil {
		has = append(has, "signed")
	}
	return cmp.Or(strings.Join(has, ", "), "-")
}

func short(sum string) string { return sum[:min(12, len(sum))] }

func (a *app) imageDelete() *cobra.Command {
	return &cobra.Command{
		Use: "delete VERSION/SCHEMATIC/ARCH...", Aliases: []string{"rm"}, Short: "Remove boot images, named as image list does", Args: cobra.MinimumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			for _, id := range args {
				if strings.Count(id, "/") != 2 {
					return usagef("%q is no image: write VERSION/SCHEMATIC/ARCH, such as v1.13.6/default/amd64", id)
				}
			}
			return a.remove(cmd, args, func(ctx context.Context, c *client.Client, id string) (*http.Response, error) {
				parts := strings.Split(id, "/")
				return c.DeleteImage(ctx, parts[0], parts[1], parts[2])
			})
		},
	}
}
