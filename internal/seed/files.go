package seed

import (
	"encoding/hex"
	"fmt"
	"net"
	"net/netip"
	"strconv"
	"strings"
	"time"
)

// The labels that Talos 1.13 looks for, letter by letter
// (platform/metal and platform/nocloud in internal/app/machined/pkg/runtime/v1alpha1).
const (
	LabelMetalISO = "metal-iso"
	LabelNoCloud  = "cidata"
)

// The files of a volume, and of a NoCloud server.
const (
	ConfigYAML    = "config.yaml" // on LabelMetalISO
	MetaData      = "meta-data"
	NetworkConfig = "network-config"
	UserData      = "user-data"   // the machine config, as it is
	VendorData    = "vendor-data" // nothing; cloud-init asks for it
)

// Machine is what a seed says of its machine beside the config.
type Machine struct {
	Name string // DNS label
	// Instance changes when the machine is to be installed anew.
	Instance string
	MAC      net.HardwareAddr // the NIC that carries its address
	// DHCPv6 has it ask for its address. Else Address is the one, with the length of the
	// prefix on its link.
	DHCPv6  bool
	Address netip.Prefix
	// Gateway and Nameservers may be missing.
	Gateway     netip.Addr
	Nameservers []netip.Addr
}

// MetaData is the file of that name.
func (m *Machine) MetaData() []byte {
	return fmt.Appendf(nil, "instance-id: %s\nlocal-hostname: %s\n", strconv.Quote(m.Instance), strconv.Quote(m.Name))
}

// NetworkConfig is the file of that name, in version 2. The NIC is found by its MAC; its
// key is what Linux calls it by its MAC, which Talos takes until it has found it.
func (m *Machine) NetworkConfig() []byte {
	var b strings.Builder
	fmt.Fprintf(&b, "version: 2\nethernets:\n  enx%s:\n    match:\n      macaddress: %q\n", hex.EncodeToString(m.MAC), m.MAC.String())
	if m.DHCPv6 {
		b.WriteString("    dhcp6: true\n")
	} else {
		fmt.Fprintf(&b, "    addresses:\n      - %q\n", m.Address.String())
		if m.Gateway.IsValid() {
			fmt.Fprintf(&b, "    routes:\n      - to: \"::/0\"\n        via: %q\n", m.Gateway.WithZone("").String())
		}
	}
	if len(m.Nameservers) > 0 {
		b.WriteString("    nameservers:\n      addresses:\n")
		for _, a := range m.Nameservers {
			fmt.Fprintf(&b, "        - %q\n", a.WithZone("").String())
		}
	}
	return []byte(b.String())
}

// MetalISO is a volume with a machine config, for Talos with talos.config=metal-iso on
// its kernel line. at is the time of all that is on it, so that the same is made again.
func MetalISO(config []byte, at time.Time) ([]byte, error) {
	return Image(LabelMetalISO, at, File{ConfigYAML, config})
}

// NoCloudISO is a volume with what a NoCloud server would answer, for Talos' nocloud
// image.
func (m *Machine) NoCloudISO(config []byte, at time.Time) ([]byte, error) {
	return Image(LabelNoCloud, at, File{MetaData, m.MetaData()}, File{NetworkConfig, m.NetworkConfig()}, File{UserData, config})
}
