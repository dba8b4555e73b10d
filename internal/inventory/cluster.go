package inventory

import (
	"fmt"
	"net/netip"
	"net/url"
	"strings"
	"time"
)

// Cluster is a Talos cluster as an operator described it. Its secrets bundle
// is a record of its own ([Secrets]), so that listing clusters moves no keys.
type Cluster struct {
	Name string `json:"name"` // DNS label
	// Endpoint is the Kubernetes API as machines and kubectl reach it,
	// https://[2001:db8::1]:6443.
	Endpoint string `json:"endpoint"`
	// TalosVersion is the version that is netbooted and whose contract the
	// configs follow, with its v: v1.13.6.
	TalosVersion string `json:"talosVersion"`
	// KubernetesVersion, without a v: 1.36.2.
	KubernetesVersion string         `json:"kubernetesVersion"`
	Schematic         string         `json:"schematic,omitempty"` // Image Factory schematic; empty: plain Talos
	PodSubnets        []netip.Prefix `json:"podSubnets"`
	ServiceSubnets    []netip.Prefix `json:"serviceSubnets"`
	DNS               []netip.Addr   `json:"dns,omitempty"`
	NTP               []string       `json:"ntp,omitempty"`
	Addressing        Addressing     `json:"addressing,omitempty"`
	Delivery          Delivery       `json:"delivery,omitempty"`
	Approval          Approval       `json:"approval,omitempty"`
	Install           InstallTarget  `json:"install,omitzero"`
	// Patches for all machines, then those of the role; a machine's own follow.
	Patches             []string  `json:"patches,omitempty"`
	ControlPlanePatches []string  `json:"controlPlanePatches,omitempty"`
	WorkerPatches       []string  `json:"workerPatches,omitempty"`
	KernelArgs          []string  `json:"kernelArgs,omitempty"`
	Created             time.Time `json:"created,omitzero"`
	// Imported is set when the secrets came from outside: such a cluster may
	// already run, on machines that provisiond does not know.
	Imported bool `json:"imported,omitempty"`
	// Epoch is that of its Bootstrap.
	Epoch uint64 `json:"epoch"`

	Rev uint64 `json:"-"`
}

// Delivery is how a machine config travels.
type Delivery string

// The ways. The empty Delivery is [OverHTTPS].
const (
	// OverHTTPS encrypts it, and gives it out in no other way.
	OverHTTPS Delivery = "https"
	// OverHTTP is for machines that cannot do better: whoever listens on the segment has
	// the keys of the cluster.
	OverHTTP Delivery = "http"
)

// Plain reports whether configs of the cluster may go out unencrypted.
func (c *Cluster) Plain() bool { return c.Delivery == OverHTTP }

// Secrets is the Talos secrets bundle of a cluster, as YAML. It is made by `cluster
// create`, `cluster import` and `cluster reset`, and never by serving a request: a
// lost database must not become a second cluster.
type Secrets struct {
	Cluster string `json:"cluster"`
	Bundle  []byte `json:"bundle"`

	Rev uint64 `json:"-"`
}

// Bootstrap is what is known about the one irreversible call of a cluster.
// The states are facts, each recorded with its time, never cleared within an
// epoch: claimed, then called (OK seen), then done (etcd seen running).
type Bootstrap struct {
	Cluster string `json:"cluster"`
	// Epoch counts lives of the cluster. A reset starts a new one.
	Epoch uint64 `json:"epoch"`
	// Old are the machines that may still hold etcd data of the life before: none is
	// bootstrapped while one of them does.
	Old []string `json:"old,omitempty"`
	// Machine holds the claim: the only machine that may be bootstrapped.
	Machine   string    `json:"machine,omitempty"`
	ClaimedAt time.Time `json:"claimedAt,omitzero"`
	// CalledAt is set when the call was answered with OK or AlreadyExists. It
	// is never repeated then: each repeat restarts etcd.
	CalledAt time.Time `json:"calledAt,omitzero"`
	// DoneAt is set when a running etcd member was seen.
	DoneAt time.Time `json:"doneAt,omitzero"`
	// Attempts counts calls that were sent, answered or not; SentAt is the last.
	Attempts int       `json:"attempts,omitempty"`
	SentAt   time.Time `json:"sentAt,omitzero"`
	// Ambiguous is set from before a call leaves until its answer is recorded:
	// after a crash or a timeout the call may have been accepted.
	Ambiguous bool `json:"ambiguous,omitempty"`
	// Reason says in words where it stands or what it waits for.
	Reason string `json:"reason,omitempty"`

	Rev    uint64 `json:"-"`
	stored []byte // the record as it was read
}

// Claimed reports whether a machine holds the claim of this epoch.
func (b *Bootstrap) Claimed() bool { return b.Machine != "" }

// Called reports whether the call has been answered with OK or AlreadyExists.
func (b *Bootstrap) Called() bool { return !b.CalledAt.IsZero() }

// Done reports whether the cluster's etcd has been seen running.
func (b *Bootstrap) Done() bool { return !b.DoneAt.IsZero() }

// Validate checks the cluster's own fields. What needs Talos' machinery
// (versions, patches) is checked by the talos package.
func (c *Cluster) Validate() error {
	if err := CheckName("name", c.Name); err != nil {
		return err
	}
	if err := checkEndpoint(c.Endpoint); err != nil {
		return err
	}
	if c.TalosVersion == "" || c.TalosVersion[0] != 'v' {
		return fieldErr("talosVersion", "write it with its v, such as v1.13.6", "%q is not a Talos version", c.TalosVersion)
	}
	if c.KubernetesVersion == "" || c.KubernetesVersion[0] == 'v' {
		return fieldErr("kubernetesVersion", "write it without a v, such as 1.36.2", "%q is not a Kubernetes version", c.KubernetesVersion)
	}
	if strings.ContainsAny(c.Schematic, "/ \t\n") || strings.HasPrefix(c.Schematic, ".") {
		return fieldErr("schematic", "the id that the Image Factory gave", "%q is not a schematic", c.Schematic)
	}
	if err := checkSubnets(c.PodSubnets, c.ServiceSubnets); err != nil {
		return err
	}
	for i, a := range c.DNS {
		if !a.IsValid() || a.Is4() || a.IsUnspecified() || a.Zone() != "" {
			return fieldErr(fmt.Sprintf("dns[%d]", i), "a bare address such as 2001:db8::53", "%q is not an IPv6 address", a)
		}
	}
	for i, s := range c.NTP {
		if err := checkNTP(fmt.Sprintf("ntp[%d]", i), s); err != nil {
			return err
		}
	}
	switch c.Addressing {
	case "", Static, DHCPv6:
	default:
		return fieldErr("addressing", "static or dhcpv6", "%q is not a way of addressing", c.Addressing)
	}
	switch c.Delivery {
	case "", OverHTTPS, OverHTTP:
	default:
		return fieldErr("delivery", "https or http", "%q is not a way of delivering configs", c.Delivery)
	}
	if err := checkApproval(c.Approval); err != nil {
		return err
	}
	if d := c.Install.Disk; d != "" && !strings.HasPrefix(d, "/dev/") {
		return fieldErr("install.disk", "a device path such as /dev/sda", "%q is not a device path", d)
	}
	if c.Install.Disk != "" && len(c.Install.DiskSelector) > 0 {
		return fieldErr("install", "keep one of the two", "disk and diskSelector are both set")
	}
	for i, a := range c.KernelArgs {
		if err := CheckKernelArg(fmt.Sprintf("kernelArgs[%d]", i), a); err != nil {
			return err
		}
	}
	return nil
}

// checkEndpoint refuses what Talos' Validate lets through and no node can use:
// http, a missing port, a path, IPv4, an unbracketed literal.
func checkEndpoint(s string) error {
	const fix = "https://[2001:db8::1]:6443, or https://name:6443"
	u, err := url.Parse(s)
	if err != nil {
		return fieldErr("endpoint", fix, "%q is not a URL", s)
	}
	switch {
	case u.Scheme != "https":
		return fieldErr("endpoint", fix, "%q is not an https URL", s)
	case u.Hostname() == "" || u.Port() == "":
		return fieldErr("endpoint", fix, "%q names no host and port", s)
	case u.Path != "" && u.Path != "/" || u.RawQuery != "" || u.Fragment != "" || u.User != nil:
		return fieldErr("endpoint", fix, "%q has more than a host and a port", s)
	}
	if a, err := netip.ParseAddr(u.Hostname()); err == nil && (!a.Is6() || a.Is4In6() || a.Zone() != "") {
		return fieldErr("endpoint", fix, "%s is not an address of this IPv6 network", a)
	}
	return nil
}

// checkSubnets refuses empty, IPv4, overlapping and oversized networks, all of
// which Talos takes and Kubernetes then fails on.
func checkSubnets(pods, services []netip.Prefix) error {
	all := map[string][]netip.Prefix{"podSubnets": pods, "serviceSubnets": services}
	for _, field := range []string{"podSubnets", "serviceSubnets"} {
		if len(all[field]) == 0 {
			return fieldErr(field, "leave it out for the IPv6 default", "no network given")
		}
		for i, p := range all[field] {
			at := fmt.Sprintf("%s[%d]", field, i)
			if !p.IsValid() || !p.Addr().Is6() || p.Addr().Is4In6() {
				return fieldErr(at, "an IPv6 prefix", "%v is not an IPv6 network", p)
			}
			if p != p.Masked() {
				return fieldErr(at, "write "+p.Masked().String(), "%v has host bits set", p)
			}
			if field == "serviceSubnets" && p.Bits() < 108 {
				return fieldErr(at, "/108 or longer, such as fc00:db8:20::/112", "%v is too large: kube-apiserver takes at most 20 bits of service addresses", p)
			}
		}
	}
	for _, p := range pods {
		for _, s := range services {
			if p.Overlaps(s) {
				return fieldErr("serviceSubnets", "choose two networks that do not overlap", "%v overlaps the pod network %v", s, p)
			}
		}
	}
	return nil
}

func checkNTP(field, s string) error {
	if a, err := netip.ParseAddr(s); err == nil {
		if a.Is4() || a.IsUnspecified() {
			return fieldErr(field, "an IPv6 address or a name", "%s is not an address of this IPv6 network", a)
		}
		return nil
	}
	if s == "" || strings.ContainsAny(s, "[]:/ \t\n\"'{}<>$_") || strings.HasSuffix(s, ".") {
		return fieldErr(field, "a bare IPv6 address or a host name", "%q is not a time server; Talos would take it and never be in sync", s)
	}
	return nil
}
