package daemon

import (
	"cmp"
	"context"
	"fmt"
	"reflect"
	"slices"
	"strings"

	"github.com/provisiond/provisiond/internal/inventory"
	"github.com/provisiond/provisiond/internal/ndp"
)

// reloadable are the fields of Config that a running daemon can change.
var reloadable = []string{"Subnets", "Advertise"}

// inFile is what a field of Config is called in the config file, where that is not
// its own name.
var inFile = map[string]string{
	"DHCPv6Port": "ports.dhcpv6", "TFTPPort": "ports.tftp", "HTTPPort": "ports.http", "HTTPSPort": "ports.https", "EventsPort": "ports.events", "KernelLogPort": "ports.kernelLog",
	"Socket": "api.socket", "Listen": "api.listen", "Names": "api.names",
	"Certificate": "api.tls.certificate", "CertificateKey": "api.tls.key", "ClientCA": "api.tls.clientCA", "OIDC": "api.oidc", "OIDCSecretFile": "api.oidc.clientSecretFile", "TalosProxy": "talos.proxy", "KernelLog": "talos.kernelLog",
	"LogLevel": "log.level", "LogJSON": "log.format",
}

// Reload puts the subnets of another config, and what is advertised of them, in
// the place of those that are served. Everything else of it must be as it was. It
// changes all or nothing; an error names the field, or the machine, that does not
// fit.
func (d *Daemon) Reload(ctx context.Context, cfg *Config) error {
	d.reloading.Lock()
	defer d.reloading.Unlock()
	var fixed []string
	before, after := reflect.ValueOf(*d.cfg), reflect.ValueOf(*cfg)
	for i := range before.NumField() {
		name := before.Type().Field(i).Name
		if !slices.Contains(reloadable, name) && !reflect.DeepEqual(before.Field(i).Interface(), after.Field(i).Interface()) {
			fixed = append(fixed, cmp.Or(inFile[name], strings.ToLower(name)))
		}
	}
	if len(fixed) > 0 {
		return &inventory.FieldError{Field: strings.Join(fixed, ", "), Problem: "changes only with a restart", Fix: "restart provisiond, or put it back"}
	}
	on := func(name string) bool { _, ok := cfg.Advertise[name]; return ok }
	if len(cfg.Advertise) != len(d.routers) || slices.ContainsFunc(d.routers, func(r router) bool { return !on(r.name) }) {
		return &inventory.FieldError{Field: "routerAdvertisements.enabled", Problem: "is switched only with a restart", Fix: "restart provisiond, or put it back"}
	}
	ras := make([]ndp.Config, len(d.routers))
	for i, r := range d.routers {
		var err error
		if ras[i], err = advertisement(cfg, r.name, r.mac); err != nil {
			return err
		}
	}
	if err := d.keeper.SetSubnets(ctx, cfg.Subnets); err != nil {
		return fmt.Errorf("the subnets stay as they were: %w", err)
	}
	for i, r := range d.routers {
		r.advertiser.Update(ras[i])
	}
	d.configs.made.forget()
	d.cfg = cfg
	d.log.Info().Int("subnets", len(cfg.Subnets)).Msg("reloaded")
	return nil
}
