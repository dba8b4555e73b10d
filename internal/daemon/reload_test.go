package daemon

import (
	"fmt"
	"net/netip"
	"os"
	"strings"
	"testing"

	"github.com/rs/zerolog"
)

// TestReload: the subnets of a running daemon change as a whole or not at all.
func TestReload(t *testing.T) {
	l := newLab(t)
	d, err := New(t.Context(), Options{Config: l.cfg, Log: zerolog.Nop()})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = d.close() })
	text, err := os.ReadFile(l.file())
	if err != nil {
		t.Fatal(err)
	}
	edited := func(from, to string) *Config {
		t.Helper()
		if !strings.Contains(string(text), from) {
			t.Fatalf("%q is not in the config", from)
		}
		cfg, err := ParseConfig([]byte(strings.ReplaceAll(string(text), from, to)))
		if err != nil {
			t.Fatal(err)
		}
		return cfg
	}
	far := netip.MustParseAddr("2001:db8:2::1")
	for name, tc := range map[string]struct {
		cfg  *Config
		want string // empty: no error
	}{
		"a port":            {edited(fmt.Sprintf("http: %d", l.cfg.HTTPPort), "http: 1"), "ports.http: changes only with a restart"},
		"the log":           {edited("api: {", "log: {level: debug}\napi: {"), "log.level: changes only with a restart"},
		"machines outside":  {edited("2001:db8:1:", "2001:db8:7:"), "cp-1"},
		"nothing":           {edited("subnets", "subnets"), ""},
		"one subnet more":   {edited("subnets:\n", "subnets:\n  - {name: rack2, prefix: \"2001:db8:2::/64\"}\n"), ""},
		"a pool, too small": {edited("2001:db8:1::fff", "2001:db8:1::f01"), "too small"},
	} {
		err := d.Reload(t.Context(), tc.cfg)
		if tc.want == "" && err != nil || tc.want != "" && (err == nil || !strings.Contains(err.Error(), tc.want)) {
			t.Errorf("%s: %v, want %q", name, err, tc.want)
		}
		if has, want := d.keeper.SubnetOf(far) != nil, name == "one subnet more"; tc.want == "" && has != want {
			t.Errorf("%s: rack2 is there: %v", name, has)
		}
		if d.keeper.SubnetOf(netip.MustParseAddr("2001:db8:1::100")) == nil {
			t.Fatalf("%s: rack1 is gone", name)
		}
	}
}
