package admin

import (
	"cmp"
	"errors"
	"fmt"

	"github.com/provisiond/provisiond/internal/inventory"
)

// Force lets a change through although the machine it is about has its config.
type Force struct {
	Force bool `query:"force" doc:"Do it although the machine runs, or may; without it the answer says what would happen"`
}

const forced = "A new role, cluster or address for a machine that has its config is refused unless force is true."

// allow refuses, unless forced, what a machine that has its config would not
// follow: to be forgotten (m nil), or another role, cluster or address. v is
// the machine as it is stored.
func (f Force) allow(v inventory.View, m *inventory.Machine) error {
	old, facts := v.Machine, &v.Facts
	if f.Force || facts.ConfigAt.IsZero() && facts.APIAt.IsZero() {
		return nil
	}
	what := "worker"
	if old.Role == inventory.ControlPlane {
		what = "control plane"
	}
	if old.Cluster != "" {
		what += " of " + old.Cluster
	}
	if facts.APIAt.IsZero() {
		what += " that has fetched its config"
	} else {
		what = "running " + what
	}
	refuse := func(field, fix, format string, args ...any) error {
		return &inventory.FieldError{Field: field, Problem: fmt.Sprintf("%s is a %s: ", old.Name, what) + fmt.Sprintf(format, args...),
			Fix: fix + "if it is meant, --yes, or force=true in the API", Err: inventory.ErrRefused}
	}
	if m == nil {
		return refuse("path.machine", "", "it would run on, unknown to provisiond, and may be installed again once it is registered again")
	}
	var errs []error
	for _, c := range []struct{ field, from, to string }{
		{"role", string(old.Role), string(m.Role)},
		{"cluster", old.Cluster, m.Cluster},
		{"address", text(old.Address), text(m.Address)},
	} {
		if c.from != c.to {
			fix := ""
			if c.field != "address" {
				fix = fmt.Sprintf("to install it as that: provisiond machine reimage %s --%s %s; ", old.Name, c.field, cmp.Or(c.to, "…"))
			}
			errs = append(errs, refuse(c.field, fix, "its config says %s %s, and provisiond would go by %s", c.field, cmp.Or(c.from, "none"), cmp.Or(c.to, "none")))
		}
	}
	return errors.Join(errs...)
}
