package cli

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strconv"
	"strings"

	"go.yaml.in/yaml/v4"

	"github.com/provisiond/provisiond/client"
)

// rackFile is a YAML file of clusters and machines. Its fields are those of the
// API, which refuses what it does not know; the file says on which line.
type rackFile struct {
	name string
	root *yaml.Node
	json json.RawMessage
}

func parseRack(name string, b []byte) (*rackFile, error) {
	dec := yaml.NewDecoder(bytes.NewReader(b))
	var doc, more yaml.Node
	switch err := dec.Decode(&doc); {
	case errors.Is(err, io.EOF):
		return nil, fmt.Errorf("%s is empty: it needs clusters or machines", name)
	case err != nil:
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	if err := dec.Decode(&more); !errors.Is(err, io.EOF) {
		return nil, fmt.Errorf("%s: more than one document: put all clusters and machines into the first", name)
	}
	f := &rackFile{name: name, root: doc.Content[0]}
	if f.root.Kind != yaml.MappingNode {
		return nil, fmt.Errorf("%s:%d: not an object: it needs the keys clusters or machines", name, f.root.Line)
	}
	if err := f.plain(f.root); err != nil {
		return nil, err
	}
	var v any
	if err := doc.Decode(&v); err != nil { // duplicate keys, too many aliases
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	var err error
	f.json, err = json.Marshal(v)
	return f, err
}

// plain makes sure that the file means in JSON what it shows: keys are text,
// and a date is the text that stands there.
func (f *rackFile) plain(n *yaml.Node) error {
	if n.Kind == yaml.ScalarNode && n.ShortTag() == "!!timestamp" {
		n.Tag = "!!str"
	}
	for i, sub := range n.Content { // aliases point elsewhere, to nodes that are visited where they stand
		if n.Kind == yaml.MappingNode && i%2 == 0 && sub.ShortTag() != "!!str" && sub.ShortTag() != "!!merge" {
			return fmt.Errorf("%s:%d: the key %s is not text: put it in quotes", f.name, sub.Line, sub.Value)
		}
		if err := f.plain(sub); err != nil {
			return err
		}
	}
	return nil
}

// locate adds lines to the errors of the API.
func (f *rackFile) locate(err error) error {
	var p *client.Problem
	if !errors.As(err, &p) {
		return err
	}
	for i := range p.Errors {
		d := &p.Errors[i]
		d.Message = fmt.Sprintf("%s:%d: %s%s", f.name, f.line(d.Location), where(d.Location), d.Message)
		d.Location = ""
	}
	return p
}

// line finds the line of a path such as body.machines[3].macs[0], or of the
// nearest node around it.
func (f *rackFile) line(location string) int {
	location = strings.TrimPrefix(location, "body")
	n, line := f.root, f.root.Line
	for location != "" {
		for n.Kind == yaml.AliasNode {
			n = n.Alias
		}
		var next *yaml.Node
		if rest, ok := strings.CutPrefix(location, "["); ok {
			number, after, _ := strings.Cut(rest, "]")
			i, err := strconv.Atoi(number)
			if err != nil || n.Kind != yaml.SequenceNode || i < 0 || i >= len(n.Content) {
				return line
			}
			next, location = n.Content[i], after
			line = next.Line
		} else {
			location = strings.TrimPrefix(location, ".")
			// A key may have dots of its own: the longest that fits is meant.
			best := -1
			for i := 0; n.Kind == yaml.MappingNode && i+1 < len(n.Content); i += 2 {
				key := n.Content[i].Value
				rest, ok := strings.CutPrefix(location, key)
				if ok && (rest == "" || rest[0] == '.' || rest[0] == '[') && (best < 0 || len(key) > len(n.Content[best].Value)) {
					best = i
				}
			}
			if best < 0 {
				return line
			}
			line, next = n.Content[best].Line, n.Content[best+1]
			location = location[len(n.Content[best].Value):]
		}
		n = next
	}
	return line
}
