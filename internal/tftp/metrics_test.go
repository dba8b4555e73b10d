package tftp

import (
	"io"
	"testing"

	"github.com/prometheus/client_golang/prometheus/testutil"
	"github.com/rs/zerolog"
)

// TestMetrics: requests are counted by what they were for and how they ended.
func TestMetrics(t *testing.T) {
	s := New(Config{}, tree(), newKeeper(), zerolog.Nop())
	t.Run("transfers", func(t *testing.T) { // counted whole when the server has ended
		at := serve(t, s)
		for _, name := range []string{"amd64/snponly.efi", "amd64/autoexec.ipxe", "amd64/none.efi", "../../etc/passwd"} {
			if from, err := client(t, at, 1228, true).Receive(name, "octet"); err == nil {
				if _, err := from.WriteTo(io.Discard); err != nil {
					t.Fatal(err)
				}
			}
		}
	})
	for _, want := range []struct {
		kind, outcome string
		n             float64
	}{
		{kindLoader, complete, 1}, {kindScript, complete, 1}, {kindLoader, refused, 1}, {kindOther, refused, 1}, {kindLoader, brokenOff, 0},
	} {
		if n := testutil.ToFloat64(s.metrics.transfers.WithLabelValues(want.kind, want.outcome)); n != want.n {
			t.Errorf("%v of %s %s, want %v", n, want.kind, want.outcome, want.n)
		}
	}
	if n := testutil.ToFloat64(s.metrics.bytes.WithLabelValues(kindLoader)); n != float64(len(loader())) {
		t.Errorf("%v bytes", n)
	}
}
