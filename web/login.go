package web

import (
	"crypto/rand"
	"encoding/base64"
	"errors"
	"net/http"
	"net/url"
	"strings"

	"github.com/provisiond/provisiond/internal/admin"
)

// loginData is login.html.
type loginData struct {
	Next   string // where to go then
	Issuer string // that vouches for people, by name; empty: none does
	No     *admin.Refusal
}

func (p *Pages) askLogin(w http.ResponseWriter, r *http.Request) {
	next := local(r.FormValue("next"))
	if admin.PrincipalOf(r.Context()) != nil {
		http.Redirect(w, r, next, http.StatusSeeOther)
		return
	}
	p.write(w, r, p.loginPage(next, nil))
}

func (p *Pages) loginPage(next string, no *admin.Refusal) *page {
	data := loginData{Next: next, No: no}
	if p.issuer != nil {
		data.Issuer = p.issuer.name
	}
	answer := &page{name: "login", title: "Log in", data: data}
	if no != nil {
		answer.status = no.Status
	}
	return answer
}

func (p *Pages) login(w http.ResponseWriter, r *http.Request) {
	next := local(r.PostFormValue("next"))
	if err := p.operators.Login(w, r, r.PostFormValue("token")); err != nil {
		p.refuseLogin(w, r, next, err)
		return
	}
	http.Redirect(w, r, next, http.StatusSeeOther)
}

// refuseLogin shows the form again, with what was wrong.
func (p *Pages) refuseLogin(w http.ResponseWriter, r *http.Request, next string, err error) {
	var no *admin.Refusal
	if !errors.As(err, &no) {
		p.refuse(w, r, err)
		return
	}
	if no.Wait > 0 {
		w.Header().Set("Retry-After", no.RetryAfter())
	}
	p.write(w, r, p.loginPage(next, no))
}

func (p *Pages) logout(w http.ResponseWriter, r *http.Request) {
	p.operators.Logout(w, r)
	http.Redirect(w, r, "/login", http.StatusSeeOther)
}

// local returns a path of ours to go to after a login, as it was asked for: the start
// page, if that leads elsewhere.
func local(next string) string {
	u, err := url.Parse(next) // refuses control characters
	if err != nil || u.Scheme != "" || u.Host != "" || u.User != nil || u.Opaque != "" ||
		!strings.HasPrefix(next, "/") || strings.HasPrefix(next, "//") || strings.Contains(next, `\`) { // browsers read \ as /
		return "/"
	}
	return next
}

const (
	// callback is where the issuer sends people back to; it has to be registered there.
	callback = "/login/callback"
	// attemptCookie binds a login at the issuer to the browser that began it. The issuer
	// sends people here from another site, so SameSite=Strict would keep it back.
	attemptCookie = "__Host-provisiond-login"
	attemptLife   = 10 * 60 // seconds
)

// askIssuer sends a browser to the issuer. What the answer is checked by is made of a
// secret that only the browser keeps, so that strangers have nothing to fill up here.
func (p *Pages) askIssuer(w http.ResponseWriter, r *http.Request) {
	next := local(r.FormValue("next"))
	var b [32]byte
	_, _ = rand.Read(b[:]) // never fails (crypto/rand)
	secret := base64.RawURLEncoding.EncodeToString(b[:])
	to, err := p.issuer.url(r.Context(), "https://"+r.Host+callback, secret)
	if err != nil {
		p.silent(w, r, next, err)
		return
	}
	setAttempt(w, secret+"."+base64.RawURLEncoding.EncodeToString([]byte(next)), attemptLife)
	http.Redirect(w, r, to, http.StatusSeeOther)
}

func setAttempt(w http.ResponseWriter, value string, age int) {
	http.SetCookie(w, &http.Cookie{Name: attemptCookie, Value: value, Path: "/", MaxAge: age, Secure: true, HttpOnly: true, SameSite: http.SameSiteLaxMode})
}

// hearIssuer begins a session for whom the issuer vouches for. It goes on by a page and
// not by a redirect: one that begins at another site carries no SameSite=Strict cookie.
func (p *Pages) hearIssuer(w http.ResponseWriter, r *http.Request) {
	var secret, next string
	if c, err := r.Cookie(attemptCookie); err == nil {
		var to string
		secret, to, _ = strings.Cut(c.Value, ".")
		path, _ := base64.RawURLEncoding.DecodeString(to) // what is no path leads to the start page
		next = string(path)
	}
	next = local(next)
	setAttempt(w, "", -1)
	who, err := p.issuer.person(r.Context(), "https://"+r.Host+callback, secret, r.URL.Query())
	var no *noPerson
	switch {
	case errors.As(err, &no):
		p.log.Warn().Err(err).Msg("a login at the issuer is no good")
		err = p.operators.RefuseLogin(r.Context(), no.reason)
	case err != nil:
		p.silent(w, r, next, err)
		return
	default:
		err = p.operators.Begin(w, r, who)
	}
	if err != nil {
		p.refuseLogin(w, r, next, err)
		return
	}
	p.write(w, r, &page{name: "onward", title: "Logged in", data: next})
}

// silent says that the issuer does not answer. Tokens go on working.
func (p *Pages) silent(w http.ResponseWriter, r *http.Request, next string, err error) {
	p.log.Warn().Err(err).Msg("the issuer does not answer")
	p.refuseLogin(w, r, next, &admin.Refusal{Status: http.StatusBadGateway, Reason: p.issuer.name + " does not answer; a token works meanwhile"})
}
