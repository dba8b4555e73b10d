package talos

import (
	"bytes"
	"errors"
	"fmt"
	"net/netip"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/siderolabs/talos/pkg/machinery/config/configloader"
	"github.com/siderolabs/talos/pkg/machinery/config/generate/secrets"
	"github.com/siderolabs/talos/pkg/machinery/config/types/v1alpha1"
	"go.yaml.in/yaml/v4"

	"github.com/provisiond/provisiond/internal/inventory"
)

const (
	// backdate is how far certificates reach into the past: a machine whose
	// clock runs behind must not find them "not yet valid".
	backdate = time.Hour
	// maxDocument bounds a file an operator hands in, in bytes.
	maxDocument = 1 << 20
)

// NewSecrets makes the secrets bundle of a new cluster, as the YAML that
// `talosctl gen secrets` would write. It takes a second or two, for an RSA-4096
// key. talosVersion is such as v1.13.6; an unsupported one is a FieldError.
func NewSecrets(talosVersion string) ([]byte, error) {
	r, err := parseRelease("talosVersion", talosVersion, "")
	if err != nil {
		return nil, err
	}
	b, err := secrets.NewBundle(secrets.NewFixedClock(time.Now().Add(-backdate)), r.contract)
	if err != nil {
		return nil, fmt.Errorf("making the secrets bundle: %w", err)
	}
	return yaml.Marshal(b)
}

// Imported is what a file of an existing cluster tells. Only Bundle is always
// set.
type Imported struct {
	Bundle            []byte // the secrets bundle as YAML
	Name              string
	Endpoint          string // https://[2001:db8::1]:6443
	TalosVersion      string // with its v
	KubernetesVersion string // without a v
	PodSubnets        []netip.Prefix
	ServiceSubnets    []netip.Prefix
}

// ImportSecrets reads the secrets of an existing cluster from the secrets.yaml
// of `talosctl gen secrets` or from a control plane's machine config. Anything
// else is refused with the reason, as a FieldError on "secrets".
func ImportSecrets(text []byte) (Imported, error) {
	const fix = "give the cluster's secrets.yaml, or the controlplane.yaml that talosctl gen config wrote"
	refuse := func(format string, args ...any) (Imported, error) {
		return Imported{}, fail("secrets", fix, format, args...)
	}
	if len(text) > maxDocument {
		return refuse("%d bytes are too many for a secrets file", len(text))
	}
	var top map[string]yaml.Node
	if err := yaml.NewDecoder(bytes.NewReader(text)).Decode(&top); err != nil {
		return refuse("not a YAML document: %s", flatten(err))
	}
	has := func(keys ...string) bool {
		return !slices.ContainsFunc(keys, func(k string) bool { _, ok := top[k]; return !ok })
	}
	switch {
	case has("machine", "cluster"):
		return importConfig(text, refuse)
	case has("context", "contexts"):
		return refuse("this is a talosconfig: it holds a login, not the cluster's keys")
	case has("clusters", "users"):
		return refuse("this is a kubeconfig: it holds a login, not the cluster's keys")
	case !has("cluster", "secrets", "trustdinfo", "certs"):
		return refuse("neither a secrets bundle nor a machine config")
	}
	var b secrets.Bundle
	if err := yaml.Unmarshal(text, &b); err != nil {
		return refuse("not a secrets bundle: %s", flatten(err))
	}
	out, err := checkedBundle(&b)
	if err != nil {
		return refuse("%v", err)
	}
	return Imported{Bundle: out}, nil
}

func importConfig(text []byte, refuse func(string, ...any) (Imported, error)) (Imported, error) {
	p, err := configloader.NewFromBytes(text)
	if err != nil {
		return refuse("not a machine config that this version understands: %s", flatten(err))
	}
	v1 := p.RawV1Alpha1()
	if v1 == nil || v1.MachineConfig == nil || v1.ClusterConfig == nil {
		return refuse("the config has no machine or no cluster section")
	}
	if !p.Machine().Type().IsControlPlane() {
		return refuse("this is the config of a %s, which holds no CA keys", p.Machine().Type())
	}
	b := secrets.NewBundleFromConfig(secrets.NewClock(), p)
	out, err := checkedBundle(b)
	if err != nil {
		return refuse("%v", err)
	}
	im := Imported{Bundle: out, Name: v1.ClusterConfig.ClusterName}
	if cp := v1.ClusterConfig.ControlPlane; cp != nil && cp.Endpoint != nil && cp.Endpoint.URL != nil {
		im.Endpoint = cp.Endpoint.String()
	}
	if k8s, err := v1alpha1.KubernetesVersionFromImageRef(p.Machine().Kubelet().Image()); err == nil {
		im.KubernetesVersion = k8s.String()
	}
	if install := v1.MachineConfig.MachineInstall; install != nil {
		if _, tag, ok := cutTag(install.InstallImage); ok && talosVersion.MatchString(tag) {
			im.TalosVersion = tag
		}
	}
	if n := v1.ClusterConfig.ClusterNetwork; n != nil {
		im.PodSubnets, im.ServiceSubnets = prefixes(n.PodSubnet), prefixes(n.ServiceSubnet)
	}
	return im, nil
}

func prefixes(in []string) []netip.Prefix {
	var out []netip.Prefix
	for _, s := range in {
		if p, err := netip.ParsePrefix(s); err == nil {
			out = append(out, p)
		}
	}
	return out
}

// tokenShape is that of kubeadm and trustd tokens.
var tokenShape = regexp.MustCompile(`^[a-z0-9]{6}\.[a-z0-9]{16}$`)

// checkedBundle encodes a bundle that has everything a control plane needs.
func checkedBundle(b *secrets.Bundle) ([]byte, error) {
	if err := b.Validate(); err != nil {
		return nil, errors.New(flatten(err))
	}
	if !tokenShape.MatchString(b.Secrets.BootstrapToken) {
		return nil, errors.New("secrets.bootstraptoken is not a token of the form abcdef.0123456789abcdef")
	}
	out, err := yaml.Marshal(b)
	if err != nil {
		return nil, fmt.Errorf("encoding the bundle: %w", err)
	}
	return out, nil
}

// loadBundle reads a stored bundle. Certificates that it signs begin backdated.
func loadBundle(s *inventory.Secrets) (*secrets.Bundle, error) {
	b := &secrets.Bundle{}
	if err := yaml.Unmarshal(s.Bundle, b); err != nil {
		return nil, fmt.Errorf("reading the secrets of cluster %s: %s", s.Cluster, flatten(err))
	}
	if err := b.Validate(); err != nil {
		return nil, fmt.Errorf("reading the secrets of cluster %s: %s", s.Cluster, flatten(err))
	}
	b.Clock = secrets.NewFixedClock(time.Now().Add(-backdate))
	return b, nil
}

// errorList is the heading that machinery's multi-errors begin with.
var errorList = regexp.MustCompile(`\d+ errors? occurred: \* `)

// flatten writes the errors that machinery gathers as one line, without the values
// that they quote.
func flatten(err error) string {
	s := errorList.ReplaceAllString(strings.Join(strings.Fields(withoutValues(err.Error())), " "), "")
	return strings.ReplaceAll(s, " * ", "; ")
}
