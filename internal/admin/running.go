package admin

import (
	"cmp"
	"context"
	"net/http"

	"github.com/danielgtaylor/huma/v2"

	"github.com/provisiond/provisiond/api"
	"github.com/provisiond/provisiond/internal/inventory"
)

func (s *Server) runningRoutes(doc huma.API) {
	register(s, doc, needs{operate, scoped, changes}, huma.Operation{OperationID: "apply-machine-config", Method: http.MethodPost, Path: "/machines/{machine}/apply", Tags: []string{"lifecycle"},
		Summary: "Give a running machine the config that it would get now",
		Description: "Through its Talos API, once. The answer is 409 when the machine does not answer, is of another life of its cluster, or does not take the config, with its words. " +
			"A control plane may reboot: see the rollout of a cluster."},
		s.applyConfig, http.StatusNotFound, http.StatusConflict, http.StatusInsufficientStorage)
}

func (s *Server) applyConfig(ctx context.Context, in *struct {
	MachinePath
	Body api.ConfigApply
}) (*struct{ Body api.ConfigApplied }, error) {
	v, err := s.configured(ctx, in.Ref)
	if err != nil {
		return nil, err
	}
	run, err := s.running()
	if err != nil {
		return nil, err
	}
	mode := cmp.Or(inventory.ConfigMode(in.Body.Mode), inventory.ConfigAuto)
	said, hash, err := run.ApplyConfig(ctx, v, mode, in.Body.DryRun)
	if err != nil {
		return nil, err
	}
	return &struct{ Body api.ConfigApplied }{api.ConfigApplied{Machine: v.Machine.Name, Hash: hash, DryRun: in.Body.DryRun, Said: said}}, nil
}

func (s *Server) running() (Running, error) {
	if s.cfg.Running == nil {
		return nil, huma.Error503ServiceUnavailable("this provisiond asks no machines")
	}
	return s.cfg.Running, nil
}
