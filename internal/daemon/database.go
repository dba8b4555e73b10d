package daemon

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/rs/zerolog"

	"github.com/provisiond/provisiond/internal/audit"
	"github.com/provisiond/provisiond/internal/boltstore"
	"github.com/provisiond/provisiond/internal/inventory"
	"github.com/provisiond/provisiond/internal/sealed"
)

// databaseFile is the name of the database in the data folder.
const databaseFile = "provisiond.db"

// Database is the path of a config's database.
func (c *Config) Database() string { return filepath.Join(c.Data, databaseFile) }

// openDatabase opens a config's database with the operator's key, and makes what is
// missing. A key is made only where nothing is sealed yet, and is on the disk
// before anything is sealed to it. A database that is not sealed is written anew,
// sealed, before anybody reads it. Whatever is wrong with the key is an error, and
// then nothing was changed.
func openDatabase(ctx context.Context, cfg *Config, o boltstore.Options, log zerolog.Logger) (inventory.Store, error) {
	if err := os.MkdirAll(cfg.Data, 0o700); err != nil {
		return nil, fmt.Errorf("data: %w (create the folder, or set data to one that is writable)", err)
	}
	key, err := findKey(cfg)
	if err != nil {
		return nil, err
	}
	if key == nil {
		if key, err = firstKey(ctx, cfg, log); err != nil {
			return nil, err
		}
	}
	path := cfg.Database()
	_, missing := os.Stat(path)
	store, err := openSealed(ctx, path, o, key)
	if !errors.Is(err, sealed.ErrUnsealed) {
		return store, err
	}
	if err := boltstore.Rewrite(path, resealed(ctx, key.Key, key.Key)); err != nil {
		return nil, explainKey(err, key)
	}
	if missing == nil {
		log.Warn().Str("database", path).Str("key", key.Recipient()).
			Msg("sealed the database; backups and copies that were made before are not sealed, and are best removed")
	}
	return openSealed(ctx, path, o, key)
}

// openSealed opens a database that is sealed to a key.
func openSealed(ctx context.Context, path string, o boltstore.Options, key *givenKey) (inventory.Store, error) {
	raw, err := boltstore.Open(path, o)
	if err != nil {
		return nil, err
	}
	store, err := sealed.Open(ctx, raw, key.Key)
	if err != nil {
		return nil, errors.Join(explainKey(fmt.Errorf("database %s: %w", path, err), key), raw.Close())
	}
	return database{store, raw, key.Recipient()}, nil
}

// database is a sealed database with the metrics of the file that it is in.
type database struct {
	inventory.Store
	counts
	key string // public half of the one that it is sealed to
}

// firstKey makes the key of a database that is not sealed, or does not exist yet.
func firstKey(ctx context.Context, cfg *Config, log zerolog.Logger) (*givenKey, error) {
	if _, err := os.Stat(cfg.Database()); err == nil {
		switch to, err := SealedTo(ctx, cfg.Database()); {
		case errors.Is(err, sealed.ErrUnsealed):
		case err != nil:
			return nil, err
		default:
			return nil, missingKey(cfg, "database "+cfg.Database(), to)
		}
	}
	key, err := NewKeyFile(cfg.Key)
	if err != nil {
		return nil, fmt.Errorf("key: no key is given to seal the database with, and none can be made: %w (as a user who may: provisiond key new %s)", err, cfg.Key)
	}
	log.Warn().Str("file", cfg.Key).Str("key", key.Recipient()).
		Msg("made the key that the database is sealed to: keep a copy of it, apart from the backups, which nobody can read without it")
	return &givenKey{key, cfg.Key}, nil
}

// explainKey adds to an error what to do about a key that does not open what it should.
func explainKey(err error, key *givenKey) error {
	switch wrong := (*sealed.WrongKeyError)(nil); {
	case errors.As(err, &wrong):
		return fmt.Errorf("%w, from %s (put the right key there; age-keygen -y FILE says which one a file holds; nothing was changed)", err, key.from)
	case errors.Is(err, sealed.ErrDamaged):
		return fmt.Errorf("%w (restore a backup: provisiond restore FILE; nothing was changed)", err)
	}
	return err
}

func missingKey(cfg *Config, what, recipient string) error {
	return fmt.Errorf("key: %s is sealed to the key %s, and no key is given: put it into %s, or give it as the systemd credential %s or in %s; nobody can read it without, and nothing was changed",
		what, recipient, cfg.Key, keyCredential, keyVariable)
}

// SealedTo says which key a database or a backup is sealed to. The error is
// sealed.ErrUnsealed when it is not sealed.
func SealedTo(ctx context.Context, path string) (recipient string, err error) {
	s, err := boltstore.Open(path, boltstore.Options{ReadOnly: true})
	if err != nil {
		return "", err
	}
	switch recipient, err = sealed.Recipient(ctx, s); {
	case errors.Is(err, sealed.ErrUnsealed):
		err = fmt.Errorf("%s is %w (provisiond serve seals a database when it starts)", path, err)
	case err != nil:
		err = fmt.Errorf("%s: %w", path, err)
	}
	return recipient, errors.Join(err, s.Close())
}

// resealed takes a database, sealed to a key or not at all, to another key.
func resealed(ctx context.Context, from, to *sealed.Key) boltstore.Plan {
	return func(s inventory.Store) (boltstore.Rewriting, error) {
		r, err := sealed.Reseal(ctx, s, from, to)
		if err != nil {
			return boltstore.Rewriting{}, err
		}
		return boltstore.Rewriting{
			Record: r.Record, Entry: r.Entry,
			Finish: func(s inventory.Store) error { return r.Finish(ctx, s) },
		}, nil
	}
}

// Rotate seals a config's database to another operator's key, with another data key.
// The daemon must be stopped. After a crash in the middle, the database is sealed to
// either key as a whole. It returns where the key that is no longer needed is given.
func Rotate(ctx context.Context, cfg *Config, to *sealed.Key) (from string, err error) {
	key, err := findKey(cfg)
	if err != nil {
		return "", err
	}
	if key == nil {
		recipient, err := SealedTo(ctx, cfg.Database())
		if err != nil {
			return "", err
		}
		return "", missingKey(cfg, "database "+cfg.Database(), recipient)
	}
	if err := boltstore.Rewrite(cfg.Database(), resealed(ctx, key.Key, to)); err != nil {
		return key.from, explainKey(err, key)
	}
	return key.from, giveBack(cfg.Data)
}

// Restore puts a backup in place of a config's database, which must not be in use, and
// seals it to the operator's key. former is the key that the backup is sealed to, nil
// for the same one. It returns where the database it replaced is kept, if there was
// one. What the backup says may have been overtaken; see [inventory.Keeper.Restored].
func Restore(ctx context.Context, cfg *Config, backup string, former *sealed.Key) (kept string, err error) {
	key, err := findKey(cfg)
	if err != nil {
		return "", err
	}
	if key == nil {
		to, err := SealedTo(ctx, backup)
		if errors.Is(err, sealed.ErrUnsealed) {
			return "", fmt.Errorf("key: no key is given to seal the database with (provisiond key new %s)", cfg.Key)
		} else if err != nil {
			return "", err
		}
		return "", missingKey(cfg, "backup "+backup, to)
	}
	opens := key
	if former != nil {
		opens = &givenKey{former, "--key"}
	}
	plan := resealed(ctx, opens.Key, key.Key)
	kept, err = boltstore.Restore(cfg.Database(), backup, func(s inventory.Store) (boltstore.Rewriting, error) {
		w, err := plan(s)
		seal := w.Finish
		w.Finish = func(s inventory.Store) error {
			if err := seal(s); err != nil {
				return err
			}
			store, err := sealed.Open(ctx, s, key.Key)
			if err != nil {
				return err
			}
			k, err := inventory.NewKeeper(ctx, store, inventory.KeeperConfig{Subnets: cfg.Subnets})
			if err != nil {
				return err
			}
			if err := k.Restored(ctx); err != nil {
				return err
			}
			return noteRestore(ctx, cfg.Data, backup)
		}
		return w, err
	})
	if err != nil {
		return kept, explainKey(err, opens)
	}
	return kept, giveBack(cfg.Data)
}

// noteRestore has a line in the audit trail before a backup takes the place of the
// database: what the trail tells of is older than the database then.
func noteRestore(ctx context.Context, data, backup string) error {
	trail, err := audit.Open(data, audit.Options{})
	if err != nil {
		return err
	}
	who := "root"
	if uid := os.Getuid(); uid != 0 {
		who = fmt.Sprintf("uid %d", uid)
	}
	return errors.Join(trail.Append(ctx, audit.Entry{Who: who, Action: "restore", Target: "backup/" + filepath.Base(backup), Outcome: audit.OK}), trail.Close())
}
