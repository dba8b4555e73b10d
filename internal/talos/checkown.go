package talos

import (
	"fmt"
	"strings"

	"github.com/siderolabs/crypto/x509"
	"github.com/siderolabs/talos/pkg/machinery/config/config"
	"github.com/siderolabs/talos/pkg/machinery/config/types/network"
	"github.com/siderolabs/talos/pkg/machinery/config/types/runtime"
	"github.com/siderolabs/talos/pkg/machinery/config/types/v1alpha1"
	"github.com/siderolabs/talos/pkg/machinery/nethelpers"

	"github.com/provisiond/provisiond/internal/inventory"
)

// checkIdentity refuses patches of what makes a machine a member of its
// cluster. Talos takes another token, CA or endpoint that is well formed, and
// then joins nothing, or is locked away from our keys. want is the
// identity before any patch.
func checkIdentity(want []fieldValue, cfg *v1alpha1.Config) error {
	for i, got := range identity(cfg) {
		if got != want[i] { // values are secret: never shown
			fix := "remove it from the patch"
			if got.field == "cluster.controlPlane.endpoint" {
				fix = "change the cluster's endpoint instead"
			}
			return fail(got.field, fix, "comes from the cluster; do not patch it")
		}
	}
	return nil
}

type fieldValue struct{ field, value string }

// identity lists what checkIdentity compares, always in the same order.
func identity(cfg *v1alpha1.Config) []fieldValue {
	m, c := cfg.MachineConfig, cfg.ClusterConfig
	out := []fieldValue{
		{"machine.token", m.MachineToken},
		{"cluster.id", c.ClusterID},
		{"cluster.secret", c.ClusterSecret},
		{"cluster.clusterName", c.ClusterName},
		{"cluster.token", c.BootstrapToken},
		{"cluster.secretboxEncryptionSecret", c.ClusterSecretboxEncryptionSecret},
		{"cluster.aescbcEncryptionSecret", c.ClusterAESCBCEncryptionSecret},
	}
	var endpoint, account string
	if cp := c.ControlPlane; cp != nil && cp.Endpoint != nil && cp.Endpoint.URL != nil {
		endpoint = cp.Endpoint.String()
	}
	if c.ClusterServiceAccount != nil {
		account = string(c.ClusterServiceAccount.Key)
	}
	out = append(out, fieldValue{"cluster.controlPlane.endpoint", endpoint}, fieldValue{"cluster.serviceAccount.key", account})
	var etcd *x509.PEMEncodedCertificateAndKey
	if c.EtcdConfig != nil {
		etcd = c.EtcdConfig.RootCA
	}
	for _, ca := range []struct {
		field string
		pair  *x509.PEMEncodedCertificateAndKey
	}{{"machine.ca", m.MachineCA}, {"cluster.ca", c.ClusterCA}, {"cluster.aggregatorCA", c.ClusterAggregatorCA}, {"cluster.etcd.ca", etcd}} {
		pair := ca.pair
		if pair == nil {
			pair = &x509.PEMEncodedCertificateAndKey{}
		}
		out = append(out, fieldValue{ca.field + ".crt", string(pair.Crt)}, fieldValue{ca.field + ".key", string(pair.Key)})
	}
	return out
}

// checkAcceptedCAs parses the CAs that are trusted beside the cluster's own:
// machined fails on one that is no certificate.
func checkAcceptedCAs(cfg *v1alpha1.Config) error {
	for _, list := range []struct {
		field string
		cas   []*x509.PEMEncodedCertificate
	}{{"machine.acceptedCAs", cfg.MachineConfig.MachineAcceptedCAs}, {"cluster.acceptedCAs", cfg.ClusterConfig.ClusterAcceptedCAs}} {
		for i, ca := range list.cas {
			at := fmt.Sprintf("%s[%d].crt", list.field, i)
			if ca == nil || len(ca.Crt) == 0 {
				return fail(at, "the base64 of a PEM certificate", "the certificate is missing")
			}
			if err := checkPEM(at, "the base64 of a PEM certificate", ca.Crt); err != nil {
				return err
			}
		}
	}
	return nil
}

// checkLegacy refuses v1alpha1 fields beside the documents that took their
// place. Machinery does, too, without a word of what to write instead.
func checkLegacy(cfg *v1alpha1.Config, docs []config.Document) error {
	if has[*network.HostnameConfigV1Alpha1](docs) {
		const problem, fix = "HostnameConfig is made from the machine's name and takes its place", "leave it out; rename the machine for another name"
		if cfg.Hostname() != "" {
			return fail("machine.network.hostname", fix, problem)
		}
		if cfg.AutoHostname() != nethelpers.AutoHostnameKindAddr {
			return fail("machine.features.stableHostname", fix, problem)
		}
	}
	if has[*network.ResolverConfigV1Alpha1](docs) {
		const problem, fix = "a ResolverConfig takes its place", "write a ResolverConfig document, or set the cluster's dns"
		switch {
		case cfg.Resolvers() != nil:
			return fail("machine.network.nameservers", fix, problem)
		case cfg.SearchDomains() != nil:
			return fail("machine.network.searchDomains", "write a ResolverConfig document, or set the subnet's domains", problem)
		case cfg.DisableSearchDomain():
			return fail("machine.network.disableSearchDomain", "write a ResolverConfig document", problem)
		}
	}
	if t := cfg.NetworkTimeSyncConfig(); t != nil && has[*network.TimeSyncConfigV1Alpha1](docs) {
		const problem, fix = "a TimeSyncConfig takes its place", "write a TimeSyncConfig document, or set the cluster's ntp"
		switch {
		case len(t.Servers()) > 0:
			return fail("machine.time.servers", fix, problem)
		case t.Disabled():
			return fail("machine.time.disabled", "write a TimeSyncConfig document with enabled: false", problem)
		case t.BootTimeout() != 0:
			return fail("machine.time.bootTimeout", "write a TimeSyncConfig document with bootTimeout", problem)
		}
	}
	return nil
}

// checkOwn refuses patches that take from a machine what it is known by here:
// its name, its address, and its reports.
func (r *Renderer) checkOwn(in Input, docs []config.Document) error {
	m := in.Machine
	var named, reports, reachable bool
	for _, doc := range docs {
		switch d := doc.(type) {
		case *network.HostnameConfigV1Alpha1:
			named = true
			// A domain may follow: Talos cuts it off for the node's name.
			if host, _, _ := strings.Cut(d.ConfigHostname, "."); host != m.Name {
				return fail(path(d)+".hostname", "rename the machine instead", "%q is not the name of the machine, %s", d.ConfigHostname, m.Name)
			}
		case *runtime.EventSinkV1Alpha1:
			reports = true
		case config.NetworkCommonLinkConfig: // a bond may have taken over the address
			up, said := d.Up().Get()
			for _, a := range d.Addresses() {
				reachable = reachable || a.Address().Addr() == m.Address && (up || !said)
			}
		}
	}
	if !named {
		return fail(network.HostnameKind, "do not delete it", "without it the machine makes up a name")
	}
	if !reports && r.opts.EventSink.IsValid() {
		return fail(runtime.EventSinkKind, "do not delete it", "without it the machine does not report here")
	}
	if !reachable && addressing(m, in.Cluster) == inventory.Static {
		return fail(network.LinkKind+"["+altName(m.BootMAC())+"]", "keep it, or give its address to another link",
			"no link that is up has the machine's address %s", m.Address)
	}
	return nil
}
