package talos

import (
	"bytes"
	"fmt"

	"github.com/siderolabs/talos/pkg/machinery/config/config"
	"github.com/siderolabs/talos/pkg/machinery/config/configloader"
	"github.com/siderolabs/talos/pkg/machinery/config/container"
	"github.com/siderolabs/talos/pkg/machinery/config/encoder"
	"github.com/siderolabs/talos/pkg/machinery/config/generate"
	"github.com/siderolabs/talos/pkg/machinery/config/machine"
	"github.com/siderolabs/talos/pkg/machinery/config/types/v1alpha1"
	"go.yaml.in/yaml/v4"

	"github.com/provisiond/provisiond/internal/inventory"
)

// base is the v1alpha1 document: large, full of keys, and the same for all
// machines of a role that install alike.
type base struct {
	config *v1alpha1.Config // read back from bytes; never modified
	bytes  []byte
}

// target is where and what a machine installs.
type target struct {
	disk     string
	selector map[string]string
	image    string
}

func targetOf(m *inventory.Machine, c *inventory.Cluster, rel release) target {
	t := target{m.Install.Disk, m.Install.DiskSelector, m.Install.Image}
	if t.disk == "" && len(t.selector) == 0 {
		t.disk, t.selector = c.Install.Disk, c.Install.DiskSelector
	}
	if t.image == "" && m.Image == "" { // a machine with another release needs that one's installer
		t.image = c.Install.Image
	}
	if t.image == "" {
		t.image = rel.installer()
	}
	return t
}

// network is the prefix that nodes have their address in; empty: it is not known.
func (in Input) network() string {
	if in.Subnet == nil {
		return ""
	}
	return in.Subnet.Prefix.String()
}

// base returns the shared document from the cache, or makes it.
func (r *Renderer) base(in Input, rel release, layers []layer) (*base, error) {
	c, t := in.Cluster, targetOf(in.Machine, in.Cluster, rel)
	network := in.network()
	var texts []string
	for _, l := range layers {
		if len(l.main) > 0 {
			texts = append(texts, l.text)
		}
	}
	key := digest(c.Name, c.Endpoint, c.KubernetesVersion, c.PodSubnets, c.ServiceSubnets, in.Secrets.Bundle,
		in.Machine.Role, rel.version, t.disk, t.selector, t.image, network, texts)
	if b, ok := r.bases.get(key); ok {
		return b, nil
	}
	v, err, _ := r.flight.Do("base "+key, func() (any, error) {
		if b, ok := r.bases.get(key); ok {
			return b, nil
		}
		b, err := newBase(in, rel, t, network, layers)
		if err != nil {
			return nil, err
		}
		r.bases.put(key, b)
		return b, nil
	})
	if err != nil {
		return nil, err
	}
	return v.(*base), nil
}

func newBase(in Input, rel release, t target, network string, layers []layer) (*base, error) {
	cfg, err := generated(in, rel, t)
	if err != nil {
		return nil, err
	}
	own := identity(cfg) // before the merges: cfg's copies share its endpoint
	docs, err := apply([]config.Document{cfg}, layers, func(p *patch) []config.Document { return p.main })
	if err != nil {
		return nil, err
	}
	if len(docs) != 1 {
		return nil, fail("config", "delete keys, not the whole document", "no v1alpha1 document is left")
	}
	cfg = docs[0].(*v1alpha1.Config)
	fill(cfg, in.Machine.Role, network)

	text, err := container.NewV1Alpha1(cfg).EncodeBytes(encoder.WithComments(encoder.CommentsDisabled))
	if err != nil {
		return nil, fail("config", "", "%v", err)
	}
	loaded, err := configloader.NewFromBytes(text)
	if err != nil {
		return nil, fail("config", "", "%s", flatten(err))
	}
	if cfg = loaded.RawV1Alpha1(); cfg == nil {
		return nil, fail("config", "", "no v1alpha1 document is left")
	}
	if err := checkMain(cfg, in.Machine.Role, rel); err != nil {
		return nil, err
	}
	if err := checkIdentity(own, cfg); err != nil {
		return nil, err
	}
	if err := checkText(text); err != nil {
		return nil, err
	}
	return &base{cfg, text}, nil
}

// generated is the v1alpha1 document before any patch.
func generated(in Input, rel release, t target) (*v1alpha1.Config, error) {
	bundle, err := loadBundle(in.Secrets)
	if err != nil {
		return nil, err
	}
	c := in.Cluster
	input, err := generate.NewInput(c.Name, c.Endpoint, c.KubernetesVersion,
		generate.WithVersionContract(rel.contract),
		generate.WithSecretsBundle(bundle),
		generate.WithInstallDisk(t.disk),
		generate.WithInstallImage(t.image),
		generate.WithClusterDiscovery(false)) // its service is on the Internet; a patch may switch it on
	if err != nil {
		return nil, fmt.Errorf("generating the config of %s: %w", in.Machine.Name, err)
	}
	// NewInput takes IPv6 networks only when the endpoint is a bare IPv6 address.
	input.PodNet, input.ServiceNet = nil, nil
	for _, p := range c.PodSubnets {
		input.PodNet = append(input.PodNet, p.String())
	}
	for _, p := range c.ServiceSubnets {
		input.ServiceNet = append(input.ServiceNet, p.String())
	}
	kind := machine.TypeWorker
	if in.Machine.Role == inventory.ControlPlane {
		kind = machine.TypeControlPlane
	}
	p, err := input.Config(kind)
	if err != nil {
		return nil, fmt.Errorf("generating the config of %s: %w", in.Machine.Name, err)
	}
	cfg := p.RawV1Alpha1() // the generated HostnameConfig is replaced by the machine's own
	if cfg.MachineConfig.MachineInstall.InstallDiskSelector, err = diskSelector(t.selector); err != nil {
		return nil, err
	}
	return cfg, nil
}

// diskSelector reads a selector as Talos would, refusing unknown keys.
func diskSelector(want map[string]string) (*v1alpha1.InstallDiskSelector, error) {
	if len(want) == 0 {
		return nil, nil
	}
	text, err := yaml.Marshal(want)
	if err != nil {
		return nil, fmt.Errorf("encoding the disk selector: %w", err)
	}
	var s v1alpha1.InstallDiskSelector
	dec := yaml.NewDecoder(bytes.NewReader(text))
	dec.KnownFields(true)
	if err := dec.Decode(&s); err != nil {
		return nil, fail("machine.install.diskSelector", "size, model, serial, modalias, uuid, wwid, type or busPath", "%s", flatten(err))
	}
	return &s, nil
}

// fill adds what no patch has said. Lists are filled last, not first: a merge
// would append to ours, and a patch that names another node network must win.
func fill(cfg *v1alpha1.Config, role inventory.Role, network string) {
	if network == "" || cfg.MachineConfig == nil || cfg.ClusterConfig == nil {
		return
	}
	// A machine may have SLAAC, DHCPv6 and other addresses; kubelet and etcd
	// must take the one that is known here.
	if k := cfg.MachineConfig.MachineKubelet; k != nil {
		if k.KubeletNodeIP == nil {
			k.KubeletNodeIP = &v1alpha1.KubeletNodeIPConfig{}
		}
		if len(k.KubeletNodeIP.KubeletNodeIPValidSubnets) == 0 {
			k.KubeletNodeIP.KubeletNodeIPValidSubnets = []string{network}
		}
	}
	if e := cfg.ClusterConfig.EtcdConfig; e != nil && role == inventory.ControlPlane &&
		len(e.EtcdAdvertisedSubnets) == 0 && e.EtcdSubnet == "" { //nolint:staticcheck // deprecated, yet a patch may set it
		e.EtcdAdvertisedSubnets = []string{network}
	}
}
