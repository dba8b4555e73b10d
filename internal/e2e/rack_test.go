//go:build e2e

package e2e

import (
	"context"
	"fmt"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// rack is what each test begins with: images, and a daemon in a lab of its own.
type rack struct {
	ctx         context.Context
	clock       *stopwatch
	lab         *lab
	images      images
	daemon      *daemon
	stopCapture func() string
}

// newRack builds everything for machines of a kind and starts the daemon, which has the
// key that they trust. What the test leaves is in out, in a folder of its name.
func newRack(t *testing.T, b board, budget time.Duration) *rack {
	t.Helper()
	checkNeeds(t)
	out, err := filepath.Abs(filepath.Join("out", t.Name()))
	must(t, err)
	must(t, os.RemoveAll(out))
	must(t, os.MkdirAll(out, 0o755))
	t.Cleanup(func() {
		if t.Failed() {
			printTails(t, out)
		}
	})
	r := &rack{ctx: deadline(t, budget), clock: &stopwatch{t: t, start: time.Now()}}
	build := t.TempDir()
	r.images = buildImages(t, build, b)
	binary := filepath.Join(build, "provisiond")
	buildBinary(t, "../../cmd/provisiond", "amd64", binary)
	r.clock.lap("images and daemon built")
	r.lab = newLab(t, out)
	// Every request is answered with the installer's image.
	r.lab.serve(t, registryPort, http.HandlerFunc(func(w http.ResponseWriter, q *http.Request) { http.ServeFile(w, q, r.images.disk) }))
	r.stopCapture = r.lab.capture(t)
	settings := ""
	if b.secure {
		settings = fmt.Sprintf("secureBoot: {key: %s, certificate: %s}\n", snakeoilKey(t, build), snakeoilCertificate)
	}
	r.daemon = startDaemon(t, r.lab, binary, settings)
	return r
}

// addImage imports the images; flags may name more of their files.
func (r *rack) addImage(t *testing.T, flags ...string) {
	t.Helper()
	r.daemon.run(t, append([]string{
		"image", "add", "--version", talosVersion, "--arch", r.images.arch, "--kernel", r.images.kernel, "--initramfs", r.images.initramfs,
	}, flags...)...)
}

// createCluster makes the cluster e2e.
func (r *rack) createCluster(t *testing.T, endpoint, kernelArgs string) {
	t.Helper()
	create := []string{
		"cluster", "create", "e2e", "--endpoint", "https://[" + endpoint + "]:6443", "--talos-version", talosVersion,
		"--install-disk", "/dev/vda", "--install-image", fmt.Sprintf("[%s]:%d/e2e/installer:%s", serverAddr, registryPort, talosVersion),
	}
	for arg := range strings.FieldsSeq(kernelArgs) {
		create = append(create, "--kernel-arg", arg)
	}
	r.daemon.run(t, create...)
}

// addMachine registers a machine of the cluster e2e.
func (r *rack) addMachine(t *testing.T, v *vm, role, address string, flags ...string) {
	t.Helper()
	v.address = netip.MustParseAddr(address)
	r.daemon.run(t, append([]string{"machine", "add", v.name, "--mac", v.mac.String(), "--cluster", "e2e", "--role", role, "--address", address}, flags...)...)
}
