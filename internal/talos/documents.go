package talos

import (
	"net/netip"
	"net/url"

	"github.com/siderolabs/talos/pkg/machinery/config/config"
	"github.com/siderolabs/talos/pkg/machinery/config/types/network"
	"github.com/siderolabs/talos/pkg/machinery/config/types/runtime"
	"github.com/siderolabs/talos/pkg/machinery/nethelpers"

	"github.com/provisiond/provisiond/internal/inventory"
)

// altName is the name that Talos' udev rules give a NIC by its permanent MAC
// (hack/udevd/99-default.link, AlternativeNamesPolicy=mac). It needs no
// knowledge of kernel names; every part of Talos takes it.
func altName(mac inventory.MAC) string { return "enx" + mac.Plain() }

// addressing is how the machine gets its address: its own word, its cluster's,
// or static.
func addressing(m *inventory.Machine, c *inventory.Cluster) inventory.Addressing {
	switch {
	case m.Addressing != "":
		return m.Addressing
	case c.Addressing != "":
		return c.Addressing
	}
	return inventory.Static
}

// link is the NIC with its address, and the DHCPv6 client where wanted. A
// LinkConfig is needed with DHCPv6, too: any such document stops Talos from
// bringing up links by itself.
func link(m *inventory.Machine, c *inventory.Cluster, s *inventory.Subnet) ([]config.Document, error) {
	nic := network.NewLinkConfigV1Alpha1(altName(m.BootMAC()))
	if addressing(m, c) == inventory.DHCPv6 {
		return []config.Document{nic, network.NewDHCPv6ConfigV1Alpha1(nic.MetaName)}, nil
	}
	if err := onLink(m, s); err != nil {
		return nil, err
	}
	nic.LinkAddresses = []network.AddressConfig{{AddressAddress: netip.PrefixFrom(m.Address, s.Prefix.Bits())}}
	if s.Gateway.IsValid() {
		nic.LinkRoutes = []network.RouteConfig{{RouteGateway: network.Addr{Addr: s.Gateway}}}
	}
	return []config.Document{nic}, nil
}

// onLink checks that a static address can be written down.
func onLink(m *inventory.Machine, s *inventory.Subnet) error {
	switch {
	case !m.Address.IsValid():
		return fail("machine.address", "give one, or set addressing to dhcpv6", "%s has no address", m.Name)
	case s == nil:
		return fail("machine.address", "an address of a subnet, or addressing dhcpv6", "%s lies in no subnet", m.Address)
	case !s.Prefix.Contains(m.Address):
		return fail("machine.address", "an address of "+s.Prefix.String(), "%s is outside subnet %s", m.Address, s.Name)
	}
	return nil
}

// machineDocuments are all documents but v1alpha1, with every patch applied.
func (r *Renderer) machineDocuments(in Input, layers []layer) ([]config.Document, error) {
	docs, err := r.ownDocuments(in)
	if err != nil {
		return nil, err
	}
	docs, err = apply(docs, layers, func(p *patch) []config.Document { return p.others })
	if err != nil {
		return nil, err
	}
	return fillDocuments(docs, in), nil
}

// ownDocuments are all documents but v1alpha1 before any patch. Nothing of the
// kernel line survives the config, so all of it is said again.
func (r *Renderer) ownDocuments(in Input) ([]config.Document, error) {
	docs, err := link(in.Machine, in.Cluster, in.Subnet)
	if err != nil {
		return nil, err
	}
	hostname := network.NewHostnameConfigV1Alpha1()
	off := nethelpers.AutoHostnameKindOff
	hostname.ConfigAuto, hostname.ConfigHostname = &off, in.Machine.Name
	docs = append(docs, hostname)
	if r.opts.EventSink.IsValid() {
		sink := runtime.NewEventSinkV1Alpha1()
		sink.Endpoint = r.opts.EventSink.String()
		docs = append(docs, sink)
	}
	if r.opts.KernelLog != "" {
		u, err := url.Parse(r.opts.KernelLog)
		if err != nil {
			return nil, fail("kernelLog", "tcp://[2001:db8::5]:514", "%v", err)
		}
		kmsg := runtime.NewKmsgLogV1Alpha1()
		kmsg.MetaName, kmsg.KmsgLogURL.URL = "provisiond", u
		docs = append(docs, kmsg)
	}
	return docs, nil
}

// fillDocuments adds what no patch has said: lists last, for the reason given at
// fill.
func fillDocuments(docs []config.Document, in Input) []config.Document {
	if !has[*network.ResolverConfigV1Alpha1](docs) {
		docs = append(docs, resolver(in.Cluster, in.Subnet)...)
	}
	if !has[*network.TimeSyncConfigV1Alpha1](docs) {
		docs = append(docs, timeSync(in.Cluster, in.Subnet)...)
	}
	return docs
}

func has[D config.Document](docs []config.Document) bool {
	for _, d := range docs {
		if _, ok := d.(D); ok {
			return true
		}
	}
	return false
}

// nameservers are the cluster's, or else the subnet's.
func nameservers(c *inventory.Cluster, s *inventory.Subnet) []netip.Addr {
	if len(c.DNS) == 0 && s != nil {
		return s.DNS
	}
	return c.DNS
}

// timeServers are the cluster's, or else the subnet's.
func timeServers(c *inventory.Cluster, s *inventory.Subnet) []string {
	if len(c.NTP) > 0 || s == nil {
		return c.NTP
	}
	var out []string
	for _, a := range s.NTP {
		if !a.IsMulticast() { // Talos asks servers
			out = append(out, a.String())
		}
	}
	return append(out, s.NTPNames...)
}

func resolver(c *inventory.Cluster, s *inventory.Subnet) []config.Document {
	d := network.NewResolverConfigV1Alpha1()
	for _, a := range nameservers(c, s) {
		d.ResolverNameservers = append(d.ResolverNameservers, network.NameserverConfig{Address: network.Addr{Addr: a}})
	}
	if s != nil {
		d.ResolverSearchDomains.SearchDomains = s.Domains
	}
	if len(d.ResolverNameservers) == 0 && len(d.ResolverSearchDomains.SearchDomains) == 0 {
		return nil
	}
	return []config.Document{d}
}

func timeSync(c *inventory.Cluster, s *inventory.Subnet) []config.Document {
	servers := timeServers(c, s)
	if len(servers) == 0 {
		return nil
	}
	d := network.NewTimeSyncConfigV1Alpha1()
	d.TimeNTP = &network.NTPConfig{Servers: servers}
	return []config.Document{d}
}

// warn says what works only where the Internet is reachable.
func warn(docs []config.Document) []string {
	var out []string
	if !has[*network.ResolverConfigV1Alpha1](docs) {
		out = append(out, "no DNS server is set: Talos asks 1.1.1.1 and 8.8.8.8, which an IPv6 network does not reach")
	}
	if !has[*network.TimeSyncConfigV1Alpha1](docs) {
		out = append(out, "no time server is set: Talos asks time.cloudflare.com, and until it is in sync bootstrap is refused")
	}
	return out
}

// Network is how a machine gets its address, before its config as in it.
type Network struct {
	DHCPv6 bool // else Address is set
	// Address has the length of the prefix on its link.
	Address     netip.Prefix
	Gateway     netip.Addr // may be missing, as may Nameservers
	Nameservers []netip.Addr
}

// NetworkOf returns the network of a machine's config. s is nil where no subnet has its
// address, which is an error of a machine that needs one.
func NetworkOf(m *inventory.Machine, c *inventory.Cluster, s *inventory.Subnet) (Network, error) {
	n := Network{Nameservers: nameservers(c, s)}
	if addressing(m, c) == inventory.DHCPv6 {
		n.DHCPv6 = true
		return n, nil
	}
	if err := onLink(m, s); err != nil {
		return Network{}, err
	}
	n.Address, n.Gateway = netip.PrefixFrom(m.Address, s.Prefix.Bits()), s.Gateway
	return n, nil
}
