package web

import (
	"fmt"
	"net/http"
	"net/url"
	"strings"
	"testing"

	"github.com/provisiond/provisiond/internal/audit"
	"github.com/provisiond/provisiond/internal/inventory"
)

// runs has a machine fetch its config and answer at its API.
func (s *site) runs(machine string) {
	s.t.Helper()
	s.boots(machine, inventory.KernelServed, inventory.InitramfsServed)
	s.record(inventory.Event{Kind: inventory.ConfigServed, Machine: machine, Boot: 1, Hash: "c3"})
}

// TestReimage: it is said what would happen, and that happens; where etcd would go, only with
// the name of the cluster.
func TestReimage(t *testing.T) {
	s := newSite(t, nil)
	s.runs("w-1")
	b := s.in(s.token("ada", inventory.AccessOperate))
	got := b.get("/machines/w-1/reimage")
	if got.code != 200 || !got.has("<strong>Its system disk</strong> is wiped, when it next boots from the network; that waits: its API does not answer.", "It is a worker of web now", "worker of web</strong>",
		"Boot image v1.13.6/default/amd64 is not imported", "a worker may go", "Reimage w-1</button>", `method="post" action="/machines/w-1/reimage"`) || got.has("destroyCluster") {
		t.Errorf("%d %s", got.code, got.text)
	}
	got = b.get("/machines/w-1/reimage?wipe=all&hard=yes&role=controlplane&cluster=store")
	if got.code != 200 || !got.has("<strong>Every disk</strong>", "control plane of store", "Its role becomes controlplane, and was worker", `name="wipe" value="all"`, `name="hard" value="yes"`, `name="role" value="controlplane"`) {
		t.Errorf("%d %s", got.code, got.text)
	}
	if got = b.get("/machines/w-1/reimage?cluster=nowhere"); got.code != 200 || !got.has("It would be refused:", "nowhere") || got.has("Reimage w-1</button>") {
		t.Errorf("%d %s", got.code, got.text)
	}
	if got = b.get("/machines/w-9/reimage"); got.code != 404 {
		t.Errorf("%d %s", got.code, got.text)
	}

	s.runs("w-2")
	if got = b.get("/machines/w-2/reimage"); !got.has("It would be refused:", "last control plane", `id="destroyCluster"`) || got.has("Reimage w-2</button>") {
		t.Errorf("%s", got.text)
	}
	if got = b.post("/machines/w-2/reimage", url.Values{"check": {"yes"}, "destroyCluster": {"web"}}); got.code != 200 || !got.has("It would be refused:", "not of") {
		t.Errorf("%d %s", got.code, got.text)
	}
	for _, path := range []string{"/machines/w-2/reimage", "/machines/w-2/remove"} { // a link types no word
		if got = b.get(path + "?destroyCluster=store"); got.code != 200 || got.has(`value="store"`) || got.has("Cluster store may be lost with it") {
			t.Errorf("%d %s", got.code, got.text)
		}
		if got = b.post(path+"?destroyCluster=store", url.Values{"force": {"yes"}, "rev": {fmt.Sprint(s.rev("w-2"))}}); got.code != 409 {
			t.Errorf("%d %s", got.code, got.text)
		}
	}
	if got = b.post("/machines/w-2/reimage", nil); got.code != 409 || !got.has("It was not ordered:", "last control plane") {
		t.Errorf("%d %s", got.code, got.text)
	}
	if got = b.post("/machines/w-2/reimage", url.Values{"check": {"yes"}, "destroyCluster": {"store"}}); !got.has("Cluster store may be lost with it", "Reimage w-2</button>", `name="destroyCluster" value="store"`) {
		t.Errorf("%s", got.text)
	}
	if got = b.post("/machines/w-2/reimage", url.Values{"destroyCluster": {"store"}}); got.code != http.StatusSeeOther {
		t.Errorf("%d %s", got.code, got.text)
	}

	before := s.head()
	if got = b.post("/machines/w-1/reimage", url.Values{"hard": {"yes"}}); got.code != http.StatusSeeOther || got.header.Get("Location") != "/machines/w-1" {
		t.Errorf("%d %s", got.code, got.text)
	}
	v, err := s.keeper.Machine(t.Context(), "w-1")
	if err != nil || !v.Facts.Reimage.Outstanding() || v.Facts.Reimage.Graceful || v.Facts.Reimage.AllDisks {
		t.Errorf("%+v, %v", v.Facts.Reimage, err)
	}
	if got = b.get("/machines/w-1"); !got.has("Reimage, order 1:", "waiting", `action="/machines/w-1/reimage/cancel"`) {
		t.Errorf("%s", got.text)
	}
	if got = b.post("/machines/w-1/reimage/cancel", nil); got.code != http.StatusSeeOther {
		t.Errorf("%d %s", got.code, got.text)
	}
	if v, err := s.keeper.Machine(t.Context(), "w-1"); err != nil || v.Facts.Reimage.Outstanding() {
		t.Errorf("%+v, %v", v.Facts.Reimage, err)
	}
	if lines := s.lines(before); len(lines) != 2 || lines[0].Action != "reimage-machine" || lines[0].Who != "ada" || lines[1].Action != "cancel-reimage" || lines[1].Outcome != audit.OK {
		t.Errorf("%+v", lines)
	}
}

// TestRemove: what may run is removed only by who says so, as they saw it.
func TestRemove(t *testing.T) {
	s := newSite(t, nil)
	s.runs("w-1")
	b := s.in(s.token("ada", inventory.AccessOperate))
	rev := func(name string) string { return fmt.Sprint(s.rev(name)) }
	if got := b.get("/machines/w-1/remove"); got.code != 200 || !got.has("It has its config and may run", `name="force"`, `value="`+rev("w-1")+`"`) || got.has("destroyCluster") {
		t.Errorf("%d %s", got.code, got.text)
	}
	if got := b.post("/machines/w-1/remove", url.Values{"rev": {rev("w-1")}}); got.code != 409 || !got.has("It was not removed:", "run on") {
		t.Errorf("%d %s", got.code, got.text)
	}
	if got := b.post("/machines/w-1/remove", url.Values{"rev": {"1"}, "force": {"yes"}}); got.code != 412 || !got.has("changed meanwhile") {
		t.Errorf("%d %s", got.code, got.text)
	}
	if got := b.post("/machines/w-1/remove", url.Values{"force": {"yes"}}); got.code != 412 {
		t.Errorf("%d %s", got.code, got.text)
	}
	if got := b.post("/machines/w-1/remove", url.Values{"rev": {rev("w-1")}, "force": {"yes"}}); got.code != 200 || !got.has("Removed") {
		t.Errorf("%d %s", got.code, got.text)
	}
	if got := b.get("/machines/w-1"); got.code != 404 {
		t.Errorf("%d", got.code)
	}
	s.runs("w-2")
	if got := b.get("/machines/w-2/remove"); !got.has("leaves etcd first") {
		t.Errorf("%s", got.text)
	}
	if got := b.post("/machines/w-2/remove", url.Values{"rev": {rev("w-2")}, "force": {"yes"}}); got.code != 409 || !got.has("last control plane", `id="destroyCluster"`) {
		t.Errorf("%d %s", got.code, got.text)
	}
	if got := b.post("/machines/w-2/remove", url.Values{"rev": {rev("w-2")}, "force": {"yes"}, "destroyCluster": {"store"}}); got.code != 200 || !got.has("Removed") {
		t.Errorf("%d %s", got.code, got.text)
	}
	if got := b.post("/machines/w-9/remove", url.Values{"rev": {"1"}}); got.code != 404 {
		t.Errorf("%d %s", got.code, got.text)
	}
}

// TestAct: for each of several machines it is said what would happen, and what came of it.
func TestAct(t *testing.T) {
	s := newSite(t, nil)
	b := s.in(s.token("ada", inventory.AccessOperate))
	got := b.get("/machines/act?act=reimage&machine=w-1&machine=w-2&machine=w-1&machine=w-9")
	if got.code != 200 || !got.has("a worker may go", "last control plane", "Nothing: ", "w-9", "Reimage 1 machine</button>") || strings.Count(got.text, `name="machine" value="w-1"`) != 2 || strings.Count(got.text, `name="machine" value="w-2"`) != 1 {
		t.Errorf("%d %s", got.code, got.text)
	}
	before := s.head()
	got = b.post("/machines/act", url.Values{"act": {"reimage"}, "machine": {"w-1", "w-2", "w-9", "w-3"}, "hard": {"yes"}})
	if got.code != 200 || !got.has("Done for 2 of 4", "last control plane", "w-9") {
		t.Errorf("%d %s", got.code, got.text)
	}
	for _, name := range []string{"w-1", "w-3"} {
		if v, err := s.keeper.Machine(t.Context(), name); err != nil || !v.Facts.Reimage.Outstanding() || v.Facts.Reimage.Graceful {
			t.Errorf("%s: %+v, %v", name, v.Facts.Reimage, err)
		}
	}
	if lines := s.lines(before); len(lines) != 4 {
		t.Errorf("%+v", lines)
	}

	got = b.get("/machines/act?" + url.Values{"act": {"label"}, "machine": {"w-1", "w-3"}}.Encode())
	if got.code != 200 || !got.has("none") || got.has("Label 2 machines") {
		t.Errorf("%d %s", got.code, got.text)
	}
	form := url.Values{"act": {"label"}, "machine": {"w-1", "w-3"}, "set": {"rack=a1\r\n\r\n u = 7"}, "remove": {"old"}}
	if got = b.get("/machines/act?" + form.Encode()); !got.has("rack=a1", "u=7", "Label 2 machines") {
		t.Errorf("%s", got.text)
	}
	if got = b.post("/machines/act", form); got.code != 200 || !got.has("Done for 2 of 2") {
		t.Errorf("%d %s", got.code, got.text)
	}
	form = url.Values{"act": {"label"}, "machine": {"w-1"}, "set": {"x=y"}, "remove": {"u"}}
	if got = b.post("/machines/act", form); got.code != 200 {
		t.Errorf("%d %s", got.code, got.text)
	}
	if v, err := s.keeper.Machine(t.Context(), "w-1"); err != nil || fmt.Sprint(v.Machine.Labels) != "map[rack:a1 x:y]" {
		t.Errorf("%v, %v", v.Machine.Labels, err)
	}
	if got = b.get("/machines/act?act=label&machine=w-1&set=nonsense"); got.code != 200 || !got.has("is not key=value") || got.has("Label 1 machine") {
		t.Errorf("%d %s", got.code, got.text)
	}
	if got = b.post("/machines/act", url.Values{"act": {"label"}, "machine": {"w-1"}, "set": {"nonsense"}}); !got.has("Done for 0 of 1", "is not key=value") {
		t.Errorf("%d %s", got.code, got.text)
	}

	many := url.Values{"act": {"reimage"}}
	for i := range maxAct + 1 {
		many.Add("machine", fmt.Sprint("m-", i))
	}
	for path, status := range map[string]int{"act=reimage": 400, "act=explode&machine=w-1": 400, "machine=w-1": 400, many.Encode(): 400, "act=approve&machine=w-1": 303} {
		if got = b.get("/machines/act?" + path); got.code != status {
			t.Errorf("%s: %d %s", path, got.code, got.text)
		}
	}
	if got = b.post("/machines/act", many); got.code != 400 || !got.has("at most 100.") {
		t.Errorf("%d %s", got.code, got.text)
	}
	if got = b.post("/machines/act", url.Values{"act": {"approve"}, "machine": {"w-1"}}); got.code != 400 {
		t.Errorf("approving several at once: %d %s", got.code, got.text)
	}
}

// TestActRoles: who reads does nothing of it, and who is limited to clusters only to theirs.
func TestActRoles(t *testing.T) {
	s := newSite(t, nil)
	reads := s.in(s.token("reads", inventory.AccessRead))
	form := url.Values{"act": {"reimage"}, "machine": {"w-1"}, "rev": {"1"}}
	for _, path := range []string{"/machines/w-1/reimage", "/machines/w-1/remove", "/machines/act?act=reimage&machine=w-1"} {
		if got := reads.get(path); got.code != 403 || got.has("system disk") {
			t.Errorf("%s: %d %s", path, got.code, got.text)
		}
	}
	for _, path := range []string{"/machines/w-1/reimage", "/machines/w-1/reimage/cancel", "/machines/w-1/remove", "/machines/act", "/machines/w-1/acknowledge"} {
		if got := reads.post(path, form); got.code != 403 {
			t.Errorf("%s: %d %s", path, got.code, got.text)
		}
	}
	limited := s.in(s.token("limited", inventory.AccessOperate, "store"))
	for _, path := range []string{"/machines/w-1/reimage", "/machines/w-1/remove"} {
		if got := limited.get(path); got.code != 404 {
			t.Errorf("%s: %d %s", path, got.code, got.text)
		}
		if got := limited.post(path, form); got.code != 404 {
			t.Errorf("%s: %d %s", path, got.code, got.text)
		}
	}
	if got := limited.post("/machines/act", form); !got.has("Done for 0 of 1", "not found") {
		t.Errorf("%d %s", got.code, got.text)
	}
	v, err := s.keeper.Machine(t.Context(), "w-1")
	if err != nil || v.Facts.Reimage.Outstanding() {
		t.Errorf("%+v, %v", v.Facts.Reimage, err)
	}
}

// TestActOrders: only those are ordered that the page said would take it, and of control planes
// of one cluster it says that they go one after the other.
func TestActOrders(t *testing.T) {
	s := newSite(t, nil)
	b := s.in(s.token("ada", inventory.AccessOperate))
	form := url.Values{"act": {"label"}, "machine": {"w-1", "w-9"}, "set": {"a=b"}}
	if got := b.get("/machines/act?" + form.Encode()); !got.has("Label 1 machine") || strings.Count(got.text, `name="machine" value="w-9"`) != 1 {
		t.Errorf("%s", got.text)
	}
	for _, name := range []string{"w-1", "w-3"} {
		if got := b.post("/machines/"+name+"/edit", b.filledIn(name, url.Values{"role": {"controlplane"}})); got.code != 303 {
			t.Fatalf("%d %s", got.code, got.text)
		}
		s.runs(name)
	}
	if got := b.post("/machines/w-1/edit", b.filledIn("w-1", url.Values{"role": {"worker"}, "force": {"yes"}})); got.code != 303 {
		t.Fatalf("%d %s", got.code, got.text)
	}
	const note = "Several of these are control planes of web"
	path := "/machines/act?act=reimage&machine=w-1&machine=w-3"
	if got := b.get(path); got.has(note) { // w-3 would be refused
		t.Errorf("%s", got.text)
	}
	if got := b.post("/machines/w-3/edit", b.filledIn("w-3", url.Values{"role": {"worker"}, "force": {"yes"}})); got.code != 303 {
		t.Fatalf("%d %s", got.code, got.text)
	}
	if got := b.get(path); !got.has(note, "Reimage 2 machines") {
		t.Errorf("%s", got.text)
	}
}
