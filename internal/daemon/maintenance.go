package daemon

import (
	"context"
	"errors"
	"net/netip"
	"slices"

	"github.com/provisiond/provisiond/internal/inventory"
	"github.com/provisiond/provisiond/internal/maintenance"
	"github.com/provisiond/provisiond/internal/ndp"
	"github.com/provisiond/provisiond/internal/talos"
)

// findByHand adds what gives machines that were started by hand their config.
func (d *Daemon) findByHand(cfg *Config, client *talos.Client) {
	if !cfg.Maintenance {
		return
	}
	actor := maintenance.New(maintenance.Deps{
		Inventory: d.keeper, Talos: unclaimed{client}, Configs: d.configs, Neighbours: neighbours{}, Trail: d.trail,
	}, component(d.log, "maintenance"))
	d.count(actor)
	d.run("maintenance", actor.Run)
	for _, r := range d.routers {
		r.advertiser.Observe(actor.Heard)
	}
	for _, name := range cfg.Interfaces {
		if slices.ContainsFunc(d.routers, func(r router) bool { return r.name == name }) {
			continue
		}
		log := component(d.log, "ndp")
		conn, _, err := ndp.Listen(name)
		if err != nil { // it is a help only: who is registered, or was seen, is asked all the same
			log.Warn().Err(err).Msg("machines that are started by hand are not heard here")
			continue
		}
		d.onClose(conn.Close)
		listener := ndp.New(ndp.Config{Interface: name}, log)
		listener.Observe(actor.Heard)
		d.run("ndp on "+name, func(ctx context.Context) error { return listener.Hear(ctx, conn) })
	}
}

// unclaimed is the API of machines that have no config.
type unclaimed struct{ client *talos.Client }

// Ask implements maintenance.Talos.
func (u unclaimed) Ask(ctx context.Context, addr netip.Addr) (*maintenance.Answer, error) {
	m, err := u.client.Maintenance(ctx, addr)
	if errors.Is(err, talos.ErrNotInMaintenance) {
		return nil, nil
	} else if err != nil {
		return nil, err
	}
	return &maintenance.Answer{Fingerprint: m.Fingerprint, UUID: m.UUID, Serial: m.Serial, MACs: m.MACs, Arch: m.Arch, SecureBoot: m.SecureBoot}, nil
}

// Apply implements maintenance.Talos.
func (u unclaimed) Apply(ctx context.Context, addr netip.Addr, fingerprint string, config []byte) (maintenance.Outcome, error) {
	_, outcome, err := u.client.ApplyMaintenance(ctx, addr, fingerprint, config)
	switch outcome {
	case talos.Accepted:
		return maintenance.Accepted, err
	case talos.Refused:
		return maintenance.Refused, err
	case talos.NotYet:
		return maintenance.NotYet, err
	case talos.Denied:
		return maintenance.Denied, err
	}
	return maintenance.Unknown, err
}

// Config implements maintenance.Configs.
func (c *configs) Config(ctx context.Context, v inventory.View) (text []byte, hash string, err error) {
	cfg, err := c.config(ctx, v)
	if err != nil {
		return nil, "", err
	}
	return cfg.Bytes(), cfg.Hash, c.keep(ctx, v.Machine.Name, cfg)
}
