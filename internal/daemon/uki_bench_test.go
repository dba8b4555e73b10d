package daemon

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"runtime/debug"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/rs/zerolog"
	"golang.org/x/sys/unix"

	"github.com/provisiond/provisiond/internal/boltstore"
	"github.com/provisiond/provisiond/internal/images"
	"github.com/provisiond/provisiond/internal/inventory"
	"github.com/provisiond/provisiond/internal/inventory/storetest"
	"github.com/provisiond/provisiond/internal/racktest"
	"github.com/provisiond/provisiond/internal/secureboot"
)

// ukiHerdVariable makes this test binary be firmware that fetches UKIs: its value is a
// ukiHerd.
const ukiHerdVariable = "PROVISIOND_TEST_UKI_HERD"

// BenchmarkUKI: 1,000 machines fetch their own UKI of 100 MB, each on a connection of its
// own, all at once, from a whole daemon on its database, and the bytes of such a UKI, as
// one file, from nginx in the same run: 100 GB each. As firmware does, they ask for the
// size first.
//
// What waits in a full socket buffer is sent on when the peer acknowledges, on loopback in
// the time of the peer: so the CPU of servers and machines together is compared, too.
//
// What memory a machine needs is what 1,000 at once need above 10. What a boot costs apart
// from its bytes is measured by machines that take only 4 KB of a UKI, signed or not. No
// machine of ours boots twice.
func BenchmarkUKI(b *testing.B) {
	b.Run("whole", func(b *testing.B) {
		const few, rack = 10, 1000
		us, them := ukiServers(b, few+rack, false)
		for b.Loop() {
			usFew, usAll := us.send(b, few, 0), us.send(b, rack, 0)
			b.ReportMetric(usAll.CPU.Seconds()/(float64(usAll.Bytes)/1e9), "cpu-s/GB")
			b.ReportMetric(float64(usAll.Peak-usFew.Peak)/(rack-few), "kB/machine")
			if them == nil {
				continue
			}
			themFew, themAll := them.send(b, few, 0), them.send(b, rack, 0)
			b.ReportMetric(usAll.CPU.Seconds()/themAll.CPU.Seconds(), "cpu/nginx")
			b.ReportMetric(usAll.All.Seconds()/themAll.All.Seconds(), "all-cpu/nginx")
			b.ReportMetric(usAll.Elapsed.Seconds()/themAll.Elapsed.Seconds(), "time/nginx")
			b.ReportMetric(float64(themAll.Peak-themFew.Peak)/(rack-few), "nginx-kB/machine")
		}
	})
	for _, name := range []string{"unsigned", "signed"} {
		b.Run(name, func(b *testing.B) {
			const rack, size = 1000, 4 << 10
			us, them := ukiServers(b, rack, name == "signed")
			for b.Loop() {
				b.ReportMetric(float64(us.send(b, rack, size).CPU.Microseconds())/rack, "cpu-µs/boot")
				if them != nil {
					b.ReportMetric(float64(them.send(b, rack, size).CPU.Microseconds())/rack, "nginx-cpu-µs/boot")
				}
			}
		})
	}
}

// ukiServers starts a daemon with so many machines that are to boot, and nginx; nil if there
// is none.
func ukiServers(b *testing.B, machines int, signed bool) (us, them *ukiServer) {
	b.Helper()
	l := &lab{dir: b.TempDir()}
	us = l.startUKIs(b, 1+machines, signed)
	file := filepath.Join(l.dir, "static.efi")
	saveUKI(b, us.next(1)[0], file)
	nginx, err := exec.LookPath("nginx")
	if err != nil {
		b.Log("*** LEFT OUT: the comparison with nginx. Missing: nginx (apt-get install nginx-light)")
		return us, nil
	}
	them = startNginx(b, nginx, file)
	them.send(b, 1, 0) // warm, too
	return us, them
}

// ukiServer is a process that serves UKIs.
type ukiServer struct {
	pid  int
	urls []string // of machines, each of which boots once
	same string   // the one URL of all, of nginx
}

// next is the URLs of n machines.
func (s *ukiServer) next(n int) []string {
	if s.same != "" {
		return slices.Repeat([]string{s.same}, n)
	}
	some := s.urls[:n]
	s.urls = s.urls[n:]
	return some
}

// send has another process fetch a UKI, or so many bytes of it, for each of n machines, all
// at once, and measures the server meanwhile.
func (s *ukiServer) send(b *testing.B, n int, size int64) ukiHerdResult {
	b.Helper()
	job, err := json.Marshal(ukiHerd{s.next(n), size})
	if err != nil {
		b.Fatal(err)
	}
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), ukiHerdVariable+"=1")
	cmd.Stdin, cmd.Stderr = bytes.NewReader(job), os.Stderr
	debug.FreeOSMemory()
	if err := os.WriteFile(fmt.Sprintf("/proc/%d/clear_refs", s.pid), []byte("5"), 0); err != nil { // VmHWM begins anew
		b.Fatal(err)
	}
	before := s.cpu(b)
	out, err := cmd.Output()
	spent := s.cpu(b) - before
	var r ukiHerdResult
	if err != nil || json.Unmarshal(out, &r) != nil || r.Failed != "" {
		b.Fatalf("%v: %s", err, out)
	}
	if s.same == "" && r.Different != n {
		b.Fatalf("%d machines were given %d different UKIs", n, r.Different)
	}
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", s.pid))
	if err != nil {
		b.Fatal(err)
	}
	_, after, _ := strings.Cut(string(status), "VmHWM:")
	if _, err := fmt.Sscan(after, &r.Peak); err != nil {
		b.Fatal(err)
	}
	r.CPU, r.All = spent, spent+cmd.ProcessState.UserTime()+cmd.ProcessState.SystemTime()
	return r
}

// cpu is the CPU time of the process so far, by its clock (clock_getcpuclockid(3)): that
// in /proc goes in hundredths of a second.
func (s *ukiServer) cpu(b *testing.B) time.Duration {
	b.Helper()
	var t unix.Timespec
	if err := unix.ClockGettime(int32(^s.pid<<3|2), &t); err != nil {
		b.Fatal(err)
	}
	return time.Duration(t.Nano())
}

// startUKIs starts a daemon in whose database machines are about to install from an image
// of 100 MB.
func (l *lab) startUKIs(b *testing.B, machines int, signed bool) *ukiServer {
	b.Helper()
	l.cfg = &Config{
		Data: filepath.Join(l.dir, "data"), Key: filepath.Join(l.dir, "key"), Address: netip.IPv6Loopback(), Socket: filepath.Join(l.dir, "sock"),
		Subnets: []inventory.Subnet{{Name: "rack1", Prefix: netip.MustParsePrefix("2001:db8:1::/64"), Preferred: time.Hour, Valid: time.Hour}},
		// Nobody listens there, so that no machine's API is found.
		TalosProxy: "[::1]:1",
	}
	if signed {
		keys := filepath.Join(l.dir, "keys")
		if err := secureboot.Generate(keys, "bench"); err != nil {
			b.Fatal(err)
		}
		l.cfg.SecureBootKey, l.cfg.SecureBootCertificate = secureboot.KeyFiles(keys)
	}
	paths, err := l.fillUKIs(b.Context(), machines)
	if err != nil {
		b.Fatal(err)
	}
	log, err := os.Create(filepath.Join(l.dir, "log"))
	if err != nil {
		b.Fatal(err)
	}
	d, err := New(b.Context(), Options{Config: l.cfg, Log: zerolog.New(log).With().Timestamp().Logger()})
	if err != nil {
		b.Fatal(err)
	}
	stopped := make(chan error, 1)
	ctx, cancel := context.WithCancel(context.Background())
	go func() { stopped <- d.Run(ctx) }()
	b.Cleanup(func() {
		cancel()
		if err := cmp.Or(<-stopped, log.Close()); err != nil {
			b.Error(err)
		}
	})
	for i := range paths {
		paths[i] = "http://" + d.Addrs().HTTP.String() + paths[i]
	}
	return &ukiServer{pid: os.Getpid(), urls: paths}
}

// fillUKIs writes the image and the machines, and returns the paths of their UKIs.
func (l *lab) fillUKIs(ctx context.Context, machines int) (paths []string, err error) {
	store, err := openDatabase(ctx, l.cfg, boltstore.Options{NoSync: true}, zerolog.Nop())
	if err != nil {
		return nil, err
	}
	defer func() { err = cmp.Or(err, store.Close()) }()
	k, err := inventory.NewKeeper(ctx, store, inventory.KeeperConfig{Subnets: l.cfg.Subnets, Signs: l.cfg.SecureBootKey != ""})
	if err != nil {
		return nil, err
	}
	blobs, err := images.Open(filepath.Join(l.cfg.Data, "images"))
	if err != nil {
		return nil, err
	}
	image := inventory.Image{Version: "v1.13.6", Arch: inventory.AMD64}
	for _, f := range []struct {
		blob    *inventory.Blob
		content io.Reader
	}{
		{&image.Stub, bytes.NewReader(racktest.Stub(racktest.AMD64))},
		{&image.Kernel, bytes.NewReader(racktest.Kernel(racktest.AMD64))},
		{&image.Initramfs, io.LimitReader(rand.NewChaCha8([32]byte{}), 100e6)},
	} {
		if *f.blob, err = blobs.Put(ctx, f.content, "", 1<<30); err != nil {
			return nil, err
		}
	}
	if err := k.PutImage(ctx, &image); err != nil {
		return nil, err
	}
	if err := createLabCluster(ctx, k, false); err != nil {
		return nil, err
	}
	return paths, storetest.Fill(ctx, store, machines, func(i int) (inventory.Machine, inventory.Facts) {
		name, mac := fmt.Sprintf("m-%05d", i), inventory.MAC(fmt.Sprintf("52:54:00:01:%02x:%02x", i>>8, i&255))
		paths = append(paths, "/boot/"+string(mac)+"/talos.efi?arch=amd64")
		return inventory.Machine{
				Name: name, MACs: []inventory.MAC{mac}, Cluster: "lab", Role: inventory.Worker, Created: time.Now(),
				Address: netip.MustParseAddr(fmt.Sprintf("2001:db8:1::1:%x", i)),
			}, inventory.Facts{
				Machine: name, Arch: inventory.AMD64, Install: inventory.Order{Ordered: 1},
				Holds: inventory.Membership{Cluster: "lab", Role: inventory.Worker, Epoch: 1},
			}
	})
}

// saveUKI writes the UKI of a machine to a file.
func saveUKI(b *testing.B, url, file string) {
	b.Helper()
	res, err := http.Get(url)
	if err != nil {
		b.Fatal(err)
	}
	defer func() { _ = res.Body.Close() }()
	f, err := os.Create(file)
	if err != nil {
		b.Fatal(err)
	}
	n, err := io.Copy(f, res.Body)
	if err := cmp.Or(err, f.Close()); err != nil || res.StatusCode != http.StatusOK || n < 100e6 {
		b.Fatalf("status %d, %d bytes, %v", res.StatusCode, n, err)
	}
}

// startNginx starts nginx as one process, which costs it less than several, with a log as
// we have one.
func startNginx(b *testing.B, program, file string) *ukiServer {
	b.Helper()
	l, err := net.Listen("tcp6", "[::1]:0")
	if err != nil {
		b.Fatal(err)
	}
	at := l.Addr().String()
	dir, name := filepath.Split(file)
	config := filepath.Join(dir, "nginx.conf")
	text := `daemon off; master_process off; pid nginx.pid; error_log stderr error;
events { worker_connections 4096; }
http {
	sendfile on; access_log nginx.log;
	client_body_temp_path temp; proxy_temp_path temp; fastcgi_temp_path temp; uwsgi_temp_path temp; scgi_temp_path temp;
	server { listen ` + at + ` backlog=4096; root ` + dir + `; }
}
`
	if err := cmp.Or(os.WriteFile(config, []byte(text), 0o600), l.Close()); err != nil {
		b.Fatal(err)
	}
	cmd := exec.Command(program, "-p", dir, "-e", "stderr", "-c", config)
	cmd.Stderr = os.Stderr
	if err := cmd.Start(); err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	})
	for end := time.Now().Add(10 * time.Second); ; time.Sleep(10 * time.Millisecond) {
		conn, err := net.Dial("tcp6", at)
		if err == nil {
			_ = conn.Close()
			return &ukiServer{pid: cmd.Process.Pid, same: "http://" + at + "/" + name}
		}
		if time.Now().After(end) {
			b.Fatalf("nginx does not answer: %v", err)
		}
	}
}

// ukiHerd is firmware of many machines that fetches UKIs, all at once.
type ukiHerd struct {
	URLs []string
	Size int64 // how many bytes of each; 0: all
}

type ukiHerdResult struct {
	Failed    string
	Different int   // UKIs, by their ETags
	Bytes     int64 // of all machines
	Elapsed   time.Duration
	CPU       time.Duration // of the server
	All       time.Duration // CPU of the server and the machines
	Peak      int           // memory of the server, kB
}

// ukiHerdMain is the machines: it reads a ukiHerd.
func ukiHerdMain() error {
	var h ukiHerd
	if err := json.NewDecoder(os.Stdin).Decode(&h); err != nil {
		return err
	}
	var mu sync.Mutex
	var r ukiHerdResult
	tags := map[string]bool{}
	var wg sync.WaitGroup
	begin := time.Now()
	for _, url := range h.URLs {
		wg.Go(func() {
			tag, n, err := h.fetch(url)
			mu.Lock()
			defer mu.Unlock()
			if err != nil {
				r.Failed = err.Error()
			}
			tags[tag], r.Bytes = true, r.Bytes+n
		})
	}
	wg.Wait()
	r.Elapsed, r.Different = time.Since(begin), len(tags)
	return json.NewEncoder(os.Stdout).Encode(r)
}

// fetch does what firmware of one machine does, on a connection of its own.
func (h ukiHerd) fetch(url string) (tag string, n int64, err error) {
	client := &http.Client{Transport: &http.Transport{}, Timeout: 10 * time.Minute}
	defer client.CloseIdleConnections()
	head, err := client.Head(url)
	if err != nil {
		return "", 0, err
	}
	_ = head.Body.Close()
	req, err := http.NewRequest(http.MethodGet, url, nil)
	if err != nil {
		return "", 0, err
	}
	want := head.ContentLength
	if h.Size > 0 {
		want = h.Size
		req.Header.Set("Range", fmt.Sprintf("bytes=0-%d", h.Size-1))
	}
	res, err := client.Do(req)
	if err != nil {
		return "", 0, err
	}
	defer func() { _ = res.Body.Close() }()
	// In larger parts than io.Copy would.
	n, err = io.CopyBuffer(struct{ io.Writer }{io.Discard}, struct{ io.Reader }{res.Body}, make([]byte, 64<<10))
	if err != nil || n != want || res.StatusCode >= http.StatusMultipleChoices {
		return "", n, fmt.Errorf("HEAD says %d bytes (%s), GET gave %d (%s), %w", head.ContentLength, head.Status, n, res.Status, err)
	}
	return res.Header.Get("ETag"), n, nil
}
