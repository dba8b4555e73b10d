package admin

import (
	"context"
	"errors"
	"net/http"

	"github.com/danielgtaylor/huma/v2"

	"github.com/provisiond/provisiond/api"
	"github.com/provisiond/provisiond/internal/inventory"
)

// Bounds of what one check looks at: a machine takes a millisecond, and a hundred if
// something is wrong with it.
const (
	maxChecked = 256
	maxWrong   = 20
)

func (s *Server) checkRoutes(doc huma.API) {
	register(s, doc, needs{operate, scoped, looks}, huma.Operation{OperationID: "check-machine", Method: http.MethodPost, Path: "/machines/{machine}/check", Tags: []string{"machines"},
		Summary: "Check a change of a machine, and change nothing", Description: "Takes what patch-machine takes, and answers 200 with what is wrong with it."},
		s.checkMachine, http.StatusNotFound, http.StatusUnprocessableEntity)
	register(s, doc, needs{operate, scoped, looks}, huma.Operation{OperationID: "check-cluster", Method: http.MethodPost, Path: "/clusters/{cluster}/check", Tags: []string{"clusters"},
		Summary: "Check a change of a cluster, and change nothing", Description: "Takes what patch-cluster takes, and answers 200 with what is wrong with it, for the cluster by itself and for its machines."},
		s.checkCluster, http.StatusNotFound, http.StatusUnprocessableEntity)
}

func (s *Server) checkMachine(ctx context.Context, in *struct {
	MachinePath
	Force
	Body map[string]any `contentType:"application/merge-patch+json" doc:"Fields of MachineSpec to change"`
}) (*struct{ Body api.MachineCheck }, error) {
	out := &struct{ Body api.MachineCheck }{}
	v, err := s.inv.Machine(ctx, in.Ref)
	if err != nil {
		return nil, err
	}
	m, err := in.patched(v, in.Body)
	if err == nil {
		err = s.fits(ctx, m)
	}
	if err == nil {
		err = s.inv.CheckMachine(ctx, m)
	}
	if out.Body.Problems, err = s.problems(ctx, "check-machine", in, err); err != nil {
		return nil, err
	}
	if out.Body.OK = len(out.Body.Problems) == 0; !out.Body.OK || m.Cluster == "" {
		return out, nil
	}
	c, _, err := s.inv.Cluster(ctx, m.Cluster)
	if err != nil {
		return nil, err
	}
	then, err := s.talos.Preview(ctx, c, m)
	if err != nil {
		return nil, err
	}
	var now []byte
	if v.Cluster != nil {
		// What has no config now, for whatever reason, gets its first.
		if now, err = s.talos.Preview(ctx, v.Cluster, v.Machine); err != nil && len(fieldErrors(err)) == 0 {
			return nil, err
		}
	}
	out.Body.Diff = unified("now", "then", now, then)
	return out, nil
}

func (s *Server) checkCluster(ctx context.Context, in *struct {
	ClusterPath
	Body map[string]any `contentType:"application/merge-patch+json" doc:"Fields of ClusterSpec to change"`
}) (*struct{ Body api.ClusterCheck }, error) {
	out := &struct{ Body api.ClusterCheck }{}
	out.Body.Machines = []api.MachineProblems{}
	old, _, err := s.inv.Cluster(ctx, in.Name)
	if err != nil {
		return nil, err
	}
	c, err := s.changed(ctx, old, func(old api.ClusterSpec) (api.ClusterSpec, error) { return mergePatch(old, in.Body) })
	if out.Body.Problems, err = s.problems(ctx, "check-cluster", in, err); err != nil {
		return nil, err
	}
	var failed error
	err = eachMachine(ctx, s.inv, "", func(v inventory.View) bool {
		switch {
		case v.Machine.Cluster != old.Name:
			return true
		case len(out.Body.Problems) > 0, out.Body.Checked == maxChecked, len(out.Body.Machines) == maxWrong:
			out.Body.Unchecked++
			return true
		}
		out.Body.Checked++
		var wrong []api.Detail
		wrong, failed = s.problems(ctx, "check-cluster", in, checked("cluster", s.talos.Check(ctx, c, nil, v.Machine)))
		if len(wrong) > 0 {
			out.Body.Machines = append(out.Body.Machines, api.MachineProblems{Machine: v.Machine.Name, Problems: wrong})
		}
		return failed == nil
	})
	out.Body.OK = len(out.Body.Problems)+len(out.Body.Machines) == 0
	return out, errors.Join(err, failed)
}

// problems is what an error tells of a change that would be refused. What is no matter
// of the change is returned as the error that it is.
func (s *Server) problems(ctx context.Context, operation string, in any, err error) ([]api.Detail, error) {
	out := []api.Detail{}
	if err == nil {
		return out, nil
	}
	err = s.problem(ctx, operation, in, err)
	var model *huma.ErrorModel
	if !errors.As(err, &model) || model.Status != http.StatusUnprocessableEntity && model.Status != http.StatusConflict {
		return nil, err
	}
	for _, d := range model.Errors {
		out = append(out, api.Detail{Message: d.Message, Location: d.Location})
	}
	if len(out) == 0 {
		out = append(out, api.Detail{Message: model.Detail})
	}
	return out, nil
}
