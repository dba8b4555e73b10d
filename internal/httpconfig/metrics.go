package httpconfig

import (
	"net/http"
	"strconv"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// kind is what machines are given.
type kind int

const (
	kindLoader kind = iota
	kindScript
	kindKernel
	kindInitramfs
	kindUKI
	kindConfig
	kindSeed
	numKinds
)

var kindNames = [numKinds]string{"loader", "script", "kernel", "initramfs", "uki", "config", "seed"}

// outcome is how a request ended.
type outcome int

const (
	complete  outcome = iota
	part              // as it was asked for: a range, a header, or nothing new
	notReady          // a config that there is none of yet
	refused           // 4xx
	failed            // 5xx: the fault is here
	brokenOff         // the peer hung up or stopped reading
	numOutcomes
)

var outcomeNames = [numOutcomes]string{"complete", "part", "not ready", "refused", "failed", "broken off"}

// refusal is why somebody was not given a config, for counting; the reason in words
// names addresses and boots.
type refusal int

const (
	refusedForm refusal = iota
	refusedOften
	refusedMAC
	refusedPlain
	refusedToken
	refusedAge
	refusedOver
	refusedAddress
	refusedApproval
	refusedPlan
	numRefusals
)

var refusalNames = [numRefusals]string{
	refusedForm:     "malformed",
	refusedOften:    "refused too often",
	refusedMAC:      "not registered",
	refusedPlain:    "unencrypted",
	refusedToken:    "wrong token",
	refusedAge:      "boot too old",
	refusedOver:     "boot over",
	refusedAddress:  "wrong address",
	refusedApproval: "not approved",
	refusedPlan:     "not to install",
}

// metrics is what the server counts, resolved once: looking a label up costs more
// than counting.
type metrics struct {
	transfers  [numKinds][numOutcomes]prometheus.Counter
	bytes      [numKinds]prometheus.Counter
	seconds    [numKinds]prometheus.Observer
	grants     prometheus.Counter
	refusals   [numRefusals]prometheus.Counter
	handshakes prometheus.Counter

	all []prometheus.Collector
}

func newMetrics() metrics {
	transfers := prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "provisiond_http_transfers_total", Help: "Requests of booting machines over HTTP and HTTPS by what was asked for and how they ended.",
	}, []string{"kind", "outcome"})
	bytes := prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "provisiond_http_sent_bytes_total", Help: "Bytes sent to booting machines over HTTP and HTTPS, headers left out.",
	}, []string{"kind"})
	seconds := prometheus.NewHistogramVec(prometheus.HistogramOpts{
		Name: "provisiond_http_transfer_duration_seconds", Help: "How long complete answers to booting machines took; for a config, with the time that its request was held.",
		Buckets: []float64{.001, .01, .1, 1, 10, 60},
	}, []string{"kind"})
	refusals := prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "provisiond_config_refusals_total", Help: "Requests for a config, or to be approved for one, that were refused, by reason.",
	}, []string{"reason"})
	m := metrics{
		grants:     prometheus.NewCounter(prometheus.CounterOpts{Name: "provisiond_config_grants_total", Help: "Machine configs that were given out."}),
		handshakes: prometheus.NewCounter(prometheus.CounterOpts{Name: "provisiond_https_handshake_failures_total", Help: "TLS handshakes of machines that failed. Talos may fail once in a boot, before it has read whom to trust."}),
	}
	for k, name := range kindNames {
		for o, outcome := range outcomeNames {
			m.transfers[k][o] = transfers.WithLabelValues(name, outcome)
		}
		m.bytes[k], m.seconds[k] = bytes.WithLabelValues(name), seconds.WithLabelValues(name)
	}
	for r, name := range refusalNames {
		m.refusals[r] = refusals.WithLabelValues(name)
	}
	m.all = []prometheus.Collector{transfers, bytes, seconds, m.grants, refusals, m.handshakes}
	return m
}

// Collectors are the server's metrics.
func (s *Server) Collectors() []prometheus.Collector {
	return append(s.metrics.all, prometheus.NewGaugeFunc(prometheus.GaugeOpts{
		Name: "provisiond_config_requests_held", Help: "Config requests that wait until there is a config.",
	}, func() float64 { return float64(len(s.held)) }))
}

// ended counts a request that was answered.
func (m *metrics) ended(k kind, o outcome, bytes int64, took time.Duration) {
	m.transfers[k][o].Inc()
	m.bytes[k].Add(float64(bytes))
	if o == complete {
		m.seconds[k].Observe(took.Seconds())
	}
}

// counted is a handler whose answers are counted.
func (s *Server) counted(k kind, h func(*transfer, *http.Request)) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		t, start := &transfer{ResponseWriter: w, stall: s.config.Stall}, time.Now()
		h(t, r)
		s.metrics.ended(k, t.outcome(r.Method), t.sent.Load(), time.Since(start))
	}
}

// outcome tells how the transfer of an answer ended.
func (t *transfer) outcome(method string) outcome {
	size, err := strconv.ParseInt(t.Header().Get("Content-Length"), 10, 64)
	switch {
	case t.status >= 500:
		return failed
	case t.status >= 400:
		return refused
	case method == http.MethodHead || t.status == http.StatusNotModified:
		return part
	case err == nil && t.sent.Load() < size:
		return brokenOff
	case t.status == http.StatusPartialContent:
		return part
	}
	return complete
}
