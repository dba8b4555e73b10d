package monitor

import "github.com/prometheus/client_golang/prometheus"

// probes counts questions to machines by how they ended, resolved once.
type probes struct {
	vec                              *prometheus.CounterVec
	ready, notReady, silent, trouble prometheus.Counter
}

func newProbes() probes {
	p := probes{vec: prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "provisiond_monitor_probes_total", Help: "Questions to the APIs of machines by the answer; failed: the inventory did not take it, or did not say whom to ask.",
	}, []string{"outcome"})}
	p.ready, p.notReady = p.vec.WithLabelValues("ready"), p.vec.WithLabelValues("not ready")
	p.silent, p.trouble = p.vec.WithLabelValues("silent"), p.vec.WithLabelValues("failed")
	return p
}

// Collectors are the monitor's metrics.
func (m *Monitor) Collectors() []prometheus.Collector { return []prometheus.Collector{m.probes.vec} }
