package cli

import (
	"bufio"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/provisiond/provisiond/api"
	"github.com/provisiond/provisiond/client"
	"github.com/provisiond/provisiond/internal/audit"
)

func (a *app) auditCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use: "audit", Short: "Print who did what", Args: cobra.NoArgs,
		Long: "Print who did what, oldest first: every change, every secret that was told, and every refusal. With -o jsonl lines\n" +
			"are printed as they were written, byte for byte, and can be checked with provisiond audit verify.",
	}
	var filter client.ListAuditParams
	cmd.Flags().StringVar(&filter.Machine, "machine", "", "only what is about this machine")
	cmd.Flags().StringVar(&filter.Who, "who", "", "only what this one did")
	since := cmd.Flags().String("since", "24h", "only what was done from then on: a time such as 24h ago or 2026-11-22T11:00:00Z, or all")
	follow := cmd.Flags().BoolP("follow", "f", false, "go on with what is done, until interrupted")
	form := cmd.Flags().StringP("output", "o", "table", "table, json or jsonl")
	offer(cmd, "output", "table", "json", "jsonl")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		show, end, err := auditPrinter(cmd.OutOrStdout(), *form, *follow)
		if err != nil {
			return err
		}
		if *since != "all" {
			if filter.Since, err = pointInTime(*since, time.Now()); err != nil {
				return err
			}
		}
		c, err := a.client()
		if err != nil {
			return err
		}
		err = auditLines(cmd, c, &filter, show)
		for *follow && cmd.Context().Err() == nil {
			var refused *client.Problem
			var output writeError
			switch {
			case errors.As(err, &refused) && refused.Status < http.StatusInternalServerError, errors.As(err, &output):
				return err
			case err != nil: // it may be on its way back
				tryingAgain(cmd)(err)
			}
			pause(cmd.Context(), time.Second)
			err = auditLines(cmd, c, &filter, show)
		}
		if err != nil && cmd.Context().Err() == nil {
			return err
		}
		return end()
	}
	cmd.AddCommand(a.auditVerify())
	return cmd
}

// writeError is an error of our own output: nobody reads along any more.
type writeError struct{ error }

// auditLines hands on every line that a filter lets through, and leaves in its After the
// last that was looked at.
func auditLines(cmd *cobra.Command, c *client.Client, filter *client.ListAuditParams, show func(line []byte) error) error {
	filter.Limit = api.MaxLimit
	page := func(after string) (*http.Response, error) {
		if after != "" {
			var err error
			if filter.After, err = strconv.Atoi(after); err != nil {
				return nil, fmt.Errorf("the answer to go on from: %w", err)
			}
		}
		return c.ListAudit(cmd.Context(), *filter)
	}
	for line, err := range client.All[json.RawMessage](page) {
		if err != nil {
			return err
		}
		if err := show(line); err != nil {
			return writeError{err}
		}
	}
	return nil
}

func pause(ctx context.Context, d time.Duration) {
	select {
	case <-ctx.Done():
	case <-time.After(d):
	}
}

// auditPrinter returns what prints a line, and what ends the output.
func auditPrinter(w io.Writer, form string, follow bool) (show func([]byte) error, end func() error, err error) {
	end = func() error { return nil }
	switch form {
	case "jsonl":
		return func(line []byte) error {
			_, err := fmt.Fprintf(w, "%s\n", line)
			return err
		}, end, nil
	case "json":
		if follow {
			return nil, nil, usagef("-o json has an end, and --follow has none: use -o jsonl")
		}
		all := []json.RawMessage{}
		return func(line []byte) error {
				all = append(all, line)
				return nil
			}, func() error {
				enc := json.NewEncoder(w)
				enc.SetIndent("", "  ")
				return enc.Encode(all)
			}, nil
	case "table":
		return func(line []byte) error {
			var e api.AuditEntry
			if err := json.Unmarshal(line, &e); err != nil {
				return err
			}
			_, err := fmt.Fprintln(w, clean(auditText(&e)))
			return err
		}, end, nil
	}
	return nil, nil, usagef("-o %s: write table, json or jsonl", form)
}

func auditText(e *api.AuditEntry) string {
	who := cmp.Or(e.Who, "nobody")
	if e.Via != "" {
		who += " (" + e.Via + ")"
	}
	outcome := e.Outcome
	if e.Status != 0 {
		outcome += " " + strconv.Itoa(e.Status)
	}
	text := fmt.Sprintf("%s  %-20s %-22s %-20s %s", when(e.Time), who, e.Action, cmp.Or(e.Target, "-"), outcome)
	if e.From != "" {
		text += " from " + e.From
	}
	if e.Reason != "" {
		text += ": " + e.Reason
	}
	return text
}

// pointInTime reads a time, or how long ago it was.
func pointInTime(text string, now time.Time) (time.Time, error) {
	if d, err := time.ParseDuration(text); err == nil && d >= 0 {
		return now.Add(-d).UTC(), nil
	}
	for _, layout := range []string{time.RFC3339, time.DateOnly} {
		if t, err := time.Parse(layout, text); err == nil {
			return t.UTC(), nil
		}
	}
	return time.Time{}, usagef("--since %q is not a time: write 24h, 2026-11-22, 2026-11-22T11:00:00Z or all", text)
}

func (a *app) auditVerify() *cobra.Command {
	cmd := &cobra.Command{
		Use: "verify [FILE...]", Short: "Check that no line of the audit trail was changed or taken out",
		Long: "Check the hash that each line has of the one before: of the trail of a running provisiond, or of files, oldest\n" +
			"first, as they lie in its data folder (audit-1.jsonl, ..., audit.jsonl) or as provisiond audit -o jsonl prints them.\n\n" +
			"The chain cannot tell that its end was cut off, nor that somebody wrote all of it anew. Keep the head that is\n" +
			"printed elsewhere, or find one in the log of provisiond, which has it at each start and stop, and give it as --head.",
	}
	head := cmd.Flags().String("head", "", "NUMBER:HASH of a line that has to be there, as an earlier verify printed it")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		v := verifier{}
		if *head != "" {
			number, hash, ok := strings.Cut(*head, ":")
			n, err := strconv.ParseUint(number, 10, 64)
			if !ok || err != nil || n == 0 {
				return usagef("--head %q is not NUMBER:HASH", *head)
			}
			v.number, v.hash = n, hash
		}
		for _, name := range args {
			if err := v.file(name); err != nil {
				return err
			}
		}
		if len(args) == 0 {
			c, err := a.client()
			if err != nil {
				return err
			}
			if err := auditLines(cmd, c, &client.ListAuditParams{}, v.line); err != nil {
				return err
			}
		}
		return v.report(cmd.OutOrStdout())
	}
	return cmd
}

// verifier checks lines, and looks for one that has to be among them.
type verifier struct {
	chain    audit.Chain
	number   uint64
	hash     string
	found    bool
	problems []error
}

func (v *verifier) line(line []byte) error {
	if _, err := v.chain.Next(line); err != nil {
		v.problems = append(v.problems, err)
	}
	v.found = v.found || v.number != 0 && v.chain.Last == v.number && v.chain.Head == v.hash
	return nil
}

func (v *verifier) file(name string) (err error) {
	f, err := os.Open(name)
	if err != nil {
		return err
	}
	defer func() { _ = f.Close() }() // it was only read
	lines := bufio.NewReader(f)
	for {
		line, err := lines.ReadBytes('\n')
		if len(line) > 0 {
			_ = v.line([]byte(strings.TrimSuffix(string(line), "\n"))) // which keeps what is wrong
		}
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("reading %s: %w", name, err)
		}
	}
}

func (v *verifier) report(w io.Writer) error {
	if err := v.chain.End(); err != nil {
		v.problems = append(v.problems, err)
	}
	if v.number != 0 && !v.found {
		v.problems = append(v.problems, fmt.Errorf("line %d is not there as --head says: the end was cut off, or what is here was written anew", v.number))
	}
	if len(v.problems) > 0 {
		return fmt.Errorf("the audit trail is not as it was written: %w", errors.Join(v.problems...))
	}
	if v.chain.Last == 0 {
		return errors.New("there is no line to check")
	}
	row(w, fmt.Sprintf("lines %d to %d are as they were written; head %d:%s", v.chain.First, v.chain.Last, v.chain.Last, v.chain.Head))
	if v.chain.First > 1 {
		row(w, fmt.Sprintf("what is before line %d is not here", v.chain.First))
	}
	return nil
}
