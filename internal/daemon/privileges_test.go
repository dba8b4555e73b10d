package daemon

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/user"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/rs/zerolog"

	"github.com/provisiond/provisiond/internal/inventory"
	"github.com/provisiond/provisiond/internal/racktest"
)

// TestBecomesItsUser: started by root, the daemon is somebody else when it answers,
// without a capability, and a rack boots.
func TestBecomesItsUser(t *testing.T) {
	if os.Getuid() != 0 {
		if os.Getenv("CI") != "" {
			t.Fatal("CI runs as root")
		}
		t.Skip("LEFT OUT: only root can become another user")
	}
	nobody, err := user.Lookup("nobody")
	if err != nil {
		t.Fatal(err)
	}
	l := newLab(t)
	text, err := os.ReadFile(l.file())
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(l.file(), append(text, "user: nobody\n"...), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, dir := range []string{l.dir, filepath.Dir(l.dir)} {
		if err := os.Chmod(dir, 0o711); err != nil {
			t.Fatal(err)
		}
	}
	r := l.rack(t, racktest.RackOptions{})
	proxied(t, func(ctx context.Context) error { return r.Fabric.ServeProxy(ctx, l.proxy) })
	p := l.spawn(t)
	runRack(t, r)
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", p.cmd.Process.Pid))
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{
		fmt.Sprintf("Uid:\t%[1]s\t%[1]s\t%[1]s\t%[1]s\n", nobody.Uid), fmt.Sprintf("Gid:\t%[1]s\t%[1]s\t%[1]s\t%[1]s\n", nobody.Gid),
		"CapPrm:\t0000000000000000\n", "CapEff:\t0000000000000000\n", "CapAmb:\t0000000000000000\n",
	} {
		if !strings.Contains(string(status), want) {
			t.Errorf("it has no %q:\n%s", want, status)
		}
	}
	// What is not dumpable is root's in /proc (proc(5)).
	if environ, err := os.Stat(fmt.Sprintf("/proc/%d/environ", p.cmd.Process.Pid)); err != nil || environ.Sys().(*syscall.Stat_t).Uid != 0 {
		t.Errorf("it can be dumped: %v", err)
	}
	info, err := os.Stat(l.cfg.Database())
	if err != nil {
		t.Fatal(err)
	}
	if sys, ok := info.Sys().(*syscall.Stat_t); !ok || fmt.Sprint(sys.Uid) != nobody.Uid || info.Mode().Perm() != 0o600 {
		t.Errorf("the database is of %+v, mode %v", info.Sys(), info.Mode())
	}
}

func TestBadUser(t *testing.T) {
	l := newLab(t)
	for name, want := range map[string]string{"nobody-of-this-name": "there is no user", "root": "is root"} {
		l.cfg.User = name
		_, err := identityOf(l.cfg)
		if fe := new(inventory.FieldError); !errors.As(err, &fe) || fe.Field != "user" || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// TestGiveBack: root restores and changes keys, and the daemon that is another user
// still opens its database.
func TestGiveBack(t *testing.T) {
	if os.Getuid() != 0 {
		if os.Getenv("CI") != "" {
			t.Fatal("CI runs as root")
		}
		t.Skip("LEFT OUT: only root can give files away")
	}
	l := newLab(t)
	d, err := New(t.Context(), Options{Config: l.cfg, Log: zerolog.Nop()})
	check(t, err)
	check(t, d.close())
	check(t, os.Chown(l.cfg.Data, 65534, 65534))
	to, err := NewKeyFile(filepath.Join(t.TempDir(), "next"))
	check(t, err)
	_, err = Rotate(t.Context(), l.cfg, to)
	check(t, err)
	for _, name := range []string{l.cfg.Database(), filepath.Join(l.cfg.Data, "audit.jsonl")} {
		info, err := os.Stat(name)
		check(t, err)
		if sys := info.Sys().(*syscall.Stat_t); sys.Uid != 65534 {
			t.Errorf("%s is of %d", name, sys.Uid)
		}
	}
}

// TestLinksInTheData: the folder is the user's, who must not have root write elsewhere.
func TestLinksInTheData(t *testing.T) {
	id := &identity{name: "nobody", uid: os.Getuid(), gid: os.Getgid()}
	outside := filepath.Join(t.TempDir(), "outside")
	check(t, os.WriteFile(outside, nil, 0o600))
	for name, link := range map[string]func(string, string) error{"symbolic": os.Symlink, "hard": os.Link} {
		dir := t.TempDir()
		check(t, os.Mkdir(filepath.Join(dir, "images"), 0o700))
		check(t, id.inspect(dir))
		check(t, link(outside, filepath.Join(dir, "images", "audit.jsonl")))
		if err := id.inspect(dir); err == nil || !strings.Contains(err.Error(), "images/audit.jsonl is a link, or has a second name") {
			t.Errorf("%s: %v", name, err)
		}
	}
	check(t, id.inspect(filepath.Join(t.TempDir(), "none")))
}
