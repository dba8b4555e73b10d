package daemon

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/provisiond/provisiond/internal/inventory"
	"github.com/provisiond/provisiond/internal/rollout"
	"github.com/provisiond/provisiond/internal/talos"
)

// rollouts is running as rollout sees it.
type rollouts struct{ running }

// Look implements rollout.Machines.
func (r rollouts) Look(ctx context.Context, v inventory.View) (rollout.Probe, error) {
	wanted, keys, err := r.wanted(ctx, v)
	if fe := new(inventory.FieldError); errors.Is(err, inventory.ErrRefused) || errors.As(err, &fe) {
		return rollout.Probe{Unfit: err.Error()}, nil
	} else if err != nil {
		return rollout.Probe{}, err
	}
	p := rollout.Probe{Wanted: wanted.Hash}
	st, err := r.client.Status(ctx, keys.Cluster, keys.Secrets, v.Machine.Address)
	if err != nil {
		p.Silent = err.Error()
		return p, nil
	}
	p.WantedVersion = talosOf(v)
	if p.Image, err = wanted.Installer(); err != nil {
		return p, err
	}
	text, err := r.client.RunningConfig(ctx, keys.Cluster, keys.Secrets, v.Machine.Address)
	if err != nil {
		p.Silent = err.Error()
		return p, nil
	}
	p.Answered, p.Ready, p.Version, p.Running = true, st.Stage == inventory.StageRunning && st.Ready, st.Version, hashOf(text, wanted)
	return p, nil
}

// Apply implements rollout.Machines.
func (r rollouts) Apply(ctx context.Context, v inventory.View, hash string, mode inventory.ConfigMode) (string, rollout.Outcome, error) {
	wanted, keys, err := r.wanted(ctx, v)
	if err != nil {
		return "", rollout.Refused, err
	}
	if wanted.Hash != hash {
		return "", rollout.NotYet, errors.New("it should have another config by now")
	}
	said, outcome, err := r.apply(ctx, v, wanted, keys, mode, false)
	return said, rolloutOutcome(outcome), err
}

// Upgrade implements rollout.Machines. The image is that of the config, which may name
// another version than the one that is netbooted.
func (r rollouts) Upgrade(ctx context.Context, v inventory.View, image string) (string, rollout.Outcome, error) {
	_, keys, err := r.wanted(ctx, v)
	if err != nil {
		return "", rollout.Refused, err
	}
	if !strings.HasSuffix(image, ":"+talosOf(v)) {
		return "", rollout.Refused, fmt.Errorf("its installer image %s is not that of Talos %s", image, talosOf(v))
	}
	outcome, err := r.client.Upgrade(ctx, keys.Cluster, keys.Secrets, v.Machine.Address, image)
	return "it installs " + image, rolloutOutcome(outcome), err
}

// talosOf is the version of Talos that a machine should run: the one that it netboots.
func talosOf(v inventory.View) string {
	version, _, _ := strings.Cut(v.Machine.Image, "/")
	return cmp.Or(version, v.Cluster.TalosVersion)
}

func rolloutOutcome(o talos.Outcome) rollout.Outcome {
	switch o {
	case talos.Accepted:
		return rollout.Accepted
	case talos.NotYet:
		return rollout.NotYet
	case talos.Unknown:
		return rollout.Unknown
	}
	return rollout.Refused
}

// MayRest implements rollout.Guard.
func (g guards) MayRest(ctx context.Context, v inventory.View) (bool, string, error) {
	s, err := g.guard.Look(ctx, v)
	if err != nil {
		return false, "", err
	}
	ok, reason := s.MayRest()
	return ok, reason, nil
}
