package daemon

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"

	"github.com/provisiond/provisiond/internal/admin"
	"github.com/provisiond/provisiond/internal/inventory"
	"github.com/provisiond/provisiond/internal/talos"
)

// running is the configs of machines that run: what they have, and what they are given.
type running struct {
	keeper  *inventory.Keeper
	client  *talos.Client
	configs *configs
}

// RunningConfig implements admin.Running.
func (r running) RunningConfig(ctx context.Context, v inventory.View) (admin.RunningConfig, error) {
	var out admin.RunningConfig
	wanted, keys, err := r.wanted(ctx, v)
	if err != nil {
		return out, err
	}
	text, err := r.client.RunningConfig(ctx, keys.Cluster, keys.Secrets, v.Machine.Address)
	if err != nil {
		return out, silent(v, err)
	}
	out.Hash, out.Wanted = hashOf(text, wanted), wanted.Hash
	out.Text, err = talos.Redact(text)
	return out, err
}

// ApplyConfig implements admin.Running.
func (r running) ApplyConfig(ctx context.Context, v inventory.View, mode inventory.ConfigMode, dryRun bool) (said, hash string, err error) {
	wanted, keys, err := r.wanted(ctx, v)
	if err != nil {
		return "", "", err
	}
	said, outcome, err := r.apply(ctx, v, wanted, keys, mode, dryRun)
	switch {
	case outcome == talos.Accepted:
		return said, wanted.Hash, err
	case errors.Is(err, talos.ErrNotReached):
		return "", "", silent(v, err)
	case outcome == talos.Unknown:
		return "", "", fmt.Errorf("it is not known whether %s took the config; compare what it runs before you try again: %w: %w", v.Machine.Name, err, inventory.ErrRefused)
	}
	return "", "", fmt.Errorf("%s did not take the config: %w: %w", v.Machine.Name, err, inventory.ErrRefused)
}

// apply makes the call, and records what the machine has then, whatever becomes of ctx.
func (r running) apply(ctx context.Context, v inventory.View, wanted *talos.Config, keys *inventory.Keys, mode inventory.ConfigMode, dryRun bool) (string, talos.Outcome, error) {
	said, outcome, err := r.client.ApplyConfig(ctx, keys.Cluster, keys.Secrets, v.Machine.Address, wanted.Bytes(), talos.ApplyOptions{Mode: mode, DryRun: dryRun})
	if outcome != talos.Accepted || dryRun {
		return said, outcome, err
	}
	ctx = context.WithoutCancel(ctx)
	_, err = r.keeper.Record(ctx, inventory.Event{Kind: inventory.ConfigApplied, Machine: v.Machine.Name, Hash: wanted.Hash, Mode: mode, Message: said})
	if mode == inventory.ConfigTry { // what it has stays what it is compared with
		return said, outcome, err
	}
	return said, outcome, errors.Join(err, r.configs.keep(ctx, v.Machine.Name, wanted))
}

// wanted is the config that a machine should have, and the keys of its API. It refuses
// (ErrRefused) a machine whose disk makes it something else than it is registered for:
// no config turns it into that.
func (r running) wanted(ctx context.Context, v inventory.View) (*talos.Config, *inventory.Keys, error) {
	wanted, err := r.configs.config(ctx, v)
	if err != nil {
		return nil, nil, err
	}
	name, h := v.Machine.Name, v.Facts.Holds
	if h.Role != "" && h.Role != v.Machine.Role && !h.Guess {
		return nil, nil, fmt.Errorf("the disk of %s makes it a %s, and it is registered as %s: reimage it: %w", name, h.Role, v.Machine.Role, inventory.ErrRefused)
	}
	lives, err := r.keeper.Keys(ctx, v)
	if err != nil {
		return nil, nil, err
	}
	for _, k := range lives {
		if k.Cluster.Name == v.Cluster.Name && k.Epoch == v.Cluster.Epoch {
			return wanted, &k, nil
		}
	}
	return nil, nil, fmt.Errorf("the disk of %s is of life %d of cluster %s, not of life %d of %s: reimage it: %w", name, h.Epoch, h.Cluster, v.Cluster.Epoch, v.Cluster.Name, inventory.ErrRefused)
}

// silent is the error of a machine that was asked and did not answer as it should.
func silent(v inventory.View, err error) error {
	if errors.Is(err, talos.ErrForeignCA) {
		return fmt.Errorf("who answers at %s is not %s of this cluster: %w: %w", v.Machine.Address, v.Machine.Name, err, inventory.ErrRefused)
	}
	return fmt.Errorf("%s does not answer: %w: %w", v.Machine.Name, err, inventory.ErrRefused)
}

// hashOf is the hash of what a machine runs: that of the wanted config, if it is that.
func hashOf(running []byte, wanted *talos.Config) string {
	if wanted.Runs(running) {
		return wanted.Hash
	}
	sum := sha256.Sum256(running)
	return hex.EncodeToString(sum[:])
}
