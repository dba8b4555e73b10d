// Package admin is the operator's API: /api/v1 over HTTP, described by an
// OpenAPI 3.1 document that is made from the same Go types that serve it. It
// changes the inventory through the interfaces in ports.go and decides nothing
// itself. Who calls is known by the unix socket that they could open, by a token, by the
// session of a browser or by a client certificate; every operation says where it is registered which role
// it needs, and what was done, or refused, is in the audit trail.
package admin

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	stdlog "log"
	"net"
	"net/http"
	"reflect"
	"strings"
	"sync"
	"time"

	"github.com/danielgtaylor/huma/v2"
	"github.com/danielgtaylor/huma/v2/adapters/humachi"
	"github.com/go-chi/chi/v5"
	"github.com/rs/zerolog"
	"golang.org/x/time/rate"

	"github.com/provisiond/provisiond/api"
	"github.com/provisiond/provisiond/internal/inventory"
)

// Config is what the API needs to know.
type Config struct {
	// Version of provisiond, as status, version and the OpenAPI document say it.
	Version string
	// MaxBlob is the largest boot file that can be uploaded, in bytes. 0: 1 GiB.
	MaxBlob int64
	// MaxWatchers is how many may follow something at once, and a quarter of that one of
	// them. 0: 256.
	MaxWatchers int
	// Trail is where it is kept who did what. nil: nowhere.
	Trail Trail
	// CA issues client certificates, and is what callers have to trust. nil: there is none.
	CA CA
	// ForeignClients: client certificates come from another CA, and ours issues none.
	ForeignClients bool
	// Hosts are names by which browsers may reach the API, beside addresses and
	// localhost; see guard.
	Hosts []string
	// DHCPv6 explains packets and counts those it dropped; nil: there is none.
	DHCPv6 DHCPv6
	// Logs are what machines say; nil: there are none.
	Logs Logs
	// Transfers are the boot files that machines are reading; nil: it is not known.
	Transfers Transfers
	// Running asks machines what they run and gives them other configs; nil: nobody does.
	Running Running
	// Seeds are other ways to a machine's config; nil: there are none.
	Seeds Seeds
	// Settings are those that the daemon runs with; nil: they are not told.
	Settings func() api.Settings
	// Metrics answers with what is counted, in Prometheus' format; nil: nothing is.
	Metrics http.Handler
	// Pages makes what answers browsers, over TLS only, at all paths that are not the
	// API's; nil: nothing does.
	Pages func(*Server) http.Handler
	// Patience is how long phases may last. nil: inventory.DefaultPatience.
	Patience inventory.Patience
	// Now is the clock that phases are told by. nil: time.Now.
	Now func() time.Time
}

// Server answers the operator's API.
type Server struct {
	cfg      Config
	inv      scope
	talos    Talos
	guards   Guards
	blobs    Blobs
	log      zerolog.Logger
	watchers *Places // of those who follow something
	guesses  *guesses
	refusals refusals
	sessions *sessions
	handler  http.Handler
	inside   http.Handler // the same for who is known already

	hubs sync.Mutex
	hub  *hub // of those who follow the machines; nil: nobody does
}

// New returns a server. It does no I/O.
func New(cfg Config, inv Inventory, talos Talos, guards Guards, blobs Blobs, log zerolog.Logger) *Server {
	if cfg.MaxBlob == 0 {
		cfg.MaxBlob = 1 << 30
	}
	if cfg.MaxWatchers == 0 {
		cfg.MaxWatchers = 256
	}
	if cfg.Patience == nil {
		cfg.Patience = inventory.DefaultPatience()
	}
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	if cfg.Trail == nil {
		cfg.Trail = noTrail{}
	}
	s := &Server{
		cfg: cfg, inv: scope{inv}, talos: talos, guards: guards, blobs: blobs, log: log,
		watchers: NewPlaces(cfg.MaxWatchers), guesses: newGuesses(), refusals: refusals{limit: rate.NewLimiter(1, 60)}, sessions: newSessions(),
	}
	router, _ := s.router()
	s.inside = s.logged(router)
	s.handler = s.guard(s.identify(s.inside))
	return s
}

// Handler returns the API, its document and the pages, with everything that
// protects them.
func (s *Server) Handler() http.Handler { return s.handler }

// Serve answers on ln until ctx ends, and then closes it. Callers are known on a unix
// socket, and on a listener of TLS connections (tls.NewListener). Requests under way
// are cancelled with ctx: what they had to write is written or it is not, and
// a stream has no other end.
func (s *Server) Serve(ctx context.Context, ln net.Listener) error {
	srv := &http.Server{
		Handler:           s.handler,
		ReadHeaderTimeout: 10 * time.Second,
		IdleTimeout:       2 * time.Minute,
		MaxHeaderBytes:    32 << 10,
		BaseContext:       func(net.Listener) context.Context { return ctx },
		ConnContext:       connected,
		ErrorLog:          stdlog.New(s.log.With().Str("component", "admin").Logger(), "", 0),
	}
	stopped := make(chan struct{})
	finished := make(chan struct{})
	go func() {
		defer close(finished)
		select {
		case <-ctx.Done():
		case <-stopped:
		}
		grace, cancel := context.WithTimeout(context.WithoutCancel(ctx), 5*time.Second)
		defer cancel()
		if srv.Shutdown(grace) != nil {
			_ = srv.Close() // nothing is left to do about a connection that will not close
		}
	}()
	err := srv.Serve(ln)
	close(stopped)
	<-finished
	if errors.Is(err, http.ErrServerClosed) {
		return nil
	}
	return fmt.Errorf("serving the API on %s: %w", ln.Addr(), err)
}

// Document returns the OpenAPI document that a server of this version describes itself
// with. None has to run.
func Document(version string) *huma.OpenAPI {
	_, doc := New(Config{Version: version}, nil, nil, nil, nil, zerolog.Nop()).router()
	return doc
}

// router has every route of the API, and the document that describes them.
func (s *Server) router() (chi.Router, *huma.OpenAPI) {
	r := chi.NewRouter()
	doc := humachi.New(r, huma.Config{
		OpenAPI: &huma.OpenAPI{
			OpenAPI: "3.1.0",
			Info: &huma.Info{
				Title:   "provisiond",
				Version: s.cfg.Version,
				Description: "Machines, clusters and boot images of a rack. Errors are RFC 9457 problems. " +
					"GET of a machine or a cluster answers an ETag that its PUT, PATCH and DELETE take as If-Match. " +
					"Who opens the unix socket, which is root's, may do everything. Over TLS a token, a browser's session or a client certificate says who calls. " +
					"Each operation has the role that it needs as x-provisiond-role: read, operate or admin, each with what those before it may. " +
					"Who is limited to clusters sees nothing of others (404, and left out of lists), and is refused what is about the whole rack: x-provisiond-clusters is false there. " +
					"Every change, every secret that is told and every refusal is in the audit trail.",
			},
			Tags: []*huma.Tag{
				{Name: "machines"}, {Name: "clusters"}, {Name: "lifecycle"}, {Name: "images"}, {Name: "events"}, {Name: "rack"}, {Name: "access"},
			},
			Components: &huma.Components{
				Schemas: huma.NewMapRegistry("#/components/schemas/", huma.DefaultSchemaNamer),
				SecuritySchemes: map[string]*huma.SecurityScheme{
					"token":       {Type: "http", Scheme: "bearer", BearerFormat: "pvd_NAME_SECRET", Description: "As provisiond token create prints it"},
					"session":     {Type: "apiKey", In: "cookie", Name: sessionCookie, Description: "As /login sets it. What changes something has to say by Sec-Fetch-Site or Origin that it is sent from here, as browsers do"},
					"certificate": {Type: "mutualTLS", Description: "As provisiond client-certificate issues it: the common name is who, the organization provisiond:ROLE, organizational units the clusters"},
				},
			},
		},
		Formats:                      map[string]huma.Format{"application/json": huma.DefaultJSONFormat, "json": huma.DefaultJSONFormat},
		DefaultFormat:                "application/json",
		RejectUnknownQueryParameters: true,
		Transformers:                 []huma.Transformer{withoutValues},
	})
	s.machineRoutes(doc)
	s.reimageRoutes(doc)
	s.configRoutes(doc)
	s.seedRoutes(doc)
	s.checkRoutes(doc)
	s.runningRoutes(doc)
	s.clusterRoutes(doc)
	s.approvalRoutes(doc)
	s.maintenanceRoutes(doc)
	s.rolloutRoutes(doc)
	s.imageRoutes(doc)
	s.eventRoutes(doc)
	s.logRoutes(doc)
	s.explainRoutes(doc)
	s.rackRoutes(doc)
	s.subnetRoutes(doc)
	s.settingsRoutes(doc)
	s.metricsRoute(doc)
	s.accessRoutes(doc)
	s.auditRoutes(doc)
	s.documentRoutes(r, doc.OpenAPI())
	return r, doc.OpenAPI()
}

// documentRoutes serves the OpenAPI document, made when it is first asked for,
// and answers for paths and methods that do not exist.
func (s *Server) documentRoutes(r chi.Router, doc *huma.OpenAPI) {
	once := func(contentType string, encode func() ([]byte, error)) http.HandlerFunc {
		encode = sync.OnceValues(encode)
		return func(w http.ResponseWriter, _ *http.Request) {
			body, err := encode()
			if err != nil {
				s.log.Error().Err(err).Msg("the OpenAPI document does not encode")
				writeProblem(w, http.StatusInternalServerError, "internal error; the log of provisiond has the detail")
				return
			}
			w.Header().Set("Content-Type", contentType)
			_, _ = w.Write(body) // the client's loss
		}
	}
	r.Get("/openapi.json", once("application/openapi+json", func() ([]byte, error) { return json.Marshal(doc) }))
	r.Get("/ca.pem", func(w http.ResponseWriter, _ *http.Request) {
		if s.cfg.CA == nil {
			writeProblem(w, http.StatusNotFound, "there is no CA here")
			return
		}
		w.Header().Set("Content-Type", "application/pem-certificate-chain")
		_, _ = w.Write(s.cfg.CA.PEM()) // the client's loss
	})
	r.Get("/openapi.yaml", once("application/openapi+yaml", doc.YAML))
	var pages http.Handler
	if s.cfg.Pages != nil {
		pages = s.cfg.Pages(s)
	}
	r.NotFound(func(w http.ResponseWriter, req *http.Request) {
		if pages != nil && req.TLS != nil && !strings.HasPrefix(req.URL.Path, "/api/") {
			pages.ServeHTTP(w, req)
			return
		}
		writeProblem(w, http.StatusNotFound, "there is nothing at "+req.URL.Path+"; /openapi.json lists what there is")
	})
	r.MethodNotAllowed(func(w http.ResponseWriter, req *http.Request) {
		writeProblem(w, http.StatusMethodNotAllowed, req.Method+" does not work on "+req.URL.Path)
	})
}

func writeProblem(w http.ResponseWriter, status int, detail string) {
	w.Header().Set("Content-Type", "application/problem+json")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(api.Problem{Title: http.StatusText(status), Status: status, Detail: detail}) // the client's loss
}

// register adds an operation: what it needs, and its errors through the one table.
// Every operation may answer 401, 403, 429, 500 and, with input, 422; errs are the
// others.
func register[I, O any](s *Server, doc huma.API, n needs, op huma.Operation, h func(context.Context, *I) (*O, error), errs ...int) {
	op.Path = api.Prefix + op.Path
	registerAt(s, doc, n, op, h, errs...)
}

// registerAt is register for a path that is not below the API's.
func registerAt[I, O any](s *Server, doc huma.API, n needs, op huma.Operation, h func(context.Context, *I) (*O, error), errs ...int) {
	op.Security = []map[string][]string{{"token": {}}, {"session": {}}, {"certificate": {}}}
	op.Extensions = map[string]any{"x-provisiond-role": string(n.role), "x-provisiond-clusters": n.about != rackWide}
	op.Middlewares = huma.Middlewares{s.enter(op.OperationID, n)}
	op.Errors = errs
	if len(errs) == 0 {
		op.Errors = []int{http.StatusUnprocessableEntity}
	}
	op.Errors = append(op.Errors, http.StatusUnauthorized, http.StatusForbidden, http.StatusTooManyRequests)
	if _, ok := reflect.TypeFor[I]().FieldByName("Body"); ok {
		op.Errors = append(op.Errors, http.StatusBadRequest, http.StatusRequestTimeout, http.StatusRequestEntityTooLarge, http.StatusUnsupportedMediaType)
		op.MaxBodyBytes = api.MaxBody
		op.BodyReadTimeout = -1 // guard paces bodies: a fixed deadline would cut off a slow answer too
	}
	if op.DefaultStatus == 0 {
		op.DefaultStatus = http.StatusOK
		if reflect.TypeFor[O]().NumField() == 0 {
			op.DefaultStatus = http.StatusNoContent
		}
	}
	huma.Register(doc, op, func(ctx context.Context, in *I) (*O, error) {
		out, err := h(ctx, in)
		if err != nil {
			err = s.problem(ctx, op.OperationID, in, err)
		}
		return out, s.record(ctx, n.act, op.DefaultStatus, err)
	})
}
