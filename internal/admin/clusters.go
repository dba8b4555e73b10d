package admin

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/url"

	"github.com/danielgtaylor/huma/v2"

	"github.com/provisiond/provisiond/api"
	"github.com/provisiond/provisiond/internal/inventory"
)

// clusterAnswer is one cluster and its ETag.
type clusterAnswer struct {
	ETag string `header:"ETag"`
	Body api.Cluster
}

// createdCluster is a cluster that was not there before.
type createdCluster struct {
	ETag     string `header:"ETag"`
	Location string `header:"Location"`
	Body     api.Cluster
}

func (s *Server) clusterRoutes(doc huma.API) {
	tags := []string{"clusters"}
	register(s, doc, needs{read, scoped, looks}, huma.Operation{OperationID: "list-clusters", Method: http.MethodGet, Path: "/clusters", Tags: tags,
		Summary: "List clusters", Description: "Ordered by name."}, s.listClusters)
	register(s, doc, needs{operate, rackWide, changes}, huma.Operation{OperationID: "create-cluster", Method: http.MethodPost, Path: "/clusters", Tags: tags,
		Summary: "Create a cluster", Description: "Makes its secrets, once.", DefaultStatus: http.StatusCreated},
		s.createCluster, http.StatusConflict, http.StatusInsufficientStorage)
	register(s, doc, needs{operate, rackWide, changes}, huma.Operation{OperationID: "import-cluster", Method: http.MethodPost, Path: "/clusters/import", Tags: tags,
		Summary: "Take over a cluster whose secrets exist", Description: "What is left out is read from the file, where it tells. The cluster is taken to run already and is never bootstrapped from here, unless new is true.",
		DefaultStatus: http.StatusCreated}, s.importCluster, http.StatusConflict, http.StatusInsufficientStorage)
	register(s, doc, needs{read, scoped, looks}, huma.Operation{OperationID: "get-cluster", Method: http.MethodGet, Path: "/clusters/{cluster}", Tags: tags,
		Summary: "Show a cluster"}, s.getCluster, http.StatusNotFound)
	register(s, doc, needs{operate, scoped, changes}, huma.Operation{OperationID: "put-cluster", Method: http.MethodPut, Path: "/clusters/{cluster}", Tags: tags,
		Summary:     "Replace what was said of a cluster",
		Description: "What is left out becomes empty, but for versions and subnets, which are kept. Never creates one: that makes secrets."},
		s.putCluster, http.StatusNotFound, http.StatusConflict, http.StatusPreconditionFailed, http.StatusInsufficientStorage)
	register(s, doc, needs{operate, scoped, changes}, huma.Operation{OperationID: "patch-cluster", Method: http.MethodPatch, Path: "/clusters/{cluster}", Tags: tags,
		Summary: "Change fields of a cluster", Description: "A JSON merge patch (RFC 7396): null removes a field, a list is replaced whole."},
		s.patchCluster, http.StatusNotFound, http.StatusConflict, http.StatusPreconditionFailed, http.StatusInsufficientStorage)
	register(s, doc, needs{operate, scoped, changes}, huma.Operation{OperationID: "delete-cluster", Method: http.MethodDelete, Path: "/clusters/{cluster}", Tags: tags,
		Summary: "Remove a cluster and its secrets", Description: "Refused while machines belong to it, or a disk is still of it."},
		s.deleteCluster, http.StatusNotFound, http.StatusConflict, http.StatusPreconditionFailed, http.StatusInsufficientStorage)
}

func (s *Server) listClusters(ctx context.Context, in *Page) (*struct{ Body api.List[api.Cluster] }, error) {
	list, err := s.inv.Clusters(ctx)
	if err != nil {
		return nil, err
	}
	out := &struct{ Body api.List[api.Cluster] }{}
	out.Body.Items = []api.Cluster{}
	for _, c := range list {
		if c.Name <= in.After {
			continue
		}
		if len(out.Body.Items) == in.Limit {
			out.Body.Next = out.Body.Items[in.Limit-1].Name
			break
		}
		_, b, err := s.inv.Cluster(ctx, c.Name)
		if errors.Is(err, inventory.ErrNotFound) { // removed meanwhile
			continue
		} else if err != nil {
			return nil, err
		}
		out.Body.Items = append(out.Body.Items, clusterOf(c, b))
	}
	return out, nil
}

func (s *Server) getCluster(ctx context.Context, in *ClusterPath) (*clusterAnswer, error) {
	c, b, err := s.inv.Cluster(ctx, in.Name)
	if err != nil {
		return nil, err
	}
	return &clusterAnswer{ETag: etag(c.Rev), Body: clusterOf(c, b)}, nil
}

func (s *Server) createCluster(ctx context.Context, in *struct{ Body api.ClusterSpec }) (*createdCluster, error) {
	c, err := s.clusterFrom(in.Body, nil)
	if err != nil {
		return nil, err
	}
	if err := s.vacant(ctx, c.Name); err != nil { // before the second that keys take
		return nil, err
	}
	secrets, err := s.talos.NewSecrets(c.TalosVersion)
	if err != nil {
		return nil, err
	}
	return s.storeNewCluster(ctx, c, secrets)
}

func (s *Server) importCluster(ctx context.Context, in *struct{ Body api.ClusterImport }) (*createdCluster, error) {
	file, err := s.talos.Import([]byte(in.Body.Secrets))
	if err != nil {
		return nil, err
	}
	spec := in.Body.ClusterSpec
	spec.Name = cmp.Or(spec.Name, file.Name)
	spec.Endpoint = cmp.Or(spec.Endpoint, file.Endpoint)
	spec.TalosVersion = cmp.Or(spec.TalosVersion, file.TalosVersion)
	spec.KubernetesVersion = cmp.Or(spec.KubernetesVersion, file.KubernetesVersion)
	if len(spec.PodSubnets) == 0 {
		spec.PodSubnets = texts(file.PodSubnets)
	}
	if len(spec.ServiceSubnets) == 0 {
		spec.ServiceSubnets = texts(file.ServiceSubnets)
	}
	c, err := s.clusterFrom(spec, nil)
	if err != nil {
		return nil, err
	}
	if err := s.vacant(ctx, c.Name); err != nil {
		return nil, err
	}
	c.Imported = !in.Body.New
	return s.storeNewCluster(ctx, c, file.Secrets)
}

func (s *Server) vacant(ctx context.Context, name string) error {
	_, _, err := s.inv.Cluster(ctx, name)
	if err == nil {
		return &inventory.FieldError{Field: "name", Problem: fmt.Sprintf("cluster %s already exists", name), Fix: "choose another name, or change that cluster", Err: inventory.ErrExists}
	}
	if errors.Is(err, inventory.ErrNotFound) {
		return nil
	}
	return err
}

func (s *Server) storeNewCluster(ctx context.Context, c *inventory.Cluster, secrets []byte) (*createdCluster, error) {
	callOf(ctx).target = "cluster/" + c.Name
	if err := checked("cluster", s.talos.Check(ctx, c, secrets, nil)); err != nil {
		return nil, err
	}
	if _, err := s.inv.CreateCluster(ctx, c, secrets); err != nil {
		return nil, err
	}
	out, err := s.getCluster(ctx, &ClusterPath{c.Name})
	if err != nil {
		return nil, err
	}
	return &createdCluster{out.ETag, api.Prefix + "/clusters/" + url.PathEscape(c.Name), out.Body}, nil
}

func (s *Server) putCluster(ctx context.Context, in *struct {
	ClusterPath
	Precondition
	Body api.ClusterSpec
}) (*clusterAnswer, error) {
	return s.changeCluster(ctx, in.Name, &in.Precondition, func(api.ClusterSpec) (api.ClusterSpec, error) { return in.Body, nil })
}

func (s *Server) patchCluster(ctx context.Context, in *struct {
	ClusterPath
	Precondition
	Body map[string]any `contentType:"application/merge-patch+json" doc:"Fields of ClusterSpec to change"`
}) (*clusterAnswer, error) {
	return s.changeCluster(ctx, in.Name, &in.Precondition, func(old api.ClusterSpec) (api.ClusterSpec, error) { return mergePatch(old, in.Body) })
}

func (s *Server) changeCluster(ctx context.Context, name string, cond *Precondition, change func(api.ClusterSpec) (api.ClusterSpec, error)) (*clusterAnswer, error) {
	old, _, err := s.inv.Cluster(ctx, name)
	if err != nil {
		return nil, err
	}
	rev, err := cond.rev(old.Rev)
	if err != nil {
		return nil, err
	}
	c, err := s.changed(ctx, old, change)
	if err != nil {
		return nil, err
	}
	if _, err := s.inv.PutCluster(ctx, c, rev); err != nil {
		return nil, err
	}
	return s.getCluster(ctx, &ClusterPath{name})
}

// changed is a cluster after a change, if its machines could have configs then.
func (s *Server) changed(ctx context.Context, old *inventory.Cluster, change func(api.ClusterSpec) (api.ClusterSpec, error)) (*inventory.Cluster, error) {
	spec, err := change(specOfCluster(old))
	if err != nil {
		return nil, err
	}
	spec.Name = cmp.Or(spec.Name, old.Name)
	c, err := s.clusterFrom(spec, old)
	if err == nil {
		err = sameName(c.Name, old.Name)
	}
	if err == nil {
		err = checked("cluster", s.talos.Check(ctx, c, nil, nil))
	}
	return c, err
}

func (s *Server) deleteCluster(ctx context.Context, in *struct {
	ClusterPath
	Precondition
}) (*struct{}, error) {
	c, _, err := s.inv.Cluster(ctx, in.Name)
	if err != nil {
		return nil, err
	}
	rev, err := in.rev(c.Rev)
	if err != nil {
		return nil, err
	}
	return nil, s.inv.DeleteCluster(ctx, in.Name, rev)
}
