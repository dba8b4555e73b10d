package boltstore

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"go.etcd.io/bbolt"
	bolterrors "go.etcd.io/bbolt/errors"

	"github.com/provisiond/provisiond/internal/inventory"
)

// Rewriting says what becomes of a database on its way into a new file. Revisions
// and the numbers of log entries stay. The zero value changes nothing.
type Rewriting struct {
	// Record returns what is written in place of a record's value; nil leaves the
	// record out.
	Record func(key inventory.Key, value []byte) ([]byte, error)
	// Entry does the same for an entry of the log, which cannot be left out.
	Entry func(value []byte) ([]byte, error)
	// Finish is done to the new database before it takes its place.
	Finish func(inventory.Store) error
}

// Plan looks at what is to be rewritten and says how. An error of it ends the
// rewriting, and nothing was changed.
type Plan func(from inventory.Store) (Rewriting, error)

// Rewrite writes the database at path anew, in a file of its own that takes its
// place when all of it is on disk. After a crash in the middle, either the old or
// the new database is at path. Nothing of the old file is kept, also not in pages
// that the database had freed. It must not be in use.
func Rewrite(path string, plan Plan) (err error) {
	old, err := openSource(path)
	if errors.Is(err, bolterrors.ErrTimeout) {
		return inUse(path)
	}
	if err != nil {
		return fmt.Errorf("database %s: %w", path, err)
	}
	// The lock on the old file lasts until the new one is in its place.
	defer func() { err = errors.Join(err, old.Close()) }()
	tmp := path + ".rewriting"
	defer func() { _ = os.Remove(tmp) }() // gone already when all went well
	if err := rewrite(tmp, old, plan); err != nil {
		return fmt.Errorf("database %s: %w", path, err)
	}
	return replace(path, tmp)
}

// Restore puts the backup at from in place of the database at path, which must
// not be in use. Every record of the backup is read and written anew, so that
// damage anywhere in it is found before anything is replaced; it must be a
// provisiond database of this schema. The database it replaces is kept; its new
// name is returned, empty if there was none. After a crash in the middle, either
// the old or the restored database is at path.
func Restore(path, from string, plan Plan) (kept string, err error) {
	tmp := path + ".restoring"
	defer func() { _ = os.Remove(tmp) }() // gone already when all went well
	if err := copyBackup(tmp, from, plan); err != nil {
		return "", fmt.Errorf("backup %s: %w", from, err)
	}
	if _, err := os.Stat(path); err == nil {
		current, err := openBolt(path, &bbolt.Options{Timeout: time.Second, ReadOnly: true}) // damaged is what restore is for
		if errors.Is(err, bolterrors.ErrTimeout) {
			return "", inUse(path)
		}
		if err == nil {
			if err := current.Close(); err != nil {
				return "", err
			}
		}
		kept = path + ".before-restore-" + time.Now().UTC().Format("20060102T150405.000Z")
		if err := os.Link(path, kept); err != nil {
			return "", fmt.Errorf("keeping the present database: %w", err)
		}
	}
	return kept, replace(path, tmp)
}

func copyBackup(to, from string, plan Plan) (err error) {
	src, err := openSource(from)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, src.Close()) }()
	return rewrite(to, src, plan)
}

func inUse(path string) error {
	return fmt.Errorf("database %s is in use: stop provisiond first", path)
}

// replace puts a file in the place of another, durably.
func replace(path, by string) error {
	if err := os.Rename(by, path); err != nil {
		return err
	}
	dir, err := os.Open(filepath.Dir(path))
	if err != nil {
		return err
	}
	return errors.Join(dir.Sync(), dir.Close())
}

// openSource opens a database to be read from end to end.
func openSource(path string) (*bbolt.DB, error) {
	if info, err := os.Stat(path); err != nil {
		return nil, err
	} else if !info.Mode().IsRegular() || info.Size() == 0 {
		return nil, errors.New("this is no file, or an empty one")
	}
	db, err := openBolt(path, &bbolt.Options{ReadOnly: true, Timeout: time.Second})
	if err != nil {
		return nil, fmt.Errorf("not a provisiond database, or damaged: %w", err)
	}
	err = guarded(func() error {
		return db.View(func(tx *bbolt.Tx) error {
			store := tx.Bucket(bucketStore)
			if store == nil {
				return errors.New("not a provisiond database")
			}
			if schema := number(store.Get(keySchema)); schema != SchemaVersion {
				return fmt.Errorf("it has schema %d and this provisiond needs %d", schema, SchemaVersion)
			}
			return nil
		})
	})
	if err != nil {
		return nil, errors.Join(err, db.Close())
	}
	return db, nil
}

// rewrite makes the database at to of everything in src.
func rewrite(to string, src *bbolt.DB, plan Plan) (err error) {
	var w Rewriting
	if plan != nil {
		if w, err = plan(&Store{db: src}); err != nil {
			return err
		}
	}
	if err := os.Remove(to); err != nil && !errors.Is(err, os.ErrNotExist) { // of a rewriting that was killed
		return err
	}
	dst, err := Open(to, Options{})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, dst.Close()) }()
	if err := guarded(func() error { return src.View(func(tx *bbolt.Tx) error { return w.copy(dst.db, tx) }) }); err != nil {
		return full(err)
	}
	if w.Finish == nil {
		return nil
	}
	return w.Finish(dst)
}

func (w Rewriting) copy(dst *bbolt.DB, src *bbolt.Tx) (err error) {
	out := &writer{db: dst}
	defer func() { err = errors.Join(err, out.rollback()) }()
	records := src.Bucket(bucketRecords)
	err = records.ForEachBucket(func(name []byte) error {
		return records.Bucket(name).ForEach(func(id, raw []byte) error {
			if len(raw) < 8 {
				return fmt.Errorf("%s/%s: %w", name, id, errDamaged)
			}
			value := raw[8:]
			if w.Record != nil {
				var err error
				if value, err = w.Record(inventory.Key{Bucket: inventory.Bucket(name), ID: string(id)}, value); err != nil || value == nil {
					return err
				}
			}
			return out.put(id, append(raw[:8:8], value...), bucketRecords, name)
		})
	})
	if err != nil {
		return err
	}
	log := src.Bucket(bucketLog)
	err = log.ForEach(func(id, entry []byte) (err error) {
		if w.Entry != nil {
			if entry, err = w.Entry(entry); err != nil {
				return fmt.Errorf("log entry %d: %w", number(id), err)
			}
		}
		return out.put(id, entry, bucketLog)
	})
	if err != nil {
		return err
	}
	if err := out.put(keyRevision, src.Bucket(bucketStore).Get(keyRevision), bucketStore); err != nil {
		return err
	}
	if err := out.tx.Bucket(bucketLog).SetSequence(log.Sequence()); err != nil {
		return err
	}
	return out.commit()
}

// maxCopyTx is how many bytes one transaction of a rewriting writes, which is what
// it needs of memory.
const maxCopyTx = 64 << 20

// writer fills a database in transactions of bounded size.
type writer struct {
	db   *bbolt.DB
	tx   *bbolt.Tx // nil: none is open
	size int
}

// put writes to the bucket of a path, which is made when it is missing.
func (w *writer) put(k, v []byte, path ...[]byte) (err error) {
	if w.size += len(k) + len(v); w.size > maxCopyTx {
		if err := w.commit(); err != nil {
			return err
		}
		w.size = len(k) + len(v)
	}
	if w.tx == nil {
		if w.tx, err = w.db.Begin(true); err != nil {
			return err
		}
	}
	b := w.tx.Bucket(path[0])
	for _, name := range path[1:] {
		if b, err = b.CreateBucketIfNotExists(name); err != nil {
			return err
		}
	}
	b.FillPercent = 0.9 // keys come in order
	return b.Put(k, v)
}

func (w *writer) commit() error {
	if w.tx == nil {
		return nil
	}
	tx := w.tx
	w.tx = nil
	return tx.Commit()
}

func (w *writer) rollback() error {
	if w.tx == nil {
		return nil
	}
	return w.tx.Rollback()
}
