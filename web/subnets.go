package web

import (
	"context"
	"fmt"
	"math"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"

	"github.com/provisiond/provisiond/api"
	"github.com/provisiond/provisiond/client"
	"github.com/provisiond/provisiond/internal/admin"
)

// Subnets, and how their addresses are used.

// subnetView is a subnet of subnets.html and subnet.html.
type subnetView struct {
	api.Subnet
	Strips []strip
}

func (p *Pages) subnets(r *http.Request) (*page, error) {
	all, err := p.subnetViews(r.Context())
	if err != nil {
		return nil, err
	}
	return &page{name: "subnets", title: "Subnets", data: all}, nil
}

func (p *Pages) subnetViews(ctx context.Context) ([]subnetView, error) {
	list, err := client.Answer[api.List[api.Subnet]](p.api.ListSubnets(ctx))
	if err != nil {
		return nil, err
	}
	out := make([]subnetView, len(list.Items))
	for i, s := range list.Items {
		out[i].Subnet = s
		for _, r := range s.Ranges {
			out[i].Strips = append(out[i].Strips, stripOf(r))
		}
	}
	return out, nil
}

// subnetData is subnet.html.
type subnetData struct {
	subnetView
	After     string
	Addresses []api.UsedAddress
	Later     string // the list after these; empty: that is all
}

func (p *Pages) subnet(r *http.Request) (*page, error) {
	name := r.PathValue("subnet")
	all, err := p.subnetViews(r.Context())
	if err != nil {
		return nil, err
	}
	i := slices.IndexFunc(all, func(s subnetView) bool { return s.Name == name })
	if i < 0 {
		return nil, &admin.Refusal{Status: http.StatusNotFound, Reason: "There is no subnet " + name + "."}
	}
	d := &subnetData{subnetView: all[i], After: r.FormValue("after")}
	list, err := client.Answer[api.List[api.UsedAddress]](p.api.ListAddresses(r.Context(), name, client.ListAddressesParams{After: d.After, Limit: rowsShown}))
	if err != nil {
		return nil, err
	}
	if d.Addresses = list.Items; list.Next != "" {
		d.Later = "/subnets/" + url.PathEscape(name) + "?" + url.Values{"after": {list.Next}}.Encode()
	}
	return &page{name: "subnet", title: "Subnet " + name, data: d}, nil
}

// addressUse is why addresses are not free.
type addressUse struct{ Kind, Words string }

// addressUses are all of them, in the order of the picture from the bottom up.
var addressUses = []addressUse{
	{"reserved", "the stable address of a machine"},
	{"second", "a machine's second one, for its firmware"},
	{"leased", "leased to a stranger"},
	{"declined", "found taken by somebody else"},
	{"left", "resting after a machine that is gone"},
}

func countOf(c api.AddressCounts, kind string) int {
	switch kind {
	case "reserved":
		return c.Reserved
	case "second":
		return c.Second
	case "leased":
		return c.Leased
	case "declined":
		return c.Declined
	}
	return c.Left
}

// used says how many addresses of each kind there are.
func used(c api.AddressCounts) string {
	var words []string
	for _, u := range addressUses {
		if n := countOf(c, u.Kind); n > 0 {
			words = append(words, fmt.Sprintf("%d %s", n, u.Kind))
		}
	}
	if len(words) == 0 {
		return "none used"
	}
	return strings.Join(words, ", ")
}

// strip is a range of addresses as a picture: its slices side by side, each filled from the
// bottom by what its addresses are used for.
type strip struct {
	For, First, Last string
	Width, Height    int
	Paths            []shape
	Said             string // the same in words
}

const (
	stripHeight = 40
	// leastShown is how high what there is of a slice is at least: one address of a billion is
	// seen, too.
	leastShown = 6
)

func stripOf(r api.AddressRange) strip {
	s := strip{For: r.For, First: r.First, Last: r.Last, Width: r.Slices, Height: stripHeight}
	paths := map[string]*strings.Builder{}
	sum := api.AddressCounts{}
	for _, part := range r.Picture {
		size, err := strconv.ParseFloat(part.Size, 64)
		if err != nil || size < 1 {
			size = math.MaxFloat64 // as high as the least
		}
		top := stripHeight
		for _, u := range addressUses {
			n := countOf(part.Used, u.Kind)
			if n == 0 {
				continue
			}
			h := min(max(leastShown, int(math.Round(stripHeight*float64(n)/size))), top)
			top -= h
			if paths[u.Kind] == nil {
				paths[u.Kind] = &strings.Builder{}
			}
			fmt.Fprintf(paths[u.Kind], "M%d %dh1v%dh-1z", part.Slice, top, h)
		}
		sum.Reserved += part.Used.Reserved
		sum.Second += part.Used.Second
		sum.Leased += part.Used.Leased
		sum.Declined += part.Used.Declined
		sum.Left += part.Used.Left
	}
	for _, u := range addressUses {
		if d := paths[u.Kind]; d != nil {
			s.Paths = append(s.Paths, shape{u.Kind, d.String()})
		}
	}
	s.Said = fmt.Sprintf("%s of %s addresses free; %s", many(r.Free), many(r.Size), used(sum))
	return s
}

// many is a whole number in a few characters, however large it is.
func many(digits string) string {
	if len(digits) <= 9 {
		return digits
	}
	f, err := strconv.ParseFloat(digits, 64)
	if err != nil {
		return digits
	}
	exp := int(math.Floor(math.Log10(f)))
	return fmt.Sprintf("about %.1f·10^%d", f/math.Pow10(exp), exp)
}
