package httpconfig

import (
	"context"
	"errors"
	"net/http"
	"os"
	"strconv"
	"time"

	"github.com/provisiond/provisiond/internal/inventory"
	"github.com/provisiond/provisiond/internal/uki"
)

// uki answers firmware that boots over HTTP with the machine's own UKI. It is what iPXE's
// script is: the same plan, the same event, the same kernel line.
//
// EDK2 asks for the size first, with HEAD, gives up when nothing comes for five seconds,
// and goes on to its next boot option at any status but 200; a script can wait, this cannot.
// So nothing is recorded at HEAD: the size is the same for every line.
func (s *Server) uki(w *transfer, r *http.Request) {
	mac, err := inventory.ParseMAC(param(r, "mac"))
	arch, ok := archOf(r.URL.Query().Get("arch"))
	if err == nil && !ok {
		err = errors.New("there is no Talos for this architecture")
	}
	if err != nil {
		s.refuse(w, r, http.StatusBadRequest, err.Error())
		return
	}
	e := inventory.Event{Kind: inventory.ScriptServed, MAC: mac, Client: inventory.FirmwareHTTP, Arch: arch, Peer: peerOf(r), Way: inventory.ByUKI}
	ctx := r.Context()
	// First without a record: a boot whose UKI cannot be made would be none.
	st := s.start(ctx, &e, "", false)
	if st.verdict != starts {
		s.notStarted(w, r, e, st)
		return
	}
	way, why := inventory.PlanWay(st.view, inventory.FirmwareHTTP)
	switch {
	case way == "":
		e.Plan = inventory.Hold
		s.notStarted(w, r, e, &start{verdict: holds, reason: why})
		return
	case way != inventory.ByUKI: // it has the URL from elsewhere
		why = "its firmware asked for its UKI by itself"
	}
	template := s.template(w, r, e, &st.view)
	if template == nil {
		return
	}
	if r.Method == http.MethodHead {
		h := w.Header()
		h.Set("Content-Type", "application/efi")
		h.Set("Accept-Ranges", "bytes")
		h.Set("Content-Length", strconv.FormatInt(template.Size(s.Signer), 10))
		w.WriteHeader(http.StatusOK)
		return
	}
	e.WayReason = why
	if st = s.start(ctx, &e, "", true); st.verdict != starts {
		s.notStarted(w, r, e, st)
		return
	}
	if template = s.template(w, r, e, &st.view); template == nil { // another one, should the plan have changed
		return
	}
	image, err := template.Make(st.line, s.Signer)
	if err != nil {
		st.verdict, st.err = broken, err
		s.notStarted(w, r, e, st)
		return
	}
	s.logStart(e, st, "UKI is served")
	s.sendUKI(ctx, w, r, e, st, image)
}

// template is what the UKI of a machine is made of. If there is none, the answer is given
// and it returns nil.
func (s *Server) template(w *transfer, r *http.Request, e inventory.Event, v *inventory.View) *uki.Template {
	t, err := s.Images.UKI(v.Image)
	if err != nil {
		e.Plan = inventory.Hold
	}
	switch {
	case errors.Is(err, inventory.ErrNotFound):
		s.notStarted(w, r, e, &start{verdict: holds, reason: err.Error()})
	case err != nil:
		s.log.Error().Err(err).Str("machine", v.Machine.Name).Str("image", v.Image.ID()).Msg("cannot make UKIs of a boot image")
		s.notStarted(w, r, e, &start{verdict: unusable, reason: "no UKI can be made of the boot image; see provisiond's log"})
	}
	return t
}

// notStarted tells firmware to go on to its next boot option. HEAD is followed by GET in any
// case, so that what happened is recorded there.
func (s *Server) notStarted(w *transfer, r *http.Request, e inventory.Event, st *start) {
	status, reason := http.StatusNotFound, st.reason
	switch st.verdict {
	case unavailable, raced, waits, unusable:
		status = http.StatusServiceUnavailable
	case foreign:
		status, reason = http.StatusForbidden, "refused; provisiond's log says why"
	case broken:
		status, reason = http.StatusServiceUnavailable, "it has no valid config; see provisiond's log"
	}
	if r.Method == http.MethodGet {
		switch st.verdict {
		case foreign:
			s.noteForeign(r, e, st.reason)
		case broken:
			s.noteBroken(r, e, st.err)
		case holds, unusable:
			s.noteHold(r, e, st.reason)
		}
	}
	text(w, status, reason+"\n")
}

// sendUKI sends the UKI of a boot, or a range of it, the large parts straight from the
// image's files.
func (s *Server) sendUKI(ctx context.Context, w *transfer, r *http.Request, e inventory.Event, st *start, image *uki.Image) {
	files, err := s.openAll(st.view.Image.UKIFiles())
	var body *uki.Reader
	if err == nil {
		if body, err = image.Open(files...); err != nil {
			closeAll(files)
		}
	}
	if err != nil {
		s.log.Error().Err(err).Str("machine", e.Machine).Str("image", st.view.Image.ID()).Msg("cannot open a boot image")
		text(w, http.StatusServiceUnavailable, "the boot image cannot be read; see provisiond's log\n")
		return
	}
	defer func() { _ = body.Close() }() // read only
	h := w.Header()
	h.Set("Content-Type", "application/efi")
	h.Set("Cache-Control", "no-store") // it has the token of the boot in it
	h.Set("ETag", `"`+image.Tag()+`"`)
	start := time.Now()
	defer s.underway.begin(e.Machine, &download{"uki", image.Size(), start, w})()
	http.ServeContent(w, r, "", time.Time{}, body)
	if w.status != http.StatusOK {
		return
	}
	if !w.whole(image.Size()) {
		s.log.Warn().Str("machine", e.Machine).Str("mac", string(e.MAC)).Int64("bytes", w.sent.Load()).Int64("of", image.Size()).
			Str("reason", "the machine hung up or stopped reading").Msg("UKI broken off")
		return
	}
	took := time.Since(start)
	s.record(ctx, inventory.Event{Kind: inventory.UKIServed, MAC: e.MAC, Machine: e.Machine, Boot: st.boot.Number, Peer: e.Peer, Took: took})
	s.log.Info().Str("machine", e.Machine).Str("mac", string(e.MAC)).Int64("bytes", w.sent.Load()).Dur("took", took).Msg("UKI served")
}

func (s *Server) openAll(blobs []inventory.Blob) ([]*os.File, error) {
	files := make([]*os.File, 0, len(blobs))
	for _, b := range blobs {
		f, err := s.Images.Open(b)
		if err != nil {
			closeAll(files)
			return nil, err
		}
		files = append(files, f)
	}
	return files, nil
}

func closeAll(files []*os.File) {
	for _, f := range files {
		_ = f.Close() // read only
	}
}
