package sealed_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/provisiond/provisiond/internal/boltstore"
	"github.com/provisiond/provisiond/internal/inventory"
	"github.com/provisiond/provisiond/internal/inventory/storetest"
	"github.com/provisiond/provisiond/internal/sealed"
)

func newKey(t testing.TB) *sealed.Key {
	t.Helper()
	key, err := sealed.NewKey()
	if err != nil {
		t.Fatal(err)
	}
	return key
}

// seal makes an empty store a sealed one, or opens one that is sealed.
func seal(t testing.TB, s inventory.Store, key *sealed.Key) *sealed.Store {
	t.Helper()
	store, err := sealed.Open(t.Context(), s, key)
	if errors.Is(err, sealed.ErrUnsealed) {
		var r *sealed.Resealing
		if r, err = sealed.Reseal(t.Context(), s, key, key); err == nil {
			err = r.Finish(t.Context(), s)
		}
		if err != nil {
			t.Fatal(err)
		}
		store, err = sealed.Open(t.Context(), s, key)
	}
	if err != nil {
		t.Fatal(err)
	}
	return store
}

func TestStoreOverMemory(t *testing.T) {
	key, disks := newKey(t), map[string]*storetest.Memory{}
	storetest.Run(t, func(t *testing.T, dir string) inventory.Store {
		if disks[dir] == nil {
			disks[dir] = storetest.NewMemory()
		}
		return seal(t, disks[dir], key)
	})
}

func TestStoreOverBolt(t *testing.T) {
	key := newKey(t)
	storetest.Run(t, func(t *testing.T, dir string) inventory.Store {
		s, err := boltstore.Open(filepath.Join(dir, "db"), boltstore.Options{})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = s.Close() })
		return seal(t, s, key)
	})
}

func machine(id string) inventory.Key {
	return inventory.Key{Bucket: inventory.BucketMachines, ID: id}
}

func commit(t testing.TB, s inventory.Store, id, value string) {
	t.Helper()
	_, _, err := s.Commit(t.Context(), inventory.Commit{Writes: []inventory.Write{{Key: machine(id), Value: []byte(value)}}, Log: [][]byte{[]byte(value)}})
	if err != nil {
		t.Fatal(err)
	}
}

// A value opens where it was written, under the key it was written with, and
// nowhere else.
func TestAValueOpensInItsPlaceOnly(t *testing.T) {
	for name, spoil := range map[string]func(t *testing.T, raw inventory.Store, value []byte) inventory.Write{
		"moved to another name": func(_ *testing.T, _ inventory.Store, v []byte) inventory.Write {
			return inventory.Write{Key: machine("b"), Value: v}
		},
		"moved to another bucket": func(_ *testing.T, _ inventory.Store, v []byte) inventory.Write {
			return inventory.Write{Key: inventory.Key{Bucket: inventory.BucketFacts, ID: "a"}, Value: v}
		},
		"an entry of the log": func(t *testing.T, raw inventory.Store, _ []byte) inventory.Write {
			entries, err := raw.Log(t.Context(), 0, 0)
			if err != nil {
				t.Fatal(err)
			}
			return inventory.Write{Key: machine("a"), Value: entries[0].Value}
		},
		"a bit flipped": func(_ *testing.T, _ inventory.Store, v []byte) inventory.Write {
			v[len(v)-1] ^= 1
			return inventory.Write{Key: machine("a"), Value: v}
		},
		"its nonce changed": func(_ *testing.T, _ inventory.Store, v []byte) inventory.Write {
			v[1] ^= 1
			return inventory.Write{Key: machine("a"), Value: v}
		},
		"another format": func(_ *testing.T, _ inventory.Store, v []byte) inventory.Write {
			v[0]++
			return inventory.Write{Key: machine("a"), Value: v}
		},
		"cut off": func(_ *testing.T, _ inventory.Store, v []byte) inventory.Write {
			return inventory.Write{Key: machine("a"), Value: v[:20]}
		},
		"empty": func(_ *testing.T, _ inventory.Store, _ []byte) inventory.Write {
			return inventory.Write{Key: machine("a"), Value: []byte{}}
		},
		"not sealed at all": func(_ *testing.T, _ inventory.Store, _ []byte) inventory.Write {
			return inventory.Write{Key: machine("a"), Value: []byte(`{"name":"a"}`)}
		},
	} {
		t.Run(name, func(t *testing.T) {
			raw := storetest.NewMemory()
			s := seal(t, raw, newKey(t))
			commit(t, s, "a", "a value of some length, so that it can be cut")
			rec, err := raw.Get(t.Context(), machine("a"))
			if err != nil {
				t.Fatal(err)
			}
			w := spoil(t, raw, rec.Value)
			if _, _, err := raw.Commit(t.Context(), inventory.Commit{Writes: []inventory.Write{w}}); err != nil {
				t.Fatal(err)
			}
			want := string(w.Key.Bucket) + "/" + w.Key.ID
			if rec, err := s.Get(t.Context(), w.Key); !errors.Is(err, sealed.ErrDamaged) || !strings.Contains(err.Error(), want) || rec.Value != nil {
				t.Errorf("Get = %q, %v", rec.Value, err)
			}
			if _, err := s.List(t.Context(), w.Key.Bucket, "", 0); !errors.Is(err, sealed.ErrDamaged) {
				t.Errorf("List: %v", err)
			}
		})
	}
}

// Equal values are not seen to be equal, and nothing of a value is readable.
func TestNothingShows(t *testing.T) {
	raw := storetest.NewMemory()
	s := seal(t, raw, newKey(t))
	const secret = "a secret that nobody may read"
	commit(t, s, "a", secret)
	commit(t, s, "b", secret)
	recs, err := raw.List(t.Context(), inventory.BucketMachines, "", 0)
	if err != nil || len(recs) != 2 || bytes.Equal(recs[0].Value[30:], recs[1].Value[30:]) {
		t.Fatalf("%d records, or two that look alike (%v)", len(recs), err)
	}
	entries, err := raw.Log(t.Context(), 0, 0)
	if err != nil || len(entries) != 2 {
		t.Fatal(entries, err)
	}
	for _, v := range [][]byte{recs[0].Value, recs[1].Value, entries[0].Value, entries[1].Value} {
		if bytes.Contains(v, []byte("secret")) {
			t.Errorf("stored as it is: %q", v)
		}
	}
	if rec, err := s.Get(t.Context(), machine("b")); err != nil || string(rec.Value) != secret || rec.Rev != recs[1].Rev {
		t.Errorf("Get = %+v, %v", rec, err)
	}
}

func TestOpenRefuses(t *testing.T) {
	key, other := newKey(t), newKey(t)
	if _, err := sealed.Open(t.Context(), storetest.NewMemory(), key); !errors.Is(err, sealed.ErrUnsealed) {
		t.Errorf("an empty store: %v", err)
	}
	raw := storetest.NewMemory()
	seal(t, raw, key)
	rev := raw.Rev()
	_, err := sealed.Open(t.Context(), raw, other)
	var wrong *sealed.WrongKeyError
	if !errors.As(err, &wrong) || wrong.SealedTo != key.Recipient() || wrong.Given != other.Recipient() {
		t.Errorf("another key: %v", err)
	}
	if to, err := sealed.Recipient(t.Context(), raw); err != nil || to != key.Recipient() {
		t.Errorf("Recipient = %q, %v", to, err)
	}
	if _, err := sealed.Reseal(t.Context(), raw, other, other); !errors.As(err, &wrong) {
		t.Errorf("Reseal with another key: %v", err)
	}
	if raw.Rev() != rev {
		t.Error("something was written")
	}

	at := inventory.Key{Bucket: inventory.BucketKeyring, ID: "keyring"}
	rec, err := raw.Get(t.Context(), at)
	if err != nil {
		t.Fatal(err)
	}
	var ring map[string]any
	if err := json.Unmarshal(rec.Value, &ring); err != nil {
		t.Fatal(err)
	}
	for name, tt := range map[string]struct {
		field string
		value any
		want  string
	}{
		"of a newer provisiond":    {"version", 2, "newer provisiond"},
		"with a damaged data key":  {"dataKey", "AAAA", "damaged"},
		"with no data key":         {"dataKey", nil, "damaged"},
		"that names another owner": {"recipient", other.Recipient(), other.Recipient()},
		"of another shape":         {"dataKey", 5, "damaged"},
	} {
		t.Run("a keyring "+name, func(t *testing.T) {
			copied := raw.Copy()
			changed := map[string]any{}
			for k, v := range ring {
				changed[k] = v
			}
			changed[tt.field] = tt.value
			text, err := json.Marshal(changed)
			if err != nil {
				t.Fatal(err)
			}
			if _, _, err := copied.Commit(t.Context(), inventory.Commit{Writes: []inventory.Write{{Key: at, Value: text}}}); err != nil {
				t.Fatal(err)
			}
			if _, err := sealed.Open(t.Context(), copied, key); err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("Open = %v, want one that says %q", err, tt.want)
			}
		})
	}
}

// TestReseal takes a database from unsealed to one key and on to another.
func TestReseal(t *testing.T) {
	first, second := newKey(t), newKey(t)
	path := filepath.Join(t.TempDir(), "db")
	open := func() *boltstore.Store {
		s, err := boltstore.Open(path, boltstore.Options{})
		if err != nil {
			t.Fatal(err)
		}
		return s
	}
	plain := open()
	for i := range 50 {
		commit(t, plain, fmt.Sprint("m", i), "words that must not stay readable")
	}
	commit(t, plain, "m0", "") // its former value lies on a page that is free now
	if err := plain.Close(); err != nil {
		t.Fatal(err)
	}
	for _, step := range []struct{ from, to *sealed.Key }{{first, first}, {first, second}} {
		err := boltstore.Rewrite(path, func(from inventory.Store) (boltstore.Rewriting, error) {
			r, err := sealed.Reseal(t.Context(), from, step.from, step.to)
			if err != nil {
				return boltstore.Rewriting{}, err
			}
			return boltstore.Rewriting{Record: r.Record, Entry: r.Entry, Finish: func(s inventory.Store) error { return r.Finish(t.Context(), s) }}, nil
		})
		if err != nil {
			t.Fatal(err)
		}
		raw := open()
		s, err := sealed.Open(t.Context(), raw, step.to)
		if err != nil {
			t.Fatal(err)
		}
		list, err := s.List(t.Context(), inventory.BucketMachines, "", 0)
		if err != nil || len(list) != 50 || list[0].Rev != 51 || string(list[0].Value) != "" || string(list[49].Value) != "words that must not stay readable" {
			t.Errorf("%d records (%v)", len(list), err)
		}
		if log, err := s.Log(t.Context(), 0, 0); err != nil || len(log) != 51 || string(log[7].Value) != "words that must not stay readable" {
			t.Errorf("%d log entries (%v)", len(log), err)
		}
		var copied bytes.Buffer
		if err := s.Backup(t.Context(), &copied); err != nil || bytes.Contains(copied.Bytes(), []byte("readable")) {
			t.Errorf("words in the backup (%v)", err)
		}
		var wrong *sealed.WrongKeyError
		if _, err := sealed.Open(t.Context(), raw, step.from); step.from != step.to && !errors.As(err, &wrong) {
			t.Errorf("the former key: %v", err)
		}
		if err := raw.Close(); err != nil {
			t.Fatal(err)
		}
	}
}

// Values that are sealed, and no keyring: that is damage, and not a store that is to
// be sealed.
func TestResealWithoutKeyring(t *testing.T) {
	raw, key := storetest.NewMemory(), newKey(t)
	commit(t, seal(t, raw, key), "a", "value")
	rec, err := raw.Get(t.Context(), machine("a"))
	if err != nil {
		t.Fatal(err)
	}
	r, err := sealed.Reseal(t.Context(), storetest.NewMemory(), key, key)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := r.Record(rec.Key, rec.Value); !errors.Is(err, sealed.ErrDamaged) {
		t.Errorf("a value that is sealed already: %v", err)
	}
	if out, err := r.Record(rec.Key, []byte{}); err != nil || out == nil {
		t.Errorf("an empty value: %x, %v", out, err)
	}
}

func TestParseKey(t *testing.T) {
	key := newKey(t)
	text := key.Secret(time.Now())
	line := text[strings.Index(text, "AGE-SECRET-KEY-1"):]
	for name, tt := range map[string]struct{ text, want string }{
		"as it is written":        {text, ""},
		"the line alone":          {strings.TrimSpace(line), ""},
		"Windows line ends":       {strings.ReplaceAll(text, "\n", "\r\n"), ""},
		"empty":                   {"", "no key"},
		"remarks only":            {"# nothing\n", "no key"},
		"two keys":                {text + text, "more than one"},
		"a public key":            {key.Recipient(), "AGE-SECRET-KEY-1"},
		"cut off":                 {line[:40], "AGE-SECRET-KEY-1"},
		"a letter changed":        {strings.Replace(line, line[30:31], "b", 1), "AGE-SECRET-KEY-1"},
		"a key of another cipher": {"AGE-SECRET-KEY-PQ-1QQQQ", "AGE-SECRET-KEY-1"},
	} {
		t.Run(name, func(t *testing.T) {
			got, err := sealed.ParseKey(tt.text)
			if tt.want == "" {
				if err != nil || got.Recipient() != key.Recipient() {
					t.Errorf("ParseKey = %v, %v", got, err)
				}
				return
			}
			if err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("ParseKey = %v, want an error that says %q", err, tt.want)
			}
		})
	}
	for _, shown := range []string{fmt.Sprint(key), fmt.Sprintf("%v %+v %s", key, *key, key), fmt.Sprintf("%+v", struct{ Key *sealed.Key }{key})} {
		if strings.Contains(shown, "SECRET") {
			t.Errorf("a key is printed: %s", shown)
		}
	}
}

// FuzzOpen gives a store that others wrote to: whatever they wrote, nothing but
// what was sealed comes out, and an error says the rest.
func FuzzOpen(f *testing.F) {
	raw, key := storetest.NewMemory(), newKey(f)
	s := seal(f, raw, key)
	commit(f, s, "a", "value")
	rec, err := raw.Get(context.Background(), machine("a"))
	if err != nil {
		f.Fatal(err)
	}
	ring, err := raw.Get(context.Background(), inventory.Key{Bucket: inventory.BucketKeyring, ID: "keyring"})
	if err != nil {
		f.Fatal(err)
	}
	f.Add(rec.Value, ring.Value)
	f.Add([]byte{}, []byte(`{"version":1}`))
	f.Add(make([]byte, 41), []byte("null"))
	f.Fuzz(func(t *testing.T, value, keyring []byte) {
		other := raw.Copy()
		put := func(key inventory.Key, value []byte) {
			if _, _, err := other.Commit(t.Context(), inventory.Commit{Writes: []inventory.Write{{Key: key, Value: append([]byte{}, value...)}}}); err != nil {
				t.Fatal(err)
			}
		}
		put(machine("a"), value)
		if bytes.Equal(value, rec.Value) != gives(t, other, key, "value") {
			t.Errorf("the value %x was taken for another", value)
		}
		put(ring.Key, keyring)
		if gives(t, other, key, "value") && !bytes.Equal(value, rec.Value) {
			t.Errorf("with the keyring %q the value %x was taken for another", keyring, value)
		}
	})
}

// gives reports whether the store opens and holds the value. It must not hold another.
func gives(t *testing.T, s inventory.Store, key *sealed.Key, want string) bool {
	store, err := sealed.Open(t.Context(), s, key)
	if err != nil {
		return false
	}
	got, err := store.Get(t.Context(), machine("a"))
	if err == nil && string(got.Value) != want {
		t.Errorf("it gives %q", got.Value)
	}
	return err == nil
}
