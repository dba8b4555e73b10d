package admin

import (
	"context"
	"net/http"

	"github.com/danielgtaylor/huma/v2"

	"github.com/provisiond/provisiond/api"
)

func (s *Server) settingsRoutes(doc huma.API) {
	register(s, doc, needs{admin, rackWide, looks}, huma.Operation{OperationID: "get-settings", Method: http.MethodGet, Path: "/settings", Tags: []string{"rack"},
		Summary: "Show what provisiond runs with", Description: "Its config file with what that leaves out filled in, and what came of it on its host. Secrets are not in it."},
		s.getSettings, http.StatusServiceUnavailable)
}

func (s *Server) getSettings(context.Context, *struct{}) (*struct{ Body api.Settings }, error) {
	if s.cfg.Settings == nil {
		return nil, huma.Error503ServiceUnavailable("this provisiond does not tell its settings")
	}
	return &struct{ Body api.Settings }{s.cfg.Settings()}, nil
}
