// Package httpconfig answers what a booting machine asks over HTTP: the loader,
// its boot script, kernel and initramfs, and its machine config.
package httpconfig

import (
	"bytes"
	"cmp"
	"context"
	"crypto/tls"
	"errors"
	"io"
	"io/fs"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"os"
	"strconv"
	"sync"
	"time"

	"github.com/go-chi/chi/v5"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/rs/zerolog"
	"golang.org/x/time/rate"

	"github.com/provisiond/provisiond/internal/audit"
	"github.com/provisiond/provisiond/internal/inventory"
	"github.com/provisiond/provisiond/internal/seed"
	"github.com/provisiond/provisiond/internal/uki"
)

// Config says where the server is and how long it waits. A zero duration means
// its default.
type Config struct {
	// URLs is how machines reach the server.
	URLs URLs
	// ApprovalURL is where a person approves a machine, as its console shows it.
	ApprovalURL string
	// Hold is how long a config request may wait until there is a config; 150 s
	// by default. Talos hangs up after 180 s, and asks again sooner the fewer
	// answers it has had.
	Hold time.Duration
	// TokenWindow is how long after the start of a boot its config may be
	// fetched; 24 h by default.
	TokenWindow time.Duration
	// Stall is how long a peer may take to accept a piece of an answer, at most
	// 512 KB, before its connection is closed; 30 s by default.
	Stall time.Duration
}

// Inventory is what the server knows of machines and where it records what they
// did. What a script rests on must be durable when Record of ScriptServed returns:
// the token that it hands out is printed into the script at once.
type Inventory interface {
	// View returns what is known of the machine behind a NIC. The view's Machine
	// is nil for a stranger.
	View(ctx context.Context, mac inventory.MAC, arch inventory.Arch) (inventory.View, error)
	Record(ctx context.Context, e inventory.Event) (inventory.View, error)
	// MachineByAddress returns the machine that an address belongs to: its stable
	// address, a lease, or one made of a MAC of its own; a link-local one has the
	// interface as its zone. The view's Machine is nil when it is nobody's.
	MachineByAddress(ctx context.Context, a netip.Addr) (inventory.View, error)
	// SubnetOf returns the subnet that an address lies in, or nil.
	SubnetOf(a netip.Addr) *inventory.Subnet
	// Adopts returns the code of an unregistered NIC that is to wait until it is
	// registered, else nothing.
	Adopts(ctx context.Context, mac inventory.MAC) (code string, err error)
	// Images lists the boot images.
	Images(ctx context.Context) ([]inventory.Image, error)
	// Watch returns a channel that receives after changes, several of which may
	// be one, and a function that ends it.
	Watch() (<-chan struct{}, func())
}

// MachineConfig is a machine config, ready to be sent.
type MachineConfig struct {
	Parts [][]byte // sent one after the other; shared, never to be changed
	Hash  string   // SHA-256 of the whole, hexadecimal
	Size  int      // bytes in all Parts
}

// Configs renders machine configs and kernel lines. Config is asked when the
// script goes out and again when it is fetched, so it should remember.
type Configs interface {
	Config(ctx context.Context, v inventory.View) (MachineConfig, error)
	// KernelLine returns the arguments of the kernel, without initrd=, that make
	// Talos fetch its config.
	KernelLine(ctx context.Context, v inventory.View, at ConfigURLs) (string, error)
	// Seed returns what a seed says of the machine beside its config.
	Seed(ctx context.Context, v inventory.View) (seed.Machine, error)
}

// Images opens the files of boot images.
type Images interface {
	Open(b inventory.Blob) (*os.File, error)
	// UKI returns what machines' own UKIs are made of. An image of which none can be made
	// is inventory.ErrNotFound.
	UKI(i *inventory.Image) (*uki.Template, error)
}

// Trail is the audit trail. What is noted is on disk within a second: no machine waits
// for it, and none is refused because it cannot be written.
type Trail interface {
	Note(e audit.Entry)
}

// Neighbours is the neighbour table of this host.
type Neighbours interface {
	// LinkLayer returns the link-layer address of an address on an interface. There is
	// one for each on-link host that a TCP connection is open to.
	LinkLayer(addr netip.Addr, on string) (inventory.MAC, bool)
}

// Deps are the parts the server asks.
type Deps struct {
	Inventory Inventory
	Configs   Configs
	Loaders   fs.FS // by name "ARCH/FILE"; opened files must implement io.Seeker
	Images    Images
	Signer    uki.Signer // of UKIs; nil: they are not signed
	Trail     Trail
	Neighbours
}

const (
	readHeaderTimeout = 10 * time.Second
	idleTimeout       = 60 * time.Second
	bodyTimeout       = 2 * time.Second
	maxHeaderBytes    = 16 << 10
	// stopTimeout is how long downloads may go on once the server is to stop.
	stopTimeout = 3 * time.Second
	// recordTimeout bounds the wait for the inventory after an answer.
	recordTimeout = 10 * time.Second
	// maxHeld bounds the config requests that wait at one time.
	maxHeld = 16384
)

// Server answers booting machines.
type Server struct {
	config Config
	Deps
	router chi.Router
	secure chi.Router // of the encrypted listener
	log    zerolog.Logger
	junk   zerolog.Logger // rate-limited: anyone on the network can cause these lines

	refusals *rate.Limiter           // of events that anyone can cause
	guessers *guesses[netip.Addr]    // who is refused again and again is not looked at
	guessed  *guesses[inventory.MAC] // whose refusals are too many to be noted one by one
	asked    *guesses[string]        // codes that are asked for, by the token of the boot
	held     chan struct{}           // one for each config request that waits
	buffers  sync.Pool               // of *bytes.Buffer, to send configs from
	metrics  metrics
	underway underway
}

// New makes a server. It does no I/O.
func New(c Config, d Deps, log zerolog.Logger) *Server {
	c.Hold = cmp.Or(c.Hold, 150*time.Second)
	c.TokenWindow = cmp.Or(c.TokenWindow, 24*time.Hour)
	c.Stall = cmp.Or(c.Stall, 30*time.Second)
	s := &Server{
		config:   c,
		Deps:     d,
		router:   chi.NewRouter(),
		secure:   chi.NewRouter(),
		log:      log,
		junk:     log.Sample(&zerolog.BurstSampler{Burst: 5, Period: 10 * time.Second}),
		refusals: rate.NewLimiter(5, 50),
		guessers: newGuesses[netip.Addr](),
		guessed:  newGuesses[inventory.MAC](),
		asked:    newGuesses[string](),
		held:     make(chan struct{}, maxHeld),
		metrics:  newMetrics(),
	}
	both := func(route string, h http.HandlerFunc) {
		s.router.Get(route, h)
		s.router.Head(route, h)
	}
	both(routeLoader, s.counted(kindLoader, s.loader))
	both(routeEntry, s.counted(kindScript, s.entry))
	both(routeUKI, s.counted(kindUKI, s.uki))
	both(routeSigned, s.counted(kindUKI, s.image))
	both(routeKernel, s.counted(kindKernel, s.image))
	both(routeInitramfs, s.counted(kindInitramfs, s.image))
	// These two record what they answer, so there is no HEAD of them.
	s.router.Get(routeScript, s.counted(kindScript, s.script))
	for _, r := range []chi.Router{s.router, s.secure} {
		r.Get(routeConfig, s.give(byURL))
		for _, name := range []string{seed.MetaData, seed.NetworkConfig, seed.UserData, seed.VendorData} {
			r.Get(routeSeed+name, s.give(noCloudFile(name)))
		}
		for _, name := range []string{metalISO, noCloudISO} {
			r.Get(routeSeed+name, s.give(volume(name)))
			r.Head(routeSeed+name, s.give(volume(name)))
		}
		r.Post(routeDevice, s.authorizeDevice)
		r.Post(routeToken, s.issueToken)
		r.NotFound(func(w http.ResponseWriter, r *http.Request) {
			s.refuse(w, r, http.StatusNotFound, "there is nothing here")
		})
	}
	return s
}

// Handler answers requests. It hides nothing of the ResponseWriter it is given:
// images go out by sendfile.
func (s *Server) Handler() http.Handler { return s.router }

// Serve answers the connections of l until ctx ends, then lets downloads go on
// for a moment, closes l and every connection, and returns nil when all is
// quiet. Config requests that are held are answered at once.
func (s *Server) Serve(ctx context.Context, l net.Listener) error {
	return s.serve(ctx, s.limit(l), s.router)
}

func (s *Server) limit(l net.Listener) net.Listener {
	return &limited{Listener: l, lab: s.lab, open: map[netip.Addr]int{}}
}

// ServeTLS is Serve for what must not be read on the way: machine configs, and
// nothing else. A failed handshake is no bad machine: Talos may try once before
// it has read whom to trust.
func (s *Server) ServeTLS(ctx context.Context, l net.Listener, certificate func(*tls.ClientHelloInfo) (*tls.Certificate, error)) error {
	return s.serve(ctx, tls.NewListener(s.limit(l), &tls.Config{
		GetCertificate: certificate,
		MinVersion:     tls.VersionTLS13, // Talos speaks it
		NextProtos:     []string{"http/1.1"},
	}), s.secure)
}

func (s *Server) serve(ctx context.Context, l net.Listener, router http.Handler) error {
	var active sync.WaitGroup
	srv := &http.Server{
		Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			active.Add(1)
			defer active.Done()
			if r.ContentLength != 0 {
				// At most a small form; do not wait for a slow one.
				_ = http.NewResponseController(w).SetReadDeadline(time.Now().Add(bodyTimeout))
				w.Header().Set("Connection", "close")
			}
			router.ServeHTTP(w, r)
		}),
		BaseContext:       func(net.Listener) context.Context { return ctx },
		ReadHeaderTimeout: readHeaderTimeout,
		WriteTimeout:      s.config.Stall, // moved on by whoever writes for longer
		IdleTimeout:       idleTimeout,
		MaxHeaderBytes:    maxHeaderBytes,
		ErrorLog:          newErrorLog(s.junk, s.metrics.handshakes),
	}
	stopped := make(chan struct{})
	stop := context.AfterFunc(ctx, func() {
		defer close(stopped)
		grace, cancel := context.WithTimeout(context.WithoutCancel(ctx), stopTimeout)
		defer cancel()
		if srv.Shutdown(grace) != nil {
			_ = srv.Close() // it has closed the listener already; the rest must go
		}
	})
	err := srv.Serve(l)
	if stop() {
		_ = srv.Close()
		active.Wait()
		return err
	}
	<-stopped
	active.Wait()
	if errors.Is(err, http.ErrServerClosed) {
		return nil
	}
	return err
}

// refuse answers with an error in one line of text.
func (s *Server) refuse(w http.ResponseWriter, r *http.Request, status int, reason string) {
	s.junk.Warn().Str("method", r.Method).Str("route", routeOf(r)).Stringer("peer", peerOf(r)).Int("status", status).Str("reason", reason).Msg("HTTP request refused")
	text(w, status, reason+"\n")
}

// text answers with a short text that nobody may keep.
func text(w http.ResponseWriter, status int, body string) {
	h := w.Header()
	h.Set("Content-Type", "text/plain; charset=utf-8")
	h.Set("X-Content-Type-Options", "nosniff")
	h.Set("Cache-Control", "no-store")
	h.Set("Content-Length", strconv.Itoa(len(body)))
	w.WriteHeader(status)
	_, _ = io.WriteString(w, body) // the peer has gone; the server notices by itself
}

// routeOf is the pattern of a route for the log: the path itself may hold a token.
func routeOf(r *http.Request) string {
	if c := chi.RouteContext(r.Context()); c != nil {
		return c.RoutePattern()
	}
	return ""
}

// param is a part of the path, unescaped: the router leaves it as it was sent
// when it has needless escapes.
func param(r *http.Request, name string) string {
	raw := chi.URLParam(r, name)
	if r.URL.RawPath == "" {
		return raw
	}
	plain, err := url.PathUnescape(raw)
	if err != nil {
		return raw
	}
	return plain
}

// errorLog passes on what net/http complains of: connections that break off. It is
// told of failed handshakes in no other way than by their lines.
type errorLog struct {
	log        zerolog.Logger
	handshakes prometheus.Counter
}

func (e errorLog) Write(p []byte) (int, error) {
	if bytes.HasPrefix(p, []byte("http: TLS handshake error")) {
		e.handshakes.Inc()
	}
	e.log.Debug().Str("reason", string(p[:min(len(p), 200)])).Msg("HTTP connection failed")
	return len(p), nil
}
