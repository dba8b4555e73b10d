package daemon

import (
	"fmt"
	"maps"
	"os"
	"os/user"
	"slices"
	"strconv"
	"strings"

	"github.com/provisiond/provisiond/api"
	"github.com/provisiond/provisiond/internal/ca"
	"github.com/provisiond/provisiond/internal/httpconfig"
	"github.com/provisiond/provisiond/internal/inventory"
)

// settings tells operators what a daemon runs with. What is told is named here one by
// one, so that a setting which is a secret is told by nobody's oversight.
type settings struct {
	d         *Daemon
	keyID     string // empty: the database is not ours to seal
	urls      httpconfig.URLs
	authority *ca.CA
	shown     *ca.Files // nil: the API shows what authority makes
}

// tell is admin.Config.Settings.
func (s settings) tell() api.Settings {
	s.d.reloading.Lock()
	cfg := s.d.cfg // is replaced, and never changed
	s.d.reloading.Unlock()
	out := api.Settings{
		Host:       api.HostSettings{Version: s.d.version, User: runsAs(), Data: cfg.Data, KeyID: s.keyID, KeyFile: cfg.Key},
		Listening:  s.d.addrs.listening(),
		Advertised: s.advertised(),
		API:        api.APISettings{Names: cfg.Names, Certificate: cfg.Certificate, ClientCA: cfg.ClientCA, OIDC: oidcSettings(cfg)},
		Rack:       api.RackSettings{Address: cfg.Address.String(), Interfaces: cfg.Interfaces, TalosProxy: cfg.TalosProxy, SecureBoot: cfg.SecureBootCertificate, Maintenance: cfg.Maintenance, KernelLog: cfg.KernelLog},
		Loaders:    cfg.Loaders,
		Stall:      map[string]string{},
		Subnets:    make([]api.SubnetSettings, len(cfg.Subnets)),
		Log:        api.LogSettings{Level: cfg.LogLevel, JSON: cfg.LogJSON},
		Expiries:   []api.CertificateUntil{{Name: "ca", Expires: s.authority.Expires()}},
	}
	if cfg.Tracing != nil {
		out.Tracing = cfg.Tracing.Endpoint
	}
	out.Host.Free, _ = freeSpace(cfg.Data) // 0 says that it cannot be seen
	if s.shown != nil {
		out.Expiries = append(out.Expiries, api.CertificateUntil{Name: "api", Expires: s.shown.Expires()})
	}
	for _, name := range slices.Sorted(maps.Keys(cfg.Advertise)) {
		a := cfg.Advertise[name]
		out.Rack.Advertisements = append(out.Rack.Advertisements, api.Advertisement{Interface: name, SLAAC: a.SLAAC, Lifetime: a.Lifetime.String(), MTU: a.MTU})
	}
	for phase, d := range cfg.Stall {
		out.Stall[string(phase)] = d.String()
	}
	for i := range cfg.Subnets {
		out.Subnets[i] = subnetSettings(&cfg.Subnets[i])
	}
	return out
}

// runsAs is the user of this process, which need not be the one who started it.
func runsAs() string {
	id := strconv.Itoa(os.Geteuid())
	if u, err := user.LookupId(id); err == nil {
		return u.Username
	}
	return id
}

// listening lists where the servers are.
func (a *Addrs) listening() []api.Listening {
	out := []api.Listening{}
	for _, l := range []struct {
		server string
		at     fmt.Stringer
		is     bool
	}{
		{"dhcpv6", a.DHCPv6, a.DHCPv6.IsValid()}, {"tftp", a.TFTP, a.TFTP.IsValid()}, {"http", a.HTTP, a.HTTP.IsValid()}, {"https", a.HTTPS, a.HTTPS.IsValid()},
		{"events", a.Events, a.Events.IsValid()}, {"kernelLog", a.KernelLog, a.KernelLog.IsValid()}, {"api", a.API, a.API.IsValid()},
	} {
		if l.is {
			out = append(out, api.Listening{Server: l.server, Address: l.at.String()})
		}
	}
	if a.Socket != "" {
		out = append(out, api.Listening{Server: "socket", Address: a.Socket})
	}
	return out
}

// advertised is what DHCPv6 tells firmware and iPXE.
func (s settings) advertised() []api.Advertised {
	out := []api.Advertised{{What: "boot script", Value: s.urls.Entry()}}
	for _, c := range []struct {
		client inventory.Client
		by     string
	}{{inventory.FirmwarePXE, "TFTP"}, {inventory.FirmwareHTTP, "HTTP"}} {
		for _, arch := range []inventory.Arch{inventory.AMD64, inventory.ARM64} {
			if url, ok := s.urls.URL(c.client, arch, ""); ok {
				out = append(out, api.Advertised{What: fmt.Sprintf("loader for %s by %s", arch, c.by), Value: url})
			}
		}
	}
	return out
}

func oidcSettings(cfg *Config) *api.OIDCSettings {
	o := cfg.OIDC
	if o == nil {
		return nil
	}
	out := &api.OIDCSettings{Issuer: o.Issuer, ClientID: o.ClientID, Scopes: o.Scopes, RoleClaim: o.RoleClaim, Groups: []string{}, Secret: cfg.OIDCSecretFile != ""}
	for _, name := range slices.Sorted(maps.Keys(o.Roles)) {
		g := o.Roles[name]
		line := name + ": " + string(g.Role)
		if len(g.Clusters) > 0 {
			line += " in " + strings.Join(g.Clusters, ", ")
		}
		out.Groups = append(out.Groups, line)
	}
	return out
}

func subnetSettings(s *inventory.Subnet) api.SubnetSettings {
	renew, rebind := s.Timers()
	out := api.SubnetSettings{
		Name: s.Name, Prefix: s.Prefix.String(), Domains: s.Domains, NTP: slices.Clone(s.NTPNames),
		Preferred: s.Preferred.String(), Valid: s.Valid.String(), Renew: renew.String(), Rebind: rebind.String(), Preference: s.Preference,
	}
	for _, a := range s.DNS {
		out.DNS = append(out.DNS, a.String())
	}
	for _, a := range s.NTP {
		out.NTP = append(out.NTP, a.String())
	}
	for _, o := range s.Options {
		out.Options = append(out.Options, o.Code)
	}
	return out
}
