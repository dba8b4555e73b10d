package admin

import (
	"context"
	"net/http"

	"github.com/danielgtaylor/huma/v2"

	"github.com/provisiond/provisiond/api"
	"github.com/provisiond/provisiond/internal/inventory"
)

func (s *Server) approvalRoutes(doc huma.API) {
	tags := []string{"lifecycle"}
	register(s, doc, needs{read, scoped, looks}, huma.Operation{OperationID: "list-approvals", Method: http.MethodGet, Path: "/approvals", Tags: tags,
		Summary: "List machines that wait to be approved", Description: "Without their codes: a person reads the code off the console of the machine, so that it is known which machine asks."}, s.listApprovals)
	register(s, doc, needs{operate, scoped, looks}, huma.Operation{OperationID: "get-approval", Method: http.MethodGet, Path: "/approvals/{code}", Tags: tags,
		Summary: "Show the machine that waits with a code"}, s.getApproval, http.StatusNotFound)
	register(s, doc, needs{operate, scoped, changes}, huma.Operation{OperationID: "decide-approval", Method: http.MethodPost, Path: "/approvals/{code}", Tags: tags,
		Summary: "Approve or deny a machine", Description: "By the code that its console shows. 409 when it was decided the other way, or the code has expired."},
		s.decideApproval, http.StatusNotFound, http.StatusConflict, http.StatusInsufficientStorage)
	register(s, doc, needs{operate, scoped, changes}, huma.Operation{OperationID: "acknowledge-alarm", Method: http.MethodDelete, Path: "/machines/{machine}/alarm", Tags: []string{"machines"},
		Summary: "Say that somebody has looked into the alarms of a machine", Description: "Its keys may still be out: a reset of its cluster makes others."},
		s.acknowledgeAlarm, http.StatusNotFound, http.StatusInsufficientStorage)
	register(s, doc, needs{operate, scoped, looks}, huma.Operation{OperationID: "get-discovered", Method: http.MethodGet, Path: "/discovered/{code}", Tags: []string{"machines"},
		Summary: "Show the machine that waits to be adopted with a code"}, s.getDiscovered, http.StatusNotFound, http.StatusConflict)
	register(s, doc, needs{operate, scoped, changes}, huma.Operation{OperationID: "adopt-machine", Method: http.MethodPost, Path: "/discovered/{code}/adopt", Tags: []string{"machines"},
		Summary: "Register a machine that waits to be adopted", Description: "By the code that its console shows. It goes on with its boot within half a minute.", DefaultStatus: http.StatusCreated},
		s.adoptMachine, http.StatusNotFound, http.StatusConflict, http.StatusInsufficientStorage)
}

func (s *Server) acknowledgeAlarm(ctx context.Context, in *MachinePath) (*struct{}, error) {
	v, err := s.inv.Machine(ctx, in.Ref)
	if err != nil {
		return nil, err
	}
	callOf(ctx).remark = v.Facts.Alarm()
	_, err = s.inv.Record(ctx, inventory.Event{Kind: inventory.AlarmSeen, Machine: v.Machine.Name})
	return nil, err
}

// CodePath is a code as the console of a machine shows it.
type CodePath struct {
	Code string `path:"code" doc:"As the console of the machine shows it; small letters and blanks do no harm" example:"WDJB-MJHT" maxLength:"32"`
}

func (s *Server) getDiscovered(ctx context.Context, in *CodePath) (*struct{ Body api.Stranger }, error) {
	st, err := s.inv.StrangerByCode(ctx, in.Code)
	if err != nil {
		return nil, err
	}
	suggested := []inventory.Suggestion{{Subnet: st.Subnet}}
	if !limited(ctx) { // it goes by the names of all machines
		if suggested, err = s.inv.Suggest(ctx, []inventory.Stranger{st}); err != nil {
			return nil, err
		}
	}
	return &struct{ Body api.Stranger }{strangerOf(st, inventory.NormalUserCode(in.Code), &suggested[0])}, nil
}

func (s *Server) adoptMachine(ctx context.Context, in *struct {
	CodePath
	Body api.Adoption
}) (*createdMachine, error) {
	st, err := s.inv.StrangerByCode(ctx, in.Code)
	if err != nil {
		return nil, err
	}
	spec := api.MachineSpec{Name: in.Body.Name, MACs: []string{string(st.MAC)}, Role: in.Body.Role, Cluster: in.Body.Cluster, Address: in.Body.Address, Labels: in.Body.Labels}
	if spec.Address == "" {
		spec.Subnet = st.Subnet
	}
	return s.createMachine(ctx, &struct{ Body api.MachineSpec }{spec})
}

func (s *Server) listApprovals(ctx context.Context, _ *struct{}) (*struct{ Body api.List[api.Approval] }, error) {
	all, err := s.inv.Approvals(ctx)
	if err != nil {
		return nil, err
	}
	out := &struct{ Body api.List[api.Approval] }{}
	out.Body.Items = make([]api.Approval, 0, len(all))
	for i := range all {
		out.Body.Items = append(out.Body.Items, approvalOf(&all[i]))
	}
	return out, nil
}

// approvalOf leaves out the code.
func approvalOf(p *inventory.PendingApproval) api.Approval {
	a := api.Approval{
		Machine: p.Machine, Cluster: p.Cluster, Boot: p.Boot, Peer: text(p.Peer), Asked: p.Asked, Expires: p.Expires, Alarm: p.Alarm, State: "waiting", By: p.By,
	}
	switch {
	case p.Approved():
		a.State = "approved"
	case p.Denied:
		a.State = "denied"
	}
	return a
}

func (s *Server) decideApproval(ctx context.Context, in *struct {
	CodePath
	Body api.Decision
}) (*struct{ Body api.Approval }, error) {
	by := "somebody"
	if p := PrincipalOf(ctx); p != nil {
		by = p.Name
	}
	if _, err := s.inv.Decide(ctx, in.Code, in.Body.Approve, by); err != nil {
		return nil, err
	}
	out, err := s.getApproval(ctx, &in.CodePath)
	if err == nil {
		callOf(ctx).remark = out.Body.State + ", asked from " + out.Body.Peer
	}
	return out, err
}

func (s *Server) getApproval(ctx context.Context, in *CodePath) (*struct{ Body api.Approval }, error) {
	p, err := s.inv.Approval(ctx, in.Code)
	if err != nil {
		return nil, err
	}
	return &struct{ Body api.Approval }{approvalOf(&p)}, nil
}
