package talos

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus/testutil"
	"github.com/rs/zerolog"
)

// fakeLogs keeps all it is told, by machine.
type fakeLogs struct {
	mu      sync.Mutex
	events  map[string][]LogLine
	kernel  map[string][]LogLine
	opened  int
	closed  int
	removed bool
}

func (f *fakeLogs) Event(machine string, l LogLine) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.events == nil {
		f.events = map[string][]LogLine{}
	}
	f.events[machine] = append(f.events[machine], l)
	return nil
}

func (f *fakeLogs) Kernel(machine string) (KernelLines, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.removed {
		return nil, errors.New("removed")
	}
	if f.kernel == nil {
		f.kernel = map[string][]LogLine{}
	}
	f.opened++
	return &fakeLines{f, machine}, nil
}

type fakeLines struct {
	logs    *fakeLogs
	machine string
}

func (f *fakeLines) Append(l LogLine) error {
	f.logs.mu.Lock()
	defer f.logs.mu.Unlock()
	if f.logs.removed {
		return errors.New("removed")
	}
	f.logs.kernel[f.machine] = append(f.logs.kernel[f.machine], l)
	return nil
}

func (f *fakeLines) Close() {
	f.logs.mu.Lock()
	defer f.logs.mu.Unlock()
	f.logs.closed++
}

func (f *fakeLogs) lines(machine string) []LogLine {
	f.mu.Lock()
	defer f.mu.Unlock()
	return slices.Clone(f.kernel[machine])
}

// startedKernelLog is a receiver and a reader of its log.
type startedKernelLog struct {
	*KernelLog
	dropped atomic.Uint64 // lines, of connections that have ended
}

func (s *startedKernelLog) Write(line []byte) (int, error) {
	var end struct{ Unknown, TooLong, Garbage uint64 }
	err := json.Unmarshal(line, &end)
	s.dropped.Add(end.Unknown + end.TooLong + end.Garbage)
	return len(line), err
}

func startKernelLog(t testing.TB, logs Logs, res Resolver) (k *startedKernelLog, addr string, stop func()) {
	t.Helper()
	k = &startedKernelLog{}
	k.KernelLog = NewKernelLog(logs, res, zerolog.New(k))
	addr, stop = serve(t, k.Serve)
	return k, addr, stop
}

// bounded makes a read or an accept that hangs fail.
func bounded(t testing.TB, c interface{ SetDeadline(time.Time) error }) {
	t.Helper()
	if err := c.SetDeadline(time.Now().Add(30 * time.Second)); err != nil && !errors.Is(err, net.ErrClosed) {
		t.Fatal(err)
	}
}

// sendLog writes text over a connection of its own, and waits until the receiver
// has read it to the end or closed the connection.
func sendLog(t testing.TB, addr, text string) {
	t.Helper()
	conn, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	bounded(t, conn)
	_, _ = io.WriteString(conn, text) // it may be closed before the end
	_ = conn.(*net.TCPConn).CloseWrite()
	_, _ = io.Copy(io.Discard, conn)
}

// record is a line as Talos sends it.
func record(seq int, clock time.Duration, text string) string {
	return fmt.Sprintf(`{"clock":%d,"facility":"user","msg":%q,"priority":"warning","seq":%d,"talos-level":"warn","talos-time":"2026-11-22T07:24:54.27873778Z"}`+"\n",
		clock.Microseconds(), text+"\n", seq)
}

func testdata(t testing.TB, name string) string {
	t.Helper()
	b, err := os.ReadFile(filepath.Join("testdata", name))
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// kmsg.jsonl is what a real Talos 1.13.6 sent.
func TestKernelLogTakesARealOne(t *testing.T) {
	logs := &fakeLogs{}
	k, addr, _ := startKernelLog(t, logs, byLoopback)
	text := testdata(t, "kmsg.jsonl")
	sendLog(t, addr, text)
	got := logs.lines("cp-1")
	if want := strings.Count(text, "\n"); len(got) != want || k.dropped.Load() != 0 {
		t.Fatalf("%d lines of %d, %d dropped", len(got), want, k.dropped.Load())
	}
	first, last := got[0], got[len(got)-1]
	if !strings.HasPrefix(first.Text, "Linux version 7.3.4") || strings.HasSuffix(first.Text, "\n") || first.Seq != 0 || first.Clock != 0 ||
		first.Facility != "kern" || first.Level != "notice" || !first.Time.Equal(time.Date(2026, 11, 22, 7, 24, 13, 281199271, time.UTC)) {
		t.Errorf("the first line is %+v", first)
	}
	if last.Text != "[talos] service[etcd](Running): Health check successful" || last.Seq != 776 || last.Clock != 445139126*time.Microsecond {
		t.Errorf("the last line is %+v", last)
	}
}

func TestKernelLogBytesIn(t *testing.T) {
	good, other := record(7, time.Second, "hello"), record(8, time.Second, "world")
	long := record(9, time.Second, strings.Repeat("x", maxLogLine))
	for name, tt := range map[string]struct {
		in      string
		want    []string
		dropped uint64
	}{
		"two lines":          {good + other, []string{"7 hello", "8 world"}, 0},
		"without the end":    {good + other[:len(other)-1], []string{"7 hello"}, 0},
		"CRLF":               {strings.ReplaceAll(good, "}\n", "}\r\n"), []string{"7 hello"}, 0},
		"empty lines":        {"\n\n" + good, []string{"7 hello"}, 2},
		"binary":             {"\x00\x01\xff\xfe\n" + good + "\x16\x03\x01\x02\x00\x01\n", []string{"7 hello"}, 2},
		"too long":           {long + good, []string{"7 hello"}, 1},
		"never a newline":    {strings.Repeat("x", 1<<20), nil, 0},
		"huge, then good":    {strings.Repeat("x", 1<<20) + "\n" + good, []string{"7 hello"}, 1},
		"as long as allowed": {record(1, 0, strings.Repeat("x", 15<<10)), []string{"1 " + strings.Repeat("x", 15<<10)}, 0},
		"no text":            {`{"seq":1,"clock":2}` + "\n", nil, 1},
		"no number":          {`{"msg":"a","clock":2}` + "\n", nil, 1},
		"no clock":           {`{"msg":"a","seq":2}` + "\n", nil, 1},
		"numbers as text":    {`{"msg":"a","seq":"2","clock":1}` + "\n", nil, 1},
		"negative":           {`{"msg":"a","seq":-2,"clock":1}` + "\n", nil, 1},
		"huge clock":         {`{"msg":"a","seq":2,"clock":18446744073709551615}` + "\n", nil, 1},
		"a list":             {`[{"msg":"a","seq":2,"clock":1}]` + "\n", nil, 1},
		"unknown keys":       {`{"msg":"a","seq":2,"clock":1,"x":{"y":[1]}}` + "\n", []string{"2 a"}, 0},
		"token on the line": {record(95, 0, "Kernel command line: talos.config=http://[2001:db8::5]:8080/config/52:54:00:12:34:56/0123456789abcdef ip=x"),
			[]string{"95 Kernel command line: talos.config=http://[2001:db8::5]:8080/config/52:54:00:12:34:56/[token] ip=x"}, 0},
		"garbage for ever": {strings.Repeat("GET / HTTP/1.1\r\n", 5000), nil, maxGarbage},
	} {
		t.Run(name, func(t *testing.T) {
			logs := &fakeLogs{}
			k, addr, stop := startKernelLog(t, logs, byLoopback)
			sendLog(t, addr, tt.in)
			stop()
			var got []string
			for _, l := range logs.lines("cp-1") {
				got = append(got, fmt.Sprintf("%d %s", l.Seq, l.Text))
			}
			if !slices.Equal(got, tt.want) {
				t.Errorf("kept %.300q, want %.300q", got, tt.want)
			}
			if k.dropped.Load() != tt.dropped {
				t.Errorf("%d dropped, want %d", k.dropped.Load(), tt.dropped)
			}
			if logs.opened != logs.closed {
				t.Errorf("%d opened, %d closed", logs.opened, logs.closed)
			}
		})
	}
}

// setting is what Talos says when it takes a name.
const setting = `[talos] setting hostname {"component": "controller-runtime", "controller": "network.HostnameSpecController", "hostname": "w-1", "domainname": ""}`

func TestKernelLogOfAnUnknownAddress(t *testing.T) {
	res := fakeResolver{byName: map[string]string{"w-1": "w-1"}}
	lines := func(n int) string {
		var b strings.Builder
		for i := range n {
			b.WriteString(record(i, time.Second, "x"))
		}
		return b.String()
	}
	for name, tt := range map[string]struct {
		in            string
		kept, dropped int
	}{
		"never says who it is": {lines(30), 0, 0}, // held until it went away
		"says it":              {lines(30) + record(30, time.Second, setting) + record(31, time.Second, "y"), 32, 0},
		"says it too late":     {lines(2000) + record(2000, time.Second, setting) + record(2001, time.Second, "y"), 2, 2000},
		"another name":         {lines(30) + record(30, time.Second, strings.ReplaceAll(setting, "w-1", "nobody")), 0, 0},
		"a bad name":           {lines(3) + record(3, time.Second, strings.ReplaceAll(setting, "w-1", "../x")), 0, 0},
		"in other words":       {lines(3) + record(3, time.Second, strings.ReplaceAll(setting, "setting", "")), 0, 0},
	} {
		t.Run(name, func(t *testing.T) {
			logs := &fakeLogs{}
			k, addr, stop := startKernelLog(t, logs, res)
			sendLog(t, addr, tt.in)
			stop()
			got := logs.lines("w-1")
			if len(got) != tt.kept || k.dropped.Load() != uint64(tt.dropped) {
				t.Errorf("%d kept and %d dropped, want %d and %d", len(got), k.dropped.Load(), tt.kept, tt.dropped)
			}
			if kept, dropped := testutil.ToFloat64(k.metrics.lines), testutil.ToFloat64(k.metrics.unknown); kept != float64(tt.kept) || dropped != float64(tt.dropped) {
				t.Errorf("%v and %v were counted", kept, dropped)
			}
			for i := 1; i < len(got); i++ {
				if got[i].Seq != got[i-1].Seq+1 {
					t.Errorf("%d after %d", got[i].Seq, got[i-1].Seq)
				}
			}
			if len(k.unnamed) != 0 {
				t.Errorf("%d places are taken still", len(k.unnamed))
			}
		})
	}
}

// A machine that was removed is told nothing; its connection ends.
func TestKernelLogOfARemovedMachine(t *testing.T) {
	logs := &fakeLogs{removed: true}
	_, addr, _ := startKernelLog(t, logs, byLoopback)
	conn, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if _, err := io.WriteString(conn, record(0, 0, "x")); err != nil {
		t.Fatal(err)
	}
	bounded(t, conn)
	if _, err := conn.Read(make([]byte, 1)); err == nil || errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("the connection is open: %v", err)
	}
}

func TestKernelLogOfAHundred(t *testing.T) {
	logs := &fakeLogs{}
	_, addr, stop := startKernelLog(t, logs, fakeResolver{byName: map[string]string{"w-1": "w-1"}})
	var wg sync.WaitGroup
	for range 100 {
		wg.Go(func() { sendLog(t, addr, record(0, 0, setting)+record(1, 0, "x")) })
	}
	wg.Wait()
	stop()
	if got := logs.lines("w-1"); len(got) != 200 {
		t.Errorf("%d lines of 200", len(got))
	}
}

func TestKernelLogServeEnds(t *testing.T) {
	logs := &fakeLogs{}
	_, addr, stop := startKernelLog(t, logs, byLoopback)
	conn, err := net.Dial("tcp", addr) // a machine that says nothing
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	bounded(t, conn)
	stop()
	if _, err := conn.Read(make([]byte, 1)); err == nil || errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("the connection is open: %v", err)
	}
	if again, err := net.Dial("tcp", addr); err == nil {
		again.Close()
		t.Error("still listening")
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	l := listen(t)
	if err := NewKernelLog(nil, nil, zerolog.Nop()).Serve(ctx, l); err != nil {
		t.Error(err)
	}
	bounded(t, l.(*net.TCPListener))
	if _, err := l.Accept(); !errors.Is(err, net.ErrClosed) {
		t.Errorf("the listener is open: %v", err)
	}
	l = listen(t)
	l.Close()
	if err := NewKernelLog(nil, nil, zerolog.Nop()).Serve(t.Context(), l); err == nil {
		t.Error("a broken listener was no error")
	}
}

func TestRedactLine(t *testing.T) {
	const mac = "http://[2001:db8::5]:8080/config/52:54:00:12:34:56/"
	for in, want := range map[string]string{
		"talos.config=" + mac + "s3cret talos.x=1":          "talos.config=" + mac + "[token] talos.x=1",
		`fetching machine config from: "` + mac + `s3cret"`: `fetching machine config from: "` + mac + `[token]"`,
		`Get \"` + mac + `s3cret\": dial tcp`:               `Get \"` + mac + `[token]\": dial tcp`,
		"/config/52%3A54%3a00%3A12%3A34%3A56/s3cret":        "/config/52%3A54%3a00%3A12%3A34%3A56/[token]",
		mac + "s3cr" /* the kernel cut the line there */ : mac + "[token]",
		mac + "s3cret " + mac + "s3cret":                  mac + "[token] " + mac + "[token]",
		"a talos.config.inline=c2VjcmV0 b":                "a talos.config.inline=[secret] b",
		"a talos.config.oauth.client_secret=s3cret b":     "a talos.config.oauth.client_secret=[secret] b",
		"talos.environment=http_proxy=http://u:s3cret@[2001:db8::3]:3128/ x=y":    "talos.environment=http_proxy=http://[secret]@[2001:db8::3]:3128/ x=y",
		"http://[2001:db8::5]/c?mac=1&Token=s3cret&uuid=2":                        "http://[2001:db8::5]/c?mac=1&Token=[secret]&uuid=2",
		"reading /config/machine/config.yaml, someone@example.org, a=b, /config/": "reading /config/machine/config.yaml, someone@example.org, a=b, /config/",
	} {
		if got := redactLine(in); got != want {
			t.Errorf("%s\nbecame %s\nwant   %s", in, got, want)
		}
	}
	// The log that a real Talos sent holds none of ours and is left alone.
	for line := range strings.Lines(testdata(t, "kmsg.jsonl")) {
		if got := redactLine(line); got != line {
			t.Errorf("%s\nbecame %s", line, got)
		}
	}
}

func FuzzKernelLine(f *testing.F) {
	text, err := os.ReadFile(filepath.Join("testdata", "kmsg.jsonl"))
	if err != nil {
		f.Fatal(err)
	}
	for line := range bytes.Lines(text) {
		f.Add(line)
	}
	f.Add([]byte(record(1, 0, "/config/52:54:00:12:34:56/s3cret")))
	f.Fuzz(func(t *testing.T, b []byte) {
		l, err := parseKernelLine(b)
		if err != nil {
			return
		}
		if l.Clock < 0 || l.Clock > maxUptime {
			t.Errorf("clock %v", l.Clock)
		}
		if again := redactLine(l.Text); again != l.Text {
			t.Errorf("%q held a secret: %q", l.Text, again)
		}
		if strings.Contains(hostname(l.Text), "/") {
			t.Errorf("%q gives the name %q", l.Text, hostname(l.Text))
		}
	})
}
