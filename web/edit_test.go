package web

import (
	"encoding/json"
	"html"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"testing"

	"github.com/provisiond/provisiond/api"
	"github.com/provisiond/provisiond/internal/inventory"
)

// filledIn is the form of a machine as a browser would send it back, with changes.
func (b *browser) filledIn(machine string, change url.Values) url.Values {
	b.t.Helper()
	got := b.get("/machines/" + machine + "/edit")
	var f machineForm
	if err := json.Unmarshal([]byte(got.value("was")), &f); err != nil {
		b.t.Fatalf("%v of %d %s", err, got.code, got.text)
	}
	form := url.Values{
		"was": {got.value("was")}, "rev": {got.value("rev")}, "macs": {strings.ReplaceAll(f.MACs, "\n", "\r\n")}, "role": {f.Role}, "cluster": {f.Cluster}, "address": {f.Address},
		"disk": {f.Disk}, "image": {f.Image}, "boot": {f.Boot}, "secureBoot": {f.SecureBoot}, "approval": {f.Approval}, "addressing": {f.Addressing}, "kernelArgs": {f.KernelArgs}, "labels": {f.Labels}, "patch": append(f.Patches, ""),
	}
	for name, values := range change {
		form[name] = values
	}
	return form
}

// value is what a field of a form has.
func (a answer) value(name string) string {
	_, rest, _ := strings.Cut(a.text, `name="`+name+`" value="`)
	text, _, _ := strings.Cut(rest, `"`)
	return html.UnescapeString(text)
}

// TestEdit: the form changes what was changed in it, and says at each field what is wrong.
func TestEdit(t *testing.T) {
	s := newSite(t, nil)
	b := s.in(s.token("ada", inventory.AccessOperate))
	if got := b.get("/machines/52:54:00:00:00:01/edit"); got.code != 200 || !got.has("Edit w-1", "52:54:00:00:00:01</textarea>", `hx-post="/machines/w-1/edit/check"`, `<option selected>web</option>`) || got.has(`name="force"`) {
		t.Errorf("%d %s", got.code, got.text)
	}
	form := b.filledIn("w-1", url.Values{"labels": {"rack=a1\r\nu=7"}, "kernelArgs": {"a=b\r\nc"}, "disk": {"/dev/sda"}, "patch": {"machine:\r\n  a: " + markup, "", "second: patch"}})
	if got := b.post("/machines/w-1/edit", form); got.code != http.StatusSeeOther || got.header.Get("Location") != "/machines/w-1" {
		t.Fatalf("%d %s", got.code, got.text)
	}
	v, err := s.keeper.Machine(t.Context(), "w-1")
	if m := v.Machine; err != nil || len(m.Labels) != 2 || m.Labels["u"] != "7" || len(m.KernelArgs) != 2 || m.Install.Disk != "/dev/sda" || len(m.Patches) != 2 || m.Patches[0] != "machine:\n  a: "+markup || m.Cluster != "web" {
		t.Errorf("%+v, %v", m, err)
	}
	if got := b.get("/machines/w-1/edit"); !got.has("&lt;script&gt;", "Patch 2 of", "Another patch") || got.has(markup) {
		t.Errorf("%s", got.text)
	}
	// What is emptied is taken out, and the rest stays.
	if got := b.post("/machines/w-1/edit", b.filledIn("w-1", url.Values{"labels": {"u=8"}, "disk": {""}, "patch": {"", "second: patch", ""}})); got.code != http.StatusSeeOther {
		t.Fatalf("%d %s", got.code, got.text)
	}
	v, err = s.keeper.Machine(t.Context(), "w-1")
	if m := v.Machine; err != nil || len(m.Labels) != 1 || m.Labels["u"] != "8" || m.Install.Disk != "" || len(m.Patches) != 1 || m.Patches[0] != "second: patch" || len(m.KernelArgs) != 2 {
		t.Errorf("%+v, %v", m, err)
	}

	got := b.post("/machines/w-1/edit", b.filledIn("w-1", url.Values{"macs": {"nonsense"}, "address": {"10.0.0.1x"}}))
	if got.code != 422 || !got.has("Nothing was saved", "nonsense</textarea>", `id="problem-macs" class="bad"`, `value="10.0.0.1x"`, `id="problem-address" class="bad"`, `aria-invalid="true"`) {
		t.Errorf("%d %s", got.code, got.text)
	}
	got = b.post("/machines/w-1/edit", b.filledIn("w-1", url.Values{"patch": {"first: one", "mistake: here"}}))
	if got.code != 422 || !got.has(`id="problem-patches-1" class="bad">unknown key`, "mistake: here</textarea>") || got.has(`id="problem-patches-0" class="bad"`) {
		t.Errorf("%d %s", got.code, got.text)
	}
	got = b.post("/machines/w-1/edit", b.filledIn("w-1", url.Values{"labels": {"nonsense"}}))
	if got.code != 422 || !got.has(`id="problem-labels" class="bad"`, "is not key=value") {
		t.Errorf("%d %s", got.code, got.text)
	}

	s.runs("w-3")
	if got = b.post("/machines/w-3/edit", b.filledIn("w-3", url.Values{"role": {"controlplane"}})); got.code != 409 || !got.has(`id="problem-role" class="bad"`, `name="force"`, "/machines/w-3/reimage") {
		t.Errorf("%d %s", got.code, got.text)
	}
	if got = b.post("/machines/w-3/edit", b.filledIn("w-3", url.Values{"role": {"controlplane"}, "force": {"yes"}})); got.code != http.StatusSeeOther {
		t.Errorf("%d %s", got.code, got.text)
	}
	for _, form := range []url.Values{{}, {"was": {"{"}, "rev": {"1"}}} {
		if got = b.post("/machines/w-1/edit", form); got.code != 400 || !got.has("load it again") {
			t.Errorf("%d %s", got.code, got.text)
		}
	}
}

// TestEditCheck: what would come of a change is said before it is made, and nothing is changed.
func TestEditCheck(t *testing.T) {
	s := newSite(t, nil)
	b := s.in(s.token("ada", inventory.AccessOperate))
	before, rev := s.head(), s.rev("w-1")
	for _, c := range []struct {
		change url.Values
		want   []string
	}{
		{url.Values{"patch": {"added: line"}}, []string{"It can be saved", `<span class="added">&#43;added: line</span>`}},
		{url.Values{"labels": {"a=b"}}, []string{"It can be saved", "would stay as it is"}},
		{url.Values{"patch": {"fine: one", "mistake: here"}}, []string{"<strong>Patch 2:</strong> unknown key"}},
		{url.Values{"macs": {"nonsense"}}, []string{"<strong>MACs:</strong>", "nonsense"}},
		{url.Values{"labels": {"nonsense"}}, []string{"<strong>Labels:</strong>", "is not key=value"}},
		{url.Values{"cluster": {"nowhere"}}, []string{"<strong>Cluster:</strong>", "nowhere"}},
	} {
		got := b.post("/machines/w-1/edit/check", b.filledIn("w-1", c.change))
		_, checked, _ := strings.Cut(got.text, `<div id="checked">`)
		if got.code != 200 || !(answer{text: checked}).has(c.want...) {
			t.Errorf("%v: %d %s", c.change, got.code, checked)
		}
	}
	if lines := s.lines(before); len(lines) > 0 || s.rev("w-1") != rev {
		t.Errorf("%+v", lines)
	}
}

// TestEditConflict: who saves second is shown what the first made, and keeps what they typed.
func TestEditConflict(t *testing.T) {
	s := newSite(t, nil)
	b := s.in(s.token("ada", inventory.AccessOperate))
	mine := b.filledIn("w-1", url.Values{"labels": {"mine=1"}, "disk": {"/dev/mine"}})
	theirs := b.filledIn("w-1", url.Values{"labels": {"theirs=1"}, "image": {"v1.12.9"}, "patch": {"theirs: too"}})
	if got := b.post("/machines/w-1/edit", theirs); got.code != http.StatusSeeOther {
		t.Fatalf("%d %s", got.code, got.text)
	}
	got := b.post("/machines/w-1/edit", mine)
	if got.code != 412 || !got.has("somebody else changed w-1 meanwhile", "theirs=1", "mine=1</textarea>", `value="/dev/mine"`, `value="v1.12.9"`, "theirs: too</textarea>") {
		t.Fatalf("%d %s", got.code, got.text)
	}
	again := b.filledIn("w-1", url.Values{"labels": {"mine=1"}, "disk": {"/dev/mine"}})
	again.Set("rev", got.value("rev"))
	again.Set("was", got.value("was"))
	if got := b.post("/machines/w-1/edit", again); got.code != http.StatusSeeOther {
		t.Errorf("%d %s", got.code, got.text)
	}
	v, err := s.keeper.Machine(t.Context(), "w-1")
	if m := v.Machine; err != nil || len(m.Labels) != 1 || m.Labels["mine"] != "1" || m.Install.Disk != "/dev/mine" || m.Image != "v1.12.9" || len(m.Patches) != 1 {
		t.Errorf("%+v, %v", m, err)
	}
}

// TestNew: a machine is added, with what a link says of it.
func TestNew(t *testing.T) {
	s := newSite(t, nil)
	b := s.in(s.token("ada", inventory.AccessOperate))
	got := b.get("/machines/new?mac=52:54:00:00:00:77&name=w-7&address=2001:db8::7&subnet=rack")
	if got.code != 200 || !got.has("Add a machine", "52:54:00:00:00:77</textarea>", `value="w-7"`, `value="2001:db8::7"`, `value="rack"`, `<option value="worker" selected>`) || got.has("hx-post") {
		t.Errorf("%d %s", got.code, got.text)
	}
	form := url.Values{"name": {"w-7"}, "macs": {"52:54:00:00:00:77\r\n52-54-00-00-00-78\r\n"}, "role": {"worker"}, "cluster": {"web"}, "labels": {"a=b"}, "patch": {""}}
	if got = b.post("/machines/new", form); got.code != http.StatusSeeOther || got.header.Get("Location") != "/machines/w-7" {
		t.Errorf("%d %s", got.code, got.text)
	}
	v, err := s.keeper.Machine(t.Context(), "52:54:00:00:00:78")
	if err != nil || v.Machine.Name != "w-7" || v.Machine.Labels["a"] != "b" || len(v.Machine.Patches) != 0 {
		t.Errorf("%+v, %v", v.Machine, err)
	}
	if got = b.post("/machines/new", form); got.code != 409 || !got.has("Nothing was saved", `value="w-7"`) {
		t.Errorf("%d %s", got.code, got.text)
	}
	form.Set("name", "No Name")
	form.Set("macs", "")
	if got = b.post("/machines/new", form); got.code != 422 || !got.has(`id="problem-name" class="bad"`, `value="No Name"`) {
		t.Errorf("%d %s", got.code, got.text)
	}

	limited := s.in(s.token("limited", inventory.AccessOperate, "store"))
	form.Set("name", "w-8")
	form.Set("macs", "52:54:00:00:00:79")
	if got = limited.post("/machines/new", form); got.code != 422 || !got.has("cluster web does not exist") {
		t.Errorf("%d %s", got.code, got.text)
	}
	if got = limited.get("/machines/new"); !got.has("choose one", "<option>store</option>") || got.has("<option>web</option>") {
		t.Errorf("%s", got.text)
	}
	for _, path := range []string{"/machines/w-1/edit", "/machines/w-1/edit/check"} {
		if got = limited.post(path, url.Values{"was": {"{}"}, "rev": {"1"}}); got.code != 404 {
			t.Errorf("%s: %d %s", path, got.code, got.text)
		}
	}
	reads := s.in(s.token("reads", inventory.AccessRead))
	for _, path := range []string{"/machines/new", "/machines/w-1/edit"} {
		if got = reads.get(path); got.code != 403 {
			t.Errorf("%s: %d", path, got.code)
		}
		if got = reads.post(path, form); got.code != 403 {
			t.Errorf("%s: %d", path, got.code)
		}
	}
}

// TestFormKeeps: a form that nobody touched changes nothing, whatever the machine has.
func TestFormKeeps(t *testing.T) {
	m := &api.Machine{MachineSpec: api.MachineSpec{
		Name: "w-1", MACs: []string{"52:54:00:00:00:01", "52:54:00:00:00:02"}, Cluster: "web", Role: "worker", Address: "2001:db8::1", Subnet: "rack",
		Install: api.Install{DiskSelector: map[string]string{"size": "> 1TB"}, Image: "x"}, Image: "v1.13.6", Boot: "uki", SecureBoot: "on", Approval: "required", Addressing: "static", Patches: []string{"\n\na: b\n", "c"}, KernelArgs: []string{"a", "b"}, Labels: map[string]string{"a": "b=c", "d": ""},
	}}
	f, was := formOfMachine(m), formOfMachine(m)
	if patch, err := f.patch(&was); err != nil || len(patch) != 0 {
		t.Errorf("%v, %v", patch, err)
	}
	f.Labels, f.Address = "d=\ne=f", "2001:db8::2"
	patch, err := f.patch(&was)
	if text, _ := json.Marshal(patch); err != nil || string(text) != `{"address":"2001:db8::2","labels":{"a":null,"d":"","e":"f"}}` {
		t.Errorf("%s, %v", text, err)
	}
}

// TestFormUntouched: what nobody touched stays as it is, however it was written.
func TestFormUntouched(t *testing.T) {
	m := &api.Machine{MachineSpec: api.MachineSpec{Name: "w-1", Address: "2001:db8::1", Patches: []string{"a: 1\r\nb: 2\r\n", "c: 3\rd: 4"}, Labels: map[string]string{"a": " x ", "b": "c\r\nd=e", "f=g": "h"}, Install: api.Install{Disk: " /dev/sda"}}}
	was := formOfMachine(m)
	form := url.Values{"address": {was.Address}, "labels": {strings.ReplaceAll(was.Labels, "\n", "\r\n")}, "disk": {was.Disk}, "patch": {""}}
	for _, p := range was.Patches {
		form.Add("patch", strings.ReplaceAll(p, "\n", "\r\n"))
	}
	r := httptest.NewRequest(http.MethodPost, "/", strings.NewReader(form.Encode()))
	r.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	f := formOf(r)
	f.Name = was.Name
	if patch, err := f.patch(&was); err != nil || len(patch) != 0 {
		t.Errorf("%v, %v", patch, err)
	}
	f.Labels = "f=h"
	patch, err := f.patch(&was)
	if text, _ := json.Marshal(patch); err != nil || string(text) != `{"labels":{"a":null,"b":null,"f":"h","f=g":null}}` {
		t.Errorf("%s, %v", text, err)
	}
}

// TestEditAddress: an address that is emptied is told, and not just left as it was.
func TestEditAddress(t *testing.T) {
	s := newSite(t, nil)
	b := s.in(s.token("ada", inventory.AccessOperate))
	form := b.filledIn("w-1", url.Values{"address": {" "}})
	if got := b.post("/machines/w-1/edit", form); got.code != 422 || !got.has(`id="problem-address" class="bad">a machine keeps an address`, `<input id="address" name="address" value="" required`) {
		t.Errorf("%d %s", got.code, got.text)
	}
	if got := b.post("/machines/w-1/edit/check", form); got.code != 200 || !got.has("<strong>Address:</strong> a machine keeps an address") {
		t.Errorf("%d %s", got.code, got.text)
	}
}
