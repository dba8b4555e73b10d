// Package secureboot signs UEFI images with the operator's key, makes such
// keys and what firmware is told of them, and says whether an image would start.
package secureboot

import (
	"crypto"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"os"

	"github.com/foxboron/go-uefi/authenticode"
	"github.com/foxboron/go-uefi/pkcs7"

	"github.com/provisiond/provisiond/internal/uki"
)

// The sizes of RSA keys in bits: UEFI asks firmware for 2,048, and none is known
// to take more than 4,096.
const (
	minBits = 2048
	maxBits = 4096
)

// Signer signs images with one key. It may be used by many at once.
type Signer struct {
	key  crypto.Signer
	cert *x509.Certificate
	size int
}

var _ uki.Signer = (*Signer)(nil)

// Load reads an RSA key of 2,048 to 4,096 bits and its certificate, both PEM
// and neither encrypted. The key must be that of the certificate, or it would be
// found out by machines that do not start.
func Load(keyFile, certFile string) (*Signer, error) {
	key, err := readKey(keyFile)
	if err != nil {
		return nil, err
	}
	cert, err := ReadCertificate(certFile)
	if err != nil {
		return nil, err
	}
	if !key.PublicKey.Equal(cert.PublicKey) {
		return nil, fmt.Errorf("the key in %s is not that of the certificate in %s", keyFile, certFile)
	}
	s := &Signer{key: key, cert: cert}
	signature, err := s.Sign([sha256.Size]byte{})
	if err != nil {
		return nil, fmt.Errorf("signing with the key in %s: %w", keyFile, err)
	}
	s.size = len(signature)
	return s, nil
}

func readKey(file string) (*rsa.PrivateKey, error) {
	block, err := readPEM(file)
	if err != nil {
		return nil, err
	}
	var key any
	switch block.Type {
	case "PRIVATE KEY":
		key, err = x509.ParsePKCS8PrivateKey(block.Bytes)
	case "RSA PRIVATE KEY":
		if block.Headers["DEK-Info"] != "" {
			return nil, encrypted(file)
		}
		key, err = x509.ParsePKCS1PrivateKey(block.Bytes)
	case "ENCRYPTED PRIVATE KEY":
		return nil, encrypted(file)
	default:
		return nil, fmt.Errorf("%s holds a PEM block of type %s, want PRIVATE KEY", file, block.Type)
	}
	if err != nil {
		return nil, fmt.Errorf("the key in %s cannot be read", file) // what x509 says may quote it
	}
	private, ok := key.(*rsa.PrivateKey)
	if !ok {
		return nil, fmt.Errorf("the key in %s is not RSA, and firmware takes no other", file)
	}
	if bits := private.N.BitLen(); bits < minBits || bits > maxBits {
		return nil, fmt.Errorf("the key in %s has %d bits: firmware takes RSA keys of %d to %d", file, bits, minBits, maxBits)
	}
	return private, nil
}

func encrypted(file string) error {
	return fmt.Errorf("the key in %s is encrypted: decrypt it, as with openssl pkey -in %s -out NEW", file, file)
}

// ReadCertificate reads a certificate, PEM or DER.
func ReadCertificate(file string) (*x509.Certificate, error) {
	content, err := os.ReadFile(file)
	if err != nil {
		return nil, err
	}
	if block, rest := pem.Decode(content); block != nil {
		if next, _ := pem.Decode(rest); block.Type != "CERTIFICATE" || next != nil {
			return nil, fmt.Errorf("%s does not hold one certificate and nothing else", file)
		}
		content = block.Bytes
	}
	cert, err := x509.ParseCertificate(content)
	if err != nil {
		return nil, fmt.Errorf("the certificate in %s cannot be read: %w", file, err)
	}
	return cert, nil
}

func readPEM(file string) (*pem.Block, error) {
	content, err := os.ReadFile(file)
	if err != nil {
		return nil, err
	}
	block, _ := pem.Decode(content)
	if block == nil {
		return nil, fmt.Errorf("%s is not PEM", file)
	}
	return block, nil
}

// Certificate is the one that firmware must have in db.
func (s *Signer) Certificate() *x509.Certificate { return s.cert }

// Size implements [uki.Signer].
func (s *Signer) Size() int { return s.size }

// Sign implements [uki.Signer]. The signature has no attributes, thus no time
// at which it was made, and RSA signatures of PKCS #1 v1.5 are not random.
func (s *Signer) Sign(digest [sha256.Size]byte) ([]byte, error) {
	content, err := authenticode.CreateSpcIndirectDataContent(digest[:], crypto.SHA256)
	if err != nil {
		return nil, err
	}
	return pkcs7.SignPKCS7(s.key, s.cert, authenticode.OIDSpcIndirectDataContent, content, pkcs7.NoAttr())
}
