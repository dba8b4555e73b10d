package talos

import (
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"

	coreconfig "github.com/siderolabs/talos/pkg/machinery/config"
	"github.com/siderolabs/talos/pkg/machinery/config/config"
	"github.com/siderolabs/talos/pkg/machinery/config/configloader"
	"github.com/siderolabs/talos/pkg/machinery/config/configpatcher"
	"github.com/siderolabs/talos/pkg/machinery/config/container"
	"github.com/siderolabs/talos/pkg/machinery/config/types/v1alpha1"
	"go.yaml.in/yaml/v4"

	"github.com/provisiond/provisiond/internal/inventory"
)

// maxPatches bounds the patches of one list.
const maxPatches = 64

// patch is a strategic merge patch, taken apart: the v1alpha1 document, which
// many machines share, and all others, which are small. Documents merge by kind
// and name, so the two halves never meet.
type patch struct {
	text   string
	main   []config.Document // v1alpha1, and $patch: delete inside it
	others []config.Document
}

// parsePatch reads one patch. It never reads a file: configpatcher.LoadPatches
// would open what an "@name" points to.
func parsePatch(text string) (*patch, error) {
	if len(text) > maxDocument {
		return nil, fmt.Errorf("%d bytes are too many for a patch", len(text))
	}
	if isEmpty(text) { // which machinery takes for a JSON patch, or for a document without a kind
		return nil, errors.New("the patch is empty")
	}
	loaded, err := configpatcher.LoadPatch([]byte(text))
	if err != nil {
		return nil, err
	}
	merge, ok := loaded.(configpatcher.StrategicMergePatch)
	if !ok {
		return nil, errors.New("a JSON patch (RFC 6902) does not work on a config of several documents: write it as a strategic merge patch")
	}
	p := &patch{text: text}
	for _, d := range merge.Documents() {
		if isMain(d) {
			p.main = append(p.main, d)
		} else {
			p.others = append(p.others, d)
		}
	}
	return p, nil
}

// isEmpty reports whether a YAML text has no key in any of its documents: it
// is blank, or has comments, nulls, {} or [] only.
func isEmpty(text string) bool {
	dec := yaml.NewDecoder(strings.NewReader(text))
	for {
		var doc yaml.Node
		if err := dec.Decode(&doc); err != nil {
			return errors.Is(err, io.EOF)
		}
		for _, n := range doc.Content {
			if len(n.Content) > 0 || n.Kind == yaml.AliasNode || n.Kind == yaml.ScalarNode && n.Tag != "!!null" {
				return false
			}
		}
	}
}

// CheckPatches returns an *inventory.FieldError on patches[i] for a patch that
// is no strategic merge patch of documents Talos knows. Whether the config that
// it makes can work shows only with a machine and a cluster, in
// [Renderer.Render].
func CheckPatches(patches []string) error {
	if err := checkCount("patches", patches); err != nil {
		return err
	}
	for i, text := range patches {
		if _, err := parsePatch(text); err != nil {
			return fail(fmt.Sprintf("patches[%d]", i), "", "%s", flatten(err))
		}
	}
	return nil
}

func checkCount(field string, patches []string) error {
	if len(patches) > maxPatches {
		return fail(field, "put several documents into one patch", "%d patches are more than %d", len(patches), maxPatches)
	}
	return nil
}

// isMain reports whether a document is v1alpha1.Config or deletes inside it.
func isMain(d config.Document) bool {
	if _, ok := d.(*v1alpha1.Config); ok {
		return true
	}
	_, deletes := d.(configloader.Selector)
	return deletes && d.Kind() == v1alpha1.Version
}

// layer is a patch at its place in the order of application.
type layer struct {
	field  string // cluster.patches[0]
	origin Origin
	index  int // in its list
	*patch
}

// layers returns the patches of a machine in their order: the cluster's, the
// role's, its own.
func (r *Renderer) layers(m *inventory.Machine, c *inventory.Cluster) ([]layer, error) {
	role, rolePatches := "cluster.workerPatches", c.WorkerPatches
	if m.Role == inventory.ControlPlane {
		role, rolePatches = "cluster.controlPlanePatches", c.ControlPlanePatches
	}
	var out []layer
	for _, list := range []struct {
		origin Origin
		field  string
		texts  []string
	}{{FromCluster, "cluster.patches", c.Patches}, {FromRole, role, rolePatches}, {FromMachine, "machine.patches", m.Patches}} {
		if err := checkCount(list.field, list.texts); err != nil {
			return nil, err
		}
		for i, text := range list.texts {
			field := fmt.Sprintf("%s[%d]", list.field, i)
			p, ok := r.patches.get(text)
			if !ok {
				var err error
				if p, err = parsePatch(text); err != nil {
					return nil, fail(field, "", "%s", flatten(err))
				}
				r.patches.put(text, p)
			}
			out = append(out, layer{field, list.origin, i, p})
		}
	}
	return out, nil
}

// apply merges one half of every layer into docs, in order.
func apply(docs []config.Document, layers []layer, half func(*patch) []config.Document) ([]config.Document, error) {
	var cfg coreconfig.Provider
	cfg, err := container.New(docs...)
	if err != nil {
		return nil, fmt.Errorf("gathering the documents: %w", err)
	}
	for _, l := range layers {
		add := half(l.patch)
		if len(add) == 0 {
			continue
		}
		if cfg, err = configpatcher.StrategicMerge(cfg, documents(add)); err != nil {
			return nil, fail(l.field, "", "%s", flatten(err))
		}
		// A delete that found no document of its kind and name is kept as a
		// document, which Talos would refuse.
		if slices.ContainsFunc(cfg.Documents(), isDelete) {
			return nil, fail(l.field, "check its kind and name", "$patch: delete names a document that is not there")
		}
	}
	return cfg.Documents(), nil
}

func isDelete(d config.Document) bool { _, ok := d.(configloader.Selector); return ok }

// documents is a patch made of documents.
type documents []config.Document

// Documents returns copies, because a merge keeps pointers into its right side
// and the next merge writes through them.
func (d documents) Documents() []config.Document {
	out := make([]config.Document, len(d))
	for i := range d {
		out[i] = d[i].Clone()
	}
	return out
}

// Provider satisfies configpatcher.StrategicMergePatch; nothing calls it.
func (d documents) Provider() coreconfig.Provider { return nil }
