package storetest

import (
	"context"
	"encoding/json"

	"github.com/provisiond/provisiond/internal/inventory"
)

// Fill writes n machines straight into a store, as registration would have: a
// million in half a minute. Their cluster and image are the caller's to put.
func Fill(ctx context.Context, s inventory.Store, n int, machine func(i int) (inventory.Machine, inventory.Facts)) error {
	var c inventory.Commit
	put := func(bucket inventory.Bucket, id string, value []byte) {
		c.Writes = append(c.Writes, inventory.Write{Key: inventory.Key{Bucket: bucket, ID: id}, Value: value})
	}
	for i := range n {
		m, f := machine(i)
		record, err := json.Marshal(m)
		if err != nil {
			return err
		}
		facts, err := json.Marshal(f)
		if err != nil {
			return err
		}
		put(inventory.BucketMachines, m.Name, record)
		put(inventory.BucketFacts, m.Name, facts)
		for _, mac := range m.MACs {
			put(inventory.BucketMACs, string(mac), []byte(m.Name))
		}
		put(inventory.BucketAddresses, m.Address.String(), []byte(m.Name))
		if len(c.Writes) > 30_000 || i == n-1 {
			if _, _, err := s.Commit(ctx, c); err != nil {
				return err
			}
			c = inventory.Commit{}
		}
	}
	return nil
}
