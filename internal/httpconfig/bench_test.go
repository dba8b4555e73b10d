package httpconfig

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/rs/zerolog"

	"github.com/provisiond/provisiond/internal/inventory"
)

// The benchmarks compare with a bare net/http server in the same run. The
// clients are another process, so that this one's CPU time is the servers'.

const herdEnv = "PROVISIOND_BENCH_HERD"

// TestMain plays the clients when a benchmark has started it for that.
func TestMain(m *testing.M) {
	job := os.Getenv(herdEnv)
	if job == "" {
		os.Exit(m.Run())
	}
	var h herd
	if err := json.Unmarshal([]byte(job), &h); err != nil {
		panic(err)
	}
	if err := json.NewEncoder(os.Stdout).Encode(h.run()); err != nil {
		panic(err)
	}
}

// herd is a number of machines that each make a request on a connection of their
// own, as Talos does.
type herd struct {
	URL               string
	Requests, Abreast int
	Size              int64
}

type herdResult struct {
	Failed  string
	P99     time.Duration
	Elapsed time.Duration
}

func (h herd) run() herdResult {
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
	took := make([]time.Duration, h.Requests)
	var failed string
	var mu sync.Mutex
	next := make(chan int)
	var wg sync.WaitGroup
	begin := time.Now()
	for range h.Abreast {
		wg.Go(func() {
			for i := range next {
				start := time.Now()
				if err := h.get(client); err != nil {
					mu.Lock()
					failed = err.Error()
					mu.Unlock()
				}
				took[i] = time.Since(start)
			}
		})
	}
	for i := range h.Requests {
		next <- i
	}
	close(next)
	wg.Wait()
	slices.Sort(took)
	return herdResult{failed, took[len(took)*99/100], time.Since(begin)}
}

func (h herd) get(client *http.Client) error {
	res, err := client.Get(h.URL)
	if err != nil {
		return err
	}
	defer res.Body.Close()
	if n, err := io.Copy(io.Discard, res.Body); err != nil || n != h.Size || res.StatusCode != http.StatusOK {
		return fmt.Errorf("status %d, %d bytes, %w", res.StatusCode, n, err)
	}
	return nil
}

// send runs the herd in a process of its own, and returns what this process
// spent meanwhile.
func (h herd) send(b *testing.B) (herdResult, time.Duration) {
	b.Helper()
	self, err := os.Executable()
	if err != nil {
		b.Fatal(err)
	}
	job, err := json.Marshal(h)
	if err != nil {
		b.Fatal(err)
	}
	cmd := exec.Command(self)
	cmd.Env = append(os.Environ(), herdEnv+"="+string(job))
	cmd.Stderr = os.Stderr
	before := cpu(b)
	out, err := cmd.Output()
	spent := cpu(b) - before
	var res herdResult
	if err != nil || json.Unmarshal(out, &res) != nil || res.Failed != "" {
		b.Fatalf("%v %s", err, out)
	}
	return res, spent
}

func cpu(b *testing.B) time.Duration {
	b.Helper()
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		b.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// bare serves a handler with nothing around it.
func bare(b *testing.B, h http.HandlerFunc) string {
	b.Helper()
	l, err := net.Listen("tcp", "[::1]:0")
	if err != nil {
		b.Fatal(err)
	}
	srv := &http.Server{Handler: h}
	go func() { _ = srv.Serve(l) }()
	b.Cleanup(func() { _ = srv.Close() })
	return "http://" + l.Addr().String()
}

// benchKeeper answers at once, as a store in memory would, and grows nothing.
type benchKeeper struct {
	*keeper
	view inventory.View
}

func (k benchKeeper) View(context.Context, inventory.MAC, inventory.Arch) (inventory.View, error) {
	return k.view, nil
}

func (k benchKeeper) Record(context.Context, inventory.Event) (inventory.View, error) {
	return k.view, nil
}

// benchRack is a rack whose log goes to a file, as it would.
func benchRack(b *testing.B) *rack {
	b.Helper()
	r := newRack(b)
	r.boots(bootNow(7, token))
	r.Server.Inventory = benchKeeper{r.keeper, r.keeper.view}
	f, err := os.Create(b.TempDir() + "/log")
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { _ = f.Close() })
	r.Server.log = zerolog.New(f).With().Timestamp().Logger()
	return r
}

// BenchmarkConfigHerd fetches a config of 16 KB on 10,000 connections, from us
// and from a server with a fixed body, and reports ours over theirs.
func BenchmarkConfigHerd(b *testing.B) {
	r := benchRack(b)
	r.keeper.view.Cluster.Delivery = inventory.OverHTTP // what TLS costs is not ours
	const size = 16 << 10
	config := bytes.Repeat([]byte("config: "), size/8)
	r.configs.parts = [][]byte{config[:size-600], config[size-600:]}
	fixed := herd{Requests: 10_000, Abreast: 64, Size: size, URL: bare(b, func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "application/yaml")
		w.Header().Set("Content-Length", strconv.Itoa(size))
		_, _ = w.Write(config)
	})}
	ours := fixed
	ours.URL = r.serve(b) + configPath + token
	compare(b, ours, fixed, func(h herd, spent time.Duration) (float64, string) {
		return float64(spent.Microseconds()) / float64(h.Requests), "cpu-µs/req"
	})
}

// BenchmarkImage downloads an image of 128 MB from us and from a server that
// only calls http.ServeContent, and reports ours over theirs.
func BenchmarkImage(b *testing.B) {
	r := benchRack(b)
	const size = 128 << 20
	if err := os.WriteFile(r.blobs.dir+"/k3rn31", make([]byte, size), 0o600); err != nil {
		b.Fatal(err)
	}
	r.keeper.view.Image.Kernel.Size = size
	content := herd{Requests: 16, Abreast: 4, Size: size, URL: bare(b, func(w http.ResponseWriter, req *http.Request) {
		f, err := os.Open(r.blobs.dir + "/k3rn31")
		if err != nil {
			b.Error(err)
			return
		}
		defer func() { _ = f.Close() }()
		w.Header().Set("Content-Type", "application/octet-stream")
		http.ServeContent(w, req, "", time.Time{}, f)
	})}
	ours := content
	ours.URL = r.serve(b) + imagePath + "kernel?mac=" + string(mac1) + "&boot=7"
	compare(b, ours, content, func(h herd, spent time.Duration) (float64, string) {
		return spent.Seconds() / (float64(h.Size*int64(h.Requests)) / 1e9), "cpu-s/GB"
	})
}

// compare runs both in turn, so that a busy machine disturbs both alike.
func compare(b *testing.B, ours, theirs herd, cost func(herd, time.Duration) (float64, string)) {
	var us, them herdResult
	var usCPU, themCPU time.Duration
	ours.send(b) // warm up
	theirs.send(b)
	n := 0
	for b.Loop() {
		r, c := theirs.send(b)
		them.P99, them.Elapsed, themCPU = them.P99+r.P99, them.Elapsed+r.Elapsed, themCPU+c
		r, c = ours.send(b)
		us.P99, us.Elapsed, usCPU = us.P99+r.P99, us.Elapsed+r.Elapsed, usCPU+c
		n++
	}
	value, unit := cost(ours, usCPU/time.Duration(n))
	b.ReportMetric(value, unit)
	b.ReportMetric(float64(usCPU)/float64(themCPU), "cpu-ratio")
	b.ReportMetric(float64(us.P99)/float64(them.P99), "p99-ratio")
	b.ReportMetric(float64(us.P99.Microseconds())/float64(n)/1000, "p99-ms")
	b.ReportMetric(float64(ours.Requests*n)/us.Elapsed.Seconds(), "req/s")
	b.ReportMetric(us.Elapsed.Seconds()/them.Elapsed.Seconds(), "time-ratio")
}
