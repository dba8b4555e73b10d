// Package storetest is what every inventory.Store has to pass.
package storetest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"sync"
	"testing"

	"github.com/provisiond/provisiond/internal/inventory"
)

// Open opens a store on the given folder; the same folder again opens the same
// store, after the first was closed.
type Open func(t *testing.T, dir string) inventory.Store

// Run holds a store to the contract of [inventory.Store].
func Run(t *testing.T, open Open) {
	t.Run("GetPutDelete", func(t *testing.T) { getPutDelete(t, open(t, t.TempDir())) })
	t.Run("CompareAndSwap", func(t *testing.T) { compareAndSwap(t, open(t, t.TempDir())) })
	t.Run("AllOrNothing", func(t *testing.T) { allOrNothing(t, open(t, t.TempDir())) })
	t.Run("List", func(t *testing.T) { list(t, open(t, t.TempDir())) })
	t.Run("Cancelled", func(t *testing.T) { cancelled(t, open(t, t.TempDir())) })
	t.Run("Log", func(t *testing.T) { log(t, open(t, t.TempDir())) })
	t.Run("Contention", func(t *testing.T) { contention(t, open(t, t.TempDir())) })
	t.Run("ValuesAreCopies", func(t *testing.T) { copies(t, open(t, t.TempDir())) })
	t.Run("Reopen", func(t *testing.T) { reopen(t, open) })
	t.Run("Backup", func(t *testing.T) { backup(t, open(t, t.TempDir())) })
}

// cancelled: nothing is begun for who does not wait for it.
func cancelled(t *testing.T, s inventory.Store) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, _, err := s.Commit(ctx, inventory.Commit{Writes: []inventory.Write{put("a", "1")}}); !errors.Is(err, context.Canceled) {
		t.Errorf("Commit: %v", err)
	}
	if _, err := s.Get(t.Context(), key("a")); !errors.Is(err, inventory.ErrNotFound) {
		t.Errorf("Get: %v", err)
	}
}

func key(id string) inventory.Key {
	return inventory.Key{Bucket: inventory.BucketMachines, ID: id}
}

func put(id, value string) inventory.Write {
	return inventory.Write{Key: key(id), Value: []byte(value)}
}

func mustCommit(t *testing.T, s inventory.Store, c inventory.Commit) uint64 {
	t.Helper()
	rev, _, err := s.Commit(t.Context(), c)
	if err != nil {
		t.Fatalf("Commit: %v", err)
	}
	return rev
}

func wantValue(t *testing.T, s inventory.Store, id, value string) uint64 {
	t.Helper()
	rec, err := s.Get(t.Context(), key(id))
	if err != nil {
		t.Fatalf("Get(%s): %v", id, err)
	}
	if string(rec.Value) != value {
		t.Fatalf("Get(%s) = %q, want %q", id, rec.Value, value)
	}
	return rec.Rev
}

func wantMissing(t *testing.T, s inventory.Store, id string) {
	t.Helper()
	if rec, err := s.Get(t.Context(), key(id)); !errors.Is(err, inventory.ErrNotFound) {
		t.Fatalf("Get(%s) = %q, %v, want ErrNotFound", id, rec.Value, err)
	}
}

func getPutDelete(t *testing.T, s inventory.Store) {
	wantMissing(t, s, "a")
	rev := mustCommit(t, s, inventory.Commit{Writes: []inventory.Write{put("a", "1"), put("b", "")}})
	if got := wantValue(t, s, "a", "1"); got != rev {
		t.Errorf("record has revision %d, commit said %d", got, rev)
	}
	wantValue(t, s, "b", "")
	next := mustCommit(t, s, inventory.Commit{Writes: []inventory.Write{{Key: key("a")}}})
	if next <= rev {
		t.Errorf("revision went from %d to %d", rev, next)
	}
	wantMissing(t, s, "a")
	mustCommit(t, s, inventory.Commit{Writes: []inventory.Write{{Key: key("never")}}}) // deleting nothing is fine
}

func compareAndSwap(t *testing.T, s inventory.Store) {
	create := inventory.Commit{Checks: []inventory.Check{{Key: key("a")}}, Writes: []inventory.Write{put("a", "1")}}
	rev := mustCommit(t, s, create)
	if _, _, err := s.Commit(t.Context(), create); !errors.Is(err, inventory.ErrConflict) {
		t.Fatalf("creating twice: %v, want ErrConflict", err)
	}
	swap := inventory.Commit{Checks: []inventory.Check{{Key: key("a"), Rev: rev}}, Writes: []inventory.Write{put("a", "2")}}
	mustCommit(t, s, swap)
	if _, _, err := s.Commit(t.Context(), swap); !errors.Is(err, inventory.ErrConflict) {
		t.Fatalf("swapping an old revision: %v, want ErrConflict", err)
	}
	wantValue(t, s, "a", "2")
	gone := inventory.Commit{Checks: []inventory.Check{{Key: key("nobody"), Rev: 7}}, Writes: []inventory.Write{put("a", "3")}}
	if _, _, err := s.Commit(t.Context(), gone); !errors.Is(err, inventory.ErrConflict) {
		t.Fatalf("checking a missing record: %v, want ErrConflict", err)
	}
}

func allOrNothing(t *testing.T, s inventory.Store) {
	mustCommit(t, s, inventory.Commit{Writes: []inventory.Write{put("a", "1")}})
	_, _, err := s.Commit(t.Context(), inventory.Commit{
		Checks: []inventory.Check{{Key: key("b")}, {Key: key("a")}},
		Writes: []inventory.Write{put("a", "2"), put("b", "2")},
		Log:    [][]byte{[]byte("no")},
	})
	if !errors.Is(err, inventory.ErrConflict) {
		t.Fatalf("Commit: %v, want ErrConflict", err)
	}
	wantValue(t, s, "a", "1")
	wantMissing(t, s, "b")
	if entries, err := s.Log(t.Context(), 0, 0); err != nil || len(entries) != 0 {
		t.Fatalf("a refused commit left %d log entries, %v", len(entries), err)
	}
}

func list(t *testing.T, s inventory.Store) {
	var writes []inventory.Write
	for i := range 25 {
		writes = append(writes, put(fmt.Sprintf("m%02d", i), "x"))
	}
	writes = append(writes, inventory.Write{Key: inventory.Key{Bucket: inventory.BucketClusters, ID: "m99"}, Value: []byte("other bucket")})
	mustCommit(t, s, inventory.Commit{Writes: writes})
	var got []string
	after := ""
	for range 10 {
		recs, err := s.List(t.Context(), inventory.BucketMachines, after, 7)
		if err != nil {
			t.Fatal(err)
		}
		if len(recs) == 0 {
			break
		}
		for _, r := range recs {
			got = append(got, r.Key.ID)
		}
		after = got[len(got)-1]
	}
	if len(got) != 25 || got[0] != "m00" || got[24] != "m24" {
		t.Fatalf("pages gave %v", got)
	}
	if recs, err := s.List(t.Context(), inventory.BucketMachines, "m10", 0); err != nil || len(recs) != 14 || recs[0].Key.ID != "m11" {
		t.Fatalf("List after m10 gave %d records, %v", len(recs), err)
	}
	if recs, err := s.List(t.Context(), inventory.BucketMachines, "m10x", 1); err != nil || len(recs) != 1 || recs[0].Key.ID != "m11" {
		t.Fatalf("List after an id that does not exist gave %v, %v", recs, err)
	}
}

func log(t *testing.T, s inventory.Store) {
	for i := range 5 {
		mustCommit(t, s, inventory.Commit{Log: [][]byte{fmt.Appendf(nil, "a%d", i), fmt.Appendf(nil, "b%d", i)}})
	}
	all, err := s.Log(t.Context(), 0, 0)
	if err != nil || len(all) != 10 {
		t.Fatalf("Log gave %d entries, %v", len(all), err)
	}
	for i := 1; i < len(all); i++ {
		if all[i].ID <= all[i-1].ID {
			t.Fatalf("ids %d, %d are not in order", all[i-1].ID, all[i].ID)
		}
	}
	rest, err := s.Log(t.Context(), all[3].ID, 2)
	if err != nil || len(rest) != 2 || rest[0].ID != all[4].ID || string(rest[0].Value) != "a2" {
		t.Fatalf("Log after the fourth gave %v, %v", rest, err)
	}
	tail, err := s.LogTail(t.Context(), 3)
	if err != nil || len(tail) != 3 || string(tail[0].Value) != "b3" || string(tail[2].Value) != "b4" {
		t.Fatalf("LogTail gave %v, %v", tail, err)
	}
	if tail, err := s.LogTail(t.Context(), 100); err != nil || len(tail) != 10 {
		t.Fatalf("a long LogTail gave %d entries, %v", len(tail), err)
	}
	_, id, err := s.Commit(t.Context(), inventory.Commit{Log: [][]byte{[]byte("c"), []byte("d")}})
	if err != nil || id <= all[9].ID {
		t.Fatalf("Commit said the first entry is %d, %v", id, err)
	}
}

// contention counts up one record from many goroutines: no increment may be
// lost, and none happen twice.
func contention(t *testing.T, s inventory.Store) {
	const workers, each = 8, 25
	var wg sync.WaitGroup
	for range workers {
		wg.Go(func() {
			for range each {
				for {
					var rev uint64
					n := 0
					rec, err := s.Get(t.Context(), key("n"))
					if err == nil {
						rev = rec.Rev
						_, _ = fmt.Sscan(string(rec.Value), &n)
					} else if !errors.Is(err, inventory.ErrNotFound) {
						t.Error(err)
						return
					}
					_, _, err = s.Commit(t.Context(), inventory.Commit{
						Checks: []inventory.Check{{Key: key("n"), Rev: rev}},
						Writes: []inventory.Write{put("n", fmt.Sprint(n+1))},
						Log:    [][]byte{[]byte("tick")},
					})
					if err == nil {
						break
					}
					if !errors.Is(err, inventory.ErrConflict) {
						t.Error(err)
						return
					}
				}
			}
		})
	}
	wg.Wait()
	wantValue(t, s, "n", fmt.Sprint(workers*each))
	if entries, err := s.Log(t.Context(), 0, 0); err != nil || len(entries) != workers*each {
		t.Fatalf("%d log entries, %v, want %d", len(entries), err, workers*each)
	}
}

func copies(t *testing.T, s inventory.Store) {
	value, entry := []byte("keep"), []byte("keep")
	c := inventory.Commit{Writes: []inventory.Write{{Key: key("a"), Value: value}}, Log: [][]byte{entry}}
	mustCommit(t, s, c)
	if string(value) != "keep" || string(entry) != "keep" {
		t.Errorf("Commit made %q and %q of its arguments", value, entry)
	}
	copy(value, "XXXX")
	copy(entry, "XXXX")
	for range 2 { // what the first round gets and spoils, the second must not see
		rec, err := s.Get(t.Context(), key("a"))
		list, err2 := s.List(t.Context(), inventory.BucketMachines, "", 0)
		log, err3 := s.Log(t.Context(), 0, 0)
		tail, err4 := s.LogTail(t.Context(), 1)
		if err := errors.Join(err, err2, err3, err4); err != nil || len(list) != 1 || len(log) != 1 || len(tail) != 1 {
			t.Fatalf("%d records, %d and %d log entries, %v", len(list), len(log), len(tail), err)
		}
		for what, got := range map[string][]byte{"Get": rec.Value, "List": list[0].Value, "Log": log[0].Value, "LogTail": tail[0].Value} {
			if string(got) != "keep" {
				t.Errorf("%s gave %q, want %q", what, got, "keep")
			}
			copy(got, "XXXX")
		}
	}
}

func reopen(t *testing.T, open Open) {
	dir := t.TempDir()
	s := open(t, dir)
	rev := mustCommit(t, s, inventory.Commit{Writes: []inventory.Write{put("a", "1")}, Log: [][]byte{[]byte("one")}})
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	s = open(t, dir)
	if got := wantValue(t, s, "a", "1"); got != rev {
		t.Errorf("revision %d became %d", rev, got)
	}
	if next := mustCommit(t, s, inventory.Commit{Writes: []inventory.Write{put("b", "2")}, Log: [][]byte{[]byte("two")}}); next <= rev {
		t.Errorf("revision after reopening is %d, was %d", next, rev)
	}
	entries, err := s.Log(t.Context(), 0, 0)
	if err != nil || len(entries) != 2 || entries[1].ID <= entries[0].ID {
		t.Errorf("log after reopening: %v, %v", entries, err)
	}
}

func backup(t *testing.T, s inventory.Store) {
	mustCommit(t, s, inventory.Commit{Writes: []inventory.Write{put("a", "1")}})
	var b bytes.Buffer
	if err := s.Backup(t.Context(), &b); err != nil || b.Len() == 0 {
		t.Fatalf("Backup wrote %d bytes, %v", b.Len(), err)
	}
}
