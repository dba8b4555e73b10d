package talos

import (
	"testing"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
	"github.com/rs/zerolog"
	machineapi "github.com/siderolabs/talos/pkg/machinery/api/machine"
	"google.golang.org/protobuf/types/known/wrapperspb"
)

func TestSinkCounts(t *testing.T) {
	s := NewEventSink(&fakeRecorder{}, byLoopback, &fakeLogs{}, zerolog.Nop())
	addr, stop := serve(t, s.Serve)
	publish := dialSink(t, addr)
	send(t, publish, "a", stageEvent(machineapi.MachineStatusEvent_BOOTING, false))
	send(t, publish, "b", &machineapi.PhaseEvent{Phase: "config"})
	send(t, publish, "c", wrapperspb.String("a type of tomorrow"))
	if n := testutil.ToFloat64(s.metrics.conns); n != 1 {
		t.Errorf("%v connections", n)
	}
	stop()
	for outcome, want := range map[string]float64{"taken": 3, "of an unknown type": 0, "of an unknown machine": 0, "too many": 0, "not recorded": 0} {
		if n := testutil.ToFloat64(s.metrics.events.WithLabelValues(outcome)); n != want {
			t.Errorf("%v %s, want %v", n, outcome, want)
		}
	}
	if n := testutil.ToFloat64(s.metrics.conns); n != 0 {
		t.Errorf("%v connections after the end", n)
	}
}

func TestRendersAreCounted(t *testing.T) {
	r, in := testRenderer(), testInput(t)
	for range 2 { // the second is remembered
		if _, err := r.Render(in); err != nil {
			t.Fatal(err)
		}
	}
	bad := in
	cluster := *in.Cluster
	cluster.Patches = []string{"machine: 1"}
	bad.Cluster = &cluster
	if _, err := r.Render(bad); err == nil {
		t.Fatal("taken")
	}
	reg := prometheus.NewPedanticRegistry()
	reg.MustRegister(r.Collectors()...)
	families, err := reg.Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, m := range families[0].GetMetric() {
		if n := m.GetHistogram().GetSampleCount(); n != 1 {
			t.Errorf("%d %v", n, m.GetLabel())
		}
	}
}
