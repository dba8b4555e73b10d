package admin

import (
	"context"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/hex"
	"errors"
	"fmt"
	"hash/maphash"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
	"golang.org/x/time/rate"

	"github.com/provisiond/provisiond/internal/audit"
	"github.com/provisiond/provisiond/internal/inventory"
)

// howToLogIn is the answer to who is not known.
const howToLogIn = "log in: send a token (Authorization: Bearer …; provisiond --token or $PROVISIOND_TOKEN), or a client certificate. " +
	"Root of the host that runs provisiond makes one: provisiond token create NAME --role read"

// askAnAdmin is the answer to who is known and may not.
const askAnAdmin = "an admin can do it, or make a token that may"

// TLS is how the API is served to others than this host: what it shows, and whose client
// certificates it believes. Who has none logs in with a token.
func TLS(certificate func(*tls.ClientHelloInfo) (*tls.Certificate, error), clients *x509.CertPool) *tls.Config {
	return &tls.Config{
		MinVersion: tls.VersionTLS13, GetCertificate: certificate,
		ClientAuth: tls.VerifyClientCertIfGiven, ClientCAs: clients,
		// Operators are few: HTTP/2 would bring more ways to ask, and none that is needed.
		NextProtos: []string{"http/1.1"},
	}
}

// peerKey is where a connection keeps who is at its other end.
type peerKey struct{}

// connected notes who is at the other end of a unix socket. Its permissions are the
// access control: who could open it may do everything.
func connected(ctx context.Context, conn net.Conn) context.Context {
	unixConn, ok := conn.(*net.UnixConn)
	if !ok {
		return ctx
	}
	raw, err := unixConn.SyscallConn()
	if err != nil {
		return ctx // nobody who is known
	}
	var peer *unix.Ucred
	if raw.Control(func(fd uintptr) { peer, err = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED) }) != nil || err != nil {
		return ctx
	}
	name := "root"
	if peer.Uid != 0 {
		name = fmt.Sprintf("uid %d", peer.Uid)
	}
	return context.WithValue(ctx, peerKey{}, &Principal{Name: name, Via: ViaSocket, Role: admin})
}

// errLogin: what was shown to log in is no good.
var errLogin = errors.New("no login")

// identify finds out who sends a request. Who shows nothing is nobody, which each
// operation decides on; who shows something that is no good is refused.
func (s *Server) identify(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		var id [8]byte
		_, _ = rand.Read(id[:]) // never fails (crypto/rand)
		c := &call{id: hex.EncodeToString(id[:]), from: r.RemoteAddr, action: "login"}
		w.Header().Set("X-Request-Id", c.id)
		who, err := s.caller(r)
		switch {
		case errors.Is(err, errLogin):
			s.refuseGuess(w, c, err)
		case err != nil:
			s.log.Error().Err(err).Msg("cannot look up who calls")
			writeProblem(w, http.StatusInternalServerError, "internal error; the log of provisiond has the detail")
		default:
			if who != nil && who.Via == ViaSocket {
				c.from = "unix socket"
			}
			c.who = who
			next.ServeHTTP(w, r.WithContext(context.WithValue(r.Context(), callKey{}, c)))
		}
	})
}

// caller is who sends a request: the other end of the unix socket, else the owner of
// the token that it carries, else whoever has logged in with that browser, else the owner
// of the certificate of its connection.
func (s *Server) caller(r *http.Request) (*Principal, error) {
	if p, ok := r.Context().Value(peerKey{}).(*Principal); ok {
		return p, nil
	}
	if r.TLS == nil {
		return nil, nil // whatever it carries was sent in the clear
	}
	if headers := r.Header["Authorization"]; len(headers) > 0 {
		scheme, token, _ := strings.Cut(headers[0], " ")
		if len(headers) > 1 || !strings.EqualFold(scheme, "Bearer") {
			return nil, fmt.Errorf("%w: send one header Authorization: Bearer TOKEN", errLogin)
		}
		p, err := s.owner(r.Context(), strings.TrimSpace(token))
		if errors.Is(err, inventory.ErrToken) {
			return nil, fmt.Errorf("%w: %w", errLogin, err)
		}
		return p, err
	}
	if p := s.sessions.of(r, s.cfg.Now()); p != nil {
		return p, nil // an old cookie is none: who shows it has to be able to log in
	}
	if len(r.TLS.VerifiedChains) > 0 {
		return principalOf(r.TLS, s.cfg.Now())
	}
	return nil, nil
}

// owner returns who a token makes of somebody who shows it.
func (s *Server) owner(ctx context.Context, text string) (*Principal, error) {
	t, err := s.inv.Authenticate(ctx, text, s.cfg.Now())
	if err != nil {
		return nil, err
	}
	return &Principal{Name: t.Name, Via: ViaToken, Role: t.Access, Clusters: t.Clusters,
		stands: func(ctx context.Context, now time.Time) bool { return s.inv.TokenStands(ctx, t, now) }}, nil
}

// rolePrefix is before the role in the organization of a client certificate's subject.
const rolePrefix = "provisiond:"

// principalOf reads a client certificate that the handshake has verified: its name is
// the common name, its role the one organization provisiond:ROLE, and its clusters the
// organizational units. A connection may outlive it.
func principalOf(state *tls.ConnectionState, now time.Time) (*Principal, error) {
	leaf := state.VerifiedChains[0][0]
	good := func(_ context.Context, now time.Time) bool { return anyHolds(state.VerifiedChains, now) }
	p := &Principal{Name: leaf.Subject.CommonName, Via: ViaCertificate, Clusters: leaf.Subject.OrganizationalUnit, stands: good}
	for _, o := range leaf.Subject.Organization {
		role, ok := strings.CutPrefix(o, rolePrefix)
		if !ok {
			continue
		}
		if p.Role != "" || !admin.Allows(inventory.Access(role)) {
			p.Role = ""
			break
		}
		p.Role = inventory.Access(role)
	}
	switch {
	case !good(context.Background(), now):
		return nil, fmt.Errorf("%w: the certificate has expired", errLogin)
	case p.Name == "" || p.Role == "":
		return nil, fmt.Errorf("%w: the certificate needs a common name and one organization of %sread, %soperate and %sadmin", errLogin, rolePrefix, rolePrefix, rolePrefix)
	}
	return p, nil
}

// anyHolds reports whether one of the chains holds at a time.
func anyHolds(chains [][]*x509.Certificate, now time.Time) bool {
	for _, chain := range chains {
		holds := true
		for _, cert := range chain {
			holds = holds && !now.After(cert.NotAfter)
		}
		if holds {
			return true
		}
	}
	return false
}

// guessed is the refusal of a login that is no good: 401, or 429 to who, or while everybody
// together, tries too often. A token of 256 random bits is past guessing, however fast;
// what this saves is the log and the audit trail. So a good token is never asked to wait
// because of others.
func (s *Server) guessed(c *call, reason string) *Refusal {
	if wait := s.guesses.wait(c.from, s.cfg.Now()); wait > 0 {
		s.refusals.skip()
		return &Refusal{http.StatusTooManyRequests, "too many logins failed from this address, or from all together: wait as Retry-After says", wait}
	}
	s.refused(c, http.StatusUnauthorized, reason)
	return &Refusal{Status: http.StatusUnauthorized, Reason: reason}
}

// refuseGuess answers what was shown to log in and is no good.
func (s *Server) refuseGuess(w http.ResponseWriter, c *call, err error) {
	no := s.guessed(c, strings.TrimPrefix(err.Error(), errLogin.Error()+": "))
	if no.Wait > 0 {
		w.Header().Set("Retry-After", no.RetryAfter())
		writeProblem(w, no.Status, no.Reason)
		return
	}
	w.Header().Set("WWW-Authenticate", `Bearer realm="provisiond", error="invalid_token"`)
	writeProblem(w, no.Status, no.Reason+"; "+howToLogIn)
}

// refuse answers who may not do something, with the reason and what to do.
func (s *Server) refuse(w http.ResponseWriter, c *call, status int, reason, help string) {
	s.refused(c, status, reason)
	writeProblem(w, status, reason+"; "+help)
}

// refused has a line in the audit trail, unless there are too many: then the next one
// says of how many there is none.
func (s *Server) refused(c *call, status int, reason string) {
	e := c.entry()
	e.Outcome, e.Status, e.Reason = audit.Refused, status, reason
	if skipped, ok := s.refusals.take(s.cfg.Now()); ok {
		if skipped > 0 {
			e.Reason = fmt.Sprintf("(%d more since the last) %s", skipped, e.Reason)
		}
		s.cfg.Trail.Note(e)
		s.log.Warn().Str("request", c.id).Str("from", c.from).Str("who", e.Who).Str("action", e.Action).Int("status", status).Uint64("skipped", skipped).Msg("refused")
	}
	c.told = true
}

// refusals bounds how many lines who is refused can make others read.
type refusals struct {
	limit   *rate.Limiter
	skipped atomic.Uint64
}

func (r *refusals) skip() { r.skipped.Add(1) }

func (r *refusals) take(now time.Time) (skipped uint64, ok bool) {
	if !r.limit.AllowN(now, 1) {
		r.skip()
		return 0, false
	}
	return r.skipped.Swap(0), true
}

// guesses count logins that failed, by address and together. Addresses share a fixed
// number of places, so that no number of them costs more memory; who shares one with a
// guesser only fails with 429 instead of 401.
type guesses struct {
	seed maphash.Seed
	by   [1024]*rate.Limiter
	all  *rate.Limiter
}

func newGuesses() *guesses {
	g := &guesses{seed: maphash.MakeSeed(), all: rate.NewLimiter(10, 100)}
	for i := range g.by {
		g.by[i] = rate.NewLimiter(rate.Every(6*time.Second), 10)
	}
	return g
}

// wait counts a login that failed, and returns how long who sent it has to wait until
// it could be told so; 0: it can be.
func (g *guesses) wait(from string, now time.Time) time.Duration {
	one := g.by[maphash.Comparable(g.seed, network(from))%uint64(len(g.by))]
	for _, l := range []*rate.Limiter{one, g.all} {
		r := l.ReserveN(now, 1)
		if d := r.DelayFrom(now); d > 0 {
			r.CancelAt(now)
			return d
		}
	}
	return 0
}

// network is whose address it is: one host has a whole /64.
func network(from string) netip.Prefix {
	a, err := netip.ParseAddrPort(from)
	if err != nil {
		return netip.Prefix{}
	}
	bits := 64
	if a.Addr().Unmap().Is4() {
		bits = 32
	}
	p, _ := a.Addr().Unmap().WithZone("").Prefix(bits) // the zero one if it is no address
	return p
}
