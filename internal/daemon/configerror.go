package daemon

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"regexp"
	"strings"

	"go.yaml.in/yaml/v4"

	"github.com/provisiond/provisiond/internal/inventory"
)

const manual = "see deploy/provisiond.example.yaml"

// decode reads the config file as it is written, strictly. The YAML library
// names a line and Go types; the errors here name the setting and the fix.
func decode(text []byte, to *rawConfig) error {
	dec := yaml.NewDecoder(bytes.NewReader(text))
	dec.KnownFields(true)
	err := dec.Decode(to)
	var list *yaml.LoadErrors
	switch {
	case errors.Is(err, io.EOF):
		return &inventory.FieldError{Problem: "the config file is empty", Fix: "start from deploy/provisiond.example.yaml"}
	case errors.As(err, &list):
		return explainAll(text, list)
	case err != nil:
		return &inventory.FieldError{Problem: "not YAML: " + strings.TrimPrefix(err.Error(), "yaml: "), Fix: "indent with spaces and quote what begins with a special character"}
	}
	if err := dec.Decode(&yaml.Node{}); !errors.Is(err, io.EOF) {
		return &inventory.FieldError{Problem: "something follows the end of the settings", Fix: "write one document, without a line ---"}
	}
	return nil
}

// place is where a node stands: a line and a column, from 1.
type place struct{ line, column int }

// named is a node and its path, such as subnets[0].prefix.
type named struct {
	path string
	node *yaml.Node
}

func explainAll(text []byte, list *yaml.LoadErrors) error {
	keys, values := map[place]named{}, map[place]named{}
	var root yaml.Node
	if err := yaml.Unmarshal(text, &root); err == nil && len(root.Content) == 1 {
		index("", root.Content[0], keys, values)
	}
	var errs []error
	for _, e := range list.Errors {
		at := place{e.Line, e.Column}
		errs = append(errs, fmt.Errorf("line %d: %w", e.Line, explainYAML(e.Err.Error(), keys[at], values[at])))
	}
	return errors.Join(errs...)
}

// index notes every key and every value. They are kept apart, for a mapping
// stands where its first key does. Aliases are not followed.
func index(path string, n *yaml.Node, keys, values map[place]named) {
	values[place{n.Line, n.Column}] = named{path, n}
	switch n.Kind {
	case yaml.SequenceNode:
		for i, c := range n.Content {
			index(fmt.Sprintf("%s[%d]", path, i), c, keys, values)
		}
	case yaml.MappingNode:
		for i := 0; i+1 < len(n.Content); i += 2 {
			k := n.Content[i]
			below := strings.TrimPrefix(path+"."+k.Value, ".")
			keys[place{k.Line, k.Column}] = named{below, k}
			index(below, n.Content[i+1], keys, values)
		}
	}
}

// The words of the YAML library and of net/netip.
var (
	unknownKey = regexp.MustCompile(`^field (.*) not found in type `)
	twice      = regexp.MustCompile(`^mapping key .* already defined at line (\d+)$`)
	wrongType  = regexp.MustCompile(`(?s)^cannot construct .* into (\S+)`)
)

// shapes says what a Go type of rawConfig wants in the file.
var shapes = map[string]struct{ what, fix string }{
	"uint16":             {"a port", "a number from 0 to 65535"},
	"time.Duration":      {"a duration", "write a unit, such as 12h"},
	"bool":               {"a switch", "write true or false"},
	"string":             {"a text", "write one value"},
	"netip.Addr":         {"an address", "write one such as 2001:db8::1, without a length"},
	"netip.Prefix":       {"a prefix", "write 2001:db8::/64"},
	"[]string":           {"a list", "write it in brackets, such as [eth1]"},
	"[]netip.Addr":       {"a list", "write it in brackets, such as [2001:db8::53]"},
	"[]daemon.rawSubnet": {"a list", "begin each subnet with a dash: - name: rack1"},
	"map[string]string":  {"a mapping", "write NAME: VALUE"},
}

func explainYAML(text string, key, value named) error {
	if m := unknownKey.FindStringSubmatch(text); m != nil {
		return &inventory.FieldError{Problem: fmt.Sprintf("%q is no setting here", m[1]), Fix: manual}
	}
	if m := twice.FindStringSubmatch(text); m != nil {
		return &inventory.FieldError{Field: key.path, Problem: "is set twice, first in line " + m[1], Fix: "keep one"}
	}
	var kind string
	if m := wrongType.FindStringSubmatch(text); m != nil {
		kind = m[1]
	} else if strings.Contains(text, "ParsePrefix(") {
		kind = "netip.Prefix"
	} else if strings.Contains(text, "ParseAddr(") {
		kind = "netip.Addr"
	} else {
		return &inventory.FieldError{Field: value.path, Problem: text, Fix: manual}
	}
	shape, ok := shapes[kind]
	if !ok {
		shape.what, shape.fix = "a group of settings", manual
	}
	return &inventory.FieldError{Field: value.path, Problem: show(value.node) + " is not " + shape.what, Fix: shape.fix}
}

func show(n *yaml.Node) string {
	switch {
	case n == nil: // behind an alias
		return "the value"
	case n.Kind == yaml.SequenceNode:
		return "a list"
	case n.Kind == yaml.MappingNode:
		return "a mapping"
	}
	return fmt.Sprintf("%.80q", n.Value)
}
