// Package ca is a certificate authority of one key: it signs what provisiond
// shows as a server, and what operators show as clients. It is standard library
// only, and keeps nothing: whoever uses it stores the PEM that [New] makes.
package ca

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"sync"
	"time"
)

const (
	// life of the CA. Nothing renews it: everyone who trusts it has a copy.
	life = 20 * 365 * 24 * time.Hour
	// leafLife is that of a server certificate. A leaked key is of no use for
	// longer, and nobody has to renew one by hand.
	leafLife = 30 * 24 * time.Hour
)

// beginning is when every certificate of ours becomes valid. Bare metal whose clock
// was lost stands at 1970, 2000 or the year of its firmware, and asks for its config
// before NTP has set it; that a certificate is older than its key weakens nothing.
func beginning() time.Time { return time.Unix(0, 0) }

// CA signs certificates. It is safe for concurrent use.
type CA struct {
	cert *x509.Certificate
	key  crypto.Signer
	pem  []byte // the certificate, for those who are to trust it
	now  func() time.Time
}

// New makes a CA and returns its certificate and its key as PEM, which is a
// secret. [Load] reads it.
func New() ([]byte, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, fmt.Errorf("making the key of a CA: %w", err)
	}
	template := &x509.Certificate{
		Subject:   pkix.Name{CommonName: "provisiond CA"},
		NotBefore: beginning(), NotAfter: time.Now().Add(life),
		IsCA: true, BasicConstraintsValid: true, MaxPathLenZero: true,
		KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageCRLSign,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		return nil, fmt.Errorf("signing a CA: %w", err)
	}
	keyPEM, err := encodeKey(key)
	if err != nil {
		return nil, err
	}
	return append(encodeCert(der), keyPEM...), nil
}

// Load reads what New made: a certificate and its key, in either order. It is an
// error if one is missing, if they do not belong together, or if the certificate
// is not that of a CA.
func Load(text []byte) (*CA, error) {
	pair, err := tls.X509KeyPair(text, text)
	if err != nil {
		return nil, fmt.Errorf("reading a CA: %w", err)
	}
	key, ok := pair.PrivateKey.(crypto.Signer)
	if !ok || !pair.Leaf.IsCA {
		return nil, errors.New("reading a CA: the certificate cannot sign others")
	}
	return &CA{cert: pair.Leaf, key: key, pem: encodeCert(pair.Leaf.Raw), now: time.Now}, nil
}

// PEM is the certificate of the CA, for those who are to trust it. It is no secret.
func (c *CA) PEM() []byte { return bytes.Clone(c.pem) }

// Expires is when nobody trusts the CA any more.
func (c *CA) Expires() time.Time { return c.cert.NotAfter }

// Pool holds the CA alone.
func (c *CA) Pool() *x509.CertPool {
	pool := x509.NewCertPool()
	pool.AddCert(c.cert)
	return pool
}

// Issue makes a key and a server certificate for it, good for 30 days. A name is a
// DNS name or an IP address; a zone is left out of an address. The CA's own comes
// with it, for who wants to compare it. It is an error to name nothing.
func (c *CA) Issue(names ...string) (*tls.Certificate, error) {
	if len(names) == 0 {
		return nil, errors.New("a server certificate needs a name")
	}
	template := c.template(leafLife, x509.ExtKeyUsageServerAuth)
	for _, name := range names {
		if a, err := netip.ParseAddr(name); err == nil {
			template.IPAddresses = append(template.IPAddresses, net.IP(a.WithZone("").Unmap().AsSlice()))
		} else {
			template.DNSNames = append(template.DNSNames, name)
		}
	}
	der, key, err := c.sign(template)
	if err != nil {
		return nil, err
	}
	leaf, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, err
	}
	return &tls.Certificate{Certificate: [][]byte{der, c.cert.Raw}, PrivateKey: key, Leaf: leaf}, nil
}

// IssueClient makes a key and a client certificate for it as PEM, certificate
// first. What the subject means is the caller's to say. There is no revocation:
// it is good for as long as it says.
func (c *CA) IssueClient(subject pkix.Name, life time.Duration) ([]byte, error) {
	template := c.template(life, x509.ExtKeyUsageClientAuth)
	template.Subject = subject
	der, key, err := c.sign(template)
	if err != nil {
		return nil, err
	}
	keyPEM, err := encodeKey(key)
	if err != nil {
		return nil, err
	}
	return append(encodeCert(der), keyPEM...), nil
}

// Server returns a tls.Config.GetCertificate that shows a server certificate for
// the names and for the address that was called. Certificates are made when they
// are first needed, and anew when a third of their life is left, in memory only.
func (c *CA) Server(names ...string) func(*tls.ClientHelloInfo) (*tls.Certificate, error) {
	var mu sync.Mutex
	shown := map[string]*tls.Certificate{} // by address of ours, which are few
	return func(hello *tls.ClientHelloInfo) (*tls.Certificate, error) {
		all, called := names, ""
		if hello.Conn != nil {
			if local, ok := hello.Conn.LocalAddr().(*net.TCPAddr); ok {
				called = local.AddrPort().Addr().Unmap().WithZone("").String()
				all = append(slices.Clip(names), called)
			}
		}
		mu.Lock()
		defer mu.Unlock()
		if cert := shown[called]; cert != nil && c.now().Before(cert.Leaf.NotAfter.Add(-leafLife/3)) {
			return cert, nil
		}
		cert, err := c.Issue(all...)
		if err != nil {
			return nil, err
		}
		shown[called] = cert
		return cert, nil
	}
}

func (c *CA) template(life time.Duration, usage x509.ExtKeyUsage) *x509.Certificate {
	return &x509.Certificate{
		Subject:   pkix.Name{CommonName: "provisiond"},
		NotBefore: beginning(), NotAfter: c.now().Add(life),
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{usage},
		BasicConstraintsValid: true,
	}
}

// sign makes a key for a certificate. The serial number is random: RFC 5280
// section 4.1.2.2, which x509 sees to.
func (c *CA) sign(template *x509.Certificate) (der []byte, key *ecdsa.PrivateKey, err error) {
	if key, err = ecdsa.GenerateKey(elliptic.P256(), rand.Reader); err != nil {
		return nil, nil, fmt.Errorf("making a key: %w", err)
	}
	if der, err = x509.CreateCertificate(rand.Reader, template, c.cert, key.Public(), c.key); err != nil {
		return nil, nil, fmt.Errorf("signing a certificate: %w", err)
	}
	return der, key, nil
}

func encodeCert(der []byte) []byte {
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
}

func encodeKey(key *ecdsa.PrivateKey) ([]byte, error) {
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return nil, fmt.Errorf("encoding a key: %w", err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}), nil
}
