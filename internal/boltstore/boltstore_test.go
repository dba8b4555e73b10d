package boltstore_test

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"go.etcd.io/bbolt"

	"github.com/provisiond/provisiond/internal/boltstore"
	"github.com/provisiond/provisiond/internal/inventory"
	"github.com/provisiond/provisiond/internal/inventory/storetest"
)

func open(t *testing.T, dir string) inventory.Store {
	t.Helper()
	s, err := boltstore.Open(filepath.Join(dir, "db"), boltstore.Options{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.Close() })
	return s
}

func TestStore(t *testing.T) { storetest.Run(t, open) }

func commit(t *testing.T, s inventory.Store, id, value string) {
	t.Helper()
	_, _, err := s.Commit(t.Context(), inventory.Commit{
		Writes: []inventory.Write{{Key: inventory.Key{Bucket: inventory.BucketMachines, ID: id}, Value: []byte(value)}},
		Log:    [][]byte{[]byte(id)},
	})
	if err != nil {
		t.Fatal(err)
	}
}

func TestLockedIsRefused(t *testing.T) {
	dir := t.TempDir()
	open(t, dir)
	_, err := boltstore.Open(filepath.Join(dir, "db"), boltstore.Options{LockWait: 1})
	if err == nil || !strings.Contains(err.Error(), "another provisiond") {
		t.Fatalf("opening a locked database: %v", err)
	}
}

func TestNewerSchemaIsRefusedAndLeftAlone(t *testing.T) {
	path := filepath.Join(t.TempDir(), "db")
	s, err := boltstore.Open(path, boltstore.Options{})
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	db, err := bbolt.Open(path, 0o600, nil)
	if err != nil {
		t.Fatal(err)
	}
	err = db.Update(func(tx *bbolt.Tx) error {
		return tx.Bucket([]byte("store")).Put([]byte("schema"), binary.BigEndian.AppendUint64(nil, boltstore.SchemaVersion+1))
	})
	if err != nil {
		t.Fatal(err)
	}
	if err := db.Close(); err != nil {
		t.Fatal(err)
	}
	before, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if _, err = boltstore.Open(path, boltstore.Options{}); err == nil || !strings.Contains(err.Error(), "newer provisiond") {
		t.Fatalf("opening a newer schema: %v", err)
	}
	after, err := os.ReadFile(path)
	if err != nil || !bytes.Equal(before, after) {
		t.Fatalf("the refused file was changed (%v)", err)
	}
}

func TestNotADatabaseIsRefused(t *testing.T) {
	path := filepath.Join(t.TempDir(), "db")
	if err := os.WriteFile(path, bytes.Repeat([]byte("not a database "), 4096), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := boltstore.Open(path, boltstore.Options{}); err == nil || !strings.Contains(err.Error(), "restore") {
		t.Fatalf("opening junk: %v", err)
	}
}

func TestLogIsBounded(t *testing.T) {
	s, err := boltstore.Open(filepath.Join(t.TempDir(), "db"), boltstore.Options{LogEntries: 10, NoSync: true})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	for i := range 35 {
		commit(t, s, fmt.Sprint("m", i), "x")
	}
	entries, err := s.Log(t.Context(), 0, 0)
	if err != nil || len(entries) != 10 || string(entries[0].Value) != "m25" || string(entries[9].Value) != "m34" {
		t.Fatalf("log holds %d entries (%v), want the newest 10", len(entries), err)
	}
}

func TestBackupAndRestore(t *testing.T) {
	dir := t.TempDir()
	s := open(t, dir)
	commit(t, s, "a", "before")
	copied := filepath.Join(dir, "backup")
	f, err := os.Create(copied)
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Backup(t.Context(), f); err != nil {
		t.Fatal(err)
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	commit(t, s, "a", "after")
	if _, err := boltstore.Restore(filepath.Join(dir, "db"), copied, nil); err == nil || !strings.Contains(err.Error(), "in use") {
		t.Fatalf("restoring under a running daemon: %v", err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	kept, err := boltstore.Restore(filepath.Join(dir, "db"), copied, nil)
	if err != nil {
		t.Fatal(err)
	}
	s = open(t, dir)
	rec, err := s.Get(t.Context(), inventory.Key{Bucket: inventory.BucketMachines, ID: "a"})
	if err != nil || string(rec.Value) != "before" {
		t.Fatalf("restored record is %q, %v", rec.Value, err)
	}
	if _, err := os.Stat(kept); err != nil {
		t.Fatalf("the replaced database is gone: %v", err)
	}
}

func TestRestoreRefuses(t *testing.T) {
	foreign := filepath.Join(t.TempDir(), "foreign")
	db, err := bbolt.Open(foreign, 0o600, nil)
	if err != nil {
		t.Fatal(err)
	}
	if err := db.Update(func(tx *bbolt.Tx) error { _, err := tx.CreateBucket([]byte("key")); return err }); err != nil {
		t.Fatal(err)
	}
	if err := db.Close(); err != nil {
		t.Fatal(err)
	}
	other, err := os.ReadFile(foreign)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := boltstore.Open(foreign, boltstore.Options{}); err == nil || !strings.Contains(err.Error(), "another program") {
		t.Errorf("opening the database of another program: %v", err)
	}
	dir := t.TempDir()
	s := open(t, dir)
	for i := range 200 {
		commit(t, s, fmt.Sprint("m", i), strings.Repeat("x", 1000))
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	whole, err := os.ReadFile(filepath.Join(dir, "db"))
	if err != nil {
		t.Fatal(err)
	}
	spoilt := bytes.Clone(whole)
	for i := 4 * 4096; i < len(spoilt); i++ {
		spoilt[i] = byte(i)
	}
	for name, content := range map[string][]byte{
		"junk": bytes.Repeat([]byte{7}, 1<<16), "empty": nil, "foreign": other, "truncated": whole[:40_000], "garbage pages": spoilt,
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			s := open(t, dir)
			commit(t, s, "a", "kept")
			if err := s.Close(); err != nil {
				t.Fatal(err)
			}
			bad := filepath.Join(dir, "bad")
			if err := os.WriteFile(bad, content, 0o600); err != nil {
				t.Fatal(err)
			}
			if _, err := boltstore.Restore(filepath.Join(dir, "db"), bad, nil); err == nil {
				t.Fatal("it was restored")
			}
			if s, err := boltstore.Open(bad, boltstore.Options{}); err == nil {
				_ = s.Close()
				t.Error("it was opened")
			}
			s = open(t, dir)
			if _, err := s.Get(t.Context(), inventory.Key{Bucket: inventory.BucketMachines, ID: "a"}); err != nil {
				t.Fatalf("the database was lost: %v", err)
			}
		})
	}
}

// TestBucketOfALaterBuild: a file that was made before a kind of record existed is
// read as one that has none of it, and takes them.
func TestBucketOfALaterBuild(t *testing.T) {
	dir := t.TempDir()
	s := open(t, dir)
	commit(t, s, "a", "kept")
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	db, err := bbolt.Open(filepath.Join(dir, "db"), 0o600, nil)
	if err != nil {
		t.Fatal(err)
	}
	if err := db.Update(func(tx *bbolt.Tx) error {
		return tx.Bucket([]byte("records")).DeleteBucket([]byte(inventory.BucketMachines))
	}); err != nil {
		t.Fatal(err)
	}
	if err := db.Close(); err != nil {
		t.Fatal(err)
	}
	s = open(t, dir)
	if _, err := s.Get(t.Context(), inventory.Key{Bucket: inventory.BucketMachines, ID: "a"}); !errors.Is(err, inventory.ErrNotFound) {
		t.Errorf("Get: %v", err)
	}
	if list, err := s.List(t.Context(), inventory.BucketMachines, "", 0); err != nil || len(list) != 0 {
		t.Errorf("List: %v, %v", list, err)
	}
	if _, err := s.Get(t.Context(), inventory.Key{Bucket: "nonsense", ID: "a"}); err == nil || errors.Is(err, inventory.ErrNotFound) {
		t.Errorf("Get of a bucket that nobody knows: %v", err)
	}
	commit(t, s, "a", "new")
	if rec, err := s.Get(t.Context(), inventory.Key{Bucket: inventory.BucketMachines, ID: "a"}); err != nil || string(rec.Value) != "new" {
		t.Errorf("Get = %q, %v", rec.Value, err)
	}
}

// TestRewrite: every value passes through the plan, and all else stays: revisions,
// the numbers of log entries, and where both go on.
func TestRewrite(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "db")
	s := open(t, dir)
	commit(t, s, "a", "one")
	commit(t, s, "drop", "gone for good")
	commit(t, s, "b", "two")
	rewrite := func() error {
		return boltstore.Rewrite(path, func(from inventory.Store) (boltstore.Rewriting, error) {
			if rec, err := from.Get(t.Context(), inventory.Key{Bucket: inventory.BucketMachines, ID: "a"}); err != nil || string(rec.Value) != "one" {
				t.Errorf("the plan sees %q, %v", rec.Value, err)
			}
			return boltstore.Rewriting{
				Record: func(key inventory.Key, value []byte) ([]byte, error) {
					if key.ID == "drop" {
						return nil, nil
					}
					return append([]byte(key.ID+"="), value...), nil
				},
				Entry:  func(value []byte) ([]byte, error) { return append([]byte("log "), value...), nil },
				Finish: func(s inventory.Store) error { commit(t, s, "c", "three"); return nil },
			}, nil
		})
	}
	if err := rewrite(); err == nil || !strings.Contains(err.Error(), "stop provisiond") {
		t.Fatalf("rewriting a database in use: %v", err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path+".rewriting", []byte("of one that was killed"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := rewrite(); err != nil {
		t.Fatal(err)
	}
	if raw, err := os.ReadFile(path); err != nil || bytes.Contains(raw, []byte("gone for good")) {
		t.Errorf("what was left out is in the file (%v)", err)
	}
	s = open(t, dir)
	list, err := s.List(t.Context(), inventory.BucketMachines, "", 0)
	if got := fmt.Sprintf("%s", values(list)); err != nil || got != "[a=one@1 b=two@3 three@4]" {
		t.Errorf("records are %s, %v", got, err)
	}
	entries, err := s.Log(t.Context(), 0, 0)
	if err != nil || len(entries) != 4 || string(entries[2].Value) != "log b" || entries[2].ID != 3 || string(entries[3].Value) != "c" {
		t.Errorf("log is %v, %v", entries, err)
	}
	if left, err := filepath.Glob(path + ".*"); err != nil || len(left) > 0 {
		t.Errorf("left behind: %v, %v", left, err)
	}
}

func values(recs []inventory.Record) (out []string) {
	for _, r := range recs {
		out = append(out, fmt.Sprintf("%s@%d", r.Value, r.Rev))
	}
	return out
}

// TestRewriteThatFails leaves the file as it was.
func TestRewriteThatFails(t *testing.T) {
	broken := errors.New("broken")
	for name, plan := range map[string]boltstore.Plan{
		"plan":   func(inventory.Store) (boltstore.Rewriting, error) { return boltstore.Rewriting{}, broken },
		"record": failing(boltstore.Rewriting{Record: func(inventory.Key, []byte) ([]byte, error) { return nil, broken }}),
		"entry":  failing(boltstore.Rewriting{Entry: func([]byte) ([]byte, error) { return nil, broken }}),
		"finish": failing(boltstore.Rewriting{Finish: func(inventory.Store) error { return broken }}),
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			s := open(t, dir)
			commit(t, s, "a", "kept")
			if err := s.Close(); err != nil {
				t.Fatal(err)
			}
			before, err := os.ReadFile(filepath.Join(dir, "db"))
			if err != nil {
				t.Fatal(err)
			}
			if err := boltstore.Rewrite(filepath.Join(dir, "db"), plan); !errors.Is(err, broken) {
				t.Errorf("Rewrite = %v", err)
			}
			if after, err := os.ReadFile(filepath.Join(dir, "db")); err != nil || !bytes.Equal(before, after) {
				t.Errorf("the file was changed (%v)", err)
			}
			if list, err := os.ReadDir(dir); err != nil || len(list) != 1 {
				t.Errorf("left behind: %v, %v", list, err)
			}
		})
	}
}

func failing(w boltstore.Rewriting) boltstore.Plan {
	return func(inventory.Store) (boltstore.Rewriting, error) { return w, nil }
}

func TestReadOnly(t *testing.T) {
	path := filepath.Join(t.TempDir(), "db")
	if _, err := boltstore.Open(path, boltstore.Options{ReadOnly: true}); err == nil {
		t.Error("a file that is not there was opened")
	}
	if _, err := os.Stat(path); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("it was made: %v", err)
	}
}
