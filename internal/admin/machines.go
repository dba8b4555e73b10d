package admin

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"slices"
	"strings"

	"github.com/danielgtaylor/huma/v2"

	"github.com/provisiond/provisiond/api"
	"github.com/provisiond/provisiond/internal/inventory"
)

// machineAnswer is one machine and its ETag.
type machineAnswer struct {
	ETag string `header:"ETag"`
	Body api.Machine
}

// createdMachine is a machine that was not there before.
type createdMachine struct {
	ETag     string `header:"ETag"`
	Location string `header:"Location"`
	Body     api.Machine
}

func (s *Server) machineRoutes(doc huma.API) {
	tags := []string{"machines"}
	s.machineWatchRoute(doc)
	register(s, doc, needs{read, scoped, looks}, huma.Operation{OperationID: "list-machines", Method: http.MethodGet, Path: "/machines", Tags: tags,
		Summary: "List machines", Description: "Ordered by name."}, s.listMachines)
	register(s, doc, needs{operate, scoped, changes}, huma.Operation{OperationID: "create-machine", Method: http.MethodPost, Path: "/machines", Tags: tags,
		Summary: "Register a machine", Description: "Orders its first install.", DefaultStatus: http.StatusCreated},
		s.createMachine, http.StatusConflict, http.StatusInsufficientStorage)
	register(s, doc, needs{read, scoped, looks}, huma.Operation{OperationID: "get-machine", Method: http.MethodGet, Path: "/machines/{machine}", Tags: tags,
		Summary: "Show a machine"}, s.getMachine, http.StatusNotFound)
	register(s, doc, needs{operate, scoped, changes}, huma.Operation{OperationID: "put-machine", Method: http.MethodPut, Path: "/machines/{machine}", Tags: tags,
		Summary:     "Register or replace a machine",
		Description: "What is left out becomes empty, but for the address, which is kept. If-Match: * never registers. " + forced},
		s.putMachine, http.StatusConflict, http.StatusPreconditionFailed, http.StatusInsufficientStorage)
	register(s, doc, needs{operate, scoped, changes}, huma.Operation{OperationID: "patch-machine", Method: http.MethodPatch, Path: "/machines/{machine}", Tags: tags,
		Summary: "Change fields of a machine", Description: "A JSON merge patch (RFC 7396): null removes a field, a list is replaced whole. " + forced},
		s.patchMachine, http.StatusNotFound, http.StatusConflict, http.StatusPreconditionFailed, http.StatusInsufficientStorage)
	register(s, doc, needs{operate, scoped, changes}, huma.Operation{OperationID: "delete-machine", Method: http.MethodDelete, Path: "/machines/{machine}", Tags: tags,
		Summary: "Forget a machine", Description: "The machine itself is not touched; seen again, it is a discovered one. One that has its config is forgotten only if force is true; a control plane leaves etcd first, which is refused with the numbers where etcd's quorum would go."},
		s.deleteMachine, http.StatusNotFound, http.StatusConflict, http.StatusPreconditionFailed, http.StatusInsufficientStorage)
	register(s, doc, needs{read, scoped, looks}, huma.Operation{OperationID: "list-boots", Method: http.MethodGet, Path: "/machines/{machine}/boots", Tags: tags,
		Summary: "List the last boots of a machine", Description: "Newest first, each with the time of its steps."}, s.listBoots, http.StatusNotFound)
	register(s, doc, needs{read, rackWide, looks}, huma.Operation{OperationID: "list-discovered", Method: http.MethodGet, Path: "/discovered", Tags: tags,
		Summary: "List NICs that belong to no machine", Description: "The one seen last first. The first 64, and one that is asked for by its mac, with a suggestion how to register it: see create-machine and adopt-machine."}, s.listDiscovered)
}

func (s *Server) listMachines(ctx context.Context, in *struct {
	MachineFilter
	Page
}) (*struct{ Body api.List[api.Machine] }, error) {
	match, err := in.matcher()
	if err != nil {
		return nil, err
	}
	out := &struct{ Body api.List[api.Machine] }{}
	out.Body.Items = []api.Machine{}
	// Filters are few and racks small: machines are read page by page until
	// enough of them match, which holds one page in memory at a time.
	err = eachMachine(ctx, s.inv, in.After, func(v inventory.View) bool {
		if len(out.Body.Items) == in.Limit {
			out.Body.Next = out.Body.Items[in.Limit-1].Name
			return false
		}
		if m := s.machineOf(v); match(&m) {
			out.Body.Items = append(out.Body.Items, m)
		}
		return true
	})
	return out, err
}

// eachMachine calls f for each machine after a name, in order, until it returns false.
func eachMachine(ctx context.Context, inv Machines, after string, f func(inventory.View) bool) error {
	const size = 256
	for {
		views, err := inv.Machines(ctx, after, size)
		if err != nil {
			return err
		}
		for _, v := range views {
			if !f(v) {
				return nil
			}
			after = v.Machine.Name
		}
		if len(views) < size {
			return nil
		}
	}
}

// matcher is the filter as one function.
func (f *MachineFilter) matcher() (func(*api.Machine) bool, error) {
	type label struct{ key, value string }
	var labels []label
	for i, l := range f.Label {
		key, value, ok := strings.Cut(l, "=")
		if !ok || key == "" {
			return nil, badField(fmt.Sprintf("query.label[%d]", i), "write key=value", "%q is not a label", l)
		}
		labels = append(labels, label{key, value})
	}
	q := strings.ToLower(f.Q)
	return func(m *api.Machine) bool {
		if f.Cluster != "" && m.Cluster != f.Cluster || f.Role != "" && m.Role != f.Role || f.Phase != "" && m.Phase.Phase != f.Phase {
			return false
		}
		for _, l := range labels {
			if v, ok := m.Labels[l.key]; !ok || v != l.value {
				return false
			}
		}
		return q == "" || mentions(m, q)
	}, nil
}

func mentions(m *api.Machine, q string) bool {
	texts := []string{m.Name, m.Address, m.Facts.UUID, m.Facts.Serial}
	for _, mac := range m.MACs { // in every notation, so that a part of one is found too
		texts = append(texts, mac, strings.ReplaceAll(mac, ":", "-"), inventory.MAC(mac).Plain())
		if b := inventory.MAC(mac).Bytes(); len(b) == 6 {
			texts = append(texts, fmt.Sprintf("%x.%x.%x", b[:2], b[2:4], b[4:]))
		}
	}
	for k, v := range m.Labels {
		texts = append(texts, k+"="+v)
	}
	for _, t := range texts {
		if strings.Contains(strings.ToLower(t), q) {
			return true
		}
	}
	return false
}

func (s *Server) answerMachine(ctx context.Context, name string) (*machineAnswer, error) {
	v, err := s.inv.Machine(ctx, name)
	if err != nil {
		return nil, err
	}
	return &machineAnswer{ETag: etag(v.Machine.Rev), Body: s.machineOf(v)}, nil
}

func (s *Server) getMachine(ctx context.Context, in *MachinePath) (*machineAnswer, error) {
	return s.answerMachine(ctx, in.Ref)
}

func (s *Server) createMachine(ctx context.Context, in *struct{ Body api.MachineSpec }) (*createdMachine, error) {
	m, err := machineFrom(in.Body, nil)
	if err != nil {
		return nil, err
	}
	callOf(ctx).target = "machine/" + m.Name
	out, err := s.storeMachine(ctx, m, 0)
	if err != nil {
		return nil, err
	}
	return &createdMachine{out.ETag, api.Prefix + "/machines/" + url.PathEscape(m.Name), out.Body}, nil
}

// storeMachine checks that the machine gets a config Talos takes, writes it and
// answers it.
func (s *Server) storeMachine(ctx context.Context, m *inventory.Machine, rev uint64) (*machineAnswer, error) {
	if err := s.fits(ctx, m); err != nil {
		return nil, err
	}
	if _, err := s.inv.PutMachine(ctx, m, rev); err != nil {
		return nil, err
	}
	return s.answerMachine(ctx, m.Name)
}

// fits checks that a machine may be where it is said to be, and gets a config there that
// Talos takes.
func (s *Server) fits(ctx context.Context, m *inventory.Machine) error {
	if err := placed(ctx, m.Cluster); err != nil {
		return err
	}
	if m.Cluster == "" {
		return s.talos.CheckPatches(m.Patches)
	}
	c, _, err := s.inv.Cluster(ctx, m.Cluster)
	if errors.Is(err, inventory.ErrNotFound) {
		return noCluster(m.Cluster)
	} else if err != nil {
		return err
	}
	return checked("machine", s.talos.Check(ctx, c, nil, m))
}

func noCluster(name string) error {
	return &inventory.FieldError{Field: "cluster", Problem: fmt.Sprintf("cluster %s does not exist", name), Fix: "create or import it first", Err: inventory.ErrNotFound}
}

func (s *Server) putMachine(ctx context.Context, in *struct {
	MachinePath
	Precondition
	Force
	Body api.MachineSpec
}) (*machineAnswer, error) {
	v, err := s.inv.Machine(ctx, in.Ref)
	if err != nil && !errors.Is(err, inventory.ErrNotFound) {
		return nil, err
	}
	name, current := in.Ref, uint64(0)
	if v.Machine != nil {
		name, current = v.Machine.Name, v.Machine.Rev
	}
	rev, err := in.rev(current)
	if err != nil {
		return nil, err
	}
	m, err := machineFrom(named(in.Body, name), v.Machine)
	if err == nil {
		err = sameName(m.Name, name)
	}
	if err == nil && v.Machine != nil {
		err = in.allow(v, m)
	}
	if err != nil {
		return nil, err
	}
	return s.storeMachine(ctx, m, rev)
}

// named fills in the name that the path gave already.
func named(spec api.MachineSpec, name string) api.MachineSpec {
	if spec.Name == "" {
		spec.Name = name
	}
	return spec
}

func sameName(got, want string) error {
	if got != want {
		return badField("name", "leave it as it is, or register under the new name and delete the old", "%s cannot be renamed to %s", want, got)
	}
	return nil
}

func (s *Server) patchMachine(ctx context.Context, in *struct {
	MachinePath
	Precondition
	Force
	Body map[string]any `contentType:"application/merge-patch+json" doc:"Fields of MachineSpec to change"`
}) (*machineAnswer, error) {
	v, err := s.inv.Machine(ctx, in.Ref)
	if err != nil {
		return nil, err
	}
	rev, err := in.rev(v.Machine.Rev)
	if err != nil {
		return nil, err
	}
	m, err := in.patched(v, in.Body)
	if err != nil {
		return nil, err
	}
	return s.storeMachine(ctx, m, rev)
}

// patched is a machine as a merge patch makes it, if that may be done to it.
func (f Force) patched(v inventory.View, patch map[string]any) (*inventory.Machine, error) {
	spec, err := mergePatch(specOfMachine(v.Machine), patch)
	if err != nil {
		return nil, err
	}
	// Without an address in the patched result the machine keeps the one it has.
	m, err := machineFrom(spec, v.Machine)
	if err == nil {
		err = sameName(m.Name, v.Machine.Name)
	}
	if err == nil {
		err = f.allow(v, m)
	}
	return m, err
}

// mergePatch applies a JSON merge patch (RFC 7396) to a spec, and refuses
// fields that it does not have.
func mergePatch[T any](spec T, patch map[string]any) (out T, err error) {
	before, err := json.Marshal(spec)
	if err != nil {
		return out, err
	}
	var target any
	if err := json.Unmarshal(before, &target); err != nil {
		return out, err
	}
	after, err := json.Marshal(merged(target, patch))
	if err != nil {
		return out, err
	}
	dec := json.NewDecoder(bytes.NewReader(after))
	dec.DisallowUnknownFields()
	err = dec.Decode(&out)
	var wrong *json.UnmarshalTypeError
	switch {
	case errors.As(err, &wrong):
		return out, badField(wrong.Field, "", "a %s is not a %s", wrong.Value, wrong.Type)
	case err != nil && !errors.Is(err, io.EOF):
		return out, badField("", "see /openapi.json", "%s", strings.TrimPrefix(err.Error(), "json: "))
	}
	return out, nil
}

// merged is MergePatch of RFC 7396 section 2. The depth is that of the patch,
// which the JSON decoder bounds.
func merged(target, patch any) any {
	fields, ok := patch.(map[string]any)
	if !ok {
		return patch
	}
	object, ok := target.(map[string]any)
	if !ok {
		object = map[string]any{}
	}
	for name, value := range fields {
		if value == nil {
			delete(object, name)
		} else {
			object[name] = merged(object[name], value)
		}
	}
	return object
}

func (s *Server) deleteMachine(ctx context.Context, in *struct {
	MachinePath
	Precondition
	Force
	DestroyCluster string `query:"destroyCluster" doc:"The name of its cluster, as the word that the cluster may be lost with it: needed where etcd's quorum or its last control plane would go"`
}) (*struct{}, error) {
	v, err := s.inv.Machine(ctx, in.Ref)
	if err != nil {
		return nil, err
	}
	rev, err := in.rev(v.Machine.Rev)
	if err != nil {
		return nil, err
	}
	if err := in.allow(v, nil); err != nil {
		return nil, err
	}
	destroy, err := destroys(ctx, in.DestroyCluster, "query.destroyCluster", v.Facts.Holds.Cluster)
	if err != nil {
		return nil, err
	}
	if err := s.guards.Release(ctx, v, destroy); err != nil {
		return nil, err
	}
	return nil, s.inv.DeleteMachine(ctx, v.Machine.Name, rev)
}

func (s *Server) listBoots(ctx context.Context, in *MachinePath) (*struct{ Body api.List[api.Boot] }, error) {
	v, err := s.inv.Machine(ctx, in.Ref)
	if err != nil {
		return nil, err
	}
	out := &struct{ Body api.List[api.Boot] }{}
	out.Body.Items = make([]api.Boot, 0, len(v.Facts.Boots))
	for _, b := range v.Facts.Boots {
		out.Body.Items = append(out.Body.Items, bootOf(b))
	}
	return out, nil
}

func (s *Server) listDiscovered(ctx context.Context, in *struct {
	MAC string `query:"mac" doc:"Only this NIC, if it is one of them" example:"52:54:00:00:00:01"`
}) (*struct{ Body api.List[api.Stranger] }, error) {
	list, err := s.inv.Strangers(ctx)
	if err != nil {
		return nil, err
	}
	out := &struct{ Body api.List[api.Stranger] }{}
	out.Body.Items = make([]api.Stranger, 0, len(list)) // the inventory bounds them
	from, to := 0, len(list)
	if in.MAC != "" {
		mac, err := inventory.ParseMAC(in.MAC)
		if err != nil {
			return nil, badField("query.mac", "a MAC such as 52:54:00:00:00:01", "%q is none", in.MAC)
		}
		if from = slices.IndexFunc(list, func(st inventory.Stranger) bool { return st.MAC == mac }); from < 0 {
			return out, nil
		}
		// The suggestion is as the whole list has it, so that no two are asked for one by one and told the same.
		if last := inventory.MaxSuggested - 1; from > last {
			list[from], list[last] = list[last], list[from]
			from = last
		}
		to = from + 1
	}
	suggested, err := s.inv.Suggest(ctx, list)
	if err != nil {
		return nil, err
	}
	who := PrincipalOf(ctx)
	for i := from; i < to; i++ {
		var code string
		if who != nil && who.Role.Allows(operate) {
			if code, err = s.inv.AdoptionCode(ctx, list[i].MAC); err != nil {
				return nil, err
			}
		}
		out.Body.Items = append(out.Body.Items, strangerOf(list[i], code, &suggested[i]))
	}
	return out, nil
}
