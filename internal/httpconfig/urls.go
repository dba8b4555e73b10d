package httpconfig

import (
	"net/netip"
	"net/url"
	"strconv"
	"strings"

	"github.com/provisiond/provisiond/internal/inventory"
)

// The routes. URLs makes what it advertises of the same ones, so that what is
// advertised is served.
const (
	loaderPrefix   = "/loader/"
	routeLoader    = loaderPrefix + "{arch}/{file}"
	routeEntry     = "/boot.ipxe"
	routeScript    = "/boot/{mac}/boot.ipxe"
	routeKernel    = "/image/{version}/{schematic}/{arch}/kernel"
	routeInitramfs = "/image/{version}/{schematic}/{arch}/initramfs"
	routeSigned    = "/image/{version}/{schematic}/{arch}/signed.efi"
	routeUKI       = "/boot/{mac}/talos.efi"
	routeConfig    = "/config/{mac}/{token}"
	routeDevice    = routeConfig + "/device"
	routeToken     = routeConfig + "/token"
	routeSeed      = "/seed/{mac}/{token}/"
)

// plainSchematic stands for an image without a schematic in a URL.
const plainSchematic = "default"

// URLs makes every URL that a machine is told. All have an address literal as
// host: neither firmware nor Talos before its config has a resolver on a network
// of IPv6 only.
type URLs struct {
	// HTTP, HTTPS and TFTP are where machines reach the servers.
	HTTP, HTTPS, TFTP netip.AddrPort
	// PXE and HTTPBoot name the loader of each architecture, as a path among the
	// loaders such as "amd64/snponly.efi".
	PXE, HTTPBoot map[inventory.Arch]string
}

// URL is the boot file URL (DHCPv6 option 59) for a program on a NIC: the loader
// by the protocol its firmware speaks (EDK2 takes no other), or for iPXE the
// script of the NIC. It reports false when there is none to give.
func (u URLs) URL(client inventory.Client, arch inventory.Arch, mac inventory.MAC) (string, bool) {
	switch client {
	case inventory.FirmwarePXE:
		name, ok := u.PXE[arch]
		return "tftp://" + host(u.TFTP, 69) + "/" + name, ok
	case inventory.FirmwareHTTP:
		name, ok := u.HTTPBoot[arch]
		return u.base() + loaderPrefix + name, ok
	case inventory.IPXE:
		if mac == "" {
			return u.Entry(), true
		}
		return u.Script(mac, arch), true
	}
	return "", false
}

func (u URLs) base() string { return "http://" + host(u.HTTP, 80) }

// host leaves a protocol's own port out: some firmware cannot parse one.
func host(a netip.AddrPort, own uint16) string {
	if a.Port() == own {
		return "[" + a.Addr().String() + "]"
	}
	return a.String()
}

// Entry is the URL of the script that sends iPXE on to the script of its NIC.
func (u URLs) Entry() string { return u.base() + routeEntry }

// Script is the URL of a NIC's boot script. arch may be empty.
func (u URLs) Script(mac inventory.MAC, arch inventory.Arch) string {
	s := u.base() + fill(routeScript, "mac", string(mac))
	if arch != "" {
		s += "?arch=" + string(arch)
	}
	return s
}

// UKI is the URL of a NIC's own UKI. arch may be empty.
func (u URLs) UKI(mac inventory.MAC, arch inventory.Arch) string {
	s := u.base() + fill(routeUKI, "mac", string(mac))
	if arch != "" {
		s += "?arch=" + string(arch)
	}
	return s
}

// Start is the boot file URL of a machine that is to be started by a way: [URLs.URL], but
// for firmware that loads a UKI.
func (u URLs) Start(way inventory.Way, client inventory.Client, arch inventory.Arch, mac inventory.MAC, v *inventory.View) (string, bool) {
	switch {
	case client != inventory.FirmwareHTTP:
	case way == inventory.ByUKI:
		return u.UKI(mac, arch), true
	case way == inventory.BySigned && v.Image != nil:
		boot := uint64(0)
		if b := v.Facts.Current(); b != nil {
			boot = b.Number
		}
		return u.image(routeSigned, v.Image, mac, boot), true
	}
	return u.URL(client, arch, mac)
}

// Kernel and Initramfs are the URLs of an image's files, for one boot of a
// machine: NIC and number are there to record the download, and are no secret.
func (u URLs) Kernel(i *inventory.Image, mac inventory.MAC, boot uint64) string {
	return u.image(routeKernel, i, mac, boot)
}

// Initramfs is described at [URLs.Kernel].
func (u URLs) Initramfs(i *inventory.Image, mac inventory.MAC, boot uint64) string {
	return u.image(routeInitramfs, i, mac, boot)
}

func (u URLs) image(route string, i *inventory.Image, mac inventory.MAC, boot uint64) string {
	schematic := i.Schematic
	if schematic == "" {
		schematic = plainSchematic
	}
	return u.base() + fill(route, "version", i.Version, "schematic", schematic, "arch", string(i.Arch)) +
		"?mac=" + string(mac) + "&boot=" + strconv.FormatUint(boot, 10)
}

// ConfigURLs are where a machine gets its config in one boot. They are secrets.
type ConfigURLs struct {
	Config string
	// Device and Token are the endpoints of RFC 8628, where a person has to approve the
	// machine first; else empty.
	Device, Token string
}

// Config makes the URLs of one boot of the machine of a view.
func (u URLs) Config(v *inventory.View, mac inventory.MAC, token string) ConfigURLs {
	out := ConfigURLs{Config: u.config(routeConfig, v.Cluster, mac, token)}
	if v.NeedsApproval() {
		out.Device, out.Token = u.config(routeDevice, v.Cluster, mac, token), u.config(routeToken, v.Cluster, mac, token)
	}
	return out
}

func (u URLs) config(route string, c *inventory.Cluster, mac inventory.MAC, token string) string {
	base := "https://" + host(u.HTTPS, 443)
	if c.Plain() {
		base = u.base()
	}
	return base + fill(route, "mac", string(mac), "token", token)
}

// fill puts values into a route: pairs of name and value. A MAC keeps its
// colons, which need no escape in a path (RFC 3986 section 3.3).
func fill(route string, pairs ...string) string {
	for i := 0; i < len(pairs); i += 2 {
		route = strings.Replace(route, "{"+pairs[i]+"}", url.PathEscape(pairs[i+1]), 1)
	}
	return route
}
