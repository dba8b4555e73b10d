package admin

import (
	"context"
	"net/netip"
	"testing"

	"github.com/provisiond/provisiond/api"
)

// parrot explains every packet with what it was asked.
type parrot struct{ asked []CapturedPacket }

func (p *parrot) Explain(_ context.Context, c CapturedPacket) api.Explanation {
	p.asked = append(p.asked, c)
	return api.Explanation{Request: "SOLICIT", Reason: string(c.Data)}
}

func (p *parrot) Dropped() map[string]uint64 { return map[string]uint64{"malformed": 3, "unicast": 0} }

func TestExplain(t *testing.T) {
	p := &parrot{}
	r := newRig(t, Config{DHCPv6: p})
	var x api.Explanation
	r.must(200, "POST", "/api/v1/explain", `{"hex":"68:69 21","source":"fe80::1","interface":"eth0","linkLayer":"5254.0000.0001"}`, &x)
	want := CapturedPacket{Data: []byte("hi!"), Source: netip.MustParseAddr("fe80::1"), Interface: "eth0", LinkLayer: "52:54:00:00:00:01"}
	if len(p.asked) != 1 || string(p.asked[0].Data) != "hi!" || p.asked[0].Source != want.Source || p.asked[0].Interface != "eth0" || p.asked[0].LinkLayer != want.LinkLayer || x.Reason != "hi!" {
		t.Errorf("asked %+v, got %+v", p.asked, x)
	}
	for body, where := range map[string]string{
		`{"hex":"xyz"}`:                     "body.hex",
		`{"hex":"01","source":"10.0.0.1"}`:  "body.source",
		`{"hex":"01","destination":"host"}`: "body.destination",
		`{"hex":"01","linkLayer":"nobody"}`: "body.linkLayer",
	} {
		wantErrors(t, r.must(422, "POST", "/api/v1/explain", body, nil), where)
	}
	var st api.Status
	if r.must(200, "GET", "/api/v1/status", "", &st); len(st.Dropped) != 1 || st.Dropped["malformed"] != 3 {
		t.Errorf("the status says that %v were dropped", st.Dropped)
	}
	newRig(t, Config{}).must(503, "POST", "/api/v1/explain", `{"hex":"01"}`, nil)
}
