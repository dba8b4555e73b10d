package talos

import (
	"context"
	"testing"

	machineapi "github.com/siderolabs/talos/pkg/machinery/api/machine"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

func (f *fakeMachine) Upgrade(ctx context.Context, req *machineapi.UpgradeRequest) (*machineapi.UpgradeResponse, error) {
	f.calls.Add(1)
	if err := f.upgrade(ctx, req); err != nil {
		return nil, err
	}
	return &machineapi.UpgradeResponse{}, nil
}

func TestUpgrade(t *testing.T) {
	in := testInput(t)
	for code, want := range map[codes.Code]Outcome{
		codes.OK: Accepted, codes.FailedPrecondition: NotYet, codes.PermissionDenied: Denied, codes.Unimplemented: Denied,
		codes.AlreadyExists: Unknown, codes.Unknown: Unknown, codes.DeadlineExceeded: Unknown,
	} {
		var got *machineapi.UpgradeRequest
		f := &fakeMachine{upgrade: func(_ context.Context, r *machineapi.UpgradeRequest) error { got = r; return status.Error(code, "x") }}
		outcome, err := f.start(t, testBundle(t), nil).Upgrade(t.Context(), in.Cluster, in.Secrets, loopback, "reg/installer:v1.13.7")
		if outcome != want || (err == nil) != (want == Accepted) || f.calls.Load() != 1 {
			t.Errorf("%s: %s, %v after %d calls", code, outcome, err, f.calls.Load())
		}
		if got.GetImage() != "reg/installer:v1.13.7" || got.GetForce() || got.GetStage() {
			t.Errorf("sent %v", got)
		}
	}
}

func TestInstaller(t *testing.T) {
	in := testInput(t)
	c, err := NewRenderer(Options{}).Render(in)
	if err != nil {
		t.Fatal(err)
	}
	if image, err := c.Installer(); err != nil || image != "ghcr.io/siderolabs/installer:"+in.Cluster.TalosVersion {
		t.Errorf("got %q, %v", image, err)
	}
}
