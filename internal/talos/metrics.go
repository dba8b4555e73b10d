package talos

import (
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// renders is how long configs took to make; those that were remembered are not made.
type renders struct {
	vec      *prometheus.HistogramVec
	ok, fail prometheus.Observer
}

func newRenders() renders {
	r := renders{vec: prometheus.NewHistogramVec(prometheus.HistogramOpts{
		Name: "provisiond_render_duration_seconds", Help: "How long it took to make machine configs that were not remembered, those of checks included.",
		Buckets: []float64{.0005, .002, .01, .05, .25, 1},
	}, []string{"outcome"})}
	r.ok, r.fail = r.vec.WithLabelValues("rendered"), r.vec.WithLabelValues("refused")
	return r
}

func (r *renders) took(d time.Duration, err error) {
	if err != nil {
		r.fail.Observe(d.Seconds())
	} else {
		r.ok.Observe(d.Seconds())
	}
}

// Collectors are the renderer's metrics.
func (r *Renderer) Collectors() []prometheus.Collector { return []prometheus.Collector{r.renders.vec} }

// sinkMetrics is what the event sink counts.
type sinkMetrics struct {
	conns                                     prometheus.Gauge
	events                                    *prometheus.CounterVec
	taken, held, unknown, tooMany, unrecorded prometheus.Counter
}

func newSinkMetrics() sinkMetrics {
	m := sinkMetrics{
		conns: prometheus.NewGauge(prometheus.GaugeOpts{Name: "provisiond_eventsink_connections", Help: "Machines that are connected to the event sink."}),
		events: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "provisiond_eventsink_events_total", Help: "Events that machines sent by what became of them.",
		}, []string{"outcome"}),
	}
	m.taken, m.held = m.events.WithLabelValues("taken"), m.events.WithLabelValues("of an unknown machine")
	m.unknown, m.tooMany = m.events.WithLabelValues("of an unknown type"), m.events.WithLabelValues("too many")
	m.unrecorded = m.events.WithLabelValues("not recorded")
	return m
}

// Collectors are the sink's metrics.
func (s *EventSink) Collectors() []prometheus.Collector {
	return []prometheus.Collector{s.metrics.conns, s.metrics.events}
}

// kernelMetrics is what the receiver of kernel logs counts.
type kernelMetrics struct {
	conns                  prometheus.Gauge
	lines                  prometheus.Counter
	dropped                *prometheus.CounterVec
	unknown, long, garbage prometheus.Counter
}

func newKernelMetrics() kernelMetrics {
	m := kernelMetrics{
		conns: prometheus.NewGauge(prometheus.GaugeOpts{Name: "provisiond_kernellog_connections", Help: "Machines that send their kernel log."}),
		lines: prometheus.NewCounter(prometheus.CounterOpts{Name: "provisiond_kernellog_lines_total", Help: "Lines of kernel logs that are a machine's. Those it sends again with a new connection count again."}),
		dropped: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "provisiond_kernellog_dropped_total", Help: "Lines of kernel logs that were dropped, by reason.",
		}, []string{"reason"}),
	}
	m.unknown, m.long, m.garbage = m.dropped.WithLabelValues("of an unknown machine"), m.dropped.WithLabelValues("too long"), m.dropped.WithLabelValues("no kernel log")
	return m
}

// Collectors are the receiver's metrics.
func (k *KernelLog) Collectors() []prometheus.Collector {
	return []prometheus.Collector{k.metrics.conns, k.metrics.lines, k.metrics.dropped}
}
