package main

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func command(t *testing.T, args ...string) (code int, stdout, stderr string) {
	t.Helper()
	var out, errs bytes.Buffer
	code = run(t.Context(), args, strings.NewReader(""), &out, &errs)
	return code, out.String(), errs.String()
}

// TestDemo is the main job as a newcomer runs it.
func TestDemo(t *testing.T) {
	code, out, errs := command(t, "demo")
	if code != 0 {
		t.Fatalf("exit code %d: %s\n%s", code, errs, out)
	}
	for _, want := range []string{"cp-1  52:54:00:00:00:01", "w-2  52:54:00:00:00:05", "running and ready", "done on cp-", "five machines ready, one bootstrap"} {
		if !strings.Contains(out, want) {
			t.Errorf("the demo does not show %q:\n%s", want, out)
		}
	}
}

func TestBadCommandLines(t *testing.T) {
	dir := t.TempDir()
	write := func(name, text string) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	const subnet = "subnets: [{name: a, prefix: 2001:db8::/64}]\n"
	good := write("good.yaml", "data: "+dir+"/data\naddress: ::1\nloaders: {}\n"+subnet)
	for name, tt := range map[string]struct {
		args []string
		code int
		want string
	}{
		"no config file":        {[]string{"serve", "--config", dir + "/none"}, 1, "provisiond.example.yaml"},
		"bad config file":       {[]string{"serve", "--config", write("bad.yaml", "ip: ::1\n"+subnet)}, 1, "\"ip\""},
		"interface not there":   {[]string{"serve", "--check", "-c", write("if.yaml", "address: ::1\nloaders: {}\ninterfaces: [nosuch0]\n"+subnet)}, 1, "nosuch0"},
		"loader not there":      {[]string{"serve", "--check", "-c", write("loader.yaml", "address: ::1\nloaders: {amd64/x.efi: /nosuch}\n"+subnet)}, 1, "amd64/x.efi"},
		"unknown command":       {[]string{"server"}, 2, "serve"},
		"unknown flag":          {[]string{"serve", "--conf", "x"}, 2, "--conf"},
		"restore without file":  {[]string{"restore"}, 2, "accepts 1 arg"},
		"restore of nothing":    {[]string{"restore", "-c", good, dir + "/none"}, 1, "none"},
		"restore of no backup":  {[]string{"restore", "-c", good, write("empty", "")}, 1, "empty"},
		"simulate without link": {[]string{"simulate"}, 2, "link"},
		"simulate with no rack": {[]string{"simulate", "--link", "2001:db8::1", "--control-planes", "0"}, 1, "--control-planes"},
	} {
		t.Run(name, func(t *testing.T) {
			code, _, errs := command(t, tt.args...)
			if code != tt.code || !strings.Contains(errs, tt.want) {
				t.Errorf("exit code %d, %q; want %d and %q", code, errs, tt.code, tt.want)
			}
		})
	}
	if code, out, errs := command(t, "serve", "--check", "-c", good); code != 0 || !strings.Contains(out, "is fine") {
		t.Errorf("a good config: %d, %s%s", code, out, errs)
	}
}
