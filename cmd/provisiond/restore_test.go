package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/provisiond/provisiond/internal/audit"
	"github.com/provisiond/provisiond/internal/boltstore"
	"github.com/provisiond/provisiond/internal/daemon"
	"github.com/provisiond/provisiond/internal/inventory"
	"github.com/provisiond/provisiond/internal/sealed"
)

// TestRestore puts a backup back: its tokens are revoked, and the audit trail, which is
// not in it, goes on and says so.
func TestRestore(t *testing.T) {
	dir := t.TempDir()
	check := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	config := filepath.Join(dir, "c.yaml")
	check(os.WriteFile(config, []byte("data: "+dir+"/data\naddress: ::1\nloaders: {}\nsubnets: [{name: a, prefix: 2001:db8::/64}]\n"), 0o600))
	check(os.Mkdir(filepath.Join(dir, "data"), 0o700))
	key, err := daemon.NewKeyFile(filepath.Join(dir, "provisiond.key"))
	check(err)
	backup := filepath.Join(dir, "backup")
	tokens := func(path string, open func(inventory.Store) (inventory.Store, error), use func(*inventory.Keeper)) {
		t.Helper()
		raw, err := boltstore.Open(path, boltstore.Options{})
		check(err)
		store, err := open(raw)
		check(err)
		k, err := inventory.NewKeeper(t.Context(), store, inventory.KeeperConfig{})
		check(err)
		use(k)
		check(store.Close())
	}
	tokens(backup, func(s inventory.Store) (inventory.Store, error) { return s, nil }, func(k *inventory.Keeper) {
		_, _, err := k.CreateToken(t.Context(), inventory.Token{Name: "ci", Access: inventory.AccessAdmin})
		check(err)
	})
	trail, err := audit.Open(filepath.Join(dir, "data"), audit.Options{})
	check(err)
	check(trail.Append(t.Context(), audit.Entry{Action: "revoke-token", Target: "token/ci", Outcome: audit.OK}))
	if code, _, errs := command(t, "restore", "-c", config, backup); code != 1 || !strings.Contains(errs, "stop provisiond first") {
		t.Errorf("beside a running daemon: %d %s", code, errs)
	}
	check(trail.Close())

	if code, out, errs := command(t, "restore", "-c", config, backup); code != 0 {
		t.Fatalf("%d %s%s", code, out, errs)
	}
	unseal := func(s inventory.Store) (inventory.Store, error) { return sealed.Open(t.Context(), s, key) }
	tokens(filepath.Join(dir, "data", "provisiond.db"), unseal, func(k *inventory.Keeper) {
		if all, err := k.Tokens(t.Context()); err != nil || len(all) != 0 {
			t.Errorf("%+v, %v", all, err)
		}
	})
	trail, err = audit.Open(filepath.Join(dir, "data"), audit.Options{})
	check(err)
	var last audit.Entry
	check(trail.Read(t.Context(), 0, func(_ []byte, e audit.Entry) bool {
		last = e
		return true
	}))
	check(trail.Close())
	if last.Seq != 2 || last.Action != "restore" || last.Target != "backup/backup" || last.Who == "" {
		t.Errorf("%+v", last)
	}
}
