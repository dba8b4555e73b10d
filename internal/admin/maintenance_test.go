package admin

import (
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/provisiond/provisiond/internal/audit"
	"github.com/provisiond/provisiond/internal/inventory"
)

// TestConfirm: a machine in maintenance mode is confirmed by the fingerprint of its
// certificate, by who may; every other one is refused in the same words, and in the
// trail.
func TestConfirm(t *testing.T) {
	const right, wrong = "jTzh1hUzyPBrtr1RBY2F+Aw2HC7KEbLv7JyXNV3Pzhs=", "kTzh1hUzyPBrtr1RBY2F+Aw2HC7KEbLv7JyXNV3Pzhs="
	r := twoClusters(t)
	ada := func(role inventory.Access, clusters ...string) *Principal {
		return &Principal{Name: "ada", Via: ViaToken, Role: role, Clusters: clusters}
	}
	ask := func(p *Principal, fingerprint string) (int, string) {
		w := r.ask(p, "POST", "/api/v1/machines/w-b/maintenance", `{"fingerprint":"`+fingerprint+`"}`)
		return w.Code, w.Body.String()
	}
	head := r.head()
	status, early := ask(ada(operate), right)
	if status != 409 {
		t.Fatalf("it does not wait, and the answer is %d %s", status, early)
	}
	_, err := r.keeper.Record(t.Context(), inventory.Event{
		Kind: inventory.MaintenanceSeen, Machine: "w-b", Fingerprint: right, Peer: netip.MustParseAddr("2001:db8::9"), Message: "a person has to confirm it",
	})
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		who         *Principal
		fingerprint string
		status      int
		says        string
	}{
		{ada(read), right, 403, ""},
		{ada(operate, "rack1"), right, 404, ""},
		{ada(operate), "AB:CD", 422, "fingerprint"},
		{ada(operate), wrong, 409, "give the one that the console of the machine prints now"},
		{ada(operate, "other"), right, 200, `"by":"ada"`},
		{ada(operate), right, 200, `"by":"ada"`},
		{ada(operate), wrong, 409, "give the one that the console of the machine prints now"},
	} {
		status, body := ask(c.who, c.fingerprint)
		if status != c.status || !strings.Contains(body, c.says) {
			t.Errorf("%s of %v: %d %s", c.fingerprint, c.who.Clusters, status, body)
		}
	}
	v, err := r.keeper.Machine(t.Context(), "w-b")
	if err != nil {
		t.Fatal(err)
	}
	if m := v.Facts.Maintenance; !m.ConfirmedFor(&v) || m.By != "ada" || time.Since(m.Confirmed) > time.Hour {
		t.Errorf("%+v", m)
	}
	done, refused := 0, 0
	for _, l := range r.lines(head) {
		if l.Action == "confirm-machine" && l.Target == "machine/w-b" {
			switch l.Outcome {
			case audit.OK:
				done++
			case audit.Refused:
				refused++
			}
		}
	}
	if done != 2 || refused < 3 {
		t.Errorf("the trail has %d confirmed and %d refused", done, refused)
	}
}
