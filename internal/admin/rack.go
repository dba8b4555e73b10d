package admin

import (
	"context"
	"io"
	"maps"
	"net/http"
	"runtime"

	"github.com/danielgtaylor/huma/v2"
	"github.com/danielgtaylor/huma/v2/adapters/humachi"

	"github.com/provisiond/provisiond/api"
	"github.com/provisiond/provisiond/internal/inventory"
)

func (s *Server) rackRoutes(doc huma.API) {
	tags := []string{"rack"}
	register(s, doc, needs{operate, scoped, changes}, huma.Operation{OperationID: "apply", Method: http.MethodPost, Path: "/apply", Tags: tags,
		Summary: "Make clusters and machines be as declared",
		Description: "Creates and updates what differs and never deletes. Everything is checked before anything is written, and " +
			"every error names its place, such as machines[3].address. A cluster that does not exist is an error on its name, " +
			"unless createClusters is true; so is a new role, cluster or address of a machine that runs, unless force is."},
		func(ctx context.Context, in *applyInput) (*struct{ Body api.Applied }, error) {
			result, err := s.apply(ctx, in)
			if err != nil {
				return nil, err
			}
			return &struct{ Body api.Applied }{*result}, nil
		}, http.StatusConflict, http.StatusInsufficientStorage)
	register(s, doc, needs{read, scoped, looks}, huma.Operation{OperationID: "export", Method: http.MethodGet, Path: "/export", Tags: tags,
		Summary: "All clusters and machines, as apply takes them", Description: "Without the secrets of the clusters: for those take a backup."}, s.export)
	register(s, doc, needs{admin, rackWide, tells}, huma.Operation{OperationID: "backup", Method: http.MethodGet, Path: "/backup", Tags: tags,
		Summary: "Everything, secrets included, as one consistent file",
		Responses: map[string]*huma.Response{"200": {Description: "The database", Content: map[string]*huma.MediaType{
			"application/octet-stream": {Schema: &huma.Schema{Type: huma.TypeString, Format: "binary"}},
		}}}}, s.backup, http.StatusUnprocessableEntity)
	register(s, doc, needs{read, scoped, looks}, huma.Operation{OperationID: "status", Method: http.MethodGet, Path: "/status", Tags: tags,
		Summary: "The rack at a glance"}, s.status)
	register(s, doc, needs{read, everybody, looks}, huma.Operation{OperationID: "version", Method: http.MethodGet, Path: "/version", Tags: tags,
		Summary: "What answers"}, func(context.Context, *struct{}) (*struct{ Body api.Version }, error) {
		return &struct{ Body api.Version }{api.Version{Version: s.cfg.Version, Go: runtime.Version(), API: "v1"}}, nil
	})
}

func (s *Server) export(ctx context.Context, _ *struct{}) (*struct{ Body api.Rack }, error) {
	clusters, err := s.inv.Clusters(ctx)
	if err != nil {
		return nil, err
	}
	out := &struct{ Body api.Rack }{}
	for _, c := range clusters {
		out.Body.Clusters = append(out.Body.Clusters, specOfCluster(c))
	}
	err = eachMachine(ctx, s.inv, "", func(v inventory.View) bool {
		out.Body.Machines = append(out.Body.Machines, specOfMachine(v.Machine))
		return true
	})
	return out, err
}

// backup streams. An error after the first byte breaks the connection off, so
// that nobody takes a part for the whole.
func (s *Server) backup(ctx context.Context, _ *struct{}) (*huma.StreamResponse, error) {
	return &huma.StreamResponse{Body: func(hctx huma.Context) {
		_, w := humachi.Unwrap(hctx)
		w.Header().Set("Content-Type", "application/octet-stream")
		out := &started{w: w}
		err := s.inv.Backup(ctx, out)
		if err == nil {
			s.log.Info().Msg("a backup, with all secrets, was taken")
			return
		}
		s.log.Error().Err(err).Bool("begun", out.yes).Msg("backup failed")
		if out.yes {
			panic(http.ErrAbortHandler)
		}
		writeProblem(w, http.StatusInternalServerError, "internal error; the log of provisiond has the detail")
	}}, nil
}

// started notes whether anything was written.
type started struct {
	w   io.Writer
	yes bool
}

func (s *started) Write(p []byte) (int, error) {
	s.yes = true
	return s.w.Write(p)
}

// maxAttention bounds the machines that a status names.
const maxAttention = 100

func (s *Server) status(ctx context.Context, _ *struct{}) (*struct{ Body api.Status }, error) {
	clusters, err := s.inv.Clusters(ctx)
	if err != nil {
		return nil, err
	}
	strangers, err := s.inv.Strangers(ctx)
	if err != nil {
		return nil, err
	}
	images, err := s.inv.Images(ctx)
	if err != nil {
		return nil, err
	}
	st := api.Status{
		Version: s.cfg.Version, Discovered: len(strangers), Images: len(images),
		Phases: map[string]int{}, Clusters: []api.ClusterStatus{}, Attention: []api.Attention{},
	}
	if s.cfg.DHCPv6 != nil && !foreign(ctx, "") {
		st.Dropped = s.cfg.DHCPv6.Dropped()
		maps.DeleteFunc(st.Dropped, func(_ string, n uint64) bool { return n == 0 })
	}
	index := map[string]int{}
	for _, c := range clusters {
		_, b, err := s.inv.Cluster(ctx, c.Name)
		if err != nil {
			return nil, err
		}
		index[c.Name] = len(st.Clusters)
		st.Clusters = append(st.Clusters, api.ClusterStatus{Name: c.Name, Bootstrap: bootstrapOf(b)})
	}
	now := s.cfg.Now()
	err = eachMachine(ctx, s.inv, "", func(v inventory.View) bool {
		state := s.cfg.Patience.PhaseOf(v, now)
		st.Machines++
		st.Phases[string(state.Phase)]++
		if i, ok := index[v.Machine.Cluster]; ok {
			st.Clusters[i].Machines++
			if state.Phase == inventory.PhaseReady {
				st.Clusters[i].Ready++
			}
		}
		alarm := v.Facts.Alarm()
		if (state.Phase == inventory.PhaseStalled || state.Phase == inventory.PhaseFailed || alarm != "") && len(st.Attention) < maxAttention {
			st.Attention = append(st.Attention, api.Attention{Machine: v.Machine.Name, Phase: stateOf(state), Alarm: alarm})
		}
		return true
	})
	return &struct{ Body api.Status }{st}, err
}
