package admin

import (
	"maps"
	"sync"
	"testing"
	"time"

	"github.com/provisiond/provisiond/api"
	"github.com/provisiond/provisiond/internal/inventory"
)

// fakeTransfers are those that a test says.
type fakeTransfers struct {
	mu sync.Mutex
	of map[string]inventory.Transfer
}

func (f *fakeTransfers) Transfer(machine string) (inventory.Transfer, bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	t, ok := f.of[machine]
	return t, ok
}

func (f *fakeTransfers) Transfers() map[string]inventory.Transfer {
	f.mu.Lock()
	defer f.mu.Unlock()
	return maps.Clone(f.of)
}

func (f *fakeTransfers) set(of map[string]inventory.Transfer) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.of = of
}

func TestProgress(t *testing.T) {
	began := time.Date(2026, 11, 1, 12, 0, 0, 0, time.UTC)
	transfers := &fakeTransfers{}
	r := seed(t, Config{Transfers: transfers})
	for _, want := range []*api.Progress{nil, {Step: "kernel", Sent: 4 << 20, Size: 9 << 20, Since: began}, nil} {
		transfers.set(nil)
		if want != nil {
			transfers.set(map[string]inventory.Transfer{"cp-1": {Step: want.Step, Sent: want.Sent, Size: want.Size, Started: began}})
		}
		var one api.Machine
		var all api.List[api.Machine]
		r.must(200, "GET", "/api/v1/machines/cp-1", "", &one)
		r.must(200, "GET", "/api/v1/machines", "", &all)
		for _, got := range []*api.Progress{one.Progress, all.Items[0].Progress} {
			if (got == nil) != (want == nil) || got != nil && *got != *want {
				t.Errorf("%+v, want %+v", got, want)
			}
		}
	}
}
