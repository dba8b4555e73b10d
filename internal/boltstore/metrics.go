package boltstore

import (
	"errors"
	"os"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/provisiond/provisiond/internal/inventory"
)

// metrics is what a store counts.
type metrics struct {
	commits                          *prometheus.HistogramVec
	written, conflict, full, unknown prometheus.Observer // of commits, by outcome
	batches                          prometheus.Histogram
}

func newMetrics() metrics {
	m := metrics{
		commits: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name: "provisiond_store_commit_duration_seconds", Help: "How long commits took, waiting for the disk included.",
			Buckets: []float64{.001, .005, .02, .1, .5, 2, 10},
		}, []string{"outcome"}),
		batches: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name: "provisiond_store_batch_commits", Help: "How many commits shared one write to the disk.",
			Buckets: []float64{1, 4, 16, 64, 256},
		}),
	}
	m.written, m.conflict = m.commits.WithLabelValues("written"), m.commits.WithLabelValues("conflict")
	m.full, m.unknown = m.commits.WithLabelValues("disk full"), m.commits.WithLabelValues("failed")
	return m
}

// committed counts a commit that came back with err.
func (m *metrics) committed(err error, took time.Duration) {
	o := m.unknown
	switch {
	case err == nil:
		o = m.written
	case errors.Is(err, inventory.ErrConflict): // decided again by whoever asked: nothing is wrong
		o = m.conflict
	case errors.Is(err, inventory.ErrFull):
		o = m.full
	}
	o.Observe(took.Seconds())
}

// Collectors are the store's metrics.
func (s *Store) Collectors() []prometheus.Collector {
	return []prometheus.Collector{
		s.metrics.commits, s.metrics.batches,
		prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: "provisiond_store_size_bytes", Help: "Size of the database file."}, s.size),
	}
}

// size is that of the file; 0 when it cannot be told.
func (s *Store) size() float64 {
	info, err := os.Stat(s.path)
	if err != nil {
		return 0
	}
	return float64(info.Size())
}
