package daemon

import (
	"context"

	"github.com/provisiond/provisiond/api"
	"github.com/provisiond/provisiond/internal/admin"
	"github.com/provisiond/provisiond/internal/dhcpv6"
)

// askedServer is the DHCPv6 server as operators ask it.
type askedServer struct{ server *dhcpv6.Server }

// Dropped implements admin.DHCPv6.
func (e askedServer) Dropped() map[string]uint64 { return e.server.Dropped() }

// Explain implements admin.DHCPv6.
func (e askedServer) Explain(ctx context.Context, p admin.CapturedPacket) api.Explanation {
	x := e.server.Explain(ctx, dhcpv6.Capture{
		Data: p.Data, Source: p.Source, Destination: p.Destination, Interface: p.Interface, LinkLayer: p.LinkLayer,
	})
	out := api.Explanation{
		Request: x.Request, Client: string(x.Client), Arch: string(x.Arch), Subnet: x.Subnet, SubnetBy: x.SubnetBy,
		Machine: x.Machine, Plan: string(x.Plan.Action), Reason: x.Plan.Reason, Answer: x.Answer, Dropped: x.Dropped,
	}
	for _, h := range x.Relays {
		out.Relays = append(out.Relays, api.Hop{
			Link: h.Link.String(), Peer: h.Peer.String(), LinkLayer: string(h.LinkLayer), InterfaceID: h.InterfaceID, RemoteID: h.RemoteID,
		})
	}
	for _, c := range x.Evidence {
		out.Evidence = append(out.Evidence, api.Evidence{Source: string(c.Source), MAC: string(c.MAC)})
	}
	return out
}
