package cli

import (
	"cmp"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"

	"github.com/spf13/cobra"

	"github.com/provisiond/provisiond/api"
	"github.com/provisiond/provisiond/client"
)

func (a *app) eventsCommand() *cobra.Command {
	cmd := &cobra.Command{Use: "events", Short: "Print what happened", Args: cobra.NoArgs}
	var filter client.ListEventsParams
	f := cmd.Flags()
	f.StringVar(&filter.Machine, "machine", "", "only events of this machine")
	f.StringVar(&filter.Cluster, "cluster", "", "only events that name this cluster")
	f.StringVar(&filter.Kind, "kind", "", "only events of this kind, such as config-served")
	f.IntVar(&filter.Limit, "limit", 50, fmt.Sprintf("print the newest, at most this many, up to %d", api.MaxLimit))
	followThem := f.BoolP("follow", "f", false, "go on with what happens, until interrupted")
	out := (&format{"table"}).bind(cmd)
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		if err := checkLimit(filter.Limit); err != nil {
			return err
		}
		c, err := a.client()
		if err != nil {
			return err
		}
		last, err := newest(cmd, c, out, filter)
		if err != nil || !*followThem {
			return err
		}
		return client.Follow(cmd.Context(), last, func(last string) (*http.Response, error) {
			return c.WatchEvents(cmd.Context(), client.WatchEventsParams{Machine: filter.Machine, Cluster: filter.Cluster, Kind: filter.Kind, LastEventID: last})
		}, func(e api.Event) error { return printEvent(cmd, out, e) }, tryingAgain(cmd))
	}
	return cmd
}

// checkLimit refuses what would mean: as many as provisiond thinks fit.
func checkLimit(limit int) error {
	if limit == 0 {
		return errors.New("limit: 0 would print nothing: write 1 or more")
	}
	return nil
}

// tryingAgain tells how a stream broke that is begun again.
func tryingAgain(cmd *cobra.Command) func(error) {
	return func(err error) { say(cmd.ErrOrStderr(), "%s; trying again", withFlag(err)) }
}

// newest prints the newest events and returns the id to go on from, which no
// event of the past has even where a filter let none through.
func newest(cmd *cobra.Command, c *client.Client, out *format, filter client.ListEventsParams) (string, error) {
	end, err := client.Answer[api.List[api.Event]](c.ListEvents(cmd.Context(), client.ListEventsParams{Limit: 1}))
	if err != nil {
		return "", err
	}
	last := uint64(0)
	for _, e := range end.Items {
		last = e.ID
	}
	page, err := client.Answer[api.List[api.Event]](c.ListEvents(cmd.Context(), filter))
	if err != nil {
		return "", err
	}
	if len(page.Items) == 0 {
		missing(cmd, c, "machine", filter.Machine)
		missing(cmd, c, "cluster", filter.Cluster)
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
