package admin

import (
	"context"
	"errors"
	"io"
	"net/http"
	"sync"
	"time"

	"github.com/go-chi/chi/v5"
)

// Inside calls the API without a network, as who sends the request under way that the
// context of a call belongs to: so a page can do what they can do, and nothing else, and each
// thing that it does is an operation of the API, with its line in the audit trail.
func (s *Server) Inside() http.RoundTripper { return inside{s} }

type inside struct{ s *Server }

// RoundTrip implements http.RoundTripper. An answer ends when its body is closed.
func (t inside) RoundTrip(r *http.Request) (*http.Response, error) {
	outer := callOf(r.Context())
	c := &call{id: outer.id, from: outer.from, who: outer.who}
	if !t.s.standing(r.Context()) {
		c.who = nil // a page may be open for long
	}
	ctx, cancel := context.WithCancel(context.WithValue(r.Context(), callKey{}, c))
	ctx = context.WithValue(ctx, chi.RouteCtxKey, nil) // that of the page would be taken for its own
	req := r.Clone(ctx)
	req.RequestURI = r.URL.RequestURI()
	if req.Body == nil {
		req.Body = http.NoBody
	}
	pr, pw := io.Pipe()
	w := &insideWriter{header: http.Header{}, body: pw, begun: make(chan struct{})}
	go func() {
		defer cancel()
		defer func() {
			if recover() != nil { // it has been logged
				w.WriteHeader(http.StatusInternalServerError)
				_ = pw.CloseWithError(errors.New("the answer broke off")) // never fails
				return
			}
			w.WriteHeader(http.StatusOK)
			_ = pw.Close() // never fails
		}()
		t.s.inside.ServeHTTP(w, req)
	}()
	<-w.begun
	return &http.Response{
		Status: http.StatusText(w.status), StatusCode: w.status, Proto: "HTTP/1.1", ProtoMajor: 1, ProtoMinor: 1,
		Header: w.sent, ContentLength: -1, Request: r, Body: insideBody{pr, cancel},
	}, nil
}

// insideWriter hands an answer over as it is written.
type insideWriter struct {
	header, sent http.Header
	status       int
	once         sync.Once
	begun        chan struct{} // closed when status and sent are set
	body         *io.PipeWriter
}

func (w *insideWriter) Header() http.Header { return w.header }

func (w *insideWriter) WriteHeader(status int) {
	w.once.Do(func() {
		w.status, w.sent = status, w.header.Clone()
		close(w.begun)
	})
}

func (w *insideWriter) Write(p []byte) (int, error) {
	w.WriteHeader(http.StatusOK)
	return w.body.Write(p)
}

// Flush implements http.Flusher: nothing is held back.
func (w *insideWriter) Flush() { w.WriteHeader(http.StatusOK) }

// SetWriteDeadline is for http.ResponseController: who reads is in this process, and
// ends an answer by closing it.
func (w *insideWriter) SetWriteDeadline(time.Time) error { return nil }

// insideBody ends the operation that makes it.
type insideBody struct {
	*io.PipeReader
	cancel context.CancelFunc
}

func (b insideBody) Close() error {
	b.cancel()
	return b.PipeReader.Close()
}
