package daemon

import (
	"context"
	"crypto/x509"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	cdpbrowser "github.com/chromedp/cdproto/browser"
	"github.com/chromedp/chromedp"
	"github.com/chromedp/chromedp/kb"

	"github.com/provisiond/provisiond/client"
	"github.com/provisiond/provisiond/internal/browsertest"
	"github.com/provisiond/provisiond/internal/inventory"
	"github.com/provisiond/provisiond/internal/racktest"
)

// seen waits for a part of a page, without loading it again.
func seen(t *testing.T, c *browsertest.Chromium, what, selector string, words ...string) {
	t.Helper()
	script := fmt.Sprintf(`document.querySelector(%q)?.innerText ?? "(nothing)"`, selector)
	for end := time.Now().Add(within); ; time.Sleep(50 * time.Millisecond) {
		text := browsertest.Eval[string](c, script)
		missing := ""
		for _, w := range words {
			if !strings.Contains(text, w) {
				missing = w
			}
		}
		switch {
		case missing == "":
			return
		case time.Now().After(end):
			t.Fatalf("%s: no %q in %q", what, missing, text)
		}
	}
}

// TestBrowser: a person with a browser, and no mouse, watches five machines boot, adopts
// one, reimages one, fetches a talosconfig, and goes.
func TestBrowser(t *testing.T) {
	l := newLab(t)
	store := l.open(t)
	l.cfg.Listen = netip.MustParseAddrPort("[::1]:0")
	l.cfg.Subnets[0].Adopt = true
	timing := racktest.FastTiming() // and long enough to be looked at
	timing.Kernel, timing.Install, timing.Kexec, timing.CRI, timing.EtcdStart = time.Second, 3*time.Second, time.Second, time.Second, 2*time.Second
	r := l.rack(t, racktest.RackOptions{Timing: timing})
	proxied(t, func(ctx context.Context) error { return r.Fabric.ServeProxy(ctx, l.proxy) })
	k, _ := l.start(t, store)
	w2, err := k.Machine(t.Context(), "w-2")
	check(t, err)
	check(t, k.DeleteMachine(t.Context(), "w-2", w2.Machine.Rev))
	_, token, err := k.CreateToken(t.Context(), inventory.Token{Name: "ada", Access: inventory.AccessAdmin})
	check(t, err)
	root, err := client.New("unix://"+l.cfg.Socket, client.Options{})
	check(t, err)
	defer root.Close()
	pem, err := root.CA(t.Context())
	check(t, err)
	trusted := x509.NewCertPool()
	trusted.AppendCertsFromPEM(pem)

	c := browsertest.New(t, l.daemon.addrs.API.String(), trusted)
	c.Do(chromedp.Navigate(c.Base + "/"))
	c.Sees("#token:focus")
	c.Press(token + kb.Enter)
	c.Sees("#list")
	seen(t, c, "before", `[sse-swap="cp-1/phase"]`, "registered")
	ctx, cancel := context.WithTimeout(context.Background(), within)
	t.Cleanup(cancel)
	ran := make(chan error, 1)
	go func() { ran <- r.Run(ctx) }()
	seen(t, c, "while it boots", `[sse-swap="w-1/phase"]`, "installing")
	c.Shoot("rack")
	seen(t, c, "the machine that nobody knows", `[sse-swap="summary"]`, "discovered")
	for _, name := range []string{"cp-1", "cp-2", "cp-3", "w-1"} {
		seen(t, c, name, fmt.Sprintf(`[sse-swap="%s/phase"]`, name), "ready")
	}

	// One that was discovered becomes one of the rack: its link, and a button.
	c.TabTo(`.discovered a`)
	c.Press(kb.Enter)
	c.Sees(`a[href$="/adopt"]`)
	c.Shoot("discovered")
	c.TabTo(`a[href$="/adopt"]`)
	c.Press(kb.Enter)
	c.Sees(`button.main`)
	if name := browsertest.Eval[string](c, `document.querySelector("input[name=name]").value`); name != "w-2" {
		t.Errorf("%s is suggested", name)
	}
	c.Shoot("adopt")
	c.TabTo(`button.main`)
	c.Press(kb.Enter)
	check(t, <-ran)
	c.Do(chromedp.Navigate(c.Base + "/"))
	seen(t, c, "the one that was adopted", `[sse-swap="w-2/phase"]`, "ready")
	verify(t, k, r)

	// One is installed anew.
	c.TabTo(`a[href="/machines/w-1"]`)
	c.Press(kb.Enter)
	seen(t, c, "the machine", "#machine", "ready", "What it says")
	c.Shoot("machine")
	c.TabTo(`a[href="/machines/w-1/reimage"]`)
	c.Press(kb.Enter)
	seen(t, c, "what a reimage would come to", "#foreseen", "Its system disk is wiped", "through its Talos API", "worker of lab")
	c.Shoot("reimage")
	c.TabTo(`#foreseen button`)
	c.Press(kb.Enter)
	seen(t, c, "its second boot", "#machine", "Boot 2", "ready")
	verify(t, k, r)
	wipes(t, r, map[string]int{"w-1": 1})

	// What opens the cluster to talosctl is downloaded.
	c.Do(chromedp.Navigate(c.Base + "/clusters/lab"))
	seen(t, c, "the cluster", `[sse-swap="controlplanes"]`, "cp-1", "cp-2", "cp-3", "ready")
	c.Shoot("cluster")
	folder := t.TempDir()
	c.Do(browsertest.Call(cdpbrowser.SetDownloadBehavior, cdpbrowser.SetDownloadBehaviorParams{Behavior: cdpbrowser.SetDownloadBehaviorBehaviorAllow, DownloadPath: folder}))
	c.TabTo(`a[href$="/talosconfig"]`)
	c.Press(kb.Enter)
	var text []byte
	for end := time.Now().Add(within); ; time.Sleep(50 * time.Millisecond) {
		if text, err = os.ReadFile(filepath.Join(folder, "lab.talosconfig")); err == nil && strings.Contains(string(text), "context: lab") {
			break
		}
		if time.Now().After(end) {
			t.Fatalf("no talosconfig has come: %v %q", err, text)
		}
	}
	c.TabTo(`form[action="/logout"] button`)
	c.Press(kb.Enter)
	c.Sees("#token:focus")
	c.Do(chromedp.Navigate(c.Base + "/machines/w-1"))
	c.Sees("#token:focus")
}
