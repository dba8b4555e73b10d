// Package web is what people see of provisiond in a browser: pages made here of HTML and
// one style sheet, without a script. It decides nothing: who asks, what they may and what
// is written down about it is package admin's, which also keeps what this serves on the
// operators' TLS listener.
//
// A page is a row in the table of [New], a method in pages.go that gathers its data, and
// a template of that name.
package web

import (
	"embed"
	"errors"
	"html/template"
	"net/http"
	"net/url"
	"strings"
	"time"

	"github.com/rs/zerolog"

	"github.com/provisiond/provisiond/internal/admin"
	"github.com/provisiond/provisiond/internal/inventory"
)

//go:embed templates style.css
var files embed.FS

// Config is what the pages need to know.
type Config struct {
	// OIDC also vouches for people; nil: they log in with tokens.
	OIDC *OIDC
	// Now is the clock. nil: time.Now.
	Now func() time.Time
}

// maxForm bounds what a form can send.
const maxForm = 64 << 10

// Pages answers browsers.
type Pages struct {
	operators *admin.Server
	issuer    *issuer // nil: there is none
	now       func() time.Time
	log       zerolog.Logger
	templates map[string]*template.Template
	routes    http.Handler
}

// New returns the pages of a server of the API, which calls them. It does no I/O.
func New(cfg Config, operators *admin.Server, log zerolog.Logger) *Pages {
	p := &Pages{operators: operators, now: cfg.Now, log: log, templates: templates()}
	if p.now == nil {
		p.now = time.Now
	}
	mux := http.NewServeMux()
	for pattern, row := range map[string]struct {
		role inventory.Access // that looking takes
		show func(*http.Request) (*page, error)
	}{
		"GET /{$}":             {inventory.AccessRead, p.home},
		"GET /approve":         {inventory.AccessOperate, p.approve},
		"GET /approve/confirm": {inventory.AccessOperate, p.confirm},
		"POST /approve":        {inventory.AccessOperate, p.decide},
	} {
		mux.HandleFunc(pattern, p.toPeople(row.role, row.show))
	}
	mux.HandleFunc("GET /login", p.askLogin)
	mux.HandleFunc("POST /login", p.login)
	mux.HandleFunc("POST /logout", p.logout)
	if cfg.OIDC != nil {
		p.issuer = newIssuer(*cfg.OIDC, p.now)
		mux.HandleFunc("GET /login/oidc", p.askIssuer)
		mux.HandleFunc("GET "+callback, p.hearIssuer)
	}
	mux.Handle("GET /style.css", http.FileServerFS(files))
	mux.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) {
		p.refuse(w, r, &admin.Refusal{Status: http.StatusNotFound, Reason: "There is no page here."})
	})
	p.routes = mux
	return p
}

// policy is what a page may do in a browser: show our style sheet and our pictures, ask
// us, and send forms to us. There is no script, so none may run.
const policy = "default-src 'none'; style-src 'self'; img-src 'self'; connect-src 'self'; form-action 'self'; frame-ancestors 'none'; base-uri 'none'"

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
	status      int // 0: 200
}

// view is what every template has.
type view struct {
	Title      string
	Who        *admin.Principal // nil: nobody who is known
	MayOperate bool
	At         string // path of the page
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
		p.write(w, r, answer)
	}
}

// refuse says why something was not done, or that it is in the log.
func (p *Pages) refuse(w http.ResponseWriter, r *http.Request, err error) {
	var no *admin.Refusal
	if !errors.As(err, &no) {
		p.log.Error().Err(err).Str("path", r.URL.Path).Msg("cannot show a page")
		no = &admin.Refusal{Status: http.StatusInternalServerError, Reason: "internal error; the log of provisiond has the detail"}
	}
	p.write(w, r, &page{name: "refused", title: http.StatusText(no.Status), status: no.Status, data: no})
}

func (p *Pages) write(w http.ResponseWriter, r *http.Request, answer *page) {
	who := admin.PrincipalOf(r.Context())
	v := view{Title: answer.title, Who: who, MayOperate: who != nil && who.Role.Allows(inventory.AccessOperate), At: r.URL.Path, Data: answer.data}
	var out strings.Builder // as a whole, or not at all
	if err := p.templates[answer.name].ExecuteTemplate(&out, "layout.html", v); err != nil {
		p.log.Error().Err(err).Str("page", answer.name).Msg("cannot make a page")
		http.Error(w, "internal error; the log of provisiond has the detail", http.StatusInternalServerError)
		return
	}
	w.Header().Set("Content-Type", "text/html; charset=utf-8")
	if answer.status != 0 {
		w.WriteHeader(answer.status)
	}
	_, _ = w.Write([]byte(out.String())) // the client's loss
}

// templates has each page in the common layout, by its name.
func templates() map[string]*template.Template {
	// In the binary: right or wrong for everybody.
	layout := template.Must(template.New("").Funcs(template.FuncMap{"join": strings.Join}).ParseFS(files, "templates/layout.html"))
	out := map[string]*template.Template{}
	for _, name := range []string{"home", "approve", "confirm", "decided", "login", "onward", "refused"} {
		out[name] = template.Must(template.Must(layout.Clone()).ParseFS(files, "templates/"+name+".html"))
	}
	return out
}
