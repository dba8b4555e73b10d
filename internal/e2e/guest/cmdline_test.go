//go:build linux

package main

import (
	"net/netip"
	"strings"
	"testing"
)

const (
	goodLine = "initrd=initramfs talos.platform=metal console=ttyS0 slab_nomerge pti=on"
	goodIP   = " ip=[fd00:7a10:e2e::11]::[fe80::1]:64:cp-1:enx525400e20011:off:[fd00:7a10:e2e::53]::"
)

func TestParseCommandLine(t *testing.T) {
	c, err := parseCommandLine(goodLine + goodIP + " talos.config=http://[fd00::1]:8080/config?a=b talos.events.sink=[fd00::1]:4050 talos.experimental.wipe=system talos.config.early=AA talos.config.early=BB== talos.config.oauth.client_id=x talos.config.oauth.device_auth_url=u/d talos.config.oauth.token_url=u/t\n")
	if err != nil {
		t.Fatal(err)
	}
	if c.configURL != "http://[fd00::1]:8080/config?a=b" || c.eventSink != "[fd00::1]:4050" || c.wipe != "system" || c.early != "AABB==" || c.clientID != "x" || c.deviceURL != "u/d" || c.tokenURL != "u/t" || c.mac.String() != "52:54:00:e2:00:11" ||
		c.address != netip.MustParsePrefix("fd00:7a10:e2e::11/64") || c.gateway != netip.MustParseAddr("fe80::1") {
		t.Errorf("got %+v", c)
	}
}

func TestParseCommandLineTable(t *testing.T) {
	for _, tt := range []struct{ name, line, problem string }{
		{"good", goodLine + goodIP, ""},
		{"empty value", strings.Replace(goodLine, "slab_nomerge", "slab_nomerge=", 1), ""},
		{"no gateway", goodLine + " ip=[fd00::11]:::64:cp-1:enx525400e20011:off:::", ""},
		{"no slab_nomerge", strings.Replace(goodLine, "slab_nomerge", "", 1), "slab_nomerge"},
		{"slab_nomerge with a value", strings.Replace(goodLine, "slab_nomerge", "slab_nomerge=1", 1), "slab_nomerge"},
		{"no pti", strings.Replace(goodLine, "pti=on", "pti=off", 1), "pti=on"},
		{"no platform", strings.Replace(goodLine, "metal", "aws", 1), "talos.platform=metal"},
		{"empty device", goodLine + " ip=[fd00::11]:::64:cp-1::off:::", "device"},
		{"kernel's device name", goodLine + " ip=[fd00::11]:::64:cp-1:eth0:off:::", "device"},
		{"no brackets", goodLine + " ip=fd00::11:::64:cp-1:enx525400e20011:off:::", "ip="},
		{"open bracket", goodLine + " ip=[fd00::11:::64:cp-1:enx525400e20011:off:::", "brackets"},
		{"long prefix", goodLine + " ip=[fd00::11]:::129:cp-1:enx525400e20011:off:::", "129"},
		{"DHCP", goodLine + " ip=[fd00::11]:::64:cp-1:enx525400e20011:dhcp:::", "autoconf"},
		{"few fields", goodLine + " ip=enx525400e20011:dhcp", "fields"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			_, err := parseCommandLine(tt.line)
			if tt.problem == "" && err != nil || tt.problem != "" && (err == nil || !strings.Contains(err.Error(), tt.problem)) {
				t.Errorf("error %v, want one with %q", err, tt.problem)
			}
		})
	}
}
