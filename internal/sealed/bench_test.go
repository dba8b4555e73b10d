package sealed_test

import (
	"bytes"
	"fmt"
	"path/filepath"
	"testing"
	"time"

	"github.com/provisiond/provisiond/internal/boltstore"
	"github.com/provisiond/provisiond/internal/inventory"
)

// BenchmarkStore compares a sealed database with one that is not, in the same run:
// to read a record of the size of a machine's facts, to commit one to the disk, and
// to list an index, as a start does with that of the MACs.
func BenchmarkStore(b *testing.B) {
	const rounds, entries = 2000, 100_000
	value := bytes.Repeat([]byte("a fact "), 150)
	stores := map[string]inventory.Store{}
	for _, name := range []string{"plain", "sealed"} {
		raw, err := boltstore.Open(filepath.Join(b.TempDir(), name), boltstore.Options{})
		if err != nil {
			b.Fatal(err)
		}
		b.Cleanup(func() { _ = raw.Close() })
		if stores[name] = raw; name == "sealed" {
			stores[name] = seal(b, raw, newKey(b))
		}
		var c inventory.Commit
		for i := range entries {
			c.Writes = append(c.Writes, inventory.Write{Key: inventory.Key{Bucket: inventory.BucketMACs, ID: fmt.Sprintf("52:54:00:%06d", i)}, Value: []byte("machine-12345")})
		}
		c.Writes = append(c.Writes, inventory.Write{Key: machine("a"), Value: value})
		if _, _, err := stores[name].Commit(b.Context(), c); err != nil {
			b.Fatal(err)
		}
	}
	took := map[string]time.Duration{}
	for b.Loop() {
		for name, s := range stores {
			for what, do := range map[string]func() error{
				"get": func() error {
					for range rounds {
						if _, err := s.Get(b.Context(), machine("a")); err != nil {
							return err
						}
					}
					return nil
				},
				"commit": func() error {
					for range rounds / 20 {
						c := inventory.Commit{Writes: []inventory.Write{{Key: machine("a"), Value: value}}, Log: [][]byte{value[:200]}}
						if _, _, err := s.Commit(b.Context(), c); err != nil {
							return err
						}
					}
					return nil
				},
				"list": func() error {
					_, err := s.List(b.Context(), inventory.BucketMACs, "", 0)
					return err
				},
			} {
				start := time.Now()
				if err := do(); err != nil {
					b.Fatal(err)
				}
				took[name+what] += time.Since(start)
			}
		}
	}
	for _, what := range []string{"get", "commit", "list"} {
		b.ReportMetric(took["sealed"+what].Seconds()/took["plain"+what].Seconds(), what+"-ratio")
	}
	b.ReportMetric(float64((took["sealedget"]-took["plainget"]).Nanoseconds())/float64(b.N*rounds), "ns-more/get")
	b.ReportMetric(float64((took["sealedlist"]-took["plainlist"]).Nanoseconds())/float64(b.N*entries), "ns-more/listed")
}
