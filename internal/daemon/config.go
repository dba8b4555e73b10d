package daemon

import (
	"errors"
	"fmt"
	"maps"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/provisiond/provisiond/internal/inventory"
	"github.com/provisiond/provisiond/internal/loaders"
	"github.com/provisiond/provisiond/internal/talos"
	"github.com/provisiond/provisiond/internal/tracing"
	"github.com/provisiond/provisiond/web"
)

// rawConfig is the config file as it is written. deploy/provisiond.example.yaml
// is its manual. Every field may be left out but address and subnets.
type rawConfig struct {
	Data       string     `yaml:"data"`
	Key        string     `yaml:"key"`
	User       string     `yaml:"user"`
	Address    netip.Addr `yaml:"address"`
	Interfaces []string   `yaml:"interfaces"`
	Ports      struct {
		DHCPv6    *uint16 `yaml:"dhcpv6"`
		TFTP      *uint16 `yaml:"tftp"`
		HTTP      *uint16 `yaml:"http"`
		HTTPS     *uint16 `yaml:"https"`
		Events    *uint16 `yaml:"events"`
		KernelLog *uint16 `yaml:"kernelLog"`
	} `yaml:"ports"`
	API struct {
		Socket *string  `yaml:"socket"`
		Listen *string  `yaml:"listen"`
		Names  []string `yaml:"names"`
		TLS    struct {
			Certificate string `yaml:"certificate"`
			Key         string `yaml:"key"`
			ClientCA    string `yaml:"clientCA"`
		} `yaml:"tls"`
		OIDC rawOIDC `yaml:"oidc"`
	} `yaml:"api"`
	Loaders    map[string]string `yaml:"loaders"`
	Boot       map[string]string `yaml:"boot"`
	SecureBoot struct {
		Key         string `yaml:"key"`
		Certificate string `yaml:"certificate"`
	} `yaml:"secureBoot"`
	RouterAdvertisements rawAdvertisement `yaml:"routerAdvertisements"`
	Talos                struct {
		Proxy     string `yaml:"proxy"`
		KernelLog string `yaml:"kernelLog"`
	} `yaml:"talos"`
	Maintenance struct {
		Enabled *bool `yaml:"enabled"`
	} `yaml:"maintenance"`
	Log struct {
		Level  string `yaml:"level"`
		Format string `yaml:"format"`
	} `yaml:"log"`
	Tracing rawTracing                        `yaml:"tracing"`
	Stall   map[inventory.Phase]time.Duration `yaml:"stall"`
	Subnets []rawSubnet                       `yaml:"subnets"`
}

// rawAdvertisement is a set of settings of which a subnet can have its own.
type rawAdvertisement struct {
	Enabled  *bool          `yaml:"enabled"`
	SLAAC    *bool          `yaml:"slaac"`
	Lifetime *time.Duration `yaml:"routerLifetime"`
	MTU      *uint32        `yaml:"mtu"`
}

type rawSubnet struct {
	Name                 string                 `yaml:"name"`
	Prefix               netip.Prefix           `yaml:"prefix"`
	Interface            string                 `yaml:"interface"`
	Relays               []string               `yaml:"relays"`
	Machines             string                 `yaml:"machines"`
	Pool                 string                 `yaml:"pool"`
	Strangers            bool                   `yaml:"strangers"`
	Adopt                bool                   `yaml:"adopt"`
	Reserved             []string               `yaml:"reserved"`
	Gateway              netip.Addr             `yaml:"gateway"`
	DNS                  []netip.Addr           `yaml:"dns"`
	Domains              []string               `yaml:"domains"`
	NTP                  []string               `yaml:"ntp"`
	Options              []inventory.OptionSpec `yaml:"options"`
	Preferred            time.Duration          `yaml:"preferred"`
	Valid                time.Duration          `yaml:"valid"`
	Renew                time.Duration          `yaml:"renew"`
	Rebind               time.Duration          `yaml:"rebind"`
	Preference           *uint8                 `yaml:"preference"`
	RouterAdvertisements rawAdvertisement       `yaml:"routerAdvertisements"`
}

// Advertisement is what is advertised on an interface beside its subnet.
type Advertisement struct {
	SLAAC    bool          // machines may make up addresses
	Lifetime time.Duration // as a default router; 0: it is none
	MTU      uint32        // 0: not advertised
}

// Config is a checked configuration.
type Config struct {
	// Data is the folder of the database and the boot images.
	Data string
	// Key is the file of the operator's key, which may also be given in other ways.
	// Once it was read with ReadConfig, it does not depend on the working directory.
	Key string
	// User is whom the daemon becomes once all its sockets are open; empty: it stays
	// who started it.
	User string
	// Address is where machines reach this daemon. Every URL carries it, and the
	// rack's sockets are bound to it.
	Address netip.Addr
	// Interfaces are those the machines are on. None: every machine is behind a
	// relay, and DHCPv6 listens on Address.
	Interfaces []string
	// Ports of the rack's servers; 0 means any free one.
	DHCPv6Port, TFTPPort, HTTPPort, HTTPSPort, EventsPort, KernelLogPort uint16
	// Socket is the path of the API's unix socket; Listen is its TCP address,
	// invalid for none.
	Socket string
	Listen netip.AddrPort
	// Names are those that Listen is called by, beside addresses and the host's own.
	Names []string
	// Certificate and CertificateKey are the files of what Listen shows; empty: our own CA makes it.
	// ClientCA is that of the CA of client certificates; empty: our own.
	Certificate, CertificateKey, ClientCA string
	// SecureBootKey and SecureBootCertificate are the files of what machines' own UKIs are
	// signed with; empty: they are not signed.
	SecureBootKey, SecureBootCertificate string
	// OIDC is the issuer that vouches for people in browsers, without the secret that is in
	// OIDCSecretFile; nil: there is none.
	OIDC           *web.OIDC
	OIDCSecretFile string // empty: it knows us without one
	// Loaders maps "ARCH/FILE.efi" to a file. Boot names, by architecture, the
	// one that firmware is sent to.
	Loaders map[string]string
	Boot    map[inventory.Arch]string
	// Advertise are router advertisements by interface, where they are on.
	Advertise map[string]Advertisement
	// TalosProxy is the host:port of an HTTP CONNECT proxy to the machines'
	// Talos API; empty: they are reached directly.
	TalosProxy string
	// KernelLog is where machines send their kernel log instead of to us, a URL
	// as Talos takes it (tcp://[2001:db8::1]:4001/); empty: to KernelLogPort.
	KernelLog string
	// Maintenance says whether machines that wait in Talos' maintenance mode are looked for.
	Maintenance bool
	LogLevel    string
	LogJSON     bool
	// Tracing is where traces of boots go; nil: nowhere.
	Tracing *tracing.Config
	// Stall is how long phases may last.
	Stall   inventory.Patience
	Subnets []inventory.Subnet
}

// Standard ports: RFC 8415 section 7.2, RFC 1350; the others are ours.
const (
	portDHCPv6    = 547
	portTFTP      = 69
	portHTTP      = 8080
	portHTTPS     = 8443
	portEvents    = 4050
	portKernelLog = 4051
)

// ReadConfig reads a config file as ParseConfig does. The path of the key is that from
// the folder of the config file.
func ReadConfig(path string) (*Config, error) {
	text, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("config: %w (deploy/provisiond.example.yaml is one to start from)", err)
	}
	cfg, err := ParseConfig(text)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	for _, name := range []*string{&cfg.Key, &cfg.SecureBootKey, &cfg.SecureBootCertificate} {
		if *name != "" && !filepath.IsAbs(*name) {
			*name = filepath.Join(filepath.Dir(path), *name)
		}
	}
	return cfg, nil
}

// ParseConfig reads the text of a config file. It is strict: an unknown key is an error
// with its line, and every error names the field and what to write.
func ParseConfig(text []byte) (*Config, error) {
	var raw rawConfig
	if err := decode(text, &raw); err != nil {
		return nil, err
	}
	c := &Config{
		Data:          orString(raw.Data, "/var/lib/provisiond"),
		Key:           orString(raw.Key, "provisiond.key"),
		User:          raw.User,
		Address:       raw.Address,
		Interfaces:    raw.Interfaces,
		DHCPv6Port:    orPort(raw.Ports.DHCPv6, portDHCPv6),
		TFTPPort:      orPort(raw.Ports.TFTP, portTFTP),
		HTTPPort:      orPort(raw.Ports.HTTP, portHTTP),
		HTTPSPort:     orPort(raw.Ports.HTTPS, portHTTPS),
		EventsPort:    orPort(raw.Ports.Events, portEvents),
		KernelLogPort: orPort(raw.Ports.KernelLog, portKernelLog),
		Socket:        "/run/provisiond/provisiond.sock",
		Listen:        netip.AddrPortFrom(netip.IPv6Loopback(), 8440),
		Names:         raw.API.Names,
		Certificate:   raw.API.TLS.Certificate, CertificateKey: raw.API.TLS.Key, ClientCA: raw.API.TLS.ClientCA,
		SecureBootKey: raw.SecureBoot.Key, SecureBootCertificate: raw.SecureBoot.Certificate,
		Loaders:    raw.Loaders,
		TalosProxy: raw.Talos.Proxy, KernelLog: raw.Talos.KernelLog,
		Maintenance: raw.Maintenance.Enabled == nil || *raw.Maintenance.Enabled,
		LogLevel:    orString(raw.Log.Level, "info"), LogJSON: raw.Log.Format != "console",
	}
	var err error
	if c.Stall, err = patience(raw.Stall); err != nil {
		return nil, err
	}
	if raw.API.Socket != nil {
		c.Socket = *raw.API.Socket
	}
	if raw.API.Listen != nil {
		c.Listen = netip.AddrPort{}
		if *raw.API.Listen != "" {
			a, err := netip.ParseAddrPort(*raw.API.Listen)
			if err != nil {
				return nil, &inventory.FieldError{Field: "api.listen", Problem: fmt.Sprintf("%q is not an address with a port", *raw.API.Listen), Fix: `such as "[::1]:8440", or "" for none`}
			}
			c.Listen = a
		}
	}
	if c.OIDC, err = raw.API.OIDC.issuer(); err != nil {
		return nil, err
	}
	c.OIDCSecretFile = raw.API.OIDC.ClientSecretFile
	if c.Tracing, err = raw.Tracing.config(); err != nil {
		return nil, err
	}
	if c.Loaders == nil {
		c.Loaders = loaders.Defaults()
	}
	if err := checkLoaderNames(c.Loaders); err != nil {
		return nil, err
	}
	if c.Boot, err = firstLoaders(raw.Boot, c.Loaders); err != nil {
		return nil, err
	}
	for i, rs := range raw.Subnets {
		s, err := rs.subnet(fmt.Sprintf("subnets[%d]", i))
		if err != nil {
			return nil, err
		}
		c.Subnets = append(c.Subnets, s)
	}
	c.Advertise = advertisements(&raw)
	return c, c.validate(raw.Log.Format, raw.RouterAdvertisements.Enabled != nil && *raw.RouterAdvertisements.Enabled)
}

// validate checks what only the whole shows.
func (c *Config) validate(format string, wantsAdvertisements bool) error {
	bad := func(field, fix, problem string, args ...any) error {
		return &inventory.FieldError{Field: field, Problem: fmt.Sprintf(problem, args...), Fix: fix}
	}
	switch a := c.Address; {
	case !a.IsValid():
		return bad("address", "the address of this host on the rack's network, such as 2001:db8::2", "no address is set")
	case !a.Is6() || a.Is4In6() || a.IsUnspecified() || a.IsMulticast() || a.IsLinkLocalUnicast():
		return bad("address", "a global or unique-local address of this host", "%s cannot stand in a boot URL", a)
	}
	if len(c.Subnets) == 0 {
		return bad("subnets", "describe at least the segment the machines boot on", "no subnet is set")
	}
	if err := inventory.ValidateSubnets(c.Subnets); err != nil {
		return err
	}
	if err := c.checkServers(); err != nil {
		return err
	}
	for i := range c.Subnets {
		s := &c.Subnets[i]
		if s.Machines.Contains(c.Address) || s.Pool.Contains(c.Address) {
			return bad(fmt.Sprintf("subnets[%d]", i), "leave it out of both ranges", "the daemon's own address %s lies in a range that is handed out", c.Address)
		}
		if s.Interface != "" && !slices.Contains(c.Interfaces, s.Interface) {
			return bad(fmt.Sprintf("subnets[%d].interface", i), "add it to interfaces", "%s is not one of the interfaces we listen on", s.Interface)
		}
	}
	c.reserve()
	if len(c.Interfaces) == 0 && wantsAdvertisements {
		return bad("interfaces", "name the interfaces to advertise on", "router advertisements are on and there is no interface")
	}
	for _, name := range slices.Sorted(maps.Keys(c.Advertise)) {
		if _, err := advertisement(c, name, nil); err != nil {
			return err
		}
	}
	if err := c.checkAPI(); err != nil {
		return err
	}
	if c.Socket == "" && !c.Listen.IsValid() {
		return bad("api", "set socket or listen", "the API listens nowhere")
	}
	if err := c.checkPorts(); err != nil {
		return err
	}
	if c.TalosProxy != "" && !isHostPort(c.TalosProxy) {
		return bad("talos.proxy", "HOST:PORT without a scheme, such as [2001:db8::3]:3128", "%q is not a host and a port", c.TalosProxy)
	}
	if err := (talos.Options{KernelLog: c.KernelLog}).Validate(); err != nil {
		return err
	}
	switch c.LogLevel {
	case "trace", "debug", "info", "warn", "error":
	default:
		return bad("log.level", "trace, debug, info, warn or error", "%q is not a level", c.LogLevel)
	}
	switch format {
	case "", "json", "console":
	default:
		return bad("log.format", "json or console", "%q is not a format", format)
	}
	return nil
}

// checkAPI keeps the operator's API off the rack's network, where machines are that
// nobody vouches for.
func (c *Config) checkAPI() error {
	refuse := func(format string, args ...any) error {
		return &inventory.FieldError{Field: "api.listen", Problem: c.Listen.String() + fmt.Sprintf(format, args...),
			Fix: "an address of this host on another network, or [::1]:8440, which SSH reaches from elsewhere"}
	}
	if a := c.Listen.Addr(); c.Listen.IsValid() && !a.IsLoopback() {
		switch {
		case a.IsUnspecified():
			return refuse(" is every address of this host, that on the rack's network too")
		case a == c.Address || slices.ContainsFunc(c.Subnets, func(s inventory.Subnet) bool { return s.Prefix.Contains(a.WithZone("")) }) || slices.Contains(c.Interfaces, a.Zone()):
			return refuse(" is on the rack's network")
		case a.IsLinkLocalUnicast() && a.Zone() == "":
			return refuse(" needs its interface, as in [fe80::1%%eth0]:8440")
		}
	}
	if a := c.Listen.Addr(); c.Listen.IsValid() && a.Unmap().Is4() {
		return &inventory.FieldError{Field: "api.listen", Problem: c.Listen.String() + " is an IPv4 address", Fix: "an IPv6 address such as [::1]:8440"}
	}
	for i, name := range c.Names {
		if !inventory.ValidDomain(name) {
			return &inventory.FieldError{Field: fmt.Sprintf("api.names[%d]", i), Problem: fmt.Sprintf("%q is not a host name", name), Fix: "a name such as provisiond.example.org, in lower case; addresses need none"}
		}
	}
	if (c.Certificate == "") != (c.CertificateKey == "") {
		return &inventory.FieldError{Field: "api.tls", Problem: "a certificate and its key go together", Fix: "set both, or neither: our own CA makes one then"}
	}
	if (c.SecureBootCertificate == "") != (c.SecureBootKey == "") {
		return &inventory.FieldError{Field: "secureBoot", Problem: "a key and its certificate go together", Fix: "set both, as provisiond secureboot keys makes them, or neither: UKIs are not signed then"}
	}
	return nil
}

// checkServers wants addresses that machines can ask. A link-local one needs a
// zone, which differs from machine to machine.
func (c *Config) checkServers() error {
	for i := range c.Subnets {
		for j, a := range c.Subnets[i].DNS {
			if !askable(a) {
				return &inventory.FieldError{
					Field:   fmt.Sprintf("subnets[%d].dns[%d]", i, j),
					Problem: fmt.Sprintf("%q is not an IPv6 address that machines can ask", a),
					Fix:     "a global or unique-local address such as 2001:db8::53",
				}
			}
		}
	}
	return nil
}

// patience is the default with what the file says instead.
func patience(said map[inventory.Phase]time.Duration) (inventory.Patience, error) {
	p := inventory.DefaultPatience()
	for phase, d := range said {
		if _, ok := p[phase]; !ok {
			return nil, &inventory.FieldError{
				Field: "stall." + string(phase), Problem: fmt.Sprintf("%q is not a phase that a machine can be stuck in", phase),
				Fix: "offered, loading, configuring, installing, booting, reimaging or ready",
			}
		}
		if d < 0 {
			return nil, &inventory.FieldError{Field: "stall." + string(phase), Problem: fmt.Sprintf("%v is less than nothing", d), Fix: "a time such as 30m, or 0 for never"}
		}
		p[phase] = d
	}
	return p, nil
}

func askable(a netip.Addr) bool {
	return a.Is6() && !a.Is4In6() && a.IsGlobalUnicast() && a.Zone() == ""
}

// reserve keeps from machines what others have: this host, the routers and the
// servers, each in the subnet it lies in.
func (c *Config) reserve() {
	taken := []netip.Addr{c.Address}
	for i := range c.Subnets {
		s := &c.Subnets[i]
		taken = slices.Concat(taken, []netip.Addr{s.Gateway}, s.DNS, s.NTP)
	}
	for i := range c.Subnets {
		s := &c.Subnets[i]
		for _, a := range taken {
			if s.Prefix.Contains(a) && !slices.ContainsFunc(s.Reserved, func(r inventory.Range) bool { return r.Contains(a) }) {
				s.Reserved = append(s.Reserved, inventory.Range{First: a, Last: a})
			}
		}
	}
}

// CheckHost compares the config with this host: its interfaces exist, its loaders
// are UEFI programs for their architecture, its certificates and secrets can be read, and its API
// is off the rack's interfaces. It opens no socket. Each
// problem is an *inventory.FieldError; all are joined.
func (c *Config) CheckHost() error {
	var errs []error
	for i, name := range c.Interfaces {
		if _, err := net.InterfaceByName(name); err != nil {
			errs = append(errs, &inventory.FieldError{Field: fmt.Sprintf("interfaces[%d]", i), Problem: fmt.Sprintf("%q: %v", name, err), Fix: "`ip link` lists the interfaces"})
		}
	}
	_, err := loaders.New(loaders.Config{Files: c.Loaders})
	_, _, files := c.certificates(func(error) {})
	_, secret := c.issuer()
	return errors.Join(append(errs, err, files, secret, c.checkTracing(), c.offRack())...)
}

// isHostPort reports whether s is HOST:PORT with a name or an address.
func isHostPort(s string) bool {
	host, port, err := net.SplitHostPort(s)
	if err != nil {
		return false
	}
	if n, err := strconv.ParseUint(port, 10, 16); err != nil || n == 0 {
		return false
	}
	if _, err := netip.ParseAddr(host); err == nil {
		return true
	}
	return hostName.MatchString(host)
}

var (
	hostName   = regexp.MustCompile(`^[A-Za-z0-9]([A-Za-z0-9._-]{0,251}[A-Za-z0-9])?$`)
	loaderName = regexp.MustCompile(`^(amd64|arm64)/[A-Za-z0-9_-][A-Za-z0-9._-]*\.efi$`)
)

// checkLoaderNames wants names that go into URLs and boot options as they are.
func checkLoaderNames(files map[string]string) error {
	for _, name := range slices.Sorted(maps.Keys(files)) {
		if !loaderName.MatchString(name) {
			return &inventory.FieldError{Field: "loaders", Problem: fmt.Sprintf("%q is not the name of a loader", name), Fix: "ARCH/FILE.efi, such as amd64/snponly.efi or arm64/ipxe.efi"}
		}
		if files[name] == "" {
			return &inventory.FieldError{Field: "loaders." + name, Problem: "no file is given", Fix: "its path, such as /usr/lib/ipxe/snponly.efi"}
		}
	}
	return nil
}

// advertisements are those of each interface: what holds for all, and over it what
// holds for its subnet.
func advertisements(raw *rawConfig) map[string]Advertisement {
	out := map[string]Advertisement{}
	for _, name := range raw.Interfaces {
		var a Advertisement
		enabled := false
		over := func(r rawAdvertisement) {
			set(&enabled, r.Enabled)
			set(&a.SLAAC, r.SLAAC)
			set(&a.Lifetime, r.Lifetime)
			set(&a.MTU, r.MTU)
		}
		over(raw.RouterAdvertisements)
		for _, s := range raw.Subnets {
			if s.Interface == name {
				over(s.RouterAdvertisements)
			}
		}
		if enabled {
			out[name] = a
		}
	}
	return out
}

func set[T any](to *T, v *T) {
	if v != nil {
		*to = *v
	}
}

// checkPorts refuses one port for two servers of a protocol.
func (c *Config) checkPorts() error {
	type server struct {
		field string
		port  uint16
	}
	tcp := []server{{"ports.http", c.HTTPPort}, {"ports.https", c.HTTPSPort}, {"ports.events", c.EventsPort}}
	if c.KernelLog == "" {
		tcp = append(tcp, server{"ports.kernelLog", c.KernelLogPort})
	}
	for _, servers := range [][]server{tcp, {{"ports.dhcpv6", c.DHCPv6Port}, {"ports.tftp", c.TFTPPort}}} {
		taken := map[uint16]string{}
		for _, s := range servers {
			if other, ok := taken[s.port]; ok && s.port != 0 {
				return &inventory.FieldError{Field: s.field, Problem: fmt.Sprintf("%d is that of %s, too", s.port, other), Fix: "choose another"}
			}
			taken[s.port] = s.field
		}
	}
	return nil
}

func (rs rawSubnet) subnet(at string) (inventory.Subnet, error) {
	s := inventory.Subnet{
		Name: rs.Name, Prefix: rs.Prefix, Interface: rs.Interface, Strangers: rs.Strangers, Adopt: rs.Adopt,
		Gateway: rs.Gateway, DNS: rs.DNS, Domains: rs.Domains, Preferred: rs.Preferred, Valid: rs.Valid,
		Renew: rs.Renew, Rebind: rs.Rebind, Preference: 255,
	}
	set(&s.Preference, rs.Preference)
	for i, server := range rs.NTP {
		a, err := netip.ParseAddr(server)
		switch {
		case err == nil && (askable(a) || a.IsMulticast() && a.Zone() == ""):
			s.NTP = append(s.NTP, a)
		case err != nil && inventory.ValidDomain(server):
			s.NTPNames = append(s.NTPNames, server)
		default:
			return s, &inventory.FieldError{
				Field:   fmt.Sprintf("%s.ntp[%d]", at, i),
				Problem: fmt.Sprintf("%q is not a time server that machines can ask", server),
				Fix:     "an address such as 2001:db8::123, a multicast one such as ff05::101, or a name such as ntp.example.org",
			}
		}
	}
	if s.Preferred == 0 && s.Valid == 0 {
		s.Preferred, s.Valid = 12*time.Hour, 24*time.Hour
	}
	for i, text := range rs.Relays {
		p, err := netip.ParsePrefix(text)
		if a, aerr := netip.ParseAddr(text); aerr == nil && a.Zone() == "" {
			p, err = a.Prefix(a.BitLen())
		}
		if err != nil {
			return s, &inventory.FieldError{Field: fmt.Sprintf("%s.relays[%d]", at, i), Problem: fmt.Sprintf("%q is not an address or a prefix", text), Fix: "such as 2001:db8:2::1"}
		}
		s.Relays = append(s.Relays, p)
	}
	for _, f := range []struct {
		name, text string
		to         *inventory.Range
	}{{"machines", rs.Machines, &s.Machines}, {"pool", rs.Pool, &s.Pool}} {
		if f.text == "" {
			continue
		}
		r, err := inventory.ParseRange(f.text)
		if err != nil {
			return s, &inventory.FieldError{Field: at + "." + f.name, Problem: err.Error()}
		}
		*f.to = r
	}
	for i, text := range rs.Reserved {
		r, err := inventory.ParseRange(text)
		if err != nil {
			return s, &inventory.FieldError{Field: fmt.Sprintf("%s.reserved[%d]", at, i), Problem: err.Error()}
		}
		s.Reserved = append(s.Reserved, r)
	}
	for i, spec := range rs.Options {
		o, err := spec.Option()
		if err != nil {
			return s, fmt.Errorf("%s.options[%d].%w", at, i, err)
		}
		s.Options = append(s.Options, o)
	}
	return s, nil
}

// firstLoaders completes the choice of loader by architecture: snponly.efi,
// which drives the NIC through the firmware that just used it, where there is
// one.
func firstLoaders(chosen, files map[string]string) (map[inventory.Arch]string, error) {
	out := map[inventory.Arch]string{}
	for _, arch := range []inventory.Arch{inventory.AMD64, inventory.ARM64} {
		if files[string(arch)+"/snponly.efi"] != "" {
			out[arch] = string(arch) + "/snponly.efi"
		}
	}
	for _, arch := range slices.Sorted(maps.Keys(chosen)) {
		name := arch + "/" + chosen[arch]
		if arch != string(inventory.AMD64) && arch != string(inventory.ARM64) {
			return nil, &inventory.FieldError{Field: "boot", Problem: fmt.Sprintf("%q is not an architecture", arch), Fix: "amd64 or arm64"}
		}
		if _, ok := files[name]; !ok {
			return nil, &inventory.FieldError{Field: "boot." + arch, Problem: fmt.Sprintf("%q is not among the loaders", name), Fix: "one of " + strings.Join(slices.Sorted(maps.Keys(files)), ", ")}
		}
		out[inventory.Arch(arch)] = name
	}
	return out, nil
}

func orString(s, def string) string {
	if s == "" {
		return def
	}
	return s
}

func orPort(p *uint16, def uint16) uint16 {
	if p == nil {
		return def
	}
	return *p
}
