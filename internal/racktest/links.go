package racktest

import (
	"context"
	"encoding/hex"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/insomniacslk/dhcp/dhcpv6"
	"github.com/insomniacslk/dhcp/iana"
	"github.com/siderolabs/talos/pkg/machinery/config"
)

// links is the network of one run of Talos. It has an address from the kernel
// line, which stays; from the active config, which goes with it; and by SLAAC.
// There is no DHCPv6 unless a config document asks for it.
type links struct {
	*boot
	line     []netip.Addr // ip=
	slaac    []netip.Addr
	platform []netip.Addr // NoCloud's network-config
	config   []netip.Addr // active config
	dhcp     netip.Addr   // kept while the active config still asks for DHCPv6
	hostname string
}

// fromLine applies the ip= arguments. An error in one drops all of them, with a
// warning, as in Talos.
func (l *links) fromLine(line *commandLine) error {
	if p := l.opts.SLAAC; p.IsValid() {
		l.slaac = []netip.Addr{eui64(p, l.MAC())}
	}
	if line == nil {
		return l.take(l.slaac)
	}
	var addrs []netip.Addr
	for _, arg := range line.values["ip"] {
		a, err := parseIP(arg)
		switch {
		case err != nil:
			l.timeline.add(StepConfig, "Talos ignores the network settings of the kernel line: %v", err)
			return l.take(l.slaac)
		case !a.prefix.IsValid():
		case !slices.Contains(l.altnames(), a.device):
			// An empty device is the first by name, dummy0: it goes nowhere.
			l.timeline.add(StepConfig, "ip= names the device %q, and this NIC is %s: no address", a.device, l.altnames()[0])
		default:
			addrs = append(addrs, a.prefix.Addr())
			if a.hostname != "" {
				l.hostname = a.hostname
			}
		}
	}
	l.line = addrs
	return l.take(append(slices.Clone(l.slaac), addrs...))
}

// altnames are the names by which any NIC of the machine can be found: udev's
// altname of the MAC.
func (l *links) altnames() []string {
	var names []string
	for _, mac := range l.opts.MACs {
		names = append(names, "enx"+hex.EncodeToString(mac))
	}
	return names
}

// apply makes cfg the active config, in place of the one before.
func (l *links) apply(ctx context.Context, cfg config.Provider) error {
	names := l.altnames()
	for _, alias := range cfg.NetworkLinkAliasConfigs() {
		if strings.Contains(strings.ToLower(fmt.Sprint(alias.LinkSelector())), l.MAC().String()) {
			names = append(names, alias.Name())
		}
	}
	var addrs []netip.Addr
	up := map[string]bool{}
	for _, link := range cfg.NetworkCommonLinkConfigs() {
		if !slices.Contains(names, link.Name()) {
			continue
		}
		up[link.Name()] = true
		for _, a := range link.Addresses() {
			addrs = append(addrs, a.Address().Addr())
		}
	}
	asks := false
	for _, d := range cfg.NetworkDHCPv6Configs() {
		// Any such document turns the default link-up off: without a LinkConfig
		// the link stays down.
		asks = asks || up[d.Name()]
	}
	if h := cfg.NetworkHostnameConfig(); h != nil && h.Hostname() != "" {
		l.hostname = h.Hostname()
	}
	if err := l.take(addrs); err != nil {
		return err
	}
	for _, old := range l.config {
		if !slices.Contains(addrs, old) && !slices.Contains(l.line, old) && !slices.Contains(l.platform, old) {
			l.host.Drop(old)
		}
	}
	l.config = addrs
	switch {
	case !asks && l.dhcp.IsValid():
		l.host.Drop(l.dhcp)
		l.dhcp = netip.Addr{}
	case asks && !l.dhcp.IsValid():
		return l.solicit(ctx)
	}
	return nil
}

// solicit is Talos' DHCPv6 client: rapid commit, DUID-LL, IAID of the last four
// octets of the MAC, without end. It never renews, confirms or releases.
func (l *links) solicit(ctx context.Context) error {
	p, err := l.opts.Net.open(l.MAC())
	if err != nil {
		return err
	}
	defer p.close()
	defer interruptible(ctx, p.conn)()
	c := &dhcpClient{
		port: p, time: l.opts.Timing, rapid: true,
		duid: &dhcpv6.DUIDLL{HWType: iana.HWTypeEthernet, LinkLayerAddr: l.MAC()},
		options: []dhcpv6.Option{
			dhcpv6.OptRequestedOption(dhcpv6.OptionDNSRecursiveNameServer, dhcpv6.OptionDomainSearchList),
		},
	}
	copy(c.iaid[:], l.MAC()[2:])
	l.timeline.add(StepConfig, "Talos sends Solicit")
	bound, err := l.bind(ctx, c)
	if err != nil {
		return err
	}
	l.dhcp = bound.addr
	l.timeline.add(StepConfig, "Talos has %s by DHCPv6", l.dhcp)
	return nil
}

func (l *links) take(addrs []netip.Addr) error {
	for _, a := range addrs {
		if !l.host.Claim(a) && l.ctx.Err() == nil {
			return fault("", "duplicate address: %s belongs to another machine", a)
		}
	}
	return nil
}

// addresses are the global ones, the configured first. None: the network is
// not ready (network.Status AddressReady).
func (l *links) addresses() []netip.Addr {
	all := slices.Concat(l.config, l.line, l.platform)
	if l.dhcp.IsValid() {
		all = append(all, l.dhcp)
	}
	all = append(all, l.slaac...)
	var distinct []netip.Addr
	for _, a := range all {
		if !slices.Contains(distinct, a) {
			distinct = append(distinct, a)
		}
	}
	return distinct
}
