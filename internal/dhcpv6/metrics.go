package dhcpv6

import (
	"strings"

	"github.com/insomniacslk/dhcp/dhcpv6"
	"github.com/prometheus/client_golang/prometheus"
)

// exchanges counts what clients sent by what became of it. Packets that are no
// client's message are counted as drops alone.
type exchanges struct {
	vec *prometheus.CounterVec
	// Resolved once, by message type: looking a label up costs more than counting.
	advertise, reply, none [dhcpv6.MessageTypeInformationRequest + 1]prometheus.Counter
}

func newExchanges() exchanges {
	e := exchanges{vec: prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "provisiond_dhcpv6_messages_total",
		Help: "Messages of clients by type and by what they were answered with; none: see provisiond_dhcpv6_dropped_total.",
	}, []string{"message", "answer"})}
	for _, kind := range []dhcpv6.MessageType{
		dhcpv6.MessageTypeSolicit, dhcpv6.MessageTypeRequest, dhcpv6.MessageTypeConfirm, dhcpv6.MessageTypeRenew, dhcpv6.MessageTypeRebind,
		dhcpv6.MessageTypeRelease, dhcpv6.MessageTypeDecline, dhcpv6.MessageTypeInformationRequest,
	} {
		name := strings.ToLower(kind.String())
		e.reply[kind], e.none[kind] = e.vec.WithLabelValues(name, "reply"), e.vec.WithLabelValues(name, "none")
		if kind == dhcpv6.MessageTypeSolicit {
			e.advertise[kind] = e.vec.WithLabelValues(name, "advertise")
		}
	}
	return e
}

func (e *exchanges) answered(x *exchange, r *reply) {
	if r.kind == dhcpv6.MessageTypeAdvertise {
		e.advertise[x.kind].Inc()
	} else {
		e.reply[x.kind].Inc()
	}
}

// dropped counts a message that got no answer; x is nil if it could not be read.
func (e *exchanges) dropped(x *exchange) {
	if x != nil && int(x.kind) < len(e.none) && e.none[x.kind] != nil {
		e.none[x.kind].Inc()
	}
}

// Collectors are the server's metrics.
func (s *Server) Collectors() []prometheus.Collector {
	all := []prometheus.Collector{s.exchanges.vec}
	for why := range numDrops {
		all = append(all, prometheus.NewCounterFunc(prometheus.CounterOpts{
			Name: "provisiond_dhcpv6_dropped_total", Help: "Packets that got no answer, by the reason that is in the log.",
			ConstLabels: prometheus.Labels{"reason": why.String()},
		}, func() float64 { return float64(s.drops.counts[why].Load()) }))
	}
	return all
}
