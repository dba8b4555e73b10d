package boltstore

import (
	"errors"
	"path/filepath"
	"testing"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"

	"github.com/provisiond/provisiond/internal/inventory"
)

// TestMetrics: commits are counted by how they ended.
func TestMetrics(t *testing.T) {
	s, err := Open(filepath.Join(t.TempDir(), "db"), Options{NoSync: true})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	key := inventory.Key{Bucket: inventory.BucketMeta, ID: "a"}
	for i := range 3 { // the first finds no record, as it should
		_, _, err := s.Commit(t.Context(), inventory.Commit{Checks: []inventory.Check{{Key: key}}, Writes: []inventory.Write{{Key: key, Value: []byte("x")}}})
		if conflict := errors.Is(err, inventory.ErrConflict); conflict != (i > 0) {
			t.Fatal(err)
		}
	}
	reg := prometheus.NewPedanticRegistry()
	reg.MustRegister(s.Collectors()...)
	families, err := reg.Gather()
	if err != nil {
		t.Fatal(err)
	}
	counts := map[string]uint64{}
	for _, f := range families {
		for _, m := range f.GetMetric() {
			if h := m.GetHistogram(); h != nil {
				name := f.GetName()
				for _, l := range m.GetLabel() {
					name += " " + l.GetValue()
				}
				counts[name] = h.GetSampleCount()
			} else if m.GetGauge().GetValue() <= 0 {
				t.Errorf("%s is %v", f.GetName(), m)
			}
		}
	}
	const commits = "provisiond_store_commit_duration_seconds "
	if counts[commits+"written"] != 1 || counts[commits+"conflict"] != 2 || counts["provisiond_store_batch_commits"] != 3 {
		t.Error(counts)
	}
	if problems, err := testutil.GatherAndLint(reg); err != nil || len(problems) > 0 {
		t.Error(err, problems)
	}
}
