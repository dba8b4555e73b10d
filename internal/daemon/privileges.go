package daemon

import (
	"errors"
	"fmt"
	"os"
	"os/user"
	"path/filepath"
	"strconv"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/provisiond/provisiond/internal/inventory"
)

// identity is the user that the daemon becomes.
type identity struct {
	name     string
	uid, gid int
}

// identityOf finds the user of a config, which must not be root; nil: it names none.
func identityOf(cfg *Config) (*identity, error) {
	bad := func(fix, format string, args ...any) error {
		return &inventory.FieldError{Field: "user", Problem: fmt.Sprintf(format, args...), Fix: fix}
	}
	name := cfg.User
	if name == "" {
		return nil, nil
	}
	u, err := user.Lookup(name)
	if err != nil {
		return nil, bad("make it (useradd --system "+name+"), or leave it out", "there is no user %q", name)
	}
	uid, uerr := strconv.Atoi(u.Uid)
	gid, gerr := strconv.Atoi(u.Gid)
	switch err := errors.Join(uerr, gerr); {
	case err != nil:
		return nil, err
	case uid == 0:
		return nil, bad("a user of its own, or leave it out", "%s is root", name)
	case os.Geteuid() != 0:
		return nil, bad("leave it out", "only root can become %s, and provisiond was started by another", name)
	}
	return &identity{name, uid, gid}, nil
}

// take gives a folder and all in it to the user, since what root wrote there must be
// written on, and becomes the user. It follows no links.
func (id identity) take(dir string) error {
	err := filepath.WalkDir(dir, func(path string, _ os.DirEntry, err error) error {
		if err != nil {
			return err
		}
		return os.Lchown(path, id.uid, id.gid)
	})
	if err != nil {
		return fmt.Errorf("giving the data to %s: %w", id.name, err)
	}
	if err := id.become(); err != nil {
		return err
	}
	if err := unix.Access(dir, unix.R_OK|unix.W_OK|unix.X_OK); err != nil {
		return &inventory.FieldError{Field: "data", Problem: fmt.Sprintf("%s cannot get at %s: %v", id.name, dir, err), Fix: "open the folders above it (chmod a+x), or choose another"}
	}
	return nil
}

// become gives up root for good, and with it every capability, in all threads.
func (id identity) become() error {
	for _, step := range []struct {
		what string
		do   func() error
	}{
		{"groups", func() error { return syscall.Setgroups([]int{id.gid}) }},
		{"group", func() error { return syscall.Setgid(id.gid) }},
		{"user", func() error { return syscall.Setuid(id.uid) }},
	} {
		if err := step.do(); err != nil {
			return fmt.Errorf("becoming %s: %s: %w", id.name, step.what, err)
		}
	}
	if syscall.Setuid(0) == nil {
		return fmt.Errorf("became %s, and could become root again", id.name)
	}
	return nil
}
