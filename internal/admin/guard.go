package admin

import (
	"errors"
	"io"
	"net"
	"net/http"
	"net/netip"
	"regexp"
	"runtime/debug"
	"slices"
	"strings"
	"time"

	"github.com/go-chi/chi/v5/middleware"
	"github.com/rs/zerolog"
)

// guard keeps web pages of others out. A browser may log in by itself, with a
// cookie or a client certificate, so a page in it must not reach the API: it may not write (a
// form on another site, caught by Origin and Sec-Fetch-Site), nor read by giving
// its own name our address (DNS rebinding, caught by Host). It also sets what every
// answer carries.
func (s *Server) guard(next http.Handler) http.Handler {
	sameOrigin := http.NewCrossOriginProtection()
	elsewhere := http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		writeProblem(w, http.StatusForbidden, "a page of another site may not change anything here")
	})
	sameOrigin.SetDenyHandler(elsewhere)
	next = sameOrigin.Handler(next)
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		h := w.Header()
		h.Set("Cache-Control", "no-store")
		h.Set("X-Content-Type-Options", "nosniff")
		h.Set("Cross-Origin-Resource-Policy", "same-origin") // another port of this host gets our cookie, too
		if !s.knownHost(r.Host) {
			writeProblem(w, http.StatusMisdirectedRequest, "this is not "+r.Host+": use an address or localhost, or add the name to the settings")
			return
		}
		if hides(r) {
			elsewhere(w, r)
			return
		}
		if len(r.TransferEncoding) > 0 {
			// Of a request with a length and chunks, a proxy before us may have believed the
			// length (request smuggling, RFC 9112 section 11.2). No client of ours sends chunks.
			h.Set("Connection", "close")
			writeProblem(w, http.StatusLengthRequired, "send the body with its Content-Length, not in chunks")
			return
		}
		if r.Body != nil && r.Body != http.NoBody {
			// A copy: net/http looks at its own whether the client still waits to
			// be told that it may send (RFC 9110 section 10.1.1).
			patient := *r
			patient.Body = &patientBody{r.Body, http.NewResponseController(w)}
			r = &patient
		}
		next.ServeHTTP(w, r)
	})
}

// patientBody reads a request body for as long as bytes keep coming.
type patientBody struct {
	io.ReadCloser
	conn *http.ResponseController
}

// maxSilence is how long a request body may stand still.
const maxSilence = time.Minute

func (b *patientBody) Read(p []byte) (int, error) {
	// A connection that knows no deadlines, as in tests, is read all the same.
	_ = b.conn.SetReadDeadline(time.Now().Add(maxSilence))
	n, err := b.ReadCloser.Read(p)
	if err != nil {
		// net/http reads on to notice that the client left, and would take a
		// deadline that passes for that and cancel the request.
		_ = b.conn.SetReadDeadline(time.Time{})
	}
	return n, err
}

func (s *Server) knownHost(hostport string) bool {
	host, _, err := net.SplitHostPort(hostport)
	if err != nil {
		host = hostport
	}
	host = strings.ToLower(strings.Trim(host, "[]"))
	if _, err := netip.ParseAddr(host); err == nil {
		return true
	}
	return host == "" || host == "localhost" || host == "provisiond" || slices.Contains(s.cfg.Hosts, host)
}

// withCode is a path that has the code of a machine's console in it. Others name machines
// and hashes, never a secret.
var withCode = regexp.MustCompile(`^(/api/v1/(?:approvals|discovered)/)[^/]+`)

// logged writes a line for each request, at info level for those that may
// change something, and survives a panic of one of them.
func (s *Server) logged(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		start := time.Now()
		ww := middleware.NewWrapResponseWriter(w, r.ProtoMajor)
		defer func() {
			level := zerolog.InfoLevel
			if r.Method == http.MethodGet || r.Method == http.MethodHead {
				level = zerolog.DebugLevel
			}
			p := recover()
			err, _ := p.(error)
			aborted := errors.Is(err, http.ErrAbortHandler) || p != nil && r.Context().Err() != nil
			switch {
			case aborted:
				level = zerolog.WarnLevel
			case p != nil:
				s.log.Error().Interface("panic", p).Bytes("stack", debug.Stack()).Str("method", r.Method).Str("path", withCode.ReplaceAllString(r.URL.Path, "$1…")).Msg("a request panicked")
				if ww.Status() == 0 {
					writeProblem(ww, http.StatusInternalServerError, "internal error; the log of provisiond has the detail")
				}
			}
			c := callOf(r.Context())
			s.log.WithLevel(level).Str("request", c.id).Str("who", c.entry().Who).Str("method", r.Method).Str("path", withCode.ReplaceAllString(r.URL.Path, "$1…")).Int("status", ww.Status()).Int("bytes", ww.BytesWritten()).
				Dur("took", time.Since(start)).Bool("aborted", aborted).Msg("operator request")
			if aborted {
				panic(http.ErrAbortHandler) // an answer that is not whole must not look whole
			}
		}()
		next.ServeHTTP(ww, r)
	})
}
