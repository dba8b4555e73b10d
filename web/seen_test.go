package web

import (
	"testing"

	"github.com/provisiond/provisiond/internal/browsertest"
	"github.com/provisiond/provisiond/internal/inventory"
)

// TestChromiumUnseen: a page that nobody sees gives its connection back, and is up to date
// when somebody does again.
func TestChromiumUnseen(t *testing.T) {
	s := newSite(t, nil)
	c := browsertest.New(t, s.addr, s.ca.Pool())
	logIn(c, s.token("ada", inventory.AccessRead))
	turn := func(hidden string) {
		browsertest.Eval[bool](c, `Object.defineProperty(document, "hidden", {value: `+hidden+`, configurable: true}); document.dispatchEvent(new Event("visibilitychange"))`)
	}
	s.await("it is open", func() bool { return s.pages.open.Taken() == 1 })
	turn("true")
	s.await("it is given back", func() bool { return s.pages.open.Taken() == 0 })
	s.record(inventory.Event{Kind: inventory.ScriptServed, Machine: "w-1", Plan: inventory.Hold, Error: "while nobody looked"})
	turn("false")
	s.await("it is told", func() bool {
		return browsertest.Eval[bool](c, `document.querySelector('[sse-swap="w-1/reason"]').innerText.includes("while nobody looked")`)
	})
}
