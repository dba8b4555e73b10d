package talos

import (
	"errors"
	"fmt"
	"net/url"
	"regexp"
	"strings"

	"github.com/siderolabs/talos/pkg/machinery/config/configloader"
	"github.com/siderolabs/talos/pkg/machinery/config/encoder"
	"github.com/siderolabs/talos/pkg/machinery/config/types/cri"
	"github.com/siderolabs/talos/pkg/machinery/config/types/runtime"
	"github.com/siderolabs/talos/pkg/machinery/config/types/runtime/extensions"
	"github.com/siderolabs/talos/pkg/machinery/config/types/v1alpha1"
	"go.yaml.in/yaml/v4"
)

const redacted = "(redacted)"

// Redact returns a machine config that may be shown: machinery's secrets (keys,
// tokens, passwords) are replaced, and also what operators put passwords into:
// files, manifests, environment variables and URLs. Keys in base64 read
// "KHJlZGFjdGVkKQ==". The same config gives the same bytes. A config that does
// not load is an error, and never returned as it is.
func Redact(config []byte) ([]byte, error) {
	p, err := configloader.NewFromBytes(config)
	if err != nil {
		return nil, errors.New("the config does not load") // the loader's words may quote a secret
	}
	p = p.RedactSecrets(redacted) // a deep copy
	for _, d := range p.Documents() {
		switch d := d.(type) {
		case *v1alpha1.Config:
			redactMain(d)
		case *runtime.EnvironmentV1Alpha1:
			redactValues(d.EnvironmentVariables)
		case *extensions.ServiceConfigV1Alpha1:
			for i := range d.ServiceConfigFiles {
				d.ServiceConfigFiles[i].ConfigFileContent = redacted
			}
			for i := range d.ServiceEnvironment {
				d.ServiceEnvironment[i] = redacted
			}
		case *cri.RegistryMirrorConfigV1Alpha1:
			for i := range d.RegistryEndpoints {
				redactUser(d.RegistryEndpoints[i].EndpointURL.URL)
			}
		}
	}
	return p.EncodeBytes(encoder.WithComments(encoder.CommentsDisabled))
}

func redactMain(c *v1alpha1.Config) {
	if m := c.MachineConfig; m != nil {
		for _, f := range m.MachineFiles {
			if f != nil {
				f.FileContent = redacted
			}
		}
		redactValues(m.MachineEnv) //nolint:staticcheck // deprecated, yet a patch may set it
	}
	if cl := c.ClusterConfig; cl != nil {
		for i := range cl.ClusterInlineManifests {
			cl.ClusterInlineManifests[i].InlineManifestContents = redacted
		}
		for k := range cl.ExtraManifestHeaders {
			cl.ExtraManifestHeaders[k] = redacted
		}
	}
}

func redactValues[M ~map[string]string](m M) {
	for k := range m {
		m[k] = redacted
	}
}

// redactUser hides the user part of a URL, in place.
func redactUser(u *url.URL) {
	if u != nil && u.User != nil {
		u.User = url.User(redacted)
	}
}

// Machinery and the YAML library show what they did not understand of a document.
const unknownKeys = "unknown keys found during decoding:"

// A number alone is no secret, and helps: mtu: "9000".
var quotedValue = regexp.MustCompile("(cannot construct \\S+) `[^`]*[^`0-9][^`]*`")

// withoutValues takes out of an error about a document the values that it quotes: a
// secret may stand at the wrong place. The names of its keys stay.
func withoutValues(text string) string {
	text = quotedValue.ReplaceAllString(text, "$1")
	before, quoted, ok := strings.Cut(text, unknownKeys)
	if !ok {
		return text
	}
	var doc yaml.Node
	if err := yaml.Unmarshal([]byte(quoted), &doc); err != nil || len(doc.Content) != 1 {
		return before + "unknown keys"
	}
	return before + "unknown keys " + strings.Join(leaves("", doc.Content[0]), ", ")
}

// leaves are the paths of all values below a node, such as machine.disks[0].device.
func leaves(path string, n *yaml.Node) (paths []string) {
	switch {
	case n.Kind == yaml.MappingNode && len(n.Content) > 0:
		for i := 0; i+1 < len(n.Content); i += 2 {
			paths = append(paths, leaves(strings.TrimPrefix(path+"."+n.Content[i].Value, "."), n.Content[i+1])...)
		}
	case n.Kind == yaml.SequenceNode && len(n.Content) > 0:
		for i, c := range n.Content {
			paths = append(paths, leaves(fmt.Sprintf("%s[%d]", path, i), c)...)
		}
	case path != "":
		paths = []string{path}
	}
	return paths
}
