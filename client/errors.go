package client

import (
	"crypto/x509"

	"github.com/provisiond/provisiond/api"
)

// Problem is an error answer of the API (RFC 9457).
type Problem struct{ api.Problem }

func (p *Problem) Error() string {
	if p.Detail != "" {
		return p.Detail
	}
	return p.Title
}

// UnreachableError says that nothing listens where provisiond should.
type UnreachableError struct {
	Server string // as the caller of New wrote it
	Err    error
}

func (e *UnreachableError) Error() string {
	return "cannot reach provisiond at " + e.Server + ": " + e.Err.Error() + "; is it running?"
}

func (e *UnreachableError) Unwrap() error { return e.Err }

// UntrustedError says that what answers shows a certificate of a CA that is not trusted.
type UntrustedError struct {
	Server string // as the caller of New wrote it
	Err    x509.UnknownAuthorityError
}

func (e *UntrustedError) Error() string {
	return "provisiond at " + e.Server + " shows a certificate of a CA that is not trusted here: on its host, provisiond ca prints it"
}

func (e *UntrustedError) Unwrap() error { return e.Err }
