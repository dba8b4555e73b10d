package bootstrap

import "github.com/prometheus/client_golang/prometheus"

// newCalls counts calls by how they ended. There are few in the life of a cluster, and
// each has its series from the start.
func newCalls() *prometheus.CounterVec {
	calls := prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "provisiond_bootstrap_calls_total", Help: "Calls of Talos' Bootstrap by the answer; unknown: it was lost.",
	}, []string{"outcome"})
	for _, o := range []Outcome{Accepted, Already, NotYet, WrongMachine, Denied, Unknown} {
		calls.WithLabelValues(string(o))
	}
	return calls
}

// Collectors are the actor's metrics.
func (a *Actor) Collectors() []prometheus.Collector { return []prometheus.Collector{a.calls} }
