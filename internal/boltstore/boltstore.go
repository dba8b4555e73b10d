// Package boltstore keeps the inventory in one bbolt file.
package boltstore

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"runtime"
	"runtime/debug"
	"slices"
	"sync"
	"syscall"
	"time"

	"go.etcd.io/bbolt"
	bolterrors "go.etcd.io/bbolt/errors"

	"github.com/provisiond/provisiond/internal/inventory"
)

// SchemaVersion is what this build reads and writes. A file of a newer one is
// refused and left alone.
const SchemaVersion = 1

var (
	bucketRecords = []byte("records") // holds one nested bucket for each inventory.Bucket
	bucketLog     = []byte("log")     // big-endian id → entry
	bucketStore   = []byte("store")   // schema, revision
	keySchema     = []byte("schema")
	keyRevision   = []byte("revision")
)

// Options tune a store. The zero value is what a daemon wants.
type Options struct {
	// LockWait is how long to wait for another process to let go of the file.
	// 0 means 1 s.
	LockWait time.Duration
	// LogEntries bounds the event log; the oldest go first. 0 means 100,000.
	LogEntries int
	// NoSync skips fsync. For benchmarks and simulations that may lose data.
	NoSync bool
	// ReadOnly opens a file that is there, and changes nothing in it.
	ReadOnly bool
}

// Store is an inventory.Store in a bbolt file. Concurrent commits share one
// transaction and one fsync: they queue up while a sync runs, and the next
// transaction takes all that waited.
type Store struct {
	db      *bbolt.DB
	path    string
	max     uint64
	metrics metrics

	mu      sync.Mutex
	queue   []*request
	writing bool
	writers sync.WaitGroup
}

type request struct {
	commit inventory.Commit
	done   chan struct{}
	rev    uint64
	logID  uint64
	err    error
}

// Open opens or creates the file. Errors say which file and what to do: it is
// locked by another process, it was written by a newer version, it is not a
// database.
func Open(path string, opts Options) (*Store, error) {
	if opts.LockWait == 0 {
		opts.LockWait = time.Second
	}
	if opts.LogEntries == 0 {
		opts.LogEntries = 100_000
	}
	if info, err := os.Stat(path); err == nil && info.Size() == 0 {
		return nil, fmt.Errorf("database %s is empty: restore a backup with provisiond restore, or remove the file to begin anew", path)
	}
	db, err := openBolt(path, &bbolt.Options{
		Timeout:      opts.LockWait,
		FreelistType: bbolt.FreelistMapType,
		NoSync:       opts.NoSync,
		ReadOnly:     opts.ReadOnly,
	})
	switch {
	case errors.Is(err, bolterrors.ErrTimeout):
		return nil, fmt.Errorf("database %s is locked: another provisiond runs on it; stop that one first", path)
	case errors.Is(err, errDamaged):
		return nil, fmt.Errorf("database %s is not a provisiond database or is damaged (%w); restore a backup with: provisiond restore", path, err)
	case err != nil:
		return nil, fmt.Errorf("opening database %s: %w", path, err)
	}
	s := &Store{db: db, path: path, max: uint64(opts.LogEntries), metrics: newMetrics()}
	if err := s.prepare(path, opts.ReadOnly); err != nil {
		_ = db.Close() // the first error says more
		return nil, err
	}
	return s, nil
}

var errDamaged = errors.New("damaged")

// view is a read transaction. A damaged page that it comes upon is an error,
// not the end of the daemon.
func (s *Store) view(f func(*bbolt.Tx) error) error {
	return guarded(func() error { return s.db.View(f) })
}

// openBolt opens a bbolt file. Where the library panics over a damaged page, or
// a fault in the mapped file of a truncated one would end the process, it
// returns errDamaged.
func openBolt(path string, o *bbolt.Options) (db *bbolt.DB, err error) {
	var file *os.File
	o.OpenFile = func(name string, flag int, mode os.FileMode) (_ *os.File, err error) {
		file, err = os.OpenFile(name, flag, mode)
		return file, err
	}
	err = guarded(func() (err error) {
		db, err = bbolt.Open(path, 0o600, o)
		return err
	})
	if err == nil && !stillAt(path, file) {
		return nil, errors.Join(errReplaced, db.Close())
	}
	if errors.Is(err, bolterrors.ErrInvalid) || errors.Is(err, bolterrors.ErrVersionMismatch) || errors.Is(err, bolterrors.ErrChecksum) {
		err = fmt.Errorf("%w: %w", errDamaged, err)
	}
	return db, err
}

// errReplaced: while we waited for the lock, who had it put another file in place of
// the one we had opened. What we wrote would be lost.
var errReplaced = errors.New("another process has just replaced it: try again")

func stillAt(path string, file *os.File) bool {
	opened, err := file.Stat()
	if err != nil {
		return false
	}
	now, err := os.Stat(path)
	return err == nil && os.SameFile(opened, now)
}

// guarded runs f and turns a panic or a memory fault in it into errDamaged.
func guarded(f func() error) (err error) {
	defer debug.SetPanicOnFault(debug.SetPanicOnFault(true))
	defer func() {
		if r := recover(); r != nil {
			err = fmt.Errorf("%w: %v", errDamaged, r)
		}
	}()
	return f()
}

// prepare makes the schema of a new file.
func (s *Store) prepare(path string, readOnly bool) error {
	var schema uint64
	err := s.view(func(tx *bbolt.Tx) error {
		if b := tx.Bucket(bucketStore); b != nil {
			schema = number(b.Get(keySchema))
		} else if k, _ := tx.Cursor().First(); k != nil {
			return errors.New("it is the database of another program")
		} else if readOnly {
			return errors.New("nothing was ever written to it")
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("database %s: %w", path, err)
	}
	if schema > SchemaVersion {
		return fmt.Errorf("database %s has schema %d and this provisiond knows only %d: run the newer provisiond, or restore a backup made by this one", path, schema, SchemaVersion)
	}
	if schema == SchemaVersion {
		return nil
	}
	err = s.db.Update(func(tx *bbolt.Tx) error {
		for _, name := range [][]byte{bucketRecords, bucketLog, bucketStore} {
			if _, err := tx.CreateBucketIfNotExists(name); err != nil {
				return err
			}
		}
		return tx.Bucket(bucketStore).Put(keySchema, binary.BigEndian.AppendUint64(nil, SchemaVersion))
	})
	if err != nil {
		return fmt.Errorf("preparing database %s: %w", path, full(err))
	}
	return nil
}

// Get implements inventory.Store.
func (s *Store) Get(_ context.Context, key inventory.Key) (rec inventory.Record, err error) {
	err = s.view(func(tx *bbolt.Tx) error {
		raw, err := lookup(tx, key)
		if err != nil {
			return err
		}
		if raw == nil {
			return inventory.ErrNotFound
		}
		rec = record(key, raw)
		return nil
	})
	return rec, err
}

// List implements inventory.Store.
func (s *Store) List(ctx context.Context, bucket inventory.Bucket, after string, limit int) (recs []inventory.Record, err error) {
	err = s.view(func(tx *bbolt.Tx) error {
		b, err := recordsOf(tx, bucket)
		if b == nil {
			return err
		}
		c := b.Cursor()
		k, v := c.Seek([]byte(after))
		if k != nil && string(k) == after {
			k, v = c.Next()
		}
		for ; k != nil && (limit <= 0 || len(recs) < limit); k, v = c.Next() {
			if err := ctx.Err(); err != nil {
				return err
			}
			recs = append(recs, record(inventory.Key{Bucket: bucket, ID: string(k)}, v))
		}
		return nil
	})
	return recs, err
}

// Commit implements inventory.Store.
func (s *Store) Commit(ctx context.Context, c inventory.Commit) (rev, logID uint64, err error) {
	if err := ctx.Err(); err != nil {
		return 0, 0, err
	}
	r := &request{commit: c, done: make(chan struct{})}
	start := time.Now()
	s.mu.Lock()
	s.queue = append(s.queue, r)
	if !s.writing {
		s.writing = true
		s.writers.Go(s.drain)
	}
	s.mu.Unlock()
	// Once queued it will be tried, whatever becomes of ctx: returning early
	// would leave the caller guessing.
	<-r.done
	s.metrics.committed(r.err, time.Since(start))
	return r.rev, r.logID, r.err
}

// drain writes what is queued, batch after batch, until nothing is left.
func (s *Store) drain() {
	for {
		// Who is about to commit comes along: otherwise, on few cores, each would be
		// written alone, and wait for the one before.
		runtime.Gosched()
		s.mu.Lock()
		batch := s.queue
		s.queue = nil
		if len(batch) == 0 {
			s.writing = false
			s.mu.Unlock()
			return
		}
		s.mu.Unlock()
		s.write(batch)
	}
}

// write applies a batch in one transaction. A commit whose check fails is left
// out; it touched nothing, since checks come before writes.
func (s *Store) write(batch []*request) {
	s.metrics.batches.Observe(float64(len(batch)))
	err := guarded(func() error { return s.db.Update(func(tx *bbolt.Tx) error { return s.applyAll(tx, batch) }) })
	for _, r := range batch {
		if err != nil && !errors.Is(r.err, inventory.ErrConflict) {
			r.err = full(err)
		}
		close(r.done)
	}
}

func (s *Store) applyAll(tx *bbolt.Tx, batch []*request) error {
	meta := tx.Bucket(bucketStore)
	rev := number(meta.Get(keyRevision))
	for _, r := range batch {
		switch r.err = s.apply(tx, r, rev+1); {
		case r.err == nil:
			rev++
		case !errors.Is(r.err, inventory.ErrConflict):
			return r.err
		}
	}
	return meta.Put(keyRevision, binary.BigEndian.AppendUint64(nil, rev))
}

func (s *Store) apply(tx *bbolt.Tx, r *request, rev uint64) error {
	for _, check := range r.commit.Checks {
		raw, err := lookup(tx, check.Key)
		if err != nil {
			return err
		}
		if have := revOf(raw); have != check.Rev {
			return fmt.Errorf("%s/%s is at revision %d, not %d: %w", check.Key.Bucket, check.Key.ID, have, check.Rev, inventory.ErrConflict)
		}
	}
	for _, w := range r.commit.Writes {
		b, err := recordsOf(tx, w.Key.Bucket)
		if err == nil && b == nil {
			b, err = tx.Bucket(bucketRecords).CreateBucket([]byte(w.Key.Bucket))
		}
		if err != nil {
			return err
		}
		if w.Value == nil {
			err = b.Delete([]byte(w.Key.ID))
		} else {
			err = b.Put([]byte(w.Key.ID), append(binary.BigEndian.AppendUint64(make([]byte, 0, 8+len(w.Value)), rev), w.Value...))
		}
		if err != nil {
			return fmt.Errorf("writing %s/%s: %w", w.Key.Bucket, w.Key.ID, err)
		}
	}
	r.rev = rev
	return s.appendLog(tx, r)
}

func (s *Store) appendLog(tx *bbolt.Tx, r *request) error {
	log := tx.Bucket(bucketLog)
	log.FillPercent = 0.9 // ids only grow
	for i, entry := range r.commit.Log {
		id, err := log.NextSequence()
		if err != nil {
			return err
		}
		if i == 0 {
			r.logID = id
		}
		if err := log.Put(binary.BigEndian.AppendUint64(nil, id), entry); err != nil {
			return err
		}
		if id <= s.max {
			continue
		}
		// One out for each one in keeps the log at its bound.
		c := log.Cursor()
		if k, _ := c.First(); k != nil && number(k) <= id-s.max {
			if err := c.Delete(); err != nil {
				return err
			}
		}
	}
	return nil
}

// Log implements inventory.Store.
func (s *Store) Log(_ context.Context, after uint64, limit int) (entries []inventory.LogEntry, err error) {
	err = s.view(func(tx *bbolt.Tx) error {
		c := tx.Bucket(bucketLog).Cursor()
		for k, v := c.Seek(binary.BigEndian.AppendUint64(nil, after+1)); k != nil && (limit <= 0 || len(entries) < limit); k, v = c.Next() {
			entries = append(entries, inventory.LogEntry{ID: number(k), Value: append([]byte(nil), v...)})
		}
		return nil
	})
	return entries, err
}

// LogTail implements inventory.Store.
func (s *Store) LogTail(ctx context.Context, limit int) ([]inventory.LogEntry, error) {
	var last uint64
	err := s.view(func(tx *bbolt.Tx) error {
		last = tx.Bucket(bucketLog).Sequence()
		return nil
	})
	if err != nil || limit <= 0 {
		return nil, err
	}
	return s.Log(ctx, last-min(last, uint64(limit)), limit)
}

// Backup implements inventory.Store: a copy that Open can open, made inside one
// read transaction.
func (s *Store) Backup(_ context.Context, w io.Writer) error {
	return s.view(func(tx *bbolt.Tx) error {
		_, err := tx.WriteTo(w)
		return err
	})
}

// Close implements inventory.Store. It waits for commits under way.
func (s *Store) Close() error {
	s.writers.Wait()
	return s.db.Close()
}

// recordsOf is the bucket of a kind of record; nil: none was written yet. A bucket
// is made with its first record, so that a file knows those which came after it.
func recordsOf(tx *bbolt.Tx, bucket inventory.Bucket) (*bbolt.Bucket, error) {
	b := tx.Bucket(bucketRecords).Bucket([]byte(bucket))
	if b == nil && !slices.Contains(inventory.Buckets(), bucket) {
		return nil, fmt.Errorf("bucket %q does not exist in this schema", bucket)
	}
	return b, nil
}

// lookup is a record as it is stored, nil if it does not exist.
func lookup(tx *bbolt.Tx, key inventory.Key) ([]byte, error) {
	b, err := recordsOf(tx, key.Bucket)
	if b == nil {
		return nil, err
	}
	return b.Get([]byte(key.ID)), nil
}

// A stored value is its revision, 8 bytes big-endian, and the record.
func record(key inventory.Key, raw []byte) inventory.Record {
	return inventory.Record{Key: key, Rev: revOf(raw), Value: append([]byte(nil), raw[8:]...)}
}

func revOf(raw []byte) uint64 {
	if len(raw) < 8 {
		return 0
	}
	return binary.BigEndian.Uint64(raw)
}

func number(b []byte) uint64 {
	if len(b) != 8 {
		return 0
	}
	return binary.BigEndian.Uint64(b)
}

// full names the one disk error that callers handle: the disk that is full.
// Any other failure of a commit may or may not have reached the disk.
func full(err error) error {
	if errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT) {
		return fmt.Errorf("the disk that holds the database is %w: %w (free some space; nothing was lost)", inventory.ErrFull, err)
	}
	var sys syscall.Errno
	if errors.As(err, &sys) {
		return fmt.Errorf("%w: %w", inventory.ErrAmbiguous, err)
	}
	return err
}
