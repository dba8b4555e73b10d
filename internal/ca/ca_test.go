package ca

import (
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"testing"
	"time"
)

func newCA(t *testing.T) *CA {
	t.Helper()
	text, err := New()
	if err != nil {
		t.Fatal(err)
	}
	c, err := Load(text)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func TestLoadRefuses(t *testing.T) {
	one, other := newCA(t), newCA(t)
	text, err := New()
	if err != nil {
		t.Fatal(err)
	}
	client, err := one.IssueClient(pkix.Name{CommonName: "a"}, time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	_, key, _ := bytes.Cut(text, []byte("-----END CERTIFICATE-----\n"))
	for name, bad := range map[string][]byte{
		"nothing": nil, "junk": []byte("junk"), "no key": other.PEM(), "another's key": append(other.PEM(), key...), "no CA": client,
	} {
		if _, err := Load(bad); err == nil {
			t.Errorf("%s is a CA", name)
		}
	}
	if c, err := Load(append(bytes.Clone(key), text[:len(text)-len(key)]...)); err != nil || !bytes.Equal(c.PEM(), text[:len(text)-len(key)]) {
		t.Errorf("key first: %v", err)
	}
}

// TestIssued checks certificates as a client or a server would.
func TestIssued(t *testing.T) {
	c, foreign := newCA(t), newCA(t)
	cert, err := c.Issue("rack.example", "2001:db8::1", "fe80::1%eth0", "192.0.2.1")
	if err != nil {
		t.Fatal(err)
	}
	verify := func(leaf *x509.Certificate, by *CA, name string, at time.Time, usage x509.ExtKeyUsage) error {
		_, err := leaf.Verify(x509.VerifyOptions{DNSName: name, Roots: by.Pool(), CurrentTime: at, KeyUsages: []x509.ExtKeyUsage{usage}})
		return err
	}
	now := time.Now()
	server, client := x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth
	for _, name := range []string{"rack.example", "[2001:db8::1]", "[fe80::1]", "192.0.2.1"} {
		if err := verify(cert.Leaf, c, name, now, server); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
	if err := verify(cert.Leaf, c, "rack.example", now.Add(-59*time.Minute), server); err != nil {
		t.Errorf("for a clock that runs behind: %v", err)
	}
	for what, err := range map[string]error{
		"another name": verify(cert.Leaf, c, "evil.example", now, server),
		"another CA":   verify(cert.Leaf, foreign, "rack.example", now, server),
		"a client":     verify(cert.Leaf, c, "rack.example", now, client),
		"31 days on":   verify(cert.Leaf, c, "rack.example", now.Add(31*24*time.Hour), server),
	} {
		if err == nil {
			t.Errorf("it is good for %s", what)
		}
	}
	text, err := c.IssueClient(pkix.Name{CommonName: "alice", Organization: []string{"o"}}, time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	pair, err := tls.X509KeyPair(text, text)
	if err != nil || pair.Leaf.Subject.CommonName != "alice" {
		t.Fatalf("%v %v", err, pair.Leaf.Subject)
	}
	if err := verify(pair.Leaf, c, "", now, client); err != nil {
		t.Error(err)
	}
	if verify(pair.Leaf, c, "", now, server) == nil || verify(pair.Leaf, c, "", now.Add(2*time.Hour), client) == nil {
		t.Error("a client's certificate serves, or does not end")
	}
	if _, err := c.Issue(); err == nil {
		t.Error("a certificate for nobody")
	}
}

// caller is a connection that came in on an address.
type caller struct {
	net.Conn
	to string
}

func (c caller) LocalAddr() net.Addr { return net.TCPAddrFromAddrPort(netip.MustParseAddrPort(c.to)) }

func TestServerRenews(t *testing.T) {
	c := newCA(t)
	now := time.Now()
	c.now = func() time.Time { return now }
	get := c.Server("localhost")
	shown := func(to string) *tls.Certificate {
		t.Helper()
		cert, err := get(&tls.ClientHelloInfo{Conn: caller{to: to}})
		if err != nil {
			t.Fatal(err)
		}
		host, _, _ := net.SplitHostPort(to)
		if err := cert.Leaf.VerifyHostname(host); err != nil {
			t.Error(err)
		}
		if err := cert.Leaf.VerifyHostname("localhost"); err != nil {
			t.Error(err)
		}
		return cert
	}
	if cert, err := get(&tls.ClientHelloInfo{}); err != nil || cert.Leaf.VerifyHostname("localhost") != nil {
		t.Errorf("called at no address: %v", err)
	}
	if _, err := c.Server()(&tls.ClientHelloInfo{}); err == nil {
		t.Error("a certificate for nobody")
	}
	first := shown("[2001:db8::1]:8440")
	if shown("[2001:db8::1]:8440") != first || shown("[2001:db8::2]:8440") == first {
		t.Error("not one certificate for each address")
	}
	now = now.Add(19 * 24 * time.Hour)
	if shown("[2001:db8::1]:8440") != first {
		t.Error("renewed too early")
	}
	now = now.Add(2 * 24 * time.Hour)
	if again := shown("[2001:db8::1]:8440"); again == first || !again.Leaf.NotAfter.After(first.Leaf.NotAfter) {
		t.Error("not renewed")
	}
}

func TestFiles(t *testing.T) {
	c := newCA(t)
	dir := t.TempDir()
	certFile, keyFile := filepath.Join(dir, "cert"), filepath.Join(dir, "key")
	pair := func(name string) (cert, key []byte) {
		t.Helper()
		text, err := c.IssueClient(pkix.Name{CommonName: name}, time.Hour) // what it is for does not matter here
		if err != nil {
			t.Fatal(err)
		}
		cert, key, _ = bytes.Cut(text, []byte("-----END CERTIFICATE-----\n"))
		return append(cert, "-----END CERTIFICATE-----\n"...), key
	}
	// As renewers do it: a new file in the place of the old.
	put := func(name string, b []byte) {
		t.Helper()
		if err := errors.Join(os.WriteFile(name+".new", b, 0o600), os.Rename(name+".new", name)); err != nil {
			t.Fatal(err)
		}
	}
	var warned []error
	warn := func(err error) { warned = append(warned, err) }
	if _, err := OpenFiles(certFile, keyFile, warn); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("without files: %v", err)
	}
	cert1, key1 := pair("one")
	cert2, key2 := pair("two")
	put(certFile, cert1)
	put(keyFile, key2)
	if _, err := OpenFiles(certFile, keyFile, warn); err == nil {
		t.Error("a pair that is none")
	}
	put(keyFile, key1)
	f, err := OpenFiles(certFile, keyFile, warn)
	if err != nil {
		t.Fatal(err)
	}
	shown := func(want string, warnings int) {
		t.Helper()
		for range 2 { // the second finds nothing new, and does not warn again
			got, err := f.GetCertificate(nil)
			if err != nil || got.Leaf.Subject.CommonName != want || len(warned) != warnings {
				t.Fatalf("%v %v, want %s; warned %v", got.Leaf.Subject, err, want, warned)
			}
		}
	}
	shown("one", 0)
	put(certFile, cert2)
	shown("one", 1) // half way
	put(keyFile, key2)
	shown("two", 1)
	put(certFile, []byte("junk"))
	shown("two", 2)
	if err := os.Remove(certFile); err != nil {
		t.Fatal(err)
	}
	shown("two", 3)
	put(certFile, cert2)
	shown("two", 3)
}
