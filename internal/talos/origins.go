package talos

import (
	"bytes"
	"errors"
	"io"
	"slices"
	"strings"

	"github.com/siderolabs/talos/pkg/machinery/config/config"
	"github.com/siderolabs/talos/pkg/machinery/config/container"
	"github.com/siderolabs/talos/pkg/machinery/config/encoder"
	"github.com/siderolabs/talos/pkg/machinery/config/types/v1alpha1"
	"go.yaml.in/yaml/v4"
	"znkr.io/diff"
)

// Origin is who said a part of a config.
type Origin string

// Origins, in the order in which they are applied.
const (
	FromBase    Origin = "base"    // ours: the inventory, the cluster's secrets, Talos' defaults
	FromCluster Origin = "cluster" // a patch of the cluster for all machines
	FromRole    Origin = "role"    // a patch of the cluster for the machine's role
	FromMachine Origin = "machine" // a patch of the machine
)

// Block is consecutive lines of a config that have one origin.
type Block struct {
	Text   string // the lines, each with its newline
	Origin Origin
	Patch  int // index in the origin's list of patches; 0 for FromBase
}

// Origins returns the redacted config of a machine in blocks: joined, they are
// what Redact makes of what Render returns. A value has the origin of the last
// patch that changed it, a key without a value that of the one that brought it.
// It costs some 5 ms, and as much again for each patch. Errors are those of Render.
func (r *Renderer) Origins(in Input) ([]Block, error) {
	c, err := r.Render(in)
	if err != nil {
		return nil, err
	}
	text, err := Redact(c.Bytes())
	if err != nil {
		return nil, err
	}
	layers, err := r.layers(in.Machine, in.Cluster)
	if err != nil {
		return nil, err
	}
	told, err := r.trace(in, layers)
	if err != nil {
		return nil, err
	}
	shown, err := parseDocuments(text)
	if err != nil {
		return nil, err
	}
	lines := strings.SplitAfter(strings.TrimSuffix(string(text), "\n"), "\n")
	by := make([]int, len(lines)+1) // number of a line, from 1, to the number of its layer
	for i := range by {
		by[i] = -1
	}
	for _, n := range shown {
		mark(by, n, told[documentKey(n)], 0)
	}
	var out []Block
	last := -1
	for i, line := range lines {
		at := by[i+1]
		switch {
		case line == docSeparator && i+1 < len(lines): // goes with the document below
			at = by[i+2]
		case at < 0: // a text that goes on
			at = max(last, 0)
		}
		if at != last {
			out, last = append(out, blockOf(layers, at)), at
		}
		out[len(out)-1].Text += line
	}
	if strings.HasSuffix(string(text), "\n") && len(out) > 0 {
		out[len(out)-1].Text += "\n"
	}
	return out, nil
}

// blockOf is an empty block of a layer; 0 is before the first patch.
func blockOf(layers []layer, n int) Block {
	if n == 0 {
		return Block{Origin: FromBase}
	}
	return Block{Origin: layers[n-1].origin, Patch: layers[n-1].index}
}

// trace applies the patches one by one and notes what each one changed.
func (r *Renderer) trace(in Input, layers []layer) (map[string]*part, error) {
	rel, err := releaseOf(in.Machine, in.Cluster)
	if err != nil {
		return nil, err
	}
	cfg, err := generated(in, rel, targetOf(in.Machine, in.Cluster, rel))
	if err != nil {
		return nil, err
	}
	main := []config.Document{cfg}
	others, err := r.ownDocuments(in)
	if err != nil {
		return nil, err
	}
	told := map[string]*part{}
	for n := 0; ; n++ {
		nodes, err := stage(in, main, others)
		if err != nil {
			return nil, err
		}
		next := make(map[string]*part, len(nodes))
		for _, node := range nodes {
			key := documentKey(node)
			next[key] = told[key].becomes(node, n)
		}
		told = next
		if n == len(layers) {
			return told, nil
		}
		if main, err = apply(main, layers[n:n+1], func(p *patch) []config.Document { return p.main }); err != nil {
			return nil, err
		}
		if others, err = apply(others, layers[n:n+1], func(p *patch) []config.Document { return p.others }); err != nil {
			return nil, err
		}
	}
}

// stage is the config as it would be if no patch came after those that were applied.
// Only the whole must be one that Talos takes, so nothing is checked.
func stage(in Input, main, others []config.Document) ([]*yaml.Node, error) {
	docs := slices.Clone(main)
	for i, d := range docs {
		if cfg, ok := d.(*v1alpha1.Config); ok {
			cfg = cfg.Clone().(*v1alpha1.Config)
			fill(cfg, in.Machine.Role, in.network())
			docs[i] = cfg
		}
	}
	whole, err := container.New(append(docs, fillDocuments(others, in)...)...)
	if err != nil {
		return nil, fail("config", "", "%v", err)
	}
	text, err := whole.EncodeBytes(encoder.WithComments(encoder.CommentsDisabled))
	if err != nil {
		return nil, fail("config", "", "%v", err)
	}
	return parseDocuments(text)
}

// parseDocuments returns the root of each document, with line numbers that count
// through the whole text.
func parseDocuments(text []byte) (roots []*yaml.Node, err error) {
	dec := yaml.NewDecoder(bytes.NewReader(text))
	for {
		var doc yaml.Node
		switch err := dec.Decode(&doc); {
		case errors.Is(err, io.EOF):
			return roots, nil
		case err != nil:
			return nil, errors.New("the config does not parse") // the parser's words may quote a secret
		}
		roots = append(roots, doc.Content...)
	}
}

// documentKey is by what Talos tells documents apart. v1alpha1 has no kind.
func documentKey(n *yaml.Node) string {
	var key [3]string
	for i := 0; i+1 < len(n.Content); i += 2 {
		for at, field := range []string{"apiVersion", "kind", "name"} {
			if n.Content[i].Value == field {
				key[at] = n.Content[i+1].Value
			}
		}
	}
	if key[1] == "" {
		return ""
	}
	return strings.Join(key[:], "/")
}

// part is a node of a config, and the layer that made it what it is: for a scalar
// the last one that changed it, for a mapping or a list the one that brought it.
type part struct {
	node   *yaml.Node
	layer  int
	fields map[string]*part // of a mapping
	items  []*part          // of a list
}

// becomes returns t, which may be nil, as a layer left it.
func (t *part) becomes(n *yaml.Node, layer int) *part {
	next := &part{node: n, layer: layer}
	same := t != nil && t.node.Kind == n.Kind
	switch {
	case !same:
		t = &part{node: &yaml.Node{}}
	case n.Kind == yaml.ScalarNode:
		same = t.node.Value == n.Value && t.node.Tag == n.Tag
	case len(n.Content) == 0: // it says that there is nothing
		same = len(t.node.Content) == 0
	}
	if same {
		next.layer = t.layer
	}
	switch n.Kind {
	case yaml.MappingNode:
		next.fields = make(map[string]*part, len(n.Content)/2)
		for i := 0; i+1 < len(n.Content); i += 2 {
			key := n.Content[i].Value
			next.fields[key] = t.fields[key].becomes(n.Content[i+1], layer)
		}
	case yaml.SequenceNode:
		next.items = make([]*part, 0, len(n.Content))
		old := t.items
		for _, e := range diff.EditsFunc(t.node.Content, n.Content, sameElement) {
			switch e.Op {
			case diff.Match:
				next.items, old = append(next.items, old[0].becomes(e.Y, layer)), old[1:]
			case diff.Delete:
				old = old[1:]
			case diff.Insert:
				next.items = append(next.items, (*part)(nil).becomes(e.Y, layer))
			}
		}
	}
	return next
}

// sameElement reports whether an element of a list is the one that was there before:
// an equal one, or one whose first field is, which in Talos' lists is its name.
func sameElement(a, b *yaml.Node) bool {
	if a.Kind == yaml.MappingNode && b.Kind == yaml.MappingNode && len(a.Content) > 1 && len(b.Content) > 1 {
		return sameNode(a.Content[0], b.Content[0]) && sameNode(a.Content[1], b.Content[1])
	}
	return sameNode(a, b)
}

func sameNode(a, b *yaml.Node) bool {
	return a.Kind == b.Kind && a.Value == b.Value && a.Tag == b.Tag && slices.EqualFunc(a.Content, b.Content, sameNode)
}

// mark notes the layer of each line on which a node begins. Redacting changes
// values only, so that what is shown has the shape of what was traced; what
// would be found in one alone is of the layer of what holds it.
func mark(by []int, n *yaml.Node, t *part, layer int) {
	if t == nil {
		t = &part{layer: layer}
	}
	if n.Line < len(by) {
		by[n.Line] = max(by[n.Line], t.layer) // a value is on the line of its key
	}
	switch n.Kind {
	case yaml.MappingNode:
		for i := 0; i+1 < len(n.Content); i += 2 {
			key, value := n.Content[i], n.Content[i+1]
			child := t.fields[key.Value]
			if child == nil {
				child = &part{layer: t.layer}
			}
			by[key.Line] = max(by[key.Line], child.layer)
			mark(by, value, child, t.layer)
		}
	case yaml.SequenceNode:
		for i, item := range n.Content {
			var child *part
			if i < len(t.items) {
				child = t.items[i]
			}
			mark(by, item, child, t.layer)
		}
	}
}
