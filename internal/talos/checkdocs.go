package talos

import (
	"bytes"
	stdx509 "crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"net/netip"
	"regexp"
	"slices"
	"strings"

	"github.com/siderolabs/talos/pkg/machinery/config/config"
	"github.com/siderolabs/talos/pkg/machinery/config/types/cri"
	"github.com/siderolabs/talos/pkg/machinery/config/types/network"
	"github.com/siderolabs/talos/pkg/machinery/config/types/runtime"
	"github.com/siderolabs/talos/pkg/machinery/config/types/security"
	"go.yaml.in/yaml/v4"

	"github.com/provisiond/provisiond/internal/inventory"
)

// checkDocuments is [checkMain] for all the other documents.
func checkDocuments(docs []config.Document) error {
	static := map[string]bool{}      // links with an address of their own
	owner := map[netip.Addr]string{} // address → link
	dhcp4 := map[string]string{}     // link → path; looked at last, when static is known
	for _, doc := range docs {
		var err error
		switch d := doc.(type) {
		case config.NetworkCommonLinkConfig:
			static[d.Name()] = len(d.Addresses()) > 0
			err = checkLink(path(doc), d, owner)
		case config.NetworkDHCPv4Config:
			dhcp4[d.Name()] = path(doc)
		case *network.HostnameConfigV1Alpha1:
			err = checkHostname(d)
		case *network.ResolverConfigV1Alpha1:
			err = checkResolver(d)
		case *network.TimeSyncConfigV1Alpha1:
			err = checkTimeSync(d)
		case *network.LinkAliasConfigV1Alpha1:
			err = checkAlias(d)
		case *runtime.EventSinkV1Alpha1:
			err = checkSink(d.Endpoint)
		case *runtime.KmsgLogV1Alpha1:
			err = checkKernelLog(path(d)+".url", d.KmsgLogURL.String())
		case *cri.RegistryMirrorConfigV1Alpha1:
			var urls []string
			for _, e := range d.RegistryEndpoints {
				urls = append(urls, e.EndpointURL.String())
			}
			err = checkMirror(path(d), d.MetaName, urls)
		case *security.TrustedRootsConfigV1Alpha1:
			err = checkRoots(d)
		}
		if err != nil {
			return err
		}
	}
	for _, name := range slices.Sorted(maps.Keys(dhcp4)) {
		if static[name] {
			return fail(dhcp4[name], "delete it", "DHCPv4 beside a static address makes Talos wait for both")
		}
	}
	return nil
}

// path names a document as operators write it: LinkConfig[eth0].
func path(d config.Document) string {
	if n, ok := d.(config.NamedDocument); ok {
		return d.Kind() + "[" + n.Name() + "]"
	}
	return d.Kind()
}

// predictable are the names udev gives to NICs; as altnames they may be longer
// than the kernel's 15 characters.
var predictable = regexp.MustCompile(`^(en|ib|sl|wl|ww)[a-z0-9]+$`)

func checkLink(at string, d config.NetworkCommonLinkConfig, owner map[netip.Addr]string) error {
	name := d.Name()
	_, physical := d.(config.NetworkPhysicalLinkConfig)
	if strings.ContainsFunc(name, func(r rune) bool { return r <= ' ' || r == '/' || r == ':' || r >= 0x7f }) {
		return fail(at+".name", "such as enp0s2 or enx525400123456", "%q is not the name of a link", name)
	}
	if len(name) > 15 && !(physical && predictable.MatchString(name)) {
		return fail(at+".name", "at most 15 characters", "%q is longer than a link's name can be", name)
	}
	for i, a := range d.Addresses() {
		p := a.Address()
		where := fmt.Sprintf("%s.addresses[%d]", at, i)
		if p.Addr() == p.Masked().Addr() && p.Addr().BitLen()-p.Bits() > 1 {
			return fail(where, "give it a host part", "%s is the address of the network itself", p)
		}
		if p.Addr().IsMulticast() || p.Addr().IsLoopback() && name != "lo" {
			return fail(where, "a unicast address", "%s cannot be the address of a link", p.Addr())
		}
		if other, taken := owner[p.Addr()]; taken {
			return fail(where, "give each address once", "%s is given to %s, too", p.Addr(), other)
		}
		owner[p.Addr()] = name
	}
	for i, r := range d.Routes() {
		if _, to := r.Destination().Get(); !to {
			if _, via := r.Gateway().Get(); !via {
				return fail(fmt.Sprintf("%s.routes[%d]", at, i), "give a gateway, or a destination on the link", "the route has neither destination nor gateway")
			}
		}
	}
	return nil
}

func checkHostname(d *network.HostnameConfigV1Alpha1) error {
	at := path(d) + ".hostname"
	if d.ConfigHostname == "" {
		return fail(at, "leave it out for the machine's name", "the host name is empty")
	}
	if _, err := netip.ParseAddr(d.ConfigHostname); err == nil || !isHost(d.ConfigHostname) {
		return fail(at, "letters, digits and hyphens, such as cp-1", "%q is not a host name", d.ConfigHostname)
	}
	return nil
}

func checkResolver(d *network.ResolverConfigV1Alpha1) error {
	for i, n := range d.ResolverNameservers {
		if a := n.Address.Addr; !a.IsValid() || a.IsUnspecified() || a.IsMulticast() {
			return fail(fmt.Sprintf("%s.nameservers[%d]", path(d), i), "address: 2001:db8::53", "%q is not the address of a server", n.Address.String())
		}
	}
	for i, s := range d.ResolverSearchDomains.SearchDomains {
		if _, err := netip.ParseAddr(s); err == nil || !isHost(s) {
			return fail(fmt.Sprintf("%s.searchDomains.domains[%d]", path(d), i), "such as example.org", "%q is not a domain", s)
		}
	}
	return nil
}

func checkTimeSync(d *network.TimeSyncConfigV1Alpha1) error {
	if d.TimeNTP == nil {
		return nil
	}
	for i, s := range d.TimeNTP.Servers {
		if !isHost(s) {
			return fail(fmt.Sprintf("%s.ntp.servers[%d]", path(d), i), "a host name or a bare address such as 2001:db8::123", "%q is not a time server", s)
		}
	}
	return nil
}

var (
	kernelName = regexp.MustCompile(`^(eth|bond|dummy|lo|sit|tunl|teql)\d*$`)
	macMatch   = regexp.MustCompile(`mac\([^)]*\)\s*==\s*"([^"]*)"`)
)

func checkAlias(d *network.LinkAliasConfigV1Alpha1) error {
	if kernelName.MatchString(d.MetaName) {
		return fail(path(d)+".name", "such as net0", "%s is a name that the kernel gives itself", d.MetaName)
	}
	text, err := d.Selector.Match.MarshalText()
	if err != nil {
		return fail(path(d)+".selector.match", "", "%v", err)
	}
	for _, m := range macMatch.FindAllSubmatch(text, -1) {
		if mac, err := inventory.ParseMAC(string(m[1])); err != nil || string(mac) != string(m[1]) {
			return fail(path(d)+".selector.match", "lower case with colons, such as 52:54:00:12:34:56", "%q is the MAC of no NIC", m[1])
		}
	}
	return nil
}

func checkSink(endpoint string) error {
	host, port, err := net.SplitHostPort(endpoint)
	if err != nil || !isHost(host) || !isPort(port) {
		return fail(runtime.EventSinkKind+".endpoint", "[2001:db8::5]:9090", "%q is not a host and a port", endpoint)
	}
	return nil
}

// checkKernelLog wants tcp://[v6]:port or udp://[v6]:port.
func checkKernelLog(field, s string) error {
	rest, ok := strings.CutPrefix(s, "tcp://")
	if !ok {
		rest, ok = strings.CutPrefix(s, "udp://")
	}
	host, port, err := net.SplitHostPort(strings.TrimSuffix(rest, "/"))
	if !ok || err != nil || !isHost(host) || !isPort(port) {
		return fail(field, "tcp://[2001:db8::5]:514", "%q is not the URL of a log server", s)
	}
	return nil
}

// checkRoots parses what Talos only appends to a file: one broken certificate
// makes Go's pool skip it silently, and the registry stays untrusted.
func checkRoots(d *security.TrustedRootsConfigV1Alpha1) error {
	if d.MetaName == "" {
		return fail(path(d)+".name", "any name", "the document has no name")
	}
	return checkPEM(path(d)+".certificates", "whole PEM certificates, as a block (|)", []byte(d.Certificates))
}

// checkPEM wants one certificate or several, and text only between them.
func checkPEM(at, fix string, rest []byte) error {
	for found := 0; ; found++ {
		block, after := pem.Decode(rest)
		if block == nil {
			if found == 0 || bytes.Contains(rest, []byte("-----")) {
				return fail(at, fix, "not a list of PEM certificates")
			}
			return nil
		}
		if bytes.Count(rest[:len(rest)-len(after)], []byte("-----BEGIN ")) != 1 || block.Type != "CERTIFICATE" {
			return fail(at, fix, "certificate %d is broken", found+1)
		}
		if _, err := stdx509.ParseCertificate(block.Bytes); err != nil {
			return fail(at, fix, "certificate %d: %v", found+1, err)
		}
		rest = after
	}
}

// free are keys under which any text is right: files, manifests, rules.
var free = map[string]bool{
	"content": true, "contents": true, "files": true, "pods": true, "rules": true, "auditPolicy": true, "admissionControl": true,
	"inlineManifests": true, "configFiles": true, "environment": true, "variables": true, "env": true, "extraArgs": true, "extraConfig": true,
}

// checkText finds what a template has left in a value: Talos would take
// "{{ .Name }}" for a host name.
func checkText(text []byte) error {
	dec := yaml.NewDecoder(bytes.NewReader(text))
	for {
		var doc yaml.Node
		if err := dec.Decode(&doc); errors.Is(err, io.EOF) {
			return nil
		} else if err != nil {
			return fail("config", "", "%v", err)
		}
		if len(doc.Content) != 1 {
			continue
		}
		root := doc.Content[0]
		at, name := child(root, "kind"), child(root, "name")
		if at != "" && name != "" {
			at += "[" + name + "]"
		}
		if err := checkNode(root, at); err != nil {
			return err
		}
	}
}

// child is the text of a key of a mapping.
func child(n *yaml.Node, key string) string {
	for i := 0; n.Kind == yaml.MappingNode && i+1 < len(n.Content); i += 2 {
		if n.Content[i].Value == key {
			return n.Content[i+1].Value
		}
	}
	return ""
}

func checkNode(n *yaml.Node, at string) error {
	switch n.Kind {
	case yaml.ScalarNode:
		for _, left := range []string{"{{", "}}", "<no value>", "${"} {
			if strings.Contains(n.Value, left) {
				return fail(at, "fill in the template before", "%q holds %q, which a template has left behind", n.Value, left)
			}
		}
	case yaml.SequenceNode:
		for i, c := range n.Content {
			if err := checkNode(c, fmt.Sprintf("%s[%d]", at, i)); err != nil {
				return err
			}
		}
	case yaml.MappingNode:
		for i := 0; i+1 < len(n.Content); i += 2 {
			key := n.Content[i].Value
			if free[key] {
				continue
			}
			if err := checkNode(n.Content[i+1], strings.TrimPrefix(at+"."+key, ".")); err != nil {
				return err
			}
		}
	}
	return nil
}
