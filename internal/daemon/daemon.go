// Package daemon wires every part of provisiond together and runs it: the only
// place that knows all of them.
package daemon

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"sync"
	"syscall"
	"time"

	sd "github.com/coreos/go-systemd/v22/daemon"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/rs/zerolog"
	"golang.org/x/sync/errgroup"

	"github.com/provisiond/provisiond/internal/admin"
	"github.com/provisiond/provisiond/internal/audit"
	"github.com/provisiond/provisiond/internal/boltstore"
	"github.com/provisiond/provisiond/internal/bootstrap"
	"github.com/provisiond/provisiond/internal/ca"
	"github.com/provisiond/provisiond/internal/census"
	"github.com/provisiond/provisiond/internal/dhcpv6"
	"github.com/provisiond/provisiond/internal/httpconfig"
	"github.com/provisiond/provisiond/internal/images"
	"github.com/provisiond/provisiond/internal/inventory"
	"github.com/provisiond/provisiond/internal/loaders"
	"github.com/provisiond/provisiond/internal/monitor"
	"github.com/provisiond/provisiond/internal/ndp"
	"github.com/provisiond/provisiond/internal/phaselog"
	"github.com/provisiond/provisiond/internal/reimage"
	"github.com/provisiond/provisiond/internal/rollout"
	"github.com/provisiond/provisiond/internal/secureboot"
	"github.com/provisiond/provisiond/internal/talos"
	"github.com/provisiond/provisiond/internal/tftp"
)

// Options make a daemon.
type Options struct {
	Config  *Config
	Version string
	Log     zerolog.Logger
	// Store replaces the database of Config.Data and is used as it is. For tests.
	Store inventory.Store
}

// Daemon is a provisiond that has opened all its sockets. Run makes it answer.
type Daemon struct {
	log    zerolog.Logger
	addrs  Addrs
	parts  []part
	closes []func() error // in the order of opening; undone in reverse
	keeper *inventory.Keeper
	trail  *audit.Log

	metrics *prometheus.Registry

	version string

	// What Reload changes.
	reloading sync.Mutex
	cfg       *Config
	configs   *configs
	routers   []router
}

// Addrs is where a daemon listens, with the ports it really got.
type Addrs struct {
	DHCPv6    netip.AddrPort
	TFTP      netip.AddrPort
	HTTP      netip.AddrPort
	HTTPS     netip.AddrPort
	Events    netip.AddrPort
	KernelLog netip.AddrPort // invalid: machines send it elsewhere
	API       netip.AddrPort // invalid: no TCP address
	Socket    string         // empty: no unix socket
}

// part is something that runs until its context ends. It owns what it was
// given to listen on.
type part struct {
	name string
	run  func(ctx context.Context) error
}

// New opens the database and every socket, so that whatever is wrong (a port in
// use, a missing capability, a locked database) is an error here and nothing
// answers half-ready. It undoes everything when it fails. The caller calls Run.
func New(ctx context.Context, o Options) (_ *Daemon, err error) {
	d := &Daemon{log: o.Log, version: o.Version, metrics: newMetrics(o.Version)}
	defer func() {
		if err != nil {
			err = errors.Join(err, d.close())
		}
	}()
	cfg := o.Config
	id, err := identityOf(cfg)
	if err != nil {
		return nil, err
	}
	if id != nil {
		if err := id.inspect(cfg.Data); err != nil {
			return nil, err
		}
	}

	if err := os.MkdirAll(cfg.Data, 0o700); err != nil {
		return nil, fmt.Errorf("data: %w (create the folder, or set data to one that is writable)", err)
	}
	store := o.Store
	if store == nil {
		if store, err = openDatabase(ctx, cfg, boltstore.Options{}, component(o.Log, "database")); err != nil {
			return nil, err
		}
		d.onClose(store.Close)
	}
	if c, ok := store.(counts); ok {
		d.count(c)
	}
	if err := d.openTrail(cfg); err != nil { // the lock on the database is ours: nobody else writes it
		return nil, err
	}
	keeper, err := inventory.NewKeeper(ctx, store, inventory.KeeperConfig{Subnets: cfg.Subnets, Signs: cfg.SecureBootKey != "", Asks: cfg.Maintenance})
	if err != nil {
		return nil, err
	}
	if err := keeper.CheckSubnets(ctx); err != nil {
		return nil, err
	}
	d.keeper, d.cfg = keeper, cfg
	d.onClose(func() error { return keeper.Flush(context.WithoutCancel(ctx)) })
	d.run("inventory", func(ctx context.Context) error {
		log := component(o.Log, "inventory")
		return keeper.Run(ctx, func(err error) { log.Error().Err(err).Msg("cannot write what machines did; trying again") })
	})
	duid, err := keeper.MetaOnce(ctx, "server-duid", newServerDUID)
	if err != nil {
		return nil, fmt.Errorf("the server's DUID: %w", err)
	}
	authority, err := ownCA(ctx, keeper)
	if err != nil {
		return nil, err
	}
	blobs, err := images.Open(filepath.Join(cfg.Data, "images"))
	if err != nil {
		return nil, err
	}

	// Sockets first: the URLs carry the ports we really get.
	sockets, err := d.open(ctx, cfg)
	if err != nil {
		return nil, err
	}
	urls := httpconfig.URLs{HTTP: d.addrs.HTTP, HTTPS: d.addrs.HTTPS, TFTP: d.addrs.TFTP, PXE: cfg.Boot, HTTPBoot: cfg.Boot}
	files, err := loaders.New(loaders.Config{Files: cfg.Loaders, Autoexec: httpconfig.Autoexec(urls)})
	if err != nil {
		return nil, err
	}
	d.configs = newConfigs(keeper, talosOptions(cfg, d.addrs, authority.PEM()))
	logs := d.openLogs(cfg, keeper)
	client := talos.NewClient(talos.ClientOptions{Proxy: cfg.TalosProxy}, component(o.Log, "talos"))
	api := machineAPI{client}

	leases := dhcpv6.New(dhcpv6.Config{ServerDUID: duid, Boot: urls}, keeper, dhcpv6.NewKernelNeighbours(), component(o.Log, "dhcpv6"))
	d.count(d.configs.renderer, leases, trailCounts{d.trail}, diskCounts(cfg.Data))
	d.run("dhcpv6", func(ctx context.Context) error { return leases.Serve(ctx, sockets.dhcpv6) })
	boot, err := d.serveRack(cfg, sockets, keeper, urls, authority, files, blobs, logs)
	if err != nil {
		return nil, err
	}
	bootstraps, watcher := bootstrap.New(keeper, api, component(o.Log, "bootstrap")), monitor.New(keeper, api, component(o.Log, "monitor"))
	reimages := reimage.New(keeper, resets{client}, component(o.Log, "reimage"))
	d.run("bootstrap", bootstraps.Run)
	d.run("monitor", watcher.Run)
	d.run("reimage", reimages.Run)
	d.findByHand(cfg, client)
	machines := running{keeper, client, d.configs}
	guard := guards{reimage.NewGuard(keeper, resets{client}), reimages}
	rolls := rollout.New(keeper, rollouts{machines}, guard, component(o.Log, "rollout"))
	d.run("rollout", rolls.Run)
	numbers := census.New(keeper, cfg.Stall, component(o.Log, "census"))
	d.run("census", numbers.Run)
	d.run("phases", phaselog.New(keeper, cfg.Stall, component(o.Log, "phases")).Run)
	d.count(bootstraps, watcher, reimages, rolls, numbers)
	if err := d.trace(cfg, keeper); err != nil {
		return nil, err
	}
	d.run("sweep", func(ctx context.Context) error { return d.sweep(ctx, blobs) })
	d.run("disk", func(ctx context.Context) error { return watchDisk(ctx, cfg.Data, component(o.Log, "disk")) })
	pages, err := pagesOf(cfg, component(o.Log, "web"))
	if err != nil {
		return nil, err
	}
	apiLog := component(o.Log, "api")
	shown, clients, err := cfg.certificates(func(err error) {
		apiLog.Error().Err(err).Msg("the certificate of the API stays as it was")
	})
	if err != nil {
		return nil, err
	}
	told := settings{d: d, urls: urls, authority: authority, shown: shown}
	if sealed, ok := store.(database); ok {
		told.keyID = sealed.key
	}
	operator := admin.New(admin.Config{Version: o.Version, Trail: d.trail, CA: authority, ForeignClients: cfg.ClientCA != "", Hosts: cfg.hosts(), DHCPv6: askedServer{leases}, Logs: logs, Patience: cfg.Stall, Transfers: boot, Running: machines, Seeds: seeds{boot}, Pages: pages, Metrics: d.showMetrics(), Settings: told.tell},
		operators{keeper, logs}, d.configs, guard, uploads{blobs}, component(o.Log, "api"))
	d.count(certificateCounts{authority, shown})
	for _, l := range sockets.api {
		if l.Addr().Network() != "unix" {
			l = secured(l, cfg, authority, shown, clients)
		}
		d.run("api on "+l.Addr().String(), func(ctx context.Context) error { return operator.Serve(ctx, l) })
	}
	if id != nil {
		if err := id.take(cfg.Data); err != nil {
			return nil, err
		}
	}
	return d, nil
}

// serveRack adds the servers that machines speak to beside DHCPv6, and returns the one
// that boots them.
func (d *Daemon) serveRack(cfg *Config, s *sockets, keeper *inventory.Keeper, urls httpconfig.URLs, authority *ca.CA, files fs.FS, blobs *images.Store, logs machineLogs) (*httpconfig.Server, error) {
	var limits tftp.Config
	if cfg.Address.IsLoopback() {
		limits.MaxPerPeer = 512 // a simulated rack: all machines have one address
	}
	first := tftp.New(limits, files, keeper, component(d.log, "tftp"))
	d.count(first)
	for _, conn := range s.tftp {
		d.run("tftp on "+conn.LocalAddr().String(), func(ctx context.Context) error { return first.Serve(ctx, conn) })
	}
	deps := httpconfig.Deps{Inventory: keeper, Configs: rackConfigs{d.configs}, Loaders: files, Images: blobs, Trail: d.trail, Neighbours: neighbours{}}
	if cfg.SecureBootKey != "" {
		signer, err := secureboot.Load(cfg.SecureBootKey, cfg.SecureBootCertificate)
		if err != nil {
			return nil, fmt.Errorf("secureBoot: %w", err)
		}
		deps.Signer = signer
	}
	boot := httpconfig.New(httpconfig.Config{URLs: urls, ApprovalURL: approvalURL(cfg)}, deps, component(d.log, "http"))
	d.count(boot)
	d.run("UKIs", func(ctx context.Context) error { return d.layOutUKIs(ctx, blobs) })
	d.run("http", func(ctx context.Context) error { return boot.Serve(ctx, s.http) })
	d.run("https", func(ctx context.Context) error { return boot.ServeTLS(ctx, s.https, authority.Server()) })

	sink := talos.NewEventSink(reports{keeper}, reports{keeper}, logs, component(d.log, "events"))
	d.count(sink)
	d.run("events", func(ctx context.Context) error { return sink.Serve(ctx, s.events) })
	if s.kernelLog != nil {
		receiver := talos.NewKernelLog(logs, reports{keeper}, component(d.log, "kernellog"))
		d.count(receiver)
		d.run("kernel log", func(ctx context.Context) error { return receiver.Serve(ctx, s.kernelLog) })
	}

	for _, name := range slices.Sorted(maps.Keys(cfg.Advertise)) {
		conn, mac, err := ndp.Listen(name)
		if err != nil {
			return nil, err
		}
		d.onClose(conn.Close)
		ra, err := advertisement(cfg, name, mac)
		if err != nil {
			return nil, err
		}
		advertiser := ndp.New(ra, component(d.log, "ndp"))
		d.routers = append(d.routers, router{name, mac, advertiser})
		d.run("ndp on "+name, func(ctx context.Context) error { return advertiser.Serve(ctx, conn) })
	}
	return boot, nil
}

// approvalURL is where the console of a machine sends a person.
func approvalURL(cfg *Config) string {
	if !cfg.Listen.IsValid() {
		return "https://[" + cfg.Address.String() + "]/approve" // only the command answers
	}
	return "https://" + cfg.Listen.String() + "/approve"
}

// router is an advertiser and what it needs to be told something else.
type router struct {
	name       string
	mac        net.HardwareAddr
	advertiser *ndp.Advertiser
}

// advertisement is what is advertised on an interface.
func advertisement(cfg *Config, name string, mac net.HardwareAddr) (ndp.Config, error) {
	set := cfg.Advertise[name]
	ra := ndp.Config{Interface: name, LinkLayer: mac, Managed: true, OtherConfig: true, Lifetime: set.Lifetime, MTU: set.MTU}
	for i := range cfg.Subnets {
		if sub := &cfg.Subnets[i]; sub.Interface == name {
			ra.Prefixes = append(ra.Prefixes, ndp.Prefix{Prefix: sub.Prefix, SLAAC: set.SLAAC})
			ra.DNS = append(ra.DNS, sub.DNS...)
			ra.Domains = append(ra.Domains, sub.Domains...)
		}
	}
	if err := ra.Validate(); err != nil {
		return ra, fmt.Errorf("router advertisements on %s: %w", name, err)
	}
	return ra, nil
}

// Run answers until ctx ends or a part fails, then stops all of them and closes
// everything in reverse order. It returns nil when ctx ended.
func (d *Daemon) Run(ctx context.Context) error {
	if err := d.tellTrail(ctx, "start"); err != nil {
		return errors.Join(err, d.close())
	}
	group, ctx := errgroup.WithContext(ctx)
	for _, p := range d.parts {
		group.Go(func() error {
			err := p.run(ctx)
			if err == nil && ctx.Err() == nil {
				err = errors.New("stopped by itself")
			}
			if err != nil {
				return fmt.Errorf("%s: %w", p.name, err)
			}
			return nil
		})
	}
	// All sockets were open before this: bound means ready. Without systemd
	// this does nothing.
	if _, err := sd.SdNotify(false, sd.SdNotifyReady); err != nil {
		d.log.Warn().Err(err).Msg("cannot tell systemd that we are ready")
	}
	d.log.Info().Stringer("dhcpv6", d.addrs.DHCPv6).Stringer("tftp", d.addrs.TFTP).Stringer("http", d.addrs.HTTP).Stringer("https", d.addrs.HTTPS).
		Stringer("events", d.addrs.Events).Stringer("kernelLog", d.addrs.KernelLog).Stringer("api", d.addrs.API).Str("socket", d.addrs.Socket).Msg("ready")
	d.adviseLogin(ctx)
	<-ctx.Done()
	d.log.Info().Msg("stopping")
	err := errors.Join(group.Wait(), d.tellTrail(ctx, "stop"), d.close())
	d.log.Info().AnErr("reason", err).Msg("stopped")
	return err
}

// Addrs says where the daemon listens.
func (d *Daemon) Addrs() Addrs { return d.addrs }

func (d *Daemon) run(name string, f func(context.Context) error) {
	d.parts = append(d.parts, part{name, f})
}

func (d *Daemon) onClose(f func() error) { d.closes = append(d.closes, f) }

// close undoes New in reverse. Parts close their own listeners; closing twice
// is expected and no error.
func (d *Daemon) close() error {
	var errs []error
	for i := len(d.closes) - 1; i >= 0; i-- {
		if err := d.closes[i](); err != nil && !errors.Is(err, net.ErrClosed) && !errors.Is(err, os.ErrClosed) {
			errs = append(errs, err)
		}
	}
	d.closes = nil
	return errors.Join(errs...)
}

// orphanAge is how long the file of an image may lie there without an image that
// names it: an upload of several files comes before its record.
const orphanAge = 24 * time.Hour

// sweep removes what is over: leases that ended, once a minute, and files that
// no image names.
func (d *Daemon) sweep(ctx context.Context, blobs *images.Store) error {
	tick := time.NewTicker(time.Minute)
	defer tick.Stop()
	for {
		if err := d.sweepImages(ctx, blobs); err != nil && ctx.Err() == nil {
			d.log.Warn().Err(err).Msg("cannot sweep the files of removed images")
		}
		if err := d.keeper.Sweep(ctx); err != nil && ctx.Err() == nil {
			d.log.Warn().Err(err).Msg("cannot sweep ended leases")
		}
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
	}
}

// layOutUKIs reads the images of which UKIs are made, once: when firmware asks for one, it
// does not wait for long.
func (d *Daemon) layOutUKIs(ctx context.Context, blobs *images.Store) error {
	list, err := d.keeper.Images(ctx)
	if err != nil && ctx.Err() == nil {
		return err
	}
	for i := range list {
		if ctx.Err() != nil {
			break
		}
		if !list[i].HasUKI() {
			continue
		}
		if _, err := blobs.UKI(&list[i]); err != nil {
			d.log.Error().Err(err).Str("image", list[i].ID()).Msg("cannot make UKIs of a boot image: import it again")
		}
	}
	<-ctx.Done()
	return nil
}

func (d *Daemon) sweepImages(ctx context.Context, blobs *images.Store) error {
	list, err := d.keeper.Images(ctx)
	if err != nil {
		return err
	}
	named := map[string]bool{}
	for _, img := range list {
		for _, f := range img.Files() {
			named[f.Blob.SHA256] = true
		}
	}
	n, err := blobs.Sweep(func(sha256 string) bool { return named[sha256] }, orphanAge)
	if n > 0 {
		d.log.Info().Int("files", n).Msg("removed files of images that are gone")
	}
	return err
}

// newServerDUID makes a DUID-UUID (RFC 6355) of random bits. It is stored with
// the data: a DUID that changed would orphan every client that knows it.
func newServerDUID() ([]byte, error) {
	duid := make([]byte, 18)
	duid[1] = 4
	_, _ = rand.Read(duid[2:])      // never fails (crypto/rand)
	duid[8] = duid[8]&0x0f | 0x40   // version 4
	duid[10] = duid[10]&0x3f | 0x80 // variant of RFC 9562
	return duid, nil
}

// ownCA loads the authority that machines and operators know us by, and makes it
// once: whoever trusts it has a copy.
func ownCA(ctx context.Context, keeper *inventory.Keeper) (*ca.CA, error) {
	text, err := keeper.MetaOnce(ctx, "ca", ca.New)
	if err != nil {
		return nil, fmt.Errorf("our own CA: %w", err)
	}
	return ca.Load(text)
}

func component(log zerolog.Logger, name string) zerolog.Logger {
	return log.With().Str("component", name).Logger()
}

// neighbours is the kernel's neighbour table, by the name of an interface.
type neighbours struct{}

// LinkLayer implements httpconfig.Neighbours.
func (neighbours) LinkLayer(addr netip.Addr, on string) (inventory.MAC, bool) {
	nic, err := net.InterfaceByName(on)
	if err != nil {
		return "", false
	}
	return dhcpv6.LinkLayer(addr, nic.Index)
}

// uploads is the image folder as operators fill it.
type uploads struct{ *images.Store }

// Has implements admin.Blobs.
func (u uploads) Has(_ context.Context, b inventory.Blob) (bool, error) { return u.Store.Has(b), nil }

// sockets is everything a daemon listens on.
type sockets struct {
	dhcpv6    net.PacketConn
	tftp      []net.PacketConn
	http      net.Listener
	https     net.Listener
	events    net.Listener
	kernelLog net.Listener // nil: machines send it elsewhere
	api       []net.Listener
}

func (d *Daemon) open(ctx context.Context, cfg *Config) (*sockets, error) {
	var s sockets
	var err error
	listen := dhcpv6.ListenConfig{Interfaces: cfg.Interfaces, Port: cfg.DHCPv6Port}
	if len(cfg.Interfaces) == 0 {
		listen.Address = cfg.Address
	}
	if s.dhcpv6, err = dhcpv6.Listen(ctx, listen); err != nil {
		return nil, err
	}
	d.onClose(s.dhcpv6.Close)
	d.addrs.DHCPv6 = netip.AddrPortFrom(cfg.Address, portOf(s.dhcpv6.LocalAddr()))

	// TFTP must answer from the address that was asked, so each address has a
	// socket of its own: ours, and the link-local one of every interface.
	addrs := []netip.Addr{cfg.Address}
	for _, name := range cfg.Interfaces {
		a, err := linkLocal(name)
		if err != nil {
			return nil, err
		}
		addrs = append(addrs, a)
	}
	port := cfg.TFTPPort
	for _, a := range addrs {
		conn, err := listenUDP(ctx, netip.AddrPortFrom(a, port))
		if err != nil {
			return nil, explain("TFTP", "ports.tftp", err)
		}
		d.onClose(conn.Close)
		s.tftp = append(s.tftp, conn)
		port = portOf(conn.LocalAddr())
	}
	d.addrs.TFTP = netip.AddrPortFrom(cfg.Address, port)

	tcp := func(lc net.ListenConfig, what, field string, addr netip.AddrPort) (net.Listener, netip.AddrPort, error) {
		l, err := lc.Listen(ctx, "tcp6", addr.String())
		if err != nil {
			return nil, netip.AddrPort{}, explain(what, field, err)
		}
		d.onClose(l.Close)
		return l, netip.AddrPortFrom(addr.Addr(), portOf(l.Addr())), nil
	}
	// Boot connections are bounded in time by deadlines; probing them would cost four
	// more system calls for each of a herd.
	if s.http, d.addrs.HTTP, err = tcp(net.ListenConfig{KeepAlive: -1}, "HTTP boot", "ports.http", netip.AddrPortFrom(cfg.Address, cfg.HTTPPort)); err != nil {
		return nil, err
	}
	if s.https, d.addrs.HTTPS, err = tcp(net.ListenConfig{KeepAlive: -1}, "HTTPS", "ports.https", netip.AddrPortFrom(cfg.Address, cfg.HTTPSPort)); err != nil {
		return nil, err
	}
	if s.events, d.addrs.Events, err = tcp(net.ListenConfig{}, "the event sink", "ports.events", netip.AddrPortFrom(cfg.Address, cfg.EventsPort)); err != nil {
		return nil, err
	}
	if cfg.KernelLog == "" {
		if s.kernelLog, d.addrs.KernelLog, err = tcp(net.ListenConfig{}, "the kernel log", "ports.kernelLog", netip.AddrPortFrom(cfg.Address, cfg.KernelLogPort)); err != nil {
			return nil, err
		}
	}
	if cfg.Listen.IsValid() {
		if err := cfg.offRack(); err != nil {
			return nil, err
		}
		l, addr, err := tcp(net.ListenConfig{}, "the API", "api.listen", cfg.Listen)
		if err != nil {
			return nil, err
		}
		s.api, d.addrs.API = append(s.api, l), addr
	}
	if cfg.Socket != "" {
		l, err := listenUnix(cfg.Socket)
		if err != nil {
			return nil, err
		}
		d.onClose(l.Close)
		s.api, d.addrs.Socket = append(s.api, l), cfg.Socket
	}
	return &s, nil
}

// settle is how long an interface may take to make sure that its link-local
// address is nobody else's (RFC 4862 section 5.4); Linux takes 1 to 2 s.
const settle = 10 * time.Second

// listenUDP opens a socket on an address. A link-local one may still be
// tentative when the host has just booted, and cannot be bound to until then.
func listenUDP(ctx context.Context, addr netip.AddrPort) (net.PacketConn, error) {
	deadline := time.Now().Add(settle)
	for {
		var lc net.ListenConfig
		conn, err := lc.ListenPacket(ctx, "udp6", addr.String())
		if !errors.Is(err, syscall.EADDRNOTAVAIL) || !addr.Addr().IsLinkLocalUnicast() || time.Now().After(deadline) {
			return conn, err
		}
		select {
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-time.After(settle / 50):
		}
	}
}

// listenUnix opens the API's socket for root alone. A socket that a killed
// daemon left behind is replaced; one that somebody answers on is not.
func listenUnix(path string) (net.Listener, error) {
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return nil, fmt.Errorf("api.socket: %w (create the folder, or set another path)", err)
	}
	if conn, err := net.DialTimeout("unix", path, time.Second); err == nil {
		_ = conn.Close()
		return nil, fmt.Errorf("api.socket: %s is in use by another provisiond (stop it, or set another path)", path)
	}
	if info, err := os.Lstat(path); err == nil {
		if info.Mode()&fs.ModeSocket == 0 {
			return nil, fmt.Errorf("api.socket: %s exists and is no socket (set another path)", path)
		}
		if err := os.Remove(path); err != nil {
			return nil, fmt.Errorf("api.socket: %w", err)
		}
	}
	old := syscall.Umask(0o177) // never open to others, not even for a moment
	l, err := net.Listen("unix", path)
	syscall.Umask(old)
	if err != nil {
		return nil, fmt.Errorf("api.socket: %w", err)
	}
	return l, nil
}

// linkLocal returns an interface's link-local address, with its zone.
func linkLocal(name string) (netip.Addr, error) {
	ifi, err := net.InterfaceByName(name)
	if err != nil {
		return netip.Addr{}, fmt.Errorf("interfaces: %q: %w (`ip link` lists the interfaces)", name, err)
	}
	list, err := ifi.Addrs()
	if err != nil {
		return netip.Addr{}, fmt.Errorf("interfaces: addresses of %s: %w", name, err)
	}
	for _, a := range list {
		if n, ok := a.(*net.IPNet); ok && n.IP.To4() == nil && n.IP.IsLinkLocalUnicast() {
			addr, _ := netip.AddrFromSlice(n.IP)
			return addr.WithZone(name), nil
		}
	}
	return netip.Addr{}, fmt.Errorf("interfaces: %s has no link-local address (is it up, and IPv6 on? ip link set %s up)", name, name)
}

// explain says what to do about a port that cannot be had.
func explain(what, field string, err error) error {
	switch {
	case errors.Is(err, syscall.EADDRINUSE):
		return fmt.Errorf("%s: %s: %w (another server has the port; `ss -lnp` names it)", field, what, err)
	case errors.Is(err, syscall.EACCES):
		return fmt.Errorf("%s: %s: %w (ports below 1024 need CAP_NET_BIND_SERVICE; deploy/provisiond.service has it)", field, what, err)
	case errors.Is(err, syscall.EADDRNOTAVAIL):
		return fmt.Errorf("address: %s: %w (no interface of this host has the address)", what, err)
	}
	return fmt.Errorf("%s: %s: %w", field, what, err)
}

func portOf(a net.Addr) uint16 {
	_, port, err := net.SplitHostPort(a.String())
	if err != nil {
		return 0
	}
	n, err := strconv.ParseUint(port, 10, 16)
	if err != nil {
		return 0
	}
	return uint16(n)
}
