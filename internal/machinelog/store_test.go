package machinelog

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

var day = time.Date(2026, 11, 22, 7, 24, 13, 281199271, time.UTC)

// boot is the lines of one boot of a machine: the first ones at clock 0 and alike
// in every boot, as those of a real kernel.
func boot(from, to int, offset time.Duration) (list []Line) {
	for i := from; i < to; i++ {
		l := Line{Seq: uint64(i), Text: fmt.Sprintf("line %d", i), Facility: "kern", Level: "info", Time: day}
		if i >= 10 {
			l.Clock = time.Duration(i-9)*300*time.Millisecond + offset
		}
		l.Time = day.Add(l.Clock)
		list = append(list, l)
	}
	return list
}

func send(t testing.TB, s *Store, lists ...[]Line) {
	t.Helper()
	for _, list := range lists { // each over a connection of its own
		st, err := s.Stream("cp-1")
		if err != nil {
			t.Fatal(err)
		}
		for _, l := range list {
			if err := st.Append(l); err != nil {
				t.Fatal(err)
			}
		}
		st.Close()
	}
}

// kept is the log as "boot:from-to", a run of lines each.
func kept(t testing.TB, s *Store) string {
	t.Helper()
	lines, err := s.After("cp-1", 0)
	if err != nil {
		t.Fatal(err)
	}
	var runs []string
	for i := 0; i < len(lines); {
		j := i
		for j+1 < len(lines) && lines[j+1].Boot == lines[i].Boot && lines[j+1].Seq == lines[j].Seq+1 {
			j++
		}
		runs = append(runs, fmt.Sprintf("%d:%d-%d", lines[i].Boot, lines[i].Seq, lines[j].Seq))
		i = j + 1
	}
	return strings.Join(runs, " ")
}

func TestEachLineOnceAndInItsBoot(t *testing.T) {
	const first, second = 0, 777 * time.Microsecond
	for name, tt := range map[string]struct {
		lists [][]Line
		want  string
	}{
		"one connection":                   {[][]Line{boot(0, 50, first)}, "1:0-49"},
		"sent again":                       {[][]Line{boot(0, 50, first), boot(0, 50, first)}, "1:0-49"},
		"sent again, and more":             {[][]Line{boot(0, 50, first), boot(0, 70, first)}, "1:0-69"},
		"went on":                          {[][]Line{boot(0, 50, first), boot(50, 70, first)}, "1:0-69"},
		"the ring had lost the beginning":  {[][]Line{boot(0, 50, first), boot(40, 70, first)}, "1:0-69"},
		"lines were lost":                  {[][]Line{boot(0, 50, first), boot(60, 70, first)}, "1:0-49 1:60-69"},
		"another boot":                     {[][]Line{boot(0, 50, first), boot(0, 50, second)}, "1:0-49 2:0-49"},
		"another boot after a short one":   {[][]Line{boot(0, 20, first), boot(0, 50, second)}, "1:0-19 2:0-49"},
		"another boot, then again":         {[][]Line{boot(0, 50, first), boot(0, 30, second), boot(0, 50, second)}, "1:0-49 2:0-49"},
		"three boots":                      {[][]Line{boot(0, 30, first), boot(0, 30, second), boot(0, 30, 3*second)}, "1:0-29 2:0-29 3:0-29"},
		"a long boot sent again":           {[][]Line{boot(0, 3000, first), boot(0, 3001, first)}, "1:0-3000"},
		"another boot after a long one":    {[][]Line{boot(0, 3000, first), boot(0, 100, second)}, "1:0-2999 2:0-99"},
		"anew on the same connection":      {[][]Line{slices.Concat(boot(0, 50, first), boot(0, 60, first))}, "1:0-59"},
		"another boot on the same":         {[][]Line{slices.Concat(boot(0, 50, first), boot(0, 60, second))}, "1:0-49 2:0-59"},
		"a line from far away":             {[][]Line{slices.Concat(boot(0, 50, first), []Line{{Seq: 1 << 60, Clock: time.Hour}}, boot(50, 60, first))}, "1:0-59"},
		"text differs at the same clock":   {[][]Line{{{Seq: 1, Text: "a"}}, {{Seq: 1, Text: "b"}}}, "1:1-1 2:1-1"},
		"clock went back on later numbers": {[][]Line{boot(0, 50, first), {{Seq: 60, Clock: time.Second}}}, "1:0-49 2:60-60"},
	} {
		for _, restart := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s, restart %v", name, restart), func(t *testing.T) {
				dir := filepath.Join(t.TempDir(), "logs")
				s := New(dir, Options{})
				for _, list := range tt.lists {
					send(t, s, list)
					if restart {
						if err := s.Close(); err != nil {
							t.Fatal(err)
						}
						s = New(dir, Options{})
					}
				}
				if got := kept(t, s); got != tt.want {
					t.Errorf("kept %s, want %s", got, tt.want)
				}
			})
		}
	}
}

// Talos opens the connection of its config before it closes that of the kernel line.
func TestTwoConnectionsOfOneBoot(t *testing.T) {
	s := New(t.TempDir(), Options{})
	a, b := stream(t, s), stream(t, s)
	lines := boot(0, 100, 0)
	for i := range lines {
		must(t, a.Append(lines[i]))
		if i >= 40 { // b begins late, sends all from the start, and gets ahead
			for j := 3 * (i - 40); j < min(3*(i-40)+3, len(lines)); j++ {
				must(t, b.Append(lines[j]))
			}
		}
	}
	if got := kept(t, s); got != "1:0-99" {
		t.Errorf("kept %s", got)
	}
	// What comes late of the boot before is not of this one.
	c := stream(t, s)
	for _, l := range boot(0, 50, 777) {
		must(t, c.Append(l))
	}
	must(t, a.Append(boot(100, 101, 0)[0]))
	must(t, c.Append(boot(50, 51, 777)[0]))
	if got := kept(t, s); got != "1:0-99 2:0-50" {
		t.Errorf("kept %s", got)
	}
}

func stream(t *testing.T, s *Store) *Stream {
	t.Helper()
	st, err := s.Stream("cp-1")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(st.Close)
	return st
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func TestEventsOnce(t *testing.T) {
	dir := t.TempDir()
	s := New(dir, Options{MaxFile: 1 << 30})
	event := func(id string) {
		t.Helper()
		must(t, s.Append("cp-1", Line{Kind: Event, ID: id, Time: day, Text: "phase config"}))
	}
	for range 2 {
		for i := range maxIDs + 100 {
			event(fmt.Sprint(i % maxIDs))
		}
		event("")
		event("")
		must(t, s.Close())
		s = New(dir, Options{MaxFile: 1 << 30})
	}
	lines, err := s.After("cp-1", 0)
	must(t, err)
	if len(lines) != maxIDs+4 {
		t.Errorf("%d lines of %d events", len(lines), maxIDs)
	}
	for i := range lines {
		if lines[i].N != uint64(i+1) {
			t.Fatalf("line %d has number %d", i, lines[i].N)
		}
	}
}

func TestTailAndAfter(t *testing.T) {
	for _, written := range []bool{false, true} {
		s := New(t.TempDir(), Options{})
		send(t, s, boot(0, 500, 0))
		if written {
			must(t, s.Close())
		}
		all, err := s.Tail("cp-1", 1000)
		must(t, err)
		want := boot(0, 500, 0)
		for i := range want {
			want[i].N, want[i].Kind, want[i].Boot = uint64(i+1), Kernel, 1
		}
		if !reflect.DeepEqual(all, want) {
			t.Errorf("written %v: %d lines, the first %+v", written, len(all), all[0])
		}
		for n, first := range map[int]uint64{1: 500, 3: 498, 500: 1} {
			got, err := s.Tail("cp-1", n)
			must(t, err)
			if len(got) != n || got[0].N != first {
				t.Errorf("Tail %d: %d lines from %d", n, len(got), got[0].N)
			}
		}
		for after, count := range map[uint64]int{0: 500, 499: 1, 500: 0, 501: 500} {
			if got, err := s.After("cp-1", after); err != nil || len(got) != count {
				t.Errorf("After %d: %d lines, %v", after, len(got), err)
			}
		}
		if got, err := s.Tail("w-1", 5); err != nil || len(got) != 0 {
			t.Errorf("of a machine without a log: %v %v", got, err)
		}
	}
}

func TestRotation(t *testing.T) {
	dir := t.TempDir()
	s := New(dir, Options{MaxFile: 4 << 10})
	for i := range 40 {
		send(t, s, boot(i*20, i*20+20, 0))
		must(t, s.Close()) // a second later
		for _, name := range []string{"cp-1.log", "cp-1.log.1"} {
			if info, err := os.Stat(filepath.Join(dir, name)); err == nil && info.Size() > 4<<10 {
				t.Fatalf("%s has %d bytes", name, info.Size())
			}
		}
	}
	lines, err := s.After("cp-1", 0)
	must(t, err)
	if n := len(lines); n < 60 || n > 200 || lines[n-1].Seq != 799 || lines[0].Seq != uint64(800-n) {
		t.Errorf("%d lines, %d to %d", n, lines[0].Seq, lines[n-1].Seq)
	}
	s = New(dir, Options{MaxFile: 4 << 10})
	send(t, s, boot(700, 801, 0)) // still known
	again, err := s.After("cp-1", 0)
	must(t, err)
	if len(again) != len(lines)+1 || again[len(again)-1].N != lines[len(lines)-1].N+1 {
		t.Errorf("%d lines became %d", len(lines), len(again))
	}
}

func TestTornFile(t *testing.T) {
	dir := t.TempDir()
	s := New(dir, Options{})
	send(t, s, boot(0, 20, 0))
	must(t, s.Close())
	path := filepath.Join(dir, "cp-1.log")
	text, err := os.ReadFile(path)
	must(t, err)
	must(t, os.WriteFile(path, append([]byte("\x00\xff junk\n\n"), text[:len(text)-4]...), 0o600))
	s = New(dir, Options{})
	send(t, s, boot(0, 22, 0))
	must(t, s.Close())
	// "line 19" lost its end, so it is another text than the one that is sent again
	// now; all others are told apart.
	lines, err := New(dir, Options{}).After("cp-1", 0)
	must(t, err)
	if n := len(lines); n < 22 || lines[n-1].Text != "line 21" {
		t.Errorf("%d lines: %+v", n, lines)
	}
}

func TestNamesAndRemoval(t *testing.T) {
	dir := t.TempDir()
	s := New(filepath.Join(dir, "logs"), Options{})
	for _, name := range []string{"", "../x", "a/b", "A", ".", "a.log"} {
		if err := s.Append(name, Line{Kind: Event, Text: "x"}); err == nil {
			t.Errorf("%q was taken for a machine", name)
		}
		if _, err := s.Stream(name); err == nil {
			t.Errorf("%q was taken for a machine", name)
		}
	}
	st := stream(t, s)
	for _, l := range boot(0, 20, 0) {
		must(t, st.Append(l))
	}
	must(t, s.Append("w-1", Line{Kind: Event, ID: "x", Text: "x"}))
	must(t, s.Close())
	must(t, st.Append(boot(20, 21, 0)[0])) // waits to be written
	wake, stop, err := s.Watch("cp-1")
	must(t, err)
	defer stop()
	must(t, s.Remove("cp-1"))
	if woken, open := woken(wake); !woken || open {
		t.Error("who follows a removed machine is not told")
	}
	if err := st.Append(boot(21, 22, 0)[0]); !errors.Is(err, ErrRemoved) {
		t.Errorf("a line of a removed machine: %v", err)
	}
	must(t, s.Close())
	if left, _ := os.ReadDir(filepath.Join(dir, "logs")); len(left) != 1 || left[0].Name() != "w-1.log" {
		t.Errorf("left: %v", left)
	}
	send(t, s, boot(0, 5, 0)) // registered again
	if got := kept(t, s); got != "1:0-4" {
		t.Errorf("kept %s", got)
	}
	must(t, s.Close())
	must(t, os.WriteFile(filepath.Join(dir, "logs", "NOT OURS.log"), nil, 0o600))
	removed, err := s.Sweep(func(m string) (bool, error) { return m == "cp-1", nil })
	if err != nil || !slices.Equal(removed, []string{"w-1"}) {
		t.Errorf("swept %v, %v", removed, err)
	}
	if left, _ := os.ReadDir(filepath.Join(dir, "logs")); len(left) != 2 {
		t.Errorf("left: %v", left)
	}
}

// woken looks whether there was a wake, or the end of them: what causes one returns
// after it.
func woken(wake <-chan struct{}) (woken, open bool) {
	select {
	case _, open = <-wake:
		return true, open
	default:
		return false, true
	}
}

func TestWatch(t *testing.T) {
	s := New(t.TempDir(), Options{})
	wake, stop, err := s.Watch("cp-1")
	must(t, err)
	if woken, _ := woken(wake); woken {
		t.Error("woken by nothing")
	}
	must(t, s.Append("w-1", Line{Kind: Event, Text: "x"}))
	must(t, s.Append("cp-1", Line{Kind: Event, Text: "x"}))
	must(t, s.Append("cp-1", Line{Kind: Event, Text: "x"}))
	if woken, open := woken(wake); !woken || !open {
		t.Error("not woken")
	}
	if woken, _ := woken(wake); woken {
		t.Error("woken twice")
	}
	stop()
	stop()
	must(t, s.Append("cp-1", Line{Kind: Event, Text: "x"}))
}

// Lines are on disk a second later, and the memory of a silent machine is given back.
func TestRun(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		dir := t.TempDir()
		s := New(dir, Options{})
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		var failures int
		go func() { done <- s.Run(ctx, func(error) { failures++ }) }()
		send(t, s, boot(0, 20, 0))
		if _, err := os.Stat(filepath.Join(dir, "cp-1.log")); err == nil {
			t.Error("written at once")
		}
		time.Sleep(interval + time.Millisecond)
		synctest.Wait()
		if got := kept(t, New(dir, Options{})); got != "1:0-19" {
			t.Errorf("after a second there is %s", got)
		}
		time.Sleep(idle + 2*interval)
		synctest.Wait()
		if len(s.logs) != 0 {
			t.Errorf("%d machines are remembered", len(s.logs))
		}
		send(t, s, boot(0, 30, 0))

		// A disk that refuses to write, for a while.
		must(t, os.Remove(filepath.Join(dir, "cp-1.log")))
		must(t, os.Mkdir(filepath.Join(dir, "cp-1.log"), 0o700))
		time.Sleep(3 * interval)
		synctest.Wait()
		if failures != 1 {
			t.Errorf("%d failures were reported", failures)
		}
		must(t, os.Remove(filepath.Join(dir, "cp-1.log")))
		time.Sleep(2 * interval)
		synctest.Wait()
		if got := kept(t, New(dir, Options{})); got != "1:20-29" {
			t.Errorf("after the disk was mended there is %s", got)
		}
		cancel()
		must(t, <-done)
	})
}

// A false start, such as somebody else's lines, does not silence the machine whose
// boot goes on: it is made to send all again.
func TestFalseStart(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := New(t.TempDir(), Options{})
		machine := stream(t, s)
		for _, l := range boot(0, 50, 0) {
			must(t, machine.Append(l))
		}
		send(t, s, []Line{{Seq: 0, Text: "nonsense"}})
		must(t, machine.Append(boot(50, 51, 0)[0])) // it may be late
		time.Sleep(late + time.Millisecond)
		if err := machine.Append(boot(51, 52, 0)[0]); !errors.Is(err, ErrOutdated) {
			t.Errorf("the true boot goes on: %v", err)
		}
		send(t, s, boot(0, 60, 0))
		if got := kept(t, s); got != "1:0-49 2:0-0 3:0-59" {
			t.Errorf("kept %s", got)
		}
	})
}

// A disk that is full for long costs lines, and no more memory than is allowed.
func TestFullDisk(t *testing.T) {
	dir := t.TempDir()
	must(t, os.Mkdir(filepath.Join(dir, "cp-1.log"), 0o700))
	s := New(dir, Options{})
	l, err := s.get("cp-1")
	must(t, err)
	defer s.release(l)
	l.loaded = true
	for range 100 {
		must(t, s.Append("cp-1", Line{Kind: Event, Text: strings.Repeat("x", 60<<10)}))
	}
	if len(l.pending) > maxUnkept+maxText+1000 || l.lost == 0 {
		t.Errorf("%d bytes wait, %d lines were lost", len(l.pending), l.lost)
	}
	if err := s.Close(); err == nil {
		t.Error("no error")
	}
	must(t, os.Remove(filepath.Join(dir, "cp-1.log")))
	if err := s.Close(); err == nil || !strings.Contains(err.Error(), "lost") {
		t.Errorf("lost lines are not told of: %v", err)
	}
	if w := s.waiting.Load(); w != 0 {
		t.Errorf("%d bytes are waited for", w)
	}
}

func TestManyMachinesAtOnce(t *testing.T) {
	dir := t.TempDir()
	s := New(dir, Options{MaxFile: 8 << 10})
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- s.Run(ctx, func(err error) { t.Error(err) }) }()
	var wg sync.WaitGroup
	for i := range 100 {
		name := fmt.Sprintf("m-%d", i%50) // two connections each
		wg.Go(func() {
			st, err := s.Stream(name)
			if err != nil {
				t.Error(err)
				return
			}
			defer st.Close()
			for _, l := range boot(0, 100, 0) {
				if err := st.Append(l); err != nil {
					t.Error(err)
				}
			}
			if i%10 == 0 {
				if _, err := s.Tail(name, 10); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	cancel()
	select {
	case err := <-done:
		must(t, err)
	case <-time.After(30 * time.Second):
		t.Fatal("Run does not end")
	}
	must(t, s.Close())
	for i := range 50 {
		lines, err := s.Tail(fmt.Sprintf("m-%d", i), 1000)
		if err != nil || len(lines) != 100 {
			t.Fatalf("m-%d has %d lines, %v", i, len(lines), err)
		}
	}
}

func FuzzLine(f *testing.F) {
	f.Add("kern", "info", "id", "Linux version", uint64(0), int64(0))
	f.Add("\t", "\n", "\r", "a\tb\nc\x00\xff", uint64(1<<63), int64(-1))
	f.Add("user", strings.Repeat("x", 100), strings.Repeat("y", 200), strings.Repeat("ü", maxText), uint64(7), int64(1<<62))
	f.Fuzz(func(t *testing.T, facility, level, id, text string, seq uint64, micros int64) {
		for _, l := range []Line{
			{N: 1, Kind: Kernel, Time: day, Boot: 3, Seq: seq, Clock: time.Duration(micros), Facility: facility, Level: level, Text: text},
			{N: 1, Kind: Event, Time: time.Unix(micros, 0), ID: id, Text: text},
		} {
			l.plain()
			l.Clock, l.Time = l.Clock.Truncate(time.Microsecond), l.Time.UTC()
			b := l.appendTo(nil)
			if strings.Count(string(b), "\n") != 1 {
				t.Fatalf("%q is not one line", b)
			}
			if got, ok := parseLine(string(b[:len(b)-1])); !ok || !reflect.DeepEqual(got, l) {
				t.Fatalf("%+v came back as %+v", l, got)
			}
		}
		parseLine(text)
	})
}
