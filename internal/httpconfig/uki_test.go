package httpconfig

import (
	"bytes"
	"crypto/sha256"
	"debug/pe"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/provisiond/provisiond/internal/inventory"
	"github.com/provisiond/provisiond/internal/racktest"
)

const ukiPath = "/boot/52:54:00:00:00:01/talos.efi"

// withUKI gives the rack's image files of which a UKI can be made.
func (r *rack) withUKI(t testing.TB) {
	t.Helper()
	write := func(name string, data []byte) inventory.Blob {
		if err := os.WriteFile(filepath.Join(r.blobs.dir, name), data, 0o600); err != nil {
			t.Fatal(err)
		}
		return inventory.Blob{SHA256: name, Size: int64(len(data))}
	}
	r.keeper.change(func(v *inventory.View) {
		i := *v.Image
		i.Stub, i.Kernel, i.Initramfs = write("5tub", racktest.Stub(racktest.AMD64)), write("k3rn31b", racktest.Kernel(racktest.AMD64)), write("1n1trdb", racktest.Initramfs())
		v.Image = &i
	})
}

// lineOf is the kernel line in a UKI.
func lineOf(t *testing.T, b []byte) string {
	t.Helper()
	f, err := pe.NewFile(bytes.NewReader(b))
	if err != nil {
		t.Fatal(err)
	}
	s := f.Section(".cmdline")
	if s == nil {
		t.Fatal("no .cmdline")
	}
	data, err := s.Data()
	if err != nil {
		t.Fatal(err)
	}
	line, _, _ := strings.Cut(string(data), "\x00")
	return line
}

func TestUKI(t *testing.T) {
	r := newRack(t)
	r.withUKI(t)
	r.boots(bootNow(7, token))
	head := r.ask(http.MethodHead, ukiPath+"?arch=amd64", stable)
	if head.Code != http.StatusOK || head.Header().Get("Content-Type") != "application/efi" || len(r.keeper.recorded()) != 0 {
		t.Fatalf("HEAD: %d %v, recorded %v", head.Code, head.Header(), r.keeper.kinds())
	}
	get := r.ask(http.MethodGet, ukiPath+"?arch=amd64", stable)
	body := get.Body.Bytes()
	if get.Code != http.StatusOK || get.Header().Get("Content-Length") != head.Header().Get("Content-Length") || fmt.Sprint(len(body)) != get.Header().Get("Content-Length") {
		t.Fatalf("GET: %d, %d bytes, %v; HEAD said %v", get.Code, len(body), get.Header(), head.Header())
	}
	if want := "slab_nomerge talos.config=https://[2001:db8::1]:8443/config/52:54:00:00:00:01/" + token; lineOf(t, body) != want {
		t.Errorf("its line is %q, want %q", lineOf(t, body), want)
	}
	if kinds := r.keeper.kinds(); !slices.Equal(kinds, []string{"script-served/0/install", "uki-served/7/"}) {
		t.Errorf("recorded %v", kinds)
	}
	for i, e := range r.keeper.recorded() {
		if i == 0 && (e.Way != inventory.ByUKI || e.WayReason == "" || e.Client != inventory.FirmwareHTTP) {
			t.Errorf("recorded %+v", e)
		}
	}
	tag := get.Header().Get("ETag")
	again := r.ask(http.MethodGet, ukiPath+"?arch=amd64", stable)
	if tag == "" || again.Header().Get("ETag") != tag || !bytes.Equal(again.Body.Bytes(), body) {
		t.Errorf("the same boot is given something else: ETag %s, was %s", again.Header().Get("ETag"), tag)
	}
	part := r.ask(http.MethodGet, ukiPath+"?arch=amd64", stable, "Range", "bytes=1000000-", "If-Range", tag)
	if part.Code != http.StatusPartialContent || !bytes.Equal(part.Body.Bytes(), body[1000000:]) {
		t.Errorf("a range: %d, %d bytes", part.Code, part.Body.Len())
	}
	r.boots(bootNow(8, strings.Repeat("b", len(token))))
	other := r.ask(http.MethodGet, ukiPath+"?arch=amd64", stable)
	if other.Header().Get("ETag") == tag || lineOf(t, other.Body.Bytes()) == lineOf(t, body) || other.Body.Len() != len(body) {
		t.Errorf("another boot: ETag %s, line %q, %d bytes", other.Header().Get("ETag"), lineOf(t, other.Body.Bytes()), other.Body.Len())
	}
}

// TestNoUKI has firmware ask where there is none to give: it goes on to its next boot
// option, and what was told is kept.
func TestNoUKI(t *testing.T) {
	for _, c := range []struct {
		name, target string
		spoil        func(r *rack)
		status       int
		says         string
		events       []string
	}{
		{"installed", ukiPath, func(r *rack) { r.keeper.view.Facts.Install.Done = 1 }, http.StatusNotFound, "installed", []string{"script-served/0/disk"}},
		{"a stranger", "/boot/52-54-00-00-00-99/talos.efi", nil, http.StatusNotFound, "not registered", []string{"script-served/0/hold"}},
		{"no MAC", "/boot/x/talos.efi", nil, http.StatusBadRequest, "MAC", nil},
		{"32 bits", ukiPath + "?arch=i386", nil, http.StatusBadRequest, "architecture", nil},
		{"no stub", ukiPath, func(r *rack) { r.keeper.view.Image.Stub = inventory.Blob{} }, http.StatusNotFound, "UKI", []string{"script-served/0/hold"}},
		{"no image", ukiPath, func(r *rack) { r.keeper.view.Image = nil }, http.StatusNotFound, "not imported", []string{"script-served/0/hold"}},
		{"a file is gone", ukiPath, func(r *rack) { r.blobs.err = errors.New("gone") }, http.StatusServiceUnavailable, "log", []string{"script-served/0/hold"}},
		{"config broken", ukiPath, func(r *rack) { r.configs.err = errors.New("secret: s3cr3t") }, http.StatusServiceUnavailable, "no valid config", []string{"script-served/0/hold"}},
		{"line too long", ukiPath, func(r *rack) { r.configs.line = strings.Repeat("x", 3000) }, http.StatusServiceUnavailable, "no valid config", []string{"script-served/0/install", "script-served/0/hold"}},
		{"the store is away", ukiPath, func(r *rack) { r.keeper.viewErr = errors.New("disk full") }, http.StatusServiceUnavailable, "inventory", nil},
		{"nothing starts there", ukiPath, func(r *rack) { r.keeper.view.Machine.SecureBoot = inventory.On }, http.StatusNotFound, "no key here", []string{"script-served/0/hold"}},
		{"it is to be wiped", ukiPath, func(r *rack) { r.keeper.view.Facts.Reimage = inventory.Reimage{Order: inventory.Order{Ordered: 1}} }, http.StatusServiceUnavailable, "wiped", nil},
	} {
		t.Run(c.name, func(t *testing.T) {
			r := newRack(t)
			r.withUKI(t)
			if c.spoil != nil {
				c.spoil(r)
			}
			head := r.ask(http.MethodHead, c.target, stable)
			if head.Code == http.StatusOK && c.name != "line too long" || len(r.keeper.recorded()) != 0 {
				t.Errorf("HEAD: %d, recorded %v", head.Code, r.keeper.kinds())
			}
			get := r.ask(http.MethodGet, c.target, stable)
			if get.Code != c.status || !strings.Contains(get.Body.String(), c.says) || strings.Contains(get.Body.String(), "s3cr3t") {
				t.Errorf("GET: %d %q, want %d that says %q", get.Code, get.Body, c.status, c.says)
			}
			if kinds := r.keeper.kinds(); !slices.Equal(kinds, c.events) {
				t.Errorf("recorded %v, want %v", kinds, c.events)
			}
		})
	}
}

// TestUKIGoesToTheMachine has somebody else ask for it.
func TestUKIGoesToTheMachine(t *testing.T) {
	r := newRack(t)
	r.withUKI(t)
	r.boots(bootNow(7, token))
	for _, method := range []string{http.MethodHead, http.MethodGet} {
		got := r.ask(method, ukiPath, netip.MustParseAddr("2001:db8::99"))
		if got.Code != http.StatusForbidden || strings.Contains(got.Body.String(), token) {
			t.Errorf("%s: %d %s", method, got.Code, got.Body)
		}
	}
	if kinds := r.keeper.kinds(); !slices.Equal(kinds, []string{"script-refused/0/"}) || len(r.trail) != 1 {
		t.Errorf("recorded %v, and %d lines in the audit trail", kinds, len(r.trail))
	}
}

// TestUKIOverTheWire reads it from a socket, where large parts go out by sendfile.
func TestUKIOverTheWire(t *testing.T) {
	r := newRack(t)
	r.withUKI(t)
	r.boots(bootNow(7, token))
	r.keeper.leases[netip.IPv6Loopback()] = mac2
	base := r.serve(t)
	want := r.ask(http.MethodGet, ukiPath, stable).Body.Bytes()
	res, err := http.Get(base + ukiPath)
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	got, err := io.ReadAll(res.Body)
	if err != nil || sha256.Sum256(got) != sha256.Sum256(want) {
		t.Errorf("%d bytes that differ from the %d expected: %v", len(got), len(want), err)
	}
}

// TestFirmwareDoesNotWait: a machine whose wipe is ordered while it asks for its UKI goes on
// to what may be on its disk, so it is not taken for one that waits in its boot loader.
func TestFirmwareDoesNotWait(t *testing.T) {
	r := newRack(t)
	r.withUKI(t)
	r.keeper.view.Facts.Reimage = inventory.Reimage{Order: inventory.Order{Ordered: 1}}
	for client, events := range map[inventory.Client]int{inventory.FirmwareHTTP: 0, inventory.IPXE: 1} {
		e := inventory.Event{Kind: inventory.ScriptServed, MAC: mac1, Client: client, Peer: stable}
		before := len(r.keeper.recorded())
		if st := r.start(t.Context(), &e, "", true); st.verdict != waits || len(r.keeper.recorded())-before != events {
			t.Errorf("%s: %v, and %v is recorded", client, st, r.keeper.kinds())
		}
	}
}
