package httpconfig

import (
	"context"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"net/http"
	"net/url"
	"strings"
	"time"

	"github.com/provisiond/provisiond/internal/inventory"
)

// Device authorization (RFC 8628) with Talos as the client
// (internal/app/machined/pkg/runtime/v1alpha1/platform/metal/oauth2). Both of its
// endpoints are below the token of the boot and answer the machine's addresses only.

const (
	// approvalLife is how long a code is good for. Then Talos shows another.
	approvalLife = 30 * time.Minute
	// pollEvery is in seconds. It must be positive: Talos panics otherwise.
	pollEvery = 5
	maxForm   = 64 << 10
)

// deviceAuthorization is RFC 8628 section 3.2.
type deviceAuthorization struct {
	DeviceCode              string `json:"device_code"`
	UserCode                string `json:"user_code"`
	VerificationURI         string `json:"verification_uri"`
	VerificationURIComplete string `json:"verification_uri_complete"`
	ExpiresIn               int    `json:"expires_in"` // seconds
	Interval                int    `json:"interval"`   // seconds
}

// accessToken is RFC 6749 section 5.1.
type accessToken struct {
	AccessToken string `json:"access_token"`
	TokenType   string `json:"token_type"`
	ExpiresIn   int    `json:"expires_in"` // seconds
}

// oauthError is RFC 6749 section 5.2 and RFC 8628 section 3.5.
type oauthError struct {
	Error       string `json:"error"`
	Description string `json:"error_description,omitempty"`
}

// authorizeDevice gives a machine a code to show on its console. What it waits with is
// written down before it is told.
func (s *Server) authorizeDevice(w http.ResponseWriter, r *http.Request) {
	f := s.admitted(w, r)
	if f == nil {
		return
	}
	if !s.asked.wrong(f.token) { // each is a commit of its own
		writeJSON(w, http.StatusTooManyRequests, oauthError{"slow_down", "too many codes were asked for in this boot"})
		return
	}
	device := randomToken()
	code := inventory.NewUserCode()
	now := time.Now()
	_, err := s.Inventory.Record(r.Context(), inventory.Event{
		Time: now, Kind: inventory.ApprovalAsked, MAC: f.mac, Machine: f.machine(), Boot: f.boot.Number, Peer: f.peer,
		Code: code, Device: digest(device), Access: digest(accessFor(device)), Expires: now.Add(approvalLife),
	})
	if err != nil {
		s.log.Error().Err(err).Str("machine", f.machine()).Msg("cannot record that a machine waits to be approved")
		writeJSON(w, http.StatusServiceUnavailable, oauthError{"temporarily_unavailable", "the inventory cannot be written"})
		return
	}
	s.log.Info().Str("machine", f.machine()).Str("mac", string(f.mac)).Stringer("peer", f.peer).Uint64("boot", f.boot.Number).Msg("a machine waits to be approved")
	writeJSON(w, http.StatusOK, deviceAuthorization{
		DeviceCode: device, UserCode: code, ExpiresIn: int(approvalLife / time.Second), Interval: pollEvery,
		VerificationURI: s.config.ApprovalURL, VerificationURIComplete: s.config.ApprovalURL + "?code=" + url.QueryEscape(code),
	})
}

// issueToken answers a poll. Talos sends each twice while the answer is an error, first
// with its client id as Basic authorization and then without: neither uses up anything,
// and an answer that was lost is given again.
func (s *Server) issueToken(w http.ResponseWriter, r *http.Request) {
	f := s.admitted(w, r)
	if f == nil {
		return
	}
	device := r.PostFormValue("device_code")
	flow := flowOf(f.boot, func(flow *inventory.Flow) bool { return same(flow.Device, digest(device)) })
	switch {
	case r.PostFormValue("grant_type") != "urn:ietf:params:oauth:grant-type:device_code":
		writeJSON(w, http.StatusBadRequest, oauthError{Error: "unsupported_grant_type"})
	case flow == nil:
		writeJSON(w, http.StatusBadRequest, oauthError{"expired_token", "no such device code in this boot"})
	case flow.Approved() || !f.view.NeedsApproval():
		writeJSON(w, http.StatusOK, accessToken{AccessToken: accessFor(device), TokenType: "Bearer", ExpiresIn: int(s.config.TokenWindow / time.Second)})
	case flow.Denied:
		writeJSON(w, http.StatusBadRequest, oauthError{"access_denied", "denied by " + flow.By})
	case !flow.Pending(time.Now()):
		writeJSON(w, http.StatusBadRequest, oauthError{Error: "expired_token"})
	default:
		writeJSON(w, http.StatusBadRequest, oauthError{Error: "authorization_pending"})
	}
}

// admitted is the fetch that a request of the flow belongs to; nil if it was refused.
func (s *Server) admitted(w http.ResponseWriter, r *http.Request) *fetch {
	r.Body = http.MaxBytesReader(w, r.Body, maxForm)
	f := s.begin(w, r)
	if f == nil {
		return nil
	}
	for _, step := range [...]func(*Server, context.Context, *fetch){(*Server).load, (*Server).admit} {
		if step(s, r.Context(), f); f.status != 0 {
			break
		}
	}
	switch {
	case f.status == http.StatusNoContent: // for a moment
		writeJSON(w, http.StatusServiceUnavailable, oauthError{"temporarily_unavailable", f.reason})
	case f.status != 0:
		s.refused(r, f)
		writeJSON(w, f.status, oauthError{"access_denied", "refused; provisiond's log says why"})
	case r.ParseForm() != nil:
		writeJSON(w, http.StatusBadRequest, oauthError{"invalid_request", "a form of at most 64 KiB"})
	default:
		return f
	}
	return nil
}

// approve checks that a person approved who asks, where that is wanted.
func (s *Server) approve(_ context.Context, f *fetch) {
	if !f.view.NeedsApproval() {
		return
	}
	if f.approvedBy() == nil {
		f.refuse(refusedApproval, http.StatusUnauthorized, "nobody approved who asks as "+f.machine())
	}
}

// approvedBy is the flow in which a person approved who asks, as what the machine is by
// now; nil: nobody did.
func (f *fetch) approvedBy() *inventory.Flow {
	if f.bearer == "" || f.view.Cluster == nil {
		return nil
	}
	now := inventory.Membership{Cluster: f.view.Cluster.Name, Role: f.view.Machine.Role, Epoch: f.view.Cluster.Epoch}
	return flowOf(f.boot, func(flow *inventory.Flow) bool {
		return flow.Approved() && flow.For == now && same(flow.Access, digest(f.bearer))
	})
}

func flowOf(b *inventory.Boot, is func(*inventory.Flow) bool) *inventory.Flow {
	for i := range b.Flows {
		if is(&b.Flows[i]) {
			return &b.Flows[i]
		}
	}
	return nil
}

func same(a, b string) bool { return a != "" && subtle.ConstantTimeCompare([]byte(a), []byte(b)) == 1 }

// digest is what is kept of a secret that is shown again.
func digest(s string) string {
	sum := sha256.Sum256([]byte(s))
	return hex.EncodeToString(sum[:])
}

// accessFor is the access token of a device code: always the same, so that an answer
// that was lost can be given again, and the token is kept nowhere.
func accessFor(device string) string {
	mac := hmac.New(sha256.New, []byte(device))
	_, _ = mac.Write([]byte("access token")) // never fails (hash.Hash)
	return base64.RawURLEncoding.EncodeToString(mac.Sum(nil))
}

// randomToken is 256 random bits.
func randomToken() string {
	var b [32]byte
	_, _ = rand.Read(b[:]) // never fails (crypto/rand)
	return base64.RawURLEncoding.EncodeToString(b[:])
}

// bearer is the token of an Authorization header, empty if there is none.
func bearer(r *http.Request) string {
	scheme, token, _ := strings.Cut(r.Header.Get("Authorization"), " ")
	if !strings.EqualFold(scheme, "Bearer") {
		return ""
	}
	return token
}

func writeJSON(w http.ResponseWriter, status int, v any) {
	h := w.Header()
	h.Set("Content-Type", "application/json")
	h.Set("X-Content-Type-Options", "nosniff")
	h.Set("Cache-Control", "no-store")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(v) // the peer has gone; it asks again
}
