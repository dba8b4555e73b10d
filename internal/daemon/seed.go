package daemon

import (
	"context"

	"github.com/provisiond/provisiond/api"
	"github.com/provisiond/provisiond/internal/httpconfig"
	"github.com/provisiond/provisiond/internal/inventory"
)

// seeds are admin.Seeds of the server that configs are fetched from.
type seeds struct{ *httpconfig.Server }

// Check implements admin.Seeds.
func (s seeds) Check(ctx context.Context, v inventory.View, fetched bool) error {
	return s.CheckSeed(ctx, v, fetched)
}

// URLs implements admin.Seeds.
func (s seeds) URLs(v inventory.View) api.Seed {
	u, b := s.SeedURLs(v), v.Facts.Current()
	out := api.Seed{
		Machine: v.Machine.Name, Boot: b.Number, NoCloud: u.NoCloud, Serial: u.Serial, NoCloudReason: u.NoCloudReason,
		MetalISO: u.MetalISO, NoCloudISO: u.NoCloudISO, Until: u.Until.UTC(),
	}
	if b.For.IsValid() {
		out.For = b.For.String()
	}
	return out
}

// ISO implements admin.Seeds.
func (s seeds) ISO(ctx context.Context, v inventory.View, format string) ([]byte, string, error) {
	return s.SeedISO(ctx, v, format == api.ISONoCloud)
}
