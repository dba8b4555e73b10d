package web

import (
	"strings"
	"testing"

	"github.com/chromedp/chromedp"
	"github.com/chromedp/chromedp/kb"

	"github.com/provisiond/provisiond/internal/browsertest"
	"github.com/provisiond/provisiond/internal/inventory"
)

// logIn types a token at the page that asks for it.
func logIn(c *browsertest.Chromium, token string) {
	c.Do(chromedp.Navigate(c.Base + "/login"))
	c.Sees("#token:focus")
	c.Press(token + kb.Enter)
	c.Sees("#rack")
}

// TestChromium logs in with a token, types a code, approves, and logs out.
func TestChromium(t *testing.T) {
	s := newSite(t, nil)
	s.asks("w-1", "CCCC-CCCC", "2001:db8::1000")
	s.record(inventory.Event{Kind: inventory.TokenStolen, Machine: "w-3", Boot: 1, Peer: s.peer("2001:db8::bad"), Message: "somebody else"})
	token := s.token("ada", inventory.AccessOperate)
	c := browsertest.New(t, s.addr, s.ca.Pool())
	c.Do(chromedp.Navigate(c.Base + "/"))
	c.Sees("#token:focus")
	c.Shoot("login")
	c.Press("pvd_ada_wrong" + kb.Enter)
	c.Sees(".bad")
	c.Sees("#token:focus")
	c.Press(token + kb.Enter)
	if text := c.Sees("#attention"); !strings.Contains(text, markup) {
		t.Errorf("markup is not shown as it is: %s", text)
	}
	c.Shoot("home")
	if cookies := browsertest.Eval[string](c, "document.cookie"); cookies != "" {
		t.Errorf("a script could read %q", cookies)
	}
	c.TabTo(`nav a[href="/approve"]`)
	c.Press(kb.Enter)
	c.Sees("#code:focus")
	c.Shoot("approve")
	c.Press("cccc cccc" + kb.Enter)
	if text := c.Sees(`button[value="approve"]`); !strings.Contains(text, "Approve w-1?") {
		t.Errorf("%s", text)
	}
	c.Shoot("confirm")
	c.TabTo(`button[value="approve"]`)
	c.Press(kb.Enter)
	if text := c.Sees(".good"); !strings.Contains(text, "w-1 is approved, by ada") {
		t.Errorf("%s", text)
	}
	c.Shoot("decided")
	c.TabTo(`form[action="/logout"] button`)
	c.Press(kb.Enter)
	c.Sees("#token:focus")
	c.Do(chromedp.Navigate(c.Base + "/approve?code=" + codeStore)) // as the QR code has it
	c.Sees("#token:focus")
	c.Press(token + kb.Enter)
	c.Sees("#code:focus")
	if code := browsertest.Eval[string](c, `document.querySelector("#code").value`); code != codeStore {
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
	c := browsertest.New(t, s.addr, s.ca.Pool(), strings.TrimPrefix(i.Addr(), "http://"))
	c.Do(chromedp.Navigate(c.Base + "/"))
	c.Sees("#token:focus")
	c.Shoot("login-oidc")
	c.TabTo(`a[href^="/login/oidc"]`)
	c.Press(kb.Enter)
	if text := c.Sees("#attention"); !strings.Contains(text, "You are ada (oidc)") {
		t.Errorf("%s", text)
	}
}
