package admin

import (
	"context"
	"encoding/hex"
	"net/http"
	"net/netip"
	"strings"

	"github.com/danielgtaylor/huma/v2"

	"github.com/provisiond/provisiond/api"
	"github.com/provisiond/provisiond/internal/inventory"
)

// DHCPv6 is the DHCPv6 server, as operators ask it.
type DHCPv6 interface {
	// Explain says what it makes of a packet, and changes nothing.
	Explain(ctx context.Context, p CapturedPacket) api.Explanation
	// Dropped counts packets that got no answer since the start, by reason.
	Dropped() map[string]uint64
}

// CapturedPacket is an api.Packet, read. What is not known is zero.
type CapturedPacket struct {
	Data                []byte
	Source, Destination netip.Addr
	Interface           string
	LinkLayer           inventory.MAC
}

func (s *Server) explainRoutes(doc huma.API) {
	register(s, doc, needs{read, rackWide, looks}, huma.Operation{OperationID: "explain", Method: http.MethodPost, Path: "/explain", Tags: []string{"machines"},
		Summary:     "Say which answer a DHCPv6 packet would get, and why",
		Description: "Which machine it is of and by what evidence, which subnet, which answer. It is decided by the code that answers, and nothing is changed."},
		func(ctx context.Context, in *struct{ Body api.Packet }) (*struct{ Body api.Explanation }, error) {
			if s.cfg.DHCPv6 == nil {
				return nil, huma.Error503ServiceUnavailable("there is no DHCPv6 server here")
			}
			p, err := capturedPacket(&in.Body)
			if err != nil {
				return nil, err
			}
			return &struct{ Body api.Explanation }{s.cfg.DHCPv6.Explain(ctx, p)}, nil
		}, http.StatusUnprocessableEntity, http.StatusServiceUnavailable)
}

func capturedPacket(in *api.Packet) (p CapturedPacket, err error) {
	p.Interface = in.Interface
	if p.Data, err = hex.DecodeString(strings.NewReplacer(" ", "", ":", "", "\n", "", "\t", "").Replace(in.Hex)); err != nil {
		return p, badField("hex", "the octets of the UDP payload, such as 01abcdef...", "%v", err)
	}
	for _, f := range []struct {
		name, text string
		to         *netip.Addr
	}{{"source", in.Source, &p.Source}, {"destination", in.Destination, &p.Destination}} {
		if f.text == "" {
			continue
		}
		if *f.to, err = netip.ParseAddr(f.text); err != nil || !f.to.Is6() {
			return p, badField(f.name, "an IPv6 address such as fe80::1", "%q is none", f.text)
		}
	}
	if in.LinkLayer != "" {
		if p.LinkLayer, err = inventory.ParseMAC(in.LinkLayer); err != nil {
			return p, badField("linkLayer", "a MAC such as 52:54:00:00:00:01", "%q is none", in.LinkLayer)
		}
	}
	return p, nil
}
