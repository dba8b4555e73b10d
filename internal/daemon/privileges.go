package daemon

import (
	"errors"
	"fmt"
	"io/fs"
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

// walk calls f for a folder and all in it. It leaves the folder by no link, and what has
// a second name, or is a link, is an error: the folder is the user's, and we are root.
func walk(dir string, f func(root *os.Root, path string) error) error {
	root, err := os.OpenRoot(dir)
	if err != nil {
		return err
	}
	defer root.Close() //nolint:errcheck // nothing was written
	return fs.WalkDir(root.FS(), ".", func(path string, _ fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := root.Lstat(path)
		if err != nil {
			return err
		}
		st, ok := info.Sys().(*syscall.Stat_t)
		if !ok || info.Mode()&fs.ModeSymlink != 0 || info.Mode().IsRegular() && st.Nlink > 1 {
			return &inventory.FieldError{Field: "data", Problem: filepath.Join(dir, path) + " is a link, or has a second name", Fix: "remove it: root would write where it leads"}
		}
		return f(root, path)
	})
}

// inspect refuses a folder of data, if there is one, in which the user could have root
// write elsewhere.
func (id *identity) inspect(dir string) error {
	err := walk(dir, func(*os.Root, string) error { return nil })
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}

// take gives a folder and all in it to the user, since what root wrote there must be
// written on, and becomes the user.
func (id *identity) take(dir string) error {
	if err := walk(dir, func(root *os.Root, path string) error { return root.Lchown(path, id.uid, id.gid) }); err != nil {
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

// giveBack gives what root has just written into a folder of data to whom the folder is:
// the daemon that runs as somebody else could not open it.
func giveBack(dir string) error {
	info, err := os.Stat(dir)
	if err != nil {
		return err
	}
	owner, ok := info.Sys().(*syscall.Stat_t)
	if !ok || os.Geteuid() != 0 || owner.Uid == 0 {
		return nil
	}
	return walk(dir, func(root *os.Root, path string) error { return root.Lchown(path, int(owner.Uid), int(owner.Gid)) })
}

// become gives up root for good, and with it every capability, in all threads.
func (id *identity) become() error {
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
	// The kernel has made us dumpable again, with the change of the user.
	if err := unix.Prctl(unix.PR_SET_DUMPABLE, 0, 0, 0, 0); err != nil {
		return fmt.Errorf("becoming %s: no core dumps: %w", id.name, err)
	}
	if syscall.Setuid(0) == nil {
		return fmt.Errorf("became %s, and could become root again", id.name)
	}
	return nil
}
