package admin

import (
	"bytes"
	"context"
	"errors"
	"net/http"

	"github.com/danielgtaylor/huma/v2"
	"znkr.io/diff/textdiff"

	"github.com/provisiond/provisiond/api"
	"github.com/provisiond/provisiond/internal/inventory"
)

// yamlAnswer is a file for a person or a tool, not for a cache.
type yamlAnswer struct {
	ContentType string `header:"Content-Type"`
	Body        []byte
}

func yamlFile(b []byte, err error) (*yamlAnswer, error) {
	if err != nil {
		return nil, err
	}
	return &yamlAnswer{ContentType: "application/yaml", Body: b}, nil
}

// yamlResponses documents a YAML answer (RFC 9512).
func yamlResponses(what string) map[string]*huma.Response {
	return map[string]*huma.Response{"200": {
		Description: what,
		Content:     map[string]*huma.MediaType{"application/yaml": {Schema: &huma.Schema{Type: huma.TypeString}}},
	}}
}

func (s *Server) configRoutes(doc huma.API) {
	register(s, doc, needs{read, scoped, looks}, huma.Operation{OperationID: "get-machine-config", Method: http.MethodGet, Path: "/machines/{machine}/config", Tags: []string{"machines"},
		Summary: "Show the Talos config a machine would get now", Responses: yamlResponses("Talos machine config")},
		s.getConfig, http.StatusNotFound, http.StatusConflict, http.StatusInsufficientStorage)
	register(s, doc, needs{read, scoped, looks}, huma.Operation{OperationID: "get-machine-config-origins", Method: http.MethodGet, Path: "/machines/{machine}/config/origins", Tags: []string{"machines"},
		Summary: "Show where each part of a machine's config comes from", Description: "The config that it would get now, secrets blotted out, as lines of our own, of the cluster's patches, the role's and the machine's."},
		s.getConfigOrigins, http.StatusNotFound, http.StatusConflict)
	register(s, doc, needs{read, scoped, looks}, huma.Operation{OperationID: "get-machine-diff", Method: http.MethodGet, Path: "/machines/{machine}/diff", Tags: []string{"machines"},
		Summary:     "Compare the config a machine would get now with the one it was last given, or runs",
		Description: "With running=true the machine itself is asked; the answer is 409 when it does not answer."},
		s.getDiff, http.StatusNotFound, http.StatusConflict)
	register(s, doc, needs{admin, scoped, tells}, huma.Operation{OperationID: "get-talosconfig", Method: http.MethodGet, Path: "/clusters/{cluster}/talosconfig", Tags: []string{"clusters"},
		Summary: "Make a talosconfig for an administrator", Description: "A secret. Its making is in the event log and in the audit trail.", Responses: yamlResponses("For talosctl")},
		func(ctx context.Context, in *ClusterPath) (*yamlAnswer, error) {
			if _, _, err := s.inv.Cluster(ctx, in.Name); err != nil {
				return nil, err
			}
			return yamlFile(s.talos.Talosconfig(ctx, in.Name))
		}, http.StatusNotFound, http.StatusInsufficientStorage)
	register(s, doc, needs{admin, scoped, tells}, huma.Operation{OperationID: "get-kubeconfig", Method: http.MethodGet, Path: "/clusters/{cluster}/kubeconfig", Tags: []string{"clusters"},
		Summary: "Make a kubeconfig for an administrator", Description: "A secret. Its making is in the event log and in the audit trail.", Responses: yamlResponses("For kubectl")},
		func(ctx context.Context, in *ClusterPath) (*yamlAnswer, error) {
			if _, _, err := s.inv.Cluster(ctx, in.Name); err != nil {
				return nil, err
			}
			return yamlFile(s.talos.Kubeconfig(ctx, in.Name))
		}, http.StatusNotFound, http.StatusInsufficientStorage)
}

func (s *Server) getConfig(ctx context.Context, in *struct {
	MachinePath
	Secrets bool `query:"secrets" doc:"With its secrets: takes the role admin, and is in the audit trail then"`
}) (*yamlAnswer, error) {
	if in.Secrets {
		if p := PrincipalOf(ctx); p == nil || !p.Role.Allows(admin) {
			return nil, huma.Error403Forbidden("a config with its secrets takes the role admin")
		}
	}
	v, err := s.configured(ctx, in.Ref)
	if err != nil {
		return nil, err
	}
	text, err := s.talos.Render(ctx, v, !in.Secrets)
	if in.Secrets {
		err = s.record(ctx, tells, http.StatusOK, err)
	}
	return yamlFile(text, err)
}

func (s *Server) getConfigOrigins(ctx context.Context, in *MachinePath) (*struct{ Body api.ConfigOrigins }, error) {
	v, err := s.configured(ctx, in.Ref)
	if err != nil {
		return nil, err
	}
	blocks, err := s.talos.Origins(ctx, v)
	if err != nil {
		return nil, err
	}
	return &struct{ Body api.ConfigOrigins }{api.ConfigOrigins{Blocks: blocks}}, nil
}

// configured returns a machine that has a config.
func (s *Server) configured(ctx context.Context, ref string) (inventory.View, error) {
	v, err := s.inv.Machine(ctx, ref)
	if err == nil && v.Cluster == nil {
		err = &inventory.FieldError{Field: "path.machine", Problem: v.Machine.Name + " belongs to no cluster and so has no config",
			Fix: "provisiond machine set " + v.Machine.Name + " --cluster CLUSTER", Err: inventory.ErrRefused}
	}
	return v, err
}

func (s *Server) getDiff(ctx context.Context, in *struct {
	MachinePath
	Running bool `query:"running" doc:"Compare with what the machine runs, and ask it for that"`
}) (*struct{ Body api.Diff }, error) {
	v, err := s.configured(ctx, in.Ref)
	if err != nil {
		return nil, err
	}
	now, err := s.talos.Render(ctx, v, true)
	if err != nil {
		return nil, err
	}
	if in.Running {
		run, err := s.running()
		if err != nil {
			return nil, err
		}
		has, err := run.RunningConfig(ctx, v)
		if err != nil {
			return nil, err
		}
		return &struct{ Body api.Diff }{api.Diff{Machine: v.Machine.Name, Running: has.Hash, Wanted: has.Wanted, Diff: unified("running", "now", has.Text, now)}}, nil
	}
	served, hash, at, err := s.talos.LastServed(ctx, v.Machine.Name)
	if err != nil && !errors.Is(err, inventory.ErrNotFound) {
		return nil, err
	}
	out := &struct{ Body api.Diff }{api.Diff{Machine: v.Machine.Name, Served: hash, ServedAt: at}}
	out.Body.Diff = unified("served", "now", served, now)
	return out, nil
}

// unified is the difference of two texts as `diff -u` writes it.
func unified(was, is string, from, to []byte) string {
	d := textdiff.Unified(from, to)
	if len(d) == 0 {
		return ""
	}
	var b bytes.Buffer
	b.WriteString("--- " + was + "\n+++ " + is + "\n")
	b.Write(d)
	return b.String()
}
