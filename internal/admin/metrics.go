package admin

import (
	"context"
	"net/http"

	"github.com/danielgtaylor/huma/v2"
	"github.com/danielgtaylor/huma/v2/adapters/humachi"
)

// metricsRoute serves what is counted at the path where Prometheus looks for it. It is an
// operation as any other: whoever reads the numbers of the whole rack has logged in.
func (s *Server) metricsRoute(doc huma.API) {
	text := &huma.MediaType{Schema: &huma.Schema{Type: huma.TypeString}}
	registerAt(s, doc, needs{read, rackWide, looks}, huma.Operation{OperationID: "metrics", Method: http.MethodGet, Path: "/metrics", Tags: []string{"rack"},
		Summary: "What is counted, for Prometheus", Description: "OpenMetrics where it is accepted, else Prometheus' text format. No machine, address or caller is named.",
		Responses: map[string]*huma.Response{"200": {Description: "The metrics", Content: map[string]*huma.MediaType{"application/openmetrics-text": text, "text/plain": text}}}},
		func(context.Context, *struct{}) (*huma.StreamResponse, error) {
			if s.cfg.Metrics == nil {
				return nil, huma.Error404NotFound("nothing is counted here")
			}
			return &huma.StreamResponse{Body: func(hctx huma.Context) {
				r, w := humachi.Unwrap(hctx)
				s.cfg.Metrics.ServeHTTP(w, r)
			}}, nil
		}, http.StatusNotFound)
}
