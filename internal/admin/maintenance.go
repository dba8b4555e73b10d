package admin

import (
	"context"
	"encoding/base64"
	"net/http"

	"github.com/danielgtaylor/huma/v2"

	"github.com/provisiond/provisiond/api"
	"github.com/provisiond/provisiond/internal/inventory"
)

func (s *Server) maintenanceRoutes(doc huma.API) {
	register(s, doc, needs{operate, scoped, changes}, huma.Operation{OperationID: "confirm-machine", Method: http.MethodPost, Path: "/machines/{machine}/maintenance", Tags: []string{"approvals"},
		Summary: "Confirm a machine that waits in maintenance mode", Description: "By the fingerprint that its console prints: one whose boots have to be approved is given its config then. " +
			"409 when its certificate has another one, or it does not wait."},
		s.confirmMachine, http.StatusNotFound, http.StatusConflict, http.StatusInsufficientStorage)
}

func (s *Server) confirmMachine(ctx context.Context, in *struct {
	MachinePath
	Body api.Confirmation
}) (*machineAnswer, error) {
	v, err := s.inv.Machine(ctx, in.Ref)
	if err != nil {
		return nil, err
	}
	const size = 32 // bytes of SHA-256
	if sum, err := base64.StdEncoding.DecodeString(in.Body.Fingerprint); err != nil || len(sum) != size {
		return nil, badField("fingerprint", "copy it from the console, 44 characters with the = at its end", "%q is no fingerprint", in.Body.Fingerprint)
	}
	by := "somebody"
	if p := PrincipalOf(ctx); p != nil {
		by = p.Name
	}
	if _, err := s.inv.Record(ctx, inventory.Event{Kind: inventory.MaintenanceConfirmed, Machine: v.Machine.Name, Fingerprint: in.Body.Fingerprint, By: by, Message: "its fingerprint was confirmed by " + by}); err != nil {
		return nil, err
	}
	callOf(ctx).remark = "fingerprint " + in.Body.Fingerprint
	return s.answerMachine(ctx, v.Machine.Name)
}

func maintenanceOf(m *inventory.Maintenance) *api.Maintenance {
	if m == nil {
		return nil
	}
	return &api.Maintenance{Address: text(m.Address), Fingerprint: m.Fingerprint, Since: m.Since, Reason: m.Reason, Confirmed: m.Confirmed, By: m.By}
}
