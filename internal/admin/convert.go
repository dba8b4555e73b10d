package admin

import (
	"errors"
	"fmt"
	"net/netip"
	"time"

	"github.com/provisiond/provisiond/api"
	"github.com/provisiond/provisiond/internal/inventory"
)

// machineFrom reads what an operator said of a machine. What may be left out
// comes from old, the machine as it is stored; old is nil for a new one. All
// that is wrong with single fields is reported at once.
func machineFrom(spec api.MachineSpec, old *inventory.Machine) (*inventory.Machine, error) {
	m := &inventory.Machine{
		Name:       spec.Name,
		Cluster:    spec.Cluster,
		Role:       inventory.Role(spec.Role),
		Subnet:     spec.Subnet,
		Install:    inventory.InstallTarget(spec.Install),
		Image:      spec.Image,
		Boot:       inventory.Way(spec.Boot),
		SecureBoot: inventory.Switch(spec.SecureBoot),
		Addressing: inventory.Addressing(spec.Addressing), Approval: inventory.Approval(spec.Approval),
		Patches:    spec.Patches,
		KernelArgs: spec.KernelArgs,
		Labels:     spec.Labels,
	}
	var errs []error
	for i, s := range spec.MACs {
		mac, err := inventory.ParseMAC(s)
		if err != nil {
			errs = append(errs, badField(fmt.Sprintf("macs[%d]", i), "", "%v", err))
		}
		m.MACs = append(m.MACs, mac)
	}
	if spec.Address != "" {
		var err error
		if m.Address, err = netip.ParseAddr(spec.Address); err != nil {
			errs = append(errs, badField("address", "a bare address such as 2001:db8::11", "%q is not an IPv6 address", spec.Address))
		}
	}
	if _, err := inventory.ParseMAC(spec.Name); err == nil && old == nil {
		errs = append(errs, badField("name", "a name such as cp-1; the MAC goes into macs", "%s is a MAC address, and would be looked up as one", spec.Name))
	}
	if spec.Name == "watch" && old == nil {
		errs = append(errs, badField("name", "another name", "machines/watch of the API is not a machine"))
	}
	if old != nil {
		m.Created, m.Rev = old.Created, old.Rev
		if !m.Address.IsValid() {
			m.Address = old.Address // a machine has one stable address
		}
	}
	if len(errs) == 0 {
		errs = append(errs, m.Normalize(), m.Validate(), m.CheckLabelLines())
	}
	return m, errors.Join(errs...)
}

// specOfMachine is the inverse of machineFrom.
func specOfMachine(m *inventory.Machine) api.MachineSpec {
	spec := api.MachineSpec{
		Name:       m.Name,
		MACs:       make([]string, len(m.MACs)),
		Cluster:    m.Cluster,
		Role:       string(m.Role),
		Address:    text(m.Address),
		Subnet:     m.Subnet,
		Install:    api.Install(m.Install),
		Image:      m.Image,
		Boot:       string(m.Boot),
		SecureBoot: string(m.SecureBoot),
		Addressing: string(m.Addressing), Approval: string(m.Approval),
		Patches:    m.Patches,
		KernelArgs: m.KernelArgs,
		Labels:     m.Labels,
	}
	for i, mac := range m.MACs {
		spec.MACs[i] = string(mac)
	}
	return spec
}

func (s *Server) machineOf(v inventory.View) api.Machine {
	f, plan := &v.Facts, inventory.PlanBoot(v)
	m := api.Machine{
		MachineSpec: specOfMachine(v.Machine),
		Created:     v.Machine.Created,
		Rev:         v.Machine.Rev,
		Phase:       stateOf(s.cfg.Patience.PhaseOf(v, s.cfg.Now())),
		Plan:        api.Plan{Action: string(plan.Action), Reason: plan.Reason, Image: v.Wanted, Imported: v.Image != nil, Way: string(plan.Way), WayReason: plan.WayReason},
		Facts: api.Facts{
			Arch: string(f.Arch), UUID: f.UUID, Serial: f.Serial, SecureBoot: string(f.SecureBoot),
			FirstSeen: f.FirstSeen, LastSeen: f.LastSeen, DeclinedAt: f.DeclinedAt,
			Stage: string(f.Stage), Ready: f.Ready, APIAt: f.APIAt,
			ConfigError: f.ConfigError, ConfigHash: f.ConfigHash, ConfigAt: f.ConfigAt, StagedHash: f.StagedHash,
			Installs: api.Order{Ordered: f.Install.Ordered, Done: f.Install.Done},
			Reimage:  reimageOf(&f.Reimage),
		},
	}
	if i := f.Identified; i.By != "" {
		m.Facts.Identified = &api.Identified{
			By: string(i.By), MAC: string(i.MAC), Client: string(i.Client), Peer: text(i.Peer), Relay: text(i.Relay), Port: i.Port,
		}
	}
	m.Facts.Holds = membershipOf(f.Holds)
	m.Facts.Alarm = f.Alarm()
	m.Facts.Maintenance = maintenanceOf(f.Maintenance)
	if s.cfg.Transfers != nil {
		if t, ok := s.cfg.Transfers.Transfer(v.Machine.Name); ok {
			m.Progress = &api.Progress{Step: t.Step, Sent: t.Sent, Size: t.Size, Since: t.Started.UTC()}
		}
	}
	if b := f.Current(); b != nil {
		boot := bootOf(b)
		m.Facts.Boot = &boot
	}
	return m
}

// membershipOf is nil for what is not known.
func membershipOf(h inventory.Membership) *api.Membership {
	if h.Cluster == "" || h.Guess {
		return nil
	}
	return &api.Membership{Cluster: h.Cluster, Role: string(h.Role), Epoch: h.Epoch}
}

func stateOf(s inventory.State) api.State {
	return api.State{Phase: string(s.Phase), Since: s.Since, Reason: s.Reason, StalledIn: string(s.Stalled)}
}

// bootOf leaves out the boot's token: it opens the machine's config.
func bootOf(b *inventory.Boot) api.Boot {
	out := api.Boot{
		Number: b.Number, MAC: string(b.MAC), Client: string(b.Client), Plan: string(b.Plan), Order: b.Order, Way: string(b.Way), WayReason: b.WayReason, ConfigBy: string(b.ConfigBy),
		Started: b.Started, ConfigFetches: b.ConfigFetches, ConfigTo: text(b.ConfigTo), Alarm: b.Alarm, For: text(b.For), Steps: []api.Step{},
	}
	for _, step := range []struct {
		name string
		at   time.Time
	}{
		{"offered", b.Offered}, {"loader", b.Loader}, {"script", b.Script}, {"kernel", b.Kernel},
		{"initramfs", b.Initramfs}, {"config", b.Config}, {"api", b.API}, {"ready", b.Ready},
	} {
		if step.at.IsZero() {
			continue
		}
		s := api.Step{Step: step.name, At: step.at, Seconds: step.at.Sub(b.Started).Seconds()}
		out.Steps, out.Seconds = append(out.Steps, s), max(out.Seconds, s.Seconds)
	}
	return out
}

// clusterFrom reads what an operator said of a cluster. What was left out and
// has no empty meaning comes from old, the cluster as it is stored: a newer
// provisiond must not upgrade a cluster by its defaults. old may be nil.
func (s *Server) clusterFrom(spec api.ClusterSpec, old *inventory.Cluster) (*inventory.Cluster, error) {
	c := &inventory.Cluster{
		Name:                spec.Name,
		Endpoint:            spec.Endpoint,
		TalosVersion:        spec.TalosVersion,
		KubernetesVersion:   spec.KubernetesVersion,
		Schematic:           spec.Schematic,
		NTP:                 spec.NTP,
		Addressing:          inventory.Addressing(spec.Addressing),
		Delivery:            inventory.Delivery(spec.Delivery),
		Approval:            inventory.Approval(spec.Approval),
		Install:             inventory.InstallTarget(spec.Install),
		Patches:             spec.Patches,
		ControlPlanePatches: spec.ControlPlanePatches,
		WorkerPatches:       spec.WorkerPatches,
		KernelArgs:          spec.KernelArgs,
	}
	var errs []error
	prefixes := func(field string, list []string) (out []netip.Prefix) {
		for i, text := range list {
			p, err := netip.ParsePrefix(text)
			if err != nil {
				errs = append(errs, badField(fmt.Sprintf("%s[%d]", field, i), "a prefix such as fd00:10:244::/56", "%q is not an IPv6 network", text))
			}
			out = append(out, p)
		}
		return out
	}
	c.PodSubnets = prefixes("podSubnets", spec.PodSubnets)
	c.ServiceSubnets = prefixes("serviceSubnets", spec.ServiceSubnets)
	for i, text := range spec.DNS {
		a, err := netip.ParseAddr(text)
		if err != nil {
			errs = append(errs, badField(fmt.Sprintf("dns[%d]", i), "a bare address such as 2001:db8::53", "%q is not an IPv6 address", text))
		}
		c.DNS = append(c.DNS, a)
	}
	if old == nil {
		old = &inventory.Cluster{}
		old.TalosVersion, old.KubernetesVersion, old.PodSubnets, old.ServiceSubnets = s.talos.Defaults()
	}
	c.Created, c.Imported, c.Rev = old.Created, old.Imported, old.Rev
	if c.TalosVersion == "" {
		c.TalosVersion = old.TalosVersion
	}
	if c.KubernetesVersion == "" {
		c.KubernetesVersion = old.KubernetesVersion
	}
	if len(c.PodSubnets) == 0 {
		c.PodSubnets = old.PodSubnets
	}
	if len(c.ServiceSubnets) == 0 {
		c.ServiceSubnets = old.ServiceSubnets
	}
	if len(errs) == 0 {
		errs = append(errs, c.Validate())
	}
	return c, errors.Join(errs...)
}

// specOfCluster is the inverse of clusterFrom.
func specOfCluster(c *inventory.Cluster) api.ClusterSpec {
	return api.ClusterSpec{
		Name:                c.Name,
		Endpoint:            c.Endpoint,
		TalosVersion:        c.TalosVersion,
		KubernetesVersion:   c.KubernetesVersion,
		Schematic:           c.Schematic,
		PodSubnets:          texts(c.PodSubnets),
		ServiceSubnets:      texts(c.ServiceSubnets),
		DNS:                 texts(c.DNS),
		NTP:                 c.NTP,
		Addressing:          string(c.Addressing),
		Delivery:            string(c.Delivery),
		Approval:            string(c.Approval),
		Install:             api.Install(c.Install),
		Patches:             c.Patches,
		ControlPlanePatches: c.ControlPlanePatches,
		WorkerPatches:       c.WorkerPatches,
		KernelArgs:          c.KernelArgs,
	}
}

func clusterOf(c *inventory.Cluster, b *inventory.Bootstrap) api.Cluster {
	return api.Cluster{ClusterSpec: specOfCluster(c), Created: c.Created, Imported: c.Imported, Rev: c.Rev, Bootstrap: bootstrapOf(b)}
}

func bootstrapOf(b *inventory.Bootstrap) api.Bootstrap {
	if b == nil {
		return api.Bootstrap{State: "waiting"}
	}
	out := api.Bootstrap{
		State: "waiting", Epoch: b.Epoch, Old: b.Old, Machine: b.Machine, ClaimedAt: b.ClaimedAt, CalledAt: b.CalledAt,
		DoneAt: b.DoneAt, Attempts: b.Attempts, Reason: b.Reason,
	}
	switch {
	case b.Done():
		out.State = "done"
	case b.Called():
		out.State = "called"
	case b.Claimed():
		out.State = "claimed"
	}
	return out
}

func imageOf(i *inventory.Image, uses map[string]*api.ImageUse) api.Image {
	img := api.Image{
		ID: i.ID(), Version: i.Version, Schematic: i.Schematic, Arch: string(i.Arch),
		Kernel: api.Blob(i.Kernel), Initramfs: api.Blob(i.Initramfs), Created: i.Created,
		UKI: blobOf(i.UKI), Stub: blobOf(i.Stub), Signed: blobOf(i.Signed),
	}
	if use := uses[img.ID]; use != nil {
		img.Use = *use
	}
	return img
}

// blobOf is nil for a file that an image does not have.
func blobOf(b inventory.Blob) *api.Blob {
	if b.SHA256 == "" {
		return nil
	}
	out := api.Blob(b)
	return &out
}

func strangerOf(st inventory.Stranger, code string, s *inventory.Suggestion) api.Stranger {
	return api.Stranger{
		Code: code, MAC: string(st.MAC), UUID: st.UUID, Arch: string(st.Arch), Client: string(st.Client), Relay: text(st.Relay),
		Port: st.Port, Subnet: st.Subnet, Address: text(st.Address), Fingerprint: st.Fingerprint, FirstSeen: st.FirstSeen, LastSeen: st.LastSeen,
		Suggestion: api.Suggestion{Name: s.Name, Subnet: s.Subnet, Address: text(s.Address)},
	}
}

func eventOf(e inventory.Event) api.Event {
	return api.Event{
		ID: e.ID, Time: e.Time, Kind: string(e.Kind), MAC: string(e.MAC), Machine: e.Machine, Cluster: e.Cluster,
		Boot: e.Boot, Message: e.Message, Client: string(e.Client), Arch: string(e.Arch), Source: string(e.Source),
		UUID: e.UUID, Serial: e.Serial, Peer: text(e.Peer), Relay: text(e.Relay), Port: e.Port, Subnet: e.Subnet, Plan: string(e.Plan),
		Hash: e.Hash, Stage: string(e.Stage), Ready: e.Ready, Error: e.Error,
	}
}

// text is an address as a string, empty for none.
func text(a netip.Addr) string {
	if !a.IsValid() {
		return ""
	}
	return a.String()
}

func texts[T fmt.Stringer](list []T) []string {
	var out []string
	for _, v := range list {
		out = append(out, v.String())
	}
	return out
}
