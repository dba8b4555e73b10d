package httpconfig

import (
	"fmt"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/provisiond/provisiond/internal/inventory"
)

// ask sends a request to the handler from a peer, over TLS if it is for a config;
// headers are pairs.
func (r *rack) ask(method, target string, peer netip.Addr, headers ...string) *httptest.ResponseRecorder {
	if strings.HasPrefix(target, "/config/") {
		return r.over(r.secure, method, "https://[2001:db8::1]"+target, peer, headers...)
	}
	return r.over(r.router, method, target, peer, headers...)
}

func (r *rack) over(h http.Handler, method, target string, peer netip.Addr, headers ...string) *httptest.ResponseRecorder {
	req := httptest.NewRequest(method, target, nil)
	req.RemoteAddr = netip.AddrPortFrom(peer, 40000).String()
	for i := 0; i < len(headers); i += 2 {
		req.Header.Set(headers[i], headers[i+1])
	}
	w := httptest.NewRecorder()
	h.ServeHTTP(w, req)
	return w
}

const imagePath = "/image/v1.13.6/default/amd64/"

func TestRoutes(t *testing.T) {
	kernelSize := strconv.Itoa(8 * (3 << 17))
	for _, c := range []struct {
		method, target string
		headers        []string
		status         int
		want           map[string]string // headers; "" for absent
		body           string            // "*": any
	}{
		{"GET", "/loader/amd64/snponly.efi", nil, 200, map[string]string{"Content-Type": "application/efi", "Content-Length": "7", "Transfer-Encoding": ""}, "snponly"},
		{"GET", "/loader/amd64/snponly.efi?mac=52:54:00:00:00:01", nil, 200, map[string]string{"Content-Type": "application/efi"}, "snponly"},
		{"GET", "/loader/amd64/autoexec.ipxe", nil, 200, map[string]string{"Content-Type": "text/plain; charset=utf-8"}, "*"},
		{"GET", "/loader/amd64/none.efi", nil, 404, map[string]string{"Content-Type": "text/plain; charset=utf-8"}, "no such loader\n"},
		{"GET", "/loader/amd64/", nil, 404, nil, "there is nothing here\n"},
		{"GET", "/loader/amd64", nil, 404, nil, "there is nothing here\n"},
		{"GET", "/loader/", nil, 404, nil, "there is nothing here\n"},
		{"GET", "/loader/../secret", nil, 404, nil, "*"},
		{"GET", "/loader/amd64/..%2f..%2fsecret", nil, 404, nil, "no such loader\n"},
		{"GET", "/loader/amd64/..%2fsecret", nil, 404, nil, "no such loader\n"},
		{"GET", "/loader/%2e%2e/secret", nil, 404, nil, "*"},
		{"GET", "/loader/./secret", nil, 404, nil, "*"},
		{"GET", "/loader/amd64%2fsnponly.efi/x", nil, 404, nil, "no such loader\n"},
		{"POST", "/loader/amd64/snponly.efi", nil, 405, map[string]string{"Allow": "GET, HEAD"}, "*"},

		{"GET", "/boot.ipxe", nil, 200, map[string]string{"Content-Type": "text/plain; charset=utf-8", "Cache-Control": "no-store"}, "*"},
		{"DELETE", "/boot.ipxe", nil, 405, map[string]string{"Allow": "GET, HEAD"}, "*"},
		{"HEAD", "/boot/52:54:00:00:00:01/boot.ipxe", nil, 405, map[string]string{"Allow": "GET"}, ""},
		{"GET", "/boot/junk/boot.ipxe", nil, 400, map[string]string{"Content-Type": "text/plain; charset=utf-8"}, "\"junk\" is not a MAC address: write six octets such as 52:54:00:12:34:56\n"},
		{"GET", "/boot/ff:ff:ff:ff:ff:ff/boot.ipxe", nil, 400, nil, "*"},
		{"GET", "/boot/52%3A54%3A00%3A00%3A00%3A01/boot.ipxe", nil, 200, nil, "*"},
		{"GET", "/boot/52-54-00-00-00-01/boot.ipxe", nil, 200, nil, "*"},

		{"GET", imagePath + "kernel", nil, 200, map[string]string{"Content-Length": kernelSize, "Etag": `"k3rn31"`, "Content-Type": "application/octet-stream", "Accept-Ranges": "bytes"}, "*"},
		{"GET", imagePath + "initramfs", nil, 200, map[string]string{"Content-Length": "9", "Etag": `"1n1trd"`}, "initramfs"},
		{"GET", imagePath + "initramfs", []string{"If-None-Match", `"1n1trd"`}, 304, map[string]string{"Etag": `"1n1trd"`}, ""},
		{"GET", imagePath + "initramfs", []string{"If-None-Match", `"other"`}, 200, nil, "initramfs"},
		{"GET", imagePath + "initramfs", []string{"Range", "bytes=4-"}, 206, map[string]string{"Content-Range": "bytes 4-8/9", "Content-Length": "5"}, "ramfs"},
		{"GET", imagePath + "initramfs", []string{"Range", "bytes=-3"}, 206, nil, "mfs"},
		{"GET", imagePath + "initramfs", []string{"Range", "bytes=9-"}, 416, map[string]string{"Content-Range": "bytes */9"}, "*"},
		{"GET", imagePath + "initramfs", []string{"Range", "bytes=4-", "If-Range", `"other"`}, 200, nil, "initramfs"},
		{"GET", "/image/v1.12.0/abc/arm64/initramfs", nil, 200, nil, "initramfs"},
		{"GET", "/image/v1.12.0/default/arm64/initramfs", nil, 404, nil, "no such boot image\n"},
		{"GET", "/image/v9/default/amd64/kernel", nil, 404, nil, "no such boot image\n"},
		{"GET", imagePath + "vmlinuz", nil, 404, nil, "there is nothing here\n"},
		{"GET", imagePath, nil, 404, nil, "there is nothing here\n"},
		{"GET", "/image/../../etc/amd64/kernel", nil, 404, nil, "*"},
		{"GET", "/image/%2e%2e/%2e%2e/..%2f..%2fetc/kernel", nil, 404, nil, "no such boot image\n"},
		{"PUT", imagePath + "kernel", nil, 405, map[string]string{"Allow": "GET, HEAD"}, "*"},

		{"GET", "/config/52:54:00:00:00:01/wrong", nil, 403, map[string]string{"Content-Type": "text/plain; charset=utf-8", "Cache-Control": "no-store"}, "refused; provisiond's log says why\n"},
		{"GET", "/config/52:54:00:00:00:99/wrong", nil, 404, nil, "refused; provisiond's log says why\n"},
		{"GET", "/config/junk/" + token, nil, 400, nil, "*"},
		{"GET", "/config/52:54:00:00:00:01/", nil, 404, nil, "*"},
		{"GET", "/config/52:54:00:00:00:01", nil, 404, nil, "there is nothing here\n"},
		{"HEAD", "/config/52:54:00:00:00:01/" + token, nil, 405, map[string]string{"Allow": "GET"}, ""},
		{"POST", "/config/52:54:00:00:00:01/" + token, nil, 405, map[string]string{"Allow": "GET"}, "*"},

		{"GET", "/", nil, 404, map[string]string{"Content-Type": "text/plain; charset=utf-8"}, "there is nothing here\n"},
		{"GET", "/favicon.ico", nil, 404, nil, "there is nothing here\n"},
		{"OPTIONS", "/", nil, 404, nil, "*"},
	} {
		t.Run(c.method+" "+c.target+" "+strings.Join(c.headers, " "), func(t *testing.T) {
			r := newRack(t)
			w := r.ask(c.method, c.target, alien, c.headers...)
			if w.Code != c.status {
				t.Fatalf("status %d, want %d; body %q", w.Code, c.status, w.Body)
			}
			for name, want := range c.want {
				values := w.Header().Values(name)
				slices.Sort(values)
				if got := strings.Join(values, ", "); got != want {
					t.Errorf("%s is %q, want %q", name, got, want)
				}
			}
			if c.body != "*" && w.Body.String() != c.body {
				t.Errorf("body is %q, want %q", w.Body, c.body)
			}
		})
	}
}

// TestHEADParity: HEAD says what GET would, on a real connection.
func TestHEADParity(t *testing.T) {
	r := newRack(t)
	base := r.serve(t)
	for _, path := range []string{"/loader/amd64/snponly.efi", "/loader/amd64/autoexec.ipxe", "/loader/amd64/none.efi", "/boot.ipxe", imagePath + "kernel", imagePath + "initramfs", "/image/v9/default/amd64/kernel", "/nothing"} {
		got := map[string]*http.Response{}
		for _, method := range []string{"GET", "HEAD"} {
			req, err := http.NewRequestWithContext(t.Context(), method, base+path, nil)
			if err != nil {
				t.Fatal(err)
			}
			res, err := http.DefaultClient.Do(req)
			if err != nil {
				t.Fatal(err)
			}
			res.Body.Close()
			res.Header.Del("Date")
			got[method] = res
		}
		if g, h := got["GET"], got["HEAD"]; g.StatusCode != h.StatusCode || fmt.Sprint(g.Header) != fmt.Sprint(h.Header) || g.ContentLength != h.ContentLength {
			t.Errorf("%s: GET %d %v, HEAD %d %v", path, g.StatusCode, g.Header, h.StatusCode, h.Header)
		}
		if got["GET"].ContentLength < 0 {
			t.Errorf("%s has no Content-Length", path)
		}
	}
	if events := r.keeper.recorded(); len(events) != 0 {
		t.Errorf("recorded %v", events)
	}
}

// TestAdvertised: every URL that a machine is told can be fetched.
func TestAdvertised(t *testing.T) {
	r := newRack(t)
	r.boots(bootNow(7, token))
	u := testURLs()
	all := map[string]string{"entry": u.Entry(), "config": u.Config(&inventory.View{Cluster: &inventory.Cluster{}}, mac1, token).Config}
	for _, arch := range []inventory.Arch{inventory.AMD64, inventory.ARM64} {
		loader, ok := u.URL(inventory.FirmwareHTTP, arch, mac1)
		if !ok {
			t.Fatalf("no loader over HTTP for %s", arch)
		}
		script, ok := u.URL(inventory.IPXE, arch, mac1)
		if !ok {
			t.Fatalf("no script for %s", arch)
		}
		all["loader "+string(arch)], all["script "+string(arch)] = loader, script
	}
	for i := range r.keeper.images {
		image := &r.keeper.images[i]
		all["kernel "+image.ID()], all["initramfs "+image.ID()] = u.Kernel(image, mac1, 7), u.Initramfs(image, mac1, 7)
	}
	for what, raw := range all {
		base := "http://[2001:db8::1]:8080"
		if what == "config" {
			base = "https://[2001:db8::1]:8443"
		}
		path, ok := strings.CutPrefix(raw, base)
		if _, err := url.Parse(raw); err != nil || !ok {
			t.Errorf("%s: %s is not a URL of ours: %v", what, raw, err)
			continue
		}
		if w := r.ask(http.MethodGet, path, stable); w.Code != http.StatusOK {
			t.Errorf("%s: GET %s gives %d", what, raw, w.Code)
		}
	}
}

func TestURL(t *testing.T) {
	for _, c := range []struct {
		client inventory.Client
		arch   inventory.Arch
		mac    inventory.MAC
		want   string // "": none
	}{
		{inventory.FirmwarePXE, inventory.AMD64, mac1, "tftp://[2001:db8::1]/amd64/snponly.efi"},
		{inventory.FirmwarePXE, inventory.ARM64, mac1, "tftp://[2001:db8::1]/arm64/ipxe.efi"},
		{inventory.FirmwarePXE, "", mac1, ""},
		{inventory.FirmwareHTTP, inventory.AMD64, mac1, "http://[2001:db8::1]:8080/loader/amd64/ipxe.efi"},
		{inventory.FirmwareHTTP, "riscv64", mac1, ""},
		{inventory.IPXE, inventory.AMD64, mac1, "http://[2001:db8::1]:8080/boot/52:54:00:00:00:01/boot.ipxe?arch=amd64"},
		{inventory.IPXE, "", mac1, "http://[2001:db8::1]:8080/boot/52:54:00:00:00:01/boot.ipxe"},
		{inventory.IPXE, inventory.AMD64, "", "http://[2001:db8::1]:8080/boot.ipxe"},
		{inventory.FirmwareStack, inventory.AMD64, mac1, ""},
		{inventory.OperatingSystem, inventory.AMD64, mac1, ""},
	} {
		got, ok := testURLs().URL(c.client, c.arch, c.mac)
		if ok != (c.want != "") || ok && got != c.want {
			t.Errorf("%s %s %s: %q, %v; want %q", c.client, c.arch, c.mac, got, ok, c.want)
		}
	}
	odd := testURLs()
	odd.TFTP, odd.HTTP = netip.MustParseAddrPort("[::1]:6969"), netip.MustParseAddrPort("[::1]:80")
	if got, _ := odd.URL(inventory.FirmwarePXE, inventory.AMD64, mac1); got != "tftp://[::1]:6969/amd64/snponly.efi" {
		t.Errorf("TFTP on another port: %s", got)
	}
	if got := odd.Entry(); got != "http://[::1]/boot.ipxe" {
		t.Errorf("HTTP on its own port: %s", got)
	}
}

// TestRecordsWholeDownloads: what counts as read, and by whom.
func TestRecordsWholeDownloads(t *testing.T) {
	query := "?mac=52:54:00:00:00:02&boot=7"
	for _, c := range []struct {
		name, method, target string
		peer                 netip.Addr
		headers              []string
		want                 []string
	}{
		{"kernel", "GET", imagePath + "kernel" + query, stable, nil, []string{"kernel-served/7/"}},
		{"initramfs", "GET", imagePath + "initramfs" + query, stable, nil, []string{"initramfs-served/7/"}},
		{"by its lease", "GET", imagePath + "initramfs" + query, leased, nil, []string{"initramfs-served/7/"}},
		{"by its link-local address", "GET", imagePath + "initramfs" + query, mac2.LinkLocal(), nil, []string{"initramfs-served/7/"}},
		{"HEAD", "HEAD", imagePath + "kernel" + query, stable, nil, []string{}},
		{"a part", "GET", imagePath + "initramfs" + query, stable, []string{"Range", "bytes=1-"}, []string{}},
		{"all as a range", "GET", imagePath + "initramfs" + query, stable, []string{"Range", "bytes=0-"}, []string{}},
		{"not modified", "GET", imagePath + "initramfs" + query, stable, []string{"If-None-Match", `"1n1trd"`}, []string{}},
		{"another peer", "GET", imagePath + "initramfs" + query, alien, nil, []string{}},
		{"no machine", "GET", imagePath + "initramfs", stable, nil, []string{}},
		{"a stranger", "GET", imagePath + "initramfs?mac=52:54:00:00:00:99&boot=7", stable, nil, []string{}},
		{"junk", "GET", imagePath + "initramfs?mac=x&boot=y", stable, nil, []string{}},
		{"loader", "GET", "/loader/amd64/snponly.efi", stable, nil, []string{"loader-served/0/"}},
		{"HEAD of loader", "HEAD", "/loader/amd64/snponly.efi", stable, nil, []string{}},
		{"loader, another peer", "GET", "/loader/amd64/snponly.efi", alien, nil, []string{}},
		{"script beside it", "GET", "/loader/amd64/autoexec.ipxe", stable, nil, []string{}},
	} {
		t.Run(c.name, func(t *testing.T) {
			r := newRack(t)
			r.boots(bootNow(7, token))
			r.ask(c.method, c.target, c.peer, c.headers...)
			if got := r.keeper.kinds(); !slices.Equal(got, c.want) {
				t.Fatalf("recorded %v, want %v", got, c.want)
			}
			for _, e := range r.keeper.recorded() {
				if e.Machine != "cp-1" || e.Peer != c.peer || e.MAC == "" || e.Time.IsZero() || e.Cluster != "" {
					t.Errorf("event is %+v", e)
				}
			}
		})
	}
}

// TestImageTroubles: what is wrong here is 503, and nothing is recorded.
func TestImageTroubles(t *testing.T) {
	for name, spoil := range map[string]func(r *rack){
		"blob unreadable":  func(r *rack) { r.blobs.err = errNotFound("blob") },
		"inventory is out": func(r *rack) { r.keeper.viewErr = fmt.Errorf("gone") },
	} {
		r := newRack(t)
		spoil(r)
		if w := r.ask("GET", imagePath+"kernel?mac=52:54:00:00:00:01&boot=1", stable); w.Code != http.StatusServiceUnavailable {
			t.Errorf("%s: status %d", name, w.Code)
		}
		if got := r.keeper.kinds(); len(got) != 0 {
			t.Errorf("%s: recorded %v", name, got)
		}
	}
}

// TestOldImageDuringBoot: the image of a script stays fetchable when the
// machine is to have another one meanwhile.
func TestOldImageDuringBoot(t *testing.T) {
	r := newRack(t)
	path := strings.TrimPrefix(testURLs().Kernel(r.keeper.view.Image, mac1, 1), "http://[2001:db8::1]:8080")
	r.boots(bootNow(1, token))
	r.keeper.change(func(v *inventory.View) { v.Image, v.Wanted = nil, "v9/default/amd64" })
	if w := r.ask("GET", path, stable); w.Code != http.StatusOK {
		t.Errorf("status %d", w.Code)
	}
	if got := r.keeper.kinds(); !slices.Equal(got, []string{"kernel-served/1/"}) {
		t.Errorf("recorded %v", got)
	}
}

// TestJunkIsLoggedSparingly: nobody fills the log, or learns a token from it.
func TestJunkIsLoggedSparingly(t *testing.T) {
	r := newRack(t)
	for i := range 1000 {
		r.ask("GET", "/junk/"+strconv.Itoa(i), alien)
		r.ask("GET", "/config/52:54:00:00:00:01/"+token+strconv.Itoa(i), alien)
		r.ask("GET", fmt.Sprintf("/boot/52:54:00:00:%02x:%02x/boot.ipxe", 1+i/256, i%256), alien)
	}
	if n := strings.Count(r.log.String(), "\n"); n > 20 {
		t.Errorf("%d lines", n)
	}
	if n := len(r.keeper.recorded()); n > 100 { // of one machine, and of all strangers
		t.Errorf("%d events", n)
	}
	if strings.Contains(r.log.String(), token) {
		t.Error("a token was logged")
	}
}
