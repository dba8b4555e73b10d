package admin

import (
	"context"
	"crypto/x509/pkix"
	"errors"
	"fmt"
	"net/http"
	"time"

	"github.com/danielgtaylor/huma/v2"

	"github.com/provisiond/provisiond/api"
	"github.com/provisiond/provisiond/internal/inventory"
)

const (
	// tokenLife is how long a token is good for unless it is said otherwise.
	tokenLife = 90 * 24 * time.Hour
	// certificateLife is that of a client certificate, and maxCertificateLife the
	// longest: nobody can revoke one.
	certificateLife    = 30 * 24 * time.Hour
	maxCertificateLife = 366 * 24 * time.Hour
)

func (s *Server) accessRoutes(doc huma.API) {
	tags := []string{"access"}
	register(s, doc, needs{admin, rackWide, looks}, huma.Operation{OperationID: "list-tokens", Method: http.MethodGet, Path: "/tokens", Tags: tags,
		Summary: "List tokens", Description: "Without what they are: that is told once, to who creates one."}, s.listTokens)
	register(s, doc, needs{admin, rackWide, changes}, huma.Operation{OperationID: "create-token", Method: http.MethodPost, Path: "/tokens", Tags: tags,
		Summary: "Create a token", Description: "The answer has its text, which is kept nowhere.", DefaultStatus: http.StatusCreated},
		s.createToken, http.StatusConflict, http.StatusInsufficientStorage)
	register(s, doc, needs{admin, rackWide, changes}, huma.Operation{OperationID: "revoke-token", Method: http.MethodDelete, Path: "/tokens/{token}", Tags: tags,
		Summary: "Revoke a token", Description: "At once, for streams under way too."}, s.revokeToken, http.StatusNotFound, http.StatusInsufficientStorage)
	register(s, doc, needs{admin, rackWide, tells}, huma.Operation{OperationID: "create-client-certificate", Method: http.MethodPost, Path: "/client-certificates", Tags: tags,
		Summary: "Issue a client certificate", Description: "The answer has its key, which is kept nowhere. There is no way to revoke it: it is good until it expires.", DefaultStatus: http.StatusCreated},
		s.createClientCertificate, http.StatusConflict, http.StatusInsufficientStorage, http.StatusUnprocessableEntity)
}

func (s *Server) listTokens(ctx context.Context, _ *struct{}) (*struct{ Body api.List[api.Token] }, error) {
	all, err := s.inv.Tokens(ctx)
	if err != nil {
		return nil, err
	}
	out := &struct{ Body api.List[api.Token] }{}
	out.Body.Items = make([]api.Token, 0, len(all))
	for i := range all {
		out.Body.Items = append(out.Body.Items, tokenOf(&all[i]))
	}
	return out, nil
}

func tokenOf(t *inventory.Token) api.Token {
	return api.Token{Name: t.Name, Role: string(t.Access), Clusters: t.Clusters, Created: t.Created, By: t.By, Expires: t.Expires, Used: t.Used}
}

func (s *Server) createToken(ctx context.Context, in *struct{ Body api.TokenSpec }) (*struct{ Body api.NewToken }, error) {
	spec := &in.Body
	callOf(ctx).target = "token/" + spec.Name
	t := inventory.Token{Name: spec.Name, Access: inventory.Access(spec.Role), Clusters: spec.Clusters, Expires: spec.Expires}
	switch {
	case spec.Never && !spec.Expires.IsZero():
		return nil, badField("never", "leave out one of them", "a token that never expires has no time to expire at")
	case !spec.Never && spec.Expires.IsZero():
		t.Expires = s.cfg.Now().Add(tokenLife)
	}
	if p := PrincipalOf(ctx); p != nil {
		t.By = p.Name
	}
	if err := someClusters(spec.Clusters); err != nil {
		return nil, err
	}
	callOf(ctx).remark = granted(t.Access, t.Clusters, t.Expires)
	made, text, err := s.inv.CreateToken(ctx, t)
	if err != nil {
		return nil, err
	}
	return &struct{ Body api.NewToken }{api.NewToken{Token: tokenOf(made), Text: text}}, nil
}

// someClusters refuses a list of none: whoever makes one means no cluster, and would let
// somebody into all.
func someClusters(list []string) error {
	if list != nil && len(list) == 0 {
		return badField("clusters", "leave it out for the whole rack", "the list is empty")
	}
	return nil
}

// granted is what somebody was given, for the audit trail.
func granted(role inventory.Access, clusters []string, until time.Time) string {
	where, end := "the whole rack", "for ever"
	if len(clusters) > 0 {
		where = inWords(clusters)
	}
	if !until.IsZero() {
		end = "until " + until.UTC().Format(time.RFC3339)
	}
	return fmt.Sprintf("%s in %s, %s", role, where, end)
}

func (s *Server) revokeToken(ctx context.Context, in *struct {
	Name string `path:"token" doc:"Name of the token" example:"ci"`
}) (*struct{}, error) {
	return nil, s.inv.RevokeToken(ctx, in.Name)
}

func (s *Server) createClientCertificate(ctx context.Context, in *struct{ Body api.CertificateSpec }) (*struct{ Body api.NewCertificate }, error) {
	spec := &in.Body
	callOf(ctx).target = "certificate/" + spec.Name
	if s.cfg.CA == nil || s.cfg.ForeignClients {
		return nil, &inventory.FieldError{Problem: "client certificates come from the CA that is set as api.tls.clientCA", Fix: "have that one issue it", Err: inventory.ErrRefused}
	}
	now := s.cfg.Now()
	life := certificateLife
	if !spec.Expires.IsZero() {
		life = spec.Expires.Sub(now)
	}
	errs := []error{inventory.CheckName("name", spec.Name), someClusters(spec.Clusters)}
	if life <= 0 || life > maxCertificateLife {
		errs = append(errs, badField("expires", "a time in the next 366 days", "%s is not: nobody can revoke a certificate", spec.Expires.Format(time.RFC3339)))
	}
	for _, name := range spec.Clusters {
		if _, _, err := s.inv.Cluster(ctx, name); errors.Is(err, inventory.ErrNotFound) {
			errs = append(errs, noCluster(name))
		} else if err != nil {
			return nil, err
		}
	}
	if err := errors.Join(errs...); err != nil {
		return nil, err
	}
	callOf(ctx).remark = granted(inventory.Access(spec.Role), spec.Clusters, now.Add(life))
	text, err := s.cfg.CA.IssueClient(pkix.Name{CommonName: spec.Name, Organization: []string{rolePrefix + spec.Role}, OrganizationalUnit: spec.Clusters}, life)
	if err != nil {
		return nil, err
	}
	return &struct{ Body api.NewCertificate }{api.NewCertificate{Name: spec.Name, Expires: now.Add(life).UTC(), PEM: string(text)}}, nil
}
