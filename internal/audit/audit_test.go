package audit

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"
)

func open(t testing.TB, dir string, opts Options) *Log {
	t.Helper()
	l, err := Open(dir, opts)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	return l
}

func appendAll(t testing.TB, l *Log, actions ...string) {
	t.Helper()
	for _, a := range actions {
		if err := l.Append(t.Context(), Entry{Who: "alice", Action: a, Outcome: OK}); err != nil {
			t.Fatal(err)
		}
	}
}

// read returns the actions after a line.
func read(t testing.TB, l *Log, after uint64) (actions []string) {
	t.Helper()
	err := l.Read(t.Context(), after, func(_ []byte, e Entry) bool {
		actions = append(actions, e.Action)
		return true
	})
	if err != nil {
		t.Fatal(err)
	}
	return actions
}

// verify checks the files of a folder as an operator would.
func verify(t testing.TB, dir string) (c Chain, problems []error) {
	t.Helper()
	names, err := Files(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range names {
		err := eachLine(filepath.Join(dir, name), func(line []byte, _ bool) bool {
			if _, err := c.Next(line); err != nil {
				problems = append(problems, err)
			}
			return true
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	if err := c.End(); err != nil {
		problems = append(problems, err)
	}
	return c, problems
}

func sound(t testing.TB, dir string, lines uint64) {
	t.Helper()
	if c, problems := verify(t, dir); len(problems) > 0 || c.First != 1 || c.Last != lines {
		t.Fatalf("lines %d to %d, want %d: %v", c.First, c.Last, lines, problems)
	}
}

func TestAppendReadReopen(t *testing.T) {
	dir := t.TempDir()
	l := open(t, dir, Options{Delay: time.Hour})
	appendAll(t, l, "a", "b")
	l.Note(Entry{Action: "c", Outcome: Refused})
	if got := read(t, l, 2); !slices.Equal(got, []string{"c"}) {
		t.Errorf("a note that waits is not read: %v", got)
	}
	l.Note(Entry{Action: "d", Outcome: Refused})
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	if err := l.Append(t.Context(), Entry{Action: "late"}); !errors.Is(err, ErrClosed) {
		t.Errorf("after the end: %v", err)
	}
	l = open(t, dir, Options{})
	appendAll(t, l, "e")
	if got := read(t, l, 0); !slices.Equal(got, []string{"a", "b", "c", "d", "e"}) {
		t.Errorf("%v", got)
	}
	if got := read(t, l, 2); !slices.Equal(got, []string{"c", "d", "e"}) {
		t.Errorf("after 2: %v", got)
	}
	sound(t, dir, 5)
	if seq, head := l.Head(); seq != 5 || len(head) != 64 {
		t.Errorf("head %d %s", seq, head)
	}
	info, err := os.Stat(filepath.Join(dir, current))
	if err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("mode %v, %v", info.Mode(), err)
	}
}

// counted is a file that counts its syncs and fails as told.
type counted struct {
	*os.File
	syncs *atomic.Int64
	fail  *atomic.Int64 // bytes after which a write breaks off; -1: never
}

func (c counted) Sync() error {
	c.syncs.Add(1)
	return c.File.Sync()
}

func (c counted) Write(p []byte) (int, error) {
	room := c.fail.Load()
	if room < 0 {
		return c.File.Write(p)
	}
	n, err := c.File.Write(p[:min(int64(len(p)), room)])
	return n, errors.Join(err, syscall.ENOSPC)
}

// onDisk makes a trail whose files are counted.
func onDisk(t testing.TB, dir string, opts Options) (l *Log, syncs, fail *atomic.Int64) {
	syncs, fail = &atomic.Int64{}, &atomic.Int64{}
	fail.Store(-1)
	l = open(t, dir, opts)
	l.open = func(path string) (file, error) {
		f, err := os.OpenFile(path, os.O_WRONLY|os.O_APPEND|os.O_CREATE, 0o600)
		return counted{f, syncs, fail}, err
	}
	_ = l.file.Close() // nothing was written
	l.file = nil
	return l, syncs, fail
}

// TestManyShareOneSync: whoever comes while the disk is busy is written together.
func TestManyShareOneSync(t *testing.T) {
	dir := t.TempDir()
	l, syncs, _ := onDisk(t, dir, Options{MaxSize: 4 << 10})
	const writers = 400
	var waiting []*pending
	l.mu.Lock() // the disk was busy while they came
	for i := range writers {
		p := &pending{entry: Entry{Action: fmt.Sprint(i), Outcome: OK}, done: make(chan struct{})}
		waiting = append(waiting, p)
		l.enqueue(p)
	}
	l.mu.Unlock()
	for _, p := range waiting {
		if <-p.done; p.err != nil {
			t.Fatal(p.err)
		}
	}
	if n := syncs.Load(); n != 1 {
		t.Errorf("%d syncs for %d writers", n, writers)
	}
	sound(t, dir, writers)
	if got := read(t, l, 0); len(got) != writers {
		t.Errorf("%d lines", len(got))
	}
}

// TestAtOnce has many write, read and look at the head at the same time.
func TestAtOnce(t *testing.T) {
	dir := t.TempDir()
	l := open(t, dir, Options{MaxSize: 4 << 10, NoSync: true})
	const writers, each = 8, 50
	var all sync.WaitGroup
	for range writers {
		all.Go(func() {
			for range each {
				if err := l.Append(context.Background(), Entry{Action: "a", Outcome: OK}); err != nil {
					t.Error(err)
				}
				l.Note(Entry{Action: "n", Outcome: Refused})
				if err := l.Read(context.Background(), 0, func(_ []byte, e Entry) bool { return e.Seq < 10 }); err != nil {
					t.Error(err)
				}
				l.Head()
			}
		})
	}
	all.Wait()
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	sound(t, dir, 2*writers*each)
}

func TestRotation(t *testing.T) {
	dir := t.TempDir()
	l := open(t, dir, Options{MaxSize: 1000, NoSync: true})
	for i := range 100 {
		appendAll(t, l, fmt.Sprint(i))
		if i%7 == 0 { // also right after a rotation
			if err := l.Close(); err != nil {
				t.Fatal(err)
			}
			l = open(t, dir, Options{MaxSize: 1000, NoSync: true})
		}
	}
	sound(t, dir, 100)
	names, err := Files(dir)
	if err != nil || len(names) < 10 || names[0] != "audit-1.jsonl" || names[len(names)-1] != current {
		t.Fatalf("%v, %v", names, err)
	}
	for after := range uint64(100) {
		if got := read(t, l, after); len(got) != 100-int(after) || got[0] != fmt.Sprint(after) {
			t.Fatalf("after %d: %d lines", after, len(got))
		}
	}
	for _, before := range []uint64{0, 1, 2, 50, 100, 101, 500} {
		var got []string
		err := l.ReadBack(t.Context(), before, func(_ []byte, e Entry) bool {
			got = append(got, e.Action)
			return e.Seq != 7
		})
		var want []string
		for i := 99; i >= 0; i-- {
			if before == 0 || uint64(i+1) < before {
				want = append(want, fmt.Sprint(i))
			}
			if i == 6 && len(want) > 0 {
				break
			}
		}
		if err != nil || !slices.Equal(got, want) {
			t.Errorf("back from %d: %v, %v", before, got, err)
		}
	}
	// A crash between the two steps of a rotation leaves no file that grows.
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	first, err := firstSeq(filepath.Join(dir, current))
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(filepath.Join(dir, current), filepath.Join(dir, fmt.Sprintf("audit-%d.jsonl", first))); err != nil {
		t.Fatal(err)
	}
	l = open(t, dir, Options{NoSync: true})
	appendAll(t, l, "after the crash")
	sound(t, dir, 101)
	// Operators delete old files: what is left is a chain.
	if err := os.Remove(filepath.Join(dir, names[0])); err != nil {
		t.Fatal(err)
	}
	if c, problems := verify(t, dir); len(problems) > 0 || c.First <= 1 || c.Last != 101 {
		t.Errorf("%+v %v", c, problems)
	}
}

// TestTorn cuts the file at every byte of its last line, as a crash would.
func TestTorn(t *testing.T) {
	dir := t.TempDir()
	l := open(t, dir, Options{NoSync: true})
	appendAll(t, l, "a", "b", "c")
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	whole, err := os.ReadFile(filepath.Join(dir, current))
	if err != nil {
		t.Fatal(err)
	}
	lastLine := bytes.LastIndexByte(whole[:len(whole)-1], '\n') + 1
	for cut := lastLine; cut <= len(whole); cut++ {
		dir := t.TempDir()
		path := filepath.Join(dir, current)
		if err := os.WriteFile(path, whole[:cut], 0o600); err != nil {
			t.Fatal(err)
		}
		_, before := verify(t, dir)
		l := open(t, dir, Options{NoSync: true})
		appendAll(t, l, "d")
		got := read(t, l, 0)
		var back []string
		if err := l.ReadBack(t.Context(), 0, func(_ []byte, e Entry) bool { back = append(back, e.Action); return true }); err != nil {
			t.Fatal(err)
		}
		if slices.Reverse(back); !slices.Equal(back, got) {
			t.Errorf("cut at %d: forwards %v, backwards %v", cut, got, back)
		}
		want := []string{"a", "b", actionTorn, "d"}
		switch {
		case cut == lastLine:
			want = []string{"a", "b", "d"}
		case cut >= len(whole)-1: // but for its newline, if at all
			want = []string{"a", "b", "c", "d"}
		case len(before) == 0:
			t.Errorf("cut at %d: a torn line passes unmarked", cut)
		}
		if !slices.Equal(got, want) {
			t.Errorf("cut at %d: %v", cut, got)
		}
		sound(t, dir, uint64(len(want)))
		kept, err := os.ReadFile(path)
		if err != nil || !bytes.HasPrefix(kept, whole[:cut]) {
			t.Errorf("cut at %d: what was there was changed (%v)", cut, err)
		}
	}
}

// TestReadBackLongLines: a line may be longer than what is read at once.
func TestReadBackLongLines(t *testing.T) {
	path := filepath.Join(t.TempDir(), "lines")
	want := []string{strings.Repeat("a", 200_000), "", "b", strings.Repeat("c", 64<<10-1), strings.Repeat("d", 64<<10), "e"}
	if err := os.WriteFile(path, []byte(strings.Join(want, "\n")), 0o600); err != nil {
		t.Fatal(err)
	}
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = f.Close() }()
	var got []string
	err = linesBack(f, func(line []byte, whole bool) bool {
		if whole == (len(got) == 0) {
			t.Errorf("line %d from the end: whole %v", len(got), whole)
		}
		got = append(got, string(line))
		return true
	})
	if slices.Reverse(got); err != nil || !slices.Equal(got, want) {
		t.Errorf("%d lines, %v", len(got), err)
	}
}

// TestTampering: no line can be changed, taken out, put in or moved unseen.
func TestTampering(t *testing.T) {
	dir := t.TempDir()
	l := open(t, dir, Options{NoSync: true})
	appendAll(t, l, "a", "b", "c", "d", "e", "f")
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(dir, current)
	whole, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	lines := strings.SplitAfter(strings.TrimSuffix(string(whole), "\n"), "\n")
	for name, altered := range map[string][]string{
		"changed":       slices.Replace(slices.Clone(lines), 2, 3, strings.Replace(lines[2], "alice", "mallory", 1)),
		"a space":       slices.Replace(slices.Clone(lines), 2, 3, strings.Replace(lines[2], ",", ", ", 1)),
		"taken out":     slices.Delete(slices.Clone(lines), 2, 3),
		"put in twice":  slices.Insert(slices.Clone(lines), 2, lines[2]),
		"swapped":       {lines[0], lines[2], lines[1], lines[3], lines[4], lines[5]},
		"made to junk":  slices.Replace(slices.Clone(lines), 2, 3, "junk\n"),
		"made to none":  slices.Replace(slices.Clone(lines), 2, 3, "\n"),
		"first changed": slices.Replace(slices.Clone(lines), 0, 1, strings.Replace(lines[0], `"prev":""`, `"prev":"00"`, 1)),
	} {
		if err := os.WriteFile(path, []byte(strings.Join(altered, "")), 0o600); err != nil {
			t.Fatal(err)
		}
		if _, problems := verify(t, dir); len(problems) == 0 {
			t.Errorf("%s: nobody notices", name)
		}
		var warned []error
		l := open(t, dir, Options{NoSync: true, Warn: func(err error) { warned = append(warned, err) }})
		appendAll(t, l, "g")
		if got := read(t, l, 0); len(warned) == 0 || !slices.Contains(got, actionDamaged) || got[len(got)-1] != "g" {
			t.Errorf("%s: opened with warnings %v: %v", name, warned, got)
		}
		if err := l.Close(); err != nil {
			t.Fatal(err)
		}
	}
	// The end that is cut off shows to who has kept the head.
	if err := os.WriteFile(path, []byte(strings.Join(lines[:4], "")), 0o600); err != nil {
		t.Fatal(err)
	}
	if c, problems := verify(t, dir); len(problems) > 0 || c.Last != 4 {
		t.Errorf("%+v %v", c, problems)
	}
}

// TestFullDisk breaks writes off half way: those who wait are told, notes are kept, and
// once there is room the trail goes on from what is really there.
func TestFullDisk(t *testing.T) {
	dir := t.TempDir()
	var warnings atomic.Int64
	l, _, fail := onDisk(t, dir, Options{Delay: time.Hour, Warn: func(error) { warnings.Add(1) }})
	appendAll(t, l, "a")
	fail.Store(40)
	l.Note(Entry{Action: "note", Outcome: Refused})
	for range 2 {
		if err := l.Append(t.Context(), Entry{Action: "b", Outcome: OK}); !errors.Is(err, syscall.ENOSPC) {
			t.Fatalf("on a full disk: %v", err)
		}
	}
	if err := l.Ready(t.Context()); !errors.Is(err, syscall.ENOSPC) {
		t.Errorf("ready on a full disk: %v", err)
	}
	fail.Store(-1)
	for range 2 {
		if err := l.Ready(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	appendAll(t, l, "c")
	got := read(t, l, 0)
	if warnings.Load() == 0 || got[0] != "a" || !slices.Contains(got, "note") || got[len(got)-1] != "c" || !slices.Contains(got, actionTorn) || got[len(got)-2] != actionResumed || slices.Index(got, actionResumed) != len(got)-2 {
		t.Errorf("%v", got)
	}
	sound(t, dir, uint64(len(got)))
}

// TestTooManyNotes: a disk that takes nothing costs bounded memory, and the loss shows.
func TestTooManyNotes(t *testing.T) {
	dir := t.TempDir()
	l := open(t, dir, Options{Delay: time.Hour})
	for range maxQueue + 7 {
		l.Note(Entry{Action: "n", Outcome: Refused})
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	var last Entry
	count := 0
	if err := l.Read(t.Context(), 0, func(_ []byte, e Entry) bool { last = e; count++; return true }); err != nil {
		t.Fatal(err)
	}
	if count != maxQueue+1 || last.Action != actionLost || !strings.HasPrefix(last.Reason, "7 entries") {
		t.Errorf("%d lines, the last %+v", count, last)
	}
	if written, lost, failing := l.Counts(); written != uint64(count) || lost != 7 || failing {
		t.Errorf("counted %d written, %d lost, %v", written, lost, failing)
	}
	sound(t, dir, uint64(count))
}

func TestWhatStrangersSend(t *testing.T) {
	dir := t.TempDir()
	l := open(t, dir, Options{})
	hostile := "a\n{\"seq\":9}\n\x00\xff<script>\u2028" + strings.Repeat("x", 1<<20)
	if err := l.Append(t.Context(), Entry{Who: hostile, Action: "login", Target: hostile, Outcome: Refused, Reason: hostile}); err != nil {
		t.Fatal(err)
	}
	sound(t, dir, 1)
	err := l.Read(t.Context(), 0, func(line []byte, e Entry) bool {
		if len(line) > 4<<10 || !strings.HasPrefix(e.Reason, "a\n{") {
			t.Errorf("%d bytes", len(line))
		}
		// Programs pass lines on as JSON, which must not change them.
		again, err := json.Marshal([]json.RawMessage{line})
		if err != nil || !bytes.Equal(again[1:len(again)-1], line) {
			t.Errorf("%s\nbecame %s (%v)", line, again, err)
		}
		return true
	})
	if err != nil {
		t.Fatal(err)
	}
}

// TestOneWriter: a second would chain to its own last line.
func TestOneWriter(t *testing.T) {
	dir := t.TempDir()
	l := open(t, dir, Options{})
	if _, err := Open(dir, Options{}); err == nil || !strings.Contains(err.Error(), "in use") {
		t.Errorf("a second: %v", err)
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	open(t, dir, Options{})
	if _, err := Open(filepath.Join(dir, "none"), Options{}); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("no folder: %v", err)
	}
}

func TestCancelled(t *testing.T) {
	l := open(t, t.TempDir(), Options{})
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := l.Append(ctx, Entry{Action: "a"}); !errors.Is(err, context.Canceled) {
		t.Errorf("Append: %v", err)
	}
	appendAll(t, l, "b")
	if err := l.Read(ctx, 0, func([]byte, Entry) bool { return true }); !errors.Is(err, context.Canceled) {
		t.Errorf("Read: %v", err)
	}
}

// FuzzOpen: whatever the file holds, it opens, goes on, keeps what was there, and what it
// adds is a sound chain.
func FuzzOpen(f *testing.F) {
	dir := f.TempDir()
	l := open(f, dir, Options{})
	appendAll(f, l, "a", "b", "c")
	if err := l.Close(); err != nil {
		f.Fatal(err)
	}
	whole, err := os.ReadFile(filepath.Join(dir, current))
	if err != nil {
		f.Fatal(err)
	}
	f.Add(whole)
	f.Add(whole[:len(whole)-1])
	f.Add(whole[:len(whole)/2])
	f.Add(append(bytes.Clone(whole), make([]byte, 4096)...))
	f.Add([]byte("\n\n"))
	f.Add([]byte(`{"seq":18446744073709551615,"action":"x"}`))
	f.Fuzz(func(t *testing.T, content []byte) {
		dir := t.TempDir()
		path := filepath.Join(dir, current)
		if err := os.WriteFile(path, content, 0o600); err != nil {
			t.Fatal(err)
		}
		_, before := verify(t, dir)
		l := open(t, dir, Options{NoSync: true})
		start, _ := l.Head()
		appendAll(t, l, "x", "y")
		if err := l.Close(); err != nil {
			t.Fatal(err)
		}
		kept, err := os.ReadFile(path)
		if err != nil || !bytes.HasPrefix(kept, content) {
			t.Fatalf("what was there was changed (%v)", err)
		}
		if _, after := verify(t, dir); len(after) > len(before) && start != ^uint64(0) {
			t.Fatalf("before %v, after %v", before, after)
		}
		count := 0
		err = l.Read(t.Context(), start, func(line []byte, e Entry) bool {
			if count++; e.Action != "x" && e.Action != "y" {
				t.Fatalf("%s", line)
			}
			return true
		})
		if start != ^uint64(0) && (err != nil || count != 2) {
			t.Fatalf("%d lines after %d (%v)", count, start, err)
		}
	})
}

// FuzzChain: no line crashes the check.
func FuzzChain(f *testing.F) {
	f.Add([]byte(`{"seq":1,"action":"a","prev":""}`), []byte(`{"seq":2,"action":"audit-torn","target":"sha256:"}`))
	f.Add([]byte(`{"seq":1e3}`), []byte(`{"seq":-1}`))
	f.Fuzz(func(t *testing.T, a, b []byte) {
		var c Chain
		_, err1 := c.Next(a)
		_, err2 := c.Next(b)
		if err := errors.Join(err1, err2, c.End()); err != nil && err.Error() == "" {
			t.Fatal("a problem without words")
		}
		if n := seqOf(a); n != 0 {
			if e, err := parse(a); err == nil && e.Seq != n && bytes.Count(a, []byte(`"seq"`)) == 1 {
				t.Fatalf("%s is line %d and %d", a, n, e.Seq)
			}
		}
	})
}

func BenchmarkAppend(b *testing.B) {
	l := open(b, b.TempDir(), Options{})
	b.RunParallel(func(pb *testing.PB) {
		for pb.Next() {
			if err := l.Append(context.Background(), Entry{Who: "alice", Action: "patch-machine", Target: "machine/cp-1", Outcome: OK}); err != nil {
				b.Error(err)
			}
		}
	})
}
