package web

import (
	"net/netip"
	"net/url"
	"strings"
	"testing"

	"github.com/chromedp/chromedp"
	"github.com/chromedp/chromedp/kb"

	"github.com/provisiond/provisiond/internal/browsertest"
	"github.com/provisiond/provisiond/internal/inventory"
)

// stranger is a NIC that asked for an address and belongs to no machine.
func (s *site) stranger(mac inventory.MAC) {
	s.t.Helper()
	s.record(inventory.Event{
		Kind: inventory.Solicited, MAC: mac, Client: inventory.FirmwarePXE, Arch: inventory.AMD64, XID: 1, Subnet: "rack",
		Relay: netip.MustParseAddr("2001:db8:9::1"), Port: "Ethernet7",
	})
}

// TestAdopt: a NIC of the list becomes a machine, and a mistake is shown beside its field
// with all that was typed.
func TestAdopt(t *testing.T) {
	s := newSite(t, nil)
	s.stranger("52:54:00:00:00:0a")
	b := s.in(s.token("ada", inventory.AccessOperate))
	got := b.get("/discovered")
	if got.code != 200 || !got.has("52:54:00:00:00:0a", "Ethernet7", "2001:db8:9::1", "amd64", "pxe", `href="/discovered/52:54:00:00:00:0a/adopt"`, `sse-connect="/discovered/live"`) {
		t.Fatalf("%d %s", got.code, got.text)
	}
	if got = b.get("/discovered/52:54:00:00:00:0a/adopt"); got.code != 200 || !got.has(`name="mac" value="52:54:00:00:00:0a"`, `<option>store</option>`, `name="name" value="w-4"`, `<option value="worker" selected>`) {
		t.Fatalf("%d %s", got.code, got.text)
	}
	if got = b.get("/discovered/52:54:00:00:00:01/adopt"); got.code != 404 || !got.has("registered it by now") {
		t.Errorf("a NIC of a machine: %d %s", got.code, got.text)
	}
	form := url.Values{"mac": {"52:54:00:00:00:0a"}, "name": {"w-1"}, "role": {"worker"}, "address": {"2001:db8::1000"}}
	if got = b.post("/discovered/adopt", form); got.code != 409 || !got.has(`value="2001:db8::1000"`, `value="w-1"`) || !got.has("w-1") {
		t.Errorf("what is taken: %d %s", got.code, got.text)
	}
	form.Set("name", "W_9")
	if got = b.post("/discovered/adopt", form); got.code != 422 || !got.has(`<p id="problem-name" class="bad">`, `value="W_9"`, `aria-describedby="problem-name" aria-invalid="true"`) {
		t.Errorf("a bad name: %d %s", got.code, got.text)
	}
	form.Set("name", "w-9")
	form.Set("address", "")
	if got = b.post("/discovered/adopt", form); got.code != 200 || !got.has("w-9 is registered", `href="/machines/w-9"`) {
		t.Fatalf("%d %s", got.code, got.text)
	}
	v, err := s.keeper.Machine(t.Context(), "w-9")
	if err != nil || v.Machine.MACs[0] != "52:54:00:00:00:0a" || v.Machine.Role != inventory.Worker || v.Machine.Cluster != "" {
		t.Errorf("%+v, %v", v.Machine, err)
	}
	if got = b.get("/discovered"); !got.has("None:") {
		t.Errorf("%s", got.text)
	}
	if got = b.post("/discovered/adopt", form); got.code != 404 {
		t.Errorf("clicked twice: %d %s", got.code, got.text)
	}
}

// TestAdoptByCode: the code that a console shows leads to the form wherever it is typed,
// also for who may not see what else is discovered.
func TestAdoptByCode(t *testing.T) {
	s := newSite(t, nil)
	s.stranger("52:54:00:00:00:0a")
	code, err := s.keeper.AdoptionCode(t.Context(), "52:54:00:00:00:0a")
	if err != nil {
		t.Fatal(err)
	}
	b := s.in(s.token("limited", inventory.AccessOperate, "web"))
	got := b.get("/approve/confirm?code=" + strings.ToLower(code))
	if got.code != 200 || !got.has(`name="code" value="`+code+`"`, "52:54:00:00:00:0a", `<option selected>web</option>`) || got.has("store") {
		t.Fatalf("%d %s", got.code, got.text)
	}
	form := url.Values{"code": {code}, "name": {"w-9"}, "role": {"worker"}, "cluster": {"store"}}
	if got = b.post("/discovered/adopt", form); got.code != 422 || !got.has(`<p id="problem-cluster" class="bad">`, `name="code" value="`+code+`"`) {
		t.Errorf("into another cluster: %d %s", got.code, got.text)
	}
	form.Set("cluster", "web")
	if got = b.post("/discovered/adopt", form); got.code != 200 || !got.has("w-9 is registered") {
		t.Fatalf("%d %s", got.code, got.text)
	}
	if got = b.get("/discovered"); got.code != 403 {
		t.Errorf("%d %s", got.code, got.text)
	}
	if strings.Contains(s.logs.String(), code) {
		t.Error("the log has a code")
	}
}

// TestDiscoveredToReaders: who may not adopt is shown no code and no way to.
func TestDiscoveredToReaders(t *testing.T) {
	s := newSite(t, nil)
	s.stranger("52:54:00:00:00:0a")
	code, err := s.keeper.AdoptionCode(t.Context(), "52:54:00:00:00:0a")
	if err != nil {
		t.Fatal(err)
	}
	if got := s.in(s.token("ada", inventory.AccessOperate)).get("/discovered"); !got.has(code) {
		t.Errorf("%s", got.text)
	}
	b := s.in(s.token("reads", inventory.AccessRead))
	for _, path := range []string{"/discovered", "/api/v1/discovered"} {
		if got := b.get(path); got.code != 200 || !got.has("52:54:00:00:00:0a") || got.has(code) || got.has("/adopt") {
			t.Errorf("%s: %d %s", path, got.code, got.text)
		}
	}
	if got := b.get("/discovered/52:54:00:00:00:0a/adopt"); got.code != 403 {
		t.Errorf("%d %s", got.code, got.text)
	}
	if got := b.get("/api/v1/discovered/" + code); got.code != 403 {
		t.Errorf("%d %s", got.code, got.text)
	}
}

// TestChromiumAdopt: a NIC appears by itself and is adopted in two clicks, where there is
// one cluster.
func TestChromiumAdopt(t *testing.T) {
	s := newSite(t, nil)
	if err := s.keeper.DeleteMachine(t.Context(), "w-2", 0); err != nil {
		t.Fatal(err)
	}
	if err := s.keeper.DeleteCluster(t.Context(), "store", 0); err != nil {
		t.Fatal(err)
	}
	c := browsertest.New(t, s.addr, s.ca.Pool())
	logIn(c, s.token("ada", inventory.AccessOperate))
	c.Do(chromedp.Navigate(c.Base + "/discovered"))
	c.Sees("main p")
	s.stranger("52:54:00:00:00:0a")
	s.stranger("52:54:00:00:00:0b")
	c.Sees(`a[href="/discovered/52:54:00:00:00:0a/adopt"]`)
	c.Shoot("discovered")
	c.TabTo(`a[href="/discovered/52:54:00:00:00:0a/adopt"]`)
	c.Press(kb.Enter)
	c.Sees("form.stack button.main:focus")
	want := browsertest.Eval[string](c, `document.querySelector("#name").value`)
	c.Shoot("adopt")
	c.Press(kb.Enter)
	if text := c.Sees(".good"); !strings.HasPrefix(want, "w-") || !strings.Contains(text, want+" is registered") {
		t.Errorf("%q: %s", want, text)
	}
	c.Shoot("adopted")
	v, err := s.keeper.Machine(t.Context(), "52:54:00:00:00:0a")
	if err != nil || v.Machine.Name != want || v.Machine.Cluster != "web" || v.Machine.Role != inventory.Worker {
		t.Errorf("%+v, %v", v.Machine, err)
	}
}
