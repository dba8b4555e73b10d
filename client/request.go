package client

import (
	"bytes"
	"context"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"mime"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"time"

	"github.com/provisiond/provisiond/api"
)

// callTimeout bounds a call that answers with a document; making the keys of a
// cluster on a slow machine takes seconds. Streams have no bound.
const callTimeout = 2 * time.Minute

// Edit changes a request before it is sent.
type Edit func(*http.Request) error

// Body sends JSON in place of the body of the method: what its type cannot hold, as fields
// that are null, or that provisiond is to refuse.
func Body(v any) Edit {
	return func(r *http.Request) error {
		text, err := json.Marshal(v)
		if err != nil {
			return err
		}
		r.ContentLength = int64(len(text))
		r.GetBody = func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(text)), nil }
		r.Body, err = r.GetBody()
		return err
	}
}

// Size says how many bytes a stream has that is sent, and lets provisiond refuse it before
// they are.
func Size(bytes int64) Edit {
	return func(r *http.Request) error {
		r.ContentLength = bytes
		r.Header.Set("Expect", "100-continue") // a refusal comes before the bytes, not as a broken pipe
		return nil
	}
}

// request is what a generated method sends.
type request struct {
	method, path string
	query        url.Values
	header       http.Header
	contentType  string
	body         any // an io.Reader is sent as it is, anything else as JSON
}

// path puts segments, escaped, into the path of an operation.
func path(format string, segments ...string) string {
	escaped := make([]any, len(segments))
	for i, s := range segments {
		escaped[i] = url.PathEscape(s)
	}
	return fmt.Sprintf(format, escaped...)
}

// values are those of a parameter; none, if it is zero.
func values(parameter any) []string {
	var text string
	switch v := parameter.(type) {
	case []string:
		return v
	case string:
		text = v
	case bool:
		if v {
			text = "true"
		}
	case int:
		if v != 0 {
			text = strconv.Itoa(v)
		}
	case time.Time:
		if !v.IsZero() {
			text = v.Format(time.RFC3339Nano)
		}
	default:
		panic(fmt.Sprintf("a parameter is a %T: add it here", v)) // TestOperations calls every method
	}
	if text == "" {
		return nil
	}
	return []string{text}
}

// send returns an answer that is a success; the caller closes its body.
func (c *Client) send(ctx context.Context, r request, edit []Edit) (*http.Response, error) {
	target := c.base + r.path
	if q := r.query.Encode(); q != "" {
		target += "?" + q
	}
	body, isStream := r.body.(io.Reader)
	if r.body != nil && !isStream {
		text, err := json.Marshal(r.body)
		if err != nil {
			return nil, err
		}
		body = bytes.NewReader(text)
	}
	ctx, cancel := context.WithCancelCause(ctx)
	bound := time.AfterFunc(callTimeout, func() { cancel(context.DeadlineExceeded) })
	end := func() {
		bound.Stop()
		cancel(nil)
	}
	if isStream {
		bound.Stop()
	}
	req, err := http.NewRequestWithContext(ctx, r.method, target, body)
	if err != nil {
		end()
		return nil, err
	}
	for name, list := range r.header {
		for _, v := range list {
			req.Header.Add(name, v)
		}
	}
	if r.contentType != "" {
		req.Header.Set("Content-Type", r.contentType)
	}
	if c.token != "" {
		req.Header.Set("Authorization", "Bearer "+c.token)
	}
	for _, e := range edit {
		if err := e(req); err != nil {
			end()
			return nil, err
		}
	}
	resp, err := c.http.Do(req)
	if err != nil {
		err = c.unreachable(ctx, err)
		end()
		return nil, err
	}
	if streamed(resp) {
		bound.Stop()
	}
	resp.Body = &answer{resp.Body, ctx, end, c.server}
	if resp.StatusCode < 300 {
		return resp, nil
	}
	defer func() { _ = resp.Body.Close() }() // it was read, or the error says more
	return nil, c.refused(resp)
}

// streamed reports whether an answer may take as long as it wants.
func streamed(resp *http.Response) bool {
	kind, _, _ := mime.ParseMediaType(resp.Header.Get("Content-Type")) // what is none is no stream
	return kind == "text/event-stream" || kind == "application/octet-stream"
}

// answer is the body of an answer. To close it ends the call.
type answer struct {
	io.ReadCloser
	ctx    context.Context
	end    func()
	server string
}

func (a *answer) Read(p []byte) (int, error) {
	n, err := a.ReadCloser.Read(p)
	if err != nil && !errors.Is(err, io.EOF) && a.ctx.Err() != nil {
		err = context.Cause(a.ctx)
	}
	return n, err
}

func (a *answer) Close() error {
	defer a.end()
	return a.ReadCloser.Close()
}

// source is who sent an answer, as the caller of New named it.
func source(resp *http.Response) string {
	if a, ok := resp.Body.(*answer); ok {
		return a.server
	}
	return resp.Request.URL.Host // some other client's
}

// refused is the error of an answer that is no success.
func (c *Client) refused(resp *http.Response) error {
	text, err := io.ReadAll(io.LimitReader(resp.Body, api.MaxBody))
	if err != nil {
		return fmt.Errorf("reading the answer of %s: %w", c.server, err)
	}
	p := &Problem{}
	if json.Unmarshal(text, &p.Problem) != nil || p.Status == 0 {
		return fmt.Errorf("%s answered %s: is that provisiond?", c.server, resp.Status)
	}
	return p
}

// unreachable is the error of a request that was not answered.
func (c *Client) unreachable(ctx context.Context, err error) error {
	var op *net.OpError
	if ctx.Err() == nil && errors.As(err, &op) && op.Op == "dial" {
		return &UnreachableError{c.server, op.Err}
	}
	var unknown x509.UnknownAuthorityError
	if errors.As(err, &unknown) {
		return &UntrustedError{c.server, unknown}
	}
	var u *url.Error
	if errors.As(err, &u) {
		err = u.Err
	}
	if ctx.Err() != nil {
		err = context.Cause(ctx)
	}
	return fmt.Errorf("calling provisiond at %s: %w", c.server, err)
}
