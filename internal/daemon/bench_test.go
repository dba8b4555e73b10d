package daemon

import (
	"bufio"
	"context"
	"crypto/tls"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/rs/zerolog"

	"github.com/provisiond/provisiond/internal/boltstore"
	"github.com/provisiond/provisiond/internal/ca"
	"github.com/provisiond/provisiond/internal/inventory"
	"github.com/provisiond/provisiond/internal/inventory/storetest"
)

// herdVariable makes this test binary be the clients of a benchmark, so that
// the CPU time of the benchmark's process is the servers'.
const herdVariable = "PROVISIOND_TEST_HERD"

const herdSize = 10_000

// BenchmarkConfigHerd: 10,000 machines fetch their own config, each on a
// connection of its own, all at once, from a whole daemon on its database, and
// one body of that size from a bare net/http server in the same run. The time
// it takes to write down who fetched what is in it.
func BenchmarkConfigHerd(b *testing.B) {
	l := &lab{dir: b.TempDir()}
	urls, size := l.fillHerd(b)
	d, err := New(b.Context(), Options{Config: l.cfg, Log: zerolog.New(io.Discard)})
	if err != nil {
		b.Fatal(err)
	}
	stopped := make(chan error, 1)
	ctx, cancel := context.WithCancel(context.Background())
	go func() { stopped <- d.Run(ctx) }()
	b.Cleanup(func() {
		cancel()
		if err := <-stopped; err != nil {
			b.Error(err)
		}
	})
	for i := range urls {
		urls[i] = "https://" + d.Addrs().HTTPS.String() + urls[i]
	}
	body := make([]byte, size)
	fixed := "https://" + bareServer(b, func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "application/yaml")
		w.Header().Set("Content-Length", strconv.Itoa(size))
		_, _ = w.Write(body)
	}) + "/config/52:54:00:00:00:01/AAAAAAAAAAAAAAAAAAAAAA"
	same := make([]string, len(urls))
	for i := range same {
		same[i] = fixed
	}
	sendHerd(b, urls) // renders, as the boot scripts would have
	sendHerd(b, same)
	var us, them herdResult
	for b.Loop() {
		them.add(sendHerd(b, same))
		us.add(sendHerd(b, urls))
	}
	b.ReportMetric(us.CPU.Seconds()*1e6/float64(us.Requests), "cpu-µs/req")
	b.ReportMetric(float64(us.Requests)/us.Elapsed.Seconds(), "req/s")
	b.ReportMetric(us.rate()/them.rate(), "rate-ratio")
	b.ReportMetric(us.CPU.Seconds()/them.CPU.Seconds(), "cpu-ratio")
	b.ReportMetric(us.P99.Seconds()/them.P99.Seconds(), "p99-ratio")
}

// fillHerd writes a database of machines that are about to fetch their config,
// and returns the paths they fetch, and the size of one.
func (l *lab) fillHerd(b *testing.B) (paths []string, size int) {
	b.Helper()
	check := func(err error) {
		b.Helper()
		if err != nil {
			b.Fatal(err)
		}
	}
	l.cfg = &Config{
		Data: filepath.Join(l.dir, "data"), Key: filepath.Join(l.dir, "key"), Address: netip.IPv6Loopback(), Socket: filepath.Join(l.dir, "sock"),
		Subnets: []inventory.Subnet{{Name: "rack1", Prefix: netip.MustParsePrefix("2001:db8:1::/64"), Preferred: time.Hour, Valid: time.Hour}},
		// Nobody listens there, so that no machine's API is found.
		TalosProxy: "[::1]:1",
	}
	store, err := openDatabase(b.Context(), l.cfg, boltstore.Options{NoSync: true}, zerolog.Nop())
	check(err)
	defer func() { check(store.Close()) }()
	k, err := inventory.NewKeeper(b.Context(), store, inventory.KeeperConfig{Subnets: l.cfg.Subnets})
	check(err)
	check(k.PutImage(b.Context(), &inventory.Image{Version: "v1.13.6", Arch: inventory.AMD64}))
	check(createLabCluster(b.Context(), k, false))
	cl, _, err := k.Cluster(b.Context(), "lab")
	check(err)
	// Up to 16 KB, the size the goal names.
	cl.Patches = []string{"machine: {files: [{path: /var/pad, permissions: 0o600, op: create, content: " + strings.Repeat("pad ", 3200) + "}]}"}
	_, err = k.PutCluster(b.Context(), cl, cl.Rev)
	check(err)
	err = storetest.Fill(b.Context(), store, herdSize, func(i int) (inventory.Machine, inventory.Facts) {
		name, mac := fmt.Sprintf("m-%05d", i), inventory.MAC(fmt.Sprintf("52:54:00:01:%02x:%02x", i>>8, i&255))
		token := fmt.Sprintf("AAAAAAAAAAAAAAAA%06d", i)
		paths = append(paths, "/config/"+string(mac)+"/"+token)
		return inventory.Machine{
				Name: name, MACs: []inventory.MAC{mac}, Cluster: "lab", Role: inventory.Worker, Created: time.Now(),
				Address: netip.MustParseAddr(fmt.Sprintf("2001:db8:1::1:%x", i)),
			}, inventory.Facts{Machine: name, Arch: inventory.AMD64, Install: inventory.Order{Ordered: 1}, Holds: inventory.Membership{Cluster: "lab", Role: inventory.Worker, Epoch: 1}, Boots: []*inventory.Boot{{
				Number: 1, Token: token, MAC: mac, Client: inventory.FirmwarePXE, Started: time.Now(), Script: time.Now(), Plan: inventory.Install, Order: 1,
			}}}
	})
	if err != nil {
		b.Fatal(err)
	}
	v, err := k.Machine(b.Context(), "m-00000")
	check(err)
	cfg, err := newConfigs(k, talosOptions(l.cfg, Addrs{}, nil)).config(b.Context(), v)
	check(err)
	return paths, cfg.Size
}

func bareServer(b *testing.B, h http.HandlerFunc) string {
	b.Helper()
	l, err := net.Listen("tcp6", "[::1]:0")
	if err != nil {
		b.Fatal(err)
	}
	text, err := ca.New()
	if err != nil {
		b.Fatal(err)
	}
	authority, err := ca.Load(text)
	if err != nil {
		b.Fatal(err)
	}
	srv := &http.Server{Handler: h}
	go func() {
		_ = srv.Serve(tls.NewListener(l, &tls.Config{GetCertificate: authority.Server(), MinVersion: tls.VersionTLS13}))
	}()
	b.Cleanup(func() { _ = srv.Close() })
	return l.Addr().String()
}

type herdResult struct {
	Requests int
	Failed   string
	P99      time.Duration
	Elapsed  time.Duration
	CPU      time.Duration
}

func (r *herdResult) add(o herdResult) {
	r.Requests, r.P99, r.Elapsed, r.CPU = r.Requests+o.Requests, r.P99+o.P99, r.Elapsed+o.Elapsed, r.CPU+o.CPU
}

func (r *herdResult) rate() float64 { return float64(r.Requests) / r.Elapsed.Seconds() }

// sendHerd has another process fetch all URLs, and measures this one meanwhile.
func sendHerd(b *testing.B, urls []string) herdResult {
	b.Helper()
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), herdVariable+"=1")
	cmd.Stdin = strings.NewReader(strings.Join(urls, "\n"))
	cmd.Stderr = os.Stderr
	before := cpuTime(b)
	out, err := cmd.Output()
	spent := cpuTime(b) - before
	var r herdResult
	if err != nil || json.Unmarshal(out, &r) != nil || r.Failed != "" {
		b.Fatalf("%v: %s", err, out)
	}
	r.CPU = spent
	return r
}

func cpuTime(b *testing.B) time.Duration {
	b.Helper()
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		b.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// herdMain is the clients: it reads URLs and fetches all of them at once.
func herdMain() error {
	var urls []string
	for in := bufio.NewScanner(os.Stdin); in.Scan(); {
		urls = append(urls, in.Text())
	}
	// Whom it trusts is no matter here.
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true, TLSClientConfig: &tls.Config{InsecureSkipVerify: true}}, Timeout: 2 * time.Minute}
	took := make([]time.Duration, len(urls))
	r := herdResult{Requests: len(urls)}
	var mu sync.Mutex
	var wg sync.WaitGroup
	begin := time.Now()
	for i, url := range urls {
		wg.Go(func() {
			if err := fetch(client, url); err != nil {
				mu.Lock()
				r.Failed = err.Error()
				mu.Unlock()
			}
			took[i] = time.Since(begin)
		})
	}
	wg.Wait()
	r.Elapsed = time.Since(begin)
	slices.Sort(took)
	r.P99 = took[len(took)*99/100]
	return json.NewEncoder(os.Stdout).Encode(r)
}

func fetch(client *http.Client, url string) error {
	for try := 0; ; try++ {
		res, err := client.Get(url)
		if err != nil {
			if try < 5 { // the queue of the listener is full: TCP says so, and Talos tries again
				continue
			}
			return err
		}
		n, err := io.Copy(io.Discard, res.Body)
		_ = res.Body.Close()
		if err != nil || res.StatusCode != http.StatusOK || n < 1000 {
			return fmt.Errorf("status %d, %d bytes, %w", res.StatusCode, n, err)
		}
		return nil
	}
}
