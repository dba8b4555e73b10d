package web

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/chromedp/chromedp"
	"github.com/chromedp/chromedp/kb"

	"github.com/provisiond/provisiond/internal/browsertest"
	"github.com/provisiond/provisiond/internal/inventory"
)

// chromium is a browser in which somebody has logged in.
func (s *site) chromium(role inventory.Access, clusters ...string) *browsertest.Chromium {
	s.t.Helper()
	token := s.token("ada", role, clusters...)
	c := browsertest.New(s.t, s.addr, s.ca.Pool())
	c.Do(chromedp.Navigate(c.Base + "/login"))
	c.Sees("#token:focus")
	c.Press(token + kb.Enter)
	c.Sees("#list")
	return c
}

// comes waits until a script finds something true.
func comes(script string) chromedp.Action[chromedp.Void] {
	return func(ctx context.Context, t *chromedp.Target) (chromedp.Void, error) {
		_, err := chromedp.Poll[bool](script)(ctx, t)
		return chromedp.Void{}, err
	}
}

// atEnd reports whether a log shows its newest line.
const atEnd = `(() => { const l = document.querySelector("[aria-labelledby=says] .log").getBoundingClientRect(), n = document.querySelector("[aria-labelledby=says] .log li:last-child").getBoundingClientRect(); return n.bottom <= l.bottom + 1 && n.bottom > l.top })()`

// TestChromiumMachine: from the rack to a machine that boots, live: its steps, its download,
// and what it says.
func TestChromiumMachine(t *testing.T) {
	s := newSite(t, nil)
	for i := range 300 {
		s.hall.says("w-2", fmt.Sprintf("line %d of the kernel, which is quite long so that it has to be broken somewhere in a narrow window", i+1))
	}
	for range 3 { // what came before
		s.boots("w-2", inventory.Offered, inventory.LoaderServed, inventory.KernelServed)
		s.record(inventory.Event{Kind: inventory.Solicited, MAC: "52:54:00:00:00:02", Machine: "w-2", Client: inventory.FirmwarePXE, XID: uint32(time.Now().UnixNano())})
	}
	s.boots("w-2", inventory.Offered, inventory.LoaderServed)
	s.record(inventory.Event{Kind: inventory.ScriptServed, Machine: "w-2", Plan: inventory.Install})
	s.hall.reading("w-2", inventory.Transfer{Step: "kernel", Sent: 5 << 20, Size: 20 << 20, Started: time.Now()})
	c := s.chromium(inventory.AccessOperate)
	c.TabTo(`#list a[href="/machines/w-2"]`)
	c.Press(kb.Enter)
	text := c.Sees("tr.running progress")
	if !strings.Contains(text, "25 %, 5 MiB of 20 MiB") || !strings.Contains(text, "line 300 of") {
		t.Errorf("%s", text)
	}
	c.Shoot("machine")
	s.hall.reading("w-2", inventory.Transfer{Step: "kernel", Sent: 10 << 20, Size: 20 << 20, Started: time.Now()})
	c.Sees(`progress[value="10485760"]`)
	s.hall.says("w-2", "the newest line")
	c.Do(comes(`document.querySelector("[aria-labelledby=says] .log li:last-child").textContent.includes("the newest line")`))
	if n := browsertest.Eval[int](c, `document.querySelectorAll("[aria-labelledby=says] .log li").length`); n != 201 {
		t.Errorf("%d lines", n)
	}
	if !browsertest.Eval[bool](c, atEnd) {
		t.Error("the log does not stay at its end")
	}
	c.TabTo("[aria-labelledby=says] .log")
	c.Press(kb.Home)
	c.Do(comes("!" + atEnd))
	for i := range 1900 {
		s.hall.says("w-2", fmt.Sprintf("flood %d", i))
	}
	s.hall.says("w-2", "after the flood")
	c.Do(comes(`document.querySelector("[aria-labelledby=says] .log li:last-child").textContent.includes("after the flood")`))
	if n := browsertest.Eval[int](c, `document.querySelectorAll("[aria-labelledby=says] .log li").length`); n != 2000 {
		t.Errorf("it keeps %d lines", n)
	}
	if browsertest.Eval[bool](c, atEnd) {
		t.Error("the log runs away from who reads it")
	}
	s.hall.reading("w-2", inventory.Transfer{})
	s.boots("w-2", inventory.KernelServed, inventory.InitramfsServed, inventory.ConfigServed)
	c.Sees("span.phase.installing")
	c.Sees("tr.running rect.api")
}

// TestChromiumAlarm: an alarm comes up by itself, and goes once somebody has looked into it.
func TestChromiumAlarm(t *testing.T) {
	s := newSite(t, nil)
	c := s.chromium(inventory.AccessOperate)
	c.Do(chromedp.Navigate(c.Base + "/machines/w-2"))
	c.Sees("#boot")
	s.record(inventory.Event{Kind: inventory.TokenStolen, Machine: "w-2", Peer: s.peer("2001:db8::bad"), Message: "somebody else"})
	c.Sees(`form[action="/machines/w-2/acknowledge"]`)
	c.Shoot("machine-alarm")
	c.TabTo(`form[action="/machines/w-2/acknowledge"] button`)
	c.Press(kb.Enter)
	c.Do(chromedp.WaitNotPresent(chromedp.CSS(`form[action="/machines/w-2/acknowledge"]`)))
}

// TestChromiumReimage: from the rack to a machine, what would happen as the choice changes, and
// the order.
func TestChromiumReimage(t *testing.T) {
	s := newSite(t, nil)
	s.runs("w-1")
	c := s.chromium(inventory.AccessOperate)
	c.TabTo(`#list a[href="/machines/w-1"]`)
	c.Press(kb.Enter)
	c.Sees("#boot")
	c.TabTo(`a[href="/machines/w-1/reimage"]`)
	c.Press(kb.Enter)
	if text := c.Sees("#foreseen button"); !strings.Contains(text, "Its system disk is wiped") {
		t.Errorf("%s", text)
	}
	c.TabTo("#role")
	c.Press("c") // control plane
	c.TabTo("#cluster")
	c.Do(comes(`document.querySelector("#foreseen").innerText.includes("control plane of web")`))
	c.Shoot("reimage")
	c.TabTo("#foreseen button")
	c.Press(kb.Enter)
	if text := c.Sees(`form[action="/machines/w-1/reimage/cancel"]`); !strings.Contains(text, "control plane") {
		t.Errorf("%s", text)
	}
	v, err := s.keeper.Machine(t.Context(), "w-1")
	if err != nil || !v.Facts.Reimage.Outstanding() || v.Machine.Role != inventory.ControlPlane {
		t.Errorf("%+v, %v", v.Facts.Reimage, err)
	}
	c.Do(chromedp.Navigate(c.Base + "/machines/w-1/remove"))
	c.Sees("input[name=force]")
	c.Shoot("remove")
}

// TestChromiumAct: machines are selected in the rack and labelled.
func TestChromiumAct(t *testing.T) {
	s := newSite(t, nil)
	c := s.chromium(inventory.AccessOperate)
	c.TabTo(`input[name="machine"][value="w-1"]`)
	c.Press(" ")
	c.TabTo(`input[name="machine"][value="w-3"]`)
	c.Press(" ")
	c.Do(chromedp.Evaluate[chromedp.Void](`document.querySelector("button[value=label]").focus()`))
	c.Press(kb.Enter)
	c.Sees("#set:focus")
	c.Press("rack=a1")
	c.Sees("#foreseen button")
	c.Shoot("label")
	c.TabTo("#foreseen button")
	c.Press(kb.Enter)
	if text := c.Sees(".good"); !strings.Contains(text, "Done for 2 of 2") {
		t.Errorf("%s", text)
	}
	c.Shoot("acted")
}

// TestChromiumEdit: a patch is typed, with what is wrong with it, and what it would change, while it
// is; then it is saved.
func TestChromiumEdit(t *testing.T) {
	s := newSite(t, nil)
	c := s.chromium(inventory.AccessOperate)
	c.Do(chromedp.Navigate(c.Base + "/machines/w-1"))
	c.Sees("#boot")
	c.TabTo(`a[href="/machines/w-1/edit"]`)
	c.Press(kb.Enter)
	c.Sees("#check")
	c.TabTo("#patch-new")
	c.Press("mistake: 1")
	if text := c.Sees("#checked ul.bad"); !strings.Contains(text, "Patch 1: unknown key") {
		t.Errorf("%s", text)
	}
	c.Shoot("edit-wrong")
	for range len("mistake: 1") {
		c.Press(kb.Backspace)
	}
	c.Press("machine: {}")
	if text := c.Sees("#checked .added"); !strings.Contains(text, "It can be saved") {
		t.Errorf("%s", text)
	}
	c.Shoot("edit")
	c.TabTo("form .main")
	c.Press(kb.Enter)
	c.Sees("#boot")
	v, err := s.keeper.Machine(t.Context(), "w-1")
	if err != nil || len(v.Machine.Patches) != 1 || v.Machine.Patches[0] != "machine: {}" {
		t.Errorf("%+v, %v", v.Machine, err)
	}
}

// TestChromiumConfig: what a machine would get, and to give it to it.
func TestChromiumConfig(t *testing.T) {
	s := newSite(t, nil)
	s.patched("w-1", "machine:\n  sysctls:\n    net.core.somaxconn: \"65535\"", "second: patch")
	c := s.chromium(inventory.AccessOperate)
	c.Do(chromedp.Navigate(c.Base + "/machines/w-1"))
	c.Sees("#boot")
	c.TabTo(`a[href="/machines/w-1/config"]`)
	c.Press(kb.Enter)
	c.Sees(".config .from.machine")
	c.Shoot("config")
	c.TabTo("#mode")
	c.Press("w") // with its next boot
	c.TabTo(`form[action="/machines/w-1/apply"] button`)
	c.Press(kb.Enter)
	if text := c.Sees("input[name=confirmed]~button"); !strings.Contains(text, "mode staged, dry run true") {
		t.Errorf("%s", text)
	}
	c.Shoot("apply")
	c.TabTo(`form[action="/machines/w-1/apply"] button`)
	c.Press(kb.Enter)
	if text := c.Sees(".good"); !strings.Contains(text, "dry run false") {
		t.Errorf("%s", text)
	}
}
