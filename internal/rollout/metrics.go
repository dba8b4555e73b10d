package rollout

import "github.com/prometheus/client_golang/prometheus"

// newActs counts what machines were asked for by how that ended.
func newActs() *prometheus.CounterVec {
	acts := prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "provisiond_rollout_acts_total", Help: "Machines that a rollout gave a config or another Talos, by the answer; unknown: it was lost.",
	}, []string{"act", "outcome"})
	for _, act := range []act{apply, upgrade} {
		for _, o := range []Outcome{Accepted, NotYet, Refused, Unknown} {
			acts.WithLabelValues(string(act), string(o))
		}
	}
	return acts
}

// Collectors are the actor's metrics.
func (a *Actor) Collectors() []prometheus.Collector { return []prometheus.Collector{a.acts} }
