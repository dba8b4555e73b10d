package talos

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/rs/zerolog"
	machineapi "github.com/siderolabs/talos/pkg/machinery/api/machine"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

func (f *fakeMachine) Reset(ctx context.Context, req *machineapi.ResetRequest) (*machineapi.ResetResponse, error) {
	f.calls.Add(1)
	if err := f.reset(ctx, req); err != nil {
		return nil, err
	}
	return &machineapi.ResetResponse{Messages: []*machineapi.Reset{{ActorId: "x"}}}, nil
}

func (f *fakeMachine) EtcdMemberList(ctx context.Context, req *machineapi.EtcdMemberListRequest) (*machineapi.EtcdMemberListResponse, error) {
	f.calls.Add(1)
	if req.GetQueryLocal() {
		return nil, status.Error(codes.InvalidArgument, "one member's view was asked for")
	}
	return f.members(ctx)
}

func (f *fakeMachine) EtcdRemoveMemberByID(ctx context.Context, req *machineapi.EtcdRemoveMemberByIDRequest) (*machineapi.EtcdRemoveMemberByIDResponse, error) {
	f.calls.Add(1)
	if err := f.remove(ctx, req.GetMemberId()); err != nil {
		return nil, err
	}
	return &machineapi.EtcdRemoveMemberByIDResponse{}, nil
}

func TestResetRequest(t *testing.T) {
	in := testInput(t)
	for _, tc := range []struct {
		o    ResetOptions
		mode machineapi.ResetRequest_WipeMode
	}{
		{ResetOptions{}, machineapi.ResetRequest_SYSTEM_DISK},
		{ResetOptions{Graceful: true}, machineapi.ResetRequest_SYSTEM_DISK},
		{ResetOptions{AllDisks: true}, machineapi.ResetRequest_ALL},
	} {
		var got *machineapi.ResetRequest
		f := &fakeMachine{reset: func(_ context.Context, r *machineapi.ResetRequest) error { got = r; return nil }}
		outcome, err := f.start(t, testBundle(t), nil).Reset(t.Context(), in.Cluster, in.Secrets, loopback, tc.o)
		if outcome != Accepted || err != nil {
			t.Fatalf("%+v: %s, %v", tc.o, outcome, err)
		}
		if got.Graceful != tc.o.Graceful || !got.Reboot || got.Mode != tc.mode || len(got.SystemPartitionsToWipe)+len(got.UserDisksToWipe) > 0 {
			t.Errorf("%+v was sent as %v", tc.o, got)
		}
	}
}

func TestResetOutcomes(t *testing.T) {
	in := testInput(t)
	for _, tc := range []struct {
		code codes.Code
		want Outcome
	}{
		{codes.OK, Accepted},
		{codes.FailedPrecondition, NotYet},
		{codes.PermissionDenied, Denied},
		{codes.Unauthenticated, Denied},
		{codes.Unimplemented, Denied},
		{codes.AlreadyExists, Unknown},
		{codes.Unavailable, Unknown},
		{codes.DeadlineExceeded, Unknown},
		{codes.Canceled, Unknown},
		{codes.Internal, Unknown},
	} {
		t.Run(tc.code.String(), func(t *testing.T) {
			f := &fakeMachine{reset: func(context.Context, *machineapi.ResetRequest) error { return status.Error(tc.code, "x") }}
			got, err := f.start(t, testBundle(t), nil).Reset(t.Context(), in.Cluster, in.Secrets, loopback, ResetOptions{})
			if got != tc.want || (err == nil) != (tc.want == Accepted) {
				t.Errorf("got %s, %v", got, err)
			}
			if f.calls.Load() != 1 {
				t.Errorf("called %d times", f.calls.Load())
			}
		})
	}
}

// hangs bounds a call that is to hang: a busy host needs a part of it to connect. Who
// waits for it does so beside the others.
const hangs = 3 * time.Second

// A machine that took the call and says nothing may be wiping its disk.
func TestResetIsSentOnce(t *testing.T) {
	t.Parallel()
	in := testInput(t)
	f := &fakeMachine{reset: func(ctx context.Context, _ *machineapi.ResetRequest) error { <-ctx.Done(); return ctx.Err() }}
	c := f.start(t, testBundle(t), nil)
	c.timeout = hangs
	got, err := c.Reset(t.Context(), in.Cluster, in.Secrets, loopback, ResetOptions{})
	if got != Unknown || err == nil || f.calls.Load() != 1 {
		t.Errorf("got %s, %v after %d calls", got, err, f.calls.Load())
	}
}

// Nobody answers: each call says that it was not made.
func TestResetNobodyAnswers(t *testing.T) {
	in := testInput(t)
	l := listen(t)
	port := uint16(l.Addr().(*net.TCPAddr).Port)
	l.Close()
	c := NewClient(ClientOptions{}, zerolog.Nop())
	c.port = port
	if got, err := c.Reset(t.Context(), in.Cluster, in.Secrets, loopback, ResetOptions{}); got != NotYet || !errors.Is(err, ErrNotReached) {
		t.Errorf("reset: %s, %v", got, err)
	}
	if got, err := c.EtcdMembers(t.Context(), in.Cluster, in.Secrets, loopback); got != nil || !errors.Is(err, ErrNotReached) {
		t.Errorf("members: %v, %v", got, err)
	}
	if err := c.RemoveEtcdMember(t.Context(), in.Cluster, in.Secrets, loopback, 1); !errors.Is(err, ErrNotReached) {
		t.Errorf("remove: %v", err)
	}
}

func TestEtcdMembers(t *testing.T) {
	in := testInput(t)
	f := &fakeMachine{members: func(context.Context) (*machineapi.EtcdMemberListResponse, error) {
		return &machineapi.EtcdMemberListResponse{Messages: []*machineapi.EtcdMembers{{Members: []*machineapi.EtcdMember{
			{Id: 1<<63 + 1, Hostname: "cp-1", PeerUrls: []string{"https://[fd00::1]:2380", "https://[fd00::2]:2380"}},
			{Id: 2, IsLearner: true, PeerUrls: []string{"https://cp-2.example:2380", "://", "https://192.0.2.1:2380"}},
		}}}}, nil
	}}
	got, err := f.start(t, testBundle(t), nil).EtcdMembers(t.Context(), in.Cluster, in.Secrets, loopback)
	if err != nil {
		t.Fatal(err)
	}
	want := []EtcdMember{
		{ID: 1<<63 + 1, Hostname: "cp-1", Addresses: []netip.Addr{netip.MustParseAddr("fd00::1"), netip.MustParseAddr("fd00::2")}},
		{ID: 2, Learner: true, Addresses: []netip.Addr{netip.MustParseAddr("192.0.2.1")}},
	}
	if !slices.EqualFunc(got, want, func(a, b EtcdMember) bool {
		return a.ID == b.ID && a.Hostname == b.Hostname && a.Learner == b.Learner && slices.Equal(a.Addresses, b.Addresses)
	}) {
		t.Errorf("got %+v, want %+v", got, want)
	}
}

// Without an etcd Talos holds the call for ever.
func TestEtcdCallsHaveADeadline(t *testing.T) {
	t.Parallel()
	in := testInput(t)
	hang := func(ctx context.Context) error { <-ctx.Done(); return ctx.Err() }
	f := &fakeMachine{
		members: func(ctx context.Context) (*machineapi.EtcdMemberListResponse, error) { return nil, hang(ctx) },
		remove:  func(ctx context.Context, _ uint64) error { return hang(ctx) },
	}
	c := f.start(t, testBundle(t), nil)
	c.timeout = hangs
	if _, err := c.EtcdMembers(t.Context(), in.Cluster, in.Secrets, loopback); status.Code(err) != codes.DeadlineExceeded {
		t.Errorf("members: %v", err)
	}
	if err := c.RemoveEtcdMember(t.Context(), in.Cluster, in.Secrets, loopback, 1); status.Code(err) != codes.DeadlineExceeded {
		t.Errorf("remove: %v", err)
	}
	if f.calls.Load() != 2 {
		t.Errorf("%d calls, want one of each", f.calls.Load())
	}
}

func TestRemoveEtcdMember(t *testing.T) {
	in := testInput(t)
	const id = uint64(1<<63 + 5)
	for code, done := range map[codes.Code]bool{
		codes.OK: true, codes.NotFound: true, codes.Unavailable: false, codes.PermissionDenied: false, codes.Unknown: false,
	} {
		t.Run(code.String(), func(t *testing.T) {
			var got uint64
			f := &fakeMachine{remove: func(_ context.Context, id uint64) error { got = id; return status.Error(code, "x") }}
			err := f.start(t, testBundle(t), nil).RemoveEtcdMember(t.Context(), in.Cluster, in.Secrets, loopback, id)
			if (err == nil) != done || !done && status.Code(err) != code {
				t.Errorf("got %v", err)
			}
			if got != id || f.calls.Load() != 1 {
				t.Errorf("removed %x in %d calls", got, f.calls.Load())
			}
		})
	}
}
