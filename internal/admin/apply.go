package admin

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"reflect"
	"slices"

	"github.com/provisiond/provisiond/api"
	"github.com/provisiond/provisiond/internal/inventory"
)

// The actions of an apply.
const (
	create    = "create"
	update    = "update"
	unchanged = "unchanged"
)

// step is what an apply does to one object.
type step struct {
	change api.Change
	at     string // its place in the request
	write  func(context.Context) error
}

// applyInput is the request of an apply.
type applyInput struct {
	DryRun         bool `query:"dryRun" doc:"Only tell what would be done"`
	CreateClusters bool `query:"createClusters" doc:"Create clusters that do not exist, each with new secrets. Without it they are errors: a rack applied again onto a lost database must not make a second cluster"`
	Force
	Body api.Rack
}

// apply makes the inventory hold what the request declares. It plans every
// object before it writes one, and reports all that is wrong together. A write
// that fails leaves those before it done; applying again does the rest.
func (s *Server) apply(ctx context.Context, in *applyInput) (*api.Applied, error) {
	p, err := s.newPlan(ctx)
	if err != nil {
		return nil, err
	}
	p.createClusters, p.force = in.CreateClusters, in.Force
	for i, spec := range in.Body.Clusters {
		if err := p.cluster(ctx, fmt.Sprintf("clusters[%d]", i), spec); err != nil {
			return nil, err
		}
	}
	for i, spec := range in.Body.Machines {
		if err := p.machine(ctx, fmt.Sprintf("machines[%d]", i), spec); err != nil {
			return nil, err
		}
	}
	if err := errors.Join(p.wrong...); err != nil {
		return nil, err
	}
	if in.DryRun {
		callOf(ctx).remark = "dry run"
	}
	result := &api.Applied{DryRun: in.DryRun, Changes: make([]api.Change, 0, len(p.steps))}
	for _, st := range p.steps {
		switch st.change.Action {
		case create:
			result.Created++
		case update:
			result.Updated++
		default:
			result.Unchanged++
		}
		if !in.DryRun && st.change.Action != unchanged {
			if err := st.write(ctx); err != nil {
				return nil, under(st.at, err)
			}
			s.did(ctx, st.change.Kind+"/"+st.change.Name)
		}
		result.Changes = append(result.Changes, st.change)
	}
	return result, nil
}

// plan is an apply in the making.
type plan struct {
	*Server
	createClusters bool // that do not exist
	force          Force
	steps          []step
	wrong          []error

	clusters map[string]*plannedCluster
	machines map[string]inventory.View // as stored, by name
	owners   map[string]owner          // of a MAC or an address
	declared map[string]string         // machine name to its place
}

// owner is the machine that has a MAC or an address, and its place in the
// request; empty: it is so in the store.
type owner struct{ name, at string }

type plannedCluster struct {
	cluster *inventory.Cluster
	secrets []byte // of one that is to be created
	action  string // empty: the request does not name it
	at      string
	refused bool // something is wrong with it, which its machines need not repeat
}

func (s *Server) newPlan(ctx context.Context) (*plan, error) {
	p := &plan{
		Server:   s,
		clusters: map[string]*plannedCluster{},
		machines: map[string]inventory.View{},
		owners:   map[string]owner{},
		declared: map[string]string{},
	}
	stored, err := s.inv.Clusters(ctx)
	if err != nil {
		return nil, err
	}
	for _, c := range stored {
		p.clusters[c.Name] = &plannedCluster{cluster: c}
	}
	return p, eachMachine(ctx, s.inv, "", func(v inventory.View) bool {
		p.machines[v.Machine.Name] = v
		p.own(v.Machine, "")
		return true
	})
}

func (p *plan) own(m *inventory.Machine, at string) {
	for _, mac := range m.MACs {
		p.owners[string(mac)] = owner{m.Name, at}
	}
	if m.Address.IsValid() {
		p.owners[m.Address.String()] = owner{m.Name, at}
	}
}

// refuse notes what is wrong at a place. It returns what is not the operator's
// to mend, which ends the apply.
func (p *plan) refuse(at string, err error) error {
	if err == nil {
		return nil
	}
	if len(fieldErrors(err)) == 0 {
		return under(at, err)
	}
	p.wrong = append(p.wrong, under(at, err))
	return nil
}

func (p *plan) cluster(ctx context.Context, at string, spec api.ClusterSpec) error {
	known := p.clusters[spec.Name]
	if known != nil && known.at != "" {
		return p.refuse(at, badField("name", "", "%s is the name of %s too", spec.Name, known.at))
	}
	planned := &plannedCluster{action: create, at: at}
	var old *inventory.Cluster
	var before any // nothing
	if known != nil {
		old, before = known.cluster, specOfCluster(known.cluster)
		planned.action = update
	}
	if old == nil {
		if err := limits(ctx, "creating a cluster"); err != nil {
			return err
		}
	}
	c, err := p.clusterFrom(spec, old)
	planned.cluster = c
	p.clusters[spec.Name] = planned
	if old == nil && !p.createClusters {
		err = errors.Join(err, &inventory.FieldError{Field: "name", Problem: fmt.Sprintf("cluster %s does not exist and apply creates none: secrets are made once", spec.Name),
			Fix: fmt.Sprintf("provisiond cluster create %s …, or --create-clusters", spec.Name), Err: inventory.ErrNotFound})
	}
	if err != nil {
		planned.refused = true
		return p.refuse(at, err)
	}
	changes := differences(before, specOfCluster(c))
	if old != nil && len(changes) == 0 {
		planned.action = unchanged
	}
	if planned.action == create {
		if planned.secrets, err = p.talos.NewSecrets(c.TalosVersion); err != nil {
			planned.refused = true
			return p.refuse(at, err)
		}
	}
	if planned.action != unchanged {
		if err := checked("cluster", p.talos.Check(ctx, c, planned.secrets, nil)); err != nil {
			planned.refused = true
			return p.refuse(at, err)
		}
	}
	p.steps = append(p.steps, step{
		at:     at,
		change: api.Change{Kind: "cluster", Name: c.Name, Action: planned.action, Fields: changes},
		write: func(ctx context.Context) (err error) {
			if planned.action == create {
				_, err = p.inv.CreateCluster(ctx, c, planned.secrets)
			} else {
				_, err = p.inv.PutCluster(ctx, c, c.Rev)
			}
			return err
		},
	})
	return nil
}

func (p *plan) machine(ctx context.Context, at string, spec api.MachineSpec) error {
	if other, ok := p.declared[spec.Name]; ok {
		return p.refuse(at, badField("name", "", "%s is the name of %s too", spec.Name, other))
	}
	p.declared[spec.Name] = at
	old := p.machines[spec.Name].Machine
	var before any // nothing
	if old != nil {
		before = specOfMachine(old)
	}
	m, err := machineFrom(spec, old)
	if err != nil {
		return p.refuse(at, err)
	}
	if err := errors.Join(placed(ctx, m.Cluster), p.taken(m)); err != nil {
		return p.refuse(at, err)
	}
	if old != nil {
		if err := p.force.allow(p.machines[spec.Name], m); err != nil {
			return p.refuse(at, err)
		}
	}
	p.own(m, at)
	st := step{at: at, change: api.Change{Kind: "machine", Name: m.Name, Action: update, Fields: differences(before, specOfMachine(m))}}
	switch {
	case old == nil:
		st.change.Action = create
	case len(st.change.Fields) == 0:
		st.change.Action = unchanged
	}
	st.write = func(ctx context.Context) error {
		_, err := p.inv.PutMachine(ctx, m, m.Rev) // Rev 0: it must not be there yet
		return err
	}
	p.steps = append(p.steps, st)
	if st.change.Action != unchanged {
		if err := p.refuse(at, p.fits(ctx, m)); err != nil {
			return err
		}
	}
	if m.Cluster == "" {
		if st.change.Action == unchanged {
			return nil
		}
		return p.refuse(at, p.talos.CheckPatches(m.Patches))
	}
	c := p.clusters[m.Cluster]
	switch {
	case c == nil:
		return p.refuse(at, noCluster(m.Cluster))
	case c.refused, st.change.Action == unchanged && (c.action == "" || c.action == unchanged):
		return nil
	}
	return p.refuse(at, checked("machine", p.talos.Check(ctx, c.cluster, c.secrets, m)))
}

// fits is what the store would refuse m for when its turn comes, but for its
// cluster, which machine looks up in the plan.
func (p *plan) fits(ctx context.Context, m *inventory.Machine) error {
	alone := m.Clone()
	alone.Cluster = ""
	return p.inv.CheckMachine(ctx, alone)
}

// taken refuses MACs and an address that another machine has, here or in the
// store. The store would refuse them too, but one by one and half way through.
func (p *plan) taken(m *inventory.Machine) error {
	var errs []error
	note := func(field, key string) {
		switch has := p.owners[key]; {
		case has.name == "" || has.name == m.Name:
		case has.at != "":
			errs = append(errs, badField(field, "", "%s belongs to machine %s (%s)", key, has.name, has.at))
		default:
			errs = append(errs, badField(field, "remove it there first, in an apply before this one", "%s belongs to machine %s", key, has.name))
		}
	}
	for i, mac := range m.MACs {
		note(fmt.Sprintf("macs[%d]", i), string(mac))
	}
	if m.Address.IsValid() {
		note("address", m.Address.String())
	}
	return errors.Join(errs...)
}

// differences lists the fields that differ between two specs by their JSON
// names, sorted, but for the name. Nested objects are compared field by field,
// lists as a whole.
func differences(from, to any) []api.FieldChange {
	a, b := map[string]any{}, map[string]any{}
	flatten(a, "", fieldsOf(from))
	flatten(b, "", fieldsOf(to))
	var out []api.FieldChange
	names := slices.Collect(maps.Keys(a))
	for name := range b {
		if _, ok := a[name]; !ok {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	for _, name := range names {
		if name != "name" && !reflect.DeepEqual(a[name], b[name]) {
			out = append(out, api.FieldChange{Field: name, From: a[name], To: b[name]})
		}
	}
	return out
}

func fieldsOf(spec any) map[string]any {
	var m map[string]any
	b, err := json.Marshal(spec)
	if err == nil {
		err = json.Unmarshal(b, &m)
	}
	if err != nil {
		panic(fmt.Sprintf("%T does not encode: %v", spec, err)) // strings, lists and maps of strings always do
	}
	return m
}

func flatten(into map[string]any, prefix string, m map[string]any) {
	for k, v := range m {
		if object, ok := v.(map[string]any); ok {
			flatten(into, prefix+k+".", object)
		} else if v != nil {
			into[prefix+k] = v
		}
	}
}
