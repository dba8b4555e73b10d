package secureboot

import (
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"math/big"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/google/uuid"

	"github.com/foxboron/go-uefi/efi/signature"
	"github.com/foxboron/go-uefi/efi/util"
	"github.com/foxboron/go-uefi/efivar"
)

// role is a key of firmware (UEFI specification, section 32.3): PK owns the
// machine, KEK may change db, and an image starts if db's key signed it.
type role struct {
	name     string
	variable efivar.Efivar
	signer   string // whose key signs the variable
}

var roles = []role{
	{"PK", efivar.PK, "PK"},
	{"KEK", efivar.KEK, "PK"},
	{"db", efivar.Db, "KEK"},
}

// The certificates are good from a day before machines whose clock was lost
// say it is, for some firmware does look at it. The end is that of dates in
// ASN.1's short form, for the same reason.
var (
	notBefore = time.Date(1970, 1, 1, 0, 0, 0, 0, time.UTC)
	notAfter  = time.Date(2049, 12, 31, 23, 59, 59, 0, time.UTC)
)

// KeyFiles are those that [Generate] writes, of which the first is what signs
// images.
func KeyFiles(dir string) (key, certificate string) {
	return filepath.Join(dir, "db.key"), filepath.Join(dir, "db.pem")
}

// Generate makes the keys of a rack's firmware in dir, which is made if need be:
// PK.key, KEK.key and db.key (PKCS #8, RSA of 2,048 bits, mode 0600), and their
// certificates PK.pem, KEK.pem and db.pem. It overwrites nothing. The names of the
// certificates begin with owner, such as the name of the rack.
func Generate(dir, owner string) error {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	var files []file
	for _, r := range roles {
		key, err := rsa.GenerateKey(rand.Reader, minBits)
		if err != nil {
			return err
		}
		cert, err := selfSigned(key, owner+" "+r.name)
		if err != nil {
			return err
		}
		der, err := x509.MarshalPKCS8PrivateKey(key)
		if err != nil {
			return err
		}
		files = append(files,
			file{r.name + ".key", pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}), 0o600},
			file{r.name + ".pem", pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: cert}), 0o644})
	}
	return writeNew(dir, files)
}

func selfSigned(key *rsa.PrivateKey, name string) ([]byte, error) {
	serial, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 127)) // positive, and 20 octets at most (RFC 5280)
	if err != nil {
		return nil, err
	}
	template := &x509.Certificate{
		SerialNumber:          serial.Add(serial, big.NewInt(1)),
		Subject:               pkix.Name{CommonName: name},
		NotBefore:             notBefore,
		NotAfter:              notAfter,
		SignatureAlgorithm:    x509.SHA256WithRSA,
		KeyUsage:              x509.KeyUsageDigitalSignature | x509.KeyUsageCertSign,
		BasicConstraintsValid: true,
		IsCA:                  true,
	}
	return x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
}

// Enroll writes what firmware is told of the keys in dir, and returns the names
// of the files, in the order in which they are to be enrolled: for each of db, KEK
// and PK a certificate (.der), a signature list (.esl), and the variable with its
// signature (.auth, an EFI_VARIABLE_AUTHENTICATION_2, as of now). It overwrites
// nothing. Microsoft's certificates are not among them.
func Enroll(dir string, now time.Time) (names []string, err error) {
	signers := map[string]*Signer{}
	for _, r := range roles {
		if signers[r.name], err = Load(filepath.Join(dir, r.name+".key"), filepath.Join(dir, r.name+".pem")); err != nil {
			return nil, err
		}
	}
	// Firmware shows who put a signature there; the same for all three.
	owner := *util.StringToGUID(uuid.NewSHA1(uuid.NameSpaceOID, signers["PK"].cert.Raw).String())
	var files []file
	for _, r := range slices.Backward(roles) {
		cert := signers[r.name].cert
		list := signature.NewSignatureDatabase()
		if err := list.Append(signature.CERT_X509_GUID, owner, cert.Raw); err != nil {
			return nil, fmt.Errorf("the signature list of %s: %w", r.name, err)
		}
		auth, err := authenticated(r.variable, list.Bytes(), signers[r.signer], now)
		if err != nil {
			return nil, fmt.Errorf("signing %s: %w", r.name, err)
		}
		files = append(files, file{r.name + ".der", cert.Raw, 0o644}, file{r.name + ".esl", list.Bytes(), 0o644}, file{r.name + ".auth", auth, 0o644})
	}
	for _, f := range files {
		names = append(names, f.name)
	}
	return names, writeNew(dir, files)
}

// file is one to write.
type file struct {
	name    string
	content []byte
	mode    fs.FileMode
}

// writeNew writes all of the files or none, and none over another.
func writeNew(dir string, files []file) error {
	for _, f := range files {
		if _, err := os.Lstat(filepath.Join(dir, f.name)); err == nil {
			return fmt.Errorf("%s: %w", filepath.Join(dir, f.name), fs.ErrExist)
		} else if !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	for i, f := range files {
		if err := writeFile(filepath.Join(dir, f.name), f); err != nil {
			for _, made := range files[:i] {
				err = errors.Join(err, os.Remove(filepath.Join(dir, made.name)))
			}
			return err
		}
	}
	return nil
}

func writeFile(path string, f file) error {
	out, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, f.mode)
	if err != nil {
		return err
	}
	_, err = out.Write(f.content)
	if err := errors.Join(err, out.Sync(), out.Close()); err != nil {
		return errors.Join(err, os.Remove(path))
	}
	return nil
}
