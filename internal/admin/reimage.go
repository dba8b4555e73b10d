package admin

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net/http"

	"github.com/danielgtaylor/huma/v2"

	"github.com/provisiond/provisiond/api"
	"github.com/provisiond/provisiond/internal/inventory"
)

func (s *Server) reimageRoutes(doc huma.API) {
	tags := []string{"lifecycle"}
	register(s, doc, needs{operate, scoped, changes}, huma.Operation{OperationID: "reimage-machine", Method: http.MethodPost, Path: "/machines/{machine}/reimage", Tags: tags,
		Summary: "Wipe a machine and install it anew", DefaultStatus: http.StatusAccepted,
		Description: "Through its Talos API when that answers; else, if only the system disk is to be wiped and it has a cluster, when it next boots from the network. Then it installs what the inventory says by then. " +
			"Ordered twice, it happens once. A control plane leaves etcd first; the answer is 409 with the numbers when that would take etcd's quorum."},
		s.reimageMachine, http.StatusNotFound, http.StatusConflict, http.StatusInsufficientStorage)
	register(s, doc, needs{operate, scoped, looks}, huma.Operation{OperationID: "check-reimage", Method: http.MethodPost, Path: "/machines/{machine}/reimage/check", Tags: tags,
		Summary: "Say what an order to reimage a machine would come to, and order nothing", Description: "Takes what reimage-machine takes. The machine's Talos API and its cluster's etcd are asked, which may take seconds; the answer holds for now."},
		s.checkReimage, http.StatusNotFound, http.StatusUnprocessableEntity)
	register(s, doc, needs{operate, scoped, changes}, huma.Operation{OperationID: "cancel-reimage", Method: http.MethodDelete, Path: "/machines/{machine}/reimage", Tags: tags,
		Summary: "Cancel a reimage", Description: "Until the wipe was asked for, or the machine was taken out of etcd: from then on its disk may be blank or is no good, and the answer is 409."},
		s.cancelReimage, http.StatusNotFound, http.StatusConflict, http.StatusInsufficientStorage)
	register(s, doc, needs{operate, scoped, changes}, huma.Operation{OperationID: "reset-cluster", Method: http.MethodPost, Path: "/clusters/{cluster}/reset", Tags: tags,
		Summary: "Give a cluster up and begin its next life", DefaultStatus: http.StatusAccepted,
		Description: "It gets new secrets, and every machine that has its config is reimaged. It is bootstrapped again once each control plane of the old life was wiped or is declared dead. " +
			"Everything in the cluster is lost."},
		s.resetCluster, http.StatusNotFound, http.StatusConflict, http.StatusInsufficientStorage)
	register(s, doc, needs{operate, scoped, looks}, huma.Operation{OperationID: "check-reset", Method: http.MethodPost, Path: "/clusters/{cluster}/reset/check", Tags: tags,
		Summary: "Say which machines a reset would wipe, and reset nothing",
		Description: "Takes what reset-cluster takes, and does not look at confirm. Machines of other clusters by now, of none and of earlier lives are among them. " +
			"Who is limited to clusters is told the names of machines there only, and wipes only those; control planes among the others are waited for all the same."},
		s.checkReset, http.StatusNotFound, http.StatusConflict, http.StatusInsufficientStorage)
}

// destroys checks the typed word that a cluster may be lost.
func destroys(ctx context.Context, word, field, cluster string) (bool, error) {
	if word != "" && foreign(ctx, cluster) {
		return false, limits(ctx, "the loss of another cluster, which its disk is of,")
	}
	if word != "" && word != cluster {
		return false, badField(field, "the name of the cluster that may be lost, or nothing", "it is of cluster %q, not of %q", cluster, word)
	}
	return word != "", nil
}

func (s *Server) reimageMachine(ctx context.Context, in *struct {
	MachinePath
	Body api.Reimage
}) (*machineAnswer, error) {
	v, err := s.inv.Machine(ctx, in.Ref)
	if err != nil {
		return nil, err
	}
	order, _, err := s.order(ctx, v, &in.Body)
	if err != nil {
		return nil, err
	}
	if m := moved(v.Machine, &in.Body); m != nil {
		// Should the order be lost in a crash, the machine shows that it runs as
		// something else than it is registered for.
		if _, err := s.storeMachine(ctx, m, v.Machine.Rev); err != nil {
			return nil, err
		}
	}
	if _, err := s.inv.Record(ctx, order); err != nil {
		return nil, err
	}
	return s.answerMachine(ctx, v.Machine.Name)
}

// order is a reimage as it is recorded, if the machine's cluster can do without it, and
// why it can.
func (s *Server) order(ctx context.Context, v inventory.View, body *api.Reimage) (e inventory.Event, why string, err error) {
	e = inventory.Event{
		Kind: inventory.ReimageOrdered, Machine: v.Machine.Name, Graceful: body.Graceful == nil || *body.Graceful, AllDisks: body.Wipe == api.WipeAll,
		Message: "ordered: wipe its system disk",
	}
	if e.AllDisks {
		e.Message = "ordered: wipe all its disks"
	}
	if e.Destroy, err = destroys(ctx, body.DestroyCluster, "destroyCluster", v.Facts.Holds.Cluster); err != nil {
		return e, "", err
	}
	ok, why, err := s.guards.MayGo(ctx, v, e.Destroy)
	if err == nil && !ok {
		err = &inventory.FieldError{Problem: why, Err: inventory.ErrRefused}
	}
	return e, why, err
}

func (s *Server) checkReimage(ctx context.Context, in *struct {
	MachinePath
	Body api.Reimage
}) (*struct{ Body api.ReimageCheck }, error) {
	v, err := s.inv.Machine(ctx, in.Ref)
	if err != nil {
		return nil, err
	}
	out := &struct{ Body api.ReimageCheck }{}
	out.Body = api.ReimageCheck{
		Machine: v.Machine.Name, Wipe: cmp.Or(in.Body.Wipe, api.WipeSystem), Holds: membershipOf(v.Facts.Holds), Changes: []api.FieldChange{},
	}
	c := &out.Body
	after := v
	if m := moved(v.Machine, &in.Body); m != nil {
		c.Changes = differences(specOfMachine(v.Machine), specOfMachine(m))
		after.Machine = m
	}
	c.Cluster, c.Role = after.Machine.Cluster, string(after.Machine.Role)
	e, why, err := s.order(ctx, v, &in.Body)
	if c.Graceful = e.Graceful && !e.Destroy; e.Destroy {
		c.Loses = v.Facts.Holds.Cluster
	}
	if err == nil {
		c.Guard = why
	}
	if err == nil && len(c.Changes) > 0 {
		if err = s.fits(ctx, after.Machine); err == nil {
			err = s.inv.CheckMachine(ctx, after.Machine)
		}
	}
	if err == nil {
		e.Time = s.cfg.Now()
		after, err = inventory.Apply(after, e)
	}
	if c.Problems, err = s.problems(ctx, "check-reimage", in, err); err != nil {
		return nil, err
	}
	if c.OK = len(c.Problems) == 0; !c.OK {
		return out, nil
	}
	if err := s.target(ctx, &after, c); err != nil {
		return nil, err
	}
	if r := &after.Facts.Reimage; r.Claimed() { // it would be ordered twice, and happens once
		c.Via, c.Waits = string(r.Via), r.Reason
		return out, nil
	}
	via, waits, err := s.guards.Foresee(ctx, after)
	c.Via, c.Waits = string(via), waits
	return out, err
}

// target completes a machine as it would be with what it would be installed from, and
// tells of it.
func (s *Server) target(ctx context.Context, v *inventory.View, c *api.ReimageCheck) error {
	v.Cluster, v.Image, v.Wanted = nil, nil, ""
	c.Install = api.Install(v.Machine.Install)
	if v.Machine.Cluster == "" {
		return nil
	}
	cl, _, err := s.inv.Cluster(ctx, v.Machine.Cluster)
	if err != nil {
		return err
	}
	if c.Install.Disk == "" && len(c.Install.DiskSelector) == 0 {
		c.Install.Disk, c.Install.DiskSelector = cl.Install.Disk, cl.Install.DiskSelector
	}
	v.Cluster, v.Wanted = cl, inventory.ImageWanted(v.Machine, cl, cmp.Or(v.Facts.Arch, inventory.AMD64))
	images, err := s.inv.Images(ctx)
	for i := range images {
		if images[i].ID() == v.Wanted {
			v.Image = &images[i]
		}
	}
	c.Image, c.Imported = v.Wanted, v.Image != nil
	return err
}

// moved is the machine as the order wants it, nil if that is as it is.
func moved(m *inventory.Machine, order *api.Reimage) *inventory.Machine {
	next := m.Clone()
	next.Cluster = cmp.Or(order.Cluster, m.Cluster)
	next.Role = cmp.Or(inventory.Role(order.Role), m.Role)
	next.Image = cmp.Or(order.Image, m.Image)
	if next.Cluster == m.Cluster && next.Role == m.Role && next.Image == m.Image {
		return nil
	}
	return next
}

func (s *Server) cancelReimage(ctx context.Context, in *MachinePath) (*machineAnswer, error) {
	v, err := s.inv.Machine(ctx, in.Ref)
	if err != nil {
		return nil, err
	}
	if _, err := s.inv.Record(ctx, inventory.Event{Kind: inventory.ReimageCancelled, Machine: v.Machine.Name, Message: "the reimage was cancelled"}); err != nil {
		return nil, err
	}
	return s.answerMachine(ctx, v.Machine.Name)
}

func (s *Server) resetCluster(ctx context.Context, in *struct {
	ClusterPath
	Body api.ClusterReset
}) (*struct{ Body api.ClusterResetting }, error) {
	cl, b, err := s.inv.Cluster(ctx, in.Name)
	if err != nil {
		return nil, err
	}
	if in.Body.Confirm != cl.Name {
		return nil, badField("confirm", "type the name of the cluster: everything in it is lost", "%q is not %q", in.Body.Confirm, cl.Name)
	}
	// An answer that was lost, or a crash in the middle: the same reset goes on.
	epoch := cmp.Or(in.Body.Epoch, b.Epoch)
	secrets, err := s.talos.NewSecrets(cl.TalosVersion)
	if err != nil {
		return nil, err
	}
	old, err := s.inv.ResetCluster(ctx, cl.Name, epoch, secrets, in.Body.Dead)
	if err != nil {
		return nil, err
	}
	out := &struct{ Body api.ClusterResetting }{}
	out.Body.Epoch, out.Body.Reimaged = epoch+1, []string{}
	for _, name := range old {
		_, err := s.inv.Record(ctx, inventory.Event{
			Kind: inventory.ReimageOrdered, Machine: name, Destroy: true, Message: fmt.Sprintf("ordered: life %d of cluster %s was given up", epoch, cl.Name),
		})
		if errors.Is(err, inventory.ErrNotFound) {
			continue // removed meanwhile
		} else if err != nil {
			return nil, err
		}
		s.did(ctx, "machine/"+name)
		out.Body.Reimaged = append(out.Body.Reimaged, name)
	}
	return out, nil
}

func (s *Server) checkReset(ctx context.Context, in *struct {
	ClusterPath
	Body api.ClusterReset
}) (*struct{ Body api.ClusterResetCheck }, error) {
	cl, b, err := s.inv.Cluster(ctx, in.Name)
	if err != nil {
		return nil, err
	}
	out := &struct{ Body api.ClusterResetCheck }{}
	out.Body.Epoch, out.Body.Machines = cmp.Or(in.Body.Epoch, b.Epoch), []api.ResetMachine{}
	holders, err := s.inv.CheckReset(ctx, cl.Name, out.Body.Epoch, in.Body.Dead)
	if err != nil {
		return nil, err
	}
	out.Body.Count = len(holders)
	for _, h := range holders {
		if h.Awaited {
			out.Body.Awaited++
		}
		if h.Machine != "" {
			out.Body.Machines = append(out.Body.Machines, api.ResetMachine{Name: h.Machine, Role: string(h.Role), Awaited: h.Awaited})
		}
	}
	return out, nil
}

func reimageOf(r *inventory.Reimage) *api.ReimageStatus {
	if r.Ordered == 0 {
		return nil
	}
	s := &api.ReimageStatus{
		Order: r.Ordered, OrderedAt: r.OrderedAt, Wipe: api.WipeSystem, Graceful: r.Graceful, ClaimedAt: r.ClaimedAt, Via: string(r.Via),
		DoneAt: r.DoneAt, Attempts: r.Attempts, Reason: r.Reason, State: "waiting",
	}
	if r.AllDisks {
		s.Wipe = api.WipeAll
	}
	switch {
	case !r.Outstanding():
		s.State = "done"
	case r.Claimed():
		s.State = "wiping"
	}
	return s
}
