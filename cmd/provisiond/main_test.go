package main

import (
	"bytes"
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/rs/zerolog"
	"golang.org/x/sys/unix"

	"github.com/provisiond/provisiond/internal/daemon"
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
		"restore, lost key":     {[]string{"restore", "-c", good, "--key", dir + "/none", dir + "/none"}, 1, "provisiond key new"},
		"key without a verb":    {[]string{"key", "make"}, 2, "make"},
		"new key, no file":      {[]string{"key", "new"}, 2, "accepts 1 arg"},
		"new key, no folder":    {[]string{"key", "new", dir + "/none/key"}, 1, "none"},
		"rotate to nothing":     {[]string{"key", "rotate", "-c", good}, 2, "new"},
		"rotate to no key":      {[]string{"key", "rotate", "-c", good, "--new", good}, 1, "AGE-SECRET-KEY-1"},
		"show no database":      {[]string{"key", "show", "-c", good}, 1, "provisiond.db"},
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

// TestKeys changes the key of a database as an operator does, with a daemon before,
// in between and afterwards.
func TestKeys(t *testing.T) {
	dir := t.TempDir()
	config := filepath.Join(dir, "provisiond.yaml")
	text := "data: " + dir + "/data\naddress: ::1\nloaders: {}\napi: {socket: " + dir + "/sock, listen: \"\"}\n" +
		"ports: {dhcpv6: 0, tftp: 0, http: 0, events: 0, kernelLog: 0}\nsubnets: [{name: a, prefix: 2001:db8::/64}]\n"
	if err := os.WriteFile(config, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	start := func() error {
		cfg, err := daemon.ReadConfig(config)
		if err != nil {
			t.Fatal(err)
		}
		d, err := daemon.New(t.Context(), daemon.Options{Config: cfg, Log: zerolog.Nop()})
		if err != nil {
			return err
		}
		ctx, stop := context.WithCancel(t.Context())
		stop()
		return d.Run(ctx)
	}
	ok := func(args ...string) string {
		t.Helper()
		code, out, errs := command(t, args...)
		if code != 0 || strings.Contains(out+errs, "SECRET") {
			t.Fatalf("%v: %d, %s%s", args, code, out, errs)
		}
		return out
	}
	if err := start(); err != nil {
		t.Fatal(err)
	}
	first := filepath.Join(dir, "provisiond.key") // beside the config file
	was := ok("key", "show", "-c", config)
	if text, err := os.ReadFile(first); err != nil || !strings.HasPrefix(was, "age1") || !strings.Contains(string(text), was) {
		t.Fatalf("the key is %s, %v; its file\n%s", was, err, text)
	}
	backup := filepath.Join(dir, "backup")
	if text, err := os.ReadFile(filepath.Join(dir, "data", "provisiond.db")); err != nil || os.WriteFile(backup, text, 0o600) != nil {
		t.Fatal(err)
	}

	next := filepath.Join(dir, "new.key")
	ok("key", "new", next)
	if code, _, errs := command(t, "key", "new", next); code != 1 || !strings.Contains(errs, "exists") {
		t.Errorf("a key in the place of another: %d, %s", code, errs)
	}
	if out := ok("key", "rotate", "-c", config, "--new", next); !strings.Contains(out, first) {
		t.Errorf("rotate does not say where the former key is: %s", out)
	}
	is := ok("key", "show", "-c", config)
	if err := start(); is == was || err == nil || !strings.Contains(err.Error(), strings.TrimSpace(is)) || !strings.Contains(err.Error(), strings.TrimSpace(was)) {
		t.Errorf("a start with the former key: %v", err)
	}
	if err := os.Rename(first, first+".former"); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(next, first); err != nil {
		t.Fatal(err)
	}
	if err := start(); err != nil {
		t.Error(err)
	}

	if out := ok("key", "show", backup); out != was {
		t.Errorf("the backup is sealed to %s", out)
	}
	if code, _, errs := command(t, "restore", "-c", config, backup); code != 1 || !strings.Contains(errs, strings.TrimSpace(was)) {
		t.Errorf("a backup of before: %d, %s", code, errs)
	}
	ok("restore", "-c", config, "--key", first+".former", backup)
	if out := ok("key", "show", "-c", config); out != is {
		t.Errorf("what was restored is sealed to %s", out)
	}
	if err := start(); err != nil {
		t.Error(err)
	}
}

func TestNoCoreDumps(t *testing.T) {
	if err := noCoreDumps(); err != nil {
		t.Fatal(err)
	}
	var limit unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_CORE, &limit); err != nil || limit.Cur != 0 || limit.Max != 0 {
		t.Errorf("core dumps of %+v octets, %v", limit, err)
	}
	if dumpable, err := unix.PrctlRetInt(unix.PR_GET_DUMPABLE, 0, 0, 0, 0); err != nil || dumpable != 0 {
		t.Errorf("dumpable: %d, %v", dumpable, err)
	}
}
