package talos

import (
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"encoding/pem"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	clientconfig "github.com/siderolabs/talos/pkg/machinery/client/config"
	"go.yaml.in/yaml/v4"
)

// checkLogin verifies a client certificate against a CA.
func checkLogin(t *testing.T, crt, key, ca []byte, organization string) {
	t.Helper()
	if _, err := tls.X509KeyPair(crt, key); err != nil {
		t.Fatal(err)
	}
	block, _ := pem.Decode(crt)
	leaf, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		t.Fatal(err)
	}
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(ca)
	if _, err := leaf.Verify(x509.VerifyOptions{Roots: roots, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}}); err != nil {
		t.Error(err)
	}
	if !slices.Equal(leaf.Subject.Organization, []string{organization}) {
		t.Errorf("organization %q", leaf.Subject.Organization)
	}
	if left := time.Until(leaf.NotAfter); left < 364*24*time.Hour || left > 366*24*time.Hour {
		t.Errorf("valid for another %v", left)
	}
	if time.Since(leaf.NotBefore) < 30*time.Minute {
		t.Error("a machine whose clock is behind would not take it")
	}
}

func decode(t *testing.T, s string) []byte {
	t.Helper()
	b, err := base64.StdEncoding.DecodeString(s)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func TestTalosconfig(t *testing.T) {
	in := testInput(t)
	text, err := Talosconfig(in.Cluster, in.Secrets, []netip.Addr{netip.MustParseAddr("2001:db8::11"), netip.MustParseAddr("fe80::1%eth0")})
	if err != nil {
		t.Fatal(err)
	}
	c, err := clientconfig.FromBytes(text)
	if err != nil {
		t.Fatal(err)
	}
	ctx := c.Contexts["prod"]
	if c.Context != "prod" || ctx == nil {
		t.Fatalf("no context prod:\n%s", text)
	}
	if !slices.Equal(ctx.Endpoints, []string{"2001:db8::11", "fe80::1"}) {
		t.Errorf("endpoints %q", ctx.Endpoints)
	}
	checkLogin(t, decode(t, ctx.Crt), decode(t, ctx.Key), decode(t, ctx.CA), "os:admin")
}

func TestKubeconfig(t *testing.T) {
	in := testInput(t)
	text, err := Kubeconfig(in.Cluster, in.Secrets)
	if err != nil {
		t.Fatal(err)
	}
	// Read it as kubectl does, not with our own types.
	var k struct {
		APIVersion     string `yaml:"apiVersion"`
		Kind           string `yaml:"kind"`
		CurrentContext string `yaml:"current-context"`
		Clusters       []struct {
			Name    string            `yaml:"name"`
			Cluster map[string]string `yaml:"cluster"`
		} `yaml:"clusters"`
		Contexts []struct {
			Name    string            `yaml:"name"`
			Context map[string]string `yaml:"context"`
		} `yaml:"contexts"`
		Users []struct {
			Name string            `yaml:"name"`
			User map[string]string `yaml:"user"`
		} `yaml:"users"`
	}
	if err := yaml.Unmarshal(text, &k); err != nil {
		t.Fatal(err)
	}
	if k.APIVersion != "v1" || k.Kind != "Config" || k.CurrentContext != k.Contexts[0].Name ||
		k.Contexts[0].Context["cluster"] != k.Clusters[0].Name || k.Contexts[0].Context["user"] != k.Users[0].Name {
		t.Errorf("the parts do not fit together:\n%s", text)
	}
	if k.Clusters[0].Cluster["server"] != in.Cluster.Endpoint {
		t.Errorf("server %s", k.Clusters[0].Cluster["server"])
	}
	u := k.Users[0].User
	checkLogin(t, decode(t, u["client-certificate-data"]), decode(t, u["client-key-data"]), decode(t, k.Clusters[0].Cluster["certificate-authority-data"]), "system:masters")
}

func TestRedact(t *testing.T) {
	in := testInput(t)
	const secret = "hunter2-hunter2"
	in.Cluster.Patches = []string{
		"machine: {files: [{path: /var/x, op: create, permissions: 0o600, content: " + secret + "}]}",
		"cluster: {inlineManifests: [{name: x, contents: " + secret + "}], extraManifestHeaders: {Authorization: " + secret + "}}",
		doc("EnvironmentConfig", "variables: {https_proxy: 'http://u:"+secret+"@p:1'}"),
		doc("ExtensionServiceConfig", "name: x, environment: ['A="+secret+"'], configFiles: [{content: "+secret+", mountPath: /x}]"),
		doc("RegistryAuthConfig", "name: r.example, username: u, password: "+secret),
		doc("RegistryMirrorConfig", "name: r.example, endpoints: [{url: 'https://u:"+secret+"@m.example'}]"),
		doc("WireguardConfig", "name: wg0, privateKey: KDAwMDAwMDAwMDAwMDAwMDAwMDAwMDAwMDAwMDAwMDA=, peers: []"),
	}
	c, _ := mustRender(t, testRenderer(), in)
	out, err := Redact(c.Bytes())
	if err != nil {
		t.Fatal(err)
	}
	again, _ := Redact(c.Bytes())
	if !bytes.Equal(out, again) {
		t.Error("not deterministic")
	}
	b, err := loadBundle(in.Secrets)
	if err != nil {
		t.Fatal(err)
	}
	hidden := map[string]string{
		"operator's secret": secret, "machine token": b.TrustdInfo.Token, "bootstrap token": b.Secrets.BootstrapToken,
		"cluster secret": b.Cluster.Secret, "secretbox": b.Secrets.SecretboxEncryptionSecret, "wireguard": "KDAwMDAw",
	}
	for name, key := range map[string][]byte{"etcd": b.Certs.Etcd.Key, "k8s": b.Certs.K8s.Key, "aggregator": b.Certs.K8sAggregator.Key, "os": b.Certs.OS.Key, "service account": b.Certs.K8sServiceAccount.Key} {
		hidden[name] = base64.StdEncoding.EncodeToString(key)
	}
	for name, s := range hidden {
		if !bytes.Contains(c.Bytes(), []byte(s)) {
			t.Errorf("the test looks for %s in vain", name)
		}
		if bytes.Contains(out, []byte(s)) {
			t.Errorf("%s is shown", name)
		}
	}
	for _, kept := range []string{"hostname: cp-1", "address: 2001:db8::11/64", base64.StdEncoding.EncodeToString(b.Certs.K8s.Crt), "https_proxy"} {
		if !strings.Contains(string(out), kept) {
			t.Errorf("%.40q is gone", kept)
		}
	}
	if out, err := Redact([]byte("machine: {token: x, nosuch: " + secret + "}")); err == nil || out != nil {
		t.Error("a config that does not load was returned")
	}
}
