package httpconfig

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"path"
	"strconv"
	"time"

	"github.com/provisiond/provisiond/internal/inventory"
)

// image serves a kernel or an initramfs: Range, If-None-Match and If-Range by
// its hash. Images are public bytes, so anybody may read them; who did is
// recorded only for the machine the URL was made for.
func (s *Server) image(w *transfer, r *http.Request) {
	ctx := r.Context()
	schematic := param(r, "schematic")
	if schematic == plainSchematic {
		schematic = ""
	}
	arch := inventory.Arch(param(r, "arch"))
	id := inventory.ImageID(param(r, "version"), schematic, arch)
	view, boot, err := s.reader(r, arch)
	if err != nil {
		s.log.Error().Err(err).Stringer("peer", peerOf(r)).Msg("cannot look up the machine that asks for an image")
	}
	image, err := s.imageByID(ctx, view, id)
	if errors.Is(err, inventory.ErrNotFound) {
		s.refuse(w, r, http.StatusNotFound, "no such boot image")
		return
	}
	if err != nil {
		s.log.Error().Err(err).Str("image", id).Msg("cannot look up a boot image")
		text(w, http.StatusServiceUnavailable, "the inventory does not answer\n") // iPXE's script asks again
		return
	}
	blob, kind, content, step := image.Kernel, inventory.KernelServed, "application/octet-stream", "kernel"
	switch path.Base(routeOf(r)) {
	case path.Base(routeInitramfs):
		blob, kind, step = image.Initramfs, inventory.InitramfsServed, "initramfs"
	case path.Base(routeSigned):
		blob, kind, content, step = image.Signed, inventory.UKIServed, "application/efi", "uki"
		if blob.SHA256 == "" {
			s.refuse(w, r, http.StatusNotFound, "this boot image has no signed UKI")
			return
		}
	}
	f, err := s.Images.Open(blob)
	if err != nil {
		s.log.Error().Err(err).Str("image", id).Str("sha256", blob.SHA256).Msg("cannot open a boot image")
		text(w, http.StatusServiceUnavailable, "the boot image cannot be read; see provisiond's log\n")
		return
	}
	defer func() { _ = f.Close() }() // read only

	h := w.Header()
	h.Set("Content-Type", content)
	h.Set("ETag", `"`+blob.SHA256+`"`)
	start := time.Now()
	if b := view.Facts.Current(); b != nil && b.Number == boot && r.Method == http.MethodGet {
		defer s.underway.begin(view.Machine.Name, &download{step, blob.Size, start, w})()
	}
	http.ServeContent(w, r, "", time.Time{}, f)
	if view.Machine == nil || r.Method != http.MethodGet || w.status != http.StatusOK {
		return
	}
	mac, _ := inventory.ParseMAC(r.URL.Query().Get("mac"))
	if !w.whole(blob.Size) {
		s.log.Warn().Str("machine", view.Machine.Name).Str("mac", string(mac)).Str("image", id).
			Int64("bytes", w.sent.Load()).Int64("of", blob.Size).Str("reason", "the machine hung up or stopped reading").Msg("image broken off")
		return
	}
	took := time.Since(start)
	s.record(ctx, inventory.Event{Kind: kind, MAC: mac, Machine: view.Machine.Name, Boot: boot, Peer: peerOf(r), Took: took})
	s.log.Info().Str("machine", view.Machine.Name).Str("mac", string(mac)).Str("image", id).Str("event", string(kind)).
		Int64("bytes", w.sent.Load()).Dur("took", took).Msg("image served")
}

// reader is the machine, and its boot, that the URL names, if the peer is it.
func (s *Server) reader(r *http.Request, arch inventory.Arch) (inventory.View, uint64, error) {
	if r.URL.RawQuery == "" {
		return inventory.View{}, 0, nil
	}
	q := r.URL.Query()
	mac, badMAC := inventory.ParseMAC(q.Get("mac"))
	boot, badBoot := strconv.ParseUint(q.Get("boot"), 10, 64)
	if badMAC != nil || badBoot != nil {
		return inventory.View{}, 0, nil // a URL that names no boot is no failure
	}
	view, err := s.Inventory.View(r.Context(), mac, arch)
	if err != nil || view.Machine == nil {
		return inventory.View{}, 0, err
	}
	if why, err := s.stranger(r.Context(), view.Machine, peerOf(r)); why != "" || err != nil {
		return inventory.View{}, 0, err
	}
	return view, boot, nil
}

// imageByID finds an image. It is nearly always the one the machine is to have;
// only after a change of that in the middle of a boot it is looked for.
func (s *Server) imageByID(ctx context.Context, v inventory.View, id string) (*inventory.Image, error) {
	if v.Image != nil && v.Image.ID() == id {
		return v.Image, nil
	}
	all, err := s.Inventory.Images(ctx)
	if err != nil {
		return nil, err
	}
	for i := range all {
		if all[i].ID() == id {
			return &all[i], nil
		}
	}
	return nil, fmt.Errorf("image %s: %w", id, inventory.ErrNotFound)
}
