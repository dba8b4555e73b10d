package admin

import (
	"cmp"
	"context"
	"net/http"

	"github.com/danielgtaylor/huma/v2"

	"github.com/provisiond/provisiond/api"
	"github.com/provisiond/provisiond/internal/inventory"
)

// rolloutAnswer is the newest rollout over a cluster.
type rolloutAnswer struct{ Body api.Rollout }

func (s *Server) rolloutRoutes(doc huma.API) {
	tags := []string{"lifecycle"}
	register(s, doc, needs{operate, scoped, changes}, huma.Operation{OperationID: "start-rollout", Method: http.MethodPost, Path: "/clusters/{cluster}/rollout", Tags: tags,
		Summary: "Give all machines of a cluster the configs that they should have", DefaultStatus: http.StatusAccepted,
		Description: "One machine after the other, control planes first, each only while etcd of the others has quorum (the only control plane of a cluster is taken all the same, and mode staged without upgrade does not ask) and the control planes before it are ready again. " +
			"With upgrade, a machine that runs another Talos than it would netboot installs that first. It ends by itself at the first failure. The answer is 409 while another goes on, or while the cluster is not bootstrapped."},
		s.startRollout, http.StatusNotFound, http.StatusConflict, http.StatusInsufficientStorage)
	register(s, doc, needs{read, scoped, looks}, huma.Operation{OperationID: "get-rollout", Method: http.MethodGet, Path: "/clusters/{cluster}/rollout", Tags: tags,
		Summary: "Show the newest rollout over a cluster"}, s.getRollout, http.StatusNotFound)
	register(s, doc, needs{operate, scoped, changes}, huma.Operation{OperationID: "stop-rollout", Method: http.MethodDelete, Path: "/clusters/{cluster}/rollout", Tags: tags,
		Summary: "Stop the rollout over a cluster", Description: "No further machine is asked; what one was asked already is not taken back. One that has ended stays as it is."},
		s.stopRollout, http.StatusNotFound, http.StatusInsufficientStorage)
}

func (s *Server) startRollout(ctx context.Context, in *struct {
	ClusterPath
	Body api.RolloutOrder
}) (*rolloutAnswer, error) {
	mode := cmp.Or(inventory.ConfigMode(in.Body.Mode), inventory.ConfigAuto)
	return rolloutOf(s.inv.StartRollout(ctx, in.Name, mode, in.Body.Upgrade))
}

func (s *Server) getRollout(ctx context.Context, in *ClusterPath) (*rolloutAnswer, error) {
	return rolloutOf(s.inv.Rollout(ctx, in.Name))
}

func (s *Server) stopRollout(ctx context.Context, in *ClusterPath) (*rolloutAnswer, error) {
	return rolloutOf(s.inv.StopRollout(ctx, in.Name))
}

func rolloutOf(r *inventory.Rollout, err error) (*rolloutAnswer, error) {
	if err != nil {
		return nil, err
	}
	out := &rolloutAnswer{api.Rollout{
		Cluster: r.Cluster, Number: r.Number, Mode: string(r.Mode), Upgrade: r.Upgrade, State: "going", Reason: r.Reason,
		Started: r.Started, Stopped: r.Stopped, Machines: make([]api.RolloutMachine, 0, len(r.Machines)),
	}}
	switch {
	case r.Complete():
		out.Body.State = "complete"
	case !r.Going():
		out.Body.State = "stopped"
	}
	for _, m := range r.Machines {
		out.Body.Machines = append(out.Body.Machines, api.RolloutMachine{
			Name: m.Name, Role: string(m.Role), State: string(m.State), Hash: m.Hash, Image: m.Image, ClaimedAt: m.ClaimedAt, EndedAt: m.EndedAt, Reason: m.Reason,
		})
	}
	return out, nil
}
