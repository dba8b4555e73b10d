// Package browsertest is a real browser for tests of pages: Chromium, used with the keyboard
// only, whose complaints fail the test. Each page that a picture is taken of is held against
// axe-core, in light and dark, wide and narrow.
package browsertest

import (
	"context"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"fmt"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/chromedp/cdproto/browser"
	"github.com/chromedp/cdproto/cdp"
	"github.com/chromedp/cdproto/emulation"
	cdplog "github.com/chromedp/cdproto/log"
	"github.com/chromedp/cdproto/network"
	"github.com/chromedp/chromedp"
	"github.com/chromedp/chromedp/kb"
)

// Chromium is a real browser that trusts one site and is used with the keyboard only.
type Chromium struct {
	t    testing.TB
	ctx  context.Context
	Base string // https://ADDRESS of the site
}

// New starts one with a fresh profile, for the site at an address whose certificate one of
// these CAs vouches for. What it complains about, such as a breach
// of the policy of a page, and what it asks of anybody but these hosts, fails the test.
func New(t testing.TB, addr string, trusted *x509.CertPool, hosts ...string) *Chromium {
	t.Helper()
	path, err := exec.LookPath("chromium")
	if err != nil {
		if os.Getenv("CI") != "" {
			t.Fatal(err)
		}
		t.Skip("LEFT OUT: chromium is missing")
	}
	conn, err := tls.Dial("tcp", addr, &tls.Config{RootCAs: trusted})
	if err != nil {
		t.Fatal(err)
	}
	key := sha256.Sum256(conn.ConnectionState().PeerCertificates[0].RawSubjectPublicKeyInfo)
	if err := conn.Close(); err != nil {
		t.Fatal(err)
	}
	c := &Chromium{t: t, Base: "https://" + addr}
	var mu sync.Mutex
	var complaints []string
	listen := func(ev any) {
		mu.Lock()
		defer mu.Unlock()
		switch ev := ev.(type) {
		case *cdplog.EventEntryAdded:
			if ev.Entry.Source != cdplog.EntrySourceNetwork { // that an answer was 401
				complaints = append(complaints, ev.Entry.Text+" "+ev.Entry.URL)
			}
		case *network.EventRequestWillBeSent:
			if u, err := url.Parse(ev.Request.URL); err != nil || u.Host != addr && !slices.Contains(hosts, u.Host) {
				complaints = append(complaints, "it asks "+ev.Request.URL)
			}
		}
	}
	// Not that of the test, which ends before the browser is asked to.
	ctx, cancel := chromedp.NewExecAllocator(context.Background(), append(chromedp.DefaultExecAllocatorOptions[:],
		chromedp.ExecPath(path), chromedp.UserDataDir(t.TempDir()), chromedp.NoSandbox, chromedp.DisableGPU, chromedp.WindowSize(1100, 800),
		chromedp.Flag("ignore-certificate-errors-spki-list", base64.StdEncoding.EncodeToString(key[:])))...)
	ctx, stop := chromedp.NewContext(ctx, chromedp.WithListener(listen))
	ctx, late := context.WithTimeout(ctx, 5*time.Minute) // against a hang only
	c.ctx = ctx
	t.Cleanup(func() {
		err := chromedp.Cancel(ctx) // waits until it has gone
		late()
		stop()
		cancel()
		mu.Lock()
		defer mu.Unlock()
		if err != nil || len(complaints) > 0 {
			t.Errorf("Chromium: %v %q", err, complaints)
		}
	})
	c.Do(Call(emulation.SetFocusEmulationEnabled, emulation.SetFocusEmulationEnabledParams{Enabled: true}))
	return c
}

// Ask sends a command of the DevTools protocol and returns its answer.
func Ask[P, R any](c *Chromium, command cdp.Command[P, R], params P) R {
	c.t.Helper()
	answer, err := chromedp.Run(c.ctx, chromedp.Action[R](func(ctx context.Context, t *chromedp.Target) (R, error) { return cdp.Call(ctx, t, command, params) }))
	if err != nil {
		c.t.Fatal(err)
	}
	return answer
}

// Call is a command of the DevTools protocol as an action.
func Call[P, R any](command cdp.Command[P, R], params P) chromedp.Action[chromedp.Void] {
	return func(ctx context.Context, t *chromedp.Target) (chromedp.Void, error) {
		_, err := cdp.Call(ctx, t, command, params)
		return chromedp.Void{}, err
	}
}

// Do has it do something, and fails the test if it cannot.
func (c *Chromium) Do(actions ...chromedp.Action[chromedp.Void]) {
	c.t.Helper()
	if err := chromedp.Do(c.ctx, actions...); err != nil {
		text, _ := chromedp.Run(c.ctx, chromedp.Text(chromedp.CSS("body")))
		c.t.Fatalf("%v, at %s", err, text)
	}
}

// Eval asks the page what a script finds.
func Eval[T any](c *Chromium, script string) T {
	c.t.Helper()
	v, err := chromedp.Run(c.ctx, chromedp.Evaluate[T](script))
	if err != nil {
		c.t.Fatalf("%s: %v", script, err)
	}
	return v
}

// Press sends keys to whatever has the focus.
func (c *Chromium) Press(keys string) {
	c.t.Helper()
	c.Do(chromedp.KeyEvent(keys))
}

// TabTo presses Tab until something has the focus, and fails if that does not show.
func (c *Chromium) TabTo(selector string) {
	c.t.Helper()
	for range 80 {
		c.Press(kb.Tab)
		if !Eval[bool](c, `document.activeElement === document.body || getComputedStyle(document.activeElement).outlineStyle !== "none"`) {
			c.t.Error("something has the focus and does not show it")
		}
		if Eval[bool](c, fmt.Sprintf("document.activeElement.matches(%q)", selector)) {
			return
		}
	}
	c.t.Fatalf("the keyboard does not reach %s", selector)
}

// Sees waits until something is shown, and returns the text of the page.
func (c *Chromium) Sees(selector string) string {
	c.t.Helper()
	c.Do(chromedp.WaitVisible(chromedp.CSS(selector)))
	return Eval[string](c, "document.body.innerText")
}

// Shoot takes pictures of the page, light and dark, wide and narrow, into the folder
// that $SCREENSHOTS names. Whatever the width, nothing sticks out.
func (c *Chromium) Shoot(name string) {
	c.t.Helper()
	for _, scheme := range []string{"light", "dark"} {
		for _, width := range []int64{1100, 360} {
			c.Do(Call(emulation.SetEmulatedMedia, emulation.SetEmulatedMediaParams{Features: []*emulation.MediaFeature{{Name: "prefers-color-scheme", Value: scheme}}}), chromedp.EmulateViewport(width, 800))
			if over := Eval[int](c, "document.documentElement.scrollWidth - innerWidth"); over > 0 {
				c.t.Errorf("%s, %d wide: %d pixels stick out", name, width, over)
			}
			c.accessible(fmt.Sprintf("%s, %s, %d wide", name, scheme, width))
			picture, err := chromedp.Run(c.ctx, chromedp.FullScreenshot(100))
			if err != nil {
				c.t.Fatal(err)
			}
			if dir := os.Getenv("SCREENSHOTS"); dir != "" {
				if err := os.WriteFile(filepath.Join(dir, fmt.Sprintf("%s-%s-%d.png", name, scheme, width)), picture, 0o600); err != nil {
					c.t.Fatal(err)
				}
			}
		}
	}
	c.Do(chromedp.EmulateViewport(1100, 800))
}

// Downloads has the files that pages hand out put into a folder, and returns what waits for
// one of them, by its name, and reads it.
func (c *Chromium) Downloads() func(name string) string {
	c.t.Helper()
	dir := c.t.TempDir()
	c.Do(Call(browser.SetDownloadBehavior, browser.SetDownloadBehaviorParams{Behavior: browser.SetDownloadBehaviorBehaviorAllow, DownloadPath: dir}))
	return func(name string) string {
		c.t.Helper()
		tick := time.NewTicker(50 * time.Millisecond)
		defer tick.Stop()
		for {
			// Until it is whole it has another name.
			text, err := os.ReadFile(filepath.Join(dir, name)) // #nosec G304 -- tests say which
			if err == nil {
				return string(text)
			}
			select {
			case <-c.ctx.Done():
				c.t.Fatalf("%s does not arrive: %v", name, err)
			case <-tick.C:
			}
		}
	}
}
