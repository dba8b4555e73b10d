package cli

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
	"net/url"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/provisiond/provisiond/api"
)

func (a *app) eventsCommand() *cobra.Command {
	cmd := &cobra.Command{Use: "events", Short: "Print what happened", Args: cobra.NoArgs}
	query := filters(cmd, map[string]string{
		"machine": "only events of this machine", "cluster": "only events that name this cluster", "kind": "only events of this kind, such as config-served",
	})
	limit := cmd.Flags().Int("limit", 50, fmt.Sprintf("print the newest, at most this many, up to %d", api.MaxLimit))
	followThem := cmd.Flags().BoolP("follow", "f", false, "go on with what happens, until interrupted")
	out := (&format{"table"}).bind(cmd)
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		c, err := a.client()
		if err != nil {
			return err
		}
		q := query()
		last, err := c.newest(cmd, out, q, *limit)
		if err != nil || !*followThem {
			return err
		}
		return follow(cmd, c, path("events", "watch"), q, last, func(e api.Event) (uint64, error) {
			return e.ID, printEvent(cmd, out, e)
		})
	}
	return cmd
}

// newest prints the newest events and returns the id to go on from, which no
// event of the past has even where a filter let none through.
func (c *client) newest(cmd *cobra.Command, out *format, q url.Values, limit int) (string, error) {
	var end api.List[api.Event]
	if err := c.call(cmd.Context(), http.MethodGet, path("events"), url.Values{"limit": {"1"}}, nil, &end); err != nil {
		return "", err
	}
	last := uint64(0)
	for _, e := range end.Items {
		last = e.ID
	}
	q.Set("limit", fmt.Sprint(limit))
	defer q.Del("limit")
	var page api.List[api.Event]
	if err := c.call(cmd.Context(), http.MethodGet, path("events"), q, nil, &page); err != nil {
		return "", err
	}
	if len(page.Items) == 0 {
		c.missing(cmd, "machine", q)
		c.missing(cmd, "cluster", q)
	}
	for _, e := range page.Items {
		last = max(last, e.ID)
		if err := printEvent(cmd, out, e); err != nil {
			return "", err
		}
	}
	return fmt.Sprint(last), nil
}

func printEvent(cmd *cobra.Command, out *format, e api.Event) error {
	return out.item(cmd, e, func(w io.Writer) error {
		who := cmp.Or(e.Machine, e.Cluster, e.MAC, "-")
		_, err := fmt.Fprintln(w, strings.TrimRight(clean(fmt.Sprintf("%s  %-18s %-16s %s", when(e.Time), e.Kind, who, eventText(&e))), " "))
		return err
	})
}

// eventText is the rest of an event in a few words.
func eventText(e *api.Event) string {
	var parts []string
	add := func(format, value string) {
		if value != "" {
			parts = append(parts, fmt.Sprintf(format, value))
		}
	}
	add("%s", e.Message)
	add("error: %s", e.Error)
	add("plan %s", e.Plan)
	add("stage %s", e.Stage)
	if e.Ready {
		parts = append(parts, "ready")
	}
	add("client %s", e.Client)
	add("%s", e.Arch)
	add("from %s", e.Peer)
	add("by %s", e.Source)
	return strings.Join(parts, ", ")
}

// reconnect is how long to wait before a stream that broke is begun again.
const reconnect = time.Second

// maxEvent bounds one line of the stream, in bytes.
const maxEvent = 1 << 20

// writeError is an error of our own output: nobody reads along any more.
type writeError struct{ error }

// follow hands each item of a stream to show, which prints it and returns its id, until
// ctx ends. A stream that breaks, as when provisiond restarts, goes on after the last
// one that was printed.
func follow[T any](cmd *cobra.Command, c *client, path string, q url.Values, last string, show func(T) (id uint64, err error)) error {
	ctx := cmd.Context()
	take := func(data []byte) (string, error) {
		var item T
		if err := json.Unmarshal(data, &item); err != nil {
			return "", fmt.Errorf("the stream of %s: %w", c.server, err)
		}
		id, err := show(item)
		if err != nil {
			return "", writeError{err}
		}
		return fmt.Sprint(id), nil
	}
	for ctx.Err() == nil {
		var err error
		last, err = c.printStream(ctx, path, q, last, take)
		var refused *problem
		var output writeError
		switch {
		case ctx.Err() != nil:
			return nil
		case errors.As(err, &refused) && refused.Status < 500, errors.As(err, &output):
			return err
		}
		say(cmd.ErrOrStderr(), "%s; trying again", err)
		pause(ctx, reconnect)
	}
	return nil
}

func pause(ctx context.Context, d time.Duration) {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
	case <-t.C:
	}
}

// printStream hands the messages of one connection to take and returns the last one's
// id, and always an error: how the connection ended.
func (c *client) printStream(ctx context.Context, path string, q url.Values, last string, take func([]byte) (string, error)) (string, error) {
	resp, err := c.send(ctx, http.MethodGet, path, q, nil, -1, http.Header{"Last-Event-Id": {last}})
	if err != nil {
		return last, err
	}
	defer func() { _ = resp.Body.Close() }() // the stream ended or we did
	lines := bufio.NewScanner(resp.Body)
	lines.Buffer(nil, maxEvent)
	for lines.Scan() {
		data, ok := bytes.CutPrefix(lines.Bytes(), []byte("data: "))
		if !ok {
			continue
		}
		id, err := take(data)
		if err != nil {
			return last, err
		}
		last = id
	}
	return last, cmp.Or(lines.Err(), io.ErrUnexpectedEOF)
}
