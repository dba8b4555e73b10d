package httpconfig

import (
	"errors"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/rs/zerolog"

	"github.com/provisiond/provisiond/internal/inventory"
)

const configPath = "/config/52:54:00:00:00:01/"

func TestConfig(t *testing.T) {
	body := "version: v1alpha1\n---\nkind: LinkConfig\n"
	for _, c := range []struct {
		name   string
		path   string
		peer   netip.Addr
		spoil  func(r *rack)
		status int
		reason string // logged, when refused
	}{
		{"from its address", configPath + token, stable, nil, 200, ""},
		{"from its link-local address", configPath + token, mac1.LinkLocal(), nil, 200, ""},
		{"from the link-local address of its other NIC", configPath + token, mac2.LinkLocal(), nil, 200, ""},
		{"from its SLAAC address", configPath + token, netip.MustParseAddr("2001:db8::5054:ff:fe00:1"), nil, 200, ""},
		{"from its lease", configPath + token, leased, nil, 200, ""},
		{"in a lab on one host", configPath + token, netip.IPv6Loopback(), func(r *rack) { r.Server.config.URLs.HTTP = loopback }, 200, ""},
		{"with its other MAC", "/config/52:54:00:00:00:02/" + token, stable, nil, 200, ""},
		{"with the token of the boot before", configPath + token, stable, func(r *rack) { r.boots(bootNow(2, "newer"), bootNow(1, token)) }, 200, ""},
		{"order used up by another boot", configPath + token, stable, func(r *rack) { r.keeper.view.Facts.Install.Done = 1 }, 200, ""},

		{"from another address", configPath + token, alien, nil, 403, "2001:db8::bad is no address of cp-1"},
		{"from another link-local address", configPath + token, inventory.MAC("52:54:00:00:00:09").LinkLocal(), nil, 403, "is no address of cp-1"},
		{"from this host", configPath + token, netip.IPv6Loopback(), nil, 403, "::1 is no address of cp-1"},
		{"wrong token", configPath + "dGhpcyBpcyBhIHRva2Vx", stable, nil, 403, "the token is not that of a recent boot"},
		{"part of the token", configPath + token[:10], stable, nil, 403, "the token is not that of a recent boot"},
		{"token of an old boot", configPath + token, stable, func(r *rack) { r.boots(bootNow(3, "c"), bootNow(2, "b"), bootNow(1, token)) }, 403, "the token is not that of a recent boot"},
		{"no boot", configPath + token, stable, func(r *rack) { r.boots() }, 403, "the token is not that of a recent boot"},
		{"old, and still waits for its first", configPath + token, stable, func(r *rack) { r.keeper.view.Facts.Boots[0].Started = time.Now().Add(-25 * time.Hour) }, 200, ""},
		{"expired", configPath + token, stable, func(r *rack) {
			r.keeper.view.Facts.Boots[0].Started, r.keeper.view.Facts.Boots[0].Config = time.Now().Add(-25*time.Hour), time.Now().Add(-25*time.Hour)
		}, 403, "boot 7 began 25h0m0s ago"},
		{"done", configPath + token, stable, func(r *rack) { r.keeper.view.Facts.Boots[0].API = time.Now() }, 403, "boot 7 is over"},
		{"disk", configPath + token, stable, func(r *rack) {
			r.keeper.view.Facts.Install.Done = 1
			r.keeper.view.Facts.Boots[0].Plan = inventory.Disk
		}, 403, "installed (order 1"},
		{"a stranger", "/config/52:54:00:00:00:99/" + token, stable, nil, 404, "this MAC is not registered"},
		{"removed meanwhile", configPath + token, stable, func(r *rack) { r.keeper.recordErr = errNotFound("machine cp-1") }, 404, "not registered any more"},
	} {
		t.Run(c.name, func(t *testing.T) {
			r := newRack(t)
			r.boots(bootNow(7, token))
			if c.spoil != nil {
				c.spoil(r)
			}
			w := r.ask(http.MethodGet, c.path, c.peer)
			if w.Code != c.status {
				t.Fatalf("status %d, want %d; log %s", w.Code, c.status, r.log)
			}
			if strings.Contains(r.log.String(), token) {
				t.Errorf("the token was logged: %s", r.log)
			}
			h := w.Header()
			if h.Get("Cache-Control") != "no-store" {
				t.Errorf("Cache-Control is %q", h.Get("Cache-Control"))
			}
			events := r.keeper.recorded()
			if c.status == 200 {
				if w.Body.String() != body || h.Get("Content-Length") != "39" || h.Get("Content-Type") != "application/yaml" {
					t.Errorf("answer is %v %q", h, w.Body)
				}
				number := uint64(7)
				if strings.Contains(c.name, "boot before") {
					number = 1
				}
				if len(events) != 1 || events[0].Kind != inventory.ConfigServed || events[0].Boot != number || events[0].Hash != "c0ffee" || events[0].Peer != c.peer || events[0].Machine != "cp-1" || events[0].Cluster != "" {
					t.Errorf("recorded %+v", events)
				}
				return
			}
			if strings.Contains(w.Body.String(), "v1alpha1") || h.Get("Content-Type") != "text/plain; charset=utf-8" {
				t.Errorf("answer is %v %q", h, w.Body)
			}
			if !strings.Contains(r.log.String(), c.reason) {
				t.Errorf("log is %s, want %q", r.log, c.reason)
			}
			kind := inventory.ConfigRefused
			if strings.Contains(c.reason, "no address of") {
				kind = inventory.TokenStolen // which was the right one
			}
			if c.status == 403 && (len(events) != 1 || events[0].Kind != kind || !strings.Contains(events[0].Message, c.reason)) {
				t.Errorf("recorded %+v", events)
			}
			if c.status == 404 && len(events) != 0 {
				t.Errorf("recorded %+v of nobody", events)
			}
		})
	}
}

// TestConfigRecordsFirst: when the first byte goes out, that it did is known.
func TestConfigRecordsFirst(t *testing.T) {
	r := newRack(t)
	r.boots(bootNow(7, token))
	w := httptest.NewRecorder()
	r.keeper.onRecord = func(inventory.Event) {
		if w.Body.Len() > 0 || len(w.Header()) > 0 {
			t.Error("the answer began before it was recorded")
		}
	}
	req := httptest.NewRequest(http.MethodGet, "https://[2001:db8::1]"+configPath+token, nil)
	req.RemoteAddr = "[2001:db8::11]:1"
	r.secure.ServeHTTP(w, req)
	if w.Code != 200 || len(r.keeper.recorded()) != 1 {
		t.Errorf("status %d, recorded %v", w.Code, r.keeper.kinds())
	}
}

// TestConfigWaits: "not yet" is held, answered the moment there is a config, and
// with 204 at the end, whatever it is that is missing.
func TestConfigWaits(t *testing.T) {
	for name, c := range map[string]struct{ spoil, mend func(r *rack) }{
		"config broken": {
			func(r *rack) { r.configs.fail(errors.New("no disk")) },
			func(r *rack) { r.configs.fail(nil) },
		},
		"no image": {
			func(r *rack) { r.keeper.view.Image = nil },
			func(r *rack) {
				r.keeper.view.Image = &inventory.Image{Version: "v1.13.6", Arch: inventory.AMD64}
			},
		},
		"no cluster": {
			func(r *rack) { r.keeper.view.Cluster = nil },
			func(r *rack) { r.keeper.view.Cluster = &inventory.Cluster{Name: "lab"} },
		},
		"inventory is out": {
			func(r *rack) { r.keeper.viewErr = errors.New("gone") },
			func(r *rack) { r.keeper.viewErr = nil },
		},
		"inventory cannot be written": {
			func(r *rack) { r.keeper.recordErr = inventory.ErrFull },
			func(r *rack) { r.keeper.recordErr = nil },
		},
		"address unknown": {
			func(r *rack) { r.keeper.addressErr = errors.New("gone") },
			func(r *rack) { r.keeper.addressErr = nil },
		},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				r := newRack(t)
				r.boots(bootNow(7, token))
				r.keeper.change(func(*inventory.View) { c.spoil(r) })
				begin := time.Now()
				w := r.ask(http.MethodGet, configPath+token, leased)
				if took := time.Since(begin); w.Code != http.StatusNoContent || took != 150*time.Second || w.Body.Len() != 0 {
					t.Errorf("never mended: %d %q after %v, want 204 after 150 s", w.Code, w.Body, took)
				}

				done := make(chan *httptest.ResponseRecorder)
				go func() { done <- r.ask(http.MethodGet, configPath+token, leased) }()
				time.Sleep(40 * time.Second)
				r.keeper.change(func(*inventory.View) {}) // of something else
				time.Sleep(100 * time.Millisecond)
				begin = time.Now()
				r.keeper.change(func(*inventory.View) { c.mend(r) })
				w = <-done
				if took := time.Since(begin); w.Code != http.StatusOK || took > settle {
					t.Errorf("mended: %d after %v, want 200 within %v", w.Code, took, settle)
				}
				if len(r.keeper.watches) != 0 {
					t.Error("it still watches")
				}
				if strings.Contains(r.log.String(), token) {
					t.Errorf("the token was logged: %s", r.log)
				}
			})
		})
	}
}

// TestConfigWaitsForStoreWithoutWake: a store that comes back wakes nobody.
func TestConfigWaitsForStoreWithoutWake(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRack(t)
		r.boots(bootNow(7, token))
		r.keeper.viewErr = errors.New("gone")
		done := make(chan *httptest.ResponseRecorder)
		go func() { done <- r.ask(http.MethodGet, configPath+token, stable) }()
		synctest.Wait()
		r.keeper.mu.Lock()
		r.keeper.viewErr = nil
		r.keeper.mu.Unlock()
		if w := <-done; w.Code != http.StatusOK {
			t.Errorf("status %d", w.Code)
		}
	})
}

// TestConfigRefusedWhileWaiting: a final no ends the wait.
func TestConfigRefusedWhileWaiting(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRack(t)
		r.boots(bootNow(7, token))
		r.configs.fail(errors.New("no disk"))
		begin := time.Now()
		done := make(chan *httptest.ResponseRecorder)
		go func() { done <- r.ask(http.MethodGet, configPath+token, stable) }()
		synctest.Wait()
		r.keeper.change(func(v *inventory.View) { v.Machine = nil })
		if w := <-done; w.Code != http.StatusNotFound || time.Since(begin) > 2*settle {
			t.Errorf("status %d after %v", w.Code, time.Since(begin))
		}
	})
}

// TestConfigWaitIsCheap: a busy rack does not make a held request look at the
// inventory with every commit.
func TestConfigWaitIsCheap(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRack(t)
		r.boots(bootNow(7, token))
		r.configs.fail(errors.New("no disk"))
		done := make(chan *httptest.ResponseRecorder)
		go func() { done <- r.ask(http.MethodGet, configPath+token, stable) }()
		for range 10_000 { // 100 commits a second, for 100 s
			time.Sleep(10 * time.Millisecond)
			r.keeper.change(func(*inventory.View) {})
		}
		<-done
		if r.configs.asked > 160 {
			t.Errorf("looked %d times in 150 s", r.configs.asked)
		}
	})
}

func TestConfigWaitsAreBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRack(t)
		r.Server.held = make(chan struct{}, 2)
		r.boots(bootNow(7, token))
		r.configs.fail(errors.New("no disk"))
		done := make(chan time.Duration)
		begin := time.Now()
		for range 3 {
			go func() {
				r.ask(http.MethodGet, configPath+token, stable)
				done <- time.Since(begin)
			}()
		}
		got := []time.Duration{<-done, <-done, <-done}
		if want := []time.Duration{0, 150 * time.Second, 150 * time.Second}; !slices.Equal(got, want) {
			t.Errorf("answered after %v, want %v", got, want)
		}
	})
}

func TestPeerOf(t *testing.T) {
	for in, want := range map[string]string{
		"[2001:db8::11]:40000":  "2001:db8::11",
		"[fe80::1%eth0]:40000":  "fe80::1%eth0",
		"[::ffff:192.0.2.1]:40": "192.0.2.1",
		"@":                     "invalid IP",
	} {
		if got := peerOf(&http.Request{RemoteAddr: in}); got.String() != want {
			t.Errorf("%s: %s", in, got)
		}
	}
}

// FuzzPaths: whatever the path, the server answers, and gives no secret away.
func FuzzPaths(f *testing.F) {
	for _, s := range []string{"/loader/amd64/snponly.efi", "/loader/../secret", "/boot/52:54:00:00:00:01/boot.ipxe?arch=x86_64", "/config/52:54:00:00:00:01/x", "/image/v1.13.6/default/amd64/kernel?mac=%zz", "//", "/%2e%2e/%00"} {
		f.Add(s)
	}
	r := newRack(f)
	r.boots(bootNow(7, token))
	h := zerolog.Nop()
	r.Server.log, r.Server.junk = h, h
	f.Fuzz(func(t *testing.T, path string) {
		req, err := http.NewRequest(http.MethodGet, "http://x/", nil)
		if err != nil {
			t.Fatal(err)
		}
		u, err := req.URL.Parse(path)
		if err != nil || u.Path == "" || strings.Contains(path, token) {
			return
		}
		req.URL, req.RemoteAddr = u, "[2001:db8::bad]:1"
		w := httptest.NewRecorder()
		r.Handler().ServeHTTP(w, req)
		if w.Code < 200 || w.Code >= 500 {
			t.Errorf("status %d", w.Code)
		}
		if body := w.Body.String(); body == "secret" || strings.Contains(body, "v1alpha1") {
			t.Errorf("%q gives %q", path, body)
		}
	})
}
