package ndp

import (
	"fmt"
	"net"
	"net/netip"
	"strings"
	"time"

	"github.com/mdlayher/ndp"

	"github.com/provisiond/provisiond/internal/inventory"
)

// Config is what is advertised on one link, and how often.
type Config struct {
	// Interface names the link, for the log.
	Interface string
	// LinkLayer is the interface's own address, sent along so that machines need
	// not ask for it; empty: not sent.
	LinkLayer net.HardwareAddr
	Prefixes  []Prefix // on-link prefixes
	// Managed (M) says that addresses come from DHCPv6, OtherConfig (O) that
	// other parameters do (RFC 4861 section 4.2). iPXE needs one of the two.
	Managed     bool
	OtherConfig bool
	// Lifetime as a default router: 0 (not one), or MaxInterval to 9000 s.
	Lifetime time.Duration
	// MaxInterval between unsolicited advertisements (MaxRtrAdvInterval):
	// 4 to 1800 s, 0 means 600 s. The least is a third of it.
	MaxInterval time.Duration
	DNS         []netip.Addr // RFC 8106; Talos and EDK2 ignore them
	Domains     []string
	MTU         uint32 // of the link, at least 1280; 0: not advertised
}

// Prefix is a prefix of the link. Machines may reach its addresses directly
// (L=1), which an address from DHCPv6 alone, a /128, does not tell them.
type Prefix struct {
	Prefix netip.Prefix
	// SLAAC lets machines make up addresses of their own (A=1). Talos uses one
	// before it has a config; without, give the kernel line an address.
	SLAAC bool
	// Preferred and Valid lifetimes; 0 means RFC 4861's 7 and 30 days.
	Preferred, Valid time.Duration
}

const (
	defaultMaxInterval = 600 * time.Second
	defaultPreferred   = 7 * 24 * time.Hour
	defaultValid       = 30 * 24 * time.Hour
	infinity           = 0xffffffff * time.Second
	hopLimit           = 64 // IANA's default, for the machines' own packets
)

// withDefaults fills in what was left out.
func (c Config) withDefaults() Config {
	if c.MaxInterval == 0 {
		c.MaxInterval = defaultMaxInterval
	}
	prefixes := make([]Prefix, len(c.Prefixes))
	for i, p := range c.Prefixes {
		if p.Valid == 0 {
			p.Valid = max(defaultValid, p.Preferred)
		}
		if p.Preferred == 0 {
			p.Preferred = min(defaultPreferred, p.Valid)
		}
		prefixes[i] = p
	}
	c.Prefixes = prefixes
	return c
}

// Validate checks every field; its errors are [inventory.FieldError]s.
func (c Config) Validate() error {
	bad := func(field, fix, format string, args ...any) error {
		return &inventory.FieldError{Field: field, Fix: fix, Problem: fmt.Sprintf(format, args...)}
	}
	c = c.withDefaults()
	if c.MaxInterval < 4*time.Second || c.MaxInterval > 1800*time.Second {
		return bad("maxInterval", "4s to 30m", "%v is not an interval for router advertisements", c.MaxInterval)
	}
	if c.Lifetime != 0 && (c.Lifetime < c.MaxInterval || c.Lifetime > 9000*time.Second) {
		return bad("routerLifetime", fmt.Sprintf("0, or %v to 2h30m", c.MaxInterval), "%v is not the lifetime of a router that advertises every %v", c.Lifetime, c.MaxInterval)
	}
	if c.MTU != 0 && c.MTU < 1280 {
		return bad("mtu", "1280 or more, or leave it out", "IPv6 does not work with an MTU of %d", c.MTU)
	}
	for i, p := range c.Prefixes {
		at := fmt.Sprintf("prefixes[%d]", i)
		switch a := p.Prefix.Addr(); {
		case !p.Prefix.IsValid() || !a.Is6() || a.Is4In6() || p.Prefix != p.Prefix.Masked():
			return bad(at, "a prefix such as 2001:db8::/64 without host bits", "%v is not an IPv6 network", p.Prefix)
		case a.IsLinkLocalUnicast() || a.IsMulticast():
			return bad(at, "leave it out", "%v is not advertised", p.Prefix)
		case p.SLAAC && p.Prefix.Bits() != 64:
			return bad(at+".slaac", "use a /64, or no slaac", "machines make up addresses in a /64 only, not in %v (RFC 4862 section 5.5.3)", p.Prefix)
		case p.Preferred < 0 || p.Valid < p.Preferred:
			return bad(at, "a valid lifetime not shorter than the preferred one", "lifetimes %v and %v do not fit", p.Preferred, p.Valid)
		}
	}
	for i, a := range c.DNS {
		if !a.Is6() || a.Is4In6() {
			return bad(fmt.Sprintf("dns[%d]", i), "an IPv6 address", "%v is not one", a)
		}
	}
	for i, d := range c.Domains {
		for label := range strings.SplitSeq(d, ".") {
			if err := inventory.CheckName(fmt.Sprintf("domains[%d]", i), label); err != nil {
				return err
			}
		}
	}
	if _, err := ndp.MarshalMessage(c.advertisement(c.Lifetime)); err != nil {
		return bad("", "", "no advertisement can be made of this: %v", err)
	}
	return nil
}

// advertisement is the message, with the router lifetime given.
func (c Config) advertisement(lifetime time.Duration) *ndp.RouterAdvertisement {
	ra := &ndp.RouterAdvertisement{
		CurrentHopLimit:      hopLimit,
		ManagedConfiguration: c.Managed,
		OtherConfiguration:   c.OtherConfig,
		RouterLifetime:       lifetime,
	}
	if len(c.LinkLayer) == 6 {
		ra.Options = append(ra.Options, &ndp.LinkLayerAddress{Direction: ndp.Source, Addr: c.LinkLayer})
	}
	if c.MTU != 0 {
		ra.Options = append(ra.Options, ndp.NewMTU(c.MTU))
	}
	for _, p := range c.Prefixes {
		ra.Options = append(ra.Options, &ndp.PrefixInformation{
			Prefix:                         p.Prefix.Addr(),
			PrefixLength:                   uint8(p.Prefix.Bits()),
			OnLink:                         true,
			AutonomousAddressConfiguration: p.SLAAC,
			PreferredLifetime:              min(p.Preferred, infinity),
			ValidLifetime:                  min(p.Valid, infinity),
		})
	}
	// Three lost advertisements in a row take the servers away (RFC 8106
	// section 5.1).
	if len(c.DNS) > 0 {
		ra.Options = append(ra.Options, &ndp.RecursiveDNSServer{Lifetime: 3 * c.MaxInterval, Servers: c.DNS})
	}
	if len(c.Domains) > 0 {
		ra.Options = append(ra.Options, &ndp.DNSSearchList{Lifetime: 3 * c.MaxInterval, DomainNames: c.Domains})
	}
	return ra
}
