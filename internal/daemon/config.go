package daemon

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"time"

	"go.yaml.in/yaml/v4"

	"github.com/provisiond/provisiond/internal/inventory"
	"github.com/provisiond/provisiond/internal/loaders"
)

// rawConfig is the config file as it is written. deploy/provisiond.example.yaml
// is its manual. Every field may be left out but address and subnets.
type rawConfig struct {
	Data       string     `yaml:"data"`
	Address    netip.Addr `yaml:"address"`
	Interfaces []string   `yaml:"interfaces"`
	Ports      struct {
		DHCPv6 *uint16 `yaml:"dhcpv6"`
		TFTP   *uint16 `yaml:"tftp"`
		HTTP   *uint16 `yaml:"http"`
		Events *uint16 `yaml:"events"`
	} `yaml:"ports"`
	API struct {
		Socket *string `yaml:"socket"`
		Listen *string `yaml:"listen"`
	} `yaml:"api"`
	Loaders              map[string]string `yaml:"loaders"`
	Boot                 map[string]string `yaml:"boot"`
	RouterAdvertisements struct {
		Enabled  bool          `yaml:"enabled"`
		SLAAC    bool          `yaml:"slaac"`
		Lifetime time.Duration `yaml:"routerLifetime"`
	} `yaml:"routerAdvertisements"`
	Talos struct {
		Proxy     string `yaml:"proxy"`
		KernelLog string `yaml:"kernelLog"`
	} `yaml:"talos"`
	Log struct {
		Level  string `yaml:"level"`
		Format string `yaml:"format"`
	} `yaml:"log"`
	Subnets []rawSubnet `yaml:"subnets"`
}

type rawSubnet struct {
	Name      string        `yaml:"name"`
	Prefix    netip.Prefix  `yaml:"prefix"`
	Interface string        `yaml:"interface"`
	Machines  string        `yaml:"machines"`
	Pool      string        `yaml:"pool"`
	Strangers bool          `yaml:"strangers"`
	Reserved  []netip.Addr  `yaml:"reserved"`
	Gateway   netip.Addr    `yaml:"gateway"`
	DNS       []netip.Addr  `yaml:"dns"`
	Domains   []string      `yaml:"domains"`
	NTP       []netip.Addr  `yaml:"ntp"`
	Preferred time.Duration `yaml:"preferred"`
	Valid     time.Duration `yaml:"valid"`
}

// Config is a checked configuration.
type Config struct {
	// Data is the folder of the database and the boot images.
	Data string
	// Address is where machines reach this daemon. Every URL carries it, and the
	// rack's sockets are bound to it.
	Address netip.Addr
	// Interfaces are those the machines are on. None: every machine is behind a
	// relay, and DHCPv6 listens on Address.
	Interfaces []string
	// Ports of the rack's servers; 0 means any free one.
	DHCPv6Port, TFTPPort, HTTPPort, EventsPort uint16
	// Socket is the path of the API's unix socket; Listen is its TCP address,
	// invalid for none.
	Socket string
	Listen netip.AddrPort
	// Loaders maps "ARCH/FILE.efi" to a file. Boot names, by architecture, the
	// one that firmware is sent to.
	Loaders map[string]string
	Boot    map[inventory.Arch]string
	// Advertise switches router advertisements on.
	Advertise      bool
	SLAAC          bool
	RouterLifetime time.Duration
	// TalosProxy is the host:port of an HTTP CONNECT proxy to the machines'
	// Talos API; empty: they are reached directly.
	TalosProxy string
	// KernelLog is where machines send their kernel log, a URL as Talos takes
	// it (tcp://[2001:db8::1]:4001/); empty: nowhere.
	KernelLog string
	LogLevel  string
	LogJSON   bool
	Subnets   []inventory.Subnet
}

// Standard ports: RFC 8415 section 7.2, RFC 1350; the others are ours.
const (
	portDHCPv6 = 547
	portTFTP   = 69
	portHTTP   = 8080
	portEvents = 4050
)

// ParseConfig reads a config file. It is strict: an unknown key is an error
// with its line, and every error names the field and what to write.
func ParseConfig(text []byte) (*Config, error) {
	var raw rawConfig
	dec := yaml.NewDecoder(bytes.NewReader(text))
	dec.KnownFields(true)
	if err := dec.Decode(&raw); err != nil {
		if errors.Is(err, io.EOF) {
			err = errors.New("the file is empty")
		}
		return nil, fmt.Errorf("config: %s", strings.TrimPrefix(err.Error(), "yaml: "))
	}
	c := &Config{
		Data:       orString(raw.Data, "/var/lib/provisiond"),
		Address:    raw.Address,
		Interfaces: raw.Interfaces,
		DHCPv6Port: orPort(raw.Ports.DHCPv6, portDHCPv6),
		TFTPPort:   orPort(raw.Ports.TFTP, portTFTP),
		HTTPPort:   orPort(raw.Ports.HTTP, portHTTP),
		EventsPort: orPort(raw.Ports.Events, portEvents),
		Socket:     "/run/provisiond/provisiond.sock",
		Listen:     netip.AddrPortFrom(netip.IPv6Loopback(), 8440),
		Loaders:    raw.Loaders,
		Advertise:  raw.RouterAdvertisements.Enabled, SLAAC: raw.RouterAdvertisements.SLAAC, RouterLifetime: raw.RouterAdvertisements.Lifetime,
		TalosProxy: raw.Talos.Proxy, KernelLog: raw.Talos.KernelLog,
		LogLevel: orString(raw.Log.Level, "info"), LogJSON: raw.Log.Format != "console",
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
	if c.Loaders == nil {
		c.Loaders = loaders.Defaults()
	}
	var err error
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
	return c, c.validate(raw.Log.Format)
}

// validate checks what only the whole shows.
func (c *Config) validate(format string) error {
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
	for i := range c.Subnets {
		s := &c.Subnets[i]
		if s.Prefix.Contains(c.Address) {
			if s.Machines.Contains(c.Address) || s.Pool.Contains(c.Address) {
				return bad(fmt.Sprintf("subnets[%d]", i), "leave it out of both ranges", "the daemon's own address %s lies in a range that is handed out", c.Address)
			}
			s.Reserved = append(s.Reserved, c.Address)
		}
		if s.Interface != "" && !slices.Contains(c.Interfaces, s.Interface) {
			return bad(fmt.Sprintf("subnets[%d].interface", i), "add it to interfaces", "%s is not one of the interfaces we listen on", s.Interface)
		}
	}
	if c.Advertise && len(c.Interfaces) == 0 {
		return bad("interfaces", "name the interfaces to advertise on", "router advertisements are on and there is no interface")
	}
	if c.RouterLifetime < 0 || c.RouterLifetime > 9000*time.Second { // RFC 4861 section 6.2.1
		return bad("routerAdvertisements.routerLifetime", "0s (no router) to 9000s", "%v is out of range", c.RouterLifetime)
	}
	if l := c.Listen; l.IsValid() && !l.Addr().IsLoopback() {
		return bad("api.listen", "a loopback address such as [::1]:8440; reach it from elsewhere through SSH", "%s is open to the network and the API asks for no password yet", l)
	}
	if c.Socket == "" && !c.Listen.IsValid() {
		return bad("api", "set socket or listen", "the API listens nowhere")
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

func (rs rawSubnet) subnet(at string) (inventory.Subnet, error) {
	s := inventory.Subnet{
		Name: rs.Name, Prefix: rs.Prefix, Interface: rs.Interface, Strangers: rs.Strangers, Reserved: rs.Reserved,
		Gateway: rs.Gateway, DNS: rs.DNS, Domains: rs.Domains, NTP: rs.NTP, Preferred: rs.Preferred, Valid: rs.Valid,
	}
	if s.Preferred == 0 && s.Valid == 0 {
		s.Preferred, s.Valid = 12*time.Hour, 24*time.Hour
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
