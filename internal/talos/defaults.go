package talos

import (
	"net/netip"
	"strings"

	"github.com/siderolabs/talos/pkg/machinery/constants"
	"github.com/siderolabs/talos/pkg/machinery/gendata"
)

// Defaults are what a cluster gets that does not say: the Talos this build
// knows best, the Kubernetes that Talos comes with, and Talos' IPv6 networks
// for pods and services.
func Defaults() (talosVersion, kubernetesVersion string, pods, services []netip.Prefix) {
	return strings.TrimSpace(gendata.VersionTag), constants.DefaultKubernetesVersion,
		[]netip.Prefix{netip.MustParsePrefix(constants.DefaultIPv6PodNet)},
		[]netip.Prefix{netip.MustParsePrefix(constants.DefaultIPv6ServiceNet)}
}
