package admin

import (
	"cmp"
	"context"
	"net/http"
	"net/netip"

	"github.com/danielgtaylor/huma/v2"

	"github.com/provisiond/provisiond/api"
	"github.com/provisiond/provisiond/internal/inventory"
)

func (s *Server) seedRoutes(doc huma.API) {
	tags := []string{"lifecycle"}
	register(s, doc, needs{admin, scoped, tells}, huma.Operation{OperationID: "seed-machine", Method: http.MethodPost, Path: "/machines/{machine}/seed", Tags: tags,
		Summary: "Begin a boot whose config goes by NoCloud or as an ISO by URL",
		Description: "For a machine that is started by other means than our network boot, and whose first install is outstanding; the answer is 409 with the reason when it cannot have one. " +
			"The URLs are secrets of this boot. They answer the machine alone, or the address that is named, as its config URL would, and over http only where its cluster delivers so."},
		s.seedMachine, http.StatusNotFound, http.StatusConflict, http.StatusInsufficientStorage)
	register(s, doc, needs{admin, scoped, tells}, huma.Operation{OperationID: "make-machine-iso", Method: http.MethodPost, Path: "/machines/{machine}/iso", Tags: tags,
		Summary: "Make an ISO with the config of a machine", Description: "A secret. It begins a boot, as whose config it counts. The answer is 409 with the reason where seed-machine's is; but a machine that a person has to approve can have one, since a person hands it over.",
		Responses: map[string]*huma.Response{"200": {Description: "ISO 9660 volume", Content: map[string]*huma.MediaType{
			"application/vnd.efi.iso": {Schema: &huma.Schema{Type: huma.TypeString, Format: "binary"}},
		}}}},
		s.makeISO, http.StatusNotFound, http.StatusConflict, http.StatusInsufficientStorage)
}

func (s *Server) seedMachine(ctx context.Context, in *struct {
	MachinePath
	Body api.SeedOrder
}) (*struct{ Body api.Seed }, error) {
	var named netip.Addr
	if in.Body.For != "" {
		a, err := netip.ParseAddr(in.Body.For)
		if err != nil || !a.Is6() || a.Is4In6() || a.Zone() != "" || !a.IsGlobalUnicast() {
			return nil, badField("for", "a global IPv6 address such as 2001:db8:9::b, the one that the requests come from", "%q is none", in.Body.For)
		}
		named = a
	}
	v, err := s.beginSeed(ctx, in.Ref, named, true)
	if err != nil {
		return nil, err
	}
	return &struct{ Body api.Seed }{s.cfg.Seeds.URLs(v)}, nil
}

func (s *Server) makeISO(ctx context.Context, in *struct {
	MachinePath
	Body api.ISOOrder
}) (*isoAnswer, error) {
	v, err := s.beginSeed(ctx, in.Ref, netip.Addr{}, false)
	if err != nil {
		return nil, err
	}
	image, hash, err := s.cfg.Seeds.ISO(ctx, v, cmp.Or(in.Body.Format, api.ISOMetal))
	if err != nil {
		return nil, err
	}
	// It is known to have left before it does.
	b := v.Facts.Current()
	_, err = s.inv.Record(ctx, inventory.Event{
		Kind: inventory.ConfigServed, MAC: b.MAC, Machine: v.Machine.Name, Boot: b.Number, Hash: hash, ConfigBy: inventory.ChannelISO, Message: "as an ISO, to a person",
	})
	if err != nil {
		return nil, err
	}
	return &isoAnswer{ContentType: "application/vnd.efi.iso", CacheControl: "no-store", Body: image}, nil
}

type isoAnswer struct {
	ContentType  string `header:"Content-Type"`
	CacheControl string `header:"Cache-Control"`
	Body         []byte
}

// beginSeed begins the boot of a seed that can be made. fetched: by its URLs.
func (s *Server) beginSeed(ctx context.Context, ref string, named netip.Addr, fetched bool) (inventory.View, error) {
	if s.cfg.Seeds == nil {
		return inventory.View{}, huma.Error503ServiceUnavailable("this provisiond serves no configs")
	}
	v, err := s.inv.Machine(ctx, ref)
	if err != nil {
		return v, err
	}
	if err := s.cfg.Seeds.Check(ctx, v, fetched); err != nil {
		return v, err
	}
	e := inventory.Event{Kind: inventory.Seeded, MAC: v.Machine.BootMAC(), Machine: v.Machine.Name, For: named}
	if named.IsValid() {
		e.Message = named.String() + " alone may fetch it"
		callOf(ctx).remark = e.Message
	}
	return s.inv.Record(ctx, e)
}
