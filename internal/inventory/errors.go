package inventory

import (
	"errors"
	"fmt"
)

// Errors that callers branch on. Every adapter maps them in one table of its
// own: to an HTTP status, to a DHCPv6 status code, to an exit code.
var (
	// ErrNotFound: no such machine, cluster, image or lease.
	ErrNotFound = errors.New("not found")
	// ErrExists: the name, MAC or address is already taken.
	ErrExists = errors.New("already exists")
	// ErrConflict: somebody else wrote first; load again and retry.
	ErrConflict = errors.New("changed in the meantime")
	// ErrRefused: the change is well-formed but must not happen.
	ErrRefused = errors.New("refused")
	// ErrFull: no free address, or the disk that holds the database is full.
	ErrFull = errors.New("full")
	// ErrAmbiguous: a commit may or may not have happened (the write returned
	// an error after it could have reached the disk). Load again to know.
	ErrAmbiguous = errors.New("outcome unknown")
)

// FieldError is a value that cannot be accepted: which field, what is wrong
// with it, and what to write instead.
type FieldError struct {
	Field   string // dotted path as the operator wrote it, such as "machines[2].address"
	Problem string // what is wrong, with the value
	Fix     string // what to do instead; may be empty where Problem says it
	Err     error  // a sentinel of this package, or nil
}

func (e *FieldError) Error() string {
	s := e.Problem
	if e.Field != "" {
		s = e.Field + ": " + s
	}
	if e.Fix != "" {
		s += " (" + e.Fix + ")"
	}
	return s
}

func (e *FieldError) Unwrap() error { return e.Err }

func fieldErr(field, fix, format string, args ...any) error {
	return &FieldError{Field: field, Fix: fix, Problem: fmt.Sprintf(format, args...)}
}
