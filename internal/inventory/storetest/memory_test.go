package storetest

import (
	"testing"

	"github.com/provisiond/provisiond/internal/inventory"
)

// TestMemory holds the store without a disk to what every store promises.
func TestMemory(t *testing.T) {
	disks := map[string]*Memory{} // a store that is opened again
	Run(t, func(_ *testing.T, dir string) inventory.Store {
		if disks[dir] == nil {
			disks[dir] = NewMemory()
		}
		return disks[dir]
	})
}
