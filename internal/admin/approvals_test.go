package admin

import (
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/provisiond/provisiond/internal/inventory"
)

// TestApprovals: a machine is approved by the code of its console, by who may, and
// nobody is told the code.
func TestApprovals(t *testing.T) {
	someone := func(role inventory.Access, clusters ...string) *Principal {
		return &Principal{Name: "ada", Via: ViaToken, Role: role, Clusters: clusters}
	}
	r := twoClusters(t)
	for _, e := range []inventory.Event{
		{Kind: inventory.Solicited, Client: inventory.FirmwarePXE, XID: 7},
		{Kind: inventory.ApprovalAsked, Code: "WDJB-MJHT", Peer: netip.MustParseAddr("2001:db8::9"), Expires: time.Now().Add(time.Hour)},
	} {
		e.Machine = "w-b"
		if _, err := r.keeper.Record(t.Context(), e); err != nil {
			t.Fatal(err)
		}
	}
	ask := func(p *Principal, method, path, body string) (int, string) {
		rec := r.ask(p, method, "/api/v1"+path, body)
		return rec.Code, rec.Body.String()
	}
	for name, c := range map[string]struct {
		who  *Principal
		sees bool
	}{"all": {someone(read), true}, "theirs": {someone(read, "other"), true}, "another cluster": {someone(admin, "rack1"), false}} {
		status, list := ask(c.who, "GET", "/approvals", "")
		if status != 200 || strings.Contains(list, `"machine":"w-b"`) != c.sees || strings.Contains(list, "WDJB") {
			t.Errorf("%s: %d %s", name, status, list)
		}
	}
	before := r.head()
	for name, c := range map[string]struct {
		who    *Principal
		code   string
		status int
	}{
		"who only reads":    {someone(read), "WDJB-MJHT", 403},
		"another cluster":   {someone(operate, "rack1"), "WDJB-MJHT", 404},
		"another code":      {someone(operate), "BBBB-BBBB", 404},
		"no code":           {someone(operate), "%20", 404},
		"much too long":     {someone(operate), strings.Repeat("B", 100), 422},
		"up in the folders": {someone(operate), "..%2f..%2fmachines", 404},
	} {
		if status, body := ask(c.who, "POST", "/approvals/"+c.code, `{"approve":true}`); status != c.status {
			t.Errorf("%s: %d %s", name, status, body)
		}
	}
	if status, body := ask(someone(operate, "other"), "POST", "/approvals/wdjb-mjht", `{"approve":true}`); status != 200 || !strings.Contains(body, `"state":"approved","by":"ada"`) {
		t.Errorf("%d %s", status, body)
	}
	if status, body := ask(someone(operate), "POST", "/approvals/WDJBMJHT", `{"approve":false}`); status != 409 || !strings.Contains(body, "by ada") {
		t.Errorf("%d %s", status, body)
	}
	found := false
	for _, l := range r.lines(before) {
		found = found || l.Action == "decide-approval" && l.Who == "ada" && l.Target == "machine/w-b" && l.Outcome == "ok" && strings.Contains(l.Reason, "approved, asked from 2001:db8::9")
	}
	if !found {
		t.Errorf("the trail has %+v", r.lines(before))
	}
}
