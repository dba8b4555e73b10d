package admin

import (
	"fmt"
	"net/http/httptest"
	"net/netip"
	"testing"
	"time"

	"github.com/provisiond/provisiond/internal/inventory"
)

// BenchmarkWatchMachines is what one stream costs for each second in which 100 machines
// change: to notice, to make their JSON and to write it. It is told as a ratio to the
// same 100 machines asked for one by one through the API, and per rack size; ms/s is of
// one core.
func BenchmarkWatchMachines(b *testing.B) {
	const changes = 100
	for _, size := range []int{1000, 100_000} {
		b.Run(fmt.Sprint(size), func(b *testing.B) {
			now := time.Now()
			r := newRig(b, Config{Now: func() time.Time { return now }})
			for i := range size {
				m := &inventory.Machine{Name: fmt.Sprintf("m-%06d", i), Role: inventory.Worker, MACs: []inventory.MAC{inventory.MAC(fmt.Sprintf("52:54:00:%02x:%02x:%02x", i>>16, i>>8&255, i&255))}, Address: netip.AddrFrom16([16]byte{0x20, 1, 0xd, 0xb8, 13: byte(i >> 16), 14: byte(i >> 8), 15: byte(i)})}
				facts := inventory.Facts{Machine: m.Name, Stage: inventory.StageRunning, Ready: true, APIAt: time.Now()}
				c := inventory.Commit{Writes: []inventory.Write{
					{Key: inventory.Key{Bucket: inventory.BucketMachines, ID: m.Name}, Value: []byte(mustJSON(b, m))},
					{Key: inventory.Key{Bucket: inventory.BucketFacts, ID: m.Name}, Value: []byte(mustJSON(b, facts))},
				}}
				if _, _, err := r.store.Commit(b.Context(), c); err != nil {
					b.Fatal(err)
				}
			}
			// The hub by hand: its clock would measure seconds, and not what is done in them.
			h := r.newHub()
			st := &machineStream{s: r.Server, hub: h, wake: make(chan struct{}, 1), pending: map[string]struct{}{}, sent: map[string]uint64{}, match: func(sh *shown) bool { return sh != nil }}
			h.streams[st] = struct{}{}
			names := make([]string, changes)
			for i := range size {
				name := fmt.Sprintf("m-%06d", i)
				st.sent[name] = 0
				h.turns[name] = now.Add(1e6 * time.Hour)
				if i < changes {
					names[i] = name
				}
			}
			var watched, asked time.Duration
			for b.Loop() {
				now = now.Add(hubTick)
				for _, name := range names {
					st.sent[name] = 0 // each is another than the client has
				}
				st.taken = time.Time{}
				start := time.Now()
				sweep := false
				h.mark(names)
				if err := h.tick(b.Context(), &sweep); err != nil {
					b.Fatal(err)
				}
				for more, written := true, 0; more; {
					var buf []byte
					var err error
					if buf, more, err = st.next(b.Context()); err != nil {
						b.Fatal(err)
					}
					if written += len(buf); !more && written < changes*100 {
						b.Fatalf("%d bytes of %d machines", written, changes)
					}
				}
				watched += time.Since(start)
				start = time.Now()
				for _, name := range names {
					rec := httptest.NewRecorder()
					r.Handler().ServeHTTP(rec, httptest.NewRequestWithContext(as(b.Context(), root), "GET", "http://[::1]/api/v1/machines/"+name, nil))
					if rec.Code != 200 {
						b.Fatal(rec.Body)
					}
				}
				asked += time.Since(start)
			}
			b.ReportMetric(float64(watched)/float64(asked), "x-asking")
			b.ReportMetric(float64(watched.Microseconds())/1000/float64(b.N), "ms/s")
		})
	}
}
