package web

import (
	"context"
	"crypto/sha256"
	"crypto/tls"
	"encoding/base64"
	"fmt"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/chromedp/cdproto/cdp"
	"github.com/chromedp/cdproto/emulation"
	cdplog "github.com/chromedp/cdproto/log"
	"github.com/chromedp/cdproto/network"
	"github.com/chromedp/chromedp"
	"github.com/chromedp/chromedp/kb"

	"github.com/provisiond/provisiond/internal/inventory"
)

// chromium is a real browser that trusts the site and is used with the keyboard only.
type chromium struct {
	t    *testing.T
	ctx  context.Context
	base string
}

// newChromium starts one with a fresh profile. What it complains about, such as a breach
// of the policy of a page, and what it asks of anybody but these hosts, fails the test.
func newChromium(t *testing.T, s *site, hosts ...string) *chromium {
	t.Helper()
	path, err := exec.LookPath("chromium")
	if err != nil {
		if os.Getenv("CI") != "" {
			t.Fatal(err)
		}
		t.Skip("LEFT OUT: chromium is missing")
	}
	conn, err := tls.Dial("tcp", s.addr, &tls.Config{RootCAs: s.ca.Pool()})
	if err != nil {
		t.Fatal(err)
	}
	key := sha256.Sum256(conn.ConnectionState().PeerCertificates[0].RawSubjectPublicKeyInfo)
	if err := conn.Close(); err != nil {
		t.Fatal(err)
	}
	c := &chromium{t: t, base: "https://" + s.addr}
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
			if u, err := url.Parse(ev.Request.URL); err != nil || u.Host != s.addr && !slices.Contains(hosts, u.Host) {
				complaints = append(complaints, "it asks "+ev.Request.URL)
			}
		}
	}
	// Not that of the test, which ends before the browser is asked to.
	ctx, cancel := chromedp.NewExecAllocator(context.Background(), append(chromedp.DefaultExecAllocatorOptions[:],
		chromedp.ExecPath(path), chromedp.UserDataDir(t.TempDir()), chromedp.NoSandbox, chromedp.DisableGPU, chromedp.WindowSize(1100, 800),
		chromedp.Flag("ignore-certificate-errors-spki-list", base64.StdEncoding.EncodeToString(key[:])))...)
	ctx, stop := chromedp.NewContext(ctx, chromedp.WithListener(listen))
	ctx, late := context.WithTimeout(ctx, 2*time.Minute) // against a hang only
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
	c.do(call(emulation.SetFocusEmulationEnabled, emulation.SetFocusEmulationEnabledParams{Enabled: true}))
	return c
}

// call is a command of the DevTools protocol as an action.
func call[P, R any](command cdp.Command[P, R], params P) chromedp.Action[chromedp.Void] {
	return func(ctx context.Context, t *chromedp.Target) (chromedp.Void, error) {
		_, err := cdp.Call(ctx, t, command, params)
		return chromedp.Void{}, err
	}
}

func (c *chromium) do(actions ...chromedp.Action[chromedp.Void]) {
	c.t.Helper()
	if err := chromedp.Do(c.ctx, actions...); err != nil {
		text, _ := chromedp.Run(c.ctx, chromedp.Text(chromedp.CSS("body")))
		c.t.Fatalf("%v, at %s", err, text)
	}
}

// eval asks the page.
func eval[T any](c *chromium, script string) T {
	c.t.Helper()
	v, err := chromedp.Run(c.ctx, chromedp.Evaluate[T](script))
	if err != nil {
		c.t.Fatalf("%s: %v", script, err)
	}
	return v
}

// press sends keys to whatever has the focus.
func (c *chromium) press(keys string) {
	c.t.Helper()
	c.do(chromedp.KeyEvent(keys))
}

// tabTo presses Tab until something has the focus, and fails if that does not show.
func (c *chromium) tabTo(selector string) {
	c.t.Helper()
	for range 30 {
		c.press(kb.Tab)
		if !eval[bool](c, `document.activeElement === document.body || getComputedStyle(document.activeElement).outlineStyle !== "none"`) {
			c.t.Error("something has the focus and does not show it")
		}
		if eval[bool](c, fmt.Sprintf("document.activeElement.matches(%q)", selector)) {
			return
		}
	}
	c.t.Fatalf("the keyboard does not reach %s", selector)
}

// sees waits until something is shown, and returns the text of the page.
func (c *chromium) sees(selector string) string {
	c.t.Helper()
	c.do(chromedp.WaitVisible(chromedp.CSS(selector)))
	return eval[string](c, "document.body.innerText")
}

// shoot takes pictures of the page, light and dark, wide and narrow, into the folder
// that $SCREENSHOTS names. Whatever the width, nothing sticks out.
func (c *chromium) shoot(name string) {
	c.t.Helper()
	for _, scheme := range []string{"light", "dark"} {
		for _, width := range []int64{1100, 360} {
			c.do(call(emulation.SetEmulatedMedia, emulation.SetEmulatedMediaParams{Features: []*emulation.MediaFeature{{Name: "prefers-color-scheme", Value: scheme}}}), chromedp.EmulateViewport(width, 800))
			if over := eval[int](c, "document.documentElement.scrollWidth - innerWidth"); over > 0 {
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
	c.do(chromedp.EmulateViewport(1100, 800))
}

// TestChromium logs in with a token, types a code, approves, and logs out.
func TestChromium(t *testing.T) {
	s := newSite(t, nil)
	s.asks("w-1", "CCCC-CCCC", "2001:db8::1000")
	s.record(inventory.Event{Kind: inventory.TokenStolen, Machine: "w-3", Boot: 1, Peer: s.peer("2001:db8::bad"), Message: "somebody else"})
	token := s.token("ada", inventory.AccessOperate)
	c := newChromium(t, s)
	c.do(chromedp.Navigate(c.base + "/"))
	c.sees("#token:focus")
	c.shoot("login")
	c.press("pvd_ada_wrong" + kb.Enter)
	c.sees(".bad")
	c.sees("#token:focus")
	c.press(token + kb.Enter)
	if text := c.sees("#attention"); !strings.Contains(text, markup) {
		t.Errorf("markup is not shown as it is: %s", text)
	}
	c.shoot("home")
	if cookies := eval[string](c, "document.cookie"); cookies != "" {
		t.Errorf("a script could read %q", cookies)
	}
	c.tabTo(`nav a[href="/approve"]`)
	c.press(kb.Enter)
	c.sees("#code:focus")
	c.shoot("approve")
	c.press("cccc cccc" + kb.Enter)
	if text := c.sees(`button[value="approve"]`); !strings.Contains(text, "Approve w-1?") {
		t.Errorf("%s", text)
	}
	c.shoot("confirm")
	c.tabTo(`button[value="approve"]`)
	c.press(kb.Enter)
	if text := c.sees(".good"); !strings.Contains(text, "w-1 is approved, by ada") {
		t.Errorf("%s", text)
	}
	c.shoot("decided")
	c.tabTo(`form[action="/logout"] button`)
	c.press(kb.Enter)
	c.sees("#token:focus")
	c.do(chromedp.Navigate(c.base + "/approve?code=" + codeStore)) // as the QR code has it
	c.sees("#token:focus")
	c.press(token + kb.Enter)
	c.sees("#code:focus")
	if code := eval[string](c, `document.querySelector("#code").value`); code != codeStore {
		t.Errorf("the code of the link is %q after the login", code)
	}
	v, err := s.keeper.Machine(t.Context(), "w-1")
	if err != nil || !v.Facts.Boots[0].Flows[1].Approved() {
		t.Errorf("%+v, %v", v.Facts.Boots[0].Flows, err)
	}
}

// TestChromiumIssuer: a browser that comes back from another site is in.
func TestChromiumIssuer(t *testing.T) {
	i, cfg := newRealIssuer(t)
	s := newSite(t, cfg)
	i.QueueUser(ada("everybody"))
	c := newChromium(t, s, strings.TrimPrefix(i.Addr(), "http://"))
	c.do(chromedp.Navigate(c.base + "/"))
	c.sees("#token:focus")
	c.shoot("login-oidc")
	c.tabTo(`a[href^="/login/oidc"]`)
	c.press(kb.Enter)
	if text := c.sees("#attention"); !strings.Contains(text, "You are ada (oidc)") {
		t.Errorf("%s", text)
	}
}
