package web

import (
	"crypto/sha256"
	"encoding/hex"
	"testing"
)

// TestVendored: what others wrote is as they published it: htmx.org 2.0.8 and htmx-ext-sse
// 2.2.4, dist/*.min.js of their npm packages.
func TestVendored(t *testing.T) {
	for name, want := range map[string]string{
		"static/htmx.min.js":     "22283ef68cb7545914f0a88a1bdedc7256a703d1d580c1d255217d0a50d31313",
		"static/htmx-sse.min.js": "98a46496de0c3605fbffdce9167ba427bdd9553184f83f149c261891a92c0136",
	} {
		text, err := files.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		if sum := sha256.Sum256(text); hex.EncodeToString(sum[:]) != want {
			t.Errorf("the SHA-256 of %s is %x", name, sum)
		}
	}
}
