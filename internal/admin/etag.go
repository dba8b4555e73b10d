package admin

import (
	"fmt"
	"strconv"
	"strings"

	"github.com/provisiond/provisiond/internal/inventory"
)

// etag is a revision as a strong validator. It stands for what the operator
// wrote, which If-Match protects; the facts beside it move on by themselves.
func etag(rev uint64) string { return `"` + strconv.FormatUint(rev, 10) + `"` }

// Precondition is the conditional part of a request (RFC 9110 section 13.1).
type Precondition struct {
	IfMatch string `header:"If-Match" doc:"Only if the record still has this ETag; * for: only if it exists" example:"\"17\""`
}

func (p *Precondition) conditional() bool { return p.IfMatch != "" }

// rev returns the revision a write has to find, given the current one (0: there
// is no record).
func (p *Precondition) rev(current uint64) (uint64, error) {
	if p.IfMatch == "" || strings.TrimSpace(p.IfMatch) == "*" && current != 0 {
		return current, nil
	}
	for part := range strings.SplitSeq(p.IfMatch, ",") {
		part = strings.TrimSpace(part)
		if part == "*" {
			continue
		}
		if len(part) < 2 || part[0] != '"' && !strings.HasPrefix(part, `W/"`) || part[len(part)-1] != '"' {
			return 0, badField("header.If-Match", `an ETag in quotes, such as "17"`, "%s is not an entity tag", part)
		}
		if current != 0 && part == etag(current) {
			return current, nil
		}
	}
	if current == 0 {
		return 0, fmt.Errorf("%w: there is no such record", errPrecondition)
	}
	return 0, fmt.Errorf("%w: the record is at %s now: %w", errPrecondition, etag(current), inventory.ErrConflict)
}
