package httpconfig

import (
	"encoding/json"
	"errors"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/provisiond/provisiond/internal/inventory"
)

const grant = "urn:ietf:params:oauth:grant-type:device_code"

// needsApproval is a rack whose machine is to be approved.
func needsApproval(t *testing.T) *rack {
	r := newRack(t)
	r.boots(bootNow(7, token))
	r.keeper.view.Cluster.Approval = inventory.ApprovalRequired
	r.Server.config.ApprovalURL = "https://provisiond.example/approve"
	return r
}

// post sends a form as Talos does; basic is the first of its pair.
func (r *rack) post(path string, peer netip.Addr, basic bool, form url.Values) (int, map[string]any) {
	req := httptest.NewRequest(http.MethodPost, "https://[2001:db8::1]"+path, strings.NewReader(form.Encode()))
	req.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	if basic {
		req.SetBasicAuth("provisiond", "")
	}
	req.RemoteAddr = netip.AddrPortFrom(peer, 40000).String()
	w := httptest.NewRecorder()
	r.secure.ServeHTTP(w, req)
	var answer map[string]any
	_ = json.Unmarshal(w.Body.Bytes(), &answer)
	if w.Header().Get("Cache-Control") != "no-store" {
		answer["cached"] = true
	}
	return w.Code, answer
}

func (r *rack) askApproval(t *testing.T, peer netip.Addr) (device, user string) {
	t.Helper()
	status, a := r.post(configPath+token+"/device", peer, false, url.Values{"client_id": {"provisiond"}})
	if status != 200 || a["interval"] != 5.0 || a["expires_in"] != 1800.0 || a["verification_uri"] != "https://provisiond.example/approve" ||
		a["verification_uri_complete"] != "https://provisiond.example/approve?code="+a["user_code"].(string) {
		t.Fatalf("%d %v", status, a)
	}
	return a["device_code"].(string), a["user_code"].(string)
}

func (r *rack) poll(peer netip.Addr, device string) string {
	form := url.Values{"client_id": {"provisiond"}, "grant_type": {grant}, "device_code": {device}}
	for _, basic := range []bool{true, false} {
		_, a := r.post(configPath+token+"/token", peer, basic, form)
		if got, ok := a["access_token"].(string); ok && a["token_type"] == "Bearer" {
			return got
		} else if !basic {
			if e, ok := a["error"].(string); ok {
				return e
			}
		}
	}
	return "nothing"
}

func (r *rack) decided(t *testing.T, code string, yes bool) {
	t.Helper()
	kind := inventory.ApprovalGiven
	if !yes {
		kind = inventory.ApprovalDenied
	}
	if _, err := r.keeper.Record(t.Context(), inventory.Event{Time: time.Now(), Kind: kind, Machine: "cp-1", Code: code, By: "ada"}); err != nil {
		t.Fatal(err)
	}
}

func (r *rack) withBearer(peer netip.Addr, access string) int {
	return r.ask(http.MethodGet, configPath+token, peer, "Authorization", "Bearer "+access).Code
}

// TestApproval is one flow from its start to the config, with every poll sent twice.
func TestApproval(t *testing.T) {
	r := needsApproval(t)
	if got := r.ask(http.MethodGet, configPath+token, stable).Code; got != 401 {
		t.Errorf("before anything: %d", got)
	}
	device, user := r.askApproval(t, stable)
	for range 3 {
		if got := r.poll(stable, device); got != "authorization_pending" {
			t.Errorf("nobody said anything: %s", got)
		}
	}
	if got := r.withBearer(stable, accessFor(device)); got != 401 {
		t.Errorf("an access token that was not given out: %d", got)
	}
	r.decided(t, user, true)
	access := r.poll(stable, device)
	if again := r.poll(mac1.LinkLocal(), device); again != access || len(access) < 43 {
		t.Errorf("given %q, and %q when the answer was lost", access, again)
	}
	for bearer, want := range map[string]int{"": 401, "x": 401, device: 401, user: 401, access: 200} {
		if got := r.withBearer(stable, bearer); got != want {
			t.Errorf("with %q: %d", bearer, got)
		}
	}
	for _, secret := range []string{device, access} {
		if b, _ := json.Marshal(r.keeper.view.Facts); strings.Contains(string(b), secret) || strings.Contains(r.log.String(), secret) {
			t.Errorf("%s is kept or logged", secret)
		}
	}
	if got := r.poll(stable, "another"); got != "expired_token" {
		t.Errorf("a device code of nobody: %s", got)
	}
	if status, a := r.post(configPath+token+"/token", stable, false, url.Values{"device_code": {device}}); status != 400 || a["error"] != "unsupported_grant_type" {
		t.Errorf("%d %v", status, a)
	}
}

func TestApprovalDenied(t *testing.T) {
	r := needsApproval(t)
	device, user := r.askApproval(t, stable)
	r.decided(t, user, false)
	if got := r.poll(stable, device); got != "access_denied" {
		t.Errorf("denied: %s", got)
	}
	second, user := r.askApproval(t, stable)
	r.keeper.view.Facts.Boots[0].Flows[1].Expires = time.Now()
	if got := r.poll(stable, second); got != "expired_token" {
		t.Errorf("expired: %s", got)
	}
	if _, err := r.keeper.Record(t.Context(), inventory.Event{Time: time.Now(), Kind: inventory.ApprovalGiven, Machine: "cp-1", Code: user}); !errors.Is(err, inventory.ErrRefused) {
		t.Errorf("approved after its end: %v", err)
	}
}

// TestApprovalIsOfOneFlow: who listens has the token of the boot and can ask, too. He
// shows no code on the machine's console, gets nothing, and is an alarm.
func TestApprovalIsOfOneFlow(t *testing.T) {
	r := needsApproval(t)
	machine, user := r.askApproval(t, stable)
	spy, _ := r.askApproval(t, leased)
	if alarm := r.keeper.view.Facts.Alarm(); !strings.Contains(alarm, "both asked to be approved") {
		t.Errorf("alarm %q", alarm)
	}
	r.decided(t, user, true)
	if got := r.poll(leased, spy); got != "authorization_pending" {
		t.Errorf("the other is told %s", got)
	}
	if got := r.withBearer(leased, accessFor(spy)); got != 401 {
		t.Errorf("the other gets %d", got)
	}
	if got := r.withBearer(stable, r.poll(stable, machine)); got != 200 {
		t.Errorf("the machine gets %d", got)
	}
}

// TestApprovalRefuses: each endpoint is as closed as the config itself.
func TestApprovalRefuses(t *testing.T) {
	for _, endpoint := range []string{"/device", "/token"} {
		r := needsApproval(t)
		for path, peer := range map[string]netip.Addr{
			configPath + "wrong" + endpoint:                          stable,
			configPath + token + endpoint:                            alien,
			"/config/52:54:00:00:00:99/" + token + endpoint:          stable,
			"/config/52:54:00:00:00:01%2f" + token + "/x" + endpoint: stable,
		} {
			if status, a := r.post(path, peer, false, url.Values{"device_code": {"x"}, "grant_type": {grant}}); status < 400 || status >= 500 || a["device_code"] != nil {
				t.Errorf("%s from %s: %d %v", path, peer, status, a)
			}
		}
		if w := r.over(r.router, http.MethodPost, configPath+token+endpoint, stable); w.Code != 403 {
			t.Errorf("over plain HTTP: %d", w.Code)
		}
		if w := r.ask(http.MethodGet, configPath+token+endpoint, stable); w.Code != 405 {
			t.Errorf("GET: %d", w.Code)
		}
		if status, _ := r.post(configPath+token+endpoint, stable, false, url.Values{"x": {strings.Repeat("x", 2*maxForm)}}); status != 400 {
			t.Errorf("a large form: %d", status)
		}
		r.keeper.view.Facts.Boots[0].API = time.Now()
		if status, _ := r.post(configPath+token+endpoint, stable, false, url.Values{}); status != 403 {
			t.Errorf("after the machine's API has answered: %d", status)
		}
	}
	// What cannot be written down is not promised.
	r := needsApproval(t)
	r.keeper.recordErr = errors.New("the disk is full")
	if status, a := r.post(configPath+token+"/device", stable, false, url.Values{}); status != 503 || a["device_code"] != nil {
		t.Errorf("%d %v", status, a)
	}
}

// TestApprovedIsNotAskedTwice: after 204 Talos would begin another flow.
func TestApprovedIsNotAskedTwice(t *testing.T) {
	r := needsApproval(t)
	r.Server.config.Hold = 10 * time.Millisecond
	device, user := r.askApproval(t, stable)
	r.decided(t, user, true)
	access := r.poll(stable, device)
	r.configs.fail(errors.New("no disk"))
	if got := r.withBearer(stable, access); got != 503 {
		t.Errorf("not ready: %d", got)
	}
	r.configs.fail(nil)
	if got := r.withBearer(stable, access); got != 200 {
		t.Errorf("ready: %d", got)
	}
}

// TestApprovalIsOfWhatItWas: a machine that has become something else since is approved
// anew, and nobody wears us out by asking for codes.
func TestApprovalIsOfWhatItWas(t *testing.T) {
	for name, change := range map[string]func(v *inventory.View){
		"role":    func(v *inventory.View) { v.Machine.Role = inventory.Worker },
		"cluster": func(v *inventory.View) { v.Cluster.Name, v.Machine.Cluster = "other", "other" },
		"life":    func(v *inventory.View) { v.Cluster.Epoch++ },
	} {
		r := needsApproval(t)
		device, user := r.askApproval(t, stable)
		r.decided(t, user, true)
		access := r.poll(stable, device)
		r.keeper.change(change)
		if got := r.withBearer(stable, access); got != 401 {
			t.Errorf("another %s: %d", name, got)
		}
	}
	r := needsApproval(t)
	statuses := map[int]int{}
	for range 3 * guessBurst {
		status, _ := r.post(configPath+token+"/device", stable, false, url.Values{})
		statuses[status]++
	}
	if statuses[200] > guessBurst+2 || statuses[429] == 0 {
		t.Errorf("answered %v", statuses)
	}
}

// TestApprovalSwitchedOff: who waits when approval is no longer wanted goes on.
func TestApprovalSwitchedOff(t *testing.T) {
	r := needsApproval(t)
	device, _ := r.askApproval(t, stable)
	r.keeper.view.Cluster.Approval = inventory.ApprovalNone
	if got := r.withBearer(stable, r.poll(stable, device)); got != 200 {
		t.Errorf("%d", got)
	}
	r.keeper.view.Machine.Approval = inventory.ApprovalRequired
	if got := r.ask(http.MethodGet, configPath+token, stable).Code; got != 401 {
		t.Errorf("the machine's own word: %d", got)
	}
}
