package maintenance

import "github.com/prometheus/client_golang/prometheus"

// counts are resolved once.
type counts struct {
	questions                *prometheus.CounterVec
	waits, runs, silent, bad prometheus.Counter
	configs                  *prometheus.CounterVec
}

func newCounts() counts {
	c := counts{
		questions: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "provisiond_maintenance_questions_total", Help: "Questions whether a machine waits in maintenance mode, by the answer; running: it has a config; failed: the inventory did not take it.",
		}, []string{"outcome"}),
		configs: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "provisiond_maintenance_configs_total", Help: "Configs given to machines in maintenance mode by the answer; unknown: it was lost.",
		}, []string{"outcome"}),
	}
	c.waits, c.runs = c.questions.WithLabelValues("waiting"), c.questions.WithLabelValues("running")
	c.silent, c.bad = c.questions.WithLabelValues("silent"), c.questions.WithLabelValues("failed")
	for _, o := range []Outcome{Accepted, Refused, NotYet, Denied, Unknown} {
		c.configs.WithLabelValues(string(o))
	}
	return c
}

// Collectors are the actor's metrics.
func (a *Actor) Collectors() []prometheus.Collector {
	return []prometheus.Collector{a.counts.questions, a.counts.configs}
}
