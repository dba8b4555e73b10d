package racktest

import (
	"cmp"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"math/big"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/siderolabs/talos/pkg/machinery/config/machine"
)

// TestTrustedRoots: over https a config is fetched from who has the roots of
// talos.config.early, after one failed handshake if the network was there before
// them; from nobody else.
func TestTrustedRoots(t *testing.T) {
	for _, c := range []struct {
		name    string
		network string // documents of the early config that bring the network
		tries   int
	}{
		{"network from the kernel line", "", 2},
		{"network from the early config", "apiVersion: v1alpha1\nkind: LinkConfig\nname: enx525400000001\n---\napiVersion: v1alpha1\nkind: DHCPv6Config\nname: enx525400000001\n", 1},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := newSite(t)
			m := newMachine(t, s, nil)
			body := machineConfig(t, newBundle(), machine.TypeControlPlane, cmp.Or(c.network, staticPatch(m.MAC(), address(m.MAC(), 0), "cp-1")))
			server := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write(body) }))
			cert, root := loopbackCertificate(t)
			server.TLS = &tls.Config{Certificates: []tls.Certificate{cert}}
			server.Listener.Close()
			var err error
			if server.Listener, err = net.Listen("tcp6", "[::1]:0"); err != nil {
				t.Fatal(err)
			}
			server.StartTLS()
			defer server.Close()
			early := zstdBase64(t, c.network+"---\napiVersion: v1alpha1\nkind: TrustedRootsConfig\nname: x\ncertificates: |\n    "+strings.ReplaceAll(strings.TrimSpace(root), "\n", "\n    ")+"\n")
			s.kernelLine = func(l string) string {
				kept := []string{"talos.config.early=" + early}
				for _, w := range strings.Fields(l) {
					switch {
					case strings.HasPrefix(w, "talos.config="):
						w = "talos.config=" + server.URL + "/"
					case strings.HasPrefix(w, "ip=") && c.network != "":
						continue
					}
					kept = append(kept, w)
				}
				return strings.Join(kept, " ")
			}
			mustBoot(t, m)
			failed := 0
			for _, step := range m.Timeline().Entries() {
				if strings.Contains(step.Note, "certificate signed by unknown authority") {
					failed++
				}
			}
			if failed != c.tries-1 {
				t.Errorf("%d failed handshakes, want %d", failed, c.tries-1)
			}
		})
	}
}

func loopbackCertificate(t *testing.T) (tls.Certificate, string) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	c := &x509.Certificate{
		SerialNumber: big.NewInt(1), NotAfter: time.Now().Add(time.Hour), IPAddresses: []net.IP{net.IPv6loopback},
		IsCA: true, BasicConstraintsValid: true,
	}
	der, err := x509.CreateCertificate(rand.Reader, c, c, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}, string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}))
}
