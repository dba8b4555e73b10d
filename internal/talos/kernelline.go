package talos

import (
	"encoding/base64"
	"fmt"
	"net/netip"
	"net/url"
	"strings"

	"github.com/siderolabs/talos/pkg/machinery/config/config"
	"github.com/siderolabs/talos/pkg/machinery/config/container"
	"github.com/siderolabs/talos/pkg/machinery/config/encoder"
	"github.com/siderolabs/talos/pkg/machinery/config/types/security"
	"github.com/siderolabs/talos/pkg/machinery/constants"
	"github.com/siderolabs/talos/pkg/machinery/imager/quirks"
	"github.com/siderolabs/talos/pkg/machinery/kernel"

	"github.com/provisiond/provisiond/internal/inventory"
)

// maxKernelLine is the longest kernel line in bytes. x86 kernels cut at 2047
// (COMMAND_LINE_SIZE) and boot loaders add words of their own, such as initrd=.
const maxKernelLine = 2000

// KernelInput is what a netboot kernel line is made of.
type KernelInput struct {
	Machine *inventory.Machine
	Cluster *inventory.Cluster
	Subnet  *inventory.Subnet // needed for a static address
	Arch    inventory.Arch
	// SecureBoot locks the kernel down, as Talos' own images for Secure Boot do
	// (pkg/imager/imager.go).
	SecureBoot bool
	// ConfigURL is where Talos fetches its config. Its host should be an address:
	// before the config Talos asks nobody but 1.1.1.1 for names. If it is https, Talos is
	// told to trust [Options].TrustedRoots.
	ConfigURL string
	// DeviceURL and TokenURL are set when a person has to approve the machine before it
	// is given its config (RFC 8628).
	DeviceURL, TokenURL string
}

// KernelLine returns the kernel's command line for one boot over the network:
// Talos' defaults for its release, where the config is, how to get an address
// before it (Talos by itself speaks no DHCPv6), whom to trust, the sinks, and the
// operator's arguments last. What does not fit is an *inventory.FieldError.
func (r *Renderer) KernelLine(in KernelInput) (string, error) {
	m, c := in.Machine, in.Cluster
	rel, err := releaseOf(m, c)
	if err != nil {
		return "", err
	}
	args := []string{constants.KernelParamPlatform + "=" + constants.PlatformMetal}
	switch in.Arch {
	case inventory.ARM64:
		args = append(args, "console=ttyAMA0", "console=tty0")
	case inventory.AMD64:
		args = append(args, "console=ttyS0", "console=tty0") // Talos' own line has had no serial console since 1.8
	default:
		return "", fail("arch", "amd64 or arm64", "%q is not an architecture that Talos runs on", in.Arch)
	}
	args = append(args, kernel.DefaultArgs(quirks.New(rel.version))...)
	if in.SecureBoot {
		args = append(args, "lockdown=confidentiality")
	}
	if err := checkConfigURL(in.ConfigURL); err != nil {
		return "", err
	}
	args = append(args, constants.KernelParamConfig+"="+in.ConfigURL)
	if in.DeviceURL != "" {
		args = append(args, constants.KernelParamConfigOAuthClientID+"=provisiond",
			constants.KernelParamConfigOAuthDeviceAuthURL+"="+in.DeviceURL, constants.KernelParamConfigOAuthTokenURL+"="+in.TokenURL)
	}
	if addressing(m, c) == inventory.Static {
		ip, err := staticIP(in)
		if err != nil {
			return "", err
		}
		args = append(args, ip)
	}
	if early, err := r.earlyConfig(in); err != nil {
		return "", err
	} else if early != "" {
		args = append(args, constants.KernelParamConfigEarly+"="+early)
	}
	if r.opts.EventSink.IsValid() {
		args = append(args, constants.KernelParamEventsSink+"="+r.opts.EventSink.String())
	}
	if r.opts.KernelLog != "" {
		if err := checkKernelLog("kernelLog", r.opts.KernelLog); err != nil {
			return "", err
		}
		args = append(args, constants.KernelParamLoggingKernel+"="+r.opts.KernelLog)
	}
	for _, list := range []struct {
		field string
		args  []string
	}{{"cluster.kernelArgs", c.KernelArgs}, {"machine.kernelArgs", m.KernelArgs}} {
		for i, a := range list.args {
			at := fmt.Sprintf("%s[%d]", list.field, i)
			if err := inventory.CheckKernelArg(at, a); err != nil {
				return "", err
			}
			// Talos reboots without these two (pkg/kernel/kspp).
			if key, value, _ := strings.Cut(a, "="); key == "pti" && value != "on" || key == "slab_nomerge" && value != "" {
				return "", fail(at, "leave it out", "Talos does not start with %s", a)
			}
			args = append(args, a)
		}
	}
	line := strings.Join(args, " ")
	if len(line) > maxKernelLine {
		return "", fail(longest(in), "shorten it", "the kernel line has %d bytes and at most %d fit", len(line), maxKernelLine)
	}
	return line, nil
}

// longest names what an operator can shorten.
func longest(in KernelInput) string {
	field, most := "configURL", len(in.ConfigURL)
	for _, f := range []struct {
		name string
		args []string
	}{{"cluster.kernelArgs", in.Cluster.KernelArgs}, {"machine.kernelArgs", in.Machine.KernelArgs}} {
		if n := len(strings.Join(f.args, " ")); n > most {
			field, most = f.name, n
		}
	}
	return field
}

// checkConfigURL refuses what Talos never fetches. It splits the line at white
// space, keeps quotes, and fills in variables inside the query only.
func checkConfigURL(s string) error {
	u, err := url.Parse(s)
	if err != nil || u.Scheme != "http" && u.Scheme != "https" || !isHost(u.Hostname()) || unbracketed(u) ||
		strings.ContainsFunc(s, func(r rune) bool { return r <= ' ' || r == '"' || r == '\'' || r >= 0x7f }) {
		return fail("configURL", "http://[2001:db8::5]:8080/config", "Talos cannot fetch %q", redactURL(s))
	}
	return nil
}

// redactURL cuts off the query, which holds the boot's token.
func redactURL(s string) string {
	s, _, _ = strings.Cut(s, "?")
	return s
}

// staticIP writes ip=ADDRESS::GATEWAY:LENGTH:HOST:DEVICE:off:DNS:DNS:NTP. The
// device is always named: without one Talos takes the first in the alphabet,
// which may be dummy0 or bond0.
func staticIP(in KernelInput) (string, error) {
	m, s := in.Machine, in.Subnet
	if err := onLink(m, s); err != nil {
		return "", err
	}
	quote := func(a netip.Addr) string {
		if !a.IsValid() {
			return ""
		}
		return "[" + a.WithZone("").String() + "]"
	}
	var dns [2]string
	for i, a := range nameservers(in.Cluster, s) {
		if i < len(dns) {
			dns[i] = quote(a)
		}
	}
	var ntp string
	for _, server := range timeServers(in.Cluster, s) { // a name cannot stand here
		if a, err := netip.ParseAddr(server); err == nil {
			ntp = quote(a)
			break
		}
	}
	return fmt.Sprintf("ip=%s::%s:%d:%s:%s:off:%s:%s:%s",
		quote(m.Address), quote(s.Gateway), s.Prefix.Bits(), m.Name, altName(m.BootMAC()), dns[0], dns[1], ntp), nil
}

// earlyConfig is what Talos must have before its config, as talos.config.early
// takes it: base64 of zstd. It is empty if nothing is needed. The machine config
// replaces all of it (internal/app/machined/pkg/controllers/config/acquire.go).
//
//   - Two documents that make Talos run DHCPv6 on this NIC, where it has no ip=.
//   - Whom to trust for an https URL. Talos may try once before it has read this,
//     and tries again within two seconds.
func (r *Renderer) earlyConfig(in KernelInput) (string, error) {
	var docs []config.Document
	if addressing(in.Machine, in.Cluster) == inventory.DHCPv6 {
		var err error
		if docs, err = link(in.Machine, in.Cluster, in.Subnet); err != nil {
			return "", err
		}
	}
	if r.opts.TrustedRoots != "" && strings.HasPrefix(in.ConfigURL, "https:") {
		roots := security.NewTrustedRootsConfigV1Alpha1()
		roots.MetaName, roots.Certificates = "provisiond", r.opts.TrustedRoots
		docs = append(docs, roots)
	}
	if len(docs) == 0 {
		return "", nil
	}
	c, err := container.New(docs...)
	if err != nil {
		return "", fmt.Errorf("writing the early config of %s: %w", in.Machine.Name, err)
	}
	text, err := c.EncodeBytes(encoder.WithComments(encoder.CommentsDisabled))
	if err != nil {
		return "", fmt.Errorf("writing the early config of %s: %w", in.Machine.Name, err)
	}
	return base64.StdEncoding.EncodeToString(r.zstd.EncodeAll(text, nil)), nil
}
