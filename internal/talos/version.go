package talos

import (
	"errors"
	"fmt"
	"regexp"
	"strings"

	machineapi "github.com/siderolabs/talos/pkg/machinery/api/machine"
	"github.com/siderolabs/talos/pkg/machinery/compatibility"
	"github.com/siderolabs/talos/pkg/machinery/config"

	"github.com/provisiond/provisiond/internal/inventory"
)

// supportedTalos says which configs this build can write. Older contracts have
// no network documents (LinkConfig came with 1.12); newer ones need a newer
// machinery.
const supportedTalos = "v1.12.x and v1.13.x"

var (
	talosVersion      = regexp.MustCompile(`^v1\.(12|13)\.\d+(-[0-9A-Za-z.-]+)?$`)
	kubernetesVersion = regexp.MustCompile(`^\d+\.\d+\.\d+(-[0-9A-Za-z.-]+)?$`)
)

// release is one Talos version and what follows from it.
type release struct {
	version   string // v1.13.6
	schematic string // of the Image Factory; empty: plain Talos
	contract  *config.VersionContract
	compat    *compatibility.TalosVersion
}

// installer is the image that puts this release on a disk.
func (r release) installer() string {
	if r.schematic != "" {
		return "factory.talos.dev/installer/" + r.schematic + ":" + r.version
	}
	return "ghcr.io/siderolabs/installer:" + r.version
}

// supports returns an error when a Kubernetes version does not run on this
// release. Talos refuses such a config only after it was fetched.
func (r release) supports(k8s *compatibility.KubernetesVersion) error {
	return k8s.SupportedWith(r.compat)
}

func parseRelease(field, version, schematic string) (release, error) {
	if !talosVersion.MatchString(version) {
		return release{}, fail(field, "one of "+supportedTalos, "%q is not a Talos version that can be rendered for", version)
	}
	contract, err := config.ParseContractFromVersion(version)
	if err != nil {
		return release{}, fail(field, "one of "+supportedTalos, "%v", err)
	}
	compat, err := compatibility.ParseTalosVersion(&machineapi.VersionInfo{Tag: version})
	if err != nil {
		return release{}, fail(field, "one of "+supportedTalos, "%v", err)
	}
	return release{version, schematic, contract, compat}, nil
}

// CheckVersion refuses, as an *inventory.FieldError on "version", a Talos
// version that no config can be rendered for.
func CheckVersion(version string) error {
	_, err := parseRelease("version", version, "")
	return err
}

// releaseOf is what a machine netboots: its own image, or its cluster's. The
// config must follow it, for Talos refuses keys that it does not know.
func releaseOf(m *inventory.Machine, c *inventory.Cluster) (release, error) {
	field, version, schematic := "cluster.talosVersion", c.TalosVersion, c.Schematic
	if m.Image != "" {
		field = "machine.image"
		version, schematic, _ = strings.Cut(m.Image, "/")
		if schematic == "default" {
			schematic = ""
		}
	}
	r, err := parseRelease(field, version, schematic)
	if err != nil {
		return r, err
	}
	k8s, err := parseKubernetes(c.KubernetesVersion)
	if err != nil {
		return r, err
	}
	if err := r.supports(k8s); err != nil {
		return r, fail("cluster.kubernetesVersion", "choose a pair from Talos' support matrix", "%v", err)
	}
	return r, nil
}

func parseKubernetes(version string) (*compatibility.KubernetesVersion, error) {
	const field = "cluster.kubernetesVersion"
	if !kubernetesVersion.MatchString(version) {
		return nil, fail(field, "all three numbers, such as 1.36.2", "%q is not a Kubernetes version", version)
	}
	k8s, err := compatibility.ParseKubernetesVersion(version)
	if err != nil {
		return nil, fail(field, "all three numbers, such as 1.36.2", "%v", err)
	}
	return k8s, nil
}

func fail(field, fix, format string, args ...any) error {
	return &inventory.FieldError{Field: field, Fix: fix, Problem: fmt.Sprintf(format, args...)}
}

// under puts the record's name before the field of a FieldError.
func under(record string, err error) error {
	var fe *inventory.FieldError
	if errors.As(err, &fe) {
		c := *fe
		c.Field = record + "." + fe.Field
		return &c
	}
	return err
}
