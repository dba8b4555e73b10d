package secureboot_test

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/foxboron/go-uefi/authenticode"

	"github.com/provisiond/provisiond/internal/secureboot"
	"github.com/provisiond/provisiond/internal/uki"
	"github.com/provisiond/provisiond/internal/uki/ukitest"
)

const line = "talos.platform=metal talos.config=http://[2001:db8::1]/config"

// generated makes keys, and returns their folder.
func generated(t *testing.T) string {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "keys")
	if err := secureboot.Generate(dir, "rack 7"); err != nil {
		t.Fatal(err)
	}
	return dir
}

func load(t *testing.T, dir string) *secureboot.Signer {
	t.Helper()
	s, err := secureboot.Load(secureboot.KeyFiles(dir))
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// made is a UKI as a file, signed unless s is nil.
func made(t *testing.T, s uki.Signer) []byte {
	t.Helper()
	content := ukitest.UKI("amd64", "old", ukitest.Kernel("amd64", 9000), ukitest.Noise("initrd", 9000)).Bytes()
	f, err := uki.Parse(bytes.NewReader(content), int64(len(content)))
	if err != nil {
		t.Fatal(err)
	}
	tpl, err := uki.FromUKI(f)
	if err != nil {
		t.Fatal(err)
	}
	image, err := tpl.Make(line, s)
	if err != nil {
		t.Fatal(err)
	}
	var b []byte
	for _, p := range image.Pieces() {
		if p.Bytes == nil {
			b = append(b, content[p.Offset:][:p.Size]...)
		}
		b = append(b, p.Bytes...)
	}
	return b
}

func check(t *testing.T, b []byte, trusted *x509.Certificate) *secureboot.Report {
	t.Helper()
	r, err := secureboot.Check(bytes.NewReader(b), int64(len(b)), trusted)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func TestSignAndCheck(t *testing.T) {
	s, other := load(t, generated(t)), load(t, generated(t))
	signed := made(t, s)
	if !bytes.Equal(signed, made(t, s)) {
		t.Error("signed twice, the bytes are different")
	}
	// Within a second they would be the same with a time as well (PKCS #9, signingTime).
	if bytes.Contains(signed, []byte("\x2a\x86\x48\x86\xf7\x0d\x01\x09\x05")) {
		t.Error("the signature says when it was made")
	}
	for _, trusted := range []*x509.Certificate{nil, s.Certificate()} {
		r := check(t, signed, trusted)
		if len(r.Problems) > 0 || len(r.Signatures) != 1 || r.Signatures[0].Err != nil || !r.Signatures[0].Signer.Equal(s.Certificate()) {
			t.Errorf("signed by us: %q, %+v", r.Problems, r.Signatures)
		}
		if !r.UKI || r.File.Line() != line {
			t.Errorf("UKI %v with line %q", r.UKI, r.File.Line())
		}
	}
	if r := check(t, signed, other.Certificate()); len(r.Problems) != 1 || !strings.Contains(r.Problems[0], "of rack 7 db") {
		t.Errorf("signed by another: %q", r.Problems)
	}
	if r := check(t, made(t, nil), nil); !slices.Equal(r.Problems, []string{"the image is not signed"}) {
		t.Errorf("not signed: %q", r.Problems)
	}
}

// One byte that is changed anywhere, and the image does not start; but for the
// checksum, which nobody reads.
func TestTampered(t *testing.T) {
	s := load(t, generated(t))
	signed := made(t, s)
	f, err := uki.Parse(bytes.NewReader(signed), int64(len(signed)))
	if err != nil {
		t.Fatal(err)
	}
	at, size := f.Certificates()
	checksum := int64(64 + 24 + 64)
	padding := at + 8 + int64(s.Size()) // behind the signature, up to a multiple of 8
	for i := int64(0); i < at+size; i++ {
		if i > 400 && i < at-64 && i%499 != 0 || i > at+16 && i%29 != 0 {
			continue // a few of the sections, and of the signature
		}
		b := bytes.Clone(signed)
		b[i] ^= 0x04
		r, err := secureboot.Check(bytes.NewReader(b), int64(len(b)), s.Certificate())
		bad := err != nil || len(r.Problems) > 0
		if free := i >= checksum && i < checksum+4 || i >= padding; bad == free {
			// In the signature there are bytes that say nothing: who reads it skips them.
			if i < at {
				t.Errorf("byte %d was changed: refused %v (%v)", i, bad, err)
			}
		}
	}
	for what, i := range map[string]int64{"the digest": int64(bytes.LastIndex(signed, digestOf(t, f))), "the last byte of the signature": padding - 1} {
		b := bytes.Clone(signed)
		b[i] ^= 1
		if r := check(t, b, s.Certificate()); len(r.Problems) == 0 {
			t.Errorf("%s was changed, and the image is good", what)
		}
	}
}

func digestOf(t *testing.T, f *uki.File) []byte {
	t.Helper()
	d, err := f.Digest()
	if err != nil {
		t.Fatal(err)
	}
	return d[:]
}

// Others who read such files agree.
func TestOthersVerify(t *testing.T) {
	dir := generated(t)
	s := load(t, dir)
	signed, unsigned := made(t, s), made(t, nil)
	theirs, err := authenticode.Parse(bytes.NewReader(signed))
	if err != nil {
		t.Fatal(err)
	}
	if got, want := theirs.Hash(crypto.SHA256), sum(t, signed); !bytes.Equal(got, want) {
		t.Errorf("go-uefi's digest is %x, ours %x", got, want)
	}
	tampered := bytes.Clone(signed)
	tampered[bytes.Index(tampered, []byte("2001:db8::1"))] = '3'
	other := generated(t)
	_, certificate := secureboot.KeyFiles(dir)
	_, foreign := secureboot.KeyFiles(other)
	for _, c := range []struct {
		name, certificate string
		content           []byte
		good              bool
	}{
		{"signed", certificate, signed, true},
		{"signed by another", foreign, signed, false},
		{"tampered with", certificate, tampered, false},
		{"not signed", certificate, unsigned, false},
	} {
		out, err := program(t, "sbverify", "--cert", c.certificate, file(t, c.content))
		if (err == nil) != c.good {
			t.Errorf("sbverify of an image that is %s: %v\n%s", c.name, err, out)
		}
	}
	out, err := program(t, "objdump", "-h", file(t, signed))
	if err != nil || strings.Count(out, " .cmdline ") != 1 || !strings.Contains(out, " .linux ") || strings.Contains(out, ".profile") {
		t.Errorf("objdump: %v\n%s", err, out)
	}
}

func sum(t *testing.T, b []byte) []byte {
	t.Helper()
	f, err := uki.Parse(bytes.NewReader(b), int64(len(b)))
	if err != nil {
		t.Fatal(err)
	}
	return digestOf(t, f)
}

// program runs one that CI has.
func program(t *testing.T, name string, args ...string) (string, error) {
	t.Helper()
	path, err := exec.LookPath(name)
	if err != nil {
		if os.Getenv("CI") != "" {
			t.Fatalf("%v: CI leaves no reader out", err)
		}
		t.Skipf("LEFT OUT: %s reads what was made (Debian's packages sbsigntool, binutils, efitools, openssl)", name)
	}
	out, err := exec.CommandContext(t.Context(), path, args...).CombinedOutput()
	return string(out), err
}

func file(t *testing.T, content []byte) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(path, content, 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// iPXE and the like are signed beside who has signed them.
func TestSignImage(t *testing.T) {
	a, b := load(t, generated(t)), load(t, generated(t))
	image := ukitest.PE{FileAlignment: 32, SectionAlignment: 32, Symbols: 1, Sections: []ukitest.Section{
		{Name: ".text", Content: ukitest.Noise("ipxe", 5000), Flags: ukitest.Code},
		{Name: ".bss", Zeros: 100, Flags: ukitest.BSS},
		{Name: ".data", Content: ukitest.Noise("data", 333)},
	}}.Bytes()
	for _, s := range []*secureboot.Signer{a, b} {
		var out bytes.Buffer
		if err := s.SignImage(&out, bytes.NewReader(image), int64(len(image))); err != nil {
			t.Fatal(err)
		}
		image = out.Bytes()
	}
	for _, s := range []*secureboot.Signer{a, b} {
		r := check(t, image, s.Certificate())
		if len(r.Problems) > 0 || len(r.Signatures) != 2 || r.UKI {
			t.Errorf("%q, %d signatures, UKI %v", r.Problems, len(r.Signatures), r.UKI)
		}
		cert := file(t, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: s.Certificate().Raw}))
		if out, err := program(t, "sbverify", "--cert", cert, file(t, image)); err != nil {
			t.Errorf("sbverify: %v\n%s", err, out)
		}
	}
	tail := append(bytes.Clone(image), make([]byte, 8)...)
	if err := a.SignImage(io.Discard, bytes.NewReader(tail), int64(len(tail))); err == nil || !strings.Contains(err.Error(), "not at the end") {
		t.Errorf("an image with something behind its signatures: %v", err)
	}
	var e *uki.Error
	if err := a.SignImage(io.Discard, strings.NewReader("<html>"), 6); !errors.As(err, &e) {
		t.Errorf("a page of errors: %v", err)
	}
}

// What sbsign makes has attributes, and is good too; its attributes are looked at.
func TestCheckSbsign(t *testing.T) {
	dir := generated(t)
	key, certificate := secureboot.KeyFiles(dir)
	out := filepath.Join(t.TempDir(), "out")
	if text, err := program(t, "sbsign", "--key", key, "--cert", certificate, "--output", out, file(t, made(t, nil))); err != nil {
		t.Fatalf("%v\n%s", err, text)
	}
	b, err := os.ReadFile(out)
	if err != nil {
		t.Fatal(err)
	}
	s := load(t, dir)
	if r := check(t, b, s.Certificate()); len(r.Problems) > 0 {
		t.Errorf("%q, %+v", r.Problems, r.Signatures)
	}
	// Another's digest in the content, under attributes that are signed as before.
	changed := bytes.Clone(b)
	i := bytes.Index(changed, []byte("2001:db8"))
	changed[i] = '3'
	was, is := sum(t, b), sum(t, changed)
	if n := bytes.Count(changed, was); n != 1 {
		t.Fatalf("%d times the digest, want 1", n)
	}
	changed = bytes.Replace(changed, was, is, 1)
	if r := check(t, changed, s.Certificate()); len(r.Problems) == 0 {
		t.Error("an image whose digest was replaced in its signature is good")
	}
}

func TestCheckTable(t *testing.T) {
	s := load(t, generated(t))
	signed := made(t, s)
	at := int64(len(signed)) - (int64(8+s.Size())+7)&^7
	for name, c := range map[string]struct {
		change func(b []byte)
		says   string
	}{
		"an entry of 3 bytes":     {func(b []byte) { copy(b[at:], []byte{3, 0, 0, 0}) }, "says that it has 3 bytes"},
		"an entry that is long":   {func(b []byte) { copy(b[at:], []byte{0, 0, 1, 0}) }, "says that it has 65536 bytes"},
		"of another type":         {func(b []byte) { b[at+6] = 0xf1 }, "type 0xf1"},
		"a signature of nonsense": {func(b []byte) { clear(b[at+8:]) }, "no signature is good"},
	} {
		b := bytes.Clone(signed)
		c.change(b)
		if r := check(t, b, nil); len(r.Problems) != 1 || !strings.Contains(r.Problems[0], c.says) {
			t.Errorf("%s: %q", name, r.Problems)
		}
	}
}

func TestLoadRefuses(t *testing.T) {
	dir := generated(t)
	key, certificate := secureboot.KeyFiles(dir)
	write := func(kind string, der []byte) string {
		return file(t, pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}))
	}
	curve, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	curveDER, err := x509.MarshalPKCS8PrivateKey(curve)
	if err != nil {
		t.Fatal(err)
	}
	t.Setenv("GODEBUG", "rsa1024min=0")
	short, err := rsa.GenerateKey(rand.Reader, 1024)
	if err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct{ key, certificate, says string }{
		"no such key":                {"/nowhere", certificate, "/nowhere"},
		"no such certificate":        {key, "/nowhere", "/nowhere"},
		"not PEM":                    {file(t, []byte("x")), certificate, "is not PEM"},
		"certificate for key":        {certificate, certificate, "type CERTIFICATE, want PRIVATE KEY"},
		"key for certificate":        {key, key, "does not hold one certificate"},
		"another's key":              {filepath.Join(dir, "PK.key"), certificate, "is not that of the certificate"},
		"a curve":                    {write("PRIVATE KEY", curveDER), certificate, "not RSA"},
		"1,024 bits":                 {write("RSA PRIVATE KEY", x509.MarshalPKCS1PrivateKey(short)), certificate, "1024 bits"},
		"encrypted":                  {write("ENCRYPTED PRIVATE KEY", []byte("x")), certificate, "is encrypted"},
		"a key of nonsense":          {write("PRIVATE KEY", []byte("secret")), certificate, "cannot be read"},
		"nonsense for a certificate": {key, write("CERTIFICATE", []byte("x")), "cannot be read"},
	} {
		_, err := secureboot.Load(c.key, c.certificate)
		if err == nil || !strings.Contains(err.Error(), c.says) {
			t.Errorf("%s: %v, want %q", name, err, c.says)
		}
	}
}

func TestGenerate(t *testing.T) {
	dir := generated(t)
	serials := map[string]bool{}
	for _, name := range []string{"PK", "KEK", "db"} {
		info, err := os.Stat(filepath.Join(dir, name+".key"))
		if err != nil || info.Mode().Perm() != 0o600 {
			t.Errorf("%s.key: %v, %v, want mode 0600", name, info, err)
		}
		cert, err := secureboot.ReadCertificate(filepath.Join(dir, name+".pem"))
		if err != nil {
			t.Fatal(err)
		}
		serials[cert.SerialNumber.String()] = true
		if cert.Subject.CommonName != "rack 7 "+name || cert.NotBefore.Year() != 1970 || cert.NotAfter.Year() < 2045 || cert.CheckSignatureFrom(cert) != nil {
			t.Errorf("%s from %v to %v", cert.Subject, cert.NotBefore, cert.NotAfter)
		}
	}
	if len(serials) != 3 {
		t.Errorf("serials %v, want three", serials)
	}
	before, err := os.ReadFile(filepath.Join(dir, "db.key"))
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(filepath.Join(dir, "PK.key")); err != nil {
		t.Fatal(err)
	}
	if err := secureboot.Generate(dir, "again"); !errors.Is(err, fs.ErrExist) {
		t.Errorf("made over others: %v", err)
	}
	if after, err := os.ReadFile(filepath.Join(dir, "db.key")); err != nil || !bytes.Equal(before, after) {
		t.Errorf("the key was changed (%v)", err)
	}
	if _, err := os.Stat(filepath.Join(dir, "PK.key")); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("some were made: %v", err)
	}
}

func TestEnroll(t *testing.T) {
	dir := generated(t)
	now := time.Date(2026, 3, 4, 5, 6, 7, 8, time.FixedZone("east", 3600))
	names, err := secureboot.Enroll(dir, now)
	if err != nil || len(names) != 9 || names[0] != "db.der" || names[8] != "PK.auth" {
		t.Fatalf("%v, %v", names, err)
	}
	for _, v := range []struct{ name, owner, signer string }{
		{"PK", "\x61\xdf\xe4\x8b\xca\x93\xd2\x11\xaa\x0d\x00\xe0\x98\x03\x2b\x8c", "PK"},
		{"KEK", "\x61\xdf\xe4\x8b\xca\x93\xd2\x11\xaa\x0d\x00\xe0\x98\x03\x2b\x8c", "PK"},
		{"db", "\xcb\xb2\x19\xd7\x3a\x3d\x96\x45\xa3\xbc\xda\xd0\x0e\x67\x65\x6f", "KEK"},
	} {
		read := func(suffix string) []byte {
			b, err := os.ReadFile(filepath.Join(dir, v.name+suffix))
			if err != nil {
				t.Fatal(err)
			}
			return b
		}
		auth, list, der := read(".auth"), read(".esl"), read(".der")
		// Others read the list.
		certs := filepath.Join(t.TempDir(), "cert")
		if out, err := program(t, "sig-list-to-certs", filepath.Join(dir, v.name+".esl"), certs); err != nil {
			t.Errorf("sig-list-to-certs: %v\n%s", err, out)
		} else if got, err := os.ReadFile(certs + "-0.der"); err != nil || !bytes.Equal(got, der) {
			t.Errorf("%s.esl has another certificate (%v)", v.name, err)
		}
		// EFI_TIME, and a WIN_CERTIFICATE_UEFI_GUID of EFI_CERT_TYPE_PKCS7_GUID.
		at := "\xea\x07\x03\x04\x04\x06\x07\x00" + strings.Repeat("\x00", 8)
		if string(auth[:16]) != at || string(auth[20:24]) != "\x00\x02\xf1\x0e" || string(auth[24:40]) != "\x9d\xd2\xaf\x4a\xdf\x68\xee\x49\x8a\xa9\x34\x7d\x37\x56\x65\xa7" {
			t.Errorf("%s.auth begins with %x", v.name, auth[:40])
		}
		length := int(auth[16]) | int(auth[17])<<8
		if !bytes.Equal(auth[16+length:], list) {
			t.Errorf("%s.auth does not end with the list", v.name)
		}
		// SignedData as such; openssl wants it in a ContentInfo.
		data := auth[40 : 16+length]
		info := append([]byte{0x30, 0x82, 0, 0, 6, 9, 0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 1, 7, 2, 0xa0, 0x82, byte(len(data) >> 8), byte(len(data))}, data...)
		info[2], info[3] = byte((len(info)-4)>>8), byte(len(info)-4)
		var signed []byte
		for _, c := range []byte(v.name) {
			signed = append(signed, c, 0)
		}
		signed = append(signed, v.owner+"\x27\x00\x00\x00"+at...)
		signed = append(signed, list...)
		out, err := program(t, "openssl", "smime", "-verify", "-binary", "-inform", "DER", "-in", file(t, info), "-content", file(t, signed),
			"-CAfile", filepath.Join(dir, v.signer+".pem"), "-purpose", "any", "-out", os.DevNull)
		if err != nil {
			t.Errorf("%s.auth is not signed by %s: %v\n%s", v.name, v.signer, err, out)
		}
		signed[0] ^= 1
		if _, err := program(t, "openssl", "smime", "-verify", "-binary", "-inform", "DER", "-in", file(t, info), "-content", file(t, signed),
			"-CAfile", filepath.Join(dir, v.signer+".pem"), "-purpose", "any", "-out", os.DevNull); err == nil {
			t.Errorf("%s.auth is good for another variable", v.name)
		}
	}
	if _, err := secureboot.Enroll(dir, now); !errors.Is(err, fs.ErrExist) {
		t.Errorf("written over others: %v", err)
	}
}

// FuzzCheck reads images that anybody may have signed.
func FuzzCheck(f *testing.F) {
	dir := filepath.Join(f.TempDir(), "keys")
	if err := secureboot.Generate(dir, "fuzz"); err != nil {
		f.Fatal(err)
	}
	s, err := secureboot.Load(secureboot.KeyFiles(dir))
	if err != nil {
		f.Fatal(err)
	}
	signature, err := s.Sign(sha256.Sum256(nil))
	if err != nil {
		f.Fatal(err)
	}
	f.Add(signature)
	f.Add([]byte{0x30, 0})
	f.Fuzz(func(t *testing.T, signature []byte) {
		table := append([]byte{byte(8 + len(signature)), byte((8 + len(signature)) >> 8), 0, 0, 0, 2, 2, 0}, signature...)
		b := ukitest.PE{Sections: []ukitest.Section{{Name: ".text", Content: []byte("x"), Flags: ukitest.Code}}, Certificates: table}.Bytes()
		r, err := secureboot.Check(bytes.NewReader(b), int64(len(b)), s.Certificate())
		if err != nil {
			t.Fatal(err)
		}
		if len(r.Problems) == 0 {
			t.Error("a signature that nobody made is good")
		}
	})
}
