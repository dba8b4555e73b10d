package secureboot

import (
	"bytes"
	"crypto/sha256"
	"crypto/x509"
	"encoding/binary"
	"errors"
	"fmt"
	"io"

	"golang.org/x/crypto/cryptobyte"
	"golang.org/x/crypto/cryptobyte/asn1"

	"github.com/foxboron/go-uefi/authenticode"
	"github.com/foxboron/go-uefi/pkcs7"

	"github.com/provisiond/provisiond/internal/uki"
)

// What a certificate table may have: firmware goes through all of it.
const (
	maxSignatures = 16
	maxTable      = 1 << 20 // bytes
	maxChain      = 4       // certificates above the signer's
)

// Report is what [Check] found.
type Report struct {
	File       *uki.File
	UKI        bool // it has a kernel
	Signatures []Signature
	// Problems say why firmware would not start the image with Secure Boot on,
	// or the image not Linux. Empty: nothing is known against it.
	Problems []string
}

// Signature is one of an image.
type Signature struct {
	Signer *x509.Certificate // nil if the signature has not its certificate
	Err    error             // why it does not count; nil: it is good
}

// Check reads all of an image, and says whether firmware would start it that
// has this certificate in db; with nil, whether it is signed as it says itself.
// The error is that of a file which is no UEFI application at all (a
// *[uki.Error]), or which cannot be read. Like firmware, Check looks at no date.
func Check(r io.ReaderAt, size int64, trusted *x509.Certificate) (*Report, error) {
	f, err := uki.Parse(r, size)
	if err != nil {
		return nil, err
	}
	report := &Report{File: f}
	for _, s := range f.Sections() {
		report.UKI = report.UKI || s.Name == ".linux"
	}
	if report.UKI {
		if err := f.CheckUKI(); err != nil {
			report.Problems = append(report.Problems, err.Error())
		}
		if n := len(f.Line()); n > uki.MaxLine {
			report.Problems = append(report.Problems, fmt.Sprintf(".cmdline: the kernel line has %d bytes, and Linux takes %d", n, uki.MaxLine))
		}
	}
	digest, err := f.Digest()
	if err != nil {
		return nil, err
	}
	all, err := signatures(r, f)
	if err != nil {
		report.Problems = append(report.Problems, err.Error())
		return report, nil
	}
	good := false
	for _, der := range all {
		s := verify(der, digest, trusted)
		good = good || s.Err == nil
		report.Signatures = append(report.Signatures, s)
	}
	switch {
	case len(all) == 0:
		report.Problems = append(report.Problems, "the image is not signed")
	case !good && trusted != nil:
		report.Problems = append(report.Problems, "no signature is good, and of "+name(trusted))
	case !good:
		report.Problems = append(report.Problems, "no signature is good")
	}
	return report, nil
}

// signatures reads the certificate table: each one's PKCS #7.
func signatures(r io.ReaderAt, f *uki.File) (all [][]byte, err error) {
	at, size := f.Certificates()
	if size == 0 {
		return nil, nil
	}
	if size > maxTable {
		return nil, fmt.Errorf("the certificate table has %d bytes, want at most %d", size, maxTable)
	}
	table := make([]byte, size)
	if n, err := r.ReadAt(table, at); n < len(table) {
		return nil, fmt.Errorf("reading the certificate table: %w", err)
	}
	for len(table) > 0 {
		if len(all) == maxSignatures {
			return nil, fmt.Errorf("the certificate table has more than %d signatures", maxSignatures)
		}
		const head = 8
		if len(table) < head {
			return nil, errors.New("the certificate table ends within an entry")
		}
		length := int64(binary.LittleEndian.Uint32(table))
		revision, kind := binary.LittleEndian.Uint16(table[4:]), binary.LittleEndian.Uint16(table[6:])
		if length < head || length > int64(len(table)) {
			return nil, fmt.Errorf("an entry of the certificate table says that it has %d bytes, of %d that are left", length, len(table))
		}
		if revision != 0x0200 || kind != 0x0002 {
			return nil, fmt.Errorf("an entry of the certificate table is of revision %#x and type %#x, want 0x200 and 0x2 (PKCS #7)", revision, kind)
		}
		all = append(all, table[head:length])
		table = table[min(int64(len(table)), (length+7)&^7):]
	}
	return all, nil
}

// verify checks a signature as firmware does. go-uefi reads it; it would stop
// at one without attributes, as ours are, and of one with attributes it does not
// compare the digest in them.
func verify(der []byte, digest [sha256.Size]byte, trusted *x509.Certificate) (s Signature) {
	a, err := authenticode.ParseAuthenticode(der)
	if err != nil {
		return Signature{Err: err}
	}
	if len(a.Pkcs.SignerInfo) != 1 {
		return Signature{Err: fmt.Errorf("%d have signed at once, want one", len(a.Pkcs.SignerInfo))}
	}
	info := a.Pkcs.SignerInfo[0]
	known := a.Pkcs.Certs
	if trusted != nil {
		known = append(known, trusted)
	}
	for _, c := range known {
		if bytes.Equal(c.RawIssuer, info.IssuerAndSerialnumber.RawIssuer) && c.SerialNumber.Cmp(info.IssuerAndSerialnumber.SerialNumber) == 0 {
			s.Signer = c
		}
	}
	if s.Signer == nil {
		s.Err = errors.New("it has not the certificate of who signed")
		return s
	}
	if !a.Algid.Algorithm.Equal(pkcs7.OIDDigestAlgorithmSHA256) || !info.DigestAlgorithm.Algorithm.Equal(pkcs7.OIDDigestAlgorithmSHA256) {
		s.Err = errors.New("it is of another digest than SHA-256, which is not checked here")
		return s
	}
	if !bytes.Equal(a.Digest, digest[:]) {
		s.Err = errors.New("the image was changed after it was signed")
		return s
	}
	// What is signed is the content without its tag and length.
	content, outer := cryptobyte.String(nil), cryptobyte.String(a.Pkcs.ContentInfo)
	if !outer.ReadASN1(&content, asn1.SEQUENCE) {
		s.Err = errors.New("it has no content")
		return s
	}
	signed := []byte(content)
	if attributes := info.AuthenticatedAttributes; attributes != nil {
		if sum := sha256.Sum256(content); !bytes.Equal(attributes.MessageDigest, sum[:]) {
			s.Err = errors.New("its attributes are those of another signature")
			return s
		}
		signed = attributes.RawBytes
	}
	if err := s.Signer.CheckSignature(x509.SHA256WithRSA, signed, info.EncryptedDigest); err != nil {
		s.Err = fmt.Errorf("it was not made with the key of its certificate: %w", err)
		return s
	}
	if trusted != nil && !chains(s.Signer, a.Pkcs.Certs, trusted) {
		s.Err = fmt.Errorf("it is of %s, and not of %s", name(s.Signer), name(trusted))
	}
	return s
}

// chains reports whether a certificate is the trusted one, or was signed with
// it, by way of others.
func chains(c *x509.Certificate, others []*x509.Certificate, trusted *x509.Certificate) bool {
	for range maxChain {
		if c.Equal(trusted) || c.CheckSignatureFrom(trusted) == nil {
			return true
		}
		above := c
		for _, o := range others {
			if !o.Equal(c) && c.CheckSignatureFrom(o) == nil {
				above = o
				break
			}
		}
		if above == c {
			return false
		}
		c = above
	}
	return false
}

// name is how people call a certificate.
func name(c *x509.Certificate) string {
	if c.Subject.CommonName != "" {
		return c.Subject.CommonName
	}
	return c.Subject.String()
}
