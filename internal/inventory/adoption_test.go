package inventory_test

import (
	"errors"
	"fmt"
	"testing"

	"github.com/provisiond/provisiond/internal/inventory"
)

// TestAdoptionCodes: each NIC has its own, kept over a restart, and another here than
// elsewhere.
func TestAdoptionCodes(t *testing.T) {
	k, store := newKeeper(t)
	elsewhere, _ := newKeeper(t)
	again, err := inventory.NewKeeper(t.Context(), store, inventory.KeeperConfig{Subnets: subnets()})
	if err != nil {
		t.Fatal(err)
	}
	seen, same := map[string]bool{}, 0
	for i := range 1000 {
		mac := inventory.MAC(fmt.Sprintf("52:54:00:00:%02x:%02x", i>>8, i&255))
		code := func(k *inventory.Keeper) string {
			t.Helper()
			code, err := k.AdoptionCode(t.Context(), mac)
			if err != nil {
				t.Fatal(err)
			}
			return code
		}
		own := code(k)
		if seen[own] || inventory.NormalUserCode(own) != own || code(again) != own {
			t.Fatalf("%s has the code %s, and %s after a restart", mac, own, code(again))
		}
		seen[own] = true
		if code(elsewhere) == own {
			same++
		}
	}
	if same > 0 {
		t.Errorf("%d codes are the same elsewhere", same)
	}
	if _, err := k.StrangerByCode(t.Context(), "BBBB-BBBB"); !errors.Is(err, inventory.ErrNotFound) {
		t.Errorf("%v", err)
	}
}
