package daemon

import (
	"errors"
	"strings"
	"testing"

	"github.com/rs/zerolog"

	"github.com/provisiond/provisiond/internal/inventory"
	"github.com/provisiond/provisiond/internal/talos"
)

// pushes is what operators reach running machines by.
func pushes(l *lab, k *inventory.Keeper, d *Daemon) running {
	return running{k, talos.NewClient(talos.ClientOptions{Proxy: l.cfg.TalosProxy}, zerolog.Nop()), d.configs}
}

func patchLab(t *testing.T, k *inventory.Keeper, patches ...string) {
	t.Helper()
	cl, _, err := k.Cluster(t.Context(), "lab")
	if err != nil {
		t.Fatal(err)
	}
	cl.Patches = patches
	if _, err := k.PutCluster(t.Context(), cl, cl.Rev); err != nil {
		t.Fatal(err)
	}
}

// TestApplyConfig: a cluster is patched, and a worker that runs is given the config.
func TestApplyConfig(t *testing.T) {
	l, k, r := up(t)
	run := pushes(l, k, l.daemon)
	view := func(name string) inventory.View {
		t.Helper()
		v, err := k.Machine(t.Context(), name)
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
	same := func(name string, want bool) string {
		t.Helper()
		has, err := run.RunningConfig(t.Context(), view(name))
		if err != nil {
			t.Fatal(err)
		}
		if (has.Hash == has.Wanted) != want {
			t.Errorf("%s runs %s and is to run %s", name, has.Hash, has.Wanted)
		}
		return string(has.Text)
	}
	same("w-1", true)
	patchLab(t, k, `machine: {sysctls: {vm.swappiness: "10"}}`)
	if text := same("w-1", false); strings.Contains(text, "swappiness") || !strings.Contains(text, "(redacted)") {
		t.Errorf("it runs\n%s", text)
	}
	said, hash, err := run.ApplyConfig(t.Context(), view("w-1"), inventory.ConfigAuto, true)
	if err != nil || !strings.Contains(said, "Applied configuration without a reboot (skipped in dry-run)") || strings.Contains(said, "token") {
		t.Errorf("dry run: %q, %v", said, err)
	}
	same("w-1", false)
	if said, _, err = run.ApplyConfig(t.Context(), view("w-1"), inventory.ConfigNoReboot, false); err != nil || said != "Applied configuration without a reboot" {
		t.Errorf("%q, %v", said, err)
	}
	same("w-1", true)
	same("w-2", false)
	if v := view("w-1"); v.Facts.ConfigHash != hash {
		t.Errorf("it is known to have %s, and has %s", v.Facts.ConfigHash, hash)
	}
	if text, has, _, err := run.configs.LastServed(t.Context(), "w-1"); err != nil || has != hash || !strings.Contains(string(text), "swappiness") {
		t.Errorf("last given: %s, %v", has, err)
	}

	refused := func(what, name, words string) {
		t.Helper()
		if _, _, err := run.ApplyConfig(t.Context(), view(name), inventory.ConfigNoReboot, false); !errors.Is(err, inventory.ErrRefused) || !strings.Contains(err.Error(), words) || strings.Contains(err.Error(), "token:") {
			t.Errorf("%s: %v", what, err)
		}
	}
	patchLab(t, k, `machine: {udev: {rules: ['SUBSYSTEM=="net"']}}`)
	refused("it takes a reboot", "w-1", "w-1 did not take the config")
	machine(t, r, "w-2").PowerOff()
	refused("it is off", "w-2", "w-2 does not answer")
	if _, err := k.ResetCluster(t.Context(), "lab", 1, mustBundle(t), nil); err != nil {
		t.Fatal(err)
	}
	refused("another life", "w-1", "is of life 1 of cluster lab, not of life 2")
	for _, m := range r.Machines {
		if m.Disk().Installs() != 1 {
			t.Errorf("%s was installed %d times", m.Name(), m.Disk().Installs())
		}
	}
}

func mustBundle(t *testing.T) []byte {
	t.Helper()
	b, err := talos.NewSecrets("v1.13.6")
	if err != nil {
		t.Fatal(err)
	}
	return b
}
