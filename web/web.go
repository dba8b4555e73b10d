// Package web is what people see of provisiond in a browser: pages made here of HTML,
// kept up to date by htmx. It decides nothing and knows nothing of its own: all that a page
// shows or does is an operation of the API, called as who looks at it (see
// admin.Server.Inside), with its roles, guards and audit trail.
//
// A page is a row in the table of [New], a method that gathers its data in the file of its
// name, and a template of that name.
package web

import (
	"context"
	"embed"
	"errors"
	"mime"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	"github.com/rs/zerolog"

	"github.com/provisiond/provisiond/client"
	"github.com/provisiond/provisiond/internal/admin"
	"github.com/provisiond/provisiond/internal/inventory"
)

//go:embed templates static
var files embed.FS

// Config is what the pages need to know.
type Config struct {
	// OIDC also vouches for people; nil: they log in with tokens.
	OIDC *OIDC
	// Now is the clock. nil: time.Now.
	Now func() time.Time
}

// maxForm bounds what a form can send: that is API bodies, and some.
const maxForm = 2 << 20

// Pages answers browsers.
type Pages struct {
	operators *admin.Server
	api       *client.Client // called as who asks for a page
	issuer    *issuer        // nil: there is none
	now       func() time.Time
	log       zerolog.Logger
	templates map[string]*templateSet
	open      *admin.Places // of pages that are kept up to date
	routes    http.Handler
}

// shown is a page: who may look at it, and how it is made.
type shown struct {
	role inventory.Access
	show func(*http.Request) (*page, error)
}

// New returns the pages of a server of the API, which calls them. It does no I/O.
func New(cfg Config, operators *admin.Server, log zerolog.Logger) *Pages {
	inside, err := client.New("http://provisiond", client.Options{Transport: operators.Inside()})
	if err != nil {
		panic(err) // the address is right for everybody
	}
	p := &Pages{operators: operators, api: inside, now: cfg.Now, log: log, templates: templates(), open: admin.NewPlaces(maxOpen)}
	if p.now == nil {
		p.now = time.Now
	}
	mux := http.NewServeMux()
	for pattern, row := range map[string]shown{
		"GET /{$}":                                         {inventory.AccessRead, p.rack},
		"GET /approve":                                     {inventory.AccessOperate, p.approve},
		"GET /approve/confirm":                             {inventory.AccessOperate, p.confirm},
		"POST /approve":                                    {inventory.AccessOperate, p.decide},
		"GET /machines/{name}":                             {inventory.AccessRead, p.machine},
		"POST /machines/{name}/acknowledge":                {inventory.AccessOperate, p.acknowledge},
		"GET /discovered":                                  {inventory.AccessRead, p.discovered},
		"GET /discovered/{mac}/adopt":                      {inventory.AccessOperate, p.adopt},
		"POST /discovered/adopt":                           {inventory.AccessOperate, p.register},
		"GET /clusters":                                    {inventory.AccessRead, p.clusters},
		"GET /clusters/new":                                {inventory.AccessOperate, p.askNewCluster},
		"POST /clusters/new":                               {inventory.AccessOperate, p.newCluster},
		"GET /clusters/{cluster}":                          {inventory.AccessRead, p.cluster},
		"GET /clusters/{cluster}/edit":                     {inventory.AccessOperate, p.editCluster},
		"POST /clusters/{cluster}/edit":                    {inventory.AccessOperate, p.changeCluster},
		"POST /clusters/{cluster}/check":                   {inventory.AccessOperate, p.checkCluster},
		"GET /clusters/{cluster}/delete":                   {inventory.AccessOperate, p.askDeleteCluster},
		"POST /clusters/{cluster}/delete":                  {inventory.AccessOperate, p.deleteCluster},
		"GET /clusters/{cluster}/reset":                    {inventory.AccessOperate, p.askResetCluster},
		"POST /clusters/{cluster}/reset":                   {inventory.AccessOperate, p.resetCluster},
		"GET /clusters/{cluster}/rollout":                  {inventory.AccessOperate, p.askRollout},
		"POST /clusters/{cluster}/rollout":                 {inventory.AccessOperate, p.rollOut},
		"GET /machines/{name}/reimage":                     {inventory.AccessOperate, p.askReimage},
		"POST /machines/{name}/reimage":                    {inventory.AccessOperate, p.reimage},
		"POST /machines/{name}/reimage/cancel":             {inventory.AccessOperate, p.cancelReimage},
		"GET /machines/new":                                {inventory.AccessOperate, p.askNew},
		"POST /machines/new":                               {inventory.AccessOperate, p.create},
		"GET /machines/{name}/config":                      {inventory.AccessRead, p.config},
		"POST /machines/{name}/apply":                      {inventory.AccessOperate, p.apply},
		"GET /machines/{name}/edit":                        {inventory.AccessOperate, p.edit},
		"POST /machines/{name}/edit":                       {inventory.AccessOperate, p.change},
		"POST /machines/{name}/edit/check":                 {inventory.AccessOperate, p.checkEdit},
		"GET /machines/{name}/remove":                      {inventory.AccessOperate, p.askRemove},
		"POST /machines/{name}/remove":                     {inventory.AccessOperate, p.remove},
		"GET /machines/{name}/maintenance":                 {inventory.AccessOperate, p.askMaintenance},
		"POST /machines/{name}/maintenance":                {inventory.AccessOperate, p.confirmMaintenance},
		"GET /machines/{name}/seed":                        {inventory.AccessAdmin, p.askSeed},
		"POST /machines/{name}/seed":                       {inventory.AccessAdmin, p.seed},
		"POST /machines/{name}/iso":                        {inventory.AccessAdmin, p.iso},
		"GET /machines/act":                                {inventory.AccessOperate, p.askAct},
		"POST /machines/act":                               {inventory.AccessOperate, p.actOn},
		"GET /subnets":                                     {inventory.AccessRead, p.subnets},
		"GET /subnets/{subnet}":                            {inventory.AccessRead, p.subnet},
		"GET /images":                                      {inventory.AccessRead, p.images},
		"GET /images/{version}/{schematic}/{arch}/delete":  {inventory.AccessOperate, p.askDeleteImage},
		"POST /images/{version}/{schematic}/{arch}/delete": {inventory.AccessOperate, p.deleteImage},
		"GET /audit":                                       {inventory.AccessAdmin, p.audit},
		"GET /settings":                                    {inventory.AccessAdmin, p.settings},
		"POST /settings/tokens":                            {inventory.AccessAdmin, p.createToken},
		"GET /settings/tokens/{token}/revoke":              {inventory.AccessAdmin, p.askRevokeToken},
		"POST /settings/tokens/{token}/revoke":             {inventory.AccessAdmin, p.revokeToken},
	} {
		mux.HandleFunc(pattern, p.toPeople(row.role, row.show))
	}
	for pattern, row := range map[string]struct {
		page  string
		begin func(*http.Request) (liveParts, error)
	}{
		"GET /live":                    {"rack", p.liveRack},
		"GET /machines/{name}/live":    {"machine", p.liveMachine},
		"GET /discovered/live":         {"discovered", p.liveDiscovered},
		"GET /live/clusters":           {"clusters", p.liveClusters},
		"GET /clusters/{cluster}/live": {"cluster", p.liveCluster},
	} {
		mux.HandleFunc(pattern, p.toWatchers(row.page, row.begin))
	}
	mux.HandleFunc("GET /login", p.askLogin)
	mux.HandleFunc("POST /login", p.login)
	mux.HandleFunc("POST /logout", p.logout)
	if cfg.OIDC != nil {
		p.issuer = newIssuer(*cfg.OIDC, p.now)
		mux.HandleFunc("GET /login/oidc", p.askIssuer)
		mux.HandleFunc("GET "+callback, p.hearIssuer)
	}
	mux.Handle("GET /static/", http.FileServerFS(files))
	mux.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) {
		p.refuse(w, r, &admin.Refusal{Status: http.StatusNotFound, Reason: "There is no page here."})
	})
	p.routes = mux
	return p
}

// policy is what a page may do in a browser: run our scripts and no others, show our style
// sheet and our pictures, ask us, and send forms to us.
const policy = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; form-action 'self'; frame-ancestors 'none'; base-uri 'none'"

// ServeHTTP implements http.Handler.
func (p *Pages) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	h := w.Header()
	h.Set("Content-Security-Policy", policy)
	h.Set("X-Frame-Options", "DENY") // frame-ancestors, for old browsers
	h.Set("Referrer-Policy", "no-referrer")
	h.Set("Cross-Origin-Opener-Policy", "same-origin")
	h.Set("X-Content-Type-Options", "nosniff")
	h.Set("Cache-Control", "no-store")
	r.Body = http.MaxBytesReader(w, r.Body, maxForm)
	p.routes.ServeHTTP(w, r)
}

// page is an answer: the name of its template, its title and its data.
type page struct {
	name, title string
	data        any
	status      int    // 0: 200
	live        string // where its parts are kept up to date; empty: they are not
	to          string // where what was done shows, instead of all this
	file        *file  // what is downloaded, instead of all this
}

// file is saved by a browser, not shown.
type file struct {
	name, kind string // kind: its media type
	content    []byte
}

func (f *file) send(w http.ResponseWriter) {
	h := w.Header()
	h.Set("Content-Type", f.kind)
	h.Set("Content-Disposition", mime.FormatMediaType("attachment", map[string]string{"filename": f.name}))
	h.Set("Content-Length", strconv.Itoa(len(f.content)))
	_, _ = w.Write(f.content) // the client's loss
}

// view is what every template has.
type view struct {
	Title      string
	Version    string
	Who        *admin.Principal // nil: nobody who is known
	MayOperate bool
	MayAdmin   bool
	WholeRack  bool
	At         string // path of the page
	Live       string
	Data       any
}

// toPeople shows a page to who may see it, and has everybody else log in.
func (p *Pages) toPeople(role inventory.Access, show func(*http.Request) (*page, error)) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		if admin.PrincipalOf(r.Context()) == nil {
			next := r.URL.RequestURI()
			if r.Method != http.MethodGet {
				next = r.URL.Path // what was sent is not sent again
			}
			http.Redirect(w, r, "/login?"+url.Values{"next": {next}}.Encode(), http.StatusSeeOther)
			return
		}
		err := p.operators.Allow(r.Context(), "page "+r.URL.Path, role)
		var answer *page
		if err == nil {
			answer, err = show(r)
		}
		if err != nil {
			p.refuse(w, r, err)
			return
		}
		switch {
		case answer.to != "":
			http.Redirect(w, r, answer.to, http.StatusSeeOther)
		case answer.file != nil:
			answer.file.send(w)
		default:
			p.write(w, r, answer)
		}
	}
}

// refuse says why something was not done, or that it is in the log.
func (p *Pages) refuse(w http.ResponseWriter, r *http.Request, err error) {
	no := refusal(err)
	if no == nil {
		p.log.Error().Err(err).Str("path", r.URL.Path).Msg("cannot show a page")
		no = &admin.Refusal{Status: http.StatusInternalServerError, Reason: "internal error; the log of provisiond has the detail"}
	}
	p.write(w, r, &page{name: "refused", title: http.StatusText(no.Status), status: no.Status, data: no})
}

// refusal is what a person is told of an error; nil: it is none of theirs.
func refusal(err error) *admin.Refusal {
	var no *admin.Refusal
	var problem *client.Problem
	switch {
	case errors.As(err, &no):
		return no
	case errors.As(err, &problem):
		return &admin.Refusal{Status: problem.Status, Reason: inWords(problem)}
	}
	return nil
}

// inWords is all that is wrong with what was asked for.
func inWords(problem *client.Problem) string {
	if len(problem.Errors) == 0 {
		return problem.Error()
	}
	var words []string
	for _, d := range problem.Errors {
		_, field, _ := strings.Cut(d.Location, ".") // query.phase, body.macs[0]
		if field != "" {
			field += ": "
		}
		words = append(words, field+d.Message)
	}
	return strings.Join(words, "; ")
}

// mayOperate reports whether who asks may change anything.
func mayOperate(ctx context.Context) bool {
	who := admin.PrincipalOf(ctx)
	return who != nil && who.Role.Allows(inventory.AccessOperate)
}

func (p *Pages) write(w http.ResponseWriter, r *http.Request, answer *page) {
	who := admin.PrincipalOf(r.Context())
	v := view{Title: answer.title, Version: p.operators.Version(), Who: who, At: r.URL.Path, Live: answer.live, Data: answer.data}
	if who != nil {
		v.MayOperate, v.MayAdmin, v.WholeRack = mayOperate(r.Context()), who.Role.Allows(inventory.AccessAdmin), wholeRack(r.Context())
	}
	out, err := p.templates[answer.name].page(v) // as a whole, or not at all
	if err != nil {
		p.log.Error().Err(err).Str("page", answer.name).Msg("cannot make a page")
		http.Error(w, "internal error; the log of provisiond has the detail", http.StatusInternalServerError)
		return
	}
	w.Header().Set("Content-Type", "text/html; charset=utf-8")
	if answer.status != 0 {
		w.WriteHeader(answer.status)
	}
	_, _ = w.Write(out) // the client's loss
}
