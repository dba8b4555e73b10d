package httpconfig

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"math/big"
	"net"
	"net/http"
	"net/netip"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/provisiond/provisiond/internal/inventory"
)

// serveTLS runs the encrypted server until the test ends, and returns a client that
// trusts it and the URL of its root.
func (r *rack) serveTLS(t testing.TB) (*http.Client, string) {
	t.Helper()
	l, err := net.Listen("tcp", "[::1]:0")
	if err != nil {
		t.Fatal(err)
	}
	r.Server.config.URLs.HTTP = loopback
	cert := selfSigned(t)
	roots := x509.NewCertPool()
	roots.AddCert(cert.Leaf)
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() {
		done <- r.ServeTLS(ctx, l, func(*tls.ClientHelloInfo) (*tls.Certificate, error) { return cert, nil })
	}()
	t.Cleanup(func() {
		cancel()
		select {
		case err := <-done:
			if err != nil {
				t.Errorf("ServeTLS returned %v", err)
			}
		case <-time.After(deadline):
			t.Error("ServeTLS does not return")
		}
	})
	transport := &http.Transport{TLSClientConfig: &tls.Config{RootCAs: roots}, ForceAttemptHTTP2: true}
	t.Cleanup(transport.CloseIdleConnections)
	return &http.Client{Transport: transport}, "https://" + l.Addr().String()
}

func selfSigned(t testing.TB) *tls.Certificate {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	c := &x509.Certificate{SerialNumber: big.NewInt(1), NotAfter: time.Now().Add(time.Hour), IPAddresses: []net.IP{net.IPv6loopback}}
	der, err := x509.CreateCertificate(rand.Reader, c, c, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	leaf, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return &tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key, Leaf: leaf}
}

// TestDelivery: a config leaves over TLS, and over plain HTTP only if its cluster says so.
func TestDelivery(t *testing.T) {
	for _, c := range []struct {
		delivery inventory.Delivery
		url      string // that the machine is given
		plain    int    // status of plain HTTP
	}{
		{"", "https://[2001:db8::1]:8443/", 403},
		{inventory.OverHTTPS, "https://[2001:db8::1]:8443/", 403},
		{inventory.OverHTTP, "http://[2001:db8::1]:8080/", 200},
	} {
		r := newRack(t)
		r.boots(bootNow(7, token))
		r.keeper.view.Cluster.Delivery = c.delivery
		if w := r.over(r.router, http.MethodGet, configPath+token, stable); w.Code != c.plain || strings.Contains(w.Body.String(), "v1alpha1") != (c.plain == 200) {
			t.Errorf("%q: plain HTTP gives %d %q", c.delivery, w.Code, w.Body)
		}
		if w := r.ask(http.MethodGet, configPath+token, stable); w.Code != 200 {
			t.Errorf("%q: https gives %d", c.delivery, w.Code)
		}
		if script := r.ask(http.MethodGet, "/boot/52:54:00:00:00:01/boot.ipxe?arch=x86_64", stable).Body.String(); !strings.Contains(script, "talos.config="+c.url) {
			t.Errorf("%q: the script is\n%s", c.delivery, script)
		}
	}
}

// TestServeTLS: over the encrypted listener a machine gets its config and nothing
// else; whoever does not trust us, and whoever speaks an older TLS, gets nothing.
func TestServeTLS(t *testing.T) {
	r := newRack(t)
	r.boots(bootNow(7, token))
	client, base := r.serveTLS(t)
	res, err := client.Get(base + configPath + token)
	if err != nil {
		t.Fatal(err)
	}
	body, err := io.ReadAll(res.Body)
	res.Body.Close()
	if err != nil || res.StatusCode != http.StatusOK || string(body) != "version: v1alpha1\n---\nkind: LinkConfig\n" || res.TLS.Version != tls.VersionTLS13 || res.Proto != "HTTP/1.1" {
		t.Errorf("%d %s %q %v", res.StatusCode, res.Proto, body, err)
	}
	for _, path := range []string{"/", "/boot.ipxe", "/boot/52:54:00:00:00:01/boot.ipxe", "/loader/amd64/snponly.efi", imagePath + "kernel"} {
		res, err := client.Get(base + path)
		if err != nil {
			t.Fatal(err)
		}
		res.Body.Close()
		if res.StatusCode != http.StatusNotFound {
			t.Errorf("%s: %d over the encrypted listener", path, res.StatusCode)
		}
	}
	var unknown x509.UnknownAuthorityError
	strange := &http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{RootCAs: x509.NewCertPool()}}}
	if _, err := strange.Get(base + configPath + token); !errors.As(err, &unknown) {
		t.Errorf("without our CA: %v", err)
	}
	old := client.Transport.(*http.Transport).Clone()
	old.TLSClientConfig.MaxVersion = tls.VersionTLS12
	if _, err := (&http.Client{Transport: old}).Get(base + configPath + token); err == nil {
		t.Error("TLS 1.2 is spoken")
	}
	if n := len(r.keeper.recorded()); n != 1 {
		t.Errorf("recorded %v", r.keeper.kinds())
	}
}

// TestScriptGoesToTheMachine: a script, which carries the token of a boot, is given to
// an address of the machine only; nobody else begins a boot of it either.
func TestScriptGoesToTheMachine(t *testing.T) {
	for _, spoil := range []func(r *rack){
		func(*rack) {}, // to be installed
		func(r *rack) { // asks again and again whether it may be wiped
			r.keeper.view.Facts.Install.Done = 1
			r.keeper.view.Facts.Reimage = inventory.Reimage{Order: inventory.Order{Ordered: 1}}
		},
	} {
		r := newRack(t)
		r.boots(bootNow(7, token))
		spoil(r)
		for _, from := range []netip.Addr{alien, inventory.MAC("52:54:00:00:00:09").LinkLocal(), netip.IPv6Loopback()} {
			before := len(r.keeper.recorded())
			w := r.ask(http.MethodGet, scriptPath+"?retry="+token, from)
			if body := w.Body.String(); w.Code != 200 || !strings.Contains(body, from.String()+" is no address of cp-1") || strings.Contains(body, "kernel http:") || strings.Contains(body, token) {
				t.Errorf("%s is answered %d\n%s", from, w.Code, body)
			}
			if events := r.keeper.recorded()[before:]; len(events) != 1 || events[0].Kind != inventory.ScriptRefused || events[0].Peer != from {
				t.Errorf("recorded %+v", events)
			}
		}
		if len(r.keeper.view.Facts.Boots) != 1 || r.keeper.view.Facts.Boots[0].Waits {
			t.Errorf("others moved its boot: %+v", r.keeper.view.Facts.Boots)
		}
		for _, own := range []netip.Addr{stable, leased, mac2.LinkLocal()} {
			if body := r.ask(http.MethodGet, scriptPath, own).Body.String(); strings.Contains(body, "no address of") {
				t.Errorf("%s is answered\n%s", own, body)
			}
		}
	}
}

// TestGuessesAreLimited: whoever tries token after token is not looked at any more,
// and the machine is served meanwhile.
func TestGuessesAreLimited(t *testing.T) {
	r := newRack(t)
	r.boots(bootNow(7, token))
	statuses := map[int]int{}
	for i := range 3 * guessBurst {
		statuses[r.ask(http.MethodGet, configPath+fmt.Sprintf("%022d", i), alien).Code]++
	}
	if statuses[403] < guessBurst || statuses[403] > guessBurst+2 || statuses[429] != 3*guessBurst-statuses[403] {
		t.Errorf("answered %v", statuses)
	}
	if w := r.ask(http.MethodGet, configPath+token, alien); w.Code != 429 || strings.Contains(w.Body.String(), "v1alpha1") {
		t.Errorf("the right token from there: %d", w.Code)
	}
	if w := r.ask(http.MethodGet, configPath+token, stable); w.Code != 200 {
		t.Errorf("the machine gets %d", w.Code)
	}
	// However many addresses try one machine, they do not fill the trail for all.
	for i := range 20 * guessBurst {
		r.ask(http.MethodGet, configPath+"wrong", netip.AddrFrom16([16]byte{0x20, 1, 14: byte(i >> 8), 15: byte(i)}))
	}
	if n := len(r.trail); n > 2*guessBurst {
		t.Errorf("%d lines in the trail", n)
	}
	if r.ask(http.MethodGet, configPath+token, inventory.MAC("52:54:00:00:00:77").LinkLocal()); !strings.Contains(r.keeper.view.Facts.Alarm(), "fe80::5054:ff:fe00:77") {
		t.Errorf("a stolen token among them: alarm %q", r.keeper.view.Facts.Alarm())
	}
	for i := range 2 * maxGuessed {
		r.guessers.wrong(netip.AddrFrom16([16]byte{0x20, 1, 14: byte(i >> 8), 15: byte(i)}))
	}
	if n := len(r.guessers.by); n > maxGuessed {
		t.Errorf("remembers %d addresses", n)
	}
}

// TestWhoIsTheMachine: an address that anybody on the segment can give himself is the
// machine's only from one of its NICs, and a link-local one only from its segment.
func TestWhoIsTheMachine(t *testing.T) {
	evil := inventory.MAC("52:54:00:66:66:66")
	on := func(a netip.Addr, zone string) netip.Addr { return a.WithZone(zone) }
	for name, c := range map[string]struct {
		attached string
		peer     netip.Addr
		at       inventory.MAC // that the neighbour table has for it; empty: none
		why      string
	}{
		"its address":                     {"rack0", stable, mac1, ""},
		"its other NIC":                   {"rack0", stable, mac2, ""},
		"its address, taken":              {"rack0", stable, evil, "2001:db8::11 is at 52:54:00:66:66:66, which is no NIC of cp-1"},
		"its lease, taken":                {"rack0", leased, evil, "is no NIC of cp-1"},
		"its address, of nobody":          {"rack0", stable, "", "2001:db8::11 has no link-layer address on rack0"},
		"behind a router":                 {"", stable, "", ""},
		"link-local":                      {"rack0", on(mac1.LinkLocal(), "rack0"), mac1, ""},
		"link-local, taken":               {"rack0", on(mac1.LinkLocal(), "rack0"), evil, "is no NIC of cp-1"},
		"link-local on another segment":   {"rack0", on(mac1.LinkLocal(), "mgmt0"), mac1, "fe80::5054:ff:fe00:1%mgmt0 has no link-layer address on mgmt0"},
		"of its MAC, and somebody else's": {"rack0", netip.MustParseAddr("2001:db8::5054:ff:fe00:1"), evil, "is no NIC of cp-1"},
		"another address":                 {"rack0", alien, mac1, "2001:db8::bad is no address of cp-1"},
	} {
		t.Run(name, func(t *testing.T) {
			r := newRack(t)
			r.boots(bootNow(7, token))
			r.keeper.attached = c.attached
			r.keeper.neighbours = map[netip.Addr]inventory.MAC{}
			if c.at != "" {
				r.keeper.neighbours[c.peer.WithZone("")] = c.at
			}
			for _, path := range []string{configPath + token, scriptPath} {
				w := r.ask(http.MethodGet, path, c.peer)
				secret := strings.Contains(w.Body.String(), "v1alpha1") || strings.Contains(w.Body.String(), "talos.config=")
				if secret != (c.why == "") {
					t.Errorf("%s: %d %s", path, w.Code, w.Body)
				}
			}
			if c.why != "" && !strings.Contains(r.trail[0].Reason, c.why) {
				t.Errorf("the trail has %+v", r.trail)
			}
		})
	}
}

// TestForeignScripts: who asks in the name of a machine moves nothing that is known of
// it, whatever its plan is.
func TestForeignScripts(t *testing.T) {
	for name, spoil := range map[string]func(v *inventory.View){
		"installed": func(v *inventory.View) { v.Facts.Install.Done = 1 },
		"held":      func(v *inventory.View) { v.Cluster = nil },
		"no image":  func(v *inventory.View) { v.Image = nil },
	} {
		r := newRack(t)
		r.boots(bootNow(7, token))
		r.keeper.change(spoil)
		before := r.keeper.view.Facts.Clone()
		for i := range 3 * guessBurst {
			r.ask(http.MethodGet, scriptPath+fmt.Sprintf("?uuid=00000000-0000-0000-0000-0000000000%02d&serial=x&arch=arm64", i), alien)
		}
		if !reflect.DeepEqual(before, r.keeper.view.Facts) {
			t.Errorf("%s: %+v became %+v", name, before, r.keeper.view.Facts)
		}
		if n := len(r.keeper.recorded()); n > guessBurst+1 {
			t.Errorf("%s: %d events", name, n)
		}
	}
}
