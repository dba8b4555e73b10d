package httpconfig

import (
	"fmt"
	"net/http"
	"net/netip"
	"strings"
	"testing"

	"github.com/provisiond/provisiond/internal/inventory"
)

// TestTrail: the audit trail has each grant and each refusal of a config, with the
// evidence, and no token.
func TestTrail(t *testing.T) {
	r := newRack(t)
	r.boots(bootNow(7, token))
	ask := func(path string, from netip.Addr) { r.ask(http.MethodGet, path, from) }
	ask(configPath+token, stable)
	ask(configPath+token, mac2.LinkLocal())
	ask(configPath+token, leased)
	ask(configPath+token, alien)
	ask(configPath+"wrong", stable)
	ask("/config/52:54:00:00:00:99/"+token, alien)
	ask(scriptPath, alien)
	r.over(r.router, http.MethodGet, configPath+token, stable)
	r.keeper.view.Cluster.Approval, r.keeper.view.Cluster.Delivery = inventory.ApprovalRequired, inventory.OverHTTP
	r.Server.config.ApprovalURL = "https://provisiond.example/approve"
	ask(configPath+token, stable)
	device, user := r.askApproval(t, stable)
	r.decided(t, user, true)
	access := r.poll(stable, device)
	r.over(r.router, http.MethodGet, configPath+token, stable, "Authorization", "Bearer "+access)

	var got []string
	for _, e := range r.trail {
		line := fmt.Sprintf("%s %s %s from %s via %q: %s", e.Action, e.Target, e.Outcome, e.From, e.Via, e.Reason)
		if strings.Contains(line, token) || strings.Contains(line, access) || strings.Contains(line, device) {
			t.Errorf("a secret: %s", line)
		}
		got = append(got, line)
	}
	want := []string{
		`fetch-config machine/cp-1 ok from 2001:db8::11 via "boot token": token of boot 7, from its address, config c0ffee`,
		`fetch-config machine/cp-1 ok from fe80::5054:ff:fe00:2 via "boot token": token of boot 7, from an address made of its MAC, config c0ffee`,
		`fetch-config machine/cp-1 ok from 2001:db8::8000 via "boot token": token of boot 7, from a lease of it, config c0ffee`,
		`fetch-config machine/cp-1 refused from 2001:db8::bad via "boot token": 2001:db8::bad is no address of cp-1`,
		`fetch-config machine/cp-1 refused from 2001:db8::11 via "": the token is not that of a recent boot`,
		`fetch-config nic/52:54:00:00:00:99 refused from 2001:db8::bad via "": this MAC is not registered`,
		`fetch-script machine/cp-1 refused from 2001:db8::bad via "": 2001:db8::bad is no address of cp-1`,
		`fetch-config machine/cp-1 refused from 2001:db8::11 via "": configs of lab are delivered over https only`,
		`fetch-config machine/cp-1 refused from 2001:db8::11 via "boot token": nobody approved who asks as cp-1`,
		`fetch-config machine/cp-1 ok from 2001:db8::11 via "boot token": token of boot 7, from its address, config c0ffee, unencrypted, approved by ada`,
	}
	if strings.Join(got, "\n") != strings.Join(want, "\n") {
		t.Errorf("the trail is\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
}
