package admin

import (
	"strings"
	"testing"
)

// TestReadsAreDebugLines: those who only look leave no line at info level.
func TestReadsAreDebugLines(t *testing.T) {
	r := seed(t, Config{})
	for _, tc := range []struct{ method, want string }{{"GET", "debug"}, {"DELETE", "info"}} {
		before := len(r.logs.String())
		r.do(tc.method, "/api/v1/machines/cp-1", "")
		if line := r.logs.String()[before:]; !strings.Contains(line, `"level":"`+tc.want+`"`) {
			t.Errorf("%s: %s", tc.method, line)
		}
	}
}
