package talos

import (
	"encoding/base64"
	"errors"
	"net/netip"
	"strings"
	"testing"

	"github.com/siderolabs/crypto/x509"

	"github.com/provisiond/provisiond/internal/inventory"
)

const nic = "enx525400123456"

// doc writes a document of one line.
func doc(kind, rest string) string { return "{apiVersion: v1alpha1, kind: " + kind + ", " + rest + "}" }

// TestMistakesInPatches has one row for each mistake that real Talos was seen
// to refuse after machinery's Validate had passed, to take although it is
// wrong, or to refuse with machinery. The field names the patch and the place.
func TestMistakesInPatches(t *testing.T) {
	const link = "LinkConfig[" + nic + "]"
	for _, tc := range []struct {
		name, patch string
		field       string // after "cluster.patches[1] → "; empty: the patch alone
		text        string // part of the message
	}{
		// Refused by Talos only.
		{"kubelet too old", "machine: {kubelet: {image: 'ghcr.io/siderolabs/kubelet:v1.30.5'}}", "machine.kubelet.image", "too old"},
		{"kubelet too new", "machine: {kubelet: {image: 'ghcr.io/siderolabs/kubelet:v1.37.0'}}", "machine.kubelet.image", "too new"},
		{"apiserver too new", "cluster: {apiServer: {image: 'registry.k8s.io/kube-apiserver:v1.37.0'}}", "cluster.apiServer.image", "too new"},
		{"controller manager too old", "cluster: {controllerManager: {image: 'registry.k8s.io/kube-controller-manager:v1.30.0'}}", "cluster.controllerManager.image", "too old"},
		{"scheduler too new", "cluster: {scheduler: {image: 'registry.k8s.io/kube-scheduler:v1.40.0'}}", "cluster.scheduler.image", "too new"},
		{"kubelet without tag", "machine: {kubelet: {image: ghcr.io/siderolabs/kubelet}}", "machine.kubelet.image", "names no Kubernetes version"},
		{"kubelet latest", "machine: {kubelet: {image: 'ghcr.io/siderolabs/kubelet:latest'}}", "machine.kubelet.image", "names no Kubernetes version"},
		{"kubelet tag without v", "machine: {kubelet: {image: 'ghcr.io/siderolabs/kubelet:1.36.2'}}", "machine.kubelet.image", "names no Kubernetes version"},
		{"kubelet digest only", "machine: {kubelet: {image: 'k/kubelet@sha256:" + strings.Repeat("a", 64) + "'}}", "machine.kubelet.image", "names no Kubernetes version"},
		{"port without tag", "cluster: {apiServer: {image: 'registry:5000/kube-apiserver'}}", "cluster.apiServer.image", "names no Kubernetes version"},
		{"selector beside disk", "machine: {install: {diskSelector: {size: '> 1GB'}}}", "machine.install.diskSelector", "both set"},
		{"selector on the name", "machine: {install: {disk: {$patch: delete}}}\n---\nmachine: {install: {diskSelector: {name: sda}}}", "machine.install.diskSelector", "not supported"},

		// Refused after encoding.
		{"document without kind", "{apiVersion: v1alpha1, name: eth0}", "", "unknown keys"},
		{"unknown kind", doc("LinkCfg", "name: eth0"), "", "not registered"},
		{"v1beta1", "{apiVersion: v1beta1, kind: LinkConfig, name: eth0}", "", "not registered"},
		{"mirror with unbracketed address", doc("RegistryMirrorConfig", "name: docker.io, endpoints: [{url: 'http://fd00:7a10:b::1:5000'}]"), "", "invalid port"},
		{"empty patch", "", "", "the patch is empty"},
		{"blank patch", " \n\n", "", "the patch is empty"},
		{"remark only", "# a: b", "", "the patch is empty"},
		{"remarks and separators", "# a\n---\n# b\n---\n", "", "the patch is empty"},
		{"empty documents", "---\n---\n", "", "the patch is empty"},
		{"empty mapping", "{}", "", "the patch is empty"},
		{"null", "~", "", "the patch is empty"},
		{"JSON patch of nothing", "[]", "", "the patch is empty"},

		// Refused by machinery and Talos.
		{"default route as ::/0", doc("LinkConfig", "name: "+nic+", routes: [{destination: '::/0', gateway: 'fe80::1'}]"), "", "route 1 destination"},
		{"address without length", doc("LinkConfig", "name: eth1, addresses: [{address: '2001:db8::1'}]"), "", "netip.ParsePrefix"},
		{"mtu quoted", doc("LinkConfig", "name: eth1, mtu: '9000'"), "", "9000"},
		{"nameserver as string", doc("ResolverConfig", "nameservers: ['2001:db8::53']"), "", "NameserverConfig"},
		{"nameserver in brackets", doc("ResolverConfig", "nameservers: [{address: '[2001:db8::53]'}]"), "", "ParseAddr"},
		{"time servers as scalar", doc("TimeSyncConfig", "ntp: {servers: time.example.org}"), "", "cannot"},
		{"sink as URL", doc("EventSinkConfig", "endpoint: 'http://[2001:db8::5]:9090'"), "", "too many colons"},
		{"sink without port", doc("EventSinkConfig", "endpoint: '[2001:db8::5]'"), "", "missing port"},
		{"sink unbracketed", doc("EventSinkConfig", "endpoint: '2001:db8::5:9090'"), "", "too many colons"},
		{"kernel log without port", doc("KmsgLogConfig", "name: x, url: 'tcp://[2001:db8::5]'"), "", "port is required"},
		{"kernel log without name", doc("KmsgLogConfig", "url: 'tcp://[2001:db8::5]:514'"), "", "name is required"},
		{"kernel log over TLS", doc("KmsgLogConfig", "name: x, url: 'tls://[2001:db8::5]:514'"), "", "scheme"},
		{"mirror endpoints as strings", doc("RegistryMirrorConfig", "name: docker.io, endpoints: ['https://m.example']"), "", "cannot"},
		{"mirror endpoint without scheme", doc("RegistryMirrorConfig", "name: docker.io, endpoints: [{url: m.example}]"), "", "unsupported scheme"},
		{"same document twice", doc("LinkConfig", "name: eth1") + "\n---\n" + doc("LinkConfig", "name: eth1"), "", "duplicate document"},
		{"unknown key", "machine: {nosuchfield: x}", "", "nosuchfield"},
		{"unquoted template", "machine: {sysctls: {a: {{ .Value }}}}", "", ""},
		{"not YAML", "machine: [", "", ""},
		{"hostname in v1alpha1, too", "machine: {network: {hostname: x}}", "machine.network.hostname", "made from the machine's name"},
		{"stable host name", "machine: {features: {stableHostname: true}}", "machine.features.stableHostname", "made from the machine's name"},
		{"nameservers in v1alpha1, too", "machine: {network: {nameservers: ['2001:db8::53']}}", "machine.network.nameservers", "ResolverConfig"},
		{"search domains in v1alpha1, too", "machine: {network: {searchDomains: [example.org]}}", "machine.network.searchDomains", "ResolverConfig"},
		{"no search domain in v1alpha1, too", "machine: {network: {disableSearchDomain: true}}", "machine.network.disableSearchDomain", "ResolverConfig"},
		{"time servers in v1alpha1, too", "machine: {time: {servers: [time.example.org]}}", "machine.time.servers", "TimeSyncConfig"},
		{"time off in v1alpha1, too", "machine: {time: {disabled: true}}", "machine.time.disabled", "TimeSyncConfig"},
		{"boot timeout in v1alpha1, too", "machine: {time: {bootTimeout: 2m}}", "machine.time.bootTimeout", "TimeSyncConfig"},
		{"extra kernel args", "machine: {install: {extraKernelArgs: [a=b]}}", "", "grubUseUKICmdline"},
		{"endpoint unbracketed", "cluster: {controlPlane: {endpoint: 'https://2001:db8::1:6443'}}", "", ""},
		{"host name of 64", doc("HostnameConfig", "hostname: "+strings.Repeat("a", 64)), "", "invalid hostname"},
		{"delete of what is not there", doc("LinkConfig", "name: eth9, $patch: delete"), "", "not there"},
		{"JSON patch", `[{"op": "add", "path": "/machine/sysctls", "value": {"a": "b"}}]`, "", "strategic merge"},
		{"file name", "@/etc/passwd", "", ""},
		{"file name without @", "/etc/passwd", "", ""},

		// Accepted by both although wrong.
		{"template in host name", doc("HostnameConfig", "hostname: '{{ .Name }}'"), "HostnameConfig.hostname", "not a host name"},
		{"no value", doc("HostnameConfig", "hostname: '<no value>'"), "HostnameConfig.hostname", "not a host name"},
		{"shell variable", doc("HostnameConfig", "hostname: 'x${uuid}'"), "HostnameConfig.hostname", "not a host name"},
		{"template in a value", "machine: {nodeLabels: {rack: '{{ .Rack }}'}}", "machine.nodeLabels.rack", "template"},
		{"template in sysctl", "machine: {sysctls: {net.core.x: '{{ .Rack }}'}}", "machine.sysctls.net.core.x", "template"},
		{"template in a document", doc("UserVolumeConfig", "name: x, provisioning: {diskSelector: {match: 'disk.serial == \"{{ .Serial }}\"'}, minSize: 1GB}"), "UserVolumeConfig[x].provisioning.diskSelector.match", "template"},
		{"host name with space", doc("HostnameConfig", "hostname: 'cp 1'"), "HostnameConfig.hostname", "not a host name"},
		{"host name with underscore", doc("HostnameConfig", "hostname: cp_1"), "HostnameConfig.hostname", "not a host name"},
		{"host name with newline", doc("HostnameConfig", `hostname: "cp\n1"`), "HostnameConfig.hostname", "not a host name"},
		{"host name with NUL", doc("HostnameConfig", `hostname: "cp\0"`), "HostnameConfig.hostname", "not a host name"},
		{"host name with dot at the end", doc("HostnameConfig", "hostname: cp.example."), "HostnameConfig.hostname", "not a host name"},
		{"host name is an address", doc("HostnameConfig", "hostname: 1.2.3.4"), "HostnameConfig.hostname", "not a host name"},
		{"no host name", doc("HostnameConfig", "hostname: {$patch: delete}"), "HostnameConfig.hostname", "empty"},
		{"empty nameserver", doc("ResolverConfig", "nameservers: [{address: ''}]"), "ResolverConfig.nameservers[0]", "not the address"},
		{"unspecified nameserver", doc("ResolverConfig", "nameservers: [{address: '::'}]"), "ResolverConfig.nameservers[0]", "not the address"},
		{"search domain junk", doc("ResolverConfig", "searchDomains: {domains: ['a b']}"), "ResolverConfig.searchDomains.domains[0]", "not a domain"},
		{"empty route", doc("LinkConfig", "name: "+nic+", routes: [{metric: 5}]"), link + ".routes[1]", "neither"},
		{"network address", doc("LinkConfig", "name: eth1, addresses: [{address: '2001:db8:1::/64'}]"), "LinkConfig[eth1].addresses[0]", "network itself"},
		{"address twice", doc("LinkConfig", "name: eth1, addresses: [{address: '2001:db8::11/64'}]"), "LinkConfig[eth1].addresses[0]", nic},
		{"address twice on one link", doc("LinkConfig", "name: "+nic+", addresses: [{address: '2001:db8::11/64'}]"), link + ".addresses[1]", "too"},
		{"multicast address", doc("LinkConfig", "name: eth1, addresses: [{address: 'ff02::1/64'}]"), "LinkConfig[eth1].addresses[0]", "cannot be"},
		{"link name of 31", doc("LinkConfig", "name: "+strings.Repeat("x", 31)), "LinkConfig[" + strings.Repeat("x", 31) + "].name", "longer"},
		{"bond name of 16", doc("BondConfig", "name: enbondbondbondbo, links: [eth5], bondMode: active-backup"), "BondConfig[enbondbondbondbo].name", "longer"},
		{"link name with slash", doc("LinkConfig", "name: a/b"), "LinkConfig[a/b].name", "not the name"},
		{"DHCPv4 beside static", doc("DHCPv4Config", "name: "+nic), "DHCPv4Config[" + nic + "]", "DHCPv4"},
		{"time server in brackets", doc("TimeSyncConfig", "ntp: {servers: ['[2001:db8::123]']}"), "TimeSyncConfig.ntp.servers[0]", "not a time server"},
		{"time server empty", doc("TimeSyncConfig", "ntp: {servers: ['']}"), "TimeSyncConfig.ntp.servers[0]", "not a time server"},
		{"time server junk", doc("TimeSyncConfig", "ntp: {servers: [time.example.org, 'a b']}"), "TimeSyncConfig.ntp.servers[1]", "not a time server"},
		{"sink port junk", doc("EventSinkConfig", "endpoint: '[2001:db8::5]:http99'"), "EventSinkConfig.endpoint", "not a host and a port"},
		{"sink without host", doc("EventSinkConfig", "endpoint: ':9090'"), "EventSinkConfig.endpoint", "not a host and a port"},
		{"sink port 0", doc("EventSinkConfig", "endpoint: '[2001:db8::5]:0'"), "EventSinkConfig.endpoint", "not a host and a port"},
		{"kernel log unbracketed", doc("KmsgLogConfig", "name: x, url: 'tcp://2001:db8::5:514'"), "KmsgLogConfig[x].url", "not the URL"},
		{"mirror name with scheme", doc("RegistryMirrorConfig", "name: 'https://docker.io', endpoints: [{url: 'https://m.example'}]"), "RegistryMirrorConfig[https://docker.io].name", "not a registry"},
		{"mirror without host", doc("RegistryMirrorConfig", "name: docker.io, endpoints: [{url: 'https://'}]"), "RegistryMirrorConfig[docker.io].endpoints[0]", "not the URL"},
		{"mirror without endpoints", doc("RegistryMirrorConfig", "name: docker.io"), "RegistryMirrorConfig[docker.io].endpoints", "no endpoint"},
		{"old mirror with scheme", "machine: {registries: {mirrors: {'https://docker.io': {endpoints: ['https://m.example']}}}}", "machine.registries.mirrors[https://docker.io].name", "not a registry"},
		{"roots junk", doc("TrustedRootsConfig", "name: x, certificates: junk"), "TrustedRootsConfig[x].certificates", "PEM"},
		{"roots empty", doc("TrustedRootsConfig", "name: x, certificates: ''"), "TrustedRootsConfig[x].certificates", "PEM"},
		{"roots without name", doc("TrustedRootsConfig", "certificates: junk"), "TrustedRootsConfig[].name", "no name"},
		{"alias with no MAC", doc("LinkAliasConfig", `name: net0, selector: {match: 'mac(link.permanent_addr) == "52:54:00:12:34:5g"'}`), "LinkAliasConfig[net0].selector.match", "MAC"},
		{"alias with upper case", doc("LinkAliasConfig", `name: net0, selector: {match: 'mac(link.permanent_addr) == "52:54:00:AB:34:56"'}`), "LinkAliasConfig[net0].selector.match", "MAC"},
		{"alias named eth0", doc("LinkAliasConfig", `name: eth0, selector: {match: 'mac(link.permanent_addr) == "52:54:00:12:34:56"'}`), "LinkAliasConfig[eth0].name", "kernel"},
		{"disk without /dev", "machine: {install: {disk: sda}}", "machine.install.disk", "not a device path"},
		{"image empty", "machine: {install: {image: {$patch: delete}}}", "machine.install.image", "not an image"},
		{"image junk", "machine: {install: {image: 'junk junk'}}", "machine.install.image", "not an image"},
		{"image without tag", "machine: {install: {image: 'ghcr.io/siderolabs/installer'}}", "machine.install.image", "not an image"},
		{"image as URL", "machine: {install: {image: 'https://ghcr.io/siderolabs/installer:v1'}}", "machine.install.image", "not an image"},
		{"no disk", "machine: {install: {disk: {$patch: delete}}}", "machine.install.disk", "nothing says where"},
		{"no install", "machine: {install: {$patch: delete}}", "machine.install", "missing"},
		{"no machine token", "machine: {token: {$patch: delete}}", "machine.token", "not a token"},
		{"no cluster secret", "cluster: {secret: {$patch: delete}}", "cluster.secret", "empty"},
		{"no cluster id", "cluster: {id: {$patch: delete}}", "cluster.id", "empty"},
		{"no cluster token", "cluster: {token: {$patch: delete}}", "cluster.token", "not a token"},
		{"token of another shape", "cluster: {token: abc}", "cluster.token", "not a token"},
		{"no cluster name", "cluster: {clusterName: {$patch: delete}}", "cluster.clusterName", "empty"},
		{"no machine CA", "machine: {ca: {$patch: delete}}", "machine.ca", "missing"},
		{"machine CA by halves", "machine: {ca: {key: anVuaw==}}", "machine.ca", "missing"},
		{"no cluster CA", "cluster: {ca: {$patch: delete}}", "cluster.ca", "missing"},
		{"cluster CA junk", "cluster: {ca: {crt: anVuaw==}}", "cluster.ca.crt", "not a certificate"},
		{"no etcd", "cluster: {etcd: {$patch: delete}}", "cluster.etcd", "missing"},
		{"no etcd CA", "cluster: {etcd: {ca: {$patch: delete}}}", "cluster.etcd.ca", "missing"},
		{"no aggregator CA", "cluster: {aggregatorCA: {$patch: delete}}", "cluster.aggregatorCA", "missing"},
		{"no service account", "cluster: {serviceAccount: {$patch: delete}}", "cluster.serviceAccount", "missing"},
		{"no secretbox key", "cluster: {secretboxEncryptionSecret: {$patch: delete}}", "cluster.secretboxEncryptionSecret", "32 bytes"},
		{"short secretbox key", "cluster: {secretboxEncryptionSecret: c2hvcnQ=}", "cluster.secretboxEncryptionSecret", "32 bytes"},
		{"no cluster", "cluster: {$patch: delete}", "cluster", "missing"},
		{"other type", "machine: {type: init}", "machine.type", "not the role"},
		{"worker type", "machine: {type: worker}", "machine.type", "not the role"},
		{"endpoint http", "cluster: {controlPlane: {endpoint: 'http://[2001:db8::10]:6443'}}", "cluster.controlPlane.endpoint", "https"},
		{"endpoint without port", "cluster: {controlPlane: {endpoint: 'https://[2001:db8::10]'}}", "cluster.controlPlane.endpoint", "host and port"},
		{"endpoint with path", "cluster: {controlPlane: {endpoint: 'https://[2001:db8::10]:6443/x'}}", "cluster.controlPlane.endpoint", "more than"},
		{"endpoint IPv4", "cluster: {controlPlane: {endpoint: 'https://192.0.2.1:6443'}}", "cluster.controlPlane.endpoint", "IPv6 network"},
		{"no endpoint", "cluster: {controlPlane: {$patch: delete}}", "cluster.controlPlane.endpoint", "missing"},
		{"pod network junk", "cluster: {network: {podSubnets: [junk]}}", "cluster.network.podSubnets[0]", "not an IPv6 network"},
		{"pod network IPv4", "cluster: {network: {podSubnets: [10.244.0.0/16]}}", "cluster.network.podSubnets[0]", "not an IPv6 network"},
		{"no pod network", "cluster: {network: {podSubnets: {$patch: delete}}}", "cluster.network.podSubnets", "no network"},
		{"service network IPv4", "cluster: {network: {serviceSubnets: [10.96.0.0/12]}}", "cluster.network.serviceSubnets[0]", "not an IPv6 network"},
		{"service network too large", "cluster: {network: {serviceSubnets: ['fc00:db8:20::/64']}}", "cluster.network.serviceSubnets[0]", "too large"},
		{"networks overlap", "cluster: {network: {serviceSubnets: ['fc00:db8:10::/112']}}", "cluster.network.serviceSubnets[0]", "overlaps"},
		{"no cluster network", "cluster: {network: {$patch: delete}}", "cluster.network", "missing"},
		{"SAN in brackets", "machine: {certSANs: ['[2001:db8::1]']}", "machine.certSANs[0]", "neither"},
		{"SAN empty", "cluster: {apiServer: {certSANs: [api.example.org, '']}}", "cluster.apiServer.certSANs[1]", "neither"},
		{"node network IPv4 only", "machine: {kubelet: {nodeIP: {validSubnets: [10.0.0.0/8]}}}", "machine.kubelet.nodeIP.validSubnets", "no IPv6 network"},
		{"node network excluded only", "machine: {kubelet: {nodeIP: {validSubnets: ['!2001:db8::/64']}}}", "machine.kubelet.nodeIP.validSubnets", "no IPv6 network"},
		{"etcd network IPv4 only", "cluster: {etcd: {advertisedSubnets: [10.0.0.0/8]}}", "cluster.etcd.advertisedSubnets", "no IPv6 network"},
		{"etcd listens on IPv4 only", "cluster: {etcd: {listenSubnets: [10.0.0.0/8]}}", "cluster.etcd.listenSubnets", "no IPv6 network"},

		// Well formed, and not this machine's or this cluster's.
		{"another machine token", "machine: {token: abcdef.0123456789abcdef}", "machine.token", "comes from the cluster"},
		{"another cluster id", "cluster: {id: " + strings.Repeat("A", 43) + "=}", "cluster.id", "comes from the cluster"},
		{"another cluster secret", "cluster: {secret: " + strings.Repeat("A", 43) + "=}", "cluster.secret", "comes from the cluster"},
		{"another cluster name", "cluster: {clusterName: other}", "cluster.clusterName", "comes from the cluster"},
		{"another bootstrap token", "cluster: {token: abcdef.0123456789abcdef}", "cluster.token", "comes from the cluster"},
		{"another secretbox key", "cluster: {secretboxEncryptionSecret: " + strings.Repeat("A", 43) + "=}", "cluster.secretboxEncryptionSecret", "comes from the cluster"},
		{"an AES-CBC key beside", "cluster: {aescbcEncryptionSecret: " + strings.Repeat("A", 43) + "=}", "cluster.aescbcEncryptionSecret", "comes from the cluster"},
		{"another endpoint", "cluster: {controlPlane: {endpoint: 'https://api.example.org:443'}}", "cluster.controlPlane.endpoint", "comes from the cluster"},
		{"host name of another", doc("HostnameConfig", "hostname: cp-2"), "HostnameConfig.hostname", "not the name of the machine"},
		{"host name in upper case", doc("HostnameConfig", "hostname: CP-1"), "HostnameConfig.hostname", "not the name of the machine"},
		{"host name of another with a domain", doc("HostnameConfig", "hostname: cp-2.example.org"), "HostnameConfig.hostname", "not the name of the machine"},
		{"host name deleted", doc("HostnameConfig", "$patch: delete"), "HostnameConfig", "makes up a name"},
		{"sink deleted", doc("EventSinkConfig", "$patch: delete"), "EventSinkConfig", "does not report"},
		{"link deleted", doc("LinkConfig", "name: "+nic+", $patch: delete"), link, "no link that is up"},
		{"addresses deleted", doc("LinkConfig", "name: "+nic+", addresses: {$patch: delete}"), link, "no link that is up"},
		{"link down", doc("LinkConfig", "name: "+nic+", up: false"), link, "no link that is up"},
		{"accepted CA junk", "machine: {acceptedCAs: [{crt: anVuaw==}]}", "machine.acceptedCAs[0].crt", "PEM"},
		{"accepted CA empty", "machine: {acceptedCAs: [{crt: ''}]}", "machine.acceptedCAs[0].crt", "missing"},
		{"accepted Kubernetes CA junk", "cluster: {acceptedCAs: [{crt: anVuaw==}]}", "cluster.acceptedCAs[0].crt", "PEM"},
		{"node network junk", "machine: {kubelet: {nodeIP: {validSubnets: [junk]}}}", "", ""},
	} {
		t.Run(tc.name, func(t *testing.T) {
			in := testInput(t)
			const fine = "machine: {sysctls: {fine: '1'}}"
			in.Cluster.Patches = []string{fine, tc.patch, fine}
			_, err := testRenderer().Render(in)
			var fe *inventory.FieldError
			if !errors.As(err, &fe) {
				t.Fatalf("got %v, want a FieldError", err)
			}
			want := "cluster.patches[1]"
			if tc.field != "" {
				want += " → " + tc.field
			}
			if tc.name == "node network junk" { // machinery and we agree; either may say it
				want = fe.Field
			}
			if fe.Field != want || !strings.Contains(fe.Problem, tc.text) {
				t.Errorf("got  %q: %s\nwant %q: ...%s...", fe.Field, fe.Problem, want, tc.text)
			}
		})
	}
}

// The CAs of another cluster are as good as its own, for Talos; so are its own
// beside another key, or a key where a worker has none.
func TestForeignCAs(t *testing.T) {
	text, err := NewSecrets("v1.13.6")
	if err != nil {
		t.Fatal(err)
	}
	foreign, err := loadBundle(&inventory.Secrets{Bundle: text})
	if err != nil {
		t.Fatal(err)
	}
	own, err := loadBundle(testSecrets(t))
	if err != nil {
		t.Fatal(err)
	}
	b64 := base64.StdEncoding.EncodeToString
	pair := func(ca *x509.PEMEncodedCertificateAndKey) string {
		return "{crt: " + b64(ca.Crt) + ", key: " + b64(ca.Key) + "}"
	}
	for field, patch := range map[string]string{
		"machine.ca.crt":             "machine: {ca: " + pair(foreign.Certs.OS) + "}",
		"cluster.ca.crt":             "cluster: {ca: " + pair(foreign.Certs.K8s) + "}",
		"cluster.aggregatorCA.crt":   "cluster: {aggregatorCA: " + pair(foreign.Certs.K8sAggregator) + "}",
		"cluster.etcd.ca.crt":        "cluster: {etcd: {ca: " + pair(foreign.Certs.Etcd) + "}}",
		"cluster.serviceAccount.key": "cluster: {serviceAccount: {key: " + b64(foreign.Certs.K8sServiceAccount.Key) + "}}",
		"machine.ca.key":             "machine: {ca: {crt: " + b64(own.Certs.OS.Crt) + ", key: " + b64(foreign.Certs.OS.Key) + "}}",
	} {
		in := testInput(t)
		in.Machine.Patches = []string{patch}
		_, err := testRenderer().Render(in)
		wantField(t, err, "machine.patches[0] → "+field)
		if err != nil && strings.Contains(err.Error(), "BEGIN") {
			t.Error("the error shows a key")
		}
	}
	worker := testInput(t).worker("w-1", "2001:db8::21")
	worker.Machine.Patches = []string{"machine: {ca: " + pair(own.Certs.OS) + "}"}
	_, err = testRenderer().Render(worker)
	wantField(t, err, "machine.patches[0] → machine.ca.key")

	in := testInput(t)
	in.Cluster.Patches = []string{
		"machine: {ca: " + pair(own.Certs.OS) + "}", // what it is anyway
		"machine: {acceptedCAs: [{crt: " + b64(foreign.Certs.OS.Crt) + "}]}",
	}
	mustRender(t, testRenderer(), in)
}

// Without a sink of ours none is missed, and with DHCPv6 no address is.
func TestDeletesThatTakeNothing(t *testing.T) {
	in := testInput(t)
	in.Machine.Addressing = inventory.DHCPv6
	in.Machine.Patches = []string{strings.Join([]string{
		doc("LinkConfig", "name: "+nic+", $patch: delete"), doc("DHCPv6Config", "name: "+nic+", $patch: delete"),
		doc("BondConfig", "name: bond0, links: ["+nic+"], bondMode: active-backup"), doc("DHCPv6Config", "name: bond0"),
	}, "\n---\n")}
	mustRender(t, NewRenderer(Options{}), in)
}

func TestLegacyWithoutDocuments(t *testing.T) {
	in := testInput(t)
	in.Cluster.NTP, in.Subnet.DNS, in.Subnet.Domains = nil, nil, nil
	in.Cluster.Patches = []string{"machine: {network: {nameservers: ['2001:db8::53']}, time: {servers: [time.example.org]}}"}
	mustRender(t, testRenderer(), in)
}

func TestCheckPatches(t *testing.T) {
	for name, tc := range map[string]struct {
		patches []string
		field   string
	}{
		"none":         {nil, ""},
		"fine":         {[]string{"machine: {}", doc("LinkConfig", "name: eth1, mtu: 9000"), doc("LinkConfig", "name: eth9, $patch: delete")}, ""},
		"empty":        {[]string{"machine: {}", "# later"}, "patches[1]"},
		"JSON patch":   {[]string{`[{"op": "remove", "path": "/machine/token"}]`}, "patches[0]"},
		"unknown kind": {[]string{doc("LinkCfg", "name: eth1")}, "patches[0]"},
		"unknown key":  {[]string{"machine: {nosuch: 1}"}, "patches[0]"},
		"not YAML":     {[]string{"machine: ["}, "patches[0]"},
		"file":         {[]string{"@/etc/passwd"}, "patches[0]"},
		"too many":     {make([]string, maxPatches+1), "patches"},
		"too large":    {[]string{strings.Repeat("#", maxDocument+1)}, "patches[0]"},
	} {
		t.Run(name, func(t *testing.T) {
			err := CheckPatches(tc.patches)
			if tc.field != "" {
				wantField(t, err, tc.field)
			} else if err != nil {
				t.Error(err)
			}
		})
	}
}

func TestCheckVersion(t *testing.T) {
	for _, v := range []string{"v1.12.0", "v1.13.6", "v1.13.0-beta.1"} {
		if err := CheckVersion(v); err != nil {
			t.Errorf("%s: %v", v, err)
		}
	}
	for _, v := range []string{"", "1.13.6", "v1.13", "v9.9.9", "v1.11.0", "v1.14.0", "v1.13.6/x", "latest"} {
		wantField(t, CheckVersion(v), "version")
	}
}

func TestOptionsValidate(t *testing.T) {
	for _, s := range []string{"", "tcp://[2001:db8::5]:514", "udp://[2001:db8::5]:514/", "tcp://log.example.org:514"} {
		if err := (Options{KernelLog: s}).Validate(); err != nil {
			t.Errorf("%s: %v", s, err)
		}
	}
	for _, s := range []string{"[2001:db8::5]:514", "tcp://2001:db8::5:514", "tcp://[2001:db8::5]", "http://[2001:db8::5]:514", "tcp://[2001:db8::5]:0", "tcp://x:514/y", "junk"} {
		wantField(t, Options{KernelLog: s}.Validate(), "talos.kernelLog")
	}
}

// TestRootsInPatches needs a real certificate.
func TestRootsInPatches(t *testing.T) {
	b, err := loadBundle(testSecrets(t))
	if err != nil {
		t.Fatal(err)
	}
	pem := strings.TrimSpace(string(b.Certs.K8s.Crt))
	indent := func(s string) string {
		return "apiVersion: v1alpha1\nkind: TrustedRootsConfig\nname: ca\ncertificates: |\n  " + strings.ReplaceAll(s, "\n", "\n  ") + "\n"
	}
	half := pem[:len(pem)/2]
	folded := strings.ReplaceAll(pem, "\n", " ")
	for name, tc := range map[string]struct {
		pem string
		ok  bool
	}{
		"one":           {pem, true},
		"two":           {pem + "\n" + pem, true},
		"with a remark": {"the site's CA\n" + pem, true},
		"half":          {half, false},
		"folded":        {folded, false},
		"one and half":  {pem + "\n" + half, false},
		"half and one":  {half + "\n" + pem, false},
		"a key":         {strings.ReplaceAll(pem, "CERTIFICATE", "PRIVATE KEY"), false},
	} {
		t.Run(name, func(t *testing.T) {
			in := testInput(t)
			in.Machine.Patches = []string{indent(tc.pem)}
			_, err := testRenderer().Render(in)
			if tc.ok {
				if err != nil {
					t.Fatal(err)
				}
				return
			}
			wantField(t, err, "machine.patches[0] → TrustedRootsConfig[ca].certificates")
		})
	}
}

// goodPatches are all taken.
var goodPatches = []string{
	"machine: {kubelet: {image: '[2001:db8::5]:5000/siderolabs/kubelet:v1.36.1'}}",
	"machine: {kubelet: {image: 'k/kubelet:v1.36.2-slim@sha256:" + strings.Repeat("a", 64) + "'}}",
	"machine: {kubelet: {image: 'k/kubelet:v1.36'}}",
	"machine: {install: {image: '[2001:db8::5]:5000/installer:v1.13.6'}}",
	"machine: {install: {image: 'r:5000/i@sha256:" + strings.Repeat("a", 64) + "'}}",
	"machine: {install: {disk: /dev/disk/by-id/nvme-X}}",
	"machine: {certSANs: ['2001:db8::1', api.example.org, '*.example.org']}",
	"machine: {kubelet: {nodeIP: {validSubnets: ['2001:db8::/64', '!2001:db8::1/128', 10.0.0.0/8]}}}",
	"cluster: {discovery: {enabled: true}}",
	"cluster: {controlPlane: {endpoint: 'https://[2001:db8::10]:6443'}, clusterName: prod}", // what it is anyway
	"cluster: {inlineManifests: [{name: x, contents: 'a: {{ .Value }} ${y}'}]}",
	"machine: {files: [{path: /var/x, op: create, permissions: 0o600, content: '{{ x }} ${y}'}]}",
	"machine: {udev: {rules: ['SUBSYSTEM==\"net\", RUN+=\"x ${y}\"']}}",
	doc("HostnameConfig", "hostname: cp-1.example.org"),
	doc("HostnameConfig", "hostname: cp-1"),
	doc("LinkConfig", "name: enp65s0f1np1d1v10"),
	doc("LinkConfig", "name: eth1, addresses: [{address: '2001:db8:1::/127'}, {address: '2001:db8:2::5/128'}]"),
	doc("LinkConfig", "name: eth1, routes: [{destination: '2001:db8:5::/48'}]"),
	doc("LinkConfig", "name: lo, addresses: [{address: '2001:db8:100::11/128'}]"),
	doc("DHCPv4Config", "name: eth1"),
	doc("TimeSyncConfig", "ptp: {devices: [/dev/ptp0]}"),
	doc("RegistryMirrorConfig", "name: '*', endpoints: [{url: 'http://[2001:db8::5]:5000'}]"),
	doc("RegistryMirrorConfig", "name: 'r.example:5000', endpoints: [{url: 'https://m.example/v2/x', overridePath: true}]"),
	doc("EventSinkConfig", "endpoint: 'sink.example.org:9090'"),
	doc("KmsgLogConfig", "name: second, url: 'udp://log.example.org:514/'"),
	doc("LinkAliasConfig", `name: net0, selector: {match: 'mac(link.permanent_addr) == "52:54:00:12:34:56"'}`),
	"# nothing but a remark\nmachine: {}\n",
}

// TestGoodPatches: a check that is too strict is a mistake, too.
func TestGoodPatches(t *testing.T) {
	for _, patch := range goodPatches {
		in := testInput(t)
		in.Cluster.Patches = []string{patch}
		if _, err := testRenderer().Render(in); err != nil {
			t.Errorf("%s\n\trefused: %v", patch, err)
		}
	}
}

// TestMistakesInInventory has what operators write into fields of their own.
func TestMistakesInInventory(t *testing.T) {
	for _, tc := range []struct {
		name   string
		change func(*Input)
		field  string
	}{
		{"old Talos", func(in *Input) { in.Cluster.TalosVersion = "v1.11.3" }, "cluster.talosVersion"},
		{"new Talos", func(in *Input) { in.Cluster.TalosVersion = "v1.14.0" }, "cluster.talosVersion"},
		{"half a Talos version", func(in *Input) { in.Cluster.TalosVersion = "v1.13" }, "cluster.talosVersion"},
		{"old Talos of the machine", func(in *Input) { in.Machine.Image = "v1.10.0/default" }, "machine.image"},
		{"old Kubernetes", func(in *Input) { in.Cluster.KubernetesVersion = "1.30.9" }, "cluster.kubernetesVersion"},
		{"new Kubernetes", func(in *Input) { in.Cluster.KubernetesVersion = "1.37.0" }, "cluster.kubernetesVersion"},
		{"Kubernetes for another Talos", func(in *Input) { in.Cluster.TalosVersion = "v1.12.0" }, "cluster.kubernetesVersion"},
		{"half a Kubernetes version", func(in *Input) { in.Cluster.KubernetesVersion = "1.36" }, "cluster.kubernetesVersion"},
		{"endpoint", func(in *Input) { in.Cluster.Endpoint = "http://x:1" }, "cluster.endpoint"},
		{"name", func(in *Input) { in.Machine.Name = "CP_1" }, "machine.name"},
		{"no disk", func(in *Input) { in.Cluster.Install.Disk = "" }, "machine.install.disk"},
		{"installer", func(in *Input) { in.Cluster.Install.Image = "no tag" }, "machine.install.image"},
		{"unknown selector key", func(in *Input) { in.Machine.Install.DiskSelector = map[string]string{"colour": "red"} }, "machine.install.diskSelector"},
		{"selector size junk", func(in *Input) { in.Machine.Install.DiskSelector = map[string]string{"size": ">= many"} }, "machine.install.diskSelector"},
		{"selector on the name", func(in *Input) { in.Machine.Install.DiskSelector = map[string]string{"name": "sda"} }, "machine.install.diskSelector"},
		{"selector type junk", func(in *Input) { in.Machine.Install.DiskSelector = map[string]string{"type": "floppy"} }, "machine.install.diskSelector"},
		{"no address", func(in *Input) { in.Machine.Address = netip.Addr{} }, "machine.address"},
		{"address elsewhere", func(in *Input) { in.Machine.Address = netip.MustParseAddr("2001:db9::1") }, "machine.address"},
		{"no subnet", func(in *Input) { in.Subnet = nil }, "machine.address"},
		{"network address", func(in *Input) { in.Machine.Address = netip.MustParseAddr("2001:db8::") }, "LinkConfig[" + nic + "].addresses[0]"},
		{"machine's patch", func(in *Input) { in.Machine.Patches = []string{"machine: {install: {disk: sdb}}"} }, "machine.patches[0] → machine.install.disk"},
		{"role's patch", func(in *Input) {
			in.Cluster.ControlPlanePatches = []string{"machine: {}", "machine: {kubelet: {image: x}}"}
		}, "cluster.controlPlanePatches[1] → machine.kubelet.image"},
		{"worker with etcd", func(in *Input) {
			in.Machine.Role = inventory.Worker
			in.Cluster.WorkerPatches = []string{"cluster: {etcd: {advertisedSubnets: ['2001:db8::/64']}}"}
		}, "cluster.workerPatches[0]"},
		{"too many patches", func(in *Input) { in.Machine.Patches = make([]string, 65) }, "machine.patches"},
		{"a huge patch", func(in *Input) { in.Machine.Patches = []string{strings.Repeat("#", maxDocument+1)} }, "machine.patches[0]"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			in := testInput(t)
			tc.change(&in)
			_, err := testRenderer().Render(in)
			wantField(t, err, tc.field)
		})
	}
}

// A later patch that repairs what an earlier one spoilt is no error, and one
// that spoils it again is the one to blame.
func TestBlame(t *testing.T) {
	bad, good := "machine: {install: {disk: sda}}", "machine: {install: {disk: /dev/sdb}}"
	in := testInput(t)
	in.Cluster.Patches = []string{bad, good}
	mustRender(t, testRenderer(), in)
	in.Machine.Patches = []string{bad}
	_, err := testRenderer().Render(in)
	wantField(t, err, "machine.patches[0] → machine.install.disk")
}

func TestBrokenOptions(t *testing.T) {
	for log, field := range map[string]string{
		"tcp://2001:db8::5:514": "KmsgLogConfig[provisiond].url",
		"tcp://[x":              "kernelLog",
		"http://x:1":            "config",
	} {
		_, err := NewRenderer(Options{KernelLog: log}).Render(testInput(t))
		wantField(t, err, field)
	}
}

func TestCutTag(t *testing.T) {
	for ref, want := range map[string][2]string{
		"a/b:v1":                {"a/b", "v1"},
		"r:5000/b:v1":           {"r:5000/b", "v1"},
		"[2001:db8::5]:5000/b:": {"[2001:db8::5]:5000/b", ""},
		"a@sha256:x":            {"a", "sha256:x"},
		"a:v1@sha256:x":         {"a:v1", "sha256:x"},
		"r:5000/b":              {"r:5000/b", ""},
		"[2001:db8::5]":         {"[2001:db8::5]", ""},
	} {
		if name, tag, _ := cutTag(ref); name != want[0] || tag != want[1] {
			t.Errorf("%s: %q %q", ref, name, tag)
		}
	}
}
