package daemon

import (
	"errors"
	"fmt"
	"maps"
	"net/http"
	"net/url"
	"os"
	"slices"
	"strings"

	"github.com/rs/zerolog"

	"github.com/provisiond/provisiond/internal/admin"
	"github.com/provisiond/provisiond/internal/inventory"
	"github.com/provisiond/provisiond/web"
)

// rawOIDC is api.oidc as it is written.
type rawOIDC struct {
	Issuer           string   `yaml:"issuer"`
	ClientID         string   `yaml:"clientID"`
	ClientSecretFile string   `yaml:"clientSecretFile"`
	Scopes           []string `yaml:"scopes"`
	RoleClaim        string   `yaml:"roleClaim"`
	Roles            map[string]struct {
		Role     inventory.Access `yaml:"role"`
		Clusters []string         `yaml:"clusters"`
	} `yaml:"roles"`
}

// issuer checks what is written, and returns it; nil: there is none.
func (r *rawOIDC) issuer() (*web.OIDC, error) {
	bad := func(field, fix, problem string, args ...any) error {
		return &inventory.FieldError{Field: "api.oidc." + field, Problem: fmt.Sprintf(problem, args...), Fix: fix}
	}
	if r.Issuer == "" {
		if r.ClientID != "" || r.ClientSecretFile != "" || len(r.Roles) > 0 {
			return nil, bad("issuer", "its URL, such as https://login.example.org/realms/ops", "there is none")
		}
		return nil, nil
	}
	u, err := url.Parse(r.Issuer)
	switch {
	case err != nil || u.Scheme != "https" || u.Host == "" || u.User != nil || u.RawQuery != "" || u.Fragment != "":
		return nil, bad("issuer", "its https URL, to the letter as its tokens have it, such as https://login.example.org/realms/ops", "%q is not the URL of an issuer", r.Issuer)
	case r.ClientID == "":
		return nil, bad("clientID", "the id that provisiond is registered by there", "there is none")
	case len(r.Roles) == 0:
		return nil, bad("roles", "GROUP: {role: operate}", "no group may do anything, and so nobody could log in")
	}
	out := &web.OIDC{Issuer: r.Issuer, ClientID: r.ClientID, Scopes: r.Scopes, RoleClaim: orString(r.RoleClaim, "groups"), Roles: map[string]web.Grant{}}
	if out.Scopes == nil {
		out.Scopes = []string{"openid", "profile", "email", "groups"}
	}
	if !slices.Contains(out.Scopes, "openid") {
		return nil, bad("scopes", "add it", "openid is not among them, and without it no issuer says who it is")
	}
	for _, group := range slices.Sorted(maps.Keys(r.Roles)) {
		g := r.Roles[group]
		if !inventory.AccessAdmin.Allows(g.Role) {
			return nil, bad("roles."+group+".role", "read, operate or admin", "%q is not a role", g.Role)
		}
		if g.Clusters != nil && len(g.Clusters) == 0 {
			return nil, bad("roles."+group+".clusters", "leave it out for the whole rack", "the list is empty")
		}
		for i, name := range g.Clusters {
			if err := inventory.CheckName(fmt.Sprintf("api.oidc.roles.%s.clusters[%d]", group, i), name); err != nil {
				return nil, err
			}
		}
		out.Roles[group] = web.Grant{Role: g.Role, Clusters: g.Clusters}
	}
	return out, nil
}

// issuer is OIDC with its secret; nil: there is none.
func (c *Config) issuer() (*web.OIDC, error) {
	if c.OIDC == nil || c.OIDCSecretFile == "" {
		return c.OIDC, nil
	}
	text, err := os.ReadFile(c.OIDCSecretFile)
	out := *c.OIDC
	out.ClientSecret = strings.TrimSpace(string(text))
	if err == nil && out.ClientSecret == "" {
		err = errors.New("it is empty")
	}
	if err != nil {
		return nil, &inventory.FieldError{Field: "api.oidc.clientSecretFile", Problem: err.Error(), Fix: "a file that holds the secret and nothing else"}
	}
	return &out, nil
}

// pagesOf makes the pages of the API's server.
func pagesOf(cfg *Config, log zerolog.Logger) (func(*admin.Server) http.Handler, error) {
	issuer, err := cfg.issuer()
	if err != nil {
		return nil, err
	}
	return func(s *admin.Server) http.Handler { return web.New(web.Config{OIDC: issuer}, s, log) }, nil
}
