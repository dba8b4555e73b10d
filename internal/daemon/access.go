package daemon

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"

	"golang.org/x/net/netutil"

	"github.com/provisiond/provisiond/internal/admin"
	"github.com/provisiond/provisiond/internal/audit"
	"github.com/provisiond/provisiond/internal/ca"
	"github.com/provisiond/provisiond/internal/inventory"
)

// maxCallers bounds the connections to the API over TCP: whoever opens more waits, and
// leaves the rack's servers their file descriptors.
const maxCallers = 512

// openTrail opens the audit trail beside the database, which a backup does not take back.
func (d *Daemon) openTrail(cfg *Config) error {
	log := component(d.log, "audit")
	trail, err := audit.Open(cfg.Data, audit.Options{Warn: func(err error) { log.Error().Err(err).Msg("audit trail") }})
	if err != nil {
		return err
	}
	d.trail = trail
	d.onClose(trail.Close)
	return nil
}

// tellTrail has a line for an act of provisiond's own, and says in the log how far the
// trail has got: a witness of its end that is kept elsewhere.
func (d *Daemon) tellTrail(ctx context.Context, action string) error {
	err := d.trail.Append(context.WithoutCancel(ctx), audit.Entry{Who: "provisiond", Action: action, Outcome: audit.OK, Reason: d.version})
	if err != nil {
		return err
	}
	seq, hash := d.trail.Head()
	d.log.Info().Uint64("line", seq).Str("hash", hash).Msg("audit trail")
	return nil
}

// offRack refuses an address of the API that lies on one of the rack's interfaces, beside
// the subnets that are served there.
func (c *Config) offRack() error {
	for _, name := range c.Interfaces {
		ifi, err := net.InterfaceByName(name)
		if err != nil {
			continue // whoever listens on it says so
		}
		addrs, err := ifi.Addrs()
		if err != nil {
			return fmt.Errorf("interfaces: addresses of %s: %w", name, err)
		}
		for _, a := range addrs {
			n, ok := a.(*net.IPNet)
			if !ok {
				continue
			}
			if ip, _ := netip.AddrFromSlice(n.IP); ip.Unmap() == c.Listen.Addr().WithZone("") && ip.IsGlobalUnicast() {
				return &inventory.FieldError{Field: "api.listen", Problem: fmt.Sprintf("%s is an address of %s, which the machines are on", c.Listen, name), Fix: "an address of another interface, or [::1]:8440"}
			}
		}
	}
	return nil
}

// hosts are the names that the API is called by.
func (c *Config) hosts() []string {
	names := slices.Clone(c.Names)
	if name, err := os.Hostname(); err == nil {
		if name = strings.ToLower(name); inventory.ValidDomain(name) && !slices.Contains(names, name) {
			names = append(names, name)
		}
	}
	return append(names, "localhost")
}

// certificates reads the files that the config names; what it does not name is nil.
func (c *Config) certificates(warn func(error)) (shown *ca.Files, clients *x509.CertPool, err error) {
	if c.Certificate != "" {
		if shown, err = ca.OpenFiles(c.Certificate, c.CertificateKey, warn); err != nil {
			return nil, nil, &inventory.FieldError{Field: "api.tls", Problem: err.Error(), Fix: "PEM files of a certificate, with those between it and its CA, and of its key"}
		}
	}
	if c.ClientCA != "" {
		text, err := os.ReadFile(c.ClientCA)
		clients = x509.NewCertPool()
		if err == nil && !clients.AppendCertsFromPEM(text) {
			err = fmt.Errorf("%s holds no certificate", c.ClientCA)
		}
		if err != nil {
			return nil, nil, &inventory.FieldError{Field: "api.tls.clientCA", Problem: err.Error(), Fix: "a PEM file of the CA that issues client certificates"}
		}
	}
	return shown, clients, nil
}

// secured is a listener of the API that speaks TLS.
func secured(l net.Listener, cfg *Config, authority *ca.CA, shown *ca.Files, clients *x509.CertPool) net.Listener {
	show := authority.Server(cfg.hosts()...)
	if shown != nil {
		show = shown.GetCertificate
	}
	if clients == nil {
		clients = authority.Pool()
	}
	return tls.NewListener(netutil.LimitListener(l, maxCallers), admin.TLS(show, clients))
}

// adviseLogin says how to log in, as long as nobody can.
func (d *Daemon) adviseLogin(ctx context.Context) {
	tokens, err := d.keeper.Tokens(ctx)
	if err != nil || len(tokens) > 0 || !d.addrs.API.IsValid() {
		return
	}
	d.log.Info().Stringer("api", d.addrs.API).Msg("nobody has a token yet: make one as root on this host with `provisiond token create NAME --role admin`, and `provisiond ca` prints the CA to trust")
}
