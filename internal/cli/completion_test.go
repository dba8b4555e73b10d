package cli

import (
	"bytes"
	"context"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/provisiond/provisiond/internal/admin"
)

// suggestions is what the shell is offered, without cobra's last line.
func suggestions(t *testing.T, server string, args ...string) string {
	t.Helper()
	code, stdout, _ := run(t, server, append([]string{"__complete"}, args...)...)
	if code != exitOK {
		t.Errorf("%v: exit code %d", args, code)
	}
	list, directive, _ := strings.Cut(stdout, ":")
	if directive != "4\n" { // no file names
		t.Errorf("%v: directive %q", args, directive)
	}
	return strings.Join(strings.Fields(list), " ")
}

func TestCompletion(t *testing.T) {
	dir, err := os.MkdirTemp("", "cli") // short: the path of a socket has 107 bytes at most
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = os.RemoveAll(dir) }()
	d := startDaemon(t, dir)
	defer d.stop()
	kernel, initramfs := filepath.Join(dir, "kernel"), filepath.Join(dir, "initramfs")
	for name, data := range map[string][]byte{kernel: amd64Kernel(), initramfs: xz()} {
		if err := os.WriteFile(name, data, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	for _, line := range []string{
		"cluster create rack1 --endpoint https://[2001:db8::1]:6443",
		"token create ci --role read",
		"cluster create other --endpoint https://[2001:db8::2]:6443",
		"machine add cp-1 --mac 525400000001 --role controlplane",
		"machine add cp-2 --mac 525400000002 --role controlplane",
		"machine add w-1 --mac 525400000003 --role worker",
		"image add --version v1.13.6 --arch amd64 --kernel " + kernel + " --initramfs " + initramfs,
		"image add --version v1.13.6 --schematic abc --arch amd64 --kernel " + kernel + " --initramfs " + initramfs,
	} {
		if code, _, stderr := run(t, d.server, strings.Fields(line)...); code != exitOK {
			t.Fatalf("%s: %s", line, stderr)
		}
	}
	for line, want := range map[string]string{
		"token create x --role ":          "read operate admin",
		"token create x --cluster ":       "other rack1",
		"token revoke ":                   "ci",
		"audit -o ":                       "table json jsonl",
		"machine show ":                   "cp-1 cp-2 w-1",
		"machine show cp":                 "cp-1 cp-2",
		"machine show cp-1 ":              "",
		"machine delete cp-1 ":            "cp-2 w-1",
		"machine list --cluster ":         "other rack1",
		"machine list --cluster r":        "rack1",
		"machine list --phase ":           strings.Join(phases, " "),
		"machine set cp-1 --role ":        "controlplane worker",
		"machine set cp-1 --image v":      "v1.13.6/abc v1.13.6",
		"cluster kubeconfig ":             "other rack1",
		"events --machine w":              "w-1",
		"machine logs w":                  "w-1",
		"image delete ":                   "v1.13.6/abc/amd64 v1.13.6/default/amd64",
		"image delete v1.13.6/abc/amd64 ": "v1.13.6/default/amd64",
		"image add --arch ":               "amd64 arm64",
		"machine list -o ":                "table json yaml",
		"export -o ":                      "json yaml",
		"cluster set rack1 --addressing ": "static dhcpv6",
	} {
		if got := suggestions(t, d.server, strings.Split(line, " ")...); got != want {
			t.Errorf("%s: %q, want %q", line, got, want)
		}
	}
}

// TestCompletionIsSilent: a shell gets nothing, and soon, whatever is wrong.
func TestCompletionIsSilent(t *testing.T) {
	broken := httptest.NewServer(http.NotFoundHandler())
	defer broken.Close()
	mute, err := net.Listen("tcp", "[::1]:0") // takes connections and says nothing
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = mute.Close() }()
	for _, server := range []string{"http://" + mute.Addr().String(), broken.URL, "unix://" + filepath.Join(t.TempDir(), "none"), "nonsense"} {
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute) // against the bound of a call
		var out, stderr bytes.Buffer
		code := Run(ctx, New("x"), []string{"--server", server, "__complete", "machine", "show", ""}, strings.NewReader(""), &out, &stderr)
		if code != exitOK || out.String() != ":4\n" || ctx.Err() != nil {
			t.Errorf("%s: %d %q %v", server, code, out.String(), ctx.Err())
		}
		cancel()
	}
}

func TestPhasesAreThoseOfTheAPI(t *testing.T) {
	field, _ := reflect.TypeFor[admin.MachineFilter]().FieldByName("Phase")
	if got := strings.Join(phases, ","); got != field.Tag.Get("enum") {
		t.Errorf("%s, want %s", got, field.Tag.Get("enum"))
	}
}
