// Package machinelog keeps the log of each machine: its kernel's lines and the
// events of Talos, in the order in which they were made and each once, however
// often they are sent. A log is two files of bounded size in one folder, MACHINE.log
// and, before it, MACHINE.log.1; no file is open but while it is read or written.
package machinelog

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/provisiond/provisiond/internal/inventory"
)

// ErrRemoved is for a line of a machine that was removed meanwhile, and
// ErrOutdated for one of a boot that should be over: either the boot that
// followed it was none, or two machines are taken for one. Lines that are sent
// again from the first are told apart anew.
var (
	ErrRemoved  = errors.New("the machine was removed")
	ErrOutdated = errors.New("another boot of the machine began meanwhile")
)

const (
	interval   = time.Second      // at which lines are written
	maxPending = 64 << 10         // bytes of one machine that wait for that,
	maxWaiting = 32 << 20         // and of all
	maxUnkept  = 1 << 20          // bytes of one machine that wait while the disk is full
	idle       = 10 * time.Minute // after which what is remembered of a machine is read again
)

// Options make a Store.
type Options struct {
	// MaxFile is the size in bytes at which a file is replaced; a machine has two.
	// 0: 1 MiB.
	MaxFile int64
}

// Store keeps logs. It is safe for concurrent use. Its memory is about 10 KB for
// each machine that was heard of in the last ten minutes.
type Store struct {
	dir     string
	max     int64
	waiting atomic.Int64 // bytes not written yet

	mu   sync.Mutex
	logs map[string]*log
}

// log is one machine's.
type log struct {
	machine string
	refs    int       // guarded by Store.mu
	used    time.Time // guarded by Store.mu

	mu      sync.Mutex
	loaded  bool
	gone    bool
	n       uint64 // of the last line
	size    int64  // of the file
	torn    bool   // the file ends within a line
	pending []byte
	lost    int
	kernel  kernel
	ids     []uint64 // hashes of the last events
	nextID  int      // the oldest of them
	wakes   map[chan struct{}]struct{}
}

// New returns a store of the files in a folder, which need not exist. It does no
// I/O.
func New(dir string, o Options) *Store {
	if o.MaxFile <= 0 {
		o.MaxFile = 1 << 20
	}
	return &Store{dir: dir, max: o.MaxFile, logs: map[string]*log{}}
}

// Append adds a line that is no kernel's, unless one of its ID was added before.
func (s *Store) Append(machine string, line Line) error {
	l, err := s.get(machine)
	if err != nil {
		return err
	}
	defer s.release(l)
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.gone {
		return ErrRemoved
	}
	if err := s.load(l); err != nil {
		return err
	}
	line.plain()
	if line.ID != "" {
		if slices.Contains(l.ids, sum(line.ID)) {
			return nil
		}
		l.remember(line.ID)
	}
	s.add(l, line)
	return nil
}

// Stream is the kernel log of one connection, whose lines come in the order of
// their seq. One goroutine uses it, and closes it.
type Stream struct {
	store *Store
	log   *log
	boot  uint64 // 0: not known yet
	any   bool
	last  uint64 // seq
	held  []Line // until it is known
	bytes int
}

// Stream begins a connection of a machine.
func (s *Store) Stream(machine string) (*Stream, error) {
	l, err := s.get(machine)
	if err != nil {
		return nil, err
	}
	return &Stream{store: s, log: l}, nil
}

// Close ends the stream.
func (t *Stream) Close() { t.store.release(t.log) }

// Append adds a kernel line, unless it was added before or is late and of the boot
// before the last one. With ErrRemoved and ErrOutdated nothing more will be added.
func (t *Stream) Append(line Line) error {
	l := t.log
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.gone {
		return ErrRemoved
	}
	if err := t.store.load(l); err != nil {
		return err
	}
	line.plain()
	if t.any && line.Seq <= t.last { // the sender begins anew
		t.boot, t.held, t.bytes = 0, nil, 0
	}
	t.any, t.last = true, line.Seq
	if t.boot == 0 {
		v := l.kernel.compare(&line)
		if v == unknown && len(t.held) < maxHeld && t.bytes < maxHold {
			t.held, t.bytes = append(t.held, line), t.bytes+len(line.Text)+64
			return nil
		}
		if v != same {
			l.kernel.begin(l.kernel.boot + 1)
			for _, h := range t.held {
				t.store.addKernel(l, h)
			}
		}
		t.boot, t.held, t.bytes = l.kernel.boot, nil, 0
	}
	if t.boot != l.kernel.boot && time.Since(l.kernel.began) > late {
		return ErrOutdated
	}
	if t.boot != l.kernel.boot || l.kernel.lines > 0 && (line.Seq <= l.kernel.last.seq || line.Seq-l.kernel.last.seq > maxLeap) {
		return nil
	}
	t.store.addKernel(l, line)
	return nil
}

func (s *Store) addKernel(l *log, line Line) {
	line.Kind, line.Boot = Kernel, l.kernel.boot
	l.kernel.add(&line)
	s.add(l, line)
}

// add puts a line into the buffer. The caller holds l.mu.
func (s *Store) add(l *log, line Line) {
	if len(l.pending) > maxUnkept {
		l.lost++
		return
	}
	l.n++
	line.N = l.n
	before := len(l.pending)
	l.pending = line.appendTo(l.pending)
	waiting := s.waiting.Add(int64(len(l.pending) - before))
	if len(l.pending) >= maxPending || waiting >= maxWaiting {
		_ = s.flush(l) // Run tries again, and says what is wrong
	}
	l.wake()
}

func (l *log) wake() {
	for c := range l.wakes {
		select {
		case c <- struct{}{}:
		default:
		}
	}
}

func (l *log) remember(id string) {
	if len(l.ids) < maxIDs {
		l.ids = append(l.ids, sum(id))
		return
	}
	l.ids[l.nextID] = sum(id)
	l.nextID = (l.nextID + 1) % maxIDs
}

// get returns the log of a machine; the caller releases it.
func (s *Store) get(machine string) (*log, error) {
	if err := inventory.CheckName("machine", machine); err != nil { // it becomes a file name
		return nil, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	l := s.logs[machine]
	if l == nil {
		l = &log{machine: machine, wakes: map[chan struct{}]struct{}{}}
		s.logs[machine] = l
	}
	l.refs++
	return l, nil
}

func (s *Store) release(l *log) {
	s.mu.Lock()
	defer s.mu.Unlock()
	l.refs--
	l.used = time.Now()
}

func (s *Store) file(machine string) string  { return filepath.Join(s.dir, machine+".log") }
func (s *Store) older(machine string) string { return filepath.Join(s.dir, machine+".log.1") }

// load reads what has to be known of the lines on disk. The caller holds l.mu.
func (s *Store) load(l *log) error {
	if l.loaded {
		return nil
	}
	l.kernel.begin(0)
	for _, path := range []string{s.older(l.machine), s.file(l.machine)} {
		f, err := os.Open(path)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		} else if err != nil {
			return fmt.Errorf("reading the log of %s: %w", l.machine, err)
		}
		err = l.read(f)
		_ = f.Close() // it was only read
		if err != nil {
			return fmt.Errorf("reading the log of %s: %w", l.machine, err)
		}
	}
	l.loaded = true
	return nil
}

func (l *log) read(r io.Reader) error {
	l.size, l.torn = 0, false
	in := bufio.NewReaderSize(r, 64<<10)
	for {
		text, err := in.ReadSlice('\n')
		l.size += int64(len(text))
		if len(text) > 0 {
			l.torn = text[len(text)-1] != '\n'
		}
		if err != nil && !errors.Is(err, bufio.ErrBufferFull) {
			if errors.Is(err, io.EOF) {
				return nil
			}
			return err
		}
		line, ok := parseLine(strings.TrimSuffix(string(text), "\n"))
		if !ok {
			continue // a crash tore it
		}
		l.n = max(l.n, line.N)
		if line.ID != "" {
			l.remember(line.ID)
		}
		if line.Kind == Kernel {
			if line.Boot != l.kernel.boot {
				l.kernel.begin(line.Boot)
			}
			l.kernel.add(&line)
		}
	}
}

// flush writes what waits. The caller holds l.mu.
func (s *Store) flush(l *log) error {
	if len(l.pending) == 0 {
		return nil
	}
	path := s.file(l.machine)
	if l.size > 0 && l.size+int64(len(l.pending)) > s.max {
		if err := os.Rename(path, s.older(l.machine)); err != nil {
			return err
		}
		l.size, l.torn = 0, false
	}
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_APPEND|os.O_CREATE, 0o600)
	if errors.Is(err, fs.ErrNotExist) {
		if err := os.MkdirAll(s.dir, 0o700); err != nil {
			return err
		}
		f, err = os.OpenFile(path, os.O_WRONLY|os.O_APPEND|os.O_CREATE, 0o600)
	}
	if err != nil {
		return err
	}
	data := l.pending
	if l.torn {
		data = append([]byte("\n"), data...)
	}
	_, err = f.Write(data)
	if closed := f.Close(); err == nil {
		err = closed
	}
	if err != nil {
		// Some of it may be there; lines that come twice are of one number.
		l.torn = true
		if info, statErr := os.Stat(path); statErr == nil {
			l.size = info.Size()
		}
		return err
	}
	l.size, l.torn = l.size+int64(len(data)), false
	s.waiting.Add(-int64(len(l.pending)))
	if l.pending = l.pending[:0]; cap(l.pending) > maxPending {
		l.pending = nil
	}
	return nil
}

// Tail returns the last n lines of a machine, oldest first.
func (s *Store) Tail(machine string, n int) ([]Line, error) {
	return s.newest(machine, func(list []Line, _ Line) bool { return len(list) < n })
}

// After returns the lines of a machine after a number, oldest first. A number
// that no line has yet is of another log of this name: then it is all lines.
func (s *Store) After(machine string, n uint64) ([]Line, error) {
	lines, err := s.newest(machine, func(list []Line, l Line) bool { return l.N > n || len(list) == 0 })
	switch {
	case err != nil || len(lines) == 0:
		return nil, err
	case lines[len(lines)-1].N < n:
		return s.newest(machine, func([]Line, Line) bool { return true })
	case lines[0].N <= n:
		return lines[1:], nil
	}
	return lines, nil
}

// newest collects lines from the newest one back, while it is wanted.
func (s *Store) newest(machine string, want func(have []Line, l Line) bool) (list []Line, err error) {
	l, err := s.get(machine)
	if err != nil {
		return nil, err
	}
	defer s.release(l)
	l.mu.Lock()
	defer l.mu.Unlock()
	more := true
	each := func(text []byte) bool {
		line, ok := parseLine(string(text))
		if !ok || len(list) > 0 && line.N >= list[len(list)-1].N {
			return true
		}
		if more = want(list, line); more {
			list = append(list, line)
		}
		return more
	}
	for rest := bytes.TrimSuffix(l.pending, []byte("\n")); more && len(rest) > 0; {
		i := bytes.LastIndexByte(rest, '\n')
		each(rest[i+1:])
		rest = rest[:max(i, 0)]
	}
	for _, path := range []string{s.file(machine), s.older(machine)} {
		if !more {
			break
		}
		if err := backwards(path, each); err != nil {
			return nil, fmt.Errorf("reading the log of %s: %w", machine, err)
		}
	}
	slices.Reverse(list)
	return list, nil
}

// backwards reads the lines of a file from its end until each returns false. A
// file that is not there has none.
func backwards(path string, each func([]byte) bool) error {
	f, err := os.Open(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	} else if err != nil {
		return err
	}
	defer f.Close() //nolint:errcheck // it was only read
	at, err := f.Seek(0, io.SeekEnd)
	if err != nil {
		return err
	}
	var rest []byte // the part of a line that is known
	for at > 0 {
		size := min(at, 32<<10)
		at -= size
		chunk := make([]byte, size, int(size)+len(rest))
		if _, err := f.ReadAt(chunk, at); err != nil {
			return err
		}
		rest = append(chunk, rest...)
		for {
			i := bytes.LastIndexByte(rest, '\n')
			if i < 0 {
				break
			}
			if !each(rest[i+1:]) {
				return nil
			}
			rest = rest[:i]
		}
	}
	each(rest)
	return nil
}

// Watch returns a channel that receives after lines of a machine were added, and
// its end. It is closed when the machine is removed.
func (s *Store) Watch(machine string) (<-chan struct{}, func(), error) {
	l, err := s.get(machine)
	if err != nil {
		return nil, nil, err
	}
	c := make(chan struct{}, 1)
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.gone {
		close(c)
	} else {
		l.wakes[c] = struct{}{}
	}
	return c, sync.OnceFunc(func() {
		l.mu.Lock()
		delete(l.wakes, c)
		l.mu.Unlock()
		s.release(l)
	}), nil
}

// Remove forgets a machine and deletes its files.
func (s *Store) Remove(machine string) error {
	if err := inventory.CheckName("machine", machine); err != nil {
		return err
	}
	s.mu.Lock() // so that nobody begins to read the files
	defer s.mu.Unlock()
	if l := s.logs[machine]; l != nil {
		delete(s.logs, machine)
		l.mu.Lock()
		defer l.mu.Unlock()
		s.waiting.Add(-int64(len(l.pending)))
		l.gone, l.pending = true, nil
		for c := range l.wakes {
			close(c)
		}
		clear(l.wakes)
	}
	var errs []error
	for _, path := range []string{s.file(machine), s.older(machine)} {
		if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

// Sweep removes what is there of machines that are not known, and returns their
// names.
func (s *Store) Sweep(known func(machine string) (bool, error)) (removed []string, err error) {
	entries, err := os.ReadDir(s.dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	} else if err != nil {
		return nil, err
	}
	for _, e := range entries {
		name, ok := strings.CutSuffix(strings.TrimSuffix(e.Name(), ".1"), ".log")
		if !ok || inventory.CheckName("machine", name) != nil || slices.Contains(removed, name) {
			continue
		}
		is, err := known(name)
		if err != nil {
			return removed, err
		}
		if is {
			continue
		}
		if err := s.Remove(name); err != nil {
			return removed, err
		}
		removed = append(removed, name)
	}
	return removed, nil
}

// Run writes lines to disk, a second after they came at the latest, until ctx
// ends. What fails is tried again; report is called when that begins. Close
// afterwards.
func (s *Store) Run(ctx context.Context, report func(error)) error {
	tick := time.NewTicker(interval)
	defer tick.Stop()
	failing := false
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
		err := s.flushAll()
		if err != nil && !failing {
			report(err)
		}
		failing = err != nil
		s.forget()
	}
}

// Close writes what is left.
func (s *Store) Close() error { return s.flushAll() }

func (s *Store) flushAll() error {
	s.mu.Lock()
	list := make([]*log, 0, len(s.logs))
	for _, l := range s.logs {
		l.refs++
		list = append(list, l)
	}
	s.mu.Unlock()
	var first error
	for _, l := range list {
		l.mu.Lock()
		err := s.flush(l)
		if l.lost > 0 && err == nil {
			err = fmt.Errorf("%d lines of %s were lost", l.lost, l.machine)
			l.lost = 0
		}
		if first == nil {
			first = err
		}
		l.mu.Unlock()
	}
	s.mu.Lock()
	for _, l := range list {
		l.refs-- // not a use
	}
	s.mu.Unlock()
	return first
}

// forget drops what is remembered of machines that say nothing; it is read from
// their files when they speak again.
func (s *Store) forget() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for name, l := range s.logs {
		if l.refs > 0 || time.Since(l.used) < idle {
			continue
		}
		l.mu.Lock() // nobody holds it: nobody has a reference
		if len(l.pending) == 0 {
			delete(s.logs, name)
		}
		l.mu.Unlock()
	}
}
