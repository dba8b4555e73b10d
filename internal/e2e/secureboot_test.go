//go:build e2e

package e2e

import (
	"bytes"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
)

// filesPort is where a test offers files of its own.
const filesPort = 5001

// TestSecureBoot boots a machine that starts signed programs only. Its firmware is first
// sent to the machine's UKI with one bit changed, then to the same without its signature,
// and then asks the daemon for it. It can only come to the third by refusing the others.
func TestSecureBoot(t *testing.T) {
	const address = "fd00:7a10:e2e::31"
	mac := net.HardwareAddr{0x52, 0x54, 0, 0xe2, 0, 0x31}
	r := newRack(t, securePC, budget)
	ctx := r.ctx
	r.addImage(t, "--stub", r.images.stub)
	r.createCluster(t, address, "no_timer_check")

	from := func(file string) bootOption {
		return httpFrom(fmt.Sprintf("http://[%s]:%d/%s", serverAddr, filesPort, file))
	}
	v := newVM(t, r.lab, "signed-1", securePC, mac, from("changed.efi"), from("unsigned.efi"), http6)
	r.addMachine(t, v, "controlplane", address, "--secure-boot", "on")

	// What the daemon serves, as somebody on the wire could have changed it.
	files := &shelf{dir: r.lab.dir, taken: map[string]int{}}
	signed := filepath.Join(files.dir, "signed.efi")
	host, leave := r.lab.newHost(t, v.mac, v.address)
	url := fmt.Sprintf("http://[%s]:8080/boot/%s/talos.efi", serverAddr, v.mac)
	output(t, host.command("curl", "--globoff", "--silent", "--show-error", "--fail", "--max-time", "60", "--output", signed, url))
	leave()
	command(t, "sbverify", "--cert", snakeoilCertificate, signed)
	content, err := os.ReadFile(signed)
	must(t, err)
	kernel, err := os.ReadFile(r.images.kernel)
	must(t, err)
	at := bytes.Index(content, kernel)
	if at < 0 {
		t.Fatal("the UKI that the daemon serves does not hold the kernel")
	}
	content[at+len(kernel)/2] ^= 1
	must(t, os.WriteFile(filepath.Join(files.dir, "changed.efi"), content, 0o644))
	copyFile(t, signed, filepath.Join(files.dir, "unsigned.efi"))
	command(t, "sbattach", "--remove", filepath.Join(files.dir, "unsigned.efi"))
	r.lab.serve(t, filesPort, files)
	r.clock.lap("UKI looked at")

	v.powerOn(t)
	checkLine(ctx, t, v)
	install(ctx, t, r.clock, r.daemon, v)
	console := v.console()
	for i, name := range []string{"changed.efi", "unsigned.efi"} {
		if info, err := os.Stat(filepath.Join(files.dir, name)); err != nil || files.count(name) != int(info.Size()) {
			t.Errorf("firmware read %d bytes of %s, want all %d once (%v)", files.count(name), name, info.Size(), err)
		}
		failed := fmt.Sprintf("failed to load Boot%04X", i)
		_, after, refused := strings.Cut(console, failed)
		line, _, _ := strings.Cut(after, "\r")
		if !refused || !strings.HasSuffix(line, ": Access Denied") || strings.Contains(console, fmt.Sprintf("starting Boot%04X", i)) {
			t.Errorf("%s: firmware says %q and not that access is denied", name, failed+line)
		}
	}
	if !strings.Contains(console, "starting Boot0002") || !strings.Contains(console, "Secure boot enabled") {
		t.Error("the machine did not start its own UKI, or not with Secure Boot on")
	}
	reachReady(ctx, t, r.clock, v)
	checkBootstrap(ctx, t, r.daemon, v)
	checkLog(t, r.lab.out)
}

// shelf serves files and counts the bytes of each that were taken.
type shelf struct {
	dir   string
	mu    sync.Mutex
	taken map[string]int
}

func (s *shelf) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	name := filepath.Base(r.URL.Path)
	content, err := os.ReadFile(filepath.Join(s.dir, name))
	if err != nil {
		http.NotFound(w, r)
		return
	}
	w.Header().Set("Content-Type", "application/efi")
	w.Header().Set("Content-Length", strconv.Itoa(len(content)))
	if r.Method != http.MethodGet {
		return
	}
	n, _ := io.Copy(w, bytes.NewReader(content)) // an error shows in n
	s.mu.Lock()
	defer s.mu.Unlock()
	s.taken[name] += int(n)
}

func (s *shelf) count(name string) int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.taken[name]
}
