package admin

import (
	"context"
	"slices"
	"time"

	"github.com/provisiond/provisiond/internal/audit"
	"github.com/provisiond/provisiond/internal/inventory"
)

// Principal is who calls.
type Principal struct {
	Name string
	Via  Via
	Role inventory.Access
	// Clusters are all that they may see and change; none: the whole rack.
	Clusters []string

	stands  func(ctx context.Context, now time.Time) bool // nil: it does
	session *session                                      // nil: not known by one
}

// Via is how it is known who calls.
type Via string

// The ways to be known.
const (
	ViaSocket      Via = "socket"
	ViaToken       Via = "token"
	ViaCertificate Via = "certificate"
	ViaOIDC        Via = "oidc"
)

// limited reports whether some of the rack is not theirs.
func (p *Principal) limited() bool { return len(p.Clusters) > 0 }

// sees reports whether a cluster is theirs; the empty one is that of machines
// without one.
func (p *Principal) sees(cluster string) bool {
	return !p.limited() || slices.Contains(p.Clusters, cluster)
}

// What an operation needs, as it says where it is registered.
type needs struct {
	role  inventory.Access
	about about
	act   act
}

const (
	read    = inventory.AccessRead
	operate = inventory.AccessOperate
	admin   = inventory.AccessAdmin
)

// about is what an operation means for those who are limited to clusters.
type about int

const (
	rackWide  about = iota // it is about all of the rack: refused to them
	scoped                 // the inventory shows them what is theirs, and nothing else
	everybody              // it is about no cluster
)

// act is what an operation leaves in the audit trail.
type act int

const (
	changes act = iota // a line before the answer
	tells              // a secret: a line before the answer
	looks              // nothing, unless it is refused
)

// call is one request, and what becomes known of it on its way.
type call struct {
	id     string // tells its lines in the log and the audit trail from others'
	from   string
	who    *Principal // nil: nobody who is known
	action string
	target string
	remark string // what else is worth knowing of what was done
	parts  bool   // some of what it is to do has been done, and has lines of its own
	told   bool   // it has its line in the audit trail
}

type callKey struct{}

// callOf is the request under way; never nil.
func callOf(ctx context.Context) *call {
	if c, ok := ctx.Value(callKey{}).(*call); ok {
		return c
	}
	return &call{}
}

// PrincipalOf returns who sends the request under way; nil: nobody who is known.
func PrincipalOf(ctx context.Context) *Principal { return callOf(ctx).who }

// standing reports whether who began a request may go on with it: what lasts asks.
func (s *Server) standing(ctx context.Context) bool {
	p := PrincipalOf(ctx)
	return p == nil || p.stands == nil || p.stands(ctx, s.cfg.Now())
}

// entry begins the line of a request.
func (c *call) entry() audit.Entry {
	e := audit.Entry{From: c.from, Action: c.action, Target: c.target, Reason: c.remark, Request: c.id}
	if c.who != nil {
		e.Who, e.Via, e.Role = c.who.Name, string(c.who.Via), string(c.who.Role)
	}
	return e
}
