package tftp

import (
	"path"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// How a transfer ended.
const (
	complete  = "complete"
	sizeAsked = "size asked" // and read in the first answer: EDK2 asks again for the file
	brokenOff = "broken off"
	refused   = "refused"
)

// What is transferred.
const (
	kindLoader = "loader"
	kindScript = "script" // beside the loaders, for iPXE
	kindOther  = "other"  // there is no such file
)

func kindOf(name string) string {
	switch path.Ext(name) {
	case ".efi":
		return kindLoader
	case ".ipxe":
		return kindScript
	}
	return kindOther
}

// metrics is what the server counts. Transfers are few and long, so that labels are
// looked up.
type metrics struct {
	transfers *prometheus.CounterVec
	bytes     *prometheus.CounterVec
	seconds   *prometheus.HistogramVec
}

func newMetrics() metrics {
	m := metrics{
		transfers: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "provisiond_tftp_transfers_total", Help: "TFTP requests by kind of file and how they ended.",
		}, []string{"kind", "outcome"}),
		bytes: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "provisiond_tftp_sent_bytes_total", Help: "Bytes of files sent over TFTP, those of transfers that broke off included.",
		}, []string{"kind"}),
		seconds: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name: "provisiond_tftp_transfer_duration_seconds", Help: "How long complete transfers over TFTP took.",
			Buckets: []float64{.01, .1, .5, 2, 10, 60},
		}, []string{"kind"}),
	}
	for _, kind := range []string{kindLoader, kindScript, kindOther} {
		for _, outcome := range []string{complete, sizeAsked, brokenOff, refused} {
			m.transfers.WithLabelValues(kind, outcome)
		}
		m.bytes.WithLabelValues(kind)
		m.seconds.WithLabelValues(kind)
	}
	return m
}

// ended counts a request for a file by its name.
func (m *metrics) ended(name, outcome string, bytes int64, took time.Duration) {
	kind := kindOf(name)
	m.transfers.WithLabelValues(kind, outcome).Inc()
	m.bytes.WithLabelValues(kind).Add(float64(bytes))
	if outcome == complete {
		m.seconds.WithLabelValues(kind).Observe(took.Seconds())
	}
}

// Collectors are the server's metrics.
func (s *Server) Collectors() []prometheus.Collector {
	return []prometheus.Collector{s.metrics.transfers, s.metrics.bytes, s.metrics.seconds}
}
