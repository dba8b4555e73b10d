package racktest

import (
	"bytes"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/cosi-project/runtime/pkg/safe"
	machineapi "github.com/siderolabs/talos/pkg/machinery/api/machine"
	"github.com/siderolabs/talos/pkg/machinery/config/machine"
	configres "github.com/siderolabs/talos/pkg/machinery/resources/config"
	"google.golang.org/protobuf/types/known/durationpb"
)

// What a config does to a node in each mode: what it runs, what is on its disk, and
// whether it goes down.
func TestApplyConfiguration(t *testing.T) {
	const (
		auto     = machineapi.ApplyConfigurationRequest_AUTO
		noReboot = machineapi.ApplyConfigurationRequest_NO_REBOOT
		staged   = machineapi.ApplyConfigurationRequest_STAGED
		try      = machineapi.ApplyConfigurationRequest_TRY

		small = "machine: {sysctls: {vm.swappiness: \"10\"}, install: {disk: /dev/sdb}}"
		large = "machine: {udev: {rules: ['SUBSYSTEM==\"net\"']}}"
	)
	first := machineConfig(t, newBundle(), machine.TypeControlPlane)
	for _, tc := range []struct {
		name    string
		mode    machineapi.ApplyConfigurationRequest_Mode
		dry     bool
		patch   string
		broken  bool
		refused string
		says    string
		runs    bool // the new config, in the end
		stored  bool
		reboots bool
	}{
		{name: "auto", mode: auto, patch: small, says: "without a reboot", runs: true, stored: true},
		{name: "auto that takes a reboot", mode: auto, patch: large, says: "with a reboot", stored: true, reboots: true},
		{name: "no reboot", mode: noReboot, patch: small, says: "without a reboot", runs: true, stored: true},
		{name: "no reboot where it takes one", mode: noReboot, patch: large, refused: "can't be applied in immediate mode"},
		{name: "staged", mode: staged, patch: large, says: "after the next reboot", stored: true},
		{name: "try", mode: try, patch: small, says: "'try' mode"},
		{name: "dry run", mode: auto, dry: true, patch: large, says: "skipped in dry-run"},
		{name: "a config that is none", mode: auto, broken: true, refused: "failed to load config"},
		{name: "one that does not validate", mode: auto, patch: "machine: {type: worker}", refused: "validate"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			n, disk, c := installedNode(t, NewFabric(), first)
			next := []byte("x: [")
			if !tc.broken {
				next = machineConfig(t, newBundle(), machine.TypeControlPlane, tc.patch)
			}
			apply := func(try time.Duration) (*machineapi.ApplyConfigurationResponse, error) {
				return c.ApplyConfiguration(t.Context(), &machineapi.ApplyConfigurationRequest{Data: next, Mode: tc.mode, DryRun: tc.dry, TryModeTimeout: durationpb.New(try)})
			}
			resp, err := apply(time.Hour)
			switch {
			case tc.refused != "":
				if err == nil || !strings.Contains(err.Error(), tc.refused) {
					t.Fatalf("got %v, want a refusal: %s", err, tc.refused)
				}
			case err != nil:
				t.Fatal(err)
			case !strings.Contains(resp.Messages[0].ModeDetails, tc.says):
				t.Errorf("it says %q", resp.Messages[0].ModeDetails)
			}
			if tc.mode == try {
				if !bytes.Equal(n.Config(), next) {
					t.Error("it does not run the config that is tried")
				}
				if _, err := apply(time.Millisecond); err != nil { // tried once more, for so long
					t.Fatal(err)
				}
				eventually(t, "the end of the try", func() bool { n.mu.Lock(); defer n.mu.Unlock(); return n.trial == nil })
			}
			want := first
			if tc.runs {
				want = next
			}
			if !tc.reboots { // what the resource API shows is what it runs
				res, err := safe.StateGetByID[*configres.MachineConfig](t.Context(), c.COSI, configres.ActiveID)
				if err != nil {
					t.Fatal(err)
				}
				if text, err := res.Provider().Bytes(); err != nil || !bytes.Equal(text, want) || !bytes.Equal(n.Config(), want) {
					t.Errorf("it runs another config, %v", err)
				}
				n.cancel()
			}
			if err := n.ended(); errors.Is(err, ErrReboot) != tc.reboots || tc.reboots && !errors.Is(err, errKexec) || !tc.reboots && err != nil {
				t.Errorf("Run returned %v", err)
			}
			if want = first; tc.stored {
				want = next
			}
			if !bytes.Equal(disk.Config(), want) || disk.Installs() != 1 || disk.Wipes() != 0 || disk.Etcd() != "some cluster" {
				t.Errorf("%d installs, %d wipes, etcd %q, the new config %t", disk.Installs(), disk.Wipes(), disk.Etcd(), bytes.Equal(disk.Config(), next))
			}
		})
	}
}
