package httpconfig

import (
	"errors"
	"io"
	"net/http"
	"path"
	"time"

	"github.com/provisiond/provisiond/internal/inventory"
)

// loader serves the first-stage loaders and the script beside them. No plan is
// asked: they are public bytes.
func (s *Server) loader(w *transfer, r *http.Request) {
	name := param(r, "arch") + "/" + param(r, "file")
	f, err := s.Loaders.Open(name)
	if err != nil {
		s.refuse(w, r, http.StatusNotFound, "no such loader")
		return
	}
	defer func() { _ = f.Close() }() // read only
	st, err := f.Stat()
	content, seeks := f.(io.ReadSeeker)
	if err != nil || !seeks || !st.Mode().IsRegular() {
		s.refuse(w, r, http.StatusNotFound, "no such loader")
		return
	}
	switch path.Ext(name) {
	case ".efi": // EDK2 needs this type or that extension
		w.Header().Set("Content-Type", "application/efi")
	case ".ipxe":
		w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	default:
		w.Header().Set("Content-Type", "application/octet-stream")
	}
	start := time.Now()
	http.ServeContent(w, r, "", st.ModTime(), content)
	if path.Ext(name) != ".efi" || r.Method != http.MethodGet || !w.whole(st.Size()) {
		return
	}
	took := time.Since(start)
	peer := peerOf(r)
	machine := ""
	view, err := s.Inventory.MachineByAddress(r.Context(), peer)
	switch {
	case err == nil && view.Machine != nil:
		machine = view.Machine.Name
		s.record(r.Context(), inventory.Event{
			Kind: inventory.LoaderServed, MAC: nicAt(view.Machine, peer), Machine: machine, Peer: peer, Message: name + " over HTTP", Took: took,
		})
	case err != nil && !errors.Is(err, inventory.ErrNotFound):
		s.log.Error().Err(err).Stringer("peer", peer).Msg("cannot look up the machine that read a loader")
	}
	s.log.Info().Str("file", name).Stringer("peer", peer).Str("machine", machine).Msg("loader served")
}
