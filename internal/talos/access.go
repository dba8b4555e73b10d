package talos

import (
	stdx509 "crypto/x509"
	"encoding/base64"
	"fmt"
	"net/netip"
	"time"

	"github.com/siderolabs/crypto/x509"
	clientconfig "github.com/siderolabs/talos/pkg/machinery/client/config"
	"github.com/siderolabs/talos/pkg/machinery/config/generate/secrets"
	"github.com/siderolabs/talos/pkg/machinery/role"
	"go.yaml.in/yaml/v4"

	"github.com/provisiond/provisiond/internal/inventory"
)

// accessFor is how long a talosconfig or kubeconfig is valid.
const accessFor = 365 * 24 * time.Hour

// Talosconfig returns a login for the cluster's Talos API with the role
// os:admin, valid for a year. Endpoints are the control planes' addresses;
// they are written bare, for talosctl does not take brackets without a port.
// Each call signs a new certificate.
func Talosconfig(c *inventory.Cluster, s *inventory.Secrets, endpoints []netip.Addr) ([]byte, error) {
	b, err := loadBundle(s)
	if err != nil {
		return nil, err
	}
	crt, err := adminCertificate(b, accessFor)
	if err != nil {
		return nil, fmt.Errorf("signing a certificate for cluster %s: %w", c.Name, err)
	}
	var bare []string
	for _, a := range endpoints {
		bare = append(bare, a.WithZone("").String())
	}
	return clientconfig.NewConfig(c.Name, bare, b.Certs.OS.Crt, crt).Bytes()
}

// adminCertificate signs a client certificate of the Talos API. It is valid for
// life from now on, and from a while ago.
func adminCertificate(b *secrets.Bundle, life time.Duration) (*x509.PEMEncodedCertificateAndKey, error) {
	return b.GenerateTalosAPIClientCertificateWithTTL(role.MakeSet(role.Admin), life+backdate)
}

// The parts of a kubeconfig (client-go's tools/clientcmd/api/v1) that a login
// with a certificate needs.
type (
	kubeconfig struct {
		APIVersion     string        `yaml:"apiVersion"`
		Kind           string        `yaml:"kind"`
		Clusters       []kubeCluster `yaml:"clusters"`
		Users          []kubeUser    `yaml:"users"`
		Contexts       []kubeContext `yaml:"contexts"`
		CurrentContext string        `yaml:"current-context"`
	}
	kubeCluster struct {
		Name    string `yaml:"name"`
		Cluster struct {
			Server string `yaml:"server"`
			CA     string `yaml:"certificate-authority-data"`
		} `yaml:"cluster"`
	}
	kubeUser struct {
		Name string `yaml:"name"`
		User struct {
			Certificate string `yaml:"client-certificate-data"`
			Key         string `yaml:"client-key-data"`
		} `yaml:"user"`
	}
	kubeContext struct {
		Name    string `yaml:"name"`
		Context struct {
			Cluster   string `yaml:"cluster"`
			Namespace string `yaml:"namespace"`
			User      string `yaml:"user"`
		} `yaml:"context"`
	}
)

// Kubeconfig returns a login for the cluster's Kubernetes API in the group
// system:masters, valid for a year. Each call signs a new certificate.
func Kubeconfig(c *inventory.Cluster, s *inventory.Secrets) ([]byte, error) {
	b, err := loadBundle(s)
	if err != nil {
		return nil, err
	}
	ca, err := x509.NewCertificateAuthorityFromCertificateAndKey(b.Certs.K8s)
	if err != nil {
		return nil, fmt.Errorf("reading the Kubernetes CA of cluster %s: %w", c.Name, err)
	}
	pair, err := x509.NewKeyPair(ca,
		x509.CommonName("admin"),
		x509.Organization("system:masters"),
		x509.NotBefore(b.Clock.Now()),
		x509.NotAfter(b.Clock.Now().Add(accessFor+backdate)),
		x509.KeyUsage(stdx509.KeyUsageDigitalSignature|stdx509.KeyUsageKeyEncipherment),
		x509.ExtKeyUsage([]stdx509.ExtKeyUsage{stdx509.ExtKeyUsageClientAuth}))
	if err != nil {
		return nil, fmt.Errorf("signing a certificate for cluster %s: %w", c.Name, err)
	}
	crt := x509.NewCertificateAndKeyFromKeyPair(pair)

	user := "admin@" + c.Name
	k := kubeconfig{APIVersion: "v1", Kind: "Config", CurrentContext: user,
		Clusters: make([]kubeCluster, 1), Users: make([]kubeUser, 1), Contexts: make([]kubeContext, 1)}
	k.Clusters[0].Name = c.Name
	k.Clusters[0].Cluster.Server = c.Endpoint
	k.Clusters[0].Cluster.CA = base64.StdEncoding.EncodeToString(b.Certs.K8s.Crt)
	k.Users[0].Name = user
	k.Users[0].User.Certificate = base64.StdEncoding.EncodeToString(crt.Crt)
	k.Users[0].User.Key = base64.StdEncoding.EncodeToString(crt.Key)
	k.Contexts[0].Name = user
	k.Contexts[0].Context.Cluster, k.Contexts[0].Context.User, k.Contexts[0].Context.Namespace = c.Name, user, "default"
	return yaml.Marshal(k)
}
