package httpconfig

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"strconv"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/kdomanski/iso9660"

	"github.com/provisiond/provisiond/internal/inventory"
	"github.com/provisiond/provisiond/internal/seed"
)

const (
	seedPath   = "/seed/52:54:00:00:00:01/"
	configText = "version: v1alpha1\n---\nkind: LinkConfig\n"
)

var bmc = netip.MustParseAddr("2001:db8:9::b")

// newSeedRack is a rack whose machine has a seed, in a cluster that delivers over http.
func newSeedRack(t testing.TB) *rack {
	t.Helper()
	r := newRack(t)
	r.keeper.view.Cluster.Delivery = inventory.OverHTTP
	b := bootNow(7, token)
	b.Client = inventory.Seed
	r.boots(b)
	return r
}

func (r *rack) seed(method, file string, peer netip.Addr, headers ...string) *httptest.ResponseRecorder {
	return r.over(r.router, method, "http://[2001:db8::1]:8080"+seedPath+token+"/"+file, peer, headers...)
}

func onVolume(t *testing.T, image []byte) (label string, files map[string]string) {
	t.Helper()
	i, err := iso9660.OpenImage(bytes.NewReader(image))
	if err != nil {
		t.Fatal(err)
	}
	if label, err = i.Label(); err != nil {
		t.Fatal(err)
	}
	root, err := i.RootDir()
	if err != nil {
		t.Fatal(err)
	}
	list, err := root.GetChildren()
	if err != nil {
		t.Fatal(err)
	}
	files = map[string]string{}
	for _, f := range list {
		b, err := io.ReadAll(f.Reader())
		if err != nil {
			t.Fatal(err)
		}
		files[f.Name()] = string(b)
	}
	return label, files
}

// TestSeedFiles: each file of a seed, what is recorded of it, and the config byte for
// byte as by its URL.
func TestSeedFiles(t *testing.T) {
	m := seed.Machine{Name: "cp-1", Instance: "cp-1-order-1", MAC: mac1.Bytes(), Address: netip.PrefixFrom(stable, 64)}
	metaData, network := string(m.MetaData()), string(m.NetworkConfig())
	for _, c := range []struct {
		file, body string
		label      string
		files      map[string]string
		by         inventory.Channel // empty: nothing of the config is in it
	}{
		{file: "meta-data", body: metaData},
		{file: "network-config", body: network},
		{file: "vendor-data", body: ""},
		{file: "user-data", body: configText, by: inventory.ChannelNoCloud},
		{file: "metal.iso", label: "metal-iso", files: map[string]string{"config.yaml": configText}, by: inventory.ChannelISO},
		{file: "cidata.iso", label: "cidata", files: map[string]string{"meta-data": metaData, "network-config": network, "user-data": configText}, by: inventory.ChannelISO},
	} {
		t.Run(c.file, func(t *testing.T) {
			r := newSeedRack(t)
			w := r.seed(http.MethodGet, c.file, stable)
			if w.Code != http.StatusOK || w.Header().Get("Cache-Control") != "no-store" || w.Header().Get("Content-Length") != strconv.Itoa(w.Body.Len()) {
				t.Fatalf("answer is %d %v; log %s", w.Code, w.Header(), r.log)
			}
			if c.files == nil && w.Body.String() != c.body {
				t.Errorf("it is %q", w.Body)
			}
			if c.files != nil {
				label, files := onVolume(t, w.Body.Bytes())
				if label != c.label || fmt.Sprint(files) != fmt.Sprint(c.files) {
					t.Errorf("the volume is %q %q", label, files)
				}
			}
			events := r.keeper.recorded()
			if c.by == "" {
				if len(events) != 0 || len(r.trail) != 0 {
					t.Errorf("recorded %+v, %+v", events, r.trail)
				}
				return
			}
			if len(events) != 1 || events[0].Kind != inventory.ConfigServed || events[0].ConfigBy != c.by || events[0].Boot != 7 || events[0].Hash != "c0ffee" || events[0].Peer != stable {
				t.Errorf("recorded %+v", events)
			}
			want := "token of boot 7, from its address, config c0ffee, as " + c.file + ", unencrypted"
			if len(r.trail) != 1 || r.trail[0].Reason != want || r.trail[0].Target != "machine/cp-1" {
				t.Errorf("the trail is %+v, want %q", r.trail, want)
			}
			if strings.Contains(r.log.String(), token) {
				t.Errorf("the token was logged: %s", r.log)
			}
		})
	}
}

// TestSeedRules: the rules of the config URL. What is refused ends Talos' search, but for
// what may be mended in a moment.
func TestSeedRules(t *testing.T) {
	for _, c := range []struct {
		name   string
		token  string
		peer   netip.Addr
		https  bool
		spoil  func(r *rack)
		want   map[string]int // status by file
		reason string
	}{
		{"from its address", token, stable, false, nil, allStatus(200), ""},
		{"from its SLAAC address", token, netip.MustParseAddr("2001:db8::5054:ff:fe00:1"), false, nil, allStatus(200), ""},
		{"over https", token, stable, true, func(r *rack) { r.keeper.view.Cluster.Delivery = inventory.OverHTTPS }, allStatus(200), ""},
		{"the boot before", token, stable, false, func(r *rack) { b := r.keeper.view.Facts.Boots; r.boots(bootNow(8, "newer"), *b[0]) }, allStatus(200), ""},
		{"without an image", token, stable, false, func(r *rack) { r.keeper.view.Image = nil }, allStatus(200), ""},
		{"the named address", token, bmc, false, func(r *rack) { r.keeper.view.Facts.Boots[0].For = bmc }, allStatus(200), ""},

		{"another address", token, alien, false, nil, allStatus(403), "2001:db8::bad is no address of cp-1"},
		{"the machine, where another is named", token, stable, false, func(r *rack) { r.keeper.view.Facts.Boots[0].For = bmc }, allStatus(403), "2001:db8::11 is not 2001:db8:9::b, which alone may fetch this seed of cp-1"},
		{"a wrong token", "wrong", stable, false, nil, refusedStatus(403), "the token is not that of a recent boot"},
		{"a netboot's token", token, stable, false, func(r *rack) { r.keeper.view.Facts.Boots[0].Client = inventory.IPXE }, refusedStatus(403), "the token is that of a boot whose config goes another way"},
		{"unencrypted", token, stable, false, func(r *rack) { r.keeper.view.Cluster.Delivery = "" }, refusedStatus(403), "configs of lab are delivered over https only"},
		{"not approved", token, stable, false, func(r *rack) { r.keeper.view.Machine.Approval = inventory.ApprovalRequired }, refusedStatus(401), "nobody approved who asks as cp-1"},
		{"old, and never fetched", token, stable, false, func(r *rack) { r.keeper.view.Facts.Boots[0].Started = time.Now().Add(-25 * time.Hour) }, refusedStatus(403), "boot 7 began 25h0m0s ago"},
		{"over", token, stable, false, func(r *rack) { r.keeper.view.Facts.Boots[0].API = time.Now() }, refusedStatus(403), "boot 7 is over"},
		{"installed", token, stable, false, func(r *rack) { r.keeper.view.Facts.Install.Done = 1 }, refusedStatus(403), "cp-1 is not to install: installed (order 1"},
		{"to be installed anew", token, stable, false, func(r *rack) { r.keeper.view.Facts.Install = inventory.Order{Ordered: 2, Done: 1} }, refusedStatus(403), "cp-1 is to be installed anew (order 2)"},
		{"removed", token, stable, false, func(r *rack) { r.keeper.view.Machine.MACs = []inventory.MAC{mac2} }, refusedStatus(404), "this MAC is not registered"},
	} {
		for file, status := range c.want {
			t.Run(c.name+"/"+file, func(t *testing.T) {
				r := newSeedRack(t)
				if c.spoil != nil {
					c.spoil(r)
				}
				router := r.router
				scheme := "http"
				if c.https {
					router, scheme = r.secure, "https"
				}
				w := r.over(router, http.MethodGet, scheme+"://[2001:db8::1]"+seedPath+c.token+"/"+file, c.peer)
				if w.Code != status {
					t.Fatalf("status %d, want %d; log %s", w.Code, status, r.log)
				}
				if status == http.StatusOK {
					return
				}
				if !strings.Contains(r.log.String(), c.reason) || strings.Contains(w.Body.String(), "v1alpha1") || strings.Contains(w.Body.String(), "ethernets") {
					t.Errorf("log %s, answer %s", r.log, w.Body)
				}
				for _, e := range r.keeper.recorded() {
					if e.Kind == inventory.ConfigServed {
						t.Errorf("recorded %+v", e)
					}
				}
			})
		}
	}
}

func allStatus(status int) map[string]int {
	all := map[string]int{}
	for _, f := range []string{"meta-data", "network-config", "vendor-data", "user-data", "metal.iso", "cidata.iso"} {
		all[f] = status
	}
	return all
}

// refusedStatus is that of volumes; the files of NoCloud say that there is none.
func refusedStatus(status int) map[string]int {
	return map[string]int{"meta-data": 204, "network-config": 204, "vendor-data": 204, "user-data": 404, "metal.iso": status, "cidata.iso": status}
}

// TestConfigURLRefusesSeeds: who may fetch a seed may be another than the machine, and
// what fetches from the config URL has a blank disk.
func TestConfigURLRefusesSeeds(t *testing.T) {
	r := newSeedRack(t)
	r.keeper.view.Facts.Boots[0].For = bmc
	for _, peer := range []netip.Addr{bmc, stable} {
		if w := r.ask(http.MethodGet, configPath+token, peer); w.Code != http.StatusForbidden || strings.Contains(w.Body.String(), "v1alpha1") {
			t.Errorf("from %s: %d %s", peer, w.Code, w.Body)
		}
	}
}

// TestVolumeInPieces: a BMC asks for the header and then for ranges, in any order. The
// pieces are of one image, and what was given is recorded once.
func TestVolumeInPieces(t *testing.T) {
	r := newSeedRack(t)
	r.configs.parts = [][]byte{bytes.Repeat([]byte("x"), 50000)}
	head := r.seed(http.MethodHead, "metal.iso", stable)
	size, err := strconv.Atoi(head.Header().Get("Content-Length"))
	if err != nil || head.Code != http.StatusOK || head.Header().Get("Accept-Ranges") != "bytes" || head.Header().Get("ETag") == "" || head.Body.Len() != 0 {
		t.Fatalf("HEAD: %d %v", head.Code, head.Header())
	}
	if events := r.keeper.recorded(); len(events) != 0 {
		t.Errorf("a header was recorded: %+v", events)
	}
	image := make([]byte, size)
	for from := (size - 1) / 8192 * 8192; from >= 0; from -= 8192 {
		to := min(from+8192, size) - 1
		w := r.seed(http.MethodGet, "metal.iso", stable, "Range", fmt.Sprintf("bytes=%d-%d", from, to), "If-Range", head.Header().Get("ETag"))
		if w.Code != http.StatusPartialContent || w.Body.Len() != to-from+1 || w.Header().Get("ETag") != head.Header().Get("ETag") {
			t.Fatalf("%d-%d: %d, %d bytes, %v", from, to, w.Code, w.Body.Len(), w.Header())
		}
		copy(image[from:], w.Body.Bytes())
	}
	if whole := r.seed(http.MethodGet, "metal.iso", stable); !bytes.Equal(whole.Body.Bytes(), image) {
		t.Error("the pieces are not the image")
	}
	if events := r.keeper.recorded(); len(events) != 1 {
		t.Errorf("%d were recorded, one config was given", len(events))
	}
	if len(r.trail) != 1 {
		t.Errorf("the trail is %+v", r.trail)
	}
	r.configs.parts[0] = []byte("another")
	if w := r.seed(http.MethodGet, "metal.iso", stable, "Range", "bytes=0-10", "If-Range", head.Header().Get("ETag")); w.Code != http.StatusOK {
		t.Errorf("a piece of another image: %d", w.Code)
	}
}

// TestSeedNotYet: what comes too early never ends Talos' search, and a BMC hears of it at
// once.
func TestSeedNotYet(t *testing.T) {
	for file := range allStatus(0) {
		synctest.Test(t, func(t *testing.T) {
			r := newSeedRack(t)
			r.configs.fail(errors.New("no disk"))
			began := time.Now()
			w := r.seed(http.MethodGet, file, stable)
			held := time.Since(began)
			if w.Code != http.StatusServiceUnavailable {
				t.Errorf("%s: %d %s", file, w.Code, w.Body)
			}
			if image := strings.HasSuffix(file, ".iso"); image != (held == 0) {
				t.Errorf("%s: it was held for %v", file, held)
			}
			go func() {
				time.Sleep(time.Minute)
				r.configs.fail(nil)
				r.keeper.change(func(*inventory.View) {})
			}()
			if w := r.seed(http.MethodGet, file, stable); w.Code != http.StatusOK && !strings.HasSuffix(file, ".iso") {
				t.Errorf("%s, when it can be made: %d", file, w.Code)
			}
			time.Sleep(time.Hour)
		})
	}
}

// TestSeedRecordsFirst: nothing is told before it is known that it was.
func TestSeedRecordsFirst(t *testing.T) {
	for _, file := range []string{"user-data", "metal.iso", "cidata.iso"} {
		r := newSeedRack(t)
		r.Server.config.Hold = time.Nanosecond
		r.keeper.recordErr = errors.New("the disk is full")
		if w := r.seed(http.MethodGet, file, stable); w.Code != http.StatusServiceUnavailable || strings.Contains(w.Body.String(), "v1alpha1") {
			t.Errorf("%s: %d", file, w.Code)
		}
	}
}

// TestSeedURLs: what an operator is told is what is served.
func TestSeedURLs(t *testing.T) {
	r := newSeedRack(t)
	u := r.SeedURLs(r.keeper.view)
	if u.NoCloud != "http://[2001:db8::1]:8080"+seedPath+token+"/" || u.Serial != "ds=nocloud-net;s="+u.NoCloud || u.MetalISO != u.NoCloud+"metal.iso" || u.NoCloudISO != u.NoCloud+"cidata.iso" || !u.Until.After(time.Now()) {
		t.Errorf("they are %+v", u)
	}
	r.keeper.view.Facts.Boots[0].For = bmc
	if u := r.SeedURLs(r.keeper.view); u.NoCloud != "" || u.Serial != "" || !strings.Contains(u.NoCloudReason, "2001:db8:9::b") || u.MetalISO == "" {
		t.Errorf("for a BMC they are %+v", u)
	}
	r = newSeedRack(t)
	r.keeper.view.Cluster.Delivery = ""
	if u := r.SeedURLs(r.keeper.view); u.NoCloud != "" || !strings.Contains(u.NoCloudReason, "https only") || !strings.HasPrefix(u.MetalISO, "https://[2001:db8::1]:8443/seed/") {
		t.Errorf("over https they are %+v", u)
	}
}

// TestCheckSeed: a seed that nobody could fetch, or nobody could make, is not begun.
func TestCheckSeed(t *testing.T) {
	for _, c := range []struct {
		name    string
		spoil   func(r *rack)
		fetched bool
		reason  string
	}{
		{"fine", func(*rack) {}, true, ""},
		{"approved at the console", func(r *rack) { r.keeper.view.Cluster.Approval = inventory.ApprovalRequired }, true, "by the code on its console"},
		{"handed over by a person", func(r *rack) { r.keeper.view.Cluster.Approval = inventory.ApprovalRequired }, false, ""},
		{"installed", func(r *rack) { r.keeper.view.Facts.Install.Done = 1 }, false, "is not to install"},
		{"no config", func(r *rack) { r.configs.err = errors.New("no disk") }, false, "no disk"},
	} {
		r := newSeedRack(t)
		c.spoil(r)
		err := r.CheckSeed(t.Context(), r.keeper.view, c.fetched)
		if (c.reason == "") != (err == nil) || err != nil && !strings.Contains(err.Error(), c.reason) {
			t.Errorf("%s: %v, want %q", c.name, err, c.reason)
		}
	}
}

// TestSeedISO: what a person is given is what would be fetched.
func TestSeedISO(t *testing.T) {
	for file, nocloud := range map[string]bool{"metal.iso": false, "cidata.iso": true} {
		r := newSeedRack(t)
		image, hash, err := r.SeedISO(t.Context(), r.keeper.view, nocloud)
		if err != nil || hash != "c0ffee" || !bytes.Equal(image, r.seed(http.MethodGet, file, stable).Body.Bytes()) {
			t.Errorf("%s: %d bytes, hash %q, %v", file, len(image), hash, err)
		}
	}
}
