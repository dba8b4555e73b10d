package daemon

import (
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/provisiond/provisiond/internal/inventory"
)

// configURL is where a machine was sent for its config in its newest boot.
func (l *lab) configURL(v inventory.View) string {
	return "https://" + l.daemon.Addrs().HTTPS.String() + "/config/" + string(v.Machine.BootMAC()) + "/" + v.Facts.Current().Token
}

// client trusts anybody: what it tests is whom we trust.
func (l *lab) client() *http.Client {
	return &http.Client{Transport: &http.Transport{DisableKeepAlives: true, TLSClientConfig: &tls.Config{InsecureSkipVerify: true}}}
}

// checkReplay: the token of a machine that is up opens nothing any more.
func (l *lab) checkReplay(t *testing.T, k *inventory.Keeper) {
	t.Helper()
	views, err := k.Machines(t.Context(), "", 0)
	check(t, err)
	for _, v := range views {
		res, err := l.client().Get(l.configURL(v))
		check(t, err)
		body, err := io.ReadAll(res.Body)
		check(t, err)
		check(t, res.Body.Close())
		if res.StatusCode != http.StatusForbidden || strings.Contains(string(body), "machine:") {
			t.Errorf("the token of %s, which is up: %d %.100s", v.Machine.Name, res.StatusCode, body)
		}
	}
}

// TestHugeUploads: nobody can make a listener read, or keep, what is much too large.
func TestHugeUploads(t *testing.T) {
	l := newLab(t)
	l.cfg.Listen = netip.MustParseAddrPort("[::1]:0")
	l.start(t, l.open(t))
	at := l.daemon.Addrs()
	for name, c := range map[string]struct {
		address string
		tls     bool
		path    string
	}{
		"boot script":   {at.HTTP.String(), false, "/boot/52:54:00:00:00:01/boot.ipxe"},
		"plain config":  {at.HTTP.String(), false, "/config/52:54:00:00:00:01/x/device"},
		"config":        {at.HTTPS.String(), true, "/config/52:54:00:00:00:01/x/device"},
		"API, no login": {at.API.String(), true, "/api/v1/images/blobs/" + strings.Repeat("0", 64)},
		"API, document": {at.API.String(), true, "/api/v1/machines"},
	} {
		t.Run(name, func(t *testing.T) {
			for _, method := range []string{"PUT", "POST", "GET"} {
				conn, err := net.Dial("tcp", c.address)
				check(t, err)
				defer conn.Close()
				if c.tls {
					conn = tls.Client(conn, &tls.Config{InsecureSkipVerify: true})
				}
				check(t, conn.SetDeadline(time.Now().Add(within)))
				_, err = fmt.Fprintf(conn, "%s %s HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n", method, c.path, uint64(10<<30))
				check(t, err)
				piece := make([]byte, 1<<20)
				sent, failed := 0, error(nil)
				for sent < 64 && failed == nil { // MB
					_, failed = conn.Write(piece)
					sent++
				}
				if failed == nil {
					t.Errorf("%s: %d MB of it are read", method, sent)
				}
			}
		})
	}
}
