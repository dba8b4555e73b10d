package client

import (
	"bufio"
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"time"

	"github.com/provisiond/provisiond/api"
)

// reconnect is how long to wait before a stream that broke is begun again.
const reconnect = time.Second

// maxEvent bounds one event of a stream, in bytes: a machine, whose spec can be as large as
// a body, and JSON can take six bytes for one.
const maxEvent = 8 * api.MaxBody

// taken is an error of who takes the events.
type taken struct{ error }

// Follow hands take each item of a stream of server-sent events, in JSON, until ctx ends,
// which is no error. It returns the error of take, and a *Problem of a status below 500. A
// stream that breaks, as when provisiond restarts, goes on after the last item that was
// taken, a second later; broke is told how it ended.
//
// open calls the method for what comes after an id, its parameter LastEventID; the first
// time after last.
func Follow[T any](ctx context.Context, last string, open func(last string) (*http.Response, error), take func(T) error, broke func(error)) error {
	return FollowMessages(ctx, last, open, func(m Message) error {
		var item T
		if err := json.Unmarshal(m.Data, &item); err != nil {
			return malformed{err}
		}
		return take(item)
	}, broke)
}

// Message is one of a stream of server-sent events that has several kinds of them.
type Message struct {
	Event string // its kind; empty: the stream has one
	Data  []byte // JSON; good until take returns
}

// malformed is an error of a stream, as one that breaks.
type malformed struct{ error }

// FollowMessages is Follow for a stream that has several kinds of messages.
func FollowMessages(ctx context.Context, last string, open func(last string) (*http.Response, error), take func(Message) error, broke func(error)) error {
	for ctx.Err() == nil {
		resp, err := open(last) //nolint:bodyclose // read closes it
		if err == nil {
			last, err = read(ctx, resp, last, take)
		}
		var refused *Problem
		var own taken
		switch {
		case ctx.Err() != nil:
			return nil
		case errors.As(err, &own):
			return own.error
		case errors.As(err, &refused) && refused.Status < http.StatusInternalServerError:
			return err
		}
		broke(err)
		select {
		case <-ctx.Done():
		case <-time.After(reconnect):
		}
	}
	return nil
}

// read hands on the items of one connection and returns the id of the last one that was
// taken, and always an error: how the connection ended.
func read(ctx context.Context, resp *http.Response, last string, take func(Message) error) (string, error) {
	defer func() { _ = resp.Body.Close() }() // the stream ended or we did
	lines := bufio.NewScanner(resp.Body)
	lines.Buffer(nil, maxEvent)
	id, event, data := last, "", []byte(nil)
	for ctx.Err() == nil && lines.Scan() {
		name, value, _ := bytes.Cut(lines.Bytes(), []byte(":"))
		value = bytes.TrimPrefix(value, []byte(" "))
		switch {
		case string(name) == "id":
			id = string(value)
		case string(name) == "event":
			event = string(value)
		case string(name) == "data":
			if len(data)+len(value) > maxEvent {
				return last, fmt.Errorf("the stream of %s: %w", source(resp), bufio.ErrTooLong)
			}
			data = append(append(data, value...), '\n')
		case len(lines.Bytes()) == 0:
			if len(data) > 0 {
				err := take(Message{event, data})
				var bad malformed
				switch {
				case errors.As(err, &bad):
					return last, fmt.Errorf("the stream of %s: %w", source(resp), bad.error)
				case err != nil:
					return last, taken{err}
				}
			}
			last, event, data = id, "", data[:0] // an id alone is a place to go on from too
		}
	}
	return last, cmp.Or(lines.Err(), io.ErrUnexpectedEOF)
}
