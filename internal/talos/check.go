package talos

import (
	"encoding/base64"
	"fmt"
	"net/netip"
	"net/url"
	"slices"
	"strconv"
	"strings"

	"github.com/siderolabs/crypto/x509"
	"github.com/siderolabs/talos/pkg/machinery/config/types/v1alpha1"

	"github.com/provisiond/provisiond/internal/inventory"
)

// checkMain refuses what machinery's Validate takes in the v1alpha1 document
// and Talos then refuses (its RuntimeValidate), or takes and cannot use.
func checkMain(cfg *v1alpha1.Config, role inventory.Role, rel release) error {
	if cfg.MachineConfig == nil {
		return fail("machine", "", "the machine section is missing")
	}
	if cfg.ClusterConfig == nil {
		return fail("cluster", "", "the cluster section is missing")
	}
	for _, check := range []func() error{
		func() error { return checkSecrets(cfg, role) },
		func() error { return checkAcceptedCAs(cfg) },
		func() error { return checkInstall(cfg.MachineConfig.MachineInstall) },
		func() error { return checkImages(cfg, role, rel) },
		func() error { return checkEndpoint(cfg.ClusterConfig.ControlPlane) },
		func() error { return checkClusterNetwork(cfg.ClusterConfig.ClusterNetwork) },
		func() error { return checkSANs(cfg) },
		func() error { return checkNodeNetworks(cfg) },
		func() error { return checkLegacyMirrors(cfg.MachineConfig) },
	} {
		if err := check(); err != nil {
			return err
		}
	}
	return nil
}

// checkSecrets wants everything a machine of the role cannot do without.
func checkSecrets(cfg *v1alpha1.Config, role inventory.Role) error {
	m, c := cfg.MachineConfig, cfg.ClusterConfig
	const keep = "do not patch it: it comes from the cluster's secrets"
	if m.MachineType != string(role) {
		return fail("machine.type", "leave it to the machine's role", "%q is not the role of this machine, %s", m.MachineType, role)
	}
	if !tokenShape.MatchString(m.MachineToken) {
		return fail("machine.token", keep, "not a token of the form abcdef.0123456789abcdef")
	}
	if !tokenShape.MatchString(c.BootstrapToken) {
		return fail("cluster.token", keep, "not a token of the form abcdef.0123456789abcdef")
	}
	for _, f := range []struct{ field, value string }{
		{"cluster.id", c.ClusterID}, {"cluster.secret", c.ClusterSecret}, {"cluster.clusterName", c.ClusterName},
	} {
		if f.value == "" {
			return fail(f.field, keep, "is empty")
		}
	}
	controlPlane := role == inventory.ControlPlane
	if err := checkCA("machine.ca", m.MachineCA, controlPlane); err != nil {
		return err
	}
	if err := checkCA("cluster.ca", c.ClusterCA, controlPlane); err != nil {
		return err
	}
	if !controlPlane {
		return nil
	}
	if c.EtcdConfig == nil {
		return fail("cluster.etcd", keep, "the etcd section is missing")
	}
	if err := checkCA("cluster.etcd.ca", c.EtcdConfig.RootCA, true); err != nil {
		return err
	}
	if err := checkCA("cluster.aggregatorCA", c.ClusterAggregatorCA, true); err != nil {
		return err
	}
	if c.ClusterServiceAccount == nil {
		return fail("cluster.serviceAccount", keep, "is missing")
	}
	if _, err := c.ClusterServiceAccount.GetKey(); err != nil {
		return fail("cluster.serviceAccount.key", keep, "not a private key")
	}
	if c.ClusterAESCBCEncryptionSecret != "" { // a cluster that began before Talos 1.3
		return checkKey("cluster.aescbcEncryptionSecret", c.ClusterAESCBCEncryptionSecret)
	}
	return checkKey("cluster.secretboxEncryptionSecret", c.ClusterSecretboxEncryptionSecret)
}

func checkCA(field string, ca *x509.PEMEncodedCertificateAndKey, withKey bool) error {
	const keep = "do not patch it: it comes from the cluster's secrets"
	if ca == nil || len(ca.Crt) == 0 {
		return fail(field, keep, "the CA certificate is missing")
	}
	if _, err := ca.GetCert(); err != nil {
		return fail(field+".crt", keep, "not a certificate: %v", err)
	}
	if withKey {
		if _, err := ca.GetKey(); err != nil {
			return fail(field+".key", keep, "not a private key")
		}
	}
	return nil
}

// checkKey wants the base64 of 32 bytes, which kube-apiserver's secretbox and
// aescbc providers need.
func checkKey(field, s string) error {
	if b, err := base64.StdEncoding.DecodeString(s); err != nil || len(b) != 32 {
		return fail(field, "do not patch it: it comes from the cluster's secrets", "not a key of 32 bytes in base64")
	}
	return nil
}

func checkInstall(in *v1alpha1.InstallConfig) error {
	if in == nil {
		return fail("machine.install", "give install.disk or install.diskSelector", "the install section is missing")
	}
	if in.InstallDisk == "" && in.InstallDiskSelector == nil {
		return fail("machine.install.disk", "give the machine or its cluster install.disk or install.diskSelector", "nothing says where Talos is to be installed")
	}
	if in.InstallDisk != "" && (!strings.HasPrefix(in.InstallDisk, "/dev/") || strings.ContainsAny(in.InstallDisk, " \t\n")) {
		return fail("machine.install.disk", "a device path such as /dev/sda or /dev/disk/by-id/...", "%q is not a device path", in.InstallDisk)
	}
	// Talos lets the selector decide alone and then refuses when nothing matches.
	if in.InstallDisk != "" && in.InstallDiskSelector != nil {
		return fail("machine.install.diskSelector", "keep one of the two", "disk and diskSelector are both set")
	}
	if _, err := in.DiskMatchExpression(); err != nil {
		return fail("machine.install.diskSelector", "size, model, serial, modalias, uuid, wwid, type or busPath", "%v", err)
	}
	return checkImage("machine.install.image", in.InstallImage)
}

// checkImage wants an image reference with a tag or a digest, as containerd's
// distribution reference has it.
func checkImage(field, ref string) error {
	const fix = "such as ghcr.io/siderolabs/installer:v1.13.6"
	name, tag, ok := cutTag(ref)
	if ref == "" || !ok || name == "" || tag == "" {
		return fail(field, fix, "%q is not an image with a tag", ref)
	}
	bad := func(r rune) bool {
		return !(r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' || strings.ContainsRune("._-/:[]@", r))
	}
	if strings.ContainsFunc(ref, bad) || strings.Contains(ref, "://") || strings.Contains(ref, "//") || strings.HasPrefix(ref, "/") {
		return fail(field, fix, "%q is not an image reference", ref)
	}
	return nil
}

// cutTag splits an image reference at the tag or digest. The colon of a
// registry's port is no tag.
func cutTag(ref string) (name, tag string, ok bool) {
	if name, digest, found := strings.Cut(ref, "@"); found {
		return name, digest, true
	}
	at := strings.LastIndexByte(ref, ':')
	if at < 0 || strings.ContainsAny(ref[at:], "/]") {
		return ref, "", false
	}
	return ref[:at], ref[at+1:], true
}

// checkImages is Talos' RuntimeValidate for the release that will run, not the
// one this program was built with. An empty image means Talos' own default.
func checkImages(cfg *v1alpha1.Config, role inventory.Role, rel release) error {
	type image struct{ field, ref string }
	var images []image
	if k := cfg.MachineConfig.MachineKubelet; k != nil {
		images = append(images, image{"machine.kubelet.image", k.KubeletImage})
	}
	if c := cfg.ClusterConfig; role == inventory.ControlPlane {
		if c.APIServerConfig != nil {
			images = append(images, image{"cluster.apiServer.image", c.APIServerConfig.ContainerImage})
		}
		if c.ControllerManagerConfig != nil {
			images = append(images, image{"cluster.controllerManager.image", c.ControllerManagerConfig.ContainerImage})
		}
		if c.SchedulerConfig != nil {
			images = append(images, image{"cluster.scheduler.image", c.SchedulerConfig.ContainerImage})
		}
	}
	for _, i := range images {
		if i.ref == "" {
			continue
		}
		k8s, err := v1alpha1.KubernetesVersionFromImageRef(i.ref)
		if err != nil {
			return fail(i.field, "give it a tag such as :v1.36.2", "%q names no Kubernetes version", i.ref)
		}
		if err := rel.supports(k8s); err != nil {
			return fail(i.field, "choose a pair from Talos' support matrix", "%v", err)
		}
	}
	return nil
}

func checkEndpoint(cp *v1alpha1.ControlPlaneConfig) error {
	const field, fix = "cluster.controlPlane.endpoint", "https://[2001:db8::1]:6443, or https://name:6443"
	if cp == nil || cp.Endpoint == nil || cp.Endpoint.URL == nil {
		return fail(field, fix, "the endpoint is missing")
	}
	u := cp.Endpoint.URL
	switch a, err := netip.ParseAddr(u.Hostname()); {
	case u.Scheme != "https":
		return fail(field, fix, "%q is not an https URL", u)
	case u.Hostname() == "" || !isPort(u.Port()):
		return fail(field, fix, "%q names no host and port", u)
	case u.Path != "" && u.Path != "/" || u.RawQuery != "" || u.Fragment != "" || u.User != nil:
		return fail(field, fix, "%q has more than a host and a port", u)
	case err == nil && (!a.Is6() || a.Is4In6() || a.Zone() != ""):
		return fail(field, fix, "%s is not an address of this IPv6 network", a)
	}
	return nil
}

// checkClusterNetwork refuses what kube-apiserver refuses; junk there even makes
// machined panic (its host DNS controller parses the pod networks).
func checkClusterNetwork(n *v1alpha1.ClusterNetworkConfig) error {
	if n == nil {
		return fail("cluster.network", "", "the section is missing")
	}
	parsed := map[string][]netip.Prefix{}
	for _, list := range []struct {
		field string
		texts []string
	}{{"cluster.network.podSubnets", n.PodSubnet}, {"cluster.network.serviceSubnets", n.ServiceSubnet}} {
		if len(list.texts) == 0 {
			return fail(list.field, "such as fc00:db8:20::/112", "no network given")
		}
		for i, s := range list.texts {
			at := fmt.Sprintf("%s[%d]", list.field, i)
			p, err := netip.ParsePrefix(s)
			if err != nil || !p.Addr().Is6() || p.Addr().Is4In6() || p != p.Masked() {
				return fail(at, "an IPv6 prefix without host bits", "%q is not an IPv6 network", s)
			}
			if list.field == "cluster.network.serviceSubnets" && p.Bits() < 108 {
				return fail(at, "/108 or longer", "%s is too large: kube-apiserver takes at most 20 bits of service addresses", p)
			}
			parsed[list.field] = append(parsed[list.field], p)
		}
	}
	for _, p := range parsed["cluster.network.podSubnets"] {
		for i, s := range parsed["cluster.network.serviceSubnets"] {
			if p.Overlaps(s) {
				return fail(fmt.Sprintf("cluster.network.serviceSubnets[%d]", i), "choose networks that do not overlap", "%s overlaps the pod network %s", s, p)
			}
		}
	}
	return nil
}

func checkSANs(cfg *v1alpha1.Config) error {
	lists := map[string][]string{"machine.certSANs": cfg.MachineConfig.MachineCertSANs}
	if a := cfg.ClusterConfig.APIServerConfig; a != nil {
		lists["cluster.apiServer.certSANs"] = a.CertSANs
	}
	for _, field := range []string{"machine.certSANs", "cluster.apiServer.certSANs"} {
		for i, s := range lists[field] {
			if !isHost(strings.TrimPrefix(s, "*.")) {
				return fail(fmt.Sprintf("%s[%d]", field, i), "a host name or a bare address such as 2001:db8::1", "%q is neither a name nor an address", s)
			}
		}
	}
	return nil
}

// checkNodeNetworks wants at least one IPv6 network in each filter: on this
// network a filter of IPv4 networks leaves kubelet and etcd without an address.
func checkNodeNetworks(cfg *v1alpha1.Config) error {
	type filter struct {
		field   string
		subnets []string
	}
	var filters []filter
	if k := cfg.MachineConfig.MachineKubelet; k != nil && k.KubeletNodeIP != nil {
		filters = append(filters, filter{"machine.kubelet.nodeIP.validSubnets", k.KubeletNodeIP.KubeletNodeIPValidSubnets})
	}
	if e := cfg.ClusterConfig.EtcdConfig; e != nil {
		filters = append(filters, filter{"cluster.etcd.advertisedSubnets", e.EtcdAdvertisedSubnets},
			filter{"cluster.etcd.listenSubnets", e.EtcdListenSubnets})
	}
	for _, f := range filters {
		six := len(f.subnets) == 0
		for i, s := range f.subnets {
			bare, except := strings.CutPrefix(s, "!")
			p, err := netip.ParsePrefix(bare)
			if err != nil {
				return fail(fmt.Sprintf("%s[%d]", f.field, i), "a prefix such as 2001:db8::/64", "%q is not a network", s)
			}
			six = six || p.Addr().Is6() && !except
		}
		if !six {
			return fail(f.field, "add the IPv6 network of the machines", "%v holds no IPv6 network", f.subnets)
		}
	}
	return nil
}

func checkLegacyMirrors(m *v1alpha1.MachineConfig) error {
	mirrors := m.MachineRegistries.RegistryMirrors //nolint:staticcheck // deprecated, yet a patch may set it
	names := make([]string, 0, len(mirrors))
	for name := range mirrors {
		names = append(names, name)
	}
	slices.Sort(names)
	for _, name := range names {
		var urls []string
		if mirrors[name] != nil {
			urls = mirrors[name].MirrorEndpoints
		}
		if err := checkMirror(fmt.Sprintf("machine.registries.mirrors[%s]", name), name, urls); err != nil {
			return err
		}
	}
	return nil
}

// checkMirror refuses a mirror that containerd would ignore without a word.
func checkMirror(at, name string, endpoints []string) error {
	if strings.Contains(name, "://") || strings.ContainsAny(name, "/ \t\n") {
		return fail(at+".name", "the registry as it stands in image names, such as docker.io", "%q is not a registry", name)
	}
	if len(endpoints) == 0 {
		return fail(at+".endpoints", "a URL such as https://[2001:db8::5]:5000", "the mirror has no endpoint")
	}
	for i, e := range endpoints {
		u, err := url.Parse(e)
		if err != nil || u.Scheme != "http" && u.Scheme != "https" || !isHost(u.Hostname()) || unbracketed(u) {
			return fail(fmt.Sprintf("%s.endpoints[%d]", at, i), "a URL such as https://[2001:db8::5]:5000", "%q is not the URL of a host", e)
		}
	}
	return nil
}

// isPort reports whether s is a port number, 1 to 65535.
func isPort(s string) bool {
	n, err := strconv.ParseUint(s, 10, 16)
	return err == nil && n > 0
}

// unbracketed reports an IPv6 address without brackets, which url.Parse takes
// apart at the wrong colon.
func unbracketed(u *url.URL) bool {
	return strings.Contains(u.Hostname(), ":") && !strings.HasPrefix(u.Host, "[")
}

// isHost reports whether s is an address without brackets or a host name of
// RFC 1123 labels.
func isHost(s string) bool {
	if a, err := netip.ParseAddr(s); err == nil {
		return !a.IsUnspecified()
	}
	if s == "" || len(s) > 253 {
		return false
	}
	for _, label := range strings.Split(s, ".") {
		if !isLabel(label) {
			return false
		}
	}
	return true
}

func isLabel(s string) bool {
	alnum := func(c byte) bool { return c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9' }
	if s == "" || len(s) > 63 || !alnum(s[0]) || !alnum(s[len(s)-1]) {
		return false
	}
	for i := range len(s) {
		if !alnum(s[i]) && s[i] != '-' {
			return false
		}
	}
	return true
}
