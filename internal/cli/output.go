package cli

import (
	"encoding/json"
	"fmt"
	"io"
	"strings"
	"text/tabwriter"
	"time"
	"unicode"

	"github.com/spf13/cobra"
	"go.yaml.in/yaml/v4"
)

// format is the value of -o.
type format struct{ name string }

func (f *format) bind(cmd *cobra.Command) *format {
	cmd.Flags().StringVarP(&f.name, "output", "o", f.name, "table, json or yaml")
	return f
}

// print writes v, or the table of it.
func (f *format) print(cmd *cobra.Command, v any, table func(io.Writer)) error {
	out := cmd.OutOrStdout()
	switch f.name {
	case "table":
		w := tabwriter.NewWriter(out, 0, 8, 2, ' ', 0)
		table(w)
		return w.Flush()
	case "json":
		enc := json.NewEncoder(out)
		enc.SetEscapeHTML(false)
		enc.SetIndent("", "  ")
		return enc.Encode(v)
	case "yaml":
		b, err := toYAML(v)
		if err != nil {
			return err
		}
		_, err = out.Write(b)
		return err
	}
	return f.unknown()
}

// item writes one of many values that come one after the other: JSON in a line of its
// own, for programs that read along, YAML as a document, or what a table shows of it.
func (f *format) item(cmd *cobra.Command, v any, table func(io.Writer) error) error {
	out := cmd.OutOrStdout()
	switch f.name {
	case "table":
		return table(out)
	case "json":
		enc := json.NewEncoder(out)
		enc.SetEscapeHTML(false)
		return enc.Encode(v)
	case "yaml":
		b, err := toYAML(v)
		if err == nil {
			_, err = fmt.Fprintf(out, "---\n%s", b)
		}
		return err
	}
	return f.unknown()
}

func (f *format) unknown() error { return usagef("-o %s: write table, json or yaml", f.name) }

// toYAML encodes v by its JSON names, in their order: JSON is YAML, in flow
// style.
func toYAML(v any) ([]byte, error) {
	b, err := json.Marshal(v)
	if err != nil {
		return nil, err
	}
	var doc yaml.Node
	if err := yaml.Unmarshal(b, &doc); err != nil {
		return nil, err
	}
	var block func(*yaml.Node)
	block = func(n *yaml.Node) {
		n.Style = 0
		if n.Tag == "!!str" && strings.Contains(n.Value, "\n") {
			n.Style = yaml.LiteralStyle
		}
		for _, sub := range n.Content {
			block(sub)
		}
	}
	block(&doc)
	var out strings.Builder
	enc := yaml.NewEncoder(&out)
	enc.SetIndent(2)
	if err := enc.Encode(&doc); err != nil {
		return nil, err
	}
	return []byte(out.String()), enc.Close()
}

// row writes one line of a table. Names, serial numbers and messages come from
// machines and from the network: none may steer the operator's terminal.
func row(w io.Writer, cells ...any) {
	texts := make([]string, len(cells))
	for i, c := range cells {
		text := clean(fmt.Sprint(c))
		if text == "" {
			text = "-"
		}
		texts[i] = text
	}
	_, _ = fmt.Fprintln(w, strings.Join(texts, "\t")) // Flush reports it
}

// pair writes one line of a description, unless there is nothing to say.
func pair(w io.Writer, key string, value any) {
	if text := fmt.Sprint(value); text != "" {
		row(w, key+":", text)
	}
}

// clean replaces what a terminal would obey instead of show.
func clean(s string) string {
	return strings.Map(func(r rune) rune {
		if r == '\t' || r == '\n' {
			return ' '
		}
		if unicode.IsControl(r) || !unicode.IsPrint(r) && !unicode.IsSpace(r) {
			return unicode.ReplacementChar
		}
		return r
	}, s)
}

// when is a time to the second, UTC.
func when(t time.Time) string {
	if t.IsZero() {
		return ""
	}
	return t.UTC().Format("2006-01-02 15:04:05Z")
}

// seconds is a duration for a person.
func seconds(s float64) string {
	return time.Duration(s * float64(time.Second)).Round(100 * time.Millisecond).String()
}
