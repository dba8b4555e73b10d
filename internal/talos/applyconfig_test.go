package talos

import (
	"bytes"
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/rs/zerolog"
	machineapi "github.com/siderolabs/talos/pkg/machinery/api/machine"
	"github.com/siderolabs/talos/pkg/machinery/config/configloader"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/provisiond/provisiond/internal/inventory"
)

func (f *fakeMachine) ApplyConfiguration(ctx context.Context, req *machineapi.ApplyConfigurationRequest) (*machineapi.ApplyConfigurationResponse, error) {
	f.calls.Add(1)
	m, err := f.apply(ctx, req)
	if err != nil {
		return nil, err
	}
	return &machineapi.ApplyConfigurationResponse{Messages: []*machineapi.ApplyConfiguration{m}}, nil
}

// What a machine runs comes back byte for byte: its hash is compared.
func TestRunningConfig(t *testing.T) {
	in := testInput(t)
	rendered, err := NewRenderer(Options{}).Render(in)
	if err != nil {
		t.Fatal(err)
	}
	f := &fakeMachine{}
	if f.config, err = configloader.NewFromBytes(rendered.Bytes()); err != nil {
		t.Fatal(err)
	}
	got, err := f.start(t, testBundle(t), nil).RunningConfig(t.Context(), in.Cluster, in.Secrets, loopback)
	if err != nil || !bytes.Equal(got, rendered.Bytes()) {
		t.Errorf("got %d bytes of %d, %v", len(got), rendered.Size, err)
	}
	if _, err := (&fakeMachine{}).start(t, testBundle(t), nil).RunningConfig(t.Context(), in.Cluster, in.Secrets, loopback); !errors.Is(err, inventory.ErrNotFound) {
		t.Errorf("a machine without a config: %v", err)
	}
}

func TestRuns(t *testing.T) {
	in := testInput(t)
	c, err := NewRenderer(Options{}).Render(in)
	if err != nil {
		t.Fatal(err)
	}
	other := *in.Cluster
	other.Patches = []string{`machine: {sysctls: {vm.swappiness: "10"}}`}
	in.Cluster = &other
	changed, err := NewRenderer(Options{}).Render(in)
	if err != nil {
		t.Fatal(err)
	}
	for name, tc := range map[string]struct {
		text []byte
		want bool
	}{
		"the same":         {c.Bytes(), true},
		"with a comment":   {append([]byte("# kept by Talos\n"), c.Bytes()...), true},
		"another":          {changed.Bytes(), false},
		"one that is none": {[]byte("x: ["), false},
		"nothing":          {nil, false},
	} {
		if got := c.Runs(tc.text); got != tc.want {
			t.Errorf("%s: %t", name, got)
		}
	}
}

func TestApplyRequest(t *testing.T) {
	in := testInput(t)
	for _, tc := range []struct {
		o    ApplyOptions
		mode machineapi.ApplyConfigurationRequest_Mode
		try  time.Duration
	}{
		{ApplyOptions{}, machineapi.ApplyConfigurationRequest_AUTO, 0},
		{ApplyOptions{Mode: inventory.ConfigAuto, DryRun: true}, machineapi.ApplyConfigurationRequest_AUTO, 0},
		{ApplyOptions{Mode: inventory.ConfigNoReboot}, machineapi.ApplyConfigurationRequest_NO_REBOOT, 0},
		{ApplyOptions{Mode: inventory.ConfigStaged}, machineapi.ApplyConfigurationRequest_STAGED, 0},
		{ApplyOptions{Mode: inventory.ConfigTry}, machineapi.ApplyConfigurationRequest_TRY, time.Minute},
	} {
		var got *machineapi.ApplyConfigurationRequest
		f := &fakeMachine{apply: func(_ context.Context, r *machineapi.ApplyConfigurationRequest) (*machineapi.ApplyConfiguration, error) {
			got = r
			return &machineapi.ApplyConfiguration{ModeDetails: "Applied.\ndiff:\n+ token: hunter2", Warnings: []string{"w"}}, nil
		}}
		details, outcome, err := f.start(t, testBundle(t), nil).ApplyConfig(t.Context(), in.Cluster, in.Secrets, loopback, []byte("x: 1"), tc.o)
		if outcome != Accepted || err != nil || details != "Applied.\nw" {
			t.Fatalf("%+v: %q, %s, %v", tc.o, details, outcome, err)
		}
		if string(got.Data) != "x: 1" || got.Mode != tc.mode || got.DryRun != tc.o.DryRun || got.GetTryModeTimeout().AsDuration() != tc.try {
			t.Errorf("%+v was sent as %v", tc.o, got)
		}
	}
	if _, outcome, err := NewClient(ClientOptions{}, zerolog.Nop()).ApplyConfig(t.Context(), in.Cluster, in.Secrets, loopback, nil, ApplyOptions{Mode: "reboot"}); outcome != Refused || errors.Is(err, ErrNotReached) {
		t.Errorf("a mode that is none: %s, %v", outcome, err)
	}
}

func TestApplyOutcomes(t *testing.T) {
	in := testInput(t)
	for _, tc := range []struct {
		err  error
		want Outcome
	}{
		{nil, Accepted},
		{status.Error(codes.InvalidArgument, "x"), Refused},
		{errors.New("this config change can't be applied in immediate mode\ndiff:\n- token: hunter2"), Refused},
		{errors.New("no space left\nConfig diff: hunter2"), Unknown},
		{status.Error(codes.FailedPrecondition, "x"), NotYet},
		{status.Error(codes.PermissionDenied, "x"), Denied},
		{status.Error(codes.Unimplemented, "x"), Denied},
		{status.Error(codes.AlreadyExists, "x"), Unknown},
		{status.Error(codes.Unavailable, "x"), Unknown},
		{status.Error(codes.DeadlineExceeded, "x"), Unknown},
	} {
		f := &fakeMachine{apply: func(context.Context, *machineapi.ApplyConfigurationRequest) (*machineapi.ApplyConfiguration, error) {
			return &machineapi.ApplyConfiguration{}, tc.err
		}}
		_, got, err := f.start(t, testBundle(t), nil).ApplyConfig(t.Context(), in.Cluster, in.Secrets, loopback, nil, ApplyOptions{})
		if got != tc.want || (err == nil) != (tc.want == Accepted) || f.calls.Load() != 1 {
			t.Errorf("%v: %s, %v after %d calls", tc.err, got, err, f.calls.Load())
		}
		if err != nil && strings.Contains(err.Error(), "hunter2") {
			t.Errorf("a secret is in %q", err)
		}
	}
}

// A machine that took the call and says nothing may run the config.
func TestApplyIsSentOnce(t *testing.T) {
	t.Parallel()
	in := testInput(t)
	f := &fakeMachine{apply: func(ctx context.Context, _ *machineapi.ApplyConfigurationRequest) (*machineapi.ApplyConfiguration, error) {
		<-ctx.Done()
		return nil, ctx.Err()
	}}
	c := f.start(t, testBundle(t), nil)
	c.timeout = hangs / 2 // and twice that is what it waits
	if _, got, err := c.ApplyConfig(t.Context(), in.Cluster, in.Secrets, loopback, nil, ApplyOptions{}); got != Unknown || err == nil || f.calls.Load() != 1 {
		t.Errorf("got %s, %v after %d calls", got, err, f.calls.Load())
	}
}
