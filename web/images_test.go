package web

import (
	"strings"
	"testing"

	"github.com/chromedp/chromedp"
	"github.com/chromedp/chromedp/kb"

	"github.com/provisiond/provisiond/internal/browsertest"
	"github.com/provisiond/provisiond/internal/inventory"
)

func (s *site) image(version string, arch inventory.Arch) {
	s.t.Helper()
	img := &inventory.Image{
		Version: version, Arch: arch, Kernel: inventory.Blob{SHA256: strings.Repeat("a", 64), Size: 20 << 20},
		Initramfs: inventory.Blob{SHA256: strings.Repeat("b", 64), Size: 80 << 20},
	}
	if err := s.keeper.PutImage(s.t.Context(), img); err != nil {
		s.t.Fatal(err)
	}
}

// TestImages: each image has who would netboot it, and only one that nobody would is
// removed.
func TestImages(t *testing.T) {
	s := newSite(t, nil)
	b := s.in(s.token("ada", inventory.AccessOperate))
	if got := b.get("/images"); got.code != 200 || !got.has("Wanted, and not here", "<strong>v1.13.6/default/amd64</strong>", "None yet.", "provisiond image pull") {
		t.Errorf("%d %s", got.code, got.text)
	}
	s.image("v1.13.6", inventory.AMD64)
	s.image("v1.12.0", inventory.AMD64)
	img := &inventory.Image{Version: "v1.11.0", Arch: inventory.AMD64, UKI: inventory.Blob{SHA256: strings.Repeat("c", 64), Size: 101 << 20}, Signed: inventory.Blob{SHA256: strings.Repeat("d", 64), Size: 102 << 20}}
	img.Kernel, img.Initramfs = inventory.Blob{SHA256: strings.Repeat("a", 64), Size: 20 << 20}, inventory.Blob{SHA256: strings.Repeat("b", 64), Size: 80 << 20}
	if err := s.keeper.PutImage(t.Context(), img); err != nil {
		t.Fatal(err)
	}
	stubbed := *img
	stubbed.Version, stubbed.UKI, stubbed.Signed, stubbed.Stub = "v1.10.0", inventory.Blob{}, inventory.Blob{}, inventory.Blob{SHA256: strings.Repeat("e", 64), Size: 1 << 17}
	if err := s.keeper.PutImage(t.Context(), &stubbed); err != nil {
		t.Fatal(err)
	}
	got := b.get("/images")
	if !got.has("80 MiB, no UKI</span>", "80 MiB, UKI 101 MiB, vendor's signed UKI 102 MiB</span>", "303 MiB", "stub for UKIs 128 KiB</span>") {
		t.Errorf("%s", got.text)
	}
	if got.code != 200 || !got.has("100 MiB", `<a href="/clusters/store">store</a>, <a href="/clusters/web">web</a>`, `<a href="/machines/w-1">w-1</a>, <a href="/machines/w-2">w-2</a>`,
		`href="/images/v1.12.0/default/amd64/delete"`) || got.has(`href="/images/v1.13.6/default/amd64/delete"`, "Wanted") {
		t.Errorf("%d %s", got.code, got.text)
	}
	if got = b.get("/images/v1.13.6/default/amd64/delete"); got.code != 200 || !got.has("It is in use") || got.has("<button class=\"danger\"") {
		t.Errorf("%d %s", got.code, got.text)
	}
	if got = b.post("/images/v1.13.6/default/amd64/delete", nil); got.code != 409 || !got.has("Nothing was removed") {
		t.Errorf("%d %s", got.code, got.text)
	}
	limited := s.in(s.token("limited", inventory.AccessOperate, "web"))
	if got = limited.get("/images"); got.code != 200 || got.has("/delete") || got.has("store") {
		t.Errorf("%d %s", got.code, got.text)
	}
	if got = limited.post("/images/v1.12.0/default/amd64/delete", nil); got.code != 403 {
		t.Errorf("%d %s", got.code, got.text)
	}
	if got = b.post("/images/v1.12.0/default/amd64/delete", nil); got.code != 200 || !got.has("is removed") {
		t.Errorf("%d %s", got.code, got.text)
	}
	all, err := s.keeper.Images(t.Context())
	if err != nil || len(all) != 3 {
		t.Errorf("%+v, %v", all, err)
	}
	if got = b.get("/images/v1.12.0/default/amd64/delete"); got.code != 404 {
		t.Errorf("%d %s", got.code, got.text)
	}
}

// TestImagesCost: no page about images has each machine written out.
func TestImagesCost(t *testing.T) {
	s := newSite(t, nil)
	s.image("v1.12.0", inventory.AMD64)
	b := s.in(s.token("ada", inventory.AccessOperate))
	b.get("/images")
	b.get("/images/v1.12.0/default/amd64/delete")
	if got := b.post("/images/v1.12.0/default/amd64/delete", nil); got.code != 200 {
		t.Errorf("%d %s", got.code, got.text)
	}
	if n := s.calls.times("/api/v1/machines"); n != 0 {
		t.Errorf("machines are listed %d times", n)
	}
}

func TestChromiumImages(t *testing.T) {
	s := newSite(t, nil)
	s.image("v1.13.6", inventory.ARM64)
	s.image("v1.12.0", inventory.AMD64)
	c := browsertest.New(t, s.addr, s.ca.Pool())
	logIn(c, s.token("ada", inventory.AccessOperate))
	c.Do(chromedp.Navigate(c.Base + "/images"))
	c.Sees("#here")
	c.Shoot("images")
	c.TabTo(`a[href="/images/v1.12.0/default/amd64/delete"]`)
	c.Press(kb.Enter)
	c.Sees("a.button:focus")
	c.Shoot("delete-image")
	c.Do(chromedp.KeyEvent(kb.Tab, chromedp.KeyModifiers(8))) // back to the button
	c.Press(kb.Enter)
	if text := c.Sees(".good"); !strings.Contains(text, "v1.12.0/default/amd64 is removed") {
		t.Errorf("%s", text)
	}
}
