package main

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/provisiond/provisiond/internal/uki/ukitest"
)

// TestSecureBoot goes the way of docs/secureboot.md.
func TestSecureBoot(t *testing.T) {
	dir := t.TempDir()
	path := func(name string) string { return filepath.Join(dir, name) }
	image := ukitest.UKI("amd64", "quiet splash", ukitest.Kernel("amd64", 5000), ukitest.Noise("initrd", 5000)).Bytes()
	broken := bytes.Clone(image)
	copy(broken[bytes.Index(broken, []byte(".linux")):], ".linus")
	for name, content := range map[string][]byte{"uki.efi": image, "broken.efi": broken, "page.efi": []byte("<html>")} {
		if err := os.WriteFile(path(name), content, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	sign := func(from, to string) []string {
		return []string{"secureboot", "sign", path(from), "-o", path(to), "--key", path("keys/db.key"), "--certificate", path("keys/db.pem")}
	}
	for _, c := range []struct {
		args []string
		code int
		out  []string // of standard output, or of standard error if it fails
	}{
		{[]string{"secureboot", "keys", path("keys"), "--name", "rack 7"}, 0, []string{path("keys/db.key")}},
		{[]string{"secureboot", "keys", path("keys")}, 1, []string{"PK.key", "exists"}},
		{[]string{"secureboot", "keys", path("other")}, 0, nil},
		{[]string{"secureboot", "enroll", path("keys")}, 0, []string{"db.auth", "KEK.esl", "PK.der", "Setup Mode"}},
		{[]string{"secureboot", "enroll", path("keys")}, 1, []string{"db.der", "exists"}},
		{[]string{"secureboot", "check", path("uki.efi")}, 1, []string{"is not signed"}},
		{sign("uki.efi", "signed.efi"), 0, []string{"signed.efi"}},
		{sign("uki.efi", "signed.efi"), 1, []string{"exists"}},
		{sign("page.efi", "nothing.efi"), 1, []string{"page.efi: this is not a PE file"}},
		{[]string{"secureboot", "sign", path("uki.efi"), "-o", path("x")}, 2, []string{"key"}},
		{[]string{"secureboot", "check", path("signed.efi")}, 0, []string{"UKI for amd64", ".linux", `kernel line: "quiet splash"`, "signed by CN=rack 7 db: good"}},
		{[]string{"secureboot", "check", path("signed.efi"), "--certificate", path("keys/db.pem")}, 0, []string{"good"}},
		{[]string{"secureboot", "check", path("signed.efi"), "--certificate", path("keys/db.der")}, 0, []string{"good"}},
		{[]string{"secureboot", "check", path("signed.efi"), "--certificate", path("other/db.pem")}, 1, []string{"no signature is good, and of provisiond db"}},
		{[]string{"secureboot", "check", path("page.efi")}, 1, []string{"page.efi: this is not a PE file"}},
		{[]string{"secureboot", "check", path("broken.efi")}, 1, []string{"is not signed"}},
	} {
		code, out, errs := command(t, c.args...)
		if code != 0 {
			out = errs
		}
		if code != c.code {
			t.Errorf("%v: exit code %d, want %d: %s", c.args, code, c.code, out)
		}
		for _, want := range c.out {
			if !strings.Contains(out, want) {
				t.Errorf("%v does not say %q: %s", c.args, want, out)
			}
		}
	}
	if _, err := os.Stat(path("nothing.efi")); !os.IsNotExist(err) {
		t.Errorf("what was not signed is left as a file: %v", err)
	}
}
