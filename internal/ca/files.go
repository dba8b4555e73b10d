package ca

import (
	"crypto/tls"
	"fmt"
	"os"
	"sync"
	"time"
)

// Files is a server certificate and its key in two files, read again when either
// was changed or replaced. It is safe for concurrent use.
type Files struct {
	cert, key string
	warn      func(error)

	mu   sync.Mutex
	pair *tls.Certificate
	seen [2]os.FileInfo
}

// OpenFiles reads a pair of PEM files. warn is told, once for each change, of a
// pair that is not taken over because it does not parse or belong together; the
// one before it stays. It is an error if the first pair is no good.
func OpenFiles(cert, key string, warn func(error)) (*Files, error) {
	f := &Files{cert: cert, key: key, warn: warn}
	if err := f.read(); err != nil {
		return nil, err
	}
	return f, nil
}

// GetCertificate is for tls.Config. It looks at the files at every handshake, so
// that whoever renews them has nothing to tell us.
func (f *Files) GetCertificate(*tls.ClientHelloInfo) (*tls.Certificate, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if err := f.read(); err != nil {
		f.warn(err)
	}
	return f.pair, nil
}

// Expires is when the certificate expires that was taken over last.
func (f *Files) Expires() time.Time {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.pair.Leaf.NotAfter
}

// read takes over the files if they are others than last time. Whoever renews
// them may replace one before the other: the pair is no good until then, and the
// second change brings us back.
func (f *Files) read() error {
	var now [2]os.FileInfo
	for i, name := range []string{f.cert, f.key} {
		info, err := os.Stat(name)
		if err != nil && f.pair == nil {
			return err
		}
		now[i] = info // nil: it is gone
	}
	if f.pair != nil && same(now[0], f.seen[0]) && same(now[1], f.seen[1]) {
		return nil
	}
	f.seen = now
	pair, err := tls.LoadX509KeyPair(f.cert, f.key)
	if err != nil {
		return fmt.Errorf("%s and %s: %w", f.cert, f.key, err)
	}
	f.pair = &pair
	return nil
}

func same(a, b os.FileInfo) bool {
	if a == nil || b == nil {
		return a == nil && b == nil
	}
	return os.SameFile(a, b) && a.ModTime().Equal(b.ModTime()) && a.Size() == b.Size()
}
