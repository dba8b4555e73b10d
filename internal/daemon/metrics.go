package daemon

import (
	"math"
	"net/http"
	"runtime"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	"golang.org/x/sys/unix"

	"github.com/provisiond/provisiond/internal/audit"
	"github.com/provisiond/provisiond/internal/ca"
)

// counts is a part that has metrics.
type counts interface {
	Collectors() []prometheus.Collector
}

// newMetrics is the registry of a daemon: what every Go process says of itself, and what
// it runs. The parts are added by count.
func newMetrics(version string) *prometheus.Registry {
	reg := prometheus.NewRegistry()
	build := prometheus.NewGaugeVec(prometheus.GaugeOpts{
		Name: "provisiond_build_info", Help: "1, with the version of provisiond and of the Go that built it.",
	}, []string{"version", "goversion"})
	build.WithLabelValues(version, runtime.Version()).Set(1)
	reg.MustRegister(collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}), build)
	return reg
}

// count registers the metrics of parts. Two of one name are a mistake in the code, which
// each start of a daemon finds.
func (d *Daemon) count(parts ...counts) {
	for _, p := range parts {
		d.metrics.MustRegister(p.Collectors()...)
	}
}

// showMetrics answers in the format that is asked for: OpenMetrics, or Prometheus' own.
func (d *Daemon) showMetrics() http.Handler {
	return promhttp.HandlerFor(d.metrics, promhttp.HandlerOpts{
		EnableOpenMetrics:   true,
		MaxRequestsInFlight: 4,                        // a watcher or two; each is work for all parts
		ErrorHandling:       promhttp.ContinueOnError, // a part that fails hides no other
	})
}

// trailCounts are the metrics of the audit trail, which knows the standard library only.
type trailCounts struct{ trail *audit.Log }

// Collectors implements counts.
func (t trailCounts) Collectors() []prometheus.Collector {
	return []prometheus.Collector{
		prometheus.NewCounterFunc(prometheus.CounterOpts{Name: "provisiond_audit_lines_total", Help: "Lines written to the audit trail."}, func() float64 {
			written, _, _ := t.trail.Counts()
			return float64(written)
		}),
		prometheus.NewCounterFunc(prometheus.CounterOpts{Name: "provisiond_audit_lost_total", Help: "Lines of the audit trail that are lost, since the disk took nothing for too long."}, func() float64 {
			_, lost, _ := t.trail.Counts()
			return float64(lost)
		}),
		prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: "provisiond_audit_failing", Help: "1 while the audit trail cannot be written: changes are refused meanwhile."}, func() float64 {
			if _, _, failing := t.trail.Counts(); failing {
				return 1
			}
			return 0
		}),
	}
}

// diskCounts are the metrics of the disk of a folder.
type diskCounts string

// Collectors implements counts.
func (path diskCounts) Collectors() []prometheus.Collector {
	free := prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: "provisiond_data_free_bytes", Help: "Free space on the disk of the data folder; NaN: it cannot be seen."}, func() float64 {
		n, err := freeSpace(string(path))
		if err != nil {
			return math.NaN()
		}
		return float64(n)
	})
	return []prometheus.Collector{free}
}

// freeSpace is how many bytes can be written to the disk of a folder.
func freeSpace(path string) (uint64, error) {
	var s unix.Statfs_t
	if err := unix.Statfs(path, &s); err != nil {
		return 0, err
	}
	return s.Bavail * uint64(s.Bsize), nil
}

// certificateCounts say until when certificates are good that nobody renews but people.
type certificateCounts struct {
	authority *ca.CA
	files     *ca.Files // of the API; nil: ours, which is renewed by itself
}

// Collectors implements counts.
func (c certificateCounts) Collectors() []prometheus.Collector {
	expiry := func(name string, at func() time.Time) prometheus.Collector {
		return prometheus.NewGaugeFunc(prometheus.GaugeOpts{
			Name: "provisiond_certificate_expiry_timestamp_seconds", Help: "When a certificate expires that people have to renew, in seconds since 1970: our own CA, or the API's of api.tls.",
			ConstLabels: prometheus.Labels{"certificate": name},
		}, func() float64 { return float64(at().Unix()) })
	}
	all := []prometheus.Collector{expiry("ca", c.authority.Expires)}
	if c.files != nil {
		all = append(all, expiry("api", c.files.Expires))
	}
	return all
}
