package httpconfig

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"net/http"
	"time"

	"github.com/provisiond/provisiond/internal/inventory"
	"github.com/provisiond/provisiond/internal/seed"
)

// way is how a config is asked for: by its URL, or as a file of a seed. Who may have it
// is the same for all.
type way struct {
	channel inventory.Channel
	kind    kind
	// seed is the file's name, empty for the config URL. A token is of one or the other.
	seed string
	// public files have nothing of the config in them.
	public bool
	// image is set for volumes, which are read piece by piece.
	image bool
	// early answers what comes too early, after it was held; 0: what came of it.
	early int
	// never answers what is refused; 0: what came of it.
	never int
}

// byURL is the config URL. 204 has Talos ask again at once.
var byURL = way{channel: inventory.ChannelURL, kind: kindConfig}

// The files of a NoCloud server, as Talos downloads them (pkg/download): without a
// user-data, that is after 404 and 204, it goes on to maintenance mode, and does without
// the others. What comes too early must never have these answers: after an error it asks
// again for three minutes, and then begins anew. What is refused must: an installed
// machine reads them at each start, and would ask without end.
func noCloudFile(name string) way {
	w := way{channel: inventory.ChannelNoCloud, kind: kindSeed, seed: name, public: true, early: http.StatusServiceUnavailable, never: http.StatusNoContent}
	if name == seed.UserData {
		w.public, w.never = false, http.StatusNotFound
	}
	return w
}

// volume is an image that a BMC, or a person, reads. Who reads it hangs up soon.
func volume(name string) way {
	return way{channel: inventory.ChannelISO, kind: kindSeed, seed: name, image: true, early: http.StatusServiceUnavailable}
}

const (
	metalISO   = "metal.iso"
	noCloudISO = "cidata.iso"
)

// fill makes what a fetch of a file of a seed is answered with.
func (s *Server) fill(ctx context.Context, f *fetch) error {
	m, err := s.Configs.Seed(ctx, f.view)
	if err != nil {
		return err
	}
	switch f.way.seed {
	case seed.MetaData:
		f.body = m.MetaData()
	case seed.NetworkConfig:
		f.body = m.NetworkConfig()
	case seed.VendorData:
		f.body = nil
	case metalISO:
		f.body, err = seed.MetalISO(bytes.Join(f.config.Parts, nil), f.boot.Started)
	case noCloudISO:
		f.body, err = m.NoCloudISO(bytes.Join(f.config.Parts, nil), f.boot.Started)
	}
	return err
}

// sendFile answers with a file of a seed that is not the config alone. A volume can be
// read in ranges, all of the same bytes for as long as the config is the same.
func (s *Server) sendFile(w http.ResponseWriter, r *http.Request, f *fetch) (int, outcome) {
	h := w.Header()
	h.Set("Cache-Control", "no-store")
	h.Set("X-Content-Type-Options", "nosniff")
	h.Set("Content-Type", "text/yaml")
	if f.way.image {
		h.Set("Content-Type", "application/vnd.efi.iso")
		sum := sha256.Sum256(f.body)
		h.Set("ETag", `"`+hex.EncodeToString(sum[:])+`"`)
	}
	t := &transfer{ResponseWriter: w, stall: s.config.Stall}
	http.ServeContent(t, r, "", time.Time{}, bytes.NewReader(f.body))
	return int(t.sent.Load()), t.outcome(r.Method)
}

// mayFetch is stranger for who fetches a config: of a seed it can be another address
// than the machine's, which its operator named.
func (s *Server) mayFetch(ctx context.Context, f *fetch) (why string, err error) {
	named := f.boot.For
	if !named.IsValid() || s.lab(f.peer) {
		return s.stranger(ctx, f.view.Machine, f.peer)
	}
	if f.peer != named {
		return fmt.Sprintf("%s is not %s, which alone may fetch this seed of %s", f.peer, named, f.machine()), nil
	}
	return "", nil
}

// planSeed asks the decision that began the seed.
func (f *fetch) planSeed() {
	plan := inventory.PlanConfig(f.view)
	switch err := inventory.CheckSeed(f.view); {
	case plan.Action == inventory.Hold:
		f.is(http.StatusNoContent, plan.Reason)
	case err != nil:
		f.refuse(refusedPlan, http.StatusForbidden, err.Error())
	}
}

// hasIt reports whether who asks was given this config in this boot: a volume is read
// in many pieces.
func (f *fetch) hasIt() bool {
	return !f.boot.Config.IsZero() && f.boot.ConfigTo == f.peer && f.view.Facts.ConfigHash == f.config.Hash
}

// SeedURLs are where a seed is fetched from. They are secrets.
type SeedURLs struct {
	// NoCloud is the base of its files, and Serial the SMBIOS serial number that has
	// Talos read them; empty: NoCloudReason says why.
	NoCloud, Serial, NoCloudReason string
	// MetalISO and NoCloudISO are volumes.
	MetalISO, NoCloudISO string
	// Until is when they are good for nothing any more, if not before.
	Until time.Time
}

// CheckSeed returns why a machine cannot have a seed now, as a *inventory.FieldError, or
// why it cannot be made. fetched: it would be fetched from here, and not handed over by a
// person.
func (s *Server) CheckSeed(ctx context.Context, v inventory.View, fetched bool) error {
	if err := inventory.CheckSeed(v); err != nil {
		return err
	}
	if fetched && v.NeedsApproval() {
		return &inventory.FieldError{
			Field: "path.machine", Problem: "a person approves who asks as " + v.Machine.Name + " by the code on its console, and a seed shows none",
			Fix: "netboot it, or hand it over as an ISO: provisiond machine iso " + v.Machine.Name, Err: inventory.ErrRefused,
		}
	}
	if _, err := s.Configs.Config(ctx, v); err != nil {
		return err
	}
	_, err := s.Configs.Seed(ctx, v)
	return err
}

// SeedURLs returns the URLs of the seed that a machine's newest boot is.
func (s *Server) SeedURLs(v inventory.View) SeedURLs {
	b := v.Facts.Current()
	at := func(file string) string {
		return s.config.URLs.config(routeSeed, v.Cluster, b.MAC, b.Token) + file
	}
	out := SeedURLs{MetalISO: at(metalISO), NoCloudISO: at(noCloudISO), Until: b.Started.Add(s.config.TokenWindow)}
	switch {
	case b.For.IsValid():
		out.NoCloudReason = fmt.Sprintf("Talos itself would read it, and only %s may", b.For)
	case !v.Cluster.Plain():
		out.NoCloudReason = fmt.Sprintf("configs of %s are delivered over https only, and Talos does not know our CA before its config: take an ISO, or set delivery of the cluster to http", v.Cluster.Name)
	default:
		out.NoCloud = at("")
		out.Serial = "ds=nocloud-net;s=" + out.NoCloud
	}
	return out
}

// SeedISO makes a volume for the seed that a machine's newest boot is: nocloud, or for
// metal. hash is that of the config in it.
func (s *Server) SeedISO(ctx context.Context, v inventory.View, nocloud bool) (image []byte, hash string, err error) {
	f := &fetch{way: volume(metalISO), view: v, boot: v.Facts.Current()}
	if nocloud {
		f.way = volume(noCloudISO)
	}
	if f.config, err = s.Configs.Config(ctx, v); err != nil {
		return nil, "", err
	}
	err = s.fill(ctx, f)
	return f.body, f.config.Hash, err
}
