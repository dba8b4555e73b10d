package talos

import (
	"bytes"
	"fmt"
	"strings"
	"testing"

	"github.com/provisiond/provisiond/internal/inventory"
)

func TestNewSecretsRefusesOtherVersions(t *testing.T) {
	_, err := NewSecrets("v1.9.0")
	wantField(t, err, "talosVersion")
}

func TestImportBundle(t *testing.T) {
	s := testSecrets(t)
	im, err := ImportSecrets(s.Bundle)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(im.Bundle, s.Bundle) {
		t.Error("the bundle changed on its way")
	}
}

// A cluster that is imported from a control plane's config must get the very
// config that it has.
func TestImportControlPlane(t *testing.T) {
	in := testInput(t)
	c, _ := mustRender(t, testRenderer(), in)
	im, err := ImportSecrets(c.Bytes())
	if err != nil {
		t.Fatal(err)
	}
	got := strings.TrimSpace(fmt.Sprintln(im.Name, im.Endpoint, im.TalosVersion, im.KubernetesVersion, im.PodSubnets, im.ServiceSubnets))
	if want := "prod https://[2001:db8::10]:6443 v1.13.6 1.36.2 [fc00:db8:10::/56] [fc00:db8:20::/112]"; got != want {
		t.Errorf("got  %s\nwant %s", got, want)
	}
	in.Secrets = &inventory.Secrets{Cluster: "prod", Bundle: im.Bundle}
	again, _ := mustRender(t, testRenderer(), in)
	if again.Hash != c.Hash {
		t.Error("the imported secrets give another config")
	}
}

func TestImportRefuses(t *testing.T) {
	in := testInput(t)
	s := in.Secrets
	worker, _ := mustRender(t, testRenderer(), in.worker("w-1", "2001:db8::21"))
	cp, _ := mustRender(t, testRenderer(), in)
	shown, err := Redact(cp.Bytes())
	if err != nil {
		t.Fatal(err)
	}
	talosconfig, err := Talosconfig(in.Cluster, s, nil)
	if err != nil {
		t.Fatal(err)
	}
	kubeconfig, err := Kubeconfig(in.Cluster, s)
	if err != nil {
		t.Fatal(err)
	}
	for _, tc := range []struct {
		name, text, want string
	}{
		{"nothing", "", "not a YAML document"},
		{"text", "hello", "not a YAML document"},
		{"a list", "- a", "not a YAML document"},
		{"another mapping", "a: b", "neither"},
		{"binary", "\x00\x01", "not a YAML document"},
		{"too much", strings.Repeat("#", maxDocument+1), "too many"},
		{"a worker", string(worker.Bytes()), "which holds no CA keys"},
		{"a redacted control plane", string(shown), "invalid"},
		{"a talosconfig", string(talosconfig), "talosconfig"},
		{"a kubeconfig", string(kubeconfig), "kubeconfig"},
		{"machine config with unknown keys", "version: v1alpha1\nmachine: {type: controlplane, nosuch: 1}\ncluster: {}\n", "nosuch"},
		{"machine config without sections", "version: v1alpha1\nmachine:\ncluster:\n", "no machine"},
		{"control plane without keys", "version: v1alpha1\nmachine: {type: controlplane}\ncluster: {}\n", "required"},
		{"empty bundle", "cluster: {}\nsecrets: {}\ntrustdinfo: {}\ncerts: {}\n", "required"},
		{"bundle of nothing", "cluster:\nsecrets:\ntrustdinfo:\ncerts:\n", "required"},
		{"bundle without OS CA", strings.Replace(string(s.Bundle), "\n    os:", "\n    other:", 1), "certs.os"},
		{"bundle with a broken token", strings.Replace(string(s.Bundle), "bootstraptoken: ", "bootstraptoken: x", 1), "bootstraptoken"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			im, err := ImportSecrets([]byte(tc.text))
			if im.Bundle != nil {
				t.Error("a bundle was returned")
			}
			wantField(t, err, "secrets")
			if !strings.Contains(err.Error(), tc.want) {
				t.Errorf("got %v, want ...%s...", err, tc.want)
			}
		})
	}
}

func TestBrokenStoredSecrets(t *testing.T) {
	in := testInput(t)
	in.Secrets = &inventory.Secrets{Cluster: "prod", Bundle: []byte("cluster: {}")}
	_, err := testRenderer().Render(in)
	if err == nil || !strings.Contains(err.Error(), "secrets of cluster prod") {
		t.Errorf("got %v", err)
	}
}
