package tracing

import (
	"crypto/sha256"
	"fmt"
	"strings"
	"time"

	commonpb "go.opentelemetry.io/proto/otlp/common/v1"
	tracepb "go.opentelemetry.io/proto/otlp/trace/v1"

	"github.com/provisiond/provisiond/internal/inventory"
)

// trace is the id of a trace. It is made of what it is about, so that who makes it
// again makes the same, and another can link to it.
type trace [16]byte

func newTrace(kind, name string, number uint64, began time.Time) (id trace) {
	sum := sha256.Sum256(fmt.Appendf(nil, "%s/%s/%d/%d", kind, name, number, began.UnixNano()))
	return trace(sum[:16])
}

func bootTrace(machine string, b *inventory.Boot) trace {
	return newTrace("boot", machine, b.Number, b.Started)
}

func reimageTrace(machine string, r *inventory.Reimage) trace {
	return newTrace("reimage", machine, r.Ordered, r.OrderedAt)
}

func bootstrapTrace(b *inventory.Bootstrap) trace {
	return newTrace("bootstrap", b.Cluster, b.Epoch, b.ClaimedAt)
}

// spanID is that of a trace's span of this name, which is the only one of it; the root's
// name is empty.
func (t trace) spanID(name string) []byte {
	sum := sha256.Sum256(append(t[:], name...))
	return sum[:8]
}

func (t trace) root(name string, begin, end time.Time) *tracepb.Span {
	return &tracepb.Span{TraceId: t[:], SpanId: t.spanID(""), Name: name, Kind: tracepb.Span_SPAN_KIND_INTERNAL, StartTimeUnixNano: nanos(begin), EndTimeUnixNano: max(nanos(begin), nanos(end))}
}

func (t trace) child(of *tracepb.Span, name string, begin, end time.Time) *tracepb.Span {
	s := t.root(name, begin, end)
	s.SpanId, s.ParentSpanId = t.spanID(name), of.SpanId
	return s
}

// chain are spans of which each begins where the one before ended. Those that were not
// seen are left out.
func (t trace) chain(of *tracepb.Span, begin time.Time, steps ...step) (spans []*tracepb.Span) {
	for _, s := range steps {
		if !s.end.IsZero() {
			spans, begin = append(spans, t.child(of, s.name, begin, s.end)), s.end
		}
	}
	return spans
}

func (t trace) link() *tracepb.Span_Link {
	return &tracepb.Span_Link{TraceId: t[:], SpanId: t.spanID("")}
}

func setStatus(s *tracepb.Span, end ending) {
	switch {
	case end.why != "":
		s.Status = &tracepb.Status{Code: tracepb.Status_STATUS_CODE_ERROR, Message: text(end.why)}
	case end.outcome != held:
		s.Status = &tracepb.Status{Code: tracepb.Status_STATUS_CODE_OK}
	}
}

// attributes are names and what they say; what is empty is left out.
type attributes [][2]string

func (as attributes) keyValues() (out []*commonpb.KeyValue) {
	for _, a := range as {
		if a[1] != "" {
			out = append(out, &commonpb.KeyValue{Key: a[0], Value: &commonpb.AnyValue{Value: &commonpb.AnyValue_StringValue{StringValue: text(a[1])}}})
		}
	}
	return out
}

// maxText bounds what a machine can have us repeat, in octets.
const maxText = 1024

// text is s as protobuf takes it.
func text(s string) string {
	return strings.ToValidUTF8(s[:min(len(s), maxText)], "")
}

func nanos(t time.Time) uint64 { return uint64(t.UnixNano()) }
