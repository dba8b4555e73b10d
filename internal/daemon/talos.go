package daemon

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"sync"
	"time"

	"github.com/provisiond/provisiond/api"
	"github.com/provisiond/provisiond/internal/admin"
	"github.com/provisiond/provisiond/internal/bootstrap"
	"github.com/provisiond/provisiond/internal/httpconfig"
	"github.com/provisiond/provisiond/internal/inventory"
	"github.com/provisiond/provisiond/internal/monitor"
	"github.com/provisiond/provisiond/internal/seed"
	"github.com/provisiond/provisiond/internal/talos"
)

// configs renders machine configs and kernel lines out of the inventory: for
// the rack (httpconfig) and for operators (admin).
type configs struct {
	keeper   *inventory.Keeper
	renderer *talos.Renderer
	made     made
}

// made remembers the config of each machine by the revisions of what it was
// made of, so that a fetch compares two numbers. The other ingredients do not
// change, as secrets, which are made with their cluster, or have it forgotten, as
// subnets.
type made struct {
	mu    sync.RWMutex
	m     map[string]madeConfig // by machine name
	epoch uint64                // moves when all were forgotten
}

type madeConfig struct {
	machine, cluster uint64
	config           *talos.Config
}

// maxMade bounds the memory: about 1 KB for each machine that is booting, the
// large part of a config being shared. Reaching it starts anew.
const maxMade = 1 << 16

// get returns the config, nil if it has to be made, and the epoch to put it in.
func (m *made) get(v inventory.View) (c *talos.Config, epoch uint64) {
	m.mu.RLock()
	defer m.mu.RUnlock()
	if c, ok := m.m[v.Machine.Name]; ok && c.machine == v.Machine.Rev && c.cluster == v.Cluster.Rev {
		return c.config, m.epoch
	}
	return nil, m.epoch
}

func (m *made) put(v inventory.View, c *talos.Config, epoch uint64) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if epoch != m.epoch {
		return // it was made of what is gone
	}
	if m.m == nil || len(m.m) >= maxMade {
		m.m = map[string]madeConfig{}
	}
	m.m[v.Machine.Name] = madeConfig{v.Machine.Rev, v.Cluster.Rev, c}
}

// forget is for when a subnet changed.
func (m *made) forget() {
	m.mu.Lock()
	defer m.mu.Unlock()
	clear(m.m)
	m.epoch++
}

func newConfigs(keeper *inventory.Keeper, o talos.Options) *configs {
	return &configs{keeper: keeper, renderer: talos.NewRenderer(o)}
}

// talosOptions is what every machine is told.
func talosOptions(cfg *Config, at Addrs, trusted []byte) talos.Options {
	o := talos.Options{EventSink: at.Events, KernelLog: cfg.KernelLog, TrustedRoots: string(trusted)}
	if o.KernelLog == "" && at.KernelLog.IsValid() {
		o.KernelLog = "tcp://" + at.KernelLog.String() + "/"
	}
	return o
}

// Defaults implements admin.Talos.
func (c *configs) Defaults() (talosVersion, kubernetesVersion string, pods, services []netip.Prefix) {
	return talos.Defaults()
}

// NewSecrets implements admin.Talos.
func (c *configs) NewSecrets(talosVersion string) ([]byte, error) {
	return talos.NewSecrets(talosVersion)
}

// Import implements admin.Talos.
func (c *configs) Import(yaml []byte) (admin.ImportedCluster, error) {
	i, err := talos.ImportSecrets(yaml)
	return admin.ImportedCluster{
		Secrets: i.Bundle, Name: i.Name, Endpoint: i.Endpoint, TalosVersion: i.TalosVersion, KubernetesVersion: i.KubernetesVersion,
		PodSubnets: i.PodSubnets, ServiceSubnets: i.ServiceSubnets,
	}, err
}

// Check implements admin.Talos: a config that would be refused on the machine
// is refused here, before anything is stored.
func (c *configs) Check(ctx context.Context, cl *inventory.Cluster, secrets []byte, m *inventory.Machine) error {
	s := &inventory.Secrets{Cluster: cl.Name, Bundle: secrets}
	if secrets == nil {
		var err error
		if s, err = c.keeper.Secrets(ctx, cl.Name); err != nil {
			return err
		}
	}
	if m != nil {
		_, err := c.try(cl, s, m.Clone())
		return err
	}
	for _, role := range []inventory.Role{inventory.ControlPlane, inventory.Worker} {
		sample := &inventory.Machine{Name: "sample", MACs: []inventory.MAC{"02:00:00:00:00:01"}, Cluster: cl.Name, Role: role}
		if cl.Install.Disk == "" && len(cl.Install.DiskSelector) == 0 {
			sample.Install.Disk = "/dev/sda" // each machine will have to name its own
		}
		if _, err := c.try(cl, s, sample); err != nil {
			return err
		}
	}
	return nil
}

// Preview implements admin.Talos. What might become is at no revision, so that it is
// not among what was made.
func (c *configs) Preview(ctx context.Context, cl *inventory.Cluster, m *inventory.Machine) ([]byte, error) {
	s, err := c.keeper.Secrets(ctx, cl.Name)
	if err != nil {
		return nil, err
	}
	cfg, err := c.try(cl, s, m.Clone())
	if err != nil {
		return nil, err
	}
	return talos.Redact(cfg.Bytes())
}

// try renders m, which it may change, as it is now or might become.
func (c *configs) try(cl *inventory.Cluster, s *inventory.Secrets, m *inventory.Machine) (*talos.Config, error) {
	if len(m.MACs) > 0 {
		if err := m.Normalize(); err != nil {
			return nil, err
		}
	}
	if !m.Address.IsValid() {
		subnets := c.keeper.Subnets()
		m.Address = subnets[0].Prefix.Addr().Next()
		for i := range subnets {
			if subnets[i].Name == m.Subnet {
				m.Address = subnets[i].Prefix.Addr().Next()
			}
		}
	}
	return c.renderer.Render(talos.Input{Machine: m, Cluster: cl, Secrets: s, Subnet: c.keeper.SubnetOf(m.Address)})
}

// config renders what a machine would get now.
func (c *configs) config(ctx context.Context, v inventory.View) (*talos.Config, error) {
	if v.Machine == nil || v.Cluster == nil {
		return nil, fmt.Errorf("%s: %w", inventory.PlanBoot(v).Reason, inventory.ErrRefused)
	}
	cfg, epoch := c.made.get(v)
	if cfg != nil {
		return cfg, nil
	}
	in, err := c.input(ctx, v)
	if err != nil {
		return nil, err
	}
	cfg, err = c.renderer.Render(in)
	if err == nil {
		c.made.put(v, cfg, epoch)
	}
	return cfg, err
}

// input is what the config of a machine is made of.
func (c *configs) input(ctx context.Context, v inventory.View) (talos.Input, error) {
	s, err := c.keeper.Secrets(ctx, v.Cluster.Name)
	return talos.Input{Machine: v.Machine, Cluster: v.Cluster, Secrets: s, Subnet: c.keeper.SubnetOf(v.Machine.Address)}, err
}

// keep remembers, redacted, what is about to be served, so that it can be
// compared with later.
func (c *configs) keep(ctx context.Context, machine string, cfg *talos.Config) error {
	if old, err := c.keeper.RenderedBy(ctx, machine); err == nil && len(old.Versions) > 0 && old.Versions[0].Hash == cfg.Hash {
		return nil
	}
	text, err := talos.Redact(cfg.Bytes())
	if err != nil {
		return err
	}
	return c.keeper.KeepRendered(ctx, machine, inventory.RenderedVersion{Hash: cfg.Hash, At: time.Now().UTC(), Text: text})
}

// Render implements admin.Talos.
func (c *configs) Render(ctx context.Context, v inventory.View, redact bool) ([]byte, error) {
	cfg, err := c.config(ctx, v)
	if err != nil {
		return nil, err
	}
	if redact {
		return talos.Redact(cfg.Bytes())
	}
	err = c.keeper.Log(ctx, inventory.Event{Kind: inventory.SecretsRead, Machine: v.Machine.Name, Message: "its config was read with its secrets"})
	return cfg.Bytes(), err
}

// Origins implements admin.Talos.
func (c *configs) Origins(ctx context.Context, v inventory.View) ([]api.ConfigBlock, error) {
	in, err := c.input(ctx, v)
	if err != nil {
		return nil, err
	}
	blocks, err := c.renderer.Origins(in)
	if err != nil {
		return nil, err
	}
	out := make([]api.ConfigBlock, len(blocks))
	for i, b := range blocks {
		out[i] = api.ConfigBlock{Text: b.Text, Origin: string(b.Origin)}
		if b.Origin != talos.FromBase {
			out[i].Patch = &b.Patch
		}
	}
	return out, nil
}

// LastServed implements admin.Talos.
func (c *configs) LastServed(ctx context.Context, name string) (text []byte, hash string, at time.Time, err error) {
	v, err := c.keeper.Machine(ctx, name)
	if err != nil {
		return nil, "", time.Time{}, err
	}
	kept, err := c.keeper.RenderedBy(ctx, v.Machine.Name)
	if err != nil && !errors.Is(err, inventory.ErrNotFound) {
		return nil, "", time.Time{}, err
	}
	for _, k := range kept.Versions {
		if k.Hash == v.Facts.ConfigHash {
			return k.Text, k.Hash, v.Facts.ConfigAt, nil
		}
	}
	return nil, "", time.Time{}, fmt.Errorf("config of %s: none was served yet: %w", v.Machine.Name, inventory.ErrNotFound)
}

// Talosconfig implements admin.Talos.
func (c *configs) Talosconfig(ctx context.Context, cluster string) ([]byte, error) {
	cl, s, err := c.secretsOf(ctx, cluster, "talosconfig")
	if err != nil {
		return nil, err
	}
	names, err := c.keeper.Members(ctx, cluster, inventory.ControlPlane)
	if err != nil {
		return nil, err
	}
	var endpoints []netip.Addr
	for _, name := range names {
		v, err := c.keeper.Machine(ctx, name)
		if errors.Is(err, inventory.ErrNotFound) {
			continue
		} else if err != nil {
			return nil, err
		}
		endpoints = append(endpoints, v.Machine.Address)
	}
	return talos.Talosconfig(cl, s, endpoints)
}

// Kubeconfig implements admin.Talos.
func (c *configs) Kubeconfig(ctx context.Context, cluster string) ([]byte, error) {
	cl, s, err := c.secretsOf(ctx, cluster, "kubeconfig")
	if err != nil {
		return nil, err
	}
	return talos.Kubeconfig(cl, s)
}

// secretsOf hands out a cluster's secrets for a purpose, which is logged first.
func (c *configs) secretsOf(ctx context.Context, cluster, what string) (*inventory.Cluster, *inventory.Secrets, error) {
	cl, _, err := c.keeper.Cluster(ctx, cluster)
	if err != nil {
		return nil, nil, err
	}
	s, err := c.keeper.Secrets(ctx, cluster)
	if err != nil {
		return nil, nil, err
	}
	return cl, s, c.keeper.Log(ctx, inventory.Event{Kind: inventory.SecretsRead, Cluster: cluster, Message: "its " + what + " was read"})
}

// machineAPI lets bootstrap and monitor look at machines through the Talos API.
type machineAPI struct{ client *talos.Client }

// Status implements monitor.Talos.
func (a machineAPI) Status(ctx context.Context, cl *inventory.Cluster, s *inventory.Secrets, addr netip.Addr) (monitor.Status, error) {
	st, err := a.client.Status(ctx, cl, s, addr)
	return monitor.Status{Stage: st.Stage, Ready: st.Ready, SecureBoot: st.SecureBoot}, err
}

// Probe implements bootstrap.Talos.
func (a machineAPI) Probe(ctx context.Context, cl *inventory.Cluster, s *inventory.Secrets, addr netip.Addr) bootstrap.Probe {
	st, err := a.client.Status(ctx, cl, s, addr)
	if err != nil {
		return bootstrap.Probe{Err: err.Error(), Foreign: errors.Is(err, talos.ErrForeignCA)}
	}
	p := bootstrap.Probe{Answered: true, Stage: st.Stage, Ready: st.Ready}
	switch st.Etcd {
	case talos.EtcdWaiting:
		p.Etcd = bootstrap.EtcdWaiting
	case talos.EtcdRunning:
		p.Etcd = bootstrap.EtcdRunning
	}
	return p
}

// Bootstrap implements bootstrap.Talos.
func (a machineAPI) Bootstrap(ctx context.Context, cl *inventory.Cluster, s *inventory.Secrets, addr netip.Addr) (bootstrap.Outcome, error) {
	outcome, err := a.client.Bootstrap(ctx, cl, s, addr)
	switch outcome {
	case talos.Accepted:
		return bootstrap.Accepted, err
	case talos.AlreadyBootstrapped:
		return bootstrap.Already, err
	case talos.NotYet:
		return bootstrap.NotYet, err
	case talos.WrongMachine:
		return bootstrap.WrongMachine, err
	case talos.Denied:
		return bootstrap.Denied, err
	}
	return bootstrap.Unknown, err
}

// reports feeds the event sink into the inventory.
type reports struct{ keeper *inventory.Keeper }

// Record implements talos.Recorder.
func (r reports) Record(ctx context.Context, e inventory.Event) error {
	_, err := r.keeper.Record(ctx, e)
	return err
}

// MachineByAddress implements talos.Resolver.
func (r reports) MachineByAddress(ctx context.Context, a netip.Addr) (string, inventory.MAC, bool) {
	v, err := r.keeper.MachineByAddress(ctx, a)
	if err != nil || v.Machine == nil {
		return "", "", false
	}
	return v.Machine.Name, v.Machine.BootMAC(), true
}

// MachineByName implements talos.Resolver.
func (r reports) MachineByName(ctx context.Context, name string) (inventory.MAC, bool) {
	v, err := r.keeper.Machine(ctx, name)
	if err != nil {
		return "", false
	}
	return v.Machine.BootMAC(), true
}

// rackConfigs is configs as machines see them.
type rackConfigs struct{ *configs }

// Config implements httpconfig.Configs.
func (c rackConfigs) Config(ctx context.Context, v inventory.View) (httpconfig.MachineConfig, error) {
	cfg, err := c.config(ctx, v)
	if err != nil {
		return httpconfig.MachineConfig{}, err
	}
	return httpconfig.MachineConfig{Parts: cfg.Parts, Hash: cfg.Hash, Size: cfg.Size}, nil
}

// KernelLine implements httpconfig.Configs. It is asked when a boot script goes
// out, which is when the config that the boot will fetch is put aside for a
// later comparison: off the path of the fetch itself.
func (c rackConfigs) KernelLine(ctx context.Context, v inventory.View, at httpconfig.ConfigURLs) (string, error) {
	cfg, err := c.config(ctx, v)
	if err != nil {
		return "", err
	}
	if err := c.keep(ctx, v.Machine.Name, cfg); err != nil {
		return "", err
	}
	return c.renderer.KernelLine(talos.KernelInput{
		Machine: v.Machine, Cluster: v.Cluster, Subnet: c.keeper.SubnetOf(v.Machine.Address), Arch: v.Image.Arch, SecureBoot: v.HasSecureBoot(),
		ConfigURL: at.Config, DeviceURL: at.Device, TokenURL: at.Token,
	})
}

// Seed implements httpconfig.Configs. As with the kernel line, the config is put aside.
func (c rackConfigs) Seed(ctx context.Context, v inventory.View) (seed.Machine, error) {
	cfg, err := c.config(ctx, v)
	if err != nil {
		return seed.Machine{}, err
	}
	if err := c.keep(ctx, v.Machine.Name, cfg); err != nil {
		return seed.Machine{}, err
	}
	n, err := talos.NetworkOf(v.Machine, v.Cluster, c.keeper.SubnetOf(v.Machine.Address))
	return seed.Machine{
		Name: v.Machine.Name, Instance: fmt.Sprintf("%s-order-%d", v.Machine.Name, v.Facts.Install.Ordered), MAC: v.Machine.BootMAC().Bytes(),
		DHCPv6: n.DHCPv6, Address: n.Address, Gateway: n.Gateway, Nameservers: n.Nameservers,
	}, err
}

// CheckPatches implements admin.Talos.
func (c *configs) CheckPatches(patches []string) error { return talos.CheckPatches(patches) }

// CheckVersion implements admin.Talos.
func (c *configs) CheckVersion(version string) error { return talos.CheckVersion(version) }
