package web

import (
	"context"
	"fmt"
	"html"
	"net/url"
	"reflect"
	"strings"
	"testing"

	"github.com/chromedp/chromedp"
	"github.com/chromedp/chromedp/kb"

	"github.com/provisiond/provisiond/api"
	"github.com/provisiond/provisiond/internal/audit"
	"github.com/provisiond/provisiond/internal/browsertest"
	"github.com/provisiond/provisiond/internal/inventory"
)

func TestClusters(t *testing.T) {
	s := newSite(t, nil)
	for _, kind := range []inventory.Kind{inventory.BootstrapClaimed, inventory.BootstrapSent, inventory.BootstrapAccepted} {
		s.record(inventory.Event{Kind: kind, Cluster: "store", Machine: "w-2"})
	}
	b := s.in(s.token("ada", inventory.AccessAdmin))
	if got := b.get("/clusters"); got.code != 200 || !got.has(`href="/clusters/web"`, `href="/clusters/store"`, "0 of 2 ready", "v1.13.6", "1.36.2", `href="/clusters/new"`) {
		t.Errorf("%d %s", got.code, got.text)
	}
	got := b.get("/clusters/store")
	if got.code != 200 || !got.has(`<li class="now" aria-current="step"><b>called</b>`, "w-2 is the one that may be bootstrapped", `<li class="ahead"><b>done</b>`, `href="/machines/w-2"`, "fd00:10:244::/56", "Life 1",
		`href="/api/v1/clusters/store/talosconfig" download="store.talosconfig"`, `sse-connect="/clusters/store/live"`, "a person approves each machine") || got.has("w-1", "Remove…") {
		t.Errorf("%d %s", got.code, got.text)
	}
	before := s.head()
	if got = b.get("/api/v1/clusters/store/talosconfig"); got.code != 200 || got.text != "context: store\n" {
		t.Errorf("%d %s", got.code, got.text)
	}
	if lines := s.lines(before); len(lines) != 1 || lines[0].Action != "get-talosconfig" || lines[0].Who != "ada" || lines[0].Outcome != audit.OK {
		t.Errorf("%+v", lines)
	}
	if got = b.get("/clusters/nowhere"); got.code != 404 {
		t.Errorf("%d %s", got.code, got.text)
	}
	b = s.in(s.token("reads", inventory.AccessRead, "web"))
	if got = b.get("/clusters"); got.code != 200 || got.has("store") || got.has("/clusters/new") {
		t.Errorf("%d %s", got.code, got.text)
	}
	if got = b.get("/clusters/web"); got.code != 200 || !got.has("w-1") || got.has("/edit") || got.has("talosconfig") {
		t.Errorf("%d %s", got.code, got.text)
	}
	if got = b.get("/clusters/store"); got.code != 404 {
		t.Errorf("%d %s", got.code, got.text)
	}
	for _, path := range []string{"/clusters/web/edit", "/clusters/web/reset", "/clusters/web/rollout", "/clusters/web/delete", "/clusters/new"} {
		if got = b.get(path); got.code != 403 {
			t.Errorf("%s: %d %s", path, got.code, got.text)
		}
	}
}

// fields are what a form has, by its page.
func (b *browser) fields(path string) url.Values {
	b.t.Helper()
	v := url.Values{}
	text := b.get(path).text
	for _, tag := range strings.Split(text, "<input ")[1:] {
		tag, _, _ = strings.Cut(tag, ">")
		if _, name, ok := strings.Cut(tag, `name="`); ok {
			name, _, _ = strings.Cut(name, `"`)
			_, value, _ := strings.Cut(tag, `value="`)
			value, _, _ = strings.Cut(value, `"`)
			v.Add(name, html.UnescapeString(value))
		}
	}
	for _, tag := range strings.Split(text, "<textarea ")[1:] {
		_, name, _ := strings.Cut(tag, `name="`)
		name, _, _ = strings.Cut(name, `"`)
		_, value, _ := strings.Cut(tag, ">\n")
		value, _, _ = strings.Cut(value, "</textarea>")
		v.Add(name, html.UnescapeString(value))
	}
	return v
}

// TestChangeCluster: what is not touched stays, what is wrong is said beside its field, and
// nobody overwrites what somebody else did meanwhile without having seen it.
func TestChangeCluster(t *testing.T) {
	s := newSite(t, nil)
	c, _, err := s.keeper.Cluster(t.Context(), "web")
	if err != nil {
		t.Fatal(err)
	}
	c.NTP, c.Install.DiskSelector = []string{"time.example"}, map[string]string{"type": "nvme", "size": ">= 1TB"}
	c.Install.Disk, c.WorkerPatches = "", []string{"machine:\n  one: 1\n"}
	if _, err := s.keeper.PutCluster(t.Context(), c, c.Rev); err != nil {
		t.Fatal(err)
	}
	b := s.in(s.token("ada", inventory.AccessOperate, "web"))
	form := b.fields("/clusters/web/edit")
	form.Set("approval", "required") // selects are not read above
	unchanged, _, err := s.keeper.Cluster(t.Context(), "web")
	if err != nil {
		t.Fatal(err)
	}
	if got := b.post("/clusters/web/edit", form); got.code != 200 {
		t.Fatalf("%d %s", got.code, got.text)
	}
	now, _, err := s.keeper.Cluster(t.Context(), "web")
	if err != nil || now.Endpoint != unchanged.Endpoint || now.Install.DiskSelector["size"] != ">= 1TB" || len(now.NTP) != 1 || strings.TrimSpace(now.WorkerPatches[0]) != "machine:\n  one: 1" || now.PodSubnets[0] != unchanged.PodSubnets[0] || now.Approval != inventory.ApprovalRequired {
		t.Errorf("saved as it is, it becomes %+v, %v", now, err)
	}

	form = b.fields("/clusters/web/edit")
	form.Set("more", "workerPatches")
	got := b.post("/clusters/web/edit", form)
	if got.code != 200 || strings.Count(got.text, `<textarea name="workerPatches"`) != 2 || !got.has(`aria-label="Patches for workers, number 1" autofocus`, "#problem-workerPatches-1") {
		t.Fatalf("%d %s", got.code, got.text)
	}
	form.Del("more")
	form["workerPatches"] = []string{"", "machine:\n  one: 1\n", "mistake: 1"} // the first was emptied
	form.Set("dns", "2001:db8::53\nnonsense")
	for _, path := range []string{"/clusters/web/check", "/clusters/web/edit"} {
		got = b.post(path, form)
		if status := map[string]int{"/clusters/web/check": 200, "/clusters/web/edit": 422}[path]; got.code != status || !got.has(`<p id="problem-dns" class="bad">`, "nonsense") || got.has(`id="problem-ntp" class="bad"`) {
			t.Errorf("%s: %d %s", path, got.code, got.text)
		}
	}
	form.Set("dns", "2001:db8::53")
	for _, path := range []string{"/clusters/web/check", "/clusters/web/edit"} {
		if got = b.post(path, form); !got.has(`<p id="problem-workerPatches-2" class="bad">`, "unknown key") || got.has(`id="problem-workerPatches-1" class="bad"`) {
			t.Errorf("%s: the mistake is not shown with its patch: %d %s", path, got.code, got.text)
		}
	}
	form["workerPatches"] = []string{"# not for w-3"}
	if got = b.post("/clusters/web/check", form); got.code != 200 || !got.has("1 of 2 machines would be left without a config", "<strong>w-3</strong>: ") {
		t.Errorf("%d %s", got.code, got.text)
	}
	form["workerPatches"] = nil
	form.Set("install.diskSelector", "type=ssd")
	if got = b.post("/clusters/web/check", form); got.code != 200 || !got.has("Each of its machines (2) would have a config") {
		t.Errorf("%d %s", got.code, got.text)
	}

	c, _, err = s.keeper.Cluster(t.Context(), "web")
	if err != nil {
		t.Fatal(err)
	}
	c.NTP = []string{"elsewhere.example"}
	if _, err := s.keeper.PutCluster(t.Context(), c, c.Rev); err != nil {
		t.Fatal(err)
	}
	got = b.post("/clusters/web/edit", form)
	if got.code != 412 || !got.has("somebody changed the cluster meanwhile", "<dt>Time servers</dt><dd><pre>elsewhere.example</pre></dd>", "time.example</textarea>") {
		t.Fatalf("%d %s", got.code, got.text)
	}
	if now, _, _ = s.keeper.Cluster(t.Context(), "web"); now.NTP[0] != "elsewhere.example" {
		t.Errorf("it was overwritten: %+v", now)
	}
	form.Set("rev", b.fields("/clusters/web/edit").Get("rev"))
	if got = b.post("/clusters/web/edit", form); got.code != 200 || !got.has("is changed") {
		t.Fatalf("%d %s", got.code, got.text)
	}
	now, _, err = s.keeper.Cluster(t.Context(), "web")
	if err != nil || now.NTP[0] != "time.example" || len(now.WorkerPatches) != 0 || len(now.Install.DiskSelector) != 1 || now.Install.DiskSelector["type"] != "ssd" || now.DNS[0].String() != "2001:db8::53" {
		t.Errorf("%+v, %v", now, err)
	}
}

// TestClusterForm: each field of a cluster is in its form.
func TestClusterForm(t *testing.T) {
	full := api.ClusterSpec{
		Endpoint: "a", TalosVersion: "b", KubernetesVersion: "c", Schematic: "d", PodSubnets: []string{"e"}, ServiceSubnets: []string{"f"}, DNS: []string{"g"}, NTP: []string{"h", "i"},
		Addressing: "static", Approval: "none", Delivery: "http", Install: api.Install{Disk: "j", DiskSelector: map[string]string{"k": "l"}, Image: "m"},
		Patches: []string{"n", "o"}, ControlPlanePatches: []string{"p"}, WorkerPatches: []string{"q"}, KernelArgs: []string{"r"},
	}
	d := specForm{Fields: append([]formField(nil), clusterFields...)}
	if err := d.fill(full); err != nil {
		t.Fatal(err)
	}
	patch, err := d.patch(api.ClusterSpec{})
	if err != nil {
		t.Fatal(err)
	}
	stored, err := asMap(full)
	if err != nil {
		t.Fatal(err)
	}
	written, err := asMap(patch)
	if err != nil {
		t.Fatal(err)
	}
	if !reflect.DeepEqual(stored, written) {
		t.Errorf("the form makes %v of %v", written, stored)
	}
}

func TestNewCluster(t *testing.T) {
	s := newSite(t, nil)
	b := s.in(s.token("ada", inventory.AccessOperate))
	if got := b.get("/clusters/new"); got.code != 200 || !got.has(`name="name"`, "the default of this provisiond", ">Create<") || got.has("hx-post") {
		t.Fatalf("%d %s", got.code, got.text)
	}
	form := url.Values{"name": {"web"}, "endpoint": {"https://[2001:db8::2]:6443"}, "install.disk": {"/dev/sda"}}
	if got := b.post("/clusters/new", form); got.code != 409 || !got.has(`<p id="problem-name" class="bad">`, "already exists", `value="/dev/sda"`) {
		t.Errorf("%d %s", got.code, got.text)
	}
	form.Set("name", "third")
	if got := b.post("/clusters/new", form); got.code != 200 || !got.has("Cluster third is created") {
		t.Fatalf("%d %s", got.code, got.text)
	}
	c, _, err := s.keeper.Cluster(t.Context(), "third")
	if err != nil || c.Install.Disk != "/dev/sda" || c.TalosVersion != "v1.13.6" {
		t.Errorf("%+v, %v", c, err)
	}
	if got := b.get("/clusters/third"); !got.has(`href="/clusters/third/delete"`) {
		t.Errorf("%s", got.text)
	}
	form = b.fields("/clusters/third/delete")
	if got := b.post("/clusters/third/delete", form); got.code != 200 || !got.has("are removed") {
		t.Errorf("%d %s", got.code, got.text)
	}
	form.Set("rev", "")
	if got := b.post("/clusters/web/delete", form); got.code != 409 || !got.has(`<p id="problem-" class="bad">`) {
		t.Errorf("one with machines: %d %s", got.code, got.text)
	}
	if got := s.in(s.token("limited", inventory.AccessOperate, "web")).get("/clusters/new"); got.code != 403 {
		t.Errorf("%d %s", got.code, got.text)
	}
}

func TestResetCluster(t *testing.T) {
	s := newSite(t, nil)
	s.record(inventory.Event{Kind: inventory.ConfigServed, Machine: "w-2", Boot: 1, Hash: "abc", Peer: s.peer("2001:db8::1001")})
	b := s.in(s.token("ada", inventory.AccessOperate))
	got := b.get("/clusters/store/reset")
	if got.code != 200 || !got.has("Everything in the cluster is lost", "it is wiped and installed anew as registered: w-2", `name="dead" value="w-2"`, "number 2") {
		t.Fatalf("%d %s", got.code, got.text)
	}
	form := url.Values{"epoch": {"1"}, "confirm": {"web"}, "dead": {"w-2"}}
	if got = b.post("/clusters/store/reset", form); got.code != 422 || !got.has(`<p id="problem-confirm" class="bad">`, `value="w-2" checked`) {
		t.Errorf("another name: %d %s", got.code, got.text)
	}
	form.Set("confirm", "store")
	form.Del("dead")
	for range 2 { // clicked twice
		if got = b.post("/clusters/store/reset", form); got.code != 200 || !got.has("begins its life 2", "installed anew: w-2") {
			t.Errorf("%d %s", got.code, got.text)
		}
	}
	form.Set("dead", "w-3")
	form.Set("epoch", "2")
	if got = b.post("/clusters/store/reset", form); got.code != 409 || !got.has(`<p id="problem-dead" class="bad">`) {
		t.Errorf("one that is none of its control planes is dead: %d %s", got.code, got.text)
	}
	if got = b.get("/clusters/store"); !got.has("Life 2", "w-2") {
		t.Errorf("%s", got.text)
	}
}

// TestResetClusterAll: the page names every machine that the reset takes, and those that it
// waits for can be declared dead, however many they are and wherever they belong by now.
func TestResetClusterAll(t *testing.T) {
	s := newSite(t, nil)
	const n = rowsShown + 1
	name := func(i int) string { return fmt.Sprintf("cp-%03d", i) }
	for i := range n {
		s.machine(name(i), inventory.MAC(fmt.Sprintf("52:54:00:00:01:%02x", i)), "store", inventory.ControlPlane)
		s.record(inventory.Event{Kind: inventory.ConfigServed, Machine: name(i), Boot: 1, Hash: "abc"})
	}
	v, err := s.keeper.Machine(t.Context(), name(0))
	if err != nil {
		t.Fatal(err)
	}
	moved := v.Machine.Clone()
	moved.Cluster = "web"
	if _, err := s.keeper.PutMachine(t.Context(), moved, moved.Rev); err != nil {
		t.Fatal(err)
	}
	got := s.in(s.token("ada", inventory.AccessOperate)).get("/clusters/store/reset")
	for i := range n {
		if !got.has(`name="dead" value="`+name(i)+`"`, name(i)+", ") {
			t.Errorf("%s is left out", name(i))
		}
	}
	if !got.has(fmt.Sprintf("%d machines have", n+1), ", w-2.") {
		t.Errorf("%d %s", got.code, got.text)
	}
	got = s.in(s.token("limited", inventory.AccessOperate, "store")).get("/clusters/store/reset")
	if got.has(name(0)) || !got.has(name(1), "1 machine more with its config belongs to no cluster of yours", "waits for 1 control plane among them") {
		t.Errorf("%d %s", got.code, got.text)
	}
}

// TestClusterFormPairs: a line that is not key=value is refused beside its field.
func TestClusterFormPairs(t *testing.T) {
	s := newSite(t, nil)
	b := s.in(s.token("ada", inventory.AccessOperate))
	form := b.fields("/clusters/store/edit")
	form.Set("install.diskSelector", "size")
	for path, status := range map[string]int{"/clusters/store/edit": 422, "/clusters/store/check": 200} {
		if got := b.post(path, form); got.code != status || !got.has(`<p id="problem-install-diskSelector" class="bad">`, "is not key=value", "size</textarea>") {
			t.Errorf("%s: %d %s", path, got.code, got.text)
		}
	}
}

func TestRolloutPage(t *testing.T) {
	s := newSite(t, nil)
	b := s.in(s.token("ada", inventory.AccessOperate))
	if got := b.get("/clusters/web/rollout"); got.code != 200 || !got.has("2 workers", `value="auto" checked`) || got.has("control planes (") {
		t.Fatalf("%d %s", got.code, got.text)
	}
	form := url.Values{"mode": {"staged"}}
	if got := b.post("/clusters/store/rollout", form); got.code != 409 || !got.has(`<p id="problem-" class="bad">`, `value="staged" checked`) {
		t.Errorf("one that is not bootstrapped: %d %s", got.code, got.text)
	}
	for _, kind := range []inventory.Kind{inventory.BootstrapClaimed, inventory.BootstrapDone} {
		s.record(inventory.Event{Kind: kind, Cluster: "store", Machine: "w-2"})
	}
	s.record(inventory.Event{Kind: inventory.ConfigServed, Machine: "w-2", Boot: 1, Hash: "abc", Peer: s.peer("2001:db8::1001")})
	if got := b.post("/clusters/store/rollout", form); got.code != 200 || !got.has("Rollout 1", "has begun") {
		t.Fatalf("%d %s", got.code, got.text)
	}
	if got := b.get("/clusters/store"); !got.has("<strong>going</strong>", "mode staged", `name="act" value="stop"`) {
		t.Errorf("%s", got.text)
	}
	if got := b.post("/clusters/store/rollout", url.Values{"act": {"stop"}}); got.code != 200 || !got.has("Rollout 1 is stopped") {
		t.Errorf("%d %s", got.code, got.text)
	}
	if got := b.get("/clusters/store"); !got.has("<strong>stopped</strong>") || got.has(`value="stop"`) {
		t.Errorf("%s", got.text)
	}
}

// TestChromiumCluster: a mistake in a patch is shown while it is typed; a talosconfig is
// downloaded; the bootstrap is followed.
func TestChromiumCluster(t *testing.T) {
	s := newSite(t, nil)
	c := browsertest.New(t, s.addr, s.ca.Pool())
	download := c.Downloads()
	logIn(c, s.token("ada", inventory.AccessAdmin))
	c.Do(chromedp.Navigate(c.Base + "/clusters"))
	c.Sees(`a[href="/clusters/store"]`)
	c.Shoot("clusters")
	c.TabTo(`main a[href="/clusters/store"]`)
	c.Press(kb.Enter)
	c.Sees(`li[aria-current="step"]`)
	s.record(inventory.Event{Kind: inventory.BootstrapClaimed, Cluster: "store", Machine: "w-2"})
	c.Sees(`.stages li:nth-child(2)[aria-current="step"]`)
	s.machine("cp-9", "52:54:00:00:00:09", "store", inventory.ControlPlane)
	c.Sees(`#machine-cp-9`)
	c.Shoot("cluster")
	c.TabTo(`a[href$="/talosconfig"]`)
	c.Press(kb.Enter)
	if text := download("store.talosconfig"); text != "context: store\n" {
		t.Errorf("the talosconfig is %q", text)
	}

	c.Do(chromedp.Navigate(c.Base + "/clusters/store/edit"))
	c.Sees("#field-endpoint")
	c.TabTo(`button[name=more][value=workerPatches]`)
	c.Press(kb.Enter)
	c.Sees("textarea[name=workerPatches]:focus")
	c.Press("mistake: 1")
	c.Sees("#problem-workerPatches-0.bad")
	if !browsertest.Eval[bool](c, `document.activeElement.matches("textarea[name=workerPatches]") && document.activeElement.value === "mistake: 1"`) {
		t.Error("the message took the focus, or what was typed")
	}
	c.Shoot("cluster-edit")
	for range len("mistake: 1") {
		c.Press(kb.Backspace)
	}
	c.Press("machine: {}")
	c.Sees("#checked .good")
	c.TabTo("form.stack button.main")
	c.Press(kb.Enter)
	if text := c.Sees("main > .good"); !strings.Contains(text, "Cluster store is changed") {
		t.Errorf("%s", text)
	}
	if cl, _, err := s.keeper.Cluster(context.Background(), "store"); err != nil || len(cl.WorkerPatches) != 1 || cl.WorkerPatches[0] != "machine: {}" {
		t.Errorf("%+v, %v", cl, err)
	}
	for _, name := range []string{"reset", "rollout", "delete"} {
		c.Do(chromedp.Navigate(c.Base + "/clusters/store/" + name))
		c.Sees("main form button")
		c.Shoot("cluster-" + name)
	}
	c.Do(chromedp.Navigate(c.Base + "/clusters/new"))
	c.Sees("#field-name:focus")
	c.Shoot("cluster-new")
}
