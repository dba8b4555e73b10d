package admin

import (
	"context"
	"fmt"
	"net/http"
	"net/netip"
	"slices"

	"github.com/danielgtaylor/huma/v2"

	"github.com/provisiond/provisiond/api"
	"github.com/provisiond/provisiond/internal/inventory"
)

// maxSlices bounds the picture of a range, however large it is.
const maxSlices = 256

// SubnetPath is the path parameter of one subnet.
type SubnetPath struct {
	Name string `path:"subnet" doc:"Name of the subnet" example:"rack"`
}

func (s *Server) subnetRoutes(doc huma.API) {
	tags := []string{"rack"}
	register(s, doc, needs{read, rackWide, looks}, huma.Operation{OperationID: "list-subnets", Method: http.MethodGet, Path: "/subnets", Tags: tags,
		Summary: "List the subnets, and how their addresses are used", Description: "As they are served now, in the order of the settings."}, s.listSubnets)
	register(s, doc, needs{read, rackWide, looks}, huma.Operation{OperationID: "list-addresses", Method: http.MethodGet, Path: "/subnets/{subnet}/addresses", Tags: tags,
		Summary: "List the addresses of a subnet that are not free", Description: "Ordered by address."}, s.listAddresses, http.StatusNotFound)
}

func (s *Server) listSubnets(ctx context.Context, _ *struct{}) (*struct{ Body api.List[api.Subnet] }, error) {
	used, err := s.inv.UsedAddresses(ctx)
	if err != nil {
		return nil, err
	}
	subnets := s.inv.Subnets()
	out := &struct{ Body api.List[api.Subnet] }{}
	out.Body.Items = make([]api.Subnet, len(subnets))
	for i := range subnets {
		out.Body.Items[i] = subnetOf(&subnets[i], usedIn(&subnets[i], used))
	}
	return out, nil
}

// usedIn is the part of a sorted list that lies in a subnet.
func usedIn(s *inventory.Subnet, used []inventory.UsedAddress) []inventory.UsedAddress {
	begin, _ := slices.BinarySearchFunc(used, s.Prefix.Addr(), func(u inventory.UsedAddress, a netip.Addr) int { return u.Address.Compare(a) })
	end := begin
	for end < len(used) && s.Prefix.Contains(used[end].Address) {
		end++
	}
	return used[begin:end]
}

func subnetOf(s *inventory.Subnet, used []inventory.UsedAddress) api.Subnet {
	out := api.Subnet{
		Name: s.Name, Prefix: s.Prefix.String(), Interface: s.Interface, Relays: texts(s.Relays), Gateway: text(s.Gateway), Reserved: texts(s.Reserved),
		Strangers: s.Strangers, Adopt: s.Adopt, Ranges: []api.AddressRange{},
	}
	counts := map[inventory.AddressKind]int{}
	for _, u := range used {
		counts[u.Kind]++
	}
	out.Used = countsOf(counts)
	for _, r := range []struct {
		use string
		of  inventory.Range
	}{{"machines", s.Machines}, {"pool", s.Pool}} {
		if r.of.IsZero() {
			continue
		}
		n, picture := r.of.Slices(used, maxSlices)
		view := api.AddressRange{
			For: r.use, First: text(r.of.First), Last: text(r.of.Last), Size: r.of.Count().String(), Free: s.Free(r.of, used).String(),
			Slices: n, Picture: make([]api.AddressPart, len(picture)),
		}
		for i, p := range picture {
			view.Picture[i] = api.AddressPart{Slice: p.Index, First: text(p.Range.First), Last: text(p.Range.Last), Size: p.Range.Count().String(), Used: countsOf(p.Counts)}
		}
		out.Ranges = append(out.Ranges, view)
	}
	return out
}

func countsOf(n map[inventory.AddressKind]int) api.AddressCounts {
	return api.AddressCounts{
		Reserved: n[inventory.AddressReserved], Second: n[inventory.AddressSecond], Leased: n[inventory.AddressLeased],
		Declined: n[inventory.AddressDeclined], Left: n[inventory.AddressLeft],
	}
}

func (s *Server) listAddresses(ctx context.Context, in *struct {
	SubnetPath
	Page
}) (*struct{ Body api.List[api.UsedAddress] }, error) {
	subnets := s.inv.Subnets()
	at := slices.IndexFunc(subnets, func(n inventory.Subnet) bool { return n.Name == in.Name })
	if at < 0 {
		return nil, fmt.Errorf("subnet %q: %w", in.Name, inventory.ErrNotFound)
	}
	var after netip.Addr // not valid: before all others
	if in.After != "" {
		var err error
		if after, err = netip.ParseAddr(in.After); err != nil {
			return nil, badField("query.after", "next of the page before", "%q is not an address", in.After)
		}
	}
	used, err := s.inv.UsedAddresses(ctx)
	if err != nil {
		return nil, err
	}
	out := &struct{ Body api.List[api.UsedAddress] }{}
	out.Body.Items = []api.UsedAddress{}
	for _, u := range usedIn(&subnets[at], used) {
		if u.Address.Compare(after) <= 0 {
			continue
		}
		if len(out.Body.Items) == in.Limit {
			out.Body.Next = out.Body.Items[in.Limit-1].Address
			break
		}
		out.Body.Items = append(out.Body.Items, api.UsedAddress{
			Address: text(u.Address), Kind: string(u.Kind), Machine: u.Machine, MAC: string(u.MAC), DUID: u.DUID, Until: u.Until,
		})
	}
	return out, nil
}
