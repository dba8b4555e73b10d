package daemon

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/rs/zerolog"

	"github.com/provisiond/provisiond/internal/boltstore"
	"github.com/provisiond/provisiond/internal/inventory"
	"github.com/provisiond/provisiond/internal/sealed"
)

const readable = "words that must not stay readable"

func at(id string) inventory.Key { return inventory.Key{Bucket: inventory.BucketSecrets, ID: id} }

func writeTo(t *testing.T, s inventory.Store, id, value string) {
	t.Helper()
	c := inventory.Commit{Writes: []inventory.Write{{Key: at(id), Value: []byte(value)}}, Log: [][]byte{[]byte(value)}}
	if _, _, err := s.Commit(t.Context(), c); err != nil {
		t.Fatal(err)
	}
}

// emptyConfig has a data folder and a key file that do not exist yet.
func emptyConfig(t *testing.T) *Config {
	t.Helper()
	dir := t.TempDir()
	return &Config{Data: filepath.Join(dir, "data"), Key: filepath.Join(dir, "key")}
}

// openFor opens the database of a config, and closes it when the test ends.
func openFor(t *testing.T, cfg *Config) (inventory.Store, error) {
	t.Helper()
	s, err := openDatabase(t.Context(), cfg, boltstore.Options{}, zerolog.Nop())
	if err == nil {
		t.Cleanup(func() { _ = s.Close() })
	}
	return s, err
}

// filled is a database under a key of its own, closed again.
func filled(t *testing.T) *Config {
	t.Helper()
	cfg := emptyConfig(t)
	s, err := openFor(t, cfg)
	if err != nil {
		t.Fatal(err)
	}
	writeTo(t, s, "a", readable)
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	return cfg
}

// unsealed is a database as it was before values were sealed. Some of what it held
// is on pages that are free now.
func unsealed(t *testing.T) *Config {
	t.Helper()
	cfg := emptyConfig(t)
	if err := os.MkdirAll(cfg.Data, 0o700); err != nil {
		t.Fatal(err)
	}
	s, err := boltstore.Open(cfg.Database(), boltstore.Options{})
	if err != nil {
		t.Fatal(err)
	}
	for i := range 300 {
		writeTo(t, s, fmt.Sprint("m", i), strings.Repeat(readable, 20))
		writeTo(t, s, fmt.Sprint("m", i), "")
	}
	writeTo(t, s, "a", readable)
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	return cfg
}

// tree is every file below a folder, by its contents.
func tree(t *testing.T, dir string) string {
	t.Helper()
	var b strings.Builder
	err := filepath.WalkDir(dir, func(path string, e fs.DirEntry, err error) error {
		if err != nil || e.IsDir() {
			return err
		}
		text, err := os.ReadFile(path)
		fmt.Fprintf(&b, "%s %x\n", path, sha256.Sum256(text))
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return b.String()
}

func wantReadable(t *testing.T, cfg *Config) {
	t.Helper()
	s, err := openFor(t, cfg)
	if err != nil {
		t.Fatal(err)
	}
	if rec, err := s.Get(t.Context(), at("a")); err != nil || string(rec.Value) != readable {
		t.Errorf("Get = %q, %v", rec.Value, err)
	}
	if log, err := s.LogTail(t.Context(), 1); err != nil || len(log) != 1 || string(log[0].Value) != readable {
		t.Errorf("LogTail = %v, %v", log, err)
	}
	if err := s.Close(); err != nil {
		t.Error(err)
	}
	raw, err := os.ReadFile(cfg.Database())
	if err != nil || bytes.Contains(raw, []byte("readable")) {
		t.Errorf("the file shows what it holds (%v)", err)
	}
}

// The first start makes the key, tells where it is, and never tells what it is.
func TestFirstStart(t *testing.T) {
	cfg := emptyConfig(t)
	var log bytes.Buffer
	s, err := openDatabase(t.Context(), cfg, boltstore.Options{}, zerolog.New(&log).Level(zerolog.TraceLevel))
	if err != nil {
		t.Fatal(err)
	}
	writeTo(t, s, "a", readable)
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	text, err := os.ReadFile(cfg.Key)
	if err != nil {
		t.Fatal(err)
	}
	key, err := sealed.ParseKey(string(text))
	if err != nil {
		t.Fatal(err)
	}
	if info, err := os.Stat(cfg.Key); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("mode %v, %v, want 0600", info.Mode(), err)
	}
	if said := log.String(); !strings.Contains(said, cfg.Key) || !strings.Contains(said, key.Recipient()) || !strings.Contains(said, "apart from the backups") || strings.Contains(said, "SECRET") {
		t.Errorf("the log says %s", said)
	}
	if to, err := SealedTo(t.Context(), cfg.Database()); err != nil || to != key.Recipient() {
		t.Errorf("SealedTo = %q, %v", to, err)
	}
	wantReadable(t, cfg)
	if left, err := filepath.Glob(filepath.Join(filepath.Dir(cfg.Key), ".*")); err != nil || len(left) > 0 {
		t.Errorf("left behind: %v, %v", left, err)
	}
	if _, err := NewKeyFile(cfg.Key); !errors.Is(err, fs.ErrExist) {
		t.Errorf("a second key in the place of the first: %v", err)
	}
}

// TestWhereTheKeyIs: each place will do, and two keys are one too many.
func TestWhereTheKeyIs(t *testing.T) {
	one, two := newKeyText(t), newKeyText(t)
	for name, tt := range map[string]struct {
		credential, variable, file string
		mode                       fs.FileMode
		from                       string // "": none
		errs                       []string
	}{
		"nowhere":                    {},
		"credential":                 {credential: one, from: "credential provisiond.key"},
		"variable":                   {variable: one, from: "PROVISIOND_KEY"},
		"file":                       {file: one, from: "key"},
		"the same one twice":         {credential: one, file: one, from: "credential provisiond.key"},
		"two":                        {credential: one, variable: two, errs: []string{"two keys", "credential provisiond.key", "PROVISIOND_KEY"}},
		"another in the file":        {variable: one, file: two, errs: []string{"two keys", "PROVISIOND_KEY", "/key"}},
		"no key in the variable":     {variable: "hunter2", errs: []string{"PROVISIOND_KEY", "AGE-SECRET-KEY-1"}},
		"no key in the credential":   {credential: "hunter2", file: one, errs: []string{"credential", "AGE-SECRET-KEY-1"}},
		"no key in the file":         {file: "hunter2", errs: []string{"key: ", "AGE-SECRET-KEY-1"}},
		"empty variable":             {variable: " ", errs: []string{"PROVISIOND_KEY"}},
		"file that a group can read": {file: one, mode: 0o640, errs: []string{"chmod 600"}},
		"file that all can read":     {file: one, mode: 0o604, errs: []string{"chmod 600"}},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			cfg := &Config{Key: filepath.Join(dir, "key")}
			if tt.credential != "" {
				t.Setenv("CREDENTIALS_DIRECTORY", dir)
				if err := os.WriteFile(filepath.Join(dir, keyCredential), []byte(tt.credential), 0o440); err != nil {
					t.Fatal(err)
				}
			}
			if tt.variable != "" {
				t.Setenv(keyVariable, tt.variable)
			}
			if tt.file != "" {
				if err := os.WriteFile(cfg.Key, []byte(tt.file), 0o600|tt.mode); err != nil {
					t.Fatal(err)
				}
				if err := os.Chmod(cfg.Key, 0o600|tt.mode); err != nil { // whatever the umask is
					t.Fatal(err)
				}
			}
			key, err := findKey(cfg)
			switch {
			case len(tt.errs) > 0:
				for _, want := range tt.errs {
					if err == nil || !strings.Contains(err.Error(), want) {
						t.Errorf("error %v does not say %q", err, want)
					}
				}
				if err != nil && (strings.Contains(err.Error(), "hunter2") || strings.Contains(err.Error(), "SECRET-KEY-1Q")) {
					t.Errorf("the error tells the key: %v", err)
				}
			case err != nil:
				t.Error(err)
			case (key == nil) != (tt.from == ""), key != nil && !strings.Contains(key.from, tt.from):
				t.Errorf("found %v, want one from %q", key, tt.from)
			}
			if text, ok := os.LookupEnv(keyVariable); ok {
				t.Errorf("the environment still has %q", text)
			}
		})
	}
}

func newKeyText(t *testing.T) string {
	t.Helper()
	key, err := sealed.NewKey()
	if err != nil {
		t.Fatal(err)
	}
	return key.Secret(time.Now())
}

// TestAKeyThatDoesNotOpen: whoever starts with no key, or another one, is told which
// one is needed, and neither the database nor anything beside it changes.
func TestAKeyThatDoesNotOpen(t *testing.T) {
	for name, tt := range map[string]struct {
		spoil func(t *testing.T, cfg *Config)
		want  []string
	}{
		"lost":            {func(t *testing.T, cfg *Config) { remove(t, cfg.Key) }, []string{"no key is given", "$SEALED", "PROVISIOND_KEY"}},
		"another":         {otherKey, []string{"sealed to the key $SEALED", "the one given is $GIVEN", "age-keygen"}},
		"cut off":         {func(t *testing.T, cfg *Config) { check(t, os.Truncate(cfg.Key, 150)) }, []string{"AGE-SECRET-KEY-1"}},
		"open to others":  {func(t *testing.T, cfg *Config) { check(t, os.Chmod(cfg.Key, 0o644)) }, []string{"chmod 600"}},
		"keyring gone":    {func(t *testing.T, cfg *Config) { dropKeyring(t, cfg) }, []string{"damaged", "restore"}},
		"damaged keyring": {func(t *testing.T, cfg *Config) { spoilKeyring(t, cfg) }, []string{"the keyring is damaged", "restore"}},
	} {
		t.Run(name, func(t *testing.T) {
			cfg := filled(t)
			given, err := ReadKey(cfg.Key)
			check(t, err)
			names := []string{"$SEALED", given.Recipient()}
			tt.spoil(t, cfg)
			if given, err := ReadKey(cfg.Key); err == nil {
				names = append(names, "$GIVEN", given.Recipient())
			}
			before := tree(t, filepath.Dir(cfg.Data))
			backup := filepath.Join(t.TempDir(), "backup")
			copyFile(t, backup, cfg.Database())
			next := filepath.Join(t.TempDir(), "next")
			to, err := NewKeyFile(next)
			check(t, err)
			for what, do := range map[string]func() error{
				"start":   func() error { _, err := openFor(t, cfg); return err },
				"rotate":  func() error { _, err := Rotate(t.Context(), cfg, to); return err },
				"restore": func() error { _, err := Restore(t.Context(), cfg, backup, nil); return err },
			} {
				err := do()
				for _, want := range tt.want {
					want = strings.NewReplacer(names...).Replace(want)
					if err == nil || !strings.Contains(err.Error(), want) {
						t.Errorf("%s: error %v does not say %q", what, err, want)
					}
				}
				if after := tree(t, filepath.Dir(cfg.Data)); after != before {
					t.Errorf("%s changed something:\n%s\n%s", what, before, after)
				}
			}
		})
	}
}

func check(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func remove(t *testing.T, path string) { t.Helper(); check(t, os.Remove(path)) }

func otherKey(t *testing.T, cfg *Config) {
	t.Helper()
	remove(t, cfg.Key)
	_, err := NewKeyFile(cfg.Key)
	check(t, err)
}

func copyFile(t *testing.T, to, from string) {
	t.Helper()
	text, err := os.ReadFile(from)
	check(t, err)
	check(t, os.WriteFile(to, text, 0o600))
}

func dropKeyring(t *testing.T, cfg *Config) {
	t.Helper()
	raw, err := boltstore.Open(cfg.Database(), boltstore.Options{})
	check(t, err)
	_, _, err = raw.Commit(t.Context(), inventory.Commit{Writes: []inventory.Write{{Key: inventory.Key{Bucket: inventory.BucketKeyring, ID: "keyring"}}}})
	check(t, errors.Join(err, raw.Close()))
}

func spoilKeyring(t *testing.T, cfg *Config) {
	t.Helper()
	raw, err := boltstore.Open(cfg.Database(), boltstore.Options{})
	check(t, err)
	key := inventory.Key{Bucket: inventory.BucketKeyring, ID: "keyring"}
	rec, err := raw.Get(t.Context(), key)
	check(t, err)
	i := bytes.Index(rec.Value, []byte("dataKey")) + 40
	rec.Value[i] ^= 2
	_, _, err = raw.Commit(t.Context(), inventory.Commit{Writes: []inventory.Write{{Key: key, Value: rec.Value}}})
	check(t, errors.Join(err, raw.Close()))
}

// A database that cannot be sealed is not opened: there is no place for a key.
func TestNoPlaceForAKey(t *testing.T) {
	for name, cfg := range map[string]*Config{"none yet": emptyConfig(t), "not sealed yet": unsealed(t)} {
		cfg.Key = filepath.Join(filepath.Dir(cfg.Data), "nosuch", "key")
		before := tree(t, filepath.Dir(cfg.Data))
		if _, err := openFor(t, cfg); err == nil || !strings.HasPrefix(err.Error(), "key: ") || !strings.Contains(err.Error(), "provisiond key new "+cfg.Key) {
			t.Errorf("%s: %v", name, err)
		}
		if after := tree(t, filepath.Dir(cfg.Data)); after != before {
			t.Errorf("%s: something changed:\n%s\n%s", name, before, after)
		}
	}
}

// TestSealingADatabase seals one of an earlier build at start, from every state that
// a start which was killed can have left.
func TestSealingADatabase(t *testing.T) {
	for name, killed := range map[string]func(t *testing.T, cfg *Config){
		"not at all":    func(*testing.T, *Config) {},
		"after the key": func(t *testing.T, cfg *Config) { _, err := NewKeyFile(cfg.Key); check(t, err) },
		"while it was written": func(t *testing.T, cfg *Config) {
			_, err := NewKeyFile(cfg.Key)
			check(t, err)
			copyFile(t, cfg.Database()+".rewriting", cfg.Database())
			check(t, os.Truncate(cfg.Database()+".rewriting", 20_000))
		},
		"before it took its place": func(t *testing.T, cfg *Config) {
			whole, err := os.ReadFile(cfg.Database())
			check(t, err)
			_, err = openFor(t, cfg)
			check(t, err)
			check(t, os.Rename(cfg.Database(), cfg.Database()+".rewriting"))
			check(t, os.WriteFile(cfg.Database(), whole, 0o600))
		},
	} {
		t.Run("killed "+name, func(t *testing.T) {
			cfg := unsealed(t)
			if raw, err := os.ReadFile(cfg.Database()); err != nil || !bytes.Contains(raw, []byte("readable")) {
				t.Fatalf("the database to start from shows nothing (%v)", err)
			}
			killed(t, cfg)
			wantReadable(t, cfg)
			if left, err := filepath.Glob(cfg.Database() + ".*"); err != nil || len(left) > 0 {
				t.Errorf("left behind: %v, %v", left, err)
			}
			before := tree(t, cfg.Data)
			wantReadable(t, cfg)
			if tree(t, cfg.Data) != before {
				t.Error("the next start wrote it again")
			}
		})
	}
	// A start that was killed before anything was in the database.
	cfg := emptyConfig(t)
	check(t, os.MkdirAll(cfg.Data, 0o700))
	raw, err := boltstore.Open(cfg.Database(), boltstore.Options{})
	check(t, err)
	check(t, raw.Close())
	if _, err := openFor(t, cfg); err != nil {
		t.Error(err)
	}
}

// TestRotate: the new key opens the database and the former one does not, and a
// backup of before opens with the key of its time.
func TestRotate(t *testing.T) {
	cfg := filled(t)
	first, err := ReadKey(cfg.Key)
	check(t, err)
	backup := filepath.Join(t.TempDir(), "backup")
	s, err := openFor(t, cfg)
	check(t, err)
	f, err := os.Create(backup)
	check(t, err)
	check(t, errors.Join(s.Backup(t.Context(), f), f.Close()))
	next := filepath.Join(t.TempDir(), "next")
	second, err := NewKeyFile(next)
	check(t, err)
	if _, err := Rotate(t.Context(), cfg, second); err == nil || !strings.Contains(err.Error(), "stop provisiond") {
		t.Errorf("while it runs: %v", err)
	}
	check(t, s.Close())
	if from, err := Rotate(t.Context(), cfg, second); err != nil || from != cfg.Key {
		t.Fatalf("Rotate = %q, %v", from, err)
	}
	if list, err := os.ReadDir(cfg.Data); err != nil || len(list) != 1 {
		t.Errorf("the former database is kept: %v, %v", list, err)
	}
	var wrong *sealed.WrongKeyError
	if _, err := openFor(t, cfg); !errors.As(err, &wrong) || wrong.Given != first.Recipient() || wrong.SealedTo != second.Recipient() {
		t.Errorf("with the former key: %v", err)
	}
	former := cfg.Key
	cfg.Key = next
	wantReadable(t, cfg)

	if _, err := Restore(t.Context(), cfg, backup, nil); !errors.As(err, &wrong) || wrong.SealedTo != first.Recipient() {
		t.Errorf("a backup of before: %v", err)
	}
	wantReadable(t, cfg)
	key, err := ReadKey(former)
	check(t, err)
	kept, err := Restore(t.Context(), cfg, backup, key)
	check(t, err)
	if to, err := SealedTo(t.Context(), kept); err != nil || to != second.Recipient() {
		t.Errorf("the replaced database is sealed to %q, %v", to, err)
	}
	wantRestored(t, cfg)
}

func wantRestored(t *testing.T, cfg *Config) {
	t.Helper()
	s, err := openFor(t, cfg)
	check(t, err)
	if rec, err := s.Get(t.Context(), at("a")); err != nil || string(rec.Value) != readable {
		t.Errorf("Get = %q, %v", rec.Value, err)
	}
	check(t, s.Close())
}

// A backup that was made before values were sealed is sealed when it is restored.
func TestRestoreOfAnUnsealedBackup(t *testing.T) {
	old, cfg := unsealed(t), emptyConfig(t)
	check(t, os.MkdirAll(cfg.Data, 0o700))
	if _, err := SealedTo(t.Context(), old.Database()); !errors.Is(err, sealed.ErrUnsealed) {
		t.Errorf("SealedTo: %v", err)
	}
	if _, err := Restore(t.Context(), cfg, old.Database(), nil); err == nil || !strings.Contains(err.Error(), "provisiond key new") {
		t.Errorf("without a key: %v", err)
	}
	_, err := NewKeyFile(cfg.Key)
	check(t, err)
	if kept, err := Restore(context.Background(), cfg, old.Database(), nil); err != nil || kept != "" {
		t.Errorf("Restore = %q, %v", kept, err)
	}
	wantRestored(t, cfg)
	if raw, err := os.ReadFile(cfg.Database()); err != nil || bytes.Contains(raw, []byte("readable")) {
		t.Errorf("the file shows what it holds (%v)", err)
	}
}
