package inventory

import (
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"time"
	"unicode"
)

// Role is what a machine is in its Talos cluster.
type Role string

// The roles of Talos' `machine.type` that provisiond hands out. The type
// `init` is left out on purpose: it bootstraps by itself on every reinstall.
const (
	ControlPlane Role = "controlplane"
	Worker       Role = "worker"
)

// Addressing is how the operating system gets its address.
type Addressing string

const (
	// Static repeats the machine's address in its config (LinkConfig) and on
	// the kernel line (ip=). The default: it needs no server at run time.
	Static Addressing = "static"
	// DHCPv6 gives the config a DHCPv6Config document instead.
	DHCPv6 Addressing = "dhcpv6"
)

// Machine is what an operator registered. Facts learnt from the machine are
// kept apart, in [Facts], so that a boot never changes what a person wrote.
type Machine struct {
	// Name is a DNS label (RFC 1123, at most 63 characters), unique in the
	// inventory, and the host name the machine gets.
	Name string `json:"name"`
	// MACs are the NICs by which the machine may boot, at least one. The first
	// is the one that carries its address in the operating system.
	MACs []MAC `json:"macs"`
	// Cluster is the name of the cluster it belongs to. A machine without one
	// is known but held.
	Cluster string `json:"cluster,omitempty"`
	Role    Role   `json:"role"`
	// Address is its one stable address, from firmware to Talos.
	Address netip.Addr `json:"address"`
	// Subnet names the subnet its address is allocated from. Needed only when
	// no address is given, there are several subnets, and the machine was not
	// seen on one of them yet.
	Subnet string `json:"subnet,omitempty"`
	// Install says where Talos is installed. Empty: the cluster's default.
	Install InstallTarget `json:"install,omitzero"`
	// Image is the Talos that is netbooted, "VERSION" or "VERSION/SCHEMATIC".
	// Empty: the cluster's.
	Image string `json:"image,omitempty"`
	// Boot is the way that is tried first; empty is [Auto].
	Boot Way `json:"boot,omitempty"`
	// SecureBoot says whether its firmware starts signed programs only; empty: as Talos
	// said when it last ran there.
	SecureBoot Switch `json:"secureBoot,omitempty"`
	// Addressing overrides the cluster's.
	Addressing Addressing `json:"addressing,omitempty"`
	// Approval overrides the cluster's.
	Approval Approval `json:"approval,omitempty"`
	// Patches are Talos config patches (strategic merge, multi-document),
	// applied after the cluster's and the role's.
	Patches []string `json:"patches,omitempty"`
	// KernelArgs are appended to the netboot kernel line.
	KernelArgs []string          `json:"kernelArgs,omitempty"`
	Labels     map[string]string `json:"labels,omitempty"`
	Created    time.Time         `json:"created,omitzero"`

	// Rev is the revision of the stored record, 0 for one not stored yet.
	Rev uint64 `json:"-"`
}

// InstallTarget names the disk Talos is installed to: a device path, or a selector
// of Talos' InstallDiskSelector (size, model, serial, type, busPath, ...).
type InstallTarget struct {
	Disk         string            `json:"disk,omitempty"`
	DiskSelector map[string]string `json:"diskSelector,omitempty"`
	// Image is the installer image. Empty: the cluster's.
	Image string `json:"image,omitempty"`
}

// IsZero reports whether nothing is set.
func (i InstallTarget) IsZero() bool {
	return i.Disk == "" && len(i.DiskSelector) == 0 && i.Image == ""
}

// BootMAC is the NIC that carries the machine's address in Talos.
func (m *Machine) BootMAC() MAC { return m.MACs[0] }

func (m *Machine) has(mac MAC) bool { return slices.Contains(m.MACs, mac) }

// Clone returns a copy that shares nothing with m.
func (m *Machine) Clone() *Machine {
	c := *m
	c.MACs = slices.Clone(m.MACs)
	c.Patches = slices.Clone(m.Patches)
	c.KernelArgs = slices.Clone(m.KernelArgs)
	c.Labels = maps.Clone(m.Labels)
	c.Install.DiskSelector = maps.Clone(m.Install.DiskSelector)
	return &c
}

// Normalize brings m to canonical form: MACs parsed, duplicates removed.
func (m *Machine) Normalize() error {
	var macs []MAC
	for i, raw := range m.MACs {
		mac, err := ParseMAC(string(raw))
		if err != nil {
			return fieldErr(fmt.Sprintf("macs[%d]", i), "", "%v", err)
		}
		if !slices.Contains(macs, mac) {
			macs = append(macs, mac)
		}
	}
	m.MACs = macs
	m.Address = m.Address.Unmap().WithZone("")
	return nil
}

// Validate checks everything that can be known without looking at other
// records. The errors name the field.
func (m *Machine) Validate() error {
	if err := CheckName("name", m.Name); err != nil {
		return err
	}
	if len(m.MACs) == 0 {
		return fieldErr("macs", "give the MAC of the NIC it boots from", "machine %s has no MAC address", m.Name)
	}
	if m.Role != ControlPlane && m.Role != Worker {
		return fieldErr("role", "controlplane or worker", "%q is not a role", m.Role)
	}
	if m.Cluster != "" {
		if err := CheckName("cluster", m.Cluster); err != nil {
			return err
		}
	}
	if a := m.Address; a.IsValid() && (!a.Is6() || a.Is4In6() || !a.IsGlobalUnicast()) {
		return fieldErr("address", "an address of one of the subnets", "%s is not a global or unique-local IPv6 address", a)
	}
	if err := checkApproval(m.Approval); err != nil {
		return err
	}
	switch m.Boot {
	case "", Auto, ByUKI, ByIPXE:
	default:
		return fieldErr("boot", "auto, uki or ipxe", "%q is not a way to boot", m.Boot)
	}
	switch m.SecureBoot {
	case "", On, Off:
	default:
		return fieldErr("secureBoot", "on or off", "%q is neither", m.SecureBoot)
	}
	switch m.Addressing {
	case "", Static, DHCPv6:
	default:
		return fieldErr("addressing", "static or dhcpv6", "%q is not a way of addressing", m.Addressing)
	}
	if d := m.Install.Disk; d != "" && !strings.HasPrefix(d, "/dev/") {
		return fieldErr("install.disk", "a device path such as /dev/sda or /dev/disk/by-id/...", "%q is not a device path; Talos accepts it and then finds no disk", d)
	}
	if m.Install.Disk != "" && len(m.Install.DiskSelector) > 0 {
		return fieldErr("install", "keep one of the two", "disk and diskSelector are both set, and Talos refuses to start when the selector matches nothing")
	}
	for i, a := range m.KernelArgs {
		if err := CheckKernelArg(fmt.Sprintf("kernelArgs[%d]", i), a); err != nil {
			return err
		}
	}
	return checkLabels(m.Labels)
}

// CheckName refuses what is not a DNS label (RFC 1123 section 2.1): 1 to 63
// lower-case letters, digits and hyphens, beginning and ending with a letter or
// digit. Talos would accept worse and then run with it.
func CheckName(field, s string) error {
	ok := len(s) >= 1 && len(s) <= 63 && s[0] != '-' && s[len(s)-1] != '-'
	for i := 0; ok && i < len(s); i++ {
		c := s[i]
		ok = c >= 'a' && c <= 'z' || c >= '0' && c <= '9' || c == '-'
	}
	if !ok {
		return fieldErr(field, "1 to 63 of a-z, 0-9 and -, such as cp-1", "%q is not a DNS label", s)
	}
	return nil
}

// CheckKernelArg refuses what would break the kernel line apart: Talos splits
// it at white space only and knows no quotes.
func CheckKernelArg(field, a string) error {
	if a == "" || strings.ContainsFunc(a, func(r rune) bool { return r <= ' ' || r == 0x7f || r == '"' || r == '\'' }) {
		return fieldErr(field, "one argument an entry", "%q has white space, quotes or nothing in it, and Talos splits the kernel line at every space", a)
	}
	for _, own := range []string{"talos.config=", "talos.platform=", "talos.experimental.wipe="} {
		if strings.HasPrefix(a, own) {
			return fieldErr(field, "leave it out", "%s is set by provisiond", strings.TrimSuffix(own, "="))
		}
	}
	return nil
}

// ValidDomain reports whether d is a domain name of DNS labels, without a dot at its
// end, of at most 253 octets.
func ValidDomain(d string) bool {
	for label := range strings.SplitSeq(d, ".") {
		if CheckName("", label) != nil {
			return false
		}
	}
	return len(d) <= 253
}

func checkLabels(labels map[string]string) error {
	for _, k := range slices.Sorted(maps.Keys(labels)) {
		if k == "" || len(k) > 63 || len(labels[k]) > 255 {
			return fieldErr("labels."+k, "a key of 1 to 63 and a value of at most 255 characters", "label is too long or has no key")
		}
	}
	return nil
}

// CheckLabelLines refuses labels that could not be written as lines of key=value. It is for
// what operators write: a machine that has such labels from before works on.
func (m *Machine) CheckLabelLines() error {
	for _, k := range slices.Sorted(maps.Keys(m.Labels)) {
		if strings.Contains(k, "=") || !oneLine(k) || !oneLine(m.Labels[k]) {
			return fieldErr("labels", "remove that label, or write it without = in the key, and without control characters and spaces around either", "label %q: %q cannot be written as key=value", k, m.Labels[k])
		}
	}
	return nil
}

// oneLine reports whether a text reads the same as a line, with the space around it taken off.
func oneLine(s string) bool {
	return s == strings.TrimSpace(s) && !strings.ContainsFunc(s, unicode.IsControl)
}
