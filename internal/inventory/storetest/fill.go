package storetest

import (
	"encoding/json"
	"testing"

	"github.com/provisiond/provisiond/internal/inventory"
)

// Fill writes n machines straight into a store, as registration would have: a
// million in half a minute. Their cluster and image are the caller's to put.
func Fill(tb testing.TB, s inventory.Store, n int, machine func(i int) (inventory.Machine, inventory.Facts)) {
	tb.Helper()
	var c inventory.Commit
	put := func(bucket inventory.Bucket, id string, v any) {
		raw, isRaw := v.([]byte)
		if !isRaw {
			var err error
			if raw, err = json.Marshal(v); err != nil {
				tb.Fatal(err)
			}
		}
		c.Writes = append(c.Writes, inventory.Write{Key: inventory.Key{Bucket: bucket, ID: id}, Value: raw})
	}
	for i := range n {
		m, f := machine(i)
		put(inventory.BucketMachines, m.Name, m)
		put(inventory.BucketFacts, m.Name, f)
		for _, mac := range m.MACs {
			put(inventory.BucketMACs, string(mac), []byte(m.Name))
		}
		put(inventory.BucketAddresses, m.Address.String(), []byte(m.Name))
		if len(c.Writes) > 30_000 || i == n-1 {
			if _, _, err := s.Commit(tb.Context(), c); err != nil {
				tb.Fatal(err)
			}
			c = inventory.Commit{}
		}
	}
}
