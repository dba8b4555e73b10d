package talos

import (
	"bytes"
	"errors"
	"testing"

	"github.com/provisiond/provisiond/internal/inventory"
)

var seeds = []string{
	"", "---", "{}", "[]", "- a", "a: &a [*a]", "\xff\xfe", "machine: {}\ncluster: {}\n",
	"machine:\n  type: controlplane\n  token: a.b\ncluster:\n  etcd:\n", "cluster:\nsecrets:\ntrustdinfo:\ncerts:\n  os:\n    crt: YQ==\n",
	"machine: {install: {$patch: delete}}", "{apiVersion: v1alpha1, kind: LinkConfig, name: a, $patch: delete}",
	"{apiVersion: v1alpha1, kind: LinkConfig, name: enx525400123456, addresses: [{address: '2001:db8::1/64'}]}",
	"{apiVersion: v1alpha1, kind: TrustedRootsConfig, name: a, certificates: '-----BEGIN CERTIFICATE-----'}",
	"cluster: {controlPlane: {endpoint: null}, network: {podSubnets: [null]}}", "machine: {files: [null]}", "machine: {ca: {}}",
	"machine: {registries: {mirrors: {a: null}}}", "machine: {kubelet: null}\ncluster: null\n", `[{"op": "remove", "path": "/machine"}]`,
	"{apiVersion: v1alpha1, kind: KmsgLogConfig, name: a}", "{apiVersion: v1alpha1, kind: RegistryMirrorConfig, name: a, endpoints: [{}]}",
	"{apiVersion: v1alpha1, kind: TimeSyncConfig, ntp: null}", "cluster: {inlineManifests: [null]}", "{apiVersion: v1alpha1, kind: LinkAliasConfig, name: a}",
}

func FuzzImportSecrets(f *testing.F) {
	b, err := bundleOnce()
	if err != nil {
		f.Fatal(err)
	}
	f.Add(b)
	for _, s := range seeds {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, text []byte) {
		im, err := ImportSecrets(text)
		if err != nil {
			return
		}
		if _, err := loadBundle(&inventory.Secrets{Bundle: im.Bundle}); err != nil {
			t.Errorf("an imported bundle does not load: %v", err)
		}
	})
}

func FuzzRedact(f *testing.F) {
	in := testInput(f)
	c, err := testRenderer().Render(in)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(c.Bytes())
	for _, s := range seeds {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, text []byte) {
		out, err := Redact(text)
		if err == nil && len(out) == 0 {
			t.Error("nothing was returned, and no error")
		}
	})
}

// FuzzPatch renders with any patch: the answer is a config that Talos loads, or
// a FieldError.
func FuzzPatch(f *testing.F) {
	in := testInput(f)
	for _, s := range seeds {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, text string) {
		in := in
		in.Machine = in.Machine.Clone()
		in.Machine.Patches = []string{text}
		c, err := testRenderer().Render(in)
		if err != nil {
			var fe *inventory.FieldError
			if !errors.As(err, &fe) {
				t.Errorf("an error without a field: %v", err)
			}
			return
		}
		if bytes.Contains(c.Bytes(), []byte("$patch")) {
			t.Error("a patch instruction is left in the config")
		}
	})
}
