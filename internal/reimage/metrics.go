package reimage

import "github.com/prometheus/client_golang/prometheus"

// newWipes counts wipes that were asked of a machine's API by how that ended.
func newWipes() *prometheus.CounterVec {
	wipes := prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "provisiond_reimage_wipes_total", Help: "Wipes that were asked of the API of a machine by the answer; those of machines that netboot are not among them.",
	}, []string{"outcome"})
	for _, o := range []Outcome{Accepted, Declined, Unknown} {
		wipes.WithLabelValues(string(o))
	}
	return wipes
}

// Collectors are the actor's metrics.
func (a *Actor) Collectors() []prometheus.Collector { return []prometheus.Collector{a.wipes} }
