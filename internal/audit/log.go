package audit

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"iter"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
)

// current is the file that grows. When it is full it becomes audit-N.jsonl, where N
// is the number of its first line, and is never touched again.
const current = "audit.jsonl"

// Options tune a trail. The zero value is what a daemon wants.
type Options struct {
	// MaxSize is the size in bytes from which a file is closed and the next begun.
	// 0 means 16 MB, some 50,000 lines.
	MaxSize int64
	// Delay is how long a note may wait for the disk. 0 means half a second.
	Delay time.Duration
	// Warn is told what has no line of its own: that the disk does not take a note,
	// or what was found damaged. nil: nobody.
	Warn func(error)
	// NoSync skips fsync. For tests that pull no plug.
	NoSync bool
}

// Log is the trail in a folder. Entries that come at the same time share one write
// and one fsync. It is safe for concurrent use.
type Log struct {
	dir  string
	lock *os.File // of the folder: two writers would each chain to their own last line
	opts Options
	open func(path string) (file, error) // os.OpenFile, but for tests

	mu      sync.Mutex
	queue   []*pending
	lost    int // notes for which there was no room
	writing bool
	closed  bool
	failing atomic.Bool // the last write did not go well
	written atomic.Uint64
	missed  atomic.Uint64 // all of lost since Open
	timer   *time.Timer   // runs while notes wait
	writers sync.WaitGroup

	files sync.RWMutex // held to write, and to look which files there are
	file  file         // nil: to be opened again, after an error
	size  int64
	chain Chain
}

// file is what the trail does with an *os.File.
type file interface {
	io.Writer
	Sync() error
	Close() error
}

// pending is an entry on its way to the disk.
type pending struct {
	entry Entry
	empty bool          // it is none, and waits for those before it
	done  chan struct{} // nil for a note
	err   error
}

// maxQueue bounds the entries that wait for a disk.
const maxQueue = 8192

// ErrClosed: the trail is closed already.
var ErrClosed = errors.New("the audit trail is closed")

// Open opens or begins the trail in a folder. A line that a crash has torn is kept,
// and marked by the next one; anything else that is wrong with the newest file is
// told to Options.Warn and has a line too. It is an error if somebody else has it open.
func Open(dir string, opts Options) (*Log, error) {
	if opts.MaxSize == 0 {
		opts.MaxSize = 16 << 20
	}
	if opts.Delay == 0 {
		opts.Delay = time.Second / 2
	}
	if opts.Warn == nil {
		opts.Warn = func(error) {}
	}
	l := &Log{dir: dir, opts: opts, open: func(path string) (file, error) {
		return os.OpenFile(path, os.O_WRONLY|os.O_APPEND|os.O_CREATE, 0o600)
	}}
	var err error
	if l.lock, err = lockDir(dir); err != nil {
		return nil, fmt.Errorf("audit trail: %w", err)
	}
	l.files.Lock()
	defer l.files.Unlock()
	if err := l.reopen(); err != nil {
		_ = l.lock.Close() // the first error says more
		return nil, fmt.Errorf("audit trail: %w", err)
	}
	return l, nil
}

// lockDir is held until the file is closed, or its process ends.
func lockDir(dir string) (*os.File, error) {
	d, err := os.Open(dir)
	if err != nil {
		return nil, err
	}
	if err := syscall.Flock(int(d.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		_ = d.Close() // the first error says more
		if errors.Is(err, syscall.EWOULDBLOCK) {
			err = errors.New("it is in use: stop provisiond first")
		}
		return nil, fmt.Errorf("%s: %w", dir, err)
	}
	return d, nil
}

// Append writes an entry and returns when it is on disk. Once it was called the entry
// is tried, whatever becomes of ctx. With an error it may be there or not.
func (l *Log) Append(ctx context.Context, e Entry) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	p := &pending{entry: e, done: make(chan struct{})}
	l.mu.Lock()
	if l.closed {
		l.mu.Unlock()
		return ErrClosed
	}
	l.enqueue(p)
	l.mu.Unlock()
	<-p.done
	return p.err
}

// Ready returns nil if the last write went well. After one that did not, it tries
// again, with a line that says so: what must not be done unseen asks before.
func (l *Log) Ready(ctx context.Context) error {
	if !l.failing.Load() {
		return nil
	}
	return l.Append(ctx, Entry{Action: actionResumed, Outcome: OK, Reason: "lines may be missing before this one: the trail could not be written"})
}

// Note writes an entry within a second, and keeps nobody waiting for it. When the disk
// takes nothing for so long that there is no room left, a line will say how many are lost.
func (l *Log) Note(e Entry) {
	if e.Time.IsZero() {
		e.Time = time.Now()
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	switch {
	case l.closed:
		l.opts.Warn(fmt.Errorf("%s of %s came after the end: %w", e.Action, e.Who, ErrClosed))
	case len(l.queue) >= maxQueue:
		l.lost++
		l.missed.Add(1)
	default:
		l.queue = append(l.queue, &pending{entry: e})
		if l.timer == nil && !l.writing {
			l.timer = time.AfterFunc(l.opts.Delay, l.kick)
		}
	}
}

// enqueue has an entry written at once, with all that wait before it. l.mu is held.
func (l *Log) enqueue(p *pending) {
	l.queue = append(l.queue, p)
	l.start()
}

func (l *Log) kick() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.timer = nil
	l.start()
}

// start has somebody write what is queued. l.mu is held.
func (l *Log) start() {
	if !l.writing {
		l.writing = true
		l.writers.Go(l.drain)
	}
}

// drain writes what is queued, batch after batch, until nothing is left.
func (l *Log) drain() {
	for {
		runtime.Gosched() // who is about to append comes along
		l.mu.Lock()
		batch, lost := l.queue, l.lost
		l.queue, l.lost = nil, 0
		if len(batch) == 0 {
			l.writing = false
			l.mu.Unlock()
			return
		}
		l.mu.Unlock()
		if lost > 0 {
			batch = append(batch, &pending{entry: Entry{Action: actionLost, Outcome: Failed, Reason: fmt.Sprintf("%d entries could not be written", lost)}})
		}
		err := l.write(batch)
		if was := l.failing.Swap(err != nil); err != nil && !was {
			l.opts.Warn(err) // once, until it goes well again
		}
		if err != nil && l.keepNotes(batch) {
			return
		}
		for _, p := range batch {
			if p.done != nil {
				p.err = err
				close(p.done)
			}
		}
	}
}

// keepNotes keeps those of a batch that was not written for later, and reports whether
// that is all there is to do for now.
func (l *Log) keepNotes(batch []*pending) (rest bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	var notes []*pending
	for _, p := range batch {
		if p.done == nil {
			notes = append(notes, p)
		}
	}
	if l.closed {
		return false
	}
	waits := slices.ContainsFunc(l.queue, func(p *pending) bool { return p.done != nil })
	l.queue = append(notes, l.queue...)
	if waits || len(notes) < len(batch) {
		return false
	}
	l.writing = false
	if l.timer == nil {
		l.timer = time.AfterFunc(l.opts.Delay, l.kick)
	}
	return true
}

// write adds a batch to the file. An error leaves the file to be opened again: only
// reading it tells what has become of the batch.
func (l *Log) write(batch []*pending) error {
	l.files.Lock()
	defer l.files.Unlock()
	if l.file == nil {
		if err := l.reopen(); err != nil {
			return err
		}
	}
	if l.size >= l.opts.MaxSize {
		if err := l.rotate(); err != nil {
			return err
		}
	}
	var entries []*Entry
	for _, p := range batch {
		if !p.empty {
			entries = append(entries, &p.entry)
		}
	}
	if len(entries) == 0 {
		return nil
	}
	return l.add(entries...)
}

// add writes and syncs entries. l.files is held.
func (l *Log) add(entries ...*Entry) error {
	var buf []byte
	next := l.chain
	for _, e := range entries {
		if e.Time.IsZero() {
			e.Time = time.Now()
		}
		e.Seq, e.Prev = next.Last+1, next.Head
		line, err := e.line()
		if err != nil {
			return err
		}
		next.Last, next.Head = e.Seq, hash(line)
		buf = append(append(buf, line...), '\n')
	}
	if err := l.put(buf, next); err != nil {
		return err
	}
	l.written.Add(uint64(len(entries)))
	return nil
}

// put writes and syncs bytes, after which the chain stands at next.
func (l *Log) put(buf []byte, next Chain) error {
	_, err := l.file.Write(buf)
	if err == nil && !l.opts.NoSync {
		err = l.file.Sync()
	}
	if err != nil {
		_ = l.file.Close() // the first error says more
		l.file = nil
		return fmt.Errorf("writing the audit trail: %w", err)
	}
	l.size += int64(len(buf))
	l.chain = next
	return nil
}

// Counts returns how many lines were written since Open, how many notes are lost
// because the disk took nothing for too long, and whether the last write failed.
func (l *Log) Counts() (written, lost uint64, failing bool) {
	return l.written.Load(), l.missed.Load(), l.failing.Load()
}

// reopen opens the file that grows, reads how far the trail has got, and brings into
// order what a crash or an error has left. l.files is held.
func (l *Log) reopen() error {
	path := filepath.Join(l.dir, current)
	names, err := l.list()
	if err != nil {
		return err
	}
	var newest extent
	if len(names) > 0 && names[len(names)-1] == current {
		if newest, err = measure(path); err != nil {
			return err
		}
		names = names[:len(names)-1]
	}
	l.size, l.chain = newest.size, newest.chain
	if l.chain.Last == 0 && len(names) > 0 { // just begun: it goes on from the one before
		before, err := measure(filepath.Join(l.dir, names[len(names)-1]))
		if err != nil {
			return err
		}
		l.chain.Last, l.chain.Head = before.chain.Last, before.chain.Head
	}
	if l.file, err = l.open(path); err != nil {
		return err
	}
	if !l.opts.NoSync {
		if err := syncDir(l.dir); err != nil {
			return err
		}
	}
	return l.mend(newest.tail, newest.damage)
}

// extent is how far a file has got.
type extent struct {
	size   int64
	chain  Chain
	tail   []byte  // a last line without its newline
	damage []error // what else is wrong with it
}

func measure(path string) (x extent, err error) {
	err = eachLine(path, func(line []byte, whole bool) bool {
		x.size += int64(len(line))
		if !whole {
			x.tail = line
			return true
		}
		x.size++
		if _, err := x.chain.Next(line); err != nil {
			x.damage = append(x.damage, err)
		}
		return true
	})
	return x, err
}

// mend ends a line that was cut off and marks it, and has a line for what is damaged.
func (l *Log) mend(tail []byte, damage []error) error {
	if len(tail) > 0 {
		next := l.chain
		if _, err := next.Next(tail); err != nil { // whole, but for its newline, or junk
			damage = append(damage, err)
		}
		if err := l.put([]byte{'\n'}, next); err != nil {
			return err
		}
	}
	var marks []*Entry
	for _, junk := range l.chain.junk {
		marks = append(marks, &Entry{Action: actionTorn, Outcome: Failed, Target: torn + junk, Reason: "a line was torn: the disk was full, or provisiond or its host went down"})
	}
	l.chain.junk = nil
	if len(damage) > 0 {
		err := errors.Join(damage...)
		l.opts.Warn(fmt.Errorf("the audit trail is damaged: %w", err))
		marks = append(marks, &Entry{Action: actionDamaged, Outcome: Failed, Reason: err.Error()})
	}
	if len(marks) == 0 {
		return nil
	}
	return l.add(marks...)
}

// rotate gives the full file its final name and begins the next. A crash in between
// leaves no file that grows, which reopen makes.
func (l *Log) rotate() error {
	path := filepath.Join(l.dir, current)
	first, err := firstSeq(path)
	if err != nil {
		return err
	}
	full := filepath.Join(l.dir, fmt.Sprintf("audit-%d.jsonl", first))
	if _, err := os.Lstat(full); err == nil {
		l.size = 0
		l.opts.Warn(fmt.Errorf("the audit trail stays in %s: %s is there already", path, full))
		return nil
	}
	if err := l.file.Close(); err != nil {
		l.file = nil
		return err
	}
	l.file = nil
	if err := os.Rename(path, full); err != nil {
		return err
	}
	return l.reopen()
}

// Head returns the number and the hash of the last line that is on disk. Whoever keeps
// them elsewhere can tell later that the end was not cut off.
func (l *Log) Head() (seq uint64, hash string) {
	l.files.RLock()
	defer l.files.RUnlock()
	return l.chain.Last, l.chain.Head
}

// Close writes what waits, and closes the trail.
func (l *Log) Close() error {
	l.mu.Lock()
	if l.closed {
		l.mu.Unlock()
		return nil
	}
	l.closed = true
	if l.timer != nil {
		l.timer.Stop()
	}
	l.start()
	l.mu.Unlock()
	l.writers.Wait()
	l.files.Lock()
	defer l.files.Unlock()
	err := l.lock.Close()
	if l.file != nil {
		err = errors.Join(err, l.file.Close())
		l.file = nil
	}
	return err
}

// flush has written what waits, if the disk takes it.
func (l *Log) flush() {
	p := &pending{empty: true, done: make(chan struct{})}
	l.mu.Lock()
	if l.closed || len(l.queue) == 0 && !l.writing {
		l.mu.Unlock()
		return
	}
	l.enqueue(p)
	l.mu.Unlock()
	<-p.done
}

// Read calls f with each line after a number, oldest first, until it returns false.
// What is no line is left out; notes made before are in it.
func (l *Log) Read(ctx context.Context, after uint64, f func(line []byte, e Entry) (more bool)) error {
	forward := func(r *os.File, f func([]byte, bool) bool) error { return lines(r, f) }
	return l.read(ctx, after, slices.Values[[]*os.File], forward, func(seq uint64) bool { return seq > after }, f)
}

// ReadBack calls f with each line before a number, newest first, until it returns false; 0:
// from the newest on. What is no line is left out; notes made before are in it.
func (l *Log) ReadBack(ctx context.Context, before uint64, f func(line []byte, e Entry) (more bool)) error {
	older := func(files []*os.File) iter.Seq[*os.File] {
		return func(yield func(*os.File) bool) {
			for _, r := range slices.Backward(files) {
				if first, full := firstOf(filepath.Base(r.Name())); full && before != 0 && first >= before {
					continue
				}
				if !yield(r) {
					return
				}
			}
		}
	}
	return l.read(ctx, 0, older, linesBack, func(seq uint64) bool { return before == 0 || seq < before }, f)
}

// read goes over the files that have lines after a number, in an order, and hands on the lines
// that are wanted, as scan finds them in a file.
func (l *Log) read(ctx context.Context, after uint64, order func([]*os.File) iter.Seq[*os.File],
	scan func(*os.File, func(line []byte, whole bool) bool) error, wanted func(seq uint64) bool, f func([]byte, Entry) bool,
) error {
	l.flush()
	readers, err := l.readers(after)
	defer func() {
		for _, r := range readers {
			_ = r.Close() // it was only read
		}
	}()
	if err != nil {
		return err
	}
	for r := range order(readers) {
		more := true
		err := scan(r, func(line []byte, whole bool) bool {
			if !whole || !wanted(seqOf(line)) {
				return true
			}
			if e, err := parse(line); err == nil {
				more = ctx.Err() == nil && f(line, e)
			}
			return more
		})
		if err != nil {
			return err
		}
		if !more {
			return ctx.Err()
		}
	}
	return nil
}

// readers opens the files that may have lines after a number. They are opened at one
// instant, so that none is renamed from under us.
func (l *Log) readers(after uint64) (open []*os.File, err error) {
	l.files.RLock()
	defer l.files.RUnlock()
	names, err := l.list()
	if err != nil {
		return nil, err
	}
	for i, name := range names {
		if i+1 < len(names) {
			if next, ok := firstOf(names[i+1]); ok && next <= after+1 {
				continue
			}
		}
		f, err := os.Open(filepath.Join(l.dir, name))
		if errors.Is(err, fs.ErrNotExist) { // its operator deleted it
			continue
		}
		if err != nil {
			return open, err
		}
		open = append(open, f)
	}
	return open, nil
}

// list returns the names of the files, oldest first.
func (l *Log) list() ([]string, error) { return Files(l.dir) }

// Files returns the names of a folder's trail, oldest first.
func Files(dir string) ([]string, error) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, err
	}
	var names []string
	grows := false
	for _, e := range entries {
		if _, ok := firstOf(e.Name()); ok {
			names = append(names, e.Name())
		}
		grows = grows || e.Name() == current
	}
	slices.SortFunc(names, func(a, b string) int {
		x, _ := firstOf(a)
		y, _ := firstOf(b)
		if x < y {
			return -1
		}
		return 1
	})
	if grows {
		names = append(names, current)
	}
	return names, nil
}

// firstOf is the number in the name of a file that is full.
func firstOf(name string) (uint64, bool) {
	digits, ok := strings.CutPrefix(name, "audit-")
	digits, ok2 := strings.CutSuffix(digits, ".jsonl")
	n, err := strconv.ParseUint(digits, 10, 64)
	return n, ok && ok2 && err == nil
}

// firstSeq is the number of the first line of a file.
func firstSeq(path string) (first uint64, err error) {
	err = eachLine(path, func(line []byte, _ bool) bool {
		first = seqOf(line)
		return first == 0
	})
	if err == nil && first == 0 {
		err = fmt.Errorf("%s has no line", path)
	}
	return first, err
}

func eachLine(path string, f func(line []byte, whole bool) (more bool)) error {
	r, err := os.Open(path)
	if err != nil {
		return err
	}
	defer func() { _ = r.Close() }() // it was only read
	return lines(r, f)
}

// lines calls f with each line, without its newline; whole is false for the last if it
// has none.
func lines(r io.Reader, f func(line []byte, whole bool) (more bool)) error {
	in := bufio.NewReaderSize(r, 64<<10)
	for {
		line, err := in.ReadBytes('\n')
		if errors.Is(err, io.EOF) {
			if len(line) > 0 {
				f(line, false)
			}
			return nil
		}
		if err != nil {
			return err
		}
		if !f(line[:len(line)-1], true) {
			return nil
		}
	}
}

// linesBack is lines from the last to the first.
func linesBack(r *os.File, f func(line []byte, whole bool) (more bool)) error {
	info, err := r.Stat()
	if err != nil {
		return err
	}
	var rest []byte // of the line that begins before pos
	whole := false  // what follows the last newline is none
	for pos := info.Size(); pos > 0; {
		n := min(pos, 64<<10)
		pos -= n
		block := make([]byte, n, int(n)+len(rest))
		if _, err := r.ReadAt(block, pos); err != nil {
			return err
		}
		rest = append(block, rest...)
		for i := bytes.LastIndexByte(rest, '\n'); i >= 0; i = bytes.LastIndexByte(rest, '\n') {
			if line := rest[i+1:]; (whole || len(line) > 0) && !f(line, whole) {
				return nil
			}
			rest, whole = rest[:i], true
		}
	}
	if len(rest) > 0 {
		f(rest, whole)
	}
	return nil
}

func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}
