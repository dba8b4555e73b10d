package admin

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"

	"github.com/danielgtaylor/huma/v2"

	"github.com/provisiond/provisiond/internal/inventory"
)

// errPrecondition: If-Match or If-None-Match does not hold.
var errPrecondition = errors.New("precondition failed")

// statuses maps the errors of the domain to HTTP, first match first. What is
// not in it is 500, and says no more than that.
var statuses = []struct {
	err    error
	status int
}{
	{errPrecondition, http.StatusPreconditionFailed},
	{inventory.ErrExists, http.StatusConflict},
	{inventory.ErrConflict, http.StatusConflict}, // 412 when If-Match was given
	{inventory.ErrRefused, http.StatusConflict},
	{inventory.ErrFull, http.StatusInsufficientStorage},
	{inventory.ErrAmbiguous, http.StatusInternalServerError},
	{inventory.ErrNotFound, http.StatusNotFound},
}

// conditional is an input that can carry If-Match.
type conditional interface{ conditional() bool }

// problem turns an error into the answer for it (RFC 9457). The detail of what
// is ours to fix goes to the log only.
func (s *Server) problem(ctx context.Context, operation string, in any, err error) error {
	var already huma.StatusError
	if errors.As(err, &already) {
		return already
	}
	if ctx.Err() != nil && errors.Is(err, ctx.Err()) { // the client left, or we stop
		s.log.Debug().Str("operation", operation).Err(err).Msg("request abandoned")
		return huma.Error503ServiceUnavailable("the request was cancelled")
	}
	fields := fieldErrors(err)
	status, detail := statusOf(err, fields), err.Error()
	if c, ok := in.(conditional); ok && c.conditional() && errors.Is(err, inventory.ErrConflict) {
		status = http.StatusPreconditionFailed
	}
	switch {
	case status == http.StatusInternalServerError:
		s.log.Error().Str("operation", operation).Err(err).Msg("request failed")
		detail = "internal error; the log of provisiond has the detail"
		if errors.Is(err, inventory.ErrAmbiguous) {
			detail = "outcome unknown: it may or may not have been written; look before you try again"
		}
		return huma.NewError(status, detail)
	case len(fields) > 1:
		detail = fmt.Sprintf("%d problems", len(fields))
	}
	details := make([]error, 0, len(fields))
	for _, f := range fields {
		message := f.Problem
		if f.Fix != "" {
			message += " (" + f.Fix + ")"
		}
		details = append(details, &huma.ErrorDetail{Message: message, Location: location(f.Field)})
	}
	return huma.NewError(status, detail, details...)
}

func statusOf(err error, fields []*inventory.FieldError) int {
	for _, row := range statuses {
		if !errors.Is(err, row.err) {
			continue
		}
		if row.status == http.StatusNotFound && len(fields) > 0 {
			break // a field that names something missing; 404 is for what was asked for
		}
		return row.status
	}
	if len(fields) > 0 {
		return http.StatusUnprocessableEntity
	}
	return http.StatusInternalServerError
}

// location is where huma would say the field is.
func location(field string) string {
	for _, p := range []string{"path.", "query.", "header."} {
		if strings.HasPrefix(field, p) {
			return field
		}
	}
	if field == "body" {
		return field
	}
	return strings.TrimSuffix("body."+field, ".")
}

// fieldErrors finds every FieldError in a tree of errors.
func fieldErrors(err error) []*inventory.FieldError {
	switch e := err.(type) { //nolint:errorlint // this walks the whole tree, which errors.As does not
	case nil:
		return nil
	case *inventory.FieldError:
		return []*inventory.FieldError{e}
	case interface{ Unwrap() []error }:
		var all []*inventory.FieldError
		for _, sub := range e.Unwrap() {
			all = append(all, fieldErrors(sub)...)
		}
		return all
	case interface{ Unwrap() error }:
		return fieldErrors(e.Unwrap())
	}
	return nil
}

// under puts a path before the fields of an error, "machines[3]" before
// "address". An error of the domain without a field gets the path as its field,
// so that it can be told which of many objects it is about; any other error is
// returned as it is.
func under(path string, err error) error {
	if err == nil {
		return nil
	}
	fields := fieldErrors(err)
	if len(fields) == 0 {
		for _, row := range statuses {
			if errors.Is(err, row.err) {
				return &inventory.FieldError{Field: path, Problem: err.Error(), Err: row.err}
			}
		}
		return fmt.Errorf("%s: %w", path, err)
	}
	all := make([]error, 0, len(fields))
	for _, f := range fields {
		moved := *f
		moved.Field = strings.TrimSuffix(path+"."+f.Field, ".")
		all = append(all, &moved)
	}
	return errors.Join(all...)
}

// checked turns the fields of an error of Talos.Check into those of a request
// about a machine (own is "machine") or a cluster. What is wrong with the other
// one is the fault of no field here, but of naming it.
func checked(own string, err error) error {
	fields := fieldErrors(err)
	if len(fields) == 0 {
		return err
	}
	all := make([]error, 0, len(fields))
	for _, f := range fields {
		moved := *f
		if field, ok := strings.CutPrefix(f.Field, own+"."); ok {
			moved.Field = field
		} else if field, ok := strings.CutPrefix(f.Field, "cluster."); ok {
			moved.Field, moved.Problem = "cluster", "its cluster's "+field+": "+f.Problem
		} else if f.Field != "" {
			moved.Field, moved.Problem = "", f.Field+": "+f.Problem
		}
		all = append(all, &moved)
	}
	return errors.Join(all...)
}

func badField(field, fix, format string, args ...any) error {
	return &inventory.FieldError{Field: field, Fix: fix, Problem: fmt.Sprintf(format, args...)}
}

// withoutValues drops the refused values from error answers: a body that did
// not parse would come back whole, and it may hold secrets.
func withoutValues(_ huma.Context, _ string, v any) (any, error) {
	m, ok := v.(*huma.ErrorModel)
	if !ok || !slices.ContainsFunc(m.Errors, func(d *huma.ErrorDetail) bool { return d != nil && d.Value != nil }) {
		return v, nil
	}
	for _, d := range m.Errors {
		if d != nil {
			d.Value = nil
		}
	}
	return m, nil
}
